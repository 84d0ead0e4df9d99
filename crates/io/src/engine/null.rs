//! The null engine: reads return zeroes, writes vanish. It is the smallest example of an engine.

use super::{LeafIo, LeafOp, Submitted};
use crate::engine::io::COPY_STEP;

/// A leaf without a medium: it discards writes, and reads return zeroes.
pub struct NullEngine;

impl NullEngine {
    /// # Safety
    /// As [`super::Engine::submit`].
    pub(super) unsafe fn submit(&self, io: &LeafIo) -> Submitted {
        match io.op {
            LeafOp::Read => {
                // Write zeroes, because the buffer may hold another client's bytes.
                let len = io.len.min(COPY_STEP);
                // SAFETY: the caller lends `len` bytes at `data`.
                unsafe { io.data.0.write_bytes(0, len as usize) };
                Submitted::Done(len as i64)
            }
            LeafOp::Write => Submitted::Done(io.len as i64),
            LeafOp::Flush | LeafOp::Discard | LeafOp::Zero { .. } => Submitted::Done(0),
        }
    }
}
