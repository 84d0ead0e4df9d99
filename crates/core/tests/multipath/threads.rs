//! Several queues at once. Each test runs real threads for a while and checks the promises on every
//! request.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use blkswitch_core::multipath::outcome::EIO;
use blkswitch_core::multipath::{Ask, Choice, Event, Verdict};

use super::loading::{new, send};

/// How long a test runs: enough for a few hundred thousand requests, and for the system to
/// interrupt each thread at odd places.
const RUN: Duration = Duration::from_millis(400);
/// On a busy machine a test runs longer, until each thread has done this many requests.
const ENOUGH: u64 = 1000;
/// The longest time to wait for [`ENOUGH`].
const PATIENCE: Duration = Duration::from_secs(60);
const QUEUES: u64 = 4;

/// The next number of a xorshift generator. Each thread has its own seed.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Paths fail and come back, but one is up at every moment: no request is turned away.
#[test]
fn a_path_is_found_as_long_as_there_is_one() {
    let line = "0 0 2 1 round-robin 0 2 0 a b queue-length 0 2 0 c d";
    let multipath = new(line);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for cpu in 0..QUEUES as u16 {
            let (multipath, stop) = (&multipath, &stop);
            scope.spawn(move || {
                let mut requests = 0u64;
                while !stop.load(SeqCst) || requests < ENOUGH {
                    let choice = multipath.select(Ask { cpu, ..Ask::default() }, &mut |_| {});
                    let attempt = send(choice).expect("there is always a path");
                    assert_eq!(multipath.judge(attempt, 0, 0, &mut |_| {}), Verdict::Done);
                    requests += 1;
                }
            });
        }
        // One path at a time is up. The next one comes up before the current one goes down.
        (1..4).for_each(|path| assert!(multipath.fail_path(path, &mut |_| {})));
        let (end, mut seed, mut only) = (Instant::now() + RUN, 1, 0);
        let mut turns = 0;
        while Instant::now() < end || turns < 100 {
            let next = (only + 1 + (random(&mut seed) % 3) as u32) % 4;
            assert!(multipath.reinstate_path(next, &mut |_| {}));
            assert!(multipath.fail_path(only, &mut |_| {}));
            only = next;
            turns += 1;
        }
        stop.store(true, SeqCst);
    });
    assert_eq!(multipath.live_paths(), 1);
    assert!(multipath.paths().iter().all(|path| path.in_flight() == 0));
}

/// Queues fail paths, and a checker brings them back. Every request ends once, and all counts are
/// right when the threads have stopped.
#[test]
fn counts_are_right_in_the_end() {
    let multipath =
        new("0 0 3 1 service-time 0 2 2 a 1 1 b 1 3 queue-length 0 2 0 c d round-robin 0 2 0 e f");
    multipath.set_queueing(true, &mut |_| {});
    let (stop, busy) = (AtomicBool::new(false), AtomicU64::new(QUEUES));
    let events = Mutex::new(Vec::new());
    let ends = Mutex::new([0u64; 4]);
    thread::scope(|scope| {
        for queue in 0..QUEUES {
            let (multipath, stop, busy, events, ends) = (&multipath, &stop, &busy, &events, &ends);
            scope.spawn(move || {
                let (mut seed, mut mine, mut own_ends) = (queue + 1, Vec::new(), [0u64; 4]);
                let (mut on, mut is_busy) = (|event| mine.push(event), true);
                while !stop.load(SeqCst) {
                    if is_busy && own_ends[0] > ENOUGH && own_ends[1] > 10 {
                        is_busy = false;
                        busy.fetch_sub(1, SeqCst);
                    }
                    let mut next =
                        match multipath.select(Ask { bytes: 4096, ..Ask::default() }, &mut on) {
                            Choice::Send(attempt) => Some(attempt),
                            Choice::Hold => {
                                own_ends[2] += 1;
                                None
                            }
                            Choice::Fail(_) => panic!("queueing was never turned off"),
                        };
                    let mut sends = 0;
                    while let Some(attempt) = next.take() {
                        sends += 1;
                        let errno = if random(&mut seed) % 64 == 0 { EIO } else { 0 };
                        match multipath.judge(attempt, errno, 0, &mut on) {
                            Verdict::Done => own_ends[0] += 1,
                            Verdict::Retry(attempt) => {
                                own_ends[1] += 1;
                                next = Some(attempt);
                            }
                            Verdict::Hold => own_ends[2] += 1,
                            Verdict::Fail(_) => own_ends[3] += 1,
                        }
                    }
                    assert!(sends <= multipath.max_sends());
                }
                events.lock().unwrap().extend(mine);
                ends.lock().unwrap().iter_mut().zip(own_ends).for_each(|(all, own)| *all += own);
            });
        }
        let (began, mut mine) = (Instant::now(), Vec::new());
        while began.elapsed() < RUN || (busy.load(SeqCst) > 0 && began.elapsed() < PATIENCE) {
            (0..6).for_each(|path| {
                multipath.reinstate_path(path, &mut |event| mine.push(event));
            });
        }
        stop.store(true, SeqCst);
        events.lock().unwrap().extend(mine);
    });
    let [done, retried, _, failed] = *ends.lock().unwrap();
    assert!(
        done > QUEUES * ENOUGH && retried > 10 * QUEUES && failed == 0,
        "{done} done, {retried} retried, {failed} failed"
    );
    let events = events.into_inner().unwrap();
    let count = |number: u32, failures: bool| {
        let about = events.iter().filter(|event| event.path() == Some(number));
        about.filter(|event| matches!(event, Event::PathFailed { .. }) == failures).count() as u64
    };
    for (number, path) in multipath.paths().iter().enumerate() {
        let (is_up, fail_count) = path.health();
        assert_eq!((path.in_flight(), path.bytes_in_flight()), (0, 0));
        assert_eq!(count(number as u32, true), fail_count);
        assert_eq!(count(number as u32, false), fail_count - u64::from(!is_up));
    }
    let up = multipath.paths().iter().filter(|path| path.is_up()).count();
    assert_eq!(multipath.live_paths() as usize, up);
}

/// All queues together use the paths of round-robin equally.
#[test]
fn round_robin_is_fair_over_all_queues() {
    const EACH: usize = 50_000;
    let multipath = new("0 0 1 1 round-robin 0 3 0 a b c");
    let used = Mutex::new([0usize; 3]);
    thread::scope(|scope| {
        for _ in 0..QUEUES {
            scope.spawn(|| {
                let mut own = [0usize; 3];
                for _ in 0..EACH {
                    let attempt = send(multipath.select(Ask::default(), &mut |_| {})).unwrap();
                    own[attempt.path() as usize] += 1;
                    multipath.withdraw(attempt);
                }
                used.lock().unwrap().iter_mut().zip(own).for_each(|(all, own)| *all += own);
            });
        }
    });
    // A queue that loses too many races takes a path without its turn, which makes the counts
    // uneven by one. This happens in one or two of a hundred choices if the processors are
    // otherwise idle.
    let used = used.into_inner().unwrap();
    let fair = QUEUES as usize * EACH / 3;
    assert!(
        used.iter().all(|used| used.abs_diff(fair) < fair / 10),
        "{used:?} instead of {fair} each"
    );
}
