//! Reaches one volume over two paths, and loses one of them under load.
//!
//! `cargo run --release -p blkswitch-io --example multipath`

use std::error::Error;

use blkswitch_io::client::{Ask, ClientOptions};
use blkswitch_io::core::multipath::Selector;
use blkswitch_io::multipath::MultipathBuilder;
use blkswitch_io::{AlignedBytes, Leaf, LeafOptions, Pool, PoolOptions, TableBuilder};

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let pool = Pool::start(PoolOptions { queues: 1, ..PoolOptions::default() })?;
    let options = LeafOptions::new(pool.queues());
    let mut table = TableBuilder::new(false);
    // Both paths share the load. While none is up, requests wait.
    let mut paths = MultipathBuilder::new().queue_if_no_path(true).group(Selector::RoundRobin);
    for number in 0..2 {
        // A simulated volume; `nbd+unix:///NAME?socket=PATH` or `/dev/sda` are addresses as well.
        let address = format!("sim:1M,name=volume,path={number}").parse()?;
        paths = paths.path(table.leaf(Leaf::open(&address, &options)?));
    }
    table.push(2048, paths.build()?);
    let device = pool.registry().create("volume", "", None)?;
    device.load(table.build()?)?;
    device.resume()?;

    let mut client = pool.client(&device, ClientOptions::default())?;
    let (mut answers, mut memory) = (Vec::new(), AlignedBytes::zeroed(4096)?);
    for number in 0..300_u64 {
        // A path checker does this when a path no longer answers, and when it answers again.
        if number == 100 {
            device.messenger(0)?.change(|paths, mut on| paths.fail_path(0, &mut on));
        } else if number == 200 {
            device.messenger(0)?.change(|paths, mut on| paths.reinstate_path(0, &mut on));
        }
        client.start(Ask::write(number % 256 * 4096, memory, number)).map_err(|_| "full")?;
        client.wait(&mut answers, None)?;
        let answer = answers.pop().ok_or("woken without an answer")?;
        answer.result?;
        memory = answer.data;
    }
    let table = device.live().ok_or("the table is live")?;
    let [first, second] = [table.path_totals(0).writes, table.path_totals(1).writes];
    println!("300 writes: {first} over path 0, {second} over path 1");
    assert_eq!([first, second], [100, 200]);
    pool.stop();
    Ok(())
}
