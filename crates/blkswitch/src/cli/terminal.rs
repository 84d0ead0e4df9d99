//! The terminal: its size, and whether it takes colours.

use std::env;
use std::io::{IsTerminal, stdout};

use terminal_size::{Height, Width, terminal_size_of};

/// Columns of the terminal on standard output; `None` if that is not a terminal.
pub(super) fn width() -> Option<usize> {
    size().map(|(width, _)| width)
}

/// Columns and rows of the terminal on standard output; `None` if that is not a terminal.
pub(super) fn size() -> Option<(usize, usize)> {
    let (Width(width), Height(height)) = terminal_size_of(stdout())?;
    Some((width.into(), height.into()))
}

/// Whether to print colours: to a terminal with colours, unless `NO_COLOR` (no-color.org) is set.
pub(super) fn colours() -> bool {
    let set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
    stdout().is_terminal() && !set("NO_COLOR") && !dumb
}
