//! Tests of the fairness that each selector's file promises.

use blkswitch_core::multipath::selector::historical::STALE_AFTER;
use blkswitch_core::multipath::{Ask, Attempt, Path, Verdict};
use proptest::prelude::*;

use super::loading::{Owned, new, send};

proptest! {
    #[test]
    fn round_robin_uses_every_path_as_often(
        paths in 1usize..9,
        down in any::<u8>(),
        choices in 1usize..200,
    ) {
        let multipath = new(&format!("0 0 1 1 round-robin 0 {paths} 0{}", " dev".repeat(paths)));
        let up: Vec<u32> =
            (0..paths as u32).filter(|path| *path == 0 || down >> path & 1 == 0).collect();
        (0..paths as u32).filter(|path| !up.contains(path)).for_each(|path| {
            multipath.fail_path(path, &mut |_| {});
        });
        let mut used = vec![0usize; paths];
        for _ in 0..choices {
            let attempt = send(multipath.select(Ask::default(), &mut |_| {})).unwrap();
            used[attempt.path() as usize] += 1;
            multipath.withdraw(attempt);
        }
        let (fewest, most) = (choices / up.len(), choices.div_ceil(up.len()));
        for (path, used) in used.into_iter().enumerate() {
            let expected = if up.contains(&(path as u32)) { fewest..=most } else { 0..=0 };
            prop_assert!(expected.contains(&used), "path {path} was used {used} times");
        }
    }

    #[test]
    fn queue_length_keeps_lengths_even(
        paths in 2usize..6,
        ends in prop::collection::vec(any::<u8>(), 1..200),
    ) {
        let multipath = new(&format!("0 0 1 1 queue-length 0 {paths} 0{}", " dev".repeat(paths)));
        let mut in_flight = Vec::new();
        for end in ends {
            let before: Vec<u32> = multipath.paths().iter().map(|path| path.in_flight()).collect();
            let attempt = send(multipath.select(Ask::default(), &mut |_| {})).unwrap();
            prop_assert_eq!(before[attempt.path() as usize], *before.iter().min().unwrap());
            in_flight.push(attempt);
            if end % 2 == 0 {
                let attempt = in_flight.swap_remove(usize::from(end) % in_flight.len());
                prop_assert_eq!(multipath.judge(attempt, 0, 0, &mut |_| {}), Verdict::Done);
            }
        }
    }

    /// Every choice takes the path that is expected to answer first. While enough requests are in
    /// flight to keep all paths busy, each path gets its share: the number of its requests differs
    /// from its share by at most the requests in flight and one per path.
    #[test]
    fn historical_service_time_keeps_every_path_busy(
        service in prop::collection::vec(1u64..=20, 2..6),
        more in 0usize..40,
        requests in 200usize..3000,
    ) {
        let service_ns: Vec<u64> = service.iter().map(|time| time * 1000).collect();
        let slowest = *service_ns.iter().max().unwrap();
        let depth = more
            + service_ns.iter().map(|time| 2 * slowest.div_ceil(*time) as usize).sum::<usize>();
        let list = " dev".repeat(service.len());
        let multipath = new(&format!("0 0 1 1 historical-service-time 0 {} 0{list}", service.len()));
        let served = serve_and(&multipath, &service_ns, depth, requests, |expected, chosen| {
            assert!(expected.iter().all(|other| expected[chosen] <= *other), "{chosen} of {expected:?}");
        });
        let speed: f64 = service_ns.iter().map(|time| 1.0 / *time as f64).sum();
        for (served, time) in served.iter().zip(&service_ns) {
            let share = requests as f64 / *time as f64 / speed;
            let off = (*served as f64 - share).abs();
            prop_assert!(off <= (depth + service.len()) as f64, "{served} of {requests} instead of {share}, {depth}");
        }
    }

    #[test]
    fn service_time_keeps_times_even(
        speeds in prop::collection::vec(0u32..=100, 2..6),
        ends in prop::collection::vec(any::<u8>(), 1..200),
    ) {
        let list: String = speeds.iter().map(|speed| format!(" dev 1 {speed}")).collect();
        let multipath = new(&format!("0 0 1 1 service-time 0 {} 2{list}", speeds.len()));
        let mut in_flight = Vec::new();
        for end in ends {
            let bytes = 512 * u64::from(end % 64 + 1);
            let load: Vec<u64> =
                multipath.paths().iter().map(|path| path.bytes_in_flight() + bytes).collect();
            let attempt =
                send(multipath.select(Ask { bytes, ..Ask::default() }, &mut |_| {})).unwrap();
            let chosen = attempt.path() as usize;
            in_flight.push(attempt);
            for other in (0..speeds.len()).filter(|other| speeds[*other] > 0) {
                prop_assert!(speeds[chosen] > 0, "a path without speed was used");
                prop_assert!(
                    load[chosen] * u64::from(speeds[other])
                    <= load[other] * u64::from(speeds[chosen]),
                    "path {chosen} was used, but {other} would have been done sooner"
                );
            }
            if end % 2 == 0 {
                let attempt = in_flight.swap_remove(usize::from(end) % in_flight.len());
                prop_assert_eq!(multipath.judge(attempt, 0, 0, &mut |_| {}), Verdict::Done);
            }
        }
    }
}

/// When each path is expected to have answered one more request, by the formula of the selector's
/// file.
fn expected_ns(multipath: &Owned, now_ns: u64) -> Vec<u64> {
    let known = multipath.paths().iter().map(|path| path.average_ns());
    let fastest_ns = known.filter(|average| *average > 0).min().unwrap_or(1);
    let expected = |path: &Path| match (path.in_flight(), path.average_ns()) {
        (0, _) if now_ns > path.stale_after_ns() => 0,
        (in_flight, 0) => fastest_ns * u64::from(in_flight + 1),
        (in_flight, average) => average * u64::from(in_flight + 1),
    };
    multipath.paths().iter().map(expected).collect()
}

/// Simulates paths that serve one request after the other, each in its own time, with `depth`
/// requests always in flight. Returns how many requests each path served.
fn serve(multipath: &Owned, service_ns: &[u64], depth: usize, requests: usize) -> Vec<u64> {
    serve_and(multipath, service_ns, depth, requests, |_, _| {})
}

/// As [`serve`], and calls `look` for every choice with the expected time of each path and the path
/// that was chosen.
fn serve_and(
    multipath: &Owned,
    service_ns: &[u64],
    depth: usize,
    requests: usize,
    mut look: impl FnMut(&[u64], usize),
) -> Vec<u64> {
    let mut now_ns = 1;
    let mut free_at = vec![0u64; service_ns.len()];
    let mut served = vec![0u64; service_ns.len()];
    let mut in_flight: Vec<(u64, Attempt)> = Vec::new();
    for _ in 0..requests {
        let expected = expected_ns(multipath, now_ns);
        let attempt =
            send(multipath.select(Ask { now_ns, ..Ask::default() }, &mut |_| {})).unwrap();
        let path = attempt.path() as usize;
        look(&expected, path);
        free_at[path] = free_at[path].max(now_ns) + service_ns[path];
        in_flight.push((free_at[path], attempt));
        served[path] += 1;
        if in_flight.len() == depth {
            let first = (0..depth).min_by_key(|number| in_flight[*number].0).unwrap();
            let (end_ns, attempt) = in_flight.swap_remove(first);
            now_ns = end_ns;
            assert_eq!(multipath.judge(attempt, 0, now_ns, &mut |_| {}), Verdict::Done);
        }
    }
    in_flight.into_iter().for_each(|(_, attempt)| multipath.withdraw(attempt));
    served
}

#[test]
fn historical_service_time_shares_by_speed() {
    for (service_ns, depth) in [([1000, 1000], 8), ([1000, 3000], 16), ([2000, 500], 16)] {
        let multipath = new("0 0 1 1 historical-service-time 0 2 0 a b");
        let served = serve(&multipath, &service_ns, depth, 20_000);
        // The ratio of requests is the ratio of speeds within 10 %, so both paths were busy.
        let expected = service_ns[1] as f64 / service_ns[0] as f64;
        let found = served[0] as f64 / served[1] as f64;
        assert!((found / expected - 1.0).abs() < 0.1, "{service_ns:?}: {served:?}");
        let averages: Vec<u64> = multipath.paths().iter().map(|path| path.average_ns()).collect();
        assert_eq!(averages, service_ns);
    }
}

#[test]
fn historical_service_time_tries_a_slow_path_again_with_one_request() {
    let multipath = new("0 0 1 1 historical-service-time 0 2 0 fast slow");
    // With one request at a time, the slow path is tried once and then not used.
    let served = serve(&multipath, &[1000, 50_000], 1, 100);
    assert_eq!(served, [99, 1]);
    let stale_ns = multipath.paths()[1].stale_after_ns();
    assert!(stale_ns >= 50_000 * STALE_AFTER);
    let ask =
        |now_ns| send(multipath.select(Ask { now_ns, ..Ask::default() }, &mut |_| {})).unwrap();
    let end = |attempt: Attempt, now_ns| {
        assert_eq!(multipath.judge(attempt, 0, now_ns, &mut |_| {}), Verdict::Done);
    };
    let before = ask(stale_ns);
    assert_eq!(before.path(), 0);
    end(before, stale_ns + 1);
    let trial = ask(stale_ns + 1);
    assert_eq!(trial.path(), 1);
    // While the measuring request is in flight, no other request takes that path.
    for _ in 0..10 {
        let other = ask(stale_ns + 2);
        assert_eq!(other.path(), 0);
        end(other, stale_ns + 3);
    }
    end(trial, stale_ns + 1 + 50_000);
    assert_eq!(ask(stale_ns + 1 + 50_000).path(), 0);
}

#[test]
fn historical_service_time_threshold() {
    // With a threshold of 4, 1000 ns and 3000 ns do not differ, and both paths are used alike. With
    // a threshold of 2 they differ.
    let used = |threshold| {
        let multipath = new(&format!("0 0 1 1 historical-service-time 2 972 {threshold} 2 0 a b"));
        serve(&multipath, &[1000, 3000], 1, 1000)
    };
    assert_eq!(used(4), [500, 500]);
    assert_eq!(used(2), [999, 1]);
}

#[test]
fn io_affinity_keeps_to_its_path() {
    let multipath = new("0 0 1 1 io-affinity 0 3 1 a 3 b c c 1");
    let path = |cpu| {
        let attempt = send(multipath.select(Ask { cpu, ..Ask::default() }, &mut |_| {})).unwrap();
        attempt.path()
    };
    // The first and the last path list CPU 0. The first one is used.
    assert_eq!([0, 0, 1, 2, 3, 0].map(path), [0, 0, 0, 1, 1, 0]);
    assert_eq!(multipath.groups()[0].misses(), 0);
    multipath.fail_path(0, &mut |_| {});
    assert_eq!([0, 0], [path(0), path(0)].map(|path| path - 2), "the next path that lists CPU 0");
    // No path that is up lists CPU 1, and none ever listed CPU 9: the two paths take turns.
    assert_eq!([1, 1, 9, 9].map(path), [1, 2, 1, 2]);
    assert_eq!(multipath.groups()[0].misses(), 4);
}
