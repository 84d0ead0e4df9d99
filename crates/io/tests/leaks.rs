//! The cost of hostile clients to this process: memory within the named limits, and descriptors
//! only while they are connected.
//!
//! The tests are a program of their own and run one after the other, because they measure the whole
//! process.

mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use blkswitch_io::memory::MIN_BYTES;
use blkswitch_io::{Pool, PoolOptions};
use support::{Client, READ, WRITE, World, eventually, option, request};

const MIB: u64 = 1 << 20;
/// Most bytes that a connection may borrow (conn.rs).
const LENT: u64 = 64 * MIB;
/// Most bytes of handshake answers that wait for a client (export/nbd/mod.rs), plus its input.
const HANDSHAKE: u64 = 4 * MIB + 128 * 1024;
/// By how much the memory of a process of this size varies.
const SLACK: u64 = 48 * MIB;

fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Runs `work` and returns by how much the resident memory rose above its value at the start.
fn growth(mut work: impl FnMut(&mut dyn FnMut())) -> u64 {
    let before = resident();
    let mut peak = before;
    work(&mut || peak = peak.max(resident()));
    peak - before
}

#[test]
fn clients_that_come_and_go_leave_nothing() {
    let _alone = alone();
    let world = World::new(2);
    let device = world.device("disk", world.linear(&world.file_leaf("a", MIB)));
    let cycle = |n: u64| match n % 6 {
        0 => drop(world.connect("disk")),
        1 => drop(UnixStream::connect(world.socket()).unwrap()),
        2 => assert!(Client::connect(&world.socket(), "no such device").is_err()),
        3 => {
            let mut client = world.connect("disk");
            client.send(0, WRITE, 0, 4096, &[1; 100]).unwrap();
        }
        4 => {
            let mut client = world.connect("disk");
            client.socket.write_all(&[0x77; 28]).unwrap();
        }
        _ => {
            let mut client = world.connect("disk");
            client.send(0, READ, 0, 65536, &[]).unwrap();
            client.send(0, WRITE, 4096, 4096, &[2; 4096]).unwrap();
        }
    };
    (0..60).for_each(cycle);
    eventually("the first are gone", || device.info().opens == 0);
    let (fds, memory) = (descriptors(), resident());
    (0..3000).for_each(cycle);
    eventually("all are gone", || device.info().opens == 0 && descriptors() <= fds);
    assert!(resident() < memory + SLACK, "{} MiB more than before", (resident() - memory) / MIB);
}

#[test]
fn clients_that_do_not_read_cost_what_may_be_lent() {
    let _alone = alone();
    let world = World::new(1);
    let device = world.device("disk", world.linear(&world.leaf("null:1G")));
    let clients = 3;
    let grown = growth(|look| {
        let mut stuck = Vec::new();
        for _ in 0..clients {
            let client = world.connect("disk");
            let mut socket = client.socket.try_clone().unwrap();
            // Send as many reads as the socket takes. Their data would be gigabytes.
            let reads = request(0, READ, 1, 0, 32 << 20).repeat(10_000);
            socket.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
            let _ = socket.write_all(&reads);
            look();
            stuck.push(client);
        }
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(30));
            look();
        }
    });
    assert!(grown < clients * LENT + SLACK, "{} MiB for {clients} clients", grown / MIB);
    eventually("all are gone", || device.info().opens == 0);
}

#[test]
fn clients_that_do_not_read_during_the_handshake_cost_what_may_be_answered() {
    let _alone = alone();
    let world = World::new(1);
    for n in 0..200 {
        world.device(&format!("{n:0100}"), world.linear(&world.leaf("null:1G")));
    }
    let clients = 4;
    let grown = growth(|look| {
        let mut stuck = Vec::new();
        for _ in 0..clients {
            let mut socket = UnixStream::connect(world.socket()).unwrap();
            socket.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
            let _ =
                socket.write_all(&[&3u32.to_be_bytes()[..], &option(3, &[]).repeat(1024)].concat());
            look();
            stuck.push(socket);
        }
        std::thread::sleep(Duration::from_millis(200));
        look();
    });
    assert!(grown < clients * HANDSHAKE + SLACK, "{} MiB for {clients} clients", grown / MIB);
}

#[test]
fn connections_above_the_limit_are_refused_and_the_others_served() {
    let _alone = alone();
    // A quarter of the descriptors is kept from clients, and this process holds the clients' ends,
    // too.
    let spare = with_few_descriptors(400);
    let world = small();
    world.device("disk", world.linear(&world.leaf("mem:1M")));
    let mut clients: Vec<Client> = Vec::new();
    while let Ok(client) = Client::connect(&world.socket(), "disk") {
        clients.push(client);
    }
    assert!((100..200).contains(&clients.len()), "{} clients were let in", clients.len());
    assert!(std::fs::File::open("/dev/null").is_ok(), "descriptors are left");
    for client in clients.iter_mut().step_by(10) {
        client.read(0, 512).unwrap();
    }
    drop(clients.pop());
    eventually("there is room again", || Client::connect(&world.socket(), "disk").is_ok());
    drop(spare);
}

/// A pool with one queue and the smallest budget.
fn small() -> World {
    World::with(PoolOptions { queues: 1, memory_bytes: MIN_BYTES })
}

/// Reads 4 KiB again and again for `time`. Returns the 99th percentile of the latencies.
fn p99_of_reads(client: &mut Client, time: Duration) -> Duration {
    let (start, mut took) = (Instant::now(), Vec::new());
    while start.elapsed() < time {
        let before = Instant::now();
        client.read(0, 4096).unwrap();
        took.push(before.elapsed());
    }
    took.sort();
    took[took.len() * 99 / 100]
}

/// As `clients_that_do_not_read_cost_what_may_be_lent`, but with so many clients that the budget is
/// the limit. Other clients are served, and the memory goes back to the system afterwards.
#[test]
fn clients_that_never_read_cost_no_more_than_the_budget() {
    let _alone = alone();
    let world = small();
    let device = world.device("disk", world.linear(&world.leaf("null:1G")));
    let mut good = world.connect("disk");
    let memory = world.pool.registry().memory().clone();
    let before = resident();
    for (clients, requests, len) in [(40, 8, 32 << 20), (20, 1500, 65536), (20, 1500, 4096)] {
        let mut slow = Duration::ZERO;
        let grown = growth(|look| {
            let mut stuck = Vec::new();
            for _ in 0..clients {
                let mut client = world.connect("disk");
                let reads = request(0, READ, 1, 0, len).repeat(requests);
                client.socket.write_all(&reads).unwrap();
                stuck.push(client);
                look();
            }
            slow = p99_of_reads(&mut good, Duration::from_secs(1));
            look();
        });
        let budget = MIN_BYTES as u64;
        assert!(memory.used() as u64 <= budget);
        assert!(grown < budget + SLACK, "{} MiB for {clients} x {len}", grown / MIB);
        assert!(slow < Duration::from_millis(50), "p99 of another client: {slow:?}");
        eventually("all are gone", || device.info().opens == 1);
        eventually("the memory went back to the system", || {
            resident() < before + 16 * MIB && memory.used() < 16 << 20
        });
    }
}

/// A header costs its sender 28 bytes. It must not cost the server 32 MiB, nor delay other clients,
/// even those with large requests.
#[test]
fn headers_of_writes_without_bodies_cost_next_to_nothing() {
    let _alone = alone();
    let world = small();
    world.device("disk", world.linear(&world.leaf("null:1G")));
    let mut good = world.connect("disk");
    let mut slow = Duration::ZERO;
    let mut stuck = Vec::new();
    let grown = growth(|look| {
        for _ in 0..64 {
            let mut client = world.connect("disk");
            client.send(0, WRITE, 0, 32 << 20, &[]).unwrap();
            stuck.push(client);
        }
        slow = p99_of_reads(&mut good, Duration::from_secs(1));
        look();
    });
    assert!(grown < 24 * MIB, "{} MiB for 64 headers", grown / MIB);
    assert!(slow < Duration::from_millis(50), "p99 of another client: {slow:?}");
    let start = Instant::now();
    good.write(0, &vec![1; 1 << 20]).unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "1 MiB took {:?}", start.elapsed());
    // The budget is too small for this write beside these headers. It goes on when the server drops
    // the clients that send nothing.
    let start = Instant::now();
    good.write(0, &vec![1; 32 << 20]).unwrap();
    good.read(0, 32 << 20).unwrap();
    assert!(start.elapsed() < Duration::from_secs(30), "32 MiB took {:?}", start.elapsed());
}

/// Many clients send large bodies at once, each of which gets its memory in two steps. All arrive
/// whole.
#[test]
fn more_large_writes_than_the_budget_holds_arrive_whole() {
    let _alone = alone();
    let world = small();
    world.device("disk", world.linear(&world.leaf("mem:1G")));
    let clients: Vec<_> = (0..12u8)
        .map(|n| {
            let mut client = world.connect("disk");
            std::thread::spawn(move || {
                let len = 16 << 20;
                let data: Vec<u8> = (0..len).map(|at| (at / 4093) as u8 ^ n).collect();
                for _ in 0..3 {
                    client.write(u64::from(n) * len, &data).unwrap();
                }
                assert!(client.read(u64::from(n) * len, len as u32).unwrap() == data);
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
}

/// If the system has no memory although the budget allows it, the client gets an error.
#[test]
fn without_memory_of_the_system_requests_fail_and_the_connection_goes_on() {
    let _alone = alone();
    let world = World::new(1);
    let device = world.device("disk", world.linear(&world.leaf("null:1G")));
    let mut client = world.connect("disk");
    let data = vec![1; 32 << 20];
    client.write(0, &data).unwrap();
    device.suspend().unwrap();
    let limit = Limit::lower(libc::RLIMIT_AS, address_space() + 80 * MIB);
    let mut held = world.connect("disk");
    held.socket.write_all(&request(0, READ, 1, 0, 32 << 20).repeat(2)).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let enomem = 12;
    client.send(0, WRITE, 0, 32 << 20, &data).unwrap();
    assert_eq!(client.reply().unwrap().0, enomem);
    client.send(0, READ, 0, 32 << 20, &[]).unwrap();
    assert_eq!(client.reply().unwrap().0, enomem);
    drop(limit);
    device.resume().unwrap();
    client.write(0, &data).unwrap();
    client.read(0, 4096).unwrap();
}

/// Size of this process's address space in bytes.
fn address_space() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').next().unwrap().parse::<u64>().unwrap() * 4096
}

/// Without free descriptors, accepting fails. The server must neither spin on a core nor lose the
/// listener meanwhile.
#[test]
fn a_process_without_descriptors_waits_for_one() {
    let _alone = alone();
    let world = World::new(1);
    world.device("disk", world.linear(&world.leaf("mem:1M")));
    let mut before = world.connect("disk");
    let mut spare = use_up_descriptors();
    let mut waiting = spare.connect(&world.socket());
    let used = cpu_time();
    std::thread::sleep(Duration::from_millis(500));
    let used = cpu_time() - used;
    before.read(0, 512).unwrap();
    drop(spare);
    assert!(used < Duration::from_millis(60), "{used:?} of 500 ms were spent on nothing");
    waiting.set_read_timeout(Some(support::HANG)).unwrap();
    waiting.read_exact(&mut [0; 18]).unwrap();
}

/// If descriptors suffice for some of the queues only, starting a pool fails and does not hang.
#[test]
fn a_pool_that_cannot_start_says_so() {
    let _alone = alone();
    let queues = 32;
    let mut spare = use_up_descriptors();
    // Leaves descriptors for the mailboxes and for half of the rings.
    spare.files.truncate(spare.files.len() - queues * 3 / 2);
    let started = support::in_time("starting", move || {
        Pool::start(PoolOptions { queues, ..PoolOptions::default() }).map(|_| ())
    });
    drop(spare);
    started.unwrap_err();
}

/// Lowers a limit of this process until it is dropped.
struct Limit(libc::__rlimit_resource_t, libc::rlimit);

impl Limit {
    fn lower(what: libc::__rlimit_resource_t, to: u64) -> Limit {
        // SAFETY: `rlimit` is plain data. The first call fills it, the second one reads it.
        unsafe {
            let mut limit: libc::rlimit = std::mem::zeroed();
            libc::getrlimit(what, &raw mut limit);
            let low = libc::rlimit { rlim_cur: to, ..limit };
            libc::setrlimit(what, &raw const low);
            Limit(what, limit)
        }
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        // SAFETY: the limit is alive, and is the one that this process had before.
        unsafe { libc::setrlimit(self.0, &raw const self.1) };
    }
}

/// Limits this process to `count` descriptors.
fn with_few_descriptors(count: u64) -> Limit {
    Limit::lower(libc::RLIMIT_NOFILE, count)
}

/// All descriptors that this process may still open.
struct Spare {
    files: Vec<std::fs::File>,
    _limit: Limit,
}

fn use_up_descriptors() -> Spare {
    let limit = with_few_descriptors(descriptors() as u64 + 100);
    let mut files = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        files.push(file);
    }
    Spare { files, _limit: limit }
}

impl Spare {
    /// Frees one descriptor for the client's end of a connection, and none for the server's.
    fn connect(&mut self, path: &std::path::Path) -> UnixStream {
        drop(self.files.pop());
        UnixStream::connect(path).unwrap()
    }
}

fn cpu_time() -> Duration {
    // SAFETY: `timespec` is plain data that the call fills.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time);
        time
    };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[test]
fn devices_come_and_go_and_leave_nothing() {
    let _alone = alone();
    let world = World::new(2);
    let paths: Vec<_> = (0..3).map(|n| world.file(&format!("p{n}"), MIB)).collect();
    let round = || {
        let leaves: Vec<_> = paths.iter().map(|path| world.leaf(path.to_str().unwrap())).collect();
        let below = world.device("below", world.switch(&leaves, 8));
        let top = world.device("top", world.linear_on(&below, 2048));
        let mut client = world.connect("top");
        client.write(0, &[1; 4096]).unwrap();
        let busy = world.pool.registry().remove(&top).unwrap_err();
        assert_eq!(busy.errno(), libc::EBUSY, "{busy}");
        assert_eq!(world.pool.registry().remove(&below).unwrap_err().errno(), libc::EBUSY);
        // Each is removed with its last user: the connection, and the table above.
        top.set_deferred_remove(true);
        below.set_deferred_remove(true);
        drop((leaves, below, top, client));
        eventually("both devices are gone", || world.pool.registry().list().is_empty());
    };
    (0..5).for_each(|_| round());
    let fds = descriptors();
    (0..100).for_each(|_| round());
    eventually("the files are closed", || descriptors() <= fds);
}
