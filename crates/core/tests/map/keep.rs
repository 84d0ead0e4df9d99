//! Tests of maps that are carried over to another table.

use blkswitch_core::map::keep::{KeepError, Kept, carry_over, lost, match_paths, translate};
use proptest::prelude::*;

use crate::{map_of, num_paths, paths, paths_of};

/// The slow model: a path that keeps its place keeps its number; any other gets the first free
/// place with its key.
fn matched(old: &[u8], new: &[u8]) -> Vec<Option<u32>> {
    let stays = |number: usize| old.get(number) == new.get(number);
    let mut free: Vec<bool> = (0..new.len()).map(|number| !stays(number)).collect();
    (0..old.len())
        .map(|number| {
            if number < new.len() && stays(number) {
                return Some(number as u32);
            }
            let found = (0..new.len()).find(|&other| free[other] && new[other] == old[number])?;
            free[found] = false;
            Some(found as u32)
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn paths_are_found_as_the_model_finds_them(
        old in prop::collection::vec(0u8..12, 1..14), new in prop::collection::vec(0u8..12, 1..14),
        alike in any::<bool>(),
    ) {
        let new = if alike { [&old[..old.len() / 2], &new[..]].concat() } else { new };
        let (mut numbers, mut order) = (vec![None; old.len()], vec![9; new.len()]);
        let kept = match_paths(&old, &new, &mut numbers, &mut order);
        prop_assert_eq!(&numbers, &matched(&old, &new));
        let gone = numbers.iter().filter(|number| number.is_none()).count() as u32;
        let moved = (0u32..).zip(&numbers)
            .filter(|(at, number)| number.is_some_and(|number| number != *at)).count() as u32;
        prop_assert_eq!(kept, match (moved, gone) {
            (0, 0) if old.len() == new.len() => Kept::Same,
            (0, 0) => Kept::Grown,
            _ => Kept::Changed { moved, gone },
        });
    }

    #[test]
    fn a_map_is_carried_over_region_by_region(
        (n, all) in num_paths().prop_flat_map(|n| (Just(n), paths(n))),
        more_paths in 0u32..300, more_regions in 0usize..80, shift in 0u32..5, gone in any::<u32>(),
    ) {
        let old = map_of(&all, n, 3);
        let new_paths = n + more_paths;
        let mut numbers: Vec<Option<u32>> =
            (0..n).map(|path| Some((path + shift) % new_paths)).collect();
        let round_robin =
            |regions: usize| (0..regions as u32).map(|r| r % new_paths).collect::<Vec<u32>>();
        let new = map_of(&round_robin(all.len() + more_regions), new_paths, 3);
        carry_over(&old, &mut new.writer().unwrap(), &numbers, || true).unwrap();
        let mut expected: Vec<u32> = all.iter().map(|path| (path + shift) % new_paths).collect();
        expected.extend(&round_robin(all.len() + more_regions)[all.len()..]);
        prop_assert_eq!(paths_of(&new), expected);

        // Without one of the paths, exactly its regions are lost.
        let gone = gone % n;
        numbers[gone as usize] = None;
        let found: Vec<u64> =
            lost(&old, &numbers).flat_map(|run| run.start..run.start + run.count).collect();
        let expected: Vec<u64> =
            (0u64..).zip(&all).filter(|(_, path)| **path == gone).map(|(r, _)| r).collect();
        prop_assert_eq!(&found, &expected);
        let carried = carry_over(&old, &mut new.writer().unwrap(), &numbers, || true);
        match expected.first() {
            Some(&region) => prop_assert_eq!(carried, Err(KeepError::Lost { region, path: gone })),
            None => prop_assert_eq!(carried, Ok(())),
        }
    }
}

#[test]
fn several_paths_may_have_one_key() {
    let (mut numbers, mut order) = ([None; 3], [0; 3]);
    let kept = match_paths(&["x", "a", "a"], &["a", "y", "a"], &mut numbers, &mut order);
    assert_eq!((kept, numbers), (Kept::Changed { moved: 1, gone: 1 }, [None, Some(0), Some(2)]));
    assert_eq!(
        (translate(&numbers, 1), translate(&numbers, 0), translate(&numbers, 9)),
        (Some(0), None, None)
    );
}

#[test]
fn sizes_must_fit() {
    let all = [Some(0), Some(1)];
    let old = map_of(&[0; 10], 2, 4);
    let fewer = map_of(&[0; 9], 2, 4);
    let error = carry_over(&old, &mut fewer.writer().unwrap(), &all, || true).unwrap_err();
    assert_eq!(error, KeepError::FewerRegions { old: 10, new: 9 });
    let other = map_of(&[0; 10], 2, 8);
    let error = carry_over(&old, &mut other.writer().unwrap(), &all, || true).unwrap_err();
    assert_eq!(error, KeepError::RegionSize { old: 4, new: 8 });
    assert_eq!(
        error.to_string(),
        "the new table has regions of 8 sectors and the old one of 4: a map is kept only with the \
         same region size"
    );
}

#[test]
fn it_can_be_ended_between_turns() {
    let paths = vec![1; (1 << 20) + 1];
    let (old, new) = (map_of(&paths, 2, 1), map_of(&paths, 3, 1));
    let ended = carry_over(&old, &mut new.writer().unwrap(), &[Some(0), Some(2)], || false);
    assert_eq!(ended, Err(KeepError::Ended));
    assert_eq!((new.path((1 << 20) - 1), new.path(1 << 20)), (Some(2), Some(1)));
}
