//! Two tiers over servers that break in every manner, under a load that verifies.
//!
//! A host with a switch device over two multipath devices, each with two ways to the same volume of one server, as the
//! members of a storage group all lead to the whole volume. So every region may go any way at any time, and a load on
//! top finds out whether a request was lost, done twice, torn or sent elsewhere. Everything random comes from the seed;
//! a failure prints the command that runs the same again (times on a machine differ, so it may not fail again).

mod proxy;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use blkswitch::load::{Load, LoadOptions, Random, Report};

use self::proxy::{Proxy, Way};
use crate::fixture::{Daemon, PATIENCE};

/// Sectors of the volume.
const SECTORS: u64 = 8192;
/// Sectors of a region.
const REGION_SECTORS: u64 = 64;
/// Seconds after which a way that does not answer is taken for lost.
const TIMEOUT: u64 = 1;
/// Seconds between two looks at a path.
const CHECKER_INTERVAL: u64 = 1;
/// The longest that a request may wait where a way is always left: silence on both ways one after the other, and the
/// moments that a busy machine takes to notice. What is stuck waits for [`PATIENCE`].
const LONGEST: Duration = Duration::from_secs(20);

/// How long a scenario lasts, unless `BLKSWITCH_SURVIVAL_SECONDS` says otherwise.
const SECONDS: u64 = 4;

struct World {
    server: Daemon,
    host: Daemon,
    ways: Vec<Proxy>,
    random: Random,
    queueing: bool,
}

impl World {
    fn new(seed: u64, queueing: bool) -> World {
        let server = Daemon::start();
        std::fs::write(server.path("volume"), vec![0; SECTORS as usize * 512]).unwrap();
        let table = format!("0 {SECTORS} linear {} 0", server.path("volume").display());
        server.create("volume", &table).expect_ok();
        let interval = CHECKER_INTERVAL.to_string();
        let host = Daemon::start_with(&["--path-checker-interval", &interval, "--failback", "immediate"]);
        let way = |number| Proxy::start(host.path(&format!("way{number}.sock")), server.path("nbd.sock"));
        let ways: Vec<Proxy> = (0..4).map(way).collect();
        let world = World { server, host, ways, random: Random(seed), queueing };
        for member in 0..2 {
            world.host.create(&format!("member{member}"), &world.member_table(member)).expect_ok();
        }
        world.host.create("volume", &world.switch_table()).expect_ok();
        world
    }

    /// A multipath device over ways 0 and 1, or 2 and 3.
    fn member_table(&self, member: usize) -> String {
        let way = |number: usize| {
            let path = self.ways[number].path().display();
            format!("nbd+unix:///volume?socket={path}&timeout={TIMEOUT}")
        };
        let features = if self.queueing { "1 queue_if_no_path" } else { "0" };
        let (first, second) = (way(2 * member), way(2 * member + 1));
        match member {
            0 => format!(
                "0 {SECTORS} multipath {features} 0 2 1 round-robin 0 1 1 {first} 1 round-robin 0 1 1 {second} 1"
            ),
            _ => {
                format!("0 {SECTORS} multipath {features} 0 1 1 service-time 0 2 2 {first} 1 1 {second} 1 1")
            }
        }
    }

    fn switch_table(&self) -> String {
        format!("0 {SECTORS} switch 2 {REGION_SECTORS} 0 /dev/blkswitch/member0 0 /dev/blkswitch/member1 0")
    }

    fn load(&self, seed: u64, errors: bool) -> Load {
        let options = LoadOptions { clients: 4, seed, errors, patience: PATIENCE };
        Load::start(&self.host.path("nbd.sock"), "volume", options)
    }

    /// Sends regions somewhere else.
    fn remap(&mut self) {
        let (regions, mut words) = (SECTORS / REGION_SECTORS, String::from("set_region_mappings"));
        for _ in 0..8 {
            let (region, path) = (self.random.below(regions as u32), self.random.below(2));
            words.push_str(&format!(" {region:x}:{path}"));
        }
        self.host.message("volume", 0, words.as_bytes()).expect_ok();
    }

    /// A state of each path as `status` has it, `A` or `F`, of both members.
    fn states(&self) -> BTreeMap<String, String> {
        let mut states = BTreeMap::new();
        for member in 0..2 {
            let shown = self.host.run(&["status", &format!("member{member}")]);
            let text = String::from_utf8(shown.stdout).unwrap();
            let words: Vec<&str> = text.split_whitespace().collect();
            for pair in words.windows(2).filter(|pair| pair[0].contains("nbd+unix")) {
                states.insert(format!("{member} {}", pair[0]), pair[1].to_owned());
            }
        }
        assert_eq!(states.len(), 4, "{states:?}");
        states
    }

    /// Everything is mended; all paths come up again, by themselves.
    fn recover(&self) {
        self.ways.iter().for_each(|way| way.set(Way::Up));
        let until = Instant::now() + PATIENCE;
        while self.states().values().any(|state| state != "A") {
            assert!(Instant::now() < until, "paths stay failed: {:?}", self.states());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn verb(&self, words: &[&str]) {
        let run = self.host.run(words);
        assert!(run.status.success(), "{words:?}: {}", String::from_utf8_lossy(&run.stderr));
    }
}

/// Runs a load while `act` does something about every 150 ms, then mends all and verifies.
#[track_caller]
fn survive(name: &str, queueing: bool, errors: bool, mut act: impl FnMut(&mut World, u32)) -> Report {
    struct Replay<'a>(&'a str, u64);
    impl Drop for Replay<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                let Replay(name, seed) = self;
                eprintln!("again: SEED={seed} cargo test -p blkswitch --test system survival::{name}");
            }
        }
    }
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let seed = number("SEED").unwrap_or_else(|| std::process::id().into());
    let _replay = Replay(name, seed);
    let mut world = World::new(seed, queueing);
    let load = world.load(seed, errors);
    let end = Instant::now() + Duration::from_secs(number("BLKSWITCH_SURVIVAL_SECONDS").unwrap_or(SECONDS));
    let mut step = 0;
    while Instant::now() < end {
        act(&mut world, step);
        world.remap();
        step += 1;
        let pause = 50 + u64::from(world.random.below(200));
        std::thread::sleep(Duration::from_millis(pause));
        assert!(!load.has_failed(), "{:#}", load.verify().unwrap_err());
    }
    world.recover();
    let report = load.verify().unwrap();
    println!("{name}: {} requests, {} failed, longest wait {:?}", report.done, report.failed, report.longest);
    assert!(report.done > 0);
    assert!(errors || report.failed == 0);
    drop(world);
    report
}

/// One way of each member at a time may be broken; the others are mended first.
fn break_one(world: &mut World, kind: Way) {
    world.ways.iter().for_each(|way| way.set(Way::Up));
    for member in 0..2 {
        let way = 2 * member + world.random.below(2) as usize;
        world.ways[way].set(kind);
    }
}

#[test]
fn paths_failed_and_reinstated_by_message() {
    let report = survive("paths_failed_and_reinstated_by_message", true, false, |world, _| {
        let (member, way) = (world.random.below(2), world.random.below(2));
        let path = world.ways[(2 * member + way) as usize].path().display().to_string();
        let address = format!("nbd+unix:///volume?socket={path}&timeout={TIMEOUT}");
        let verb = if world.random.below(2) == 0 { "fail_path" } else { "reinstate_path" };
        world.verb(&["message", &format!("member{member}"), "0", verb, &address]);
    });
    assert!(report.longest < LONGEST, "{report:?}");
}

#[test]
fn servers_killed() {
    let report = survive("servers_killed", false, false, |world, step| {
        // Half of the time all is well: the other way may only be cut when this one is in use again.
        if step % 2 == 0 { break_one(world, Way::Cut) } else { world.recover() }
    });
    assert!(report.longest < LONGEST, "{report:?}");
}

#[test]
fn servers_that_hang_and_answer_late() {
    let report = survive("servers_that_hang_and_answer_late", true, false, |world, step| {
        let kinds = [Way::Silent, Way::Slow(30), Way::Silent, Way::Slow(2000)];
        if step % 4 == 0 {
            let kind = kinds[world.random.below(4) as usize];
            break_one(world, kind);
        }
    });
    assert!(report.longest < LONGEST, "{report:?}");
}

#[test]
fn answers_cut_in_half() {
    let report = survive("answers_cut_in_half", true, false, |world, _| break_one(world, Way::Half));
    assert!(report.longest < LONGEST, "{report:?}");
}

/// Nothing fails while both ways are gone: requests wait.
#[test]
fn all_paths_gone_with_queueing() {
    survive("all_paths_gone_with_queueing", true, false, |world, step| {
        let kind = if step % 6 < 3 { Way::Cut } else { Way::Up };
        world.ways.iter().for_each(|way| way.set(kind));
    });
}

/// Requests fail while both ways are gone; none that succeeded is lost.
#[test]
fn all_paths_gone_without_queueing() {
    let report = survive("all_paths_gone_without_queueing", false, true, |world, step| {
        let kind = if step % 6 < 2 { Way::Cut } else { Way::Up };
        world.ways.iter().for_each(|way| way.set(kind));
    });
    assert!(report.failed > 0, "nothing failed: {report:?}");
}

/// Suspend, resume and reload of both tiers while ways break.
#[test]
fn suspended_and_reloaded() {
    survive("suspended_and_reloaded", true, false, |world, step| {
        if step % 3 == 0 {
            break_one(world, Way::Cut);
        } else if step % 3 == 2 {
            world.recover();
        }
        let name = ["volume", "member0", "member1"][world.random.below(3) as usize];
        if world.random.below(2) == 0 {
            world.verb(&["suspend", "--noflush", name]);
            world.verb(&["resume", name]);
        } else if name != "volume" {
            let member = usize::from(name == "member1");
            world.verb(&["load", name, "--table", &world.member_table(member)]);
            world.verb(&["suspend", "--noflush", name]);
            world.verb(&["resume", name]);
        }
    });
}

/// The server is killed as by a power cut of its machine, and comes back: what was flushed is there, what was not is
/// still in the page cache of this machine.
#[test]
fn the_server_killed_and_back() {
    survive("the_server_killed_and_back", true, false, |world, step| {
        if step % 8 == 4 {
            world.server.kill();
            world.server.start_again();
            let table = format!("0 {SECTORS} linear {} 0", world.server.path("volume").display());
            world.server.create("volume", &table).expect_ok();
        }
    });
}
