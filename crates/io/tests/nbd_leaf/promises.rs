//! Servers that come back with more or fewer abilities, servers that flap, and writes that a server
//! may still carry out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::server::{self, Action, Options, Server};
use crate::support::{FLUSH, TRIM, WRITE, WRITE_ZEROES, World, eventually};

const FUA: u16 = 1;
const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ESHUTDOWN: u32 = 108;

/// A server that keeps the promises of the first one is used. The leaf makes up for missing
/// abilities.
#[test]
fn a_server_that_keeps_its_promises_is_used_whatever_else_it_can_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let less = server::GOOD & !(server::FUA | server::ZEROES | server::TRIM | server::FAST_ZERO);
    for (before, after) in [
        (Options::default(), Options { size: 8 << 20, ..Options::default() }),
        (Options { flags: less, ..Options::default() }, Options::default()),
        (Options::default(), Options { flags: less, ..Options::default() }),
        (Options::default(), Options { blocks: Some([1, 4096, 8192]), ..Options::default() }),
    ] {
        let fua_is_lost = after.flags == less;
        let may_trim = before.flags & server::TRIM != 0;
        let server = Server::start(&path, before, |_| Action::Do);
        let world = World::new(1);
        // The queue may notice the lost connection later than the probe does.
        let leaf = world.leaf(&server.address("&reconnect=30"));
        world.device("disk", world.linear(&leaf));
        let sectors = leaf.properties().sectors;
        let mut client = world.connect("disk");
        client.write(0, &[1; 65536]).unwrap();
        server.kill();
        let server = Server::start(&path, after, |_| Action::Do);
        eventually("it is used", || leaf.engine().probe(Duration::from_secs(5)).is_ok());
        assert_eq!(leaf.properties().sectors, sectors, "a device does not grow by itself");
        client.call(FUA, WRITE, 0, 65536, &[2; 65536]).unwrap();
        client.call(0, WRITE_ZEROES, 4096, 4096, &[]).unwrap();
        // The export offers trims when the client connects, and does not change that later.
        let trimmed = client.call(0, TRIM, 8192, 4096, &[]);
        assert_eq!(trimmed.err(), (!may_trim).then_some(EINVAL));
        assert_eq!(client.read(0, 4096).unwrap(), [2; 4096]);
        assert_eq!(client.read(4096, 4096).unwrap(), [0; 4096]);
        assert_eq!(client.read(12288, 32768).unwrap(), [2; 32768]);
        let requests = server.disk.requests.lock().unwrap();
        if fua_is_lost {
            let last = |command| requests.iter().rposition(|one| one.command == command);
            assert!(last(FLUSH) > requests.iter().position(|one| one.command == WRITE));
            assert!(requests.iter().all(|one| one.flags & FUA == 0), "it knows no such writes");
            assert_eq!((last(WRITE_ZEROES), last(TRIM)), (None, None));
        }
    }
}

/// A server answers a hundred requests and then hangs up. The leaf reconnects at once, without a
/// growing pause.
#[test]
fn a_connection_that_has_answered_something_counts_as_one_that_lasted() {
    let dir = tempfile::tempdir().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let script = move |_: &server::Request| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        if number % 100 == 99 { Action::Close } else { Action::Do }
    };
    let server = Server::start(&dir.path().join("s"), Options::default(), script);
    let world = World::new(1);
    let leaf = world.leaf(&server.address("&reconnect=60"));
    world.device("disk", world.linear(&leaf));
    let mut client = world.connect("disk");
    let start = Instant::now();
    for _ in 0..3000 {
        client.read(0, 512).unwrap();
    }
    // Thirty pauses that grow to 5 s would take two minutes.
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}

/// The server is silent, so it may carry out the write later. The second copy waits for `settle`.
#[test]
fn a_write_in_doubt_waits_for_the_time_to_settle() {
    let dir = tempfile::tempdir().unwrap();
    for (settle, least) in [("&settle=2.5", 3400), ("", 5900), ("&settle=0", 900)] {
        let server = Server::start(&dir.path().join("s"), Options::default(), |request| {
            if request.command == WRITE { Action::Silence } else { Action::Do }
        });
        let world = World::new(1);
        let leaf = world.leaf(&server.address(&format!("&timeout=1{settle}")));
        world.device("disk", world.linear(&leaf));
        let mut client = world.connect("disk");
        let start = Instant::now();
        assert_eq!(client.write(0, &[1; 512]), Err(ESHUTDOWN));
        let time = start.elapsed();
        let least = Duration::from_millis(least);
        assert!((least..least + Duration::from_secs(8)).contains(&time), "{settle}: {time:?}");
        // The leaf is usable again, and reads are never in doubt.
        eventually("it is back", || leaf.engine().probe(Duration::from_secs(5)).is_ok());
        client.read(0, 512).unwrap();
    }
}

/// blkswitch's own export ends the requests of an older connection of the same place before it
/// answers a newer one. So the leaf waits only for the write itself, and the first copy of a write
/// never lands after the second.
#[test]
fn our_own_export_ends_the_doubt() {
    let took = Duration::from_millis(1500);
    for (reconnect, answer) in [("", Err(ESHUTDOWN)), ("&reconnect=30", Ok(()))] {
        let far = World::new(2);
        let slow = far.leaf("sim:1M,delay=1500ms");
        far.device("far", far.linear(&slow));
        let near = World::new(1);
        let address = format!("nbd+unix:///far?socket={}", far.socket().display());
        let leaf = near.leaf(&format!("{address}&settle=50{reconnect}"));
        near.device("disk", near.linear(&leaf));
        let mut client = near.connect("disk");
        let start = Instant::now();
        client.send(0, WRITE, 0, 512, &[1; 512]).unwrap();
        let mut busy = Vec::new();
        eventually("the write is under way", || {
            busy = far.pool.clients();
            busy.retain(|client| client.in_flight > 0);
            !busy.is_empty()
        });
        far.pool.disconnect(&busy.iter().map(|client| client.number).collect::<Vec<_>>());
        assert_eq!(client.reply().unwrap().0, answer.err().unwrap_or(0), "{reconnect}");
        let time = start.elapsed();
        assert!(time >= took - Duration::from_millis(100), "it was under way: {time:?}");
        assert!(time < Duration::from_secs(30), "{reconnect}: it was not waited for: {time:?}");
        // The write has landed, and the leaf goes on.
        eventually("it is back", || leaf.engine().probe(Duration::from_secs(9)).is_ok());
        assert_eq!(client.read(0, 512).unwrap(), [1; 512]);
    }
}

/// Another pool at the same address cannot end the requests of the first one.
#[test]
fn another_server_at_the_address_does_not_end_the_doubt() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let serve = |world: &World| {
        let _ = std::fs::remove_file(&socket);
        world.device("far", world.linear(&world.leaf("sim:1M,delay=1s")));
        world.pool.listen(std::os::unix::net::UnixListener::bind(&socket).unwrap().into()).unwrap();
    };
    let (first, second) = (World::new(1), World::new(1));
    serve(&first);
    let near = World::new(1);
    let address = format!("nbd+unix:///far?socket={}", socket.display());
    let leaf = near.leaf(&format!("{address}&settle=3&reconnect=30"));
    near.device("disk", near.linear(&leaf));
    let mut client = near.connect("disk");
    client.send(0, WRITE, 0, 512, &[1; 512]).unwrap();
    let busy = || first.pool.clients().into_iter().find(|client| client.in_flight > 0);
    eventually("the write is under way", || busy().is_some());
    serve(&second);
    let start = Instant::now();
    first.pool.disconnect(&[busy().unwrap().number]);
    assert_eq!(client.reply().unwrap().0, 0);
    // The time to settle, and the second copy of the write.
    assert!(start.elapsed() >= Duration::from_millis(3900), "{:?}", start.elapsed());
}

/// nbdkit that was told to end keeps its connections and answers every request with ESHUTDOWN until
/// its clients have left. The leaf leaves, and finds the next server at the same address.
#[test]
fn a_server_that_says_it_shuts_down_loses_its_connections() {
    let dir = tempfile::tempdir().unwrap();
    for reconnect in ["&reconnect=30", "&reconnect=0"] {
        // Connections with a number below this one belong to the server that shuts down.
        let old = Arc::new(AtomicUsize::new(0));
        let says = old.clone();
        let server = Server::start(&dir.path().join("s"), Options::default(), move |request| {
            let is_old = request.connection < says.load(Ordering::SeqCst);
            if is_old { Action::Error(ESHUTDOWN) } else { Action::Do }
        });
        let world = World::new(1);
        let leaf = world.leaf(&server.address(reconnect));
        world.device("disk", world.linear(&leaf));
        let mut client = world.connect("disk");
        client.write(0, &[1; 4096]).unwrap();
        old.store(server.disk.connections.load(Ordering::SeqCst), Ordering::SeqCst);
        let start = Instant::now();
        if reconnect == "&reconnect=0" {
            assert_eq!(client.write(0, &[2; 4096]), Err(ESHUTDOWN));
        }
        eventually("it is back", || leaf.engine().probe(Duration::from_secs(5)).is_ok());
        client.write(0, &[3; 4096]).unwrap();
        assert_eq!(client.read(0, 4096).unwrap(), [3; 4096]);
        // A refused write is not in doubt, so it does not wait for `settle` (5 s).
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    }
}

/// If a server does not speak NBD, the error shows its greeting as text.
#[test]
fn a_greeting_that_is_none_is_shown_as_text() {
    let dir = tempfile::tempdir().unwrap();
    for (greeting, says) in [
        (b"HTTP/1.1 400 Bad Request\r\n".to_vec(), "it greets with 'HTTP/1.1 400 Bad'"),
        (b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\x00\x00".to_vec(), "the old form of NBD"),
    ] {
        let options = Options { greeting: Some(greeting), ..Options::default() };
        let server = Server::start(&dir.path().join("s"), options, |_| Action::Do);
        let address = server.address("").parse().unwrap();
        let error = blkswitch_io::Leaf::open(&address, &crate::support::options()).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(says) && !error.contains("Some("), "{error}");
    }
}

/// A server's device becomes read-only, and it refuses writes. The writes go down other paths. The
/// path is used again when a new connection shows that the export is writable.
#[test]
fn an_export_that_becomes_read_only_is_written_by_another_path() {
    let dir = tempfile::tempdir().unwrap();
    let refuses = Arc::new(AtomicUsize::new(0));
    let serve = |name: &str, flags: u16, number: usize| {
        let refuses = refuses.clone();
        let options = Options { flags, ..Options::default() };
        Server::start(&dir.path().join(name), options, move |request| {
            let is_refused = refuses.load(Ordering::SeqCst) & (1 << number) != 0;
            let writes = matches!(request.command, WRITE | WRITE_ZEROES | TRIM);
            if writes && is_refused { Action::Error(EPERM) } else { Action::Do }
        })
    };
    let servers = [serve("a", server::GOOD, 0), serve("b", server::GOOD, 1)];
    let world = World::new(1);
    let leaves = servers.each_ref().map(|server| world.leaf(&server.address("")));
    let table = world.multipath("0 0 1 1 round-robin 0 2 0 0 1", &leaves);
    let device = world.device("disk", table);
    let table = device.live().unwrap();
    let (groups, _) = table.multipath().unwrap();
    let mut client = world.connect("disk");
    refuses.store(1, Ordering::SeqCst);
    for _ in 0..4 {
        client.write(0, &[1; 4096]).unwrap();
        client.call(0, WRITE_ZEROES, 4096, 4096, &[]).unwrap();
        client.call(0, TRIM, 8192, 4096, &[]).unwrap();
    }
    assert_eq!((groups.live_paths(), leaves[0].is_protected()), (1, true));
    refuses.store(3, Ordering::SeqCst);
    assert_eq!(client.write(0, &[2; 4096]), Err(EPERM));
    client.read(0, 4096).unwrap();
    assert_eq!(groups.live_paths(), 1);
    // The flags of the new connection decide.
    leaves[0].probe(Duration::from_secs(9)).unwrap();
    assert!(!leaves[0].is_protected());
}

/// The writes of a file that has become read-only (here a sealed one) go down another path, too.
#[test]
fn a_file_that_becomes_read_only_is_written_by_another_path() {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    let world = World::new(1);
    let files = [c"a", c"b"].map(|name| {
        // SAFETY: creates a descriptor, which `File` owns from here on.
        let file = unsafe {
            let file = libc::memfd_create(name.as_ptr(), libc::MFD_ALLOW_SEALING);
            assert!(file >= 0);
            std::fs::File::from(OwnedFd::from_raw_fd(file))
        };
        file.set_len(1 << 20).unwrap();
        file
    });
    let path = |file: &std::fs::File| {
        world.leaf(&format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
    };
    let leaves = [path(&files[0]), path(&files[1])];
    let table = world.multipath("0 0 1 1 round-robin 0 2 0 0 1", &leaves);
    let device = world.device("disk", table);
    let mut client = world.connect("disk");
    // SAFETY: a system call on a live descriptor.
    let sealed =
        unsafe { libc::fcntl(files[0].as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE) };
    assert_eq!(sealed, 0);
    for _ in 0..4 {
        client.write(0, &[1; 4096]).unwrap();
        assert_eq!(client.read(0, 4096).unwrap(), [1; 4096]);
    }
    let table = device.live().unwrap();
    let (groups, _) = table.multipath().unwrap();
    assert_eq!((groups.live_paths(), leaves[0].is_protected()), (1, true));
}
