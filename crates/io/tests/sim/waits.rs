//! Sectors that are not routed yet: those behind a closed gate, and those of requests that wait for
//! their turn.
//!
//! A request of more pieces than its owner may have under way goes on later, and a gate may close
//! in between: its rest meets the table that is live when it goes on. So the model asks the
//! pipeline what waits after each call, and routes everything else by what is live at that moment.
//! Where that was is then seen in what is read and written. A sector that is neither waiting nor
//! where the live tables say is a failure, as is one that leaves a closed gate with success.

use std::collections::BTreeMap;

use super::disk::Through;
use super::{Below, InFlight, Op, Place, SECTOR, Step, Unrouted, World, stamp};

/// A sector of a request that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait {
    /// Which of the request.
    nth: usize,
    /// The device that will route it.
    device: usize,
    /// Which sector of that device.
    sector: u64,
    /// The devices above.
    through: Through,
}

/// All sectors of a new request.
pub(super) fn at_entry(device: usize, offset: u64, sectors: u64) -> Vec<Wait> {
    let wait = |nth| Wait { nth: nth as usize, device, sector: offset + nth, through: 0 };
    (0..sectors).map(wait).collect()
}

/// What the model and the pipeline call the same sector of one request. Pieces without data are
/// joined where they meet on a device below, and do not know their place in the request then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    Nth(usize, usize),
    Below(usize, u64, Through),
}

fn name(op: Op, nth: u64, device: u64, sector: u64, through: Through) -> Name {
    if op.has_data() || through == 0 {
        Name::Nth(nth as usize, device as usize)
    } else {
        Name::Below(device as usize, sector, through)
    }
}

/// The names of all that waits, each as often as it does.
fn names<'a>(op: Op, of: impl Iterator<Item = &'a Unrouted>) -> BTreeMap<Name, usize> {
    let mut names = BTreeMap::new();
    for range in of {
        let through = range.above.iter().fold(0, |through, device| through | 1 << device);
        let (first, offset) = (range.data / SECTOR as u64, range.offset / SECTOR as u64);
        for at in 0..range.len / SECTOR as u64 {
            let name = name(op, first + at, u64::from(range.device), offset + at, through);
            *names.entry(name).or_default() += 1;
        }
    }
    names
}

impl World {
    /// A request passes its own gate, or its rest does.
    pub(super) fn enter(&mut self, id: u64) {
        let flight = self.in_flight.get_mut(&id).expect("in flight");
        let refused = match &self.queues[flight.queue].gates[flight.device].table {
            None => Some(libc::EIO),
            Some(_) if flight.op == Op::Flush => None,
            Some(table) if flight.op.is_write() && table.read_only => Some(libc::EPERM),
            Some(table) if flight.offset + flight.sectors > table.len => {
                Some(if flight.op == Op::Write { libc::ENOSPC } else { libc::EINVAL })
            }
            Some(_) => None,
        };
        if let Some(errno) = refused {
            flight.errors.push(errno);
            flight.must_fail = true;
            flight.waits.clear();
        }
    }

    /// The gate of a device opens on a queue, with its next table.
    pub(super) fn enter_all(&mut self, queue: usize, device: usize) {
        let parked: Vec<(u64, bool)> = (self.queues[queue].pipeline.unrouted().iter())
            .filter(|range| range.device as usize == device && range.above.is_empty())
            .map(|range| (range.token, range.data > 0))
            .collect();
        for (id, is_rest) in parked {
            self.summary.rests += u64::from(is_rest);
            self.enter(id);
        }
    }

    /// The pipeline of a queue has done something: what does not wait any more was routed.
    pub(super) fn follow(&mut self, queue: usize) {
        let unrouted = self.queues[queue].pipeline.unrouted();
        let waiting: Vec<u64> = (self.in_flight.iter())
            .filter(|(_, flight)| flight.queue == queue && !flight.waits.is_empty())
            .map(|(id, _)| *id)
            .collect();
        for id in waiting {
            let flight = self.in_flight.get_mut(&id).expect("in flight");
            let waits = std::mem::take(&mut flight.waits);
            let mut left = names(flight.op, unrouted.iter().filter(|range| range.token == id));
            let mut still_waits = |flight: &InFlight, wait: &Wait| {
                let Wait { nth, device, sector, through } = *wait;
                let name = name(flight.op, nth as u64, device as u64, sector, through);
                let count = left.get_mut(&name).filter(|count| **count > 0);
                count.map(|count| *count -= 1).is_some()
            };
            let (mut stay, mut go) = (Vec::new(), Vec::new());
            for wait in waits {
                let list = if still_waits(flight, &wait) { &mut stay } else { &mut go };
                list.push(wait);
            }
            for wait in go {
                // At another gate, further down.
                let Some(wait) = self.route(id, wait) else { continue };
                let flight = self.in_flight.get_mut(&id).expect("in flight");
                if still_waits(flight, &wait) {
                    stay.push(wait);
                } else {
                    // It can only have ended there.
                    flight.must_fail = true;
                }
            }
            self.in_flight.get_mut(&id).expect("in flight").waits = stay;
        }
    }

    /// Sends one sector of a request down from where it waits, unless it comes to a closed gate.
    fn route(&mut self, id: u64, wait: Wait) -> Option<Wait> {
        let Wait { nth, mut device, mut sector, mut through } = wait;
        let flight = self.in_flight.get_mut(&id).expect("in flight");
        let gates = &self.queues[flight.queue].gates;
        // It cannot leave a closed gate but by an error.
        flight.must_fail |= !gates[device].open;
        loop {
            through |= 1 << device;
            let step = gates[device].table.as_ref().map_or(Step::Fail, |table| table.step(sector));
            let way = match step {
                Step::Below(_, way) => way,
                Step::Zero => {
                    flight.zeroes.push(nth);
                    return None;
                }
                Step::Fail => {
                    flight.errors.push(libc::EIO);
                    flight.must_fail = true;
                    return None;
                }
            };
            match way.below {
                Below::Device(below) if !gates[below].open => {
                    return Some(Wait { nth, device: below, sector: way.offset, through });
                }
                Below::Device(below) => (device, sector) = (below, way.offset),
                Below::Leaf(leaf) => {
                    let sector = way.offset as usize;
                    flight.places.push(Place { nth, leaf, sector, begin: self.now });
                    let value = match flight.op {
                        Op::Write => stamp(id, nth),
                        Op::Discard if self.no_discard[leaf] => return None,
                        Op::WriteZeroes { fast: true, .. } if self.no_zero[leaf] => {
                            flight.errors.push(libc::EOPNOTSUPP);
                            flight.must_fail = true;
                            return None;
                        }
                        Op::Discard | Op::WriteZeroes { .. } => 0,
                        Op::Read | Op::Flush => return None,
                    };
                    self.disks[leaf].begin(sector, value, id, through, self.now);
                    return None;
                }
            }
        }
    }

    /// All queues say that a device has drained: what they have of it waits at the gate. What a
    /// multipath holds is not in flight.
    pub(super) fn check_drained(&self, device: usize) {
        for (number, queue) in self.queues.iter().enumerate() {
            let unrouted = queue.pipeline.unrouted();
            let is_parked = |id: u64| {
                let own = |range: &&Unrouted| range.token == id && range.above.is_empty();
                unrouted.iter().find(own).is_some_and(|range| range.is_parked)
            };
            let inside = self.in_flight.iter().find(|(id, flight)| {
                (flight.queue, flight.device) == (number, device) && !is_parked(**id)
            });
            assert!(
                inside.is_none() || self.is_multipath(device),
                "d{device} has drained, but #{} is in flight",
                inside.unwrap().0
            );
        }
    }

    /// A queue is about to refuse everything that waits.
    pub(super) fn refuse_waits(&mut self, queue: usize) {
        let unrouted = self.queues[queue].pipeline.unrouted();
        for range in unrouted {
            let flight = self.in_flight.get_mut(&range.token).expect("in flight");
            flight.must_fail = true;
            flight.errors.push(libc::ESHUTDOWN);
            flight.waits.clear();
        }
    }
}
