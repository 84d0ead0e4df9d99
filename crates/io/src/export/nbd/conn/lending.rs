//! Memory for the data of a connection's requests. It comes from the pool's budget. If the budget
//! is spent, the connection waits. If the system has no memory, the request fails.

use super::{Body, Conn, Phase, Reply};
use crate::export::nbd::context::Context;
use crate::export::nbd::{MAX_REPLY_HEADER, NbdCommand, NbdError, WireRequest};
use crate::sys::buffer::{Buffer, KEEP_MAX};
use crate::sys::memory::Short;

/// Memory of a large write's body before its data arrives, while memory is scarce. A header alone,
/// which costs its sender nothing, must not take 32 MiB.
const FIRST_BODY_BYTES: usize = 128 << 10;

impl Conn {
    /// Takes memory for `data` bytes of a request; `None` if it needs none. `Err` if there is no
    /// memory: the caller waits or refuses the request.
    pub(super) fn lend(
        &mut self,
        request: &WireRequest,
        data: usize,
        context: &mut Context<'_>,
    ) -> Result<Option<Buffer>, Short> {
        if data == 0 {
            return Ok(None);
        }
        let (buffers, held) = (&mut *context.buffers, self.lent_bytes);
        let scarce =
            request.command == NbdCommand::Write && data > KEEP_MAX && buffers.memory().is_scarce();
        let taken = match scarce {
            true => buffers.take_fresh(FIRST_BODY_BYTES, held),
            false => buffers.take(data, held),
        };
        if taken.as_ref().is_err_and(|short| *short == Short::Spent) {
            self.starve(if scarce { FIRST_BODY_BYTES } else { data }, context);
        }
        let buffer = taken?;
        self.lent_bytes += buffer.size();
        Ok(Some(buffer))
    }

    /// Records that the connection waits for this much memory.
    fn starve(&mut self, bytes: usize, context: &mut Context<'_>) {
        self.starved = Some(bytes);
        context.buffers.memory().await_at(context.turn.now_ns());
    }

    /// Whether the memory that it waits for is available now.
    pub(in crate::export::nbd) fn can_be_fed(&self, context: &Context<'_>) -> bool {
        let memory = context.buffers.memory();
        self.starved.is_none_or(|bytes| memory.would_grant(self.lent_bytes, bytes))
    }

    /// Answers a request for which the system has no memory, after its payload has arrived.
    pub(super) fn refuse_for_memory(&mut self, request: &WireRequest, still_to_come: u64) {
        let Phase::Transmission { negotiated, .. } = &self.phase else { return };
        let mut header = [0; MAX_REPLY_HEADER];
        let (cookie, offset) = (request.cookie, request.offset);
        let why = "the server has no memory for it now";
        let header_len = negotiated.error(cookie, offset, NbdError::NoMem, why, &mut header);
        self.refusal = Some(Reply { header, header_len, body: None, lent: 0 });
        self.skip = still_to_come;
    }

    /// Gives the pending body its missing memory. Returns `false` if that is not available; then
    /// the connection waits, or the write was refused.
    pub(super) fn grow_body(&mut self, context: &mut Context<'_>) -> bool {
        let Some(Body { slot, filled, len }) = self.body else { return false };
        let Some(pending) = self.pending.get_mut(slot) else { return false };
        let Some(buffer) = pending.buffer.as_mut() else { return false };
        let (had, held) = (buffer.size(), self.lent_bytes);
        match context.buffers.grow(buffer, len, held) {
            Ok(()) => self.lent_bytes += buffer.size() - had,
            Err(Short::Spent) => {
                self.starve(len - had, context);
                return false;
            }
            Err(Short::Refused) => {
                self.body = None;
                if let Some(pending) = self.pending.remove(slot) {
                    self.lent_bytes -= had;
                    pending.buffer.into_iter().for_each(|buffer| context.buffers.put(buffer));
                    self.refuse_for_memory(&pending.request, (len - filled) as u64);
                }
                return false;
            }
        }
        true
    }
}
