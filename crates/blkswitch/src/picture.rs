//! Condenses a region map of any length to the cells of a picture, in one pass over the runs.
//!
//! Contract: pure. Memory is proportional to cells and paths, never to regions. Runs may reach over
//! both ends of the range. No panics.

use crate::protocol::{Cell, PICTURE_CELLS_MAX, Run};

/// Returns the cells of regions `from..=to` (at most `cells`, and at most [`PICTURE_CELLS_MAX`]),
/// and the number of those regions on each of `paths` paths. `runs` cover the range in order
/// without gaps.
pub fn condense(
    from: u64,
    to: u64,
    cells: usize,
    paths: u32,
    runs: impl IntoIterator<Item = Run>,
) -> (Vec<Cell>, Vec<u64>) {
    let mut totals = vec![0; paths as usize];
    let Some(regions) = to.checked_sub(from).map(|last| last.saturating_add(1)) else {
        return (Vec::new(), totals);
    };
    let size = cell_size(regions, cells.clamp(1, PICTURE_CELLS_MAX) as u64);
    let mut counting = Counting::new(from, regions, size, paths);
    for run in runs {
        let start = run.start.max(from);
        let end = run.start.saturating_add(run.count).min(to.saturating_add(1));
        if let (Some(count), Some(total)) =
            (end.checked_sub(start), totals.get_mut(run.path as usize))
        {
            *total += count;
            counting.add(run.path, count);
        }
    }
    (counting.done, totals)
}

/// Regions per cell: the smallest of 1, 2, 5, 10, 20, 50, ... for which `cells` cells are enough. A
/// reader needs round numbers more than a filled screen.
pub fn cell_size(regions: u64, cells: u64) -> u64 {
    let mut decade = 1_u64;
    loop {
        for step in [1, 2, 5] {
            let size = decade.saturating_mul(step);
            if regions.div_ceil(size) <= cells {
                return size;
            }
        }
        decade = decade.saturating_mul(10);
    }
}

/// The cell that is being filled.
struct Counting {
    size: u64,
    /// Regions of each path in the open cell. `touched` lists the paths with some.
    counts: Vec<u64>,
    touched: Vec<u32>,
    open: Cell,
    /// Regions that the open cell still lacks, and the number of regions after it.
    missing: u64,
    behind: u64,
    done: Vec<Cell>,
}

impl Counting {
    fn new(from: u64, regions: u64, size: u64, paths: u32) -> Self {
        let first = size.min(regions);
        Self {
            size,
            counts: vec![0; paths as usize],
            touched: Vec::new(),
            open: Cell { start: from, count: first, path: 0, majority: 0 },
            missing: first,
            behind: regions - first,
            done: Vec::new(),
        }
    }

    fn add(&mut self, path: u32, mut count: u64) {
        while count > 0 && self.missing > 0 {
            let here = count.min(self.missing);
            let slot = &mut self.counts[path as usize];
            if *slot == 0 {
                self.touched.push(path);
            }
            *slot += here;
            self.missing -= here;
            count -= here;
            if self.missing == 0 {
                self.close();
            }
        }
    }

    /// Closes the open cell, which is full, and opens the next one.
    fn close(&mut self) {
        for path in self.touched.drain(..) {
            let count = std::mem::take(&mut self.counts[path as usize]);
            let Cell { path: leader, majority, .. } = self.open;
            if count > majority || (count == majority && path < leader) {
                (self.open.path, self.open.majority) = (path, count);
            }
        }
        self.done.push(self.open);
        let count = self.size.min(self.behind);
        self.open = Cell {
            start: self.open.start.saturating_add(self.open.count),
            count,
            path: 0,
            majority: 0,
        };
        self.missing = count;
        self.behind -= count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(of: &[(u64, u32)]) -> Vec<Run> {
        let mut start = 0;
        let mut runs = Vec::new();
        for &(count, path) in of {
            runs.push(Run { start, count, path });
            start += count;
        }
        runs
    }

    #[test]
    fn a_cell_per_region_when_there_is_room() {
        let (cells, totals) = condense(0, 5, 100, 3, runs(&[(2, 1), (1, 0), (3, 2)]));
        let paths: Vec<_> =
            cells.iter().map(|cell| (cell.start, cell.count, cell.path, cell.majority)).collect();
        assert_eq!(
            paths,
            [(0, 1, 1, 1), (1, 1, 1, 1), (2, 1, 0, 1), (3, 1, 2, 1), (4, 1, 2, 1), (5, 1, 2, 1)]
        );
        assert_eq!(totals, [1, 2, 3]);
    }

    #[test]
    fn mixed_cells_show_the_majority_and_the_lowest_of_equals() {
        let (cells, totals) = condense(0, 9, 2, 3, runs(&[(2, 2), (3, 1), (1, 0), (2, 2), (2, 1)]));
        assert_eq!(cells[0], Cell { start: 0, count: 5, path: 1, majority: 3 });
        assert_eq!(cells[1], Cell { start: 5, count: 5, path: 1, majority: 2 });
        assert_eq!(totals, [1, 5, 4]);
    }

    #[test]
    fn a_range_cuts_the_runs_at_both_ends() {
        let (cells, totals) = condense(3, 7, 3, 2, runs(&[(5, 0), (1000, 1)]));
        assert_eq!(cells[0], Cell { start: 3, count: 2, path: 0, majority: 2 });
        assert_eq!(cells[1], Cell { start: 5, count: 2, path: 1, majority: 2 });
        assert_eq!(cells[2], Cell { start: 7, count: 1, path: 1, majority: 1 });
        assert_eq!((cells.len(), totals), (3, vec![2, 3]));
    }

    #[test]
    fn cells_have_a_round_size_and_cover_the_range() {
        for regions in 1..200 {
            for wanted in 1..40 {
                let everything = [Run { start: 0, count: 1000, path: 0 }];
                let (cells, _) = condense(7, 7 + regions - 1, wanted, 1, everything);
                assert!(cells.len() <= wanted);
                assert_eq!(
                    (cells[0].start, cells.iter().map(|cell| cell.count).sum::<u64>()),
                    (7, regions)
                );
                assert!(
                    cells.windows(2).all(|pair| pair[0].start + pair[0].count == pair[1].start)
                );
                assert!(cells.windows(3).all(|three| three[0].count == three[1].count));
            }
        }
        let sizes =
            [(16, 2048), (1366, 1024), (1_000_000, 2048), (u64::MAX, 1), (u64::MAX, 1 << 16)];
        let sizes = sizes.map(|(regions, cells)| cell_size(regions, cells));
        assert_eq!(sizes, [1, 2, 500, u64::MAX, 500_000_000_000_000]);
    }

    #[test]
    fn hostile_input_is_harmless() {
        assert_eq!(condense(5, 4, 10, 2, []), (vec![], vec![0, 0]));
        let (cells, totals) =
            condense(0, u64::MAX, 4, 1, [Run { start: 9, count: u64::MAX, path: 7 }]);
        assert_eq!((cells.len(), totals), (0, vec![0]));
    }
}
