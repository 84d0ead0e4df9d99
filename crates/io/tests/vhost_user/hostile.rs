//! Front ends that are out of order or hostile: theirs is the damage, and nobody else's.

use std::path::Path;

use blkswitch_io::engine::sim::Random;

use super::front::{
    DATA, Front, GUEST, IN, INDIRECT, MEMORY, NEXT, OK, SET_LOG_BASE, SET_MEM_TABLE,
    SET_VRING_ADDR, SET_VRING_CALL, SET_VRING_ENABLE, SET_VRING_KICK, SET_VRING_NUM, SIZE, Shared,
    TABLE, USER, WRITE, state, words,
};
use super::support::World;
use super::{attach, disk};

/// A front end in good order still works.
fn still_serves(path: &Path) {
    let mut front = Front::connect(path, INDIRECT);
    front.write(1, &[5; 1024]);
    assert_eq!(front.read(1, 1024), [5; 1024]);
}

#[test]
fn a_broken_chain_ends_its_front_end_only() {
    let world = World::new(1);
    let (_device, path) = disk(&world);
    type Break = fn(&mut Front);
    let breaks: [Break; 10] = [
        |front| front.make_available(SIZE),
        |front| {
            front.descriptor(0, GUEST, 16, NEXT, 0);
            front.make_available(0);
        },
        |front| {
            front.descriptor(0, GUEST, 16, NEXT, 1);
            front.descriptor(1, GUEST + DATA as u64, 512, NEXT | WRITE, 0);
            front.make_available(0);
        },
        |front| {
            front.descriptor(0, GUEST, 16, NEXT, SIZE);
            front.make_available(0);
        },
        |front| {
            front.descriptor(0, u64::MAX - 8, 16, WRITE, 0);
            front.make_available(0);
        },
        |front| {
            front.descriptor(0, GUEST + MEMORY as u64 - 8, 16, WRITE, 0);
            front.make_available(0);
        },
        |front| {
            front.descriptor(0, GUEST, u32::MAX, 0, 0);
            front.make_available(0);
        },
        |front| {
            // A table in a table.
            front.memory.write(DATA, &[0; 64]);
            let mut table = (GUEST + DATA as u64).to_le_bytes().to_vec();
            table.extend([16, 0, 0, 0, TABLE as u8, 0, 0, 0]);
            front.memory.write(DATA, &table);
            front.descriptor(0, GUEST + DATA as u64, 16, TABLE, 0);
            front.make_available(0);
        },
        |front| {
            front.descriptor(0, GUEST + DATA as u64, 17, TABLE, 0);
            front.make_available(0);
        },
        |front| {
            // No room for a status.
            front.descriptor(0, GUEST + DATA as u64, 16, 0, 0);
            front.make_available(0);
        },
    ];
    for (number, broken) in breaks.iter().enumerate() {
        let mut front = Front::connect(&path, INDIRECT);
        broken(&mut front);
        assert!(front.is_dropped(), "break {number}");
        still_serves(&path);
    }
}

#[test]
fn a_head_that_is_available_twice_ends_its_front_end() {
    let world = World::new(1);
    let (device, path) = disk(&world);
    let mut front = Front::connect(&path, 0);
    device.suspend().unwrap();
    front.submit(0, IN, 0, &[(DATA, 512)]);
    front.make_available(0);
    assert!(front.is_dropped());
    device.resume().unwrap();
    still_serves(&path);
}

#[test]
fn an_index_that_runs_away_ends_its_front_end() {
    let world = World::new(1);
    let (_device, path) = disk(&world);
    let mut front = Front::connect(&path, 0);
    front.available = 1000;
    front.make_available(0);
    assert!(front.is_dropped());
    still_serves(&path);
}

#[test]
fn messages_that_cannot_be_obeyed_end_their_front_end() {
    let world = World::new(1);
    let (_device, path) = disk(&world);
    let file = Shared::new(4096);
    let ring = |ring: u64, at: u64| words(&[ring, at, at, at, 0]);
    let refused: Vec<(u32, Vec<u8>, bool)> = vec![
        (SET_VRING_NUM, state(4, 64), false),
        (SET_VRING_NUM, state(0, 0), false),
        (SET_VRING_NUM, state(0, 3), false),
        (SET_VRING_NUM, state(0, 2048), false),
        (SET_VRING_ADDR, ring(0, 0), false),
        (SET_VRING_ADDR, ring(0, USER + 1), false),
        (SET_VRING_ADDR, ring(0, USER + MEMORY as u64 - 64), false),
        (SET_VRING_ENABLE, state(255, 1), false),
        // No eventfd.
        (SET_VRING_KICK, words(&[0]), true),
        (SET_VRING_CALL, words(&[0]), true),
        // Longer than the file.
        (SET_MEM_TABLE, words(&[1, 0, 8192, USER, 0]), true),
        (SET_MEM_TABLE, words(&[1, 0, 4096, USER, 4096]), true),
        (SET_MEM_TABLE, words(&[1, 0, 0, USER, 0]), true),
        (SET_LOG_BASE, words(&[8192, 0]), true),
        (3, vec![1, 2, 3], false),
        (99, vec![], false),
    ];
    for (request, payload, has_file) in refused {
        let mut front = Front::connect(&path, 0);
        front.send(request, 0, &payload, has_file.then_some(&file.file));
        assert!(front.is_dropped(), "{request} {payload:?}");
        still_serves(&path);
    }
}

#[test]
fn bytes_that_are_no_messages_do_no_harm() {
    let world = World::new(1);
    let (_device, path) = disk(&world);
    let mut random = Random::new(7);
    for _ in 0..200 {
        let mut front = Front::bare(&path, Shared::new(4096), 0);
        let mut bytes = Vec::new();
        for _ in 0..1 + random.below(8) {
            let size = random.below(64) as u32;
            bytes.extend((random.below(40) as u32).to_le_bytes());
            bytes.extend((1 | ((random.below(2) as u32) << 3)).to_le_bytes());
            bytes.extend(size.to_le_bytes());
            bytes.extend((0..size).map(|_| random.below(256) as u8));
        }
        front.send_bytes(&bytes);
    }
    still_serves(&path);
}

#[test]
fn memory_that_shrinks_ends_its_front_end_only() {
    let world = World::new(1);
    let (_device, path) = disk(&world);
    let other = world.device("other", world.linear(&world.leaf("mem:1M")));
    let mut good = Front::connect(&attach(&world, &other), 0);
    for _ in 0..3 {
        let mut front = Front::connect(&path, 0);
        front.write(0, &[1; 4096]);
        front.memory.shrink();
        // Our own side must not touch the memory any more.
        front.kick();
        // Everything reads as zeroes now, and no request is there. The next message says it.
        front.send(SET_VRING_CALL, 0, &words(&[0x100]), None);
        drop(front);
        good.write(0, &[2; 4096]);
        assert_eq!(good.read(0, 4096), [2; 4096]);
        still_serves(&path);
    }
    assert_eq!(good.call(IN, 0, &[(DATA, 512)]), OK);
}

#[test]
fn random_rings_do_no_harm() {
    let world = World::new(1);
    let (_device, path) = disk(&world);
    let mut random = Random::new(3);
    for round in 0..100 {
        let mut front = Front::connect(&path, INDIRECT);
        for head in 0..SIZE {
            let guest = GUEST + random.below(MEMORY as u64 + 8192);
            let most = 1 << (4 + random.below(20));
            let len = random.below(most) as u32;
            front.descriptor(head, guest, len, random.below(8) as u16, random.below(66) as u16);
        }
        for _ in 0..1 + random.below(30) {
            front.make_available(random.below(65) as u16);
        }
        front.kick();
        if round % 10 == 0 {
            drop(front);
            still_serves(&path);
        }
    }
    still_serves(&path);
}
