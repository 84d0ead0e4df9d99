//! Writes a region map as a `set_region_mappings` message that makes the same map anywhere, with `R` where a
//! pattern repeats.
//!
//! Contract: the text comes in pieces, so memory does not grow with the map (one entry per path is kept,
//! and at least [`CYCLE_MAX`]). Each region is read once; under a writer the message is what was read, each
//! region at some moment. Pure; no panics.

use std::io::Write as _;
use std::sync::atomic::AtomicU64;

use blkswitch_core::switch::{Geometry, Map};

/// Longest cycle that is looked for, but for round robin over all paths, which is looked for always. Longer ones are
/// rare and looking costs a comparison per region and cycle.
const CYCLE_MAX: u64 = 64;
/// How many regions of a repetition are compared before one cycle is preferred to another.
const LOOK_AHEAD: u64 = 256;
/// Regions that must repeat for `R` to be shorter than to name them.
const REPEAT_MIN: u64 = 3;

/// A message that is being written.
#[derive(Debug)]
pub struct Compact {
    regions: u64,
    paths: u64,
    /// The next region to write.
    next: u64,
    /// The paths written last, region `r` at `r % history.len()`.
    history: Vec<u32>,
}

impl Compact {
    /// Nothing is written yet.
    pub fn new(geometry: &Geometry) -> Compact {
        let paths = u64::from(geometry.num_paths());
        let history = vec![0; paths.max(CYCLE_MAX) as usize];
        Compact { regions: geometry.nr_regions(), paths, next: 0, history }
    }

    /// Appends about `bytes` of the message to `out`; `false` when it is complete.
    pub fn write<S: AsRef<[AtomicU64]>>(&mut self, map: &Map<S>, bytes: usize, out: &mut Vec<u8>) -> bool {
        let end = out.len() + bytes;
        while self.next < self.regions && out.len() < end {
            if self.next == 0 {
                out.extend_from_slice(b"set_region_mappings 0:");
                self.name_next(map, out);
                continue;
            }
            match self.best_cycle(map) {
                Some(cycle) => self.repeat(map, cycle, out),
                None => {
                    out.extend_from_slice(b" :");
                    self.name_next(map, out);
                }
            }
        }
        if self.next < self.regions {
            return true;
        }
        out.push(b'\n');
        false
    }

    /// Writes the path of the next region.
    fn name_next<S: AsRef<[AtomicU64]>>(&mut self, map: &Map<S>, out: &mut Vec<u8>) {
        let path = map.path(self.next).unwrap_or(0);
        // Writing to a Vec cannot fail.
        let _ = write!(out, "{path:x}");
        self.remember(self.next, path);
        self.next += 1;
    }

    /// The cycle that repeats longest from here on, if one repeats long enough.
    fn best_cycle<S: AsRef<[AtomicU64]>>(&self, map: &Map<S>) -> Option<u64> {
        let short = 1..=CYCLE_MAX.min(self.next);
        let round_robin = (CYCLE_MAX < self.paths && self.paths <= self.next).then_some(self.paths);
        let (mut best, mut longest) = (None, REPEAT_MIN - 1);
        for cycle in short.chain(round_robin) {
            let repeats = self.repeats(map, cycle, LOOK_AHEAD);
            if repeats > longest {
                (best, longest) = (Some(cycle), repeats);
            }
            if repeats >= LOOK_AHEAD {
                break;
            }
        }
        best
    }

    /// How many regions from here on, at most `most`, repeat the `cycle` regions before.
    fn repeats<S: AsRef<[AtomicU64]>>(&self, map: &Map<S>, cycle: u64, most: u64) -> u64 {
        let end = self.next.saturating_add(most).min(self.regions);
        let mut expected = (self.next - cycle..self.next).cycle();
        let mut region = self.next;
        while region < end && map.path(region) == expected.next().map(|earlier| self.written(earlier)) {
            region += 1;
        }
        region - self.next
    }

    /// Writes a repetition as long as it goes.
    fn repeat<S: AsRef<[AtomicU64]>>(&mut self, map: &Map<S>, cycle: u64, out: &mut Vec<u8>) {
        let count = self.repeats(map, cycle, u64::MAX);
        // A writer may have changed the map since the cycle was chosen.
        if count == 0 {
            return;
        }
        let _ = write!(out, " R{cycle:x},{count:x}");
        let pattern: Vec<u32> = (self.next - cycle..self.next).map(|region| self.written(region)).collect();
        let kept = count.min(self.history.len() as u64);
        for region in self.next + count - kept..self.next + count {
            let path = pattern.get(((region - self.next) % cycle) as usize).copied().unwrap_or(0);
            self.remember(region, path);
        }
        self.next += count;
    }

    fn written(&self, region: u64) -> u32 {
        self.history.get((region % self.history.len() as u64) as usize).copied().unwrap_or(0)
    }

    fn remember(&mut self, region: u64, path: u32) {
        let length = self.history.len() as u64;
        if let Some(slot) = self.history.get_mut((region % length) as usize) {
            *slot = path;
        }
    }
}

#[cfg(test)]
mod tests {
    use blkswitch_core::switch::{Message, message::Command};

    use super::*;

    fn map(regions: u64, paths: u32) -> Map<Vec<AtomicU64>> {
        let geometry = Geometry::new(regions, paths, 1).unwrap();
        let storage = (0..geometry.nr_slots()).map(|_| AtomicU64::new(0)).collect();
        Map::new(geometry, storage).unwrap()
    }

    fn export(map: &Map<Vec<AtomicU64>>, piece: usize) -> String {
        let (mut out, mut compact) = (Vec::new(), Compact::new(map.geometry()));
        while compact.write(map, piece, &mut out) {}
        String::from_utf8(out).unwrap()
    }

    /// Exports, checks that the message makes the same map out of a very different one, and returns it.
    fn round_trip(original: &Map<Vec<AtomicU64>>, piece: usize) -> String {
        let geometry = original.geometry();
        let text = export(original, piece);
        let (word, arguments) = text.split_once(' ').unwrap();
        assert_eq!(blkswitch_core::switch::command(word.as_bytes()), Some(Command::SetRegionMappings));
        let copy = map(geometry.nr_regions(), geometry.num_paths());
        for region in 0..geometry.nr_regions() {
            copy.set(region, geometry.num_paths() - 1);
        }
        Message::new().apply_text(&copy, arguments.as_bytes(), true).unwrap();
        for region in 0..geometry.nr_regions() {
            assert_eq!(copy.path(region), original.path(region), "region {region}");
        }
        text
    }

    #[test]
    fn patterns_become_short_messages() {
        assert_eq!(round_trip(&map(1, 3), 10), "set_region_mappings 0:0\n");
        assert_eq!(round_trip(&map(16, 3), 10), "set_region_mappings 0:0 :1 :2 R3,d\n");
        let documented = map(16, 3);
        Message::new().apply_text(&documented, b"0:0 :1 :2 :0 :1 :2 :1", true).unwrap();
        assert_eq!(round_trip(&documented, 1000), "set_region_mappings 0:0 :1 :2 R3,3 :1 R6,5 R3,4\n");
        let uniform = map(1 << 20, 4);
        Message::new().apply_text(&uniform, b"0:3 R1,fffff", true).unwrap();
        assert_eq!(round_trip(&uniform, 5), "set_region_mappings 0:3 R1,fffff\n");
        assert!(round_trip(&map(5000, 300), 100).ends_with(" :12b R12c,125c\n"));
    }

    #[test]
    fn maps_without_a_pattern_come_through() {
        for (seed, paths) in [(1u64, 2), (2, 3), (3, 17), (4, 300)] {
            let random = map(4099, paths);
            let mut state = seed;
            for region in 0..4099 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // Stretches of one path and stretches of noise.
                let path =
                    if state >> 63 == 0 { (state >> 33) as u32 % paths } else { region as u32 / 500 % paths };
                random.set(region, path);
            }
            assert_eq!(round_trip(&random, 1), round_trip(&random, 1 << 20));
        }
    }
}
