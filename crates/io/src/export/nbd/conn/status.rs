//! BLOCK_STATUS: answered from the maps and the leaves, without a request in the pipeline.

use super::{Conn, Phase, Reply};
use crate::buffer::Buffer;
use crate::export::nbd::reply::MAX_STATUS_CHUNK;
use crate::export::nbd::{MAX_REPLY_HEADER, MetaContext, NbdError, Parsed, Request};
use crate::memory::Short;
use crate::pipeline::Extents;
use crate::queue::Context;

/// A chunk of the reply for each metadata context that is asked for.
type Chunks = [Option<Buffer>; MetaContext::ALL.len()];

impl Conn {
    /// Answers BLOCK_STATUS. False if its payload, or memory for the answer, is not there yet.
    pub(super) fn block_status(
        &mut self,
        request: Request,
        header_len: usize,
        context: &mut Context<'_>,
    ) -> bool {
        let whole = header_len + request.payload as usize;
        if self.end - self.start < whole {
            return false;
        }
        let Phase::Transmission { session, .. } = &self.phase else { return false };
        let payload = self.input.bytes().get(self.start + header_len..self.start + whole);
        let parsed = match payload {
            Some(bytes) if request.payload_len_flag => session.status_payload(&request, bytes),
            _ => Parsed::Request(request),
        };
        let request = match parsed {
            Parsed::Request(request) => request,
            Parsed::Refused { cookie, offset, error, reason, .. } => {
                let mut header = [0; MAX_REPLY_HEADER];
                let header_len = session.error(cookie, offset, error, reason, &mut header);
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
                self.describe(&request, chunks, context);
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

    /// Memory for all chunks, or none.
    fn lend_chunks(
        &mut self,
        request: &Request,
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

    /// Fills the chunks and queues them as replies. Without an extent (the table has shrunk) the
    /// reply is an error.
    fn describe(&mut self, request: &Request, chunks: Chunks, context: &mut Context<'_>) {
        let mut failed = false;
        for (what, chunk) in MetaContext::ALL.into_iter().zip(chunks) {
            let Some(mut buffer) = chunk else { continue };
            let Phase::Transmission { session, device } = &self.phase else { return };
            if failed {
                self.take_back(buffer, context);
                continue;
            }
            let extents = match what {
                MetaContext::Path => Extents::Paths,
                MetaContext::Allocation => Extents::Allocation,
            };
            let mut writer = session.block_status(request, what, buffer.bytes_mut());
            let (id, offset, len) = (device.device().id(), request.offset, request.len);
            context
                .pipeline
                .extents(id, offset, len, extents, &mut |len, status| writer.extent(len, status));
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
                    let header_len = session.error(cookie, offset, error, why, &mut header);
                    self.take_back(buffer, context);
                    failed = true;
                    Reply { header, header_len, body: None, lent: 0 }
                }
            };
            self.replies.push_back(reply);
        }
    }
}
