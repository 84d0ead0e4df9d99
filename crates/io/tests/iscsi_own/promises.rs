//! A unit that can do less than it could: what is missing is made up for, or the unit is refused with
//! the promise that it breaks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::own::{Own, WRITE16, operation};
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
