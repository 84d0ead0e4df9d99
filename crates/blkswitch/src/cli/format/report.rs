//! The report of `info -c`: columns, widths, order and separators.

use std::cmp::Ordering;
use std::fmt::Write as _;

use super::{READ_AHEAD_SECTORS, block_name, numbers_or_address};
use crate::cli::names::unmangle;
use crate::protocol::{Dependency, Device};

/// The default columns of `info -c`.
const DEFAULT_COLUMNS: &str = "name,major,minor,attr,open,segments,events,uuid";

/// A cell of the report. Numbers are aligned to the right and sorted by value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Value {
    Number(u64),
    Text(String),
}

impl Value {
    fn text(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text.clone(),
        }
    }
}

/// A column: its name for `-o`, its heading, its smallest width, its description, and the function
/// for its cells.
struct Column {
    id: &'static str,
    heading: &'static str,
    width: usize,
    about: &'static str,
    value: fn(&Row<'_>) -> Value,
}

/// A device, with all devices for the columns that need the others.
struct Row<'a> {
    device: &'a Device,
    all: &'a [Device],
}

/// Columns, order and form of a report.
#[derive(Debug, Clone)]
pub(crate) struct Style {
    /// The list of `-o`. A leading `+` adds its columns to the default ones.
    pub columns: Option<String>,
    /// The list of `-O`.
    pub sort: Option<String>,
    /// Whether to print headings, and to pad cells to a width.
    pub headings: bool,
    /// The text between columns; `None` pads them instead.
    pub separator: Option<String>,
    /// Whether to print `DM_NAME='...'` instead of the bare value.
    pub prefixes: bool,
    /// Whether `prefixes` puts the value in quotes.
    pub quotes: bool,
}

const COLUMNS: &[Column] = &[
    Column {
        id: "name",
        heading: "Name",
        width: 16,
        about: "Name of the device.",
        value: |row| text(&row.device.name),
    },
    Column {
        id: "mangled_name",
        heading: "MangledName",
        width: 16,
        about: "Name with \\xNN for unusual characters.",
        value: |row| text(&row.device.name),
    },
    Column {
        id: "unmangled_name",
        heading: "UnmangledName",
        width: 16,
        about: "Name without \\xNN.",
        value: |row| Value::Text(unmangle(&row.device.name)),
    },
    Column {
        id: "uuid",
        heading: "UUID",
        width: 32,
        about: "Unique identifier, if it has one.",
        value: |row| text(&row.device.uuid),
    },
    Column {
        id: "mangled_uuid",
        heading: "MangledUUID",
        width: 32,
        about: "Unique identifier with \\xNN for unusual characters.",
        value: |row| text(&row.device.uuid),
    },
    Column {
        id: "unmangled_uuid",
        heading: "UnmangledUUID",
        width: 32,
        about: "Unique identifier without \\xNN.",
        value: |row| Value::Text(unmangle(&row.device.uuid)),
    },
    Column {
        id: "read_ahead",
        heading: "RAhead",
        width: 6,
        about: "Read ahead of a client that attaches the export, in sectors.",
        value: |row| {
            Value::Number(if row.device.live.is_some() { READ_AHEAD_SECTORS.into() } else { 0 })
        },
    },
    Column {
        id: "blkdevname",
        heading: "BlkDevName",
        width: 16,
        about: "What stands for the kernel's name.",
        value: |row| Value::Text(block_name(row.device)),
    },
    Column {
        id: "attr",
        heading: "Stat",
        width: 4,
        about: "(L)ive, (I)nactive, (s)uspended, (r)ead-only, read-(w)rite.",
        value: |row| Value::Text(attributes(row.device)),
    },
    Column {
        id: "tables_loaded",
        heading: "Tables",
        width: 6,
        about: "Which of the slots are filled.",
        value: |row| text(tables_loaded(row.device)),
    },
    Column {
        id: "suspended",
        heading: "Suspended",
        width: 9,
        about: "Whether it is suspended.",
        value: |row| text(if row.device.suspended { "Suspended" } else { "Active" }),
    },
    Column {
        id: "readonly",
        heading: "Read-only",
        width: 9,
        about: "Whether it refuses writes.",
        value: |row| text(if row.device.read_only { "Read-only" } else { "Writeable" }),
    },
    Column {
        id: "devno",
        heading: "DevNo",
        width: 5,
        about: "Major and minor number.",
        value: |row| Value::Text(format!("{}:{}", row.device.major, row.device.minor)),
    },
    Column {
        id: "major",
        heading: "Maj",
        width: 3,
        about: "Major number.",
        value: |row| Value::Number(row.device.major.into()),
    },
    Column {
        id: "minor",
        heading: "Min",
        width: 3,
        about: "Minor number.",
        value: |row| Value::Number(row.device.minor.into()),
    },
    Column {
        id: "open",
        heading: "Open",
        width: 4,
        about: "How many have it open.",
        value: |row| Value::Number(row.device.open_count.into()),
    },
    Column {
        id: "segments",
        heading: "Targ",
        width: 4,
        about: "Segments of the live table.",
        value: |row| {
            Value::Number(row.device.live.as_ref().map_or(0, |table| table.segments.len() as u64))
        },
    },
    Column {
        id: "generation",
        heading: "MapGen",
        width: 6,
        about: "Generation of its region maps: rises before a message or a swap changes them.",
        value: |row| Value::Number(row.device.generation),
    },
    Column {
        id: "events",
        heading: "Event",
        width: 6,
        about: "Number of the latest event.",
        value: |row| Value::Number(row.device.event_nr.into()),
    },
    Column {
        id: "device_count",
        heading: "#Devs",
        width: 5,
        about: "How many leaves and devices it stands on.",
        value: |row| Value::Number(row.deps().len() as u64),
    },
    Column {
        id: "devs_used",
        heading: "DevNamesUsed",
        width: 16,
        about: "The devices of this daemon that it stands on.",
        value: |row| {
            joined(row.deps().iter().filter(|dep| dep.is_device).map(|dep| dep.name.clone()))
        },
    },
    Column {
        id: "devnos_used",
        heading: "DevNosUsed",
        width: 16,
        about: "Numbers of all it stands on.",
        value: |row| joined(row.deps().iter().map(|dep| numbers_or_address(dep, ":"))),
    },
    Column {
        id: "blkdevs_used",
        heading: "BlkDevNamesUsed",
        width: 16,
        about: "Names of all it stands on.",
        value: |row| joined(row.deps().iter().map(super::lines::block_dependency)),
    },
    Column {
        id: "device_ref_count",
        heading: "#Refs",
        width: 5,
        about: "How many devices stand on it.",
        value: |row| Value::Number(row.users().count() as u64),
    },
    Column {
        id: "names_using_dev",
        heading: "RefNames",
        width: 8,
        about: "Names of the devices that stand on it.",
        value: |row| joined(row.users().map(|user| user.name.clone())),
    },
    Column {
        id: "devnos_using_dev",
        heading: "RefDevNos",
        width: 9,
        about: "Numbers of the devices that stand on it.",
        value: |row| joined(row.users().map(|user| format!("{}:{}", user.major, user.minor))),
    },
];

impl Row<'_> {
    fn deps(&self) -> &[Dependency] {
        self.device.live.as_ref().map(|table| table.deps.as_slice()).unwrap_or_default()
    }

    fn users(&self) -> impl Iterator<Item = &Device> {
        self.all.iter().filter(|user| {
            let deps = user.live.as_ref().map(|table| table.deps.as_slice()).unwrap_or_default();
            deps.iter().any(|dep| dep.is_device && dep.name == self.device.name)
        })
    }
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

fn joined(parts: impl Iterator<Item = String>) -> Value {
    Value::Text(parts.collect::<Vec<_>>().join(","))
}

fn attributes(device: &Device) -> String {
    let flag = |set, letter| if set { letter } else { '-' };
    let live = flag(device.live.is_some(), 'L');
    let inactive = flag(device.inactive.is_some(), 'I');
    let suspended = flag(device.suspended, 's');
    let writes = if device.read_only { 'r' } else { 'w' };
    [live, inactive, suspended, writes].iter().collect()
}

fn tables_loaded(device: &Device) -> &'static str {
    match (&device.live, &device.inactive) {
        (None, None) => "None",
        (Some(_), None) => "Live",
        (None, Some(_)) => "Inactive",
        (Some(_), Some(_)) => "Both",
    }
}

/// Writes the report on `devices`, a subset of `all`. `Err` has the list of columns if one is
/// unknown.
pub(crate) fn report(devices: &[&Device], all: &[Device], style: &Style) -> Result<String, String> {
    let columns = chosen(style)?;
    let keys = sort_keys(style)?;
    let mut rows: Vec<Row<'_>> = devices.iter().map(|device| Row { device, all }).collect();
    rows.sort_by(|a, b| compare(a, b, &keys));
    let cells =
        rows.iter().map(|row| columns.iter().map(|column| (column.value)(row)).collect()).collect();
    Ok(print(&columns, cells, style))
}

fn chosen(style: &Style) -> Result<Vec<&'static Column>, String> {
    let list = match style.columns.as_deref() {
        None => DEFAULT_COLUMNS.to_owned(),
        Some(list) => match list.strip_prefix('+') {
            Some(more) => format!("{DEFAULT_COLUMNS},{more}"),
            None => list.to_owned(),
        },
    };
    let mut columns = Vec::new();
    for id in list.split(',').map(str::trim).filter(|id| !id.is_empty()) {
        match id {
            "help" | "?" => return Err(help()),
            "all" => columns.extend(COLUMNS),
            _ => columns.push(column(id)?),
        }
    }
    Ok(columns)
}

fn column(id: &str) -> Result<&'static Column, String> {
    let found = COLUMNS.iter().find(|column| column.id == id);
    found.ok_or_else(|| format!("{}\nUnrecognised field: {id}", help()))
}

/// The list of columns, for `-o help`.
pub(crate) fn help() -> String {
    let mut text = String::from("Columns of info -c\n------------------\n");
    let _ = writeln!(text, "  {:<21} - All columns.", "all");
    for column in COLUMNS {
        let _ = writeln!(text, "  {:<21} - {}", column.id, column.about);
    }
    text
}

/// The columns to sort by; the flag says whether the order is reversed.
fn sort_keys(style: &Style) -> Result<Vec<(&'static Column, bool)>, String> {
    let list = style.sort.as_deref().unwrap_or_default();
    let words = list.split(',').filter(|word| !word.is_empty());
    words
        .map(|word| match word.strip_prefix('-') {
            Some(id) => Ok((column(id)?, true)),
            None => Ok((column(word.strip_prefix('+').unwrap_or(word))?, false)),
        })
        .collect()
}

fn compare(a: &Row<'_>, b: &Row<'_>, keys: &[(&'static Column, bool)]) -> Ordering {
    let orders = keys.iter().map(|(column, backwards)| {
        let order = (column.value)(a).cmp(&(column.value)(b));
        if *backwards { order.reverse() } else { order }
    });
    orders.fold(Ordering::Equal, Ordering::then)
}

fn print(columns: &[&Column], rows: Vec<Vec<Value>>, style: &Style) -> String {
    let padded = style.separator.is_none() && !style.prefixes;
    let separator = style.separator.as_deref().unwrap_or(" ");
    let widths: Vec<usize> = (0..columns.len())
        .map(|index| if padded { width(columns[index], index, &rows, style) } else { 0 })
        .collect();
    let mut out = String::new();
    if style.headings && !rows.is_empty() {
        let headings = columns
            .iter()
            .zip(&widths)
            .map(|(column, width)| format!("{:<width$}", column.heading));
        out.push_str(&headings.collect::<Vec<_>>().join(separator));
        out.push('\n');
    }
    for row in rows {
        let cells = row
            .iter()
            .zip(columns)
            .zip(&widths)
            .map(|((value, column), &width)| cell(value, column, width, style));
        out.push_str(&cells.collect::<Vec<_>>().join(separator));
        out.push('\n');
    }
    out
}

fn width(column: &Column, index: usize, rows: &[Vec<Value>], style: &Style) -> usize {
    let heading = if style.headings { column.heading.len() } else { 0 };
    let cells = rows.iter().map(|row| row[index].text().chars().count());
    cells.fold(column.width.max(heading), usize::max)
}

fn cell(value: &Value, column: &Column, width: usize, style: &Style) -> String {
    if style.prefixes {
        let quote = if style.quotes { "'" } else { "" };
        return format!("DM_{}={quote}{}{quote}", column.id.to_uppercase(), value.text());
    }
    match value {
        Value::Number(number) => format!("{number:>width$}"),
        Value::Text(text) => format!("{text:<width$}"),
    }
}
