//! The fast path. Most reads and writes touch a single region, so they become a single part. The
//! fast path submits that part directly: it builds no piece list and stores no `Running` request.
//!
//! Contract: as [`super`]. A request on the fast path is a part with [`ALONE`] in place of a
//! request's number, until it is answered. If it may have to wait or go down another path, it
//! becomes a normal request ([`super::multipath`]).

use blkswitch_core::multipath::{Ask, Attempt, Verdict};

use super::split::{self, Piece, PieceTo, Straight};
use super::state::{ALONE, Hops, LeafAt};
use super::{Counted, Kind, LeafIo, LeafOp, Pipeline, Submitted, judge, leaf_at, multipath};
use crate::engine::session::turn::Turn;
use crate::request::{Op, Request};

/// The result of the fast path.
pub(super) enum Alone {
    /// The request has several pieces and has not entered.
    Not,
    /// The request is under way.
    UnderWay,
    /// The leaf did all of it at once.
    Answered,
}

impl Pipeline {
    /// Enters a read or write of one piece. Only its part is stored, and nothing if its leaf does
    /// all of it at once.
    #[inline]
    pub(super) fn begin_alone(&mut self, device: u32, request: &Request, turn: &mut Turn) -> Alone {
        let (range, mut hops) = ((request.offset / 512, request.len / 512), Hops::default());
        let Some((way, offset)) = split::straight(&self.devices, device, range, &mut hops) else {
            return Alone::Not;
        };
        let (at, leaf, attempt) = match way {
            Straight::Leaf(at, leaf) => (at, leaf, None),
            Straight::Multipath(device, groups, table) => {
                // For another path, the part holds enough of a request that is as simple as this.
                if request.pages.is_some() || request.fua {
                    return Alone::Not;
                }
                let ask = Ask { bytes: request.len, now_ns: turn.now_ns(), cpu: self.queue as u16 };
                let way = multipath::choose_alone((device, groups, table), ask, &mut self.events);
                let Some((at, leaf, attempt)) = way else { return Alone::Not };
                hops.set_last_path(attempt.path());
                (at, leaf, Some((groups, attempt)))
            }
        };
        let is_read = request.op == Op::Read;
        let mut result = None;
        // Data in pages, and writes that need a flush, take several steps.
        if request.pages.is_none()
            && (!request.fua || leaf.engine().has_fua())
            && !leaf.is_full(self.queue)
        {
            let io = LeafIo {
                op: if is_read { LeafOp::Read } else { LeafOp::Write },
                fua: request.fua,
                fast: false,
                offset,
                len: request.len,
                data: request.data,
                pages: None,
                part: self.parts.next(),
                queue: self.queue,
            };
            let began_ns = turn.now_ns();
            // SAFETY: as in drive().
            result = Some(unsafe { leaf.engine().submit(&io, turn) });
            if result == Some(Submitted::Done(request.len as i64)) {
                let kind = if is_read {
                    Kind::Read
                } else {
                    judge::wrote(&io, leaf, 0);
                    Kind::Write
                };
                if let Some((groups, attempt)) = attempt {
                    // Some selectors use the latency, however short it was.
                    turn.read_clock();
                    let verdict = groups.judge(attempt, 0, turn.now_ns(), &mut |_| {});
                    debug_assert!(verdict == Verdict::Done, "there is nothing more to do");
                }
                let ns = turn.now_ns().saturating_sub(began_ns);
                self.count(
                    &hops,
                    (0, hops.depth as usize),
                    Counted { kind, len: request.len, failed: false, ns },
                );
                turn.answered(1);
                return Alone::Answered;
            }
        }
        let piece = Piece { to: PieceTo::Leaf(at), hops, offset, len: request.len, data: 0 };
        let attempt = attempt.map(|(_, attempt)| attempt);
        self.go_on_alone(request, (at, attempt), &piece, result, turn);
        Alone::UnderWay
    }

    /// Goes on with [`Pipeline::begin_alone`] if the leaf was not asked yet, will answer, or has
    /// not done all of it.
    fn go_on_alone(
        &mut self,
        request: &Request,
        (leaf, attempt): (LeafAt, Option<Attempt>),
        piece: &Piece,
        submitted: Option<Submitted>,
        turn: &mut Turn,
    ) {
        for hop in piece.hops.all() {
            if let Some(local) = self.local(hop.device) {
                local.in_flight += 1;
            }
        }
        self.alone += 1;
        let mut part = self.part(ALONE, request, leaf, piece, turn.now_ns());
        part.io.part = self.parts.next();
        let id = self.parts.insert(part);
        if let Some(attempt) = attempt {
            self.remember(id, attempt);
        }
        match submitted {
            None => self.drive(id, None, turn),
            Some(Submitted::Done(result)) => self.drive(id, Some(result), turn),
            Some(Submitted::Pending) => {
                if let Some(leaf) = leaf_at(&self.devices, leaf) {
                    leaf.begins(self.queue);
                }
            }
        }
    }
}
