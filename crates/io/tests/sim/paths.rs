//! The multipath of a simulation. Its paths are cut and joined, failed and reinstated, and held
//! requests ask for a path again.

use std::sync::atomic::{AtomicU64, Ordering};

use blkswitch_io::core::multipath::Event;
use blkswitch_io::engine::sim::Link;
use blkswitch_io::request::Op;
use blkswitch_io::stats::{Counters, Totals};

use super::{InFlight, MULTIPATH, Mail, PATHS, VOLUME, World, sim};

/// A new name for a volume's memory, because seeds that run at the same time must not share it.
pub(super) fn volume_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("simulated-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Number of pieces that wait for a path.
fn held(counters: &[Counters]) -> u64 {
    let mut totals = Totals::default();
    counters.iter().for_each(|counters| totals.add(counters));
    totals.held
}

impl World {
    pub(super) fn is_multipath(&self, device: usize) -> bool {
        device == MULTIPATH && !self.paths.is_empty()
    }

    /// Cuts a path, or joins it again.
    pub(super) fn cut(&mut self) {
        if self.paths.is_empty() {
            return;
        }
        let path = self.random.below(PATHS as u64) as usize;
        let link = self.pick(&[Link::Up, Link::Up, Link::Down, Link::Silent]);
        say!(self, "path {path} is {link:?}");
        sim(&self.paths[path]).set_link(link);
    }

    /// Changes the multipath as a message or the checker does.
    pub(super) fn change_paths(&mut self) {
        if self.paths.is_empty() {
            return;
        }
        let (what, path) = (self.random.below(8), self.random.below(PATHS as u64) as u32);
        let Ok(messenger) = self.devices[MULTIPATH].messenger(0) else { return };
        let mut events = Vec::new();
        messenger.change(|groups, on| {
            let mut on = |event| {
                events.push(event);
                on(event);
            };
            let group = path % groups.num_groups().max(1) + 1;
            match what {
                0 => drop(groups.fail_path(path, &mut on)),
                1 => groups.set_queueing(true, &mut on),
                2 => groups.set_queueing(false, &mut on),
                3 => drop(groups.choose_group(group, &mut on)),
                _ => drop(groups.reinstate_path(path, &mut on)),
            }
        });
        drop(messenger);
        say!(self, "paths: {events:?}");
        self.summary.reinstated +=
            events.iter().filter(|event| matches!(event, Event::PathReinstated { .. })).count()
                as u64;
        // A round of the checker lets held requests ask, too.
        if events.iter().any(Event::releases_held) || what == 7 {
            self.release();
        }
    }

    fn release(&mut self) {
        self.summary.held += held(&self.counters);
        self.queues.iter_mut().for_each(|queue| queue.mail.push_back(Mail::Release));
    }

    /// Joins and reinstates all paths.
    pub(super) fn mend(&mut self) {
        self.paths.iter().for_each(|path| sim(path).set_link(Link::Up));
        let Some(device) = self.devices.get(MULTIPATH).filter(|_| !self.paths.is_empty()) else {
            return;
        };
        let mended = device.messenger(0).ok().and_then(|messenger| {
            messenger.change(|groups, mut on| {
                (0..groups.num_paths()).filter(|path| groups.reinstate_path(*path, &mut on)).count()
            })
        });
        if mended.is_some_and(|mended| mended > 0) || held(&self.counters) > 0 {
            self.release();
        }
    }

    /// Whether this may be the answer to a request because one or all of its paths were lost.
    pub(super) fn may_lose_its_path(&self, flight: &InFlight, errno: i32) -> bool {
        let on_paths = flight.places.iter().any(|place| place.leaf == VOLUME);
        // A path that left the table with unflushed writes is flushed directly.
        let departed = flight.op == Op::Flush && [libc::ENOTCONN, libc::ETIMEDOUT].contains(&errno);
        !self.paths.is_empty()
            && (errno == libc::EIO && (on_paths || flight.op == Op::Flush) || departed)
    }
}
