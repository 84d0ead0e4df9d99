//! Tests of plans: shares and moves, against slow models.

use blkswitch_core::map::plan::{
    Move, PlanError, Planned, Share, balance, balance_heat, compact, count, evacuate,
};
use proptest::prelude::*;

use crate::{BoxedMap, map_of, paths};

/// Runs a plan, applies its moves, and checks the size it reports. Returns the paths afterwards.
fn carry_out(
    map: &BoxedMap,
    before: &[u32],
    plan: impl FnOnce(&mut dyn FnMut(Move) -> Result<(), ()>) -> Result<Planned, PlanError<()>>,
) -> (Vec<u32>, Planned) {
    let mut after = before.to_vec();
    let mut regions = vec![false; before.len()];
    let mut moves = 0;
    let planned = plan(&mut |step| {
        moves += 1;
        assert!(step.count > 0 && step.from != step.to, "{step:?}");
        for region in step.first..step.first + step.count {
            let region = region as usize;
            assert_eq!(before[region], step.from, "{step:?}");
            assert!(!regions[region], "region {region} moves twice");
            regions[region] = true;
            after[region] = step.to;
        }
        Ok(())
    })
    .unwrap();
    let size = u64::from(map.geometry().region_size());
    let changed = before.iter().zip(&after).filter(|(a, b)| a != b).count() as u64;
    assert_eq!((planned.regions, planned.moves), (changed, moves));
    assert_eq!(planned.sectors, changed * size);
    (after, planned)
}

fn counts(paths: &[u32], num_paths: u32) -> Vec<u64> {
    let mut counts = vec![0; num_paths as usize];
    paths.iter().for_each(|&path| counts[path as usize] += 1);
    counts
}

fn runs(paths: &[u32]) -> usize {
    1 + paths.windows(2).filter(|pair| pair[0] != pair[1]).count()
}

fn case() -> impl Strategy<Value = (u32, Vec<u32>, Vec<u32>)> {
    let weight = prop_oneof![2 => Just(1u32), 1 => Just(0), 2 => 0u32..10, 1 => any::<u32>()];
    let num_paths = prop_oneof![6 => 1u32..20, 1 => prop::sample::select(vec![31, 32, 256, 257])];
    num_paths.prop_flat_map(move |n| {
        (Just(n), paths(n), prop::collection::vec(weight.clone(), n as usize))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn a_balanced_map_has_ideal_shares_and_no_needless_move((n, before, mut weights) in case()) {
        if weights.iter().all(|weight| *weight == 0) {
            weights[0] = 1;
        }
        let map = map_of(&before, n, 2);
        let mut shares = vec![Share::default(); n as usize];
        let (after, planned) =
            carry_out(&map, &before, |sink| balance(&map, &weights, &mut shares, sink));
        let (old, new) = (counts(&before, n), counts(&after, n));
        let total: u128 = weights.iter().map(|&weight| u128::from(weight)).sum();
        let mut room = 0;
        let mut surplus = 0;
        for path in 0..n as usize {
            prop_assert_eq!((shares[path].before, shares[path].after), (old[path], new[path]));
            let product = before.len() as u128 * u128::from(weights[path]);
            let (low, high) = ((product / total) as u64, product.div_ceil(total) as u64);
            prop_assert!(new[path] >= low && new[path] <= high, "path {path}: {new:?}, {weights:?}");
            surplus += old[path].saturating_sub(low);
            room += u64::from(high > low && old[path] > low);
        }
        // As many paths as possible that are above their rounded-down ideal keep one region more.
        let extra = before.len() as u64
            - weights.iter().map(|&w| (before.len() as u128 * u128::from(w) / total) as u64)
            .sum::<u64>();
        prop_assert_eq!(planned.regions, surplus - extra.min(room));
    }

    #[test]
    fn an_evacuated_path_has_no_region_and_the_others_are_level(
        (n, before, _) in case(),
        path in any::<u32>(),
        chosen in prop::collection::vec(any::<u32>(), 0..4),
        counted in any::<bool>(),
    ) {
        prop_assume!(n > 1);
        let path = path % n;
        let onto: Vec<u32> =
            chosen.iter().map(|other| other % n).filter(|other| *other != path).collect();
        let map = map_of(&before, n, 2);
        let mut shares = vec![Share::default(); n as usize];
        if counted {
            count(&map, &mut shares);
        }
        let (after, planned) =
            carry_out(&map, &before, |sink| evacuate(&map, path, &onto, &mut shares, sink));
        let (old, new) = (counts(&before, n), counts(&after, n));
        prop_assert_eq!(new[path as usize], 0);
        prop_assert_eq!(planned.regions, old[path as usize]);
        let takers: Vec<u32> =
            (0..n)
            .filter(|other| *other != path && (onto.is_empty() || onto.contains(other)))
            .collect();
        for other in (0..n).filter(|other| *other != path && !takers.contains(other)) {
            prop_assert_eq!(new[other as usize], old[other as usize]);
        }
        if counted {
            for &taker in &takers {
                prop_assert_eq!(shares[taker as usize].after, new[taker as usize]);
                // A path that received a region has at most one more than any other candidate.
                if new[taker as usize] > old[taker as usize] {
                    let least = takers.iter().map(|other| new[*other as usize]).min().unwrap();
                    prop_assert!(new[taker as usize] <= least + 1, "{new:?} of {old:?}");
                }
            }
        } else {
            let given: Vec<u64> =
                takers.iter().map(|taker| new[*taker as usize] - old[*taker as usize]).collect();
            prop_assert!(given.iter().max().unwrap() - given.iter().min().unwrap() <= 1, "{given:?}");
        }
    }

    #[test]
    fn heat_ends_within_a_region_of_the_ideal(
        (n, before, mut weights) in case(), seed in any::<u64>(), kind in 0u32..4,
    ) {
        if weights.iter().all(|weight| *weight == 0) {
            weights[0] = 1;
        }
        let heat = |region: u64| -> u32 {
            let random = (seed ^ region).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            match kind {
                0 => 1,
                1 => (random >> 60) as u32,
                2 => (random >> 32) as u32 >> (random % 32),
                _ => if random % 50 == 0 { 100_000 } else { 0 },
            }
        };
        let map = map_of(&before, n, 2);
        let mut shares = vec![Share::default(); n as usize];
        let (after, _) =
            carry_out(&map, &before, |sink| balance_heat(&map, &weights, heat, &mut shares, sink));
        let warmth = |paths: &[u32]| {
            let mut warmth = vec![0u64; n as usize];
            (0u64..).zip(paths)
            .for_each(|(region, &path)| warmth[path as usize] += u64::from(heat(region)));
            warmth
        };
        let (old, new) = (warmth(&before), warmth(&after));
        let warmest = (0..before.len() as u64).map(heat).max().unwrap();
        let all: u128 = old.iter().map(|&heat| u128::from(heat)).sum();
        let total: u128 = weights.iter().map(|&weight| u128::from(weight)).sum();
        let (mut above, mut lack) = (0u64, 0u64);
        for path in 0..n as usize {
            prop_assert_eq!((shares[path].before, shares[path].after), (old[path], new[path]));
            let ideal = (all * u128::from(weights[path])).div_ceil(total) as u64;
            prop_assert!(
                new[path] < ideal + u64::from(warmest).max(1), "path {path}: {new:?} of {old:?}, {weights:?}"
            );
            // A plan rounds an ideal share down or up.
            let low = (all * u128::from(weights[path]) / total) as u64;
            above += u64::from(new[path] > low);
            lack += low.saturating_sub(new[path]);
        }
        prop_assert!(lack <= above * u64::from(warmest), "{new:?}");
    }

    #[test]
    fn a_compact_map_has_the_same_shares_and_fewer_runs(
        (n, before, _) in case(), max in prop_oneof![Just(u64::MAX), 0u64..200],
    ) {
        let map = map_of(&before, n, 2);
        let mut shares = vec![Share::default(); n as usize];
        let (after, planned) =
            carry_out(&map, &before, |sink| compact(&map, max, &mut shares, sink));
        prop_assert_eq!(counts(&after, n), counts(&before, n));
        prop_assert!(planned.regions <= max);
        if planned.regions == 0 {
            prop_assert_eq!(&after, &before);
        } else {
            prop_assert!(runs(&after) < runs(&before));
        }
        if max == u64::MAX {
            let paths = counts(&before, n).iter().filter(|count| **count > 0).count();
            prop_assert_eq!(runs(&after), paths);
        }
        for (share, count) in shares.iter().zip(counts(&after, n)) {
            prop_assert_eq!((share.before, share.after), (count, count));
        }
    }
}

/// A path gives regions that are spread evenly over all of its regions.
#[test]
fn a_balanced_map_is_spread_evenly() {
    let before = vec![0; 1000];
    let map = map_of(&before, 2, 1);
    let mut shares = [Share::default(); 2];
    let (after, _) = carry_out(&map, &before, |sink| balance(&map, &[3, 1], &mut shares, sink));
    for hundred in after.chunks(100) {
        assert_eq!(hundred.iter().filter(|path| **path == 1).count(), 25);
    }
}

/// If few moves are allowed, the plan uses smaller windows.
#[test]
fn a_limit_of_moves_makes_smaller_windows() {
    let before: Vec<u32> = (0..4096).map(|region| region % 2).collect();
    let map = map_of(&before, 2, 1);
    let mut shares = [Share::default(); 2];
    let (after, planned) = carry_out(&map, &before, |sink| compact(&map, 1000, &mut shares, sink));
    assert!(planned.regions > 500 && planned.regions <= 1000, "{planned:?}");
    assert!(runs(&after) < 2200, "{}", runs(&after));
}

#[test]
fn bad_input_is_refused() {
    let map = map_of(&[0, 1, 2], 3, 1);
    let sink = |_| Ok::<(), ()>(());
    let mut three = [Share::default(); 3];
    assert_eq!(
        balance(&map, &[1, 1, 1], &mut three[..2], sink),
        Err(PlanError::Shares { needed: 3, found: 2 })
    );
    assert_eq!(
        balance(&map, &[1, 1], &mut three, sink),
        Err(PlanError::Weights { needed: 3, found: 2 })
    );
    assert_eq!(balance(&map, &[0; 3], &mut three, sink), Err(PlanError::NoWeight));
    assert_eq!(
        evacuate(&map, 3, &[], &mut three, sink),
        Err(PlanError::Path { path: 3, paths: 3 })
    );
    assert_eq!(evacuate(&map, 1, &[0, 1], &mut three, sink), Err(PlanError::Onto { path: 1 }));
    let one = map_of(&[0, 0], 1, 1);
    let nowhere = evacuate(&one, 0, &[], &mut three[..1], sink);
    assert_eq!(nowhere, Err(PlanError::Nowhere));
    assert_eq!(balance(&map, &[0, 0, 1], &mut three, |_| Err(7)), Err(PlanError::Sink(7)));
}

/// The last region of a map may be short: a plan counts its sectors.
#[test]
fn sectors_of_a_short_last_region_count() {
    use blkswitch_core::switch::{Geometry, Map};
    let geometry = Geometry::new(25, 2, 10).unwrap();
    let map = Map::new(geometry, vec![core::sync::atomic::AtomicU64::new(0)]).unwrap();
    let mut shares = [Share::default(); 2];
    count(&map, &mut shares);
    let planned = evacuate(&map, 0, &[], &mut shares, |_| Ok::<(), ()>(())).unwrap();
    assert_eq!((planned.regions, planned.sectors), (2, 15));
}
