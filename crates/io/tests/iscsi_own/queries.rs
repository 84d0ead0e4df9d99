//! Queries that the library passes on to a unit, and what a unit tells of its map of blocks to port
//! groups.

use std::time::Duration;

use super::MIB;
use super::own::{Own, READ16, operation, sense};
use super::support::{World, eventually};

const PATIENCE: Duration = Duration::from_secs(5);

/// A query reaches the unit as it is. Long answers come whole, short ones with their length.
#[test]
fn a_query_is_passed_on_and_its_answer_has_its_length() {
    let target = Own::start(MIB, "");
    let long: Vec<u8> = (0..60_000u32).map(|n| n as u8).collect();
    let page = long.clone();
    target.answer_queries(move |cdb| match cdb {
        [0x9e, 0x13, 0, 0, 0, 0, 0, 0, 0, 7, ..] => Some(page.clone()),
        [0xa3, 0x0a, ..] => Some(vec![0, 0, 0, 0]),
        _ => None,
    });
    let world = World::new(1);
    let leaf = world.leaf(&target.address(""));
    let ask = |cdb: &[u8], room: usize| {
        let mut answer = vec![0; room];
        leaf.engine().scsi_query(cdb, &mut answer, PATIENCE).map(|came| answer[..came].to_vec())
    };
    let referrals = [0x9e, 0x13, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0xff, 0xff, 0, 0];
    assert!(ask(&referrals, 65_535).unwrap() == long);
    assert!(ask(&referrals, 100).unwrap() == long[..100]);
    let groups = [0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    assert_eq!(ask(&groups, 256).unwrap(), [0; 4]);
    // A command that the unit does not know, and one that is too long.
    assert_eq!(ask(&[0x99], 8).unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
    let error = ask(&[0; 17], 8).unwrap_err().to_string();
    assert!(error.contains("1 to 16 bytes, and this one has 17"), "{error}");
    // A lost session is made again.
    target.hang_up();
    assert_eq!(ask(&groups, 256).unwrap(), [0; 4]);
    let memory = world.leaf("mem:1M").engine().scsi_query(&groups, &mut [0; 8], PATIENCE);
    assert_eq!(memory.unwrap_err().kind(), std::io::ErrorKind::Unsupported);
}

/// Unit attentions and refusals that speak of the map are counted; others are not.
#[test]
fn what_a_unit_tells_of_its_map_is_counted() {
    let target = Own::start(MIB, "");
    let world = World::new(1);
    let leaf = world.leaf(&target.address(""));
    world.device("disk", world.linear(&leaf));
    let mut client = world.connect("disk");
    client.read(0, 4096).unwrap();
    assert_eq!(leaf.engine().map_notices(), 0);
    for (key, code, qualifier, notices) in
        [(6u8, 0x2au8, 0x06u8, 1), (6, 0x3f, 0x15, 2), (6, 0x2a, 0x01, 2), (2, 0x04, 0x0b, 3)]
    {
        let told = std::sync::atomic::AtomicBool::new(false);
        target.behave(move |request, answers| {
            let is_read = request[0] & 0x3f == 1 && operation(request) == READ16;
            if is_read && !told.swap(true, std::sync::atomic::Ordering::SeqCst) {
                let tag = request[16..20].to_vec();
                let numbers = answers[0][24..36].to_vec();
                let mut told = sense(key, code);
                told[48 + 15] = qualifier;
                told[16..20].copy_from_slice(&tag);
                told[24..36].copy_from_slice(&numbers);
                *answers = vec![told];
            }
        });
        let read = client.read(0, 4096);
        assert_eq!(read.is_ok(), key == 6, "{code:#x}/{qualifier:#x}: {read:?}");
        eventually("the notice is counted", || leaf.engine().map_notices() == notices);
    }
}
