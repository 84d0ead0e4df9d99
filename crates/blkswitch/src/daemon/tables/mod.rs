//! From the text of a table to a table that can route requests.
//!
//! The checks come in the kernel's order, with the kernel's texts. For each line they check the
//! place of the target, its type, and its parameters ([`targets`]). After the last line they check
//! whether every device below is large enough and aligned.
//!
//! Contract: a refused table changes nothing: the leaves that only it used are closed again, and
//! the files that were made for it are removed. May block (opening leaves); any thread.

pub(crate) mod builder;
pub mod describe;
pub(crate) mod lines;
pub mod lookup;
pub(crate) mod missing;
pub mod opening;
pub(crate) mod targets;
pub(crate) mod words;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use blkswitch_core::args::Printable;
use blkswitch_core::error::Error;
use blkswitch_core::table::{Layout, SECTOR_SIZE};
use blkswitch_io::{Address, Below, Table, TableError};

use self::builder::{Builder, Site};
use self::lines::{Line, Lines};
use self::lookup::{Found, find};
use self::words::short_name;
use crate::daemon::failure::{Failure, errno_of};
use crate::protocol::{Errno, LoadTable};
use crate::raw;

/// Builds the table of `load`; `lines` are its parsed lines.
pub(crate) fn build(
    site: &Site<'_>,
    load: &LoadTable,
    lines: &Lines<'_>,
) -> Result<Table, Failure> {
    check_shown(&load.table)?;
    let mut made = MadeFiles::default();
    if load.leaves.make_files {
        made.make_missing(site, lines)?;
    }
    let mut builder = Builder::new(site, load);
    let mut layout = Layout::new();
    for line in lines.iter() {
        append(&mut builder, &mut layout, line)?;
    }
    if let Some(fault) = lines.fault() {
        return Err(Failure::new(Errno::Einval, fault.to_string()));
    }
    layout.finish().map_err(|error| {
        let reason = error.explain(None).to_string();
        Failure::new(errno_of(&error), reason).logged("populate_table: no targets specified")
    })?;
    let names = builder.leaf_names;
    let table = builder.table.build().map_err(|error| refused(site, &names, error))?;
    made.keep();
    Ok(table)
}

/// Adds the target of `line` to the table.
fn append(table: &mut Builder<'_>, layout: &mut Layout, line: &Line<'_>) -> Result<(), Failure> {
    let kind = Printable(line.kind).to_string();
    let refuse = |error: Error| {
        let text = match error {
            Error::ZeroLength | Error::TooLarge { .. } => error.to_string(),
            Error::UnknownType => format!("{kind}: {error}"),
            _ => format!("{kind}: {error} ({})", error.errno()),
        };
        let why = match error {
            Error::UnknownType => targets::unknown(&kind, line.len),
            _ => error.explain(None).to_string(),
        };
        let reason = format!("line {}: {why}", line.number);
        Failure::target(errno_of(&error), text, reason)
    };
    Layout::extent(line.start, line.len).map_err(refuse)?;
    let one = targets::by_name(line.kind).ok_or(Error::UnknownType).map_err(refuse)?;
    layout.append(line.start, line.len).map_err(refuse)?;
    check_alone(table, one.stands_alone, line)?;
    let target = (one.construct)(table, line).map_err(|mut failure| {
        failure.reason = format!("line {}: {}", line.number, failure.reason);
        failure
    })?;
    let words = std::mem::take(&mut table.words);
    table.table.push_named(line.len, target, words.into());
    Ok(())
}

/// Refuses a second target in the table of a multipath.
fn check_alone(
    table: &mut Builder<'_>,
    stands_alone: bool,
    line: &Line<'_>,
) -> Result<(), Failure> {
    if line.start > 0 && (stands_alone || table.stands_alone) {
        let text = "multipath: must be the only target of its table (-EINVAL)";
        let reason = format!(
            "line {}: a multipath is the only line of its table: put a device on top",
            line.number
        );
        return Err(Failure::target(Errno::Einval, text, reason));
    }
    table.stands_alone = stands_alone;
    Ok(())
}

/// Refuses control characters other than white space: logs and `table` show the words of tables.
fn check_shown(text: &str) -> Result<(), Failure> {
    let is_bad = |one: char| one.is_control() && !one.is_ascii_whitespace() && one != '\x0b';
    let Some(bad) = text.chars().find(|one| is_bad(*one)) else { return Ok(()) };
    let reason = format!("the table has a control character in it: {}", bad.escape_debug());
    Err(Failure::new(Errno::Einval, reason))
}

/// The failure for a table that the library refuses although all its targets are valid.
fn refused(site: &Site<'_>, leaf_names: &[String], error: TableError) -> Failure {
    let TableError::Path { below, error, .. } = error else {
        return Failure::new(Errno::Einval, error.to_string());
    };
    let address = match below {
        Below::Leaf(leaf) => leaf_names.get(leaf as usize).cloned().unwrap_or_default(),
        Below::Device(id) => {
            site.registry.by_id(id).map(|device| device.name()).unwrap_or_default()
        }
    };
    let reason = format!("path '{address}': {}", error.explain(None));
    Failure::limits(&error, short_name(&address), reason)
}

/// Files that were made for a table. They are removed again unless the table is kept.
#[derive(Default)]
struct MadeFiles {
    paths: Vec<PathBuf>,
}

impl MadeFiles {
    /// Makes the missing files that the table names: sparse, and as long as the table needs.
    fn make_missing(&mut self, site: &Site<'_>, lines: &Lines<'_>) -> Result<(), Failure> {
        let mut needed = BTreeMap::<PathBuf, u64>::new();
        for line in lines.iter() {
            let needs = targets::by_name(line.kind).map(|one| (one.needs)(line));
            for (word, sectors) in needs.unwrap_or_default() {
                if let Ok(Found::Leaf(Address::Path(path))) = find(word, site.registry) {
                    let most = needed.entry(path).or_default();
                    *most = sectors.max(*most);
                }
            }
        }
        for (path, sectors) in needed {
            if !path.exists() {
                self.make(path, sectors)?;
            }
        }
        Ok(())
    }

    fn make(&mut self, path: PathBuf, sectors: u64) -> Result<(), Failure> {
        /// Only the daemon's user may read data that is written to a device.
        const MODE: u32 = 0o600;
        let failed = |path: &PathBuf, error: std::io::Error| {
            let shown = raw::encode_os(path.as_os_str());
            let failure = Failure::io(&error, format!("cannot make '{shown}'"));
            match missing::folder(path).filter(|_| error.kind() == ErrorKind::NotFound) {
                Some(reason) => Failure { reason, ..failure },
                None => failure,
            }
        };
        let made = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&path);
        let file = made.map_err(|error| failed(&path, error))?;
        let sized =
            file.set_len(sectors.saturating_mul(SECTOR_SIZE)).map_err(|error| failed(&path, error));
        self.paths.push(path);
        sized
    }

    fn keep(&mut self) {
        self.paths.clear();
    }
}

impl Drop for MadeFiles {
    fn drop(&mut self) {
        for path in &self.paths {
            if let Err(error) = std::fs::remove_file(path) {
                tracing::warn!(path = %path.display(), %error, "a file made for a refused table stays behind");
            }
        }
    }
}
