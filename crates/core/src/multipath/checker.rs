//! The decisions that the kernel leaves to multipathd: when to probe a path, when to go back to a
//! better group, and how long to hold requests while no path is up.
//!
//! Contract: pure functions; the time is an argument. The caller has the timers, sends the probes,
//! and passes their answers on to [`super::Multipath`].

/// Time between two probes of a path whose state has just changed: multipathd's `polling_interval`.
pub const FIRST_INTERVAL_NS: u64 = 5_000_000_000;
/// Longest time between two probes: multipathd's `max_polling_interval`.
pub const LAST_INTERVAL_NS: u64 = 20_000_000_000;

/// The intervals between probes of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intervals {
    /// The interval after the path's state has changed.
    pub first_ns: u64,
    /// The longest interval while the path is up. Each interval is twice the one before, up to this
    /// one.
    pub last_ns: u64,
}

impl Default for Intervals {
    fn default() -> Self {
        Self { first_ns: FIRST_INTERVAL_NS, last_ns: LAST_INTERVAL_NS }
    }
}

/// The time of a path's next probe. A healthy path is probed less and less often while nothing
/// changes. A failed path is probed at every first interval, so that it is back within one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    due_ns: u64,
    interval_ns: u64,
}

impl Probe {
    /// Starts the schedule of a new path, or of a path whose state has just changed.
    #[must_use]
    pub const fn new(intervals: &Intervals, now_ns: u64) -> Self {
        Self { due_ns: now_ns.saturating_add(intervals.first_ns), interval_ns: intervals.first_ns }
    }

    /// When the next probe is due, in ns of the clock that gave `now_ns`.
    #[must_use]
    pub const fn due_ns(&self) -> u64 {
        self.due_ns
    }

    /// Call this after a probe that did not change the path's state. (After a change, make a new
    /// [`Probe`].)
    pub fn unchanged(&mut self, intervals: &Intervals, is_up: bool, now_ns: u64) {
        if !is_up {
            *self = Self::new(intervals, now_ns);
            return;
        }
        let longest = intervals.last_ns.max(intervals.first_ns);
        self.interval_ns = self.interval_ns.saturating_mul(2).min(longest);
        self.due_ns = now_ns.saturating_add(self.interval_ns);
    }
}

/// Largest value of [`Marginal::failures`].
pub const MAX_MARGINAL_FAILURES: u32 = 16;

/// When a path counts as marginal: the counterpart of multipath-tools' `marginal_path_*` options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marginal {
    /// Number of failures within `within_ns` that make a path marginal: 1 to
    /// [`MAX_MARGINAL_FAILURES`].
    pub failures: u32,
    /// The time in ns within which the failures must happen.
    pub within_ns: u64,
    /// How long in ns a marginal path must answer without a failure to be used as before.
    pub quiet_ns: u64,
}

/// Decides whether a path is marginal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flapping {
    /// The times of the last failures. Failure n is at index n modulo the length.
    times_ns: [u64; MAX_MARGINAL_FAILURES as usize],
    failures: u32,
    /// Since when a marginal path has answered. `None` if the path is not marginal.
    quiet_since_ns: Option<u64>,
}

impl Default for Flapping {
    fn default() -> Self {
        Self::new()
    }
}

impl Flapping {
    /// The state of a path that has not failed yet.
    #[must_use]
    pub const fn new() -> Self {
        let times_ns = [0; MAX_MARGINAL_FAILURES as usize];
        Self { times_ns, failures: 0, quiet_since_ns: None }
    }

    /// Whether the path is marginal.
    #[must_use]
    pub const fn is_marginal(&self) -> bool {
        self.quiet_since_ns.is_some()
    }

    /// Counts a failure of the path. Returns whether this failure has made the path marginal.
    pub fn failed(&mut self, policy: &Marginal, now_ns: u64) -> bool {
        let slots = MAX_MARGINAL_FAILURES;
        if let Some(slot) = self.times_ns.get_mut((self.failures % slots) as usize) {
            *slot = now_ns;
        }
        self.failures = self.failures.wrapping_add(1);
        if self.is_marginal() {
            self.is_down(now_ns);
            return false;
        }
        let wanted = policy.failures.clamp(1, slots);
        let Some(first) = self.failures.checked_sub(wanted) else { return false };
        let first_ns = self.times_ns.get((first % slots) as usize).copied().unwrap_or(0);
        let is_marginal = now_ns.saturating_sub(first_ns) <= policy.within_ns;
        if is_marginal {
            self.quiet_since_ns = Some(now_ns);
        }
        is_marginal
    }

    /// Call this while the path does not answer. The quiet time of a marginal path begins again.
    pub fn is_down(&mut self, now_ns: u64) {
        if let Some(since_ns) = &mut self.quiet_since_ns {
            *since_ns = now_ns;
        }
    }

    /// Call this now and then, and at [`Flapping::due_ns`]. Returns whether the path was marginal
    /// and no longer is.
    pub fn poll(&mut self, policy: &Marginal, now_ns: u64) -> bool {
        let is_over = self.due_ns(policy).is_some_and(|due_ns| due_ns <= now_ns);
        if is_over {
            *self = Self::new();
        }
        is_over
    }

    /// When a marginal path stops being marginal if it answers until then. `None` if it is not
    /// marginal.
    #[must_use]
    pub fn due_ns(&self, policy: &Marginal) -> Option<u64> {
        self.quiet_since_ns.map(|since_ns| since_ns.saturating_add(policy.quiet_ns))
    }
}

/// When to go back to a better group that has a path again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Failback {
    /// At once, when the group has a path that is up.
    #[default]
    Immediate,
    /// After the group has had a path for `delay_ns` without interruption.
    After {
        /// The delay in ns.
        delay_ns: u64,
    },
    /// Never, except by message.
    Manual,
}

/// Decides when to go back to a better group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FailbackTimer {
    better_since_ns: Option<u64>,
}

impl FailbackTimer {
    /// The state before the first call of [`FailbackTimer::poll`].
    #[must_use]
    pub const fn new() -> Self {
        Self { better_since_ns: None }
    }

    /// Call this whenever a path has changed, and at [`FailbackTimer::due_ns`]. `better` comes from
    /// [`super::Multipath::better_group`]. The result goes to [`super::Multipath::choose_group`].
    pub fn poll(&mut self, policy: Failback, better: Option<u32>, now_ns: u64) -> Option<u32> {
        let Some(group) = better else {
            self.better_since_ns = None;
            return None;
        };
        let since_ns = *self.better_since_ns.get_or_insert(now_ns);
        let is_time = match policy {
            Failback::Immediate => true,
            Failback::After { delay_ns } => now_ns.saturating_sub(since_ns) >= delay_ns,
            Failback::Manual => false,
        };
        if is_time {
            self.better_since_ns = None;
            return Some(group);
        }
        None
    }

    /// When [`FailbackTimer::poll`] is due if nothing changes before. `None` if no delay is
    /// running.
    #[must_use]
    pub const fn due_ns(&self, policy: Failback) -> Option<u64> {
        match (policy, self.better_since_ns) {
            (Failback::After { delay_ns }, Some(since_ns)) => {
                Some(since_ns.saturating_add(delay_ns))
            }
            _ => None,
        }
    }
}

/// The policy for requests while no path is up: multipathd's `no_path_retry`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPathRetry {
    /// Fail them at once.
    Fail,
    /// Hold them without a time limit.
    Queue,
    /// Hold them for this number of rounds of the checker, then fail them. 0 means
    /// [`NoPathRetry::Fail`].
    Rounds(u32),
}

impl NoPathRetry {
    /// Whether requests are held when the last path goes down. The argument for
    /// [`super::Multipath::set_queueing`] when the policy is set.
    #[must_use]
    pub const fn queues_first(self) -> bool {
        match self {
            Self::Fail | Self::Rounds(0) => false,
            Self::Queue | Self::Rounds(_) => true,
        }
    }
}

/// Counts the rounds of the checker without a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoPathTimer {
    /// Whole rounds without a path.
    rounds: u32,
    /// Whether the last round ended without a path.
    is_without: bool,
}

impl NoPathTimer {
    /// The state before the first round.
    #[must_use]
    pub const fn new() -> Self {
        Self { rounds: 0, is_without: false }
    }

    /// Call this at the end of a round, with the number of paths that are up. Returns the argument
    /// for [`super::Multipath::set_queueing`]. Returns `None` if the policy is to stay, because a
    /// message may have set it. When paths are back after all rounds were used up, requests will be
    /// held again the next time.
    pub fn round(&mut self, policy: NoPathRetry, live_paths: u32) -> Option<bool> {
        let NoPathRetry::Rounds(limit @ 1..) = policy else { return None };
        let was_without = core::mem::replace(&mut self.is_without, live_paths == 0);
        if live_paths > 0 {
            let gave_up = self.rounds >= limit;
            self.rounds = 0;
            return gave_up.then_some(true);
        }
        // A round counts only if no path was up during all of it, so the round of the loss does
        // not.
        if !was_without || self.rounds >= limit {
            return None;
        }
        self.rounds = self.rounds.saturating_add(1);
        if self.rounds == limit { Some(false) } else { None }
    }
}
