//! Drains: control is told when nothing is under way any more that was routed before a map changed.
//!
//! A drain notes the pieces that are under way, at leaves or anywhere else, and came through a
//! changed range. Requests that are routed afterwards meet the new map, because control sends the
//! order after its stores. The note is a bit of the piece's [`Hops`], so it stays with the piece
//! wherever that goes, and with all pieces that it is split into.
//!
//! Contract: as [`super`]. Nothing on the fast path knows of drains. Pieces that are noted tell
//! when they end; then the next [`Pipeline::answer_drains`] looks for others. The device runs on.

use std::mem;

use super::devices::Devices;
use super::split::Piece;
use super::state::{Hops, Parked};
use super::turns::Work;
use super::{Pipeline, origin};
use crate::device::drain::Changed;
use crate::sys::latch::Ack;

/// A drain under way.
struct Drain {
    number: u64,
    /// Its bit of [`Hops::noted`]. Drains beyond the 31st share the last, so each of these also
    /// waits for what the others wait for.
    bit: u32,
    ack: Ack,
}

/// See the module's text.
#[derive(Default)]
pub(super) struct Drains {
    all: Vec<Drain>,
    /// A noted piece has ended.
    is_due: bool,
    /// The slot of the last part that was found to be noted. The next search begins there.
    at: u32,
}

impl Drains {
    /// A piece ends, or becomes several.
    #[inline]
    pub(super) fn ends(&mut self, hops: &Hops) {
        if hops.noted != 0 {
            self.is_due = true;
        }
    }

    /// The bits of all drains.
    fn used(&self) -> u32 {
        self.all.iter().fold(0, |used, drain| used | drain.bit)
    }

    /// A bit for a new drain.
    fn bit(&self) -> u32 {
        1 << self.used().trailing_ones().min(u32::BITS - 1)
    }

    /// The queue has failed.
    pub(super) fn forget(&mut self) {
        self.all.clear();
    }
}

impl Pipeline {
    /// Has `ack` answered when no piece is under way any more that this pipeline has routed through
    /// a range of the device that has changed.
    pub fn drain(&mut self, number: u64, (device, changed): (u32, &Changed), ack: Ack) {
        let bit = self.drains.bit();
        // A drain that was given up leaves its bit where it was noted.
        let is_free = self.drains.all.iter().all(|drain| drain.bit != bit);
        let note = |devices: &Devices, hops: &mut Hops, at| {
            if is_free {
                hops.noted &= !bit;
            }
            if origin::is_changed(devices, hops, at, (device, changed)) {
                hops.noted |= bit;
            }
        };
        for (_, part) in self.parts.iter_mut() {
            let at = origin::of_part(part);
            note(&self.devices, &mut part.hops, at);
        }
        self.each_waiting(&mut |devices, piece| {
            let at = origin::sectors(piece.offset, piece.len);
            note(devices, &mut piece.hops, at);
        });
        self.drains.all.push(Drain { number, bit, ack });
        self.drains.is_due = true;
    }

    /// Nobody waits for a drain any more.
    pub fn end_drain(&mut self, number: u64) {
        self.drains.all.retain(|drain| drain.number != number);
    }

    /// Answers drains that are over. For the end of a turn: no piece is on its way then from one
    /// list to another.
    #[inline]
    pub fn answer_drains(&mut self) {
        if mem::take(&mut self.drains.is_due) {
            self.answer_over();
        }
    }

    #[cold]
    fn answer_over(&mut self) {
        let left = self.noted_left();
        for drain in self.drains.all.extract_if(.., |drain| drain.bit & left == 0) {
            drain.ack.done();
        }
    }

    /// The bits of all drains for which a noted piece is under way.
    fn noted_left(&mut self) -> u32 {
        let wanted = self.drains.used();
        let (slots, mut left) = (self.parts.slots(), 0);
        let from = self.drains.at.min(slots);
        // Found where the last one was, as a rule: so a turn costs little, however many parts are
        // under way.
        for slot in (from..slots).chain(0..from) {
            if left == wanted {
                return left;
            }
            let noted = self.parts.get(slot).map_or(0, |part| part.hops.noted) & wanted;
            if noted & !left != 0 {
                (self.drains.at, left) = (slot, left | noted);
            }
        }
        self.each_waiting(&mut |_, piece| left |= piece.hops.noted);
        left & wanted
    }

    /// Visits all pieces that wait: for their turn, at gates, or for a path.
    fn each_waiting(&mut self, visit: &mut dyn FnMut(&Devices, &mut Piece)) {
        for piece in self.turns.waiting_mut().filter_map(Work::piece_mut) {
            visit(&self.devices, piece);
        }
        let numbers: Vec<u32> = self.devices.iter().map(|(number, _)| number).collect();
        for number in numbers {
            let Some(local) = self.local(number) else { continue };
            let (mut held, mut parked) = (mem::take(&mut local.held), mem::take(&mut local.parked));
            let held_pieces = held.iter_mut().map(|(_, piece)| piece);
            let pieces = held_pieces.chain(parked.iter_mut().filter_map(Parked::piece_mut));
            pieces.for_each(|piece| visit(&self.devices, piece));
            if let Some(local) = self.local(number) {
                (local.held, local.parked) = (held, parked);
            }
        }
    }
}
