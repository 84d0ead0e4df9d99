//! Splitting: which leaves the sectors of a request lie on. Pure: reads the live tables, changes
//! nothing.
//!
//! A request is cut at region, chunk and segment boundaries; neighbours that go through the same
//! path to neighbouring addresses are one piece again.

use super::devices::Devices;
use super::state::NO_PATH;
use super::{Below, Hops, Leaf, LeafAt, PathGroups, Segment, Table, Target, To};

/// Boundaries passed before a request's split is put off until what was found is done: neighbours
/// that are one piece again cost time all the same, and a request may span a billion of them. A
/// quarter of a millisecond, or less.
const STEPS: usize = 16 << 10;

/// How far back a piece without data looks for one that it continues: as many stripes or paths as
/// take turns in most tables.
const LOOK_BACK: usize = 16;

/// How far a range is split.
pub(super) struct Cut {
    /// Pieces in the list at most.
    pieces: usize,
    /// Boundaries passed at most.
    steps: usize,
    /// Earlier pieces that a new one may continue.
    look_back: usize,
}

impl Cut {
    /// For pieces that keep the order of the request's data.
    pub(super) fn in_order(pieces: usize) -> Cut {
        Cut { pieces, steps: STEPS, look_back: 1 }
    }

    /// For pieces without data: regions that follow one another on one path become one operation,
    /// also when regions of other paths lie between them.
    pub(super) fn without_data(pieces: usize) -> Cut {
        Cut { pieces, steps: STEPS, look_back: LOOK_BACK }
    }

    fn has_room(&self, out: &[Piece]) -> bool {
        out.len() < self.pieces && self.steps > 0
    }
}

/// A piece of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// Where it goes.
    pub(super) to: PieceTo,
    /// The devices it came through; for a gate, those above it.
    pub(super) hops: Hops,
    /// Byte offset on the leaf, or on the device behind the gate.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) len: u64,
    /// Byte offset in the request's data.
    pub(super) data: u64,
}

/// Where a piece goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PieceTo {
    /// To a leaf.
    Leaf(LeafAt),
    /// Down a path of a multipath device. The path of the piece's last hop is known when it is
    /// chosen.
    Multipath {
        /// The device.
        device: u32,
        /// The path it should take, while that is up.
        path: Option<u32>,
    },
    /// To the closed gate of a device below.
    Gate(u32),
    /// It fails.
    Fail(i32),
    /// Reads give zeroes, writes vanish.
    Nowhere,
}

/// Sectors of a device to be split.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    /// The device.
    pub(super) device: u32,
    /// First sector there.
    pub(super) sector: u64,
    /// How many.
    pub(super) sectors: u64,
    /// Byte offset of the first in the request's data.
    pub(super) data: u64,
}

/// Splits a range into pieces as far as `cut` goes. Returns the sectors taken, at least one if any
/// were asked for.
pub(super) fn range(
    devices: &Devices,
    range: &Range,
    hops: Hops,
    out: &mut Vec<Piece>,
    cut: &mut Cut,
) -> u64 {
    let mut taken = 0;
    while taken < range.sectors && (taken == 0 || cut.has_room(out)) {
        cut.steps = cut.steps.saturating_sub(1);
        let (sector, left) = (range.sector + taken, range.sectors - taken);
        let data = range.data + taken * 512;
        let at = Range { sector, sectors: left, data, ..*range };
        taken += match table(devices, range.device).and_then(|t| t.segment_at(sector)) {
            Some(segment) => step(devices, &at, segment, hops, out, cut),
            None => nowhere(PieceTo::Fail(libc::EIO), &at, left, ended(hops, at.device), out, cut),
        };
    }
    taken
}

/// Where a target sends a sector.
struct Way {
    /// By which of its paths.
    path: u32,
    /// To what.
    below: Below,
    /// Which sector that is there.
    sector: u64,
    /// So many go there, from this one on.
    len: u64,
}

/// Where sector `within` of a target and those behind it, `left` in all, go; nothing if it sends
/// them nowhere, or it is not the sector that decides.
#[inline(always)]
fn way(target: &Target, within: u64, left: u64) -> Option<Way> {
    let (path, to, sector, len) = match target {
        Target::Switch { map, paths } => {
            let route = map.route(within);
            (route.path, paths.get(route.path as usize)?, within, left.min(route.left))
        }
        Target::Linear(to) => (0, to, within, left),
        Target::Striped { chunk, stripes } => {
            let (nr, in_chunk) = (within / chunk, within % chunk);
            let (stripe, row) = (nr % stripes.len() as u64, nr / stripes.len() as u64);
            let to = stripes.get(stripe as usize)?;
            (stripe as u32, to, row * chunk + in_chunk, left.min(chunk - in_chunk))
        }
        Target::Multipath { .. } | Target::Error | Target::Zero => return None,
    };
    let To { below, offset } = *to;
    Some(Way { path, below, sector: offset + sector, len })
}

/// Where a request ends that is one piece.
pub(super) enum Straight<'a> {
    /// On a leaf.
    Leaf(LeafAt, &'a Leaf),
    /// On one of the paths of a multipath device. The path of the last hop is known when it is
    /// chosen.
    Multipath(u32, &'a PathGroups, &'a Table),
}

/// Where all sectors of a request go, neighbours there, and the byte offset on what does it;
/// nothing if there is more to it than that. `hops` is empty, and becomes the way there.
#[inline(always)]
pub(super) fn straight<'a>(
    devices: &'a Devices,
    mut device: u32,
    (mut sector, sectors): (u64, u64),
    hops: &mut Hops,
) -> Option<(Straight<'a>, u64)> {
    loop {
        let local = devices.get(device as usize)?.as_ref().filter(|local| local.open)?;
        let table = &local.live.as_ref()?.table;
        let segment = table.segment_at(sector)?;
        let within = sector - segment.start;
        if let Target::Multipath { groups, .. } = &segment.target
            && sectors <= segment.len - within
        {
            let pushed = hops.push(device, segment.first_path);
            return pushed.then_some((Straight::Multipath(device, groups, table), within * 512));
        }
        let way = way(&segment.target, within, sectors.min(segment.len - within))?;
        if way.len < sectors || !hops.push(device, segment.first_path + way.path) {
            return None;
        }
        sector = way.sector;
        match way.below {
            Below::Leaf(index) => {
                let leaf = table.leaves().get(index as usize)?;
                let at = LeafAt { device, index, departed: false };
                return Some((Straight::Leaf(at, leaf), sector * 512));
            }
            Below::Device(below) => device = below,
        }
    }
}

/// One step: up to the next boundary. Returns the sectors taken.
fn step(
    devices: &Devices,
    at: &Range,
    segment: &Segment,
    hops: Hops,
    out: &mut Vec<Piece>,
    cut: &mut Cut,
) -> u64 {
    let within = at.sector - segment.start;
    let left = at.sectors.min(segment.len - within);
    let way = match &segment.target {
        Target::Multipath { .. } => {
            let to = PieceTo::Multipath { device: at.device, path: None };
            let through = hops.with(at.device, segment.first_path);
            let (to, hops) =
                through.map_or((PieceTo::Fail(libc::EIO), hops), |through| (to, through));
            return nowhere(to, at, left, hops, out, cut);
        }
        Target::Zero => {
            return nowhere(PieceTo::Nowhere, at, left, ended(hops, at.device), out, cut);
        }
        target => way(target, within, left),
    };
    let Some(Way { path, below, sector, len }) = way else {
        return nowhere(PieceTo::Fail(libc::EIO), at, left, ended(hops, at.device), out, cut);
    };
    let Some(through) = hops.with(at.device, segment.first_path + path) else {
        return nowhere(PieceTo::Fail(libc::EIO), at, len, hops, out, cut);
    };
    let there = Range { device: 0, sector, sectors: len, data: at.data };
    match below {
        Below::Leaf(index) => {
            let leaf = LeafAt { device: at.device, index, departed: false };
            push(
                Piece {
                    to: PieceTo::Leaf(leaf),
                    hops: through,
                    offset: there.sector * 512,
                    len: len * 512,
                    data: at.data,
                },
                out,
                cut,
            );
            len
        }
        Below::Device(device) => {
            below_device(devices, &Range { device, ..there }, through, out, cut)
        }
    }
}

/// The way to a device that sends a piece nowhere, for its counters. (What the request's own device
/// does is counted with the request.)
fn ended(hops: Hops, device: u32) -> Hops {
    if hops.depth == 0 { hops } else { hops.with(device, NO_PATH).unwrap_or(hops) }
}

/// Goes on in the device below, or stops at its gate.
fn below_device(
    devices: &Devices,
    at: &Range,
    hops: Hops,
    out: &mut Vec<Piece>,
    cut: &mut Cut,
) -> u64 {
    let open = devices.get(at.device as usize).and_then(Option::as_ref).map(|local| local.open);
    match open {
        Some(true) => range(devices, at, hops, out, cut),
        Some(false) => {
            let (offset, len) = (at.sector * 512, at.sectors * 512);
            push(
                Piece { to: PieceTo::Gate(at.device), hops, offset, len, data: at.data },
                out,
                cut,
            );
            at.sectors
        }
        None => nowhere(PieceTo::Fail(libc::EIO), at, at.sectors, hops, out, cut),
    }
}

fn nowhere(
    to: PieceTo,
    at: &Range,
    sectors: u64,
    hops: Hops,
    out: &mut Vec<Piece>,
    cut: &Cut,
) -> u64 {
    let (offset, len) = (at.sector * 512, sectors * 512);
    push(Piece { to, hops, offset, len, data: at.data }, out, cut);
    sectors
}

/// Adds a piece, or makes an earlier one longer.
fn push(piece: Piece, out: &mut Vec<Piece>, cut: &Cut) {
    let has_data = cut.look_back == 1;
    for earlier in out.iter_mut().rev().take(cut.look_back) {
        if earlier.to == piece.to
            && earlier.offset + earlier.len == piece.offset
            && (!has_data || earlier.data + earlier.len == piece.data)
            && earlier.hops.all() == piece.hops.all()
        {
            earlier.len += piece.len;
            return;
        }
    }
    out.push(piece);
}

/// The pieces of a flush: one for every leaf under the device that holds unflushed writes.
pub(super) fn flush(devices: &Devices, device: u32, hops: Hops, out: &mut Vec<Piece>) {
    let Some(Some(local)) = devices.get(device as usize) else { return };
    let Some(live) = &local.live else { return };
    let piece = |to, hops| Piece { to, hops, offset: 0, len: 0, data: 0 };
    // A device that was put below a stack as deep as may be: no request comes through, and a flush
    // does not say it did.
    let too_deep = || piece(PieceTo::Fail(libc::EIO), hops);
    let departed = live.departed.iter().map(|leaf| (leaf, 0, true));
    let own = live.table.leaves_with_paths().filter(|_| live.table.multipath().is_none());
    let leaves = own.map(|(leaf, path)| (leaf, path, false)).chain(departed);
    if let Some((groups, paths)) = live.table.multipath() {
        flush_multipath(&live.table, (groups, paths), device, hops, out);
    }
    let mut index = [0u32; 2];
    for (leaf, path, departed) in leaves {
        let at = LeafAt { device, index: index[usize::from(departed)], departed };
        index[usize::from(departed)] += 1;
        if leaf.needs_flush() {
            let through = hops.with(device, path);
            out.push(through.map_or_else(too_deep, |through| piece(PieceTo::Leaf(at), through)));
        }
    }
    for (below, path) in live.table.devices_with_paths() {
        let Some(hops) = hops.with(device, path) else {
            out.push(too_deep());
            continue;
        };
        match devices.get(below as usize) {
            Some(Some(local)) if !local.open => out.push(piece(PieceTo::Gate(below), hops)),
            _ => flush(devices, below, hops, out),
        }
    }
}

/// The pieces of a flush of a multipath device. The device is one volume, but its paths may lead to
/// servers with a cache each. So every path that is up and has unflushed writes is flushed. A flush
/// over another path covers the writes over paths that are down ([`super::multipath`]).
fn flush_multipath(
    table: &Table,
    (groups, paths): (&PathGroups, &[To]),
    device: u32,
    hops: Hops,
    out: &mut Vec<Piece>,
) {
    let Some(hops) = hops.with(device, 0) else {
        return out.push(Piece { to: PieceTo::Fail(libc::EIO), hops, offset: 0, len: 0, data: 0 });
    };
    let mut push = |to, path| {
        let mut hops = hops;
        hops.set_last_path(path);
        out.push(Piece { to, hops, offset: 0, len: 0, data: 0 });
    };
    let (mut flushed, mut is_down) = (false, false);
    for ((leaf, first), index) in table.leaves_with_paths().zip(0u32..) {
        if !leaf.needs_flush() {
            continue;
        }
        if leaf.engine().forgets_failed_writes() || leaf.is_lossy() {
            // Its cache is on this side, or its writes are gone: no other path can answer for it.
            push(PieceTo::Leaf(LeafAt { device, index, departed: false }), first);
            continue;
        }
        let mut ways = paths.iter().zip(groups.paths()).zip(0u32..);
        let up = ways.find(|((to, path), _)| to.below == Below::Leaf(index) && path.is_up());
        match up {
            Some((_, path)) => push(PieceTo::Multipath { device, path: Some(path) }, path),
            None => is_down = true,
        }
        flushed |= up.is_some();
    }
    if is_down && !flushed {
        push(PieceTo::Multipath { device, path: None }, 0);
    }
}

fn table(devices: &Devices, device: u32) -> Option<&Table> {
    devices.get(device as usize)?.as_ref()?.live.as_ref().map(|live| &*live.table)
}
