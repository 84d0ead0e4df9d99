//! Failures of verbs, and dmsetup's text for them.
//!
//! Contract: dmsetup's own lines come out byte for byte. Additional lines are indented by two
//! spaces and come between them. So the first line names the failure, the last one is
//! `Command failed.`, and `grep -v '^ '` gives dmsetup's output. Every failure has exit status 1,
//! as in dmsetup.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::Serialize;

use crate::protocol::{Errno, ErrorBody};

/// The failure of a verb.
#[derive(Debug)]
pub(super) enum Failure {
    /// Any other failure, as a sentence.
    Message(String),
    /// The daemon refused a request, where dmsetup has a failed ioctl.
    Refused(Box<Refusal>),
    /// No daemon answers on the socket.
    NoDaemon(PathBuf, io::Error),
    /// An error of standard output or of a user's file.
    Output(io::Error),
    /// A switch has an invalid value.
    CommandLine(String),
    /// Too many or too few words for the verb.
    WrongNumberOfArguments(&'static str),
}

/// A failure as `--json` prints it: the text's first line, and the daemon's answer if it refused.
#[derive(Debug, Default, Serialize)]
struct Failed<'a> {
    error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno: Option<Errno>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ioctl: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    kernel: &'a [String],
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<[u32; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
}

/// A failed ioctl, by libdm's name for it, and the device as the user named it.
#[derive(Debug)]
pub(super) struct Refusal {
    /// The answer of the daemon, or of the client in its place.
    pub body: ErrorBody,
    /// The device as the user named it.
    pub subject: Subject,
}

/// The words between `ioctl on` and `failed`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Subject {
    /// The name; empty if the user gave none.
    pub name: String,
    /// The UUID; empty if the user gave none.
    pub uuid: String,
    /// The number; `None` if the user gave none.
    pub devno: Option<[u32; 2]>,
}

/// The usage line of a verb, or of the program.
pub(super) type Usage = fn(Option<&str>) -> String;

impl Failure {
    /// The text for standard error, for tests.
    #[cfg(test)]
    pub(super) fn plain(&self) -> String {
        self.text(|_| String::new())
    }

    /// A failure without an ioctl.
    pub(super) fn message(text: impl Into<String>) -> Self {
        Self::Message(text.into())
    }

    /// A refusal by the client itself.
    pub(super) fn refused(ioctl: &str, errno: Errno, reason: String, subject: Subject) -> Self {
        let body = ErrorBody {
            errno,
            ioctl: ioctl.to_owned(),
            kernel: Vec::new(),
            reason,
            device: None,
            generation: None,
        };
        Self::Refused(Box::new(Refusal { body, subject }))
    }

    /// The errno of a refusal; `None` for other failures.
    pub(super) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused(refusal) => Some(refusal.body.errno),
            _ => None,
        }
    }

    /// The failure as JSON; `None` if standard output was closed.
    pub(super) fn json(&self, usage: Usage) -> Option<String> {
        let text = self.text(usage);
        let mut lines = text
            .lines()
            .filter(|line| !["Command failed.", "Couldn't process command line."].contains(line));
        let first = lines.next()?.to_owned();
        let mut failed = Failed { error: first, ..Failed::default() };
        match self {
            Self::Refused(refusal) => {
                let ErrorBody { errno, ioctl, kernel, reason, device, generation } = &refusal.body;
                failed.errno = Some(*errno);
                failed.ioctl = Some(ioctl);
                failed.kernel = kernel;
                failed.reason = reason.clone();
                failed.device = *device;
                failed.generation = *generation;
            }
            _ => failed.reason = lines.map(str::trim).collect::<Vec<_>>().join(" "),
        }
        serde_json::to_string_pretty(&failed).ok()
    }

    /// The text for standard error; empty if standard output was closed.
    pub(super) fn text(&self, usage: Usage) -> String {
        match self {
            Self::Message(text) => format!("{text}\nCommand failed.\n"),
            Self::Refused(refusal) => format!("{}Command failed.\n", refusal.text()),
            Self::NoDaemon(socket, error) => format!(
                "{}: cannot connect: {error}\n{}Command failed.\n",
                socket.display(),
                no_connection(socket, error)
            ),
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => String::new(),
            Self::Output(error) => format!("Cannot write the output: {error}.\nCommand failed.\n"),
            Self::CommandLine(text) => format!("{text}\nCouldn't process command line.\n"),
            Self::WrongNumberOfArguments(verb) => {
                format!("Incorrect number of arguments.\n{}", usage(Some(verb)))
            }
        }
    }
}

/// Advice for a socket that cannot be connected to.
fn no_connection(socket: &Path, error: &io::Error) -> String {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return "  No daemon answers there. Start it with: blkswitch serve\n  (or name its socket \
                with --socket or BLKSWITCH_SOCKET)\n"
            .to_owned();
    }
    let me = fs::metadata("/proc/self").map_or(0, |me| me.uid());
    let who = match fs::metadata(socket) {
        Ok(of) => format!(
            "it belongs to user {} and group {}, with mode {:04o}",
            of.uid(),
            of.gid(),
            of.mode() & 0o7777
        ),
        Err(_) => "its folder is closed to this user".to_owned(),
    };
    format!(
        "  User {me} may not use this socket: {who}.\n  Run the command as that user (sudo), or \
         name the socket of another daemon with --socket.\n"
    )
}

impl Refusal {
    fn text(&self) -> String {
        let ErrorBody { errno, ioctl, kernel, reason, device, generation } = &self.body;
        let Subject { name, uuid, devno } = &self.subject;
        // Libdm's reload and resume inside a create know the number of the device, but no longer
        // its UUID.
        let uuid = if device.is_some() { "" } else { uuid };
        let number = device
            .or(*devno)
            .map_or_else(String::new, |[major, minor]| format!("({major}:{minor})"));
        let mut text = match ioctl.as_str() {
            // libdm does not have these verbs.
            "attach" | "detach" => format!("{ioctl} of {name} failed: {errno}\n"),
            _ => format!("device-mapper: {ioctl} ioctl on {name} {uuid}{number} failed: {errno}\n"),
        };
        for line in kernel.iter().chain((!reason.is_empty()).then_some(reason)) {
            let _ = writeln!(text, "  {line}");
        }
        if let Some(generation) = generation {
            let _ = writeln!(text, "  the map's generation is {generation} now");
        }
        text
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(subject: Subject, device: Option<[u32; 2]>) -> String {
        let mut failure = Failure::refused("reload", Errno::Einval, String::new(), subject);
        if let Failure::Refused(refusal) = &mut failure {
            refusal.body.device = device;
        }
        failure.plain()
    }

    #[test]
    fn the_lines_of_libdm() {
        let named = Subject { name: "switch".into(), ..Subject::default() };
        assert_eq!(
            refused(named.clone(), None),
            "device-mapper: reload ioctl on switch  failed: Invalid argument\nCommand failed.\n"
        );
        let both = Subject { uuid: "SWITCH-0002".into(), ..named };
        assert_eq!(
            refused(both.clone(), Some([253, 0])),
            "device-mapper: reload ioctl on switch (253:0) failed: Invalid argument\nCommand \
             failed.\n"
        );
        assert_eq!(
            refused(both, None),
            "device-mapper: reload ioctl on switch SWITCH-0002 failed: Invalid argument\nCommand \
             failed.\n"
        );
        let numbered = Subject { devno: Some([0, 3]), ..Subject::default() };
        assert_eq!(
            refused(numbered, None),
            "device-mapper: reload ioctl on  (0:3) failed: Invalid argument\nCommand failed.\n"
        );
    }

    #[test]
    fn what_we_add_stands_between_and_indented() {
        let body = ErrorBody {
            errno: Errno::Einval,
            ioctl: "message".into(),
            kernel: vec![
                "device-mapper: switch: invalid set_region_mappings device: 9 >= 3".into(),
            ],
            reason: "`0:9` names path 9; the device has paths 0 to 2.".into(),
            device: None,
            generation: Some(7),
        };
        let subject = Subject { name: "switch".into(), ..Subject::default() };
        let text = Failure::Refused(Box::new(Refusal { body, subject })).plain();
        assert_eq!(
            text,
            "device-mapper: message ioctl on switch  failed: Invalid argument\n  \
             device-mapper: switch: invalid set_region_mappings device: 9 >= 3\n  \
             `0:9` names path 9; the device has paths 0 to 2.\n  the map's generation is 7 now\n\
             Command failed.\n"
        );
    }

    #[test]
    fn a_closed_pipe_is_no_news() {
        assert_eq!(Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)).plain(), "");
    }
}
