//! Makes text safe for a terminal or a log. Text from servers, clients and files may contain
//! control characters. They would move the cursor, colour the screen, or begin a line that looks
//! like one of the log.
//!
//! Contract: pure. The result has no control characters but those that are asked for.

use std::borrow::Cow;
use std::io::{self, Write};

use crate::raw;

/// The text on one line, with every control character written as in Rust (`\n`, `\u{1b}`).
pub fn on_one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    text.chars().for_each(|one| push(&mut out, one));
    Cow::Owned(out)
}

fn push(out: &mut String, one: char) {
    if one.is_control() { out.extend(one.escape_debug()) } else { out.push(one) }
}

/// Returns whether a line of the log must be escaped. Bytes that are not UTF-8 ([`raw`]) appear as
/// `\xNN` in a log.
fn needs_escapes(line: &str) -> bool {
    line.contains(char::is_control) || raw::has_bytes(line)
}

/// The output of a log. Each write is one event. Its last line break stays, and so do colour
/// sequences if the log has colours. All other control characters are escaped.
pub struct Log<W> {
    /// The output that the events are written to.
    pub to: W,
    /// Whether colour sequences pass.
    pub has_colours: bool,
}

impl<W: Write> Write for Log<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let end = &text[line.len()..];
        if needs_escapes(line) {
            self.to.write_all(escaped(line, self.has_colours).as_bytes())?;
            self.to.write_all(end.as_bytes())?;
        } else {
            self.to.write_all(text.as_bytes())?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn escaped(line: &str, has_colours: bool) -> String {
    let mut out = String::with_capacity(line.len() + 8);
    let mut rest = line;
    while let Some(one) = rest.chars().next() {
        let colour = if has_colours { colour_len(rest) } else { None };
        if let Some(len) = colour {
            out.push_str(&rest[..len]);
            rest = &rest[len..];
            continue;
        }
        match raw::byte(one) {
            Some(byte) => out.push_str(&format!("\\x{byte:02x}")),
            // A tab is harmless.
            None if one == '\t' => out.push(one),
            None => push(&mut out, one),
        }
        rest = &rest[one.len_utf8()..];
    }
    out
}

/// The length of the colour sequence at the start of the text; `None` if there is none.
fn colour_len(text: &str) -> Option<usize> {
    let numbers = text.strip_prefix("\x1b[")?;
    let end = numbers.find(|one: char| !one.is_ascii_digit() && one != ';')?;
    numbers[end..].starts_with('m').then_some(2 + end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_on_its_line() {
        assert_eq!(on_one_line("plain ä"), "plain ä");
        assert_eq!(on_one_line("a\nb\x1b[2J\0\u{9b}"), "a\\nb\\u{1b}[2J\\0\\u{9b}");
    }

    #[test]
    fn an_event_is_one_line_of_the_log() {
        let logged = |event: &str, has_colours| {
            let mut log = Log { to: Vec::new(), has_colours };
            log.write_all(event.as_bytes()).unwrap();
            String::from_utf8(log.to).unwrap()
        };
        assert_eq!(logged("name=x\n", false), "name=x\n");
        assert_eq!(logged("path=/a\u{10fe80}\n", false), "path=/a\\x80\n");
        assert_eq!(
            logged("name=x\nERROR forged\x1b[2J\n", false),
            "name=x\\nERROR forged\\u{1b}[2J\n"
        );
        assert_eq!(
            logged("\x1b[1;31mred\x1b[0m \x1b]0;title\x07\n", true),
            "\x1b[1;31mred\x1b[0m \\u{1b}]0;title\\u{7}\n"
        );
        assert_eq!(logged("\x1b[31mred\n", false), "\\u{1b}[31mred\n");
    }
}
