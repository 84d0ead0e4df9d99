//! Rings that stop, back ends that go and come back, tables that change, and pages that are logged.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::front::{
    DATA, EVENT_IDX, Front, GET_CONFIG, GET_INFLIGHT_FD, GUEST, IN, IOERR, LOG_ALL, OK, OUT,
    SET_BACKEND_REQ_FD, SET_INFLIGHT_FD, SET_LOG_BASE, SIZE, Shared, words, words32,
};
use super::support::World;
use super::{BYTES, attach, disk};

const SHORT: Duration = Duration::from_millis(200);

#[test]
fn a_ring_that_is_stopped_answers_what_it_has_taken_and_goes_on_from_there() {
    let world = World::new(2);
    let (_device, path) = disk(&world);
    let mut front = Front::connect(&path, EVENT_IDX);
    for round in 0..20u16 {
        for head in (0..SIZE - 4).step_by(4) {
            front.submit(head, OUT, u64::from(head), &[(DATA, 4096)]);
        }
        let base = front.stop();
        let taken = base.wrapping_sub(round * (SIZE / 4 - 1));
        // What it has not taken waits in the ring.
        for _ in 0..taken {
            assert_eq!(front.answer_within(SHORT).unwrap().1, OK);
        }
        assert_eq!(front.answer_within(Duration::ZERO), None);
        front.begin(base);
        for _ in taken..SIZE / 4 - 1 {
            assert_eq!(front.answer().1, OK);
        }
    }
}

#[test]
fn memory_may_be_shared_anew_while_requests_are_under_way() {
    let world = World::new(1);
    let (_device, path) = disk(&world);
    let mut front = Front::connect(&path, EVENT_IDX);
    for round in 0..50u8 {
        front.memory.write(DATA, &[round; 4096]);
        for head in (0..SIZE - 4).step_by(4) {
            front.submit(head, OUT, u64::from(head) * 8, &[(DATA, 4096)]);
        }
        front.share();
        for _ in (0..SIZE - 4).step_by(4) {
            assert_eq!(front.answer().1, OK);
        }
    }
    assert_eq!(front.read(0, 4096), [49; 4096]);
}

#[test]
fn a_suspended_device_holds_requests_and_its_front_end_may_go() {
    let world = World::new(1);
    let (device, path) = disk(&world);
    let mut front = Front::connect(&path, EVENT_IDX);
    device.suspend().unwrap();
    front.submit(0, IN, 0, &[(DATA, 512)]);
    assert_eq!(front.answer_within(SHORT), None);
    device.resume().unwrap();
    assert_eq!(front.answer().1, OK);
    device.suspend().unwrap();
    front.submit(0, IN, 0, &[(DATA, 512)]);
    assert_eq!(front.answer_within(SHORT), None);
    drop(front);
    // The next one is served while the device is still suspended.
    let mut next = Front::connect(&path, EVENT_IDX);
    next.submit(0, IN, 0, &[(DATA, 512)]);
    assert_eq!(next.answer_within(SHORT), None);
    device.resume().unwrap();
    assert_eq!(next.answer().1, OK);
}

/// Has the export make an area for requests under way, and uses it.
fn with_area(front: &mut Front) -> (Vec<u8>, std::os::fd::OwnedFd) {
    let mut wanted = words(&[0, 0]);
    wanted.extend([1, 0, SIZE as u8, 0]);
    front.send(GET_INFLIGHT_FD, 0, &wanted, None);
    let (place, file) = front.reply_with_file();
    front.tell(SET_INFLIGHT_FD, &place, Some(&file));
    (place, file)
}

#[test]
fn requests_that_a_back_end_has_left_are_answered_by_the_next_one_once() {
    let leaf = tempfile::NamedTempFile::new().unwrap();
    leaf.as_file().set_len(BYTES).unwrap();
    let make = || {
        let world = World::new(1);
        let leaf = world.leaf(leaf.path().to_str().unwrap());
        let device = world.device("disk", world.linear(&leaf));
        drop(leaf);
        let path = attach(&world, &device);
        (world, device, path)
    };
    let (world, device, path) = make();
    let mut front = Front::bare(&path, Shared::new(super::front::MEMORY), EVENT_IDX);
    front.negotiate();
    let (place, file) = with_area(&mut front);
    front.begin(0);
    front.write(0, &[1; 4096]);
    // These wait, and the back end goes.
    device.suspend().unwrap();
    let heads: Vec<u16> = (0..SIZE).step_by(4).collect();
    for head in &heads {
        let at = DATA + usize::from(*head) * 4096;
        front.memory.write(at, &[*head as u8; 4096]);
        front.submit(*head, OUT, u64::from(*head) * 2, &[(at, 4096)]);
    }
    assert_eq!(front.answer_within(SHORT), None);
    world.pool.stop();
    assert!(front.is_dropped());
    assert_eq!(front.answer_within(Duration::ZERO), None, "nothing was answered");
    drop((world, device));
    // The next back end knows nothing but the area.
    let (_world, _device, path) = make();
    let Front { memory, available, seen, .. } = front;
    let mut front = Front::bare(&path, memory, EVENT_IDX);
    (front.available, front.seen) = (available, seen);
    front.negotiate();
    front.tell(SET_INFLIGHT_FD, &place, Some(&file));
    // As QEMU does: it goes on behind the last answer that it has seen.
    front.begin(seen);
    let mut answered: Vec<u16> =
        heads.iter().map(|_| front.answer()).map(|(head, ..)| head).collect();
    answered.sort_unstable();
    assert_eq!(answered, heads, "each once");
    assert_eq!(front.answer_within(SHORT), None);
    for head in heads {
        let sector = u64::from(head) * 2;
        assert_eq!(front.read(sector, 4096), [head as u8; 4096]);
    }
}

#[test]
fn a_table_of_another_size_is_announced() {
    let world = World::new(1);
    let (device, path) = disk(&world);
    let mut front = Front::connect(&path, 0);
    let (ours, theirs) = UnixStream::pair().unwrap();
    front.tell(SET_BACKEND_REQ_FD, &[], Some(&theirs.into()));
    let sectors = |front: &mut Front| {
        let mut payload = words32(&[0, 60, 0]);
        payload.extend([0; 60]);
        front.send(GET_CONFIG, 0, &payload, None);
        u64::from_le_bytes(front.reply(GET_CONFIG)[12..20].try_into().unwrap())
    };
    assert_eq!(sectors(&mut front), BYTES / 512);
    let grown = world.file_leaf("grown", 2 * BYTES);
    device.load(world.linear(&grown)).unwrap();
    device.resume().unwrap();
    world.pool.tell_vhost_user(&device);
    let mut message = [0; 12];
    ours.set_read_timeout(Some(super::support::HANG)).unwrap();
    std::io::Read::read_exact(&mut &ours, &mut message).unwrap();
    assert_eq!(message[..], words32(&[2, 1, 0])[..]);
    assert_eq!(sectors(&mut front), 2 * BYTES / 512);
    front.write(BYTES / 512, &[3; 512]);
}

#[test]
fn pages_that_are_written_to_are_logged_before_the_answer() {
    let world = World::new(1);
    let (_device, path) = disk(&world);
    let mut front = Front::bare(&path, Shared::new(super::front::MEMORY), LOG_ALL);
    let log = Shared::new(4096);
    front.negotiate();
    front.send(SET_LOG_BASE, 0, &words(&[4096, 0]), Some(&log.file));
    assert_eq!(front.reply(SET_LOG_BASE), [0; 8]);
    front.begin(0);
    let is_marked = |at: usize| {
        let page = (GUEST as usize + at) / 4096;
        log.read(page / 8, 1)[0] & (1 << (page % 8)) != 0
    };
    for pieces in [vec![(DATA, 4096), (DATA + 0x5000, 4096)], vec![(DATA + 1, 4096)]] {
        log.write(0, &[0; 4096]);
        assert_eq!(front.call(IN, 0, &pieces), OK);
        for (at, len) in &pieces {
            assert!(is_marked(*at) && is_marked(at + *len as usize - 1), "{pieces:?}");
        }
        assert!(is_marked(0x2000) && is_marked(0x4000), "the used ring and the status");
        assert!(!is_marked(0x1000) && !is_marked(DATA + 0x9000), "and nothing else");
    }
    log.write(0, &[0; 4096]);
    assert_eq!(front.call(OUT, 0, &[(DATA, 4096)]), OK);
    assert!(!is_marked(DATA) && is_marked(0x2000), "a write reads the memory");
}

#[test]
fn a_pool_that_stops_answers_what_is_under_way() {
    let world = World::new(2);
    let (_device, path) = disk(&world);
    let mut front = Front::connect(&path, EVENT_IDX);
    for head in (0..SIZE).step_by(4) {
        front.submit(head, OUT, u64::from(head), &[(DATA, 4096)]);
    }
    world.pool.stop();
    assert!(front.is_dropped());
    let taken = front.memory.word(0x2002).load(std::sync::atomic::Ordering::Acquire);
    for _ in 0..taken {
        assert_eq!(front.answer_within(Duration::ZERO).unwrap().1, OK);
    }
}

#[test]
fn a_leaf_that_fails_fails_the_request_only() {
    let world = World::new(1);
    let mut table = blkswitch_io::TableBuilder::new(false);
    table.push(2048, blkswitch_io::Target::Error);
    let device = world.device("disk", table.build().unwrap());
    let path = attach(&world, &device);
    let mut front = Front::connect(&path, 0);
    assert_eq!(front.call(IN, 0, &[(DATA, 512)]), IOERR);
    assert_eq!(front.call(OUT, 0, &[(DATA, 512)]), IOERR);
    drop(front);
    for _ in 0..10 {
        let mut front = Front::connect(&path, 0);
        assert_eq!(front.call(IN, 0, &[(DATA, 512)]), IOERR);
    }
}
