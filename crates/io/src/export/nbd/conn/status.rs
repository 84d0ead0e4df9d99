//! BLOCK_STATUS, answered from the maps and the leaves without a request in the pipeline.
//!
//! Paths are looked up in the maps while the answer is written. For the allocation, the helpers of
//! leaves may have to be asked (`inquiry.rs`). A connection asks for one request at a time, so that
//! connections take turns at a leaf.

use super::{Conn, Phase, Reply};
use crate::export::nbd::context::Context;
use crate::export::nbd::inquiry::{Asker, Described, Inquiry};
use crate::export::nbd::reply::MAX_STATUS_CHUNK;
use crate::export::nbd::{MAX_REPLY_HEADER, MetaContext, NbdError, Parsed, WireRequest};
use crate::pipeline::{Extents, Found};
use crate::sys::buffer::Buffer;
use crate::sys::memory::Short;

/// The chunks of the reply, one for each requested metadata context.
type Chunks = [Option<Buffer>; MetaContext::ALL.len()];

/// A request whose leaves are being asked, or that waits for its turn.
pub(super) struct Status {
    request: WireRequest,
    chunks: Chunks,
    /// The number of its inquiry; `None` before its turn.
    asked: Option<u64>,
}

impl Conn {
    /// Takes a BLOCK_STATUS. Returns `false` if its payload has not arrived, or if there is no
    /// memory for the answer now.
    pub(super) fn block_status(
        &mut self,
        id: u32,
        request: WireRequest,
        header_len: usize,
        context: &mut Context<'_>,
    ) -> bool {
        let whole = header_len + request.payload as usize;
        if self.end - self.start < whole {
            return false;
        }
        let Phase::Transmission { negotiated, .. } = &self.phase else { return false };
        let payload = self.input.bytes().get(self.start + header_len..self.start + whole);
        let parsed = match payload {
            Some(bytes) if request.payload_len_flag => negotiated.status_payload(&request, bytes),
            _ => Parsed::Request(request),
        };
        let request = match parsed {
            Parsed::Request(request) => request,
            Parsed::Refused { cookie, offset, error, reason, .. } => {
                let mut header = [0; MAX_REPLY_HEADER];
                let header_len = negotiated.error(cookie, offset, error, reason, &mut header);
                self.replies.push_back(Reply { header, header_len, body: None, lent: 0 });
                self.start += whole;
                return true;
            }
            Parsed::Disconnect | Parsed::Broken(_) => return false,
        };
        match self.lend_chunks(&request, context) {
            Ok(chunks) => {
                self.start += whole;
                self.was_costly = true;
                self.statuses.push_back(Status { request, chunks, asked: None });
                self.inquire(id, context);
                true
            }
            Err(Short::Spent) => false,
            Err(Short::Refused) => {
                self.start += whole;
                self.refuse_for_memory(&request, 0);
                true
            }
        }
    }

    /// Takes memory for all chunks. `Err` if there is not enough for all.
    fn lend_chunks(
        &mut self,
        request: &WireRequest,
        context: &mut Context<'_>,
    ) -> Result<Chunks, Short> {
        let mut chunks = Chunks::default();
        for (what, chunk) in MetaContext::ALL.into_iter().zip(&mut chunks) {
            if !request.contexts.contains(what) {
                continue;
            }
            match self.lend(request, MAX_STATUS_CHUNK, context) {
                Ok(buffer) => *chunk = buffer,
                Err(short) => {
                    chunks.into_iter().flatten().for_each(|buffer| self.take_back(buffer, context));
                    return Err(short);
                }
            }
        }
        Ok(chunks)
    }

    fn take_back(&mut self, buffer: Buffer, context: &mut Context<'_>) {
        self.lent_bytes -= buffer.size();
        context.buffers.put(buffer);
    }

    /// Starts the inquiry for the first request, or answers it if no leaf needs to be asked.
    fn inquire(&mut self, id: u32, context: &mut Context<'_>) {
        let Some(first) = self.statuses.front_mut().filter(|first| first.asked.is_none()) else {
            return;
        };
        let request = first.request;
        let Phase::Transmission { device, .. } = &self.phase else { return };
        self.inquiries += 1;
        let number = self.inquiries;
        first.asked = Some(number);
        let mut extents = Vec::new();
        if request.contexts.contains(MetaContext::Allocation) {
            let (conn, conn_number) = (id, self.place.number());
            let asker = Asker { queue: context.queue, conn, conn_number, number };
            let mut inquiry = Box::new(Inquiry::new(asker, context.post, request.req_one));
            let (device, WireRequest { offset, len, .. }) = (device.device().id(), request);
            let each = &mut |len, found: Found<'_>| inquiry.piece(len, found);
            context.pipeline.extents(device, offset, len, Extents::Allocation, each);
            match inquiry.answer_now() {
                Some(known) => extents = known,
                None => return inquiry.go_on(),
            }
        }
        self.answer_status(&extents, context);
    }

    /// Processes the answer of an inquiry: answers its request and starts the next one.
    pub(in crate::export::nbd) fn described(
        &mut self,
        id: u32,
        described: &Described,
        context: &mut Context<'_>,
    ) {
        let is_first =
            self.statuses.front().is_some_and(|first| first.asked == Some(described.number));
        // Otherwise the request was given up.
        if self.place.number() == described.conn_number && is_first {
            self.answer_status(&described.extents, context);
            while self.statuses.front().is_some_and(|first| first.asked.is_none()) {
                self.inquire(id, context);
            }
        }
    }

    /// Answers the first waiting request. If there are no extents, because the table has become
    /// shorter, the reply is an error.
    fn answer_status(&mut self, allocation: &[(u64, u32)], context: &mut Context<'_>) {
        let Some(Status { request, chunks, .. }) = self.statuses.pop_front() else { return };
        let mut failed = false;
        for (what, chunk) in MetaContext::ALL.into_iter().zip(chunks) {
            let Some(mut buffer) = chunk else { continue };
            let Phase::Transmission { negotiated, device } = &self.phase else { return };
            if failed {
                self.take_back(buffer, context);
                continue;
            }
            let mut writer = negotiated.block_status(&request, what, buffer.bytes_mut());
            let (id, offset, len) = (device.device().id(), request.offset, request.len);
            match what {
                MetaContext::Path => {
                    let each = &mut |len, found: Found<'_>| match found {
                        Found::Status(path) => writer.extent(len, path),
                        Found::Ask(..) => false,
                    };
                    context.pipeline.extents(id, offset, len, Extents::Paths, each);
                }
                MetaContext::Allocation => {
                    let _ = allocation.iter().all(|&(len, status)| writer.extent(len, status));
                }
            }
            let mut header = [0; MAX_REPLY_HEADER];
            let reply = match writer.finish() {
                // The chunk carries its own header.
                Some(len) => {
                    let lent = buffer.size();
                    Reply { header, header_len: 0, body: Some((buffer, len)), lent }
                }
                None => {
                    let (error, why) = (NbdError::Inval, "no extents there");
                    let cookie = request.cookie;
                    let header_len = negotiated.error(cookie, offset, error, why, &mut header);
                    self.take_back(buffer, context);
                    failed = true;
                    Reply { header, header_len, body: None, lent: 0 }
                }
            };
            self.replies.push_back(reply);
        }
    }

    /// Gives up all requests, because their answers will not be read. Their inquiries go on without
    /// effect.
    pub(super) fn give_up_statuses(&mut self, context: &mut Context<'_>) {
        while let Some(Status { chunks, .. }) = self.statuses.pop_front() {
            chunks.into_iter().flatten().for_each(|buffer| self.take_back(buffer, context));
        }
    }
}
