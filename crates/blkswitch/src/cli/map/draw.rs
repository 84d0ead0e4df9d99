//! Draws a map picture: a ruler, blocks in the colours of the paths, and a legend with counts.
//!
//! If all regions of a block are on one path, the block is full. A mixed block has the colour of
//! the path with the most regions, and shows that path's share ([`Share`]). If no path has more
//! than half, the block is neutral, because any path's colour would be wrong. Without colours, a
//! block is the path's glyph ([`GLYPHS`]) and a mark for the share.
//!
//! Contract: pure; it knows the terminal only through [`Look`].

use std::fmt::Write as _;

use crate::protocol::{Cell, MapPicture};

/// Codes of the 256-colour palette that differ clearly on dark and light backgrounds. Most
/// colour-blind users can distinguish the first eight. From the 17th path on they repeat.
const PALETTE: [u8; 16] = [33, 208, 35, 220, 162, 45, 124, 250, 99, 154, 94, 211, 23, 228, 53, 239];
/// Background of the dots of mixed blocks.
const MIXED_GROUND: u8 = 236;
/// Grey of the dots of neutral blocks.
const NEUTRAL: u8 = 245;
/// Glyphs of the first paths: digits, then letters that cannot be confused.
const GLYPHS: &str = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ\
                      αβγδεζηθλμξπρστφχψωΓΔΘΛΞΠΣΦΨΩбгджзийлпфцчшщъыэюяБГДЖЗИЛУЦЧШЩЪЫЭЮЯ";
/// Glyph of all further paths.
const OTHER: char = '#';
/// Columns of the ruler: region, sector, and the space around them.
const RULER_COLUMNS: usize = 27;
/// Blocks in a row. These are round numbers, so that the ruler shows round numbers, too. Longer
/// rows are hard to follow.
const ROW_BLOCKS: [usize; 4] = [100, 50, 20, 10];
/// Columns without a terminal: enough for fifty blocks of two columns.
const COLUMNS_DEFAULT: usize = 130;
/// Number of rows without a terminal, and upper limit with one.
const ROWS_MAX: usize = 32;
/// Rows of heading and legend.
const ROWS_AROUND: usize = 10;
/// Most paths with a legend line of their own. If there are more, they share lines, without bars
/// and addresses.
const LEGEND_LINES_MAX: usize = 16;
/// Columns of a path in a shared legend line.
const ENTRY_COLUMNS: usize = 22;
/// Most and fewest columns of the bar in the legend.
const BAR_COLUMNS: [usize; 2] = [30, 8];
/// Columns of a legend line without its bar and address.
const LEGEND_COLUMNS: usize = 39;

/// The share of a block's regions that are on its most frequent path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    All,
    ThreeQuarters,
    Half,
    /// At most half of the regions.
    Less,
}

impl Share {
    fn of(cell: &Cell) -> Self {
        match u128::from(cell.majority) * 4 {
            four if four >= u128::from(cell.count) * 4 => Self::All,
            four if four >= u128::from(cell.count) * 3 => Self::ThreeQuarters,
            four if four > u128::from(cell.count) * 2 => Self::Half,
            _ => Self::Less,
        }
    }
}

/// The size of the picture, and whether to use colours.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    columns: usize,
    rows: usize,
    colours: bool,
    /// Most columns of a line; unlimited without a terminal.
    limit: usize,
}

impl Look {
    /// The look for a terminal of `size` columns and rows, or for no terminal.
    pub(super) fn new(size: Option<(usize, usize)>, colours: bool) -> Self {
        let (columns, lines) = size.unwrap_or((COLUMNS_DEFAULT, usize::MAX));
        let limit = size.map_or(usize::MAX, |(columns, _)| columns);
        Self { limit, columns, rows: lines.saturating_sub(ROWS_AROUND).clamp(4, ROWS_MAX), colours }
    }

    /// Number of blocks that fit.
    pub(super) fn cells(&self) -> usize {
        self.row(if self.colours { 1 } else { 2 }) * self.rows
    }

    /// Number of blocks in a row if each has `width` columns.
    fn row(&self, width: usize) -> usize {
        let room = self.columns.saturating_sub(RULER_COLUMNS) / width;
        ROW_BLOCKS
            .into_iter()
            .find(|&blocks| blocks <= room)
            .unwrap_or(ROW_BLOCKS[ROW_BLOCKS.len() - 1])
    }

    /// Columns of a block: two if they fit, otherwise one. Without colours, the second one shows
    /// the mark.
    fn block_width(&self, cells: usize) -> usize {
        if !self.colours || cells <= self.row(2) * self.rows { 2 } else { 1 }
    }
}

/// Draws the picture, with a newline at the end.
pub(super) fn draw(name: &str, picture: &MapPicture, look: &Look) -> String {
    let mut out = heading(name, picture);
    let width = look.block_width(picture.cells.len());
    let _ =
        writeln!(out, "\n{:>10} {:>14}  each block: {}", "region", "sector", block_size(picture));
    for row in picture.cells.chunks(look.row(width)) {
        let start = row.first().map_or(0, |cell| cell.start);
        let _ = write!(out, "{start:>10} {:>14}  ", first_sector(picture, start));
        for cell in row {
            block(&mut out, cell, picture, width, look.colours);
        }
        while !look.colours && out.ends_with(' ') {
            out.pop();
        }
        out.push('\n');
    }
    out.push('\n');
    legend(&mut out, picture, look);
    explain(&mut out, picture, look.colours);
    out
}

/// First sector of a region on the device.
fn first_sector(picture: &MapPicture, region: u64) -> u64 {
    picture.start_sector.saturating_add(region.saturating_mul(picture.region_size.into()))
}

fn heading(name: &str, picture: &MapPicture) -> String {
    let MapPicture { regions, paths, region_size, from, to, .. } = *picture;
    let size = bytes(u64::from(region_size).saturating_mul(512));
    let mut out =
        format!("{name}: {regions} regions of {region_size} sectors ({size}) on {paths} paths\n");
    if from > 0 || to.saturating_add(1) < regions {
        let _ = writeln!(out, "only regions {from} to {to}");
    }
    out
}

fn block_size(picture: &MapPicture) -> String {
    match picture.cells.first().map_or(1, |cell| cell.count) {
        1 => "1 region".to_owned(),
        size => format!("{size} regions"),
    }
}

fn block(out: &mut String, cell: &Cell, picture: &MapPicture, width: usize, colours: bool) {
    let (share, glyph) = (Share::of(cell), glyph(cell.path));
    if !colours {
        let _ = match share {
            Share::All => write!(out, "{glyph} "),
            Share::ThreeQuarters => write!(out, "{glyph}+"),
            Share::Half => write!(out, "{glyph}~"),
            Share::Less => write!(out, "~~"),
        };
        return;
    }
    let colour = colour(cell.path);
    let dots = match share {
        Share::All => {
            let ink = ink(colour);
            let _ = write!(out, "\x1b[38;5;{ink};48;5;{colour}m{glyph:<width$}\x1b[0m");
            return;
        }
        Share::ThreeQuarters => "▓",
        Share::Half => "▒",
        Share::Less => "░",
    };
    let neutral = share == Share::Less;
    let colour = if neutral { NEUTRAL } else { colour };
    let _ = write!(out, "\x1b[38;5;{colour};48;5;{MIXED_GROUND}m");
    // Colours repeat beyond the palette, so the glyph identifies the path.
    if !neutral && picture.paths as usize > PALETTE.len() {
        let _ = write!(out, "{glyph}{}", dots.repeat(width - 1));
    } else {
        out.push_str(&dots.repeat(width));
    }
    out.push_str("\x1b[0m");
}

/// The number of regions on each path. Each path has a line, or several share one if there are
/// many.
fn legend(out: &mut String, picture: &MapPicture, look: &Look) {
    let shown: u64 = picture.totals.iter().sum();
    if picture.totals.len() > LEGEND_LINES_MAX {
        return crowded_legend(out, picture, shown, look);
    }
    let most = picture.totals.iter().copied().max().unwrap_or(0).max(1);
    let longest = picture.addresses.iter().map(|one| one.chars().count()).max().unwrap_or(0);
    let [bar_most, bar_least] = BAR_COLUMNS;
    let room = look.limit.saturating_sub(LEGEND_COLUMNS);
    let bar_columns = room.saturating_sub(longest).clamp(bar_least, bar_most);
    for (path, &count) in (0..).zip(&picture.totals) {
        let filled = (u128::from(count) * bar_columns as u128).div_ceil(most.into()) as usize;
        let bar = if look.colours {
            format!("\x1b[38;5;{}m{}\x1b[0m", colour(path), "█".repeat(filled))
        } else {
            "#".repeat(filled)
        };
        let address = picture.addresses.get(path as usize).map(String::as_str).unwrap_or_default();
        let address = cut(address, room.saturating_sub(bar_columns));
        let pad = " ".repeat(bar_columns.saturating_sub(filled));
        let (mark, share) = (mark(path, look.colours), percent(count, shown));
        let line = format!("{mark}path {path:<4} {count:>12} {share:>8}  {bar}{pad}  {address}");
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

/// The paths in columns; if there are too many, those with the most regions.
fn crowded_legend(out: &mut String, picture: &MapPicture, shown: u64, look: &Look) {
    let in_row = (look.columns / ENTRY_COLUMNS).max(1);
    let room = in_row * LEGEND_LINES_MAX;
    let mut paths: Vec<usize> = (0..picture.totals.len()).collect();
    paths.sort_by_key(|path| std::cmp::Reverse(picture.totals.get(*path)));
    let rest: u64 = paths.iter().skip(room).filter_map(|path| picture.totals.get(*path)).sum();
    let others = paths.len().saturating_sub(room);
    paths.truncate(room);
    paths.sort_unstable();
    for row in paths.chunks(in_row) {
        let mut line = String::new();
        for &path in row {
            let count = picture.totals.get(path).copied().unwrap_or(0);
            let (mark, share) = (mark(path as u32, look.colours), percent(count, shown));
            let _ = write!(line, "{mark}{path:<6} {share:>8}    ");
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    if others > 0 {
        let _ = writeln!(out, "  {others} other paths: {rest} regions, {}", percent(rest, shown));
    }
}

/// The glyph of a path: in its colour and three columns wide, or without colours alone.
fn mark(path: u32, colours: bool) -> String {
    let glyph = glyph(path);
    if !colours {
        return format!("{glyph} ");
    }
    let colour = colour(path);
    format!("\x1b[38;5;{};48;5;{colour}m{glyph} \x1b[0m ", ink(colour))
}

/// Explains the marks of mixed blocks, if the picture has any.
fn explain(out: &mut String, picture: &MapPicture, colours: bool) {
    let marks = if colours { ["▓", "▒", "░"] } else { ["+", "~", "~~"] };
    let shares = [Share::ThreeQuarters, Share::Half, Share::Less];
    let texts = ["three quarters or more", "more than half", "at most half on any path"];
    let occurs = |share| picture.cells.iter().any(|cell| Share::of(cell) == share);
    let marked = shares.into_iter().zip(marks.into_iter().zip(texts));
    let lines: Vec<String> = marked
        .filter(|(share, _)| occurs(*share))
        .map(|(_, (mark, text))| format!("{mark:<2} {text}"))
        .collect();
    if !lines.is_empty() {
        let _ = writeln!(out, "Mixed blocks: --range A-B looks closer");
        for line in lines {
            let _ = writeln!(out, "{line}");
        }
    }
}

/// The end of a text, at most `room` letters.
fn cut(text: &str, room: usize) -> String {
    let length = text.chars().count();
    if length <= room {
        return text.to_owned();
    }
    let end: String = text.chars().skip(length - room.saturating_sub(1)).collect();
    format!("…{end}")
}

fn percent(part: u64, all: u64) -> String {
    format!("{:.2} %", part as f64 * 100.0 / all.max(1) as f64)
}

fn glyph(path: u32) -> char {
    GLYPHS.chars().nth(path as usize).unwrap_or(OTHER)
}

fn colour(path: u32) -> u8 {
    PALETTE[path as usize % PALETTE.len()]
}

/// Black or white, whichever is readable on `colour`. It is chosen by the luminance in the 6x6x6
/// cube or the scale of greys.
fn ink(colour: u8) -> u8 {
    let luminance = match colour {
        16..=231 => {
            let cube = u32::from(colour) - 16;
            (cube / 36) * 3 + (cube / 6 % 6) * 6 + cube % 6
        }
        grey => (u32::from(grey).saturating_sub(232)) * 2,
    };
    if luminance > 22 { 16 } else { 231 }
}

/// Formats a size with a binary unit, and with a decimal if it is no whole number: `64 KiB`,
/// `25.5 KiB`.
pub(super) fn bytes(size: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (size.max(1).ilog2() / 10) as usize;
    let scaled = size as f64 / (1_u64 << (10 * unit)) as f64;
    let digits = usize::from(scaled.fract() != 0.0);
    format!("{scaled:.digits$} {}", units.get(unit).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::condense;
    use crate::protocol::Run;

    fn picture(paths: u32, runs: &[Run], cells: usize) -> MapPicture {
        let regions = runs.iter().map(|run| run.count).sum::<u64>();
        let (cells, totals) = condense(0, regions - 1, cells, paths, runs.iter().copied());
        MapPicture {
            regions,
            paths,
            region_size: 128,
            to: regions - 1,
            cells,
            totals,
            addresses: (0..paths).map(|path| format!("/dev/ram{path}")).collect(),
            ..MapPicture::default()
        }
    }

    fn round_robin(paths: u32, regions: u64) -> Vec<Run> {
        (0..regions)
            .map(|start| Run { start, count: 1, path: (start % u64::from(paths)) as u32 })
            .collect()
    }

    #[test]
    fn the_documented_example_without_colours() {
        let mut runs = round_robin(3, 16);
        runs[6].path = 1;
        let look = Look::new(None, false);
        assert_eq!(
            draw("switch", &picture(3, &runs, look.cells()), &look),
            "switch: 16 regions of 128 sectors (64 KiB) on 3 paths\n\n    \
             region         sector  each block: 1 region\n         0              0  \
             0 1 2 0 1 2 1 1 2 0 1 2 0 1 2 0\n\n\
             0 path 0               5  31.25 %  #########################       /dev/ram0\n\
             1 path 1               6  37.50 %  ##############################  /dev/ram1\n\
             2 path 2               5  31.25 %  #########################       /dev/ram2\n"
        );
    }

    #[test]
    fn mixed_blocks_are_marked() {
        let runs = [Run { start: 0, count: 8, path: 0 }, Run { start: 8, count: 2, path: 1 }];
        let plain = draw("d", &picture(2, &runs, 2), &Look::new(None, false));
        assert!(
            plain.contains("each block: 5 regions\n         0              0  0 0~\n"),
            "{plain}"
        );
        assert!(
            plain.ends_with("Mixed blocks: --range A-B looks closer\n~  more than half\n"),
            "{plain}"
        );
        let coloured = draw("d", &picture(2, &runs, 2), &Look::new(None, true));
        assert!(
            coloured.contains("\x1b[38;5;231;48;5;33m0 \x1b[0m\x1b[38;5;33;48;5;236m▒▒\x1b[0m"),
            "{coloured:?}"
        );
    }

    /// Regression: round robin was drawn as if all of it were on the first paths.
    #[test]
    fn a_block_that_no_path_has_most_of_is_neutral() {
        for paths in [2, 3, 16, 300] {
            let runs = round_robin(paths, 48_000);
            let plain = draw("d", &picture(paths, &runs, 20), &Look::new(None, false));
            let rows = plain.lines().skip(3).take_while(|line| !line.is_empty());
            let blocks: String = rows.map(|row| row[RULER_COLUMNS..].to_owned()).collect();
            assert!(blocks.trim().chars().all(|mark| mark == '~'), "{paths}: {plain}");
            assert!(plain.ends_with("~~ at most half on any path\n"), "{plain}");
            let coloured = draw("d", &picture(paths, &runs, 20), &Look::new(None, true));
            assert!(coloured.contains("\x1b[38;5;245;48;5;236m░░\x1b[0m"), "{coloured:?}");
        }
    }

    #[test]
    fn shares_have_shades() {
        for (majority, mark, shade) in
            [(9, "0 ", "0 "), (7, "0+", "▓▓"), (5, "0~", "▒▒"), (4, "~~", "░░")]
        {
            let cell = Cell { start: 0, count: 9, path: 0, majority };
            for (colours, drawn) in [(false, mark), (true, shade)] {
                let mut out = String::new();
                block(&mut out, &cell, &picture(2, &round_robin(2, 9), 9), 2, colours);
                assert!(out.contains(drawn), "{majority}: {out:?}");
            }
        }
    }

    #[test]
    fn blocks_fit_the_terminal() {
        for (size, colours, cells) in [
            ((80, 24), true, 50 * 14),
            ((80, 24), false, 20 * 14),
            ((200, 100), true, 100 * 32),
            ((20, 5), true, 10 * 4),
            ((130, 50), false, 50 * 32),
        ] {
            let look = Look::new(Some(size), colours);
            assert_eq!(look.cells(), cells, "{size:?}");
            let runs = round_robin(3, cells as u64);
            let text = draw("d", &picture(3, &runs, cells), &look);
            let width = |line: &str| {
                line.split('\x1b')
                    .map(|part| part.rsplit('m').next().unwrap_or(part).len())
                    .sum::<usize>()
            };
            let widest = text.lines().skip(3).take(look.rows).map(width).max().unwrap();
            assert!(widest <= size.0.max(RULER_COLUMNS + 20), "{size:?}: {widest}");
        }
    }

    #[test]
    fn few_blocks_are_wide_and_many_are_narrow() {
        let look = Look::new(Some((80, 24)), true);
        assert_eq!((look.block_width(20 * 14), look.block_width(20 * 14 + 1)), (2, 1));
        assert_eq!(Look::new(Some((80, 24)), false).block_width(1000), 2);
    }

    #[test]
    fn every_path_has_a_glyph_of_its_own() {
        let glyphs: std::collections::HashSet<char> = (0..128).map(glyph).collect();
        assert!(glyphs.len() >= 120, "{}", glyphs.len());
        assert_eq!((glyph(9), glyph(35), glyph(36), glyph(u32::MAX)), ('9', 'z', 'A', OTHER));
        let letters = GLYPHS.chars().collect::<std::collections::HashSet<_>>();
        assert_eq!(letters.len(), GLYPHS.chars().count(), "a glyph stands for one path");
    }

    #[test]
    fn many_paths_have_a_legend_too() {
        let look = Look::new(None, false);
        let text = draw("d", &picture(40, &round_robin(40, 80), look.cells()), &look);
        assert!(text.contains("y z A B C D 0 1"), "{text}");
        assert!(text.contains("A 36       2.50 %    B 37       2.50 %"), "{text}");
        assert!(!text.contains("other paths"), "{text}");
        let mut runs = round_robin(1000, 3000);
        runs[0].path = 999;
        let text = draw("d", &picture(1000, &runs, look.cells()), &look);
        assert!(text.contains("# 999      0.13 %"), "{text}");
        assert!(text.contains("  920 other paths: 2759 regions, 91.97 %\n"), "{text}");
    }

    #[test]
    fn a_line_fits_a_narrow_terminal() {
        for columns in [60, 80, 100] {
            for (paths, count) in [(3, 16), (3, 100_000), (40, 4000), (1, 100)] {
                let look = Look::new(Some((columns, 24)), false);
                let mut picture = picture(paths, &round_robin(paths, count), look.cells());
                for address in &mut picture.addresses {
                    *address = format!("nbd+unix:///volume?socket=/run/user/1000{address}");
                }
                let text = draw("disk", &picture, &look);
                for line in text.lines() {
                    assert!(line.chars().count() <= columns, "{columns}: {line}");
                }
                let bars: Vec<usize> = text.lines().filter_map(|line| line.find("%  #")).collect();
                assert!(bars.windows(2).all(|pair| pair[0] == pair[1]), "{text}");
            }
        }
    }

    #[test]
    fn sizes_are_short() {
        let sizes = [512, 65_536, 15 << 20, 26_112, 1 << 63, 0].map(bytes);
        assert_eq!(sizes, ["512 bytes", "64 KiB", "15 MiB", "25.5 KiB", "8 EiB", "0 bytes"]);
    }
}
