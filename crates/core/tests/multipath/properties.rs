//! The multipath target against the naive model, on random input; and the life of a request.

use blkswitch_core::model::multipath::{self as model, Spread};
use blkswitch_core::multipath::outcome::{EIO, is_path_error};
use blkswitch_core::multipath::{
    Ask, Attempt, Choice, Event, MultipathCommand, SENDS_PER_PATH, Verdict,
};
use proptest::prelude::*;

use super::loading::{Owned, new, send};

fn message(multipath: &Owned, words: &str, on: &mut impl FnMut(Event)) {
    let words: Vec<&[u8]> = words.split(' ').map(str::as_bytes).collect();
    multipath.apply(&MultipathCommand::parse(&words).unwrap(), |_| false, on).unwrap();
}

// ---- Against the model ----

/// A group: how it spreads requests, and the throughput and first CPU of each path.
type GroupShape = (Spread, Vec<(u32, u16)>);

fn shapes() -> impl Strategy<Value = Vec<GroupShape>> {
    let spread = prop_oneof![
        Just(Spread::InTurn),
        Just(Spread::FewestRequests),
        Just(Spread::FewestBytes),
        Just(Spread::ByCpu),
        Just(Spread::ByTime),
    ];
    let path = (prop_oneof![Just(0u32), Just(1), Just(2), 1u32..=100], 0u16..6);
    prop::collection::vec((spread, prop::collection::vec(path, 1..5)), 1..4)
}

fn line(shapes: &[GroupShape]) -> String {
    let mut line = format!("0 0 {} 1", shapes.len());
    for (spread, paths) in shapes {
        let (name, words) = match spread {
            Spread::InTurn => ("round-robin", 0),
            Spread::FewestRequests => ("queue-length", 1),
            Spread::FewestBytes => ("service-time", 2),
            Spread::ByCpu => ("io-affinity", 1),
            Spread::ByTime => ("historical-service-time", 1),
        };
        line += &format!(" {name} 0 {} {words}", paths.len());
        for (throughput, cpu) in paths {
            line += &match spread {
                Spread::InTurn => " dev".to_owned(),
                Spread::FewestRequests | Spread::ByTime => " dev 1".to_owned(),
                Spread::FewestBytes => format!(" dev 1 {throughput}"),
                Spread::ByCpu => format!(" dev {:x}", 1 << cpu),
            };
        }
    }
    line
}

fn model(shapes: &[GroupShape]) -> model::Multipath {
    let path = |(throughput, cpu): &(u32, u16)| model::Path {
        throughput: *throughput,
        cpus: vec![*cpu],
        ..model::Path::default()
    };
    model::Multipath::new(
        shapes.iter().map(|(spread, paths)| (*spread, paths.iter().map(path).collect())).collect(),
    )
}

#[derive(Clone, Debug)]
enum Step {
    Select { bytes: u64, cpu: u16 },
    Judge { which: prop::sample::Index, errno: i32 },
    Withdraw { which: prop::sample::Index },
    Fail(prop::sample::Index),
    Reinstate(prop::sample::Index),
    SwitchGroup(prop::sample::Index),
    DisableGroup(prop::sample::Index, bool),
    Queueing(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let which = any::<prop::sample::Index>;
    prop_oneof![
        8 => (prop_oneof![Just(512u64), Just(4096), 512u64..1 << 20], 0u16..8)
            .prop_map(|(bytes, cpu)| Step::Select { bytes, cpu }),
        4 => (which(), prop_oneof![4 => Just(0), 1 => Just(EIO), 1 => 1i32..134])
            .prop_map(|(which, errno)| Step::Judge { which, errno }),
        1 => which().prop_map(|which| Step::Withdraw { which }),
        1 => which().prop_map(Step::Fail),
        2 => which().prop_map(Step::Reinstate),
        1 => which().prop_map(Step::SwitchGroup),
        1 => (which(), any::<bool>())
            .prop_map(|(which, disable)| Step::DisableGroup(which, disable)),
        1 => any::<bool>().prop_map(Step::Queueing),
    ]
}

/// The target, the model, and the requests in flight.
struct Both {
    real: Owned,
    model: model::Multipath,
    queueing: bool,
    in_flight: Vec<(Attempt, u64, u16)>,
    events: Vec<Event>,
    now_ns: u64,
}

impl Both {
    /// Checks that the choice is the model's.
    fn chosen(&mut self, choice: Choice, bytes: u64, cpu: u16) -> Result<(), TestCaseError> {
        let path =
            if let Choice::Send(attempt) = &choice { Some(attempt.path() as usize) } else { None };
        match (choice, self.model.select(bytes, cpu, path)) {
            (Choice::Send(attempt), path) => {
                prop_assert_eq!(Some(attempt.path() as usize), path);
                self.in_flight.push((attempt, bytes, cpu));
            }
            (Choice::Hold, path) => prop_assert_eq!((path, self.queueing), (None, true)),
            (Choice::Fail(errno), path) => {
                prop_assert_eq!((path, self.queueing, errno), (None, false, EIO))
            }
        }
        Ok(())
    }

    fn judge(&mut self, number: usize, errno: i32) -> Result<(), TestCaseError> {
        let (attempt, bytes, cpu) = self.in_flight.swap_remove(number);
        let (path, sent) = (attempt.path() as usize, attempt.sent_before() + 1);
        self.model.ended(path, bytes);
        let before = self.events.len();
        let verdict =
            self.real.judge(attempt, errno, self.now_ns, &mut |event| self.events.push(event));
        if errno == 0 {
            prop_assert_eq!(verdict, Verdict::Done);
        } else if !is_path_error(errno) {
            prop_assert_eq!(verdict, Verdict::Fail(errno));
        } else {
            if self.model.fail(path) {
                let left = self.model.live() as u32;
                prop_assert_eq!(
                    self.events.get(before),
                    Some(&Event::PathFailed { path: path as u32, left })
                );
            }
            if sent == self.real.max_sends() {
                let last = if self.queueing { Verdict::Hold } else { Verdict::Fail(EIO) };
                prop_assert_eq!(verdict, last);
                return Ok(());
            }
            let choice = match verdict {
                Verdict::Retry(attempt) => Choice::Send(attempt),
                Verdict::Hold => Choice::Hold,
                Verdict::Fail(errno) => Choice::Fail(errno),
                Verdict::Done => return Err(TestCaseError::fail("a failed request is done")),
            };
            self.chosen(choice, bytes, cpu)?;
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let (paths, groups) = (self.model.paths.len(), self.model.groups.len());
        // Steps of the clock are long enough to make averages too old, and paths differ.
        self.now_ns += 1 + self.now_ns % 997 * u64::from(self.now_ns % 7 == 0) * 1000;
        match step {
            Step::Select { bytes, cpu } => {
                let ask = Ask { bytes: *bytes, now_ns: self.now_ns, cpu: *cpu };
                let choice = self.real.select(ask, &mut |event| self.events.push(event));
                self.chosen(choice, *bytes, *cpu)?;
            }
            Step::Judge { which, errno } if !self.in_flight.is_empty() => {
                self.judge(which.index(self.in_flight.len()), *errno)?;
            }
            Step::Withdraw { which } if !self.in_flight.is_empty() => {
                let (attempt, bytes, _) =
                    self.in_flight.swap_remove(which.index(self.in_flight.len()));
                self.model.ended(attempt.path() as usize, bytes);
                self.real.withdraw(attempt);
            }
            Step::Judge { .. } | Step::Withdraw { .. } => {}
            Step::Fail(which) => {
                let path = which.index(paths);
                let ours = self.real.fail_path(path as u32, &mut |event| self.events.push(event));
                prop_assert_eq!(ours, self.model.fail(path));
            }
            Step::Reinstate(which) => {
                let path = which.index(paths);
                let ours =
                    self.real.reinstate_path(path as u32, &mut |event| self.events.push(event));
                prop_assert_eq!(ours, self.model.reinstate(path));
            }
            Step::SwitchGroup(which) => {
                let group = which.index(groups);
                message(&self.real, &format!("switch_group {}", group + 1), &mut |event| {
                    self.events.push(event)
                });
                self.model.switch_group(group);
            }
            Step::DisableGroup(which, disable) => {
                let group = which.index(groups);
                let word = if *disable { "disable_group" } else { "enable_group" };
                message(&self.real, &format!("{word} {}", group + 1), &mut |event| {
                    self.events.push(event)
                });
                self.model.disable_group(group, *disable);
            }
            Step::Queueing(on) => {
                let word = if *on { "queue_if_no_path" } else { "fail_if_no_path" };
                message(&self.real, word, &mut |event| self.events.push(event));
                self.queueing = *on;
            }
        }
        self.compare()
    }

    fn compare(&self) -> Result<(), TestCaseError> {
        let (real, model) = (&self.real, &self.model);
        prop_assert_eq!(real.live_paths() as usize, model.live());
        prop_assert_eq!(real.current_group(), model.current.map(|group| group as u32 + 1));
        prop_assert_eq!(real.queues_if_no_path(), self.queueing);
        for (ours, theirs) in real.paths().iter().zip(&model.paths) {
            prop_assert_eq!(ours.health(), (!theirs.failed, theirs.fail_count));
            match model.groups[ours.group() as usize].spread {
                Spread::FewestRequests | Spread::ByTime => {
                    prop_assert_eq!(ours.in_flight(), theirs.requests)
                }
                Spread::FewestBytes => prop_assert_eq!(ours.bytes_in_flight(), theirs.bytes),
                Spread::InTurn | Spread::ByCpu => {}
            }
        }
        Ok(())
    }

    /// Failures and reinstatements of every path alternate, as often as in the model.
    fn check_events(&self) -> Result<(), TestCaseError> {
        for (number, path) in self.model.paths.iter().enumerate() {
            let about = self.events.iter().filter(|event| event.path() == Some(number as u32));
            let changes: Vec<bool> =
                about.map(|event| matches!(event, Event::PathFailed { .. })).collect();
            prop_assert!(changes.iter().zip((0..).map(|n| n % 2 == 0)).all(|(a, b)| *a == b));
            let failures = changes.iter().filter(|failed| **failed).count() as u64;
            prop_assert_eq!(
                (failures, changes.last() == Some(&true)),
                (path.fail_count, path.failed)
            );
        }
        Ok(())
    }
}

proptest! {
    /// Every choice, verdict, count and event is the model's. Where a group spreads by measured
    /// times, the model cannot know the choice, but the path must be up. The model queues only on
    /// paths that are up, so this also shows that no request goes to a failed path while another
    /// one is up.
    #[test]
    fn is_the_model(shapes in shapes(), steps in prop::collection::vec(step(), 1..120)) {
        let mut both = Both {
            real: new(&line(&shapes)),
            model: model(&shapes),
            queueing: false,
            in_flight: Vec::new(),
            events: Vec::new(),
            now_ns: 1,
        };
        for step in &steps {
            both.step(step)?;
        }
        both.check_events()?;
        while !both.in_flight.is_empty() {
            both.judge(0, 0)?;
        }
        both.compare()?;
        prop_assert!(
            both.real
                .paths()
                .iter()
                .all(|path| path.in_flight() == 0 && path.bytes_in_flight() == 0)
        );
    }

    /// A request ends, and is never sent to a path that is down, whatever paths come back and fail
    /// meanwhile.
    #[test]
    fn a_request_comes_to_an_end(
        shapes in shapes(),
        queueing in any::<bool>(),
        back in prop::collection::vec(any::<u16>(), 64),
    ) {
        let multipath = new(&line(&shapes));
        multipath.set_queueing(queueing, &mut |_| {});
        let mut sends = 0;
        let mut next = send(multipath.select(Ask { bytes: 512, ..Ask::default() }, &mut |_| {}));
        while let Some(attempt) = next.take() {
            prop_assert!(multipath.paths()[attempt.path() as usize].is_up());
            prop_assert_eq!(attempt.sent_before(), sends);
            sends += 1;
            prop_assert!(sends <= multipath.num_paths() * SENDS_PER_PATH);
            // Some of the failed paths come back while the request is in flight.
            let bits = back[sends as usize % back.len()];
            for path in (0..multipath.num_paths()).filter(|path| bits >> path & 1 != 0) {
                multipath.reinstate_path(path, &mut |_| {});
            }
            let expected_end = if queueing { Verdict::Hold } else { Verdict::Fail(EIO) };
            match multipath.judge(attempt, EIO, 0, &mut |_| {}) {
                Verdict::Retry(attempt) => next = Some(attempt),
                end => prop_assert_eq!(end, expected_end),
            }
        }
    }
}

#[test]
fn a_request_that_is_sent_too_often_fails_although_a_path_is_up() {
    let multipath = new("0 0 1 1 round-robin 0 2 0 a b");
    let mut sends = 0;
    let mut next = send(multipath.select(Ask::default(), &mut |_| {}));
    while let Some(attempt) = next.take() {
        sends += 1;
        assert!(sends <= multipath.max_sends());
        // All paths come back at once, every time.
        (0..2).for_each(|path| assert!(!multipath.reinstate_path(path, &mut |_| {}) || sends > 1));
        match multipath.judge(attempt, EIO, 0, &mut |_| {}) {
            Verdict::Retry(attempt) => next = Some(attempt),
            verdict => assert_eq!(verdict, Verdict::Fail(EIO)),
        }
    }
    assert_eq!((sends, multipath.max_sends()), (4, 4));
    assert!(multipath.live_paths() > 0);
}

#[test]
fn errors_that_fail_a_path_and_errors_that_go_up() {
    // EOPNOTSUPP ENOSPC EREMOTEIO EBADE ENODATA EILSEQ, then EINVAL EFAULT EFBIG EPERM EACCES EROFS
    // EDQUOT ENOMEM.
    let up = [95, 28, 121, 52, 61, 84, 22, 14, 27, 1, 13, 30, 122, 12];
    for errno in 1..134 {
        assert_eq!(is_path_error(errno), !up.contains(&errno), "errno {errno}");
    }
}

#[test]
fn silence_fails_a_path() {
    let multipath = new("0 0 1 1 queue-length 0 2 0 a b");
    let attempt =
        send(multipath.select(Ask { now_ns: 1000, ..Ask::default() }, &mut |_| {})).unwrap();
    let mut events = Vec::new();
    let verdict = multipath.judge(attempt, 110, 6000, &mut |event| events.push(event));
    assert_eq!(events, [Event::PathFailed { path: 0, left: 1 }]);
    let Verdict::Retry(attempt) = verdict else { panic!("{verdict:?}") };
    assert_eq!((attempt.path(), attempt.started_ns()), (1, 6000));
    assert_eq!(multipath.paths().iter().map(|path| path.in_flight()).collect::<Vec<_>>(), [0, 1]);
    multipath.withdraw(attempt);
    assert_eq!(multipath.paths()[1].in_flight(), 0);
}

#[test]
fn says_when_another_group_takes_over() {
    let multipath = new("0 0 2 1 round-robin 0 1 0 a round-robin 0 1 0 b");
    let mut events = Vec::new();
    let mut on = |event| events.push(event);
    let mut paths = Vec::new();
    let mut select = |on: &mut dyn FnMut(Event)| {
        let mut on = on;
        paths.push(send(multipath.select(Ask::default(), &mut on)).unwrap().path());
    };
    select(&mut on);
    multipath.fail_path(0, &mut on);
    select(&mut on);
    multipath.reinstate_path(0, &mut on);
    select(&mut on);
    assert_eq!(multipath.better_group(), Some(1));
    assert!(multipath.choose_group(1, &mut on) && !multipath.choose_group(3, &mut on));
    select(&mut on);
    assert_eq!(paths, [0, 1, 1, 0]);
    assert_eq!(
        events,
        [
            Event::PathFailed { path: 0, left: 1 },
            Event::GroupSwitched { group: 2 },
            Event::PathReinstated { path: 0, left: 2 },
            Event::GroupChosen { group: 1 },
            Event::GroupSwitched { group: 1 },
        ]
    );
}
