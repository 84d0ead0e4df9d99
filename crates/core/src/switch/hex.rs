//! Hexadecimal numbers as messages write them.
//!
//! Contract: no prefix, either case, any number of digits; a number that does not fit wraps modulo 2^64, as the
//! kernel's does.

/// Value of each digit; [`NO_DIGIT`] for every other byte. A table, as it takes one load where comparisons take
/// three branches that random digits mispredict.
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

/// The number a text begins with, and what follows it; `None` if it does not begin with a digit.
#[inline]
pub(super) fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let (&first, mut rest) = text.split_first()?;
    let mut value = u64::from(DIGITS[first as usize]);
    if value == u64::from(NO_DIGIT) {
        return None;
    }
    while let Some((&byte, after)) = rest.split_first() {
        let digit = DIGITS[byte as usize];
        if digit == NO_DIGIT {
            break;
        }
        value = value << 4 | u64::from(digit);
        rest = after;
    }
    Some((value, rest))
}
