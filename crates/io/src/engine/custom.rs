//! Custom leaves: a [`CustomEngine`] of the embedding program carries out the operations.
//!
//! Contract: a faulty engine cannot break a rule of the data path. Answering an operation consumes
//! it, so it is answered once. An operation that is dropped fails, also if a panic drops it. An
//! operation that takes longer than the engine's time limit fails, and a later answer is ignored. A
//! read succeeds only with exactly as many bytes as were asked for. This module copies them, so a
//! client never sees memory that the engine has not filled.
//!
//! A custom leaf costs an allocation per operation and a lock per answer. The other leaves of this
//! crate need neither. The lock is held for a copy at most, and a queue never waits for it.

use std::fmt;
use std::io;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread::{self, ThreadId};
use std::time::Duration;

use super::session::sessions::{Finished, Session, SessionOp, SessionRing, SessionSlot};
use super::{LeafIo, LeafOp, Submitted};
use crate::engine::session::turn::Turn;
use crate::request::Span;
use crate::sys::lock::lock;
use crate::sys::slab::Slab;

/// The implementation of a custom leaf.
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
    /// Starts an operation: carries it out at once, or keeps it and answers later from any thread.
    /// The operation lies within the leaf's [`Properties`](super::Properties). Must not block,
    /// because it runs on the thread of a queue, which also serves other requests.
    fn submit(&self, op: CustomOp);

    /// Whether completed writes can be lost without a flush. A leaf without such a cache is never
    /// flushed.
    fn has_cache(&self) -> bool {
        true
    }

    /// Makes all completed writes durable. Blocks. The control side calls this when the leaf leaves
    /// a table.
    ///
    /// # Errors
    /// The writes may not be durable.
    fn flush_blocking(&self) -> io::Result<()> {
        if self.has_cache() { Err(io::ErrorKind::Unsupported.into()) } else { Ok(()) }
    }

    /// Checks for a path checker whether the leaf can be reached. May block for `timeout`.
    ///
    /// # Errors
    /// The leaf cannot be reached.
    fn probe(&self, timeout: Duration) -> io::Result<()> {
        let _ = timeout;
        Ok(())
    }

    /// The identity of the volume behind the leaf, the same over every path. `None` if it is not
    /// known.
    fn identity(&self) -> Option<String> {
        None
    }

    /// The time after which an unanswered operation fails with `ETIMEDOUT`. It is checked once a
    /// second.
    fn time_limit(&self) -> Duration {
        Duration::from_secs(30)
    }
}

/// The kind of an operation on a custom leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CustomKind {
    /// Read the range. Answer with [`CustomOp::done_with`].
    Read,
    /// Write the bytes of [`CustomOp::with_data`] to the range.
    Write,
    /// Make completed writes durable.
    Flush,
    /// The range is not needed any more. This is a hint, which the engine may decline with
    /// `EOPNOTSUPP`.
    Discard,
    /// Make the range read as zeroes. After `EOPNOTSUPP`, the caller writes zeroes instead.
    Zero {
        /// Whether the range must stay allocated.
        no_hole: bool,
    },
}

/// One operation on a custom leaf. If it is dropped without an answer, it fails with `EIO`.
pub struct CustomOp {
    kind: CustomKind,
    offset: u64,
    len: u64,
    lent: Arc<Lent>,
    answer: Answer,
}

impl CustomOp {
    /// The kind of the operation.
    pub fn kind(&self) -> CustomKind {
        self.kind
    }

    /// The start of the range on the leaf, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The length of the range in bytes. 0 for a flush.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the range is empty, as for a flush.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Calls `use_data` with the bytes of a write. `None` for other operations, and after the time
    /// limit.
    pub fn with_data<R>(&self, use_data: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let span = self.lent.lock();
        let data = span.filter(|_| self.kind == CustomKind::Write)?;
        // SAFETY: the request lends its memory while the lock is held and the span is there. The
        // memory of a write is only read.
        Some(use_data(unsafe { std::slice::from_raw_parts(data.0, self.len as usize) }))
    }

    /// Answers that the operation succeeded. A read fails with `EIO`, because it needs its bytes.
    pub fn done(self) {
        let is_read = self.kind == CustomKind::Read;
        self.end(if is_read { -i64::from(libc::EIO) } else { self.len as i64 });
    }

    /// Answers a read with its bytes. The read fails with `EIO` if their number is not
    /// [`CustomOp::len`].
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
            // SAFETY: the request lends `len` bytes while the lock is held and the span is there,
            // and no other code uses them. `bytes` is other memory.
            unsafe { data.0.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        }
        drop(span);
        self.end(self.len as i64);
    }

    /// Answers that the operation failed. The client gets the errno of `error`, or else the errno
    /// of its kind, or `EIO`.
    pub fn fail(self, error: io::Error) {
        let errno = match (error.raw_os_error(), error.kind()) {
            // These would make the pipeline repeat the operation for ever.
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
        // Take the span first: from then on the memory belongs to the request again.
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

/// The memory of a request, as long as an operation may use it.
struct Lent(Mutex<Option<Span>>);

// SAFETY: only the holder of the lock uses the memory, on any thread, and only while the span is
// there. The request waits until it is gone.
unsafe impl Send for Lent {}
// SAFETY: as above.
unsafe impl Sync for Lent {}

impl Lent {
    fn lock(&self) -> MutexGuard<'_, Option<Span>> {
        lock(&self.0)
    }
}

/// The way of an answer back to the queue.
struct Answer {
    id: u32,
    shared: Arc<Shared>,
}

impl Answer {
    fn give(&self, result: i64) {
        self.shared.done().push((self.id, result));
        // The queue takes an answer that is given within submit() right after it, so it needs no
        // wake-up.
        let is_seen = self.shared.is_submitting.load(Ordering::Relaxed)
            && self.shared.thread.get() == Some(&thread::current().id());
        if !is_seen {
            self.shared.slot.waker().wake();
        }
    }
}

/// The state that a queue's session shares with the operations at the engine.
struct Shared {
    slot: SessionSlot,
    done: Mutex<Vec<(u32, i64)>>,
    /// The thread of the queue.
    thread: OnceLock<ThreadId>,
    is_submitting: AtomicBool,
    /// Whether the leaf is closed. Then the session ends.
    is_gone: AtomicBool,
}

impl Shared {
    fn done(&self) -> MutexGuard<'_, Vec<(u32, i64)>> {
        lock(&self.done)
    }
}

/// The engine of a custom leaf, with its state for each queue.
pub struct Custom {
    engine: Arc<dyn CustomEngine>,
    queues: Box<[Arc<Shared>]>,
}

impl Custom {
    pub(crate) fn new(engine: Box<dyn CustomEngine>, queues: usize) -> io::Result<Custom> {
        let shared = || {
            Ok(Arc::new(Shared {
                slot: SessionSlot::new()?,
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
        shared.slot.submit(io, turn, || {
            let _ = shared.thread.set(thread::current().id());
            Box::new(CustomSession {
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
            shared.slot.waker().wake();
        }
    }
}

/// An operation at the engine.
struct UnderWay {
    part: u32,
    since_ns: u64,
    lent: Arc<Lent>,
}

/// The session of a custom leaf on one queue.
struct CustomSession {
    engine: Arc<dyn CustomEngine>,
    shared: Arc<Shared>,
    under_way: Slab<UnderWay>,
    /// The kernel writes the count of the eventfd here. It is boxed because the kernel keeps the
    /// address.
    rung: Box<u64>,
    is_listening: bool,
    is_closing: bool,
}

impl CustomSession {
    fn take_answers(&mut self, out: &mut Finished) {
        for (id, result) in mem::take(&mut *self.shared.done()) {
            if let Some(op) = self.under_way.remove(id) {
                out.push_part(op.part, result);
            }
        }
    }
}

impl Session for CustomSession {
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
        // An engine that panics drops the operation, which then fails. The panic has touched no
        // state of the queue, so other leaves go on.
        if catch_unwind(AssertUnwindSafe(|| self.engine.submit(op))).is_err() {
            tracing::error!(?kind, "a custom leaf panicked: its operation fails");
        }
        self.shared.is_submitting.store(false, Ordering::Relaxed);
    }

    fn completed(&mut self, _: SessionOp, _: i32, _: &mut Finished) {
        self.is_listening = false;
        self.is_closing |= self.shared.is_gone.load(Ordering::Acquire);
    }

    fn turn(&mut self, ring: &mut SessionRing<'_>, out: &mut Finished) {
        self.take_answers(out);
        if !self.is_listening && !self.is_closing {
            self.is_listening = true;
            let entry = self.shared.slot.waker().entry(&mut self.rung);
            // SAFETY: the count is boxed, and the session is over only after this read has
            // completed.
            unsafe { ring.push(SessionOp::Wake, entry) };
        }
    }

    /// Fails late operations. An operation whose memory the engine uses now is left to the next
    /// tick.
    fn tick(&mut self, now_ns: u64, out: &mut Finished) {
        let limit_ns = u64::try_from(self.engine.time_limit().as_nanos()).unwrap_or(u64::MAX);
        let is_late = |op: &UnderWay| now_ns.saturating_sub(op.since_ns) > limit_ns;
        let late: Vec<u32> =
            self.under_way.iter().filter(|(_, op)| is_late(op)).map(|(id, _)| id).collect();
        for id in late {
            let Some(op) = self.under_way.get(id) else { continue };
            let Ok(mut span) = op.lent.0.try_lock() else { continue };
            // `None`: the operation is answered already, and the queue will take that answer soon.
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
        self.shared.slot.leave();
        self.shared.slot.waker().wake();
    }

    fn is_over(&self) -> bool {
        self.is_closing && !self.is_listening && self.under_way.is_empty()
    }
}
