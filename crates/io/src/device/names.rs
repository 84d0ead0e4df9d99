//! The names of exports. A device's name is stored as libdm writes it, with `\xNN` for a character
//! that the kernel's names should not contain. Clients see the unescaped name.
//!
//! Contract: pure. [`Registry`](super::Registry) ensures that no two devices have one export name.

use std::borrow::Cow;

/// The export name of a device: its name without escapes, if the result is printable text.
pub fn export_name(stored: &str) -> Cow<'_, str> {
    if !stored.contains("\\x") {
        return Cow::Borrowed(stored);
    }
    let mut bytes = Vec::with_capacity(stored.len());
    let mut rest = stored.as_bytes();
    while let [first, behind @ ..] = rest {
        match escaped(rest) {
            Some(byte) => {
                bytes.push(byte);
                rest = rest.get(4..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    match String::from_utf8(bytes) {
        Ok(name) if !name.contains(char::is_control) => Cow::Owned(name),
        _ => Cow::Borrowed(stored),
    }
}

/// Whether two stored names have one export name.
pub fn is_same(one: &str, other: &str) -> bool {
    one == other || export_name(one) == export_name(other)
}

/// Whether a client's name means this device: its export name, or its stored one, as an
/// administrator may know it.
pub fn is_called(stored: &str, name: &str) -> bool {
    stored == name || export_name(stored) == name
}

/// The byte that `bytes` begins with as `\xNN`; `None` if there is none.
fn escaped(bytes: &[u8]) -> Option<u8> {
    let [b'\\', b'x', high, low, ..] = bytes else { return None };
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_an_export_is_the_one_that_is_meant() {
        for (stored, name) in [
            ("switch", "switch"),
            (r"my\x20disk", "my disk"),
            (r"\xc3\xa4/\xf0\x9f\x92\xbe", "ä/💾"),
            (r"a\x5cx20b", r"a\x20b"),
            // Not UTF-8, or control characters: the stored name is kept.
            (r"\xff", r"\xff"),
            (r"a\x1b\x0a", r"a\x1b\x0a"),
            (r"a\x4", r"a\x4"),
            (r"a\xzz", r"a\xzz"),
        ] {
            assert_eq!(export_name(stored), name);
        }
    }
}
