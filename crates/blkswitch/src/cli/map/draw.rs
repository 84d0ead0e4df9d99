//! Draws a map picture: a ruler, blocks in the colours of the paths, and a legend that counts.
//!
//! Contract: pure; it knows the terminal only through [`Look`]. Without colours, a block is the
//! path's digit (0-9, then a-z, then #). A `~` behind it means that the block has other paths, too.

use std::fmt::Write as _;

use crate::protocol::{Cell, MapPicture};

/// 256-colour codes that differ clearly on dark and light backgrounds; most colour-blind users can
/// tell the first eight apart. From the 17th path on they repeat.
const PALETTE: [u8; 16] = [33, 208, 35, 220, 162, 45, 124, 250, 99, 154, 94, 211, 23, 228, 53, 239];
/// Background of the dots of mixed blocks.
const MIXED_GROUND: u8 = 236;
/// Digits for paths.
const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
/// Columns of the ruler: region, sector, and the space around them.
const RULER_COLUMNS: usize = 27;
/// Blocks in a row: round numbers, so that the ruler shows round numbers, too. Longer rows are hard
/// to follow.
const ROW_BLOCKS: [usize; 4] = [100, 50, 20, 10];
/// Columns without a terminal: room for fifty blocks of two columns.
const COLUMNS_DEFAULT: usize = 130;
/// Rows without a terminal, and the most rows.
const ROWS_MAX: usize = 32;
/// Rows of heading and legend.
const ROWS_AROUND: usize = 10;
/// Most paths that the legend lists; it sums up the rest.
const LEGEND_PATHS_MAX: usize = 16;
/// Columns of the bar in the legend.
const BAR_COLUMNS: u64 = 30;

/// The room for the picture, and whether to use colours.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    columns: usize,
    rows: usize,
    colours: bool,
}

impl Look {
    /// For a terminal of `size` columns and rows, or without a terminal.
    pub(super) fn new(size: Option<(usize, usize)>, colours: bool) -> Self {
        let (columns, lines) = size.unwrap_or((COLUMNS_DEFAULT, usize::MAX));
        Self { columns, rows: lines.saturating_sub(ROWS_AROUND).clamp(4, ROWS_MAX), colours }
    }

    /// Number of blocks for which there is room.
    pub(super) fn cells(&self) -> usize {
        self.row(if self.colours { 1 } else { 2 }) * self.rows
    }

    /// Blocks in a row if each has `width` columns.
    fn row(&self, width: usize) -> usize {
        let room = self.columns.saturating_sub(RULER_COLUMNS) / width;
        ROW_BLOCKS
            .into_iter()
            .find(|&blocks| blocks <= room)
            .unwrap_or(ROW_BLOCKS[ROW_BLOCKS.len() - 1])
    }

    /// Columns of a block: two if there is room, else one. Without colours the second one shows the
    /// mark.
    fn block_width(&self, cells: usize) -> usize {
        if !self.colours || cells <= self.row(2) * self.rows { 2 } else { 1 }
    }
}

/// The picture, with a newline at the end.
pub(super) fn draw(name: &str, picture: &MapPicture, look: &Look) -> String {
    let mut out = heading(name, picture);
    let width = look.block_width(picture.cells.len());
    let _ =
        writeln!(out, "\n{:>10} {:>14}  each block: {}", "region", "sector", block_size(picture));
    for row in picture.cells.chunks(look.row(width)) {
        let start = row.first().map_or(0, |cell| cell.start);
        let _ = write!(out, "{start:>10} {:>14}  ", first_sector(picture, start));
        for cell in row {
            block(&mut out, cell, width, look.colours);
        }
        while !look.colours && out.ends_with(' ') {
            out.pop();
        }
        out.push('\n');
    }
    out.push('\n');
    legend(&mut out, picture, look.colours);
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

/// Draws a full block for one path, and dense or loose dots if other paths are in it.
fn block(out: &mut String, cell: &Cell, width: usize, colours: bool) {
    let pure = cell.majority == cell.count;
    let digit = digit(cell.path);
    if !colours {
        out.push(digit);
        out.push(if pure { ' ' } else { '~' });
        return;
    }
    let colour = colour(cell.path);
    let _ = if pure {
        write!(out, "\x1b[38;5;{};48;5;{colour}m{digit:<width$}\x1b[0m", ink(colour))
    } else {
        let mostly = cell.majority.saturating_mul(4) >= cell.count.saturating_mul(3);
        let dots = if mostly { "▓" } else { "▒" }.repeat(width);
        write!(out, "\x1b[38;5;{colour};48;5;{MIXED_GROUND}m{dots}\x1b[0m")
    };
}

fn legend(out: &mut String, picture: &MapPicture, colours: bool) {
    let shown: u64 = picture.totals.iter().sum();
    let most = picture.totals.iter().copied().max().unwrap_or(0).max(1);
    for (path, &count) in (0..).zip(&picture.totals).take(LEGEND_PATHS_MAX) {
        let mark = if colours {
            format!("\x1b[48;5;{}m  \x1b[0m ", colour(path))
        } else {
            format!("{} ", digit(path))
        };
        let filled = (u128::from(count) * u128::from(BAR_COLUMNS)).div_ceil(most.into()) as usize;
        let bar = if colours { "█".repeat(filled) } else { "#".repeat(filled) };
        let bar = if colours { format!("\x1b[38;5;{}m{bar}\x1b[0m", colour(path)) } else { bar };
        let address = picture.addresses.get(path as usize).map(String::as_str).unwrap_or_default();
        let pad = " ".repeat((BAR_COLUMNS as usize).saturating_sub(filled));
        let share = percent(count, shown);
        let _ = writeln!(out, "{mark}path {path:<4} {count:>12} {share:>7}  {bar}{pad}  {address}");
    }
    if picture.totals.len() > LEGEND_PATHS_MAX {
        let rest: u64 = picture.totals.iter().skip(LEGEND_PATHS_MAX).sum();
        let others = picture.totals.len() - LEGEND_PATHS_MAX;
        let _ = writeln!(out, "  {others} other paths: {rest} regions, {}", percent(rest, shown));
    }
    if picture.cells.iter().any(|cell| cell.majority != cell.count) {
        let mixed = if colours { "▓ mostly, ▒ less than three quarters" } else { "~ mostly" };
        let _ = writeln!(
            out,
            "{mixed} on the path shown, the rest on others (--range A-B looks closer)"
        );
    }
}

fn percent(part: u64, all: u64) -> String {
    format!("{:.2} %", part as f64 * 100.0 / all.max(1) as f64)
}

fn digit(path: u32) -> char {
    DIGITS.get(path as usize).map_or('#', |&digit| char::from(digit))
}

fn colour(path: u32) -> u8 {
    PALETTE[path as usize % PALETTE.len()]
}

/// Black or white, whichever is readable on the colour, by the luminance of the 6x6x6 cube or of
/// the greys.
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

/// Formats a size with a binary unit, exactly if that is short: `64 KiB`, `15 MiB`, `25.5 KiB`.
fn bytes(size: u64) -> String {
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
             0 path 0               5 31.25 %  #########################       /dev/ram0\n\
             1 path 1               6 37.50 %  ##############################  /dev/ram1\n\
             2 path 2               5 31.25 %  #########################       /dev/ram2\n"
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
        assert!(plain.ends_with(
            "~ mostly on the path shown, the rest on others (--range A-B looks closer)\n"
        ));
        let coloured = draw("d", &picture(2, &runs, 2), &Look::new(None, true));
        assert!(
            coloured.contains("\x1b[38;5;231;48;5;33m0 \x1b[0m\x1b[38;5;33;48;5;236m▒▒\x1b[0m"),
            "{coloured:?}"
        );
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
    fn many_paths_are_summed_up() {
        let look = Look::new(None, false);
        let text = draw("d", &picture(20, &round_robin(20, 40), look.cells()), &look);
        assert!(text.contains("g h i j 0 1"), "{text}");
        assert!(text.contains("  4 other paths: 8 regions, 20.00 %\n"), "{text}");
    }

    #[test]
    fn sizes_are_short() {
        let sizes = [512, 65_536, 15 << 20, 26_112, 1 << 63, 0].map(bytes);
        assert_eq!(sizes, ["512 bytes", "64 KiB", "15 MiB", "25.5 KiB", "8 EiB", "0 bytes"]);
    }
}
