//! Reads `:<path>` arguments of one to three digits, the form in which a whole map with many paths
//! is sent.
//!
//! Reading such arguments one after the other is slow. The start of an argument is known only after
//! the one before it, and the processor often mispredicts its length. So this code first finds the
//! colons of 64 bytes at once, as the bits of a word. An argument reaches from one bit to the next.
//! The processor works on several of them at a time, and no branch depends on their lengths.
//!
//! Contract: it takes only correct arguments of this form, and leaves other arguments, errors and
//! the last bytes of a text to slower code. No allocation, no panic.

use super::blocks::Writer;
use super::hex::{self, ONES};
use super::message::{EditSink, Message};

/// Fewest paths. Up to 16 paths have one digit, and [`super::blocks`] reads them.
const MIN_PATHS: u32 = 17;
/// Most paths with numbers of at most three digits.
pub(super) const MAX_PATHS: u32 = 0x1000;
/// Bytes that are searched for colons at once: one bit of a word for each.
const SEARCHED: usize = 64;

/// Applies the arguments at the start of `text`, each with one separator before and after it, and
/// returns the rest.
#[inline]
pub(super) fn run<'a, const SEPARATOR: u8, T: EditSink>(
    message: &mut Message,
    table: &T,
    text: &'a [u8],
) -> &'a [u8] {
    match text {
        [first, b':', ..] if *first == SEPARATOR && text.len() >= SEARCHED => {}
        _ => return text,
    }
    match table.geometry().num_paths() {
        MIN_PATHS..=0x100 => windows::<8, SEPARATOR, T>(message, table, text),
        0x101..=MAX_PATHS => windows::<16, SEPARATOR, T>(message, table, text),
        _ => text,
    }
}

/// As [`run`], for entries of `BITS` bits.
#[inline(never)]
fn windows<'a, const BITS: u32, const SEPARATOR: u8, T: EditSink>(
    message: &mut Message,
    table: &T,
    text: &'a [u8],
) -> &'a [u8] {
    /// Length of the first argument's separator and colon.
    const BEGUN: usize = 2;
    let geometry = table.geometry();
    let num_paths = geometry.num_paths();
    let first = message.index().wrapping_add(1);
    let regions = geometry.nr_regions().saturating_sub(first);
    let (mut room, mut round_robin) = (regions, geometry.default_path(first));
    let mut writer = Writer::new(table, first);
    let mut rest = text;
    while let Some(window) = rest.first_chunk::<SEARCHED>() {
        let (mut colons, mut begin) = (colons(window) & !0b11, BEGUN);
        while colons != 0 && room > 0 {
            let colon = colons.trailing_zeros() as usize;
            let end = colon.wrapping_sub(1) & (SEARCHED - 1);
            let digit = |back: usize| window[end.wrapping_sub(back) & (SEARCHED - 1)];
            let digits = [digit(3), digit(2), digit(1)];
            let path = match hex::last_digits(digits, end.wrapping_sub(begin)) {
                Some(path) if path < num_paths && window[end] == SEPARATOR => path,
                _ => break,
            };
            let borrow = if path < round_robin { num_paths } else { 0 };
            writer.append(BITS, u64::from(path.wrapping_add(borrow).wrapping_sub(round_robin)));
            let next = round_robin.wrapping_add(1);
            round_robin = if next == num_paths { 0 } else { next };
            room = room.wrapping_sub(1);
            begin = colon.wrapping_add(1);
            colons &= colons.wrapping_sub(1);
        }
        let taken = begin.wrapping_sub(BEGUN);
        rest = rest.split_at_checked(taken).map_or(rest, |(_, rest)| rest);
        // This is an argument that this code cannot take, not the end of the window.
        if taken == 0 || colons != 0 {
            break;
        }
    }
    writer.finish();
    message.advance(regions.wrapping_sub(room));
    rest
}

/// Finds the colons of a window: one bit for each byte.
#[inline(always)]
fn colons(window: &[u8; SEARCHED]) -> u64 {
    let mut colons = 0u64;
    let mut at = 0usize;
    while at < SEARCHED {
        let word = u64::from_le_bytes([
            window[at],
            window[at + 1],
            window[at + 2],
            window[at + 3],
            window[at + 4],
            window[at + 5],
            window[at + 6],
            window[at + 7],
        ]);
        let differs = word ^ (ONES * b':' as u64);
        // Sets the top bit of each byte without a difference. No bit is carried between bytes.
        let equal = !((differs & !hex::TOPS).wrapping_add(!hex::TOPS) | differs) & hex::TOPS;
        // The product moves bit 8 k of the word to bit 56 + k.
        let bits = (equal >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        colons |= bits.wrapping_shl(at as u32);
        at = at.wrapping_add(8);
    }
    colons
}
