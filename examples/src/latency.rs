//! A path selector of one's own: the path that has answered fastest of late.

use blkswitch_io::core::multipath::Path;
use blkswitch_io::core::multipath::selector::{Ask, CustomSelector, Selector};

/// One request in so many goes to the path that was used least, so that a path that has become
/// faster is noticed.
const EXPLORE: u64 = 64;

/// Chooses the path with the shortest expected wait: its average latency, times the requests that
/// are ahead. The average of a path is its note, so one `static` serves any number of devices.
#[derive(Debug)]
pub struct LeastLatency;

/// What [`MultipathBuilder::group`](blkswitch_io::multipath::MultipathBuilder::group) takes.
pub fn least_latency() -> Selector {
    Selector::custom(&LeastLatency)
}

impl CustomSelector for LeastLatency {
    fn name(&self) -> &'static str {
        "least-latency"
    }

    fn pick(&self, paths: &[Path], ask: &Ask) -> Option<usize> {
        // `None` leaves the choice to turns.
        if ask.now_ns.is_multiple_of(EXPLORE) {
            return None;
        }
        let wait = |path: &Path| path.note().saturating_mul(u64::from(path.in_flight()) + 1);
        let up = paths.iter().enumerate().filter(|(_, path)| path.is_up());
        up.min_by_key(|(_, path)| wait(path)).map(|(place, _)| place)
    }

    fn answered(&self, path: &Path, started_ns: u64, now_ns: u64) {
        let (before, latest) = (path.note(), now_ns.saturating_sub(started_ns));
        let next = if before == 0 { latest } else { before - before / 8 + latest / 8 };
        // 0 is a path that has not answered yet, which is tried first.
        path.set_note(next.max(1));
    }
}
