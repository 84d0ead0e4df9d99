//! Impossible tables. They are refused with an error, before a request could panic, go to a wrong
//! place, or be answered without having been carried out.

use std::path::Path;
use std::sync::Arc;

use blkswitch_io::core::error::Error;
use blkswitch_io::core::switch::geometry::Geometry;
use blkswitch_io::core::switch::regions::Map;
use blkswitch_io::driver::{Driver, DriverError};
use blkswitch_io::table::region_storage;
use blkswitch_io::{
    Below, DeviceError, Leaf, LeafOptions, Pool, PoolOptions, Queues, Table, TableBuilder,
    TableError, Target, To,
};

const SECTORS: u64 = 128;

fn leaf_of(queues: Queues, address: &str) -> Arc<Leaf> {
    Leaf::open(&address.parse().unwrap(), &LeafOptions::new(queues)).unwrap()
}

fn leaf(address: &str) -> Arc<Leaf> {
    leaf_of(Queues::of_pipelines(1), address)
}

/// A table with one segment over this leaf.
fn over(
    leaf: Arc<Leaf>,
    len: u64,
    target: impl FnOnce(Below) -> Target,
) -> Result<Table, TableError> {
    let mut table = TableBuilder::new(false);
    let below = table.leaf(leaf);
    table.push(len, target(below));
    table.build()
}

fn over_memory(len: u64, target: impl FnOnce(Below) -> Target) -> TableError {
    let error = over(leaf("mem:64K"), len, target).map(drop).unwrap_err();
    assert!(error.to_string().starts_with("segment 0"), "{error}");
    error
}

fn linear(offset: u64) -> impl FnOnce(Below) -> Target {
    move |below| Target::Linear(To { below, offset })
}

fn striped(chunk: u64, stripes: usize) -> impl FnOnce(Below) -> Target {
    move |below| Target::Striped { chunk, stripes: vec![To { below, offset: 0 }; stripes].into() }
}

fn switch(
    len: u64,
    num_paths: u32,
    region_size: u32,
    paths: usize,
) -> impl FnOnce(Below) -> Target {
    move |below| {
        let geometry = Geometry::new(len, num_paths, region_size).unwrap();
        let map = Map::new(geometry, region_storage(&geometry).unwrap()).unwrap();
        Target::Switch { map, paths: vec![To { below, offset: 0 }; paths].into() }
    }
}

#[test]
fn good_tables_are_built() {
    assert_eq!(over(leaf("mem:64K"), SECTORS, linear(0)).unwrap().len(), SECTORS);
    assert_eq!(over(leaf("mem:64K"), SECTORS, striped(8, 2)).unwrap().path_count(), 2);
    assert_eq!(over(leaf("mem:64K"), SECTORS, switch(SECTORS, 3, 7, 3)).unwrap().path_count(), 3);
}

#[test]
fn a_segment_longer_than_its_leaf_is_refused_and_the_file_does_not_grow() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("leaf");
    std::fs::write(&path, vec![0; 64 << 10]).unwrap();
    let bytes = |path: &Path| std::fs::metadata(path).unwrap().len();
    for (len, offset) in [(SECTORS + 1, 0), (SECTORS, 1), (1, SECTORS)] {
        let error = over(leaf(path.to_str().unwrap()), len, linear(offset)).map(drop).unwrap_err();
        let too_small = Error::DeviceTooSmall { start: offset, len, dev_size: SECTORS };
        assert!(matches!(error, TableError::Path { error, .. } if error == too_small), "{error}");
    }
    assert_eq!(bytes(&path), 64 << 10);
}

/// The offset would wrap, and a request would succeed at a wrong place.
#[test]
fn an_offset_near_2_to_the_64_is_refused() {
    for offset in [u64::MAX, u64::MAX - SECTORS, 1 << 63, 1 << 55] {
        let error = over_memory(SECTORS, linear(offset));
        assert!(matches!(error, TableError::Path { path: 0, .. }), "{error}");
    }
}

#[test]
fn extents_are_those_of_a_device() {
    let none = TableBuilder::new(false).build().map(drop).unwrap_err();
    assert_eq!(none, TableError::Extent { segment: 0, error: Error::NoTargets });
    assert!(matches!(over_memory(0, linear(0)), TableError::Extent { segment: 0, .. }));
    let mut table = TableBuilder::new(false);
    table.push(u64::MAX - 7, Target::Zero);
    table.push(16, Target::Zero);
    assert!(matches!(table.build(), Err(TableError::Extent { segment: 0, .. })));
    let mut table = TableBuilder::new(false);
    table.push(8, Target::Zero);
    table.push(u64::MAX - 7, Target::Zero);
    assert!(matches!(table.build(), Err(TableError::Extent { segment: 1, .. })));
}

#[test]
fn chunks_fill_their_stripes() {
    for (chunk, stripes) in [(0, 2), (8, 0), (5, 2), (8, 3), (u64::MAX, 2), (128, 2)] {
        let error = over_memory(SECTORS, striped(chunk, stripes));
        assert!(matches!(error, TableError::Chunk { .. }), "{chunk} {stripes}: {error}");
    }
}

/// A path that does not exist would otherwise fail only when a request takes it.
#[test]
fn a_map_fits_its_segment_and_its_paths() {
    let few = over_memory(SECTORS, switch(SECTORS, 3, 8, 2));
    assert_eq!(few, TableError::PathCount { segment: 0, has: 2, needs: 3 });
    let many = over_memory(SECTORS, switch(SECTORS, 3, 8, 4));
    assert_eq!(many, TableError::PathCount { segment: 0, has: 4, needs: 3 });
    let short = over_memory(SECTORS, switch(SECTORS - 8, 3, 8, 3));
    assert_eq!(short, TableError::MapLength { segment: 0, map: SECTORS - 8, len: SECTORS });
}

#[test]
fn regions_do_not_cut_blocks() {
    let blocks = || leaf("sim:64K,block=4096");
    let error = over(blocks(), SECTORS, switch(SECTORS, 2, 7, 2)).map(drop).unwrap_err();
    assert!(matches!(error, TableError::Path { error: Error::RegionUnaligned { .. }, .. }));
    let error = over(blocks(), SECTORS - 8, linear(1)).map(drop).unwrap_err();
    assert!(matches!(error, TableError::Path { error: Error::StartUnaligned { .. }, .. }));
    over(blocks(), SECTORS, switch(SECTORS, 2, 8, 2)).unwrap();
}

#[test]
fn paths_lead_to_what_the_builder_was_given() {
    for below in [Below::Leaf(1), Below::Device(0)] {
        let error = over_memory(SECTORS, |_| Target::Linear(To { below, offset: 0 }));
        assert_eq!(error, TableError::Unknown { segment: 0, path: 0, below });
    }
}

/// The leaf would not know about the writes of these queues, so FLUSH would succeed without
/// flushing them.
#[test]
fn a_leaf_of_other_queues_is_refused() {
    let pool = Pool::start(PoolOptions { queues: 2, ..PoolOptions::default() }).unwrap();
    let other = Pool::start(PoolOptions { queues: 2, ..PoolOptions::default() }).unwrap();
    let mut driver = Driver::new().unwrap();
    let device = pool.registry().create("disk", "", None).unwrap();
    for queues in [other.queues(), driver.queues(), Queues::of_pipelines(2)] {
        let table = over(leaf_of(queues, "mem:64K"), SECTORS, linear(0)).unwrap();
        let refused = device.load(table).unwrap_err();
        assert_eq!(refused, DeviceError::OtherQueues("mem:65536".into()));
    }
    assert!(device.inactive().is_none(), "nothing was changed");
    device.load(over(leaf_of(pool.queues(), "mem:64K"), SECTORS, linear(0)).unwrap()).unwrap();
    device.resume().unwrap();

    let table = over(leaf_of(pool.queues(), "mem:64K"), SECTORS, linear(0)).unwrap();
    let refused = driver.add(table).unwrap_err();
    assert!(matches!(refused, DriverError::OtherQueues(leaf) if leaf == "mem:65536"));

    // Queues know devices below by number. In another pool the number belongs to another device.
    let mut table = TableBuilder::new(false);
    let below = table.device(&device).unwrap();
    table.push(SECTORS, Target::Linear(To { below, offset: 0 }));
    let stranger = other.registry().create("top", "", None).unwrap();
    let refused = stranger.load(table.build().unwrap()).unwrap_err();
    assert_eq!(refused, DeviceError::OtherQueues("disk".into()));
    let mut table = TableBuilder::new(false);
    let below = table.device(&device).unwrap();
    table.push(SECTORS, Target::Linear(To { below, offset: 0 }));
    assert!(matches!(driver.add(table.build().unwrap()), Err(DriverError::OtherQueues(_))));
}
