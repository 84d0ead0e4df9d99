//! Multipath devices: failover, held requests, suspends, flushes. The paths of a test are sim
//! leaves that share one memory; each can be cut.

use std::sync::Arc;

use blkswitch_io::core::multipath::Event;
use blkswitch_io::engine::sim::Link;
use blkswitch_io::request::Op;
use blkswitch_io::{Device, Leaf, TableBuilder, Target, To};

use crate::bench::{Bench, SECTOR, sim};

const TWO_GROUPS: &str = "0 0 2 1 round-robin 0 1 0 0 round-robin 0 1 0 1";
const TWO_PATHS: &str = "0 0 1 1 round-robin 0 2 0 0 1";
const QUEUEING: &str = "1 queue_if_no_path 0 2 1 round-robin 0 1 0 0 round-robin 0 1 0 1";

/// Makes paths to one volume with this name.
fn paths(bench: &Bench, name: &str, count: usize, options: &str) -> Vec<Arc<Leaf>> {
    (0..count)
        .map(|path| bench.leaf(&format!("sim:64K,name={name},path={path}{options}")))
        .collect()
}

fn volume(bench: &mut Bench, name: &str, line: &str) -> (Vec<Arc<Leaf>>, Arc<Device>) {
    let leaves = paths(bench, name, 2, "");
    let table = bench.multipath(line, &leaves);
    let device = bench.device("volume", table);
    (leaves, device)
}

fn cut(leaves: &[Arc<Leaf>], link: Link) {
    leaves.iter().for_each(|leaf| sim(leaf).set_link(link));
}

fn status(device: &Device) -> String {
    let table = device.live().unwrap();
    let (groups, _) = table.multipath().unwrap();
    groups.info(|path, f| write!(f, "p{path}")).to_string()
}

/// Which paths are up.
fn up(device: &Device) -> Vec<bool> {
    let table = device.live().unwrap();
    table.multipath().unwrap().0.paths().iter().map(|path| path.is_up()).collect()
}

/// (operations, errors) of a path.
fn counted(device: &Device, path: u32) -> (u64, u64) {
    let totals = device.live().unwrap().path_totals(path);
    (totals.reads + totals.writes + totals.flushes + totals.discards + totals.zeroes, totals.errors)
}

fn flushes(device: &Device) -> [u64; 2] {
    [0, 1].map(|path| device.live().unwrap().path_totals(path).flushes)
}

fn write(bench: &mut Bench, device: &Device, at: u64, byte: u8) -> u64 {
    bench.start(0, device, Op::Write, false, at, vec![byte; 8 * SECTOR])
}

fn read(bench: &mut Bench, device: &Device, at: u64) -> (i32, u8) {
    let token = bench.start(0, device, Op::Read, false, at, vec![0xaa; 8 * SECTOR]);
    let (errno, data) = bench.finish(token);
    (errno, data[8 * SECTOR - 1])
}

/// Reinstates a path, as the checker or a message does.
fn reinstate(bench: &mut Bench, device: &Device, path: u32) {
    let is_back =
        device.messenger(0).unwrap().change(|groups, mut on| groups.reinstate_path(path, &mut on));
    assert_eq!(is_back, Some(true));
    bench.release(device);
}

#[test]
fn a_path_that_fails_is_failed_and_its_request_goes_on_over_another() {
    let mut bench = Bench::new(1);
    let (leaves, device) = volume(&mut bench, "fails", TWO_GROUPS);
    bench.write(&device, 0, 8, 1);
    cut(&leaves[..1], Link::Down);
    let token = write(&mut bench, &device, 0, 2);
    assert_eq!(bench.finish(token).0, 0);
    assert_eq!(status(&device), "2 0 0 0 2 2 E 0 1 0 p0 F 1 A 0 1 0 p1 A 0 ");
    assert_eq!((counted(&device, 0), counted(&device, 1)), ((2, 1), (1, 0)), "attempts");
    let id = device.id();
    let events: Vec<_> = bench.queues[0].0.take_events().collect();
    let expected = [Event::PathFailed { path: 0, left: 1 }, Event::GroupSwitched { group: 2 }];
    assert_eq!(events, expected.map(|event| (id, event)));
    cut(&leaves[..1], Link::Up);
    assert_eq!(read(&mut bench, &device, 0), (0, 2), "no path comes back by itself");
    assert_eq!(counted(&device, 0).0, 2);
    reinstate(&mut bench, &device, 0);
    device.messenger(0).unwrap().change(|groups, mut on| groups.choose_group(1, &mut on));
    assert_eq!(read(&mut bench, &device, 0), (0, 2));
    assert_eq!(counted(&device, 0).0, 3);
}

#[test]
fn what_is_under_way_on_a_path_that_is_cut_is_sent_again_as_a_whole() {
    for seed in 0..60 {
        let mut bench = Bench::new(1);
        let options = format!(",seed={seed},short=0.9,interrupts=0.1,nozero,nofua,delay=1us..9us");
        let leaves = paths(&bench, &format!("under-way-{seed}"), 2, &options);
        let table = bench.multipath(TWO_GROUPS, &leaves);
        let device = bench.device("volume", table);
        let data: Vec<u8> = (0..100 * SECTOR).map(|n| (n % 251) as u8).collect();
        let link = if seed % 2 == 0 { Link::Down } else { Link::Silent };
        let token = bench.start(0, &device, Op::Write, seed % 3 == 0, 20, data.clone());
        (0..seed % 7).for_each(|_| bench.turn());
        cut(&leaves[..1], link);
        assert_eq!(bench.finish(token).0, 0, "seed {seed}");
        let token = bench.start(0, &device, Op::Read, false, 20, vec![0; data.len()]);
        assert!(bench.finish(token) == (0, data), "seed {seed}");
        reinstate_if_down(&mut bench, &device);
        cut(&leaves[..1], Link::Up);
        let zeroes = Op::WriteZeroes { no_hole: false, fast: false };
        let token = bench.start(0, &device, zeroes, seed % 3 == 0, 25, vec![0; 90 * SECTOR]);
        (0..seed % 5).for_each(|_| bench.turn());
        cut(&leaves, link);
        cut(&leaves[1..], Link::Up);
        assert_eq!(bench.finish(token).0, 0, "seed {seed}");
        let image = sim(&leaves[1]).image();
        assert!(image[25 * SECTOR..115 * SECTOR].iter().all(|byte| *byte == 0), "seed {seed}");
    }
}

fn reinstate_if_down(bench: &mut Bench, device: &Device) {
    if !up(device)[0] {
        reinstate(bench, device, 0);
    }
    device.messenger(0).unwrap().change(|groups, mut on| groups.choose_group(1, &mut on));
}

#[test]
fn without_a_path_a_request_fails_after_one_try_of_each() {
    let mut bench = Bench::new(1);
    let (leaves, device) = volume(&mut bench, "without", TWO_PATHS);
    cut(&leaves, Link::Down);
    assert_eq!(read(&mut bench, &device, 0).0, libc::EIO);
    assert_eq!((counted(&device, 0), counted(&device, 1)), ((1, 1), (1, 1)));
    cut(&leaves, Link::Up);
    assert_eq!(read(&mut bench, &device, 0).0, libc::EIO);
    assert_eq!(counted(&device, 0).0, 1, "nothing is sent down a failed path");
    reinstate(&mut bench, &device, 1);
    assert_eq!(read(&mut bench, &device, 0), (0, 0));
}

#[test]
fn a_silent_path_is_failed_when_its_time_is_over() {
    let mut bench = Bench::new(1);
    let leaves = paths(&bench, "silent", 2, ",timeout=30ms");
    let table = bench.multipath(TWO_GROUPS, &leaves);
    let device = bench.device("volume", table);
    cut(&leaves[..1], Link::Silent);
    let token = write(&mut bench, &device, 0, 5);
    assert_eq!(bench.finish(token).0, 0);
    assert_eq!((up(&device), bench.queues[0].1.now_ns()), (vec![false, true], 30_000_000));
    assert_eq!(read(&mut bench, &device, 0), (0, 5));
}

#[test]
fn a_medium_error_fails_no_path_and_is_not_tried_elsewhere() {
    let mut bench = Bench::new(1);
    let (leaves, device) = volume(&mut bench, "medium", TWO_PATHS);
    sim(&leaves[0]).set_bad(4..5);
    assert_eq!(read(&mut bench, &device, 0).0, libc::ENODATA);
    assert_eq!((up(&device), counted(&device, 1).0), (vec![true, true], 0));
    assert_eq!(read(&mut bench, &device, 8), (0, 0));
}

#[test]
fn requests_that_find_no_path_wait_for_one() {
    let mut bench = Bench::new(1);
    let (leaves, device) = volume(&mut bench, "wait", QUEUEING);
    cut(&leaves, Link::Down);
    let early = write(&mut bench, &device, 0, 1);
    bench.run();
    let late = write(&mut bench, &device, 8, 2);
    bench.run();
    assert_eq!([early, late].map(|token| bench.answer(token)), [None, None]);
    assert_eq!(
        (counted(&device, 0).0, counted(&device, 1).0),
        (1, 1),
        "the late one was not tried at all"
    );
    bench.release(&device);
    bench.run();
    assert_eq!(bench.answer(early), None, "asking again without a path changes nothing");
    cut(&leaves[1..], Link::Up);
    reinstate(&mut bench, &device, 1);
    bench.run();
    assert_eq!([early, late].map(|token| bench.answer(token)), [Some(0), Some(0)]);
    assert_eq!((read(&mut bench, &device, 0), read(&mut bench, &device, 8)), ((0, 1), (0, 2)));
}

#[test]
fn waiting_ends_when_nothing_is_to_wait_any_more() {
    let mut bench = Bench::new(1);
    let (leaves, device) = volume(&mut bench, "ends", QUEUEING);
    cut(&leaves, Link::Down);
    let token = write(&mut bench, &device, 0, 1);
    bench.run();
    device.messenger(0).unwrap().change(|groups, mut on| groups.set_queueing(false, &mut on));
    bench.release(&device);
    assert_eq!(bench.answer(token), Some(libc::EIO));
}

#[test]
fn a_suspend_without_flush_closes_over_what_waits_and_the_table_may_change() {
    let mut bench = Bench::new(1);
    let (leaves, device) = volume(&mut bench, "noflush", QUEUEING);
    cut(&leaves, Link::Down);
    let token = write(&mut bench, &device, 16, 3);
    bench.run();
    assert!(bench.close_as(&device, true).is_done(), "what waits for a path is not in flight");
    let while_closed = write(&mut bench, &device, 24, 4);
    bench.release(&device);
    assert_eq!(bench.answer(token), None);
    let other = paths(&bench, "noflush-other", 1, "");
    device.load(bench.multipath("0 0 1 1 round-robin 0 1 0 0", &other)).unwrap();
    device.suspend_noflush().unwrap();
    bench.open(&device);
    bench.run();
    assert_eq!([token, while_closed].map(|token| bench.answer(token)), [Some(0), Some(0)]);
    let image = sim(&other[0]).image();
    assert_eq!((image[16 * SECTOR], image[24 * SECTOR]), (3, 4));
}

#[test]
fn a_suspend_with_flush_closes_over_what_waits_and_fails_what_finds_no_path_meanwhile() {
    let mut bench = Bench::new(1);
    let (leaves, device) = volume(&mut bench, "flush-suspend", QUEUEING);
    cut(&leaves, Link::Down);
    let held = write(&mut bench, &device, 0, 3);
    bench.run();
    cut(&leaves[..1], Link::Up);
    reinstate(&mut bench, &device, 0);
    bench.run();
    assert_eq!(bench.answer(held), Some(0));
    let under_way = write(&mut bench, &device, 8, 4);
    cut(&leaves, Link::Down);
    let closed = bench.close(&device);
    device.suspend().unwrap();
    bench.run();
    assert!(closed.is_done());
    assert_eq!(bench.answer(under_way), Some(libc::EIO));
    bench.open(&device);
    let held = write(&mut bench, &device, 0, 5);
    bench.run();
    assert_eq!(bench.answer(held), None, "the policy is what it was");
    device.suspend().unwrap();
    assert!(bench.close(&device).is_done());
    assert_eq!(bench.answer(held), None, "as recorded of the kernel (mpath-063)");
    bench.open(&device);
    assert_eq!(bench.answer(held), None);
    cut(&leaves, Link::Up);
    reinstate(&mut bench, &device, 0);
    assert_eq!((bench.finish(held).0, read(&mut bench, &device, 0)), (0, (0, 5)));
}

#[test]
fn a_suspend_without_flush_holds_what_fails_meanwhile_even_without_queueing() {
    let mut bench = Bench::new(1);
    let leaves = paths(&bench, "meanwhile", 2, ",timeout=10ms");
    let table = bench.multipath(TWO_PATHS, &leaves);
    let device = bench.device("volume", table);
    cut(&leaves, Link::Silent);
    let token = write(&mut bench, &device, 0, 9);
    let closed = bench.close_as(&device, true);
    assert!(!closed.is_done());
    bench.run();
    assert!(closed.is_done() && bench.answer(token).is_none());
    cut(&leaves, Link::Up);
    reinstate(&mut bench, &device, 0);
    device.suspend_noflush().unwrap();
    bench.open(&device);
    assert_eq!(bench.finish(token).0, 0);
    assert_eq!(read(&mut bench, &device, 0), (0, 9));
}

/// A switch with regions of 8 sectors over a device and a leaf.
fn two_layers(bench: &mut Bench, below: &Arc<Device>) -> Arc<Device> {
    let mut table = TableBuilder::new(false);
    let leaf = table.leaf(bench.leaf("sim:64K"));
    let paths = [table.device(below).unwrap(), leaf].map(|below| To { below, offset: 0 });
    let geometry = blkswitch_io::core::switch::geometry::Geometry::new(128, 2, 8).unwrap();
    let storage = blkswitch_io::table::region_storage(&geometry).unwrap();
    let map = blkswitch_io::core::switch::regions::Map::new(geometry, storage)
        .unwrap_or_else(|_| unreachable!());
    table.push(128, Target::Switch { map, paths: paths.into() });
    bench.device("switch", table.build().unwrap())
}

#[test]
fn a_piece_from_above_waits_in_the_multipath_and_keeps_the_device_above_busy() {
    let mut bench = Bench::new(1);
    let (leaves, member) = volume(&mut bench, "above", QUEUEING);
    let switch = two_layers(&mut bench, &member);
    cut(&leaves, Link::Down);
    let token = bench.start(0, &switch, Op::Write, false, 4, vec![6; 24 * SECTOR]);
    let good = bench.start(0, &switch, Op::Write, false, 8, vec![7; 8 * SECTOR]);
    bench.run();
    assert_eq!(
        [token, good].map(|token| bench.answer(token)),
        [None, Some(0)],
        "the other region goes on"
    );
    assert!(bench.close_as(&member, true).is_done());
    let above = bench.close_as(&switch, true);
    assert!(!above.is_done());
    cut(&leaves, Link::Up);
    device_back(&mut bench, &member);
    assert!(above.is_done());
    assert_eq!(bench.answer(token), Some(0));
    let image = sim(&leaves[0]).image();
    assert_eq!([4, 7, 16, 23, 24].map(|sector| image[sector * SECTOR]), [6, 6, 6, 6, 0]);
}

fn device_back(bench: &mut Bench, member: &Device) {
    reinstate(bench, member, 0);
    member.suspend_noflush().unwrap();
    bench.open(member);
    bench.run();
}

#[test]
fn what_waits_is_refused_when_the_queue_stops_or_its_client_is_given_up() {
    let mut bench = Bench::new(1);
    let (leaves, member) = volume(&mut bench, "stops", QUEUEING);
    let switch = two_layers(&mut bench, &member);
    cut(&leaves, Link::Down);
    let tokens = [write(&mut bench, &member, 0, 1), write(&mut bench, &switch, 0, 1)];
    let spared = write(&mut bench, &member, 8, 1);
    bench.run();
    let (pipeline, ring) = &mut bench.queues[0];
    pipeline.reject_parked(libc::ENODEV, |token| tokens.contains(&token), ring);
    bench.collect();
    assert_eq!(tokens.map(|token| bench.answer(token)), [Some(libc::ENODEV); 2]);
    assert_eq!(bench.answer(spared), None);
    let (pipeline, ring) = &mut bench.queues[0];
    pipeline.refuse(libc::ESHUTDOWN, ring);
    bench.collect();
    assert_eq!(bench.answer(spared), Some(libc::ESHUTDOWN));
    assert_eq!(bench.queues[0].0.in_flight(), 0);
    assert!(
        bench.close(&member).is_done() && bench.close(&switch).is_done(),
        "every gate was left"
    );
    let device = bench.device("again", bench.multipath(QUEUEING, &leaves));
    let token = write(&mut bench, &device, 0, 1);
    bench.run();
    assert_eq!(bench.answer(token), Some(libc::ESHUTDOWN), "a queue that stops holds nothing");
}

// ---- flushes

#[test]
fn a_flush_goes_down_every_path_that_was_written_through_and_no_other() {
    let mut bench = Bench::new(1);
    let (leaves, device) = volume(&mut bench, "every", TWO_PATHS);
    bench.write(&device, 0, 8, 1);
    let token = bench.flush(0, &device);
    assert_eq!((bench.finish(token).0, flushes(&device)), (0, [1, 0]));
    bench.write(&device, 0, 8, 1);
    bench.write(&device, 8, 8, 1);
    let token = bench.flush(0, &device);
    assert_eq!((bench.finish(token).0, flushes(&device)), (0, [2, 1]));
    let token = bench.flush(0, &device);
    assert_eq!((bench.finish(token).0, flushes(&device)), (0, [2, 1]), "nothing to flush");
    assert!(leaves.iter().all(|leaf| !leaf.needs_flush()));
}

#[test]
fn a_flush_that_fails_on_its_path_covers_the_writes_over_another() {
    let mut bench = Bench::new(1);
    let (leaves, device) = volume(&mut bench, "covers", TWO_GROUPS);
    bench.write(&device, 0, 8, 7);
    cut(&leaves[..1], Link::Down);
    let token = bench.flush(0, &device);
    assert_eq!(bench.finish(token).0, 0);
    assert_eq!((flushes(&device), up(&device)), ([1, 1], vec![false, true]));
    assert!(leaves.iter().all(|leaf| !leaf.needs_flush()));
    assert!((0..16).all(|seed| sim(&leaves[1]).power_cut(seed)[0] == 7));
}

#[test]
fn writes_of_a_path_that_is_down_are_covered_and_those_that_come_after_are_not() {
    let mut bench = Bench::new(2);
    let leaves = paths(&bench, "after", 2, ",delay=10us");
    let table = bench.multipath(TWO_GROUPS, &leaves);
    let device = bench.device("volume", table);
    bench.write(&device, 0, 8, 7);
    device.messenger(0).unwrap().change(|groups, mut on| groups.fail_path(0, &mut on));
    let token = bench.flush(0, &device);
    // During the flush the path comes back, and a write goes through it.
    reinstate(&mut bench, &device, 0);
    device.messenger(0).unwrap().change(|groups, mut on| groups.choose_group(1, &mut on));
    let late = bench.start(1, &device, Op::Write, false, 0, vec![8; SECTOR]);
    bench.turn_queue(1);
    assert_eq!((bench.answer(late), bench.answer(token)), (Some(0), None));
    assert_eq!(bench.finish(token).0, 0);
    assert_eq!((leaves[0].needs_flush(), leaves[1].needs_flush()), (true, false));
    let token = bench.flush(0, &device);
    assert_eq!(bench.finish(token).0, 0);
    assert!((0..16).all(|seed| sim(&leaves[1]).power_cut(seed)[0] == 8));
}

#[test]
fn a_flush_without_a_path_fails_or_waits_but_never_succeeds() {
    for (line, answer) in [(TWO_GROUPS, Some(libc::EIO)), (QUEUEING, None)] {
        let mut bench = Bench::new(1);
        let (leaves, device) = volume(&mut bench, &format!("flush-{}", answer.is_some()), line);
        bench.write(&device, 0, 8, 7);
        cut(&leaves, Link::Down);
        let token = bench.flush(0, &device);
        bench.run();
        assert_eq!(bench.answer(token), answer);
        assert!(leaves[0].needs_flush());
        cut(&leaves[1..], Link::Up);
        reinstate(&mut bench, &device, 1);
        bench.run();
        assert_eq!(bench.answer(token), answer.or(Some(0)));
        let token = bench.flush(0, &device);
        assert_eq!(bench.finish(token).0, 0);
        assert!((0..16).all(|seed| sim(&leaves[1]).power_cut(seed)[0] == 7));
    }
}

/// A flush of two paths that is held counts as one flush to try again. If each path counted, every
/// attempt would double their number.
#[test]
fn a_flush_that_is_held_again_and_again_stays_one() {
    let mut bench = Bench::new(1);
    let line = "1 queue_if_no_path 0 1 1 round-robin 0 2 0 0 1";
    let (leaves, device) = volume(&mut bench, "again", line);
    bench.write(&device, 0, 8, 7);
    bench.write(&device, 8, 8, 7);
    assert!(leaves.iter().all(|leaf| leaf.needs_flush()));
    cut(&leaves, Link::Down);
    let token = bench.flush(0, &device);
    bench.run();
    for round in 1..12 {
        let before = flushes(&device);
        device.messenger(0).unwrap().change(|groups, mut on| groups.reinstate_path(0, &mut on));
        reinstate(&mut bench, &device, 1);
        bench.run();
        assert_eq!(bench.answer(token), None);
        let tried: u64 =
            flushes(&device).iter().zip(before).map(|(now, before)| now - before).sum();
        assert!(tried <= 4, "{tried} flushes in round {round}");
    }
    cut(&leaves, Link::Up);
    device.messenger(0).unwrap().change(|groups, mut on| groups.reinstate_path(0, &mut on));
    reinstate(&mut bench, &device, 1);
    assert_eq!(bench.finish(token).0, 0);
    assert!(leaves.iter().all(|leaf| !leaf.needs_flush()));
    let read = read(&mut bench, &device, 0);
    assert_eq!(read, (0, 7));
}

#[test]
fn all_that_share_a_flush_that_loses_its_path_are_sent_on() {
    let mut bench = Bench::new(1);
    let leaves = paths(&bench, "share", 2, ",delay=10us");
    let table = bench.multipath(TWO_GROUPS, &leaves);
    let device = bench.device("volume", table);
    bench.write(&device, 0, 8, 7);
    let tokens: Vec<u64> = (0..4).map(|_| bench.flush(0, &device)).collect();
    cut(&leaves[..1], Link::Down);
    bench.run();
    assert!(tokens.iter().all(|token| bench.answer(*token) == Some(0)));
    assert!(leaves.iter().all(|leaf| !leaf.needs_flush()));
}

#[test]
fn a_path_that_leaves_the_table_while_it_is_down_is_flushed_over_the_others() {
    for (name, queueing) in [("leaves-a", TWO_GROUPS), ("leaves-b", QUEUEING)] {
        let mut bench = Bench::new(1);
        let (leaves, device) = volume(&mut bench, name, queueing);
        bench.write(&device, 0, 8, 7);
        cut(&leaves[..1], Link::Down);
        device.messenger(0).unwrap().change(|groups, mut on| groups.fail_path(0, &mut on));
        let table = bench.multipath("0 0 1 1 round-robin 0 1 0 1", &leaves);
        bench.reload(&device, table);
        assert!(device.running().unwrap().departed.is_empty() && !leaves[0].needs_flush());
        assert!((0..16).all(|seed| sim(&leaves[1]).power_cut(seed)[0] == 7));
    }
}

#[test]
fn a_path_that_leaves_the_table_when_all_are_down_is_flushed_over_the_new_ones_or_stays() {
    for is_new_up in [true, false] {
        let mut bench = Bench::new(1);
        let name = format!("all-down-{is_new_up}");
        let (leaves, device) = volume(&mut bench, &name, TWO_GROUPS);
        let new = bench.leaf(&format!("sim:64K,name={name},path=new"));
        bench.write(&device, 0, 8, 7);
        cut(&leaves, Link::Down);
        (0..2).for_each(|path| {
            device.messenger(0).unwrap().change(|groups, mut on| groups.fail_path(path, &mut on));
        });
        sim(&new).set_link(if is_new_up { Link::Up } else { Link::Down });
        let table = bench.multipath("0 0 1 1 round-robin 0 1 0 0", &[new]);
        bench.reload(&device, table);
        assert_eq!(device.running().unwrap().departed.len(), usize::from(!is_new_up));
        let token = bench.flush(0, &device);
        assert_eq!(bench.finish(token).0, if is_new_up { 0 } else { libc::ENOTCONN });
    }
}

/// A flush of another volume does not cover writes to this one, wherever that volume is in the
/// tables.
#[test]
fn a_path_that_leaves_for_another_volume_is_not_covered_by_it() {
    let mut bench = Bench::new(1);
    let (leaves, device) = volume(&mut bench, "left", TWO_GROUPS);
    bench.write(&device, 0, 8, 7);
    cut(&leaves, Link::Down);
    (0..2).for_each(|path| {
        device.messenger(0).unwrap().change(|groups, mut on| groups.fail_path(path, &mut on));
    });
    // Twice, because the path that left is then beside the other volume.
    for round in 0..2 {
        let other = bench.leaf(&format!("sim:64K,name=other{round},path=0"));
        let table = bench.multipath("0 0 1 1 round-robin 0 1 0 0", &[other]);
        bench.reload(&device, table);
        assert_eq!(device.running().unwrap().departed.len(), 1, "round {round}");
        assert!(leaves[0].needs_flush());
        let token = bench.flush(0, &device);
        assert_eq!(bench.finish(token).0, libc::ENOTCONN);
    }
    cut(&leaves, Link::Up);
    let token = bench.flush(0, &device);
    assert_eq!(bench.finish(token).0, 0);
    assert!(!leaves[0].needs_flush());
    assert!((0..16).all(|seed| sim(&leaves[0]).power_cut(seed)[0] == 7));
}

#[test]
fn a_multipath_without_groups_fails_everything() {
    let mut bench = Bench::new(1);
    let table = bench.multipath("0 0 0 0", &[]);
    let device = bench.device("nothing", table);
    assert_eq!(read(&mut bench, &device, 0).0, libc::EIO);
}
