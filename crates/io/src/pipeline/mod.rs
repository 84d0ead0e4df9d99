//! The way of a request on one queue: gate, split, submit, judge, join, answer.
//!
//! Contract: one thread owns a pipeline. It takes a [`Request`] with [`Pipeline::start`] and
//! answers each exactly once, by what that returns or in [`Pipeline::take_done`]. It holds its own
//! copy of what is live on each device; control changes that only through [`Pipeline::close`] and
//! [`Pipeline::open`], so nothing here is locked. In steady state nothing is allocated: requests
//! and parts live in slabs, pieces in a scratch list.
//!
//! The work is bounded: a request is split into at most [`WINDOW`] pieces at a time and goes on
//! when these are done; all requests of one owner, and all of a queue, share further bounds
//! ([`turns`]); and a stack is at most [`crate::device::table::MAX_DEPTH`] devices deep.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;

use blkswitch_core::multipath::{Attempt, Event};

use crate::device::failing::Failures;
use crate::device::table::{Below, Live, PathGroups, Segment, Table, Target, To};
use crate::engine::io::COPY_STEP;
use crate::engine::session::turn::Turn;
use crate::engine::{LeafIo, LeafOp, Submitted};
use crate::leaf::Leaf;
use crate::request::{Done, Op, Request};
use crate::stats::{Counters, Kind};
use crate::sys::ring::{Completion, Tag};
use crate::sys::slab::Slab;

mod alone;
mod copy;
mod counting;
mod devices;
mod drain;
mod extents;
mod flush;
mod full;
mod gate;
mod judge;
mod multipath;
mod origin;
mod split;
mod state;
mod turns;
mod unfinished;
#[cfg(feature = "internals")]
mod unrouted;

use alone::Alone;
use counting::Counted;
use devices::Devices;
use drain::Drains;
pub(crate) use extents::EXTENTS_PIECES;
pub use extents::{Extents, Found};
use full::Full;
use judge::Verdict;
use split::{Piece, PieceTo};
use state::{ALONE, Covering, Flushing, Hops, LeafAt, Local, Parked, Part, Running, Whole};
use turns::{Turns, Work};
pub use unfinished::Unfinished;
pub(crate) use unfinished::merge;
#[cfg(feature = "internals")]
pub use unrouted::Unrouted;

/// Pieces of one request in flight at a time. A 32 MiB write over 64 KiB regions is 512.
const WINDOW: usize = 1024;

/// See the module's text.
pub struct Pipeline {
    queue: usize,
    devices: Devices,
    running: Slab<Running>,
    parts: Slab<Part>,
    /// Parts that are all of their request ([`ALONE`]).
    alone: usize,
    /// By part: where a multipath device has sent it.
    attempts: Vec<Option<Attempt>>,
    covering: Vec<Covering>,
    /// Changes of multipath devices, each with the device's id.
    events: Vec<(u32, Event)>,
    failures: Failures,
    flushing: Vec<Flushing>,
    full: Full,
    done: Vec<Done>,
    drains: Drains,
    pieces: Vec<Piece>,
    turns: Turns,
    /// Requests that come to a closed gate fail with this errno and do not wait.
    refusal: Option<i32>,
}

impl Pipeline {
    /// The pipeline of queue number `queue`.
    pub fn new(queue: usize) -> Pipeline {
        Pipeline {
            queue,
            devices: Devices::default(),
            running: Slab::default(),
            parts: Slab::default(),
            alone: 0,
            attempts: Vec::new(),
            covering: Vec::new(),
            events: Vec::new(),
            failures: Failures::default(),
            flushing: Vec::new(),
            full: Full::default(),
            done: Vec::new(),
            drains: Drains::default(),
            pieces: Vec::new(),
            turns: Turns::default(),
            refusal: None,
        }
    }

    /// Makes a device known: open, with no table.
    pub fn install(&mut self, device: u32, counters: Arc<[Counters]>) {
        let local = Local {
            live: None,
            open: true,
            in_flight: 0,
            parked: VecDeque::new(),
            held: VecDeque::new(),
            noflush: false,
            closing: None,
            counters,
        };
        self.devices.insert(device as usize, local);
    }

    /// Whether no request to a device is under way or waits.
    pub fn is_idle(&self, device: u32) -> bool {
        let local = self.devices.get(device as usize).and_then(Option::as_ref);
        local.is_none_or(|local| {
            local.in_flight == 0 && local.parked.is_empty() && local.held.is_empty()
        })
    }

    /// Forgets a device that nobody uses any more.
    pub fn remove(&mut self, device: u32) {
        debug_assert!(self.is_idle(device), "somebody uses it");
        if let Some(slot) = self.devices.get_mut(device as usize) {
            *slot = None;
        }
    }

    /// Takes a request. Its answer is what is returned, 0 or a positive errno, or, if that is
    /// nothing, appears in
    /// [`Pipeline::take_done`], perhaps at once.
    #[must_use = "this may be the answer"]
    pub fn start(&mut self, device: u32, request: &Request, turn: &mut Turn) -> Option<i32> {
        let Some(Some(local)) = self.devices.get_mut(device as usize) else {
            return Some(libc::ENXIO);
        };
        if local.open {
            return self.begin(device, request, turn);
        }
        if self.refusal.is_none() {
            local.parked.push_back(Parked::Request(*request));
        }
        self.refusal
    }

    /// Takes the answers, in order of completion, into `out`.
    pub fn take_done(&mut self, out: &mut Vec<Done>) {
        if out.is_empty() {
            mem::swap(out, &mut self.done);
        } else {
            out.append(&mut self.done);
        }
    }

    /// Takes the changes of multipath devices since the last call, each with the device's id.
    pub fn take_events(&mut self) -> impl Iterator<Item = (u32, Event)> + '_ {
        self.events.drain(..)
    }

    /// Whether something has changed on a multipath device.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// Whether there are answers to take.
    pub fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    /// Requests started and not answered, parked ones not counted.
    pub fn in_flight(&self) -> usize {
        self.running.len() + self.alone
    }

    /// Pieces of requests that leaves have now.
    pub fn pieces(&self) -> usize {
        self.parts.len()
    }

    /// The live table of a device as this queue has it.
    pub fn table(&self, device: u32) -> Option<&Table> {
        self.devices.get(device as usize)?.as_ref()?.live.as_ref().map(|live| &*live.table)
    }

    /// Takes a completion of a part, or goes on with requests whose turn it is.
    pub fn complete(&mut self, completion: &Completion, turn: &mut Turn) {
        let id = completion.id as u32;
        if completion.tag == Tag::Window {
            return self.go_on(turn);
        }
        let mut result = i64::from(completion.result);
        if completion.deferred {
            let Some(part) = self.parts.get(id) else { return };
            let Some(leaf) = leaf_at(&self.devices, part.leaf) else { return };
            // SAFETY: the request's data stays lent until the request is answered, which waits for
            // this part.
            result = unsafe { leaf.engine().finish(&part.io) };
        }
        let next = self.leaf_ended(id);
        self.drive(id, Some(result), turn);
        self.drive_next(next, turn);
    }

    fn local(&mut self, device: u32) -> Option<&mut Local> {
        self.devices.get_mut(device as usize)?.as_mut()
    }

    /// The gate is open: the request enters. Returns what [`Pipeline::start`] does.
    #[inline]
    fn begin(&mut self, device: u32, request: &Request, turn: &mut Turn) -> Option<i32> {
        debug_assert!(!request.fua || request.op.is_write(), "only writes are made stable");
        let local = self.devices.get(device as usize).and_then(Option::as_ref);
        let errno = check(local.and_then(|local| local.live.as_deref()), request);
        if errno == 0 && matches!(request.op, Op::Read | Op::Write) && request.len > 0 {
            match self.begin_alone(device, request, turn) {
                Alone::Answered => return Some(0),
                Alone::UnderWay => return None,
                Alone::Not => {}
            }
        }
        self.local(device)?.in_flight += 1;
        let (request, started_ns) = (*request, turn.now_ns());
        let owner = self.turns.enter(request.token);
        let running =
            Running { request, device, left: 1, held: 0, errno, split: 0, started_ns, owner };
        let id = self.running.insert(running);
        if errno != 0 {
            self.end_split(id, turn);
        } else if self.turns.may_begin(owner, self.parts.len() - self.alone) {
            self.split_on(id, turn);
        } else {
            self.put_off(owner, Work::Request(id), turn);
        }
        None
    }

    /// Splits the next window of a request and sends it on.
    fn split_on(&mut self, id: u32, turn: &mut Turn) {
        let Some(running) = self.running.get_mut(id) else { return };
        let (request, owner) = (running.request, running.owner);
        let mut pieces = mem::take(&mut self.pieces);
        if request.op == Op::Flush {
            split::flush(&self.devices, running.device, Hops::default(), &mut pieces);
        } else {
            let range = split::Range {
                device: running.device,
                sector: (request.offset + running.split) / 512,
                sectors: turns::stretch(request.op, request.len - running.split) / 512,
                data: running.split,
            };
            let mut cut = self.turns.cut(owner, request.op);
            let taken = split::range(&self.devices, &range, Hops::default(), &mut pieces, &mut cut);
            running.split += taken * 512;
        }
        if let Some(stopped_at) = self.send_pieces(id, &mut pieces, turn)
            && let Some(running) = self.running.get_mut(id)
        {
            running.split = stopped_at;
        }
        self.pieces = pieces;
        self.end_split(id, turn);
    }

    /// Sends pieces to their leaves, or parks them. Empties the list. Pieces with data stop when
    /// the turn has cost enough: returns where, as an offset in the request's data. The rest is not
    /// sent.
    fn send_pieces(&mut self, id: u32, pieces: &mut Vec<Piece>, turn: &mut Turn) -> Option<u64> {
        for (number, piece) in pieces.drain(..).enumerate() {
            let running = self.running.get_mut(id)?;
            let request = running.request;
            if number > 0 && request.op.has_data() && turns::is_spent(number, turn) {
                return Some(piece.data);
            }
            match piece.to {
                PieceTo::Fail(errno) => {
                    running.errno = worst(running.errno, errno);
                    self.count_ended(request.op, &piece, true);
                }
                PieceTo::Nowhere => {
                    let (mut piece, whole) = (piece, piece.len);
                    if request.op == Op::Read {
                        // SAFETY: the export lends `request.len` bytes; the piece lies within
                        // (split::range).
                        match unsafe { read_zeroes(&request, &piece, turn) } {
                            Ok(bytes) => piece.len = bytes,
                            Err(errno) => running.errno = worst(running.errno, errno),
                        }
                    }
                    self.count_ended(request.op, &piece, false);
                    if piece.len < whole {
                        return Some(piece.data + piece.len);
                    }
                }
                PieceTo::Gate(device) => match self.refusal {
                    Some(errno) => running.errno = worst(running.errno, errno),
                    None => {
                        self.enter_piece(id, &piece.hops);
                        if let Some(local) = self.local(device) {
                            local.parked.push_back(Parked::Piece { request: id, piece });
                        }
                    }
                },
                PieceTo::Multipath { device, path } => {
                    self.enter_piece(id, &piece.hops);
                    self.choose(id, &request, piece, (device, path), turn);
                }
                PieceTo::Leaf(leaf) => {
                    self.enter_piece(id, &piece.hops);
                    let part = self.part(id, &request, leaf, &piece, turn.now_ns());
                    let part = self.parts.insert(part);
                    self.drive(part, None, turn);
                }
            }
        }
        None
    }

    /// A piece of a request is under way.
    fn enter_piece(&mut self, id: u32, hops: &Hops) {
        if let Some(running) = self.running.get_mut(id) {
            running.left += 1;
            self.turns.piece_begins(running);
        }
        self.enter_below(hops);
    }

    #[inline]
    fn part(&self, request: u32, of: &Request, leaf: LeafAt, piece: &Piece, now_ns: u64) -> Part {
        let has_fua = leaf_at(&self.devices, leaf).is_some_and(|leaf| leaf.engine().has_fua());
        let op = match of.op {
            Op::Read => LeafOp::Read,
            Op::Write => LeafOp::Write,
            Op::Flush => LeafOp::Flush,
            Op::Discard => LeafOp::Discard,
            Op::WriteZeroes { no_hole, .. } => LeafOp::Zero { no_hole },
        };
        let fua = of.fua && has_fua && of.op == Op::Write;
        let fast = matches!(of.op, Op::WriteZeroes { fast: true, .. });
        Part {
            request,
            token: of.token,
            hops: piece.hops,
            leaf,
            io: LeafIo {
                op,
                fua,
                fast,
                offset: piece.offset,
                len: piece.len,
                data: of.data.at(piece.data),
                pages: of.pages,
                // Known once it is in the slab: see drive().
                part: 0,
                queue: self.queue,
            },
            whole: Whole {
                kind: Kind::of(of.op),
                len: piece.len,
                done: 0,
                then_flush: of.fua && !fua && of.op.is_write(),
                fast,
                is_ignored: false,
                covers: 0,
                errno: 0,
            },
            started_ns: now_ns,
        }
    }

    /// A piece that waited at a gate, or for its turn, goes on from there.
    fn unpark(&mut self, request: u32, piece: Piece, turn: &mut Turn) {
        let PieceTo::Gate(device) = piece.to else { return };
        let Some(running) = self.running.get(request) else { return };
        let (op, owner) = (running.request.op, running.owner);
        let mut pieces = mem::take(&mut self.pieces);
        let mut rest = None;
        if op == Op::Flush {
            split::flush(&self.devices, device, piece.hops, &mut pieces);
            self.send_pieces(request, &mut pieces, turn);
        } else {
            let range = split::Range {
                device,
                sector: piece.offset / 512,
                sectors: turns::stretch(op, piece.len) / 512,
                data: piece.data,
            };
            let mut cut = self.turns.cut(owner, op);
            let taken = split::range(&self.devices, &range, piece.hops, &mut pieces, &mut cut);
            let stopped_at = self.send_pieces(request, &mut pieces, turn);
            let done = stopped_at.map_or(taken * 512, |at| at - piece.data);
            let (offset, data) = (piece.offset + done, piece.data + done);
            rest = Some(Piece { offset, data, len: piece.len - done, ..piece });
        }
        self.pieces = pieces;
        match rest.filter(|rest| rest.len > 0) {
            Some(rest) => self.put_off(owner, Work::Piece { request, piece: rest }, turn),
            None => {
                self.leave_below(&piece.hops);
                self.piece_done(request, 0, turn);
            }
        }
    }

    /// Submits a part (`result` is nothing) or takes its result, until it is with the ring or done.
    fn drive(&mut self, id: u32, mut result: Option<i64>, turn: &mut Turn) {
        let mut may_flush = false;
        loop {
            let Some(part) = self.parts.get_mut(id) else { return };
            part.io.part = id;
            // SAFETY: the export lends the data until the request is answered; that waits for all
            // its parts.
            match unsafe { advance(&self.devices, part, result.take(), may_flush, turn) } {
                Step::Pending => return,
                Step::Later => return self.turns.again(id, turn),
                Step::Full => return self.wait_for_leaf(id),
                Step::Flush => {
                    may_flush = self.start_flush(id);
                    if !may_flush {
                        return;
                    }
                }
                Step::Done if self.part_done(id, turn) => may_flush = false,
                Step::Done => return,
            }
        }
    }

    /// A part is done: those that waited for the same flush are too. True: it is to be driven
    /// again, on another path.
    fn part_done(&mut self, id: u32, turn: &mut Turn) -> bool {
        let Some(part) = self.parts.get(id) else { return false };
        let (is_flush, errno) = (part.io.op == LeafOp::Flush, part.whole.errno);
        if is_flush && let Some(at) = self.flushing.iter().position(|f| f.running == id) {
            let mut flushing = self.flushing.swap_remove(at);
            for other in flushing.with.drain(..) {
                if let Some(part) = self.parts.get_mut(other) {
                    part.whole.errno = worst(part.whole.errno, errno);
                }
                if self.answer_part(other, turn) {
                    self.drive(other, None, turn);
                }
            }
            let mut next = mem::take(&mut flushing.next).into_iter();
            if let Some(leader) = next.next() {
                let with = next.collect();
                self.flushing.push(Flushing { running: leader, with, ..flushing });
                let again = self.answer_part(id, turn);
                self.drive(leader, None, turn);
                return again;
            }
        }
        self.answer_part(id, turn)
    }

    /// Ends a part, unless it went down a path of a multipath device and that has other plans.
    /// True: it is to be driven again.
    fn answer_part(&mut self, id: u32, turn: &mut Turn) -> bool {
        match self.attempts.get_mut(id as usize).and_then(Option::take) {
            Some(attempt) => self.judge_attempt(id, attempt, turn),
            None => {
                self.end_part(id, false, turn);
                false
            }
        }
    }

    /// Counts a part, leaves the gates it went through, and tells its request. `attempted`: the
    /// last path was counted for each attempt.
    fn end_part(&mut self, id: u32, attempted: bool, turn: &mut Turn) {
        let Some(part) = self.parts.remove(id) else { return };
        let (is_alone, hops) = (part.request == ALONE, &part.hops);
        let (devices, paths) =
            (usize::from(!is_alone), hops.depth as usize - usize::from(attempted));
        self.count(hops, (devices, paths), Counted::of(&part, turn.now_ns()));
        if part.whole.errno != 0 {
            self.count_failure(&part.hops, paths, part.whole.errno);
        }
        if part.whole.is_ignored {
            self.count_ignored(hops);
        }
        if !is_alone {
            self.leave_below(hops);
            return self.piece_done(part.request, part.whole.errno, turn);
        }
        self.alone -= 1;
        self.drains.ends(hops);
        self.done.push(Done { token: part.token, errno: part.whole.errno });
        for hop in hops.all() {
            if let Some(local) = self.local(hop.device) {
                local.leave();
            }
        }
    }

    /// One piece of a request is done; with the last, the request goes on or is answered.
    fn piece_done(&mut self, id: u32, errno: i32, turn: &mut Turn) {
        let Some(running) = self.running.get_mut(id) else { return };
        running.errno = worst(running.errno, errno);
        let owner = running.owner;
        self.turns.piece_ends(running);
        self.end_split(id, turn);
        self.wake_owner(owner, turn);
    }

    /// A window of a request has been sent, or a piece is done: if nothing is left of either, the
    /// request goes on or is answered.
    fn end_split(&mut self, id: u32, turn: &mut Turn) {
        let Some(running) = self.running.get_mut(id) else { return };
        running.left -= 1;
        if running.left > 0 {
            return self.uncount_if_held(id);
        }
        let owner = running.owner;
        if running.errno == 0 && running.split < running.request.len {
            // Not at once: leaves that answer at once would have one request keep the queue from
            // all others.
            running.left = 1;
            return self.put_off(owner, Work::Request(id), turn);
        }
        self.turns.leave(owner);
        let Some(running) = self.running.remove(id) else { return };
        let Request { op, len, token, .. } = running.request;
        let ns = turn.now_ns().saturating_sub(running.started_ns);
        let queue = self.queue;
        self.done.push(Done { token, errno: running.errno });
        if let Some(local) = self.local(running.device) {
            if let Some(counters) = local.counters.get(queue) {
                counters.count(Kind::of(op), len, running.errno != 0, ns);
            }
            local.leave();
        }
    }

    fn enter_below(&mut self, hops: &Hops) {
        for hop in hops.below() {
            if let Some(local) = self.local(hop.device) {
                local.in_flight += 1;
            }
        }
    }

    fn leave_below(&mut self, hops: &Hops) {
        self.drains.ends(hops);
        for hop in hops.below() {
            if let Some(local) = self.local(hop.device) {
                local.leave();
            }
        }
    }
}

/// The next step for a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Nothing: its leaf will answer.
    Pending,
    /// It goes on in its next turn.
    Later,
    /// It goes on when another operation on its leaf has ended.
    Full,
    /// It is done, its errno says how.
    Done,
    /// It is to flush its leaf: [`Pipeline::start_flush`] says when it may.
    Flush,
}

/// Submits a part (`result` is nothing) or takes its result, until it is with the ring or done, or
/// is to flush and may not.
///
/// # Safety
/// The part's data stays lent until it is done.
#[inline]
unsafe fn advance(
    devices: &Devices,
    part: &mut Part,
    mut result: Option<i64>,
    mut may_flush: bool,
    turn: &mut Turn,
) -> Step {
    let Some(leaf) = leaf_at(devices, part.leaf) else {
        part.whole.errno = libc::EIO;
        return Step::Done;
    };
    loop {
        if let Some(result) = result {
            // SAFETY: the caller's promise.
            let result = unsafe { copy::after(part, result) };
            if judge::judge(part, leaf, result) == Verdict::Done {
                return Step::Done;
            }
            // Operations that a leaf does at once are done on this thread.
            if part.io.op != LeafOp::Flush && turn.is_spent_now() {
                return Step::Later;
            }
        }
        if part.io.op == LeafOp::Flush && !mem::take(&mut may_flush) {
            return Step::Flush;
        }
        if full::must_wait(part, leaf) {
            return Step::Full;
        }
        // SAFETY: the caller's promise.
        let submitted = match unsafe { copy::before(part, leaf) } {
            // SAFETY: the caller's promise.
            Ok(()) => unsafe { leaf.engine().submit(&part.io, turn) },
            Err(errno) => Submitted::Done(errno),
        };
        match submitted {
            Submitted::Done(done) => result = Some(done),
            Submitted::Pending => {
                leaf.begins(part.io.queue);
                return Step::Pending;
            }
        }
    }
}

/// Fills the memory of a read with zeroes, until the turn has cost enough. Returns how many, at
/// least one; or an errno.
///
/// # Safety
/// The request's memory is lent, and the piece lies within.
unsafe fn read_zeroes(request: &Request, piece: &Piece, turn: &mut Turn) -> Result<u64, i32> {
    let mut done = 0;
    while done < piece.len && (done == 0 || !turn.is_spent_now()) {
        let (data, len) = (request.data.at(piece.data + done), (piece.len - done).min(COPY_STEP));
        // SAFETY: the caller's promise.
        unsafe { data.0.write_bytes(0, len as usize) };
        if let Some(pages) = request.pages {
            // SAFETY: as above.
            unsafe { pages.store(data, len) }.map_err(|error| -error as i32)?;
        }
        done += len;
    }
    Ok(done)
}

/// The first error stays: it is the one that explains the rest.
fn worst(a: i32, b: i32) -> i32 {
    if a != 0 { a } else { b }
}

/// Whether the live table can serve a request at all: 0 or an errno.
fn check(live: Option<&Live>, request: &Request) -> i32 {
    let Some(live) = live else { return libc::EIO };
    if request.op == Op::Flush {
        return 0;
    }
    if request.op.is_write() && live.table.read_only() {
        return libc::EPERM;
    }
    let beyond = if request.op == Op::Write { libc::ENOSPC } else { libc::EINVAL };
    match request.offset.checked_add(request.len) {
        Some(end) if end <= live.table.len() * 512 => {
            if (request.offset | request.len).is_multiple_of(512) { 0 } else { libc::EINVAL }
        }
        _ => beyond,
    }
}

fn leaf_at(devices: &Devices, at: LeafAt) -> Option<&Leaf> {
    shared_leaf_at(devices, at).map(|leaf| &**leaf)
}

fn shared_leaf_at(devices: &Devices, at: LeafAt) -> Option<&Arc<Leaf>> {
    let live = devices.get(at.device as usize)?.as_ref()?.live.as_ref()?;
    let leaves = if at.departed { &live.departed } else { live.table.leaves() };
    leaves.get(at.index as usize)
}
