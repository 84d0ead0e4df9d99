//! Who was asked for what: a witness at every way sees the requests that pass, and says whether the
//! region map allows them there. Data alone would not tell, since all ways of these tests lead to
//! one volume.
//!
//! A region that is never moved may only be asked for where it belongs, at any time. One that moves
//! may also be asked for where it was, as long as a request that was sent before it left is under
//! way.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use blkswitch::load::{Load, UnderWay};

/// Bytes of a greeting's answer: the client's flags.
const FLAGS_LEN: usize = 4;
/// Bytes of an option before its data: magic number, option, length.
const OPTION_LEN: usize = 16;
/// `IHAVEOPT`, its first half: what an option begins with.
const OPTION: u32 = 0x4948_4156;
/// Bytes of a request before its data: magic number, flags, command, cookie, offset, length.
const REQUEST_LEN: usize = 28;
const REQUEST: u32 = 0x2560_9513;
const READ: u16 = 0;
const WRITE: u16 = 1;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;

/// Requests are seen so much later than they were sent, at most, once their client has an answer
/// from elsewhere.
const LATE: Duration = Duration::from_secs(1);

/// What a region is to a member.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// It may be asked for here.
    Here,
    /// No longer, since then.
    Left(Instant),
    /// It was never here.
    Elsewhere,
}

/// What the map allows.
struct Map {
    region_bytes: u64,
    /// Of each region, for each member.
    places: Vec<[Place; 2]>,
    /// The requests of the load.
    under_way: Option<UnderWay>,
    /// Requests seen: of regions that stay where they are, and of those that move.
    seen: [u64; 2],
    /// The first request that went elsewhere.
    wrong: Option<String>,
}

/// See the module's text. One for all ways of a host.
#[derive(Clone)]
pub(super) struct Witness {
    map: Arc<Mutex<Map>>,
    /// One change after the other.
    change: Arc<Mutex<()>>,
}

impl Witness {
    /// Of a switch device with its default map over two members.
    pub(super) fn new(regions: u64, region_bytes: u64) -> Witness {
        let places = (0..regions).map(|region| {
            let mut places = [Place::Elsewhere; 2];
            places[home(region)] = Place::Here;
            places
        });
        let map = Map {
            region_bytes,
            places: places.collect(),
            under_way: None,
            seen: [0; 2],
            wrong: None,
        };
        Witness { map: Arc::new(Mutex::new(map)), change: Arc::default() }
    }

    /// Whose requests these are. Whoever else sends some waits for them before regions move.
    pub(super) fn watch(&self, load: &Load) {
        self.map.lock().unwrap().under_way = Some(load.under_way());
    }

    /// Regions are moved to members by `act`.
    pub(super) fn moving(&self, moves: &[(u64, usize)], act: impl FnOnce()) {
        let _one = self.change.lock().unwrap();
        self.change(moves, act);
    }

    /// All regions go back to where they were first, by `act`: another table.
    pub(super) fn returning(&self, act: impl FnOnce()) {
        let _one = self.change.lock().unwrap();
        let regions = self.map.lock().unwrap().places.len() as u64;
        let moves: Vec<_> = (0..regions)
            .filter(|region| !stays(*region))
            .map(|region| (region, home(region)))
            .collect();
        self.change(&moves, act);
    }

    /// While it is done a region may be at both places.
    fn change(&self, moves: &[(u64, usize)], act: impl FnOnce()) {
        for (region, member) in moves {
            assert!(!stays(*region), "region {region} is not to be moved");
            self.map.lock().unwrap().places[*region as usize][*member] = Place::Here;
        }
        act();
        let mut map = self.map.lock().unwrap();
        // The last move of a region holds.
        for (region, member) in moves {
            let places = &mut map.places[*region as usize];
            places[*member] = Place::Here;
            if places[1 - member] == Place::Here {
                places[1 - member] = Place::Left(Instant::now());
            }
        }
    }

    /// A request passes on a way of `member`.
    fn passes(&self, member: usize, request: &Request) {
        let mut map = self.map.lock().unwrap();
        let oldest = map.under_way.as_ref().and_then(UnderWay::oldest);
        let (first, last) = (request.offset, request.offset + request.len.max(1) - 1);
        for region in first / map.region_bytes..=last / map.region_bytes {
            map.seen[usize::from(!stays(region))] += 1;
            let allowed = match map.places[region as usize][member] {
                Place::Here => true,
                Place::Left(since) => {
                    since.elapsed() < LATE || oldest.is_some_and(|oldest| oldest <= since)
                }
                Place::Elsewhere => false,
            };
            if !allowed && map.wrong.is_none() {
                let Request { command, offset, len } = request;
                let what = format!("{len} bytes at {offset}, command {command}");
                map.wrong =
                    Some(format!("region {region} was asked for at member {member}: {what}"));
            }
        }
    }

    /// How many requests went where they belong, of regions that stay and of those that move.
    /// Panics if one did not.
    pub(super) fn verdict(&self) -> [u64; 2] {
        let map = self.map.lock().unwrap();
        assert_eq!(map.wrong, None);
        map.seen
    }
}

/// The member that a region belongs to while nobody has said otherwise.
pub(super) fn home(region: u64) -> usize {
    (region % 2) as usize
}

/// Whether a region is never moved.
pub(super) fn stays(region: u64) -> bool {
    region % 4 < 2
}

/// What the witness sees of a request.
struct Request {
    command: u16,
    offset: u64,
    len: u64,
}

/// Follows what a client sends on a connection.
pub(super) struct Requests {
    witness: Witness,
    member: usize,
    greeted: bool,
    /// The beginning of a message whose rest has not come.
    rest: Vec<u8>,
    /// Bytes of data that still come, and are passed over.
    skip: usize,
}

impl Requests {
    /// Of a new connection to `member`.
    pub(super) fn new(witness: Witness, member: usize) -> Requests {
        Requests { witness, member, greeted: false, rest: Vec::new(), skip: 0 }
    }

    /// These bytes pass.
    pub(super) fn pass(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        loop {
            let skipped = self.skip.min(self.rest.len());
            self.rest.drain(..skipped);
            self.skip -= skipped;
            let head = if self.greeted { REQUEST_LEN.min(OPTION_LEN) } else { FLAGS_LEN };
            if self.skip > 0 || self.rest.len() < head {
                return;
            }
            if !self.greeted {
                self.greeted = true;
                self.skip = FLAGS_LEN;
                continue;
            }
            let word = |at: usize| u32::from_be_bytes(self.rest[at..at + 4].try_into().unwrap());
            match word(0) {
                OPTION => self.skip = OPTION_LEN + word(12) as usize,
                REQUEST if self.rest.len() < REQUEST_LEN => return,
                REQUEST => {
                    let command = u16::from_be_bytes([self.rest[6], self.rest[7]]);
                    let offset = u64::from(word(16)) << 32 | u64::from(word(20));
                    let len = word(24);
                    self.skip = REQUEST_LEN + if command == WRITE { len as usize } else { 0 };
                    // What looks whether a path is up reads the beginning of the volume.
                    let is_probe = command == READ && offset == 0;
                    if matches!(command, READ | WRITE | TRIM | WRITE_ZEROES) && !is_probe {
                        self.witness
                            .passes(self.member, &Request { command, offset, len: len.into() });
                    }
                }
                magic => {
                    let said = format!("a client sent {magic:#x}");
                    self.witness.map.lock().unwrap().wrong.get_or_insert(said);
                    return;
                }
            }
        }
    }
}
