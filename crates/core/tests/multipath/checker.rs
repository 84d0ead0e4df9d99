//! What is multipathd's business in the kernel's world, as functions of time.

use blkswitch_core::multipath::checker::{
    FIRST_INTERVAL_NS, Failback, FailbackTimer, Intervals, LAST_INTERVAL_NS, NoPathRetry,
    NoPathTimer, Probe,
};

use super::loading::new;

const SECOND_NS: u64 = 1_000_000_000;

#[test]
fn probes_back_off_from_5_to_20_seconds() {
    let intervals = Intervals::default();
    assert_eq!((FIRST_INTERVAL_NS, LAST_INTERVAL_NS), (5 * SECOND_NS, 20 * SECOND_NS));
    let mut probe = Probe::new(&intervals, 100 * SECOND_NS);
    let mut due = vec![probe.due_ns() / SECOND_NS];
    for _ in 0..4 {
        // Answered one second after it was due: the next interval begins then.
        probe.unchanged(&intervals, true, probe.due_ns() + SECOND_NS);
        due.push(probe.due_ns() / SECOND_NS);
    }
    assert_eq!(due, [105, 116, 137, 158, 179]);
    // A longest interval below the first is the first.
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
    // The end of time does not wrap.
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
    // The better group was lost in between: the time begins anew.
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
        let command = blkswitch_core::multipath::Command::parse(&[word, group]).unwrap();
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
    // A disabled group is no group to go back to, and one to leave.
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

    // Paths that are back in time: the rounds begin anew, and nothing is to be set.
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
