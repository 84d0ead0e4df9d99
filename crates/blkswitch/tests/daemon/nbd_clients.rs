//! NBD clients that break the protocol, occupy memory or descriptors, or leave: the cost for the
//! daemon, the effect on other clients, and what the administrator sees.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::fixture::{Daemon, PATIENCE, SECTOR, eventually};

const READ: u16 = 0;

/// A client that speaks the protocol by hand: `EXPORT_NAME`, compact headers, simple replies.
struct Raw<S = UnixStream> {
    socket: S,
}

impl Raw {
    fn connect(socket: &Path, export: &str) -> std::io::Result<Raw> {
        let socket = UnixStream::connect(socket)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Raw::over(socket, export)
    }
}

impl<S: Read + Write> Raw<S> {
    fn over(mut socket: S, export: &str) -> std::io::Result<Raw<S>> {
        socket.read_exact(&mut [0; 18])?;
        let mut hello = 3u32.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        hello.extend(1u32.to_be_bytes());
        hello.extend((export.len() as u32).to_be_bytes());
        hello.extend(export.as_bytes());
        socket.write_all(&hello)?;
        socket.read_exact(&mut [0; 10])?;
        Ok(Raw { socket })
    }

    fn send(&mut self, flags: u16, command: u16, offset: u64, len: u32) {
        let mut header = 0x2560_9513u32.to_be_bytes().to_vec();
        header.extend(flags.to_be_bytes());
        header.extend(command.to_be_bytes());
        header.extend(7u64.to_be_bytes());
        header.extend(offset.to_be_bytes());
        header.extend(len.to_be_bytes());
        self.socket.write_all(&header).unwrap();
    }

    /// The error in the next reply.
    fn error(&mut self) -> u32 {
        let mut header = [0; 16];
        self.socket.read_exact(&mut header).unwrap();
        u32::from_be_bytes(header[4..8].try_into().unwrap())
    }
}

/// The lines of the log about clients that break the protocol.
fn complaints(daemon: &Daemon) -> Vec<String> {
    let log = daemon.log();
    log.lines().filter(|line| line.contains("breaks the NBD protocol")).map(String::from).collect()
}

/// The first breach of a connection is logged as one line, with the client and the bytes that came.
/// Many breaches are logged as a few lines.
#[test]
fn breaches_of_the_protocol_are_logged_once_and_not_without_end() {
    let daemon = Daemon::start_with(&[]);
    daemon.create("disk", "0 2048 linear mem:1M 0").expect_ok();
    let mut client = Raw::connect(&daemon.path("nbd.sock"), "disk").unwrap();
    for _ in 0..3 {
        client.send(0, 99, 0, 0);
        assert_eq!(client.error(), 22);
    }
    client.socket.write_all(&[0xab; 28]).unwrap();
    assert_eq!(client.socket.read(&mut [0]).unwrap(), 0, "the connection is dropped");
    eventually("a line of the log", || !complaints(&daemon).is_empty());
    let lines = complaints(&daemon);
    let [line] = &lines[..] else { panic!("one line a connection: {lines:?}") };
    let pid = std::process::id();
    for part in [" WARN ", "unknown command", "2560951300000063", &format!("pid {pid} uid ")] {
        assert!(line.contains(part), "no '{part}' in {line}");
    }
    for _ in 0..200 {
        let mut client = Raw::connect(&daemon.path("nbd.sock"), "disk").unwrap();
        client.socket.write_all(&[0xab; 28]).unwrap();
        assert_eq!(client.socket.read(&mut [0]).unwrap(), 0);
    }
    // A well-behaved client is served all the time.
    let mut client = Raw::connect(&daemon.path("nbd.sock"), "disk").unwrap();
    client.send(0, READ, 0, 512);
    assert_eq!(client.error(), 0);
    let lines = complaints(&daemon);
    assert!((2..=15).contains(&lines.len()), "{} lines:\n{}", lines.len(), lines.join("\n"));
    assert!(lines.iter().all(|line| line.contains("suppressed=")), "{lines:?}");
}

/// Idle connections up to the limit of descriptors: the administrator's verbs still work, and
/// leaves can be opened.
#[test]
fn idle_clients_do_not_shut_the_administrator_out() {
    let daemon = Daemon::start_limited("-n 256");
    daemon.create("disk", "0 2048 linear mem:1M 0").expect_ok();
    let mut good = Raw::connect(&daemon.path("nbd.sock"), "disk").unwrap();
    let mut idle = Vec::new();
    let mut half = Vec::new();
    for _ in 0..400 {
        idle.extend(Raw::connect(&daemon.path("nbd.sock"), "disk"));
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        let _ = stream.write_all(b"GET /v1/devices HTTP/1.1\r\nhost:");
        half.push(stream);
    }
    assert!((100..200).contains(&idle.len()), "{} clients were let in", idle.len());
    let start = Instant::now();
    assert!(daemon.run(&["ls"]).status.success());
    let file = daemon.path("file");
    std::fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
    let table = format!("0 2048 linear {} 0", file.display());
    daemon.create("other", &table).expect_ok();
    assert!(start.elapsed() < Duration::from_secs(30), "verbs took {:?}", start.elapsed());
    let start = Instant::now();
    good.send(0, READ, 0, 512);
    assert_eq!(good.error(), 0);
    assert!(start.elapsed() < Duration::from_secs(10), "a read took {:?}", start.elapsed());
    let log = daemon.log();
    let refused = log.lines().filter(|line| line.contains("connection refused")).count();
    assert!((1..=15).contains(&refused), "{refused} lines about refused connections");
    drop(idle);
    eventually("there is room again", || Raw::connect(&daemon.path("nbd.sock"), "disk").is_ok());
}

/// After a stop or a kill, the next daemon can listen at the same address at once.
#[test]
fn a_tcp_address_is_free_again_at_once() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let address = format!("tcp:{free}");
    let mut daemon = Daemon::start_with(&["--nbd", &address]);
    for round in 0..20 {
        daemon.create("disk", "0 2048 linear mem:1M 0").expect_ok();
        // A connection that the server has closed keeps the address busy for a minute.
        let mut client = std::net::TcpStream::connect(free).unwrap();
        client.read_exact(&mut [0; 18]).unwrap();
        if round % 2 == 0 {
            daemon.terminate();
            let (status, log) = daemon.wait();
            assert_eq!(status, Some(0), "{log}");
        } else {
            daemon.kill();
        }
        daemon.start_again_with(&["--nbd", &address]);
    }
}

/// A daemon that listens at every address of the machine logs a warning.
#[test]
fn an_address_that_everybody_reaches_is_warned_of() {
    let daemon = Daemon::start_with(&["--nbd", "tcp:*:0"]);
    let log = daemon.log();
    assert!(log.contains("WARN") && log.contains("tcp:*:0 offers every device"), "{log}");
}

/// `info` shows the clients of a device, and `disconnect` ends their connections.
#[test]
fn clients_are_shown_and_disconnected() {
    let daemon = Daemon::start_with(&["--nbd", "tcp:127.0.0.1:0"]);
    daemon.create("disk", "0 2048 linear mem:1M 0").expect_ok();
    let version: blkswitch::protocol::Version =
        daemon.request("GET", "/v1/version", serde_json::Value::Null).json();
    let at = version.nbd[0].strip_prefix("nbd://").unwrap().to_owned();
    let connect = || Raw::over(std::net::TcpStream::connect(&at).unwrap(), "disk").unwrap();
    let (mut one, mut two) = (connect(), connect());
    let here = one.socket.local_addr().unwrap().to_string();
    let described = daemon.describe("disk");
    assert_eq!((described.open_count, described.clients.len()), (2, 2));
    assert_eq!(described.clients[0].peer, here);
    let info = daemon.run(&["info", "disk"]);
    let info = String::from_utf8(info.stdout).unwrap();
    let line = format!("Client:            {here} (number 1, since 2");
    assert!(info.contains(&line) && info.contains("0 in flight"), "{info}");
    // A client whose request waits at the gate is disconnected as well.
    daemon.run(&["suspend", "disk"]);
    one.send(0, READ, 0, 512);
    let refused = daemon.run(&["disconnect", "disk", "10.0.0.1"]);
    let text = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(text.contains("no client '10.0.0.1'") && text.contains(&here), "{text}");
    let ended = daemon.run(&["disconnect", "disk", &here]);
    let text = String::from_utf8(ended.stdout).unwrap();
    assert!(ended.status.success() && text.starts_with(&here), "{text}");
    assert_eq!(one.socket.read(&mut [0]).unwrap_or(0), 0, "it is closed");
    assert_eq!(daemon.describe("disk").open_count, 1);
    daemon.run(&["resume", "disk"]);
    two.send(0, READ, 0, 512);
    assert_eq!(two.error(), 0);
    let ended = daemon.run(&["disconnect", "disk", "--json"]);
    let ended: blkswitch::protocol::Disconnected = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(ended.disconnected.len(), 1);
    assert_eq!(ended.disconnected[0].number, 2);
    daemon.remove("disk");
}

/// A size in a table that exceeds every machine's memory is an error, and does not end the daemon.
#[test]
fn a_leaf_larger_than_the_memory_is_refused() {
    let daemon = Daemon::start_limited("-v 4000000");
    for leaf in ["sim:1T", "sim:64T,name=a,path=1", "mem:64T"] {
        let reply = daemon.create("disk", &format!("0 2048 linear {leaf} 0"));
        let reason = reply.error().reason;
        assert!(reason.contains(&leaf[..4]) && reason.contains("memory"), "{leaf}: {reason}");
    }
    daemon.create("disk", "0 2048 linear sim:1M 0").expect_ok();
}

/// A file needs a descriptor for each queue and two more.
#[test]
fn too_few_descriptors_are_said_with_the_limit_and_what_to_do() {
    let daemon = Daemon::start_limited("-n 128");
    let mut refused = None;
    for number in 0..60 {
        let file = daemon.path(&format!("file-{number}"));
        std::fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
        let table = format!("0 2048 linear {} 0", file.display());
        let reply = daemon.create(&format!("disk-{number}"), &table);
        if !reply.is_ok() {
            refused = Some((file, reply.error().reason));
            break;
        }
    }
    let (file, reason) = refused.expect("128 descriptors are not enough for 60 files");
    for says in [file.to_str().unwrap(), "128 files open", "ulimit -n", "--queues"] {
        assert!(reason.contains(says), "{says}: {reason}");
    }
    assert!(daemon.run(&["ls"]).status.success());
}

/// Queues keep devices by number, and a number may be anything below 2^20.
#[test]
fn a_large_minor_number_costs_no_memory() {
    let daemon = Daemon::start();
    let resident_kib = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    daemon.create("first", "0 2048 linear null:1M 0").expect_ok();
    let before = resident_kib();
    let words = [
        "create",
        "last",
        "--major",
        "253",
        "--minor",
        "1048575",
        "--table",
        "0 2048 linear null:1M 0",
    ];
    assert!(daemon.run(&words).status.success());
    assert_eq!(daemon.nbd("last").read(0, SECTOR).unwrap(), [0; SECTOR]);
    let grown = resident_kib().saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB more, of which 128 per queue are needed");
}
