//! Connections against real queue threads: clients that pause, stop half-way, lie, flood, never
//! read or die. Other clients must not notice them.

mod support;

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use blkswitch_io::engine::Engine;
use support::{
    Client, DISCONNECT, FLUSH, FUA, READ, TRIM, WRITE, WRITE_ZEROES, World, eventually, in_time,
    option, request,
};

const MIB: usize = 1 << 20;
// Error numbers of the NBD protocol.
const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;

/// Makes a world with one device `disk` over memory.
fn memory(queues: usize) -> World {
    let world = World::new(queues);
    world.device("disk", world.linear(&world.leaf("mem:128M")));
    world
}

/// Checks that another client can write and read the device.
#[track_caller]
fn assert_serves(world: &World) {
    let mut client = world.connect("disk");
    client.write(4096, &[0x5a; 4096]).unwrap();
    assert_eq!(client.read(4096, 4096).unwrap(), [0x5a; 4096]);
    client.flush().unwrap();
}

/// Checks that the server has closed the connection.
#[track_caller]
fn assert_closed(socket: &mut UnixStream) {
    let mut rest = Vec::new();
    match socket.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
}

/// Three writes of 32 MiB are more than one connection may borrow, so the third waits in the input
/// buffer. While it waits, the server receives into that buffer. The body that arrives then belongs
/// to the write and must not be read as the next request.
#[test]
fn the_body_of_a_write_that_had_to_wait_arrives_whole() {
    let world = memory(1);
    let device = world.pool.registry().find("disk").unwrap();
    device.suspend().unwrap();
    let mut client = world.connect("disk");
    let data: Vec<u8> = (0..96 * MIB).map(|n| (n / 4093) as u8).collect();
    let len = 32 * MIB;
    for n in 0..2 {
        client.send(0, WRITE, (n * len) as u64, len as u32, &data[n * len..][..len]).unwrap();
    }
    client.send(0, WRITE, 2 * len as u64, len as u32, &[]).unwrap();
    // Give the server time to read all that was sent, and to wait for more.
    std::thread::sleep(Duration::from_millis(100));
    device.resume().unwrap();
    for _ in 0..2 {
        assert_eq!(client.reply().unwrap().0, 0);
    }
    client.socket.write_all(&data[2 * len..]).unwrap();
    assert_eq!(client.reply().unwrap(), (0, 3));
    assert!(
        client.read(2 * len as u64, len as u32).unwrap() == data[2 * len..],
        "the third write is damaged"
    );
}

/// A client leaves with requests at the gate of a suspended device. The server lets it go, so that
/// the device can be removed. A client that only waits keeps its connection.
#[test]
fn clients_that_have_left_a_suspended_device_are_let_go() {
    let world = memory(1);
    let device = world.pool.registry().find("disk").unwrap();
    let mut stays = world.connect("disk");
    device.suspend().unwrap();
    for n in 0..4 {
        let mut leaves = world.connect("disk");
        leaves.send(0, READ, 0, 4096, &[]).unwrap();
        leaves.send(0, WRITE, 0, 4096, &[9; 4096]).unwrap();
        if n % 2 == 0 {
            leaves.send(0, WRITE, 0, 32 << 20, &[9; 4096]).unwrap();
        }
    }
    stays.send(0, WRITE, 512, 512, &[5; 512]).unwrap();
    eventually("those who left are gone", || device.info().opens == 1);
    device.resume().unwrap();
    assert_eq!(stays.reply().unwrap(), (0, 1));
    assert_eq!(stays.read(512, 512).unwrap(), [5; 512]);
    assert_eq!(stays.read(0, 512).unwrap(), [0; 512], "what was given up is not carried out");
}

/// A client that has lost its connection sends the unanswered requests again on a new one, and goes
/// on. Its old write must not overtake them, so the new connection is answered when it has ended.
#[test]
fn a_newer_connection_waits_for_the_writes_of_the_older_ones() {
    let world = World::new(2);
    let took = Duration::from_millis(700);
    let leaf = world.leaf("sim:1M,delay=700ms");
    world.device("disk", world.linear(&leaf));
    let start = Instant::now();
    let mut old = world.connect("disk");
    assert!(start.elapsed() < took, "there is nothing to wait for");
    old.send(0, WRITE, 0, 512, &[1; 512]).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    let mut new = world.connect("disk");
    assert!(start.elapsed() > took / 2, "the new connection came after {:?}", start.elapsed());
    new.write(0, &[2; 512]).unwrap();
    assert_eq!(old.reply().unwrap(), (0, 1), "the old one is alive and was answered");
    assert_eq!(new.read(0, 512).unwrap(), [2; 512]);
    // The client closes the old connection while a write is in flight.
    old.send(0, WRITE, 0, 512, &[3; 512]).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    drop((old, new));
    let mut new = world.connect("disk");
    new.write(0, &[4; 512]).unwrap();
    std::thread::sleep(took);
    assert_eq!(new.read(0, 512).unwrap(), [4; 512]);
}

/// When a newer connection arrives, the server first drops the requests that the older one left at
/// a closed gate. Reads in flight and other devices do not delay the newer connection.
#[test]
fn what_the_older_connection_left_at_a_gate_is_dropped() {
    let world = memory(2);
    world.device("other", world.linear(&world.leaf("mem:1M")));
    let device = world.pool.registry().find("disk").unwrap();
    device.suspend().unwrap();
    let mut reader = world.connect("disk");
    reader.send(0, READ, 0, 512, &[]).unwrap();
    let mut old = world.connect("disk");
    old.send(0, WRITE, 0, 512, &[1; 512]).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    world.connect("other").write(0, &[1; 512]).unwrap();
    drop(old);
    let mut new = in_time("the newer connection", {
        let path = world.socket();
        move || Client::connect(&path, "disk").unwrap()
    });
    device.resume().unwrap();
    assert_eq!(new.read(0, 512).unwrap(), [0; 512]);
    assert_eq!(reader.reply().unwrap(), (0, 1));
}

/// A client that names the place of its connection ends the older connection of that place. The
/// server reads no more from it, even if it looks healthy and has sent half a write. Connections of
/// other places stay.
#[test]
fn a_connection_takes_the_place_of_the_one_that_the_client_names() {
    let world = memory(2);
    let mut old = in_place(&world.socket(), "leaf.0");
    let mut stays = in_place(&world.socket(), "leaf.1");
    old.write_all(&request(0, WRITE, 1, 0, 1024)).unwrap();
    old.write_all(&[1; 512]).unwrap();
    let path = world.socket();
    let mut new = in_time("the newer connection", move || in_place(&path, "leaf.0"));
    assert_closed(&mut old);
    for conn in [&mut new, &mut stays] {
        conn.write_all(&request(0, FLUSH, 7, 0, 0)).unwrap();
        let mut reply = [0; 20];
        conn.read_exact(&mut reply).unwrap();
        // A structured reply to request 7: done, without data.
        assert_eq!(reply[..4], [0x66, 0x8e, 0x33, 0xef]);
        assert_eq!(reply[4..], [&[0, 1, 0, 0][..], &[0, 0, 0, 0, 0, 0, 0, 7], &[0; 4]].concat());
    }
    assert_eq!(world.connect("disk").read(0, 1024).unwrap(), [0; 1024], "half a write is none");
}

/// Connects to `disk`, in the place of older connections with the same name.
fn in_place(path: &Path, place: &str) -> UnixStream {
    let mut socket = UnixStream::connect(path).unwrap();
    let query = format!("blkswitch:replaces={place}");
    let len = |text: &str| (text.len() as u32).to_be_bytes();
    let list = [&len("disk")[..], b"disk", &[0, 0, 0, 1], &len(&query), query.as_bytes()].concat();
    let options = [option(8, &[]), option(9, &list), option(1, b"disk")].concat();
    socket.write_all(&[&[0, 0, 0, 3], &options[..]].concat()).unwrap();
    // The greeting, a reply to each option, and the context with `@` and 16 digits at its end.
    let mut answers = vec![0; 18 + 20 + (20 + 4 + query.len() + 17) + 20 + 10];
    socket.read_exact(&mut answers).unwrap();
    let text = String::from_utf8_lossy(&answers);
    assert!(text.contains(&format!("{query}@")), "{text}");
    socket
}

/// The administrator lists the clients of a device and disconnects one.
#[test]
fn clients_are_shown_and_ended() {
    let world = memory(2);
    let device = world.pool.registry().find("disk").unwrap();
    assert_eq!(world.pool.clients(), []);
    let (mut one, mut two) = (world.connect("disk"), world.connect("disk"));
    device.suspend().unwrap();
    one.send(0, READ, 0, 512, &[]).unwrap();
    one.send(0, READ, 0, 512, &[]).unwrap();
    eventually("the requests are seen", || world.pool.clients()[0].in_flight == 2);
    let clients = world.pool.clients();
    assert_eq!(clients.len(), 2);
    assert!(clients.iter().all(|client| client.device == device.id()), "{clients:?}");
    assert!(clients.iter().all(|client| client.since.elapsed().unwrap() < support::HANG));
    assert_eq!((clients[0].number, clients[1].number, clients[1].in_flight), (1, 2, 0));
    world.pool.disconnect(&[1, 77]);
    assert_closed(&mut one.socket);
    eventually("it is gone", || device.info().opens == 1);
    device.resume().unwrap();
    two.read(0, 512).unwrap();
    world.pool.disconnect(&[2]);
    assert_closed(&mut two.socket);
    eventually("both are gone", || world.pool.clients().is_empty());
}

/// A handshake looks up devices while another device is being made. Neither may wait for the other.
#[test]
fn devices_are_made_while_clients_connect() {
    let world = Arc::new(memory(2));
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let (path, stop) = (world.socket(), stop.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    Client::connect(&path, "disk").unwrap().read(0, 512).unwrap();
                }
            })
        })
        .collect();
    in_time("making and removing devices", {
        let world = world.clone();
        move || {
            for n in 0..300 {
                let device = world.create(&format!("other{n}"));
                world.pool.registry().remove(&device).unwrap();
            }
        }
    });
    stop.store(true, Ordering::Relaxed);
    clients.into_iter().for_each(|client| client.join().unwrap());
}

/// A client sends more requests than a connection may have in flight, and reads the answers fast or
/// slowly. The server goes on with the rest when answers have been sent, whether directly or
/// through the ring.
#[test]
fn requests_held_back_by_the_limits_go_on() {
    for pause in [Duration::ZERO, Duration::from_millis(100)] {
        let world = memory(1);
        let mut client = world.connect("disk");
        let (count, len) = (3000, 4096);
        let requests: Vec<u8> =
            (0..count).flat_map(|n| request(0, READ, n, n * 512, len)).collect();
        client.socket.write_all(&requests).unwrap();
        std::thread::sleep(pause);
        let mut data = vec![0; len as usize];
        for n in 0..count {
            assert_eq!(client.reply().expect("an answer to every request"), (0, n));
            client.socket.read_exact(&mut data).unwrap();
        }
    }
}

/// A client sends more requests than a connection may have in flight, and then shuts down its side.
/// It still gets every answer.
#[test]
fn a_client_that_has_said_all_gets_all_answers() {
    let world = memory(1);
    let mut client = world.connect("disk");
    let count = 3000;
    let requests: Vec<u8> = (0..count).flat_map(|n| request(0, READ, n, n * 512, 512)).collect();
    client.socket.write_all(&requests).unwrap();
    client.socket.shutdown(Shutdown::Write).unwrap();
    // The client does not read, so the server stops reading, too: all that it may lend is in
    // flight, and the rest waits in its buffer.
    std::thread::sleep(Duration::from_millis(100));
    let mut data = [0; 512];
    for n in 0..count {
        assert_eq!(client.reply().expect("an answer to every request"), (0, n));
        client.socket.read_exact(&mut data).unwrap();
    }
    assert_closed(&mut client.socket);
}

#[test]
fn requests_in_flight_are_answered_before_a_disconnect() {
    let world = memory(1);
    let mut client = world.connect("disk");
    let mut bytes: Vec<u8> = (0..100).flat_map(|n| request(0, READ, n, 0, 512)).collect();
    bytes.extend(request(0, DISCONNECT, 100, 0, 0));
    bytes.extend(request(0, WRITE, 101, 0, 512));
    bytes.extend([1; 512]);
    client.socket.write_all(&bytes).unwrap();
    let mut data = [0; 512];
    for n in 0..100 {
        assert_eq!(client.reply().unwrap(), (0, n));
        client.socket.read_exact(&mut data).unwrap();
    }
    assert_closed(&mut client.socket);
    assert_eq!(
        world.connect("disk").read(0, 512).unwrap(),
        [0; 512],
        "what follows DISC is not carried out"
    );
}

#[test]
fn half_a_request_is_not_carried_out() {
    let world = memory(2);
    let mut write = request(0, WRITE, 1, 0, 64 << 10).to_vec();
    write.extend([0xee; 64 << 10]);
    for cut in [0, 1, 27, 28, 29, 4096, (64 << 10) + 27] {
        for how in [None, Some(Shutdown::Write)] {
            let mut client = world.connect("disk");
            client.socket.write_all(&write[..cut]).unwrap();
            match how {
                None => drop(client),
                Some(how) => {
                    client.socket.shutdown(how).unwrap();
                    assert_closed(&mut client.socket);
                }
            }
        }
    }
    eventually("all connections are gone", || {
        world.pool.registry().find("disk").unwrap().info().opens == 0
    });
    assert_eq!(world.connect("disk").read(0, 64 << 10).unwrap(), vec![0; 64 << 10]);
}

#[test]
fn clients_that_die_with_requests_in_flight_harm_nobody() {
    let world = World::new(2);
    let device = world.device("disk", world.linear(&world.leaf("sim:1M,delay=1ms..5ms")));
    for round in 0..30u64 {
        let mut client = world.connect("disk");
        for n in 0..20 {
            client.send(0, READ, n * 4096, 4096, &[]).unwrap();
            client.send(0, WRITE, (512 << 10) + n * 4096, 4096, &[round as u8; 4096]).unwrap();
            client.send(FUA, WRITE_ZEROES, (768 << 10) + n * 4096, 4096, &[]).unwrap();
            client.send(0, FLUSH, 0, 0, &[]).unwrap();
        }
        drop(client);
        if round % 10 == 0 {
            assert_serves(&world);
        }
    }
    assert_serves(&world);
    eventually("all connections are gone", || device.info().opens == 0);
}

#[test]
fn requests_that_make_no_sense_are_refused_and_the_connection_goes_on() {
    let world = memory(1);
    let size = 128 << 20;
    let mut client = world.connect("disk");
    for (flags, command, offset, len, error) in [
        (0, READ, 0, u32::MAX, EINVAL),
        (0, READ, size, 512, EINVAL),
        (0, READ, u64::MAX, 512, EINVAL),
        (0, READ, u64::MAX - 511, 512, EINVAL),
        (0, READ, 1, 512, EINVAL),
        (0, READ, 0, 513, EINVAL),
        (0, TRIM, size - 512, 1024, EINVAL),
        (0, WRITE_ZEROES, size - 512, 1024, ENOSPC),
        (0, WRITE_ZEROES, 0, u32::MAX - 511, ENOSPC),
        (0, FLUSH, 512, 512, EINVAL),
        (1 << 15, READ, 0, 512, EINVAL),
        (0, 9, 0, 512, EINVAL),
        (0, u16::MAX, 0, u32::MAX, EINVAL),
    ] {
        let answer = client.call(flags, command, offset, len, &[]);
        assert_eq!(answer, Err(error), "flags {flags} command {command} offset {offset} len {len}");
    }
    let answer = client.call(0, WRITE, size, 512, &[1; 512]);
    assert_eq!(answer, Err(ENOSPC));
    let large = vec![1; 33 * MIB];
    assert_eq!(client.call(0, WRITE, 0, large.len() as u32, &large), Err(EINVAL));
    assert_eq!(client.read(0, 512).unwrap(), [0; 512]);
    for len in [0, 512] {
        client.call(0, TRIM, 0, len, &[]).unwrap();
    }
    assert_serves(&world);
}

#[test]
fn requests_that_cannot_be_read_end_their_connection_only() {
    let world = memory(1);
    let huge = request(0, WRITE, 1, 0, u32::MAX);
    let nonsense = [0x55; 28];
    for bytes in [huge, nonsense] {
        let mut client = world.connect("disk");
        client.socket.write_all(&bytes).unwrap();
        assert_closed(&mut client.socket);
        assert_serves(&world);
    }
}

/// The server drops a client that sends garbage even while a reply to it cannot be sent.
#[test]
fn a_client_that_lies_and_does_not_read_is_dropped() {
    let world = memory(1);
    let device = world.pool.registry().find("disk").unwrap();
    let mut client = world.connect("disk");
    client.send(0, READ, 0, 32 * MIB as u32, &[]).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    client.socket.write_all(&[0x55; 28]).unwrap();
    eventually("the connection is gone", || device.info().opens == 0);
    assert_serves(&world);
}

#[test]
fn a_flood_of_options_ends() {
    let world = memory(1);
    let floods: [(&str, Vec<u8>); 4] = [
        ("LIST without end", option(3, &[]).repeat(100_000)),
        ("unknown options", option(99, &[7; 100]).repeat(100_000)),
        ("an option of 4 GiB", [b"IHAVEOPT", &7u32.to_be_bytes()[..], &[0xff; 4]].concat()),
        ("no option", vec![0x20; 1 << 20]),
    ];
    for (what, bytes) in floods {
        let mut socket = UnixStream::connect(world.socket()).unwrap();
        socket.set_read_timeout(Some(support::HANG)).unwrap();
        let mut greeting = [0; 18];
        socket.read_exact(&mut greeting).unwrap();
        let mut reader = socket.try_clone().unwrap();
        let reading = std::thread::spawn(move || assert_closed(&mut reader));
        // The server may close the connection before all is sent.
        let _ = socket.write_all(&[&3u32.to_be_bytes()[..], &bytes].concat());
        reading.join().unwrap_or_else(|_| panic!("{what}: the connection stays"));
        assert_serves(&world);
    }
}

/// A handshake without progress is dropped after ten seconds. A connection that is idle after its
/// handshake is not.
#[test]
fn a_handshake_has_its_time_and_an_idle_client_all_of_it() {
    let world = memory(2);
    let mut idle = world.connect("disk");
    let start = Instant::now();
    let mut silent: Vec<UnixStream> =
        (0..4).map(|_| UnixStream::connect(world.socket()).unwrap()).collect();
    for socket in &mut silent {
        socket.set_read_timeout(Some(support::HANG)).unwrap();
    }
    silent[1].write_all(&3u32.to_be_bytes()).unwrap();
    silent[2].write_all(&[&3u32.to_be_bytes()[..], &option(3, &[])].concat()).unwrap();
    silent[3].write_all(&[&3u32.to_be_bytes()[..], &option(1, b"disk")[..19]].concat()).unwrap();
    for socket in &mut silent {
        assert_closed(socket);
        let took = start.elapsed();
        // Ten seconds, and some more on a busy machine. The server does not drop an idle client
        // within `HANG`.
        assert!((8..40).contains(&took.as_secs()), "dropped after {took:?}");
    }
    assert_eq!(idle.read(0, 512).unwrap(), [0; 512]);
}

/// A client that never reads does not keep the server from stopping.
#[test]
fn a_stop_waits_for_no_client_that_does_not_read() {
    let world = memory(2);
    let mut client = world.connect("disk");
    for _ in 0..8 {
        client.send(0, READ, 0, 32 * MIB as u32, &[]).unwrap();
    }
    std::thread::sleep(Duration::from_millis(200));
    let world = in_time("stopping", move || {
        world.pool.stop();
        world
    });
    drop((client, world));
}

/// A stop under load: every request that was answered with success was carried out, and none hangs.
#[test]
fn a_stop_under_load_finishes_what_it_answers() {
    let world = World::new(2);
    let leaves = [world.file_leaf("a", 1 << 20), world.file_leaf("b", 1 << 20)];
    world.device("disk", world.switch(&leaves, 8));
    let suspended = world.device("suspended", world.linear(&world.leaf("mem:1M")));
    suspended.suspend().unwrap();
    let mut parked = world.connect("suspended");
    parked.send(0, READ, 0, 512, &[]).unwrap();
    // The server waits neither for the rest of a body nor for a request at a closed gate.
    let mut torn = world.connect("disk");
    torn.send(0, WRITE, 0, 64 << 10, &[1; 100]).unwrap();

    let answered: Arc<[AtomicU64; 4]> = Arc::default();
    let writers: Vec<_> = (0..4u64)
        .map(|writer| {
            let (mut client, answered) = (world.connect("disk"), answered.clone());
            std::thread::spawn(move || {
                let mut written = 0u64;
                loop {
                    let offset = (writer * 64 + written % 64) * 4096;
                    let data = [(1 + written / 64 % 250) as u8; 4096];
                    if client.send(0, WRITE, offset, 4096, &data).is_err() {
                        return written;
                    }
                    match client.reply() {
                        Ok((0, _)) => written += 1,
                        _ => return written,
                    }
                    answered[writer as usize].store(written, Ordering::Relaxed);
                }
            })
        })
        .collect();
    eventually("every writer writes", || {
        answered.iter().all(|count| count.load(Ordering::Relaxed) > 0)
    });
    std::thread::sleep(Duration::from_millis(300));
    let world = in_time("stopping", move || {
        world.pool.stop();
        world
    });
    let (a, b) = (world.dir.path().join("a"), world.dir.path().join("b"));
    let files = [std::fs::read(a).unwrap(), std::fs::read(b).unwrap()];
    for (writer, thread) in writers.into_iter().enumerate() {
        let written = thread.join().unwrap();
        assert!(written > 0);
        for slot in 0..written.min(64) {
            let offset = ((writer as u64 * 64 + slot) * 4096) as usize;
            // The last write to this slot that was answered, or a later one whose answer was lost.
            let last = (written - 1 - slot) / 64 + 1;
            let byte = files[offset / 4096 % 2][offset];
            let fits = [last, last + 1].map(|n| (1 + (n - 1) % 250) as u8);
            assert!(
                fits.contains(&byte),
                "writer {writer} slot {slot}: {byte} is none of {fits:?}"
            );
        }
    }
    assert!(leaves.iter().all(|leaf| !leaf.needs_flush()), "a clean stop flushes");
    assert_ne!(parked.reply().map(|(error, _)| error).ok(), Some(0));
}

/// A clean stop finishes the requests in flight and flushes, so the power may fail right after it.
/// The client sends no flush here.
#[test]
fn what_was_answered_by_a_clean_stop_survives_a_power_cut() {
    const WRITES: u64 = 64;
    for late in [false, true] {
        let world = World::new(2);
        let leaf = world.leaf("sim:1M,delay=1ms..20ms");
        world.device("disk", world.linear(&leaf));
        let mut client = world.connect("disk");
        for n in 0..WRITES {
            client.send(0, WRITE, n * 4096, 4096, &[1 + n as u8; 4096]).unwrap();
        }
        let answers = |client: &mut Client, count: u64| -> Vec<u64> {
            let replies = (0..count).map_while(|_| client.reply().ok());
            replies.filter(|(error, _)| *error == 0).map(|(_, cookie)| cookie).collect()
        };
        // The stop begins after all answers, or after the first one, with most writes still in
        // flight.
        let mut answered = answers(&mut client, if late { WRITES } else { 1 });
        let world = in_time("stopping", move || {
            world.pool.stop();
            world
        });
        answered.extend(answers(&mut client, WRITES));
        assert!(!late || answered.len() as u64 == WRITES, "{} answers", answered.len());
        assert!(!leaf.needs_flush(), "a clean stop flushes");
        let Engine::Sim(sim) = leaf.engine() else { unreachable!("a sim leaf") };
        let image = sim.power_cut(1);
        for cookie in &answered {
            let n = cookie - 1;
            let block = &image[n as usize * 4096..][..4096];
            assert!(
                block.iter().all(|byte| *byte == 1 + n as u8),
                "write {n} was answered and is lost"
            );
        }
        drop((client, world));
    }
}

/// One turn brings far more pieces than the rings hold.
#[test]
fn more_pieces_at_once_than_the_rings_hold() {
    let world = World::new(1);
    let leaves = [world.file_leaf("a", 4 << 20), world.file_leaf("b", 4 << 20)];
    world.device("disk", world.switch(&leaves, 1));
    let len = 512 << 10;
    let mut client = world.connect("disk");
    let data: Vec<Vec<u8>> =
        (0..8usize).map(|n| (0..len).map(|at| (at / 512 + n * 7) as u8).collect()).collect();
    for round in 0..3 {
        for (n, data) in data.iter().enumerate() {
            client.send(0, WRITE, (n * len) as u64, len as u32, data).unwrap();
        }
        for _ in 0..8 {
            assert_eq!(client.reply().unwrap().0, 0, "round {round}");
        }
        // Send all requests with a single call.
        let reads: Vec<u8> = (0..32u64)
            .flat_map(|n| request(0, READ, 1000 + n, n % 8 * len as u64, len as u32))
            .collect();
        client.socket.write_all(&reads).unwrap();
        let mut got = vec![0; len];
        for _ in 0..32 {
            let (error, cookie) = client.reply().unwrap();
            assert_eq!(error, 0);
            client.socket.read_exact(&mut got).unwrap();
            assert!(got == data[(cookie as usize - 1000) % 8], "read {cookie}");
        }
    }
}

#[test]
fn a_read_only_table_and_a_shrunken_one_refuse_writes() {
    let world = World::new(1);
    let leaf = world.leaf("mem:1M");
    let mut table = blkswitch_io::TableBuilder::new(true);
    let below = table.leaf(leaf.clone());
    table.push(2048, blkswitch_io::Target::Linear(blkswitch_io::To { below, offset: 0 }));
    let device = world.device("disk", table.build().unwrap());
    let mut before = world.connect("disk");
    assert_eq!(before.write(0, &[1; 512]), Err(EPERM));
    device.load(world.linear(&leaf)).unwrap();
    device.resume().unwrap();
    let mut after = world.connect("disk");
    after.write((1 << 20) - 512, &[1; 512]).unwrap();
    assert_eq!(
        before.write(0, &[1; 512]),
        Err(EPERM),
        "what was announced holds for the connection"
    );
    let mut short = blkswitch_io::TableBuilder::new(false);
    let below = short.leaf(leaf);
    short.push(8, blkswitch_io::Target::Linear(blkswitch_io::To { below, offset: 0 }));
    device.load(short.build().unwrap()).unwrap();
    device.resume().unwrap();
    assert_eq!(after.write(4096, &[1; 512]), Err(ENOSPC));
    assert_eq!(after.read(4096, 512), Err(EINVAL));
    assert_eq!(after.read(3584, 512).unwrap(), [0; 512]);
    let mut error = blkswitch_io::TableBuilder::new(false);
    error.push(2048, blkswitch_io::Target::Error);
    device.load(error.build().unwrap()).unwrap();
    device.resume().unwrap();
    assert_eq!(after.read(0, 512), Err(EIO));
}

/// A client of small requests does not wait until each of many others has had its megabyte. What is
/// counted are bytes and not seconds, so that a busy machine changes nothing.
#[test]
fn small_requests_go_before_large_ones() {
    const OTHERS: usize = 48;
    let world = memory(1);
    let (stop, moved) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let others: Vec<_> = (0..OTHERS)
        .map(|_| {
            let mut client = world.connect("disk");
            let (stop, moved) = (stop.clone(), moved.clone());
            std::thread::spawn(move || {
                let requests: Vec<u8> =
                    (0..32).flat_map(|n| request(0, READ, n, 0, MIB as u32)).collect();
                let mut data = vec![0; 16 + MIB];
                while !stop.load(Ordering::SeqCst) {
                    client.socket.write_all(&requests).unwrap();
                    for _ in 0..32 {
                        client.socket.read_exact(&mut data).unwrap();
                        moved.fetch_add(MIB as u64, Ordering::SeqCst);
                    }
                }
            })
        })
        .collect();
    let mut client = world.connect("disk");
    eventually("all others are served", || moved.load(Ordering::SeqCst) > (64 * MIB) as u64);
    let mut waits: Vec<u64> = (0..201)
        .map(|_| {
            let before = moved.load(Ordering::SeqCst);
            client.read(0, 4096).unwrap();
            moved.load(Ordering::SeqCst) - before
        })
        .collect();
    stop.store(true, Ordering::SeqCst);
    others.into_iter().for_each(|other| other.join().unwrap());
    waits.sort_unstable();
    let (half, most) = (waits[100] / MIB as u64, waits[190] / MIB as u64);
    println!("{half} MiB, mostly less than {most} MiB");
    assert!(half < OTHERS as u64 / 4, "{half} MiB went before a read of 4 KiB");
}
