//! The iSCSI leaf against tgt on loopback. The tests are ignored by default, because they need root
//! and tgtd: `cargo test -p blkswitch-io --test iscsi_leaf -- --ignored`.

#[path = "../support/mod.rs"]
mod support;

mod attention;
mod redirect;
mod target;
mod units;

use std::sync::Arc;
use std::time::{Duration, Instant};

use attention::Load;
use blkswitch_io::engine::sim::Random;
use blkswitch_io::{Leaf, LeafError};
use redirect::Portal;
use support::{READ, TRIM, WRITE, WRITE_ZEROES, World, eventually, in_time, options};
use target::{Login, Target};

/// The error that blkswitch's own NBD export returns for a leaf that is out of reach.
const ESHUTDOWN: u32 = 108;
const MIB: usize = 1 << 20;
/// How long a target may be silent by default (docs/leaves.md). An operation that ended sooner did
/// not wait for this timeout.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

#[test]
#[ignore = "needs root and tgtd"]
fn data_is_read_as_it_was_written() {
    let target = Target::start(16 * MIB, &Login::Open);
    let world = World::new(2);
    let leaf = world.leaf(&target.address("", ""));
    assert_eq!((leaf.properties().sectors, leaf.properties().logical_block), (16 * 2048, 512));
    assert!(leaf.engine().has_cache(), "tgt caches writes");
    assert!(
        leaf.engine().identity().is_some_and(|name| name.starts_with("naa.")),
        "{:?}",
        leaf.engine().identity()
    );
    world.device("disk", world.linear(&leaf));
    let threads: Vec<_> = (0..2u64)
        .map(|number| {
            let mut client = world.connect("disk");
            std::thread::spawn(move || {
                let (base, part) = (number * 8 * MIB as u64, 8 * MIB);
                let mut random = Random::new(number);
                let mut model = vec![0u8; part];
                client.call(0, WRITE_ZEROES, base, part as u32, &[]).unwrap();
                for request in 0..300 {
                    let most = if random.chance(50_000) { part } else { 128 << 10 } / 512;
                    let len = (1 + random.below(most as u64 - 1) as usize) * 512;
                    let at = random.below(((part - len) / 512) as u64 + 1) as usize * 512;
                    let (offset, range) = (base + at as u64, at..at + len);
                    match random.below(8) {
                        0..3 => {
                            let first = random.bits() as u8;
                            let data: Vec<u8> =
                                (0..len).map(|n| first.wrapping_add((n / 512) as u8)).collect();
                            let fua = u16::from(random.chance(100_000));
                            client.call(fua, WRITE, offset, len as u32, &data).unwrap();
                            model[range].copy_from_slice(&data);
                        }
                        3 => {
                            client.call(0, WRITE_ZEROES, offset, len as u32, &[]).unwrap();
                            model[range].fill(0);
                        }
                        4 => client.flush().unwrap(),
                        _ => {
                            let got = client.call(0, READ, offset, len as u32, &[]).unwrap();
                            assert!(got == model[range], "request {request}: {len} bytes at {at}");
                        }
                    }
                }
                client.call(0, TRIM, base, 65536, &[]).unwrap();
                client.flush().unwrap();
                model
            })
        })
        .collect();
    let models: Vec<Vec<u8>> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    leaf.engine().probe(DEFAULT_TIMEOUT).unwrap();
    world.pool.stop();
    let stored = target.stored();
    for (number, model) in models.iter().enumerate() {
        let part = &stored[number * 8 * MIB..][..8 * MIB];
        assert!(part[65536..] == model[65536..], "what tgt has stored for client {number}");
    }
}

#[test]
#[ignore = "needs root and tgtd"]
fn several_paths_to_a_unit_have_one_identity_and_other_units_another() {
    let target = Target::start(MIB, &Login::Open);
    let world = World::new(1);
    let identity = |leaf: &Arc<Leaf>| leaf.engine().identity().unwrap();
    let (a, b) =
        (world.leaf(&target.address("", "")), world.leaf(&target.address("", "?timeout=9")));
    let other = world.leaf(&target.address_of(2, "", ""));
    assert_eq!(identity(&a), identity(&b));
    assert_ne!(identity(&a), identity(&other));
    // A target on another machine with a unit of the same numbers and size. tgt gives it the same
    // NAA name.
    let stranger = Target::start(MIB, &Login::Open);
    let stranger = identity(&world.leaf(&stranger.address("", "")));
    assert_eq!(stranger.split(", ").next(), identity(&a).split(", ").next());
    assert_ne!(stranger, identity(&a));
    // A target that leads to the same unit.
    let twin = target.twin();
    assert_eq!(identity(&world.leaf(&twin.address("", ""))), identity(&a));
    let none = Leaf::open(&target.address_of(7, "", "?timeout=3").parse().unwrap(), &options())
        .unwrap_err();
    assert!(none.to_string().contains("/7"), "{none}");
}

#[test]
#[ignore = "needs root and tgtd"]
fn chap_takes_the_secret_from_a_file_or_the_environment_and_shows_it_nowhere() {
    let login = Login::Chap { user: "me", secret: "hunter2hunter2" };
    let target = Target::start(MIB, &login);
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, secret: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, secret).unwrap();
        format!("?secret-file={}", path.display())
    };
    let good = file("good", "hunter2hunter2\n");
    let world = World::new(1);
    let leaf = world.leaf(&target.address("me@", &good));
    world.device("disk", world.linear(&leaf));
    world.connect("disk").write(0, &[1; 512]).unwrap();
    let shown = format!("{leaf:?} {} {}", leaf.name(), leaf.key());
    assert!(!shown.contains("hunter2"), "{shown}");
    let open = |user: &str, query: &str| {
        Leaf::open(&target.address(user, query).parse().unwrap(), &options()).map(drop)
    };
    let variable = "?secret-env=BLKSWITCH_TEST_NO_SUCH_VARIABLE";
    let missing = format!("?secret-file={}/none", dir.path().display());
    let refused = [
        ("", String::new()),
        ("me@", file("bad", "hunter3hunter3")),
        ("you@", good),
        ("me@", missing),
    ];
    for (user, query) in
        refused.iter().map(|(user, query)| (*user, query.as_str())).chain([("me@", variable)])
    {
        let error = open(user, query).unwrap_err();
        assert!(matches!(error, LeafError::System { .. }), "{error}");
        let text = format!("{error} {error:?}");
        assert!(!text.contains("hunter") && text.contains(&target.iqn), "{text}");
    }
}

#[test]
#[ignore = "needs root and tgtd"]
fn a_target_that_is_not_there_is_refused_in_time() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for port in [silent.local_addr().unwrap().port(), free] {
        let address = format!("iscsi://127.0.0.1:{port}/iqn.x/1?timeout=1");
        let start = Instant::now();
        let error = Leaf::open(&address.parse().unwrap(), &options()).unwrap_err().to_string();
        assert!(error.contains(&address) && start.elapsed() < DEFAULT_TIMEOUT, "{error}");
    }
}

#[test]
#[ignore = "needs root and tgtd"]
fn a_target_that_is_killed_and_comes_back() {
    let mut target = Target::start(4 * MIB, &Login::Open);
    let world = World::new(2);
    let waits = world.leaf(&target.address("", "?reconnect=50&timeout=20"));
    let fails = world.leaf(&target.address("", "?timeout=20"));
    world.device("waits", world.linear(&waits));
    world.device("fails", world.linear(&fails));
    let mut failing = world.connect("fails");
    failing.read(0, 512).unwrap();
    let load = Load::start(&world, "waits");
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(300));
        target.kill();
        eventually("it is noticed", || failing.read(0, 512) == Err(ESHUTDOWN));
        let start = Instant::now();
        (0..50).for_each(|_| assert_eq!(failing.read(0, 512), Err(ESHUTDOWN)));
        assert!(start.elapsed() < Duration::from_secs(8), "at once: {:?}", start.elapsed());
        assert!(fails.engine().probe(Duration::from_secs(2)).is_err());
        target.again();
        eventually("a probe brings it back", || {
            fails.engine().probe(Duration::from_secs(20)).is_ok()
        });
        failing.read(0, 512).unwrap();
    }
    std::thread::sleep(Duration::from_millis(300));
    eventually("a hundred requests are answered", || load.requests() > 100);
    load.end();
    in_time("stopping", move || world.pool.stop());
}

#[test]
#[ignore = "needs root and tgtd"]
fn a_target_that_hangs_costs_the_timeout() {
    let target = Target::start(MIB, &Login::Open);
    let world = World::new(1);
    let leaf = world.leaf(&target.address("", "?timeout=3"));
    world.device("disk", world.linear(&leaf));
    let mut client = world.connect("disk");
    client.read(0, 512).unwrap();
    target.pause();
    let start = Instant::now();
    for _ in 0..4 {
        client.send(0, READ, 0, 4096, &[]).unwrap();
    }
    (0..4).for_each(|_| assert_eq!(client.reply().unwrap().0, ESHUTDOWN));
    let time = start.elapsed();
    assert!((Duration::from_millis(2500)..DEFAULT_TIMEOUT).contains(&time), "{time:?}");
    target.resume();
    eventually("a probe brings it back", || leaf.engine().probe(Duration::from_secs(5)).is_ok());
    client.read(0, 4096).unwrap();
}

/// The target is killed, and starts again with a unit of another size or another name.
#[test]
#[ignore = "needs root and tgtd"]
fn a_target_that_comes_back_as_another_is_not_used() {
    for (bytes, number) in [(2 * MIB, 1), (4 * MIB, 2)] {
        let mut target = Target::start(4 * MIB, &Login::Open);
        let world = World::new(2);
        let leaf = world.leaf(&target.address("", "?timeout=20"));
        world.device("disk", world.linear(&leaf));
        let mut client = world.connect("disk");
        client.write(0, &[1; 4096]).unwrap();
        client.flush().unwrap();
        target.kill();
        target.change(bytes, number);
        target.again();
        let error = leaf.engine().probe(Duration::from_secs(10)).unwrap_err().to_string();
        assert!(error.contains("not what it was"), "{error}");
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(client.read(0, 4096), Err(ESHUTDOWN));
        assert_eq!(client.write(0, &[2; 4096]), Err(ESHUTDOWN));
        assert!(target.stored()[..4096] == [1; 4096], "nothing was written to it");
        target.kill();
        target.change(4 * MIB, 1);
        target.again();
        eventually("the right one is back", || {
            leaf.engine().probe(Duration::from_secs(10)).is_ok()
        });
        assert_eq!(client.read(0, 4096).unwrap(), [1; 4096]);
    }
}

/// A target reports that its list of units has changed. Each session checks its own unit, and no
/// request fails meanwhile.
#[test]
#[ignore = "needs root and tgtd"]
fn units_that_come_and_go_beside_it_fail_nothing() {
    let target = Target::start(4 * MIB, &Login::Open);
    let world = World::new(2);
    let leaf = world.leaf(&target.address("", "?timeout=20"));
    world.device("disk", world.linear(&leaf));
    let mut client = world.connect("disk");
    for round in 0..3 {
        target.another_unit(3);
        client.write(0, &[round; 4096]).unwrap();
        assert_eq!(client.read(0, 4096).unwrap(), [round; 4096]);
        target.another_unit(3);
        leaf.engine().probe(Duration::from_secs(10)).unwrap();
        client.flush().unwrap();
    }
}

#[test]
#[ignore = "needs root and tgtd"]
fn a_probe_ends_when_it_is_to() {
    let target = Target::start(MIB, &Login::Open);
    let world = World::new(1);
    let leaf = world.leaf(&target.address("", "?timeout=60"));
    target.pause();
    let start = Instant::now();
    // The first probe loses the session, the second one logs in.
    (0..2).for_each(|_| assert!(leaf.engine().probe(Duration::from_secs(1)).is_err()));
    assert!(start.elapsed() < DEFAULT_TIMEOUT, "{:?}", start.elapsed());
    target.resume();
    eventually("it answers again", || leaf.engine().probe(Duration::from_secs(5)).is_ok());
}

/// The portal of a group: it sends each login, also those after a lost session, to another member.
#[test]
#[ignore = "needs root and tgtd"]
fn a_portal_that_sends_sessions_elsewhere_is_followed() {
    let first = Target::start(MIB, &Login::Open);
    let mut second = first.twin();
    let members = [first.portal(), second.portal()];
    let portal = Portal::start(move |login, _| format!("{},1", members[login % 2]));
    let world = World::new(2);
    let leaf =
        world.leaf(&first.address_by(&portal.address.to_string(), "?timeout=20&reconnect=40"));
    assert_eq!(portal.logins(), 3, "two queues and control");
    assert!(
        first.sessions() > 0 && second.sessions() > 0,
        "{} {}",
        first.sessions(),
        second.sessions()
    );
    world.device("disk", world.linear(&leaf));
    // Several connections, so that both queues have one.
    let mut clients: Vec<_> = (0..8).map(|_| world.connect("disk")).collect();
    let mut check = |byte: u8| {
        for (client, at) in clients.iter_mut().zip(0..) {
            client.write(at * 4096, &[byte + at as u8; 4096]).unwrap();
        }
        for (client, at) in clients.iter_mut().rev().zip(0..) {
            assert_eq!(client.read(at * 4096, 4096).unwrap(), [byte + at as u8; 4096]);
        }
    };
    check(7);
    assert!(first.stored()[..4096] == [7; 4096], "it is written where the portal sent the session");
    second.kill();
    // The portal still sends every other login to the dead member. The next attempt goes to another
    // one.
    check(70);
    assert!(portal.logins() > 3);
    assert_eq!(second.sessions(), 0);
    eventually("all are at the other", || leaf.engine().probe(Duration::from_secs(5)).is_ok());
    check(140);
}

#[test]
#[ignore = "needs root and tgtd"]
fn portals_that_send_in_a_circle_are_left() {
    let target = Target::start(MIB, &Login::Open);
    let itself = Portal::start(|_, own| own.to_string());
    let by_turns = {
        let (to, own) = (itself.address.to_string(), Portal::start(move |_, own| own.to_string()));
        let back = own.address.to_string();
        Portal::start(move |login, _| if login % 2 == 0 { to.clone() } else { back.clone() })
    };
    for portal in [&itself, &by_turns] {
        let (before, start) = (itself.logins(), Instant::now());
        let address = target.address_by(&portal.address.to_string(), "?timeout=20");
        let error = Leaf::open(&address.parse().unwrap(), &options()).unwrap_err().to_string();
        assert!(
            error.contains(&address) && error.contains("redirected more than 8 times"),
            "{error}"
        );
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "not for as long as it may: {:?}",
            start.elapsed()
        );
        assert!((8..=9).contains(&(itself.logins() - before)), "{}", itself.logins() - before);
    }
    for nonsense in ["", "here", "127.0.0.1:0", "[::1"] {
        let portal = Portal::start(move |_, _| nonsense.to_string());
        let address = target.address_by(&portal.address.to_string(), "?timeout=3");
        let error = Leaf::open(&address.parse().unwrap(), &options()).unwrap_err().to_string();
        assert!(error.contains(&address), "{error}");
    }
}
