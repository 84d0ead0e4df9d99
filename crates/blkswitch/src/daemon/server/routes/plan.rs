//! `map plan`: plans that move regions, as JSON, in lines, or as a message.

use axum::extract::State;
use axum::response::Response;

use crate::compact::Compact;
use crate::daemon::devices::plan::{self, Plan};
use crate::daemon::devices::switch::Switch;
use crate::daemon::server::app::{App, PLANS_MAX};
use crate::daemon::server::pieces::{PIECE_BYTES, Pieces, in_pieces};
use crate::daemon::server::reply::{self, Json, Name, QueryParams, Refused, permitted, refuse};
use crate::protocol::{MapPlan, PlanForm, PlanMap, PlanQuery, route};

/// The ioctl in refusals, as for maps.
const IOCTL: &str = "status";

/// Plan moves of regions. A plan changes nothing; its message does.
#[utoipa::path(
    post,
    path = route::MAP_PLAN,
    params(("name" = String, Path, description = "The device"), PlanQuery),
    request_body = PlanMap,
    responses(
        (status = 200, content(
            (MapPlan = "application/json"),
            (String = "application/x-ndjson"),
            (String = "text/plain")
        )),
        Refused
    )
)]
pub async fn plan(
    State(app): State<App>,
    Name(name): Name,
    QueryParams(query): QueryParams<PlanQuery>,
    Json(wish): Json<PlanMap>,
) -> Result<Response, Refused> {
    let busy = format!("{PLANS_MAX} plans are being made already: try again");
    let places = app.plans.clone();
    let made = permitted(&places, &busy, move || -> Result<Plan, Refused> {
        let device = app.devices.find(&name).map_err(refuse(IOCTL, None))?;
        let switch = Switch::of(&device, query.sector);
        let plan = switch.and_then(|switch| plan::plan(&device, &switch, &wish));
        plan.map_err(refuse(IOCTL, Some(device.id())))
    });
    let plan = made.await??;
    let (content_type, compact) = match query.form {
        PlanForm::Plan => ("application/json", Compact::default()),
        PlanForm::Lines => ("application/x-ndjson", Compact::in_lines()),
        PlanForm::Message => ("text/plain; charset=utf-8", Compact::in_lines()),
    };
    let text = PlanText { plan, form: query.form, compact: Some(compact), begun: false };
    Ok(reply::text(content_type, in_pieces(text)))
}

/// The text of a plan.
struct PlanText {
    plan: Plan,
    form: PlanForm,
    /// `None` when everything is written.
    compact: Option<Compact>,
    begun: bool,
}

impl PlanText {
    /// Writes the text before the message. Returns `None` if the plan cannot be written as JSON.
    fn head(&self, out: &mut Vec<u8>) -> Option<()> {
        match self.form {
            PlanForm::Message => {}
            PlanForm::Plan => {
                serde_json::to_writer(&mut *out, &self.plan.summary).ok()?;
                // The message is the last field, and empty: what follows stands between its quotes.
                out.truncate(out.strip_suffix(b"\"}")?.len());
            }
            PlanForm::Lines => {
                serde_json::to_writer(&mut *out, &self.plan.summary).ok()?;
                out.extend_from_slice(b"\n\"");
            }
        }
        Some(())
    }
}

impl Pieces for PlanText {
    fn next_piece(&mut self) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(PIECE_BYTES + 128);
        if !self.begun {
            self.head(&mut out)?;
            self.begun = true;
        }
        let mut message = Vec::with_capacity(PIECE_BYTES + 128);
        let goes_on = self.plan.write(self.compact.as_mut()?, PIECE_BYTES, &mut message);
        if !goes_on {
            self.compact = None;
        }
        // A message has no characters that JSON escapes but its line breaks.
        match self.form {
            PlanForm::Message => out.append(&mut message),
            PlanForm::Plan => {
                out.extend(message.iter().filter(|byte| **byte != b'\n'));
                if !goes_on {
                    out.extend_from_slice(b"\"}");
                }
            }
            PlanForm::Lines => {
                let is_end = |at: usize| !goes_on && at + 1 == message.len();
                for (at, byte) in message.iter().enumerate() {
                    match byte {
                        b'\n' if is_end(at) => out.extend_from_slice(b"\"\n"),
                        b'\n' => out.extend_from_slice(b"\"\n\""),
                        byte => out.push(*byte),
                    }
                }
            }
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_the_last_field_of_a_plan() {
        let text = serde_json::to_string(&MapPlan::default()).unwrap();
        assert!(text.ends_with(r#","message":""}"#), "{text}");
    }
}
