//! Events: changes of a multipath device, for waiting, monitoring, logs and counters.
//!
//! Contract: a call that causes an event passes it to the closure it was given, on its own thread,
//! after the change took effect. Each change is reported once. If two queues change the state at
//! once, their events come in any order.

use core::fmt;

/// A change. Paths count from 0, groups from 1, as everywhere in status and messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A path has failed: by message, or by an error of its I/O.
    PathFailed {
        /// The number of the failed path.
        path: u32,
        /// Number of paths that are still up.
        left: u32,
    },
    /// A path is back. The holder of held requests asks for a path again.
    PathReinstated {
        /// The number of the reinstated path.
        path: u32,
        /// Number of paths that are up now.
        left: u32,
    },
    /// Requests now use another group.
    GroupSwitched {
        /// The number of the group that requests use now.
        group: u32,
    },
    /// A message or a failback has named the group to use next.
    GroupChosen {
        /// The number of the group to use next.
        group: u32,
    },
    /// A message has disabled a group.
    GroupDisabled {
        /// The number of the disabled group.
        group: u32,
    },
    /// A message has enabled a group.
    GroupEnabled {
        /// The number of the enabled group.
        group: u32,
    },
    /// From now on requests are held while no path is up.
    QueueingOn,
    /// From now on requests fail while no path is up. The holder of held requests asks again, and
    /// they fail, too.
    QueueingOff,
}

impl Event {
    /// Whether the event counts for `dmsetup wait`. The kernel counts neither automatic changes of
    /// the group nor the queueing policy.
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

    /// Whether held requests must ask for a path again.
    #[must_use]
    pub const fn releases_held(&self) -> bool {
        matches!(self, Self::PathReinstated { .. } | Self::QueueingOff)
    }

    /// The path of the event, if it has one.
    #[must_use]
    pub const fn path(&self) -> Option<u32> {
        match self {
            Self::PathFailed { path, .. } | Self::PathReinstated { path, .. } => Some(*path),
            _ => None,
        }
    }

    /// One word for programs. Events of paths have the kernel's word from its uevents.
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

    /// The line for the log. `device` is the multipath device, `path` the device of
    /// [`Event::path`].
    #[must_use]
    pub const fn log_line<'a>(&self, device: &'a str, path: &'a str) -> LogLine<'a> {
        LogLine { event: *self, device, path }
    }
}

/// A line for the log. For events of paths, `Display` is the kernel's text without the prefix
/// `device-mapper: `. The kernel logs no other events.
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
