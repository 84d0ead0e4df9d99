//! Runs two threads through the multipath target in every order of their steps, up to a number of
//! preemptions:
//! `RUSTFLAGS="--cfg loom" cargo test --release -p blkswitch-core --test loom_multipath`.
//!
//! loom 0.7 does not try orders in which another thread comes between a load and an exchange of one
//! thread on the same atomic (`fetch_update`). So the target changes the state of a path only in
//! single steps.
#![cfg(loom)]

use blkswitch_core::multipath::outcome::EIO;
use blkswitch_core::multipath::{
    Attempt, Choice, Event, Group, Item, Multipath, MultipathCommand, Params, Path, Verdict,
};
use loom::sync::Arc;
use loom::thread;

type Owned = Multipath<Box<[Group]>, Box<[Path]>>;

/// How often loom interrupts a thread where it does not wait by itself. To miss a path that is up
/// takes one interruption.
const PREEMPTIONS: usize = 4;

fn new(line: &str) -> Owned {
    let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    let mut params = Params::parse(&words).unwrap();
    let (mut groups, mut paths) = (Vec::new(), Vec::new());
    while let Some(item) = params.next_item().unwrap() {
        match item {
            Item::Group(group) => groups.push(group.group()),
            Item::Path(path) => paths.push(path.path().unwrap().path),
        }
    }
    Multipath::new(*params.features(), params.initial_group(), groups.into(), paths.into()).unwrap()
}

fn check(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(run);
}

fn sent(choice: Choice) -> Attempt {
    match choice {
        Choice::Send(attempt) => attempt,
        other => panic!("there is always a path, but: {other:?}"),
    }
}

/// At every moment one of two paths is up, though not always the same one.
#[test]
fn finds_the_path_that_is_up() {
    check(|| {
        let multipath = Arc::new(new("0 0 1 1 round-robin 0 2 0 a b"));
        multipath.fail_path(0, &mut |_| {});
        // No group is named or in use, so the search looks at every path just once. A single miss
        // then gives a wrong answer.
        let command = MultipathCommand::parse(&[b"enable_group", b"1"]).unwrap();
        multipath.apply(&command, |_| false, &mut |_| {}).unwrap();
        let queue = {
            let multipath = multipath.clone();
            thread::spawn(move || {
                let attempt = sent(multipath.select(Default::default(), &mut |_| {}));
                assert_eq!(multipath.judge(attempt, 0, 0, &mut |_| {}), Verdict::Done);
            })
        };
        for (up, down) in [(0, 1), (1, 0)] {
            assert!(multipath.reinstate_path(up, &mut |_| {}));
            assert!(multipath.fail_path(down, &mut |_| {}));
        }
        queue.join().unwrap();
        assert_eq!(multipath.live_paths(), 1);
    });
}

/// The last path goes down while another one is set aside. Both queues find the other path, and it
/// comes up once.
#[test]
fn a_path_that_is_set_aside_is_used_by_all_queues() {
    check(|| {
        let multipath = Arc::new(new("0 0 1 1 round-robin 0 2 0 a b"));
        multipath.set_aside(0, &mut |_| {});
        let queues = [(); 2].map(|()| {
            let multipath = multipath.clone();
            thread::spawn(move || {
                let mut came = 0;
                let mut on =
                    |event| came += u32::from(matches!(event, Event::PathReinstated { .. }));
                let attempt = sent(multipath.select(Default::default(), &mut on));
                assert_eq!(multipath.judge(attempt, 0, 0, &mut |_| {}), Verdict::Done);
                came
            })
        });
        multipath.fail_path(1, &mut |_| {});
        let came: u32 = queues.into_iter().map(|queue| queue.join().unwrap()).sum();
        assert!(came <= 1);
        let up: Vec<bool> = multipath.paths().iter().map(Path::is_up).collect();
        assert_eq!((multipath.live_paths(), up), (came, vec![came == 1, false]));
    });
}

/// Two queues report the same path. It fails once, both requests go on over the other group, and
/// one queue reports the change of the group.
#[test]
fn fails_a_path_once() {
    check(|| {
        let multipath = Arc::new(new("0 0 2 1 queue-length 0 1 0 a queue-length 0 1 0 b"));
        let attempts = [(); 2].map(|()| sent(multipath.select(Default::default(), &mut |_| {})));
        let queues = attempts.map(|attempt| {
            let multipath = multipath.clone();
            thread::spawn(move || {
                let mut events = Vec::new();
                let verdict = multipath.judge(attempt, EIO, 0, &mut |event| events.push(event));
                let Verdict::Retry(attempt) = verdict else { panic!("{verdict:?}") };
                assert_eq!((attempt.path(), attempt.sent_before()), (1, 1));
                assert_eq!(multipath.judge(attempt, 0, 0, &mut |_| {}), Verdict::Done);
                events
            })
        });
        let events: Vec<Event> =
            queues.into_iter().flat_map(|queue| queue.join().unwrap()).collect();
        let count = |event| events.iter().filter(|other| **other == event).count();
        assert_eq!(count(Event::PathFailed { path: 0, left: 1 }), 1);
        assert_eq!((count(Event::GroupSwitched { group: 2 }), events.len()), (1, 2));
        assert_eq!(multipath.paths().iter().map(Path::in_flight).collect::<Vec<_>>(), [0, 0]);
        assert_eq!(multipath.paths()[0].health(), (false, 1));
    });
}

/// A queue that changes the group does not undo a message that names one.
#[test]
fn a_message_wins_over_a_change_of_groups() {
    check(|| {
        let multipath =
            Arc::new(new("0 0 3 1 round-robin 0 1 0 a round-robin 0 1 0 b round-robin 0 1 0 c"));
        let attempt = sent(multipath.select(Default::default(), &mut |_| {}));
        let queue = {
            let multipath = multipath.clone();
            thread::spawn(move || {
                let verdict = multipath.judge(attempt, EIO, 0, &mut |_| {});
                let Verdict::Retry(attempt) = verdict else { panic!("{verdict:?}") };
                assert!([1, 2].contains(&attempt.path()));
                multipath.withdraw(attempt);
            })
        };
        let command = MultipathCommand::parse(&[b"switch_group", b"3"]).unwrap();
        multipath.apply(&command, |_| false, &mut |_| {}).unwrap();
        queue.join().unwrap();
        assert_eq!(sent(multipath.select(Default::default(), &mut |_| {})).path(), 2);
    });
}

/// Two queues that choose at the same time use both paths. Within this bound of preemptions,
/// neither loses as many races as `MAX_SCANS` allows.
#[test]
fn round_robin_hands_out_each_turn_once() {
    check(|| {
        let multipath = Arc::new(new("0 0 1 1 round-robin 0 2 0 a b"));
        // Use the group once, so that the choices below take the usual way.
        multipath.withdraw(sent(multipath.select(Default::default(), &mut |_| {})));
        multipath.withdraw(sent(multipath.select(Default::default(), &mut |_| {})));
        let other = {
            let multipath = multipath.clone();
            thread::spawn(move || sent(multipath.select(Default::default(), &mut |_| {})).path())
        };
        let mine = sent(multipath.select(Default::default(), &mut |_| {})).path();
        assert_eq!(mine + other.join().unwrap(), 1, "one got path 0, the other path 1");
    });
}
