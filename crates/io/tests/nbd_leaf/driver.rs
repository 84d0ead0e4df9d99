//! A pipeline in this thread, without queue threads: what [`blkswitch_io::Driver`] promises.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blkswitch_io::request::{Done, Op, Request, Span};
use blkswitch_io::stats::Counters;
use blkswitch_io::table::Live;
use blkswitch_io::{Driver, Leaf, TableBuilder, Target, To};

use crate::server::{self, Action, Options, Server};
use crate::support::{self, READ};

const DEVICE: u32 = 0;
const BLOCK: usize = 4096;

/// With one device over a leaf.
fn driver_over(address: &str) -> Driver {
    let leaf = Leaf::open(&address.parse().unwrap(), &support::options()).unwrap();
    let sectors = leaf.limits().sectors;
    let mut table = TableBuilder::new(false);
    let below = table.leaf(leaf);
    table.push(sectors, Target::Linear(To { below, offset: 0 }));
    let live = Live { table: table.build(1).into(), departed: Box::default() };
    let mut driver = Driver::new(0).unwrap();
    driver.pipeline.install(DEVICE, Counters::boxed(1).into());
    driver.pipeline.open(DEVICE, Some(live.into()), &mut driver.ring);
    driver
}

/// Does the same to blocks 0 to `blocks`, all at once, with `data` of so many. Returns the errnos by block.
fn all(driver: &mut Driver, op: Op, data: &mut [u8]) -> Vec<i32> {
    let (mut errnos, mut waits) = (vec![-1; data.len() / BLOCK], 0);
    for (block, errno) in errnos.iter_mut().enumerate() {
        let data = Span(data.as_mut_ptr().wrapping_add(block * BLOCK));
        let (offset, token) = ((block * BLOCK) as u64, block as u64);
        let request = Request { op, fua: false, offset, len: BLOCK as u64, data, pages: None, token };
        match driver.start(DEVICE, &request) {
            Some(done) => *errno = done,
            None => waits += 1,
        }
    }
    let mut done: Vec<Done> = Vec::new();
    while waits > 0 {
        driver.wait(&mut done).unwrap();
        for done in done.drain(..) {
            assert_eq!(std::mem::replace(&mut errnos[done.token as usize], done.errno), -1, "answered twice");
            waits -= 1;
        }
    }
    errnos
}

#[test]
fn requests_go_in_and_answers_come_out_in_one_thread() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("s"), Options::default(), |_| Action::Do);
    let mut driver = driver_over(&server.address(""));
    let mut written: Vec<u8> = (0..64 * BLOCK).map(|at| (at / BLOCK + 1) as u8).collect();
    let model = written.clone();
    assert_eq!(all(&mut driver, Op::Write, &mut written), [0; 64]);
    let mut read = vec![0; model.len()];
    assert_eq!(all(&mut driver, Op::Read, &mut read), [0; 64]);
    assert!(read == model);
    assert!(server.disk.bytes.lock().unwrap().starts_with(&model));
}

/// Nobody but [`Driver::wait`] looks at the clock, and connects again.
#[test]
fn silence_is_found_out_and_the_leaf_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let is_silent = Arc::new(AtomicBool::new(true));
    let silent = is_silent.clone();
    let script = move |request: &server::Request| {
        if request.command == READ && silent.load(Ordering::SeqCst) { Action::Silence } else { Action::Do }
    };
    let server = Server::start(&dir.path().join("s"), Options::default(), script);
    let mut driver = driver_over(&server.address("&timeout=1&reconnect=1"));
    let mut data = vec![0; 8 * BLOCK];
    let errnos = all(&mut driver, Op::Read, &mut data);
    assert!(errnos.iter().all(|errno| *errno != 0), "{errnos:?}");
    is_silent.store(false, Ordering::SeqCst);
    assert_eq!(all(&mut driver, Op::Read, &mut data), [0; 8]);
    // Nor is an answer waited for that there is already: without a server for longer than `reconnect`.
    server.kill();
    for _ in 0..2 {
        let errnos = all(&mut driver, Op::Read, &mut data);
        assert!(errnos.iter().all(|errno| *errno != 0), "{errnos:?}");
    }
}
