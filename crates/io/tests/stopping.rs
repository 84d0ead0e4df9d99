//! A stop has a deadline. Leaves that never answer, and clients that ask for a million pieces,
//! delay it no longer than that. Everything else is closed properly.

mod support;

use std::io::{self, Read as _, Write as _};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use blkswitch_io::engine::{CustomEngine, CustomOp, Properties};
use blkswitch_io::{Leaf, STOP_TIME};
use support::{HANG, TRIM, WRITE, World, eventually, in_time, options, request};

/// An engine that keeps every operation and never answers.
struct Stuck(Arc<Mutex<Vec<CustomOp>>>);

impl CustomEngine for Stuck {
    fn submit(&self, op: CustomOp) {
        self.0.lock().unwrap().push(op);
    }

    fn flush_blocking(&self) -> io::Result<()> {
        Ok(())
    }

    fn time_limit(&self) -> Duration {
        Duration::from_secs(1 << 20)
    }
}

#[test]
fn a_leaf_that_never_answers_is_named_and_not_waited_for() {
    let world = World::new(2);
    let file = world.file("quick", 1 << 20);
    world.device("quick", world.linear(&world.leaf(file.to_str().unwrap())));
    let kept = Arc::<Mutex<Vec<CustomOp>>>::default();
    let engine = Box::new(Stuck(kept.clone()));
    let leaf =
        Leaf::custom("stuck", engine, Properties::memory(1 << 20), world.pool.queues()).unwrap();
    world.device("stuck", world.linear(&leaf));
    drop(leaf);
    world.connect("quick").write(0, &[1; 4096]).unwrap();
    let mut client = world.connect("stuck");
    for block in 0..3 {
        client.send(0, WRITE, block * 4096, 4096, &[block as u8; 4096]).unwrap();
    }
    eventually("the leaf has all of them", || kept.lock().unwrap().len() == 3);

    let World { pool, dir } = world;
    let (pool, unfinished) = in_time("stopping", move || {
        let unfinished = pool.stop_within(Duration::from_millis(200));
        (pool, unfinished)
    });
    assert_eq!(unfinished.len(), 1, "{unfinished:?}");
    assert!(unfinished[0].starts_with("'stuck' has not answered 3 operations"), "{unfinished:?}");
    // The client's connection ends without a reply.
    let mut rest = Vec::new();
    assert!(client.socket.read_to_end(&mut rest).is_err() || rest.is_empty(), "{rest:?}");
    // Answers after the stop go nowhere, and touch no memory of others.
    for op in kept.lock().unwrap().drain(..) {
        assert!(op.with_data(|data| data.iter().all(|&byte| byte < 3)).unwrap());
        op.done();
    }
    // The files of the other leaves are free for the next server.
    drop(pool);
    let again = || Leaf::open(&file.to_str().unwrap().parse().unwrap(), &options());
    eventually("the other leaf is closed", || again().is_ok());
    drop(dir);
}

/// A client sends 28 KiB: 1,024 requests, each with 1,024 pieces in flight and more after them.
#[test]
fn a_million_pieces_do_not_hold_up_a_stop() {
    const BYTES: u32 = 256 << 20;
    let world = World::new(1);
    let leaves: Vec<_> = ["a", "b", "c"].map(|name| world.file_leaf(name, BYTES.into())).into();
    let device = world.device("disk", world.switch(&leaves, 8));
    let map = device.messenger(0).unwrap();
    let regions = u64::from(BYTES) / 4096;
    let mut writer = map.writer().unwrap();
    for region in 0..regions {
        assert!(writer.set(region, (region % 3) as u32));
    }
    drop(writer);
    drop(map);
    let mut client = world.connect("disk");
    let requests: Vec<u8> =
        (0..1024).flat_map(|cookie| request(0, TRIM, cookie, 0, BYTES)).collect();
    client.socket.write_all(&requests).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let began = Instant::now();
    let unfinished = in_time("stopping", move || world.pool.stop_within(HANG));
    assert_eq!(unfinished, [""; 0]);
    assert!(began.elapsed() < STOP_TIME / 2, "{:?}", began.elapsed());
}
