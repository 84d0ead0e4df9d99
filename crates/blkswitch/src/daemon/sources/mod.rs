//! Maps that something outside supplies: a file, or the array itself.
//!
//! A source is read onto a map of its own ([`staged`]). Whoever reads it compares that map with the
//! one in use and applies the difference. So what makes no sense changes nothing.
//!
//! Contract: reading may block; it changes nothing. No source trusts what it reads: every answer
//! has a bound.

mod file;
mod referrals;
mod staged;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use blkswitch_io::{Below, Leaf, Segment, Table, Target, To};

use self::file::Mark;
use self::referrals::{ANSWER_TIME, AskedPath, Unit};
pub(crate) use self::staged::StagedMap;
use crate::daemon::failure::Failure;
use crate::protocol::Errno;

/// Most devices below one another that are followed to the leaves.
const DEPTH_MAX: usize = 4;
/// The beginning of the word for a file.
const FILE: &str = "file:";
/// The word for the array's own map.
const REFERRALS: &str = "referrals";

/// Where the map of a device comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A file in the format of `map export`.
    File(PathBuf),
    /// The SCSI unit behind the paths, by REPORT REFERRALS.
    Referrals,
}

impl FromStr for Source {
    type Err = Failure;

    fn from_str(word: &str) -> Result<Source, Failure> {
        let refuse = |reason: String| Err(Failure::new(Errno::Einval, reason));
        match word.strip_prefix(FILE) {
            _ if word == REFERRALS => Ok(Source::Referrals),
            Some(path) if path.starts_with('/') => Ok(Source::File(path.into())),
            Some(path) => refuse(format!(
                "the map's file '{path}' must be an absolute path: the daemon has a working folder of \
                 its own"
            )),
            None => refuse(format!(
                "there is no source of maps '{word}': it must be {FILE}PATH or {REFERRALS}"
            )),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File(path) => write!(f, "{FILE}{}", path.display()),
            Source::Referrals => f.write_str(REFERRALS),
        }
    }
}

/// The signs of a source when it was read last. A source whose signs have not changed need not be
/// read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    file: Option<Mark>,
    /// Sum of the notices of the leaves ([`blkswitch_io::Engine::map_notices`]).
    notices: u64,
    /// The target port group of each path.
    groups: Vec<Option<u16>>,
}

/// A map that was read.
#[derive(Debug)]
pub(crate) struct Supplied {
    pub(crate) map: StagedMap,
    pub(crate) seen: Seen,
    /// Remarks for people, such as a group without a path.
    pub(crate) remarks: Vec<String>,
}

impl Source {
    /// Whether the source shows that it has changed since `seen`. A source that cannot be looked at
    /// has: reading it says why.
    pub(crate) fn has_changed(&self, table: &Table, paths: &[To], seen: &Seen) -> bool {
        match self {
            Source::File(path) => Mark::at(path).ok() != seen.file,
            Source::Referrals => notices(table, paths) != seen.notices,
        }
    }

    /// Reads the map of a switch segment.
    ///
    /// # Errors
    /// A sentence with the first thing that is wrong.
    pub(crate) fn read(
        &self,
        table: &Table,
        segment: &Segment,
        seen: &Seen,
    ) -> Result<Supplied, String> {
        let Target::Switch { map, paths } = &segment.target else {
            return Err("the segment has no map".to_owned());
        };
        let geometry = map.geometry();
        match self {
            Source::File(path) => {
                let read = file::read(path, geometry);
                let (map, mark) = read.map_err(|fault| format!("'{}': {fault}", path.display()))?;
                let seen = Seen { file: Some(mark), ..Seen::default() };
                Ok(Supplied { map, seen, remarks: Vec::new() })
            }
            Source::Referrals => {
                // Before the queries: a notice that comes meanwhile calls for another reading.
                let notices = notices(table, paths);
                let (unit, asked) = asked(table, paths, segment.len, seen)?;
                let told =
                    referrals::read(geometry, unit, &asked).map_err(|fault| fault.to_string())?;
                let without = told.without_path.iter();
                let remarks = without.map(|(group, state)| {
                    format!(
                        "no path leads to target port group {group} ({state}): other groups serve \
                         its regions"
                    )
                });
                let remarks = remarks.collect();
                let seen = Seen { file: None, notices, groups: told.groups };
                Ok(Supplied { map: told.map, seen, remarks })
            }
        }
    }
}

fn notices(table: &Table, paths: &[To]) -> u64 {
    let leaves = paths.iter().filter_map(|to| leaves_of(table, *to, DEPTH_MAX).ok());
    leaves.flat_map(|(leaves, _)| leaves).map(|leaf| leaf.engine().map_notices()).sum()
}

/// The leaves that a path leads to, and the sector of theirs at which it begins.
fn leaves_of(table: &Table, to: To, depth: usize) -> Result<(Vec<Arc<Leaf>>, u64), String> {
    let Below::Device(id) = to.below else {
        return Ok((table.leaf_of(to).into_iter().cloned().collect(), to.offset));
    };
    let device = table.devices().find(|device| device.id() == id);
    let below = device.filter(|_| depth > 0).and_then(|device| device.live());
    let below = below.ok_or("it leads to a device without a table")?;
    let (leaves, sector) = match below.segments() {
        [Segment { target: Target::Linear(next), .. }] => leaves_of(&below, *next, depth - 1)?,
        [Segment { target: Target::Multipath { paths, .. }, .. }] => {
            let leaves = paths.iter().filter_map(|path| below.leaf_of(*path));
            (leaves.cloned().collect(), 0)
        }
        [one] => return Err(format!("it leads to a {}", one.target.name())),
        all => return Err(format!("it leads to a device of {} segments", all.len())),
    };
    Ok((leaves, sector.saturating_add(to.offset)))
}

/// Prepares the questions to the array.
fn asked(
    table: &Table,
    paths: &[To],
    len: u64,
    seen: &Seen,
) -> Result<(Unit, Vec<AskedPath<'static>>), String> {
    let mut unit: Option<(Unit, Option<String>, usize)> = None;
    let mut asked = Vec::with_capacity(paths.len());
    for (number, to) in paths.iter().enumerate() {
        let (leaves, sector) = leaves_of(table, *to, DEPTH_MAX)
            .map_err(|why| format!("path {number}: {why}, and not to paths of one SCSI unit"))?;
        if sector > 0 {
            return Err(format!(
                "path {number} begins at sector {sector} of the unit, and must begin at 0: the array \
                 tells of its own blocks"
            ));
        }
        for leaf in &leaves {
            let limits = leaf.properties();
            let blocks = limits.sectors / u64::from(limits.logical_block / 512).max(1);
            let this = Unit { blocks, block_bytes: limits.logical_block };
            let identity = leaf.engine().identity();
            let (first, known, path) = unit.get_or_insert((this, identity.clone(), number));
            if *known != identity || first.blocks != this.blocks {
                return Err(format!(
                    "paths {path} and {number} lead to different units: referrals are those of one \
                     unit"
                ));
            }
            if limits.sectors < len {
                return Err(format!(
                    "the unit has {} sectors, and the segment {len}",
                    limits.sectors
                ));
            }
        }
        let ask = leaves.into_iter().map(|leaf| -> Box<referrals::Ask<'static>> {
            Box::new(move |cdb, answer| leaf.engine().scsi_query(cdb, answer, ANSWER_TIME))
        });
        let group = seen.groups.get(number).copied().flatten();
        asked.push(AskedPath { leaves: ask.collect(), group });
    }
    let (unit, _, _) = unit.ok_or("the switch has no leaf")?;
    Ok((unit, asked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_a_file_or_the_array() {
        for word in ["file:/run/map", "referrals"] {
            assert_eq!(word.parse::<Source>().unwrap().to_string(), word);
        }
        for (word, expected) in [
            ("file:map", "'map' must be an absolute path"),
            ("file:", "'' must be an absolute path"),
            ("array", "there is no source of maps 'array': it must be file:PATH or referrals"),
        ] {
            let reason = word.parse::<Source>().unwrap_err().reason;
            assert!(reason.contains(expected), "{reason}");
        }
    }
}
