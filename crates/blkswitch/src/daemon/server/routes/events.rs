//! `events`: a long poll for the event number of a device.

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;

use crate::daemon::failure::Failure;
use crate::daemon::server::app::{App, EVENT_POLLS_MAX};
use crate::daemon::server::reply::{Name, QueryParams, Refused, blocking, refuse};
use crate::protocol::{EVENTS_POLL_SECONDS, Errno, Events, EventsQuery, route};

/// Interval at which a poll checks whether the daemon is to stop.
const SLICE: Duration = Duration::from_millis(200);

/// Wait until the event number differs from the one given, or the device is removed.
#[utoipa::path(
    get,
    path = route::EVENTS,
    params(("name" = String, Path, description = "The device"), EventsQuery),
    responses((status = 200, body = Events), Refused)
)]
pub async fn events(
    State(app): State<App>,
    Name(name): Name,
    QueryParams(query): QueryParams<EventsQuery>,
) -> Result<Json<Events>, Refused> {
    const IOCTL: &str = "waitevent";
    let device = app.devices.find(&name).map_err(refuse(IOCTL, None))?;
    let Ok(place) = app.event_polls.clone().try_acquire_owned() else {
        let reason = format!("{EVENT_POLLS_MAX} clients wait for events already");
        return Err(refuse(IOCTL, Some(device.id()))(Failure::new(Errno::Eagain, reason)));
    };
    blocking(move || {
        let _place = place;
        let until = Instant::now() + Duration::from_secs(EVENTS_POLL_SECONDS);
        while Instant::now() < until && !*app.stopping.borrow() {
            if let Some(event_nr) = device.wait_event(query.after, SLICE) {
                return Json(Events { event_nr, changed: true });
            }
        }
        Json(Events { event_nr: query.after, changed: false })
    })
    .await
}
