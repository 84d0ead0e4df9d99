//! Requests of very many pieces: they take turns, a gate may close before their rest, and they end
//! early when nobody waits for them any more.

use std::sync::Arc;

use blkswitch_io::engine::sim::Link;
use blkswitch_io::request::Op;
use blkswitch_io::{Device, Leaf, TableBuilder, Target, To};

use crate::bench::{Bench, SECTOR, sim};

/// Sectors of the devices here. Each sector is a piece: no two neighbours are on one stripe, and no
/// stripe continues its last piece.
const SECTORS: usize = 4000;

/// A device whose sectors are all pieces of their own, on a leaf with a delay.
fn fine(bench: &mut Bench, sectors: usize) -> (Arc<Leaf>, Arc<Device>) {
    let leaf = bench.leaf("sim:4M,delay=1us");
    let mut table = TableBuilder::new(false);
    let below = table.leaf(leaf.clone());
    let stripes = (0..20).map(|nr| To { below, offset: nr * 300 }).collect();
    table.push(sectors as u64, Target::Striped { chunk: 1, stripes });
    let device = bench.device("fine", table.build().unwrap());
    (leaf, device)
}

#[test]
fn a_flood_of_pieces_is_never_under_way_at_once() {
    let mut bench = Bench::new(1);
    let (_, device) = fine(&mut bench, SECTORS);
    let all: Vec<u64> = (0..1000)
        .map(|_| bench.start(0, &device, Op::Discard, false, 0, vec![0; SECTORS * SECTOR]))
        .collect();
    let mut most = 0;
    while all.iter().any(|token| bench.answer(*token).is_none()) {
        most = most.max(bench.queues[0].0.pieces());
        bench.turn();
    }
    assert!(all.iter().all(|token| bench.answer(*token) == Some(0)));
    assert!((1..=128).contains(&most), "{most} of four million pieces were under way at once");
}

#[test]
fn a_gate_closes_over_the_rest_of_a_request_which_then_meets_the_next_table() {
    let mut bench = Bench::new(1);
    let (leaf, device) = fine(&mut bench, SECTORS);
    let data = vec![9; SECTORS * SECTOR];
    let write = bench.start(0, &device, Op::Write, false, 0, data);
    let latch = bench.close(&device);
    let mut turns = 0;
    while !latch.is_done() {
        bench.turn();
        turns += 1;
    }
    assert!(turns < 2000 && bench.answer(write).is_none(), "the rest waits: {turns} turns");
    bench.run();
    assert_eq!(bench.answer(write), None, "and goes on waiting");
    device.suspend().unwrap();
    let other = bench.leaf("sim:4M,delay=1us");
    device.load(bench.linear(&other)).unwrap();
    bench.open(&device);
    assert_eq!(bench.finish(write).0, 0);
    let (old, new) = (sim(&leaf).image(), sim(&other).image());
    let written = |image: &[u8]| image.chunks(SECTOR).filter(|sector| sector[0] == 9).count();
    let (before, after) = (written(&old), written(&new[..SECTORS * SECTOR]));
    assert!(before > 0 && after > 0, "{before} sectors before, {after} after");
    assert_eq!(new[(SECTORS - 1) * SECTOR], 9, "the rest is where the next table has it");
}

#[test]
fn a_rest_that_no_longer_fits_its_device_fails() {
    let mut bench = Bench::new(1);
    let (_, device) = fine(&mut bench, SECTORS);
    let write = bench.start(0, &device, Op::Write, false, 0, vec![9; SECTORS * SECTOR]);
    let latch = bench.close(&device);
    while !latch.is_done() {
        bench.turn();
    }
    device.suspend().unwrap();
    let small = bench.leaf("sim:1M");
    device.load(bench.linear(&small)).unwrap();
    bench.open(&device);
    assert_eq!(bench.finish(write).0, libc::ENOSPC);
    assert_eq!(bench.queues[0].0.in_flight(), 0);
}

#[test]
fn what_nobody_wants_any_more_ends_with_the_pieces_that_are_under_way() {
    for wait in [false, true] {
        let mut bench = Bench::new(1);
        let (leaf, device) = fine(&mut bench, SECTORS);
        let zero = Op::WriteZeroes { no_hole: false, fast: false };
        let all: Vec<u64> = (0..3)
            .map(|_| bench.start(0, &device, zero, false, 0, vec![0; SECTORS * SECTOR]))
            .collect();
        if wait {
            let latch = bench.close(&device);
            while !latch.is_done() {
                bench.turn();
            }
        }
        let flush = bench.flush(0, &device);
        let pieces = bench.queues[0].0.pieces();
        let (pipeline, ring) = &mut bench.queues[0];
        pipeline.abandon(libc::ESHUTDOWN, |_| true, ring);
        bench.collect();
        bench.run();
        for token in all {
            assert_eq!(bench.answer(token), Some(libc::ESHUTDOWN));
        }
        assert!(bench.answer(flush).is_some(), "a flush that waited is answered, too");
        assert_eq!((bench.queues[0].0.in_flight(), bench.queues[0].0.pieces()), (0, 0));
        assert!(pieces <= 128, "{pieces} pieces");
        drop(leaf);
        if wait {
            bench.open(&device);
        }
        let latch = bench.close(&device);
        assert!(latch.is_done(), "the device is free");
    }
}

/// Number of discards that use all the room of their owner.
const DISCARDS: usize = 60;

fn discards(bench: &mut Bench, device: &Device, sectors: usize) -> Vec<u64> {
    (0..DISCARDS)
        .map(|_| bench.start(0, device, Op::Discard, false, 0, vec![0; sectors * SECTOR]))
        .collect()
}

/// A bug: at a closed gate this many requests in pieces each kept their room while the rest waited
/// for more room. None of them ever went on.
#[test]
fn rests_of_pieces_behind_a_gate_do_not_keep_each_other_from_going_on() {
    let mut bench = Bench::new(1);
    let (_, below) = fine(&mut bench, SECTORS);
    let table = bench.linear_on(&below, SECTORS as u64);
    let top = bench.device("top", table);
    assert!(bench.close(&below).is_done());
    let all = discards(&mut bench, &top, 200);
    below.suspend().unwrap();
    bench.open(&below);
    bench.run();
    assert!(all.iter().all(|token| bench.answer(*token) == Some(0)), "all are answered");
}

/// A bug: the closing gate in the middle waited for the rest of a request that had passed it. That
/// rest waited for room, which requests behind this gate held.
#[test]
fn a_closing_gate_does_not_wait_for_room_that_is_behind_it() {
    let mut bench = Bench::new(1);
    let (_, below) = fine(&mut bench, SECTORS);
    let table = bench.linear_on(&below, SECTORS as u64);
    let middle = bench.device("middle", table);
    let table = bench.linear_on(&middle, SECTORS as u64);
    let top = bench.device("top", table);
    assert!(bench.close(&below).is_done());
    let first = bench.start(0, &top, Op::Discard, false, 0, vec![0; 200 * SECTOR]);
    let latch = bench.close(&middle);
    assert!(!latch.is_done(), "the first has come through");
    let all = discards(&mut bench, &top, 200);
    below.suspend().unwrap();
    bench.open(&below);
    bench.run();
    assert_eq!((bench.answer(first), latch.is_done()), (Some(0), true));
    middle.suspend().unwrap();
    bench.open(&middle);
    bench.run();
    assert!(all.iter().all(|token| bench.answer(*token) == Some(0)));
}

/// A suspend without flush is the way to give a multipath without a path a new table. A bug: it
/// waited for requests that waited for the room of held ones.
#[test]
fn a_gate_closes_over_requests_that_wait_for_the_room_of_held_ones() {
    let mut bench = Bench::new(1);
    let leaves = [bench.leaf("sim:64K,name=room,path=0")];
    let table = bench.multipath("1 queue_if_no_path 0 1 1 round-robin 0 1 0 0", &leaves);
    let device = bench.device("volume", table);
    sim(&leaves[0]).set_link(Link::Down);
    let all = discards(&mut bench, &device, 8);
    bench.run();
    let latch = bench.close_as(&device, true);
    bench.run();
    assert!(latch.is_done(), "nothing is under way");
    assert!(all.iter().all(|token| bench.answer(*token).is_none()), "and nothing has failed");
    device.suspend_noflush().unwrap();
    let other = bench.leaf("sim:64K");
    device.load(bench.linear(&other)).unwrap();
    bench.open(&device);
    bench.run();
    assert!(all.iter().all(|token| bench.answer(*token) == Some(0)));
}

/// Stripes of one leaf alternate. Requests without data join neighbouring chunks of a stripe, so a
/// discard is one operation per stripe.
#[test]
fn regions_that_meet_are_one_operation_if_they_carry_no_data() {
    let mut bench = Bench::new(1);
    let leaf = bench.leaf("sim:4M,delay=1us");
    let mut table = TableBuilder::new(false);
    let below = table.leaf(leaf.clone());
    let stripes = (0..4).map(|nr| To { below, offset: nr * 2000 }).collect();
    table.push(4000, Target::Striped { chunk: 8, stripes });
    let device = bench.device("striped", table.build().unwrap());
    bench.write(&device, 0, 4000, 7);
    let discard = bench.start(0, &device, Op::Discard, false, 16, vec![0; 3968 * SECTOR]);
    assert_eq!(bench.queues[0].0.pieces(), 4, "one for each stripe");
    assert_eq!(bench.finish(discard).0, 0);
    let read = bench.start(0, &device, Op::Read, false, 0, vec![0; 4000 * SECTOR]);
    let data = bench.finish(read).1;
    let kept: Vec<usize> = (0..4000).filter(|sector| data[sector * SECTOR] == 7).collect();
    let expected: Vec<usize> = (0..16).chain(3984..4000).collect();
    assert_eq!(kept, expected, "what was not named is as it was");
}
