//! Sparse files: reserves space, and finds data and holes.
//!
//! Contract: plain system calls on the caller's descriptors. They may block.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Allocates space for the first `bytes` bytes of a file, and extends the file to that length.
pub fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    let bytes = libc::off_t::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
    // SAFETY: a system call with integers, on the caller's descriptor.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, bytes) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// The first offset from `from` on with data. `None` if there is no data. A file system without
/// holes has data everywhere.
pub fn next_data(file: &File, from: u64) -> io::Result<Option<u64>> {
    seek(file, from, libc::SEEK_DATA)
}

/// The first offset from `from` on with a hole; the end of the file counts as one. `None` if `from`
/// is at the end or beyond it.
pub fn next_hole(file: &File, from: u64) -> io::Result<Option<u64>> {
    seek(file, from, libc::SEEK_HOLE)
}

fn seek(file: &File, from: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    let from = libc::off_t::try_from(from).map_err(|_| io::ErrorKind::FileTooLarge)?;
    // SAFETY: a system call with integers, on the caller's descriptor.
    let at = unsafe { libc::lseek(file.as_raw_fd(), from, whence) };
    match u64::try_from(at) {
        Ok(at) => Ok(Some(at)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_found_behind_holes() {
        use std::os::unix::fs::FileExt;
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"x", 32 << 20).unwrap();
        let data = next_data(&file, 0).unwrap().unwrap();
        assert!(data <= 32 << 20, "{data}");
        assert!(next_hole(&file, 32 << 20).unwrap().unwrap() > 32 << 20);
        assert_eq!(next_data(&file, 64 << 20).unwrap(), None);
        let small = tempfile::tempfile().unwrap();
        reserve(&small, 5000).unwrap();
        assert_eq!(small.metadata().unwrap().len(), 5000);
        assert!(reserve(&small, u64::MAX).is_err());
    }
}
