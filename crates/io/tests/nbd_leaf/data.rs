//! Reads return the last written data, whatever the server can do. The leaf never asks a server for
//! anything that it does not offer.

use std::time::Duration;

use crate::server::{self, Action, Options, Server};
use crate::support::{self, Client, READ, TRIM, WRITE, WRITE_ZEROES, World};
use blkswitch_io::engine::sim::Random;
use blkswitch_io::{Leaf, LeafOptions};

const MIB: usize = 1 << 20;
const ZERO_NO_HOLE: u16 = 2;
const ZERO_FAST: u16 = 16;

/// Makes a world with a device over one NBD leaf.
fn world_over(address: &str, queues: usize) -> World {
    let world = World::new(queues);
    let leaf = world.leaf(address);
    world.device("disk", world.linear(&leaf));
    world
}

/// Sends random requests from several clients, each in its own part of the device, and compares the
/// data with a copy.
fn load(world: &World, size: usize, seed: u64, requests: usize) {
    let clients = 3;
    let part = size / clients / 512 * 512;
    let threads: Vec<_> = (0..clients)
        .map(|number| {
            let client = world.connect("disk");
            std::thread::spawn(move || {
                load_part(client, number * part, part, seed + number as u64, requests)
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn load_part(mut client: Client, base: usize, part: usize, seed: u64, requests: usize) {
    let mut random = Random::new(seed);
    let mut model = vec![0u8; part];
    // Set the part to zeroes, because its content is unknown.
    client.call(0, WRITE_ZEROES, base as u64, part as u32, &[]).unwrap();
    for request in 0..requests {
        let most = if random.chance(100_000) { part } else { 64 << 10 } / 512;
        let len = (1 + random.below(most as u64 - 1) as usize) * 512;
        let at = random.below(((part - len) / 512) as u64 + 1) as usize * 512;
        let (offset, range) = ((base + at) as u64, at..at + len);
        match random.below(8) {
            0..3 => {
                let first = random.bits() as u8;
                let data: Vec<u8> = (0..len).map(|n| first.wrapping_add((n / 512) as u8)).collect();
                let fua = u16::from(random.chance(100_000));
                client.call(fua, WRITE, offset, len as u32, &data).unwrap();
                model[range].copy_from_slice(&data);
            }
            3 => {
                let flags = if random.chance(500_000) { ZERO_NO_HOLE } else { 0 };
                client.call(flags, WRITE_ZEROES, offset, len as u32, &[]).unwrap();
                model[range].fill(0);
            }
            4 if random.chance(300_000) => client.flush().unwrap(),
            _ => {
                let got = client.call(0, READ, offset, len as u32, &[]).unwrap();
                assert!(got == model[range], "request {request}: {len} bytes at {at}");
            }
        }
    }
    assert!(client.read(base as u64, part as u32).unwrap() == model);
}

#[test]
fn our_own_server_with_queues_and_connections() {
    let far = World::new(2);
    let leaves = [far.file_leaf("a", 6 * MIB as u64), far.file_leaf("b", 6 * MIB as u64)];
    far.device("disk", far.switch(&leaves, 128));
    for (options, queues) in [("", 1), ("", 3), ("&connections=3", 2)] {
        let world = world_over(
            &format!("nbd+unix:///disk?socket={}{options}", far.socket().display()),
            queues,
        );
        load(&world, 6 * MIB, queues as u64, 250);
        world.pool.stop();
    }
    far.pool.stop();
    assert!(leaves.iter().all(|leaf| !leaf.needs_flush()));
}

#[test]
fn a_switch_over_three_servers_and_tcp() {
    let far = World::new(1);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    far.pool.listen(listener.into()).unwrap();
    for name in ["a b", "c%d", "e"] {
        far.device(name, far.linear(&far.leaf("mem:3M")));
    }
    let world = World::new(2);
    let leaves =
        ["a%20b", "c%25d", "e"].map(|name| world.leaf(&format!("nbd://127.0.0.1:{port}/{name}")));
    world.device("disk", world.switch(&leaves, 24));
    load(&world, 3 * MIB, 7, 250);
    world.pool.stop();
}

#[test]
fn servers_that_can_little_or_answer_oddly() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let least = server::HAS_FLAGS;
    let size = 3 * MIB as u64;
    let variants: [(&str, Options, Action); 6] = [
        ("simple replies", Options { structured: false, size, ..Options::default() }, Action::Do),
        ("pieces out of order", Options { size, ..Options::default() }, Action::Pieces(3000)),
        (
            "no command but read and write",
            Options { flags: least, size, ..Options::default() },
            Action::Do,
        ),
        (
            "one connection",
            Options { flags: server::GOOD & !server::MULTI_CONN, size, ..Options::default() },
            Action::Do,
        ),
        ("one at a time", Options { at_once: 1, size, ..Options::default() }, Action::Do),
        (
            "small blocks",
            Options { blocks: Some([1, 4096, 8192]), size, ..Options::default() },
            Action::Do,
        ),
    ];
    for (what, options, action) in variants {
        let (flags, blocks) = (options.flags, options.blocks);
        let server = Server::start(&path, options, move |_| action.clone());
        let world = world_over(&server.address(""), 2);
        load(&world, 3 * MIB, 11, 150);
        world.pool.stop();
        let requests = server.disk.requests.lock().unwrap();
        assert!(requests.len() > 300, "{what}: {}", requests.len());
        for request in requests.iter() {
            let allowed = match request.command {
                3 => flags & server::FLUSH,
                4 => flags & server::TRIM,
                6 => flags & server::ZEROES,
                _ => 1,
            };
            assert_ne!(allowed, 0, "{what}: {request:?} was not offered");
            assert!(request.flags & 1 == 0 || flags & server::FUA != 0, "{what}: {request:?}");
            let most = blocks.map_or(32 << 20, |blocks| blocks[2]);
            assert!(request.command > 1 || request.len <= most, "{what}: {request:?}");
        }
        let connections = requests.iter().map(|request| request.connection).max().unwrap() + 1;
        let one = flags & server::MULTI_CONN == 0 || what == "one at a time";
        assert_eq!(connections == 1, one, "{what}: {connections} connections");
        if flags & server::FLUSH != 0 {
            assert!(requests.iter().any(|request| request.command == 3), "{what}: no flush came");
        }
        drop(requests);
        drop(world);
    }
}

#[test]
fn requests_say_what_the_client_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("s"), Options::default(), |_| Action::Do);
    let world = world_over(&server.address(""), 1);
    let mut client = world.connect("disk");
    let mut expect = |command, flags, offset, len: u32, wanted: (u16, u16)| {
        let before = server.disk.requests.lock().unwrap().len();
        let data = vec![1; if command == WRITE { len as usize } else { 0 }];
        client.call(flags, command, offset, len, &data).unwrap();
        let requests = server.disk.requests.lock().unwrap();
        let got: Vec<_> =
            requests[before..].iter().map(|r| (r.command, r.flags, r.offset, r.len)).collect();
        assert_eq!(got, [(wanted.0, wanted.1, offset, len)]);
    };
    expect(READ, 0, 4096, 512, (0, 0));
    expect(WRITE, 1, 512, 512, (1, 1));
    expect(WRITE, 0, 512, 70_000 / 512 * 512, (1, 0));
    expect(support::FLUSH, 0, 0, 0, (3, 0));
    expect(TRIM, 0, 0, 1 << 20, (4, 0));
    expect(WRITE_ZEROES, 0, 0, 1 << 20, (6, 0));
    expect(WRITE_ZEROES, ZERO_NO_HOLE, 0, 1 << 20, (6, 2));
    expect(WRITE_ZEROES, ZERO_FAST, 0, 1 << 20, (6, ZERO_FAST));
    // A server that does not offer fast zeroes is never asked for them.
    let options = Options { flags: server::GOOD & !server::FAST_ZERO, ..Options::default() };
    let server = Server::start(&dir.path().join("t"), options, |_| Action::Do);
    let world = world_over(&server.address(""), 1);
    assert_eq!(world.connect("disk").call(ZERO_FAST, WRITE_ZEROES, 0, 4096, &[]), Err(95));
    assert_eq!(server.count(WRITE_ZEROES), 0);
}

/// The table sees the limits that the server advertises.
#[test]
fn limits_come_from_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        size: (1 << 20) + 512,
        flags: server::GOOD | server::READ_ONLY,
        blocks: Some([4096, 16384, 1 << 20]),
        ..Options::default()
    };
    let server = Server::start(&dir.path().join("s"), options, |_| Action::Do);
    let world = World::new(1);
    let address = server.address("").parse().unwrap();
    let mut options = LeafOptions::new(world.pool.queues());
    let refused = Leaf::open(&address, &options).unwrap_err();
    assert!(refused.is_read_only(), "{refused}");
    options.read_only = true;
    let leaf = Leaf::open(&address, &options).unwrap();
    let properties = leaf.properties();
    assert_eq!(
        (properties.sectors, properties.logical_block, properties.physical_block),
        (2048, 4096, 16384)
    );
    assert!(properties.read_only);
    assert_eq!(leaf.name(), server.address(""));
    assert!(leaf.engine().identity().unwrap().contains("'disk' of 1049088 bytes"));
    assert!(leaf.engine().probe(Duration::from_secs(5)).is_ok());
    world.device("disk", world.linear(&leaf));
    assert_eq!(world.connect("disk").call(0, WRITE, 0, 4096, &[1; 4096]), Err(1), "EPERM");
    assert_eq!(server.count(1), 0);
}
