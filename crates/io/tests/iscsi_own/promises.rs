//! Units that change while they are used. The leaf makes up for a missing ability, or refuses the
//! unit and names the promise that it breaks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::own::{Own, WRITE16, operation, sense};
use super::support::{WRITE, World, eventually};
use super::{ESHUTDOWN, MIB};

const FUA: u16 = 1;
const SYNCHRONIZE: u8 = 0x91;

#[test]
fn a_unit_without_stable_writes_is_flushed_after_each() {
    let target = Own::start(MIB, "");
    let world = World::new(1);
    let leaf = world.leaf(&target.address("?timeout=20&reconnect=30"));
    world.device("disk", world.linear(&leaf));
    let mut client = world.connect("disk");
    client.call(FUA, WRITE, 0, 4096, &[1; 4096]).unwrap();
    target.shared.writes.store(0, Ordering::SeqCst);
    target.hang_up();
    eventually("it is back", || leaf.engine().probe(Duration::from_secs(5)).is_ok());
    let (stable, flushes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (stable.clone(), flushes.clone());
    target.behave(move |request, answers| {
        let is_end = answers.iter().any(|answer| answer[0] == 0x21);
        if is_end && operation(request) == WRITE16 && request[33] & 8 != 0 {
            counts.0.fetch_add(1, Ordering::SeqCst);
        } else if is_end && operation(request) == SYNCHRONIZE {
            counts.1.fetch_add(1, Ordering::SeqCst);
        }
    });
    client.call(FUA, WRITE, 0, 65536, &[2; 65536]).unwrap();
    assert_eq!(client.read(0, 65536).unwrap(), [2; 65536]);
    assert_eq!((stable.load(Ordering::SeqCst), flushes.load(Ordering::SeqCst)), (0, 1));
}

#[test]
fn a_unit_that_cannot_be_written_any_more_is_refused_with_that_reason() {
    let target = Own::start(MIB, "");
    let world = World::new(1);
    let leaf = world.leaf(&target.address("?timeout=20"));
    world.device("disk", world.linear(&leaf));
    let mut client = world.connect("disk");
    client.write(0, &[1; 4096]).unwrap();
    target.shared.writes.store(0x80, Ordering::SeqCst);
    target.hang_up();
    let error = leaf.engine().probe(Duration::from_secs(5)).unwrap_err().to_string();
    assert!(error.contains("it is read-only, and could be written"), "{error}");
    assert_eq!(client.write(0, &[1; 4096]), Err(ESHUTDOWN));
    target.shared.writes.store(0x10, Ordering::SeqCst);
    eventually("it is back", || leaf.engine().probe(Duration::from_secs(5)).is_ok());
    client.write(0, &[2; 4096]).unwrap();
}

/// A unit becomes write-protected while the session is alive. That answers a write; it does not end
/// the session. The write goes down another path. The protected path is used for reads when no
/// other path is left.
#[test]
fn a_unit_that_becomes_write_protected_is_written_by_another_path() {
    const EPERM: u32 = 1;
    let first = Own::start(MIB, "");
    let second = first.twin();
    let protect = |target: &Own, is_protected: bool| {
        target.shared.writes.store(if is_protected { 0x80 } else { 0x10 }, Ordering::SeqCst);
        target.behave(move |request, answers| {
            if is_protected && operation(request) == WRITE16 {
                let mut refusal = sense(7, 0x27);
                refusal[16..20].copy_from_slice(&request[16..20]);
                // Keep the sequence numbers of the R2T.
                answers.iter_mut().filter(|answer| answer[0] == 0x21).for_each(|answer| {
                    refusal[24..36].copy_from_slice(&answer[24..36]);
                    answer.clone_from(&refusal);
                });
            }
        });
    };
    let world = World::new(1);
    let leaves = [&first, &second].map(|target| world.leaf(&target.address("?timeout=20")));
    let table = world.multipath("1 queue_if_no_path 0 1 1 round-robin 0 2 0 0 1", &leaves);
    let device = world.device("disk", table);
    let table = device.live().unwrap();
    let (groups, _) = table.multipath().unwrap();
    let up = || -> Vec<bool> { groups.paths().iter().map(|path| path.is_up()).collect() };
    let mut client = world.connect("disk");
    protect(&first, true);
    for round in 0..8 {
        client.write(0, &[round; 4096]).unwrap();
        assert_eq!(client.read(0, 4096).unwrap(), [round; 4096]);
    }
    assert_eq!((up(), leaves[0].is_protected()), (vec![false, true], true));
    assert_eq!(leaves[0].trouble().as_deref(), Some("it has become read-only"));
    // The path answers, but is still write-protected.
    leaves[0].probe(Duration::from_secs(9)).unwrap();
    assert!(leaves[0].is_protected());
    // The last path stays up: reads go on, and writes are refused at once instead of being held.
    protect(&second, true);
    assert_eq!(client.write(0, &[9; 4096]), Err(EPERM));
    client.read(0, 4096).unwrap();
    assert_eq!(up(), [false, true]);
    protect(&first, false);
    leaves[0].probe(Duration::from_secs(9)).unwrap();
    assert!(!leaves[0].is_protected());
    // The second path fails. The first is used again although nobody has reinstated it.
    groups.fail_path(1, &mut |_| {});
    client.write(0, &[10; 4096]).unwrap();
    assert_eq!(client.read(0, 4096).unwrap(), [10; 4096]);
}
