//! Engines: the code that reaches each kind of leaf. Each engine is one file or folder, and all
//! have the same entry points.
//!
//! `submit` starts one operation; it answers at once, or leaves the operation with the ring or a
//! session. The queue calls `finish` when the time of a deferred operation has come.
//! `flush_blocking`, `probe` and `identity` serve the control side. A new engine is a file here, a
//! variant of [`Engine`], and an arm in each of its methods.

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
mod scsi_disk;
#[cfg_attr(
    not(feature = "internals"),
    allow(dead_code, unreachable_pub, reason = "public with `internals`")
)]
pub(crate) mod session;
pub mod sim;

pub use custom::{CustomEngine, CustomKind, CustomOp};
pub use io::{HOLE, LeafIo, LeafOp, Properties, Submitted, ZERO};
#[cfg(feature = "internals")]
#[doc(hidden)]
pub use session::sessions;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub use session::turn::Turn;
#[cfg(not(feature = "internals"))]
use session::turn::Turn;
pub use session::uri;

use std::time::Duration;

use blkswitch_core::multipath::outcome::is_path_error;

/// The engine of a leaf. `repr(u8)` keeps the tag in its own byte, as for [`crate::request::Op`].
#[repr(u8)]
pub enum Engine {
    /// A placeholder for a leaf that could not be reached when it was opened.
    Absent(Box<absent::AbsentEngine>),
    /// An engine that the embedding program supplies ([`CustomEngine`]).
    Custom(Box<custom::Custom>),
    /// A regular file or block device, through io_uring.
    File(file::FileEngine),
    /// A logical unit of an iSCSI target. The queues' rings drive its sessions.
    Iscsi(Box<iscsi::IscsiEngine>),
    /// Anonymous memory of this process.
    Memory(memory::MemoryEngine),
    /// An export of an NBD server. The queues' rings drive its connections.
    Nbd(Box<nbd::NbdEngine>),
    /// Discards writes; reads return zeroes.
    Null(null::NullEngine),
    /// Memory that injects faults and delays, for tests.
    Sim(Box<sim::SimEngine>),
}

/// Whether an errno to a write says that a file system, disk, export or unit is read-only.
fn is_read_only(errno: i32) -> bool {
    matches!(errno, libc::EROFS | libc::EPERM)
}

impl Engine {
    /// See [`file::FileEngine`]. Other engines have no locks.
    pub(crate) fn set_reader_lock(&self, held: bool) {
        if let Engine::File(engine) = self {
            engine.set_reader_lock(held);
        }
    }

    /// Starts one operation.
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

    /// Completes an operation that was deferred with
    /// [`Ring::defer`](crate::sys::ring::Ring::defer). Returns a result as in [`Submitted::Done`].
    ///
    /// # Safety
    /// As for [`Engine::submit`], with the `io` that was submitted.
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

    /// The allocation status of the whole leaf as NBD status flags, if it is known without asking
    /// the leaf. `None` if [`Engine::allocation`] must ask.
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

    /// Returns the allocation status at `offset` as NBD status flags, and the number of bytes (1 to
    /// `len`) that have this status. May block, so it is never called on a queue's thread.
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

    /// Whether an operation may occupy a worker thread of the kernel until it completes
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

    /// Makes all completed writes durable. Blocks.
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

    /// Checks whether the leaf can be reached. A path checker calls this for paths that are up and
    /// for paths that have failed.
    ///
    /// Blocks for at most `timeout`, except for files and block devices, whose reads cannot be
    /// limited. The control side calls it, one call at a time, also while queues submit. An I/O
    /// error that fails no path, like a bad block, counts as success.
    ///
    /// # Errors
    /// `EROFS` if the leaf can be reached but not written. Any other error means that it cannot be
    /// reached, or is no longer the volume that was opened.
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

    /// Whether a leaf that has refused a write can be written now. Blocks, as [`Engine::probe`].
    /// `Err` if the leaf cannot be reached.
    pub fn can_be_written(&self, timeout: Duration) -> std::io::Result<bool> {
        match self {
            Engine::Absent(engine) => {
                engine.found().map_or(Ok(true), |engine| engine.can_be_written(timeout))
            }
            Engine::File(engine) => Ok(engine.can_be_written()),
            Engine::Nbd(engine) => engine.can_be_written(timeout),
            // The probes of these engines find that out, if it can be found out at all.
            Engine::Custom(_) | Engine::Iscsi(_) | Engine::Memory(_) => Ok(true),
            Engine::Null(_) | Engine::Sim(_) => Ok(true),
        }
    }

    /// Whether an errno to a write means that the leaf has become read-only. A disk may answer so
    /// for another reason, too: then [`Engine::can_be_written`] says that it can be written.
    #[cold]
    pub fn refuses_writes_with(&self, errno: i32) -> bool {
        match self {
            Engine::File(engine) => engine.refuses_writes_with(errno),
            Engine::Absent(engine) => {
                engine.found().is_some_and(|found| found.refuses_writes_with(errno))
            }
            Engine::Custom(_) | Engine::Iscsi(_) | Engine::Memory(_) => is_read_only(errno),
            Engine::Nbd(_) | Engine::Null(_) | Engine::Sim(_) => is_read_only(errno),
        }
    }

    /// Whether the leaf can be reached, as far as is known without asking it. `false` while the
    /// last attempt to connect to its server has failed. Never blocks.
    pub fn is_reachable(&self) -> bool {
        match self {
            Engine::Absent(engine) => engine.found().is_some_and(Engine::is_reachable),
            Engine::Iscsi(engine) => engine.is_reachable(),
            Engine::Nbd(engine) => engine.is_reachable(),
            Engine::Sim(engine) => !engine.is_cut(),
            Engine::Custom(_) | Engine::File(_) | Engine::Memory(_) | Engine::Null(_) => true,
        }
    }

    /// Why the server of the leaf cannot be reached or is not used: the result of the last attempt
    /// to connect again. `None` while no connection is missing. Never blocks for long.
    pub fn trouble(&self) -> Option<String> {
        match self {
            Engine::Absent(engine) => engine.found().and_then(Engine::trouble),
            Engine::Iscsi(engine) => engine.trouble(),
            Engine::Nbd(engine) => engine.trouble(),
            Engine::Custom(_) | Engine::File(_) | Engine::Memory(_) => None,
            Engine::Null(_) | Engine::Sim(_) => None,
        }
    }

    /// Number of writes in doubt that went on only because their time to settle was over
    /// (docs/leaves.md).
    pub fn doubted_writes(&self) -> u64 {
        match self {
            Engine::Absent(engine) => engine.found().map_or(0, Engine::doubted_writes),
            Engine::Iscsi(engine) => engine.doubted_writes(),
            Engine::Nbd(engine) => engine.doubted_writes(),
            Engine::Custom(_) | Engine::File(_) | Engine::Memory(_) => 0,
            Engine::Null(_) | Engine::Sim(_) => 0,
        }
    }

    /// Sends a query to the SCSI unit behind the leaf: a command without outgoing data that changes
    /// nothing. Returns the number of bytes that came into `answer`. Blocks until the answer, or
    /// until `timeout` is over.
    ///
    /// # Errors
    /// `Unsupported` if the leaf is no SCSI unit that this library talks to itself. Otherwise the
    /// errno that the unit's sense data means, or the loss of the connection.
    pub fn scsi_query(
        &self,
        cdb: &[u8],
        answer: &mut [u8],
        timeout: Duration,
    ) -> std::io::Result<usize> {
        match self {
            Engine::Absent(engine) => match engine.found() {
                Some(engine) => engine.scsi_query(cdb, answer, timeout),
                None => Err(std::io::Error::from_raw_os_error(libc::ENOTCONN)),
            },
            Engine::Iscsi(engine) => engine.query(cdb, answer, timeout),
            Engine::Custom(_) | Engine::File(_) | Engine::Memory(_) => {
                Err(std::io::ErrorKind::Unsupported.into())
            }
            Engine::Nbd(_) | Engine::Null(_) | Engine::Sim(_) => {
                Err(std::io::ErrorKind::Unsupported.into())
            }
        }
    }

    /// How often the SCSI unit has told on this path that its map of blocks to port groups may have
    /// changed (3F/15, 2A/06), or has refused a command because the path's group does not serve its
    /// blocks now (04/0A to 04/0C). Never blocks.
    pub fn map_notices(&self) -> u64 {
        match self {
            Engine::Absent(engine) => engine.found().map_or(0, Engine::map_notices),
            Engine::Iscsi(engine) => engine.map_notices(),
            Engine::Custom(_) | Engine::File(_) | Engine::Memory(_) => 0,
            Engine::Nbd(_) | Engine::Null(_) | Engine::Sim(_) => 0,
        }
    }

    /// The identity of the volume behind the leaf, such as a disk's world wide name. It is the same
    /// over every path to the volume. `None` if it is not known. Two leaves with different
    /// identities are two volumes.
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

    /// The scope within which [`Engine::identity`] is unique. `None` if it is unique in the world.
    /// `Some(target)` for a unit of an iSCSI target that has no unique name of its own. The same
    /// identity in two scopes may name two volumes.
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

    /// Whether the engine can move data directly from and to pages in the ring's table of buffers.
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

    /// Whether moving data directly from and to such pages is also faster than copying it.
    pub fn gains_by_pages(&self) -> bool {
        matches!(self, Engine::File(engine) if engine.gains_by_pages())
    }

    /// Switches the file to direct I/O, unless a user has chosen another mode. Fails if direct I/O
    /// does not work with the `block` bytes that were announced to clients ([`mode`]).
    pub fn prefer_direct(&self, block: u32) -> Result<(), mode::Unfit> {
        match self {
            Engine::File(engine) => engine.prefer_direct(block),
            _ => Ok(()),
        }
    }

    /// Sets the mode that a user has chosen.
    pub fn choose_mode(&self, block: u32, direct: bool) -> Result<(), mode::Unfit> {
        match self {
            Engine::File(engine) => engine.choose_mode(block, direct),
            _ => Ok(()),
        }
    }

    /// Whether written data stays in the page cache of this machine.
    pub fn is_cached(&self) -> bool {
        matches!(self, Engine::File(engine) if engine.is_cached())
    }

    /// Whether single writes can be made durable (FUA).
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

    /// Whether the leaf can discard. `None` if only the answer to a discard tells. Never blocks.
    pub fn can_discard(&self) -> Option<bool> {
        match self {
            // Not known yet, so discards are offered.
            Engine::Absent(engine) => engine.found().map_or(Some(true), Engine::can_discard),
            Engine::Custom(_) => None,
            Engine::File(engine) => engine.can_discard(),
            Engine::Iscsi(engine) => Some(engine.can_discard()),
            Engine::Memory(_) | Engine::Null(_) => Some(true),
            Engine::Nbd(engine) => Some(engine.can_discard()),
            Engine::Sim(engine) => Some(engine.can_discard()),
        }
    }

    /// Whether completed writes can be lost without a flush. A leaf without such a cache is never
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

    /// Whether the flushed cache is on this machine and forgets writes that it could not write
    /// back. A later flush then succeeds although data is lost, and no other path has that data.
    pub fn forgets_failed_writes(&self) -> bool {
        match self {
            Engine::Absent(engine) => engine.found().is_some_and(Engine::forgets_failed_writes),
            Engine::File(engine) => engine.forgets_failed_writes(),
            Engine::Custom(_) | Engine::Iscsi(_) => false,
            Engine::Memory(_) | Engine::Nbd(_) | Engine::Null(_) | Engine::Sim(_) => false,
        }
    }

    /// Whether a flush that failed with `errno` may have dropped writes that it had to cover. If
    /// so, a later successful flush does not mean that they are durable.
    pub fn may_have_dropped_writes(&self, errno: i32) -> bool {
        match self {
            Engine::Absent(engine) => {
                engine.found().is_some_and(|found| found.may_have_dropped_writes(errno))
            }
            Engine::File(engine) => engine.forgets_failed_writes(),
            Engine::Custom(_) => !is_path_error(errno),
            // As with NBD: the storage of the target failed.
            Engine::Iscsi(_) => matches!(errno, libc::EREMOTEIO | libc::ENODATA | libc::ENOSPC),
            // The server's storage failed, and its cache may forget failed writes, too. A flush
            // without an answer has covered nothing.
            Engine::Nbd(_) => matches!(errno, libc::EREMOTEIO | libc::ENOSPC),
            Engine::Memory(_) | Engine::Null(_) | Engine::Sim(_) => false,
        }
    }
}
