//! Whose turn it is: requests of many pieces, those of different owners one after the other.
//!
//! A request may be cut into a million pieces by a few bytes of a client. So every owner (a
//! connection, a hardware queue) has a bounded number of pieces under way, and so has the queue as
//! a whole; what goes beyond waits in its owner's list. The lists take turns, a window each, and a
//! turn of the queue's loop ends when it has cost enough. So a client with many such requests holds
//! up its own, and a request of one piece never waits here.
//!
//! The rest of a request waits at a closed gate like a request that has just come, and is not in
//! flight there: a gate closes in a moment, however much of a request is left. Work in the lists
//! moves to the gate when that closes, and not when its turn comes: its owner may have no room
//! until the gate opens again, and the gate would wait for the owner. For the same reason a piece
//! that has come through a device whose gate is closing, and waits for its turn further down, needs
//! no room.

use std::collections::VecDeque;

use super::split::{Cut, Piece, PieceTo};
use super::state::{Parked, Running};
use super::{Pipeline, WINDOW, check, worst};
use crate::engine::session::turn::Turn;
use crate::request::{Op, Token, owner_of};

/// Weight of the pieces that one owner has under way: as much as one request may have, twice the
/// pieces of a write of 32 MiB over regions of 64 KiB.
const OWNER_WEIGHT: u32 = WINDOW as u32;
/// Weight of a piece that changes what is allocated. File systems do these one at a time, and each
/// takes as long as a dozen small reads.
const HEAVY: u32 = 16;
/// Pieces that all owners of a queue together have at their leaves before those who have more wait.
const QUEUE_PIECES: usize = 4096;
/// Bytes that are discarded or zeroed in one go: what a leaf has begun cannot be stopped. As much
/// as an NBD server is asked for in one request.
const HEAVY_BYTES: u64 = 1 << 30;
/// Windows in a turn of the queue's loop, if none of them costs much.
const WINDOWS: usize = 16;
/// The place of an owner that is none: of pieces that a closing gate waits for. It always has room.
const AWAITED: u32 = 0;
/// A name that no owner has ([`owner_of`]).
const NOBODY: u64 = u64::MAX;
/// Pieces between two looks at the clock: each may be a read of some KiB in memory.
const PIECES_A_LOOK: usize = 32;

/// A piece of work that waits for its turn.
#[derive(Clone, Copy)]
pub(super) enum Work {
    /// A request goes on with its next window.
    Request(u32),
    /// The rest of a piece that waited at a gate.
    Piece { request: u32, piece: Piece },
}

impl Work {
    /// The piece, if it is the rest of one.
    pub(super) fn piece_mut(&mut self) -> Option<&mut Piece> {
        match self {
            Work::Piece { piece, .. } => Some(piece),
            Work::Request(_) => None,
        }
    }
}

/// One that makes requests.
#[derive(Default)]
struct Owner {
    name: u64,
    /// Requests under way; without any, the place is another's.
    requests: u32,
    /// Of all its pieces under way. The rest of a piece that is in a list here weighs nothing:
    /// enough of them would leave no room for the first.
    weight: u32,
    waiting: VecDeque<Work>,
    is_ready: bool,
}

impl Owner {
    /// Not with the last bit of room: a window is to be worth its price.
    fn has_room(&self, limit: u32) -> bool {
        self.weight <= limit / 4 * 3
    }
}

/// See the module's text.
pub(super) struct Turns {
    /// [`OWNER_WEIGHT`], or less in tests.
    pub(super) owner_weight: u32,
    owners: Vec<Owner>,
    /// Owners whose work may go on, each once.
    ready: VecDeque<u32>,
    /// Parts to be submitted again.
    again: VecDeque<u32>,
    /// The ring will call.
    is_due: bool,
}

impl Default for Turns {
    fn default() -> Self {
        Turns {
            owner_weight: OWNER_WEIGHT,
            owners: vec![Owner { name: NOBODY, requests: 1, ..Owner::default() }],
            ready: VecDeque::new(),
            again: VecDeque::new(),
            is_due: false,
        }
    }
}

fn weight(op: Op) -> u32 {
    if matches!(op, Op::Discard | Op::WriteZeroes { .. }) { HEAVY } else { 1 }
}

/// How many of so many bytes are split in one go.
pub(super) fn stretch(op: Op, bytes: u64) -> u64 {
    if op.has_data() { bytes } else { bytes.min(HEAVY_BYTES) }
}

/// Whether the turn has cost enough, after so many pieces.
#[inline]
pub(super) fn is_spent(pieces: usize, turn: &mut Turn) -> bool {
    if pieces.is_multiple_of(PIECES_A_LOOK) { turn.is_spent_now() } else { turn.is_spent() }
}

impl Turns {
    /// A request begins; returns the place of its owner.
    pub(super) fn enter(&mut self, token: Token) -> u32 {
        let name = owner_of(token);
        let known = self.owners.iter().position(|owner| owner.name == name && owner.requests > 0);
        let free = || self.owners.iter().position(|owner| owner.requests == 0);
        let at = known.or_else(free).unwrap_or_else(|| {
            self.owners.push(Owner::default());
            self.owners.len() - 1
        });
        if let Some(owner) = self.owners.get_mut(at) {
            owner.name = name;
            owner.requests += 1;
        }
        at as u32
    }

    /// A request of the owner ends.
    pub(super) fn leave(&mut self, owner: u32) {
        if let Some(owner) = self.owners.get_mut(owner as usize) {
            owner.requests -= 1;
        }
    }

    pub(super) fn piece_begins(&mut self, running: &Running) {
        if let Some(owner) = self.owners.get_mut(running.owner as usize) {
            owner.weight += weight(running.request.op);
        }
    }

    pub(super) fn piece_ends(&mut self, running: &Running) {
        if let Some(owner) = self.owners.get_mut(running.owner as usize) {
            owner.weight = owner.weight.saturating_sub(weight(running.request.op));
        }
    }

    /// Whether a request may be split at once, with so many pieces at their leaves. Behind its
    /// owner's others otherwise.
    pub(super) fn may_begin(&self, owner: u32, pieces: usize) -> bool {
        let (owner, limit) = (self.owners.get(owner as usize), self.owner_weight);
        pieces < QUEUE_PIECES
            && owner.is_none_or(|owner| owner.waiting.is_empty() && owner.has_room(limit))
    }

    /// How far the owner's request is split now.
    pub(super) fn cut(&self, owner: u32, op: Op) -> Cut {
        let used = self.owners.get(owner as usize).map_or(0, |owner| owner.weight);
        let pieces = (self.owner_weight.saturating_sub(used) / weight(op)).max(1) as usize;
        if op.has_data() { Cut::in_order(pieces) } else { Cut::without_data(pieces) }
    }

    /// All work in the lists.
    pub(super) fn waiting_mut(&mut self) -> impl Iterator<Item = &mut Work> {
        self.owners.iter_mut().flat_map(|owner| &mut owner.waiting)
    }

    /// As [`Turns::waiting_mut`], for reading.
    #[cfg(feature = "internals")]
    pub(super) fn waiting(&self) -> impl Iterator<Item = &Work> {
        self.owners.iter().flat_map(|owner| &owner.waiting)
    }

    /// The part goes on in its next turn.
    pub(super) fn again(&mut self, part: u32, turn: &mut Turn) {
        self.again.push_back(part);
        self.call(turn);
    }

    /// Has the ring call, after what others wait for.
    fn call(&mut self, turn: &mut Turn) {
        if !self.is_due {
            self.is_due = true;
            turn.defer_window();
        }
    }
}

impl Pipeline {
    /// Work of an owner waits for its turn, or at its gate if that is closed.
    pub(super) fn put_off(&mut self, owner: u32, work: Work, turn: &mut Turn) {
        if self.park(work) {
            return;
        }
        if let Work::Piece { request, .. } = work
            && let Some(running) = self.running.get(request)
        {
            self.turns.piece_ends(running);
        }
        let owner = if self.is_awaited(work) { AWAITED } else { owner };
        if let Some(owner) = self.turns.owners.get_mut(owner as usize) {
            owner.waiting.push_back(work);
        }
        self.wake_owner(owner, turn);
    }

    /// The owner's work goes on if it may.
    pub(super) fn wake_owner(&mut self, at: u32, turn: &mut Turn) {
        let (has_room, limit) = (self.has_room(), self.turns.owner_weight);
        let Some(owner) = self.turns.owners.get_mut(at as usize) else { return };
        if !owner.waiting.is_empty() && !owner.is_ready && owner.has_room(limit) {
            owner.is_ready = true;
            self.turns.ready.push_back(at);
        }
        if has_room && !self.turns.ready.is_empty() {
            self.turns.call(turn);
        }
    }

    /// Whether the queue as a whole may have more pieces at leaves.
    fn has_room(&self) -> bool {
        self.parts.len() - self.alone < QUEUE_PIECES
    }

    /// Parts and requests go on whose turn it is, until that has cost enough.
    pub(super) fn go_on(&mut self, turn: &mut Turn) {
        self.turns.is_due = false;
        for _ in 0..self.turns.again.len() {
            let Some(part) = self.turns.again.pop_front() else { break };
            self.drive(part, None, turn);
            if turn.is_spent_now() {
                break;
            }
        }
        for _ in 0..WINDOWS {
            if !self.has_room() || !self.work_of_next(turn) || turn.is_spent_now() {
                break;
            }
        }
        let has_work = !self.turns.ready.is_empty() && self.has_room();
        if has_work || !self.turns.again.is_empty() {
            self.turns.call(turn);
        }
    }

    /// Does the oldest work of the owner whose turn it is. False if nobody has any.
    fn work_of_next(&mut self, turn: &mut Turn) -> bool {
        let limit = self.turns.owner_weight;
        let Some(at) = self.turns.ready.pop_front() else { return false };
        let Some(owner) = self.turns.owners.get_mut(at as usize) else { return true };
        owner.is_ready = false;
        let work = if owner.has_room(limit) { owner.waiting.pop_front() } else { None };
        if let Some(work) = work {
            self.work(work, turn);
            self.wake_owner(at, turn);
        }
        true
    }

    fn work(&mut self, work: Work, turn: &mut Turn) {
        self.take_up(work);
        match work {
            Work::Request(id) => self.split_on(id, turn),
            Work::Piece { request, piece } => {
                if self.running.get(request).is_some_and(|running| running.errno != 0) {
                    // Nobody needs the rest: the request has failed.
                    self.leave_below(&piece.hops);
                    return self.piece_done(request, 0, turn);
                }
                self.unpark(request, piece, turn);
            }
        }
    }

    /// Work leaves its list.
    fn take_up(&mut self, work: Work) {
        if let Work::Piece { request, .. } = work
            && let Some(running) = self.running.get(request)
        {
            self.turns.piece_begins(running);
        }
    }

    /// The gate of a device closes: what waits for its turn there waits at the gate from now on,
    /// and what has come through it goes on.
    pub(super) fn park_waiting(&mut self, device: u32, turn: &mut Turn) {
        for at in 0..self.turns.owners.len() {
            let Some(owner) = self.turns.owners.get_mut(at) else { return };
            for work in std::mem::take(&mut owner.waiting) {
                if self.gate_of(work) == Some(device) && self.park(work) {
                    self.take_up(work);
                    continue;
                }
                let owner = if self.is_awaited(work) { AWAITED as usize } else { at };
                if let Some(owner) = self.turns.owners.get_mut(owner) {
                    owner.waiting.push_back(work);
                }
            }
        }
        self.wake_owner(AWAITED, turn);
    }

    /// Whether a gate that is closing waits for this work, which has come through it.
    fn is_awaited(&self, work: Work) -> bool {
        let Work::Piece { piece, .. } = work else { return false };
        piece.hops.all().iter().any(|hop| {
            let local = self.devices.get(hop.device as usize).and_then(Option::as_ref);
            local.is_some_and(|local| local.closing.is_some())
        })
    }

    /// The device whose gate the work goes through next.
    fn gate_of(&self, work: Work) -> Option<u32> {
        match work {
            Work::Request(id) => self.running.get(id).map(|running| running.device),
            Work::Piece { piece, .. } => match piece.to {
                PieceTo::Gate(device) => Some(device),
                _ => None,
            },
        }
    }

    /// Has work wait at its gate. False if that is open, or will never open again.
    fn park(&mut self, work: Work) -> bool {
        let Some(device) = self.gate_of(work).filter(|_| self.refusal.is_none()) else {
            return false;
        };
        let Some(local) = self.local(device).filter(|local| !local.open) else { return false };
        match work {
            Work::Request(id) => {
                local.parked.push_back(Parked::Rest(id));
                local.leave();
            }
            Work::Piece { request, piece } => self.park_again(request, piece, device),
        }
        true
    }

    /// The rest of a piece finds the gate closed again. One that its own device held is held again,
    /// so that the gate does not wait for it.
    fn park_again(&mut self, request: u32, piece: Piece, device: u32) {
        let is_own = piece.hops.depth == 0;
        let Some(local) = self.local(device) else { return };
        if !is_own {
            return local.parked.push_back(Parked::Piece { request, piece });
        }
        local.held.push_back((request, piece));
        if let Some(running) = self.running.get_mut(request) {
            running.held += 1;
            self.uncount_if_held(request);
        }
    }

    /// The gate is open again for the rest of a request: it meets the table that is live now.
    pub(super) fn resume_rest(&mut self, id: u32, turn: &mut Turn) {
        let Some(running) = self.running.get_mut(id) else { return };
        let Some(Some(local)) = self.devices.get_mut(running.device as usize) else { return };
        local.in_flight += 1;
        running.errno = check(local.live.as_deref(), &running.request);
        let (owner, errno) = (running.owner, running.errno);
        if errno == 0 {
            self.put_off(owner, Work::Request(id), turn);
        } else {
            self.end_split(id, turn);
        }
    }

    /// The rest of a request, which waits at a gate, is not done.
    pub(super) fn fail_rest(&mut self, id: u32, errno: i32, turn: &mut Turn) {
        let Some(running) = self.running.get_mut(id) else { return };
        running.errno = errno;
        let device = running.device;
        if let Some(local) = self.local(device) {
            local.in_flight += 1;
        }
        self.end_split(id, turn);
    }

    /// Ends with an error what waits for its turn, of those requests that `is_of` names; what they
    /// have under way is the last of them.
    pub(super) fn end_waiting(
        &mut self,
        errno: i32,
        is_of: &impl Fn(Token) -> bool,
        turn: &mut Turn,
    ) {
        for running in self
            .running
            .iter_mut()
            .map(|(_, running)| running)
            .filter(|running| is_of(running.request.token))
        {
            if running.split < running.request.len && running.errno == 0 {
                running.errno = errno;
            }
        }
        for at in 0..self.turns.owners.len() {
            let Some(owner) = self.turns.owners.get_mut(at) else { return };
            for work in std::mem::take(&mut owner.waiting) {
                let (Work::Request(id) | Work::Piece { request: id, .. }) = work;
                let token = self.running.get(id).map(|running| running.request.token);
                if !token.is_none_or(is_of) {
                    if let Some(owner) = self.turns.owners.get_mut(at) {
                        owner.waiting.push_back(work);
                    }
                    continue;
                }
                self.take_up(work);
                match work {
                    Work::Request(id) => {
                        if let Some(running) = self.running.get_mut(id) {
                            running.errno = worst(running.errno, errno);
                        }
                        self.end_split(id, turn);
                    }
                    Work::Piece { request, piece } => {
                        self.leave_below(&piece.hops);
                        self.piece_done(request, errno, turn);
                    }
                }
            }
            // Those that stay were not there when what ended made room.
            self.wake_owner(at as u32, turn);
        }
    }
}
