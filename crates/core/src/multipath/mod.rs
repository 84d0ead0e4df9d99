//! The multipath target: it chooses one of several paths to a volume for each request, and judges
//! the answer.
//!
//! Paths stand in *priority groups*. Requests use the paths of the current group, spread by its
//! selector. When no path of it is up, another group takes over. The kernel's order is: the group
//! that a message named; the current group while it has a path that is up; the first group that is
//! not disabled; the first that is disabled. The way back to a better group is the job of
//! [`checker`], like multipathd's for the kernel.
//!
//! For one request, [`Multipath::select`] returns an [`Attempt`]: the path and everything to
//! remember about it. The caller passes the answer and the attempt to [`Multipath::judge`], which
//! returns the next attempt if there is one. An attempt cannot be copied. So a request cannot be
//! counted or judged twice, and a late answer to a lost attempt cannot be judged at all.
//!
//! [`params`] reads the table line, [`message`] changes the state, [`status`] writes it out,
//! [`event`] reports changes.
//!
//! ```
//! use blkswitch_core::multipath::{Ask, Choice, Event, Item, Multipath, Params, Verdict, outcome};
//!
//! let line = "0 0 2 1 round-robin 0 1 0 /dev/sda queue-length 0 1 0 /dev/sdb";
//! let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
//! let mut params = Params::parse(&words)?;
//! let (mut groups, mut paths) = (Vec::new(), Vec::new());
//! while let Some(item) = params.next_item()? {
//!     match item {
//!         Item::Group(group) => groups.push(group.group()),
//!         Item::Path(path) => paths.push(path.path()?.path), // after opening path.device
//!     }
//! }
//! let (features, first) = (*params.features(), params.initial_group());
//! let multipath = Multipath::new(features, first, groups, paths).unwrap();
//!
//! let mut events = Vec::new();
//! let ask = Ask { bytes: 4096, now_ns: 0, cpu: 0 };
//! let choice = multipath.select(ask, &mut |event| events.push(event));
//! let Choice::Send(attempt) = choice else { panic!() };
//! assert_eq!(attempt.path(), 0);
//!
//! // The path does not answer for half a minute: the request goes on over the other group.
//! let (errno, now_ns) = (outcome::ETIMEDOUT, 30_000_000_000);
//! let verdict = multipath.judge(attempt, errno, now_ns, &mut |event| events.push(event));
//! let Verdict::Retry(attempt) = verdict else { panic!() };
//! assert_eq!(attempt.path(), 1);
//! assert_eq!(events, [Event::PathFailed { path: 0, left: 1 }, Event::GroupSwitched { group: 2 }]);
//! assert_eq!(multipath.judge(attempt, 0, 30_000_100_000, &mut |_| {}), Verdict::Done);
//! let status = multipath.info(|path, f| write!(f, "8:{}", path * 16)).to_string();
//! assert_eq!(status, "2 0 0 0 2 2 E 0 1 0 8:0 F 1 A 0 1 1 8:16 A 0 0 ");
//! # Ok::<(), blkswitch_core::multipath::ParamsError>(())
//! ```
//!
//! # What is shared, and how
//!
//! Any number of queues use a multipath at once, through `&self`. Choosing and judging take no lock
//! and allocate nothing. Usually they write only to the path in use: its turn and the selector's
//! counts. The word with the current group is shared by all and only read there; it changes when a
//! group has no path left, and by message. Messages and calls of the checker come one at a time,
//! under the device's message lock. Queues may fail paths meanwhile.
//!
//! # Storage
//!
//! The caller provides two slices, for groups and for paths, so this module needs no allocator.
//! Their lengths are known from the words ([`Params`] can be cloned and counted first) and never
//! grow. A daemon uses boxed slices.
//!
//! Contract: no I/O, no clock, no allocation, no panic. The time is an argument; it goes back at
//! most by the difference between the queues' clocks.

pub mod checker;
mod chosen;
mod error;
pub mod event;
pub mod group;
pub mod message;
pub mod outcome;
pub mod params;
pub mod path;
pub mod selector;
pub mod status;
mod sync;

pub use error::{ExplainParams, ParamsError, ParamsErrorKind};
pub use event::Event;
pub use group::Group;
pub use message::{MessageError, MultipathCommand};
pub use params::{Features, Item, Params, PathArg};
pub use path::Path;
pub use selector::io_affinity::CpuMask;
pub use selector::{Ask, Selector};

use chosen::{Chosen, ChosenGroup};
use outcome::{EIO, is_path_error};
use params::MAX_GROUPS;
use sync::{AtomicBool, AtomicU32, Ordering::Relaxed, Ordering::SeqCst};

/// How often one request is sent at most, per path of the device. Every attempt but the last fails
/// a path, so one attempt per path is enough if no path comes back. Two attempts let every path
/// come back once while the request runs. Then the request fails or is held, so that it does not
/// circle for ever between paths that break as soon as they are used.
pub const SENDS_PER_PATH: u32 = 2;

/// A request on its way down a path. Judge or withdraw it exactly once.
#[must_use = "an attempt that is neither judged nor withdrawn stays counted as in flight"]
#[derive(Debug, PartialEq, Eq)]
pub struct Attempt {
    path: u32,
    /// Number of earlier attempts of the request.
    sent_before: u32,
    started_ns: u64,
    bytes: u64,
    cpu: u16,
}

impl Attempt {
    /// The number of the path, counted from 0 over all groups.
    #[inline]
    #[must_use]
    pub const fn path(&self) -> u32 {
        self.path
    }

    /// Number of earlier attempts of the request.
    #[must_use]
    pub const fn sent_before(&self) -> u32 {
        self.sent_before
    }

    /// When it was sent, in ns of the clock that gave [`Ask::now_ns`].
    #[must_use]
    pub const fn started_ns(&self) -> u64 {
        self.started_ns
    }
}

/// How to handle a request: the answer of [`Multipath::select`].
#[must_use]
#[derive(Debug, PartialEq, Eq)]
pub enum Choice {
    /// Send it down the path of this attempt.
    Send(Attempt),
    /// Hold it. Ask again after the next event that [releases](Event::releases_held), and at each
    /// round of the checker.
    Hold,
    /// Fail it with this positive errno.
    Fail(i32),
}

/// How to go on after an answer: the result of [`Multipath::judge`].
#[must_use]
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The request has succeeded.
    Done,
    /// Send it again, down the path of this attempt.
    Retry(Attempt),
    /// Hold it, as [`Choice::Hold`] says.
    Hold,
    /// Fail it with this positive errno.
    Fail(i32),
}

/// A multipath target: its groups, its paths, and its state.
#[derive(Debug)]
pub struct Multipath<G, P> {
    features: Features,
    groups: G,
    paths: P,
    chosen: ChosenGroup,
    queueing: AtomicBool,
    /// Whether a request has asked for a path since the table was loaded.
    used: AtomicBool,
    /// Number of paths that are up.
    live: AtomicU32,
    /// Counts reinstated paths. A search that found no path compares it to know whether it may have
    /// missed one.
    reinstated: AtomicU32,
}

impl<G: AsRef<[Group]>, P: AsRef<[Path]>> Multipath<G, P> {
    /// Makes a target of all groups and all paths, in the order in which [`Params`] returned them.
    /// `None` if they do not fit together, or are too many.
    pub fn new(features: Features, initial_group: u32, groups: G, paths: P) -> Option<Self> {
        let mut next_path = 0u32;
        for (group, number) in groups.as_ref().iter().zip(0u32..) {
            let own = group.paths(paths.as_ref());
            let fits = group.first_path() == next_path && own.len() == group.num_paths() as usize;
            if !fits || own.iter().any(|path| path.group() != number) {
                return None;
            }
            next_path = next_path.checked_add(group.num_paths())?;
        }
        let num_groups = groups.as_ref().len();
        if paths.as_ref().len() != next_path as usize || num_groups > MAX_GROUPS as usize {
            return None;
        }
        // The kernel ignores a first group past the last; the search then begins with the first.
        let next = u16::try_from(initial_group).unwrap_or(0);
        let next = if usize::from(next) <= num_groups { next } else { 0 };
        Some(Self {
            chosen: ChosenGroup::new(Chosen { next, ..Chosen::default() }),
            queueing: AtomicBool::new(features.queue_if_no_path),
            used: AtomicBool::new(false),
            live: AtomicU32::new(next_path),
            reinstated: AtomicU32::new(0),
            features,
            groups,
            paths,
        })
    }

    /// Chooses a path for a request. `on` gets the events of this choice, such as a change of the
    /// group.
    #[inline]
    pub fn select(&self, ask: Ask, on: &mut impl FnMut(Event)) -> Choice {
        self.select_for(ask, 0, on)
    }

    /// Makes an attempt down the path with this number; `None` if the path is down. For requests
    /// that must follow earlier ones down their path: a flush, because each path may have a cache
    /// of its own.
    pub fn select_path(&self, path: u32, ask: Ask) -> Option<Attempt> {
        let number = path;
        let path = self.path(number).filter(|path| path.is_up())?;
        self.groups().get(path.group() as usize)?.selector().started(path, ask.bytes);
        let (started_ns, bytes, cpu) = (ask.now_ns, ask.bytes, ask.cpu);
        Some(Attempt { path: number, sent_before: 0, started_ns, bytes, cpu })
    }

    #[inline]
    fn select_for(&self, ask: Ask, sent_before: u32, on: &mut impl FnMut(Event)) -> Choice {
        let found = match self.group(self.chosen.load().settled()) {
            Some(group) => group.pick(self.paths(), &ask).map(|path| (group, path)),
            None => None,
        };
        match found.or_else(|| self.change_group(&ask, on)) {
            Some((group, number)) => {
                if let Some(path) = self.path(number) {
                    group.selector().started(path, ask.bytes);
                }
                let (started_ns, bytes, cpu) = (ask.now_ns, ask.bytes, ask.cpu);
                Choice::Send(Attempt { path: number, sent_before, started_ns, bytes, cpu })
            }
            None if self.queues_if_no_path() => Choice::Hold,
            None => Choice::Fail(EIO),
        }
    }

    /// Makes the right group the current one and picks one of its paths; `None` if no path is up.
    ///
    /// The loop ends because each round but the last needs a cause: another thread has changed the
    /// group or the state of a path, or a path that was set aside is used from now on.
    #[cold]
    fn change_group(&self, ask: &Ask, on: &mut impl FnMut(Event)) -> Option<(&Group, u32)> {
        self.used.store(true, Relaxed);
        loop {
            let reinstated = self.reinstated.load(SeqCst);
            let before = self.chosen.load_ordered();
            let number = self.search(before);
            let after = before.moved_to(number);
            if !self.chosen.replace(before, after) {
                continue;
            }
            let Some(group) = self.group(number) else {
                // A path may have come back behind the search while the last path before it went
                // down. Search again, because no request may fail if there was a path at every
                // moment.
                if self.reinstated.load(SeqCst) == reinstated && !self.take_aside(on) {
                    return None;
                }
                continue;
            };
            if before.last != 0 && before.last != number {
                on(Event::GroupSwitched { group: u32::from(number) });
            }
            if let Some(path) = group.pick(self.paths(), ask) {
                return Some((group, path));
            }
        }
    }

    /// The group to use; 0 if no path is up.
    fn search(&self, chosen: Chosen) -> u16 {
        let has_path =
            |number: u16| self.group(number).is_some_and(|group| group.has_path(self.paths()));
        for number in [chosen.next, chosen.current] {
            if has_path(number) {
                return number;
            }
        }
        for bypassed in [false, true] {
            let groups = self.groups().iter().zip(1u16..);
            let mut found = groups.filter(|(group, _)| {
                group.is_bypassed() == bypassed && group.has_path(self.paths())
            });
            if let Some((_, number)) = found.next() {
                return number;
            }
        }
        0
    }

    /// Judges the answer to an attempt. `errno` is 0 for success, otherwise positive.
    #[inline]
    pub fn judge(
        &self,
        attempt: Attempt,
        errno: i32,
        now_ns: u64,
        on: &mut impl FnMut(Event),
    ) -> Verdict {
        let goes_up = errno == 0 || !is_path_error(errno);
        if let Some((group, path)) = self.used_by(&attempt) {
            group.selector().ended(path, attempt.bytes);
            if goes_up {
                group.selector().answered(path, attempt.started_ns, now_ns);
            }
        }
        match errno {
            0 => Verdict::Done,
            errno if goes_up => Verdict::Fail(errno),
            _ => self.send_again(attempt, now_ns, on),
        }
    }

    /// Fails the path of the attempt and chooses the next one.
    #[cold]
    fn send_again(&self, attempt: Attempt, now_ns: u64, on: &mut impl FnMut(Event)) -> Verdict {
        self.fail_path(attempt.path, on);
        let sent = attempt.sent_before.saturating_add(1);
        if sent >= self.max_sends() {
            return if self.queues_if_no_path() { Verdict::Hold } else { Verdict::Fail(EIO) };
        }
        match self.select_for(Ask { bytes: attempt.bytes, cpu: attempt.cpu, now_ns }, sent, on) {
            Choice::Send(attempt) => Verdict::Retry(attempt),
            Choice::Hold => Verdict::Hold,
            Choice::Fail(errno) => Verdict::Fail(errno),
        }
    }

    /// As [`Multipath::judge`], for a request that the path refused because it is write-protected.
    ///
    /// Another path may accept writes, so the request goes there, and this path is set aside. The
    /// last path that is up stays in use: it can be read, and its answer is the answer to the
    /// request.
    #[cold]
    pub fn judge_protected(
        &self,
        attempt: Attempt,
        errno: i32,
        now_ns: u64,
        on: &mut impl FnMut(Event),
    ) -> Verdict {
        let Attempt { path, sent_before, started_ns, bytes, cpu } = attempt;
        if let Some((group, path)) = self.used_by(&attempt) {
            group.selector().ended(path, bytes);
            group.selector().answered(path, started_ns, now_ns);
        }
        let is_up = self.path(path).is_some_and(Path::is_up_ordered);
        let sent = sent_before.saturating_add(1);
        if self.live_paths() <= u32::from(is_up) || sent >= self.max_sends() {
            return Verdict::Fail(errno);
        }
        if is_up {
            self.set_aside(path, on);
        }
        match self.select_for(Ask { bytes, cpu, now_ns }, sent, on) {
            Choice::Send(attempt) => Verdict::Retry(attempt),
            Choice::Hold | Choice::Fail(_) => Verdict::Fail(errno),
        }
    }

    /// Takes back an attempt that was never sent, or whose request was given up. It no longer
    /// counts as in flight and says nothing about its path.
    pub fn withdraw(&self, attempt: Attempt) {
        if let Some((group, path)) = self.used_by(&attempt) {
            group.selector().ended(path, attempt.bytes);
        }
    }

    #[inline]
    fn used_by(&self, attempt: &Attempt) -> Option<(&Group, &Path)> {
        let path = self.path(attempt.path)?;
        Some((self.groups().get(path.group() as usize)?, path))
    }

    /// How often one request is sent at most before it fails or is held.
    #[must_use]
    pub fn max_sends(&self) -> u32 {
        self.num_paths().saturating_mul(SENDS_PER_PATH)
    }

    /// Marks a path as failed. Returns `false` if the path does not exist or had failed already.
    pub fn fail_path(&self, path: u32, on: &mut impl FnMut(Event)) -> bool {
        let marked = self.path(path).is_some_and(Path::mark_failed);
        marked && self.went_down(path, on)
    }

    /// Sets a path aside: it is used again when no other path is up. Events and status show it as
    /// failed, but this is not counted as a failure. Returns whether the path was up. A path that
    /// had failed is set aside, too, and may be used from now on.
    pub fn set_aside(&self, path: u32, on: &mut impl FnMut(Event)) -> bool {
        let marked = self.path(path).is_some_and(Path::mark_aside);
        marked && self.went_down(path, on)
    }

    /// Counts a path that was up and is not any more. Returns `true`.
    fn went_down(&self, path: u32, on: &mut impl FnMut(Event)) -> bool {
        let left = self.live.fetch_sub(1, SeqCst).wrapping_sub(1);
        on(Event::PathFailed { path, left });
        true
    }

    /// Brings back the first path that is set aside. Returns `false` if no path is set aside and no
    /// path has come up meanwhile.
    fn take_aside(&self, on: &mut impl FnMut(Event)) -> bool {
        let mut paths = self.paths().iter().zip(0u32..);
        let found = paths.find_map(|(path, number)| Some((number, path.take_aside()?)));
        if let Some((number, true)) = found {
            self.came_up(number, on);
        }
        found.is_some()
    }

    fn came_up(&self, path: u32, on: &mut impl FnMut(Event)) {
        self.reinstated.fetch_add(1, SeqCst);
        let left = self.live.fetch_add(1, SeqCst).wrapping_add(1);
        on(Event::PathReinstated { path, left });
    }

    /// Marks a path as up. Returns `false` if the path does not exist or was up already. The caller
    /// holds the message lock.
    pub fn reinstate_path(&self, path: u32, on: &mut impl FnMut(Event)) -> bool {
        let number = path;
        let Some(path) = self.path(number).filter(|path| !path.is_up()) else { return false };
        if let Some(group) = self.groups().get(path.group() as usize) {
            group.selector().line_up(path, group.paths(self.paths()));
        }
        if !path.mark_up() {
            return false;
        }
        self.came_up(number, on);
        true
    }

    /// Sets whether requests are held while no path is up.
    pub fn set_queueing(&self, queueing: bool, on: &mut impl FnMut(Event)) {
        if self.queueing.swap(queueing, SeqCst) != queueing {
            on(if queueing { Event::QueueingOn } else { Event::QueueingOff });
        }
    }

    /// Enables all groups and uses this one, counted from 1, next.
    fn switch_group(&self, group: u32, on: &mut impl FnMut(Event)) {
        self.groups().iter().for_each(|group| group.set_bypassed(false));
        self.choose_group(group, on);
    }

    /// Uses this group, counted from 1, next. This is the way back to a better group. Disabled
    /// groups stay disabled. Returns `false` if the group does not exist.
    pub fn choose_group(&self, group: u32, on: &mut impl FnMut(Event)) -> bool {
        let Some(next) = u16::try_from(group).ok().filter(|number| self.group(*number).is_some())
        else {
            return false;
        };
        self.chosen.update(|chosen| Chosen { next, current: 0, ..chosen });
        on(Event::GroupChosen { group });
        true
    }

    fn set_bypassed(&self, group: u32, bypassed: bool, on: &mut impl FnMut(Event)) {
        if let Some(group) = u16::try_from(group).ok().and_then(|number| self.group(number)) {
            group.set_bypassed(bypassed);
        }
        // Like the kernel, search again, so that a better group that has a path again takes over.
        self.chosen.update(|chosen| Chosen { next: 0, current: 0, ..chosen });
        on(if bypassed { Event::GroupDisabled { group } } else { Event::GroupEnabled { group } });
    }

    /// The group that is better than the one in use, counted from 1: the argument of
    /// [`checker::FailbackTimer::poll`]. It is the first group that is not disabled and has a path
    /// that is up, provided that it comes before the current group or that the current group is
    /// disabled.
    #[must_use]
    pub fn better_group(&self) -> Option<u32> {
        let current = self.current_group()?;
        let mut groups = self.groups().iter().zip(1u32..);
        let (_, best) =
            groups.find(|(group, _)| !group.is_bypassed() && group.has_path(self.paths()))?;
        let in_use = u16::try_from(current).ok().and_then(|number| self.group(number))?;
        if best < current || (in_use.is_bypassed() && best != current) { Some(best) } else { None }
    }

    /// The group in use, counted from 1. `None` before the first request, and while no path is up.
    #[must_use]
    pub fn current_group(&self) -> Option<u32> {
        Some(u32::from(self.chosen.load().current)).filter(|number| *number != 0)
    }

    /// The group that status shows: the current one, else the next one, else the first.
    fn shown_group(&self) -> u32 {
        let chosen = self.chosen.load();
        match (chosen.next, chosen.current) {
            (0, 0) => self.num_groups().min(1),
            (0, current) => u32::from(current),
            (next, _) => u32::from(next),
        }
    }

    /// Whether requests are held while no path is up.
    #[inline]
    #[must_use]
    pub fn queues_if_no_path(&self) -> bool {
        self.queueing.load(SeqCst)
    }

    /// Number of paths that are up.
    #[must_use]
    pub fn live_paths(&self) -> u32 {
        self.live.load(SeqCst)
    }

    /// The words of the table line before its groups.
    #[must_use]
    pub const fn features(&self) -> &Features {
        &self.features
    }

    /// All groups, in the order of the table.
    #[inline]
    #[must_use]
    pub fn groups(&self) -> &[Group] {
        self.groups.as_ref()
    }

    /// All paths, those of the first group first.
    #[inline]
    #[must_use]
    pub fn paths(&self) -> &[Path] {
        self.paths.as_ref()
    }

    /// Number of groups, at most [`params::MAX_GROUPS`].
    #[must_use]
    pub fn num_groups(&self) -> u32 {
        self.groups().len() as u32
    }

    /// Number of paths in all groups together.
    #[must_use]
    pub fn num_paths(&self) -> u32 {
        self.paths().len() as u32
    }

    fn was_used(&self) -> bool {
        self.used.load(Relaxed)
    }

    #[inline]
    fn path(&self, number: u32) -> Option<&Path> {
        self.paths().get(number as usize)
    }

    /// The group of this number, counted from 1.
    #[inline]
    fn group(&self, number: u16) -> Option<&Group> {
        self.groups().get(usize::from(number).checked_sub(1)?)
    }
}
