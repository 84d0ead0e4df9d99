//! Serves a switch device over the given addresses with NBD: the library without the daemon.
//!
//! `cargo run --release -p blkswitch-io --example serve -- SOCKET REGION_SECTORS ADDRESS...`

use std::error::Error;
use std::os::unix::net::UnixListener;

use blkswitch_io::core::switch::geometry::Geometry;
use blkswitch_io::core::switch::regions::Map;
use blkswitch_io::table::region_storage;
use blkswitch_io::{Leaf, LeafOptions, Pool, PoolOptions, TableBuilder, Target, To};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (socket, region_size) =
        (args.next().ok_or("which socket?")?, args.next().ok_or("which region size?")?);
    let addresses: Vec<String> = args.collect();

    let queues = std::env::var("QUEUES")
        .ok()
        .and_then(|q| q.parse().ok())
        .unwrap_or(PoolOptions::default().queues);
    let pool = Pool::start(PoolOptions { queues, ..PoolOptions::default() })?;
    let options = LeafOptions::new(pool.queues());
    let mut table = TableBuilder::new(false);
    let mut paths = Vec::new();
    let mut len = u64::MAX;
    for address in &addresses {
        let leaf = Leaf::open(&address.parse()?, &options)?;
        len = len.min(leaf.properties().sectors);
        paths.push(To { below: table.leaf(leaf), offset: 0 });
    }
    if region_size == "linear" {
        table.push(len, Target::Linear(paths[0]));
    } else {
        let geometry = Geometry::new(len, paths.len() as u32, region_size.parse()?)
            .map_err(|e| e.to_string())?;
        let storage = region_storage(&geometry).ok_or("no memory for the map")?;
        let map = Map::new(geometry, storage).map_err(|_| "the storage is too small")?;
        table.push(len, Target::Switch { map, paths: paths.into() });
    }
    let device = pool.registry().create("switch", "", None)?;
    device.load(table.build()?)?;
    device.resume()?;
    let _ = std::fs::remove_file(&socket);
    pool.listen(UnixListener::bind(&socket)?.into())?;
    println!("nbd+unix:///switch?socket={socket}");
    loop {
        std::thread::park();
    }
}
