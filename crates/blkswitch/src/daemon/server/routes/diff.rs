//! `map diff`: the difference of two maps, as JSON, as lines, or as a message.

use std::io::Write as _;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;

use crate::compact::Compact;
use crate::daemon::devices::difference::{Difference, Walk};
use crate::daemon::devices::switch::Switch;
use crate::daemon::failure::Failure;
use crate::daemon::server::app::App;
use crate::daemon::server::pieces::{PIECE_BYTES, Pieces, in_pieces};
use crate::daemon::server::reply::{self, Name, QueryParams, Refused, refuse};
use crate::daemon::server::routes::message::{BLOCK_BYTES, Incoming, feed};
use crate::protocol::{DiffForm, DiffQuery, DiffTextQuery, MapChange, MapDiff, route};

/// The ioctl in refusals, as for maps.
const IOCTL: &str = "status";

/// How the region map of a device differs from that of another device.
#[utoipa::path(
    get,
    path = route::MAP_DIFF,
    params(("name" = String, Path, description = "The device"), DiffQuery),
    responses(
        (status = 200, content(
            (MapDiff = "application/json"),
            (String = "application/x-ndjson"),
            (String = "text/plain")
        )),
        Refused
    )
)]
pub async fn devices(
    State(app): State<App>,
    Name(name): Name,
    QueryParams(query): QueryParams<DiffQuery>,
) -> Result<Response, Refused> {
    let device = app.devices.find(&name).map_err(refuse(IOCTL, None))?;
    let form = query.form;
    let compare = || -> Result<Difference, Failure> {
        let with = &query.with;
        let other = app.devices.find(with)?;
        let before = Switch::of(&device, query.sector)?;
        let other = Switch::of(&other, query.with_sector).map_err(|mut failure| {
            failure.reason = format!("{with}: {}", failure.reason);
            failure
        })?;
        Difference::of_devices(before, other)
    };
    let difference = compare().map_err(refuse(IOCTL, Some(device.id())))?;
    Ok(answer(difference, form))
}

/// How the region map of a device differs from the one that a message would make of it.
#[utoipa::path(
    post,
    path = route::MAP_DIFF,
    params(("name" = String, Path, description = "The device"), DiffTextQuery),
    request_body(
        content = String,
        description = "A set_region_mappings message, as a stream",
        content_type = "text/plain"
    ),
    responses(
        (status = 200, content(
            (MapDiff = "application/json"),
            (String = "application/x-ndjson"),
            (String = "text/plain")
        )),
        Refused
    )
)]
pub async fn message(
    State(app): State<App>,
    Name(name): Name,
    QueryParams(query): QueryParams<DiffTextQuery>,
    body: Body,
) -> Result<Response, Refused> {
    let mut incoming = Incoming::new(body);
    let form = query.form;
    let made = compare(&app, &name, query, &mut incoming).await;
    if !matches!(made, Ok(Ok(_))) {
        incoming.drain().await;
    }
    let minor = app.devices.find(&name).ok().map(|device| device.id());
    let difference = made?.map_err(refuse(IOCTL, minor))?;
    Ok(answer(difference, form))
}

/// Applies the message to a copy of the device's map.
async fn compare(
    app: &App,
    name: &str,
    query: DiffTextQuery,
    incoming: &mut Incoming,
) -> Result<Result<Difference, Failure>, Refused> {
    let found = || -> Result<_, Failure> {
        let device = app.devices.find(name)?;
        let switch = Switch::of(&device, query.sector)?;
        Ok((device, switch))
    };
    let (device, switch) = match found() {
        Ok(found) => found,
        Err(failure) => return Ok(Err(failure)),
    };
    let (head, complete) = match incoming.head(BLOCK_BYTES).await {
        Ok(head) => head,
        Err(cut) => return Ok(Err(cut.into())),
    };
    feed(
        incoming,
        head,
        complete,
        move |text| Difference::of_message(&device, switch, text),
        |cut, _| cut.into(),
    )
    .await
}

fn answer(difference: Difference, form: DiffForm) -> Response {
    let content_type = match form {
        DiffForm::Changes => "application/json",
        DiffForm::Lines => "application/x-ndjson",
        DiffForm::Message => "text/plain; charset=utf-8",
    };
    if form == DiffForm::Message {
        let text = MessageText { difference, compact: Some(Compact::in_lines()) };
        return reply::text(content_type, in_pieces(text));
    }
    let text =
        ChangesText { difference, form, walk: Some(Walk::default()), begun: false, listed: false };
    reply::text(content_type, in_pieces(text))
}

/// The changes, as JSON or in lines.
struct ChangesText {
    difference: Difference,
    form: DiffForm,
    /// `None` when everything is written.
    walk: Option<Walk>,
    /// Whether the head was written.
    begun: bool,
    /// Whether a change was written.
    listed: bool,
}

impl ChangesText {
    /// Writes the text before the changes. Writing to a `Vec` cannot fail, here and below.
    fn head(&self, out: &mut Vec<u8>) -> Result<(), Failure> {
        let geometry = *self.difference.diff()?.geometry();
        let [before, after] = self.difference.paths()?;
        let _ = write!(
            out,
            r#"{{"regions":{},"region_size":{},"paths":[{before},{after}],"changes":["#,
            geometry.nr_regions(),
            geometry.region_size()
        );
        Ok(())
    }
}

impl Pieces for ChangesText {
    fn next_piece(&mut self) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(PIECE_BYTES + 128);
        let is_json = self.form == DiffForm::Changes;
        if !self.begun && is_json {
            self.head(&mut out).ok()?;
        }
        self.begun = true;
        let walk = self.walk.as_mut()?;
        let diff = self.difference.diff().ok()?;
        let listed = &mut self.listed;
        let goes_on = walk.step(&diff, |MapChange { start, count, from, to }| {
            let separator = if is_json && *listed { "," } else { "" };
            let end = if is_json { "" } else { "\n" };
            let _ = write!(
                out,
                r#"{separator}{{"start":{start},"count":{count},"from":{from},"to":{to}}}{end}"#
            );
            *listed = true;
            out.len() < PIECE_BYTES
        });
        if !goes_on {
            self.walk = None;
            if is_json {
                out.extend_from_slice(b"]}");
            }
        }
        Some(out)
    }
}

/// A message that turns the first map into the second.
struct MessageText {
    difference: Difference,
    /// `None` when everything is written.
    compact: Option<Compact>,
}

impl Pieces for MessageText {
    fn next_piece(&mut self) -> Option<Vec<u8>> {
        let compact = self.compact.as_mut()?;
        let diff = self.difference.diff().ok()?;
        let mut out = Vec::with_capacity(PIECE_BYTES + 128);
        if !compact.write(&diff, PIECE_BYTES, &mut out) {
            self.compact = None;
        }
        Some(out)
    }
}
