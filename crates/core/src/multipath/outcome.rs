//! Sorts errors into those of a path, and those of the request or the volume.
//!
//! The kernel's errors that fail no path are: not supported, no space, a fault of the target, a
//! reservation, the medium, and protection data. Another path would give the same answer, or worse,
//! a different one. This module adds errors that the kernel never makes: wrong requests, forbidden
//! requests, and no memory on this machine. Every other error fails the path.
//!
//! Contract: errnos are Linux's numbers, positive.

/// The errno of a request for which no path is up, and of unknown errors.
pub const EIO: i32 = 5;
/// The errno of a path that was silent for too long.
pub const ETIMEDOUT: i32 = 110;

/// Whether this errno fails the path that returned it. Otherwise it is the answer to the request.
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
        // Added here; the kernel's multipath never sees these.
        EINVAL | EFAULT | EFBIG | EPERM | EACCES | EROFS | EDQUOT | ENOMEM => false,
        _ => true,
    }
}
