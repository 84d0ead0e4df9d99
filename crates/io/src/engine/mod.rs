//! Engines: how a leaf is reached. One file each; all have the same entry points.
//!
//! `submit` starts one operation and either answers at once or leaves it with the ring; `finish` is
//! called when a deferred operation's time has come; `flush_blocking`, `probe` and `identity` serve
//! the control side. A new engine is one file and one variant here.

pub mod absent;
pub(crate) mod custom;
mod discard;
pub(crate) mod error;
pub mod file;
pub(crate) mod io;
pub mod iscsi;
pub mod memory;
pub mod mode;
pub mod nbd;
pub mod null;
pub(crate) mod options;
#[cfg_attr(
    not(feature = "internals"),
    allow(dead_code, unreachable_pub, reason = "public with `internals`")
)]
pub(crate) mod session;
pub mod sim;

pub use custom::{CustomEngine, CustomKind, CustomOp};
pub use io::{HOLE, LeafIo, LeafOp, Limits, Submitted, ZERO};
#[cfg(feature = "internals")]
#[doc(hidden)]
pub use session::links;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub use session::turn::Turn;
#[cfg(not(feature = "internals"))]
use session::turn::Turn;
pub use session::uri;

use std::time::Duration;

use blkswitch_core::multipath::outcome::is_path_error;

/// How a leaf is reached. (A byte of its own: as [`crate::request::Op`].)
#[repr(u8)]
pub enum Engine {
    /// One that could not be reached when it was wanted.
    Absent(Box<absent::AbsentEngine>),
    /// One of somebody else's.
    Custom(Box<custom::Custom>),
    /// A file or block device, by io_uring.
    File(file::FileEngine),
    /// A logical unit of an iSCSI target, by sessions that the queues' rings drive.
    Iscsi(Box<iscsi::IscsiEngine>),
    /// Memory of this process.
    Memory(memory::MemoryEngine),
    /// An export of an NBD server, by connections on the queues' rings.
    Nbd(Box<nbd::NbdEngine>),
    /// Nothing.
    Null(null::NullEngine),
    /// Memory that misbehaves.
    Sim(Box<sim::SimEngine>),
}

impl Engine {
    /// See [`file::FileEngine`]; other engines have no locks.
    pub(crate) fn set_reader_lock(&self, held: bool) {
        if let Engine::File(engine) = self {
            engine.set_reader_lock(held);
        }
    }

    /// Starts an operation.
    ///
    /// # Safety
    /// `io.data` is valid for `io.len` bytes, and stays so until the operation is complete.
    #[inline]
    pub unsafe fn submit(&self, io: &LeafIo, turn: &mut Turn) -> Submitted {
        // SAFETY: passed on to the caller's promise, in each arm.
        unsafe {
            match self {
                Engine::Absent(engine) => engine.submit(io, turn),
                Engine::Custom(engine) => engine.submit(io, turn),
                Engine::File(engine) => engine.submit(io, turn),
                Engine::Iscsi(engine) => engine.submit(io, turn),
                Engine::Memory(engine) => engine.submit(io),
                Engine::Nbd(engine) => engine.submit(io, turn),
                Engine::Null(engine) => engine.submit(io),
                Engine::Sim(engine) => engine.submit(io, turn),
            }
        }
    }

    /// Ends an operation that was deferred with [`Ring::defer`](crate::sys::ring::Ring::defer).
    ///
    /// # Safety
    /// As for [`Engine::submit`], with the same `io`.
    pub unsafe fn finish(&self, io: &LeafIo) -> i64 {
        match self {
            // SAFETY: the caller's promise.
            Engine::Absent(engine) => unsafe { engine.finish(io) },
            // SAFETY: the caller's promise.
            Engine::Sim(engine) => unsafe { engine.finish(io) },
            Engine::Custom(_) | Engine::Iscsi(_) => 0,
            Engine::File(_) | Engine::Memory(_) | Engine::Nbd(_) | Engine::Null(_) => 0,
        }
    }

    /// What is known of the allocation anywhere, as NBD's status flags; nothing if the leaf must be
    /// asked ([`Engine::allocation`]).
    pub fn known_allocation(&self) -> Option<u32> {
        match self {
            Engine::File(engine) => engine.known_allocation(),
            Engine::Null(_) => Some(HOLE | ZERO),
            Engine::Absent(engine) => engine.found().map_or(Some(0), Engine::known_allocation),
            Engine::Iscsi(engine) => engine.known_allocation(),
            Engine::Nbd(engine) => engine.known_allocation(),
            Engine::Memory(_) => None,
            Engine::Custom(_) | Engine::Sim(_) => Some(0),
        }
    }

    /// What the allocation is at `offset`: the bytes (1 to `len`) it holds for, and NBD's status
    /// flags. May block: never called on a queue's thread.
    pub fn allocation(&self, offset: u64, len: u64) -> (u64, u32) {
        match self {
            Engine::Absent(engine) => match engine.found() {
                Some(engine) => engine.allocation(offset, len),
                None => (len, 0),
            },
            Engine::File(engine) => engine.allocation(offset, len),
            Engine::Iscsi(engine) => engine.allocation(offset, len),
            Engine::Memory(engine) => engine.allocation(offset, len),
            Engine::Nbd(engine) => engine.allocation(offset, len),
            other => (len, other.known_allocation().unwrap_or(0)),
        }
    }

    /// Whether an operation of it may occupy a worker thread of the kernel for as long as it takes
    /// ([`crate::leaf::Leaf::is_full`]).
    #[inline]
    pub fn takes_workers(&self) -> bool {
        match self {
            Engine::File(engine) => engine.takes_workers(),
            Engine::Absent(engine) => engine.found().is_some_and(Engine::takes_workers),
            Engine::Custom(_) | Engine::Iscsi(_) | Engine::Memory(_) | Engine::Nbd(_) => false,
            Engine::Null(_) | Engine::Sim(_) => false,
        }
    }

    /// Makes all completed writes stable, blocking.
    pub fn flush_blocking(&self) -> std::io::Result<()> {
        match self {
            Engine::Absent(engine) => engine.flush_blocking(),
            Engine::Custom(engine) => engine.engine().flush_blocking(),
            Engine::File(engine) => engine.flush_blocking(),
            Engine::Iscsi(engine) => engine.flush_blocking(),
            Engine::Nbd(engine) => engine.flush_blocking(),
            Engine::Sim(engine) => engine.flush_blocking(),
            Engine::Memory(_) | Engine::Null(_) => Ok(()),
        }
    }

    /// Looks whether the leaf can be reached: what a path checker asks, of a path that is up as of
    /// one that failed. Blocks, for `timeout` at most where that can be limited (a read of a file
    /// or block device cannot). Called from the control side, also while queues submit; one at a
    /// time. An answer that fails no path, like a bad block, is an answer. Errors: it cannot be
    /// reached, or is not what it was when it was opened. `EROFS`: it is, but cannot be written.
    pub fn probe(&self, timeout: Duration) -> std::io::Result<()> {
        match self {
            Engine::Absent(engine) => engine.probe(timeout),
            Engine::Custom(engine) => engine.engine().probe(timeout),
            Engine::File(engine) => engine.probe(),
            Engine::Iscsi(engine) => engine.probe(timeout),
            Engine::Nbd(engine) => engine.probe(timeout),
            Engine::Sim(engine) => engine.probe(timeout),
            Engine::Memory(_) | Engine::Null(_) => Ok(()),
        }
    }

    /// Whether a leaf that has refused a write can be written. Blocks, as [`Engine::probe`]. `Err` if
    /// it cannot be reached.
    pub fn can_be_written(&self, timeout: Duration) -> std::io::Result<bool> {
        match self {
            Engine::Absent(engine) => {
                engine.found().map_or(Ok(true), |engine| engine.can_be_written(timeout))
            }
            Engine::File(engine) => Ok(engine.can_be_written()),
            Engine::Nbd(engine) => engine.can_be_written(timeout),
            // Their probes look, or nobody can.
            Engine::Custom(_) | Engine::Iscsi(_) | Engine::Memory(_) => Ok(true),
            Engine::Null(_) | Engine::Sim(_) => Ok(true),
        }
    }

    /// Whether the leaf can be reached, as far as is known without asking it: `false` while the last
    /// attempt to connect to its server has failed. Never blocks.
    pub fn is_reachable(&self) -> bool {
        match self {
            Engine::Absent(engine) => engine.found().is_some_and(Engine::is_reachable),
            Engine::Iscsi(engine) => engine.is_reachable(),
            Engine::Nbd(engine) => engine.is_reachable(),
            Engine::Sim(engine) => !engine.is_cut(),
            Engine::Custom(_) | Engine::File(_) | Engine::Memory(_) | Engine::Null(_) => true,
        }
    }

    /// Why its server cannot be reached, or is not used: what the last attempt to connect again
    /// found. `None` while nothing is missing. Never blocks for long.
    pub fn trouble(&self) -> Option<String> {
        match self {
            Engine::Absent(engine) => engine.found().and_then(Engine::trouble),
            Engine::Iscsi(engine) => engine.trouble(),
            Engine::Nbd(engine) => engine.trouble(),
            Engine::Custom(_) | Engine::File(_) | Engine::Memory(_) => None,
            Engine::Null(_) | Engine::Sim(_) => None,
        }
    }

    /// How many writes in doubt have gone on only because their time was over (docs/leaves.md).
    pub fn doubted_writes(&self) -> u64 {
        match self {
            Engine::Absent(engine) => engine.found().map_or(0, Engine::doubted_writes),
            Engine::Iscsi(engine) => engine.doubted_writes(),
            Engine::Nbd(engine) => engine.doubted_writes(),
            Engine::Custom(_) | Engine::File(_) | Engine::Memory(_) => 0,
            Engine::Null(_) | Engine::Sim(_) => 0,
        }
    }

    /// What names the volume behind the leaf, whatever path leads there (a disk's world wide name);
    /// nothing if that is not known. Two leaves whose identities are known and differ are two
    /// volumes.
    pub fn identity(&self) -> Option<String> {
        match self {
            Engine::Absent(engine) => engine.identity(),
            Engine::Custom(engine) => engine.engine().identity(),
            Engine::File(engine) => engine.volume(),
            Engine::Iscsi(engine) => Some(engine.identity()),
            Engine::Nbd(engine) => Some(engine.identity()),
            Engine::Sim(engine) => engine.volume(),
            Engine::Memory(_) | Engine::Null(_) => None,
        }
    }

    /// Where [`Engine::identity`] is unique, if that is not the world: the name of an iSCSI target
    /// whose unit has no name of its own that is unique. Two leaves with one such identity within
    /// two targets may well be two volumes.
    pub fn unique_within(&self) -> Option<&str> {
        match self {
            Engine::Absent(engine) => engine.found().and_then(Engine::unique_within),
            Engine::Iscsi(engine) => engine.unique_within(),
            Engine::Custom(_)
            | Engine::File(_)
            | Engine::Memory(_)
            | Engine::Nbd(_)
            | Engine::Null(_)
            | Engine::Sim(_) => None,
        }
    }

    /// Whether it can move data from and to pages in the ring's table of buffers, without a copy.
    pub fn takes_pages(&self) -> bool {
        match self {
            Engine::File(engine) => engine.takes_pages(),
            Engine::Custom(_) | Engine::Iscsi(_) => false,
            Engine::Absent(_)
            | Engine::Memory(_)
            | Engine::Nbd(_)
            | Engine::Null(_)
            | Engine::Sim(_) => false,
        }
    }

    /// Whether it costs less so, too.
    pub fn gains_by_pages(&self) -> bool {
        matches!(self, Engine::File(engine) if engine.gains_by_pages())
    }

    /// Goes past the page cache, if nobody has asked for another mode, and if that serves users who
    /// were promised blocks of `block` bytes ([`mode`]).
    pub fn prefer_direct(&self, block: u32) -> Result<(), mode::Unfit> {
        match self {
            Engine::File(engine) => engine.prefer_direct(block),
            _ => Ok(()),
        }
    }

    /// Takes the mode that a user asks for.
    pub fn choose_mode(&self, block: u32, direct: bool) -> Result<(), mode::Unfit> {
        match self {
            Engine::File(engine) => engine.choose_mode(block, direct),
            _ => Ok(()),
        }
    }

    /// Whether it keeps what is written in the page cache of this machine.
    pub fn is_cached(&self) -> bool {
        matches!(self, Engine::File(engine) if engine.is_cached())
    }

    /// Whether writes can be made stable one by one.
    pub fn has_fua(&self) -> bool {
        match self {
            Engine::Absent(engine) => engine.found().is_some_and(Engine::has_fua),
            Engine::File(_) | Engine::Memory(_) | Engine::Null(_) => true,
            Engine::Custom(_) => false,
            Engine::Iscsi(engine) => engine.has_fua(),
            Engine::Nbd(engine) => engine.has_fua(),
            Engine::Sim(engine) => engine.has_fua(),
        }
    }

    /// Whether it can discard, or nothing if only the answer to a discard tells. Never blocks.
    pub fn can_discard(&self) -> Option<bool> {
        match self {
            // Not known yet.
            Engine::Absent(engine) => engine.found().map_or(Some(true), Engine::can_discard),
            Engine::Custom(_) => None,
            Engine::File(engine) => engine.can_discard(),
            Engine::Iscsi(engine) => Some(engine.can_discard()),
            Engine::Memory(_) | Engine::Null(_) => Some(true),
            Engine::Nbd(engine) => Some(engine.can_discard()),
            Engine::Sim(engine) => Some(engine.can_discard()),
        }
    }

    /// Whether completed writes can be lost without a flush. What cannot lose them is never
    /// flushed.
    pub fn has_cache(&self) -> bool {
        match self {
            // Not known yet: an earlier process may have written.
            Engine::Absent(engine) => engine.found().is_none_or(Engine::has_cache),
            Engine::File(_) | Engine::Sim(_) => true,
            Engine::Custom(engine) => engine.engine().has_cache(),
            Engine::Iscsi(engine) => engine.has_cache(),
            Engine::Nbd(engine) => engine.has_cache(),
            Engine::Memory(_) | Engine::Null(_) => false,
        }
    }

    /// Whether the cache that a flush empties is on this side, and forgets writes that it could not
    /// write back: a later flush succeeds, and no other path knows of them.
    pub fn forgets_failed_writes(&self) -> bool {
        match self {
            Engine::Absent(engine) => engine.found().is_some_and(Engine::forgets_failed_writes),
            Engine::File(engine) => engine.forgets_failed_writes(),
            Engine::Custom(_) | Engine::Iscsi(_) => false,
            Engine::Memory(_) | Engine::Nbd(_) | Engine::Null(_) | Engine::Sim(_) => false,
        }
    }

    /// Whether a flush that failed so may have dropped the writes it was to cover, so that a later
    /// success means nothing.
    pub fn may_have_dropped_writes(&self, errno: i32) -> bool {
        match self {
            Engine::Absent(engine) => {
                engine.found().is_some_and(|found| found.may_have_dropped_writes(errno))
            }
            Engine::File(engine) => engine.forgets_failed_writes(),
            Engine::Custom(_) => !is_path_error(errno),
            // As with NBD: the target's storage failed.
            Engine::Iscsi(_) => matches!(errno, libc::EREMOTEIO | libc::ENODATA | libc::ENOSPC),
            // The server's storage failed, and it may be as forgetful. A flush that got no answer
            // covered nothing.
            Engine::Nbd(_) => matches!(errno, libc::EREMOTEIO | libc::ENOSPC),
            Engine::Memory(_) | Engine::Null(_) | Engine::Sim(_) => false,
        }
    }
}
