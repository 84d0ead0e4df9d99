//! The control side against real queue threads while clients are at work: messages, suspends,
//! reloads, removals.

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use blkswitch_io::core::switch::message::Message;
use blkswitch_io::engine::Engine;
use blkswitch_io::engine::sim::Random;
use blkswitch_io::table::MAX_DEPTH;
use blkswitch_io::{Device, DeviceError, Leaf, Table, TableBuilder};

use support::{Client, FLUSH, FUA, READ, WRITE, World, eventually, in_time, switch};

/// The error number of the NBD protocol.
const EIO: u32 = 5;
const BLOCK: usize = 4096;
const BLOCKS: u64 = 256;
/// Sectors of a region: two blocks of the clients.
const REGION: u32 = 16;
const STORM: Duration = Duration::from_secs(4);
/// Smallest number of writes and of messages that count as a storm. On a busy machine the test runs
/// until it has seen so many.
const ENOUGH: u64 = 500;

/// The data that the `count`th write of block `block` has.
fn content(block: u64, count: u64) -> Vec<u8> {
    [block + 1, count].map(u64::to_le_bytes).concat().repeat(BLOCK / 16)
}

/// How often the block has been written. Panics if the data belongs to another block.
fn count(data: &[u8], block: u64) -> u64 {
    let count = u64::from_le_bytes(data[8..16].try_into().unwrap());
    if count == 0 {
        assert!(data.iter().all(|byte| *byte == 0), "block {block} is torn");
    } else {
        assert!(
            data == content(block, count),
            "block {block} holds something else: {:?}",
            &data[..16]
        );
    }
    count
}

/// Tables over the same leaves: a switch with its paths in any order, alone, split in two, or over
/// another device.
fn table(leaves: &[Arc<Leaf>], below: &Arc<Device>, random: &mut Random) -> Table {
    let sectors = BLOCKS * 8;
    let mut table = TableBuilder::new(false);
    let mut paths: Vec<_> = leaves.iter().map(|leaf| table.leaf(leaf.clone())).collect();
    let len = paths.len() as u64;
    paths.rotate_left(random.below(len) as usize);
    if random.chance(300_000) {
        paths.push(table.device(below).unwrap());
    }
    let half = switch(sectors, REGION, &paths);
    table.push(sectors, half);
    table.build().unwrap()
}

/// Clients write blocks of their own, remember the last acknowledged count, and read the blocks
/// back. Meanwhile regions are remapped, and the device and one below it are suspended, resumed and
/// reloaded. In the end no leaf has data at a wrong address, and some leaf has the last
/// acknowledged write of every block.
#[test]
fn a_storm_of_control_loses_and_misplaces_nothing() {
    let world = Arc::new(World::new(3));
    let leaves: Vec<Arc<Leaf>> = vec![
        world.file_leaf("a", BLOCKS * BLOCK as u64),
        world.file_leaf("b", BLOCKS * BLOCK as u64),
        world.leaf("mem:1M"),
    ];
    let below = world.device("below", world.linear(&leaves[1]));
    let mut random = Random::new(1);
    let device = world.device("disk", table(&leaves, &below, &mut random));
    let stop = Arc::new(AtomicBool::new(false));
    let (messages, writes) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));

    let control: Vec<_> = (0..3u64)
        .map(|kind| {
            let (leaves, below, device) = (leaves.clone(), below.clone(), device.clone());
            let (stop, messages) = (stop.clone(), messages.clone());
            std::thread::spawn(move || {
                let mut random = Random::new(kind + 2);
                while !stop.load(Ordering::Relaxed) {
                    match kind {
                        0 => {
                            let messenger = device.messenger(0).unwrap();
                            let paths = messenger.map().unwrap().geometry().num_paths();
                            let (at, path) =
                                (random.below(BLOCKS / 2), random.below(u64::from(paths)));
                            let text =
                                format!("{at:x}:{path:x} R1,{:x}", random.below(BLOCKS / 2 - at));
                            Message::new()
                                .apply_text(&mut messenger.writer().unwrap(), text.as_bytes(), true)
                                .unwrap();
                            messages.fetch_add(1, Ordering::Relaxed);
                        }
                        1 => {
                            let device = if random.chance(500_000) { &device } else { &below };
                            // The other thread may resume the device before this suspend has
                            // drained it.
                            let suspended = device.suspend();
                            let given_up = matches!(suspended, Err(DeviceError::GivenUp(_)));
                            assert!(given_up || suspended.is_ok(), "{suspended:?}");
                            std::thread::sleep(Duration::from_micros(random.below(2000)));
                            device.resume().unwrap();
                            std::thread::sleep(Duration::from_micros(random.below(5000)));
                        }
                        _ => {
                            device.load(table(&leaves, &below, &mut random)).unwrap();
                            device.resume().unwrap();
                            std::thread::sleep(Duration::from_micros(random.below(3000)));
                        }
                    }
                }
            })
        })
        .collect();

    let writers: Vec<_> = (0..4u64)
        .map(|writer| {
            let (stop, writes, mut client) = (stop.clone(), writes.clone(), world.connect("disk"));
            std::thread::spawn(move || {
                let mut random = Random::new(writer + 100);
                let mut counts: HashMap<u64, u64> = HashMap::new();
                while !stop.load(Ordering::Relaxed) {
                    let block = random.below(BLOCKS / 4) * 4 + writer;
                    let (at, count_now) =
                        (block * BLOCK as u64, counts.get(&block).copied().unwrap_or(0));
                    match random.below(8) {
                        0 => client.flush().unwrap(),
                        1..4 => {
                            let data = client.read(at, BLOCK as u32).unwrap();
                            assert!(count(&data, block) <= count_now, "block {block}");
                        }
                        kind => {
                            let flags = if kind == 4 { FUA } else { 0 };
                            let data = content(block, count_now + 1);
                            client.call(flags, WRITE, at, BLOCK as u32, &data).unwrap();
                            counts.insert(block, count_now + 1);
                            writes.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
                counts
            })
        })
        .collect();

    std::thread::sleep(STORM);
    eventually("enough was written and remapped", || {
        [&writes, &messages].iter().all(|count| count.load(Ordering::Relaxed) > ENOUGH)
    });
    stop.store(true, Ordering::Relaxed);
    let counts: HashMap<u64, u64> = in_time("the storm's end", move || {
        control.into_iter().for_each(|thread| thread.join().unwrap());
        writers.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let written: u64 = counts.values().sum();
    assert_eq!(written, writes.load(Ordering::Relaxed));

    let mut latest: HashMap<u64, u64> = HashMap::new();
    for (n, leaf) in leaves.iter().enumerate() {
        let name = format!("leaf{n}");
        world.device(&name, world.linear(leaf));
        let mut client = world.connect(&name);
        for block in 0..BLOCKS {
            let found = count(&client.read(block * BLOCK as u64, BLOCK as u32).unwrap(), block);
            let latest = latest.entry(block).or_default();
            *latest = found.max(*latest);
        }
    }
    for block in 0..BLOCKS {
        let (found, last) = (latest[&block], counts.get(&block).copied().unwrap_or(0));
        assert_eq!(found, last, "block {block}: the last write is nowhere");
    }
}

/// Waits until a resume has taken the inactive table. From then on three owners hold it: this test,
/// the device and the resume.
#[track_caller]
fn until_taken(device: &Device) {
    eventually("the resume has begun", || {
        device.inactive().is_some_and(|table| Arc::strong_count(&table) > 2)
    });
}

/// A message may arrive slowly. A resume waits for its end; clients do not.
#[test]
fn a_slow_message_holds_up_a_resume_and_no_request() {
    let world = World::new(2);
    let leaves = [world.leaf("mem:1M"), world.leaf("mem:1M")];
    let device = world.device("disk", world.switch(&leaves, 8));
    let mut client = world.connect("disk");
    device.load(world.switch(&leaves, 8)).unwrap();
    let messenger = device.messenger(0).unwrap();
    let resume = std::thread::spawn({
        let device = device.clone();
        move || device.resume()
    });
    until_taken(&device);
    client.read(0, 512).unwrap();
    assert!(!resume.is_finished() && messenger.writer().unwrap().set(1, 0));
    drop(messenger);
    resume.join().unwrap().unwrap();
    client.read(0, 512).unwrap();
}

/// Each writer and each swap with a switch raises the generation. A reader sees whether a message
/// is under way.
#[test]
fn the_generation_of_maps() {
    let world = World::new(1);
    let leaves = [world.leaf("mem:1M"), world.leaf("mem:1M")];
    let device = world.device("disk", world.switch(&leaves, 8));
    assert_eq!((device.generation(), device.generation_at_rest()), (0, Some(0)));
    let messenger = device.messenger(0).unwrap();
    assert_eq!((device.generation_at_rest(), messenger.next_generation()), (None, 1));
    assert!(messenger.writer().unwrap().set(1, 0));
    assert_eq!((device.generation(), device.info().generation), (1, 1));
    drop(messenger);
    for (table, before, after) in [
        (world.switch(&leaves, 8), 1, 2),
        (world.linear(&leaves[0]), 2, 3),
        (world.linear(&leaves[1]), 3, 3),
        (world.switch(&leaves, 8), 3, 4),
    ] {
        device.load(table).unwrap();
        assert_eq!((device.generation(), device.generation_after_swap()), (before, after));
        device.resume().unwrap();
        assert_eq!(device.generation_at_rest(), Some(after));
    }
    device.restore_generation(9);
    device.restore_generation(7);
    assert_eq!(device.generation(), 9);
}

/// A table that is loaded during a resume is kept for the next resume.
#[test]
fn a_table_loaded_during_a_resume_is_kept_for_the_next() {
    let world = World::new(1);
    let leaves = [world.leaf("mem:1M"), world.leaf("mem:1M")];
    let device = world.device("disk", world.switch(&leaves, 8));
    device.load(world.linear(&leaves[0])).unwrap();
    // The open message keeps the resume waiting.
    let messenger = device.messenger(0).unwrap();
    let resume = std::thread::spawn({
        let device = device.clone();
        move || device.resume()
    });
    until_taken(&device);
    device.load(world.linear(&leaves[1])).unwrap();
    drop(messenger);
    resume.join().unwrap().unwrap();
    let lives_on = |leaf: &Arc<Leaf>| Arc::ptr_eq(&device.live().unwrap().leaves()[0], leaf);
    assert!(lives_on(&leaves[0]));
    device.resume().unwrap();
    assert!(lives_on(&leaves[1]), "the second table is gone");
}

#[test]
fn a_device_in_use_stays_and_goes_with_its_last_client_when_told_to() {
    let world = World::new(2);
    let device = world.device("disk", world.linear(&world.leaf("mem:1M")));
    let (one, mut two) = (world.connect("disk"), world.connect("disk"));
    assert_eq!(world.pool.registry().remove(&device).unwrap_err().errno(), libc::EBUSY);
    two.read(0, 512).unwrap();
    device.set_deferred_remove(true);
    drop(one);
    std::thread::sleep(Duration::from_millis(50));
    two.read(0, 512).unwrap();
    drop(two);
    eventually("it is gone", || world.pool.registry().find("disk").is_none());
    assert!(Client::connect(&world.socket(), "disk").is_err());
    let again = world.device("disk", world.linear(&world.leaf("mem:1M")));
    assert_eq!(again.id(), device.id(), "its number is free again");
    world.connect("disk").read(0, 512).unwrap();
}

/// Clients wait at a suspended device. They get their answers when it is resumed, and may leave
/// before.
#[test]
fn clients_wait_at_a_closed_gate_and_may_leave() {
    let world = World::new(2);
    let device = world.device("disk", world.linear(&world.leaf("mem:1M")));
    let mut clients: Vec<Client> = (0..4).map(|_| world.connect("disk")).collect();
    device.suspend().unwrap();
    device.suspend().unwrap();
    for (n, client) in clients.iter_mut().enumerate() {
        client.send(0, WRITE, n as u64 * 512, 512, &[n as u8 + 1; 512]).unwrap();
        client.send(0, FLUSH, 0, 0, &[]).unwrap();
        client.send(0, READ, n as u64 * 512, 512, &[]).unwrap();
    }
    drop(clients.drain(..2));
    std::thread::sleep(Duration::from_millis(50));
    clients[0].socket.set_nonblocking(true).unwrap();
    assert!(clients[0].reply().is_err(), "nothing is answered while it is suspended");
    clients[0].socket.set_nonblocking(false).unwrap();
    assert_eq!(device.info().opens, 4, "what waits holds the device");
    device.resume().unwrap();
    for client in &mut clients {
        for cookie in 1..=3 {
            assert_eq!(client.reply().unwrap(), (0, cookie));
        }
    }
    eventually("the two that left are gone", || device.info().opens == 2);
    let data = world.connect("disk").read(0, 2048).unwrap();
    assert!((0..4).all(|n| data[n * 512] == n as u8 + 1), "what was asked before leaving is done");
}

/// A file may hold data that an earlier process wrote and never flushed. So the first flush of a
/// new leaf reaches the file.
#[test]
fn the_first_flush_after_opening_reaches_a_file() {
    let world = World::new(1);
    let device = world.device("disk", world.linear(&world.file_leaf("a", 1 << 20)));
    let mut client = world.connect("disk");
    client.flush().unwrap();
    assert_eq!(device.live().unwrap().path_totals(0).flushes, 1);
    client.flush().unwrap();
    assert_eq!(device.live().unwrap().path_totals(0).flushes, 1, "and the second need not");
}

/// A message drains nothing: a request that was mapped before it ends on the old path. A suspend
/// after the message waits for that request.
#[test]
fn a_suspend_is_the_barrier_behind_a_remap() {
    let world = World::new(1);
    let leaves = [world.leaf("sim:64K,delay=300ms"), world.leaf("mem:64K")];
    let device = world.device("disk", world.switch(&leaves, 8));
    let Engine::Sim(old) = leaves[0].engine() else { unreachable!("a sim leaf") };
    let mut client = world.connect("disk");
    let write = client.send(0, WRITE, 0, 512, &[9; 512]).unwrap();
    // When this second write is answered, the first one has been mapped.
    client.send(0, WRITE, 8 * 512, 512, &[1; 512]).unwrap();
    client.reply().unwrap();
    assert!(device.messenger(0).unwrap().writer().unwrap().set(0, 1));
    device.suspend().unwrap();
    assert_eq!(old.image()[..512], [9; 512], "done, and on the old path");
    device.resume().unwrap();
    assert_eq!(client.reply().unwrap(), (0, write));
    assert_eq!(client.read(0, 512).unwrap(), [0; 512], "the new path");
}

/// Devices may be stacked up to `MAX_DEPTH`. One more level is refused.
#[test]
fn devices_stand_so_deep_and_no_deeper() {
    let world = World::new(1);
    let leaf = world.leaf("sim:64K");
    let mut chain = vec![world.device("level1", world.linear(&leaf))];
    while chain.len() < MAX_DEPTH {
        let name = format!("level{}", chain.len() + 1);
        chain.push(world.device(&name, world.linear_on(&chain[chain.len() - 1], 128)));
    }
    let mut client = world.connect(&format!("level{MAX_DEPTH}"));
    client.write(0, &[7; 512]).unwrap();
    assert_eq!(world.connect("level1").read(0, 512).unwrap(), [7; 512]);
    let above = world.create("above");
    let error = above.load(world.linear_on(&chain[MAX_DEPTH - 1], 128)).unwrap_err();
    assert!(matches!(error, DeviceError::TooDeep), "{error}");
    assert!(error.to_string().contains(&format!("more than {MAX_DEPTH} deep")), "{error}");
    // A device of one level less may be below the second highest.
    above.load(world.linear_on(&chain[MAX_DEPTH - 2], 128)).unwrap();
    assert_eq!(client.read(0, 512).unwrap(), [7; 512], "the chain is as it was");
    // A device does not know which devices are above it. So a level that is inserted below is
    // accepted, and the highest device fails I/O.
    let lowest = world.device("lowest", world.linear(&leaf));
    chain[0].load(world.linear_on(&lowest, 128)).unwrap();
    chain[0].resume().unwrap();
    assert_eq!(client.call(0, READ, 0, 512, &[]), Err(EIO));
    assert_eq!(client.call(0, WRITE, 0, 512, &[8; 512]), Err(EIO));
    world.connect("lowest").write(0, &[7; 512]).unwrap();
    assert_eq!(
        client.call(0, FLUSH, 0, 0, &[]),
        Err(EIO),
        "a flush that does not reach the leaf says so"
    );
    assert_eq!(world.connect(&format!("level{}", MAX_DEPTH - 1)).read(0, 512).unwrap(), [7; 512]);
}
