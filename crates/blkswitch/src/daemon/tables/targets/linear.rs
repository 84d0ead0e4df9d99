//! The linear target (dm-linear 1.4) maps the segment to a part of one device.
//!
//! Contract: as [`super`].

use blkswitch_io::{Segment, Table, Target, To};

use super::{Need, TargetType, bad_offset, device_pairs, lookup_failed, no_status, refuse, sector};
use crate::daemon::failure::Failure;
use crate::daemon::tables::builder::Builder;
use crate::daemon::tables::lines::Line;
use crate::daemon::tables::words::paths_text;

pub(super) static TYPE: TargetType = TargetType {
    name: "linear",
    version: [1, 4, 0],
    stands_alone: false,
    construct,
    params,
    status: no_status,
    message: None,
    needs,
};

fn construct(table: &mut Builder<'_>, line: &Line<'_>) -> Result<Target, Failure> {
    let [device, offset] = line.words.as_slice() else {
        return Err(refuse(
            "linear",
            "Invalid argument count",
            "linear needs a device and an offset".to_owned(),
        ));
    };
    let offset = sector(offset)
        .ok_or_else(|| refuse("linear", "Invalid device sector", bad_offset(offset)))?;
    let below = table
        .below(device)
        .map_err(|found| lookup_failed("linear", "Device lookup failed", found))?;
    Ok(Target::Linear(To { below, offset }))
}

fn params(table: &Table, segment: &Segment) -> String {
    paths_text(String::new(), table, segment)
}

fn needs<'a>(line: &Line<'a>) -> Vec<Need<'a>> {
    device_pairs(&line.words, line.len)
}
