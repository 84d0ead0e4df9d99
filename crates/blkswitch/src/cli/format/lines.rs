//! The output of `table`, `status`, `ls`, `deps` and `table --concise`: one line per segment or
//! device.

use std::fmt::Write as _;

use super::{block_name, block_name_of, numbers_or_address};
use crate::cli::table_text::quote_concise;
use crate::protocol::{Dependency, Device, LoadedTable, Segment};

/// The text of a segment that is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Column {
    /// The parameters of the table line.
    Table,
    /// The status of the target.
    Status,
}

/// The form in which `ls` and `deps` print devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum DeviceName {
    /// The major and minor number.
    #[default]
    Number,
    /// The name that the kernel gives it.
    Block,
    /// The device's own name if it belongs to the daemon, otherwise the kernel's name.
    Mapped,
}

impl DeviceName {
    /// Parses the list of `-o`. The last word of the list counts.
    pub(crate) fn parse(list: Option<&str>) -> Result<Self, String> {
        let mut chosen = Self::default();
        for word in
            list.into_iter().flat_map(|list| list.split(',')).filter(|word| !word.is_empty())
        {
            chosen = match word {
                "devno" => Self::Number,
                "blkdevname" => Self::Block,
                "devname" => Self::Mapped,
                _ => return Err(format!("Option not recognised: {word}.")),
            };
        }
        Ok(chosen)
    }
}

/// One line for each segment of type `target` in a table, with `prefix` before it. A device without
/// a table has one empty line, unless `target` is given.
pub(crate) fn segments(
    table: Option<&LoadedTable>,
    column: Column,
    target: Option<&str>,
    prefix: &str,
) -> String {
    let mut text = String::new();
    let all = table.map(|table| table.segments.as_slice()).unwrap_or_default();
    for segment in matching(all, target) {
        let _ = writeln!(text, "{prefix}{}", segment_line(segment, column));
    }
    if all.is_empty() && target.is_none() {
        let _ = writeln!(text, "{prefix}");
    }
    text
}

/// The segments of type `target`, or all segments without one.
pub(crate) fn matching<'a>(
    all: &'a [Segment],
    target: Option<&'a str>,
) -> impl Iterator<Item = &'a Segment> {
    all.iter().filter(move |segment| target.is_none_or(|target| segment.target == target))
}

fn segment_line(segment: &Segment, column: Column) -> String {
    let Segment { start, length, target, params, status } = segment;
    let params = match column {
        Column::Table => params,
        Column::Status => status,
    };
    format!("{start} {length} {target} {params}")
}

/// The device in the form that `create --concise` reads.
pub(crate) fn concise(
    device: &Device,
    table: Option<&LoadedTable>,
    target: Option<&str>,
) -> String {
    let (name, uuid) = (quote_concise(&device.name), quote_concise(&device.uuid));
    let mut text =
        format!("{name},{uuid},{},{}", device.minor, if device.read_only { "ro" } else { "rw" });
    let all = table.map(|table| table.segments.as_slice()).unwrap_or_default();
    for Segment { start, length, target, params, .. } in matching(all, target) {
        let _ = write!(text, ",{start} {length} {target} {}", quote_concise(params));
    }
    text
}

/// The line that `ls` prints for a device.
pub(crate) fn ls(device: &Device, by: DeviceName) -> String {
    match by {
        DeviceName::Number => {
            // The additional text appears only for a device that dmsetup could not have shown.
            let disk =
                device.disk.as_ref().map_or_else(String::new, |disk| format!("\t{}", disk.node));
            let socket = device
                .vhost_user
                .as_ref()
                .map_or_else(String::new, |vhost_user| format!("\t{}", vhost_user.socket));
            let away = if device.away.is_some() { "\taway" } else { "" };
            format!("{}\t({}:{}){disk}{socket}{away}\n", device.name, device.major, device.minor)
        }
        DeviceName::Block => format!("{}\t({})\n", device.name, block_name(device)),
        DeviceName::Mapped => format!("{0}\t({0})\n", device.name),
    }
}

/// The line that `ls --target` prints for a device. dmsetup uses another form there.
pub(crate) fn ls_target(device: &Device) -> String {
    format!("{}\t({}, {})\n", device.name, device.major, device.minor)
}

/// The line that `deps` prints for a device.
pub(crate) fn deps(table: Option<&LoadedTable>, by: DeviceName, prefix: &str) -> String {
    let deps = table.map(|table| table.deps.as_slice()).unwrap_or_default();
    let mut text = format!("{prefix}{} dependencies\t:", deps.len());
    for dep in deps {
        let _ = write!(text, " ({})", dependency(dep, by));
    }
    text.push('\n');
    text
}

fn dependency(dep: &Dependency, by: DeviceName) -> String {
    match by {
        DeviceName::Number => numbers_or_address(dep, ", "),
        DeviceName::Block => block_dependency(dep),
        DeviceName::Mapped => dep.name.clone(),
    }
}

/// The name of a dependency where dmsetup shows the kernel's name.
pub(crate) fn block_dependency(dep: &Dependency) -> String {
    if dep.is_device { block_name_of(dep.minor) } else { dep.name.clone() }
}
