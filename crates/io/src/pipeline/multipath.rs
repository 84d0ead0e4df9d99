//! Multipath devices: which path a piece takes, what the path's answer means, and the pieces that
//! no path takes.
//!
//! All decisions are the core's ([`blkswitch_core::multipath`]); here they are carried out. A piece
//! that goes down a path is a part like any other, with an attempt beside it; when the leaf has
//! answered it (short transfers, fallbacks and flushes for FUA included) the attempt is judged, and
//! the part ends, or is what it was at first and goes down another path.
//!
//! A piece that no path takes is *held*, in the device's own list. It is not in flight there: the
//! gate closes over it, and when it opens again the piece is routed by the table that is live then.

use blkswitch_core::multipath::outcome::EIO;
use blkswitch_core::multipath::{Ask, Attempt, Choice, Event, Verdict};

use super::devices::Devices;
use super::split::{Piece, PieceTo};
use super::state::{ALONE, Covering, LeafAt, Running, Whole};
use super::{Below, Kind, Leaf, Part, PathGroups, Pipeline, Table, To, leaf_at};
use crate::engine::session::turn::Turn;
use crate::request::{Op, Request, Span, Token};

impl Pipeline {
    /// Sends a piece, which has entered, down a path of the multipath device: the one that is
    /// wanted, if it is up.
    pub(super) fn choose(
        &mut self,
        id: u32,
        request: &Request,
        piece: Piece,
        (device, wanted): (u32, Option<u32>),
        turn: &mut Turn,
    ) {
        let table = table_at(&self.devices, device);
        let Some((table, (groups, _))) = table.and_then(|table| Some((table, table.multipath()?)))
        else {
            return self.fail_piece(id, &piece, libc::EIO, turn);
        };
        let ask = Ask { bytes: piece.len, now_ns: turn.now_ns(), cpu: self.queue as u16 };
        let events = &mut self.events;
        let choice = match wanted.and_then(|path| groups.select_path(path, ask)) {
            Some(attempt) => Choice::Send(attempt),
            None => groups.select(ask, &mut |event| events.push((device, event))),
        };
        match choice {
            Choice::Send(attempt) => {
                let Some((leaf, _)) = leaf_of(device, table, &attempt) else {
                    groups.withdraw(attempt);
                    return self.fail_piece(id, &piece, libc::EIO, turn);
                };
                let mut part = self.part(id, request, leaf, &piece, turn.now_ns());
                part.hops.set_last_path(attempt.path());
                let part = self.parts.insert(part);
                self.remember(part, attempt);
                self.drive(part, None, turn);
            }
            Choice::Hold => self.no_path(id, piece, (device, true), EIO, turn),
            Choice::Fail(errno) => self.no_path(id, piece, (device, false), errno, turn),
        }
    }

    pub(super) fn remember(&mut self, part: u32, attempt: Attempt) {
        let at = part as usize;
        if self.attempts.len() <= at {
            self.attempts.resize_with(at + 1, || None);
        }
        self.attempts[at] = Some(attempt);
    }

    /// The leaf has answered the part. True: it is to be driven again, on another leaf.
    pub(super) fn judge_attempt(&mut self, id: u32, attempt: Attempt, turn: &mut Turn) -> bool {
        let Some(part) = self.parts.get(id) else { return false };
        let (device, errno, now_ns) = (part.leaf.device, part.whole.errno, turn.now_ns());
        let kind = part.whole.kind;
        self.count_attempt(part, &attempt, now_ns);
        if kind == Kind::Flush {
            self.covered(id, device, errno == 0);
        }
        if errno != 0 {
            self.keep_request(id);
        }
        let table = table_at(&self.devices, device);
        let Some((table, (groups, _))) = table.and_then(|table| Some((table, table.multipath()?)))
        else {
            return false;
        };
        let events = &mut self.events;
        let mut on = |event| events.push((device, event));
        let verdict = if errno != 0
            && let Some((_, leaf)) = leaf_of(device, table, &attempt)
            && is_write_protection(leaf, kind, errno)
        {
            leaf.has_refused_write(errno);
            groups.judge_protected(attempt, errno, now_ns, &mut on)
        } else {
            groups.judge(attempt, errno, now_ns, &mut on)
        };
        match verdict {
            Verdict::Done => self.end_part(id, true, turn),
            Verdict::Retry(attempt) => {
                if let Some((leaf, _)) = leaf_of(device, table, &attempt) {
                    self.restore(id, leaf, attempt);
                    return true;
                }
                groups.withdraw(attempt);
                self.end_part(id, true, turn);
            }
            // The one error that fails a path and that the core gives: there is no path.
            Verdict::Hold | Verdict::Fail(EIO) if self.holds(device, verdict == Verdict::Hold) => {
                if let Some((request, piece)) = self.take_back(id) {
                    self.hold(request, piece, device, turn);
                }
            }
            Verdict::Hold => self.fail_part(id, EIO, turn),
            Verdict::Fail(errno) => self.fail_part(id, errno, turn),
        }
        false
    }

    /// A part that is all of its request may have to wait, or go down another path: the request is
    /// kept from now on.
    fn keep_request(&mut self, id: u32) {
        let Some(part) = self.parts.get_mut(id).filter(|part| part.request == ALONE) else {
            return;
        };
        let Some(device) = part.hops.all().first().map(|hop| hop.device) else { return };
        let Whole { kind, len, done, .. } = part.whole;
        let request = Request {
            op: if kind == Kind::Read { Op::Read } else { Op::Write },
            // `Pipeline::begin_alone` takes no stable writes and no data in pages.
            fua: false,
            pages: None,
            // It is all split off, so nobody asks where it began.
            offset: 0,
            len,
            data: Span(part.io.data.0.wrapping_sub(done as usize)),
            token: part.token,
        };
        let (started_ns, owner) = (part.started_ns, self.turns.enter(request.token));
        let running =
            Running { request, device, left: 1, held: 0, errno: 0, split: len, started_ns, owner };
        self.turns.piece_begins(&running);
        part.request = self.running.insert(running);
        self.alone -= 1;
    }

    fn fail_part(&mut self, id: u32, errno: i32, turn: &mut Turn) {
        if let Some(part) = self.parts.get_mut(id) {
            part.whole.errno = errno;
        }
        self.end_part(id, true, turn);
    }

    fn count_attempt(&self, part: &Part, attempt: &Attempt, now_ns: u64) {
        let live = self
            .devices
            .get(part.leaf.device as usize)
            .and_then(|local| local.as_ref()?.live.as_ref());
        if let Some(counters) =
            live.and_then(|live| live.table.counters(self.queue, attempt.path()))
        {
            let ns = now_ns.saturating_sub(attempt.started_ns());
            counters.count(part.whole.kind, part.whole.len, part.whole.errno != 0, ns);
        }
    }

    /// The request of a part, and the piece that the part was made from.
    fn piece_of(&self, part: &Part) -> Option<(Request, Piece)> {
        let request = self.running.get(part.request)?.request;
        let done = part.whole.done;
        let data = match part.whole.kind {
            Kind::Read | Kind::Write => {
                (part.io.data.0 as u64).wrapping_sub(request.data.0 as u64).wrapping_sub(done)
            }
            Kind::Flush | Kind::Discard | Kind::Zeroes => 0,
        };
        // A path begins at the first sector of its leaf, so an offset there is one on the device.
        let offset = part.io.offset - done;
        let to = PieceTo::Gate(part.leaf.device);
        Some((request, Piece { to, hops: part.hops, offset, len: part.whole.len, data }))
    }

    /// The part becomes what it was at first, on another leaf.
    fn restore(&mut self, id: u32, leaf: LeafAt, attempt: Attempt) {
        let Some(part) = self.parts.get(id) else { return };
        let Some((request, mut piece)) = self.piece_of(part) else { return };
        piece.hops.set_last_path(attempt.path());
        let again = self.part(part.request, &request, leaf, &piece, part.started_ns);
        if let Some(part) = self.parts.get_mut(id) {
            *part = again;
        }
        self.remember(id, attempt);
    }

    /// The part is a piece of its request again.
    fn take_back(&mut self, id: u32) -> Option<(u32, Piece)> {
        let part = self.parts.remove(id)?;
        Some((part.request, self.piece_of(&part)?.1))
    }

    /// Whether what finds no path is held. While a suspend is under way it says so, whatever the
    /// policy is: one with flush must come to an end, one without must not fail anything.
    fn holds(&self, device: u32, policy: bool) -> bool {
        let local = self.devices.get(device as usize).and_then(Option::as_ref);
        local.is_some_and(|local| if local.open { policy } else { local.noflush })
    }

    fn no_path(
        &mut self,
        id: u32,
        piece: Piece,
        (device, policy): (u32, bool),
        errno: i32,
        turn: &mut Turn,
    ) {
        if self.holds(device, policy) {
            return self.hold(id, piece, device, turn);
        }
        self.fail_piece(id, &piece, errno, turn);
    }

    fn fail_piece(&mut self, id: u32, piece: &Piece, errno: i32, turn: &mut Turn) {
        self.leave_below(&piece.hops);
        self.piece_done(id, errno, turn);
    }

    // ---- pieces that are held

    /// Holds a piece, whose last hop is the multipath device: it leaves that device again.
    fn hold(&mut self, id: u32, mut piece: Piece, device: u32, turn: &mut Turn) {
        if let Some(errno) = self.refusal {
            return self.fail_piece(id, &piece, errno, turn);
        }
        let whole = piece;
        (piece.to, piece.hops) = (PieceTo::Gate(device), piece.hops.without_last());
        let is_own = piece.hops.depth == 0;
        let is_flush = self.running.get(id).is_some_and(|running| running.request.op == Op::Flush);
        let Some(local) = self.local(device) else { return };
        let is_same = |held: &(u32, Piece)| held.0 == id && held.1.hops.all() == piece.hops.all();
        if is_flush && local.held.iter().any(is_same) {
            // The one that is held will flush the whole device: two would become four, and so on.
            return self.fail_piece(id, &whole, 0, turn);
        }
        local.held.push_back((id, piece));
        if !is_own {
            local.leave();
        } else if let Some(running) = self.running.get_mut(id) {
            running.held += 1;
            self.uncount_if_held(id);
        }
        self.count_held(device);
    }

    /// A request all of whose pieces its own device holds is not in flight there.
    pub(super) fn uncount_if_held(&mut self, id: u32) {
        let Some(running) = self.running.get(id) else { return };
        let device = running.device;
        if running.held > 0
            && running.held == running.left
            && let Some(local) = self.local(device)
        {
            local.leave();
        }
    }

    /// A held piece goes on, or ends: its request counts again.
    fn unhold(&mut self, id: u32, piece: &Piece) {
        let Some(running) = self.running.get_mut(id) else { return };
        if piece.hops.depth > 0 {
            return;
        }
        let (device, was_uncounted) = (running.device, running.held == running.left);
        running.held -= 1;
        if was_uncounted && let Some(local) = self.local(device) {
            local.in_flight += 1;
        }
    }

    /// Pieces that a multipath device holds ask for a path again, because a path came back or
    /// nothing is to be held any more. At a closed gate they wait on.
    pub fn release(&mut self, device: u32, turn: &mut Turn) {
        let Some(local) = self.local(device).filter(|local| local.open) else { return };
        // Pieces that are held again go to another list.
        for (id, piece) in std::mem::take(&mut local.held) {
            self.unhold(id, &piece);
            self.unpark(id, piece, turn);
        }
        self.count_held(device);
    }

    /// Answers held pieces with an error, of those requests that `is_of` names.
    pub(super) fn reject_held(
        &mut self,
        device: u32,
        errno: i32,
        is_of: &impl Fn(Token) -> bool,
        turn: &mut Turn,
    ) {
        let Some(local) = self.local(device) else { return };
        for (id, piece) in std::mem::take(&mut local.held) {
            let token = self.running.get(id).map(|running| running.request.token);
            if token.is_none_or(is_of) {
                self.unhold(id, &piece);
                self.fail_piece(id, &piece, errno, turn);
            } else if let Some(local) = self.local(device) {
                local.held.push_back((id, piece));
            }
        }
        self.count_held(device);
    }

    fn count_held(&mut self, device: u32) {
        let queue = self.queue;
        if let Some(local) = self.local(device)
            && let Some(counters) = local.counters.get(queue)
        {
            counters.set_held(local.held.len() as u64);
        }
    }

    // ---- flushes

    /// A flush goes to its leaf: if over a path of a multipath device, it will also cover what was
    /// written over paths that are down. They lead to the same volume.
    pub(super) fn cover_failed(&mut self, id: u32) {
        let attempt = self.attempts.get(id as usize).is_some_and(Option::is_some);
        let Some(part) =
            self.parts.get(id).filter(|part| attempt && part.whole.kind == Kind::Flush)
        else {
            return;
        };
        // A server without flush has nothing to say of what others cache.
        if !leaf_at(&self.devices, part.leaf).is_some_and(|leaf| leaf.engine().has_cache()) {
            return;
        }
        let device = part.leaf.device;
        let Some((groups, paths)) = multipath_at(&self.devices, device) else { return };
        let Some(table) = table_at(&self.devices, device) else { return };
        for (leaf, index) in table.leaves().iter().zip(0u32..) {
            let mut ways = paths.iter().zip(groups.paths());
            let is_up = ways.any(|(to, path)| to.below == Below::Leaf(index) && path.is_up());
            // A cache on this side is not the volume's, and what is gone is gone.
            if is_up || leaf.engine().forgets_failed_writes() || leaf.is_lossy() {
                continue;
            }
            if let Some(writes) = leaf.dirty().unflushed() {
                self.covering.push(Covering { part: id, leaf: index, writes });
            }
        }
    }

    /// A flush over a path has ended.
    fn covered(&mut self, id: u32, device: u32, is_stable: bool) {
        for covering in self.covering.extract_if(.., |covering| covering.part == id) {
            let at = LeafAt { device, index: covering.leaf, departed: false };
            if is_stable && let Some(leaf) = leaf_at(&self.devices, at) {
                leaf.dirty().flushed(covering.writes);
            }
        }
    }
}

/// Whether a path says that it cannot be written: a file system, disk, export or unit that has
/// become read-only. Another path may be one that can.
fn is_write_protection(leaf: &Leaf, kind: Kind, errno: i32) -> bool {
    match kind {
        Kind::Write => leaf.engine().refuses_writes_with(errno),
        // A disk may answer a discard with EREMOTEIO because it has none.
        Kind::Discard | Kind::Zeroes => matches!(errno, libc::EROFS | libc::EPERM),
        Kind::Read | Kind::Flush => false,
    }
}

fn table_at(devices: &Devices, device: u32) -> Option<&Table> {
    devices.get(device as usize)?.as_ref()?.live.as_ref().map(|live| &*live.table)
}

fn multipath_at(devices: &Devices, device: u32) -> Option<(&PathGroups, &[To])> {
    table_at(devices, device)?.multipath()
}

/// The way of a request that is one piece: nothing if there is none for now.
pub(super) fn choose_alone<'a>(
    (device, groups, table): (u32, &PathGroups, &'a Table),
    ask: Ask,
    events: &mut Vec<(u32, Event)>,
) -> Option<(LeafAt, &'a Leaf, Attempt)> {
    match groups.select(ask, &mut |event| events.push((device, event))) {
        Choice::Send(attempt) => {
            let Some((at, leaf)) = leaf_of(device, table, &attempt) else {
                groups.withdraw(attempt);
                return None;
            };
            Some((at, leaf, attempt))
        }
        Choice::Hold | Choice::Fail(_) => None,
    }
}

/// The leaf of an attempt on the multipath device `device`, which has this table.
#[inline]
fn leaf_of<'a>(device: u32, table: &'a Table, attempt: &Attempt) -> Option<(LeafAt, &'a Leaf)> {
    let (_, paths) = table.multipath()?;
    match paths.get(attempt.path() as usize)?.below {
        Below::Leaf(index) => {
            let leaf = table.leaves().get(index as usize)?;
            Some((LeafAt { device, index, departed: false }, leaf))
        }
        Below::Device(_) => None,
    }
}
