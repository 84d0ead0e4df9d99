//! Moves regions so that the map has longer runs.
//!
//! The map is cut into windows of one size. Within a window, the regions of each path are put
//! together. So each path keeps its number of regions, in every window and in the whole map. A
//! larger window makes longer runs and moves more regions. [`compact()`] tries some sizes, from the
//! whole map down, and takes the one that leaves the fewest runs for the moves it may make.
//!
//! Contract: as [`super`].

use core::convert::Infallible;
use core::sync::atomic::AtomicU64;

use super::super::super::switch::Map;
use super::super::search;
use super::{Move, Moves, PlanError, Planned, Share, check_shares};

/// Number of window sizes that are tried. Each is a quarter of the one before.
const SIZES: u32 = 6;
/// No path.
const NONE: u32 = u32::MAX;

/// Plans at most `max_moves` moves of regions that leave the map with fewer, longer runs. Every
/// path keeps its number of regions.
///
/// A window is left as it is if the plan would not save a run in it, or if its moves would exceed
/// what is left of `max_moves`. In a window, paths follow in the order of their first regions, but
/// the path that the window before has ended with comes first.
///
/// # Errors
/// [`PlanError::Shares`], and the error of `sink`.
///
/// ```
/// use core::sync::atomic::AtomicU64;
/// use blkswitch_core::map::plan::{Share, compact};
/// use blkswitch_core::switch::{Geometry, Map};
///
/// // 0 1 0 1 0 1 0 1
/// let map = Map::new(Geometry::new(8, 2, 1)?, vec![AtomicU64::new(0)])?;
/// let mut shares = [Share::default(); 2];
/// let mut moves = Vec::new();
/// let planned = compact(&map, u64::MAX, &mut shares, |step| {
///     moves.push((step.first, step.to));
///     Ok::<(), std::convert::Infallible>(())
/// })?;
/// // 0 0 0 0 1 1 1 1
/// assert_eq!(moves, [(1, 0), (3, 0), (4, 1), (6, 1)]);
/// assert_eq!(planned.regions, 4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn compact<S: AsRef<[AtomicU64]>, E>(
    map: &Map<S>,
    max_moves: u64,
    shares: &mut [Share],
    sink: impl FnMut(Move) -> Result<(), E>,
) -> Result<Planned, PlanError<E>> {
    check_shares(map, shares)?;
    shares.iter_mut().for_each(|share| *share = Share { next: NONE, ..Share::default() });
    let mut size = map.geometry().nr_regions();
    let mut best = (0i64, size);
    for _ in 0..SIZES {
        let found = windows(map, size, max_moves, shares, &mut |_, _, _| Ok::<(), Infallible>(()));
        let Ok(found) = found;
        if found.saved > best.0 {
            best = (found.saved, size);
        }
        // A smaller window leaves more runs, unless moves were the limit.
        if !found.is_limited {
            break;
        }
        size = size.div_ceil(4);
    }
    let mut moves = Moves::new(map, sink);
    if best.0 > 0 {
        windows(map, best.1, max_moves, shares, &mut |region, from, to| {
            moves.push(region, from, to)
        })?;
    }
    super::evacuate::count(map, shares);
    shares.iter_mut().for_each(|share| share.after = share.before);
    moves.finish()
}

/// The result of one window size.
struct Found {
    /// Number of runs that it saves.
    saved: i64,
    /// Whether a window was left as it is because of the limit of moves.
    is_limited: bool,
}

/// Puts the regions of each path together in windows of `size` regions.
fn windows<S: AsRef<[AtomicU64]>, E>(
    map: &Map<S>,
    size: u64,
    max_moves: u64,
    shares: &mut [Share],
    each: &mut impl FnMut(u64, u32, u32) -> Result<(), E>,
) -> Result<Found, E> {
    let regions = map.geometry().nr_regions();
    let (mut start, mut left) = (0u64, max_moves);
    let mut found = Found { saved: 0, is_limited: false };
    // The path of the region before the window, before and after the plan.
    let (mut was, mut is) = (NONE, NONE);
    while start < regions {
        let end = regions.min(start.saturating_add(size));
        let window = Window::new(map, start, end, is, shares);
        let runs_before = window.runs.saturating_add(u64::from(window.first != was));
        let runs_after = window.paths.saturating_sub(u64::from(window.head == is));
        // The window as it is, after what was done to the one before.
        let runs_kept = window.runs.saturating_add(u64::from(window.first != is));
        let moves = if runs_after < runs_kept { window.moves(map, shares, left) } else { None };
        found.is_limited |= runs_after < runs_kept && moves.is_none();
        let runs = if let Some(moves) = moves {
            window.walk(map, shares, &mut *each)?;
            left = left.saturating_sub(moves);
            is = window.tail;
            runs_after
        } else {
            is = window.last;
            runs_kept
        };
        found.saved = found.saved.wrapping_add(runs_before.wrapping_sub(runs) as i64);
        was = window.last;
        window.clear(shares);
        start = end;
    }
    Ok(found)
}

/// A window: its paths in the order that they are to have, as a list in the shares. `left` of each
/// share is the number of its regions in the window.
struct Window {
    start: u64,
    end: u64,
    /// The path of its first and last region.
    first: u32,
    last: u32,
    /// Number of changes of the path inside the window.
    runs: u64,
    /// Number of its paths.
    paths: u64,
    /// The first and the last path of the list.
    head: u32,
    tail: u32,
}

impl Window {
    /// `is` is the path that comes first, if the window has it.
    fn new<S: AsRef<[AtomicU64]>>(
        map: &Map<S>,
        start: u64,
        end: u64,
        is: u32,
        shares: &mut [Share],
    ) -> Self {
        let mut window =
            Self { start, end, first: NONE, last: NONE, runs: 0, paths: 0, head: NONE, tail: NONE };
        let Ok(()) = search::for_each(map, start, end, |_, path| {
            let new = match shares.get_mut(path as usize) {
                Some(share) => {
                    share.left = share.left.wrapping_add(1);
                    share.left == 1
                }
                None => false,
            };
            if new {
                window.append(shares, path);
            }
            if window.last == NONE {
                window.first = path;
            } else if window.last != path {
                window.runs = window.runs.wrapping_add(1);
            }
            window.last = path;
            Ok::<(), Infallible>(())
        });
        window.lead(shares, is);
        window
    }

    fn append(&mut self, shares: &mut [Share], path: u32) {
        if let Some(share) = shares.get_mut(path as usize) {
            share.next = NONE;
            share.back = self.tail;
        }
        match shares.get_mut(self.tail as usize) {
            Some(share) => share.next = path,
            None => self.head = path,
        }
        self.tail = path;
        self.paths = self.paths.wrapping_add(1);
    }

    /// Puts a path first, if the window has it.
    fn lead(&mut self, shares: &mut [Share], path: u32) {
        let Some(&Share { left, next, back, .. }) = shares.get(path as usize) else { return };
        if left == 0 || path == self.head {
            return;
        }
        if let Some(share) = shares.get_mut(back as usize) {
            share.next = next;
        }
        match shares.get_mut(next as usize) {
            Some(share) => share.back = back,
            None => self.tail = back,
        }
        if let Some(share) = shares.get_mut(self.head as usize) {
            share.back = path;
        }
        if let Some(share) = shares.get_mut(path as usize) {
            share.next = self.head;
            share.back = NONE;
        }
        self.head = path;
    }

    /// Number of regions that move; `None` if there are more than `most`.
    fn moves<S: AsRef<[AtomicU64]>>(
        &self,
        map: &Map<S>,
        shares: &[Share],
        most: u64,
    ) -> Option<u64> {
        let mut moves = 0u64;
        let walked = self.walk(map, shares, |_, _, _| {
            moves = moves.wrapping_add(1);
            if moves > most { Err(()) } else { Ok(()) }
        });
        walked.ok().map(|()| moves)
    }

    /// Calls `each` with every region that moves.
    fn walk<S: AsRef<[AtomicU64]>, E>(
        &self,
        map: &Map<S>,
        shares: &[Share],
        mut each: impl FnMut(u64, u32, u32) -> Result<(), E>,
    ) -> Result<(), E> {
        let share = |path: u32| shares.get(path as usize).copied().unwrap_or_default();
        let mut to = self.head;
        let mut room = share(to).left;
        search::for_each(map, self.start, self.end, |region, path| {
            while room == 0 {
                to = share(to).next;
                if to == NONE {
                    return Ok(());
                }
                room = share(to).left;
            }
            room = room.wrapping_sub(1);
            if path == to { Ok(()) } else { each(region, path, to) }
        })
    }

    /// Empties the list.
    fn clear(&self, shares: &mut [Share]) {
        let mut path = self.head;
        while let Some(share) = shares.get_mut(path as usize) {
            path = share.next;
            share.left = 0;
            share.next = NONE;
        }
    }
}
