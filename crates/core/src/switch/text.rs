//! Reads the arguments of a message from its text.
//!
//! There are five readers with the same meaning and different speeds: blocks of `:<digit>`
//! ([`super::blocks`], the form of a whole map), runs of `:<path>` with up to three digits
//! ([`super::paths`]), runs of `<region>:<path>` ([`super::entries`], the form of single changes),
//! an argument in place, and a word that is split off first. The last one reads everything:
//! backslashes, cut words, errors. The faster ones take only correct arguments of their form.
//!
//! Contract: as [`super::message`]. The cuts between chunks do not change the result.

use super::super::args::{Word, Words, is_space, skip_space};
use super::message::{Argument, EditSink, MAX_WORD_LEN, Message, MessageError, TextError};
use super::{blocks, entries, paths};

/// See [`Message::apply_text`].
pub(super) fn run<T: EditSink>(
    message: &mut Message,
    table: &T,
    text: &[u8],
    last: bool,
) -> Result<usize, TextError> {
    let mut rest = text;
    loop {
        rest = blocks::run::<b' ', T>(message, table, rest);
        rest = paths::run::<b' ', T>(message, table, rest);
        rest = skip_space(entries::run::<b' ', T>(message, table, rest));
        let start = text.len().wrapping_sub(rest.len());
        if rest.is_empty() {
            return Ok(start);
        }
        if let Some((argument, after)) = in_place(rest, last) {
            message.execute(table, argument).map_err(|error| TextError { at: start, error })?;
            rest = after;
            continue;
        }
        match split_off(message, table, rest, last) {
            Ok(0) => return Ok(start),
            Ok(len) => rest = rest.split_at_checked(len).map_or(&[], |(_, after)| after),
            Err(error) => return Err(TextError { at: start, error }),
        }
    }
}

/// See [`Message::apply_split`].
pub(super) fn run_split<T: EditSink>(
    message: &mut Message,
    table: &T,
    text: &[u8],
) -> Result<(), MessageError> {
    let mut rest = text;
    loop {
        rest = blocks::run::<0, T>(message, table, rest);
        rest = paths::run::<0, T>(message, table, rest);
        rest = entries::run::<0, T>(message, table, rest);
        let Some((_separator, word)) = rest.split_first() else { return Ok(()) };
        match Argument::parse(word) {
            Some((argument, after)) if after.first().is_none_or(|&byte| byte == 0) => {
                message.execute(table, argument)?;
                rest = after;
            }
            _ => return Ok(()),
        }
    }
}

/// Reads an argument without a backslash that ends at white space or at the end of the message.
#[inline(always)]
fn in_place(text: &[u8], last: bool) -> Option<(Argument, &[u8])> {
    let (argument, rest) = Argument::parse(text)?;
    let ends = rest.first().map_or(last, |&byte| is_space(byte));
    let fits = text.len().wrapping_sub(rest.len()) <= MAX_WORD_LEN;
    if ends && fits { Some((argument, rest)) } else { None }
}

/// Splits off the first word and applies it. Returns its length, or 0 if the chunk does not have
/// all of it.
#[cold]
fn split_off<T: EditSink>(
    message: &mut Message,
    table: &T,
    text: &[u8],
    last: bool,
) -> Result<usize, MessageError> {
    let mut words = Words::new(text);
    let Some(word) = words.next() else { return Ok(0) };
    let len = word.raw().len();
    if len > MAX_WORD_LEN {
        return Err(message.refuse_word());
    }
    if words.rest().is_empty() && !last {
        return Ok(0);
    }
    with_literal(word, |literal| message.word(table, literal))?;
    Ok(len)
}

/// Calls `f` with the word's bytes without backslashes.
fn with_literal<R>(word: Word<'_>, f: impl FnOnce(&[u8]) -> R) -> R {
    if let Some(literal) = word.plain() {
        return f(literal);
    }
    let mut buffer = [0u8; MAX_WORD_LEN];
    let mut len = 0usize;
    for (slot, byte) in buffer.iter_mut().zip(word.bytes()) {
        *slot = byte;
        len = len.wrapping_add(1);
    }
    f(buffer.split_at_checked(len).map_or(&[], |(literal, _)| literal))
}

/// The fast readers decline other text. So only its speed would show a reader that takes nothing at
/// all; these tests show it, too.
#[cfg(test)]
mod tests {
    extern crate std;

    use std::format;
    use std::string::String;
    use std::vec::Vec;

    use super::super::geometry::Geometry;
    use super::*;

    const ARGUMENTS: u64 = 200;
    const REGIONS: u64 = 0x12345;

    /// Correct arguments, each with a separator before it, and one separator at the end.
    fn text(separator: u8, argument: impl Fn(u64) -> String) -> Vec<u8> {
        let mut text = Vec::new();
        for nr in 0..ARGUMENTS {
            text.push(separator);
            text.extend_from_slice(argument(nr).as_bytes());
        }
        text.push(separator);
        text
    }

    /// Asserts that the reader takes all but the last `left` bytes, and counts its arguments.
    fn takes(
        way: impl Fn(&mut Message, &Geometry, &[u8]) -> usize,
        geometry: &Geometry,
        text: &[u8],
        left: usize,
    ) {
        let mut message = Message::new();
        let rest = way(&mut message, geometry, text);
        assert!(rest <= left, "{rest} of {} bytes are left, {geometry:?}", text.len());
        let taken = text.get(..text.len() - rest).unwrap_or(&[]);
        let arguments = taken.iter().filter(|&&byte| byte == b':').count();
        assert_eq!(message.arguments(), arguments as u64, "arguments counted");
    }

    #[test]
    fn blocks_of_digits_are_consumed_to_the_end() {
        for num_paths in [1, 2, 3, 5, 15, 16] {
            let geometry = Geometry::new(REGIONS, num_paths, 1).unwrap();
            let path = |nr: u64| format!(":{:x}", nr * 7 % u64::from(num_paths));
            let capital = |nr: u64| path(nr).to_uppercase();
            let way =
                |m: &mut Message, g: &Geometry, t: &[u8]| blocks::run::<b' ', _>(m, g, t).len();
            takes(way, &geometry, &text(b' ', path), 24);
            takes(way, &geometry, &text(b' ', capital), 24);
            let way = |m: &mut Message, g: &Geometry, t: &[u8]| blocks::run::<0, _>(m, g, t).len();
            takes(way, &geometry, &text(0, path), 24);
        }
    }

    #[test]
    fn paths_of_up_to_three_digits_are_consumed_to_the_end() {
        for num_paths in [17, 40, 255, 256, 257, 300, 1000, 4095, 4096] {
            let geometry = Geometry::new(REGIONS, num_paths, 1).unwrap();
            let path = |nr: u64| format!(":{:X}", nr * nr * 7 % u64::from(num_paths));
            let way =
                |m: &mut Message, g: &Geometry, t: &[u8]| paths::run::<b' ', _>(m, g, t).len();
            takes(way, &geometry, &text(b' ', path), 64);
            let way = |m: &mut Message, g: &Geometry, t: &[u8]| paths::run::<0, _>(m, g, t).len();
            takes(way, &geometry, &text(0, path), 64);
        }
    }

    #[test]
    fn regions_with_paths_are_consumed_to_the_end() {
        for (num_paths, regions) in
            [(1, 9), (3, REGIONS), (16, 0x1000_0000), (17, 200), (300, REGIONS), (4096, 5000)]
        {
            let geometry = Geometry::new(regions, num_paths, 1).unwrap();
            let entry = |nr: u64| {
                let path = nr * nr * 7 % u64::from(num_paths);
                format!("{:x}:{path:x}", nr * nr * 0x9e37 % regions)
            };
            // The rest is less than a window of the longest arguments.
            let way =
                |m: &mut Message, g: &Geometry, t: &[u8]| entries::run::<b' ', _>(m, g, t).len();
            takes(way, &geometry, &text(b' ', entry), 32);
            let way = |m: &mut Message, g: &Geometry, t: &[u8]| entries::run::<0, _>(m, g, t).len();
            takes(way, &geometry, &text(0, entry), 32);
        }
    }

    /// The result of the slow reader, word by word.
    fn slowly(geometry: &Geometry, text: &[u8]) -> Result<Message, MessageError> {
        let mut message = Message::new();
        for word in Words::new(text) {
            with_literal(word, |literal| message.word(geometry, literal))?;
        }
        Ok(message)
    }

    fn agrees(geometry: &Geometry, text: &[u8]) {
        let mut message = Message::new();
        let quickly = message.check_text(geometry, text, true);
        match (quickly, slowly(geometry, text)) {
            (Ok(_), Ok(slow)) => assert_eq!(message, slow, "{text:?}"),
            (Err(quick), Err(slow)) => assert_eq!(quick.error, slow, "{text:?}"),
            (quick, slow) => panic!("{text:?}: {quick:?} in blocks, {slow:?} word by word"),
        }
    }

    /// A block is checked as the sum of three words. So wrong bytes must not cancel each other.
    #[test]
    fn wrong_bytes_of_a_block_are_found_wherever_they_are() {
        let geometry = Geometry::new(100, 11, 1).unwrap();
        let right = b" :0 :1 :2 :3 :4 :5 :6 :a ";
        agrees(&geometry, right);
        for first in 0..24usize {
            for change in 1..=255u8 {
                let mut text = *right;
                text[first] ^= change;
                agrees(&geometry, &text);
                // The bytes that lie at the same place of another word.
                for second in (first + 8..24).step_by(8) {
                    let mut text = text;
                    text[second] ^= change;
                    agrees(&geometry, &text);
                }
            }
        }
    }

    /// The first path that there is not, and a byte that is no digit, at every place of a window.
    #[test]
    fn paths_are_compared_with_their_number() {
        for num_paths in [17u64, 255, 256, 300, 4095] {
            let geometry = Geometry::new(1000, num_paths as u32, 1).unwrap();
            for wrong in 0..60 {
                let path = |nr: u64| {
                    let path = if nr == wrong { num_paths } else { nr * 13 % num_paths };
                    format!(":{path:x}")
                };
                agrees(&geometry, &text(b' ', path));
            }
        }
    }
}
