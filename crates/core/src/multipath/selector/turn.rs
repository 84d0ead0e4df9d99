//! Turns: the best path that is up; of equally good ones the one that was not used for the longest
//! time.
//!
//! Every path of a group has a turn, a number. A path that is chosen gets the highest turn of the
//! group plus one, so the turns are the order of a queue in which a path that is used goes to the
//! end. There is no word that all choices write, only the turn of the path that is chosen.
//!
//! Contract: [`pick`] never fails while a path is up during the whole of a look at the paths. One
//! queue alone gets exactly that order. Where several queues choose at once, the exchange on the
//! turn lets one of them have it and the others look again, [`MAX_SCANS`] times at most.

use core::cmp::Ordering;

use super::super::path::Path;

/// Looks at the paths before a choice is taken although another queue made the same at the same
/// moment. One more request on a path is no harm; looking for ever is.
pub const MAX_SCANS: u32 = 4;

/// The place of the path to use. `better(a, b)` is `Less` if `a` is better than `b`.
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
        // The only path needs no turn: so the usual group of one path is never written to.
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
    /// Highest turn of any path that is up.
    last_turn: u64,
}

/// The best path that is up, and how many are up.
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

/// Gives `path` a turn before those of all others that are up.
pub(super) fn put_first(path: &Path, paths: &[Path]) {
    let first = paths.iter().filter(|path| path.is_up()).map(Path::turn).min();
    path.set_turn(first.map_or(path.turn(), |turn| turn.saturating_sub(1)));
}

/// Gives `path` a turn after those of all others that are up.
pub(super) fn put_last(path: &Path, paths: &[Path]) {
    let last = paths.iter().filter(|path| path.is_up()).map(Path::turn).max();
    path.set_turn(last.map_or(path.turn(), |turn| turn.saturating_add(1)));
}
