//! The naive model of a multipath target: lists of paths, as one would draw them. Same purpose and
//! contract as
//! [`super`].
//!
//! A group's `queue` holds the paths that are up; the one that is used goes to its end. That is the
//! whole of round-robin, and what the other selectors do among equally good paths.

use std::vec::Vec;

/// How a group's requests are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// round-robin
    InTurn,
    /// queue-length
    FewestRequests,
    /// service-time
    FewestBytes,
    /// io-affinity
    ByCpu,
    /// historical-service-time: what was measured the model does not know, so it is told which path
    /// was chosen
    ByTime,
}

/// A path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path {
    /// Has failed.
    pub failed: bool,
    /// How often.
    pub fail_count: u64,
    /// In flight.
    pub requests: u32,
    /// In flight.
    pub bytes: u64,
    /// Relative throughput.
    pub throughput: u32,
    /// Its CPUs.
    pub cpus: Vec<u16>,
}

/// A priority group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// How requests are spread.
    pub spread: Spread,
    /// All its paths, by number.
    pub paths: Vec<usize>,
    /// Those that are up, the next one first.
    pub queue: Vec<usize>,
    /// Passed over while there is another.
    pub disabled: bool,
}

/// A multipath target. Groups count from 0 here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Multipath {
    /// The groups.
    pub groups: Vec<Group>,
    /// The paths of all groups.
    pub paths: Vec<Path>,
    /// The group in use.
    pub current: Option<usize>,
    /// The group a message has named.
    pub next: Option<usize>,
}

impl Multipath {
    /// Groups of paths; the first group is to be used first.
    #[must_use]
    pub fn new(groups: Vec<(Spread, Vec<Path>)>) -> Self {
        let mut model =
            Self { groups: Vec::new(), paths: Vec::new(), current: None, next: Some(0) };
        for (spread, paths) in groups {
            let numbers: Vec<usize> =
                (model.paths.len()..model.paths.len() + paths.len()).collect();
            model.groups.push(Group {
                spread,
                queue: numbers.clone(),
                paths: numbers,
                disabled: false,
            });
            model.paths.extend(paths);
        }
        model
    }

    /// How many paths are up.
    #[must_use]
    pub fn live(&self) -> usize {
        self.paths.iter().filter(|path| !path.failed).count()
    }

    /// The path for a request, which is then in flight; nothing if none is up. In a group that
    /// spreads
    /// [`Spread::ByTime`] it is the one that was `chosen`, if that may be.
    pub fn select(&mut self, bytes: u64, cpu: u16, chosen: Option<usize>) -> Option<usize> {
        let in_order = |disabled| {
            let groups = self.groups.iter().enumerate();
            groups.filter(move |(_, group)| group.disabled == disabled).map(|(number, _)| number)
        };
        let wishes =
            self.next.into_iter().chain(self.current).chain(in_order(false)).chain(in_order(true));
        let group = wishes.into_iter().find(|number| !self.groups[*number].queue.is_empty());
        self.next = None;
        self.current = group;
        let path = self.pick(group?, bytes, cpu, chosen);
        self.paths[path].requests += 1;
        self.paths[path].bytes += bytes;
        Some(path)
    }

    fn pick(&mut self, group: usize, bytes: u64, cpu: u16, chosen: Option<usize>) -> usize {
        let Self { groups, paths, .. } = self;
        let group = &mut groups[group];
        let mine = group
            .paths
            .iter()
            .find(|path| !paths[**path].failed && paths[**path].cpus.contains(&cpu));
        if let (Spread::ByCpu, Some(path)) = (group.spread, mine) {
            return *path;
        }
        let mut best = 0;
        for place in 1..group.queue.len() {
            let (a, b) = (&paths[group.queue[place]], &paths[group.queue[best]]);
            let is_better = match group.spread {
                Spread::ByTime => Some(group.queue[place]) == chosen,
                Spread::InTurn | Spread::ByCpu => false,
                Spread::FewestRequests => a.requests < b.requests,
                Spread::FewestBytes => sooner(a, b, bytes),
            };
            if is_better {
                best = place;
            }
        }
        let path = group.queue.remove(best);
        group.queue.push(path);
        path
    }

    /// The path's request is over.
    pub fn ended(&mut self, path: usize, bytes: u64) {
        self.paths[path].requests -= 1;
        self.paths[path].bytes -= bytes;
    }

    /// Returns whether it was up.
    pub fn fail(&mut self, path: usize) -> bool {
        if self.paths[path].failed {
            return false;
        }
        self.paths[path].failed = true;
        self.paths[path].fail_count += 1;
        self.groups.iter_mut().for_each(|group| group.queue.retain(|other| *other != path));
        true
    }

    /// Returns whether it was down.
    pub fn reinstate(&mut self, path: usize) -> bool {
        if !self.paths[path].failed {
            return false;
        }
        self.paths[path].failed = false;
        let group = self.groups.iter_mut().find(|group| group.paths.contains(&path)).unwrap();
        match group.spread {
            Spread::InTurn => group.queue.insert(0, path),
            _ => group.queue.push(path),
        }
        true
    }

    /// `switch_group`
    pub fn switch_group(&mut self, group: usize) {
        self.groups.iter_mut().for_each(|group| group.disabled = false);
        self.next = Some(group);
        self.current = None;
    }

    /// `disable_group` and `enable_group`
    pub fn disable_group(&mut self, group: usize, disabled: bool) {
        self.groups[group].disabled = disabled;
        self.next = None;
        self.current = None;
    }
}

/// Would `a` be done with everything and this request sooner than `b`?
fn sooner(a: &Path, b: &Path, bytes: u64) -> bool {
    let (load_a, load_b) = (u128::from(a.bytes + bytes), u128::from(b.bytes + bytes));
    let (speed_a, speed_b) = (u128::from(a.throughput), u128::from(b.throughput));
    if speed_a == 0 || speed_b == 0 {
        return speed_a > speed_b || (speed_a == speed_b && load_a < load_b);
    }
    let (time_a, time_b) = (load_a * speed_b, load_b * speed_a);
    time_a < time_b || (time_a == time_b && speed_a > speed_b)
}
