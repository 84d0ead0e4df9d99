//! `message`: measures messages of `set_region_mappings` with a million entries, in each of the
//! three forms. A plain parser is the yardstick for them. Also measures how long it takes to write
//! a map of a million regions as a message.
//!
//! The yardstick is written without regard for speed: it splits words first, parses each with a
//! table of digits, and packs entries of exact width with ordinary divisions.

use std::fmt::Write;
use std::hint::black_box;

use anyhow::{Context, ensure};
use blkswitch_core::switch::{Message, compact};

use crate::report::{Figure, LazyMap, Random, Rounds, lazy_map, writer};

const ENTRIES: u64 = 1_000_000;
const REGION_SIZE: u32 = 30_720;
/// Size of the table in which the writer remembers places of the map.
const PLACES: usize = 1 << 14;
/// Bytes of a chunk of a message that arrives in chunks.
const CHUNK: usize = 64 << 10;

pub(crate) fn run(rounds: Rounds) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for num_paths in [3, 16, 40] {
        for (name, text) in messages(num_paths)? {
            compare(&mut figures, rounds, &format!("{name}, {num_paths} paths"), num_paths, &text)?;
        }
    }
    for num_paths in [3, 16] {
        for every in [1, 100, 1_000_000] {
            write_out(&mut figures, rounds, num_paths, every)?;
        }
    }
    Ok(figures)
}

/// Writes a map in which one region of `every` has a random path.
fn write_out(
    figures: &mut Vec<Figure>,
    rounds: Rounds,
    num_paths: u32,
    every: u64,
) -> anyhow::Result<()> {
    let map = lazy_map(ENTRIES, num_paths, REGION_SIZE)?;
    let mut random = Random(3);
    for _ in 0..ENTRIES / every {
        writer(&map).set(random.below(ENTRIES), random.below(num_paths.into()) as u32);
    }
    let mut places = vec![0; PLACES];
    let mut text = Vec::new();
    let mut write = || {
        text.clear();
        compact::write(&map, 0, ENTRIES, &mut places, |argument| {
            text.extend_from_slice(argument);
            Ok::<(), std::convert::Infallible>(())
        })
        .map_err(|refused| refused.error)
    };
    let seconds = rounds.seconds(|| (), |()| write().unwrap_or_else(|never| match never {}));
    let again = lazy_map(ENTRIES, num_paths, REGION_SIZE)?;
    apply_chunks(&again, &text);
    ensure!(
        again.runs(0, ENTRIES).eq(map.runs(0, ENTRIES)),
        "what was written out makes another map"
    );
    let name = format!("write out 1M regions, {num_paths} paths, {} changed", ENTRIES / every);
    figures.push(Figure::new(&name, seconds * 1e3, "ms"));
    figures.push(Figure::new(format!("{name}, length"), text.len() as f64 / 1024.0, "KiB"));
    Ok(())
}

/// A message of each form, by name.
fn messages(num_paths: u32) -> anyhow::Result<Vec<(&'static str, String)>> {
    let mut random = Random(1);
    let mut next = String::from("0:0");
    let mut indexed = String::new();
    for _ in 1..ENTRIES {
        write!(next, " :{:x}", random.below(num_paths.into()))?;
        write!(indexed, " {:x}:{:x}", random.below(ENTRIES), random.below(num_paths.into()))?;
    }
    let mut messages = vec![("1M :p", next), ("1M i:p at random", indexed)];
    for (name, cycle) in [("R1 over 1M", 1), ("R7 over 1M", 7), ("R1000 over 1M", 1000)] {
        let mut text = String::from("0:1");
        for _ in 1..cycle {
            write!(text, " :{:x}", random.below(num_paths.into()))?;
        }
        write!(text, " R{cycle:x},{:x}", ENTRIES - cycle)?;
        messages.push((name, text));
    }
    Ok(messages)
}

fn compare(
    figures: &mut Vec<Figure>,
    rounds: Rounds,
    name: &str,
    num_paths: u32,
    text: &str,
) -> anyhow::Result<()> {
    let prepare = || {
        let map = lazy_map(ENTRIES, num_paths, REGION_SIZE).expect("a map of a million regions");
        // Touch all memory first, because page faults are not measured here.
        let mut writer = writer(&map);
        (0..ENTRIES).step_by(64).for_each(|region| assert!(writer.set(region, 1)));
        writer.reset();
        drop(writer);
        map
    };
    let text = text.as_bytes();
    let ours = rounds.seconds(prepare, |map| {
        black_box(Message::new().apply_text(&mut writer(map), black_box(text), true))
            .expect("the message is right");
    });
    let chunked = rounds.seconds(prepare, |map| apply_chunks(map, black_box(text)));
    let yardstick = rounds.seconds(
        || std::cell::RefCell::new(Plain::new(num_paths)),
        |plain| plain.borrow_mut().apply(black_box(text)).expect("the message is right"),
    );
    let map = prepare();
    apply_chunks(&map, text);
    let mut plain = Plain::new(num_paths);
    plain.apply(text).context("yardstick")?;
    ensure!(
        (0..ENTRIES).all(|region| map.path(region) == Some(plain.get(region))),
        "{name}: the yardstick disagrees"
    );
    figures.push(Figure::new(name, ours * 1e3, "ms"));
    figures.push(Figure::new(format!("{name}, in chunks"), chunked * 1e3, "ms"));
    figures.push(Figure::new(format!("{name}, yardstick"), yardstick * 1e3, "ms"));
    figures.push(Figure::new(format!("{name}, speed-up"), yardstick / ours, "x"));
    Ok(())
}

fn apply_chunks(map: &LazyMap, text: &[u8]) {
    let mut message = Message::new();
    let mut at = 0;
    while at < text.len() {
        let end = text.len().min(at + CHUNK);
        at += message
            .apply_text(&mut writer(map), &text[at..end], end == text.len())
            .expect("the message is right");
    }
}

/// The yardstick: packed paths of exact width, and a parser that takes one word, one byte, one
/// region at a time.
struct Plain {
    words: Vec<u64>,
    num_paths: u64,
    bits: u64,
    digits: [u8; 256],
}

impl Plain {
    fn new(num_paths: u32) -> Self {
        let bits = u64::from(num_paths.next_power_of_two().trailing_zeros().max(1));
        let mut digits = [0xff; 256];
        for (value, digit) in (0..).zip(b"0123456789abcdef") {
            digits[usize::from(*digit)] = value;
            digits[usize::from(digit.to_ascii_uppercase())] = value;
        }
        let words = vec![0; ENTRIES.div_ceil(64 / bits) as usize];
        let mut plain = Self { words, num_paths: u64::from(num_paths), bits, digits };
        (0..ENTRIES).for_each(|region| plain.set(region, region % u64::from(num_paths)));
        plain
    }

    fn get(&self, region: u64) -> u32 {
        let each = 64 / self.bits;
        (self.words[(region / each) as usize] >> (region % each * self.bits)
            & ((1 << self.bits) - 1)) as u32
    }

    fn set(&mut self, region: u64, path: u64) {
        let each = 64 / self.bits;
        let (shift, mask) = (region % each * self.bits, (1 << self.bits) - 1);
        let word = &mut self.words[(region / each) as usize];
        *word = *word & !(mask << shift) | path << shift;
    }

    fn hex(&self, word: &[u8]) -> Option<u64> {
        let mut value = 0u64;
        for &byte in word {
            let digit = self.digits[usize::from(byte)];
            if digit == 0xff {
                return None;
            }
            value = value << 4 | u64::from(digit);
        }
        if word.is_empty() { None } else { Some(value) }
    }

    fn apply(&mut self, text: &[u8]) -> Option<()> {
        let mut index = 0;
        for word in text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()) {
            if let Some(numbers) = word.strip_prefix(b"R") {
                let comma = numbers.iter().position(|&byte| byte == b',')?;
                let (cycle, count) =
                    (self.hex(&numbers[..comma])?, self.hex(&numbers[comma + 1..])?);
                for region in index + 1..=index + count {
                    self.set(region, self.get(region - cycle).into());
                }
                index += count;
                continue;
            }
            let colon = word.iter().position(|&byte| byte == b':')?;
            index = if colon == 0 { index + 1 } else { self.hex(&word[..colon])? };
            let path = self.hex(&word[colon + 1..])?;
            if index >= ENTRIES || path >= self.num_paths {
                return None;
            }
            self.set(index, path);
        }
        Some(())
    }
}
