//! The file engine: a regular file or block device, through io_uring.
//!
//! The kernel reports a failed write-back once to each open file description. So each reader of
//! such errors has its own: one for each queue (for everything except stable writes), one for the
//! stable writes of all queues, and one for the flushes of the control side. None can consume an
//! error that another must see. The first one also holds the lock against other writers.
//!
//! Files in memory (tmpfs) are read and written with plain system calls. Such calls never wait for
//! a device, but io_uring would hand each to a worker thread, because tmpfs has no non-blocking
//! mode.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::ptr;
use std::time::{Duration, Instant};

use io_uring::{opcode, squeue, types};

use super::discard::Discards;
use super::mode::{Mode, Unfit};
use super::scsi_disk;
use super::{LeafIo, LeafOp, Properties, Submitted, is_read_only};
use crate::engine::error::LeafError;
use crate::engine::io::COPY_STEP;
use crate::engine::io::{HOLE, ZERO};
use crate::engine::options::LeafOptions;
use crate::engine::session::turn::Turn;
use crate::sys::buffer::Buffer;
use crate::sys::ring::{Tag, user_data};

const TMPFS_MAGIC: i64 = 0x0102_1994;
const RAMFS_MAGIC: i64 = 0x8584_58f6;
/// `FALLOC_FL_ZERO_RANGE`, `FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE` of fallocate(2). On a block
/// device both write zeroes; only the second may unmap, and it fails where that would take as long
/// as writing.
const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE;
const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
/// Number of file descriptions beyond one per queue: for stable writes, and for the control side.
const SHARED: usize = 2;
/// Largest single transfer in bytes. The kernel itself cuts at 2 GiB less a page.
const TRANSFER_MAX: u64 = 1 << 30;
/// Largest single transfer from or to the page cache, in bytes. The kernel copies such a transfer
/// on the queue's thread, during the submission.
const CACHED_MAX: u64 = 1 << 20;

/// Largest transfer to memory whose latency is not measured, in bytes. Such a transfer is faster
/// than the smallest histogram bucket, and reading the clock would add 7 % to its cost.
const UNTIMED: u64 = 16 << 10;

/// How long to wait for a lock before the file counts as in use. The kernel releases the files of a
/// killed daemon only when it has torn down its rings, a moment after the process has ended.
const LOCK_TIME: Duration = Duration::from_secs(2);
/// Pause between two tries for the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Bytes that a probe reads: at least one block of any disk.
const PROBE_BYTES: usize = 4096;

// ioctls for size, block sizes and read-only state of a block device (linux/fs.h).
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
const BLKSSZGET: libc::c_ulong = 0x1268;
const BLKPBSZGET: libc::c_ulong = 0x127b;
const BLKROGET: libc::c_ulong = 0x125e;
/// Size of a zone in sectors; 0 if the disk has no zones (linux/blkzoned.h).
const BLKGETZONESZ: libc::c_ulong = 0x8004_1284;

/// A leaf in a regular file or on a block device.
pub struct FileEngine {
    /// One file description for each queue, of which the first has the lock. Then one for stable
    /// writes, and one for the control side.
    files: Box<[File]>,
    /// The key by [`FileEngine::key_of`].
    key: String,
    /// Whether the file is in memory, so that plain system calls serve it.
    in_memory: bool,
    /// `Some` for a block device.
    discards: Option<Discards>,
    is_block: bool,
    mode: Mode,
}

/// A path as text. Bytes that are not UTF-8 are written as `\xNN`, so that two paths stay two
/// texts.
pub(crate) fn shown(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text
}

impl FileEngine {
    /// Identifies the file or device behind `path`. Two paths with one key are one leaf. `None` if
    /// the path cannot be examined.
    pub(crate) fn key_of(path: &Path) -> Option<String> {
        Some(key_of(&std::fs::metadata(path).ok()?))
    }

    /// The key of the open file. A caller uses it to find this engine again, because opening the
    /// file a second time would conflict with this engine's lock.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// Opens and locks the file, and reads its properties.
    pub(crate) fn open(
        path: &Path,
        options: &LeafOptions,
    ) -> Result<(FileEngine, Properties), LeafError> {
        let name = shown(path);
        let system = |what| {
            let name = name.clone();
            move |source| LeafError::System { what, name, source }
        };
        let made = match (std::fs::metadata(path), options.make_bytes) {
            (Err(e), Some(bytes)) if e.kind() == io::ErrorKind::NotFound => {
                let file = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .open(path)
                    .map_err(system("make"))?;
                file.set_len(bytes).map_err(system("make"))?;
                true
            }
            _ => false,
        };
        let opened = Self::open_existing(path, options, &name);
        if made && opened.is_err() {
            let _ = std::fs::remove_file(path);
        }
        opened
    }

    fn open_existing(
        path: &Path,
        options: &LeafOptions,
        name: &str,
    ) -> Result<(FileEngine, Properties), LeafError> {
        let system =
            |what| move |source| LeafError::System { what, name: name.to_string(), source };
        let kind = std::fs::metadata(path).map_err(system("open"))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(LeafError::NotBlock(name.to_string()));
        }
        let direct = options.direct.unwrap_or(kind.is_block_device());
        let mut flags = if direct { libc::O_DIRECT } else { 0 };
        if kind.is_block_device() {
            flags |= libc::O_EXCL;
        }
        let open =
            |write: bool| OpenOptions::new().read(true).write(write).custom_flags(flags).open(path);
        let read_only = options.read_only;
        let file = open(!read_only).map_err(|source| match source.raw_os_error() {
            Some(libc::EBUSY) => LeafError::Busy(name.to_string()),
            _ => LeafError::System { what: "open", name: name.to_string(), source },
        })?;
        lock(&file, read_only, name)?;
        let key = key_of(&file.metadata().map_err(system("open"))?);
        let mut properties = if kind.is_block_device() {
            block_properties(&file)
        } else {
            file_properties(&file, direct)
        }
        .map_err(system("read the size of"))?;
        if kind.is_block_device() && is_zoned(&file) {
            return Err(LeafError::Zoned(name.to_string()));
        }
        properties.read_only |= read_only;
        if properties.sectors == 0 {
            return Err(LeafError::Empty(name.to_string()));
        }
        let in_memory = !kind.is_block_device() && is_in_memory(&file);
        let files = reopen(
            file,
            options.queues.count() + SHARED,
            read_only,
            if direct { libc::O_DIRECT } else { 0 },
        )
        .map_err(system("open again"))?;
        let is_block = kind.is_block_device();
        let mode = Mode::new(direct, options.direct.is_some(), is_block);
        let discards = properties.device_numbers.map(Discards::new);
        Ok((FileEngine { files, key, in_memory, discards, is_block, mode }, properties))
    }

    /// The descriptor of a queue. A queue for which the leaf was not opened gets -1, so its
    /// operations fail with `EBADF`. With the descriptor of another queue, it could consume the
    /// error of a failed write-back that the other queue must see.
    fn fd(&self, queue: usize) -> RawFd {
        let queues = self.files.len() - SHARED;
        let own = self.files.get(queue).filter(|_| queue < queues);
        own.map_or(-1, AsRawFd::as_raw_fd)
    }

    fn stable_fd(&self) -> RawFd {
        self.files.iter().nth_back(1).map_or(-1, AsRawFd::as_raw_fd)
    }

    /// # Safety
    /// As [`super::Engine::submit`].
    #[inline]
    pub(super) unsafe fn submit(&self, io: &LeafIo, turn: &mut Turn) -> Submitted {
        let fd = if io.fua { self.stable_fd() } else { self.fd(io.queue) };
        if self.in_memory && matches!(io.op, LeafOp::Read | LeafOp::Write | LeafOp::Flush) {
            // SAFETY: the caller's promise.
            let done = unsafe { call(fd, io) };
            if io.len > UNTIMED || io.op == LeafOp::Flush {
                turn.read_clock();
            }
            return Submitted::Done(done);
        }
        let direct = self.mode.is_direct();
        let len = io.len.min(if direct { TRANSFER_MAX } else { CACHED_MAX }) as u32;
        if !direct && matches!(io.op, LeafOp::Read | LeafOp::Write) {
            turn.spend(u64::from(len));
        }
        let file = types::Fd(fd);
        let entry = match io.op {
            LeafOp::Read | LeafOp::Write => transfer(file, io, len),
            LeafOp::Flush => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
            LeafOp::Discard => match &self.discards {
                Some(discards) => match discards.entry(file, io).filter(|_| direct) {
                    Some(entry) => entry,
                    None => {
                        let (device, queues) = (self.files.first(), self.files.len() - SHARED);
                        // SAFETY: the caller's promise.
                        return unsafe { discards.on_thread(device, queues, io, turn) };
                    }
                },
                None => {
                    opcode::Fallocate::new(file, io.len).offset(io.offset).mode(PUNCH_HOLE).build()
                }
            },
            LeafOp::Zero { no_hole } => {
                let mode = if no_hole { ZERO_RANGE } else { PUNCH_HOLE };
                opcode::Fallocate::new(file, io.len).offset(io.offset).mode(mode).build()
            }
        };
        // SAFETY: the caller keeps `data` valid until completion; the descriptor lives as long as
        // the leaf, which the table that routed this operation holds until it has drained.
        unsafe { turn.push(&entry.user_data(user_data(Tag::Part, u64::from(io.part)))) };
        Submitted::Pending
    }

    /// Pages are in the ring's table of buffers, and the ring does not serve files in memory.
    pub(super) fn takes_pages(&self) -> bool {
        !self.in_memory
    }

    /// With direct I/O, the device itself moves the data from and to the pages.
    pub(super) fn gains_by_pages(&self) -> bool {
        self.mode.is_direct() && !self.in_memory
    }

    /// Whether written data stays in the page cache of this machine until a flush.
    pub(super) fn is_cached(&self) -> bool {
        !self.mode.is_direct() && !self.in_memory
    }

    /// See [`super::mode`]. A file in memory has no cache to bypass.
    pub(super) fn prefer_direct(&self, block: u32) -> Result<(), Unfit> {
        if self.in_memory { Ok(()) } else { self.mode.prefer_direct(&self.files, block) }
    }

    /// Sets the mode that a user has chosen ([`super::mode`]).
    pub(super) fn choose_mode(&self, block: u32, direct: bool) -> Result<(), Unfit> {
        if self.in_memory { Ok(()) } else { self.mode.choose(&self.files, block, direct) }
    }

    /// `Some(0)` for a block device: it has no `SEEK_DATA` and counts as all data.
    pub(super) fn known_allocation(&self) -> Option<u32> {
        self.is_block.then_some(0)
    }

    /// Whether the leaf can discard. `None` for a file on a disk, because its file system tells
    /// only in its answer.
    pub(super) fn can_discard(&self) -> Option<bool> {
        match &self.discards {
            Some(discards) => discards.is_able,
            None => self.in_memory.then_some(true),
        }
    }

    /// A worker thread of the kernel carries out operations that io_uring cannot start without
    /// waiting.
    pub(super) fn takes_workers(&self) -> bool {
        !self.in_memory
    }

    /// Finds data and holes with `SEEK_DATA` and `SEEK_HOLE`. No code uses the file position that
    /// this moves.
    pub(super) fn allocation(&self, offset: u64, len: u64) -> (u64, u32) {
        let Some(file) = self.files.last() else { return (len, 0) };
        // SAFETY: seeks on an own descriptor.
        let seek = |whence| unsafe { libc::lseek(file.as_raw_fd(), offset as i64, whence) };
        let data = seek(libc::SEEK_DATA);
        if data < 0 {
            let no_more_data = io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO);
            return (len, if no_more_data { HOLE | ZERO } else { 0 });
        }
        if data as u64 > offset {
            return ((data as u64 - offset).min(len), HOLE | ZERO);
        }
        match seek(libc::SEEK_HOLE) {
            hole if hole as u64 > offset && hole > 0 => ((hole as u64 - offset).min(len), 0),
            _ => (len, 0),
        }
    }

    /// The page cache forgets failed writes once it has reported them. A disk under direct I/O does
    /// not: it keeps data that it could not flush, or has reported the error to the write. A file
    /// system may fall back to its cache even under direct I/O.
    pub(super) fn forgets_failed_writes(&self) -> bool {
        !(self.is_block && self.mode.is_direct())
    }

    /// Whether the file, which has refused a write, can be opened for writing. That fails for a
    /// read-only file system, a write-protected disk and an immutable file. The kernel does not
    /// always know that a SCSI disk is write-protected, so the disk is asked, too.
    pub(super) fn can_be_written(&self) -> bool {
        let Some(control) = self.files.last() else { return true };
        let path = format!("/proc/self/fd/{}", control.as_raw_fd());
        let is_protected = self.is_block && scsi_disk::is_write_protected(control);
        !is_protected && OpenOptions::new().write(true).open(path).is_ok()
    }

    /// As [`crate::engine::Engine::refuses_writes_with`].
    pub(super) fn refuses_writes_with(&self, errno: i32) -> bool {
        is_read_only(errno) || self.is_block && errno == libc::EREMOTEIO
    }

    /// Reads the first block. Bypasses the page cache if the file system can, because cached data
    /// says nothing about the medium.
    pub(super) fn probe(&self) -> io::Result<()> {
        let Some(control) = self.files.last() else { return Ok(()) };
        let path = format!("/proc/self/fd/{}", control.as_raw_fd());
        let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path);
        let mut buffer = Buffer::alone(PROBE_BYTES)?;
        let memory = buffer.bytes_mut();
        let read = match direct {
            Ok(file) => file.read_at(memory, 0),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => control.read_at(memory, 0),
            Err(error) => return Err(error),
        };
        match read {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            read => super::io::answered(read.map(drop)),
        }
    }

    /// The world wide name of a disk, from sysfs. `None` if the kernel knows none.
    pub(super) fn volume(&self) -> Option<String> {
        let rdev = self.files.first().filter(|_| self.is_block)?.metadata().ok()?.rdev();
        let disk = format!("/sys/dev/block/{}:{}", libc::major(rdev), libc::minor(rdev));
        // The first is for SCSI disks, the second for NVMe namespaces.
        let mut names = ["device/wwid", "wwid"].iter();
        let name = names.find_map(|name| std::fs::read_to_string(format!("{disk}/{name}")).ok())?;
        Some(name.trim().to_owned()).filter(|name| !name.is_empty())
    }

    pub(super) fn flush_blocking(&self) -> io::Result<()> {
        self.files.last().map_or(Ok(()), File::sync_data)
    }
}

fn key_of(meta: &Metadata) -> String {
    if meta.file_type().is_block_device() {
        format!("block:{:x}", meta.rdev())
    } else {
        format!("file:{:x}:{:x}", meta.dev(), meta.ino())
    }
}

/// The submission of a read or write, on memory or on pages in the ring's table.
fn transfer(file: types::Fd, io: &LeafIo, len: u32) -> squeue::Entry {
    let flags = if io.fua { libc::RWF_DSYNC } else { 0 };
    let slot = io.pages.and_then(|pages| {
        Some((pages.slot?, ptr::without_provenance_mut(pages.offset(io.data) as usize)))
    });
    match (io.op, slot) {
        (LeafOp::Write, None) => {
            opcode::Write::new(file, io.data.0, len).offset(io.offset).rw_flags(flags).build()
        }
        (LeafOp::Write, Some((slot, at))) => {
            opcode::WriteFixed::new(file, at, len, slot).offset(io.offset).rw_flags(flags).build()
        }
        (_, None) => opcode::Read::new(file, io.data.0, len).offset(io.offset).build(),
        (_, Some((slot, at))) => {
            opcode::ReadFixed::new(file, at, len, slot).offset(io.offset).build()
        }
    }
}

/// Carries out a read, write or flush with a plain system call. Returns a count or a negative
/// errno, like a completion. Reads and writes bypass libc's functions: those are cancellation
/// points of threads, which costs a tenth of the time of a small read.
///
/// # Safety
/// `io.data` is valid for `io.len` bytes.
#[inline]
unsafe fn call(fd: RawFd, io: &LeafIo) -> i64 {
    let (offset, len) = (io.offset as i64, io.len.min(COPY_STEP) as usize);
    // SAFETY: plain system calls on an own descriptor; the caller lends the data.
    let result = unsafe {
        match io.op {
            LeafOp::Read => libc::syscall(libc::SYS_pread64, fd, io.data.0, len, offset),
            LeafOp::Write => libc::syscall(libc::SYS_pwrite64, fd, io.data.0, len, offset),
            LeafOp::Flush => i64::from(libc::fdatasync(fd)),
            LeafOp::Discard | LeafOp::Zero { .. } => return -i64::from(libc::EOPNOTSUPP),
        }
    };
    match result {
        ..0 => -i64::from(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)),
        result => result,
    }
}

impl FileEngine {
    /// Releases the lock of a read-only leaf, or takes it again. Used when this process writes to
    /// the file through another leaf, whose write lock covers both.
    pub(super) fn set_reader_lock(&self, held: bool) {
        let Some(file) = self.files.first() else { return };
        // SAFETY: flock is plain data, as below; the descriptor is this engine's own.
        unsafe {
            let mut range: libc::flock = std::mem::zeroed();
            range.l_type = if held { libc::F_RDLCK } else { libc::F_UNLCK } as libc::c_short;
            range.l_whence = libc::SEEK_SET as libc::c_short;
            libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range);
        }
    }
}

/// Locks the whole file against other processes that use such locks, like another daemon or QEMU.
/// Read-only users share the lock.
fn lock(file: &File, read_only: bool, name: &str) -> Result<(), LeafError> {
    // SAFETY: flock is plain data; zero is a valid value of every field (whole file, from the
    // start).
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = if read_only { libc::F_RDLCK } else { libc::F_WRLCK } as libc::c_short;
    range.l_whence = libc::SEEK_SET as libc::c_short;
    let until = Instant::now() + LOCK_TIME;
    loop {
        // SAFETY: the descriptor is open and `range` outlives the call.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) };
        let source = io::Error::last_os_error();
        match source.raw_os_error() {
            _ if result == 0 => return Ok(()),
            Some(libc::EAGAIN | libc::EACCES) if Instant::now() < until => {
                std::thread::sleep(LOCK_PAUSE)
            }
            _ => return refused_lock(source, name),
        }
    }
}

fn refused_lock(source: io::Error, name: &str) -> Result<(), LeafError> {
    match source.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Err(LeafError::Busy(name.to_string())),
        // The file system has no locks, so the leaf is used without.
        Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::EINVAL) => Ok(()),
        _ => Err(LeafError::System { what: "lock", name: name.to_string(), source }),
    }
}

/// Opens the file again until there are `count` file descriptions, including `first`.
fn reopen(first: File, count: usize, read_only: bool, flags: i32) -> io::Result<Box<[File]>> {
    let path = format!("/proc/self/fd/{}", first.as_raw_fd());
    let mut files = vec![first];
    while files.len() < count {
        files
            .push(OpenOptions::new().read(true).write(!read_only).custom_flags(flags).open(&path)?);
    }
    Ok(files.into())
}

fn file_properties(file: &File, direct: bool) -> io::Result<Properties> {
    let meta = file.metadata()?;
    let logical_block = if direct { direct_alignment(file).unwrap_or(4096) } else { 512 };
    Ok(Properties {
        logical_block,
        physical_block: (meta.blksize() as u32).max(logical_block),
        ..Properties::memory(meta.len())
    })
}

/// Alignment of offsets that O_DIRECT needs. `None` if the file system does not say (statx, Linux
/// 6.1).
fn direct_alignment(file: &File) -> Option<u32> {
    const STATX_DIOALIGN: u32 = 0x2000;
    // SAFETY: statx is plain data, filled by the call; the empty path names the descriptor itself.
    unsafe {
        let mut out: libc::statx = std::mem::zeroed();
        let path = c"".as_ptr();
        let result =
            libc::statx(file.as_raw_fd(), path, libc::AT_EMPTY_PATH, STATX_DIOALIGN, &raw mut out);
        (result == 0 && out.stx_mask & STATX_DIOALIGN != 0 && out.stx_dio_offset_align > 0)
            .then_some(out.stx_dio_offset_align.max(512))
    }
}

fn block_properties(file: &File) -> io::Result<Properties> {
    let fd = file.as_raw_fd();
    let (mut bytes, mut logical, mut physical, mut read_only) = (0u64, 0i32, 0u32, 0i32);
    // SAFETY: each ioctl writes one integer of the size given to it.
    let ok = unsafe {
        libc::ioctl(fd, BLKGETSIZE64, &raw mut bytes) == 0
            && libc::ioctl(fd, BLKSSZGET, &raw mut logical) == 0
            && libc::ioctl(fd, BLKPBSZGET, &raw mut physical) == 0
            && libc::ioctl(fd, BLKROGET, &raw mut read_only) == 0
    };
    if !ok {
        return Err(io::Error::last_os_error());
    }
    let rdev = file.metadata()?.rdev();
    let (major, minor) = (libc::major(rdev), libc::minor(rdev));
    let rotational =
        std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/queue/rotational"));
    Ok(Properties {
        logical_block: logical.max(512) as u32,
        physical_block: physical,
        read_only: read_only != 0,
        rotational: rotational.is_ok_and(|text| text.trim() == "1"),
        device_numbers: Some((major, minor)),
        ..Properties::memory(bytes)
    })
}

/// Whether the disk has zones. They cannot be used, because neither NBD nor a table of several
/// devices can present them to a client.
fn is_zoned(file: &File) -> bool {
    let mut sectors = 0u32;
    // SAFETY: the ioctl writes one integer. A kernel without zones refuses it.
    unsafe { libc::ioctl(file.as_raw_fd(), BLKGETZONESZ, &raw mut sectors) == 0 && sectors != 0 }
}

fn is_in_memory(file: &File) -> bool {
    // SAFETY: statfs is plain data, filled by the call.
    unsafe {
        let mut out: libc::statfs = std::mem::zeroed();
        libc::fstatfs(file.as_raw_fd(), &raw mut out) == 0
            && matches!(out.f_type as i64, TMPFS_MAGIC | RAMFS_MAGIC)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::queues::Queues;

    /// The superuser may write files of any mode, so for it the file is not read-only.
    #[test]
    fn a_file_that_cannot_be_written_is_opened_for_reading_only_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, [0; 4096]).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
        let may_write = OpenOptions::new().write(true).open(&path).is_ok();
        let options = LeafOptions::new(Queues::of_new_owner(1));
        let writable =
            FileEngine::open(&path, &options).map(|(_, properties)| properties.read_only);
        match writable {
            Ok(read_only) => assert!(may_write && !read_only),
            Err(error) => assert!(!may_write && error.is_read_only(), "{error}"),
        }
        let options = LeafOptions { read_only: true, ..options };
        assert!(FileEngine::open(&path, &options).unwrap().1.read_only);
    }
}
