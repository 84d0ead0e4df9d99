//! Hexadecimal numbers of messages.
//!
//! Contract: numbers have no prefix, either case, and any number of digits. A number that is too
//! large wraps modulo 2^64, as in the kernel.

/// Value of each digit; [`NO_DIGIT`] for every other byte. A table takes one load. Comparisons
/// would take three branches, which random digits mispredict.
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

/// The result of [`value`] for a byte that is not a digit. It is above any number of seven digits,
/// and so is every number of seven places with such a byte in it.
pub(super) const NO_VALUE: u64 = 1 << 32;

/// Value of each digit with the width of the sum it is added to; [`NO_VALUE`] for every other byte.
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

/// Value of each digit of a path. Every other byte has a bit that no number of three digits has, at
/// any of the three places.
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

/// The number of the last `len` of three digits. `None` if `len` is not 1, 2 or 3; 4096 or more if
/// a byte is not a digit. There is no branch on `len`: the part of the bytes before the digits is
/// removed afterwards.
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

/// Reads eight bytes as digits at once. Returns their values, and a word with the top bit set in
/// each byte that is not a digit (its value is then meaningless).
#[inline]
pub(super) const fn digits_of(text: u64) -> (u64, u64) {
    // With 7-bit bytes, an addition to all bytes carries from none to the next. A top bit that is
    // set afterwards means "at least".
    let ascii = text & !TOPS;
    let decimal = ascii ^ (0x30 * ONES);
    let letter = (ascii | (0x20 * ONES)) ^ (0x60 * ONES);
    let is_decimal = !decimal.wrapping_add((0x80 - 10) * ONES);
    let is_letter =
        letter.wrapping_add((0x80 - 1) * ONES) & !letter.wrapping_add((0x80 - 7) * ONES);
    let values = (ascii & (0x0f * ONES)).wrapping_add((ascii >> 6 & ONES).wrapping_mul(9));
    (values, (!(is_decimal | is_letter) | text) & TOPS)
}

/// Reads the number at the start of a text and returns it with the rest; `None` if the text does
/// not begin with a digit.
///
/// It reads a digit at a time. Numbers of regions mostly have the same length, so the processor
/// predicts their ends and runs ahead of this loop. (With eight digits at once, each number would
/// wait for the one before it.)
#[inline(always)]
pub(super) fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    // Most numbers are short, so this loop does not check for the end of the text at every digit.
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

/// As [`number`], for numbers that have one or two digits at random. It has no branch on that.
#[inline(always)]
pub(super) fn short_number(text: &[u8]) -> Option<(u64, &[u8])> {
    if let Some((&[first, second, third], _)) = text.split_first_chunk::<3>() {
        let (digit, next) = (DIGITS[first as usize], DIGITS[second as usize]);
        if digit == NO_DIGIT {
            return None;
        }
        let two = next != NO_DIGIT;
        // True unless both are digits, because `NO_DIGIT` has all bits set.
        if next | DIGITS[third as usize] == NO_DIGIT {
            let value = u64::from(digit) << (4 * u32::from(two))
                | u64::from(next & u8::from(two).wrapping_neg());
            let (_, rest) = text.split_at_checked(1 + usize::from(two))?;
            return Some((value, rest));
        }
    }
    number(text)
}

/// As [`number`], for any length.
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

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::ToString;

    use super::*;

    /// Each way to read a digit agrees with the standard library about every byte.
    #[test]
    fn all_bytes() {
        for byte in 0..=255u8 {
            let expected = char::from(byte).to_digit(16);
            let (values, others) = digits_of(ONES.wrapping_mul(u64::from(byte)));
            match expected {
                Some(digit) => {
                    assert_eq!((values, others), (ONES * u64::from(digit), 0), "byte {byte}");
                    assert_eq!(value(byte), u64::from(digit));
                    assert_eq!(last_digits([0, 0, byte], 1), Some(digit));
                }
                None => {
                    assert_eq!(others, TOPS, "byte {byte}");
                    assert_eq!(value(byte), NO_VALUE);
                    assert!(last_digits([b'1', byte, b'1'], 3).is_some_and(|path| path > 0xfff));
                }
            }
        }
    }

    #[test]
    fn numbers_end_where_their_digits_end() {
        for digits in ["0", "7", "f0", "Ab", "123", "12345678", "123456789abcdef0"] {
            let text = digits.to_string() + ":1 and more";
            let expected = u64::from_str_radix(digits, 16).unwrap();
            let rest = b":1 and more".as_slice();
            assert_eq!(number(text.as_bytes()), Some((expected, rest)), "{digits}");
            assert_eq!(short_number(text.as_bytes()), Some((expected, rest)), "{digits}");
            assert_eq!(long_number(text.as_bytes()), Some((expected, rest)), "{digits}");
            assert_eq!(number(digits.as_bytes()), Some((expected, b"".as_slice())), "{digits}");
        }
        for text in ["", "g", ":1", "-1234567890"] {
            assert_eq!((number(text.as_bytes()), short_number(text.as_bytes())), (None, None));
        }
    }
}
