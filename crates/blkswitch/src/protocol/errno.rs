//! The error numbers of the protocol: Linux' symbols on the wire, the C library's texts on the
//! terminal.
//!
//! Contract: a closed list; what is not in it is `EIO`. Pure, without the C library, so that the
//! client says the same everywhere.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

macro_rules! errnos {
    // A `literal` would hide the name from the derive of the schema, which then invents another.
    ($($variant:ident = $number:literal, $name:tt, $text:literal, $status:literal;)*) => {
        /// Error numbers of Linux, by name on the wire. Those that the control path can meet; any
        /// other is `EIO`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
        pub enum Errno {
            $(#[doc = $text] #[serde(rename = $name)] $variant,)*
        }

        impl Errno {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The number in Linux' `errno.h`.
            pub fn number(self) -> i32 {
                match self { $(Self::$variant => $number,)* }
            }

            /// The symbol: `EINVAL`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The text of `strerror`: `Invalid argument`.
            pub fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// The HTTP status of a reply with this error.
            pub fn http_status(self) -> u16 {
                match self { $(Self::$variant => $status,)* }
            }
        }
    };
}

errnos! {
    Eperm = 1, "EPERM", "Operation not permitted", 403;
    Enoent = 2, "ENOENT", "No such file or directory", 404;
    Eintr = 4, "EINTR", "Interrupted system call", 503;
    Eio = 5, "EIO", "Input/output error", 500;
    Enxio = 6, "ENXIO", "No such device or address", 404;
    E2big = 7, "E2BIG", "Argument list too long", 413;
    Eagain = 11, "EAGAIN", "Resource temporarily unavailable", 503;
    Enomem = 12, "ENOMEM", "Cannot allocate memory", 507;
    Eacces = 13, "EACCES", "Permission denied", 403;
    Enotblk = 15, "ENOTBLK", "Block device required", 400;
    Ebusy = 16, "EBUSY", "Device or resource busy", 409;
    Eexist = 17, "EEXIST", "File exists", 409;
    Enodev = 19, "ENODEV", "No such device", 404;
    Enotdir = 20, "ENOTDIR", "Not a directory", 400;
    Eisdir = 21, "EISDIR", "Is a directory", 400;
    Einval = 22, "EINVAL", "Invalid argument", 400;
    Enfile = 23, "ENFILE", "Too many open files in system", 503;
    Emfile = 24, "EMFILE", "Too many open files", 503;
    Enotty = 25, "ENOTTY", "Inappropriate ioctl for device", 400;
    Efbig = 27, "EFBIG", "File too large", 413;
    Enospc = 28, "ENOSPC", "No space left on device", 507;
    Erofs = 30, "EROFS", "Read-only file system", 403;
    Erange = 34, "ERANGE", "Numerical result out of range", 400;
    Enametoolong = 36, "ENAMETOOLONG", "File name too long", 400;
    Eloop = 40, "ELOOP", "Too many levels of symbolic links", 400;
    Eoverflow = 75, "EOVERFLOW", "Value too large for defined data type", 400;
    Eopnotsupp = 95, "EOPNOTSUPP", "Operation not supported", 400;
    Etimedout = 110, "ETIMEDOUT", "Connection timed out", 504;
    Estale = 116, "ESTALE", "Stale file handle", 412;
    Ecanceled = 125, "ECANCELED", "Operation canceled", 503;
}

impl Errno {
    /// The error of a number as `std::io::Error::raw_os_error` gives it (positive); [`Errno::Eio`]
    /// for one that is not in the list.
    pub fn from_number(number: i32) -> Self {
        Self::ALL.iter().copied().find(|errno| errno.number() == number).unwrap_or(Self::Eio)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_texts_are_those_of_the_c_library() {
        for errno in Errno::ALL {
            let system = std::io::Error::from_raw_os_error(errno.number()).to_string();
            assert_eq!(system, format!("{} (os error {})", errno.text(), errno.number()));
            assert_eq!(Errno::from_number(errno.number()), *errno);
            assert_eq!(serde_json::to_string(errno).unwrap(), format!("\"{}\"", errno.name()));
        }
        assert_eq!(Errno::from_number(9999), Errno::Eio);
    }
}
