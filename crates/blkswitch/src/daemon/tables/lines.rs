//! The lines of a table, parsed once. Every later step uses this result.
//!
//! Contract: the first fault comes after the lines before it, so that errors are found in the
//! kernel's order. Any thread, any bytes: the caller decodes the text of a request
//! ([`crate::raw`]).

use blkswitch_core::args::is_space;
use blkswitch_core::table::{self, LineError};

/// One line of a table: a target and its place on the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// Number of the line, counted from 1.
    pub(crate) number: usize,
    /// First sector on the device.
    pub(crate) start: u64,
    /// Length in sectors.
    pub(crate) len: u64,
    /// Name of the target type.
    pub(crate) kind: &'a [u8],
    /// The parameters of the target, as one text.
    pub(crate) params: &'a [u8],
    /// The words of `params`. A backslash has no meaning here: `dmsetup` doubles the backslashes of
    /// a table, and the kernel removes one of each pair.
    pub(crate) words: Vec<&'a [u8]>,
}

/// The valid lines of a table, up to the first fault.
#[derive(Debug)]
pub(crate) struct Lines<'a> {
    good: Vec<Line<'a>>,
    fault: Option<LineError<'a>>,
}

impl<'a> Lines<'a> {
    /// Parses the text of a table.
    pub(crate) fn parse(text: &'a [u8]) -> Lines<'a> {
        let mut lines = Lines { good: Vec::new(), fault: None };
        for line in table::lines(text) {
            match line {
                Ok(line) => lines.good.push(Line {
                    number: line.line,
                    start: line.start,
                    len: line.len,
                    kind: line.kind,
                    params: line.params,
                    words: words(line.params),
                }),
                Err(fault) => {
                    lines.fault = Some(fault);
                    break;
                }
            }
        }
        lines
    }

    /// The lines before the first fault.
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Line<'a>> {
        self.good.iter()
    }

    /// The first fault; `None` if all lines are valid.
    pub(crate) fn fault(&self) -> Option<LineError<'a>> {
        self.fault
    }

    /// Length of the device in sectors.
    pub(crate) fn sectors(&self) -> u64 {
        self.iter().map(|line| line.start.saturating_add(line.len)).max().unwrap_or(0)
    }
}

fn words(params: &[u8]) -> Vec<&[u8]> {
    params.split(|byte| is_space(*byte)).filter(|word| !word.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backslashes_of_a_table_are_literal() {
        let lines = Lines::parse(br"0 8 switch 1  128\ 0 /dev/a\b ");
        let words = [b"1".as_slice(), br"128\", b"0", br"/dev/a\b"];
        assert_eq!(lines.iter().next().unwrap().words, words);
    }

    #[test]
    fn lines_before_a_fault_are_there() {
        let lines = Lines::parse(b"0 8 zero\n# none\n8 8 error\nx\n16 8 zero\n");
        let places: Vec<(usize, u64)> = lines.iter().map(|one| (one.number, one.start)).collect();
        assert_eq!(places, [(1, 0), (3, 8)]);
        assert_eq!(lines.fault(), Some(LineError::Format { line: 4 }));
        assert_eq!(lines.sectors(), 16);
    }
}
