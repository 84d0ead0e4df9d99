//! The witness sees the requests at every way, and checks whether the region map allows them there.
//! The data alone cannot show that, because all ways of these tests lead to one volume.
//!
//! Requests for a region that never moves may only go to its member. Requests for a region that
//! moves may also go to its old member, as long as a request that was sent before the move is under
//! way.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use blkswitch::workload::{Load, UnderWay};

/// Bytes of the client's answer to a greeting: its flags.
const FLAGS_LEN: usize = 4;
/// Bytes of an option before its data: magic number, option, length.
const OPTION_LEN: usize = 16;
/// First half of `IHAVEOPT`, the magic number of an option.
const OPTION: u32 = 0x4948_4156;
/// Bytes of a request before its data: magic number, flags, command, cookie, offset, length.
const REQUEST_LEN: usize = 28;
const REQUEST: u32 = 0x2560_9513;
const READ: u16 = 0;
const WRITE: u16 = 1;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;

/// Longest delay between sending a request and seeing it, if its client already has an answer from
/// elsewhere.
const LATE: Duration = Duration::from_secs(1);

/// The state of a region at a member.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Requests for the region may go to this member.
    Here,
    /// The region has left this member at that time.
    Left(Instant),
    /// The region was never at this member.
    Elsewhere,
}

/// The requests that the region map allows.
struct Map {
    region_bytes: u64,
    /// The state of each region at each member.
    places: Vec<[Place; 2]>,
    /// The load's requests under way.
    under_way: Option<UnderWay>,
    /// Number of requests seen: for regions that stay, and for regions that move.
    seen: [u64; 2],
    /// Describes the first request that went to a wrong member.
    wrong: Option<String>,
}

/// A witness. All ways of a host share one.
#[derive(Clone)]
pub(super) struct Witness {
    map: Arc<Mutex<Map>>,
    /// Held while regions move, so that changes do not overlap.
    change: Arc<Mutex<()>>,
}

impl Witness {
    /// A witness for a switch device with its default map over two members.
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

    /// Sets the load whose requests are seen. Other clients must wait for their own requests before
    /// regions move.
    pub(super) fn watch(&self, load: &Load) {
        self.map.lock().unwrap().under_way = Some(load.under_way());
    }

    /// Notes the moves that `act` makes.
    pub(super) fn moving(&self, moves: &[(u64, usize)], act: impl FnOnce()) {
        let _one = self.change.lock().unwrap();
        self.change(moves, act);
    }

    /// Notes that `act` moves all regions back to where they were at first, by loading another
    /// table.
    pub(super) fn returning(&self, act: impl FnOnce()) {
        let _one = self.change.lock().unwrap();
        let regions = self.map.lock().unwrap().places.len() as u64;
        let moves: Vec<_> = (0..regions)
            .filter(|region| !stays(*region))
            .map(|region| (region, home(region)))
            .collect();
        self.change(&moves, act);
    }

    /// Notes moves. During `act`, a region may be at both members.
    fn change(&self, moves: &[(u64, usize)], act: impl FnOnce()) {
        for (region, member) in moves {
            assert!(!stays(*region), "region {region} is not to be moved");
            self.map.lock().unwrap().places[*region as usize][*member] = Place::Here;
        }
        act();
        let mut map = self.map.lock().unwrap();
        // If a region moves more than once, its last move counts.
        for (region, member) in moves {
            let places = &mut map.places[*region as usize];
            places[*member] = Place::Here;
            if places[1 - member] == Place::Here {
                places[1 - member] = Place::Left(Instant::now());
            }
        }
    }

    /// Checks a request that passes on a way of `member`.
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

    /// Returns how many requests went to the right member: for regions that stay, and for regions
    /// that move. Panics if one went to a wrong member.
    pub(super) fn verdict(&self) -> [u64; 2] {
        let map = self.map.lock().unwrap();
        assert_eq!(map.wrong, None);
        map.seen
    }
}

/// The member of a region in the default map.
pub(super) fn home(region: u64) -> usize {
    (region % 2) as usize
}

/// Returns whether a region never moves.
pub(super) fn stays(region: u64) -> bool {
    region % 4 < 2
}

/// The part of a request that the witness checks.
struct Request {
    command: u16,
    offset: u64,
    len: u64,
}

/// Follows the bytes that a client sends on a connection.
pub(super) struct Requests {
    witness: Witness,
    member: usize,
    greeted: bool,
    /// The beginning of a message that is not complete yet.
    rest: Vec<u8>,
    /// Number of data bytes that follow and are skipped.
    skip: usize,
}

impl Requests {
    /// Follows a new connection to `member`.
    pub(super) fn new(witness: Witness, member: usize) -> Requests {
        Requests { witness, member, greeted: false, rest: Vec::new(), skip: 0 }
    }

    /// Processes bytes that pass.
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
                    // A probe of a path reads the beginning of the volume.
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
