//! Turns: choose the best path that is up, and of equally good ones the one that has been unused
//! for the longest time.
//!
//! Each path of a group has a turn, a number. The chosen path gets the highest turn of the group
//! plus one. So the paths stand in a line, and a used path goes to its end. A choice writes only
//! the turn of the chosen path, so no word is written by all choices.
//!
//! Contract: [`pick`] never fails if a path is up during a whole scan. A single queue gets exactly
//! the order above. If several queues choose at once, the compare-exchange on the turn succeeds for
//! one of them, and the others scan again, at most [`MAX_SCANS`] times.

use core::cmp::Ordering;

use super::super::path::Path;

/// Number of scans after which a choice stands although another queue made the same one. One more
/// request on a path does no harm; an endless loop would.
pub const MAX_SCANS: u32 = 4;

/// Returns the index of the path to use. `better(a, b)` is `Less` if `a` is better than `b`.
#[inline]
pub(in super::super) fn pick(
    paths: &[Path],
    better: impl Fn(&Path, &Path) -> Ordering,
) -> Option<u32> {
    let mut chosen = None;
    for _ in 0..MAX_SCANS {
        let (scan, up) = scan(paths, &better);
        let Some(best) = scan else { break };
        chosen = Some(best.place);
        // A single path needs no turn, so choosing from the usual group of one path writes nothing.
        if up == 1 || best.path.take_turn(best.turn, best.last_turn.wrapping_add(1)) {
            break;
        }
    }
    chosen
}

struct Best<'p> {
    path: &'p Path,
    place: u32,
    turn: u64,
    /// Highest turn of the paths that are up.
    last_turn: u64,
}

/// Finds the best path that is up, and counts those that are up.
#[inline]
fn scan<'p>(
    paths: &'p [Path],
    better: impl Fn(&Path, &Path) -> Ordering,
) -> (Option<Best<'p>>, u32) {
    let mut best: Option<Best<'p>> = None;
    let (mut up, mut last_turn) = (0u32, 0u64);
    for (path, place) in paths.iter().zip(0u32..) {
        if !path.is_up() {
            continue;
        }
        let turn = path.turn();
        up = up.wrapping_add(1);
        last_turn = last_turn.max(turn);
        let is_better = match &best {
            None => true,
            Some(best) => match better(path, best.path) {
                Ordering::Less => true,
                Ordering::Equal => turn < best.turn,
                Ordering::Greater => false,
            },
        };
        if is_better {
            best = Some(Best { path, place, turn, last_turn: 0 });
        }
    }
    if let Some(best) = &mut best {
        best.last_turn = last_turn;
    }
    (best, up)
}

/// Gives `path` a turn before all others that are up.
pub(super) fn put_first(path: &Path, paths: &[Path]) {
    let first = paths.iter().filter(|path| path.is_up()).map(Path::turn).min();
    path.set_turn(first.map_or(path.turn(), |turn| turn.saturating_sub(1)));
}

/// Gives `path` a turn after all others that are up.
pub(super) fn put_last(path: &Path, paths: &[Path]) {
    let last = paths.iter().filter(|path| path.is_up()).map(Path::turn).max();
    path.set_turn(last.map_or(path.turn(), |turn| turn.saturating_add(1)));
}
