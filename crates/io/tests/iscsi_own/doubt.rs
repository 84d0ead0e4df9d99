//! Writes in doubt: a target that was silent may carry them out later.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::own::Own;
use super::support::World;
use super::{ESHUTDOWN, MIB};

/// A new session to the same target ends everything that the target still has of the old one. The
/// write can be sent again without waiting.
#[test]
fn a_session_that_is_begun_anew_ends_the_doubt() {
    for (query, answer) in
        [("?timeout=2&settle=60", Err(ESHUTDOWN)), ("?timeout=2&settle=60&reconnect=40", Ok(()))]
    {
        let target = Own::start(MIB, "");
        let world = World::new(1);
        let leaf = world.leaf(&target.address(query));
        world.device("disk", world.linear(&leaf));
        let mut client = world.connect("disk");
        client.write(0, &[1; 4096]).unwrap();
        target.shared.silent.store(true, Ordering::SeqCst);
        let again = target.shared.clone();
        let back = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(1500));
            again.silent.store(false, Ordering::SeqCst);
        });
        let start = Instant::now();
        assert_eq!(client.write(0, &[2; 4096]), answer, "{query}");
        let time = start.elapsed();
        back.join().unwrap();
        assert!(time > Duration::from_millis(1900), "{query}: the target may be slow: {time:?}");
        assert!(time < Duration::from_secs(30), "{query}: it was not waited for: {time:?}");
        assert!(target.shared.reinstated.load(Ordering::SeqCst) > 0, "{query}");
        assert_eq!(target.shared.data.lock().unwrap()[0], 2, "it was carried out nevertheless");
    }
}

/// A new session to another machine cannot end what the first machine still has. So the write waits
/// for the time to settle.
#[test]
fn a_session_elsewhere_does_not_end_the_doubt() {
    let portal = Own::start(MIB, "");
    let (first, second) = (portal.twin(), portal.twin());
    *portal.shared.elsewhere.lock().unwrap() = Some(first.address.to_string());
    let world = World::new(1);
    let leaf = world.leaf(&portal.address("?timeout=1&settle=4&reconnect=40"));
    world.device("disk", world.linear(&leaf));
    let mut client = world.connect("disk");
    client.write(0, &[1; 4096]).unwrap();
    first.shared.silent.store(true, Ordering::SeqCst);
    *portal.shared.elsewhere.lock().unwrap() = Some(second.address.to_string());
    let start = Instant::now();
    client.write(0, &[2; 4096]).unwrap();
    let time = start.elapsed();
    assert!(time >= Duration::from_millis(4900), "timeout and settle: {time:?}");
    assert!(time < Duration::from_secs(30), "{time:?}");
    assert!(second.shared.logins.load(Ordering::SeqCst) > 0);
    assert_eq!(second.shared.resets.load(Ordering::SeqCst), 0, "it was not asked for");
}

/// With `reset-unit=yes`, the session to another machine resets the unit, which ends everything
/// that the first machine still has. A new session to the same machine needs no reset, which spares
/// other hosts.
#[test]
fn a_reset_of_the_unit_ends_the_doubt_where_it_is_asked_for() {
    let portal = Own::start(MIB, "");
    let (first, second) = (portal.twin(), portal.twin());
    *portal.shared.elsewhere.lock().unwrap() = Some(first.address.to_string());
    let world = World::new(1);
    let query = "?timeout=1&settle=60&reconnect=90&reset-unit=yes";
    let leaf = world.leaf(&portal.address(query));
    world.device("disk", world.linear(&leaf));
    let mut client = world.connect("disk");
    client.write(0, &[1; 4096]).unwrap();
    let resets = || [&first, &second].map(|target| target.shared.resets.load(Ordering::SeqCst));
    // New sessions to the same machine: first while idle, then with a write in doubt.
    first.hang_up();
    client.read(0, 4096).unwrap();
    let again = first.shared.clone();
    let back = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(1500));
        again.silent.store(false, Ordering::SeqCst);
    });
    first.shared.silent.store(true, Ordering::SeqCst);
    client.write(0, &[2; 4096]).unwrap();
    back.join().unwrap();
    assert_eq!(resets(), [0, 0]);
    first.shared.silent.store(true, Ordering::SeqCst);
    *portal.shared.elsewhere.lock().unwrap() = Some(second.address.to_string());
    let start = Instant::now();
    client.write(0, &[3; 4096]).unwrap();
    let time = start.elapsed();
    assert!(time < Duration::from_secs(30), "the doubt was not ended: {time:?}");
    assert_eq!(resets(), [0, 1]);
}
