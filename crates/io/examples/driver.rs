//! Routes requests on the thread of the program, without queues and exports.
//!
//! `cargo run --release -p blkswitch-io --example driver`

use std::error::Error;

use blkswitch_io::driver::{Ask, Driver};
use blkswitch_io::{AlignedBytes, Leaf, LeafOptions, TableBuilder, Target, To};

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let mut driver = Driver::new()?;
    let options = LeafOptions::new(driver.queues());
    let mut table = TableBuilder::new(false);
    // 64 KiB to the one disk, 64 KiB to the other, and so on.
    let mut stripes = Vec::new();
    for address in ["mem:1M", "mem:1M"] {
        let leaf = Leaf::open(&address.parse()?, &options)?;
        stripes.push(To { below: table.leaf(leaf), offset: 0 });
    }
    table.push(4096, Target::Striped { chunk: 128, stripes: stripes.into() });
    let device = driver.add(table.build()?)?;

    // Start many requests, then wait: one system call hands all of them over.
    for block in 0..32 {
        let data = AlignedBytes::copy_of(&[block as u8; 65536])?;
        driver.start(device, Ask::write(block * 65536, data, block));
    }
    let mut answers = Vec::new();
    while answers.len() < 32 {
        driver.wait(&mut answers, None)?;
    }
    for answer in answers.drain(..) {
        answer.result?;
        // The memory comes back with the answer, and goes into the next request.
        driver.start(device, Ask::read(answer.token * 65536, answer.data, answer.token));
    }
    driver.close(&mut answers)?;
    for answer in answers {
        answer.result?;
        assert!(answer.data.iter().all(|byte| u64::from(*byte) == answer.token));
    }
    println!("32 writes and 32 reads over two stripes");
    Ok(())
}
