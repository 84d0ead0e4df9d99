//! Long messages in turns: the map and the list do not depend on how often others may run. A
//! message may also end between two turns.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use blkswitch_core::switch::{Geometry, Map, Message, compact};

/// Enough regions for two and a half turns.
const REGIONS: u64 = 5 << 19;

fn map(paths: u32) -> Map<Vec<AtomicU64>> {
    let geometry = Geometry::new(REGIONS * 8, paths, 8).unwrap();
    let slots = (0..geometry.nr_slots()).map(|_| AtomicU64::new(0)).collect();
    Map::new(geometry, slots).unwrap()
}

fn words(map: &Map<Vec<AtomicU64>>) -> Vec<u64> {
    map.storage().iter().map(|word| word.load(Ordering::Relaxed)).collect()
}

#[test]
fn a_repeat_in_turns_is_the_same_repeat() {
    for paths in [2, 3, 300] {
        for cycle in [1u64, 3, 17, 1000, 70_001] {
            let (whole, turns) = (map(paths), map(paths));
            let before = format!("0:1 :0 {:x}:1", cycle - 1);
            let repeat = format!("R{cycle:x},{:x}", REGIONS - cycle);
            let calls = Cell::new(0);
            let go_on = || {
                calls.set(calls.get() + 1);
                true
            };
            let text = format!("{before} {repeat}");
            Message::new().apply_text(&mut whole.writer().unwrap(), text.as_bytes(), true).unwrap();
            let mut message = Message::new();
            for word in text.split(' ') {
                message
                    .apply_word_in_turns(&mut turns.writer().unwrap(), word.as_bytes(), &go_on)
                    .unwrap();
            }
            assert_eq!((message.index(), message.arguments()), (REGIONS - 1, 4));
            assert!(words(&whole) == words(&turns), "{paths} paths, cycle {cycle}");
            assert!(calls.get() >= 2, "{} calls", calls.get());
            let split = format!(" {}\0{repeat}", before.replace(' ', "\0"));
            Message::new()
                .apply_split_in_turns(&mut turns.writer().unwrap(), split.as_bytes(), &go_on)
                .unwrap();
            assert!(words(&whole) == words(&turns));
        }
    }
}

#[test]
fn what_is_left_of_a_repeat_that_is_given_up_stays() {
    let map = map(2);
    let text = format!("R1,{:x}", REGIONS - 1);
    let mut message = Message::new();
    message.apply_word(&mut map.writer().unwrap(), b"0:1").unwrap();
    message.apply_word_in_turns(&mut map.writer().unwrap(), text.as_bytes(), &|| false).unwrap();
    assert_eq!((map.path(0), map.path(1 << 20)), (Some(1), Some(1)));
    // The regions that were not reached are still in round robin.
    assert_eq!((map.path(REGIONS - 2), map.path(REGIONS - 1)), (Some(0), Some(1)));
}

#[test]
fn a_list_in_turns_is_the_same_list() {
    let map = map(3);
    let text = format!("0:2 R1,{:x}", REGIONS - 9);
    Message::new().apply_text(&mut map.writer().unwrap(), text.as_bytes(), true).unwrap();
    let list = |go_on: &dyn Fn() -> bool| {
        let (mut list, mut places) = (String::new(), [0; 128]);
        let sink = |argument: &[u8]| {
            list.push_str(std::str::from_utf8(argument).unwrap());
            Ok::<(), ()>(())
        };
        compact::write_in_turns(&map, 0, u64::MAX, &mut places, sink, &go_on).unwrap();
        list
    };
    let calls = Cell::new(0);
    let whole = list(&|| true);
    let counted = list(&|| {
        calls.set(calls.get() + 1);
        true
    });
    assert_eq!(whole, counted);
    // A run goes on across the end of a turn, so the list stays short.
    assert!(whole.split(' ').count() <= 8, "{whole}");
    assert!(calls.get() >= 2, "{} calls", calls.get());
    // A list whose comparisons end after one turn is longer, but makes the same map.
    let again = self::map(3);
    Message::new()
        .apply_text(&mut again.writer().unwrap(), list(&|| false).as_bytes(), true)
        .unwrap();
    assert!(words(&map) == words(&again));
}
