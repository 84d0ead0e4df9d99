//! Unit attentions while requests are in flight: the unit was reset, or has become another one.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use blkswitch_io::engine::sim::Random;

use super::support::{World, eventually};
use super::target::{Login, Target};
use super::{ESHUTDOWN, MIB};

const BLOCKS: u64 = 256;
const EIO: u32 = 5;

/// Another host with a session of its own. It speaks just enough iSCSI to reset a unit.
struct Stranger(TcpStream);

impl Stranger {
    fn login(target: &Target) -> Stranger {
        let mut stranger = Stranger(TcpStream::connect(target.portal()).unwrap());
        let name = format!(
            "InitiatorName=iqn.2026-11.org.example:stranger\0TargetName={}\0SessionType=Normal\0AuthMethod=None\0",
            target.iqn
        );
        // Log in to the operational stage, then to the full feature phase.
        assert_eq!(stranger.call(0x43, 0x81, name.as_bytes(), &[])[36], 0);
        assert_eq!(stranger.call(0x43, 0x87, b"InitialR2T=Yes\0", &[])[36], 0);
        stranger
    }

    /// Sends an immediate request, which does not count, and returns the header of the answer.
    fn call(&mut self, opcode: u8, flags: u8, text: &[u8], fields: &[(usize, u8)]) -> [u8; 48] {
        let mut request = vec![0; 48];
        (request[0], request[1], request[8], request[27]) = (opcode, flags, 0x80, 1);
        request[5..8].copy_from_slice(&(text.len() as u32).to_be_bytes()[1..]);
        fields.iter().for_each(|(at, byte)| request[*at] = *byte);
        request.extend_from_slice(text);
        request.resize(request.len().next_multiple_of(4), 0);
        self.0.write_all(&request).unwrap();
        let mut header = [0; 48];
        self.0.read_exact(&mut header).unwrap();
        let len = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
        self.0.read_exact(&mut vec![0; len.next_multiple_of(4)]).unwrap();
        header
    }

    /// Resets logical unit 1.
    fn reset(&mut self) {
        let header = self.call(0x42, 0x80 | 5, &[], &[(8, 0), (9, 1), (19, 9)]);
        assert_eq!((header[0], header[2]), (0x22, 0), "the reset is done");
    }
}

/// Clients that write to a volume of 4 MiB of zeroes and verify it until they are told to end. Each
/// returns its longest wait.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicU64>,
    clients: Vec<std::thread::JoinHandle<Duration>>,
}

impl Load {
    pub(super) fn start(world: &World, export: &str) -> Load {
        let (stop, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let client = |number: u64| {
            let (mut client, stop, requests) =
                (world.connect(export), stop.clone(), requests.clone());
            std::thread::spawn(move || {
                let (mut random, mut longest) = (Random::new(number), Duration::ZERO);
                let mut model = [0u8; BLOCKS as usize];
                while !stop.load(Ordering::SeqCst) {
                    let block = random.below(BLOCKS);
                    let (began, offset) = (Instant::now(), (number * BLOCKS + block) * 4096);
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
                    longest = longest.max(began.elapsed());
                    requests.fetch_add(1, Ordering::SeqCst);
                }
                for (block, byte) in (0..).zip(model) {
                    assert_eq!(
                        client.read((number * BLOCKS + block) * 4096, 4096).unwrap(),
                        [byte; 4096]
                    );
                }
                longest
            })
        };
        Load { clients: (0..4).map(client).collect(), stop, requests }
    }

    /// Number of requests answered so far.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    /// Ends the clients, which read everything back. Returns the number of answered requests and
    /// the longest wait.
    pub(super) fn end(self) -> (u64, Duration) {
        self.stop.store(true, Ordering::SeqCst);
        let waits = self.clients.into_iter().map(|client| client.join().unwrap());
        let longest = waits.max().unwrap();
        (self.requests.load(Ordering::SeqCst), longest)
    }
}

/// No request fails, no data is lost, and the paths stay up. Without `reconnect`, a lost session
/// would show.
#[test]
#[ignore = "needs root and tgtd"]
fn resets_under_load_cost_nothing() {
    let target = Target::start(4 * MIB, &Login::Open);
    let world = World::new(2);
    let leaf = world.leaf(&target.address("", "?timeout=20"));
    world.device("disk", world.linear(&leaf));
    let (load, mut stranger) = (Load::start(&world, "disk"), Stranger::login(&target));
    for _ in 0..40 {
        stranger.reset();
        std::thread::sleep(Duration::from_millis(25));
    }
    let (done, longest) = load.end();
    println!("{done} requests, longest wait {longest:.1?}");
    assert!(done > 100 && longest < Duration::from_secs(15), "{done} requests, {longest:?}");
}

/// A unit is replaced by another one under the same address while it is used. Once both size and
/// name differ, once only the name.
#[test]
#[ignore = "needs root and tgtd"]
fn a_unit_that_becomes_another_under_load_is_not_used() {
    for (bytes, name) in [(8 * MIB, "another"), (4 * MIB, "another")] {
        let target = Target::start(4 * MIB, &Login::Open);
        let world = World::new(2);
        let leaf = world.leaf(&target.address("", "?timeout=20"));
        world.device("disk", world.linear(&leaf));
        let own = target.name();
        let clients: Vec<_> = (0..4u64)
            .map(|number| {
                let mut client = world.connect("disk");
                std::thread::spawn(move || {
                    let mut random = Random::new(number);
                    // The client ends when the leaf notices the new unit and fails.
                    loop {
                        let offset = random.below(1024) * 4096;
                        if let Err(error) = client.write(offset, &[1; 4096]) {
                            return error;
                        }
                    }
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(200));
        target.exchange(bytes as u64, name);
        for client in clients {
            // The error depends on when: while no unit exists, or when the leaf notices the new
            // one.
            assert!(matches!(client.join().unwrap(), EIO | ESHUTDOWN));
        }
        // The data at this address now belongs to another unit.
        std::fs::write(target.file(1), vec![9; bytes]).unwrap();
        let mut client = world.connect("disk");
        for _ in 0..20 {
            assert_eq!(client.write(0, &[2; 4096]), Err(ESHUTDOWN));
            assert_eq!(client.read(0, 4096), Err(ESHUTDOWN));
            std::thread::sleep(Duration::from_millis(20));
        }
        let error = leaf.engine().probe(Duration::from_secs(10)).unwrap_err().to_string();
        assert!(error.contains("not what it was"), "{error}");
        assert!(target.stored() == vec![9; bytes], "nothing was written to it");
        target.exchange(4 * MIB as u64, &own);
        eventually("the right one is back", || {
            leaf.engine().probe(Duration::from_secs(10)).is_ok()
        });
        client.write(0, &[3; 4096]).unwrap();
    }
}
