//! Sorts errors: those of a path, and those of the request or the volume.
//!
//! The kernel's list of errors that fail no path is: not supported, no space, a fault of the
//! target, a reservation, the medium, protection data. Another path would give the same answer, or
//! worse, a different one. This module adds errors of requests that the kernel never makes: wrong
//! requests, forbidden requests, and no memory on this machine. Every other error fails the path.
//!
//! Contract: Linux's numbers, positive.

/// The error of a request for which there is no path, and of unknown faults.
pub const EIO: i32 = 5;
/// The error of a path that was silent for too long.
pub const ETIMEDOUT: i32 = 110;

/// Whether this errno fails the path that it came over. Otherwise it is the answer to the request.
#[must_use]
pub const fn is_path_error(errno: i32) -> bool {
    const EPERM: i32 = 1;
    const ENOMEM: i32 = 12;
    const EACCES: i32 = 13;
    const EFAULT: i32 = 14;
    const EINVAL: i32 = 22;
    const EFBIG: i32 = 27;
    const ENOSPC: i32 = 28;
    const EROFS: i32 = 30;
    const EBADE: i32 = 52;
    const ENODATA: i32 = 61;
    const EILSEQ: i32 = 84;
    const EOPNOTSUPP: i32 = 95;
    const EREMOTEIO: i32 = 121;
    const EDQUOT: i32 = 122;
    match errno {
        // The kernel's list, in the order of the module's text.
        EOPNOTSUPP | ENOSPC | EREMOTEIO | EBADE | ENODATA | EILSEQ => false,
        // The additions.
        EINVAL | EFAULT | EFBIG | EPERM | EACCES | EROFS | EDQUOT | ENOMEM => false,
        _ => true,
    }
}
