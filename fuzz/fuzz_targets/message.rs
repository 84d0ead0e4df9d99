//! Compares messages with the naive model. For any bytes, both make the same map and stop at the
//! same argument with the same text, however the message is cut into chunks. Afterwards the map is
//! written out and read again.
//!
//! The first four bytes choose the target's geometry and the cuts; the rest are the arguments.

#![no_main]

use std::sync::atomic::AtomicU64;

use blkswitch_core::args::{Word, Words, split_in_place};
use blkswitch_core::model::Model;
use blkswitch_core::switch::{Geometry, Map, Message, MessageError, TextError, compact};
use libfuzzer_sys::fuzz_target;

type Outcome = Result<(), (usize, String)>;
type VecMap = Map<Vec<AtomicU64>>;

/// Numbers of paths at the limits of every entry width.
const NUM_PATHS: [u32; 16] =
    [1, 2, 3, 4, 5, 8, 15, 16, 17, 40, 255, 256, 257, 65_536, 65_537, 262_141];

fn new_map(geometry: Geometry) -> VecMap {
    let storage = (0..geometry.nr_slots()).map(|_| AtomicU64::new(0)).collect();
    Map::new(geometry, storage).expect("as many slots as asked for")
}

fn paths(map: &VecMap) -> Vec<u32> {
    (0..map.geometry().nr_regions())
        .map(|region| map.path(region).expect("a region of the map"))
        .collect()
}

fn refused(error: MessageError, argument: Word<'_>) -> (usize, String) {
    (error.position as usize, error.of_argument(argument).to_string())
}

fn in_chunks(map: &VecMap, text: &[u8], chunk: usize) -> Outcome {
    let mut writer = map.writer().expect("nobody else writes");
    let mut message = Message::new();
    let (mut taken, mut end) = (0, 0);
    loop {
        end = text.len().min(end + chunk);
        let rest = &text[taken..end];
        match message.apply_text(&mut writer, rest, end == text.len()) {
            Ok(len) => taken += len,
            Err(TextError { at, error }) => {
                return Err(refused(
                    error,
                    Words::new(&text[taken + at..]).next().expect("the bad word"),
                ));
            }
        }
        if end == text.len() {
            assert_eq!(taken, end);
            return Ok(());
        }
    }
}

fn in_words(map: &VecMap, text: &[u8]) -> Outcome {
    let mut text = text.to_vec();
    let mut writer = map.writer().expect("nobody else writes");
    let mut message = Message::new();
    for word in split_in_place(&mut text) {
        message.apply_word(&mut writer, word).map_err(|error| refused(error, Word::literal(word)))?;
    }
    Ok(())
}

fn write_out(map: &VecMap, places: usize) -> Vec<u8> {
    let mut text = Vec::new();
    let done = compact::write(map, 0, u64::MAX, &mut vec![3; places], |argument| {
        text.extend_from_slice(argument);
        Ok::<(), ()>(())
    });
    assert_eq!(done, Ok(()));
    text
}

fuzz_target!(|input: (u8, u16, u8, &[u8])| {
    let (shape, len, chunk, text) = input;
    let (len, num_paths) = (u64::from(len) % 3000 + 1, NUM_PATHS[usize::from(shape % 16)]);
    let region_size = u32::from(shape / 16) + 1;
    let geometry = Geometry::new(len, num_paths, region_size).expect("a small target");
    let mut model = Model::new(len, num_paths, region_size);
    let expected = model.message(text);

    let map = new_map(geometry);
    assert_eq!(in_chunks(&map, text, usize::MAX / 2), expected);
    assert_eq!(paths(&map), model.paths);
    let chunked = new_map(geometry);
    assert_eq!(in_chunks(&chunked, text, usize::from(chunk) + 1), expected);
    assert_eq!(paths(&chunked), model.paths);
    let worded = new_map(geometry);
    assert_eq!(in_words(&worded, text), expected);
    assert_eq!(paths(&worded), model.paths);
    let checked = Message::new()
        .check_text(&geometry, text, true)
        .map_err(|refused| refused.error.position as usize);
    assert_eq!(checked.map(|_| ()), expected.map_err(|(position, _)| position));

    let again = new_map(geometry);
    assert_eq!(in_chunks(&again, &write_out(&map, usize::from(chunk)), usize::MAX / 2), Ok(()));
    assert_eq!(paths(&again), model.paths);
});
