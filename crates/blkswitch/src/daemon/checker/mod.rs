//! The path checker does for multipath devices what multipathd does for the kernel's. It probes
//! their paths, reinstates those that answer, and fails those that do not. It returns to a better
//! priority group, and it ends queueing when no path came back. It sets aside a path that flaps or
//! has become read-only: such a path is used only while no other is up.
//!
//! The core decides when each of this happens ([`blkswitch_core::multipath::checker`]). This module
//! supplies the clock, and [`probes`] has the threads that wait for answers. The result of a probe
//! changes the path's state under the device's message lock, and only if the table that the probe
//! was started for is still live.
//!
//! Contract: one task per daemon. The checker forgets what it knows about a device when the device
//! gets another table.

mod probes;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use blkswitch_core::multipath::Event;
use blkswitch_core::multipath::checker::{
    Failback, FailbackTimer, Flapping, Intervals, Marginal, NoPathRetry, NoPathTimer, Probe,
};
use blkswitch_io::table::PathGroups;
use blkswitch_io::{Device, Table};
use tokio::sync::{Notify, mpsc};

use self::probes::Probes;
use crate::config::PathOptions;
use crate::daemon::devices::Devices;

/// Longest interval between probes, as a multiple of the first interval. It is the ratio of
/// multipathd's defaults for `max_polling_interval` and `polling_interval`.
const BACKOFF: u32 = 4;
/// Longest time until the checker notices a new device.
const LOOK: Duration = Duration::from_secs(1);

/// The settings of one device.
#[derive(Clone, Copy, Debug)]
struct Policy {
    /// `None`: paths are not probed.
    intervals: Option<Intervals>,
    failback: Failback,
    /// `None`: the table or a message decides.
    no_path_retry: Option<NoPathRetry>,
    /// `None`: a path that answers is used, however often it has failed.
    marginal: Option<Marginal>,
}

impl Policy {
    fn new(options: &PathOptions, device: &str) -> Policy {
        Policy {
            intervals: intervals(options),
            failback: options.failback_of(device),
            no_path_retry: options.no_path_retry_of(device),
            marginal: options.marginal(),
        }
    }
}

fn intervals(options: &PathOptions) -> Option<Intervals> {
    let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let first = options.path_checker_interval;
    let intervals = Intervals { first_ns: ns(first), last_ns: ns(first.saturating_mul(BACKOFF)) };
    (!first.is_zero()).then_some(intervals)
}

/// State of the checker for one multipath device.
struct Watched {
    table: Weak<Table>,
    paths: Vec<WatchedPath>,
    failback: FailbackTimer,
    no_path: NoPathTimer,
    /// As configured when the table went live. A renamed device keeps this policy.
    no_path_retry: NoPathRetry,
    next_round_ns: u64,
}

struct WatchedPath {
    probe: Probe,
    /// When the probe that is under way began; `None` if none is.
    since_ns: Option<u64>,
    was_up: bool,
    failures: u64,
    flapping: Flapping,
}

/// Sent when a probe has ended: the device, the table that the probe was started for, the path.
type Probed = (u32, Weak<Table>, u32);

struct Checker {
    devices: Arc<Devices>,
    options: PathOptions,
    watched: HashMap<u32, Watched>,
    ended: mpsc::UnboundedSender<Probed>,
    probes: Arc<Probes>,
    epoch: Instant,
}

/// Runs the checker for as long as the future is polled. `changed` is notified when something
/// happens on a multipath device.
pub async fn run(devices: Arc<Devices>, options: PathOptions, changed: Arc<Notify>) {
    let (ended, mut probed) = mpsc::unbounded_channel();
    let mut checker = Checker {
        devices,
        options,
        watched: HashMap::new(),
        ended,
        probes: Probes::new(),
        epoch: Instant::now(),
    };
    loop {
        let next = checker.look();
        tokio::select! {
            () = tokio::time::sleep(next) => {}
            () = changed.notified() => {}
            Some(ended) = probed.recv() => checker.ended(&ended),
        }
    }
}

impl Checker {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Does all work that is due. Returns the time until the next look.
    fn look(&mut self) -> Duration {
        let now_ns = self.now_ns();
        let mut due_ns = now_ns.saturating_add(LOOK.as_nanos() as u64);
        let devices = self.devices.list();
        self.watched.retain(|id, _| devices.iter().any(|device| device.id() == *id));
        for device in devices {
            let Some(table) = device.live().filter(|table| table.multipath().is_some()) else {
                self.watched.remove(&device.id());
                continue;
            };
            if let Some((groups, _)) = table.multipath() {
                due_ns = due_ns.min(self.look_at(&device, &table, groups, now_ns));
            }
        }
        Duration::from_nanos(due_ns.saturating_sub(now_ns))
    }

    fn look_at(
        &mut self,
        device: &Arc<Device>,
        table: &Arc<Table>,
        groups: &PathGroups,
        now_ns: u64,
    ) -> u64 {
        let policy = Policy::new(&self.options, &device.name());
        let is_known = |watched: &Watched| std::ptr::eq(watched.table.as_ptr(), Arc::as_ptr(table));
        if !self.watched.get(&device.id()).is_some_and(is_known) {
            if let Some(retry) = policy.no_path_retry {
                change(device, table, move |groups, mut on| {
                    groups.set_queueing(retry.queues_first(), &mut on);
                });
            }
            self.watched.insert(device.id(), Watched::new(table, groups, &policy, now_ns));
        }
        let Some(watched) = self.watched.get_mut(&device.id()) else { return u64::MAX };
        let mut due_ns = u64::MAX;
        if let Some(marginal) = &policy.marginal {
            due_ns = watch_flapping(device, table, groups, (watched, marginal), now_ns);
        }
        if groups.live_paths() == 0 {
            use_aside(device, table, groups);
        }
        if let Some(intervals) = policy.intervals {
            for (number, path) in (0u32..).zip(&mut watched.paths) {
                let is_up = groups.paths().get(number as usize).is_some_and(|path| path.is_up());
                if is_up != path.was_up {
                    (path.was_up, path.probe) = (is_up, Probe::new(&intervals, now_ns));
                }
                if path.since_ns.is_none() && path.probe.due_ns() <= now_ns {
                    path.since_ns = Some(now_ns);
                    start_probe(device, table, number, self.ended.clone(), self.probes.clone());
                }
                due_ns = due_ns.min(if path.since_ns.is_some() {
                    u64::MAX
                } else {
                    path.probe.due_ns()
                });
            }
            if watched.next_round_ns <= now_ns {
                watched.next_round_ns = now_ns.saturating_add(intervals.first_ns);
                end_round(device, table, watched, groups);
            }
            due_ns = due_ns.min(watched.next_round_ns);
        }
        if let Some(group) = watched.failback.poll(policy.failback, groups.better_group(), now_ns) {
            change(device, table, move |groups, mut on| {
                // Another thread may have changed the group meanwhile.
                if groups.better_group() == Some(group) {
                    groups.choose_group(group, &mut on);
                }
            });
        }
        due_ns.min(watched.failback.due_ns(policy.failback).unwrap_or(u64::MAX))
    }

    /// Notes that the probe of a path has ended.
    fn ended(&mut self, (device, table, number): &Probed) {
        let now_ns = self.now_ns();
        let watched = self.watched.get_mut(device).filter(|watched| watched.table.ptr_eq(table));
        let Some(path) = watched.and_then(|watched| watched.paths.get_mut(*number as usize)) else {
            return;
        };
        path.since_ns = None;
        // If the state of the path has changed, the path has a new probe already or gets one at the
        // next look. Otherwise this probe is scheduled again.
        if let Some(intervals) = intervals(&self.options)
            && path.probe.due_ns() <= now_ns
        {
            path.probe.unchanged(&intervals, path.was_up, now_ns);
        }
    }
}

impl Watched {
    fn new(table: &Arc<Table>, groups: &PathGroups, policy: &Policy, now_ns: u64) -> Watched {
        let intervals = policy.intervals.unwrap_or_default();
        let path = |is_up| WatchedPath {
            probe: Probe::new(&intervals, now_ns),
            since_ns: None,
            was_up: is_up,
            // All failures since the table went live count: the checker sees this table for the
            // first time.
            failures: 0,
            flapping: Flapping::new(),
        };
        Watched {
            table: Arc::downgrade(table),
            paths: groups.paths().iter().map(|one| path(one.is_up())).collect(),
            failback: FailbackTimer::new(),
            no_path: NoPathTimer::new(),
            no_path_retry: policy.no_path_retry.unwrap_or(NoPathRetry::Queue),
            next_round_ns: now_ns.saturating_add(intervals.first_ns),
        }
    }
}

/// Counts failures of paths, and sets aside those that flap. Returns when to look again.
fn watch_flapping(
    device: &Arc<Device>,
    table: &Arc<Table>,
    groups: &PathGroups,
    (watched, policy): (&mut Watched, &Marginal),
    now_ns: u64,
) -> u64 {
    let mut due_ns = u64::MAX;
    for ((path, known), number) in groups.paths().iter().zip(&mut watched.paths).zip(0u32..) {
        let (is_up, failures) = path.health();
        let flapping = &mut known.flapping;
        if std::mem::replace(&mut known.failures, failures) < failures
            && flapping.failed(policy, now_ns)
        {
            path.set_marginal(true);
            device.path_flaps(number, true);
        }
        if !is_up && !path.is_aside() {
            flapping.is_down(now_ns);
        }
        if flapping.poll(policy, now_ns) {
            path.set_marginal(false);
            device.path_flaps(number, false);
            if path.is_aside() {
                change(device, table, move |groups, mut on| {
                    groups.reinstate_path(number, &mut on);
                });
            }
        }
        if is_up && path.is_marginal() && has_better(groups) {
            change(device, table, move |groups, mut on| {
                let is_up = |number: u32| {
                    groups.paths().get(number as usize).is_some_and(|path| path.is_up())
                };
                // The path may be the only good one by now.
                if is_up(number) && has_better(groups) {
                    groups.set_aside(number, &mut on);
                }
            });
        }
        due_ns = due_ns.min(flapping.due_ns(policy).unwrap_or(u64::MAX));
    }
    due_ns
}

/// Returns whether a path is up that does not flap.
fn has_better(groups: &PathGroups) -> bool {
    groups.paths().iter().any(|path| path.is_up() && !path.is_marginal())
}

/// Reinstates a path that is set aside when no path is up. New requests would use such a path
/// anyway, but held requests are retried only when a path is up.
fn use_aside(device: &Arc<Device>, table: &Arc<Table>, groups: &PathGroups) {
    let Some(number) = groups.paths().iter().position(|path| path.is_aside()) else { return };
    change(device, table, move |groups, mut on| {
        if groups.live_paths() == 0 {
            groups.reinstate_path(number as u32, &mut on);
        }
    });
}

/// Ends a round of probes: counts a round without a path towards the end of queueing, and retries
/// held requests.
fn end_round(device: &Arc<Device>, table: &Arc<Table>, watched: &mut Watched, groups: &PathGroups) {
    if let Some(queueing) = watched.no_path.round(watched.no_path_retry, groups.live_paths()) {
        change(device, table, move |groups, mut on| groups.set_queueing(queueing, &mut on));
    }
    if device.totals().held > 0 {
        device.release_held();
    }
}

/// Changes the multipath on a thread that may block, because another message may hold the lock.
fn change(
    device: &Arc<Device>,
    table: &Arc<Table>,
    act: impl FnOnce(&PathGroups, &mut dyn FnMut(Event)) + Send + 'static,
) {
    let (device, table) = (device.clone(), table.clone());
    tokio::task::spawn_blocking(move || change_now(&device, &table, act));
}

fn change_now(
    device: &Device,
    table: &Arc<Table>,
    act: impl FnOnce(&PathGroups, &mut dyn FnMut(Event)),
) {
    if let Ok(messenger) = device.messenger(0)
        && Arc::ptr_eq(messenger.table(), table)
    {
        messenger.change(act);
    }
}

/// Probes a path and changes its state according to the answer.
fn start_probe(
    device: &Arc<Device>,
    table: &Arc<Table>,
    number: u32,
    ended: mpsc::UnboundedSender<Probed>,
    probes: Arc<Probes>,
) {
    let (device, table) = (device.clone(), table.clone());
    tokio::spawn(async move {
        let (id, weak) = (device.id(), Arc::downgrade(&table));
        let to = table.multipath().and_then(|(_, paths)| paths.get(number as usize));
        if let Some(leaf) = to.and_then(|to| table.leaf_of(*to)) {
            let probed = probes.probe(leaf, |leaf, time| leaf.probe(time)).await;
            if let Some(answer) = probed {
                leaf.probed(&answer);
                // The message lock may block. If the change panics, nothing has changed, and the
                // path is probed again.
                let _ =
                    tokio::task::spawn_blocking(move || judge(&device, &table, number, &answer))
                        .await;
            }
        }
        let _ = ended.send((id, weak, number));
    });
}

fn judge(device: &Device, table: &Arc<Table>, number: u32, answer: &io::Result<()>) {
    if let Err(error) = answer {
        tracing::debug!(device = %device.name(), path = number, %error, "a path does not answer");
    }
    let to = table.multipath().and_then(|(_, paths)| paths.get(number as usize));
    let is_protected = to.and_then(|to| table.leaf_of(*to)).is_some_and(|leaf| leaf.is_protected());
    change_now(device, table, |groups, mut on| {
        let Some(path) = groups.paths().get(number as usize) else { return };
        if answer.is_err() {
            groups.fail_path(number, &mut on);
        } else if !(is_protected || path.is_marginal()) || groups.live_paths() == 0 {
            groups.reinstate_path(number, &mut on);
        } else if !path.is_up() {
            groups.set_aside(number, &mut on);
        }
    });
}
