//! The sending side of a session: commands, requested data, and answers to pings.
//!
//! Contract: as [`super::protocol`]. Data is sent from the memory that operations lend, so a task
//! remembers the last batch that contains some of its data.

use super::pdu::{self, DIGEST, DataOut, HEADER, Header, Numbers, Transfer};
use super::protocol::{Burst, IscsiProtocol, Leaving, MAX_TASKS, Task, Work, sealed};
use super::scsi::{self, ScsiCommand, UNMAP_LIST, Volume, Way};
use crate::engine::session::reconnecting::Lost;
use crate::engine::session::sessions::SessionRing;
use crate::engine::{LeafIo, LeafOp};
use crate::sys::span::ZEROES;

/// Largest transfer of one command in bytes. Larger ones gain nothing and delay others.
const MAX_TRANSFER: u64 = 4 << 20;
/// Longest range of one UNMAP or WRITE SAME in bytes. Every target finishes this in time.
const MAX_RANGE: u64 = 1 << 30;
/// Most bursts of one task that may wait: the unasked one, and a requested one.
const MAX_BURSTS: u8 = 2;

/// A command for an operation, or for the rest of it.
struct Next {
    command: ScsiCommand,
    /// Bytes of the operation that the command covers.
    piece: u64,
    /// Bytes of the command's data.
    bytes: u32,
    unmap: [u8; UNMAP_LIST],
}

impl IscsiProtocol {
    /// Sends everything that may be sent now.
    pub(super) fn send(&mut self, work: &mut Work<'_>, ring: &mut SessionRing<'_>) {
        loop {
            self.conn.send(ring);
            if !self.conn.can_fill() || !self.has_work(work) {
                break;
            }
            let batch = self.conn.begin_batch();
            while self.conn.room() > 0 && self.add(batch, work) {}
        }
        self.release_held(work);
    }

    fn has_work(&self, work: &Work<'_>) -> bool {
        !self.pings.is_empty() || !self.bursts.is_empty() || self.may_begin(work)
    }

    /// Whether another command can be sent.
    fn may_begin(&self, work: &Work<'_>) -> bool {
        let may = self.leaving == Leaving::No && self.wire.is_open() && !self.free.is_empty();
        may && !work.ready.is_empty()
    }

    /// Adds one PDU to the batch. Returns `false` if there is none.
    fn add(&mut self, batch: u64, work: &mut Work<'_>) -> bool {
        if let Some(ping) = self.pings.pop_front() {
            // SAFETY: there is no data.
            unsafe { self.put(&ping, None) };
        } else if let Some(burst) = self.bursts.pop_front() {
            self.add_data(burst, batch, work);
        } else if self.may_begin(work)
            && let Some(slot) = work.ready.pop_front()
        {
            self.begin(slot, batch, work);
        } else {
            return false;
        }
        true
    }

    /// Adds a header, with its digest, and data.
    ///
    /// # Safety
    /// As [`crate::engine::session::conn::Conn::add`].
    unsafe fn put(&mut self, header: &Header, data: Option<(*const u8, usize)>) {
        let mut bytes = [0; HEADER + DIGEST];
        let len = sealed(&self.wire, header, &mut bytes);
        // SAFETY: the caller's promise.
        unsafe { self.conn.add(bytes.get(..len).unwrap_or_default(), data) };
        let padding = pdu::padding(data.map_or(0, |(_, len)| len as u32));
        self.conn.pad(ZEROES.get(..padding as usize).unwrap_or_default());
    }

    /// Begins a command of an operation.
    fn begin(&mut self, slot: u32, batch: u64, work: &mut Work<'_>) {
        let Some(op) = work.ops.get(slot) else { return };
        if op.io.op == LeafOp::Discard && self.volume.unmap_blocks == 0 {
            return work.answer(slot, -i64::from(libc::EOPNOTSUPP));
        }
        let Some(number) = self.free.pop() else { return };
        let Next { command, piece, bytes, unmap } = match op.state.flushes {
            Some(written) => flush(written),
            None => next_command(&op.io, op.done, &self.volume),
        };
        self.serial = self.serial % 0x00ff_fffd + 1;
        let tag = self.serial << 8 | number;
        let agreed = &self.wire.agreed;
        let first = if command.way == Way::Out { bytes.min(agreed.first_burst) } else { 0 };
        let immediate = if agreed.immediate { first.min(agreed.most_data) } else { 0 };
        let unasked = if agreed.wait_for_request { 0 } else { first - immediate };
        let transfer = Transfer { way: command.way, bytes, moved: immediate + unasked };
        let task = Task {
            tag,
            slot,
            piece,
            unmap,
            transfer,
            batch,
            bursts: 0,
            has_ended: false,
            answer: None,
        };
        if let Some(place) = self.tasks.get_mut(number as usize) {
            *place = Some(task);
        }
        if unasked > 0 {
            let transfer = pdu::NO_TAG;
            let next = DataOut { tag, transfer, number: 0, offset: immediate, len: 0, last: false };
            self.push_burst(Burst { task: number, next, end: immediate + unasked });
        }
        let Numbers { command: at, .. } = self.wire.numbers;
        let (lun, numbers) = (self.wire.lun, self.wire.numbers);
        let header = pdu::command(&command, lun, tag, numbers, bytes, immediate, unasked > 0);
        self.wire.numbers.command = at.wrapping_add(1);
        let from = self.data_of(number, 0, work);
        let data = from.filter(|_| immediate > 0).map(|from| (from, immediate as usize));
        // SAFETY: the data is static, or it belongs to the operation, which lends it until the
        // answer, or to the task, which does not move until the kernel has sent it.
        unsafe { self.put(&header, data) };
    }

    /// Adds the next data of a burst.
    fn add_data(&mut self, burst: Burst, batch: u64, work: &Work<'_>) {
        let Burst { task: number, mut next, end } = burst;
        let most = self.wire.agreed.most_data;
        let from = self.data_of(number, next.offset, work);
        let Some(task) = self.task(number) else { return };
        next.len = (end - next.offset).min(most);
        next.last = next.offset + next.len == end;
        task.batch = batch;
        if next.last {
            task.bursts -= 1;
        }
        let header = pdu::data_out(&next, self.wire.lun, self.wire.numbers);
        // SAFETY: as above; the burst lies within the command's data.
        unsafe { self.put(&header, from.map(|from| (from, next.len as usize))) };
        if !next.last {
            (next.offset, next.number) = (next.offset + next.len, next.number + 1);
            self.bursts.push_front(Burst { task: number, next, end });
        }
    }

    fn push_burst(&mut self, burst: Burst) {
        if let Some(task) = self.task(burst.task) {
            task.bursts += 1;
            self.bursts.push_back(burst);
        }
    }

    /// The target requests data of a write.
    pub(super) fn wanted(
        &mut self,
        tag: u32,
        transfer: u32,
        offset: u32,
        len: u32,
    ) -> Result<(), Lost> {
        let number = self.tagged(tag)?;
        let Some(task) = self.task(number) else { return Ok(()) };
        if task.bursts >= MAX_BURSTS || transfer == pdu::NO_TAG {
            return Err((libc::EPROTO, "more requests for data than were agreed"));
        }
        task.transfer.asked(offset, len).map_err(|why| (libc::EPROTO, why))?;
        let next = DataOut { tag, transfer, number: 0, offset, len: 0, last: false };
        self.push_burst(Burst { task: number, next, end: offset + len });
        Ok(())
    }

    /// The outgoing data of a command, from `offset` on.
    fn data_of(&self, number: u32, offset: u32, work: &Work<'_>) -> Option<*const u8> {
        let task = self.tasks.get(number as usize)?.as_ref()?;
        let op = work.ops.get(task.slot)?;
        match op.io.op {
            LeafOp::Write => Some(op.io.data.at(u64::from(offset)).0.cast_const()),
            LeafOp::Zero { .. } => Some(ZEROES.as_ptr().wrapping_add(offset as usize)),
            LeafOp::Discard => Some(task.unmap.as_ptr().wrapping_add(offset as usize)),
            LeafOp::Read | LeafOp::Flush => None,
        }
    }
}

/// The flush after a write of `piece` bytes.
fn flush(piece: u64) -> Next {
    Next { command: scsi::synchronize_cache(), piece, bytes: 0, unmap: [0; UNMAP_LIST] }
}

/// The command for the rest of an operation.
fn next_command(io: &LeafIo, done: u64, volume: &Volume) -> Next {
    let block_bytes = u64::from(volume.block_bytes);
    let piece = (io.len - done).min(limit(io.op, volume));
    let (block, blocks) = ((io.offset + done) / block_bytes, (piece / block_bytes) as u32);
    let mut unmap = [0; UNMAP_LIST];
    let (command, bytes) = match io.op {
        LeafOp::Read => (scsi::read(block, blocks), piece as u32),
        LeafOp::Write => (scsi::write(block, blocks, io.fua && volume.fua), piece as u32),
        LeafOp::Flush => (scsi::synchronize_cache(), 0),
        LeafOp::Zero { no_hole } => {
            let same = scsi::write_same(block, blocks, volume.same_unmaps && !no_hole);
            (same, volume.block_bytes)
        }
        LeafOp::Discard => {
            let (command, list) = scsi::unmap(block, blocks);
            unmap = list;
            (command, UNMAP_LIST as u32)
        }
    };
    Next { command, piece, bytes, unmap }
}

/// Most bytes of the operation that one command covers.
fn limit(op: LeafOp, volume: &Volume) -> u64 {
    let bytes = |blocks: u64| match blocks {
        0 => u64::MAX,
        blocks => blocks.saturating_mul(u64::from(volume.block_bytes)),
    };
    match op {
        LeafOp::Read | LeafOp::Write => bytes(u64::from(volume.transfer_blocks)).min(MAX_TRANSFER),
        LeafOp::Flush => 0,
        LeafOp::Discard => bytes(u64::from(volume.unmap_blocks)).min(MAX_RANGE),
        LeafOp::Zero { .. } => bytes(volume.same_blocks).min(MAX_RANGE),
    }
}

const _: () = assert!(MAX_TASKS == 256, "a tag has eight bits for the task");
