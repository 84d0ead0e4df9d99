//! Measures a vhost-user-blk export with a client of its own: requests per second, and the server's
//! processor time for each.
//!
//!     cargo run --release -p blkswitch-io --example vhost_user -- serve FILE SOCKET   # beside it
//!     cargo run --release -p blkswitch-io --example vhost_user -- SOCKET [SECONDS]
//!
//! The first line serves a file with one queue. Any other export of 64 MiB or more will do.

#![allow(dead_code, reason = "a part of the test's front end")]

#[path = "../tests/vhost_user/front.rs"]
mod front;

mod support {
    use std::time::Duration;

    pub(crate) const HANG: Duration = Duration::from_secs(60);
}

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use blkswitch_io::export::vhost_user;
use blkswitch_io::{Leaf, LeafOptions, Pool, PoolOptions, TableBuilder, Target, To};
use front::{DATA, EVENT_IDX, Front, IN, INDIRECT, OK, OUT};

/// Features of the protocol that every export has: several rings, replies, configuration.
const PROTOCOL: u64 = 1 | 1 << 3 | 1 << 9;
/// Sectors of the device that are used: 64 MiB.
const SECTORS: u64 = 64 << 11;

fn main() {
    let mut words = std::env::args().skip(1);
    let path = words.next().expect("the path of a socket");
    if path == "serve" {
        let mut next = || words.next().expect("a file and a socket");
        return serve(&next(), &next());
    }
    let path = PathBuf::from(path);
    let seconds = words.next().map_or(2.0, |word| word.parse().expect("seconds"));
    let time = Duration::from_secs_f64(seconds);
    let mut front = Front::connect_as(&path, EVENT_IDX | INDIRECT, PROTOCOL);
    front.indirect = true;
    let server = server(&front);
    println!("| request | depth | requests/s | server, us | kicks a request |");
    println!("|---|---|---|---|---|");
    for (kind, name) in [(IN, "read"), (OUT, "write")] {
        for (bytes, depth) in [(4096, 1), (4096, 32), (128 << 10, 8)] {
            run(&mut front, kind, bytes, depth, time / 4);
            let (cpu, kicks) = (cpu(server), front.kicks);
            let began = Instant::now();
            let done = run(&mut front, kind, bytes, depth, time);
            let (took, used) = (began.elapsed(), self::cpu(server) - cpu);
            println!(
                "| {} KiB {name} | {depth} | {:.0} | {:.2} | {:.2} |",
                bytes / 1024,
                done as f64 / took.as_secs_f64(),
                used * 1e6 / done as f64,
                f64::from(front.kicks - kicks) / done as f64
            );
        }
    }
}

/// Serves a file at a socket, until the process is killed.
fn serve(file: &str, socket: &str) {
    let pool = Pool::start(PoolOptions { queues: 1, ..PoolOptions::default() }).expect("a pool");
    let options = LeafOptions::new(pool.queues());
    let leaf = Leaf::open(&file.parse().expect("an address"), &options).expect("a leaf");
    let sectors = leaf.properties().sectors;
    let mut table = TableBuilder::new(false);
    let below = table.leaf(leaf);
    table.push(sectors, Target::Linear(To { below, offset: 0 }));
    let device = pool.registry().create("disk", "", None).expect("a device");
    device.load(table.build().expect("a table")).expect("a table");
    device.resume().expect("a live table");
    let listener = UnixListener::bind(socket).expect("a socket");
    let options = vhost_user::Options::default();
    pool.attach_vhost_user(&device, listener, &options).expect("an export");
    loop {
        std::thread::park();
    }
}

/// Keeps so many requests in flight, at places that a generator of numbers chooses.
fn run(front: &mut Front, kind: u32, bytes: u32, depth: u16, time: Duration) -> u64 {
    let (mut state, mut done, mut sent) = (1u64, 0, 0);
    let until = Instant::now() + time;
    let sectors = u64::from(bytes / 512);
    let mut submit = |front: &mut Front, head: u16| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let sector = (state >> 33) % (SECTORS / sectors) * sectors;
        front.submit(head, kind, sector, &[(DATA + usize::from(head) * bytes as usize, bytes)]);
    };
    for head in 0..depth {
        submit(front, head);
        sent += 1;
    }
    while done < sent {
        let (head, status, _) = front.answer();
        assert_eq!(status, OK);
        done += 1;
        if Instant::now() < until {
            submit(front, head);
            sent += 1;
        }
    }
    done
}

/// The process at the other end of the socket.
fn server(front: &Front) -> i32 {
    let mut who = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    let (level, option) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
    // SAFETY: a system call that fills a live structure of the length given.
    let found = unsafe {
        let to = (&raw mut who).cast();
        libc::getsockopt(front.socket.as_raw_fd(), level, option, to, &raw mut len)
    };
    assert_eq!(found, 0);
    who.pid
}

/// Processor time of a process, in seconds.
fn cpu(process: i32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("the server");
    let (_, rest) = stat.rsplit_once(')').expect("a name");
    let field = |n: usize| rest.split(' ').nth(n).and_then(|word| word.parse::<f64>().ok());
    // Ticks of 10 ms: user and system time.
    (field(12).unwrap_or(0.0) + field(13).unwrap_or(0.0)) / 100.0
}
