//! What hostile clients cost this process: memory within the named limits, no descriptor for longer
//! than they stay. A program of its own, whose tests run one after the other, for it measures the
//! whole process.

mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use blkswitch_io::{Pool, PoolOptions};
use support::{Client, READ, WRITE, World, eventually, option, request};

const MIB: u64 = 1 << 20;
/// What a connection may have lent (conn.rs).
const LENT: u64 = 64 * MIB;
/// Most bytes of handshake answers that wait for a client (export/nbd/mod.rs), and its input.
const HANDSHAKE: u64 = 4 * MIB + 128 * 1024;
/// What else a process of this size moves about.
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

/// Runs something and returns by how much the resident memory rose above where it began, at most.
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
            // As many reads as the socket takes: gigabytes, if they were carried out.
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
    let limit = blkswitch_io::export::nbd::server::MAX_CONNECTIONS_PER_QUEUE;
    let world = World::new(1);
    world.device("disk", world.linear(&world.leaf("mem:1M")));
    let mut clients: Vec<Client> = Vec::new();
    while clients.len() < limit {
        match Client::connect(&world.socket(), "disk") {
            Ok(client) => clients.push(client),
            Err(error) => {
                return println!("skipped: only {} connections here: {error}", clients.len());
            }
        }
    }
    assert!(Client::connect(&world.socket(), "disk").is_err(), "one too many");
    for client in clients.iter_mut().step_by(100) {
        client.read(0, 512).unwrap();
    }
    drop(clients.pop());
    eventually("there is room again", || Client::connect(&world.socket(), "disk").is_ok());
}

/// With no descriptor left, accepting fails until there is one: that must not take a core, nor end
/// the listener.
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

/// A machine that has descriptors for some of the queues only: an error, no hang.
#[test]
fn a_pool_that_cannot_start_says_so() {
    let _alone = alone();
    let queues = 32;
    let mut spare = use_up_descriptors();
    // For the mailboxes, and half of the rings.
    spare.0.truncate(spare.0.len() - queues * 3 / 2);
    let started =
        support::in_time("starting", move || Pool::start(PoolOptions { queues }).map(|_| ()));
    drop(spare);
    started.unwrap_err();
}

/// All descriptors this process may have.
struct Spare(Vec<std::fs::File>, libc::rlimit);

fn use_up_descriptors() -> Spare {
    // SAFETY: rlimit is plain data, filled by the first call and read by the second.
    let limit = unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        let low = libc::rlimit { rlim_cur: descriptors() as u64 + 100, ..limit };
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const low);
        limit
    };
    let mut files = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        files.push(file);
    }
    Spare(files, limit)
}

impl Spare {
    /// One descriptor for the client's end, none for the server's.
    fn connect(&mut self, path: &std::path::Path) -> UnixStream {
        drop(self.0.pop());
        UnixStream::connect(path).unwrap()
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        // SAFETY: a live limit, which this process had before.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const self.1) };
    }
}

fn cpu_time() -> Duration {
    // SAFETY: timespec is plain data, filled by the call.
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
        // Both go with their last user: the connection, and the table above.
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
