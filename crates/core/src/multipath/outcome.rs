//! Which errors say that a path is no good, and which say something about the request or the
//! volume.
//!
//! The kernel's list of errors that fail no path: not supported, no space, a fault of the target, a
//! reservation, the medium, protection data. Sending such a request down another path would give
//! the same answer, or worse, a different one. Ours are added, which the kernel has no need of as
//! it never makes such requests: errors that say that the request is wrong, or that it may not be
//! made, or that this machine has no memory for it. Everything else fails the path.
//!
//! Contract: Linux's numbers, positive.

/// The path is gone, or nobody knows better: what a request fails with when there is no path.
pub const EIO: i32 = 5;
/// The path was silent for too long.
pub const ETIMEDOUT: i32 = 110;

/// Does this errno fail the path it came over? If not it goes up to whoever made the request.
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
        // The kernel's, in the order of the text above.
        EOPNOTSUPP | ENOSPC | EREMOTEIO | EBADE | ENODATA | EILSEQ => false,
        // Ours.
        EINVAL | EFAULT | EFBIG | EPERM | EACCES | EROFS | EDQUOT | ENOMEM => false,
        _ => true,
    }
}
