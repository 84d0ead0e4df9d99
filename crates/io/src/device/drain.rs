//! The barrier behind a change of a map: waits until no request is under way that the old map
//! routed.
//!
//! The order goes to the queues after the stores, so a queue that has read it routes by the new
//! map. It then answers when what it had routed before, through a changed region, has ended. The
//! device is not suspended, and requests to other regions do not notice.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::host::Order;
use super::table::{Segment, Target};
use super::{Device, DeviceError, Interrupt};
use crate::sys::latch::{Latch, Waited};

/// Most ranges of a [`Changed`].
pub const MAX_RANGES: usize = 256;
/// Time of one wait of a drain without a limit.
const NO_LIMIT: Duration = Duration::from_secs(3600);

/// The sectors of a device whose path a message may have changed, as sorted ranges that do not
/// touch. More than [`MAX_RANGES`] become one that contains them all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed(Vec<Range<u64>>);

impl Changed {
    /// Nothing has changed.
    pub fn new() -> Changed {
        Changed::default()
    }

    /// One range of sectors has changed.
    pub fn of(range: Range<u64>) -> Changed {
        let mut changed = Changed::default();
        changed.add(range);
        changed
    }

    /// Adds a range of sectors.
    pub fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        // Those that overlap the range or touch it become one with it.
        let first = self.0.partition_point(|other| other.end < range.start);
        let end = self.0.partition_point(|other| other.start <= range.end);
        let joined = match self.0.get(first..end) {
            Some([all @ .., last]) => {
                let start = all.first().unwrap_or(last).start.min(range.start);
                start..last.end.max(range.end)
            }
            _ => range,
        };
        self.0.splice(first..end, [joined]);
        if let (true, [first, .., last]) = (self.0.len() > MAX_RANGES, &*self.0) {
            let all = first.start..last.end;
            self.0.clear();
            self.0.push(all);
        }
    }

    /// Adds regions of a switch segment, numbered as in its map.
    pub fn add_regions(&mut self, segment: &Segment, regions: Range<u64>) {
        let Target::Switch { map, .. } = &segment.target else { return };
        let geometry = map.geometry();
        let last = regions.end.min(geometry.nr_regions()).checked_sub(1);
        let extent = |region| geometry.region_extent(region);
        if let (Some((start, _)), Some((end, len))) = (extent(regions.start), last.and_then(extent))
        {
            self.add(segment.start + start..segment.start + end + len);
        }
    }

    /// The ranges, sorted.
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.0
    }

    /// Whether a sector of `range` may have changed.
    pub(crate) fn touches(&self, range: Range<u64>) -> bool {
        let first = self.0.partition_point(|other| other.end <= range.start);
        self.0.get(first).is_some_and(|other| other.start < range.end)
    }
}

impl Device {
    /// Waits until no request is under way any more that the device has routed through a changed
    /// sector before this call. Call it after the change of the map, without the message lock.
    ///
    /// # Errors
    /// `at_most` is over, `interrupt` has ended the wait, or the pool is stopping. The map stays
    /// changed, and nothing is left of the wait.
    pub fn drain(
        &self,
        changed: Changed,
        at_most: Option<Duration>,
        interrupt: &Interrupt,
    ) -> Result<(), DeviceError> {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        // A time beyond all clocks is none.
        let until = at_most.and_then(|time| Instant::now().checked_add(time));
        let (latch, changed) = (Latch::new(self.host.len()), Arc::new(changed));
        interrupt.waits_for(&latch);
        self.host.send_all(|_| Order::Drain {
            device: self.id,
            number,
            changed: changed.clone(),
            ack: latch.ack(),
        });
        let error = loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            match latch.wait_for(left.unwrap_or(NO_LIMIT)) {
                Waited::Done => return Ok(()),
                Waited::Gone => return Err(DeviceError::Stopping),
                Waited::Cancelled => break DeviceError::GivenUp(self.name()),
                Waited::NotYet if until.is_some() => break DeviceError::NotDrained(self.name()),
                Waited::NotYet => {}
            }
        };
        self.host.send_all(|_| Order::EndDrain { number });
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_sorted_and_joined() {
        let mut changed = Changed::new();
        for range in [40..50, 0..10, 20..30, 5..5, 9..12, 50..60, 30..31] {
            changed.add(range);
        }
        assert_eq!(changed.ranges(), [0..12, 20..31, 40..60]);
        changed.add(11..45);
        assert_eq!(changed, Changed::of(0..60));
        changed.add(70..71);
        let touched = [0..1, 59..60, 59..100, 60..70, 60..71, 71..72].map(|at| changed.touches(at));
        assert_eq!(touched, [true, true, true, false, true, false]);
    }

    /// Whatever the order in which ranges are added, exactly their sectors are touched. Beyond the
    /// bound, all in between are as well.
    #[test]
    fn a_bounded_list_forgets_no_sector() {
        const SECTORS: u64 = 4096;
        for (seed, count) in [(1, 10), (2, 100), (3, 200), (4, 2000)] {
            let mut random = crate::engine::sim::Random::new(seed);
            let (mut changed, mut is_changed) = (Changed::new(), vec![false; SECTORS as usize]);
            for _ in 0..count {
                let start = random.below(SECTORS - 4);
                let range = start..start + random.below(4);
                is_changed[range.start as usize..range.end as usize].fill(true);
                changed.add(range);
            }
            let is_exact = count <= MAX_RANGES;
            assert!(changed.ranges().len() <= MAX_RANGES);
            assert!(changed.ranges().windows(2).all(|pair| pair[0].end < pair[1].start));
            for (sector, &was) in (0..SECTORS).zip(&is_changed) {
                let touched = changed.touches(sector..sector + 1);
                assert!(touched == was || (touched && !is_exact), "seed {seed}, sector {sector}");
            }
        }
        let mut many = Changed::new();
        (0..=MAX_RANGES as u64).rev().for_each(|nr| many.add(nr * 10..nr * 10 + 1));
        assert_eq!(many, Changed::of(0..MAX_RANGES as u64 * 10 + 1));
    }
}
