//! Tests of [`blkswitch_io::driver::Driver`]: what it refuses, direct I/O, other threads, replaced
//! tables, paths that fail. The tests with NBD leaves are in tests/nbd_leaf/driver.rs.

#[allow(unused, reason = "shared with other tests")]
#[path = "nbd_leaf/server.rs"]
mod server;

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use blkswitch_io::core::multipath::{Event, Item, Multipath, Params};
use blkswitch_io::driver::{Answer, Ask, Driver, DriverError, DriverEvent, Waker};
use blkswitch_io::request::Op;
use blkswitch_io::{AlignedBytes, Leaf, LeafOptions, Table, TableBuilder, Target, To};

use server::{Action, Options, Server};

const BLOCK: usize = 4096;
const SOON: Option<Duration> = Some(Duration::from_secs(20));

fn leaf(driver: &Driver, address: &str) -> std::sync::Arc<Leaf> {
    Leaf::open(&address.parse().unwrap(), &LeafOptions::new(driver.queues())).unwrap()
}

fn linear(driver: &Driver, address: &str) -> Table {
    let leaf = leaf(driver, address);
    let sectors = leaf.properties().sectors;
    let mut table = TableBuilder::new(false);
    let below = table.leaf(leaf);
    table.push(sectors, Target::Linear(To { below, offset: 0 }));
    table.build().unwrap()
}

fn ask(op: Op, offset: u64, data: &[u8], token: u64) -> Ask {
    let len = if op == Op::Flush { 0 } else { data.len() as u64 };
    Ask { op, fua: false, offset, len, data: AlignedBytes::copy_of(data).unwrap(), token }
}

/// The errno of an answer, 0 if it succeeded.
fn errno(answer: &Answer) -> i32 {
    answer.result.as_ref().err().map_or(0, |error| error.raw_os_error().unwrap())
}

/// Waits for the next answer.
fn answer(driver: &mut Driver) -> Answer {
    let (mut answers, began) = (Vec::new(), Instant::now());
    while answers.is_empty() {
        assert!(began.elapsed() < Duration::from_secs(20), "no answer");
        driver.wait(&mut answers, SOON).unwrap();
    }
    assert_eq!(answers.len(), 1, "one request, one answer");
    answers.remove(0)
}

fn write(driver: &mut Driver, device: u32, offset: u64, byte: u8) -> i32 {
    driver.start(device, ask(Op::Write, offset, &[byte; BLOCK], 1));
    errno(&answer(driver))
}

/// Reads a block. Returns its first byte, or an errno.
fn read(driver: &mut Driver, device: u32, offset: u64) -> Result<u8, i32> {
    driver.start(device, ask(Op::Read, offset, &[0xee; BLOCK], 2));
    let answer = answer(driver);
    if answer.result.is_ok() { Ok(answer.data[BLOCK - 1]) } else { Err(errno(&answer)) }
}

#[test]
fn what_makes_no_sense_is_answered_and_nothing_else_happens() {
    let mut driver = Driver::new().unwrap();
    let table = linear(&driver, "mem:1M");
    let device = driver.add(table).unwrap();
    let with = |op, fua, offset, len, bytes| {
        let data = AlignedBytes::zeroed(bytes).unwrap();
        Ask { op, fua, offset, len, data, token: 9 }
    };
    for (device, ask, expected) in [
        (device, with(Op::Flush, false, 0, 4096, 0), libc::EINVAL),
        (device, with(Op::Flush, false, 512, 0, 0), libc::EINVAL),
        (device, with(Op::Flush, true, 0, 0, 0), libc::EINVAL),
        (device, with(Op::Read, true, 0, 4096, 4096), libc::EINVAL),
        (device, with(Op::Read, false, 1, 512, 4096), libc::EINVAL),
        (device, with(Op::Read, false, 0, 511, 4096), libc::EINVAL),
        (device, with(Op::Write, false, 0, 4096, 512), libc::EINVAL),
        (device, with(Op::Read, false, u64::MAX - 511, 512, 512), libc::EINVAL),
        (device, with(Op::Write, false, 1 << 20, 512, 512), libc::ENOSPC),
        (device, with(Op::Discard, false, 0, u64::MAX - 511, 0), libc::EINVAL),
        (device + 1, with(Op::Read, false, 0, 512, 512), libc::ENXIO),
        (device, with(Op::Read, false, 0, 0, 0), 0),
        (device, with(Op::Flush, false, 0, 0, 0), 0),
    ] {
        let text = format!("{ask:?}");
        driver.start(device, ask);
        assert_eq!(errno(&answer(&mut driver)), expected, "{text}");
    }
    driver.close(&mut Vec::new()).unwrap();
}

/// Direct I/O needs aligned memory; with a `Vec` every kernel returns `EINVAL`.
#[test]
fn a_file_past_the_page_cache_takes_its_memory() {
    let dir = tempfile::tempdir_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap();
    let file = dir.path().join("file");
    std::fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
    let mut driver = Driver::new().unwrap();
    let options = LeafOptions { direct: Some(true), ..LeafOptions::new(driver.queues()) };
    let Ok(leaf) = Leaf::open(&file.to_str().unwrap().parse().unwrap(), &options) else {
        return println!("skipped: this file system has no direct I/O");
    };
    let mut table = TableBuilder::new(false);
    let below = table.leaf(leaf);
    table.push(2048, Target::Linear(To { below, offset: 0 }));
    let device = driver.add(table.build().unwrap()).unwrap();
    assert_eq!(write(&mut driver, device, 8192, 7), 0);
    assert_eq!(read(&mut driver, device, 8192), Ok(7));
    driver.close(&mut Vec::new()).unwrap();
}

#[test]
fn other_threads_wake_it_and_its_waits_end_in_time() {
    fn is_for_all<T: Send + Sync>() {}
    is_for_all::<Waker>();
    let mut driver = Driver::new().unwrap();
    let table = linear(&driver, "mem:1M");
    let device = driver.add(table).unwrap();
    let mut answers = Vec::new();
    let began = Instant::now();
    driver.wait(&mut answers, Some(Duration::from_millis(30))).unwrap();
    let took = began.elapsed();
    assert!((30..5000).contains(&took.as_millis()) && answers.is_empty(), "{took:?}");

    let (sender, requests) = mpsc::channel();
    let threads: Vec<_> = (0..4_u64)
        .map(|thread| {
            let (sender, waker) = (sender.clone(), driver.waker());
            std::thread::spawn(move || {
                for nr in 0..100 {
                    sender.send(thread << 32 | nr).unwrap();
                    waker.wake();
                }
            })
        })
        .collect();
    let mut tokens = Vec::new();
    while tokens.len() < 400 {
        assert!(began.elapsed() < Duration::from_secs(20), "{} came", tokens.len());
        driver.wait(&mut answers, None).unwrap();
        tokens.extend(answers.drain(..).map(|answer| answer.token));
        for token in requests.try_iter() {
            driver.start(device, ask(Op::Read, 0, &[0; BLOCK], token));
        }
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    tokens.sort_unstable();
    let expected: Vec<u64> = (0..4).flat_map(|n| (0..100).map(move |nr| n << 32 | nr)).collect();
    assert_eq!(tokens, expected, "each once");
    assert_eq!(driver.totals(device).unwrap().reads, 400);

    // A waker works after its driver has gone.
    let waker = driver.waker();
    driver.close(&mut answers).unwrap();
    waker.wake();
}

/// Waits for the driver's descriptor with `poll`, up to the driver's own deadline.
fn poll(driver: &mut Driver) {
    let ms = driver.next_wait().map_or(10_000, |time| time.as_millis() as i32);
    let mut fd = libc::pollfd { fd: driver.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: `fd` is one live structure.
    unsafe { libc::poll(&raw mut fd, 1, ms) };
}

#[test]
fn its_descriptor_says_when_there_is_something_to_take() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("s"), Options::default(), |_| {
        Action::Late(Duration::from_millis(20))
    });
    let mut driver = Driver::new().unwrap();
    let table = linear(&driver, &format!("nbd+unix:///?socket={}", server.path.display()));
    let device = driver.add(table).unwrap();
    let (mut answers, began) = (Vec::new(), Instant::now());
    for nr in 0..5 {
        driver.start(device, ask(Op::Read, 0, &[0; BLOCK], nr));
        driver.wait(&mut answers, Some(Duration::ZERO)).unwrap();
        while answers.is_empty() {
            assert!(began.elapsed() < Duration::from_secs(20), "{nr} answers");
            poll(&mut driver);
            driver.wait(&mut answers, Some(Duration::ZERO)).unwrap();
        }
        assert_eq!(
            answers.drain(..).map(|one| (one.token, errno(&one))).collect::<Vec<_>>(),
            [(nr, 0)]
        );
    }
    let waker = driver.waker();
    driver.wait(&mut answers, Some(Duration::ZERO)).unwrap();
    std::thread::spawn(move || waker.wake());
    let mut fd = libc::pollfd { fd: driver.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: `fd` is one live structure.
    assert_eq!(unsafe { libc::poll(&raw mut fd, 1, 10_000) }, 1, "a waker is seen, too");
    driver.close(&mut answers).unwrap();
}

#[test]
fn a_table_takes_the_place_of_another_and_a_device_goes() {
    let mut driver = Driver::new().unwrap();
    let table = linear(&driver, "sim:1M,delay=5ms");
    let device = driver.add(table).unwrap();
    assert_eq!(write(&mut driver, device, 0, 1), 0);
    driver.start(device, ask(Op::Read, 0, &[0; BLOCK], 1));
    assert!(matches!(driver.remove(device), Err(DriverError::Busy(busy)) if busy == device));
    let next = linear(&driver, "mem:1M");
    driver.replace(device, next).unwrap();
    assert!(driver.is_replacing(device), "a request is under way");
    let third = linear(&driver, "mem:1M");
    assert!(matches!(driver.replace(device, third), Err(DriverError::Replacing(_))));
    assert!(matches!(driver.remove(device), Err(DriverError::Replacing(_))));
    driver.start(device, ask(Op::Read, 0, &[0; BLOCK], 2));
    let (mut answers, began) = (Vec::new(), Instant::now());
    while answers.len() < 2 {
        assert!(began.elapsed() < Duration::from_secs(20), "{answers:?}");
        driver.wait(&mut answers, SOON).unwrap();
    }
    let seen: Vec<_> = answers.iter().map(|one| (one.token, one.data[0])).collect();
    assert_eq!(seen, [(1, 1), (2, 0)], "each on the table that it came to");
    assert!(!driver.is_replacing(device));
    assert_eq!(driver.table(device).unwrap().path_totals(0).reads, 1, "of the new table");
    assert_eq!(driver.totals(device).unwrap().reads, 2, "of the device");

    driver.remove(device).unwrap();
    assert!(matches!(driver.remove(device), Err(DriverError::NoDevice(gone)) if gone == device));
    assert_eq!(read(&mut driver, device, 0), Err(libc::ENXIO));
    let table = linear(&driver, "mem:1M");
    assert_eq!(driver.add(table).unwrap(), device, "its number is free");
    assert_eq!(read(&mut driver, device, 0), Ok(0));
    driver.close(&mut answers).unwrap();
}

/// A multipath with `queue_if_no_path`, over two servers that share one disk.
fn multipath(driver: &Driver, servers: &[&Server]) -> Table {
    let line = "1 queue_if_no_path 0 1 1 round-robin 0 2 0 0 1";
    let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    let mut params = Params::parse(&words).unwrap();
    let (mut groups, mut paths, mut tos) = (Vec::new(), Vec::new(), Vec::new());
    let mut table = TableBuilder::new(false);
    while let Some(item) = params.next_item().unwrap() {
        match item {
            Item::Group(group) => groups.push(group.group()),
            Item::Path(path) => {
                let socket = servers[paths.len()].path.display();
                let address = format!("nbd+unix:///?socket={socket}&reconnect=1&timeout=2");
                tos.push(To { below: table.leaf(leaf(driver, &address)), offset: 0 });
                paths.push(path.path().unwrap().path);
            }
        }
    }
    let (features, initial) = (*params.features(), params.initial_group());
    let groups = Multipath::new(features, initial, groups.into(), paths.into()).unwrap();
    table.push(8192, Target::Multipath { groups, paths: tos.into() });
    table.build().unwrap()
}

/// Both servers are killed. Requests wait, and go on when one server is back.
#[test]
fn requests_wait_for_a_path_and_go_on_when_one_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let at = |nr: usize| dir.path().join(format!("s{nr}"));
    let named = || Options { name: Some("volume"), ..Options::default() };
    let first = Server::start(&at(0), named(), |_| Action::Do);
    let disk = first.disk.clone();
    let second = Server::again(&at(1), disk.clone(), named(), |_| Action::Do);
    let mut driver = Driver::new().unwrap();
    let table = multipath(&driver, &[&first, &second]);
    let device = driver.add(table).unwrap();
    assert_eq!(write(&mut driver, device, 0, 1), 0);
    first.kill();
    assert_eq!(write(&mut driver, device, 0, 2), 0, "the other path takes it");
    assert_eq!(write(&mut driver, device, 0, 3), 0, "both have been tried by now");
    let failed: Vec<DriverEvent> = driver.events().collect();
    assert!(
        matches!(&failed[..],
            [DriverEvent { event: Event::PathFailed { path: 0, left: 1 }, path: Some(path), .. }]
            if path.contains("s0")),
        "{failed:?}"
    );
    second.kill();
    driver.start(device, ask(Op::Write, 0, &[4; BLOCK], 7));
    let (mut answers, began) = (Vec::new(), Instant::now());
    while driver.events().all(|one| !matches!(one.event, Event::PathFailed { left: 0, .. })) {
        assert!(began.elapsed() < Duration::from_secs(20), "the second path has not failed");
        driver.wait(&mut answers, Some(Duration::from_millis(50))).unwrap();
    }
    driver.wait(&mut answers, Some(Duration::from_millis(50))).unwrap();
    assert!(answers.is_empty(), "it waits for a path: {answers:?}");

    let _second = Server::again(&at(1), disk.clone(), named(), |_| Action::Do);
    let table = driver.table(device).unwrap().clone();
    let probe = || {
        let (_, paths) = table.multipath().unwrap();
        table.leaf_of(paths[1]).unwrap().engine().probe(Duration::from_secs(1))
    };
    while probe().is_err() {
        assert!(began.elapsed() < Duration::from_secs(20), "it does not come back");
        driver.wait(&mut answers, Some(Duration::from_millis(50))).unwrap();
    }
    driver.change_paths(device, |groups, mut on| groups.reinstate_path(1, &mut on)).unwrap();
    assert_eq!((answer(&mut driver).token, disk.bytes.lock().unwrap()[0]), (7, 4));
    assert!(driver.events().any(|one| matches!(one.event, Event::PathReinstated { path: 1, .. })));
    assert_eq!(read(&mut driver, device, 0), Ok(4));
    driver.close(&mut answers).unwrap();
}
