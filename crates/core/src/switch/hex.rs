//! Hexadecimal numbers as messages write them.
//!
//! Contract: no prefix, either case, any number of digits; a number that does not fit wraps modulo
//! 2^64, as the kernel's does.

/// Value of each digit; [`NO_DIGIT`] for every other byte. A table, as it takes one load where
/// comparisons take three branches that random digits mispredict.
static DIGITS: [u8; 256] = digits();
const NO_DIGIT: u8 = 0xff;

const fn digits() -> [u8; 256] {
    let mut table = [NO_DIGIT; 256];
    let mut value = 0;
    while value < 16 {
        let lower = b"0123456789abcdef"[value as usize];
        table[lower as usize] = value;
        table[lower.to_ascii_uppercase() as usize] = value;
        value += 1;
    }
    table
}

/// What [`value`] gives for a byte that is no digit: more than any number of seven digits, and a
/// number of seven places with such a byte in it is at least this, too.
pub(super) const NO_VALUE: u64 = 1 << 32;

/// Value of each digit, as wide as what it is added to; [`NO_VALUE`] for every other byte.
static VALUES: [u64; 256] = values();

const fn values() -> [u64; 256] {
    let digits = digits();
    let mut table = [NO_VALUE; 256];
    let mut byte = 0;
    while byte < 256 {
        if digits[byte] != NO_DIGIT {
            table[byte] = digits[byte] as u64;
        }
        byte += 1;
    }
    table
}

/// A digit's value, or [`NO_VALUE`].
#[inline(always)]
pub(super) fn value(byte: u8) -> u64 {
    VALUES[byte as usize]
}

/// Value of each digit of a path; for every other byte a bit that is in no number of three digits,
/// whichever digit it stands for.
static PATH_DIGITS: [u32; 256] = path_digits();
const NO_PATH_DIGIT: u32 = 1 << 12;

const fn path_digits() -> [u32; 256] {
    let digits = digits();
    let mut table = [NO_PATH_DIGIT; 256];
    let mut byte = 0;
    while byte < 256 {
        if digits[byte] != NO_DIGIT {
            table[byte] = digits[byte] as u32;
        }
        byte += 1;
    }
    table
}

/// The number of the last `len` of three digits; `None` if `len` is none of 1, 2, 3, and 4096 or
/// more if they are not all digits. Without a branch on `len`: what the bytes before them have
/// given is taken away afterwards.
#[inline(always)]
pub(super) fn last_digits(bytes: [u8; 3], len: usize) -> Option<u32> {
    const ONE: u32 = NO_PATH_DIGIT | 0xf;
    const KEPT: [u32; 3] = [ONE, ONE | ONE << 4, ONE | ONE << 4 | ONE << 8];
    let kept = *KEPT.get(len.wrapping_sub(1))?;
    let [first, middle, last] = bytes.map(|byte| PATH_DIGITS[byte as usize]);
    Some((first << 8 | middle << 4 | last) & kept)
}

/// A 1 in every byte.
pub(super) const ONES: u64 = 0x0101_0101_0101_0101;
/// The top bit of every byte.
pub(super) const TOPS: u64 = 0x80 * ONES;

/// Eight bytes as digits, all at once: their values, and the top bit set in each byte that is no
/// digit (whose value then means nothing).
#[inline]
pub(super) const fn digits_of(text: u64) -> (u64, u64) {
    // With 7-bit bytes, adding to all at once carries from none to the next; a top bit set
    // afterwards says "at least".
    let ascii = text & !TOPS;
    let decimal = ascii ^ (0x30 * ONES);
    let letter = (ascii | (0x20 * ONES)) ^ (0x60 * ONES);
    let is_decimal = !decimal.wrapping_add((0x80 - 10) * ONES);
    let is_letter =
        letter.wrapping_add((0x80 - 1) * ONES) & !letter.wrapping_add((0x80 - 7) * ONES);
    let values = (ascii & (0x0f * ONES)).wrapping_add((ascii >> 6 & ONES).wrapping_mul(9));
    (values, (!(is_decimal | is_letter) | text) & TOPS)
}

/// The number a text begins with, and what follows it; `None` if it does not begin with a digit.
///
/// A digit at a time: as long as numbers have much the same length, which those of regions have,
/// the processor guesses where they end and is ahead of this loop. (Eight digits at once would make
/// each number wait for the one before it.)
#[inline(always)]
pub(super) fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    // Most numbers are short: without asking for the end of the text at every digit.
    let (mut value, mut len) = (0u64, 0usize);
    if let Some(bytes) = text.first_chunk::<8>() {
        for &byte in bytes {
            let digit = DIGITS[byte as usize];
            if digit == NO_DIGIT {
                let (_, rest) = text.split_at_checked(len)?;
                return if len == 0 { None } else { Some((value, rest)) };
            }
            value = value << 4 | u64::from(digit);
            len = len.wrapping_add(1);
        }
    }
    long_number(text)
}

/// [`number`] for numbers that mostly have one or two digits, at random: no branch on which.
#[inline(always)]
pub(super) fn short_number(text: &[u8]) -> Option<(u64, &[u8])> {
    if let Some((&[first, second, third], _)) = text.split_first_chunk::<3>() {
        let (digit, next) = (DIGITS[first as usize], DIGITS[second as usize]);
        if digit == NO_DIGIT {
            return None;
        }
        let two = next != NO_DIGIT;
        // Unless both are digits: `NO_DIGIT` has all bits set.
        if next | DIGITS[third as usize] == NO_DIGIT {
            let value = u64::from(digit) << (4 * u32::from(two))
                | u64::from(next & u8::from(two).wrapping_neg());
            let (_, rest) = text.split_at_checked(1 + usize::from(two))?;
            return Some((value, rest));
        }
    }
    number(text)
}

/// [`number`] of any length.
#[inline]
fn long_number(mut text: &[u8]) -> Option<(u64, &[u8])> {
    let (mut value, mut any) = (0u64, false);
    while let Some((&byte, rest)) = text.split_first() {
        let digit = DIGITS[byte as usize];
        if digit == NO_DIGIT {
            break;
        }
        value = value << 4 | u64::from(digit);
        any = true;
        text = rest;
    }
    if any { Some((value, text)) } else { None }
}
