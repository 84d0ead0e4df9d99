//! Why the daemon refuses something: the kernel's errno, the lines that the kernel would have
//! logged, and a sentence.
//!
//! Contract: every refusal of the daemon is a [`Failure`]. The ioctl that it belongs to is known
//! only where a request is answered, so it is added there ([`Failure::of`]). Plain data, no panics.

use std::{fmt, io};

use blkswitch_core::error::Error;
use blkswitch_io::export::nbd::admission::descriptor_limit;
use blkswitch_io::{DeviceError, LeafError};

use crate::printable::on_one_line;
use crate::protocol::{Errno, ErrorBody};

/// Placeholder for the device's number in a line of the kernel's log, until the number is known.
pub const DEV: &str = "$DEV";

/// A refusal, without the ioctl it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The errno that the kernel's ioctl would have returned.
    pub errno: Errno,
    /// The lines that the kernel would have logged, with [`DEV`] for the device's number.
    pub kernel: Vec<String>,
    /// A sentence for the user.
    pub reason: String,
    /// The generation of the device's maps, if a message has raised it or expected another one.
    pub generation: Option<u64>,
}

impl Failure {
    /// Creates a refusal that the kernel would not have logged.
    pub fn new(errno: Errno, reason: impl Into<String>) -> Failure {
        Failure { errno, kernel: Vec::new(), reason: reason.into(), generation: None }
    }

    /// Describes a system call that failed; `what` says what could not be done.
    pub fn io(error: &io::Error, what: impl fmt::Display) -> Failure {
        let errno = match (error.raw_os_error(), error.kind()) {
            (Some(number), _) => Errno::from_number(number),
            (None, io::ErrorKind::OutOfMemory) => Errno::Enomem,
            (None, io::ErrorKind::PermissionDenied) => Errno::Eacces,
            (None, _) => Errno::Eio,
        };
        Failure::new(errno, format!("{what}: {error}"))
    }

    /// Says that the change itself has happened and only saving it failed.
    pub fn but_done(mut self) -> Failure {
        self.reason = format!("done, but not saved: {}", self.reason);
        self
    }

    /// Adds the number that the generation of the device's maps has now.
    pub fn with_generation(self, generation: u64) -> Failure {
        Failure { generation: Some(generation), ..self }
    }

    /// Adds a line that the ioctl layer of the device-mapper core logs.
    pub fn logged(mut self, line: impl fmt::Display) -> Failure {
        self.kernel.push(format!("device-mapper: ioctl: {line}"));
        self
    }

    /// A target that could not be created; `text` is the part of the log line after the device's
    /// number.
    pub fn target(errno: Errno, text: impl fmt::Display, reason: impl Into<String>) -> Failure {
        let line = format!("device-mapper: table: {DEV}: {text}");
        Failure { kernel: vec![line], ..Failure::new(errno, reason) }
            .logged("error adding target to table")
    }

    /// A complete table that does not fit its devices. The log line names the device `name`.
    pub fn limits(error: &Error, name: &str, reason: impl Into<String>) -> Failure {
        let kernel = vec![
            format!("device-mapper: table: {DEV}: {}", error.of_device(name)),
            "device-mapper: core: Cannot calculate initial queue limits".to_owned(),
            "device-mapper: ioctl: unable to set up device queue for new table.".to_owned(),
        ];
        Failure { kernel, ..Failure::new(errno_of(error), reason) }
    }

    /// The body of the HTTP answer. `ioctl` is libdm's name of the ioctl, `minor` the device's
    /// number.
    pub fn of(self, ioctl: &str, minor: Option<u32>) -> ErrorBody {
        let number = minor.map_or(DEV.to_owned(), |minor| format!("{MAJOR}:{minor}"));
        // A line may quote text from a server.
        let shown = |line: String| on_one_line(&line).into_owned();
        let kernel = self.kernel.into_iter().map(|line| shown(line.replace(DEV, &number)));
        ErrorBody {
            errno: self.errno,
            ioctl: ioctl.to_owned(),
            kernel: kernel.collect(),
            reason: shown(self.reason),
            device: None,
            generation: self.generation,
        }
    }
}

/// Major number of all devices: "unnamed", which no Linux driver owns.
pub const MAJOR: u32 = 0;

/// Converts an error of the core to the protocol's errno.
pub fn errno_of(error: &Error) -> Errno {
    Errno::from_number(error.errno().number())
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Failure {
        let errno = match error {
            // A stopping daemon interrupts the call, so the caller gets `EINTR`.
            DeviceError::Stopping => Errno::Eintr,
            _ => Errno::from_number(error.errno()),
        };
        let failure = Failure::new(errno, sentence(&error));
        match error {
            DeviceError::NoTable | DeviceError::SectorOutside | DeviceError::NoMessages => {
                failure.logged(error)
            }
            _ => failure,
        }
    }
}

/// Explains a [`DeviceError`] to the caller where the kernel's text alone says too little.
fn sentence(error: &DeviceError) -> String {
    match error {
        DeviceError::NoTable => {
            "the device has no live table: load one and resume the device first".to_owned()
        }
        DeviceError::SectorOutside => {
            "the sector is past the end of the device's live table".to_owned()
        }
        DeviceError::NoMessages => {
            "the segment that holds the sector takes no messages: only switch and multipath do"
                .to_owned()
        }
        other => other.to_string(),
    }
}

impl From<LeafError> for Failure {
    fn from(error: LeafError) -> Failure {
        let (errno, mut reason) = (Errno::from_number(error.errno()), error.to_string());
        if errno == Errno::Emfile {
            reason.push_str(&format!(
                ": this process may have {} files open, and a file or disk takes one for each \
                 queue and 2 more; raise the limit (ulimit -n, or LimitNOFILE= of the service), or \
                 start the daemon with fewer --queues",
                descriptor_limit()
            ));
        }
        Failure::new(errno, reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_the_device_once_it_is_known() {
        let failure =
            Failure::target(Errno::Einval, "switch: Invalid number of paths (-EINVAL)", "because");
        let body = failure.clone().of("reload", Some(3));
        assert_eq!(
            body.kernel,
            [
                "device-mapper: table: 0:3: switch: Invalid number of paths (-EINVAL)",
                "device-mapper: ioctl: error adding target to table",
            ]
        );
        assert!(failure.of("reload", None).kernel[0].contains("$DEV"));
    }

    #[test]
    fn a_missing_table_is_logged_as_the_kernel_does() {
        let failure = Failure::from(DeviceError::NoTable);
        assert_eq!(failure.kernel, ["device-mapper: ioctl: The device has no table."]);
        assert_eq!(failure.errno, Errno::Einval);
    }
}
