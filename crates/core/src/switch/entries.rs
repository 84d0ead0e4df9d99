//! `<region>:<path>` arguments, one after the other: the form in which single regions are changed.
//!
//! Most regions of a table have numbers of the same length, the rest a digit less. So the place of
//! every digit of the next region is known before it is looked at: a digit costs a load from a table
//! and a shift, and nothing is asked but whether colon and separator are where they must be. Whether
//! all digits were digits comes out of the comparison with the number of regions. The numbers of up
//! to 16 paths have one digit; of more paths, up to three, which are read without a branch on how
//! many they are.
//!
//! Contract: takes only what it is sure of; what it leaves (numbers of another form, errors, the
//! last arguments of a text) is for the slower ways. No allocation, no panic.

use super::hex::{self, NO_VALUE};
use super::message::{Message, Table};
use super::paths::MAX_PATHS;

/// Most paths whose numbers all have one digit.
const MAX_SHORT_PATHS: u32 = 16;
/// Most digits of a region's number here.
const MAX_DIGITS: usize = 7;
/// Most digits of a path's.
const MAX_PATH_DIGITS: usize = 3;
/// What is looked at together: a separator, the region's digits, the colon, the path's digits, a
/// separator.
const WINDOW: usize = MAX_DIGITS + MAX_PATH_DIGITS + 3;

/// Applies the arguments `text` begins with, each with one separator before it and after it;
/// returns what follows them.
#[inline]
pub(super) fn run<'a, const SEPARATOR: u8, T: Table>(
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

/// [`run`] for paths of up to `PATH` digits.
#[inline(always)]
fn run_for<'a, const PATH: usize, const SEPARATOR: u8, T: Table>(
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

/// How many bytes stand between the separator `text` begins with and the first colon; 0 if there is
/// none near.
#[inline]
fn number_len<const SEPARATOR: u8>(text: &[u8]) -> u32 {
    match text.first_chunk::<WINDOW>() {
        Some(&[first, a, b, c, d, e, f, g, h, ..]) if first == SEPARATOR => {
            let differs = u64::from_le_bytes([a, b, c, d, e, f, g, h]) ^ (hex::ONES * b':' as u64);
            // The lowest byte of which the top bit is set is the first that does not differ.
            let colons = differs.wrapping_sub(hex::ONES) & !differs & hex::TOPS;
            (colons.trailing_zeros() / u8::BITS) % (MAX_DIGITS as u32 + 1)
        }
        _ => 0,
    }
}

/// [`run`] for regions of `DIGITS` digits, 1 to [`MAX_DIGITS`], and now and then one of `FEWER`, a
/// digit less.
#[inline(never)]
fn run_of<
    'a,
    const DIGITS: usize,
    const FEWER: usize,
    const PATH: usize,
    const SEPARATOR: u8,
    T: Table,
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

/// Applies an argument of `DIGITS` digits, if that is what stands here: its region, and the text
/// from the separator after it on.
#[inline(always)]
fn next<'a, const DIGITS: usize, const PATH: usize, const SEPARATOR: u8, T: Table>(
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
    // A number with something else than digits in it is at least NO_VALUE.
    let regions = table.geometry().nr_regions().min(NO_VALUE);
    if region >= regions || path >= table.geometry().num_paths() {
        return None;
    }
    if table.map(region, path) { Some((region, after)) } else { None }
}

/// The path of an argument whose region has `DIGITS` digits, and how many digits it has itself. If
/// they are not digits it is more than there are paths.
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
    // The separator is the first byte that does not differ from it: the lowest with its top bit
    // set.
    let after = u32::from_le_bytes([digits[0], digits[1], digits[2], window[const { DIGITS + 5 }]]);
    let differs = after ^ (SEPARATOR as u32).wrapping_mul(hex::ONES as u32);
    let separators = differs.wrapping_sub(hex::ONES as u32) & !differs & hex::TOPS as u32;
    let len = (separators.trailing_zeros() / u8::BITS) as usize;
    // The digits end where the separator is: in reach of any colon.
    let end = const { DIGITS + 2 }.wrapping_add(len & 3);
    let digit = |back: usize| window.get(end.wrapping_sub(back)).copied().unwrap_or(0);
    Some((hex::last_digits([digit(3), digit(2), digit(1)], len)?, len))
}
