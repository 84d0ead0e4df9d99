//! The striped target (dm-stripe 1.6) distributes the segment over its devices, chunk by chunk.
//!
//! Contract: as [`super`].

use blkswitch_core::args::parse_u32;
use blkswitch_io::{Segment, Table, Target, To};

use super::{
    Need, TargetType, bad_number, bad_offset, device_pairs, lookup_failed, refuse, sector,
};
use crate::daemon::failure::Failure;
use crate::daemon::tables::builder::Builder;
use crate::daemon::tables::lines::Line;
use crate::daemon::tables::words::{address, paths_text};

pub(super) static TYPE: TargetType = TargetType {
    name: "striped",
    version: [1, 6, 0],
    stands_alone: false,
    construct,
    params,
    status,
    message: None,
    needs,
};

fn construct(table: &mut Builder<'_>, line: &Line<'_>) -> Result<Target, Failure> {
    let len = line.len;
    let refuse = |text, reason: String| refuse("striped", text, reason);
    let [count, chunk, rest @ ..] = line.words.as_slice() else {
        return Err(refuse(
            "Not enough arguments",
            "striped needs a stripe count and a chunk size".to_owned(),
        ));
    };
    let stripes = parse_u32(count)
        .filter(|count| *count > 0)
        .ok_or_else(|| refuse("Invalid stripe count", bad_number("stripe count", count)))?;
    let chunk = parse_u32(chunk)
        .filter(|chunk| *chunk > 0)
        .ok_or_else(|| refuse("Invalid chunk_size", bad_number("chunk size in sectors", chunk)))?;
    let (stripes, chunk) = (u64::from(stripes), u64::from(chunk));
    if !len.is_multiple_of(stripes) {
        let reason =
            format!("the length of {len} sectors must be a multiple of the {stripes} stripes");
        return Err(refuse("Target length not divisible by number of stripes", reason));
    }
    let width = len / stripes;
    if !width.is_multiple_of(chunk) {
        let reason = format!(
            "a stripe of {width} sectors must be a multiple of the chunk of {chunk} sectors"
        );
        return Err(refuse("Target length not divisible by chunk size", reason));
    }
    if rest.len() as u64 != stripes.saturating_mul(2) {
        let reason = format!(
            "{stripes} stripes need as many devices with offsets, but {} words follow",
            rest.len()
        );
        return Err(refuse("Not enough destinations specified", reason));
    }
    let mut places = Vec::with_capacity(rest.len() / 2);
    for stripe in rest.chunks_exact(2) {
        let [device, offset] = stripe else { continue };
        const TEXT: &str = "Couldn't parse stripe destination";
        let offset = sector(offset).ok_or_else(|| refuse(TEXT, bad_offset(offset)))?;
        let below = table.below(device).map_err(|found| lookup_failed("striped", TEXT, found))?;
        places.push(To { below, offset });
    }
    Ok(Target::Striped { chunk, stripes: places.into() })
}

fn params(table: &Table, segment: &Segment) -> String {
    let Target::Striped { chunk, stripes } = &segment.target else { return String::new() };
    paths_text(format!("{} {chunk}", stripes.len()), table, segment)
}

fn status(table: &Table, segment: &Segment) -> String {
    let Target::Striped { stripes, .. } = &segment.target else { return String::new() };
    let address = |path| format!("{} ", address(table, segment, path));
    let addresses: String = (0..stripes.len()).map(address).collect();
    // The kernel prints a letter per stripe: A for alive. No stripe is ever marked as dead here.
    format!("{} {addresses}1 {}", stripes.len(), "A".repeat(stripes.len()))
}

fn needs<'a>(line: &Line<'a>) -> Vec<Need<'a>> {
    match line.words.as_slice() {
        [count, _, devices @ ..] => match parse_u32(count) {
            Some(count @ 1..) => device_pairs(devices, line.len / u64::from(count)),
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}
