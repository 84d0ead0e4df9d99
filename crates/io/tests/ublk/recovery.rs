//! Tests with servers that die. Each server is this program in another process, with [`CHILD`] set.

use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use blkswitch_io::export::ublk;

use crate::lab::{self, BYTES, Folder, Lab, Under, run};

/// The environment variable that makes this program a server. It holds the folder of the leaves,
/// and the number of the disk to take over, if any.
const CHILD: &str = "BLKSWITCH_UBLK_TEST_SERVER";

/// The server that the tests start; without [`CHILD`] it does nothing.
#[test]
fn server() {
    let Ok(order) = std::env::var(CHILD) else { return };
    let (folder, id) = order.split_once(' ').unwrap();
    let lab = Lab::new(2, Under::Files(Path::new(folder)));
    let node = match id.parse() {
        Ok(id) => lab.pool.recover_ublk(&lab.device, id).unwrap(),
        Err(_) => lab.attach(None).unwrap(),
    };
    println!("serving {}", node.id);
    // A line or the end of input is the order to stop cleanly, here while requests wait at the
    // gate.
    let _ = std::io::stdin().read_line(&mut String::new());
    lab.device.suspend().unwrap();
    std::thread::sleep(Duration::from_millis(20));
    lab.pool.stop();
    println!("stopped");
}

pub(crate) struct Server {
    process: Child,
    pub(crate) id: u32,
    /// The lines that the server prints.
    lines: Lines<BufReader<ChildStdout>>,
}

impl Server {
    pub(crate) fn start(folder: &Path, id: Option<u32>) -> Server {
        let id = id.map_or_else(|| "new".into(), |id| id.to_string());
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["recovery::server", "--exact", "--nocapture"])
            .env(CHILD, format!("{} {id}", folder.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let id = lines.find_map(|line| line.unwrap().split_once("serving ")?.1.parse().ok());
        Server { id: id.expect("the server serves"), process, lines }
    }

    /// Makes the server stop cleanly.
    fn stop(mut self) -> u32 {
        drop(self.process.stdin.take());
        assert!(self.lines.any(|line| line.unwrap().contains("stopped")));
        assert!(self.process.wait().unwrap().success());
        self.id
    }

    pub(crate) fn kill(mut self) -> u32 {
        // `kill` sends SIGKILL.
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.id
    }
}

#[test]
fn a_killed_server_loses_nothing() {
    if !lab::ready() {
        return;
    }
    let files = Folder::new("recovery");
    let first = Server::start(&files.0, None);
    let node = format!("/dev/ublkb{}", first.id);
    let last = lab::verify_while(&node, 4, |rounds| {
        let mut server = first;
        for round in 0..10 {
            let before = rounds.load(Ordering::Relaxed);
            while rounds.load(Ordering::Relaxed) < before + 50 {
                std::thread::sleep(Duration::from_millis(1));
            }
            let pid = server.process.id();
            let id = server.kill();
            let left = ublk::found().unwrap();
            assert_eq!(left.iter().map(|found| found.id).collect::<Vec<_>>(), [id]);
            assert_ne!(left[0].server, ublk::Server::Alive, "{left:?}");
            // Newer kernels no longer report the process that died.
            assert!(left[0].pid == -1 || left[0].pid as u32 == pid, "{left:?}");
            let start = Instant::now();
            server = Server::start(&files.0, Some(id));
            assert_eq!(server.id, id);
            println!("round {round}: taken over after {} ms", start.elapsed().as_millis());
        }
        server
    });
    let id = last.kill();
    ublk::remove_leftover(id).unwrap();
    assert_eq!(ublk::found().unwrap(), []);
    assert!(!Path::new(&node).exists());
}

#[test]
fn a_disk_without_a_server_waits_and_can_be_removed() {
    if !lab::ready() {
        return;
    }
    let files = Folder::new("waiting");
    let id = Server::start(&files.0, None).kill();
    let node = format!("/dev/ublkb{id}");
    // The kernel notices the death a moment later than this process.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(run("blockdev", &["--getsize64", &node]), format!("{BYTES}\n"));
    let stranger = Lab::new(1, Under::Null);
    assert!(stranger.pool.recover_ublk(&stranger.device, id + 1).is_err(), "there is no such disk");
    std::thread::scope(|scope| {
        let write = scope.spawn(|| {
            use std::os::unix::fs::FileExt;
            let disk = std::fs::OpenOptions::new().write(true).open(&node).unwrap();
            disk.write_all_at(&[1; 4096], 0).and_then(|()| disk.sync_all())
        });
        std::thread::sleep(Duration::from_millis(300));
        assert!(!write.is_finished(), "it waits for a server");
        ublk::remove_leftover(id).unwrap();
        assert!(write.join().unwrap().is_err());
    });
}

#[test]
fn a_pool_that_stops_leaves_its_disks_to_the_next() {
    if !lab::ready() {
        return;
    }
    let files = Folder::new("upgrade");
    let server = Server::start(&files.0, None);
    let node = format!("/dev/ublkb{}", server.id);
    let error = ublk::remove_leftover(server.id).unwrap_err().to_string();
    assert!(error.contains("was not left behind"), "{error}");
    let other = Lab::new(1, Under::Null);
    let error = other.pool.recover_ublk(&other.device, server.id).unwrap_err().to_string();
    assert!(error.contains(&format!("process {} serves it", server.process.id())), "{error}");
    assert_eq!(other.device.info().opens, 0);
    // The last server is this process, which then detaches cleanly.
    let lab = lab::verify_while(&node, 2, |rounds| {
        let mut server = server;
        for _ in 0..3 {
            let before = rounds.load(Ordering::Relaxed);
            while rounds.load(Ordering::Relaxed) < before + 50 {
                std::thread::sleep(Duration::from_millis(1));
            }
            let id = server.stop();
            server = Server::start(&files.0, Some(id));
        }
        let id = server.stop();
        let lab = Lab::new(2, Under::Files(&files.0));
        lab.pool.recover_ublk(&lab.device, id).unwrap();
        lab
    });
    lab.detach();
}
