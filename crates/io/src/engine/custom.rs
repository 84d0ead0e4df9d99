//! Leaves of other people: a [`CustomEngine`] does the operations, on whatever it likes.
//!
//! Contract: nothing that an engine does or fails to do breaks a rule of the data path. An
//! operation is answered once, because its answer consumes it. One that is dropped fails, also when
//! a panic does it. One that takes longer than the engine's time limit fails, and a later answer is
//! ignored. A read succeeds only with as many bytes as were asked for, and these are copied here:
//! memory of a request that the engine has not filled is never handed out.
//!
//! It costs an allocation per operation and a lock per answer, which the leaves of this crate do
//! without. The lock is held for a copy at most, and a queue never waits for it.

use std::fmt;
use std::io;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread::{self, ThreadId};
use std::time::Duration;

use super::session::links::{Finished, Link, Part, Port, Seat};
use super::{LeafIo, LeafOp, Submitted};
use crate::engine::session::turn::Turn;
use crate::request::Span;
use crate::sys::lock::lock;
use crate::sys::slab::Slab;

/// How a leaf is reached that somebody else has written.
///
/// ```
/// use std::io;
/// use std::sync::Mutex;
///
/// use blkswitch_io::engine::{CustomEngine, CustomKind, CustomOp};
///
/// /// A disk in memory.
/// struct Ram(Mutex<Vec<u8>>);
///
/// impl CustomEngine for Ram {
///     fn submit(&self, op: CustomOp) {
///         let mut disk = self.0.lock().unwrap();
///         let range = op.offset() as usize..(op.offset() + op.len()) as usize;
///         match op.kind() {
///             CustomKind::Read => op.done_with(&disk[range]),
///             CustomKind::Write => {
///                 op.with_data(|data| disk[range].copy_from_slice(data));
///                 op.done();
///             }
///             CustomKind::Flush => op.done(),
///             // Discards are hints; zeroes are written out if the engine has no other way.
///             _ => op.fail(io::ErrorKind::Unsupported.into()),
///         }
///     }
///
///     fn has_cache(&self) -> bool {
///         false
///     }
/// }
/// ```
pub trait CustomEngine: Send + Sync {
    /// Starts an operation: does it at once, or keeps it and answers from any thread. It lies
    /// within the leaf's [`Limits`](super::Limits). Called on a queue's thread, which serves others
    /// meanwhile: it must not block.
    fn submit(&self, op: CustomOp);

    /// Whether completed writes can be lost without a flush. What cannot lose them is never
    /// flushed.
    fn has_cache(&self) -> bool {
        true
    }

    /// Makes all completed writes stable, blocking: called from the control side when the leaf
    /// leaves a table.
    ///
    /// # Errors
    /// They are not stable.
    fn flush_blocking(&self) -> io::Result<()> {
        if self.has_cache() { Err(io::ErrorKind::Unsupported.into()) } else { Ok(()) }
    }

    /// Looks whether the leaf can be reached, for a path checker; may block for `timeout`.
    ///
    /// # Errors
    /// It cannot.
    fn probe(&self, timeout: Duration) -> io::Result<()> {
        let _ = timeout;
        Ok(())
    }

    /// What names the volume behind the leaf, whatever path leads there; `None` if that is not
    /// known.
    fn identity(&self) -> Option<String> {
        None
    }

    /// An operation that is not answered after so long fails with `ETIMEDOUT`, to the second.
    fn time_limit(&self) -> Duration {
        Duration::from_secs(30)
    }
}

/// What an operation asks of a custom engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CustomKind {
    /// The bytes of the range: [`CustomOp::done_with`].
    Read,
    /// Write [`CustomOp::with_data`] to the range.
    Write,
    /// Make completed writes stable.
    Flush,
    /// The range is not needed any more: a hint, which `EOPNOTSUPP` declines.
    Discard,
    /// The range reads as zeroes afterwards. `EOPNOTSUPP` has them written out.
    Zero {
        /// Keep the space allocated.
        no_hole: bool,
    },
}

/// One operation on a custom leaf. Dropped without an answer it fails with `EIO`.
pub struct CustomOp {
    kind: CustomKind,
    offset: u64,
    len: u64,
    lent: Arc<Lent>,
    answer: Answer,
}

impl CustomOp {
    /// What to do.
    pub fn kind(&self) -> CustomKind {
        self.kind
    }

    /// Byte offset on the leaf.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes; 0 for a flush.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it is about no bytes: a flush.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Calls `use_data` with the bytes of a write. `None`: it is no write, or its time is over.
    pub fn with_data<R>(&self, use_data: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let span = self.lent.lock();
        let data = span.filter(|_| self.kind == CustomKind::Write)?;
        // SAFETY: the request's memory is lent while the lock is held and the span is there; a
        // write's is only read.
        Some(use_data(unsafe { std::slice::from_raw_parts(data.0, self.len as usize) }))
    }

    /// It is done. Of a read, which needs its bytes, this is a failure.
    pub fn done(self) {
        let is_read = self.kind == CustomKind::Read;
        self.end(if is_read { -i64::from(libc::EIO) } else { self.len as i64 });
    }

    /// A read is done: these are its bytes. Any other number than was asked for is a failure.
    pub fn done_with(self, bytes: &[u8]) {
        let is_right = self.kind == CustomKind::Read && bytes.len() as u64 == self.len;
        if !is_right {
            tracing::error!(
                kind = ?self.kind, asked = self.len, given = bytes.len(),
                "a custom leaf answers with the wrong number of bytes"
            );
            return self.end(-i64::from(libc::EIO));
        }
        let span = self.lent.lock();
        if let Some(data) = *span {
            // SAFETY: `len` bytes are lent while the lock is held and the span is there, and
            // nobody else uses them: the bytes given are somebody else's.
            unsafe { data.0.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        }
        drop(span);
        self.end(self.len as i64);
    }

    /// It has failed. Without an errno of the system's, with the one that the kind stands for, or
    /// `EIO`.
    pub fn fail(self, error: io::Error) {
        let errno = match (error.raw_os_error(), error.kind()) {
            // Those that would have it asked again, for ever, and what is no errno.
            (Some(libc::EAGAIN | libc::EINTR), _) => libc::EIO,
            (Some(errno), _) if (1..4096).contains(&errno) => errno,
            (_, io::ErrorKind::Unsupported) => libc::EOPNOTSUPP,
            (_, io::ErrorKind::TimedOut) => libc::ETIMEDOUT,
            (_, io::ErrorKind::NotConnected) => libc::ENOTCONN,
            (_, io::ErrorKind::StorageFull) => libc::ENOSPC,
            _ => libc::EIO,
        };
        self.end(-i64::from(errno));
    }

    fn end(&self, result: i64) {
        // The span goes first: from now on the memory is the request's again.
        if self.lent.lock().take().is_some() {
            self.answer.give(result);
        }
    }
}

impl Drop for CustomOp {
    fn drop(&mut self) {
        self.end(-i64::from(libc::EIO));
    }
}

impl fmt::Debug for CustomOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CustomOp { kind, offset, len, .. } = self;
        write!(f, "CustomOp({kind:?} {offset}+{len})")
    }
}

/// Memory of a request, while an operation has it.
struct Lent(Mutex<Option<Span>>);

// SAFETY: the memory is used by whoever holds the lock, on any thread, and only while the span is
// there; the request waits until it is gone.
unsafe impl Send for Lent {}
// SAFETY: as above.
unsafe impl Sync for Lent {}

impl Lent {
    fn lock(&self) -> MutexGuard<'_, Option<Span>> {
        lock(&self.0)
    }
}

/// Where the answer of an operation goes.
struct Answer {
    id: u32,
    shared: Arc<Shared>,
}

impl Answer {
    fn give(&self, result: i64) {
        self.shared.done().push((self.id, result));
        // What is answered in submit() is taken right behind it.
        let is_seen = self.shared.is_submitting.load(Ordering::Relaxed)
            && self.shared.thread.get() == Some(&thread::current().id());
        if !is_seen {
            self.shared.seat.bell().ring();
        }
    }
}

/// What a queue's link and the operations that it has given away share.
struct Shared {
    seat: Seat,
    done: Mutex<Vec<(u32, i64)>>,
    /// The queue's.
    thread: OnceLock<ThreadId>,
    is_submitting: AtomicBool,
    /// The leaf is closed: the link ends.
    is_gone: AtomicBool,
}

impl Shared {
    fn done(&self) -> MutexGuard<'_, Vec<(u32, i64)>> {
        lock(&self.done)
    }
}

/// The engine of a custom leaf, and what each queue has of it.
pub struct Custom {
    engine: Arc<dyn CustomEngine>,
    queues: Box<[Arc<Shared>]>,
}

impl Custom {
    pub(crate) fn new(engine: Box<dyn CustomEngine>, queues: usize) -> io::Result<Custom> {
        let shared = || {
            Ok(Arc::new(Shared {
                seat: Seat::new()?,
                done: Mutex::default(),
                thread: OnceLock::new(),
                is_submitting: AtomicBool::new(false),
                is_gone: AtomicBool::new(false),
            }))
        };
        let queues = (0..queues).map(|_| shared()).collect::<io::Result<_>>()?;
        Ok(Custom { engine: engine.into(), queues })
    }

    pub(super) fn engine(&self) -> &dyn CustomEngine {
        &*self.engine
    }

    /// # Safety
    /// As [`super::Engine::submit`].
    pub(super) unsafe fn submit(&self, io: &LeafIo, turn: &mut Turn) -> Submitted {
        let Some(shared) = self.queues.get(io.queue) else {
            return Submitted::Done(-i64::from(libc::EIO));
        };
        shared.seat.submit(io, turn, || {
            let _ = shared.thread.set(thread::current().id());
            Box::new(CustomLink {
                engine: self.engine.clone(),
                shared: shared.clone(),
                under_way: Slab::default(),
                rung: Box::new(0),
                is_listening: false,
                is_closing: false,
            })
        })
    }
}

impl Drop for Custom {
    fn drop(&mut self) {
        for shared in &self.queues {
            shared.is_gone.store(true, Ordering::Release);
            shared.seat.bell().ring();
        }
    }
}

/// An operation that the engine has.
struct UnderWay {
    part: u32,
    since_ns: u64,
    lent: Arc<Lent>,
}

/// What a custom leaf has on a queue.
struct CustomLink {
    engine: Arc<dyn CustomEngine>,
    shared: Arc<Shared>,
    under_way: Slab<UnderWay>,
    /// Where the kernel writes how often the bell was rung; boxed because its address is given
    /// away.
    rung: Box<u64>,
    is_listening: bool,
    is_closing: bool,
}

impl CustomLink {
    fn take_answers(&mut self, out: &mut Finished) {
        for (id, result) in mem::take(&mut *self.shared.done()) {
            if let Some(op) = self.under_way.remove(id) {
                out.push_part(op.part, result);
            }
        }
    }
}

impl Link for CustomLink {
    fn submit(&mut self, io: &LeafIo, now_ns: u64, _: &mut Finished) {
        let kind = match io.op {
            LeafOp::Read => CustomKind::Read,
            LeafOp::Write => CustomKind::Write,
            LeafOp::Flush => CustomKind::Flush,
            LeafOp::Discard => CustomKind::Discard,
            LeafOp::Zero { no_hole } => CustomKind::Zero { no_hole },
        };
        let lent = Arc::new(Lent(Mutex::new(Some(io.data))));
        let op = UnderWay { part: io.part, since_ns: now_ns, lent: lent.clone() };
        let answer = Answer { id: self.under_way.insert(op), shared: self.shared.clone() };
        self.shared.is_submitting.store(true, Ordering::Relaxed);
        let op = CustomOp { kind, offset: io.offset, len: io.len, lent, answer };
        // An engine that panics has dropped the operation, which fails, and nothing else of the
        // queue was touched: the other leaves go on.
        if catch_unwind(AssertUnwindSafe(|| self.engine.submit(op))).is_err() {
            tracing::error!(?kind, "a custom leaf panicked: its operation fails");
        }
        self.shared.is_submitting.store(false, Ordering::Relaxed);
    }

    fn completed(&mut self, _: Part, _: i32, _: &mut Finished) {
        self.is_listening = false;
        self.is_closing |= self.shared.is_gone.load(Ordering::Acquire);
    }

    fn turn(&mut self, port: &mut Port<'_>, out: &mut Finished) {
        self.take_answers(out);
        if !self.is_listening && !self.is_closing {
            self.is_listening = true;
            let entry = self.shared.seat.bell().entry(&mut self.rung);
            // SAFETY: the count is boxed, and the link is over only when this has completed.
            unsafe { port.push(Part::Bell, entry) };
        }
    }

    /// What takes too long fails. Not while the engine uses its memory: the next tick sees it again.
    fn tick(&mut self, now_ns: u64, out: &mut Finished) {
        let limit_ns = u64::try_from(self.engine.time_limit().as_nanos()).unwrap_or(u64::MAX);
        let is_late = |op: &UnderWay| now_ns.saturating_sub(op.since_ns) > limit_ns;
        let late: Vec<u32> =
            self.under_way.iter().filter(|(_, op)| is_late(op)).map(|(id, _)| id).collect();
        for id in late {
            let Some(op) = self.under_way.get(id) else { continue };
            let Ok(mut span) = op.lent.0.try_lock() else { continue };
            // Nothing: it is answered, and the answer is about to come.
            if span.take().is_some() {
                drop(span);
                if let Some(op) = self.under_way.remove(id) {
                    out.push_part(op.part, -i64::from(libc::ETIMEDOUT));
                }
            }
        }
    }

    fn is_timed(&self) -> bool {
        !self.under_way.is_empty()
    }

    fn close(&mut self, _: u64, _: &mut Finished) {
        self.is_closing = true;
        self.shared.seat.leave();
        self.shared.seat.bell().ring();
    }

    fn is_over(&self) -> bool {
        self.is_closing && !self.is_listening && self.under_way.is_empty()
    }
}
