//! Sends the regions of a switch to another path while requests are under way.
//!
//! `cargo run --release -p blkswitch-io --example remap`

use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};

use blkswitch_io::client::{Ask, ClientOptions};
use blkswitch_io::core::switch::{Geometry, Map};
use blkswitch_io::table::region_storage;
use blkswitch_io::{AlignedBytes, Leaf, LeafOptions, Pool, PoolOptions, TableBuilder, Target, To};

/// Sectors of the device.
const SECTORS: u64 = 2048;
/// Sectors of a region.
const REGION: u32 = 128;

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let pool = Pool::start(PoolOptions { queues: 1, ..PoolOptions::default() })?;
    let options = LeafOptions::new(pool.queues());
    let mut table = TableBuilder::new(false);
    let mut paths = Vec::new();
    // Two disks with one content, as two controllers of an array would show it.
    for address in ["mem:1M", "mem:1M"] {
        let leaf = Leaf::open(&address.parse()?, &options)?;
        paths.push(To { below: table.leaf(leaf), offset: 0 });
    }
    let geometry = Geometry::new(SECTORS, 2, REGION).map_err(|error| error.to_string())?;
    let storage = region_storage(&geometry).ok_or("no memory for the map")?;
    let map = Map::new(geometry, storage).map_err(|_| "the storage is too small")?;
    table.push(SECTORS, Target::Switch { map, paths: paths.into() });
    let device = pool.registry().create("switch", "", None)?;
    device.load(table.build()?)?;
    device.resume()?;
    let table = device.live().ok_or("the table is live")?;

    // A thread reads all regions, again and again.
    let mut client = pool.client(&device, ClientOptions::default())?;
    let stop = AtomicBool::new(false);
    let read = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut answers, mut memory, mut read) = (Vec::new(), AlignedBytes::zeroed(512)?, 0);
            while !stop.load(Ordering::Relaxed) {
                let offset = read % 16 * u64::from(REGION) * 512;
                client.start(Ask::read(offset, memory, 0)).map_err(|_| "full")?;
                client.wait(&mut answers, None)?;
                let answer = answers.pop().ok_or("woken without an answer")?;
                answer.result?;
                (memory, read) = (answer.data, read + 1);
            }
            Ok::<u64, Box<dyn Error + Send + Sync>>(read)
        });
        // The map has one writer at a time: the holder of the device's message lock. Requests are
        // not held up; the next one to a region goes where the region is now.
        let mut moved = 0;
        for round in 0..1000_u64 {
            let messenger = device.messenger(0)?;
            let mut writer = messenger.writer().ok_or("the table is a switch")?;
            for region in 0..16 {
                writer.set(region, (round % 2) as u32);
                moved += 1;
            }
        }
        stop.store(true, Ordering::Relaxed);
        println!("{moved} regions moved");
        let read = reader.join().map_err(|_| "the reader panicked")?;
        read.map_err(|error| error.to_string().into())
    });
    let read: u64 = read.map_err(|error: Box<dyn Error>| error)?;
    let [first, second] = [table.path_totals(0).reads, table.path_totals(1).reads];
    println!("{read} reads: {first} from path 0, {second} from path 1");
    pool.stop();
    Ok(())
}
