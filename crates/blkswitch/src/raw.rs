//! Bytes that are not UTF-8 within text.
//!
//! Paths, and so the words of tables, are bytes. JSON strings and Rust strings are UTF-8. In them,
//! a byte `B` that is not part of valid UTF-8 is the private-use character U+10FE00 + `B`. The
//! protocol, the description of the kept devices and the command line have such text. The bytes
//! appear where a file is opened, where the daemon parses a table, and where the command line reads
//! or prints.
//!
//! Contract: pure. `decode(encode(bytes))` is `bytes` for any bytes: a character that would be
//! taken for a byte is itself encoded byte by byte.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Added to a byte, this gives the byte's character.
const BASE: u32 = 0x10_fe00;

/// The byte that a character stands for; `None` if it stands for itself.
pub fn byte(one: char) -> Option<u8> {
    let byte = u8::try_from(u32::from(one).checked_sub(BASE)?).ok()?;
    (!byte.is_ascii()).then_some(byte)
}

/// The character that stands for a byte.
fn character(byte: u8) -> char {
    char::from_u32(BASE + u32::from(byte)).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// Returns whether a character of the text stands for a byte.
pub fn has_bytes(text: &str) -> bool {
    // All these characters begin with this byte in UTF-8, and few others do.
    text.as_bytes().contains(&0xf4) && text.chars().any(|one| byte(one).is_some())
}

/// The text for any bytes.
pub fn encode(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !has_bytes(text) => return Cow::Borrowed(text),
        _ => {}
    }
    let mut out = String::with_capacity(bytes.len() + 16);
    for chunk in bytes.utf8_chunks() {
        for one in chunk.valid().chars() {
            match byte(one) {
                Some(_) => out.extend(one.encode_utf8(&mut [0; 4]).bytes().map(character)),
                None => out.push(one),
            }
        }
        out.extend(chunk.invalid().iter().copied().map(character));
    }
    Cow::Owned(out)
}

/// The bytes of a text.
pub fn decode(text: &str) -> Cow<'_, [u8]> {
    if !has_bytes(text) {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut out = Vec::with_capacity(text.len());
    for one in text.chars() {
        match byte(one) {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(one.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Cow::Owned(out)
}

/// The text for a word of the system.
pub fn encode_os(word: &OsStr) -> Cow<'_, str> {
    encode(word.as_bytes())
}

/// The path that a text names.
pub fn path(text: &str) -> PathBuf {
    OsString::from_vec(decode(text).into_owned()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_come_back() {
        let all: Vec<u8> = (0..=255).collect();
        let marks = "\u{10fe7f}\u{10fe80}\u{10feff}\u{10ff00}\u{10ffff}";
        let cut = &"ä💾".as_bytes()[1..4];
        for bytes in [b"plain", "/größe 💾".as_bytes(), b"/a\x80b\xff", marks.as_bytes(), &all, cut]
        {
            assert_eq!(decode(&encode(bytes)), bytes);
        }
        assert_eq!(encode(b"/a\x80"), "/a\u{10fe80}");
        assert_eq!(decode("/a\u{10fe80}"), b"/a\x80".as_slice());
        assert!(matches!(encode("ä".as_bytes()), Cow::Borrowed("ä")));
    }

    #[test]
    fn every_character_comes_back() {
        for one in '\0'..=char::MAX {
            let text = one.to_string();
            assert_eq!(decode(&encode(text.as_bytes())), text.as_bytes(), "{one:?}");
        }
    }
}
