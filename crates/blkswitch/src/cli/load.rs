//! `load` and `reload`: put a table into the inactive slot for the next resume.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use hyper::Method;

use super::context::Context;
use super::failure::Failure;
use super::names::{Selector, named_by_switch};
use super::options::Options;
use super::table_text;
use crate::protocol::{LeafCache, LeafOptions, LoadTable, route};

/// Switches for opening a table's leaves.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct LeafSwitches {
    /// Make files that are missing: sparse, and just large enough for the table
    #[arg(long)]
    make_files: bool,
    /// Bypass the page cache, also for files
    #[arg(long, conflicts_with = "buffered")]
    direct: bool,
    /// Use the page cache, also for block devices
    #[arg(long)]
    buffered: bool,
}

impl LeafSwitches {
    /// Converts the switches to the protocol's type.
    pub(super) fn options(self) -> LeafOptions {
        let cache = match (self.direct, self.buffered) {
            (true, _) => LeafCache::Direct,
            (_, true) => LeafCache::Buffered,
            _ => LeafCache::Auto,
        };
        LeafOptions { make_files: self.make_files, cache }
    }
}

/// Reads a file with a map.
pub(super) fn read_map(file: &Path) -> Result<String, Failure> {
    fs::read_to_string(file).map_err(|error| {
        Failure::Message(format!("Couldn't open '{}' for reading: {error}.", file.display()))
    })
}

/// Load a table into the inactive slot of a device
///
/// The table comes from --table, from a file, or from standard input. It becomes live with the next
/// resume.
#[derive(Debug, Args)]
#[command(override_usage = "blkswitch load [OPTIONS] <DEVICE> [TABLE_FILE]")]
pub(super) struct Load {
    /// The device and file with its table
    #[arg(value_names = ["DEVICE", "TABLE_FILE"], num_args = 0..=2)]
    args: Vec<String>,
    /// Keep the map: the new table goes live with it. Paths are compared by what they lead to;
    /// --force allows another order of them
    #[arg(long, conflicts_with = "map")]
    keep_map: bool,
    /// The map of the new table, from a file in the format of map export
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,
    #[command(flatten)]
    leaves: LeafSwitches,
    #[command(flatten)]
    options: Options,
}

pub(super) const SHOWN: &[&str] = &["table", "force", "readonly", "uuid", "major", "minor"];

impl Load {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        if self.options.notable {
            return Err(Failure::message("--notable only available when creating new device."));
        }
        let (device, file) = match (named_by_switch(&self.options), self.args.as_slice()) {
            (true, []) => (None, None),
            (true, [file]) => (None, Some(file)),
            (true, _) => return Err(Failure::message("Too many command line arguments.")),
            (false, []) => return Err(Failure::message("Please specify device.")),
            (false, [device, rest @ ..]) => (Some(device.as_str()), rest.first()),
        };
        let selector = Selector::of(device, &self.options)?;
        let table = table_text::read(self.options.table.as_deref(), file.map(String::as_str))?;
        let request = LoadTable {
            table: table.unwrap_or_default(),
            read_only: self.options.readonly,
            leaves: self.leaves.options(),
            keep_map: self.keep_map,
            force: self.options.force,
            map: self.map.as_deref().map(read_map).transpose()?,
        };
        context.command(Method::PUT, route::TABLE, &selector, "reload", &request).await?;
        context.show_if_verbose(&selector, &self.options).await
    }
}
