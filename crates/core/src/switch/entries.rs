//! Reads `<region>:<path>` arguments, the form that changes single regions, one after the other.
//!
//! Most regions of a table have numbers of the same length, and most others have one digit less. So
//! the place of every digit of the next region is known in advance. A digit costs a load from a
//! table and a shift; the only checks are that colon and separator stand in their places. The
//! comparison with the number of regions also finds bytes that are not digits. Numbers of up to 16
//! paths have one digit. Of more paths they have up to three, which are read without a branch on
//! their count.
//!
//! Contract: it takes only correct arguments of this form, and leaves numbers of another form,
//! errors and the last arguments of a text to slower code. No allocation, no panic.

use super::hex::{self, NO_VALUE};
use super::message::{EditSink, Message};
use super::paths::MAX_PATHS;

/// Most paths with numbers of one digit.
const MAX_SHORT_PATHS: u32 = 16;
/// Most digits of a region's number.
const MAX_DIGITS: usize = 7;
/// Most digits of a path's number.
const MAX_PATH_DIGITS: usize = 3;
/// Bytes that are read together: a separator, the region's digits, the colon, the path's digits, a
/// separator.
const WINDOW: usize = MAX_DIGITS + MAX_PATH_DIGITS + 3;

/// Applies the arguments at the start of `text`, each with one separator before and after it, and
/// returns the rest.
#[inline]
pub(super) fn run<'a, const SEPARATOR: u8, T: EditSink>(
    message: &mut Message,
    table: &T,
    text: &'a [u8],
) -> &'a [u8] {
    let num_paths = table.geometry().num_paths();
    if num_paths <= MAX_SHORT_PATHS {
        run_for::<1, SEPARATOR, T>(message, table, text)
    } else if num_paths <= MAX_PATHS {
        run_for::<MAX_PATH_DIGITS, SEPARATOR, T>(message, table, text)
    } else {
        text
    }
}

/// As [`run`], for paths of up to `PATH` digits.
#[inline(always)]
fn run_for<'a, const PATH: usize, const SEPARATOR: u8, T: EditSink>(
    message: &mut Message,
    table: &T,
    text: &'a [u8],
) -> &'a [u8] {
    let mut rest = text;
    loop {
        let after = match number_len::<SEPARATOR>(rest) {
            1 => run_of::<1, 1, PATH, SEPARATOR, T>(message, table, rest),
            2 => run_of::<2, 1, PATH, SEPARATOR, T>(message, table, rest),
            3 => run_of::<3, 2, PATH, SEPARATOR, T>(message, table, rest),
            4 => run_of::<4, 3, PATH, SEPARATOR, T>(message, table, rest),
            5 => run_of::<5, 4, PATH, SEPARATOR, T>(message, table, rest),
            6 => run_of::<6, 5, PATH, SEPARATOR, T>(message, table, rest),
            7 => run_of::<7, 6, PATH, SEPARATOR, T>(message, table, rest),
            _ => return rest,
        };
        if after.len() == rest.len() {
            return rest;
        }
        rest = after;
    }
}

/// Number of bytes between the first separator of `text` and the first colon; 0 if no colon is
/// near.
#[inline]
fn number_len<const SEPARATOR: u8>(text: &[u8]) -> u32 {
    match text.first_chunk::<WINDOW>() {
        Some(&[first, a, b, c, d, e, f, g, h, ..]) if first == SEPARATOR => {
            let differs = u64::from_le_bytes([a, b, c, d, e, f, g, h]) ^ (hex::ONES * b':' as u64);
            // The lowest byte with its top bit set is the first that does not differ.
            let colons = differs.wrapping_sub(hex::ONES) & !differs & hex::TOPS;
            (colons.trailing_zeros() / u8::BITS) % (MAX_DIGITS as u32 + 1)
        }
        _ => 0,
    }
}

/// As [`run`], for regions of `DIGITS` digits, 1 to [`MAX_DIGITS`], and some of `FEWER` digits, one
/// less.
#[inline(never)]
fn run_of<
    'a,
    const DIGITS: usize,
    const FEWER: usize,
    const PATH: usize,
    const SEPARATOR: u8,
    T: EditSink,
>(
    message: &mut Message,
    table: &T,
    text: &'a [u8],
) -> &'a [u8] {
    let (mut rest, mut last, mut count) = (text, 0, 0u64);
    loop {
        while let Some((region, after)) = next::<DIGITS, PATH, SEPARATOR, T>(table, rest) {
            (last, rest) = (region, after);
            count = count.wrapping_add(1);
        }
        match next::<FEWER, PATH, SEPARATOR, T>(table, rest) {
            Some((region, after)) => (last, rest) = (region, after),
            None => break,
        }
        count = count.wrapping_add(1);
    }
    if count > 0 {
        message.mapped(last, count);
    }
    rest
}

/// Applies the next argument if its region has `DIGITS` digits. Returns its region, and the text
/// from the separator after it on.
#[inline(always)]
fn next<'a, const DIGITS: usize, const PATH: usize, const SEPARATOR: u8, T: EditSink>(
    table: &T,
    text: &'a [u8],
) -> Option<(u64, &'a [u8])> {
    let window = text.first_chunk::<WINDOW>()?;
    if window[const { DIGITS + 1 }] != b':' {
        return None;
    }
    let mut region = 0u64;
    let mut at = 1usize;
    while at <= DIGITS {
        region = (region << 4).wrapping_add(hex::value(window[at]));
        at = at.wrapping_add(1);
    }
    let (path, len) = path::<DIGITS, PATH, SEPARATOR>(window)?;
    let (_, after) = text.split_at_checked(const { DIGITS + 2 }.wrapping_add(len))?;
    // A number with a byte that is not a digit is at least NO_VALUE.
    let regions = table.geometry().nr_regions().min(NO_VALUE);
    if region >= regions || path >= table.geometry().num_paths() {
        return None;
    }
    if table.map(region, path) { Some((region, after)) } else { None }
}

/// The path of an argument whose region has `DIGITS` digits, and the path's number of digits. With
/// bytes that are not digits, it is above every path.
#[inline(always)]
fn path<const DIGITS: usize, const PATH: usize, const SEPARATOR: u8>(
    window: &[u8; WINDOW],
) -> Option<(u32, usize)> {
    let digits =
        [window[const { DIGITS + 2 }], window[const { DIGITS + 3 }], window[const { DIGITS + 4 }]];
    if PATH == 1 {
        let path = hex::last_digits([0, 0, digits[0]], 1)?;
        return if digits[1] == SEPARATOR { Some((path, 1)) } else { None };
    }
    // The separator is the lowest byte with its top bit set, the first one without a difference.
    let after = u32::from_le_bytes([digits[0], digits[1], digits[2], window[const { DIGITS + 5 }]]);
    let differs = after ^ (SEPARATOR as u32).wrapping_mul(hex::ONES as u32);
    let separators = differs.wrapping_sub(hex::ONES as u32) & !differs & hex::TOPS as u32;
    let len = (separators.trailing_zeros() / u8::BITS) as usize;
    // The digits end at the separator, which is within the window for any colon.
    let end = const { DIGITS + 2 }.wrapping_add(len & 3);
    let digit = |back: usize| window.get(end.wrapping_sub(back)).copied().unwrap_or(0);
    Some((hex::last_digits([digit(3), digit(2), digit(1)], len)?, len))
}
