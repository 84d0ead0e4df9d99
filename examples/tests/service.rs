//! Tests the service of `service` from several threads.

use std::io;

use blkswitch_examples::service::Service;
use blkswitch_io::{Leaf, LeafOptions, TableBuilder, Target, To};

const BLOCK: usize = 4096;

fn service(address: &'static str) -> io::Result<Service> {
    Service::start(move |driver| {
        let options = LeafOptions::new(driver.queues());
        let leaf = Leaf::open(&address.parse().map_err(io::Error::other)?, &options);
        let leaf = leaf.map_err(io::Error::other)?;
        let mut table = TableBuilder::new(false);
        let below = table.leaf(leaf);
        table.push(2048, Target::Linear(To { below, offset: 0 }));
        table.build().map_err(io::Error::other)
    })
}

#[test]
fn many_threads_use_one_driver() {
    let service = service("sim:1M,delay=1us..50us").unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8_u8 {
            let service = &service;
            scope.spawn(move || {
                for round in 0..20_u8 {
                    let offset = u64::from(thread) * 65536;
                    let byte = thread * 20 + round;
                    service.write(offset, &[byte; BLOCK]).unwrap();
                    assert_eq!(service.read(offset, BLOCK).unwrap()[BLOCK - 1], byte);
                }
            });
        }
    });
    let error = service.read(1 << 20, BLOCK).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn what_cannot_be_made_is_said() {
    let error = service("/no/such/disk").unwrap_err();
    assert!(error.to_string().contains("'/no/such/disk'"), "{error}");
}
