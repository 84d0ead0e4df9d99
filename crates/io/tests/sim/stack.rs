//! Random tables, each of them twice: the real one, and a model that says where a single sector
//! goes.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use blkswitch_io::core::model::Model;
use blkswitch_io::core::multipath::{Item, Multipath, Params};
use blkswitch_io::core::switch::geometry::Geometry;
use blkswitch_io::core::switch::regions::Map;
use blkswitch_io::engine::sim::Random;
use blkswitch_io::table::region_storage;
use blkswitch_io::{Device, Leaf, Table, TableBuilder, Target, To};

/// Number of sectors of every leaf.
pub const LEAF_SECTORS: u64 = 96;
/// Longest device in sectors. Behind any offset, a leaf has room for it; a device below may not.
pub const DEVICE_SECTORS: u64 = 64;

/// The target of a path: a leaf or a device, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Below {
    Leaf(usize),
    Device(usize),
}

/// A path and its offset in sectors.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub below: Below,
    pub offset: u64,
}

#[derive(Debug)]
pub enum ModelTarget {
    Switch { map: RefCell<Model>, ways: Vec<Way> },
    Linear(Way),
    Striped { chunk: u64, ways: Vec<Way> },
    Error,
    Zero,
}

impl ModelTarget {
    pub fn ways(&self) -> &[Way] {
        match self {
            ModelTarget::Switch { ways, .. } | ModelTarget::Striped { ways, .. } => ways,
            ModelTarget::Linear(way) => std::slice::from_ref(way),
            ModelTarget::Error | ModelTarget::Zero => &[],
        }
    }
}

#[derive(Debug)]
pub struct ModelSegment {
    pub start: u64,
    pub len: u64,
    pub target: ModelTarget,
}

/// The model of a table.
#[derive(Debug)]
pub struct ModelTable {
    pub segments: Vec<ModelSegment>,
    pub len: u64,
    pub read_only: bool,
}

/// One step of a sector's way down: the path, counted over all segments, and where it leads.
pub enum Step {
    Below(usize, Way),
    Fail,
    Zero,
}

impl ModelTable {
    pub fn step(&self, sector: u64) -> Step {
        let Some(segment) =
            self.segments.iter().find(|s| (s.start..s.start + s.len).contains(&sector))
        else {
            return Step::Fail;
        };
        let within = sector - segment.start;
        let before = self.segments.iter().filter(|other| other.start < segment.start);
        let first: usize = before.map(|other| other.target.ways().len()).sum();
        let below = |path: usize, sector| {
            let way = segment.target.ways()[path];
            Step::Below(first + path, Way { offset: way.offset + sector, ..way })
        };
        match &segment.target {
            ModelTarget::Switch { map, .. } => below(map.borrow().route(within).0 as usize, within),
            ModelTarget::Linear(_) => below(0, within),
            ModelTarget::Striped { chunk, ways } => {
                let (nr, in_chunk) = (within / chunk, within % chunk);
                below(nr as usize % ways.len(), nr / ways.len() as u64 * chunk + in_chunk)
            }
            ModelTarget::Error => Step::Fail,
            ModelTarget::Zero => Step::Zero,
        }
    }
}

/// A random table for device `number`, over the leaves and the devices with lower numbers.
pub fn random(
    random: &mut Random,
    number: usize,
    leaves: &[Arc<Leaf>],
    devices: &[Arc<Device>],
) -> (Table, Rc<ModelTable>) {
    let read_only = random.chance(20_000);
    let mut builder = TableBuilder::new(read_only);
    let mut segments = Vec::new();
    let mut start = 0;
    let len = DEVICE_SECTORS - random.below(DEVICE_SECTORS / 4);
    while start < len {
        let segment_len =
            if random.chance(600_000) { len - start } else { 1 + random.below(len - start) };
        let kind = random.below(30);
        let count = match kind {
            0 | 1 => 0,
            2..=7 => 1,
            _ => 1 + random.below(4),
        };
        let mut way = || {
            let (below, room) = match random.below(number as u64 * 2 + 3) {
                pick if pick < number as u64 * 2 => (Below::Device(pick as usize / 2), 8),
                _ => (
                    Below::Leaf(random.below(leaves.len() as u64) as usize),
                    LEAF_SECTORS - DEVICE_SECTORS,
                ),
            };
            Way { below, offset: random.below(room + 1) }
        };
        let ways: Vec<Way> = (0..count).map(|_| way()).collect();
        let tos: Vec<To> = ways
            .iter()
            .map(|way| To {
                below: match way.below {
                    Below::Leaf(leaf) => builder.leaf(leaves[leaf].clone()),
                    Below::Device(device) => {
                        builder.device(&devices[device]).expect("nothing is removed")
                    }
                },
                offset: way.offset,
            })
            .collect();
        let (real, target) = match kind {
            0 => (Target::Error, ModelTarget::Error),
            1 => (Target::Zero, ModelTarget::Zero),
            2..=7 => (Target::Linear(tos[0]), ModelTarget::Linear(ways[0])),
            8..=13 => {
                let chunk = 1 + random.below(8);
                (
                    Target::Striped { chunk, stripes: tos.into() },
                    ModelTarget::Striped { chunk, ways },
                )
            }
            _ => {
                let size = 1 + random.below(12) as u32;
                let geometry =
                    Geometry::new(segment_len, ways.len() as u32, size).expect("geometry");
                let storage = region_storage(&geometry).expect("memory");
                let map =
                    Map::new(geometry, storage).unwrap_or_else(|_| unreachable!("large enough"));
                let model = Model::new(segment_len, ways.len() as u32, size);
                let real = Target::Switch { map, paths: tos.into() };
                (real, ModelTarget::Switch { map: RefCell::new(model), ways })
            }
        };
        builder.push(segment_len, real);
        segments.push(ModelSegment { start, len: segment_len, target });
        start += segment_len;
    }
    (builder.build_unchecked(), Rc::new(ModelTable { segments, len, read_only }))
}

/// A multipath over some of these paths, in random groups. In the model it is the leaf `volume`.
pub fn multipath(
    random: &mut Random,
    paths: &[Arc<Leaf>],
    volume: usize,
) -> (Table, Rc<ModelTable>) {
    let mut left: Vec<usize> = (0..paths.len()).collect();
    left.truncate(1 + random.below(paths.len() as u64 * 2) as usize);
    let mut groups = Vec::new();
    while !left.is_empty() {
        let selector = ["round-robin", "queue-length", "service-time"][random.below(3) as usize];
        let count = 1 + random.below(left.len() as u64) as usize;
        let members: Vec<String> = (0..count)
            .map(|_| left.swap_remove(random.below(left.len() as u64) as usize).to_string())
            .collect();
        groups.push(format!("{selector} 0 {count} 0 {}", members.join(" ")));
    }
    let features = if random.chance(600_000) { "1 queue_if_no_path" } else { "0" };
    let line = format!("{features} 0 {} 1 {}", groups.len(), groups.join(" "));
    let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    let mut params = Params::parse(&words).expect("a line");
    let (mut groups, mut real, mut tos) = (Vec::new(), Vec::new(), Vec::new());
    let mut builder = TableBuilder::new(false);
    while let Some(item) = params.next_item().expect("a line") {
        match item {
            Item::Group(group) => groups.push(group.group()),
            Item::Path(path) => {
                let number: usize = std::str::from_utf8(path.device).unwrap().parse().unwrap();
                tos.push(To { below: builder.leaf(paths[number].clone()), offset: 0 });
                real.push(path.path().expect("a path").path);
            }
        }
    }
    let (features, initial) = (*params.features(), params.initial_group());
    let groups = Multipath::new(features, initial, groups.into(), real.into()).expect("they fit");
    builder.push(DEVICE_SECTORS, Target::Multipath { groups, paths: tos.into() });
    let target = ModelTarget::Linear(Way { below: Below::Leaf(volume), offset: 0 });
    let segments = vec![ModelSegment { start: 0, len: DEVICE_SECTORS, target }];
    (
        builder.build_unchecked(),
        Rc::new(ModelTable { segments, len: DEVICE_SECTORS, read_only: false }),
    )
}

/// The arguments of a message, most of them valid.
pub fn message(random: &mut Random, regions: u64, paths: u64) -> String {
    let mut words = Vec::new();
    for _ in 0..1 + random.below(6) {
        let wrong = random.chance(20_000);
        let path = random.below(paths + u64::from(wrong));
        words.push(match random.below(4) {
            0 => format!(":{path:x}"),
            1 => format!("R{:x},{:x}", 1 + random.below(3), random.below(regions / 2 + 1)),
            _ => format!("{:x}:{path:x}", random.below(regions)),
        });
    }
    words.join(" ")
}
