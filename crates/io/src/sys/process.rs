//! Settings of the whole process for a server of disks: locked memory, allocations that do not wait
//! for its own disks, and a mount namespace without their file systems.
//!
//! A server of disks works below the page cache of its own machine. When memory is short, the
//! kernel writes pages back to a disk. The server must do that I/O without waiting for the same
//! pages to be cleaned ([`io_flusher`]) and without page faults on its own code and buffers
//! ([`lock_memory`]). It must also not be the process that the kernel kills ([`spare_from_oom`]).
//!
//! Contract: [`io_flusher`] and [`separate_mounts`] change the calling thread and the threads that
//! it starts afterwards, so call them before there are other threads. The other functions may be
//! called at any time.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sys::lock::lock;

/// `PR_SET_IO_FLUSHER` of prctl(2), Linux 5.6.
const PR_SET_IO_FLUSHER: libc::c_int = 57;
/// `MADV_POPULATE_READ` of madvise(2), Linux 5.14.
const MADV_POPULATE_READ: libc::c_int = 22;
/// Makes the process the last to be killed when memory is out, but not immune: with -1000, a daemon
/// that is alone in its memory cgroup would hang there instead.
const OOM_SCORE: i32 = -999;
const OOM_FILE: &str = "/proc/self/oom_score_adj";

/// Whether new memory is locked. Mappings that must not be locked call [`unlock`].
static LOCKS: AtomicBool = AtomicBool::new(false);

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Ends the process at once, with a message and by SIGABRT. Called when a thread cannot go on. Its
/// operations cannot be answered, because the kernel may still write to their memory.
pub(crate) fn fail(why: &str) -> ! {
    tracing::error!("{why}: the process ends");
    std::process::abort();
}

/// Ends the process with [`fail`] if a panic drops it.
pub(crate) struct FailOnPanic(pub(crate) &'static str);

impl Drop for FailOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            fail(&format!("{} has panicked", self.0));
        }
    }
}

/// The user id that owns files which this process creates.
pub fn user() -> u32 {
    // SAFETY: a system call without arguments.
    unsafe { libc::geteuid() }
}

/// Runs `make` so that files it creates are private to their user from the start, whatever mode it
/// asks for. A socket's file is created by `bind`, which takes no mode. The mask applies to the
/// whole process, so files that other threads create meanwhile are private, too.
pub fn private_files<T>(make: impl FnOnce() -> T) -> T {
    // Two calls at once could each restore the other's mask.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = lock(&ONE);
    // SAFETY: a system call with an integer.
    let before = unsafe { libc::umask(0o177) };
    let made = make();
    // SAFETY: as above.
    unsafe { libc::umask(before) };
    made
}

/// Marks this thread, and those that it starts, as doing I/O for others. Their allocations then
/// start no write-back, and do not wait for pages that only these threads can clean. Needs
/// CAP_SYS_RESOURCE.
pub fn io_flusher() -> io::Result<()> {
    // SAFETY: a system call with integers.
    check(unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) })
}

/// Locks memory. Pages that are mapped and present stay, and so do pages that are touched from now
/// on. Nothing is filled in advance except the program's own code and constants. Needs
/// CAP_IPC_LOCK, or no limit on locked memory: under a limit, any later allocation could fail.
pub fn lock_memory() -> io::Result<()> {
    if !may_lock()? {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    // SAFETY: a system call with integers.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) })?;
    LOCKS.store(true, Ordering::Relaxed);
    populate_program()
}

/// Whether this process may lock memory without a limit.
fn may_lock() -> io::Result<bool> {
    /// CAP_IPC_LOCK of capabilities(7).
    const IPC_LOCK: u32 = 14;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes one live structure.
    check(unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) })?;
    Ok(limit.rlim_cur == libc::RLIM_INFINITY || has_capability(IPC_LOCK))
}

/// Whether this process has the effective capability with this number.
fn has_capability(number: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set & (1 << number) != 0)
}

/// Reads in the mapped pages of the program and its libraries.
fn populate_program() -> io::Result<()> {
    for line in fs::read_to_string("/proc/self/maps")?.lines() {
        let Some((start, len)) = program_part(line) else { continue };
        let at = std::ptr::without_provenance_mut(start);
        // SAFETY: the advice changes no byte, and a range that is gone by now is an error. A kernel
        // without this advice reads the pages in when they are needed.
        unsafe { libc::madvise(at, len, MADV_POPULATE_READ) };
    }
    Ok(())
}

/// Address and length of a line of `/proc/self/maps` that belongs to the program: readable, from a
/// file, and not shared like a region map. `None` for other lines.
fn program_part(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (range, rights, path) = (words.next()?, words.next()?, words.nth(3)?);
    if !rights.starts_with('r') || !rights.ends_with('p') || !path.starts_with('/') {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (number(start)?, number(end)?);
    Some((start, end.checked_sub(start)?))
}

/// Unlocks a mapping if memory is locked, so that the kernel may take its pages. For example, a
/// leaf in memory may be larger than the machine's memory.
///
/// # Safety
/// The range is a mapping of the caller.
pub(crate) unsafe fn unlock(at: *const libc::c_void, len: usize) {
    if LOCKS.load(Ordering::Relaxed) {
        // SAFETY: the caller's promise. It changes no byte, and a failure changes nothing at all.
        unsafe { libc::munlock(at, len) };
    }
}

/// Makes this process the last to be killed when memory is out. A lower score stays. Needs
/// CAP_SYS_RESOURCE.
pub fn spare_from_oom() -> io::Result<()> {
    let now: i32 = fs::read_to_string(OOM_FILE)?.trim().parse().unwrap_or_default();
    if now <= OOM_SCORE { Ok(()) } else { fs::write(OOM_FILE, OOM_SCORE.to_string()) }
}

/// Gives this thread, and those that it starts, a mount namespace of its own. Mounts of the old
/// namespace propagate to it, but not back. Needs CAP_SYS_ADMIN.
pub fn separate_mounts() -> io::Result<()> {
    let flags = libc::MS_SLAVE | libc::MS_REC;
    // SAFETY: system calls with integers, and strings that outlive them.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNS))?;
        let none = std::ptr::null();
        check(libc::mount(none, c"/".as_ptr(), none, flags, none.cast()))
    }
}

/// Detaches a mount from this process's namespace. The file system stays for its other users.
pub fn detach_mount(point: &Path) -> io::Result<()> {
    let point = CString::new(point.as_os_str().as_bytes())?;
    let flags = libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW;
    // SAFETY: the string outlives the call.
    check(unsafe { libc::umount2(point.as_ptr(), flags) })
}

/// Waits for a change of the mounts in `mountinfo`, an open `/proc/self/mountinfo`.
pub fn wait_for_mounts(mountinfo: &File) -> io::Result<()> {
    let events = libc::POLLPRI | libc::POLLERR;
    let mut poll = libc::pollfd { fd: mountinfo.as_raw_fd(), events, revents: 0 };
    loop {
        // SAFETY: reads and writes one live structure.
        match check(unsafe { libc::poll(&raw mut poll, 1, -1) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            waited => return waited,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_the_program_are_known_by_their_line() {
        let code = "55d0c0a00000-55d0c0b00000 r-xp 00001000 08:01 1234    /usr/bin/blkswitch";
        assert_eq!(program_part(code), Some((0x55d0_c0a0_0000, 0x10_0000)));
        for other in [
            "7f0000000000-7f0000001000 rw-s 00000000 00:21 77   /run/blkswitch/disks/map-0",
            "7f0000000000-7f0000001000 rw-p 00000000 00:00 0 ",
            "7f0000000000-7f0000001000 ---p 00000000 08:01 9   /usr/lib/libc.so.6",
            "7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0   [stack]",
            "",
        ] {
            assert_eq!(program_part(other), None, "{other}");
        }
        populate_program().unwrap();
    }

    #[test]
    fn a_mount_point_that_is_none_is_an_error() {
        let errno = |path: &str| detach_mount(Path::new(path)).unwrap_err().raw_os_error();
        assert!(matches!(errno("/not/there"), Some(libc::ENOENT | libc::EPERM)));
        assert_eq!(errno("a\0b"), None, "no path");
    }
}
