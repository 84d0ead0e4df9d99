//! Events: what has changed, for who waits, watches, logs or counts.
//!
//! Contract: an event is handed to the closure that the call which caused it was given, on the
//! thread of that call, after the change took effect. Two queues that change things at once hand
//! out their events in any order; each change is handed out once.

use core::fmt;

/// A change. Paths count from 0, groups from 1, as everywhere in status and messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A path has failed: by message, or by an error of its I/O.
    PathFailed {
        /// The path.
        path: u32,
        /// Paths that are still up.
        left: u32,
    },
    /// A path is back. Requests that are held may go on: whoever holds some asks again.
    PathReinstated {
        /// The path.
        path: u32,
        /// Paths that are up now.
        left: u32,
    },
    /// Requests take another group than before.
    GroupSwitched {
        /// The group.
        group: u32,
    },
    /// A message has named the group to use next, or a failback has.
    GroupChosen {
        /// The group.
        group: u32,
    },
    /// A message has disabled a group.
    GroupDisabled {
        /// The group.
        group: u32,
    },
    /// A message has enabled a group.
    GroupEnabled {
        /// The group.
        group: u32,
    },
    /// From now on requests are held while no path is up.
    QueueingOn,
    /// From now on requests fail while no path is up, those that are held too: whoever holds some
    /// asks again.
    QueueingOff,
}

impl Event {
    /// Does it count for `dmsetup wait`? The kernel does not count what moves by itself, nor the
    /// queueing policy.
    #[must_use]
    pub const fn is_counted(&self) -> bool {
        match self {
            Self::PathFailed { .. }
            | Self::PathReinstated { .. }
            | Self::GroupChosen { .. }
            | Self::GroupDisabled { .. }
            | Self::GroupEnabled { .. } => true,
            Self::GroupSwitched { .. } | Self::QueueingOn | Self::QueueingOff => false,
        }
    }

    /// Must requests that are held ask for a path again?
    #[must_use]
    pub const fn releases_held(&self) -> bool {
        matches!(self, Self::PathReinstated { .. } | Self::QueueingOff)
    }

    /// The path it is about.
    #[must_use]
    pub const fn path(&self) -> Option<u32> {
        match self {
            Self::PathFailed { path, .. } | Self::PathReinstated { path, .. } => Some(*path),
            _ => None,
        }
    }

    /// One word for machines; for paths the kernel's word in its uevents.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::PathFailed { .. } => "PATH_FAILED",
            Self::PathReinstated { .. } => "PATH_REINSTATED",
            Self::GroupSwitched { .. } => "GROUP_SWITCHED",
            Self::GroupChosen { .. } => "GROUP_CHOSEN",
            Self::GroupDisabled { .. } => "GROUP_DISABLED",
            Self::GroupEnabled { .. } => "GROUP_ENABLED",
            Self::QueueingOn => "QUEUEING_ON",
            Self::QueueingOff => "QUEUEING_OFF",
        }
    }

    /// Its line in the log. `device` is the multipath device, `path` the device of [`Event::path`].
    #[must_use]
    pub const fn log_line<'a>(&self, device: &'a str, path: &'a str) -> LogLine<'a> {
        LogLine { event: *self, device, path }
    }
}

/// A line of the log. For paths `Display` is the kernel's text, without `device-mapper: ` before
/// it; about the rest the kernel says nothing.
#[derive(Clone, Copy, Debug)]
pub struct LogLine<'a> {
    event: Event,
    device: &'a str,
    path: &'a str,
}

impl fmt::Display for LogLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (device, path) = (self.device, self.path);
        write!(f, "multipath: {device}: ")?;
        match self.event {
            Event::PathFailed { .. } => write!(f, "Failing path {path}."),
            Event::PathReinstated { .. } => write!(f, "Reinstating path {path}."),
            Event::GroupSwitched { group } => write!(f, "Using priority group {group}."),
            Event::GroupChosen { group } => write!(f, "Priority group {group} is to be used next."),
            Event::GroupDisabled { group } => write!(f, "Disabling priority group {group}."),
            Event::GroupEnabled { group } => write!(f, "Enabling priority group {group}."),
            Event::QueueingOn => f.write_str("Queueing I/O while no path is up."),
            Event::QueueingOff => f.write_str("Failing I/O while no path is up."),
        }
    }
}
