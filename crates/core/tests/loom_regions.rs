//! The region table while messages change it, in every order that loom finds:
//! `RUSTFLAGS="--cfg loom" cargo test --release -p blkswitch-core --test loom_regions`.
//! Empty without `--cfg loom`.
//!
//! The promises:
//! * A look-up returns the path that its region had before an argument, or the one after it,
//!   whatever happens to the other regions in the same word.
//! * A region never goes back to its old path.
//! * A thread that knows that a message was applied finds all of its changes.
//!
//! The table's contract allows one writer at a time. Here the tests' own lock stands in for the
//! message lock.
#![cfg(loom)]

use blkswitch_core::model::Model;
use blkswitch_core::switch::{Geometry, Map, Message};
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

type Table = Map<Box<[AtomicU64]>>;

/// How often loom interrupts a thread where it does not wait by itself.
const PREEMPTIONS: usize = 2;

fn check(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(run);
}

/// A table with regions of one sector, so that a sector has the number of its region.
fn table(paths: u32, regions: u64) -> Table {
    let geometry = Geometry::new(regions, paths, 1).unwrap();
    Map::new(geometry, (0..geometry.nr_slots()).map(|_| AtomicU64::new(0)).collect()).unwrap()
}

fn apply(table: &Table, text: &str) {
    Message::new().apply_text(&mut table.writer().unwrap(), text.as_bytes(), true).unwrap();
}

/// The paths of all regions after these messages, by the model.
fn paths(table: (u32, u64), messages: &[&str]) -> Vec<u32> {
    let mut model = Model::new(table.1, table.0, 1);
    messages.iter().for_each(|text| model.message(text.as_bytes()).unwrap());
    model.paths
}

/// Looks regions up one after the other, and checks the promises.
fn look(table: &Table, regions: &[u64], told: &AtomicBool, old: &[u32], new: &[u32]) {
    let told = told.load(Ordering::Acquire);
    let mut seen = vec![told; new.len()];
    for &region in regions {
        let (path, at) = (table.route(region).path, region as usize);
        assert!(
            [old[at], new[at]].contains(&path),
            "region {region} took path {path}, not one of its own"
        );
        assert!(path == new[at] || !seen[at], "region {region} went back to path {path}");
        seen[at] |= path != old[at];
    }
}

/// A queue looks at some regions while a message changes the table. Each list of regions has its
/// own run, because every further look-up multiplies the orders.
fn change_while_looking(
    (num_paths, regions): (u32, u64),
    before: &'static str,
    message: &'static str,
    looks: &[&'static [u64]],
) {
    let size = (num_paths, regions);
    for &looked_at in looks {
        let (old, new) = (paths(size, &[before]), paths(size, &[before, message]));
        check(move || {
            let shared = Arc::new((table(num_paths, regions), AtomicBool::new(false)));
            apply(&shared.0, before);
            let queue = {
                let (shared, old, new) = (shared.clone(), old.clone(), new.clone());
                thread::spawn(move || look(&shared.0, looked_at, &shared.1, &old, &new))
            };
            apply(&shared.0, message);
            shared.1.store(true, Ordering::Release);
            queue.join().unwrap();
            looked_at.iter().for_each(|&at| assert_eq!(shared.0.path(at), Some(new[at as usize])));
        });
    }
}

/// `<region>:<path>`, its short form, and one with a leading zero, which another parser reads.
#[test]
fn single_regions_beside_others_in_a_word() {
    change_while_looking(
        (3, 32),
        "0:2 R1,1f",
        "3:0 4:1 1f:1 05:0 :1",
        &[&[2, 3, 3], &[3, 4, 4], &[5, 31, 5], &[6, 7, 6]],
    );
    // Two entries of 32 bits make a word. The message changes nearly all of both.
    change_while_looking(
        (0x1_0001, 4),
        "0:ffff :10000",
        "0:10000 :0 2:ffff",
        &[&[0, 1, 0], &[1, 0, 1], &[2, 3, 2]],
    );
}

/// Arguments that the parser gathers into whole words.
#[test]
fn blocks_that_begin_and_end_within_a_word() {
    const BLOCKS: &str = "1a:0 :1 :2 :0 :0 :1 :1 :2 :2 :1 :0 :2 :1 :2 :0 :1 :2 ";
    change_while_looking(
        (3, 64),
        "0:1 R1,3f",
        BLOCKS,
        &[&[25, 27, 27], &[31, 32, 31], &[32, 31, 32], &[34, 43, 63]],
    );
}

/// `R` by entries, by whole words, and by the rest of the last word.
#[test]
fn repetitions_over_words() {
    change_while_looking(
        (2, 300),
        "0:1 R1,10",
        "3:0 R1,110",
        &[&[3, 4, 4], &[64, 130, 64], &[275, 277, 275]],
    );
    change_while_looking(
        (3, 110),
        "0:2",
        "5:0 :0 R3,5f",
        &[&[5, 7, 7], &[31, 32, 31], &[70, 102, 70], &[101, 104, 101]],
    );
}

/// A long `R`: it continues at a place where it need not wait for earlier stores.
#[test]
fn long_repetitions() {
    change_while_looking(
        (3, 600),
        "8:1",
        "1:2 R2,250",
        &[&[2, 40, 2], &[300, 592, 300], &[593, 595, 593]],
    );
}

/// Two messages come at once. The lock lets one go first, and neither undoes the other's changes of
/// the same word.
#[test]
fn no_message_undoes_another() {
    const SIZE: (u32, u64) = (3, 40);
    const MESSAGES: [&str; 2] = ["1:2 3:1", "2:1 5:0"];
    let (old, new) = (paths(SIZE, &[]), paths(SIZE, &MESSAGES));
    check(move || {
        let shared = Arc::new((table(SIZE.0, SIZE.1), AtomicBool::new(false), Mutex::new(())));
        let other = {
            let shared = shared.clone();
            thread::spawn(move || {
                let _lock = shared.2.lock().unwrap();
                apply(&shared.0, MESSAGES[1]);
            })
        };
        let queue = {
            let (shared, old, new) = (shared.clone(), old.clone(), new.clone());
            thread::spawn(move || look(&shared.0, &[1, 2], &shared.1, &old, &new))
        };
        let lock = shared.2.lock().unwrap();
        apply(&shared.0, MESSAGES[0]);
        drop(lock);
        other.join().unwrap();
        shared.1.store(true, Ordering::Release);
        queue.join().unwrap();
        (0..6).for_each(|region| assert_eq!(shared.0.path(region), Some(new[region as usize])));
    });
}

/// A reset to round robin: each region has its old or its new path, and words that were never
/// written stay as they are.
#[test]
fn reset_while_looking() {
    const SIZE: (u32, u64) = (3, 70);
    let (old, new) = (paths(SIZE, &["0:1 R1,45"]), paths(SIZE, &[]));
    check(move || {
        let shared = Arc::new((table(SIZE.0, SIZE.1), AtomicBool::new(false)));
        apply(&shared.0, "0:1 R1,45");
        let queue = {
            let (shared, old, new) = (shared.clone(), old.clone(), new.clone());
            thread::spawn(move || look(&shared.0, &[0, 2, 33, 0], &shared.1, &old, &new))
        };
        shared.0.writer().unwrap().reset();
        shared.1.store(true, Ordering::Release);
        queue.join().unwrap();
    });
}

/// A reader that lists the map meanwhile sees different moments, but it sees every region once,
/// with a path that the region had.
#[test]
fn runs_cover_the_map_while_it_changes() {
    // Four entries make a word.
    const SIZE: (u32, u64) = (0x101, 6);
    const MESSAGE: &str = "2:5 4:100";
    let (old, new) = (paths(SIZE, &["0:0 R1,5"]), paths(SIZE, &["0:0 R1,5", MESSAGE]));
    check(move || {
        let map = Arc::new(table(SIZE.0, SIZE.1));
        apply(&map, "0:0 R1,5");
        let reader = {
            let (map, old, new) = (map.clone(), old.clone(), new.clone());
            thread::spawn(move || {
                let mut next = 0;
                for run in map.runs(0, SIZE.1) {
                    assert_eq!(run.start, next, "a region is left out, or there twice");
                    let at = run.start as usize;
                    assert!([old[at], new[at]].contains(&run.path), "{run:?}");
                    next += run.count;
                }
                assert_eq!(next, SIZE.1);
            })
        };
        apply(&map, MESSAGE);
        reader.join().unwrap();
    });
}
