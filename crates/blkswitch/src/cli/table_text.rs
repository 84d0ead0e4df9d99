//! Reads table text like dmsetup: from `--table`, from a file, from standard input, and in the
//! concise form.
//!
//! Contract: input and error texts are dmsetup's. It returns canonical lines `START LENGTH TYPE
//! PARAMETERS` for the daemon, which checks everything else. Bytes that are not UTF-8 are encoded
//! ([`raw`]).

use std::fmt::Write as _;
use std::fs;
use std::io::{self, IsTerminal, Read};

use super::failure::Failure;
use crate::raw;

/// Reads the table from `--table`, else from a file, else from standard input. `None` if it has no
/// lines.
pub(super) fn read(table: Option<&str>, file: Option<&str>) -> Result<Option<String>, Failure> {
    let (text, source) = match (table, file) {
        (Some(text), _) => (text.to_owned(), ""),
        (None, Some(file)) => (read_file(file)?, file),
        (None, None) => {
            if io::stdin().is_terminal() {
                eprintln!(
                    "blkswitch: type the table, lines of START LENGTH TYPE PARAMETERS, and end it \
                     with Ctrl-D (or give it with --table, or as a file)"
                );
            }
            (read_stdin()?, "on stdin")
        }
    };
    canonical(&text, source)
}

fn read_file(path: &str) -> Result<String, Failure> {
    let couldnt =
        |error| Failure::Message(format!("Couldn't open '{path}' for reading.\n  {error}"));
    Ok(raw::encode(&fs::read(raw::path(path)).map_err(couldnt)?).into_owned())
}

/// Reads all of standard input.
pub(super) fn read_stdin() -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let aborted = |error| Failure::Message(format!("Read from stdin aborted: {error}"));
    io::stdin().lock().read_to_end(&mut bytes).map_err(aborted)?;
    Ok(raw::encode(&bytes).into_owned())
}

/// Most letters that are shown of a wrong line.
const SHOWN_LETTERS: usize = 80;

/// Checks that every line has START, LENGTH and TYPE, and drops empty lines and comments.
pub(super) fn canonical(text: &str, source: &str) -> Result<Option<String>, Failure> {
    let mut out = String::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_matches(is_space);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((start, length, kind, params)) = split_line(line) else {
            let number = index + 1;
            let shown: String = line.chars().take(SHOWN_LETTERS).collect();
            return Err(Failure::Message(format!(
                "Invalid format on line {number} of table {source}.\n  '{shown}': a line is START \
                 LENGTH TYPE [PARAMETERS], START and LENGTH decimal numbers of 512-byte sectors, \
                 as in: 0 2048 zero"
            )));
        };
        let params = params.split('#').next().unwrap_or_default().trim_matches(is_space);
        let _ = writeln!(out, "{}", format!("{start} {length} {kind} {params}").trim_end());
    }
    Ok((!out.is_empty()).then_some(out))
}

/// White space in the C locale. Other white space of Unicode may be part of a path.
fn is_space(one: char) -> bool {
    one.is_ascii_whitespace() || one == '\x0b'
}

fn split_line(line: &str) -> Option<(u64, u64, &str, &str)> {
    let (start, rest) = number(line)?;
    let (length, rest) = number(rest)?;
    let rest = rest.trim_start_matches(is_space);
    let end = rest.find(is_space).unwrap_or(rest.len());
    (end > 0).then(|| (start, length, &rest[..end], &rest[end..]))
}

/// Parses a decimal number at the start of `text`. A number that is too large becomes `u64::MAX`,
/// which the daemon refuses.
fn number(text: &str) -> Option<(u64, &str)> {
    let text = text.trim_start_matches(is_space);
    let digits = text.strip_prefix('+').unwrap_or(text);
    let end = digits.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(digits.len());
    (end > 0).then(|| (digits[..end].parse().unwrap_or(u64::MAX), &digits[end..]))
}

/// One device of a concise description.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Concise {
    /// The name, not escaped yet.
    pub name: String,
    /// The UUID; empty if there is none.
    pub uuid: String,
    /// The minor number that the description asks for.
    pub minor: Option<u32>,
    /// Whether the flags are `ro`.
    pub read_only: bool,
    /// The text of the table, one line per segment.
    pub table: String,
}

/// Splits `name,uuid,minor,flags,table[,table...][;...]`. A backslash makes the next character
/// literal.
pub(super) fn parse_concise(text: &str) -> Result<Vec<Concise>, Failure> {
    let mut devices = Vec::new();
    let mut fields = vec![String::new()];
    let mut letters = text.trim_end().chars().peekable();
    while let Some(letter) = letters.next() {
        let table = fields.len() == CONCISE_FIELDS;
        let last = fields.len() - 1;
        match letter {
            '\\' => match letters.next() {
                Some(next) => fields[last].push(next),
                None => {
                    return Err(concise(
                        "Backslash must be followed by another character at end of string.",
                        &fields,
                    ));
                }
            },
            ',' if table => fields[last].push('\n'),
            ',' => {
                fields.push(String::new());
                while letters.next_if(|next| next.is_whitespace()).is_some() {}
            }
            ';' => {
                devices.push(concise_device(&fields)?);
                fields = vec![String::new()];
                while letters.next_if(|next| next.is_whitespace()).is_some() {}
            }
            _ => fields[last].push(letter),
        }
    }
    if fields.len() > 1 || !fields[0].is_empty() {
        devices.push(concise_device(&fields)?);
    }
    Ok(devices)
}

/// The fields are: name, uuid, minor, flags, table.
const CONCISE_FIELDS: usize = 5;

fn concise_device(fields: &[String]) -> Result<Concise, Failure> {
    let [name, uuid, minor, flags, table] = fields else {
        return Err(concise("Five comma-separated fields are required for each device", fields));
    };
    let read_only = match flags.as_str() {
        "ro" => true,
        "rw" | "" => false,
        _ => {
            let text = format!("Invalid flags parameter '{flags}' must be 'ro' or 'rw' or empty.");
            return Err(Failure::Message(text));
        }
    };
    let minor = match minor.as_str() {
        "" => None,
        digits => match digits.trim().parse() {
            Ok(number) => Some(number),
            Err(_) => {
                return Err(concise(
                    &format!("The minor number '{digits}' is not a number from 0 to 4294967295."),
                    fields,
                ));
            }
        },
    };
    Ok(Concise { name: name.clone(), uuid: uuid.clone(), minor, read_only, table: table.clone() })
}

fn concise(complaint: &str, fields: &[String]) -> Failure {
    let labels = ["name", "uuid", "minor", "flags", "table"];
    let mut text = format!("{complaint}\nParsed {} fields:", fields.len());
    for (label, field) in labels.iter().zip(fields) {
        let _ = write!(text, " {label}: {field}");
    }
    Failure::Message(text)
}

/// Escapes a field of the concise form: characters that would end it get a backslash.
pub(super) fn quote_concise(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        if matches!(letter, ',' | ';' | '\\') {
            out.push('\\');
        }
        out.push(letter);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_trimmed_and_comments_dropped() {
        let text = "# a table\n\n  0 2048   switch 3 128 0 /dev/a 0  # the first\n\t2048 8 error\n";
        let lines = canonical(text, "").unwrap().unwrap();
        assert_eq!(lines, "0 2048 switch 3 128 0 /dev/a 0\n2048 8 error\n");
        assert_eq!(canonical("\n # only a comment\n", "").unwrap(), None);
    }

    #[test]
    fn a_line_needs_three_words() {
        for (text, source, complaint) in [
            ("x", "", "Invalid format on line 1 of table ."),
            ("0 1 error\n0 8", "/tmp/t", "Invalid format on line 2 of table /tmp/t."),
            ("0x10 8 error", "on stdin", "Invalid format on line 1 of table on stdin."),
            ("-1 8 error", "", "Invalid format on line 1 of table ."),
        ] {
            let failure = canonical(text, source).unwrap_err().plain();
            let line = text.lines().last().unwrap();
            assert!(failure.starts_with(&format!("{complaint}\n  '{line}': a line is START ")));
            assert!(failure.ends_with("\nCommand failed.\n"), "{failure}");
        }
        let huge = canonical("0 99999999999999999999999 zero", "").unwrap().unwrap();
        assert_eq!(huge, "0 18446744073709551615 zero\n");
    }

    #[test]
    fn concise_forms_come_apart() {
        let text = "dev1,,,,0 100 linear 253:1 0,100 100 error;dev2, U\\,2,7,ro,0 1 error";
        let devices = parse_concise(text).unwrap();
        let first = Concise {
            name: "dev1".into(),
            table: "0 100 linear 253:1 0\n100 100 error".into(),
            ..Concise::default()
        };
        let second = Concise {
            name: "dev2".into(),
            uuid: "U,2".into(),
            minor: Some(7),
            read_only: true,
            table: "0 1 error".into(),
        };
        assert_eq!(devices, [first, second]);
        assert_eq!(parse_concise("").unwrap(), []);
        assert!(
            parse_concise("a,b,c").unwrap_err().plain().starts_with("Five comma-separated fields")
        );
        assert!(parse_concise("a,,,rx,0 1 zero").unwrap_err().plain().contains("'rx'"));
        assert!(parse_concise("a,,,,0 1 zero\\").unwrap_err().plain().starts_with("Backslash"));
        assert_eq!(quote_concise("a,b;c\\d"), "a\\,b\\;c\\\\d");
    }
}
