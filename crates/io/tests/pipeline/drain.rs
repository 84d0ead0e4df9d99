//! Drains: what they wait for after a change of a map, and what they do not wait for.

use std::sync::Arc;

use blkswitch_io::core::switch::geometry::Geometry;
use blkswitch_io::core::switch::regions::Map;
use blkswitch_io::device::drain::Changed;
use blkswitch_io::engine::sim::{Link, Random};
use blkswitch_io::pool::Latch;
use blkswitch_io::request::Op;
use blkswitch_io::table::region_storage;
use blkswitch_io::{Below, Device, Leaf, Table, TableBuilder, Target, To};

use crate::bench::{Bench, SECTOR, sim};

/// Sectors of a region here.
const REGION: u64 = 8;
const REGIONS: u64 = 16;

fn switch_over(mut table: TableBuilder, below: &[Below]) -> Table {
    let sectors = REGION * REGIONS;
    let geometry = Geometry::new(sectors, below.len() as u32, REGION as u32).unwrap();
    let map = Map::new(geometry, region_storage(&geometry).unwrap()).ok().unwrap();
    let paths = below.iter().map(|&below| To { below, offset: 0 }).collect();
    table.push(sectors, Target::Switch { map, paths });
    table.build().unwrap()
}

/// A switch over leaves.
fn switch(bench: &mut Bench, leaves: &[Arc<Leaf>]) -> Arc<Device> {
    let mut table = TableBuilder::new(false);
    let below: Vec<Below> = leaves.iter().map(|leaf| table.leaf(leaf.clone())).collect();
    bench.device("switch", switch_over(table, &below))
}

/// A switch over devices.
fn switch_on(bench: &mut Bench, devices: &[&Arc<Device>]) -> Arc<Device> {
    let mut table = TableBuilder::new(false);
    let below: Vec<Below> = devices.iter().map(|below| table.device(below).unwrap()).collect();
    bench.device("switch", switch_over(table, &below))
}

fn leaves(bench: &Bench, options: &str) -> Vec<Arc<Leaf>> {
    (0..2).map(|_| bench.leaf(&format!("sim:64K{options}"))).collect()
}

/// Moves a region and returns what has changed.
fn remap(device: &Device, region: u64, path: u32) -> Changed {
    let (messenger, mut changed) = (device.messenger(0).unwrap(), Changed::new());
    messenger.writer().unwrap().set(region, path);
    changed.add_regions(messenger.segment(), region..region + 1);
    changed
}

/// Sends a drain to all queues.
fn drain(bench: &mut Bench, number: u64, device: &Device, changed: &Changed) -> Arc<Latch> {
    let latch = Latch::new(bench.queues.len());
    for (pipeline, _) in &mut bench.queues {
        pipeline.drain(number, (device.id(), changed), latch.ack());
        pipeline.answer_drains();
    }
    latch
}

fn turn(bench: &mut Bench) {
    bench.turn();
    bench.queues.iter_mut().for_each(|(pipeline, _)| pipeline.answer_drains());
}

fn write(bench: &mut Bench, queue: usize, device: &Device, region: u64) -> u64 {
    let data = vec![7; REGION as usize * SECTOR];
    bench.start(queue, device, Op::Write, false, region * REGION, data)
}

#[test]
fn a_drain_ends_with_the_requests_that_the_old_map_has_routed() {
    let mut bench = Bench::new(2);
    let leaves = leaves(&bench, ",delay=10us");
    let device = switch(&mut bench, &leaves);
    let other = write(&mut bench, 0, &device, 2);
    let old = [0, 1].map(|queue| write(&mut bench, queue, &device, 0));
    // These have no answer before a second is over.
    leaves.iter().for_each(|leaf| sim(leaf).set_link(Link::Silent));
    let slow = write(&mut bench, 0, &device, 2);
    let changed = remap(&device, 0, 1);
    let latch = drain(&mut bench, 1, &device, &changed);
    let new = write(&mut bench, 1, &device, 0);
    leaves.iter().for_each(|leaf| sim(leaf).set_link(Link::Up));
    assert!(!latch.is_done(), "two writes are under way");
    while bench.answer(old[0]).is_none() || bench.answer(old[1]).is_none() {
        assert!(!latch.is_done());
        turn(&mut bench);
    }
    assert!(latch.is_done() && bench.answer(other) == Some(0));
    assert_eq!([slow, new].map(|token| bench.answer(token)), [None, None], "it waits for neither");
    bench.run();
}

#[test]
fn a_drain_finds_nothing_to_wait_for() {
    let mut bench = Bench::new(2);
    let leaves = leaves(&bench, ",delay=10us");
    let device = switch(&mut bench, &leaves);
    let changed = remap(&device, 3, 0);
    assert!(drain(&mut bench, 1, &device, &changed).is_done(), "nothing is under way");
    write(&mut bench, 0, &device, 2);
    bench.flush(1, &device);
    let changed = remap(&device, 3, 1);
    assert!(drain(&mut bench, 2, &device, &changed).is_done(), "other regions");
    bench.run();
}

/// A drain sees through the devices below: a striped one, whose pieces are all over the place, and
/// one whose gate is closed.
#[test]
fn a_drain_sees_what_is_under_way_below() {
    let mut bench = Bench::new(1);
    let leaves = leaves(&bench, ",delay=10us");
    let mut table = TableBuilder::new(false);
    let below: Vec<Below> = leaves.iter().map(|leaf| table.leaf(leaf.clone())).collect();
    let stripes = below.iter().map(|&below| To { below, offset: 3 }).collect();
    table.push(REGION * REGIONS / 2, Target::Linear(To { below: below[1], offset: 40 }));
    table.push(REGION * REGIONS / 2, Target::Striped { chunk: 2, stripes });
    let stripes = bench.device("stripes", table.build().unwrap());
    let linear = bench.device("linear", bench.linear(&leaves[0]));
    let device = switch_on(&mut bench, &[&stripes, &linear]);
    let mut number = 0;
    for region in 0..REGIONS {
        bench.run();
        let token = write(&mut bench, 0, &device, region);
        for changed in 0..REGIONS {
            number += 1;
            let mut range = Changed::new();
            range.add(changed * REGION..changed * REGION + 1);
            range.add(changed * REGION + 3..changed * REGION + REGION);
            let latch = drain(&mut bench, number, &device, &range);
            assert_eq!(latch.is_done(), changed != region, "write {region}, drain {changed}");
        }
        while bench.answer(token).is_none() {
            turn(&mut bench);
        }
    }
    let gate = bench.close(&linear);
    let token = write(&mut bench, 0, &device, 1);
    let changed = remap(&device, 1, 0);
    let latch = drain(&mut bench, 0, &device, &changed);
    bench.run();
    assert!(gate.is_done() && !latch.is_done(), "it waits at the gate of its old path");
    bench.open(&linear);
    assert!(!latch.is_done(), "it is on its way");
    while bench.answer(token).is_none() {
        assert!(!latch.is_done());
        turn(&mut bench);
    }
    assert!(latch.is_done());
}

#[test]
fn a_drain_that_is_given_up_leaves_nothing_behind() {
    let mut bench = Bench::new(1);
    let leaves = leaves(&bench, ",delay=10us");
    let device = switch(&mut bench, &leaves);
    write(&mut bench, 0, &device, 0);
    let changed = remap(&device, 0, 1);
    let latch = drain(&mut bench, 1, &device, &changed);
    bench.queues[0].0.end_drain(1);
    assert!(latch.is_done(), "its answer is dropped");
    // The next one has the same bit, and does not wait for what the first was to wait for.
    let changed = remap(&device, 1, 0);
    assert!(drain(&mut bench, 2, &device, &changed).is_done());
    bench.run();
}

/// Random writes, remaps and drains, more at once than there are bits. Each drain is over exactly
/// when the requests that it was to wait for are answered, or it shares its bit.
#[test]
fn drains_end_when_they_should() {
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let mut bench = Bench::new(2);
        let options = format!(",seed={seed},delay=1us..40us,at-once=0.1,short=0.3");
        let leaves = leaves(&bench, &options);
        let device = switch(&mut bench, &leaves);
        // (request, region), and for each drain the requests it waits for.
        let mut under_way: Vec<(u64, u64)> = Vec::new();
        let mut drains: Vec<(Arc<Latch>, Vec<u64>, bool)> = Vec::new();
        for step in 0..600 {
            match random.below(4) {
                0 | 1 => {
                    let (region, queue) = (random.below(REGIONS), random.below(2) as usize);
                    under_way.push((write(&mut bench, queue, &device, region), region));
                }
                2 if random.below(3) == 0 => {
                    let first = random.below(REGIONS - 2);
                    let mut changed = remap(&device, first, random.below(2) as u32);
                    let messenger = device.messenger(0).unwrap();
                    changed.add_regions(messenger.segment(), first..first + 2);
                    drop(messenger);
                    let is_one = |(token, region): &(u64, u64)| {
                        (first..first + 2).contains(region) && bench.answer(*token).is_none()
                    };
                    let waits = under_way.iter().copied().filter(is_one).map(|one| one.0).collect();
                    let is_crowded = drains.iter().filter(|drain| !drain.0.is_done()).count() > 30;
                    let latch = drain(&mut bench, step, &device, &changed);
                    drains.push((latch, waits, is_crowded));
                }
                _ => turn(&mut bench),
            }
            for (latch, waits, is_crowded) in &drains {
                let is_over = waits.iter().all(|token| bench.answer(*token).is_some());
                let is_done = latch.is_done();
                assert!(is_done == is_over || (*is_crowded && is_over), "seed {seed}, {step}");
            }
        }
        bench.run();
        bench.queues.iter_mut().for_each(|(pipeline, _)| pipeline.answer_drains());
        assert!(drains.len() > 10 && drains.iter().all(|drain| drain.0.is_done()), "seed {seed}");
    }
}
