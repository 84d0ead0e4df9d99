//! Words and numbers as the kernel reads them: splitting of table parameters and messages, and
//! number parsers.
//!
//! The kernel's white space separates words. A backslash makes the next byte literal and is
//! removed; a lone trailing backslash stays. There are no quotes, so no word is empty. [`Words`]
//! does not change the text: its words remove backslashes as they are read. [`split_in_place`]
//! removes backslashes in the text itself and returns plain slices.
//!
//! Contract: no allocation, no panic, any bytes.

use core::fmt;

/// Whether the kernel's `isspace()` takes this byte for white space. Its character table is
/// Latin-1, so the no-break space 0xa0 counts, too.
#[inline]
#[must_use]
pub const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r' | 0xa0)
}

/// A word of a text, with its backslashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word<'a> {
    raw: &'a [u8],
    escaped: bool,
}

impl<'a> Word<'a> {
    /// A word that is split already: every byte is literal.
    #[must_use]
    pub const fn literal(word: &'a [u8]) -> Self {
        Self { raw: word, escaped: false }
    }

    /// The bytes of the text, with backslashes.
    #[must_use]
    pub const fn raw(self) -> &'a [u8] {
        self.raw
    }

    /// The word as a slice, or `None` if it has a backslash.
    #[must_use]
    pub const fn plain(self) -> Option<&'a [u8]> {
        if self.escaped { None } else { Some(self.raw) }
    }

    /// The bytes of the word without its backslashes.
    #[must_use]
    pub const fn bytes(self) -> WordBytes<'a> {
        WordBytes { rest: self.raw, escaped: self.escaped }
    }
}

impl fmt::Display for Word<'_> {
    /// Prints the word like the kernel log, see [`Printable`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes().try_for_each(|byte| print_byte(f, byte))
    }
}

/// Iterator of [`Word::bytes`].
#[derive(Clone, Debug)]
pub struct WordBytes<'a> {
    rest: &'a [u8],
    escaped: bool,
}

impl Iterator for WordBytes<'_> {
    type Item = u8;

    #[inline]
    fn next(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        match rest.split_first() {
            Some((&literal, rest)) if self.escaped && first == b'\\' => {
                self.rest = rest;
                Some(literal)
            }
            _ => Some(first),
        }
    }
}

/// Iterator over the words of a text.
#[derive(Clone, Debug)]
pub struct Words<'a> {
    rest: &'a [u8],
}

impl<'a> Words<'a> {
    /// The words of `text`.
    #[must_use]
    pub const fn new(text: &'a [u8]) -> Self {
        Self { rest: text }
    }

    /// The text after the words taken so far.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = Word<'a>;

    #[inline]
    fn next(&mut self) -> Option<Word<'a>> {
        let text = skip_space(self.rest);
        let (len, escaped) = word_extent(text);
        let (raw, rest) = text.split_at_checked(len)?;
        self.rest = rest;
        if raw.is_empty() { None } else { Some(Word { raw, escaped }) }
    }
}

/// Skips the white space at the start of `text`.
#[inline]
#[must_use]
pub(super) fn skip_space(mut text: &[u8]) -> &[u8] {
    while let Some((&byte, rest)) = text.split_first() {
        if !is_space(byte) {
            break;
        }
        text = rest;
    }
    text
}

/// Length of the first word of `text`, with backslashes, and whether it has any.
#[inline]
fn word_extent(text: &[u8]) -> (usize, bool) {
    let mut escaped = false;
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        if is_space(byte) {
            return (text.len().wrapping_sub(bytes.len()).wrapping_sub(1), escaped);
        }
        if byte == b'\\' {
            escaped = true;
            bytes.next();
        }
    }
    (text.len(), escaped)
}

/// Splits `text` into words and removes backslashes in the text itself. Afterwards only the
/// returned words are meaningful, not the text.
///
/// ```
/// let mut text = *br"3 128 0 /dev/spa\ ce 0";
/// let words: Vec<&[u8]> = blkswitch_core::args::split_in_place(&mut text).collect();
/// assert_eq!(words, [b"3".as_slice(), b"128", b"0", b"/dev/spa ce", b"0"]);
/// ```
pub fn split_in_place(text: &mut [u8]) -> SplitInPlace<'_> {
    SplitInPlace { rest: text }
}

/// Iterator of [`split_in_place`].
#[derive(Debug)]
pub struct SplitInPlace<'a> {
    rest: &'a mut [u8],
}

impl<'a> Iterator for SplitInPlace<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let text = core::mem::take(&mut self.rest);
        let blank = text.len().wrapping_sub(skip_space(text).len());
        let (_, text) = text.split_at_mut_checked(blank)?;
        let (len, escaped) = word_extent(text);
        let (word, rest) = text.split_at_mut_checked(len)?;
        self.rest = rest;
        let len = if escaped { remove_backslashes(word) } else { word.len() };
        match word.split_at_checked(len) {
            Some((word, _)) if !word.is_empty() => Some(word),
            _ => None,
        }
    }
}

/// Moves the bytes of the word together and returns their count.
fn remove_backslashes(word: &mut [u8]) -> usize {
    let (mut from, mut to) = (0usize, 0usize);
    while let Some(&first) = word.get(from) {
        let literal = if first == b'\\' { word.get(from.wrapping_add(1)).copied() } else { None };
        from = from.wrapping_add(if literal.is_some() { 2 } else { 1 });
        if let Some(slot) = word.get_mut(to) {
            *slot = literal.unwrap_or(first);
        }
        to = to.wrapping_add(1);
    }
    to
}

/// Parses an integer of a constructor: decimal digits and nothing after them. Leading blanks are
/// skipped; they can only come from an escaped blank. Returns `None` for a number beyond 32 bits,
/// of which the kernel silently keeps the low 32 bits.
#[must_use]
pub fn parse_u32(word: &[u8]) -> Option<u32> {
    decimal(skip_space(word)).and_then(|value| u32::try_from(value).ok())
}

/// Parses an offset in sectors: an optional `+`, decimal digits, and at most one newline, which can
/// only come from an escaped one. Returns `None` for a number beyond 64 bits.
#[must_use]
pub fn parse_u64(word: &[u8]) -> Option<u64> {
    let digits = word.strip_prefix(b"+").unwrap_or(word);
    decimal(digits.strip_suffix(b"\n").unwrap_or(digits))
}

/// Parses one or more decimal digits and nothing else. Returns `None` for a number beyond 64 bits.
fn decimal(digits: &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for &byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    if digits.is_empty() { None } else { Some(value) }
}

/// Prints bytes like the kernel log: a backslash and every byte that is not printable ASCII as
/// `\xNN`.
#[derive(Clone, Copy, Debug)]
pub struct Printable<'a>(pub &'a [u8]);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|&byte| print_byte(f, byte))
    }
}

fn print_byte(f: &mut fmt::Formatter<'_>, byte: u8) -> fmt::Result {
    use fmt::Write;
    match byte {
        b'\\' => f.write_str("\\x5c"),
        b' '..=b'~' => f.write_char(char::from(byte)),
        _ => write!(f, "\\x{byte:02x}"),
    }
}
