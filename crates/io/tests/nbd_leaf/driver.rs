//! The promises of [`blkswitch_io::Driver`]: a pipeline in this thread, without queue threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blkswitch_io::driver::{Answer, Ask, Driver};
use blkswitch_io::request::Op;
use blkswitch_io::{AlignedBytes, Leaf, LeafOptions, TableBuilder, Target, To};

use crate::server::{self, Action, Options, Server};
use crate::support::{self, READ};

const DEVICE: u32 = 0;
const BLOCK: usize = 4096;

fn aligned(data: &[u8]) -> AlignedBytes {
    AlignedBytes::copy_of(data).unwrap()
}

/// Makes a driver with one device over a leaf.
fn driver_over(address: &str) -> Driver {
    let mut driver = Driver::new().unwrap();
    let leaf = Leaf::open(&address.parse().unwrap(), &LeafOptions::new(driver.queues())).unwrap();
    let sectors = leaf.properties().sectors;
    let mut table = TableBuilder::new(false);
    let below = table.leaf(leaf);
    table.push(sectors, Target::Linear(To { below, offset: 0 }));
    assert_eq!(driver.add(table.build().unwrap()).unwrap(), DEVICE);
    driver
}

/// Starts these requests and waits for all answers. Returns errnos and data in the order of the
/// requests.
fn all(driver: &mut Driver, asks: impl Iterator<Item = (Op, u64, Vec<u8>)>) -> Vec<(i32, Vec<u8>)> {
    let (mut results, mut answers) = (Vec::new(), Vec::new());
    for (token, (op, offset, data)) in (0..).zip(asks) {
        let len = if op == Op::Flush { 0 } else { data.len() as u64 };
        let data = aligned(&data);
        driver.start(DEVICE, Ask { op, fua: false, offset, len, data, token });
        results.push(None);
    }
    while results.contains(&None) {
        driver.wait(&mut answers, None).unwrap();
        for answer in answers.drain(..) {
            let result = (errno(&answer), answer.data.to_vec());
            let before = results[answer.token as usize].replace(result);
            assert_eq!(before, None, "answered twice");
        }
    }
    results.into_iter().flatten().collect()
}

/// The errno of an answer, 0 if it succeeded.
fn errno(answer: &Answer) -> i32 {
    answer.result.as_ref().err().map_or(0, |error| error.raw_os_error().unwrap())
}

/// Read requests for the first blocks.
fn reads(blocks: u64) -> impl Iterator<Item = (Op, u64, Vec<u8>)> {
    (0..blocks).map(|block| (Op::Read, block * BLOCK as u64, vec![0xee; BLOCK]))
}

fn errnos(results: &[(i32, Vec<u8>)]) -> Vec<i32> {
    results.iter().map(|(errno, _)| *errno).collect()
}

#[test]
fn requests_go_in_and_answers_come_out_in_one_thread() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("s"), Options::default(), |_| Action::Do);
    let mut driver = driver_over(&server.address(""));
    let model: Vec<Vec<u8>> = (1..=64).map(|n| vec![n; BLOCK]).collect();
    let writes =
        (0..).zip(&model).map(|(block, data)| (Op::Write, block * BLOCK as u64, data.clone()));
    assert_eq!(errnos(&all(&mut driver, writes)), [0; 64]);
    let read = all(&mut driver, reads(64));
    assert!(
        read.into_iter().zip(&model).all(|((errno, read), model)| errno == 0 && read == *model)
    );
    assert!(server.disk.bytes.lock().unwrap().starts_with(&model.concat()));
}

/// Requests that are answered at once. `wait` must return these answers without waiting, because
/// no completion will ever end a wait for them.
#[test]
fn an_answer_that_is_there_is_not_waited_for() {
    support::in_time("answers", || {
        let mut driver = driver_over("mem:1M");
        let asks = [
            (Op::Flush, 0, 0),
            (Op::Read, 1 << 20, BLOCK),
            (Op::Read, 100, BLOCK),
            (Op::Read, 0, 100),
        ];
        for (op, offset, len) in asks {
            let results = all(&mut driver, std::iter::once((op, offset, vec![0; len])));
            assert_eq!(results[0].0 == 0, op == Op::Flush, "{offset}: errno {}", results[0].0);
        }
        // The memory is shorter than the length of the request.
        let data = aligned(&[0; 512]);
        let ask = Ask { op: Op::Write, fua: false, offset: 0, len: 4096, data, token: 7 };
        driver.start(DEVICE, ask);
        let mut answers = Vec::new();
        driver.wait(&mut answers, None).unwrap();
        assert_eq!((answers.len(), answers[0].token, errno(&answers[0])), (1, 7, libc::EINVAL));
        // A request that is longer than a window is carried out piece by piece.
        let results = all(&mut driver, std::iter::once((Op::Read, 0, vec![0; 1 << 20])));
        assert_eq!(errnos(&results), [0]);
    });
}

/// Closing a driver waits for requests in flight, and for its connection to end. Dropping it waits
/// for nothing.
#[test]
fn a_driver_is_closed_or_dropped_with_requests_under_way() {
    let dir = tempfile::tempdir().unwrap();
    for (silent, is_closed) in [(false, true), (true, true), (false, false), (true, false)] {
        let script = move |_: &server::Request| if silent { Action::Silence } else { Action::Do };
        let server = Server::start(&dir.path().join("s"), Options::default(), script);
        let address = server.address("&timeout=1&reconnect=1");
        support::in_time("dropped", move || {
            let mut driver = driver_over(&address);
            for (token, (op, offset, data)) in (0..).zip(reads(32)) {
                let (len, data) = (BLOCK as u64, aligned(&data));
                driver.start(DEVICE, Ask { op, fua: false, offset, len, data, token });
            }
            let mut answers = Vec::new();
            if !silent && is_closed {
                driver.wait(&mut answers, None).unwrap();
            }
            if is_closed {
                driver.close(&mut answers).unwrap();
                assert_eq!(answers.len(), 32, "all are answered");
            } else {
                let began = Instant::now();
                drop(driver);
                assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
            }
        });
    }
}

/// The time limit of a request begins when it is started, however long the owner did not wait
/// before.
#[test]
fn a_pause_of_its_owner_is_not_the_servers() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("s"), Options::default(), |_| Action::Do);
    let mut driver = driver_over(&server.address("&timeout=1"));
    let connections = || server.disk.connections.load(Ordering::SeqCst);
    let before = connections();
    for _ in 0..2 {
        assert_eq!(errnos(&all(&mut driver, reads(8))), [0; 8]);
        std::thread::sleep(Duration::from_millis(2500));
    }
    assert_eq!(errnos(&all(&mut driver, reads(8))), [0; 8]);
    assert_eq!(connections(), before, "taken for lost");
}

/// Only [`Driver::wait`] checks time limits and reconnects.
#[test]
fn silence_is_found_out_and_the_leaf_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let is_silent = Arc::new(AtomicBool::new(true));
    let silent = is_silent.clone();
    let script = move |request: &server::Request| {
        if request.command == READ && silent.load(Ordering::SeqCst) {
            Action::Silence
        } else {
            Action::Do
        }
    };
    let server = Server::start(&dir.path().join("s"), Options::default(), script);
    let mut driver = driver_over(&server.address("&timeout=1&reconnect=1"));
    let failed = errnos(&all(&mut driver, reads(8)));
    assert!(!failed.contains(&0), "{failed:?}");
    is_silent.store(false, Ordering::SeqCst);
    assert_eq!(errnos(&all(&mut driver, reads(8))), [0; 8]);
    server.kill();
    for _ in 0..2 {
        let failed = errnos(&all(&mut driver, reads(8)));
        assert!(!failed.contains(&0), "{failed:?}");
    }
}
