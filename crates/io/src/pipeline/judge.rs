//! Judging: what a leaf's result means for a part. Pure but for the leaf's account of unflushed
//! writes.

use super::{Kind, LeafIo, LeafOp, Part, Whole};
use crate::leaf::Leaf;
use crate::request::Span;

/// Zeroes for leaves that cannot zero by themselves.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// What happens to the part next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is done; `whole.errno` says how.
    Done,
    /// Its `io` is to be submitted (again).
    Submit,
}

/// Takes a result: a count of bytes, or a negative errno.
pub(super) fn judge(part: &mut Part, leaf: &Leaf, result: i64) -> Verdict {
    if matches!(-result as i32, libc::EINTR | libc::EAGAIN) && result < 0 {
        return Verdict::Submit;
    }
    let errno = match -result as i32 {
        _ if result >= 0 => 0,
        // A write to what could only be opened for reading.
        libc::EBADF => libc::EPERM,
        errno => errno,
    };
    match part.io.op {
        LeafOp::Flush => {
            let errno = leaf.judge_flush(part.whole.covers, errno);
            finish(&mut part.whole, errno)
        }
        LeafOp::Read => transferred(part, result, errno, libc::EIO),
        LeafOp::Write => {
            wrote(&part.io, leaf, errno);
            match transferred(part, result, errno, libc::ENOSPC) {
                Verdict::Done if part.whole.errno == 0 => then_flush(part),
                verdict => verdict,
            }
        }
        LeafOp::Discard | LeafOp::Zero { .. } => {
            if leaf.engine().has_cache() {
                leaf.dirty().wrote(part.io.queue);
            }
            let done = result.max(0) as u64;
            match (part.io.op, errno) {
                // A leaf that does it at once does it a stretch at a time.
                (_, 0) if (1..part.io.len).contains(&done) => {
                    part.whole.done += done;
                    part.io.offset += done;
                    part.io.len -= done;
                    Verdict::Submit
                }
                (_, 0) => then_flush(part),
                // A hint that cannot be taken is no error.
                (LeafOp::Discard, libc::EOPNOTSUPP) => finish(&mut part.whole, 0),
                (LeafOp::Zero { no_hole: false }, libc::EOPNOTSUPP) => {
                    part.io.op = LeafOp::Zero { no_hole: true };
                    Verdict::Submit
                }
                (LeafOp::Zero { .. }, libc::EOPNOTSUPP) if part.whole.fast => {
                    finish(&mut part.whole, libc::EOPNOTSUPP)
                }
                (LeafOp::Zero { .. }, libc::EOPNOTSUPP) => {
                    part.io.op = LeafOp::Write;
                    zeroes_next(part)
                }
                (_, errno) => finish(&mut part.whole, errno),
            }
        }
    }
}

/// A write has ended: what may be in a cache now is to be flushed. Counted before it is answered,
/// and when it failed, too: part of it may have landed.
#[inline]
pub(super) fn wrote(io: &LeafIo, leaf: &Leaf, errno: i32) {
    if leaf.engine().has_cache() && !(io.fua && errno == 0) {
        leaf.dirty().wrote(io.queue);
    }
}

/// A read or write moved some bytes: on with the rest, if there is one.
fn transferred(part: &mut Part, result: i64, errno: i32, at_end: i32) -> Verdict {
    if errno != 0 {
        return finish(&mut part.whole, errno);
    }
    let moved = (result as u64).min(part.io.len);
    if moved == 0 && part.io.len > 0 {
        // The file has become shorter than when it was opened.
        return finish(&mut part.whole, at_end);
    }
    part.whole.done += moved;
    part.io.offset += moved;
    if part.whole.kind == Kind::Zeroes {
        return zeroes_next(part);
    }
    part.io.len -= moved;
    part.io.data = part.io.data.at(moved);
    if part.io.len == 0 { finish(&mut part.whole, 0) } else { Verdict::Submit }
}

/// The next stretch of zeroes to be written out.
fn zeroes_next(part: &mut Part) -> Verdict {
    let left = part.whole.len - part.whole.done;
    part.io.len = left.min(ZEROES.len() as u64);
    // Never written through: a write only reads its data.
    part.io.data = Span(ZEROES.as_ptr().cast_mut());
    if left == 0 { finish(&mut part.whole, 0) } else { Verdict::Submit }
}

/// The write is done; if it was to be stable and the leaf could not do that, the leaf is flushed.
fn then_flush(part: &mut Part) -> Verdict {
    if !part.whole.then_flush {
        return finish(&mut part.whole, 0);
    }
    part.whole.then_flush = false;
    part.io.op = LeafOp::Flush;
    Verdict::Submit
}

fn finish(whole: &mut Whole, errno: i32) -> Verdict {
    whole.errno = errno;
    Verdict::Done
}
