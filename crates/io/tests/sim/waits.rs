//! Sectors that are not routed yet: those behind a closed gate, and those of requests that wait for
//! their turn.
//!
//! A request with more pieces than its owner may have in flight goes on later. A gate may close in
//! between, and the rest is then routed by the table that is live when it goes on. So the model
//! asks the pipeline after each call which sectors wait, and routes all others by the tables that
//! are live at that moment. Reads and writes show whether that was right. It is a failure if a
//! sector neither waits nor is where the live tables lead, or if it leaves a closed gate with
//! success.

use std::collections::BTreeMap;

use super::disk::Through;
use super::{Below, InFlight, Op, Place, SECTOR, Step, Unrouted, World, stamp};

/// A sector of a request that is not routed yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait {
    /// The sector's index in the request.
    nth: usize,
    /// The device whose table will route it.
    device: usize,
    /// The sector of that device.
    sector: u64,
    /// The devices above that it has passed.
    through: Through,
}

/// All sectors of a new request, at the gate of its device.
pub(super) fn at_entry(device: usize, offset: u64, sectors: u64) -> Vec<Wait> {
    let wait = |nth| Wait { nth: nth as usize, device, sector: offset + nth, through: 0 };
    (0..sectors).map(wait).collect()
}

/// How the model and the pipeline identify a waiting sector of a request. Pieces without data are
/// joined where they meet on a device below, and then do not know their place in the request.
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

/// Identifies all waiting sectors and counts each.
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
    /// A request, or its rest, passes the gate of its own device.
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

    /// Opens the gate of a device on a queue, with its next table.
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

    /// Follows the pipeline of a queue after a call: routes the sectors that no longer wait.
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
                // It waits again, at another gate further down.
                let Some(wait) = self.route(id, wait) else { continue };
                let flight = self.in_flight.get_mut(&id).expect("in flight");
                if still_waits(flight, &wait) {
                    stay.push(wait);
                } else {
                    // The pipeline has no such wait, so the request can only have ended at that
                    // gate.
                    flight.must_fail = true;
                }
            }
            self.in_flight.get_mut(&id).expect("in flight").waits = stay;
        }
    }

    /// Sends one sector of a request down from where it waits. Returns the new wait if it meets a
    /// closed gate.
    fn route(&mut self, id: u64, wait: Wait) -> Option<Wait> {
        let Wait { nth, mut device, mut sector, mut through } = wait;
        let flight = self.in_flight.get_mut(&id).expect("in flight");
        let gates = &self.queues[flight.queue].gates;
        // A sector leaves a closed gate only with an error.
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

    /// Checks a device that all queues report as drained: its requests wait at the gate. Requests
    /// that a multipath holds are not in flight.
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

    /// Records that a queue is about to refuse all waiting requests.
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
