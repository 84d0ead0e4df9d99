//! Plans that move regions, for a switch of a running device.
//!
//! The core decides which regions move ([`blkswitch_core::map::plan`]). Here a plan gets its map
//! and its message. A map of at most [`COPY_BYTES`] is copied under the message lock; the plan
//! changes a second copy, and the difference of the two is the message. So the message is short,
//! and shows one moment. A larger map is not copied, because that takes longer than most plans. Its
//! moves are noted in a list, as long as there are at most [`MOVES_MAX`].
//!
//! Contract: nothing is changed. Memory: two copies of the map, or the list of moves. Some plans
//! walk over the map several times, so a plan for a billion regions may take many seconds; the
//! caller limits how many are made at a time.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use blkswitch_core::map::diff::Diff;
use blkswitch_core::map::plan::{self, Move, PlanError, Planned, Share};
use blkswitch_core::map::search;
use blkswitch_core::switch::Map;
use blkswitch_io::Device;
use blkswitch_io::table::{RegionMap, region_storage};

use crate::compact::{Compact, Listing};
use crate::daemon::devices::switch::Switch;
use crate::daemon::failure::Failure;
use crate::daemon::tables::words::address;
use crate::protocol::{BalanceBy, Errno, MapPlan, PathShare, PlanMap};

/// Largest map in bytes that is always copied.
const COPY_BYTES: usize = 64 << 20;
/// Most moves in a list. With more, the map is copied, whatever its size.
const MOVES_MAX: usize = 1 << 20;
/// Most regions that are counted for an evacuation although nobody asks for it. It takes some 50
/// milliseconds.
const COUNTED_MAX: u64 = 1 << 25;

/// A plan, and what its message is made of.
pub(crate) struct Plan {
    /// The plan; its message is empty.
    pub(crate) summary: MapPlan,
    message: Message,
}

enum Message {
    Moves(Vec<Move>),
    /// The map before and after.
    Maps(Box<[RegionMap; 2]>),
}

impl Plan {
    /// Appends about `bytes` of the message to `out`. Returns `false` when it is complete.
    pub(crate) fn write(&self, compact: &mut Compact, bytes: usize, out: &mut Vec<u8>) -> bool {
        match &self.message {
            Message::Moves(moves) => compact.write(&Ranges(moves), bytes, out),
            Message::Maps(maps) => match Diff::new(&maps[0], &maps[1]) {
                Ok(diff) => compact.write(&diff, bytes, out),
                Err(_) => false,
            },
        }
    }
}

/// The list of a plan's moves as arguments of a message.
struct Ranges<'a>(&'a [Move]);

impl Listing for Ranges<'_> {
    fn list(
        &self,
        from: u64,
        _: &mut [u64],
        sink: &mut dyn FnMut(&[u8]) -> Result<(), ()>,
    ) -> Result<(), u64> {
        for (at, step) in (from..).zip(self.0.iter().skip(from as usize)) {
            let mut word = format!(" {:x}:{:x}", step.first, step.to);
            if step.count > 1 {
                word.push_str(&format!(" R1,{:x}", step.count - 1));
            }
            sink(word.as_bytes()).map_err(|()| at)?;
        }
        Ok(())
    }
}

/// Copies a map. Words that are 0 are not touched in the copy, so they take no memory.
pub(crate) fn copy_of(map: &RegionMap) -> Result<RegionMap, Failure> {
    let geometry = *map.geometry();
    let no_memory = || {
        let bytes = geometry.nr_slots().saturating_mul(size_of::<u64>());
        Failure::new(Errno::Enomem, format!("no memory for a copy of the map, {bytes} bytes"))
    };
    let storage = region_storage(&geometry).ok_or_else(no_memory)?;
    for (to, from) in storage.as_ref().iter().zip(map.storage().as_ref()) {
        let word = from.load(Relaxed);
        if word != 0 {
            to.store(word, Relaxed);
        }
    }
    Map::new(geometry, storage).map_err(|_| no_memory())
}

/// The plan has more moves than the list takes.
struct TooMany;

impl fmt::Display for TooMany {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the plan has more than {MOVES_MAX} moves")
    }
}

/// Makes a plan for a switch of `device`.
pub(crate) fn plan(device: &Device, switch: &Switch, wish: &PlanMap) -> Result<Plan, Failure> {
    let map = switch.map()?;
    let paths = map.geometry().num_paths() as usize;
    let mut made =
        Making { wish, shares: vec![Share::default(); paths], moved: vec![[0; 2]; paths] };
    let generation = device.generation_at_rest();
    if map.geometry().nr_slots() > COPY_BYTES / size_of::<u64>() && !wants_runs(wish) {
        let mut moves = Vec::new();
        let planned = made.run(map, |step| {
            if moves.len() == MOVES_MAX {
                return Err(TooMany);
            }
            moves.push(step);
            Ok(())
        })?;
        if let Some(planned) = planned {
            let summary = made.summary(switch, planned, generation, None)?;
            return Ok(Plan { summary, message: Message::Moves(moves) });
        }
    }
    let (before, generation) = {
        // Without a messenger, the device was removed or has another kind of table, and nobody
        // changes this map any more.
        let messenger = device.messenger(switch.start);
        let is_live = messenger.as_ref().is_ok_and(|one| Arc::ptr_eq(one.table(), &switch.table));
        (copy_of(map)?, is_live.then(|| device.generation()))
    };
    let after = copy_of(&before)?;
    let planned = {
        let mut writer =
            after.writer().ok_or_else(|| Failure::new(Errno::Eio, "the copy is in use"))?;
        made.run(&before, |step| {
            for region in step.first..step.first + step.count {
                writer.set(region, step.to);
            }
            Ok(())
        })?
    };
    let runs = wants_runs(wish).then(|| [&before, &after].map(runs));
    let summary = made.summary(switch, planned.unwrap_or_default(), generation, runs)?;
    Ok(Plan { summary, message: Message::Maps(Box::new([before, after])) })
}

/// Whether the number of runs is what the plan is about.
fn wants_runs(wish: &PlanMap) -> bool {
    matches!(wish, PlanMap::Compact(_))
}

fn runs(map: &RegionMap) -> u64 {
    let (mut runs, mut last) = (0, None);
    let counted = search::for_each(map, 0, u64::MAX, |_, path| {
        runs += u64::from(last.replace(path) != Some(path));
        Ok::<(), Infallible>(())
    });
    counted.map_or(0, |()| runs)
}

/// A plan that is being made.
struct Making<'a> {
    wish: &'a PlanMap,
    shares: Vec<Share>,
    /// How many regions each path gives and gets.
    moved: Vec<[u64; 2]>,
}

impl Making<'_> {
    /// Whether the regions of each path are counted.
    fn counts(&self, regions: u64) -> bool {
        match self.wish {
            PlanMap::Evacuate(wish) => wish.count || regions <= COUNTED_MAX,
            _ => true,
        }
    }

    /// Runs the core's plan. `None` if `sink` wants no more.
    fn run(
        &mut self,
        map: &RegionMap,
        mut sink: impl FnMut(Move) -> Result<(), TooMany>,
    ) -> Result<Option<Planned>, Failure> {
        let counts = self.counts(map.geometry().nr_regions());
        let (shares, moved) = (&mut self.shares, &mut self.moved);
        shares.fill(Share::default());
        moved.fill([0; 2]);
        let sink = |step: Move| {
            for (path, which) in [(step.from, 0), (step.to, 1)] {
                if let Some(moved) = moved.get_mut(path as usize) {
                    moved[which] += step.count;
                }
            }
            sink(step)
        };
        let planned = match self.wish {
            PlanMap::Evacuate(wish) => {
                if counts {
                    plan::count(map, shares);
                }
                plan::evacuate(map, wish.path, &wish.onto, shares, sink)
            }
            PlanMap::Balance(wish) => {
                let BalanceBy::Regions = wish.by;
                let same = vec![1; shares.len()];
                let weights = if wish.weights.is_empty() { &same } else { &wish.weights };
                plan::balance(map, weights, shares, sink)
            }
            PlanMap::Compact(wish) => {
                plan::compact(map, wish.max_moves.unwrap_or(u64::MAX), shares, sink)
            }
        };
        match planned {
            Ok(planned) => Ok(Some(planned)),
            Err(PlanError::Sink(TooMany)) => Ok(None),
            Err(error) => Err(Failure::new(Errno::Einval, error.to_string())),
        }
    }

    fn summary(
        self,
        switch: &Switch,
        planned: Planned,
        generation: Option<u64>,
        runs: Option<[u64; 2]>,
    ) -> Result<MapPlan, Failure> {
        let counts = self.counts(switch.map()?.geometry().nr_regions());
        let segment = switch.segment().map(|(segment, _)| segment);
        let address = |path: u32| {
            segment
                .map(|segment| address(&switch.table, segment, path as usize))
                .unwrap_or_default()
        };
        let shares =
            (0..).zip(self.shares.iter().zip(&self.moved)).map(|(path, (share, moved))| {
                let [gives, gets] = *moved;
                PathShare {
                    path,
                    address: address(path),
                    before: counts.then_some(share.before),
                    after: counts.then_some(share.after),
                    gets,
                    gives,
                }
            });
        Ok(MapPlan {
            regions: planned.regions,
            bytes: planned.sectors.saturating_mul(512),
            moves: planned.moves,
            generation,
            runs,
            shares: shares.collect(),
            message: String::new(),
        })
    }
}
