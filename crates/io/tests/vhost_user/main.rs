//! The vhost-user export against a front end of our own, which shares memory with it as QEMU does.

#[path = "../support/mod.rs"]
mod support;

mod front;
mod hostile;
mod lifecycle;

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use blkswitch_io::Device;
use blkswitch_io::export::vhost_user::{Options, VhostUserError};

use front::{
    DATA, DISCARD, EVENT_IDX, FLUSH, Front, GET_CONFIG, GET_ID, GET_QUEUE_NUM, IN, INDIRECT, IOERR,
    OK, OUT, SIZE, UNSUPP, WRITE_ZEROES, words32,
};
use support::World;

pub(crate) const BYTES: u64 = 1 << 20;

/// Attaches a device; returns its socket.
pub(crate) fn attach(world: &World, device: &Arc<Device>) -> PathBuf {
    let path = world.dir.path().join(format!("{}.vhost", device.name()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    world.pool.attach_vhost_user(device, listener, &Options { queues: Some(4) }).unwrap();
    path
}

/// A device over a file, attached.
pub(crate) fn disk(world: &World) -> (Arc<Device>, PathBuf) {
    let leaf = world.file_leaf("leaf", BYTES);
    let device = world.device("disk", world.linear(&leaf));
    let path = attach(world, &device);
    (device, path)
}

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

#[test]
fn all_kinds_of_requests_work_with_all_features() {
    let world = World::new(2);
    let (_device, path) = disk(&world);
    for features in [0, EVENT_IDX, INDIRECT, EVENT_IDX | INDIRECT] {
        let mut front = Front::connect(&path, features);
        front.indirect = features & INDIRECT != 0;
        let data = pattern(features.leading_zeros() as u8, 16384);
        front.write(8, &data);
        assert_eq!(front.call(FLUSH, 0, &[]), OK);
        assert_eq!(front.read(8, 16384), data);
        let file = std::fs::read(world.dir.path().join("leaf")).unwrap();
        assert_eq!(&file[4096..20480], &data[..]);
        assert_eq!(front.range(WRITE_ZEROES, 16, 8, 0), OK);
        assert_eq!(front.range(WRITE_ZEROES, 24, 8, 1), OK);
        assert_eq!(front.read(16, 8192), vec![0; 8192]);
        assert_eq!(front.range(DISCARD, 8, 8, 0), OK);
        assert_eq!(front.range(DISCARD, 8, 8, 1), UNSUPP, "a discard has no flags");
        front.memory.write(DATA, &[9; 21]);
        assert_eq!(front.call(GET_ID, 0, &[(DATA, 20)]), OK);
        assert_eq!(front.memory.read(DATA, 21), b"disk\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x09");
        assert_eq!(front.call(77, 0, &[]), UNSUPP);
    }
}

#[test]
fn data_in_pieces_goes_to_its_places_however_it_is_aligned() {
    let world = World::new(1);
    let (_device, path) = disk(&world);
    let mut front = Front::connect(&path, INDIRECT);
    for indirect in [false, true] {
        front.indirect = indirect;
        for pieces in [
            vec![(DATA, 4096), (DATA + 8192, 4096)],
            vec![(DATA, 512), (DATA + 512, 512), (DATA + 2048, 1024)],
            vec![(DATA + 1, 4096)],
            vec![(DATA + 3, 100), (DATA + 4096, 412)],
            (0..20).map(|n| (DATA + n * 8192 + n, 512)).collect(),
        ] {
            let len: u32 = pieces.iter().map(|(_, len)| len).sum();
            let data = pattern(pieces.len() as u8, len as usize);
            let mut at = 0;
            for (place, len) in &pieces {
                front.memory.write(*place, &data[at..at + *len as usize]);
                at += *len as usize;
            }
            assert_eq!(front.call(OUT, 3, &pieces), OK);
            assert_eq!(front.read(3, len as usize), data, "{pieces:?}");
            for (place, len) in &pieces {
                front.memory.write(*place, &vec![0; *len as usize]);
            }
            assert_eq!(front.call(IN, 3, &pieces), OK);
            let read: Vec<u8> = pieces
                .iter()
                .flat_map(|(place, len)| front.memory.read(*place, *len as usize))
                .collect();
            assert_eq!(read, data, "{pieces:?}");
        }
    }
}

#[test]
fn a_deep_ring_of_writes_and_reads_loses_nothing() {
    let world = World::new(2);
    let (_device, path) = disk(&world);
    let mut front = Front::connect(&path, EVENT_IDX | INDIRECT);
    front.indirect = true;
    let deep = SIZE;
    for round in 0..200u32 {
        let kind = if round % 2 == 0 { OUT } else { IN };
        for head in 0..deep {
            let at = DATA + usize::from(head) * 4096;
            let fill = if kind == OUT { (round / 2) as u8 ^ head as u8 } else { 0xff };
            front.memory.write(at, &[fill; 4096]);
            front.submit(head, kind, u64::from(head) * 8, &[(at, 4096)]);
        }
        for _ in 0..deep {
            let (_, status, written) = front.answer();
            assert_eq!((status, written), (OK, if kind == IN { 4097 } else { 1 }));
        }
        for head in 0..deep {
            let at = DATA + usize::from(head) * 4096;
            let expected = [(round / 2) as u8 ^ head as u8; 4096];
            assert_eq!(front.memory.read(at, 4096), expected, "round {round}, head {head}");
        }
    }
    assert!(front.kicks < 200 * u32::from(deep), "EVENT_IDX spares kicks: {}", front.kicks);
}

#[test]
fn requests_that_cannot_be_are_answered_with_errors() {
    let world = World::new(1);
    let (_device, path) = disk(&world);
    let mut front = Front::connect(&path, 0);
    let beyond = BYTES / 512;
    for (kind, sector, pieces) in [
        (IN, beyond, vec![(DATA, 512)]),
        (OUT, beyond - 1, vec![(DATA, 1024)]),
        (IN, u64::MAX, vec![(DATA, 512)]),
        (IN, u64::MAX / 512, vec![(DATA, 512)]),
        (IN, 0, vec![(DATA, 511)]),
        (OUT, 0, vec![(DATA, 512), (DATA, 1)]),
        (IN, 0, vec![]),
        (DISCARD, 0, vec![(DATA, 15)]),
        (DISCARD, 0, vec![(DATA, 17)]),
    ] {
        assert_eq!(front.call(kind, sector, &pieces), IOERR, "{kind} {sector} {pieces:?}");
    }
    assert_eq!(front.range(DISCARD, u64::MAX, 1, 0), IOERR);
    assert_eq!(front.range(WRITE_ZEROES, beyond, 1, 0), IOERR);
    front.write(0, &[7; 512]);
    assert_eq!(front.read(0, 512), [7; 512], "and the ring goes on");
}

#[test]
fn a_device_that_cannot_be_written_to_says_so() {
    let world = World::new(1);
    let leaf = world.leaf("mem:1M");
    let mut table = blkswitch_io::TableBuilder::new(true);
    let below = table.leaf(leaf);
    let target = blkswitch_io::Target::Linear(blkswitch_io::To { below, offset: 0 });
    table.push(2048, target);
    let device = world.device("disk", table.build().unwrap());
    let path = attach(&world, &device);
    let mut front = Front::connect(&path, 1 << 5);
    assert_eq!(front.call(OUT, 0, &[(DATA, 512)]), IOERR);
    assert_eq!(front.read(0, 512), [0; 512]);
}

#[test]
fn the_configuration_space_is_padded_to_what_is_asked_for() {
    let world = World::new(1);
    let (_device, path) = disk(&world);
    let mut front = Front::connect(&path, 0);
    assert_eq!(front.ask(GET_QUEUE_NUM), 4);
    for len in [8u32, 60, 96] {
        let mut payload = words32(&[0, len, 0]);
        payload.extend(vec![0; len as usize]);
        front.send(GET_CONFIG, 0, &payload, None);
        let reply = front.reply(GET_CONFIG);
        assert_eq!(reply.len(), 12 + len as usize);
        assert_eq!(reply[12..20], (BYTES / 512).to_le_bytes());
    }
}

#[test]
fn a_device_has_one_socket_and_is_open_while_it_has_it() {
    let world = World::new(1);
    let (device, path) = disk(&world);
    let listener = || UnixListener::bind(world.dir.path().join("other")).unwrap();
    let again = world.pool.attach_vhost_user(&device, listener(), &Options::default());
    assert!(matches!(again, Err(VhostUserError::Attached(_))));
    assert_eq!(device.info().opens, 1);
    let mut front = Front::connect(&path, 0);
    assert!(world.pool.vhost_user_socket(&device).unwrap().connected);
    let refused = world.pool.detach_vhost_user(&device, false);
    assert!(matches!(refused, Err(VhostUserError::InUse(_))));
    world.pool.detach_vhost_user(&device, true).unwrap();
    assert!(front.is_dropped());
    assert_eq!((device.info().opens, world.pool.vhost_user_socket(&device)), (0, None));
    let none = world.pool.detach_vhost_user(&device, true);
    assert!(matches!(none, Err(VhostUserError::NotAttached(_))));
    for queues in [0, 257] {
        let path = world.dir.path().join(format!("socket{queues}"));
        let listener = UnixListener::bind(path).unwrap();
        let options = Options { queues: Some(queues) };
        let refused = world.pool.attach_vhost_user(&device, listener, &options);
        assert!(matches!(refused, Err(VhostUserError::Range { .. })), "{queues}");
    }
}
