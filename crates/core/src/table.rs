//! The table: lines as `dmsetup` reads them, and the device-mapper core's rules for their sectors
//! and for the devices below.
//!
//! All places and lengths are in sectors of [`SECTOR_SIZE`] bytes, and names and fields that hold
//! bytes say so. (Types for units were tried. Only their constants were used, because a request's
//! numbers come from the kernel and go to it as plain integers.)
//!
//! Contract: pure; no allocation, no panic, any bytes. Lines come out in order with their numbers.
//! A caller uses nothing of a table before it has read all of it, so the first error ends the
//! reading.

use core::fmt;

use super::args::Printable;
use super::error::Error;

/// Bytes of a sector, the unit of every size and offset in a table line. It does not depend on the
/// blocks of the disks.
pub const SECTOR_SIZE: u64 = 512;
/// `1 << SECTOR_SHIFT == SECTOR_SIZE`.
pub const SECTOR_SHIFT: u32 = 9;
/// The longest device in sectors: its length in bytes fits a signed 64-bit file offset.
pub const MAX_DEVICE_SECTORS: u64 = i64::MAX as u64 >> SECTOR_SHIFT;

/// Longest target type in bytes: the kernel's interface has a field of 16 bytes with a terminating
/// NUL.
pub const MAX_TYPE_LEN: usize = 15;

/// One line of a table: a target with its place on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableLine<'a> {
    /// Number of the line, counted from 1.
    pub line: usize,
    /// First sector on the device.
    pub start: u64,
    /// Length in sectors.
    pub len: u64,
    /// Target type, at most [`MAX_TYPE_LEN`] bytes without white space.
    pub kind: &'a [u8],
    /// The target's own words, not yet split by [`super::args`].
    pub params: &'a [u8],
}

/// The fault of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LineError<'a> {
    /// Not `<start> <length> <type> [<parameters>]`.
    Format {
        /// Number of the line, counted from 1.
        line: usize,
    },
    /// A type longer than [`MAX_TYPE_LEN`].
    TypeTooLong {
        /// Number of the line, counted from 1.
        line: usize,
        /// The type.
        kind: &'a [u8],
    },
}

impl<'a> LineError<'a> {
    /// `dmsetup`'s text, which names the file of the table (`name` is empty for `--table` and
    /// standard input).
    #[must_use]
    pub const fn in_table(self, name: &'a str) -> InTable<'a> {
        InTable { error: self, name }
    }
}

/// A [`LineError`] in the table of this name. `Display` is `dmsetup`'s text.
#[derive(Clone, Copy, Debug)]
pub struct InTable<'a> {
    error: LineError<'a>,
    name: &'a str,
}

impl fmt::Display for InTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.error {
            LineError::Format { line } => {
                write!(f, "Invalid format on line {line} of table {}.", self.name)
            }
            LineError::TypeTooLong { kind, .. } => {
                write!(f, "Target type name {} is too long.", Printable(kind))
            }
        }
    }
}

impl fmt::Display for LineError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.in_table("").fmt(f)
    }
}

impl core::error::Error for LineError<'_> {}

/// The targets of a table text, one per line. Skips blank lines, lines that begin with `#`, and
/// everything from the first `#` of the parameters on.
///
/// ```
/// use blkswitch_core::table::lines;
/// let mut table = lines(b"# two halves\n0 100 switch 1 8 0 /dev/a 0\n100 50 error\n");
/// let first = table.next().unwrap().unwrap();
/// assert_eq!((first.line, first.start, first.len, first.kind), (2, 0, 100, b"switch".as_slice()));
/// assert_eq!(table.next().unwrap().unwrap().params, b"");
/// assert!(table.next().is_none());
/// ```
#[must_use]
pub const fn lines(text: &[u8]) -> Lines<'_> {
    Lines { rest: Some(text), line: 0 }
}

/// Iterator of [`lines`].
#[derive(Clone, Debug)]
pub struct Lines<'a> {
    rest: Option<&'a [u8]>,
    line: usize,
}

impl<'a> Iterator for Lines<'a> {
    type Item = Result<TableLine<'a>, LineError<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let text = self.rest?;
            let end = text.iter().position(|&byte| byte == b'\n').unwrap_or(text.len());
            let (line, rest) = text.split_at_checked(end)?;
            self.rest = rest.split_first().map(|(_, rest)| rest);
            self.line = self.line.wrapping_add(1);
            let line = trim_end(trim_start(line));
            if !line.is_empty() && !line.starts_with(b"#") {
                return Some(parse_line(line, self.line));
            }
        }
    }
}

fn parse_line(text: &[u8], line: usize) -> Result<TableLine<'_>, LineError<'_>> {
    let format = LineError::Format { line };
    let (start, rest) = scan_u64(text).ok_or(format)?;
    let (len, rest) = scan_u64(rest).ok_or(format)?;
    let rest = trim_start(rest);
    let end = rest.iter().position(|&byte| is_c_space(byte)).unwrap_or(rest.len());
    let (kind, params) = rest.split_at_checked(end).ok_or(format)?;
    if kind.is_empty() {
        return Err(format);
    }
    if kind.len() > MAX_TYPE_LEN {
        return Err(LineError::TypeTooLong { line, kind });
    }
    let params = trim_start(params);
    let comment = params.iter().position(|&byte| byte == b'#').unwrap_or(params.len());
    let params = params.split_at_checked(comment).map_or(params, |(params, _)| params);
    Ok(TableLine { line, start, len, kind, params })
}

/// White space of `dmsetup`: that of the C library, not the kernel's.
const fn is_c_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

fn trim_start(mut text: &[u8]) -> &[u8] {
    while let Some((&first, rest)) = text.split_first() {
        if !is_c_space(first) {
            break;
        }
        text = rest;
    }
    text
}

fn trim_end(mut text: &[u8]) -> &[u8] {
    while let Some((&last, rest)) = text.split_last() {
        if !is_c_space(last) {
            break;
        }
        text = rest;
    }
    text
}

/// Reads a number like `%llu`: blanks, a sign, decimal digits. A number that is too large becomes
/// the largest, and a negative one wraps. The rules for sectors refuse both later.
fn scan_u64(text: &[u8]) -> Option<(u64, &[u8])> {
    let text = trim_start(text);
    let (negative, mut rest) = match text.split_first() {
        Some((b'-', rest)) => (true, rest),
        Some((b'+', rest)) => (false, rest),
        _ => (false, text),
    };
    let mut value = None;
    while let Some((&byte, after)) = rest.split_first() {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        value = Some(match value.unwrap_or(Some(0u64)) {
            Some(value) => {
                value.checked_mul(10).and_then(|value| value.checked_add(u64::from(digit)))
            }
            None => None,
        });
        rest = after;
    }
    let value = match value? {
        Some(value) if negative => value.wrapping_neg(),
        Some(value) => value,
        None => u64::MAX,
    };
    Some((value, rest))
}

/// The device-mapper core's rule for the places of targets: they follow each other from sector 0
/// on, without a gap.
///
/// The kernel looks the target type up between the two checks. So the caller makes three calls:
/// [`Layout::extent`], the caller's look-up ([`Error::UnknownType`]), [`Layout::append`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    end: u64,
}

impl Layout {
    /// An empty table.
    #[must_use]
    pub const fn new() -> Self {
        Self { end: 0 }
    }

    /// The first sector of the next target, which is the length of the device so far.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Checks that a target can have this place and length.
    ///
    /// # Errors
    /// [`Error::ZeroLength`], and [`Error::TooLarge`] if it ends past [`MAX_DEVICE_SECTORS`].
    pub const fn extent(start: u64, len: u64) -> Result<(), Error> {
        if len == 0 {
            return Err(Error::ZeroLength);
        }
        match start.checked_add(len) {
            Some(end) if end <= MAX_DEVICE_SECTORS => Ok(()),
            _ => Err(Error::TooLarge { start, len }),
        }
    }

    /// Appends a target.
    ///
    /// # Errors
    /// [`Error::Gap`] if it does not start at [`Layout::end`].
    pub const fn append(&mut self, start: u64, len: u64) -> Result<(), Error> {
        if start != self.end {
            return Err(Error::Gap { start, expected: self.end });
        }
        self.end = start.saturating_add(len);
        Ok(())
    }

    /// Checks that the table is complete, that is, not empty.
    ///
    /// # Errors
    /// [`Error::NoTargets`] if it is empty.
    pub const fn finish(&self) -> Result<(), Error> {
        if self.end == 0 { Err(Error::NoTargets) } else { Ok(()) }
    }
}

/// Checks that a device of `dev_size` sectors has room for `len` sectors from sector `start` on, in
/// whole blocks of `block_size` bytes (a power of two).
///
/// # Errors
/// [`Error::DeviceTooSmall`], [`Error::StartUnaligned`] and [`Error::LenUnaligned`], in this order.
pub const fn check_area(start: u64, len: u64, dev_size: u64, block_size: u32) -> Result<(), Error> {
    match start.checked_add(len) {
        Some(end) if start < dev_size && end <= dev_size => {}
        _ => return Err(Error::DeviceTooSmall { start, len, dev_size }),
    }
    if !is_block_multiple(start, block_size) {
        return Err(Error::StartUnaligned { start, block_size });
    }
    if !is_block_multiple(len, block_size) {
        return Err(Error::LenUnaligned { len, block_size });
    }
    Ok(())
}

/// Checks that region boundaries are boundaries of blocks of `block_size` bytes (a power of two).
/// The kernel has no such check. A single region has no boundary inside the device.
///
/// # Errors
/// [`Error::RegionUnaligned`] if a region ends inside a block.
pub const fn check_region_size(
    region_size: u32,
    nr_regions: u64,
    block_size: u32,
) -> Result<(), Error> {
    if nr_regions > 1 && !is_block_multiple(region_size as u64, block_size) {
        return Err(Error::RegionUnaligned { region_size, block_size });
    }
    Ok(())
}

const fn is_block_multiple(sectors: u64, block_size: u32) -> bool {
    let block_sectors = (block_size >> SECTOR_SHIFT) as u64;
    block_sectors <= 1 || sectors & block_sectors.wrapping_sub(1) == 0
}
