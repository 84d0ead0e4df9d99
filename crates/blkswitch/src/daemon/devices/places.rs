//! Where a sector of a device lies: through all tiers down to a leaf.
//!
//! Contract: reads only, and does no I/O. If tables or maps change meanwhile, a place may show
//! different moments for different tiers. A look-up takes as many steps as there are tiers,
//! whatever the size of the maps.

use std::sync::Arc;

use blkswitch_io::table::PathGroups;
use blkswitch_io::{Below, Device, DeviceError, Segment, Table, Target};

use crate::daemon::devices::switch::Switch;
use crate::daemon::failure::Failure;
use crate::daemon::tables::words::address;
use crate::protocol::{Errno, Place, Tier, Unit, WHERE_NUMBERS_MAX, Where};

/// Bytes of a sector.
const SECTOR_BYTES: u64 = 512;

/// Where a target sends a sector of its segment.
struct Way {
    path: u32,
    region: Option<u64>,
    /// The sector on the path's destination.
    sector: u64,
    /// How many sectors go there, from this one on; the caller limits it to the segment.
    sectors: u64,
}

/// The places of all numbers of `ask`, in order.
pub(crate) fn places(device: &Arc<Device>, ask: &Where) -> Result<Vec<Place>, Failure> {
    if ask.numbers.len() > WHERE_NUMBERS_MAX {
        let reason = format!(
            "{} numbers: at most {WHERE_NUMBERS_MAX} can be looked up at once",
            ask.numbers.len()
        );
        return Err(Failure::new(Errno::E2big, reason));
    }
    let first = first_sectors(device, ask)?;
    ask.numbers
        .iter()
        .map(|&number| {
            let (sector, sectors) = first(number)?;
            Ok(place(device, number, sector, sectors, ask.unit))
        })
        .collect()
}

/// Converts a number to a sector of the device, and the number of sectors that are meant.
type FirstSector = Box<dyn Fn(u64) -> Result<(u64, u64), Failure>>;

fn first_sectors(device: &Device, ask: &Where) -> Result<FirstSector, Failure> {
    let outside = |unit: Unit, number: u64, count: u64| {
        let (unit, last) = (unit.name(), count.saturating_sub(1));
        Failure::new(Errno::Einval, format!("{unit} {number}: it must be from 0 to {last}"))
    };
    let unit = ask.unit;
    if unit == Unit::Region {
        let switch = Switch::of(device, ask.segment)?;
        let geometry = *switch.map()?.geometry();
        return Ok(Box::new(move |region| {
            let extent = geometry.region_extent(region);
            let (start, len) =
                extent.ok_or_else(|| outside(unit, region, geometry.nr_regions()))?;
            Ok((switch.start + start, len))
        }));
    }
    let sectors = device.live().ok_or(DeviceError::NoTable)?.len();
    let per_sector = if unit == Unit::Byte { SECTOR_BYTES } else { 1 };
    Ok(Box::new(move |number| match number / per_sector {
        sector if sector < sectors => Ok((sector, sectors - sector)),
        _ => Err(outside(unit, number, sectors.saturating_mul(per_sector))),
    }))
}

/// Follows a sector through the tables. `most` limits the number of sectors of the answer.
fn place(device: &Arc<Device>, number: u64, sector: u64, most: u64, unit: Unit) -> Place {
    let mut place = Place { number, sector, sectors: most, ..Place::default() };
    let (mut device, mut sector) = (device.clone(), sector);
    // Tables are at most `MAX_DEPTH` deep. The depth can only differ here if they change meanwhile.
    for _ in 0..=blkswitch_io::table::MAX_DEPTH {
        let mut tier = Tier { device: device.name(), sector, ..Tier::default() };
        let live = device.live();
        let found = live.as_ref().and_then(|table| Some((table, table.segment_at(sector)?)));
        let Some((table, segment)) = found else {
            place.tiers.push(tier);
            return place;
        };
        tier.target = segment.target.name().to_owned();
        let within = sector - segment.start;
        let way = way(&segment.target, within);
        tier.region = way.as_ref().and_then(|way| way.region);
        tier.path = way.as_ref().map(|way| way.path);
        if place.tiers.is_empty() {
            (place.region, place.path) = (tier.region, tier.path);
        }
        place.tiers.push(tier);
        place.sectors = place.sectors.min(segment.len - within);
        let Some(way) = way else { return place };
        place.sectors = place.sectors.min(way.sectors);
        match end(table, segment, &way) {
            Some(End::Leaf(name)) => {
                let into = if unit == Unit::Byte { number % SECTOR_BYTES } else { 0 };
                place.leaf = Some(name);
                place.leaf_sector = Some(way.sector);
                place.leaf_byte = Some(way.sector.saturating_mul(SECTOR_BYTES) + into);
                return place;
            }
            Some(End::Device(below)) => (device, sector) = (below, way.sector),
            None => return place,
        }
    }
    place
}

/// The destination of a path.
enum End {
    Leaf(String),
    Device(Arc<Device>),
}

fn end(table: &Table, segment: &Segment, way: &Way) -> Option<End> {
    match segment.target.paths().get(way.path as usize)?.below {
        Below::Leaf(_) => Some(End::Leaf(address(table, segment, way.path as usize))),
        Below::Device(id) => {
            table.devices().find(|device| device.id() == id).cloned().map(End::Device)
        }
    }
}

/// Where a target sends a sector; `None` if it sends it nowhere.
fn way(target: &Target, within: u64) -> Option<Way> {
    let (path, region, sector, sectors) = match target {
        Target::Switch { map, .. } => {
            let route = map.route(within);
            (route.path, Some(map.geometry().region_of(within)), within, route.left)
        }
        Target::Linear(_) => (0, None, within, u64::MAX),
        Target::Striped { chunk, stripes } => {
            let (number, into) = (within / chunk, within % chunk);
            let (stripe, row) = (number % stripes.len() as u64, number / stripes.len() as u64);
            (stripe as u32, None, row * chunk + into, chunk - into)
        }
        Target::Multipath { groups, .. } => (path_in_use(groups)?, None, within, u64::MAX),
        Target::Error | Target::Zero => return None,
    };
    let offset = target.paths().get(path as usize)?.offset;
    Some(Way { path, region, sector: offset.saturating_add(sector), sectors })
}

/// The first path that is up: of the group in use, else of any group that is not bypassed, else of
/// any group.
fn path_in_use(groups: &PathGroups) -> Option<u32> {
    let all = groups.paths();
    let in_use = groups
        .current_group()
        .and_then(|number| groups.groups().get((number as usize).checked_sub(1)?));
    let others = groups.groups().iter().filter(|group| !group.is_bypassed());
    let bypassed = groups.groups().iter().filter(|group| group.is_bypassed());
    in_use.into_iter().chain(others).chain(bypassed).find_map(|group| {
        let place = group.paths(all).iter().position(|path| path.is_up())?;
        Some(group.first_path() + place as u32)
    })
}
