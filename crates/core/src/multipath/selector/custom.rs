//! Selectors of the program that uses this crate.
//!
//! Contract: whatever a custom selector answers, a request goes down a path of the group that is
//! up. An answer that names no such path counts as none, and then the path whose turn it is is
//! used.

use core::fmt;

use super::super::path::Path;
use super::{Ask, round_robin, turn};

/// A way to spread requests over the paths of a group, beside those of
/// [`Selector`](super::Selector).
///
/// The requests and the bytes in flight on each path are counted for it. A path also has a note, a
/// number that belongs to the selector ([`Path::note`]), so the selector itself needs no state and
/// can be a `static`, as the kernel's selectors are. One that is made at run time is leaked
/// (`Box::leak`).
///
/// ```
/// use blkswitch_core::multipath::selector::{Ask, CustomSelector, Selector};
/// use blkswitch_core::multipath::{Choice, Features, Group, Multipath, Path};
///
/// /// Long requests use the last path, short ones the first.
/// struct ByLength;
///
/// impl CustomSelector for ByLength {
///     fn name(&self) -> &'static str {
///         "by-length"
///     }
///
///     fn pick(&self, paths: &[Path], ask: &Ask) -> Option<usize> {
///         if ask.bytes > 65536 { paths.len().checked_sub(1) } else { Some(0) }
///     }
/// }
///
/// let groups = [Group::new(Selector::custom(&ByLength), 0, 2)];
/// let paths = [0, 1].map(|place| Path::new(0, place, Default::default()));
/// let multipath = Multipath::new(Features::default(), 1, groups, paths).unwrap();
/// for (bytes, path) in [(4096, 0), (1 << 20, 1)] {
///     let Choice::Send(attempt) = multipath.select(Ask { bytes, ..Ask::default() }, &mut |_| {})
///     else {
///         panic!("no path");
///     };
///     assert_eq!(attempt.path(), path);
///     multipath.withdraw(attempt);
/// }
/// ```
pub trait CustomSelector: Send + Sync {
    /// The word for it in a table and in the status: without blanks, and not the name of a built-in
    /// selector.
    fn name(&self) -> &'static str;

    /// Picks the path for a request: its index in `paths`, which are all paths of the group. If the
    /// path is not up, or with `None`, the path whose turn it is is used.
    ///
    /// It runs on the way of each request: it must not block, and should not allocate. If it
    /// panics, so does the thread that asked.
    fn pick(&self, paths: &[Path], ask: &Ask) -> Option<usize>;

    /// Called when the path has answered a request that was sent at `started_ns`. Both times are of
    /// the clock of [`Ask::now_ns`].
    fn answered(&self, path: &Path, started_ns: u64, now_ns: u64) {
        let _ = (path, started_ns, now_ns);
    }
}

/// A custom selector, as [`Selector::custom`](super::Selector::custom) takes it. Two are equal if
/// they are the same object.
#[derive(Clone, Copy)]
pub struct Custom(&'static dyn CustomSelector);

impl Custom {
    pub(super) const fn new(selector: &'static dyn CustomSelector) -> Self {
        Self(selector)
    }

    pub(super) fn name(self) -> &'static str {
        self.0.name()
    }

    pub(super) fn pick(self, paths: &[Path], ask: &Ask) -> Option<u32> {
        let picked = self.0.pick(paths, ask);
        match picked.filter(|place| paths.get(*place).is_some_and(Path::is_up)) {
            Some(place) => u32::try_from(place).ok(),
            None => turn::pick(paths, round_robin::better),
        }
    }

    pub(super) fn answered(self, path: &Path, started_ns: u64, now_ns: u64) {
        self.0.answered(path, started_ns, now_ns);
    }
}

impl PartialEq for Custom {
    fn eq(&self, other: &Self) -> bool {
        core::ptr::addr_eq(self.0, other.0) && self.name() == other.name()
    }
}

impl Eq for Custom {}

impl fmt::Debug for Custom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Custom({})", self.name())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::{PathArgs, Selector};
    use super::*;
    use crate::multipath::{Choice, Features, Group, Multipath};

    /// Answers with the number of bytes.
    struct Bytes;

    impl CustomSelector for Bytes {
        fn name(&self) -> &'static str {
            "bytes"
        }

        fn pick(&self, _: &[Path], ask: &Ask) -> Option<usize> {
            usize::try_from(ask.bytes).ok().filter(|place| *place != 9)
        }

        fn answered(&self, path: &Path, started_ns: u64, now_ns: u64) {
            path.set_note(path.note() + now_ns - started_ns);
        }
    }

    #[test]
    fn what_it_picks_is_used_if_it_is_up() {
        let selector = Selector::custom(&Bytes);
        assert_eq!((selector, selector.name()), (Selector::custom(&Bytes), "bytes"));
        let paths = [0, 1, 2].map(|place| Path::new(0, place, PathArgs::default()));
        let groups = [Group::new(selector, 0, 3)];
        let multipath = Multipath::new(Features::default(), 1, groups, paths).unwrap();
        let pick = |bytes| {
            let choice = multipath.select(Ask { bytes, now_ns: 5, cpu: 0 }, &mut |_| {});
            let Choice::Send(attempt) = choice else { panic!("{choice:?}") };
            attempt
        };
        let attempt = pick(2);
        assert_eq!(attempt.path(), 2);
        let path = &multipath.paths()[2];
        assert_eq!((path.in_flight(), path.bytes_in_flight()), (1, 2));
        let _ = multipath.judge(attempt, 0, 12, &mut |_| {});
        assert_eq!((path.in_flight(), path.bytes_in_flight(), path.note()), (0, 0, 7));
        // No path, a path that does not exist, a path that is down: turns decide, and only among
        // those that are up.
        multipath.fail_path(1, &mut |_| {});
        let mut picked = [0; 3];
        for bytes in [9, 9, 3, u64::MAX, 1, 1] {
            let attempt = pick(bytes);
            picked[attempt.path() as usize] += 1;
            multipath.withdraw(attempt);
        }
        assert_eq!(picked, [3, 0, 3]);
        multipath.fail_path(0, &mut |_| {});
        multipath.fail_path(2, &mut |_| {});
        assert_eq!(
            multipath.select(Ask { bytes: 0, now_ns: 0, cpu: 0 }, &mut |_| {}),
            Choice::Fail(crate::multipath::outcome::EIO)
        );
    }
}
