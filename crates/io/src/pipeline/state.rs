//! The state of a pipeline: the devices as its queue knows them, the requests under way, and their
//! parts.

use std::collections::VecDeque;
use std::sync::Arc;

use super::split::Piece;
use crate::device::table::{Live, MAX_DEPTH};
use crate::engine::LeafIo;
use crate::leaf::Leaf;
use crate::request::{Request, Token};
use crate::stats::{Counters, Kind};
use crate::sys::latch::Ack;

/// The devices and paths that a piece has come through, the request's own device first.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hops {
    pub(super) depth: u32,
    /// Which drains wait for the piece ([`super::drain`]), a bit each.
    pub(super) noted: u32,
    pub(super) hops: [Hop; MAX_DEPTH],
}

/// A number that no path has: the way ends at a device.
pub(super) const NO_PATH: u32 = u32::MAX;

/// One device and the path taken there (numbered over all segments of its table), or [`NO_PATH`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Hop {
    pub(super) device: u32,
    pub(super) path: u32,
}

impl Hops {
    pub(super) fn all(&self) -> &[Hop] {
        self.hops.get(..self.depth as usize).unwrap_or(&[])
    }

    /// The devices below the request's own: their gates were entered by the piece.
    pub(super) fn below(&self) -> &[Hop] {
        self.all().get(1..).unwrap_or(&[])
    }

    /// The path taken at the last device is another.
    pub(super) fn set_last_path(&mut self, path: u32) {
        if let Some(hop) =
            self.depth.checked_sub(1).and_then(|last| self.hops.get_mut(last as usize))
        {
            hop.path = path;
        }
    }

    /// Without the last device.
    pub(super) fn without_last(mut self) -> Hops {
        self.depth = self.depth.saturating_sub(1);
        self
    }

    /// One more; false when the stack is too deep.
    pub(super) fn push(&mut self, device: u32, path: u32) -> bool {
        let Some(hop) = self.hops.get_mut(self.depth as usize) else { return false };
        *hop = Hop { device, path };
        self.depth += 1;
        true
    }

    /// With one more; nothing when the stack is too deep.
    pub(super) fn with(mut self, device: u32, path: u32) -> Option<Hops> {
        self.push(device, path).then_some(self)
    }
}

/// A device as this queue knows it.
pub(super) struct Local {
    pub(super) live: Option<Arc<Live>>,
    pub(super) open: bool,
    pub(super) in_flight: u32,
    pub(super) parked: VecDeque<Parked>,
    /// Pieces that no path of this multipath device takes for now, of the requests named.
    pub(super) held: VecDeque<(u32, Piece)>,
    /// If the gate is closed: for a suspend that holds what finds no path.
    pub(super) noflush: bool,
    pub(super) closing: Option<Ack>,
    pub(super) counters: Arc<[Counters]>,
}

/// A request or piece that waits at a closed gate.
#[derive(Clone, Copy)]
pub(super) enum Parked {
    /// A request to the device itself.
    Request(Request),
    /// A piece of a request to a device above.
    Piece { request: u32, piece: Piece },
    /// The rest of a request, whose earlier pieces are done. It does not count as in flight.
    Rest(u32),
}

impl Parked {
    /// The piece, if it is one.
    pub(super) fn piece_mut(&mut self) -> Option<&mut Piece> {
        match self {
            Parked::Piece { piece, .. } => Some(piece),
            Parked::Request(_) | Parked::Rest(_) => None,
        }
    }
}

/// A request under way.
pub(super) struct Running {
    pub(super) request: Request,
    pub(super) device: u32,
    /// Pieces not done, and 1 while the request is being split.
    pub(super) left: u32,
    /// Those of them that its own device holds. While that is all of them, the request is not
    /// counted as in flight.
    pub(super) held: u32,
    pub(super) errno: i32,
    /// Bytes already split off.
    pub(super) split: u64,
    pub(super) started_ns: u64,
    /// Whose it is ([`super::turns::Turns`]).
    pub(super) owner: u32,
}

/// A leaf by where it is found, so that no reference count is touched per request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeafAt {
    pub(super) device: u32,
    pub(super) index: u32,
    pub(super) departed: bool,
}

/// In place of a request's number: the part is all of it, and there is nothing else to be kept.
pub(super) const ALONE: u32 = u32::MAX;

/// A piece on its leaf.
pub(super) struct Part {
    /// The request under way, or [`ALONE`].
    pub(super) request: u32,
    /// The request's token.
    pub(super) token: Token,
    pub(super) hops: Hops,
    pub(super) leaf: LeafAt,
    pub(super) io: LeafIo,
    /// The whole operation, before short transfers and fallbacks changed `io`.
    pub(super) whole: Whole,
    pub(super) started_ns: u64,
}

#[derive(Clone, Copy)]
pub(super) struct Whole {
    pub(super) kind: Kind,
    pub(super) len: u64,
    /// Bytes of a read, write or written-out zero that are done.
    pub(super) done: u64,
    /// The request's FUA, if the leaf must be flushed for it afterwards.
    pub(super) then_flush: bool,
    /// Do not write zeroes out.
    pub(super) fast: bool,
    /// A discard that the leaf declined.
    pub(super) is_ignored: bool,
    /// For a flush: the writes it covers.
    pub(super) covers: u64,
    pub(super) errno: i32,
}

/// Flushes of one leaf: one runs, the rest wait for the next (group commit). Two at once on one
/// descriptor would let one swallow the error the other must report.
pub(super) struct Flushing {
    /// The address of the leaf, whatever device it is used by.
    pub(super) leaf: *const Leaf,
    pub(super) running: u32,
    /// Answered with `running`.
    pub(super) with: Vec<u32>,
    /// Came while it ran: the next one serves them.
    pub(super) next: Vec<u32>,
}

/// Unflushed writes of a path that is down, which a flush over another path will cover.
pub(super) struct Covering {
    /// The flush.
    pub(super) part: u32,
    /// The path's leaf, by its index in the table.
    pub(super) leaf: u32,
    /// See [`crate::leaf::Dirty`].
    pub(super) writes: u64,
}

impl Local {
    pub(super) fn leave(&mut self) {
        self.in_flight -= 1;
        self.settle();
    }

    /// Tells control that the device has drained, if it waits for that.
    pub(super) fn settle(&mut self) {
        if self.in_flight == 0
            && let Some(ack) = self.closing.take()
        {
            ack.done();
        }
    }
}
