//! The mode of a file: with or without the page cache.
//!
//! A leaf has one mode for all its users. A mode that a user has chosen holds. Otherwise files use
//! the page cache, until one is below a ublk disk; then it uses direct I/O if possible. Cleaning a
//! dirty page of the disk would write it to the cache again, and under memory pressure that can
//! wait for ever.
//!
//! The mode of an open file can change at any time (`F_SETFL`), because the kernel keeps both ways
//! coherent. But a block size was announced to disks and clients, so direct I/O must work with
//! that.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// Alignment of memory for leaves: requests begin at sectors.
const MEMORY_ALIGNMENT: u32 = 512;

/// The reason why a file stays in the page cache.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// The file system does not say, or the kernel is older than 6.1.
    #[error("its file system does not say what direct I/O needs")]
    Unknown,
    /// The file system has no direct I/O.
    #[error("its file system does no direct I/O")]
    None,
    /// Direct I/O needs larger blocks than the announced ones.
    #[error("direct I/O needs blocks of {needed} bytes there, and blocks of {block} are announced")]
    Block {
        /// The needed block size.
        needed: u32,
        /// The announced block size.
        block: u32,
    },
    /// A user has chosen the page cache.
    #[error("the page cache was asked for")]
    Chosen,
    /// The mode of a disk below does not change while it is open.
    #[error("a block device keeps the mode that it was opened with")]
    Device,
    /// A system call failed.
    #[error("the system refused: {0}")]
    System(#[from] io::Error),
}

/// The mode of a leaf's files.
pub(super) struct Mode {
    direct: AtomicBool,
    /// Whether a user has chosen the mode.
    chosen: AtomicBool,
    is_block: bool,
}

impl Mode {
    /// The mode of files that were opened with or without `direct`; `chosen` if a user has asked
    /// for it.
    pub(super) fn new(direct: bool, chosen: bool, is_block: bool) -> Mode {
        Mode { direct: direct.into(), chosen: chosen.into(), is_block }
    }

    pub(super) fn is_direct(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }

    /// Changes to direct I/O, unless a user has chosen another mode, if it works with the announced
    /// blocks of `block` bytes.
    pub(super) fn prefer_direct(&self, files: &[File], block: u32) -> Result<(), Unfit> {
        if self.is_direct() {
            return Ok(());
        }
        if self.chosen.load(Ordering::Relaxed) {
            return Err(Unfit::Chosen);
        }
        self.change(files, block, true)
    }

    /// Takes the mode that a user has chosen. The last choice counts.
    pub(super) fn choose(&self, files: &[File], block: u32, direct: bool) -> Result<(), Unfit> {
        if self.is_direct() != direct {
            self.change(files, block, direct)?;
        }
        self.chosen.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn change(&self, files: &[File], block: u32, direct: bool) -> Result<(), Unfit> {
        if self.is_block {
            return Err(Unfit::Device);
        }
        if let Some(file) = files.first().filter(|_| direct) {
            fits(alignment(file)?, block)?;
        }
        let changed = files.iter().try_for_each(|file| set_direct(file, direct));
        if let Err(error) = changed {
            // All files must have one mode. The old one was possible a moment ago, so it still is.
            let _ = files.iter().try_for_each(|file| set_direct(file, !direct));
            return Err(error.into());
        }
        self.direct.store(direct, Ordering::Relaxed);
        Ok(())
    }
}

/// The alignment that direct I/O needs, in bytes. 0 if the file system has no direct I/O.
#[derive(Clone, Copy)]
struct Alignment {
    offset: u32,
    memory: u32,
}

fn fits(needed: Alignment, block: u32) -> Result<(), Unfit> {
    match needed {
        Alignment { offset: 0, .. } | Alignment { memory: 0, .. } => Err(Unfit::None),
        Alignment { offset, .. } if offset > block => Err(Unfit::Block { needed: offset, block }),
        Alignment { memory, .. } if memory > MEMORY_ALIGNMENT => {
            Err(Unfit::Block { needed: memory, block: MEMORY_ALIGNMENT })
        }
        _ => Ok(()),
    }
}

fn alignment(file: &File) -> Result<Alignment, Unfit> {
    const STATX_DIOALIGN: u32 = 0x2000;
    // SAFETY: statx is plain data, filled by the call; the empty path names the descriptor itself.
    unsafe {
        let mut out: libc::statx = std::mem::zeroed();
        let (fd, path) = (file.as_raw_fd(), c"".as_ptr());
        if libc::statx(fd, path, libc::AT_EMPTY_PATH, STATX_DIOALIGN, &raw mut out) != 0 {
            return Err(io::Error::last_os_error().into());
        }
        if out.stx_mask & STATX_DIOALIGN == 0 {
            return Err(Unfit::Unknown);
        }
        Ok(Alignment { offset: out.stx_dio_offset_align, memory: out.stx_dio_mem_align })
    }
}

fn set_direct(file: &File, direct: bool) -> io::Result<()> {
    let fd = file.as_raw_fd();
    // SAFETY: system calls with integers, on an own descriptor.
    let result = unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        let wanted = if direct { flags | libc::O_DIRECT } else { flags & !libc::O_DIRECT };
        if flags < 0 { flags } else { libc::fcntl(fd, libc::F_SETFL, wanted) }
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direct(file: &File) -> bool {
        // SAFETY: a system call with integers, on an own descriptor.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) & libc::O_DIRECT != 0 }
    }

    #[test]
    fn direct_io_must_do_with_the_blocks_that_were_announced() {
        let fits = |offset, memory, block| fits(Alignment { offset, memory }, block).is_ok();
        assert!(fits(512, 4, 512) && fits(512, 512, 4096) && fits(4096, 512, 4096));
        assert!(!fits(4096, 4, 512), "the file of the issue: blocks of 4096 below a disk of 512");
        assert!(!fits(0, 0, 512) && !fits(512, 4096, 4096));
    }

    #[test]
    fn what_a_user_has_chosen_stays() {
        // Beside this program, because a temporary folder may be in memory.
        let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
        let folder = tempfile::tempdir_in(folder).unwrap();
        let file = File::create(folder.path().join("file")).unwrap();
        let files = [file.try_clone().unwrap(), file];
        let mode = Mode::new(false, true, false);
        assert!(matches!(mode.prefer_direct(&files, 4096), Err(Unfit::Chosen)));
        assert!(!mode.is_direct() && !direct(&files[0]));
        // File systems differ.
        let serves = alignment(&files[0]).and_then(|needed| fits(needed, 4096));
        let mode = Mode::new(false, false, false);
        assert_eq!(mode.prefer_direct(&files, 4096).is_ok(), serves.is_ok(), "{serves:?}");
        assert_eq!(files.each_ref().map(direct), [serves.is_ok(); 2]);
        mode.choose(&files, 4096, false).unwrap();
        assert_eq!(files.each_ref().map(direct), [false; 2]);
        assert!(matches!(mode.prefer_direct(&files, 4096), Err(Unfit::Chosen)));
        assert_eq!(mode.choose(&files, 4096, true).is_ok(), serves.is_ok());
        assert!(matches!(
            mode.choose(&files, 1, true),
            Ok(()) | Err(Unfit::Block { .. } | Unfit::Unknown | Unfit::None)
        ));
    }

    #[test]
    fn a_block_device_keeps_its_mode() {
        let mode = Mode::new(true, false, true);
        assert!(matches!(mode.choose(&[], 512, false), Err(Unfit::Device)));
        assert!(mode.choose(&[], 512, true).is_ok() && mode.is_direct());
    }
}
