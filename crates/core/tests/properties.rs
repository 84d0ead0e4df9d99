//! The region table against the naive model, on random input.

use core::sync::atomic::AtomicU64;

use blkswitch_core::args::{Word, Words, split_in_place};
use blkswitch_core::model::{self, Model};
use blkswitch_core::switch::{Geometry, Map, Message, MessageError, TextError, compact};
use blkswitch_core::table::MAX_DEVICE_SECTORS;
use proptest::prelude::*;

type BoxedMap = Map<Box<[AtomicU64]>>;

fn new_map(len: u64, num_paths: u32, region_size: u32) -> BoxedMap {
    let geometry = Geometry::new(len, num_paths, region_size).unwrap();
    Map::new(geometry, bytemuck::zeroed_slice_box(geometry.nr_slots())).unwrap()
}

fn set(map: &BoxedMap, region: u64, path: u32) -> bool {
    map.writer().unwrap().set(region, path)
}

fn paths(map: &BoxedMap) -> Vec<u32> {
    (0..map.geometry().nr_regions()).map(|region| map.path(region).unwrap()).collect()
}

/// Applies `text` in chunks that end at `cuts`. Returns what [`Model::message`] returns.
fn apply(map: &BoxedMap, text: &[u8], cuts: &[usize]) -> Result<(), (usize, String)> {
    let mut writer = map.writer().unwrap();
    let mut message = Message::new();
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (text.len() + 1)).collect();
    ends.push(text.len());
    ends.sort_unstable();
    let mut taken = 0;
    for (number, &end) in ends.iter().enumerate() {
        let last = number + 1 == ends.len();
        match message.apply_text(&mut writer, &text[taken..end], last) {
            Ok(len) => taken += len,
            Err(TextError { at, error }) => {
                let word = Words::new(&text[taken + at..]).next().unwrap();
                return Err((error.position as usize, error.of_argument(word).to_string()));
            }
        }
    }
    assert_eq!(taken, text.len());
    Ok(())
}

/// As [`apply`], with words that are split first.
fn apply_words(map: &BoxedMap, text: &[u8]) -> Result<(), (usize, String)> {
    let mut writer = map.writer().unwrap();
    let mut text = text.to_vec();
    let mut message = Message::new();
    for word in split_in_place(&mut text) {
        message.apply_word(&mut writer, word).map_err(|error| {
            let argument = Word::literal(word);
            (error.position as usize, error.of_argument(argument).to_string())
        })?;
    }
    Ok(())
}

/// As [`apply`], the way a kernel module does it: the words are split in place, each ends with a
/// NUL, and many are read at once from where they lie.
fn apply_split(map: &BoxedMap, text: &[u8]) -> Result<(), (usize, String)> {
    let mut writer = map.writer().unwrap();
    let mut text = [b"\0", text].concat();
    let base = text.as_ptr().addr();
    let words: Vec<(usize, usize)> = split_in_place(&mut text[1..])
        .map(|word| (word.as_ptr().addr() - base, word.as_ptr().addr() - base + word.len()))
        .collect();
    let Some(&(_, end)) = words.last() else { return Ok(()) };
    for &(_, word_end) in &words {
        if let Some(byte) = text.get_mut(word_end) {
            *byte = 0;
        }
    }
    let mut message = Message::new();
    let result = (|| {
        while let Some(&(at, word_end)) = words.get(message.arguments() as usize) {
            let before = message.arguments();
            message.apply_split(&mut writer, &text[at - 1..end])?;
            if message.arguments() == before {
                message.apply_word(&mut writer, &text[at..word_end])?;
            }
        }
        Ok(())
    })();
    result.map_err(|error: MessageError| {
        let (at, end) = words[error.position as usize - 1];
        (error.position as usize, error.of_argument(Word::literal(&text[at..end])).to_string())
    })
}

fn check(geometry: &Geometry, text: &[u8]) -> Result<(), usize> {
    match Message::new().check_text(geometry, text, true) {
        Ok(len) => {
            assert_eq!(len, text.len());
            Ok(())
        }
        Err(refused) => Err(refused.error.position as usize),
    }
}

/// Arguments that are mostly valid for about this many regions and paths.
fn argument(regions: u64, num_paths: u32) -> impl Strategy<Value = Vec<u8>> {
    let path = 0..num_paths;
    prop_oneof![
        8 => path.clone().prop_map(|path| format!(":{path:x}")),
        3 => (0..regions, path.clone()).prop_map(|(region, path)| format!("{region:x}:{path:X}")),
        3 => (1..40u64, 0..=regions / 2).prop_map(|(cycle, count)| format!("R{cycle:x},{count:x}")),
        1 => (0..=num_paths).prop_map(|cycle| format!("r{cycle:x},{:x}", u64::from(cycle) * 3)),
        1 => (any::<u64>(), any::<u64>()).prop_map(|(region, path)| format!("{region:x}:{path:x}")),
        1 => (0..regions + 2, 0..num_paths + 2).prop_map(|(region, path)| format!("00{region:x}:0{path:x}")),
        1 => "[0-9a-fR:,x\\\\ ]{1,6}",
    ]
    .prop_map(String::into_bytes)
}

fn message(regions: u64, num_paths: u32) -> impl Strategy<Value = Vec<u8>> {
    let blank = prop_oneof![20 => Just(&b" "[..]), 1 => Just(&b"\t"[..]), 1 => Just(&b"  \n"[..])];
    prop::collection::vec((argument(regions, num_paths), blank), 0..60).prop_map(|arguments| {
        let mut text = Vec::new();
        for (argument, blank) in arguments {
            text.extend_from_slice(blank);
            text.extend_from_slice(&argument);
        }
        text
    })
}

fn shape() -> impl Strategy<Value = (u64, u32, u32)> {
    let num_paths = prop_oneof![
        1u32..20,
        prop::sample::select(vec![
            2, 3, 4, 5, 8, 15, 16, 17, 40, 255, 256, 257, 4096, 4097, 65535, 65536, 65537, 262_141
        ])
    ];
    (1u64..700, num_paths, 1u32..4)
}

/// Numbers of paths around every limit from which on entries are read or stored in another way.
fn num_paths() -> impl Strategy<Value = u32> {
    prop_oneof![
        2 => 1u32..18,
        2 => 15u32..300,
        1 => prop::sample::select(vec![255, 256, 257, 300, 1000, 4095, 4096, 4097, 65_537])
    ]
}

/// Length, paths and region size of a target; messages for it; and where to cut them.
type Case = ((u64, u32, u32), Vec<Vec<u8>>, Vec<usize>);

fn case() -> impl Strategy<Value = Case> {
    shape().prop_flat_map(|(len, num_paths, region_size)| {
        let regions = len.div_ceil(u64::from(region_size));
        (
            Just((len, num_paths, region_size)),
            prop::collection::vec(message(regions, num_paths), 1..5),
            prop::collection::vec(any::<usize>(), 0..6),
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn messages_do_what_the_model_does(((len, num_paths, region_size), messages, cuts) in case()) {
        let mut model = Model::new(len, num_paths, region_size);
        let whole = new_map(len, num_paths, region_size);
        let chunked = new_map(len, num_paths, region_size);
        let words = new_map(len, num_paths, region_size);
        let split = new_map(len, num_paths, region_size);
        for text in &messages {
            let expected = model.message(text);
            prop_assert_eq!(&apply(&whole, text, &[]), &expected);
            prop_assert_eq!(&apply(&chunked, text, &cuts), &expected);
            prop_assert_eq!(&apply_words(&words, text), &expected);
            prop_assert_eq!(&apply_split(&split, text), &expected);
            prop_assert_eq!(
                check(whole.geometry(), text),
                expected.map_err(|(position, _)| position),
            );
            prop_assert_eq!(&paths(&whole), &model.paths);
            prop_assert_eq!(&paths(&chunked), &model.paths);
            prop_assert_eq!(&paths(&words), &model.paths);
            prop_assert_eq!(&paths(&split), &model.paths);
        }
        for sector in 0..len {
            let route = whole.route(sector);
            prop_assert_eq!((route.path, route.left), model.route(sector));
        }
    }

    #[test]
    fn long_runs_do_what_the_model_does(
        num_paths in num_paths(), len in 1u64..400, region_size in 1u32..3, start in 0u64..200,
        digits in prop::collection::vec(any::<u32>(), 0..300), capital in any::<bool>(),
        wrong in prop::option::weighted(0.7, (any::<usize>(), prop_oneof![
            any::<u8>(), prop::sample::select(b" :0123456789abcdefABCDEFgG@/`\\\tRr,".to_vec())])),
        cuts in prop::collection::vec(any::<usize>(), 0..3),
    ) {
        let mut model = Model::new(len, num_paths, region_size);
        let map = new_map(len, num_paths, region_size);
        let mut text = format!("{:x}:0", start % map.geometry().nr_regions());
        for digit in digits {
            text.push_str(&format!(" :{:x}", digit % num_paths));
        }
        let mut text = if capital { text.to_uppercase() } else { text }.into_bytes();
        if let Some((at, byte)) = wrong {
            let at = at % text.len();
            text[at] = byte;
        }
        let expected = model.message(&text);
        prop_assert_eq!(
            check(map.geometry(), &text),
            expected.clone().map_err(|(position, _)| position),
        );
        prop_assert_eq!(&apply(&map, &text, &cuts), &expected);
        prop_assert_eq!(&paths(&map), &model.paths);
        // A kernel's string contains no NUL.
        if !text.contains(&0) {
            let split = new_map(len, num_paths, region_size);
            prop_assert_eq!(&apply_split(&split, &text), &expected);
            prop_assert_eq!(paths(&split), model.paths);
        }
    }

    #[test]
    fn runs_of_regions_do_what_the_model_does(
        num_paths in num_paths(), len in prop_oneof![1u64..300, 4000u64..4200, 65_500u64..70_000],
        entries in prop::collection::vec((any::<u64>(), any::<u32>()), 1..80),
        capital in any::<bool>(),
        wrong in prop::option::weighted(0.7, (any::<usize>(), prop_oneof![
            any::<u8>(), prop::sample::select(b" :0123456789abcdefABCDEFgG@/`\\\tRr,".to_vec())])),
        cuts in prop::collection::vec(any::<usize>(), 0..3),
    ) {
        let mut model = Model::new(len, num_paths, 1);
        let (map, split) = (new_map(len, num_paths, 1), new_map(len, num_paths, 1));
        let entries = entries.iter().map(|(region, path)| format!("{:x}:{:x}", region % len, path % num_paths));
        let mut text = entries.collect::<Vec<String>>().join(" ");
        // The slower parser reads the last window of a text. These entries fill it, so that the
        // fast one reads the entries before.
        text.push_str(" 0:0 0:0 0:0 0:0");
        let mut text = if capital { text.to_uppercase() } else { text }.into_bytes();
        if let Some((at, byte)) = wrong {
            let at = at % text.len();
            text[at] = byte;
        }
        let expected = model.message(&text);
        prop_assert_eq!(
            check(map.geometry(), &text),
            expected.clone().map_err(|(position, _)| position),
        );
        prop_assert_eq!(&apply(&map, &text, &cuts), &expected);
        prop_assert_eq!(&paths(&map), &model.paths);
        if !text.contains(&0) {
            prop_assert_eq!(&apply_split(&split, &text), &expected);
            prop_assert_eq!(paths(&split), model.paths);
        }
    }

    #[test]
    fn one_repeat_does_what_the_model_does(
        (len, num_paths, region_size) in shape(), long in prop::option::weighted(0.3, 1u64..20_000),
        seed in prop::collection::vec(any::<u32>(), 1..200),
        index in any::<u64>(), cycle in prop_oneof![any::<u64>(), 0u64..100], count in any::<u64>(),
    ) {
        // Long maps reach every way to copy, short maps every way to end.
        let len = long.unwrap_or(len) * u64::from(region_size);
        let index = if long.is_some() { index % 300 } else { index };
        let mut model = Model::new(len, num_paths, region_size);
        let map = new_map(len, num_paths, region_size);
        let regions = map.geometry().nr_regions();
        let index = index % regions;
        let mut text = Vec::new();
        for (region, path) in (0..regions).zip(&seed) {
            text.extend_from_slice(format!("{region:x}:{:x} ", path % num_paths).as_bytes());
        }
        let repeat = format!("{index:x}:0 R{:x},{:x}", 1 + cycle % (index + 1), count % (regions - index));
        text.extend_from_slice(repeat.as_bytes());
        prop_assert_eq!(model.message(&text), Ok(()));
        prop_assert_eq!(apply(&map, &text, &[]), Ok(()));
        prop_assert_eq!(paths(&map), model.paths);
    }

    #[test]
    fn what_is_written_out_makes_the_same_map(
        (len, num_paths, region_size) in shape(), few in 1u32..5,
        pieces in prop::collection::vec((any::<u32>(), 0usize..300, 1usize..90), 0..8),
        (from, to) in (0u64..300, 0u64..900), length in 0usize..300, garbage in any::<u64>(),
    ) {
        let map = new_map(len, num_paths, region_size);
        let regions = map.geometry().nr_regions();
        // Runs of a few paths and copies of earlier runs give the writer repetitions to find.
        let mut region = 0u64;
        for (seed, back, count) in pieces {
            for step in 0..count as u64 {
                let copied = region.checked_sub(back as u64).and_then(|source| map.path(source));
                let other = seed.rotate_left(step as u32) % few;
                let path = if seed % 3 == 0 { copied.unwrap_or(0) } else { other };
                set(&map, region, path % num_paths);
                region += 1;
            }
        }
        let write = |changes: bool| {
            let mut text = Vec::new();
            let mut places = vec![garbage % 1000; length];
            let sink = |argument: &[u8]| { text.extend_from_slice(argument); Ok::<(), ()>(()) };
            let done = if changes {
                compact::write_changes(&map, from, to, &mut places, sink)
            } else {
                compact::write(&map, from, to, &mut places, sink)
            };
            done.map(|()| text)
        };
        let copy = new_map(len, num_paths, region_size);
        for region in 0..regions {
            prop_assert!(
                set(
                    &copy,
                    region,
                    (garbage.rotate_left(region as u32) % u64::from(num_paths)) as u32,
                )
            );
        }
        let before = paths(&copy);
        prop_assert_eq!(apply(&copy, &write(false).unwrap(), &[]), Ok(()));
        let fresh = new_map(len, num_paths, region_size);
        prop_assert_eq!(apply(&fresh, &write(true).unwrap(), &[]), Ok(()));
        for region in 0..regions {
            let (in_copy, in_fresh) = if (from..to).contains(&region) {
                (map.path(region), map.path(region))
            } else {
                (Some(before[region as usize]), Some((region % u64::from(num_paths)) as u32))
            };
            prop_assert_eq!((copy.path(region), fresh.path(region)), (in_copy, in_fresh));
        }
    }

    #[test]
    fn words_are_the_model_s(text in prop::collection::vec(
        prop_oneof![Just(b' '), Just(b'\\'), Just(b'a'), Just(0xa0), any::<u8>()], 0..40)) {
        let expected = model::split(&text);
        let words: Vec<Vec<u8>> = Words::new(&text).map(|word| word.bytes().collect()).collect();
        prop_assert_eq!(&words, &expected);
        let mut text = text;
        let words: Vec<Vec<u8>> = split_in_place(&mut text).map(<[u8]>::to_vec).collect();
        prop_assert_eq!(&words, &expected);
    }

    #[test]
    fn runs_cover_the_map(
        (len, num_paths, region_size) in shape(),
        edits in prop::collection::vec(any::<(u64, u32)>(), 0..50),
        same in prop::option::of((0u64..700, 0u64..700)), from in 0u64..800, to in 0u64..800,
    ) {
        let map = new_map(len, num_paths, region_size);
        let regions = map.geometry().nr_regions();
        if let Some((start, end)) = same {
            (start..end.min(regions)).for_each(|region| assert!(set(&map, region, num_paths - 1)));
        }
        for (region, path) in edits {
            prop_assert!(set(&map, region % regions, path % num_paths));
        }
        prop_assert!(!set(&map, regions, 0) && !set(&map, 0, num_paths));
        let mut next = from;
        let mut before = None;
        for run in map.runs(from, to) {
            prop_assert_eq!(run.start, next);
            prop_assert!(run.count > 0 && Some(run.path) != before);
            prop_assert!(
                (run.start..run.start + run.count).all(|region| map.path(region) == Some(run.path))
            );
            next += run.count;
            before = Some(run.path);
        }
        prop_assert_eq!(next.max(from), to.min(regions).max(from));
        let is_changed =
            |&region: &u64| map.path(region) != Some((region % u64::from(num_paths)) as u32);
        let changed = (from..to.min(regions)).find(is_changed);
        prop_assert_eq!(map.next_changed(from, to), changed);
    }

    #[test]
    fn divisions_are_exact(
        size in interesting_u32(),
        num_paths in 1u32..=262_141,
        sector in interesting_sector(),
        near in any::<u64>(),
    ) {
        let Ok(geometry) = Geometry::new(MAX_DEVICE_SECTORS, num_paths, size) else {
            prop_assert!(
                u128::from(MAX_DEVICE_SECTORS / u64::from(size)) * u128::from(num_paths) >= 1 << 63
            );
            return Ok(());
        };
        let size = u64::from(size);
        prop_assert_eq!(geometry.nr_regions(), MAX_DEVICE_SECTORS.div_ceil(size));
        // Check the sector itself, and the sectors around a region boundary, where a wrong quotient
        // shows first.
        let boundary = near % geometry.nr_regions() * size;
        for sector in [sector, boundary.saturating_sub(1), boundary, boundary + 1] {
            let sector = sector.min(MAX_DEVICE_SECTORS);
            prop_assert_eq!(geometry.region_of(sector), sector / size);
            let region = sector % geometry.nr_regions();
            prop_assert_eq!(geometry.default_path(region), (region % u64::from(num_paths)) as u32);
        }
    }

    #[test]
    fn any_sector_has_a_route((len, num_paths, region_size) in shape(), sector in any::<u64>()) {
        let route = new_map(len, num_paths, region_size).route(sector);
        prop_assert!(
            route.path < num_paths && route.left >= 1 && route.left <= u64::from(region_size)
        );
    }
}

fn interesting_u32() -> impl Strategy<Value = u32> {
    prop_oneof![
        1u32..=u32::MAX,
        (0u32..32, -2i64..3).prop_map(|(bit, near)| ((1i64 << bit) + near).max(1) as u32),
        (0i64..4).prop_map(|near| (i64::from(u32::MAX) - near) as u32),
        prop::sample::select(vec![100, 128, 30_720, 1, 2, 3, 7])
    ]
}

fn interesting_sector() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..=MAX_DEVICE_SECTORS,
        (0u32..54, -2i64..3).prop_map(|(bit, near)| ((1i64 << bit) + near).max(0) as u64),
        (0..4u64).prop_map(|near| MAX_DEVICE_SECTORS - near)
    ]
}

#[test]
fn short_storage_is_given_back() {
    let geometry = Geometry::new(65, 2, 1).unwrap();
    assert_eq!(geometry.nr_slots(), 2);
    let storage: Box<[AtomicU64]> = bytemuck::zeroed_slice_box(1);
    assert_eq!(Map::new(geometry, storage).unwrap_err().into_storage().len(), 1);
}

#[test]
fn a_word_past_the_limit_is_refused_however_it_arrives() {
    use blkswitch_core::switch::message::{MAX_WORD_LEN, MessageErrorKind};
    let map = new_map(16, 3, 1);
    let longest = format!("5:{:0>1$}", 2, MAX_WORD_LEN - 2);
    let escaped = format!("5:{:0>1$}\\2", "", MAX_WORD_LEN - 4);
    for text in [&longest, &escaped] {
        assert_eq!(apply(&map, text.as_bytes(), &[]), Ok(()));
        assert_eq!(map.path(5), Some(2));
        assert!(set(&map, 5, 0));
    }
    for text in [format!("{longest}0"), format!("0{escaped}")] {
        for (chunk, last) in [(text.clone(), true), (format!("{text} "), false), (text, false)] {
            let refused = Message::new()
                .apply_text(&mut map.writer().unwrap(), chunk.as_bytes(), last)
                .unwrap_err();
            assert_eq!((refused.at, refused.error.kind), (0, MessageErrorKind::Argument));
        }
    }
    assert_eq!(map.path(5), Some(0));
}

#[test]
fn a_list_that_breaks_off_can_be_gone_on_with() {
    let map = new_map(5000, 16, 1);
    (0..5000).for_each(|region| {
        assert!(set(&map, region, (region.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60) as u32))
    });
    let copy = new_map(5000, 16, 1);
    let mut places = [0; 512];
    let (mut from, mut lists) = (0, 0);
    while from < 5000 {
        let mut text = Vec::new();
        let done = compact::write(&map, from, u64::MAX, &mut places, |argument| {
            let fits = text.len() + argument.len() <= 200;
            if fits {
                text.extend_from_slice(argument)
            };
            if fits { Ok(()) } else { Err(()) }
        });
        from = done.map_or_else(|ended| ended.region, |()| 5000);
        assert_eq!(apply(&copy, &text, &[]), Ok(()));
        lists += 1;
    }
    assert!(lists > 10);
    assert_eq!(paths(&copy), paths(&map));
}

#[test]
fn lists_are_short() {
    let list = |map: &BoxedMap, changes: bool| {
        let mut text = String::new();
        let mut places = vec![0; 4096];
        let sink = |argument: &[u8]| {
            text.push_str(std::str::from_utf8(argument).unwrap());
            Ok::<(), ()>(())
        };
        if changes {
            compact::write_changes(map, 0, u64::MAX, &mut places, sink)
        } else {
            compact::write(map, 0, u64::MAX, &mut places, sink)
        }
        .unwrap();
        text
    };
    let map = new_map(1_000_000, 3, 1);
    assert_eq!(list(&map, false), "0:0 :1 :2 R3,f423d");
    assert_eq!(list(&map, true), "");
    assert!(set(&map, 500_000, 0));
    assert_eq!(list(&map, true), "7a120:0");
    assert_eq!(apply(&map, b"0:2 :1 :1 :0 :1 R5,f423b", &[]), Ok(()));
    assert_eq!(list(&map, false), "0:2 :1 :1 :0 :1 R5,f423b");
    let map = new_map(1_000_000, 262_141, 1);
    assert_eq!(apply(&map, b"0:3fffc R1,f423f", &[]), Ok(()));
    assert_eq!(list(&map, false), "0:3fffc R1,f423f");
}

/// The writer finds a copy far back in the map with its table of places.
#[test]
fn a_list_copies_from_far_before() {
    let map = new_map(2000, 16, 1);
    let random = |region: u64| {
        let mixed = region.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 60) as u32
    };
    for region in 0..2000 {
        // Regions from 1,500 on repeat the first 500.
        assert!(set(&map, region, random(region % 1500)));
    }
    let list = |places: usize| {
        let mut text = String::new();
        compact::write(&map, 0, u64::MAX, &mut vec![0; places], |argument| {
            text.push_str(std::str::from_utf8(argument).unwrap());
            Ok::<(), ()>(())
        })
        .unwrap();
        text
    };
    let (with, without) = (list(4096), list(0));
    assert!(without.len() > with.len() + 1000, "{} and {}", without.len(), with.len());
}

/// Two writers at once would lose each other's changes of neighbouring regions.
#[test]
fn a_map_has_one_writer_at_a_time() {
    let map = new_map(16, 3, 1);
    let mut writer = map.writer().unwrap();
    assert!(map.writer().is_none(), "there is one already");
    assert!(writer.set(1, 0));
    assert_eq!((map.path(1), writer.path(1)), (Some(0), Some(0)), "look-ups go on meanwhile");
    drop(writer);
    assert!(map.writer().is_some_and(|mut writer| writer.set(2, 1)));
    assert_eq!((map.path(1), map.path(2)), (Some(0), Some(1)));
}

/// Each thread changes regions of its own, in words that all threads share.
#[test]
fn no_change_is_lost_between_threads() {
    const THREADS: u64 = 4;
    const REGIONS: u64 = 64 * THREADS;
    let map = new_map(REGIONS, 2, 1);
    let change = |mine: u64| {
        for round in 0..2000 {
            let path = (round % 2) as u32;
            let mut writer = loop {
                match map.writer() {
                    Some(writer) => break writer,
                    None => std::thread::yield_now(),
                }
            };
            (mine..REGIONS).step_by(THREADS as usize).for_each(|region| {
                assert!(writer.set(region, path));
            });
            drop(writer);
            (mine..REGIONS).step_by(THREADS as usize).for_each(|region| {
                assert_eq!(map.path(region), Some(path), "a change of region {region} is lost");
            });
        }
    };
    std::thread::scope(|scope| {
        (0..THREADS).for_each(|mine| drop(scope.spawn(move || change(mine))))
    });
}

/// Storage from a file may contain anything. No look-up may return a path that does not exist.
#[test]
fn storage_that_is_not_valid_is_refused() {
    use blkswitch_core::switch::StorageError;
    for num_paths in [1, 2, 3, 4, 5, 15, 16, 17, 256, 257, 65_537] {
        let geometry = Geometry::new(1000, num_paths, 1).unwrap();
        let storage: Box<[AtomicU64]> = bytemuck::zeroed_slice_box(geometry.nr_slots());
        let map = Map::checked(geometry, storage).unwrap();
        (0..1000).for_each(|region| assert!(set(&map, region, num_paths - 1)));
        let storage = Map::checked(geometry, map.into_storage()).unwrap().into_storage();
        let bits = u64::from(num_paths).next_power_of_two().ilog2().max(1).next_power_of_two();
        let bits = u64::from(bits);
        for region in [0, 1, 499, 998, 999] {
            let at = (region * bits) as usize;
            let word = &storage[at / 64];
            let good = word.load(core::sync::atomic::Ordering::Relaxed);
            let mask = ((1u64 << bits) - 1) << (at % 64);
            // The smallest number that is not a path, if the entry has enough bits for it.
            if u64::from(num_paths) >> bits == 0 {
                let bad = good & !mask | u64::from(num_paths) << (at % 64);
                word.store(bad, core::sync::atomic::Ordering::Relaxed);
                let map = Map::new(geometry, &storage[..]).unwrap();
                assert!(!map.is_valid(), "region {region} of {num_paths} paths");
                assert!(matches!(
                    Map::checked(geometry, &storage[..]),
                    Err(StorageError::Invalid(_))
                ));
                word.store(good, core::sync::atomic::Ordering::Relaxed);
            }
        }
        let short = &storage[..geometry.nr_slots() - 1];
        assert!(matches!(Map::checked(geometry, short), Err(StorageError::TooShort(_))));
    }
}
