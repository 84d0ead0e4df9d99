//! Tests the leaf of `archive` below a switch, in a driver and in a pool that serves NBD.

use std::sync::Arc;
use std::time::Duration;

use blkswitch_examples::archive::Archive;
use blkswitch_io::driver::{Ask, Driver};
use blkswitch_io::engine::Properties;
use blkswitch_io::request::Op;
use blkswitch_io::{AlignedBytes, Leaf, Pool, PoolOptions, Queues, TableBuilder, Target, To};

const BYTES: usize = 1 << 20;
const BLOCK: usize = 4096;

fn archive(queues: Queues) -> Arc<Leaf> {
    let engine = Box::new(Archive::new(BYTES));
    Leaf::custom("archive", engine, Properties::memory(BYTES as u64), queues).unwrap()
}

#[test]
fn requests_of_a_driver_reach_it_and_come_back() {
    let mut driver = Driver::new().unwrap();
    let mut table = TableBuilder::new(false);
    let stripes: Vec<To> =
        (0..2).map(|_| To { below: table.leaf(archive(driver.queues())), offset: 0 }).collect();
    table.push(4096, Target::Striped { chunk: 8, stripes: stripes.into() });
    let device = driver.add(table.build().unwrap()).unwrap();
    let mut all = |op: Op| {
        let mut answers = Vec::new();
        for block in 0..64_u64 {
            let fill = if op == Op::Write { block as u8 } else { 0xee };
            let data = AlignedBytes::copy_of(&[fill; BLOCK]).unwrap();
            let offset = block * BLOCK as u64;
            let fua = op == Op::Write && block % 2 == 0;
            driver.start(device, Ask { op, fua, offset, len: BLOCK as u64, data, token: block });
        }
        while answers.len() < 64 {
            driver.wait(&mut answers, Some(Duration::from_secs(20))).unwrap();
        }
        assert!(answers.iter().all(|answer| answer.result.is_ok()), "{answers:?}");
        answers
    };
    all(Op::Write);
    for answer in all(Op::Read) {
        assert!(answer.data.iter().all(|byte| *byte == answer.token as u8), "{}", answer.token);
    }
    driver.close(&mut Vec::new()).unwrap();
}

#[test]
fn a_device_of_a_pool_stands_on_it() {
    let pool = Pool::start(PoolOptions { queues: 2, ..PoolOptions::default() }).unwrap();
    let device = pool.registry().create("disk", "", None).unwrap();
    let mut table = TableBuilder::new(false);
    let below = table.leaf(archive(pool.queues()));
    table.push(2048, Target::Linear(To { below, offset: 0 }));
    device.load(table.build().unwrap()).unwrap();
    device.resume().unwrap();
    assert_eq!(device.live().unwrap().leaves()[0].name(), "archive");
    pool.stop();
}
