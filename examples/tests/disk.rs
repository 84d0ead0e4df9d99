//! Tests the export of `disk`: a device of a pool as a file.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use blkswitch_examples::disk::Disk;
use blkswitch_io::{Device, Leaf, LeafOptions, Pool, PoolOptions, TableBuilder, Target, To};

const BYTES: u64 = (1 << 20) + 4096;

fn pool() -> Pool {
    Pool::start(PoolOptions { queues: 2, ..PoolOptions::default() }).unwrap()
}

/// A device over two stripes.
fn device(pool: &Pool) -> Arc<Device> {
    let mut table = TableBuilder::new(false);
    let options = LeafOptions::new(pool.queues());
    let stripes = ["mem:1M", "mem:1M"].map(|address| {
        let leaf = Leaf::open(&address.parse().unwrap(), &options).unwrap();
        To { below: table.leaf(leaf), offset: 0 }
    });
    table.push(BYTES / 512, Target::Striped { chunk: 4, stripes: stripes.into() });
    let device = pool.registry().create("disk", "", None).unwrap();
    device.load(table.build().unwrap()).unwrap();
    device.resume().unwrap();
    device
}

#[test]
fn a_device_is_a_file() {
    let pool = pool();
    let device = device(&pool);
    let mut disk = Disk::open(&pool, &device).unwrap();
    let bytes: Vec<u8> = (0..BYTES).map(|at| (at % 251) as u8).collect();
    assert_eq!(io::copy(&mut &bytes[..], &mut disk).unwrap(), BYTES);
    disk.flush().unwrap();
    // The end of the device is the end of the file.
    assert_eq!(disk.write(b"more").unwrap(), 0);
    disk.seek(SeekFrom::Start(65_530)).unwrap();
    disk.write_all(b"across a chunk").unwrap();
    // Another user sees it.
    let (mut other, mut all) = (Disk::open(&pool, &device).unwrap(), Vec::new());
    other.read_to_end(&mut all).unwrap();
    assert_eq!(all[65_530..65_544], *b"across a chunk");
    assert!(all[..65_530] == bytes[..65_530] && all[65_544..] == bytes[65_544..]);
    let totals = device.totals();
    assert!(totals.reads > 0 && totals.writes > 0 && totals.flushes == 1, "{totals:?}");
    drop((disk, other));
    pool.stop();
}

#[test]
fn a_device_without_a_table_is_no_file() {
    let pool = pool();
    let device = pool.registry().create("empty", "", None).unwrap();
    assert_eq!(Disk::open(&pool, &device).unwrap_err().kind(), io::ErrorKind::NotFound);
    pool.stop();
}
