//! A multipath over NBD connections that are cut and go silent under load: nothing is lost, nothing is wrong, and no
//! request takes longer than the timeouts allow.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::fixture::{Daemon, SECTOR};

/// What a connection through the wire meets.
const JOINED: u8 = 0;
const CUT: u8 = 1;
const SILENT: u8 = 2;

/// A wire between the daemon and its storage that can be cut.
struct Wire {
    state: Arc<AtomicU8>,
    open: Arc<Mutex<Vec<UnixStream>>>,
}

impl Wire {
    fn new(at: &Path, to: PathBuf) -> Wire {
        let wire = Wire { state: Arc::default(), open: Arc::default() };
        let listener = UnixListener::bind(at).unwrap();
        let (state, open) = (wire.state.clone(), wire.open.clone());
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if state.load(SeqCst) == CUT {
                    continue;
                }
                let Ok(far) = UnixStream::connect(&to) else { continue };
                for (from, into) in [(&near, &far), (&far, &near)] {
                    let (from, into) = (from.try_clone().unwrap(), into.try_clone().unwrap());
                    let state = state.clone();
                    thread::spawn(move || carry(from, into, &state));
                }
                open.lock().unwrap().extend([near, far]);
            }
        });
        wire
    }

    fn set(&self, state: u8) {
        self.state.store(state, SeqCst);
        if state == CUT {
            for socket in self.open.lock().unwrap().drain(..) {
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
    }
}

fn carry(mut from: UnixStream, mut into: UnixStream, state: &AtomicU8) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if state.load(SeqCst) == SILENT {
            while state.load(SeqCst) == SILENT {
                thread::sleep(Duration::from_millis(5));
            }
            // What was held is lost. If it came now, a write that was sent again over the other path meanwhile could
            // overwrite what is newer: nothing on this side can prevent that (docs/multipath.md, writes in doubt).
            break;
        }
        if into.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), into.shutdown(Shutdown::Both));
}

/// The seconds that a path may be silent.
const TIMEOUT: u64 = 1;
const BLOCK: usize = 8 * SECTOR;
const BLOCKS: u64 = 64;

#[test]
fn load_survives_paths_that_are_cut_and_silent() {
    let storage = Daemon::start_with(&[]);
    storage.create("vol", "0 2048 linear mem:1M 0").expect_ok();
    let host = Daemon::start_with(&["--path-checker-interval", "0.1"]);
    let wires: Vec<Wire> =
        ["a", "b"].iter().map(|name| Wire::new(&host.path(name), storage.path("nbd.sock"))).collect();
    let [a, b] = ["a", "b"]
        .map(|name| format!("nbd+unix:///vol?socket={}&timeout={TIMEOUT}", host.path(name).display()));
    let table =
        format!("0 2048 multipath 1 queue_if_no_path 0 2 1 round-robin 0 1 0 {a} round-robin 0 1 0 {b}");
    host.create("vol", &table).expect_ok();
    let mut client = host.nbd("vol");
    let (stop, slowest_ms) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut expected = vec![0u8; BLOCKS as usize];
            let mut done = 0u64;
            while !stop.load(SeqCst) {
                let (at, value) = (done * 37 % BLOCKS, (done % 251) as u8);
                let started = Instant::now();
                client.write(at * BLOCK as u64, &[value; BLOCK], done.is_multiple_of(5)).unwrap();
                expected[at as usize] = value;
                let at = done * 11 % BLOCKS;
                let read = client.read(at * BLOCK as u64, BLOCK).unwrap();
                assert!(
                    read.iter().all(|byte| *byte == expected[at as usize]),
                    "block {at} after {done} writes"
                );
                if done.is_multiple_of(7) {
                    client.flush().unwrap();
                }
                slowest_ms.fetch_max(started.elapsed().as_millis() as u64, SeqCst);
                done += 1;
            }
            (done, expected)
        });
        for round in 0..6 {
            let (wire, state) = (&wires[round % 2], if round % 3 == 2 { SILENT } else { CUT });
            wire.set(state);
            thread::sleep(Duration::from_millis(if state == SILENT { 2500 } else { 300 }));
            wire.set(JOINED);
            thread::sleep(Duration::from_millis(300));
        }
        // All of them, for less time than queueing has patience: it has all the time there is.
        wires.iter().for_each(|wire| wire.set(CUT));
        thread::sleep(Duration::from_millis(500));
        wires.iter().for_each(|wire| wire.set(JOINED));
        thread::sleep(Duration::from_millis(500));
        stop.store(true, SeqCst);
        let (done, expected) = load.join().unwrap();
        println!("{done} writes, the slowest step took {} ms", slowest_ms.load(SeqCst));
        assert!(done > 50, "only {done} writes");
        let mut direct = storage.nbd("vol");
        for (at, value) in (0..BLOCKS).zip(expected) {
            let read = direct.read(at * BLOCK as u64, BLOCK).unwrap();
            assert!(read.iter().all(|byte| *byte == value), "block {at} in the storage");
        }
    });
    // A step is three requests, each of which may meet silence once on its way; and a probe must bring a path back.
    let allowed_ms = 3 * 1000 * TIMEOUT + 10_000;
    assert!(slowest_ms.load(SeqCst) < allowed_ms);
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let status = host.describe("vol").live.unwrap().segments[0].status.clone();
        let states: Vec<&str> = status.split(' ').filter(|word| ["A", "F"].contains(word)).collect();
        // The group in use, and the paths.
        if !states.contains(&"F") {
            break;
        }
        assert!(Instant::now() < until, "a path did not come back: {status}");
        thread::sleep(Duration::from_millis(20));
    }
}
