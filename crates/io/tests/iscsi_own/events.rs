//! Events that a target sends by itself. It may ask for a logout, as groups do whenever they move a
//! session, or announce that it drops the connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::MIB;
use super::own::Own;
use super::support::World;

const LOGOUT: u8 = 1;
const DROPS_CONNECTION: u8 = 2;
const DROPS_SESSION: u8 = 3;
const RENEGOTIATE: u8 = 4;
const VENDOR: u8 = 255;

/// The target moves sessions under load. Without `reconnect`, a lost session would show. No request
/// fails or takes two seconds, and a write through one member is read through the next.
#[test]
fn a_session_that_is_moved_under_load_costs_no_error() {
    let portal = Own::start(MIB, "");
    let members = [portal.twin(), portal.twin()];
    let send_to = |member: usize| {
        *portal.shared.elsewhere.lock().unwrap() = Some(members[member].address.to_string());
    };
    send_to(0);
    let world = World::new(2);
    let leaf = world.leaf(&portal.address("?timeout=20"));
    world.device("disk", world.linear(&leaf));
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4u64)
        .map(|number| {
            let (mut client, stop) = (world.connect("disk"), stop.clone());
            std::thread::spawn(move || {
                let (mut longest, mut round) = (Duration::ZERO, 0u8);
                while !stop.load(Ordering::SeqCst) {
                    round = round.wrapping_add(1);
                    let start = Instant::now();
                    client.write(number * 65536, &[round; 32768]).unwrap();
                    let half = start.elapsed();
                    assert!(client.read(number * 65536, 32768).unwrap() == [round; 32768]);
                    longest = longest.max(half).max(start.elapsed() - half);
                }
                longest
            })
        })
        .collect();
    let mut at = 0;
    for event in [LOGOUT, RENEGOTIATE, DROPS_CONNECTION, DROPS_SESSION, VENDOR, LOGOUT] {
        std::thread::sleep(Duration::from_millis(300));
        let (old, logins) = (at, members[1 - at].shared.logins.load(Ordering::SeqCst));
        if event != VENDOR {
            at = 1 - at;
            send_to(at);
        }
        members[old].event(event, [0, 0, 5]);
        if matches!(event, DROPS_CONNECTION | DROPS_SESSION) {
            std::thread::sleep(Duration::from_millis(50));
            members[old].hang_up();
        }
        if event != VENDOR {
            super::support::eventually("both queues are at the other member", || {
                members[at].shared.logins.load(Ordering::SeqCst) >= logins + 2
            });
        }
    }
    std::thread::sleep(Duration::from_millis(300));
    stop.store(true, Ordering::SeqCst);
    let longest = clients.into_iter().map(|client| client.join().unwrap()).max().unwrap();
    println!("longest request {longest:.2?}");
    assert!(longest < Duration::from_secs(2), "{longest:?}");
    let logouts: usize =
        members.iter().map(|member| member.shared.logouts.load(Ordering::SeqCst)).sum();
    assert!(logouts >= 6, "three times two queues said good-bye: {logouts}");
}

/// The target moves a session while no request is in flight. The next request finds a session.
#[test]
fn a_session_that_is_moved_while_nothing_is_under_way() {
    let target = Own::start(MIB, "");
    let world = World::new(1);
    let leaf = world.leaf(&target.address("?timeout=20"));
    world.device("disk", world.linear(&leaf));
    let mut client = world.connect("disk");
    client.write(0, &[7; 4096]).unwrap();
    for event in [LOGOUT, DROPS_SESSION] {
        target.event(event, [0, 0, 1]);
        if event == DROPS_SESSION {
            target.hang_up();
        }
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(client.read(0, 4096).unwrap(), [7; 4096]);
        leaf.engine().probe(Duration::from_secs(5)).unwrap();
    }
}
