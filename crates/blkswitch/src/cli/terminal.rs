//! The terminal: its size, whether it shows colours, and complaints on it.

use std::env;
use std::io::{IsTerminal, Write, stderr, stdout};

use terminal_size::{Height, Width, terminal_size_of};

use crate::raw;

/// Least number of columns that `COLUMNS` may give; a smaller number is a mistake.
const COLUMNS_MIN: usize = 20;

/// Columns of the terminal on standard output, or the value of `COLUMNS`; `None` without both.
pub(super) fn width() -> Option<usize> {
    size().map(|(width, _)| width)
}

/// Columns and rows of the terminal on standard output. Without a terminal, the columns are those
/// of `COLUMNS`, and the rows are unlimited; `None` without both.
pub(super) fn size() -> Option<(usize, usize)> {
    match terminal_size_of(stdout()) {
        Some((Width(width), Height(height))) => Some((width.into(), height.into())),
        None => columns(&env::var("COLUMNS").ok()?).map(|columns| (columns, usize::MAX)),
    }
}

fn columns(text: &str) -> Option<usize> {
    text.parse().ok().filter(|columns| *columns >= COLUMNS_MIN)
}

/// Returns whether to print colours: to a terminal with colours, unless `NO_COLOR` (no-color.org)
/// is set.
pub(super) fn colours() -> bool {
    let set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
    stdout().is_terminal() && !set("NO_COLOR") && !dumb
}

/// Writes a text to standard error. Its bytes that are not UTF-8 appear as they are.
pub(super) fn complain(text: &str) {
    // There is no place left for an error of standard error.
    let _ = stderr().write_all(&raw::decode(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_a_number_that_makes_sense() {
        let texts = ["80", "60", "20", "19", "0", "", "x", "-1"].map(columns);
        assert_eq!(texts, [Some(80), Some(60), Some(20), None, None, None, None, None]);
    }
}
