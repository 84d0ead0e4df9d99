//! Servers that hang, answer late, answer with errors, send half a reply, lie, are killed and come
//! back. Every request is answered once, in time, and with the right result.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use blkswitch_io::engine::sim::Random;
use blkswitch_io::{Leaf, LeafError};

use crate::server::{self, Action, Options, Request, Server, chunk, simple};
use crate::support::{self, READ, WRITE, World, eventually, in_time, options};

const EIO: u32 = 5;
/// The error that blkswitch's own NBD export returns for a leaf that is out of reach.
const ESHUTDOWN: u32 = 108;
/// How long a server may be silent by default (docs/leaves.md). An operation that ended sooner did
/// not wait for this timeout.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Flags of a server that allows only one connection, so that all queues share it.
const ONE: u16 = server::GOOD & !server::MULTI_CONN;

/// Makes a world with a device over one leaf, `one`, which uses a relay.
fn world_over(server: &Server, options: &str) -> World {
    let world = World::new(1);
    let leaf = world.leaf(&server.address(options));
    world.device("disk", world.linear(&leaf));
    world
}

fn both_routes() -> [Options; 2] {
    [Options::default(), Options { flags: ONE, ..Options::default() }]
}

/// A script: the first request of this kind gets `action`; all others are done.
fn first(command: u16, action: Action) -> impl Fn(&Request) -> Action + Send + Sync {
    let done = AtomicBool::new(false);
    move |request| match request.command == command && !done.swap(true, Ordering::SeqCst) {
        true => action.clone(),
        false => Action::Do,
    }
}

#[test]
fn a_server_that_is_not_there_or_is_none_is_refused_with_its_address() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let address = format!("nbd+unix:///disk?socket={}", path.display());
    let open_at = |address: &str| Leaf::open(&address.parse().unwrap(), &options()).unwrap_err();
    let open = || open_at(&address);
    let error = open();
    assert!(
        matches!(error, LeafError::System { .. }) && error.to_string().contains(&address),
        "{error}"
    );
    assert_eq!(error.errno(), libc_enoent());
    // The listener accepts connections and sends nothing.
    let silent = UnixListener::bind(&path).unwrap();
    let start = Instant::now();
    let error = open_at(&format!("{address}&timeout=1"));
    assert!(
        error.to_string().contains("timed out") && start.elapsed() < DEFAULT_TIMEOUT,
        "{error}"
    );
    drop(silent);
    let mut old = b"NBDMAGIC".to_vec();
    old.extend(0x0000_4202_8186_1253_u64.to_be_bytes());
    old.extend([0; 140]);
    for (greeting, says) in [
        (b"SSH-2.0-OpenSSH_9.2p1 Debian".to_vec(), "no NBD server"),
        (b"NBDMAGICIHAVEOPT\x00\x02".to_vec(), "old form"),
        (old, "old form"),
        ([&b"NBDMAGICIHAVEOPT\x00\x03"[..], &[0xff; 4096]].concat(), "no reply to option"),
    ] {
        let _server = Server::start(
            &path,
            Options { greeting: Some(greeting), ..Options::default() },
            |_| Action::Do,
        );
        let error = open().to_string();
        assert!(error.contains(says) && error.contains(&address), "{error}");
    }
    for bad in [
        Options { size: 511, ..Options::default() },
        Options { size: u64::MAX, ..Options::default() },
        Options { flags: 0, ..Options::default() },
        Options { blocks: Some([3, 4096, 4096]), ..Options::default() },
        Options { blocks: Some([4096, 4096, 512]), ..Options::default() },
        Options { blocks: Some([1 << 20, 1 << 20, 1 << 20]), ..Options::default() },
    ] {
        let sizes = (bad.size, bad.flags, bad.blocks);
        let _server = Server::start(&path, bad, |_| Action::Do);
        assert!(open().to_string().contains(&address), "{sizes:?}");
    }
}

fn libc_enoent() -> i32 {
    2
}

#[test]
fn an_error_is_the_answer_of_a_server_that_lives() {
    let dir = tempfile::tempdir().unwrap();
    for options in both_routes() {
        // The server's number, and the number that blkswitch's own export makes of it. 108,
        // ESHUTDOWN, is missing: the leaf leaves a server that answers it (promises.rs).
        for (code, answer) in
            [(1, 1), (5, EIO), (12, 12), (22, 22), (28, 28), (75, 22), (9999, EIO)]
        {
            let server = Server::start(
                &dir.path().join("s"),
                options.clone(),
                first(0, Action::Error(code)),
            );
            let world = world_over(&server, "");
            let mut client = world.connect("disk");
            assert_eq!(client.read(0, 4096), Err(answer), "error {code}");
            assert_eq!(
                client.read(0, 4096).unwrap(),
                [0; 4096],
                "the connection is still good after {code}"
            );
            assert_eq!(server.count(0), 2);
        }
    }
}

/// Whatever a server sends instead of a reply, the request fails and the leaf reconnects. Nothing
/// else happens.
#[test]
fn lies_cost_the_connection_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let offset = 4096u64.to_be_bytes();
    let data = |offset: u64, len: usize| [&offset.to_be_bytes()[..], &vec![7; len]].concat();
    // These lies do not know the cookie of the first request. Those further down do.
    let lies: [(&str, Vec<u8>); 6] = [
        ("garbage", vec![0x5a; 64]),
        ("another's cookie", simple(0, 0xdead_beef).to_vec()),
        ("nobody's chunk", chunk(1, 1, u64::MAX, &data(4096, 512))),
        ("a huge error text", chunk(1, 0x8001, 1, &[1; 8000])),
        ("a chunk of unknown type", chunk(1, 77, 1, &offset)),
        ("the end of a reply", simple(0, 1)[8..].to_vec()),
    ];
    for options in both_routes() {
        for (what, bytes) in &lies {
            let server = Server::start(
                &dir.path().join("s"),
                options.clone(),
                first(0, Action::Bytes(bytes.clone())),
            );
            let world = world_over(&server, "");
            let mut client = world.connect("disk");
            let start = Instant::now();
            assert_eq!(client.read(4096, 4096), Err(EIO), "{what}");
            assert!(start.elapsed() < DEFAULT_TIMEOUT, "{what}");
            eventually(what, || client.read(4096, 4096).is_ok());
        }
    }
    // These lies know the cookie of the request.
    type Lie = fn(u64) -> Vec<u8>;
    let informed: [(&str, Lie); 8] = [
        ("data beyond the request", |c| {
            chunk(1, 1, c, &[&8192u64.to_be_bytes()[..], &[7; 512]].concat())
        }),
        ("data before the request", |c| {
            chunk(1, 1, c, &[&0u64.to_be_bytes()[..], &[7; 512]].concat())
        }),
        ("too much data", |c| chunk(1, 1, c, &[&4096u64.to_be_bytes()[..], &[7; 8192]].concat())),
        ("an offset that wraps", |c| {
            chunk(1, 1, c, &[&(u64::MAX - 255).to_be_bytes()[..], &[7; 512]].concat())
        }),
        ("a huge hole", |c| {
            chunk(1, 2, c, &[&4096u64.to_be_bytes()[..], &u32::MAX.to_be_bytes()].concat())
        }),
        ("a part of the data", |c| {
            chunk(1, 1, c, &[&4096u64.to_be_bytes()[..], &[7; 512]].concat())
        }),
        ("no data at all", |c| chunk(1, 0, c, &[])),
        ("data twice", |c| {
            let once = chunk(0, 1, c, &[&4096u64.to_be_bytes()[..], &[7; 2048]].concat());
            [once.clone(), once].concat()
        }),
    ];
    for options in both_routes() {
        for (what, lie) in informed {
            let told = AtomicBool::new(false);
            let script = move |request: &Request| match request.command == READ
                && !told.swap(true, Ordering::SeqCst)
            {
                true => Action::Bytes(lie(request.cookie)),
                false => Action::Do,
            };
            let server = Server::start(&dir.path().join("s"), options.clone(), script);
            let world = world_over(&server, "");
            let mut client = world.connect("disk");
            assert_eq!(client.read(4096, 4096), Err(EIO), "{what}");
            eventually(what, || client.read(4096, 4096).is_ok_and(|data| data == [0; 4096]));
        }
    }
}

/// Random replies, some of them correct. Every request is answered in time, and when the server
/// behaves again, so does the leaf.
#[test]
fn replies_at_random_are_survived() {
    let dir = tempfile::tempdir().unwrap();
    for (seed, options) in both_routes().into_iter().enumerate() {
        let (is_mad, count) = (Arc::new(AtomicBool::new(true)), AtomicUsize::new(0));
        let mad = is_mad.clone();
        let script = move |request: &Request| {
            let mut random =
                Random::new(seed as u64 * 1000 + count.fetch_add(1, Ordering::SeqCst) as u64);
            if !mad.load(Ordering::SeqCst) || random.chance(500_000) {
                return Action::Do;
            }
            let cookie = if random.chance(900_000) { request.cookie } else { random.bits() };
            let mut payload: Vec<u8> =
                (0..random.below(5000)).map(|_| random.bits() as u8).collect();
            let offset = request.offset + random.below(3) * 512;
            payload.splice(..payload.len().min(8), offset.to_be_bytes());
            let kind = [0, 1, 2, 3, 0x8001, 0x8002, random.bits() as u16][random.below(7) as usize];
            let flags = u16::from(random.chance(800_000));
            Action::Bytes(match random.below(3) {
                0 => simple(random.below(40) as u32, cookie).to_vec(),
                1 => [&simple(0, cookie)[..], &payload].concat(),
                _ => chunk(flags, kind, cookie, &payload),
            })
        };
        let server = Server::start(&dir.path().join("s"), options, script);
        let world = world_over(&server, "&timeout=1&reconnect=1");
        let (mut client, mut failed) = (world.connect("disk"), 0);
        for round in 0..12u64 {
            for n in 0..8 {
                client.send(0, WRITE, (round * 8 + n) * 4096, 4096, &[1; 4096]).unwrap();
            }
            for _ in 0..8 {
                failed += usize::from(client.reply().unwrap().0 != 0);
            }
            let read = client.read(round * 4096, 2048);
            assert!(read.is_err() || read.is_ok_and(|data| data.len() == 2048));
        }
        assert!(failed > 0, "nothing went wrong");
        is_mad.store(false, Ordering::SeqCst);
        eventually("all is well again", || client.write(0, &[2; 4096]).is_ok());
        assert_eq!(client.read(0, 4096).unwrap(), [2; 4096]);
    }
}

/// The answer to a write arrives before the server has read its data. The memory must not be given
/// to the next request until the data has been sent.
#[test]
fn a_write_answered_too_early_keeps_its_memory_until_it_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    // More data than a socket buffers.
    let len = 16 << 20;
    for options in both_routes() {
        let options = Options { size: 64 << 20, ..options };
        let early =
            |request: &Request| if request.command == WRITE { Action::Early } else { Action::Do };
        let server = Server::start(&dir.path().join("s"), options, early);
        let world = world_over(&server, "");
        let mut client = world.connect("disk");
        for n in 0..4u8 {
            client.write(u64::from(n) << 24, &vec![n + 1; len]).unwrap();
        }
        for n in 0..4u8 {
            assert!(
                client.read(u64::from(n) << 24, len as u32).unwrap() == vec![n + 1; len],
                "write {n}"
            );
        }
    }
}

/// A server answers a write without reading its data, and closes the connection. The write counts
/// as unanswered and is sent again.
#[test]
fn a_write_answered_too_early_and_never_taken_is_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let data = vec![7; 16 << 20];
    for options in both_routes() {
        let options = Options { size: 64 << 20, ..options };
        let server =
            Server::start(&dir.path().join("s"), options.clone(), first(WRITE, Action::TooEarly));
        let world = world_over(&server, "&reconnect=20");
        world.connect("disk").write(0, &data).unwrap();
        assert!(server.disk.bytes.lock().unwrap()[..data.len()] == data, "acknowledged and lost");
        drop(world);

        let server = Server::start(&dir.path().join("s"), options, first(WRITE, Action::TooEarly));
        let world = world_over(&server, "");
        assert_eq!(world.connect("disk").write(0, &data), Err(ESHUTDOWN));
    }
}

/// A server accepts every connection and serves none. The leaf pauses between its attempts.
#[test]
fn connections_that_do_not_last_are_made_less_and_less_often() {
    let dir = tempfile::tempdir().unwrap();
    for options in both_routes() {
        let turns_away = options.turns_away.clone();
        let server = Server::start(&dir.path().join("s"), options, |_| Action::Do);
        let world = world_over(&server, "&reconnect=20");
        let mut client = world.connect("disk");
        client.read(0, 512).unwrap();
        turns_away.store(true, Ordering::SeqCst);
        server.cut();
        client.send(0, READ, 0, 512, &[]).unwrap();
        let before = server.disk.connections.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_secs(2));
        let tries = server.disk.connections.load(Ordering::SeqCst) - before;
        assert!(tries < 30, "{tries} connections in two seconds");
        turns_away.store(false, Ordering::SeqCst);
        assert_eq!(client.reply().unwrap().0, 0, "it was answered when the server was well again");
    }
}

#[test]
fn silence_ends_with_the_timeout_and_a_probe_says_when_it_is_over() {
    let dir = tempfile::tempdir().unwrap();
    for options in both_routes() {
        let is_silent = Arc::new(AtomicBool::new(false));
        let silent = is_silent.clone();
        let script = move |_: &Request| {
            if silent.load(Ordering::SeqCst) { Action::Silence } else { Action::Do }
        };
        let server = Server::start(&dir.path().join("s"), options, script);
        let world = World::new(1);
        let leaf = world.leaf(&server.address("&timeout=2"));
        world.device("disk", world.linear(&leaf));
        let mut client = world.connect("disk");
        client.read(0, 512).unwrap();
        is_silent.store(true, Ordering::SeqCst);
        let start = Instant::now();
        for _ in 0..5 {
            client.send(0, READ, 0, 4096, &[]).unwrap();
        }
        for _ in 0..5 {
            assert_eq!(client.reply().unwrap().0, ESHUTDOWN);
        }
        let time = start.elapsed();
        assert!((Duration::from_millis(1500)..DEFAULT_TIMEOUT).contains(&time), "{time:?}");
        let error = leaf.engine().probe(Duration::from_secs(1)).unwrap_err();
        assert!(
            matches!(error.raw_os_error(), Some(110 | 107))
                || error.kind() == std::io::ErrorKind::TimedOut,
            "{error}"
        );
        is_silent.store(false, Ordering::SeqCst);
        eventually("a probe succeeds", || leaf.engine().probe(Duration::from_secs(5)).is_ok());
        client.read(0, 4096).expect("what was probed can be used at once");
    }
}

/// A server that answers a probe with EPERM, EIO, ENOMEM, EINVAL or ENOSPC is there, on either
/// route. One that answers ESHUTDOWN is not.
#[test]
fn a_probe_that_is_answered_with_an_error_has_been_answered() {
    let dir = tempfile::tempdir().unwrap();
    for options in both_routes() {
        for code in [1, 5, 12, 22, 28, ESHUTDOWN] {
            let script = move |request: &Request| match request.command {
                READ => Action::Error(code),
                _ => Action::Do,
            };
            let server = Server::start(&dir.path().join("s"), options.clone(), script);
            let leaf = World::new(1).leaf(&server.address(""));
            let probed = leaf.engine().probe(Duration::from_secs(5));
            assert_eq!(probed.is_ok(), code != ESHUTDOWN, "{code}: {probed:?}");
        }
    }
}

#[test]
fn a_late_answer_is_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(
        &dir.path().join("s"),
        Options::default(),
        first(0, Action::Late(Duration::from_millis(700))),
    );
    let world = world_over(&server, "&timeout=10");
    assert_eq!(world.connect("disk").read(0, 512).unwrap(), [0; 512]);
}

#[test]
fn without_reconnect_a_lost_connection_fails_what_was_on_it_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    for options in both_routes() {
        for action in [Action::Close, Action::Half] {
            let server = Server::start(&path, options.clone(), first(0, action.clone()));
            let world = world_over(&server, "");
            let mut client = world.connect("disk");
            assert_eq!(client.read(0, 65536), Err(ESHUTDOWN), "{action:?}");
            eventually("it is connected again", || client.read(0, 65536).is_ok());
            let leaf =
                world.pool.registry().find("disk").unwrap().live().unwrap().leaves()[0].clone();
            let disk = server.kill();
            eventually("it knows", || client.read(0, 512).is_err());
            let start = Instant::now();
            (0..100).for_each(|_| assert_eq!(client.read(0, 512), Err(ESHUTDOWN)));
            // The next attempt to connect may be five seconds away. No request has waited for it.
            assert!(start.elapsed() < Duration::from_secs(8), "at once: {:?}", start.elapsed());
            assert!(leaf.engine().probe(Duration::from_secs(5)).is_err());
            let _server = Server::again(&path, disk, options.clone(), |_| Action::Do);
            eventually("a probe brings it back", || {
                leaf.engine().probe(Duration::from_secs(5)).is_ok()
            });
            client.read(0, 512).unwrap();
        }
    }
}

/// A write was sent on a connection that is then lost. A healthy server may still carry it out. The
/// caller gets the error only when that must have happened, so that a copy on another path is
/// always the later one.
#[test]
fn a_write_in_doubt_waits_until_the_server_must_have_done_it() {
    let dir = tempfile::tempdir().unwrap();
    let settling = Duration::from_millis(100);
    for options in both_routes() {
        for reconnect in ["", "&reconnect=30"] {
            let server =
                Server::start(&dir.path().join("s"), options.clone(), first(1, Action::Close));
            let world = world_over(&server, reconnect);
            let mut client = world.connect("disk");
            let start = Instant::now();
            let written = client.write(4096, &[7; 4096]);
            assert!(start.elapsed() >= settling, "{reconnect}: known after {:?}", start.elapsed());
            assert_eq!(written, if reconnect.is_empty() { Err(ESHUTDOWN) } else { Ok(()) });
            eventually("it goes on", || client.write(4096, &[8; 4096]).is_ok());
            assert_eq!(client.read(4096, 4096).unwrap(), [8; 4096]);
        }
    }
}

#[test]
fn with_reconnect_requests_wait_for_the_server_and_only_so_long() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    for options in both_routes() {
        let server = Server::start(&path, options.clone(), |_| Action::Do);
        let world = world_over(&server, "&reconnect=6");
        let mut client = world.connect("disk");
        client.write(0, &[5; 4096]).unwrap();
        let disk = server.kill();
        for _ in 0..4 {
            client.send(0, READ, 0, 4096, &[]).unwrap();
        }
        client.send(0, WRITE, 8192, 4096, &[6; 4096]).unwrap();
        std::thread::sleep(Duration::from_millis(500));
        let server = Server::again(&path, disk, options.clone(), |_| Action::Do);
        let mut data = vec![0; 4096];
        for _ in 0..5 {
            let (error, cookie) = client.reply().unwrap();
            assert_eq!(error, 0, "request {cookie}");
            if cookie <= 5 {
                std::io::Read::read_exact(&mut client.socket, &mut data).unwrap();
                assert_eq!(data, [5; 4096]);
            }
        }
        assert_eq!(client.read(8192, 4096).unwrap(), [6; 4096]);
        let start = Instant::now();
        drop(server);
        assert_eq!(client.read(0, 512), Err(ESHUTDOWN));
        let time = start.elapsed();
        assert!((Duration::from_millis(5500)..DEFAULT_TIMEOUT).contains(&time), "{time:?}");
        let start = Instant::now();
        assert_eq!(client.read(0, 512), Err(ESHUTDOWN));
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "its time is over for all: {:?}",
            start.elapsed()
        );
    }
}

/// A server accepts, shakes hands and hangs, time and again. No caller waits for ever.
#[test]
fn reconnecting_to_a_server_that_hangs_ends() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("s"), Options::default(), |_| Action::Silence);
    let world = world_over(&server, "&timeout=1&reconnect=4");
    let mut client = world.connect("disk");
    let start = Instant::now();
    assert_eq!(client.read(0, 512), Err(ESHUTDOWN));
    assert!(start.elapsed() < DEFAULT_TIMEOUT, "{:?}", start.elapsed());
    assert!(server.count(0) > 1, "it was tried again");
}

#[test]
fn a_server_that_comes_back_as_another_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let first = || Options { name: Some("first"), ..Options::default() };
    for (other, says) in [
        (Options { size: 2 << 20, ..first() }, "2097152 bytes"),
        (Options { name: Some("second"), ..first() }, "'second'"),
        (Options { flags: server::GOOD | server::READ_ONLY, ..first() }, "read-only"),
        (Options { flags: ONE, ..first() }, "one connection"),
        (Options { flags: server::GOOD & !server::FLUSH, ..first() }, "flushed"),
        (Options { blocks: Some([4096, 4096, 1 << 20]), ..first() }, "block is 4096"),
    ] {
        let server = Server::start(&path, first(), |_| Action::Do);
        let world = world_over(&server, "");
        let leaf = world.pool.registry().find("disk").unwrap().live().unwrap().leaves()[0].clone();
        let mut client = world.connect("disk");
        client.write(0, &[1; 512]).unwrap();
        server.kill();
        let other = Server::start(&path, other, |_| Action::Do);
        let error = leaf.engine().probe(Duration::from_secs(5)).unwrap_err().to_string();
        assert!(error.contains("not what it was") && error.contains(says), "{error}");
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(client.read(0, 512), Err(ESHUTDOWN));
        assert_eq!(client.write(0, &[1; 512]), Err(ESHUTDOWN));
        assert_eq!(other.disk.requests.lock().unwrap().len(), 0, "nothing was asked of it");
        other.kill();
        let _good = Server::start(&path, first(), |_| Action::Do);
        eventually("the right one is back", || leaf.engine().probe(Duration::from_secs(5)).is_ok());
        client.read(0, 512).unwrap();
    }
}

const TWO_GROUPS: &str = "0 0 2 1 round-robin 0 1 0 0 round-robin 0 1 0 1";
const SECOND_ONLY: &str = "0 0 1 1 round-robin 0 1 0 1";

/// A path leaves the table and cannot be flushed, so its sibling is flushed instead. If that fails
/// there, the writes may be lost, and no later success of the sibling changes that.
#[test]
fn a_sibling_that_has_lost_writes_makes_good_for_no_path() {
    let dir = tempfile::tempdir().unwrap();
    for has_failed_before in [false, true] {
        let server = Server::start(&dir.path().join("a"), Options::default(), |_| Action::Do);
        let script = first(support::FLUSH, Action::Error(5));
        let sibling = Server::start(&dir.path().join("b"), Options::default(), script);
        let world = World::new(1);
        let leaves = [world.leaf(&server.address("")), world.leaf(&sibling.address(""))];
        let device = world.device("disk", world.multipath(TWO_GROUPS, &leaves));
        let mut client = world.connect("disk");
        client.write(0, &[1; 512]).unwrap();
        if has_failed_before {
            leaves[1].flush_blocking().unwrap_err();
        }
        server.kill();
        device.messenger(0).unwrap().change(|groups, mut on| groups.fail_path(0, &mut on));
        device.load(world.multipath(SECOND_ONLY, &leaves)).unwrap();
        device.resume().unwrap();
        assert!(leaves[1].is_lossy());
        assert!(leaves[0].needs_flush(), "failed before: {has_failed_before}");
        assert_eq!(device.running().unwrap().departed.len(), 1);
        assert!(client.flush().is_err());
    }
}

/// The server reports that the writes are lost. The sibling cannot know about them, so it is not
/// asked.
#[test]
fn a_flush_that_a_server_has_failed_is_not_made_good_by_a_sibling() {
    let dir = tempfile::tempdir().unwrap();
    let script = first(support::FLUSH, Action::Error(5));
    let server = Server::start(&dir.path().join("a"), Options::default(), script);
    let sibling = Server::start(&dir.path().join("b"), Options::default(), |_| Action::Do);
    let world = World::new(1);
    let leaves = [world.leaf(&server.address("")), world.leaf(&sibling.address(""))];
    let device = world.device("disk", world.multipath(TWO_GROUPS, &leaves));
    world.connect("disk").write(0, &[1; 512]).unwrap();
    device.load(world.multipath(SECOND_ONLY, &leaves)).unwrap();
    device.resume().unwrap();
    assert!(leaves[0].is_lossy() && leaves[0].needs_flush());
    assert_eq!(device.running().unwrap().departed.len(), 1);
    assert_eq!(sibling.count(support::FLUSH), 0);
}

/// The leaf sends a long discard in pieces. Each piece has the whole time limit for its answer.
#[test]
fn a_long_discard_may_take_longer_than_one_request() {
    const PIECE: Duration = Duration::from_millis(1800);
    let dir = tempfile::tempdir().unwrap();
    let script = |request: &Request| match request.command {
        support::TRIM => {
            std::thread::sleep(PIECE);
            Action::Bytes(chunk(1, 0, request.cookie, &[]))
        }
        _ => Action::Do,
    };
    let server = Server::start(
        &dir.path().join("s"),
        Options { size: 8 << 30, ..Options::default() },
        script,
    );
    let world = world_over(&server, "&timeout=5");
    let mut client = world.connect("disk");
    let start = Instant::now();
    client.call(0, support::TRIM, 0, u32::MAX - 511, &[]).unwrap();
    assert_eq!(server.count(support::TRIM), 4);
    // Longer than the timeout, plus the second within which a timeout is noticed.
    assert!(start.elapsed() > Duration::from_secs(6));
}

/// A flush that fails because the server is away is tried again and may succeed. A flush that the
/// server fails may not succeed later.
#[test]
fn a_lost_flush_is_asked_for_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    for options in both_routes() {
        let server = Server::start(&path, options.clone(), first(3, Action::Close));
        let world = world_over(&server, "");
        let leaf = world.pool.registry().find("disk").unwrap().live().unwrap().leaves()[0].clone();
        let mut client = world.connect("disk");
        client.write(0, &[1; 512]).unwrap();
        assert_eq!(client.flush(), Err(ESHUTDOWN));
        assert!(leaf.needs_flush(), "nothing was recorded as flushed");
        eventually("it is connected again", || client.read(0, 512).is_ok());
        client.flush().unwrap();
        assert!(!leaf.needs_flush());
        drop(world);

        let server = Server::start(&path, options, first(3, Action::Error(5)));
        let world = world_over(&server, "");
        let mut client = world.connect("disk");
        client.write(0, &[1; 512]).unwrap();
        assert_eq!(client.flush(), Err(EIO));
        assert_eq!(client.flush(), Err(EIO), "the server may have dropped what it could not write");
    }
}

/// Several clients send requests while connections are cut at random and the server is killed and
/// comes back. Every read returns the last written data.
#[test]
fn data_survives_cut_connections_and_killed_servers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    for (seed, options) in both_routes().into_iter().enumerate() {
        let count = Arc::new(AtomicUsize::new(0));
        let script = {
            let count = count.clone();
            move |_: &Request| match count.fetch_add(1, Ordering::SeqCst) % 97 {
                30 => Action::Close,
                60 => Action::Half,
                90 => Action::Pieces(1000),
                _ => Action::Do,
            }
        };
        let mut server = Server::start(&path, options.clone(), script.clone());
        let world = World::new(2);
        let leaf = world.leaf(&server.address("&reconnect=20"));
        world.device("disk", world.linear(&leaf));
        let (stop, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let threads: Vec<_> = (0..3u64)
            .map(|number| {
                let (mut client, stop, requests) =
                    (world.connect("disk"), stop.clone(), requests.clone());
                std::thread::spawn(move || {
                    let mut random = Random::new(seed as u64 * 10 + number);
                    let mut model = vec![0u8; 256];
                    while !stop.load(Ordering::SeqCst) {
                        let block = random.below(256);
                        let offset = (number * 256 + block) * 4096;
                        if random.chance(500_000) {
                            let byte = random.bits() as u8;
                            client.write(offset, &[byte; 4096]).unwrap();
                            model[block as usize] = byte;
                        } else {
                            assert_eq!(
                                client.read(offset, 4096).unwrap(),
                                [model[block as usize]; 4096]
                            );
                        }
                        requests.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        for round in 0..8 {
            std::thread::sleep(Duration::from_millis(150));
            if round % 2 == 0 {
                server.cut();
            } else {
                let disk = server.kill();
                std::thread::sleep(Duration::from_millis(100));
                server = Server::again(&path, disk, options.clone(), script.clone());
            }
        }
        // Enough requests to meet every fault of the script.
        eventually("a hundred requests are answered", || requests.load(Ordering::SeqCst) > 100);
        stop.store(true, Ordering::SeqCst);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        in_time("stopping", move || world.pool.stop());
    }
}

/// Tables with requests in flight come and go, and leave no descriptor behind.
#[test]
fn leaves_come_and_go_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    for options in both_routes() {
        let server = Server::start(&dir.path().join("s"), options, |_| Action::Do);
        let world = World::new(2);
        let memory = world.leaf("mem:4M");
        let device = world.device("disk", world.linear(&memory));
        let mut clients = [world.connect("disk"), world.connect("disk")];
        let mut cycle = || {
            device.load(world.linear(&world.leaf(&server.address("")))).unwrap();
            device.resume().unwrap();
            for client in &mut clients {
                client.write(0, &[9; 4096]).unwrap();
                assert_eq!(client.read(0, 4096).unwrap(), [9; 4096]);
            }
            device.load(world.linear(&memory)).unwrap();
            device.resume().unwrap();
        };
        cycle();
        server.cut();
        std::thread::sleep(Duration::from_millis(300));
        let before = descriptors();
        (0..50).for_each(|_| cycle());
        server.cut();
        // Other tests of this program open and close descriptors meanwhile. A leak would show in
        // each cycle, so a few more descriptors are no failure.
        eventually("all are closed", || descriptors() < before + 50);
    }
}
