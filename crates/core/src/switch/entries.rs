//! `<region>:<path>` arguments, one after the other: the form in which single regions are changed.
//!
//! Most regions of a table have numbers of the same length, the rest a digit less, and the numbers
//! of up to 16 paths have one digit. So the place of every byte of the next argument is known
//! before it is looked at: a digit costs a load from a table and a shift, and nothing is asked but
//! whether colon and separator are where they must be. Whether all digits were digits comes out of
//! the comparison with the number of regions.
//!
//! Contract: takes only what it is sure of; what it leaves (numbers of another form, errors, the
//! last arguments of a text) is for the slower ways. No allocation, no panic.

use super::hex::{self, NO_VALUE};
use super::message::{Message, Table};

/// Most paths whose numbers all have one digit.
const MAX_PATHS: u32 = 16;
/// Most digits of a region's number here.
const MAX_DIGITS: usize = 7;
/// What is looked at together: a separator, the region's digits, the colon, the path's digit, a
/// separator.
const WINDOW: usize = MAX_DIGITS + 4;

/// Applies the arguments `text` begins with, each with one separator before it and after it;
/// returns what follows them.
#[inline]
pub(super) fn run<'a, const SEPARATOR: u8, T: Table>(
    message: &mut Message,
    table: &T,
    text: &'a [u8],
) -> &'a [u8] {
    let mut rest = text;
    if table.geometry().num_paths() > MAX_PATHS {
        return rest;
    }
    loop {
        let after = match number_len::<SEPARATOR>(rest) {
            1 => run_of::<1, 1, SEPARATOR, T>(message, table, rest),
            2 => run_of::<2, 1, SEPARATOR, T>(message, table, rest),
            3 => run_of::<3, 2, SEPARATOR, T>(message, table, rest),
            4 => run_of::<4, 3, SEPARATOR, T>(message, table, rest),
            5 => run_of::<5, 4, SEPARATOR, T>(message, table, rest),
            6 => run_of::<6, 5, SEPARATOR, T>(message, table, rest),
            7 => run_of::<7, 6, SEPARATOR, T>(message, table, rest),
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
fn run_of<'a, const DIGITS: usize, const FEWER: usize, const SEPARATOR: u8, T: Table>(
    message: &mut Message,
    table: &T,
    text: &'a [u8],
) -> &'a [u8] {
    let (mut rest, mut last, mut with_fewer) = (text, 0, 0usize);
    loop {
        while let Some((region, after)) = next::<DIGITS, SEPARATOR, T>(table, rest) {
            (last, rest) = (region, after);
        }
        match next::<FEWER, SEPARATOR, T>(table, rest) {
            Some((region, after)) => (last, rest) = (region, after),
            None => break,
        }
        with_fewer = with_fewer.wrapping_add(1);
    }
    // As if those with fewer digits had as many bytes as the others: no count in the loop.
    let bytes = text.len().wrapping_sub(rest.len()).wrapping_add(with_fewer);
    if bytes > 0 {
        message.mapped(last, (bytes / const { DIGITS + 3 }) as u64);
    }
    rest
}

/// Applies an argument of `DIGITS` digits, if that is what stands here: its region, and the text
/// from the separator after it on.
#[inline(always)]
fn next<'a, const DIGITS: usize, const SEPARATOR: u8, T: Table>(
    table: &T,
    text: &'a [u8],
) -> Option<(u64, &'a [u8])> {
    let window = text.first_chunk::<WINDOW>()?;
    let (_, after) = text.split_at_checked(const { DIGITS + 3 })?;
    if window[const { DIGITS + 1 }] != b':' || window[const { DIGITS + 3 }] != SEPARATOR {
        return None;
    }
    let mut region = 0u64;
    let mut at = 1usize;
    while at <= DIGITS {
        region = (region << 4).wrapping_add(hex::value(window[at]));
        at = at.wrapping_add(1);
    }
    let path = hex::value(window[const { DIGITS + 2 }]);
    // A number with something else than digits in it is at least NO_VALUE.
    let regions = table.geometry().nr_regions().min(NO_VALUE);
    if region >= regions || path >= u64::from(table.geometry().num_paths()) {
        return None;
    }
    if table.map(region, path as u32) { Some((region, after)) } else { None }
}
