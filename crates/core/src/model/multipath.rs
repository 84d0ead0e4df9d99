//! The naive model of a multipath target: plain lists of paths. Purpose and contract are those of
//! [`super`].
//!
//! A group's `queue` holds the paths that are up, and a used path goes to its end. That is all of
//! round-robin; the other selectors do the same among equally good paths.

use std::vec::Vec;

/// The selector of a group.
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
    /// historical-service-time. The model does not measure, so the caller says which path was
    /// chosen.
    ByTime,
}

/// A path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path {
    /// Whether it has failed.
    pub failed: bool,
    /// Number of failures.
    pub fail_count: u64,
    /// In flight.
    pub requests: u32,
    /// In flight.
    pub bytes: u64,
    /// Relative throughput.
    pub throughput: u32,
    /// The CPUs that use it.
    pub cpus: Vec<u16>,
}

/// A priority group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its selector.
    pub spread: Spread,
    /// Numbers of all its paths.
    pub paths: Vec<usize>,
    /// Numbers of the paths that are up, the next one first.
    pub queue: Vec<usize>,
    /// Whether it is skipped while there is another group.
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

    /// Number of paths that are up.
    #[must_use]
    pub fn live(&self) -> usize {
        self.paths.iter().filter(|path| !path.failed).count()
    }

    /// Chooses the path for a request and counts the request as in flight; `None` if no path is up.
    /// In a group of [`Spread::ByTime`] it is the `chosen` path, if that is allowed.
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

    /// Counts the end of a request.
    pub fn ended(&mut self, path: usize, bytes: u64) {
        self.paths[path].requests -= 1;
        self.paths[path].bytes -= bytes;
    }

    /// Fails a path. Returns whether it was up.
    pub fn fail(&mut self, path: usize) -> bool {
        if self.paths[path].failed {
            return false;
        }
        self.paths[path].failed = true;
        self.paths[path].fail_count += 1;
        self.groups.iter_mut().for_each(|group| group.queue.retain(|other| *other != path));
        true
    }

    /// Reinstates a path. Returns whether it was down.
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

/// Whether `a` would finish its bytes in flight and this request sooner than `b`.
fn sooner(a: &Path, b: &Path, bytes: u64) -> bool {
    let (load_a, load_b) = (u128::from(a.bytes + bytes), u128::from(b.bytes + bytes));
    let (speed_a, speed_b) = (u128::from(a.throughput), u128::from(b.throughput));
    if speed_a == 0 || speed_b == 0 {
        return speed_a > speed_b || (speed_a == speed_b && load_a < load_b);
    }
    let (time_a, time_b) = (load_a * speed_b, load_b * speed_a);
    time_a < time_b || (time_a == time_b && speed_a > speed_b)
}
