//! Tests of the decisions that the kernel leaves to multipathd, as functions of time.

use blkswitch_core::multipath::checker::{
    FIRST_INTERVAL_NS, Failback, FailbackTimer, Flapping, Intervals, LAST_INTERVAL_NS,
    MAX_MARGINAL_FAILURES, Marginal, NoPathRetry, NoPathTimer, Probe,
};
use blkswitch_core::multipath::outcome::EIO;
use blkswitch_core::multipath::{Attempt, Choice, Event, Verdict};

use super::loading::{self, Owned, new};

/// Chooses a path for a request.
fn send(multipath: &Owned) -> Attempt {
    loading::send(multipath.select(Default::default(), &mut |_| {})).expect("a path is up")
}

const SECOND_NS: u64 = 1_000_000_000;

#[test]
fn probes_back_off_from_5_to_20_seconds() {
    let intervals = Intervals::default();
    assert_eq!((FIRST_INTERVAL_NS, LAST_INTERVAL_NS), (5 * SECOND_NS, 20 * SECOND_NS));
    let mut probe = Probe::new(&intervals, 100 * SECOND_NS);
    let mut due = vec![probe.due_ns() / SECOND_NS];
    for _ in 0..4 {
        // The answer comes one second late. The next interval begins at the answer.
        probe.unchanged(&intervals, true, probe.due_ns() + SECOND_NS);
        due.push(probe.due_ns() / SECOND_NS);
    }
    assert_eq!(due, [105, 116, 137, 158, 179]);
    // If the longest interval is below the first, the first one counts.
    let odd = Intervals { first_ns: 7, last_ns: 3 };
    let mut probe = Probe::new(&odd, 0);
    probe.unchanged(&odd, true, 7);
    assert_eq!(probe.due_ns(), 14);
    // A path that is down is probed at every interval, however long it is down.
    let mut probe = Probe::new(&intervals, 0);
    for round in 1..10 {
        assert_eq!(probe.due_ns(), round * 5 * SECOND_NS);
        probe.unchanged(&intervals, false, probe.due_ns());
    }
    // Times at the end of the clock's range do not wrap.
    assert_eq!(Probe::new(&intervals, u64::MAX).due_ns(), u64::MAX);
}

#[test]
fn failback() {
    let after = Failback::After { delay_ns: 10 };
    let mut timer = FailbackTimer::new();
    assert_eq!(timer.poll(Failback::Immediate, Some(1), 0), Some(1));
    assert_eq!(timer.poll(Failback::Manual, Some(1), 0), None);
    assert_eq!(timer.poll(Failback::Immediate, None, 0), None);

    let mut timer = FailbackTimer::new();
    assert_eq!((timer.poll(after, Some(1), 100), timer.due_ns(after)), (None, Some(110)));
    assert_eq!((timer.poll(after, Some(1), 109), timer.due_ns(after)), (None, Some(110)));
    // The better group was lost in between, so the delay begins again.
    assert_eq!((timer.poll(after, None, 109), timer.due_ns(after)), (None, None));
    assert_eq!(timer.poll(after, Some(1), 111), None);
    assert_eq!(timer.poll(after, Some(1), 120), None);
    assert_eq!(timer.poll(after, Some(1), 121), Some(1));
    assert_eq!((timer.due_ns(after), timer.due_ns(Failback::Manual)), (None, None));
}

#[test]
fn a_better_group() {
    let multipath = new("0 0 3 1 round-robin 0 1 0 a round-robin 0 1 0 b round-robin 0 1 0 c");
    let select = || drop(multipath.select(Default::default(), &mut |_| {}));
    let disable = |word: &[u8], group: &[u8]| {
        let command = blkswitch_core::multipath::MultipathCommand::parse(&[word, group]).unwrap();
        multipath.apply(&command, |_| false, &mut |_| {}).unwrap();
    };
    assert_eq!(multipath.better_group(), None, "nothing is in use yet");
    select();
    assert_eq!((multipath.current_group(), multipath.better_group()), (Some(1), None));
    multipath.fail_path(0, &mut |_| {});
    multipath.fail_path(1, &mut |_| {});
    select();
    assert_eq!((multipath.current_group(), multipath.better_group()), (Some(3), None));
    multipath.reinstate_path(1, &mut |_| {});
    assert_eq!(multipath.better_group(), Some(2));
    multipath.reinstate_path(0, &mut |_| {});
    assert_eq!(multipath.better_group(), Some(1));
    // The way back never leads to a disabled group, but it may lead away from one.
    disable(b"disable_group", b"1");
    select();
    assert_eq!((multipath.current_group(), multipath.better_group()), (Some(2), None));
    disable(b"disable_group", b"2");
    disable(b"disable_group", b"3");
    disable(b"enable_group", b"3");
    multipath.fail_path(2, &mut |_| {});
    select();
    assert_eq!((multipath.current_group(), multipath.better_group()), (Some(1), None));
    multipath.reinstate_path(2, &mut |_| {});
    assert_eq!(multipath.better_group(), Some(3));
}

#[test]
fn no_path_retry() {
    let rounds = NoPathRetry::Rounds(2);
    let queues_first = [NoPathRetry::Fail, NoPathRetry::Queue, rounds, NoPathRetry::Rounds(0)];
    assert_eq!(queues_first.map(NoPathRetry::queues_first), [false, true, true, false]);

    let mut timer = NoPathTimer::new();
    assert_eq!(timer.round(rounds, 1), None);
    assert_eq!(timer.round(rounds, 0), None, "the round in which the path was lost");
    assert_eq!(timer.round(rounds, 0), None);
    assert_eq!(timer.round(rounds, 0), Some(false), "two rounds without a path");
    assert_eq!(timer.round(rounds, 0), None, "said already");
    assert_eq!(timer.round(rounds, 1), Some(true), "back: held again from the next time on");
    assert_eq!(timer.round(rounds, 1), None, "said already");

    // Paths come back in time: the rounds begin again, and the policy stays as it is.
    assert_eq!(timer.round(rounds, 0), None);
    assert_eq!(timer.round(rounds, 3), None);
    assert_eq!(timer.round(rounds, 0), None);
    assert_eq!(timer.round(rounds, 0), None);
    assert_eq!(timer.round(rounds, 0), Some(false));

    for policy in [NoPathRetry::Fail, NoPathRetry::Queue, NoPathRetry::Rounds(0)] {
        let mut timer = NoPathTimer::new();
        assert!(
            [0, 0, 0, 1, 0].into_iter().all(|live| timer.round(policy, live).is_none()),
            "{policy:?}"
        );
    }
}

#[test]
fn a_path_that_flaps_is_marginal_until_it_was_quiet() {
    let policy = Marginal { failures: 3, within_ns: 60, quiet_ns: 100 };
    let mut path = Flapping::new();
    let failed = |path: &mut Flapping, times: &[u64]| -> Vec<bool> {
        times.iter().map(|time| path.failed(&policy, *time)).collect()
    };
    // There are three failures in total, but never three within one window.
    assert_eq!(failed(&mut path, &[0, 50, 61, 112, 173]), [false; 5]);
    assert_eq!((path.is_marginal(), path.due_ns(&policy)), (false, None));
    assert!(!path.poll(&policy, 1000), "it was not marginal");
    assert_eq!(failed(&mut path, &[200, 230]), [false, true]);
    assert_eq!((path.is_marginal(), path.due_ns(&policy)), (true, Some(330)));
    // A further failure of a marginal path is not reported, but its quiet time begins again.
    assert!(!path.failed(&policy, 300) && !path.poll(&policy, 399));
    path.is_down(350);
    assert!(!path.poll(&policy, 449));
    assert!(path.poll(&policy, 450) && !path.is_marginal());
    // Failures from before the quiet time no longer count.
    assert_eq!(failed(&mut path, &[451, 452, 453]), [false, false, true]);
    for (failures, expected) in [(1, 1), (0, 1), (MAX_MARGINAL_FAILURES, 16), (99, 16)] {
        let policy = Marginal { failures, ..policy };
        let mut path = Flapping::new();
        let needed = (1..).find(|time| path.failed(&policy, *time)).unwrap();
        assert_eq!(needed, expected);
    }
}

#[test]
fn a_path_that_is_set_aside_is_used_when_no_other_is_up() {
    let multipath = new("0 0 2 1 round-robin 0 2 0 a b round-robin 0 1 0 c");
    let mut events = Vec::new();
    let mut on = |event| events.push(event);
    assert!(multipath.set_aside(0, &mut on) && !multipath.set_aside(0, &mut on));
    assert!(!multipath.set_aside(9, &mut on), "there is no such path");
    let path = &multipath.paths()[0];
    assert_eq!((path.health(), path.is_aside(), path.is_marginal()), ((false, 0), true, false));
    for _ in 0..3 {
        assert_eq!(send(&multipath).path(), 1, "others are used");
    }
    multipath.fail_path(1, &mut on);
    assert_eq!(send(&multipath).path(), 2, "also those of a worse group");
    multipath.fail_path(2, &mut on);
    assert_eq!(send(&multipath).path(), 0);
    assert_eq!((path.health(), path.is_aside(), multipath.live_paths()), ((true, 0), false, 1));
    // A path that was set aside and then fails is not used.
    multipath.set_aside(0, &mut on);
    multipath.fail_path(0, &mut on);
    assert!(!path.is_aside());
    assert_eq!(multipath.select(Default::default(), &mut on), Choice::Fail(EIO));
    // A path that had failed and is then set aside may be used.
    assert!(!multipath.set_aside(1, &mut on));
    let attempt = loading::send(multipath.select(Default::default(), &mut on));
    assert_eq!(attempt.map(|attempt| attempt.path()), Some(1));
    assert!(events.contains(&Event::PathReinstated { path: 1, left: 1 }));
    path.set_marginal(true);
    assert_eq!((path.is_marginal(), path.health()), (true, (false, 0)));
    path.set_marginal(false);
    assert!(!path.is_marginal());
}

#[test]
fn a_path_that_cannot_be_written_fails_unless_it_is_the_last() {
    const EROFS: i32 = 30;
    let multipath = new("1 queue_if_no_path 0 1 1 round-robin 0 3 0 a b c");
    let on = &mut |_| {};
    let mut attempt = send(&multipath);
    for left in [2, 1] {
        let Verdict::Retry(next) = multipath.judge_protected(attempt, EROFS, 0, on) else {
            panic!("another path may be one that can be written");
        };
        assert_eq!(multipath.live_paths(), left);
        attempt = next;
    }
    // The last path has answered, so the request fails at once, even with `queue_if_no_path`.
    let last = attempt.path();
    assert_eq!(multipath.judge_protected(attempt, EROFS, 0, on), Verdict::Fail(EROFS));
    assert_eq!((send(&multipath).path(), multipath.live_paths()), (last, 1));
    // When the last path fails, the write-protected ones are used: they can still be read.
    multipath.fail_path(last, on);
    assert_ne!(send(&multipath).path(), last);
    // Two answers come from one path. The second one finds the path set aside already.
    let multipath = new("0 0 1 1 round-robin 0 2 0 a b");
    let attempts = [send(&multipath), send(&multipath), send(&multipath)];
    let [first, _, third] = attempts;
    assert_eq!(first.path(), third.path());
    for attempt in [first, third] {
        let verdict = multipath.judge_protected(attempt, EROFS, 0, on);
        assert!(matches!(verdict, Verdict::Retry(_)), "{verdict:?}");
    }
    assert_eq!(multipath.live_paths(), 1);
}
