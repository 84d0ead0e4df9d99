//! The exact texts of `status` and `table`.
//!
//! Contract: the texts are read while requests run. Each number is correct at some moment, but not
//! all numbers at the same moment.

use core::fmt;

use super::Multipath;
use super::group::Group;
use super::params::QueueMode;
use super::path::Path;

/// Writes the device of a path, for example `8:0`, by the path's number.
pub trait WriteDevice: Fn(u32, &mut fmt::Formatter<'_>) -> fmt::Result {}
impl<F: Fn(u32, &mut fmt::Formatter<'_>) -> fmt::Result> WriteDevice for F {}

/// The kind of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Info,
    Table,
}

/// A text about a multipath target without start, length and type. `Display` writes it with a space
/// at its end.
#[derive(Clone, Copy, Debug)]
pub struct Text<'m, G, P, W> {
    multipath: &'m Multipath<G, P>,
    write_device: W,
    kind: Kind,
}

impl<G: AsRef<[Group]>, P: AsRef<[Path]>> Multipath<G, P> {
    /// The text that `status` shows: which groups and paths are in use, and their counts.
    pub const fn info<W: WriteDevice>(&self, write_device: W) -> Text<'_, G, P, W> {
        Text { multipath: self, write_device, kind: Kind::Info }
    }

    /// The text of `table`: the constructor's words, normalised, with the current group and
    /// queueing policy.
    pub const fn table<W: WriteDevice>(&self, write_device: W) -> Text<'_, G, P, W> {
        Text { multipath: self, write_device, kind: Kind::Table }
    }
}

impl<G: AsRef<[Group]>, P: AsRef<[Path]>, W: WriteDevice> Text<'_, G, P, W> {
    fn head(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind == Kind::Info {
            // blkswitch never initialises a group, so the count of waiting initialisations is 0.
            let waits = u8::from(!self.multipath.was_used());
            return write!(f, "2 {waits} 0 ");
        }
        let features = self.multipath.features();
        let queues = self.multipath.queues_if_no_path();
        let is_bio = features.queue_mode == QueueMode::Bio;
        let count = u32::from(queues)
            .wrapping_add(if features.pg_init_retries > 0 { 2 } else { 0 })
            .wrapping_add(if features.pg_init_delay_msecs.is_some() { 2 } else { 0 })
            .wrapping_add(u32::from(features.retain_attached_hw_handler))
            .wrapping_add(if is_bio { 2 } else { 0 });
        write!(f, "{count} ")?;
        if queues {
            f.write_str("queue_if_no_path ")?;
        }
        if features.pg_init_retries > 0 {
            write!(f, "pg_init_retries {} ", features.pg_init_retries)?;
        }
        if let Some(delay) = features.pg_init_delay_msecs {
            write!(f, "pg_init_delay_msecs {delay} ")?;
        }
        if features.retain_attached_hw_handler {
            f.write_str("retain_attached_hw_handler ")?;
        }
        if is_bio {
            f.write_str("queue_mode bio ")?;
        }
        Ok(())
    }

    fn group(&self, f: &mut fmt::Formatter<'_>, number: u32, group: &Group) -> fmt::Result {
        let selector = group.selector();
        let per_path = match self.kind {
            Kind::Info => {
                let current = self.multipath.current_group() == Some(number);
                let state = match (group.is_bypassed(), current) {
                    (true, _) => 'D',
                    (_, true) => 'A',
                    _ => 'E',
                };
                write!(f, "{state} ")?;
                selector.info_args()
            }
            Kind::Table => {
                write!(f, "{} ", selector.name())?;
                selector.table_args()
            }
        };
        selector.write_args(f)?;
        write!(f, "{} {per_path} ", group.num_paths())?;
        let paths = group.paths(self.multipath.paths());
        for (path, number) in paths.iter().zip(group.first_path()..) {
            (self.write_device)(number, f)?;
            f.write_str(" ")?;
            if self.kind == Kind::Table {
                selector.write_path_table(f, path)?;
                continue;
            }
            let (is_up, fail_count) = path.health();
            write!(f, "{} {fail_count} ", if is_up { 'A' } else { 'F' })?;
            selector.write_path_status(f, group, path)?;
        }
        Ok(())
    }
}

impl<G: AsRef<[Group]>, P: AsRef<[Path]>, W: WriteDevice> fmt::Display for Text<'_, G, P, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.head(f)?;
        match self.multipath.features().handler {
            // The kernel's status never names the handler.
            Some(handler) if self.kind == Kind::Table => write!(f, "1 {} ", handler.name())?,
            _ => f.write_str("0 ")?,
        }
        write!(f, "{} {} ", self.multipath.num_groups(), self.multipath.shown_group())?;
        for (group, number) in self.multipath.groups().iter().zip(1u32..) {
            self.group(f, number, group)?;
        }
        Ok(())
    }
}
