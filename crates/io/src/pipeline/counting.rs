//! Counting: operations and errors of devices and paths. Errors of paths that no multipath device
//! judges are told by the pool's watcher ([`crate::device::failing`]).

use std::sync::Arc;

use super::split::Piece;
use super::state::{Hops, Part, Whole};
use super::{Kind, Pipeline};
use crate::device::failing::Failure;
use crate::request::Op;
use crate::stats::Counters;

impl Pipeline {
    /// Whether paths have failed that the watcher is to be told of.
    pub(crate) fn has_failures(&self) -> bool {
        self.failures.has_news()
    }

    /// Takes them.
    pub(crate) fn take_failures(&mut self) -> impl Iterator<Item = Arc<Failure>> + '_ {
        self.failures.take_news()
    }

    /// Counts an error for the watcher, for the first `paths` paths of the way.
    #[cold]
    pub(super) fn count_failure(&mut self, hops: &Hops, paths: usize, errno: i32) {
        // The answer to a zeroing that was to be fast or not at all: the path is well.
        if errno == libc::EOPNOTSUPP {
            return;
        }
        for hop in hops.all().iter().take(paths) {
            let local = self.devices.get(hop.device as usize).and_then(Option::as_ref);
            let Some(live) = local.and_then(|local| local.live.as_deref()) else { continue };
            let address = || live.table.path_name(hop.path);
            self.failures.count((hop.device, hop.path, errno), address);
        }
    }

    /// Counts an operation for the devices of its way from the `devices`th on, and for the first
    /// `paths` paths of it.
    #[inline(always)]
    pub(super) fn count(&self, hops: &Hops, (devices, paths): (usize, usize), what: Counted) {
        let Counted { kind, len, failed, ns } = what;
        for (depth, hop) in hops.all().iter().enumerate() {
            let Some(Some(local)) = self.devices.get(hop.device as usize) else { continue };
            if depth < paths
                && let Some(live) = &local.live
                && let Some(path) = live.table.counters(self.queue, hop.path)
            {
                path.count(kind, len, failed, ns);
            }
            if depth >= devices
                && let Some(device) = local.counters.get(self.queue)
            {
                device.count(kind, len, failed, ns);
            }
        }
    }

    /// Counts a discard that a leaf declined, for every device and path of its way.
    #[cold]
    pub(super) fn count_ignored(&self, hops: &Hops) {
        for hop in hops.all() {
            let Some(Some(local)) = self.devices.get(hop.device as usize) else { continue };
            let path = local.live.as_ref().and_then(|l| l.table.counters(self.queue, hop.path));
            path.into_iter()
                .chain(local.counters.get(self.queue))
                .for_each(Counters::count_ignored);
        }
    }

    /// Counts a piece that no leaf was asked for, on its way below the request's own device.
    pub(super) fn count_ended(&self, op: Op, piece: &Piece, failed: bool) {
        let what = Counted { kind: Kind::of(op), len: piece.len, failed, ns: 0 };
        self.count(&piece.hops, (1, piece.hops.depth as usize), what);
    }
}

/// The counters that an operation belongs to.
#[derive(Clone, Copy)]
pub(super) struct Counted {
    pub(super) kind: Kind,
    pub(super) len: u64,
    pub(super) failed: bool,
    pub(super) ns: u64,
}

impl Counted {
    #[inline]
    pub(super) fn of(part: &Part, now_ns: u64) -> Counted {
        let Whole { kind, len, errno, .. } = part.whole;
        Counted { kind, len, failed: errno != 0, ns: now_ns.saturating_sub(part.started_ns) }
    }
}
