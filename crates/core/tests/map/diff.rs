//! Tests of the differences between two maps.

use blkswitch_core::map::diff::{Change, Diff, DiffError};
use blkswitch_core::map::search;
use proptest::prelude::*;

use crate::{apply, map_of, num_paths, paths, paths_of, two};

/// The slow model: compares region by region.
fn changes(before: &[u32], after: &[u32], range: std::ops::Range<usize>) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    for (region, (&from, &to)) in before.iter().zip(after).enumerate() {
        if from == to || !range.contains(&region) {
            continue;
        }
        match changes.last_mut() {
            Some(last)
                if last.first + last.count == region as u64
                    && (last.from, last.to) == (from, to) =>
            {
                last.count += 1;
            }
            _ => changes.push(Change { first: region as u64, count: 1, from, to }),
        }
    }
    changes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn changes_are_the_model_s(
        (n, (before, after)) in num_paths().prop_flat_map(|n| (Just(n), two(n))),
        more in 0u32..3, from in 0usize..200, to in 0usize..500,
    ) {
        let old = map_of(&before, n, 2);
        // The comparison skips equal words only if both maps have the same number of paths.
        let new = map_of(&after, n + more, 2);
        let diff = Diff::new(&old, &new).unwrap();
        for (from, to) in [(0, usize::MAX), (from, to)] {
            let found: Vec<Change> = diff.changes(from as u64, to as u64).collect();
            prop_assert_eq!(found, changes(&before, &after, from..to));
        }
    }

    #[test]
    fn a_difference_as_a_message_turns_one_map_into_the_other(
        (n, (before, after)) in num_paths().prop_flat_map(|n| (Just(n), two(n))),
        places in prop::sample::select(vec![0usize, 1, 64, 512]),
        from in 0u64..100, to in prop_oneof![Just(u64::MAX), 0u64..300],
    ) {
        let (old, new) = (map_of(&before, n, 1), map_of(&after, n, 1));
        let mut text = String::new();
        let mut list = vec![7; places];
        Diff::new(&old, &new).unwrap().write(from, to, &mut list, |argument| {
            text.push_str(std::str::from_utf8(argument).unwrap());
            Ok::<(), ()>(())
        }).unwrap();
        apply(&old, &text);
        let expected: Vec<u32> = (0u64..).zip(before.iter().zip(&after))
            .map(|(region, (b, a))| if (from..to).contains(&region) { *a } else { *b }).collect();
        prop_assert_eq!(paths_of(&old), expected);
        prop_assert_eq!(
            text.is_empty(),
            changes(&before, &after, from as usize..to as usize).is_empty(),
        );
    }

    #[test]
    fn regions_of_a_path_are_the_model_s(
        (n, all) in num_paths().prop_flat_map(|n| (Just(n), paths(n))),
        from in 0u64..100, to in prop_oneof![Just(u64::MAX), 0u64..400], wanted in any::<u32>(),
    ) {
        let map = map_of(&all, n, 1);
        let wanted =
            if wanted % 3 == 0 { all[wanted as usize % all.len()] } else { wanted % (n + 1) };
        let found: Vec<u64> = search::regions_of(&map, wanted, from, to)
            .inspect(|run| assert!(run.count > 0 && run.path == wanted))
            .flat_map(|run| run.start..run.start + run.count).collect();
        let expected: Vec<u64> = (0u64..).zip(&all)
            .filter(|(region, path)| (from..to).contains(region) && **path == wanted)
            .map(|(region, _)| region).collect();
        prop_assert_eq!(found, expected);
        let mut walked = Vec::new();
        search::for_each(&map, from, to, |region, path| {
            walked.push((region, path));
            Ok::<(), ()>(())
        }).unwrap();
        let expected: Vec<(u64, u32)> = (0u64..).zip(all.iter().copied())
            .filter(|(region, _)| (from..to).contains(region)).collect();
        prop_assert_eq!(walked, expected);
        let mut counts = vec![0; n as usize];
        search::count(&map, &mut counts);
        for (path, count) in (0u32..).zip(counts) {
            prop_assert_eq!(count, all.iter().filter(|other| **other == path).count() as u64);
        }
    }
}

#[test]
fn runs_of_a_path_are_joined_across_words() {
    let map = map_of(&[1; 300], 3, 1);
    let runs: Vec<(u64, u64)> =
        search::regions_of(&map, 1, 7, 290).map(|run| (run.start, run.count)).collect();
    assert_eq!(runs, [(7, 283)]);
}

#[test]
fn maps_of_other_sizes_cannot_be_compared() {
    let (map, other) = (map_of(&[0; 8], 2, 1), map_of(&[0; 9], 2, 1));
    let error = Diff::new(&map, &other).unwrap_err();
    assert_eq!(error, DiffError::Regions { before: 8, after: 9 });
    assert_eq!(
        error.to_string(),
        "the maps have 8 and 9 regions: only maps of one length can be compared"
    );
    let error = Diff::new(&map, &map_of(&[0; 8], 2, 4)).unwrap_err();
    assert_eq!(error, DiffError::RegionSize { before: 1, after: 4 });
}

/// A few changes in a large map make a short message.
#[test]
fn a_small_difference_is_a_short_message() {
    let before = map_of(&vec![0; 100_000], 5, 1);
    let after = map_of(&vec![0; 100_000], 5, 1);
    apply(&after, "1000:3 :3 :3 R1,ff 9000:2");
    let mut text = String::new();
    Diff::new(&before, &after)
        .unwrap()
        .write(0, u64::MAX, &mut [0; 64], |argument| {
            text.push_str(std::str::from_utf8(argument).unwrap());
            Ok::<(), ()>(())
        })
        .unwrap();
    assert_eq!(text, "1000:3 R1,101 9000:2");
}
