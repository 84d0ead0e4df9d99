//! Judging: what a leaf's result means for a part. Pure but for the leaf's account of unflushed
//! writes.

use super::{Kind, LeafIo, LeafOp, Part, Whole};
use crate::leaf::Leaf;
use crate::request::Span;
use crate::sys::log_limit::LogLimit;
use crate::sys::span::ZEROES;

/// The next step for the part.
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
    let result = plausible(&part.io, leaf, result);
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
                (LeafOp::Discard, libc::EOPNOTSUPP) => {
                    leaf.declines_discards();
                    part.whole.is_ignored = true;
                    finish(&mut part.whole, 0)
                }
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

/// A leaf that claims more than it was asked for has lost count: nobody knows what of the memory is
/// from it, so nothing of that is handed out.
#[inline]
fn plausible(io: &LeafIo, leaf: &Leaf, result: i64) -> i64 {
    if result <= 0 || result as u64 <= io.len { result } else { implausible(io, leaf, result) }
}

#[cold]
fn implausible(io: &LeafIo, leaf: &Leaf, result: i64) -> i64 {
    static LIMIT: LogLimit = LogLimit::new();
    if let Some(suppressed) = LIMIT.pass() {
        let (leaf, op, asked) = (leaf.name(), io.op, io.len);
        tracing::error!(leaf, ?op, asked, result, suppressed, "a leaf answers with too many bytes");
    }
    -i64::from(libc::EIO)
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
    // Not more than was asked for: plausible().
    let moved = result as u64;
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::state::{Hops, LeafAt};
    use super::*;
    use crate::leaf::LeafOptions;
    use crate::queues::Queues;

    const LEN: u64 = 4096;

    fn leaf() -> Arc<Leaf> {
        let options = LeafOptions::new(Queues::of_new_owner(1));
        Leaf::open(&"sim:64K".parse().unwrap(), &options).unwrap()
    }

    fn part(kind: Kind, op: LeafOp) -> Part {
        let data = Span::NONE;
        let io = LeafIo {
            op,
            fua: false,
            fast: false,
            offset: 0,
            len: LEN,
            data,
            pages: None,
            part: 0,
            queue: 0,
        };
        let whole = Whole {
            kind,
            len: LEN,
            done: 0,
            then_flush: false,
            fast: false,
            is_ignored: false,
            covers: 0,
            errno: 0,
        };
        Part {
            request: 0,
            token: 0,
            hops: Hops::default(),
            leaf: LeafAt { device: 0, index: 0, departed: false },
            io,
            whole,
            started_ns: 0,
        }
    }

    /// The verdict on a result, and the errno.
    fn judged(kind: Kind, op: LeafOp, result: i64) -> (Verdict, i32) {
        let (mut part, leaf) = (part(kind, op), leaf());
        let verdict = judge(&mut part, &leaf, result);
        (verdict, part.whole.errno)
    }

    #[test]
    fn what_a_leaf_answers_has_one_meaning() {
        use Verdict::{Done, Submit};
        let (read, write) = ((Kind::Read, LeafOp::Read), (Kind::Write, LeafOp::Write));
        let discard = (Kind::Discard, LeafOp::Discard);
        let zero = (Kind::Zeroes, LeafOp::Zero { no_hole: true });
        let errno = |errno: i32| -i64::from(errno);
        for ((kind, op), result, expected) in [
            (read, LEN as i64, (Done, 0)),
            (read, 512, (Submit, 0)),
            // The leaf has become shorter: it is not asked for ever.
            (read, 0, (Done, libc::EIO)),
            (write, 0, (Done, libc::ENOSPC)),
            // More than was asked for: nobody knows what came.
            (read, LEN as i64 + 1, (Done, libc::EIO)),
            (write, LEN as i64 + 512, (Done, libc::EIO)),
            (discard, LEN as i64 + 512, (Done, libc::EIO)),
            (zero, i64::MAX, (Done, libc::EIO)),
            (read, errno(libc::EINTR), (Submit, 0)),
            (write, errno(libc::EAGAIN), (Submit, 0)),
            (write, errno(libc::EBADF), (Done, libc::EPERM)),
            (read, errno(libc::EIO), (Done, libc::EIO)),
            (discard, 0, (Done, 0)),
            (discard, 512, (Submit, 0)),
            (discard, errno(libc::EOPNOTSUPP), (Done, 0)),
            (discard, errno(libc::EIO), (Done, libc::EIO)),
            (zero, LEN as i64, (Done, 0)),
            (zero, errno(libc::EOPNOTSUPP), (Submit, 0)),
            (zero, errno(libc::ENOSPC), (Done, libc::ENOSPC)),
        ] {
            assert_eq!(judged(kind, op, result), expected, "{op:?} {result}");
        }
    }

    /// A hole that cannot be made is asked for as zeroes, and these are written out where they
    /// cannot be asked for; not if that would be slow and nobody wants it.
    #[test]
    fn zeroes_fall_back_step_by_step() {
        let (mut part, leaf) = (part(Kind::Zeroes, LeafOp::Zero { no_hole: false }), leaf());
        let refused = -i64::from(libc::EOPNOTSUPP);
        assert_eq!(judge(&mut part, &leaf, refused), Verdict::Submit);
        assert_eq!(part.io.op, LeafOp::Zero { no_hole: true });
        let mut fast = Part { whole: Whole { fast: true, ..part.whole }, ..part };
        assert_eq!(judge(&mut fast, &leaf, refused), Verdict::Done);
        assert_eq!(fast.whole.errno, libc::EOPNOTSUPP);
        fast.whole = Whole { fast: false, errno: 0, ..fast.whole };
        assert_eq!(judge(&mut fast, &leaf, refused), Verdict::Submit);
        assert_eq!((fast.io.op, fast.io.len), (LeafOp::Write, LEN));
        assert_eq!(judge(&mut fast, &leaf, 512), Verdict::Submit);
        assert_eq!((fast.io.offset, fast.io.len), (512, LEN - 512));
        assert_eq!(judge(&mut fast, &leaf, LEN as i64 - 512), Verdict::Done);
        assert_eq!(fast.whole.errno, 0);
    }
}
