//! Two tiers over servers that fail in every possible way, under a load that verifies.
//!
//! The host has a switch device over two multipath devices. Each of these has two paths ("ways") to
//! the volume of one server, because in a storage group all members lead to the whole volume. So
//! every region may take any way at any time. A load on top finds out whether a request was lost,
//! done twice or torn. A witness at the ways knows where each region is, and finds out whether a
//! request was sent elsewhere. In every scenario regions move all the time, and a disturber
//! suspends, reloads and resumes both tiers.
//!
//! All random numbers come from the seed. A failure prints the command that repeats the run. Times
//! differ between runs, so the repetition may pass.

mod disturber;
mod iscsi;
mod proxy;
mod replies;
mod witness;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blkswitch::workload::{Errors, Load, LoadOptions, Random, Report};

use blkswitch::protocol::route;
use serde_json::json;

use self::disturber::{Disturbed, Disturber};
use self::proxy::{Proxy, Way};
use self::witness::{Witness, stays};
use crate::fixture::{Daemon, PATIENCE, eventually, signal};

/// Sectors of the volume.
const SECTORS: u64 = 8192;
/// Sectors of a region.
const REGION_SECTORS: u64 = 64;
const REGIONS: u64 = SECTORS / REGION_SECTORS;
/// Seconds without an answer after which the host fails a way.
const TIMEOUT: u64 = 1;
/// Seconds between two probes of a path.
const CHECKER_INTERVAL: &str = "0.5";
/// Longest time between two probes of a path whose state does not change: four times the interval.
const LONGEST_INTERVAL: Duration = Duration::from_secs(2);
/// Extra time that a busy machine may need.
const BUSY: Duration = Duration::from_secs(6);
/// Blocks of 4 KiB that the server cannot read or write at times. They are some regions, but not
/// the one that probes read.
const BAD_BLOCKS: Range<usize> = 256..288;
/// Sectors of a block.
const BLOCK_SECTORS: usize = 8;

/// The error that a client of the host gets.
const EIO: i32 = 5;

/// Duration of a scenario, unless the environment sets another one.
const SECONDS: u64 = 4;
/// The environment variable for the duration.
const SECONDS_VAR: &str = "BLKSWITCH_SURVIVAL_SECONDS";

/// One run of a scenario. If it panics, it prints how to repeat it.
struct Run {
    name: &'static str,
    /// The command that runs tests like this one. The name of the scenario is appended to it.
    command: &'static str,
    seed: u64,
    time: Duration,
}

impl Run {
    fn new(command: &'static str, name: &'static str) -> Run {
        let number =
            |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
        let seed = number("SEED").unwrap_or_else(|| std::process::id().into());
        let time = Duration::from_secs(number(SECONDS_VAR).unwrap_or(SECONDS));
        Run { name, command, seed, time }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Run { name, command, seed, time } = self;
            eprintln!("again: SEED={seed} {SECONDS_VAR}={} {command}::{name}", time.as_secs());
        }
    }
}

/// The properties of a scenario.
struct Scenario {
    name: &'static str,
    queueing: bool,
    errors: Errors,
    /// Seconds without an answer after which the host fails a way.
    timeout: u64,
    /// How often a request may meet a silent way: on both ways in turn, and before that once more
    /// on both while a gate closes.
    silences: u32,
    /// Whether two servers that forward are between the ways and the server with the volume.
    fronts: bool,
}

impl Scenario {
    /// A scenario in which nothing may fail.
    fn new(name: &'static str) -> Scenario {
        let errors = Errors::No;
        Scenario { name, queueing: true, errors, timeout: TIMEOUT, silences: 0, fronts: false }
    }

    /// The longest time that a request may wait: the silences (checked every second), an outage of
    /// at most `outage`, and the time until a probe finds out that the outage is over.
    fn longest(&self, outage: Duration) -> Duration {
        let silences = Duration::from_secs(self.timeout + 1) * self.silences;
        let held = if self.queueing { outage + LONGEST_INTERVAL } else { Duration::ZERO };
        silences + held + BUSY
    }
}

struct World {
    server: Daemon,
    host: Arc<Daemon>,
    ways: Vec<Proxy>,
    witness: Witness,
    random: Random,
    queueing: bool,
    timeout: u64,
    /// Whether the server's disk has bad blocks.
    bad: bool,
    fronts: Vec<Daemon>,
    /// The longest time that a member had no way.
    outage: Duration,
    gone_since: Option<Instant>,
}

impl World {
    fn new(seed: u64, scenario: &Scenario) -> World {
        let server = Daemon::start();
        std::fs::write(server.path("volume"), vec![0; SECTORS as usize * 512]).unwrap();
        let options = ["--path-checker-interval", CHECKER_INTERVAL, "--failback", "immediate"];
        let host = Arc::new(Daemon::start_with(&options));
        let front = |_| Daemon::start_with(&[]);
        let fronts: Vec<Daemon> = (0..if scenario.fronts { 2 } else { 0 }).map(front).collect();
        let witness = Witness::new(REGIONS, REGION_SECTORS * 512);
        let way = |number: usize| {
            let to = fronts.get(number % 2).unwrap_or(&server);
            let (path, to) = (host.path(&format!("way{number}.sock")), to.path("nbd.sock"));
            Proxy::start(path, to, number / 2, witness.clone())
        };
        let ways: Vec<Proxy> = (0..4).map(way).collect();
        let Scenario { queueing, timeout, .. } = *scenario;
        let (random, outage) = (Random(seed), Duration::ZERO);
        let world = World {
            server,
            host,
            ways,
            witness,
            random,
            queueing,
            timeout,
            bad: false,
            fronts,
            outage,
            gone_since: None,
        };
        world.server.create("volume", &world.server_table(false)).expect_ok();
        (0..world.fronts.len()).for_each(|front| world.forward(front));
        for member in 0..2 {
            world.host.create(&format!("member{member}"), &world.member_table(member)).expect_ok();
        }
        world.host.create("volume", &world.switch_table()).expect_ok();
        world
    }

    /// The table of the whole volume on a file; with `bad`, some blocks cannot be read or written.
    fn server_table(&self, bad: bool) -> String {
        let file = self.server.path("volume").display().to_string();
        if !bad {
            return format!("0 {SECTORS} linear {file} 0");
        }
        let (first, end) = (BAD_BLOCKS.start * BLOCK_SECTORS, BAD_BLOCKS.end * BLOCK_SECTORS);
        let (len, rest) = (end - first, SECTORS as usize - end);
        format!("0 {first} linear {file} 0\n{first} {len} error\n{end} {rest} linear {file} {end}")
    }

    /// Makes a server that has just started forward to the server with the volume.
    fn forward(&self, front: usize) {
        let socket = self.server.path("nbd.sock").display().to_string();
        let table = format!("0 {SECTORS} linear nbd+unix:///volume?socket={socket}&timeout=10 0");
        self.fronts[front].create("volume", &table).expect_ok();
    }

    /// Checks which members have a way. The change that broke or mended them began at `began`.
    fn note_ways(&mut self, began: Instant) {
        let is_gone = self.ways.chunks(2).any(|member| member.iter().all(|way| !way.is_up()));
        if let Some(since) = self.gone_since {
            self.outage = self.outage.max(since.elapsed());
        }
        self.gone_since = if is_gone { self.gone_since.or(Some(began)) } else { None };
    }

    /// Does something that leaves the members without a server meanwhile.
    fn without_server(&mut self, act: impl FnOnce(&mut World)) {
        let began = Instant::now();
        act(self);
        self.outage = self.outage.max(began.elapsed());
    }

    /// Gives the server's disk bad blocks, or good ones.
    fn set_bad(&mut self, bad: bool) {
        self.bad = bad;
        let table = self.server_table(bad);
        self.server.on("PUT", route::TABLE, "volume", json!({ "table": table })).expect_ok();
        let run = self.server.run(&["resume", "volume"]);
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    }

    /// The address of a way, as tables name it.
    fn address(&self, way: usize) -> String {
        let (path, timeout) = (self.ways[way].path().display(), self.timeout);
        format!("nbd+unix:///volume?socket={path}&timeout={timeout}")
    }

    /// The table of a multipath device over ways 0 and 1, or 2 and 3.
    fn member_table(&self, member: usize) -> String {
        let features = if self.queueing { "1 queue_if_no_path" } else { "0" };
        let (first, second) = (self.address(2 * member), self.address(2 * member + 1));
        match member {
            0 => format!(
                "0 {SECTORS} multipath {features} 0 2 1 round-robin 0 1 1 {first} 1 round-robin 0 1 1 {second} 1"
            ),
            _ => {
                format!(
                    "0 {SECTORS} multipath {features} 0 1 1 service-time 0 2 2 {first} 1 1 {second} 1 1"
                )
            }
        }
    }

    fn switch_table(&self) -> String {
        format!(
            "0 {SECTORS} switch 2 {REGION_SECTORS} 0 /dev/blkswitch/member0 0 /dev/blkswitch/member1 0"
        )
    }

    fn load(&self, seed: u64, errors: Errors) -> Load {
        Load::start(
            &self.host.path("nbd.sock"),
            "volume",
            LoadOptions { clients: 4, seed, errors, patience: PATIENCE },
        )
    }

    fn disturb(&self, seed: u64) -> Disturber {
        let device = |name: &str, table, witness, may_flush| {
            let name = name.to_owned();
            Disturbed { name, table, witness, may_flush }
        };
        let devices = vec![
            device("volume", self.switch_table(), Some(self.witness.clone()), true),
            device("member0", self.member_table(0), None, false),
            device("member1", self.member_table(1), None, false),
        ];
        Disturber::start(self.host.clone(), devices, Random(!seed))
    }

    /// Moves some regions to other members.
    fn remap(&mut self) {
        let mut move_one = || loop {
            let region = u64::from(self.random.below(REGIONS as u32));
            if !stays(region) {
                return (region, self.random.below(2) as usize);
            }
        };
        let moves: Vec<(u64, usize)> = (0..8).map(|_| move_one()).collect();
        let words = moves.iter().map(|(region, path)| format!(" {region:x}:{path}"));
        let message = format!("set_region_mappings{}", words.collect::<String>());
        let send = || self.host.message("volume", 0, message.as_bytes()).expect_ok();
        self.witness.moving(&moves, || _ = send());
    }

    /// The state of each path of both members in `status`: `A` or `F`, and its number of failures.
    fn states(&self) -> BTreeMap<String, (String, u64)> {
        let mut states = BTreeMap::new();
        for member in 0..2 {
            let shown = self.host.run(&["status", &format!("member{member}")]);
            let text = String::from_utf8(shown.stdout).unwrap();
            let words: Vec<&str> = text.split_whitespace().collect();
            for path in words.windows(3).filter(|path| path[0].contains("nbd+unix")) {
                let state = (path[1].to_owned(), path[2].parse().unwrap());
                states.insert(format!("{member} {}", path[0]), state);
            }
        }
        assert_eq!(states.len(), 4, "{states:?}");
        states
    }

    /// Lets all ways pass everything.
    fn mend(&self) {
        self.ways.iter().for_each(|way| way.set(Way::Up));
    }

    /// Like [`World::recover`], but afterwards every path can be used at once, on all of its
    /// connections. It fails the broken paths first, so they are up again only after a probe.
    /// Otherwise a way that was not used while it was broken would count as up when it is mended,
    /// although it connects a moment later.
    fn recover_for_use(&self) {
        let broken: Vec<usize> =
            (0..self.ways.len()).filter(|way| !self.ways[*way].is_up()).collect();
        self.mend();
        for way in broken {
            let (member, address) = (format!("member{}", way / 2), self.address(way));
            eventually("a path is failed", || {
                let run = self.host.run(&["message", &member, "0", "fail_path", &address]);
                let said = String::from_utf8_lossy(&run.stderr);
                // A suspended multipath takes no messages.
                assert!(run.status.success() || said.contains("busy"), "{said}");
                run.status.success()
            });
        }
        self.recover();
    }

    /// Mends all ways. Waits until all paths are up again by themselves, the better group is used,
    /// and nothing is held.
    fn recover(&self) {
        self.mend();
        let until = Instant::now() + PATIENCE;
        loop {
            let (states, group, held) = (self.states(), self.group(), self.held());
            if states.values().all(|(state, _)| state == "A") && group == "1" && held == 0.0 {
                return;
            }
            assert!(
                Instant::now() < until,
                "paths stay failed: {states:?}, group {group}, {held} held"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The group that the first member uses, or will use next.
    fn group(&self) -> String {
        let shown = String::from_utf8(self.host.run(&["status", "member0"]).stdout).unwrap();
        let words: Vec<&str> = shown.split_whitespace().collect();
        // 0 SECTORS multipath 2 QUEUED INITS 0 GROUPS GROUP
        assert_eq!((words[3], words[6], words[7]), ("2", "0", "2"), "{shown}");
        words[8].to_owned()
    }

    /// Number of requests that are held, over all devices.
    fn held(&self) -> f64 {
        let metrics = self.host.request("GET", route::METRICS, serde_json::Value::Null).body;
        let text = String::from_utf8(metrics).unwrap();
        let held = text.lines().filter(|line| line.starts_with("blkswitch_held_requests{"));
        let numbers: Vec<f64> =
            held.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        assert_eq!(numbers.len(), 3, "{text}");
        numbers.iter().sum()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Lets everything that still waits for the world end.
            self.mend();
            signal(self.host.pid(), "KILL");
        }
    }
}

/// Runs a load. Meanwhile `act` changes something about every 150 ms, and a disturber something
/// else. Then it mends all ways and verifies.
#[track_caller]
fn survive(scenario: &Scenario, mut act: impl FnMut(&mut World, u32)) -> Report {
    let name = scenario.name;
    let run = Run::new("cargo test -p blkswitch --test daemon survival", name);
    let seed = run.seed;
    let mut world = World::new(seed, scenario);
    let load = world.load(seed, scenario.errors.clone());
    world.witness.watch(&load);
    let disturber = world.disturb(seed);
    let end = Instant::now() + run.time;
    let mut step = 0;
    while Instant::now() < end {
        let began = Instant::now();
        act(&mut world, step);
        world.note_ways(began);
        world.remap();
        step += 1;
        let pause = 50 + u64::from(world.random.below(200));
        std::thread::sleep(Duration::from_millis(pause));
        assert!(!load.has_failed(), "{:#}", load.verify().unwrap_err());
        world.witness.verdict();
        assert!(!disturber.has_failed(), "a device could not be suspended, reloaded or resumed");
    }
    if world.bad {
        world.set_bad(false);
    }
    world.mend();
    world.note_ways(Instant::now());
    let disturbed = disturber.end();
    world.recover();
    let report = load.verify().unwrap();
    let [staying, moving] = world.witness.verdict();
    assert!(staying > 0 && moving > 0);
    let longest = scenario.longest(world.outage);
    // Not with `println!`, whose text is hidden while the test passes.
    let _ = writeln!(
        std::io::stderr(),
        "{name}: {} requests, {} failed, {staying} seen at the member of regions that stay and {moving} of those that \
         move, {disturbed} times suspended, longest wait {:.1?} of at most {longest:.1?}",
        report.done,
        report.failed,
        report.longest
    );
    assert!(report.longest < longest, "{report:?}, at most {longest:?}");
    assert!(report.done > 0 && disturbed > 0);
    assert!(scenario.errors != Errors::No || report.failed == 0);
    drop(world);
    report
}

/// Breaks one way of each member. The others are mended first.
fn break_one(world: &mut World, kind: Way) {
    world.ways.iter().for_each(|way| way.set(Way::Up));
    for member in 0..2 {
        let way = 2 * member + world.random.below(2) as usize;
        world.ways[way].set(kind);
    }
}

#[test]
fn paths_failed_and_reinstated_by_message() {
    let mut taken = 0;
    survive(&Scenario::new("paths_failed_and_reinstated_by_message"), |world, _| {
        let (member, way) = (world.random.below(2), world.random.below(2));
        let verb = if world.random.below(2) == 0 { "fail_path" } else { "reinstate_path" };
        let address = world.address((2 * member + way) as usize);
        let run = world.host.run(&["message", &format!("member{member}"), "0", verb, &address]);
        let said = String::from_utf8_lossy(&run.stderr);
        // A suspended multipath takes no messages.
        assert!(run.status.success() || said.contains("busy"), "{verb}: {said}");
        taken += u32::from(run.status.success());
    });
    assert!(taken > 0);
}

#[test]
fn servers_killed() {
    let scenario = Scenario { queueing: false, ..Scenario::new("servers_killed") };
    survive(&scenario, |world, step| {
        // All ways work half of the time: the other way may only be cut when this one is in use
        // again.
        if step % 2 == 0 { break_one(world, Way::Cut) } else { world.recover_for_use() }
    });
}

#[test]
fn servers_that_hang_and_answer_late() {
    let scenario = Scenario { silences: 4, ..Scenario::new("servers_that_hang_and_answer_late") };
    survive(&scenario, |world, step| {
        let kinds = [Way::Silent, Way::Slow(30), Way::Silent, Way::Slow(2000)];
        if step % 4 == 0 {
            let kind = kinds[world.random.below(4) as usize];
            break_one(world, kind);
        }
    });
}

#[test]
fn answers_cut_in_half() {
    survive(&Scenario::new("answers_cut_in_half"), |world, step| {
        // A way that breaks again and again is tried less and less often, and a request may meet
        // the broken way each time. So its wait is bounded by the time until all ways work.
        if step % 4 == 3 { world.recover_for_use() } else { break_one(world, Way::Half) }
    });
}

/// Servers say that they are shutting down. The path fails, the request takes another one, and
/// nothing fails.
#[test]
fn servers_that_leave_with_an_error() {
    let mut failures = 0;
    survive(&Scenario::new("servers_that_leave_with_an_error"), |world, step| {
        if step % 2 == 0 {
            break_one(world, Way::Leaving(4));
        }
        failures += world.states().values().map(|(_, failures)| failures).sum::<u64>();
    });
    assert!(failures > 0, "no path has failed");
}

/// No server can read or write some blocks. Exactly these errors reach the client, and no path
/// fails because of them.
#[test]
fn servers_that_answer_with_errors() {
    let errors = Errors::At(BAD_BLOCKS);
    // No way is broken here, and none may seem so because the machine is busy.
    let scenario =
        Scenario { errors, timeout: 60, ..Scenario::new("servers_that_answer_with_errors") };
    let mut seen = 0;
    survive(&scenario, |world, step| {
        if step % 3 == 0 {
            world.set_bad(!world.bad);
        }
        let mut client = world.host.nbd("volume");
        client.set_patience(PATIENCE).unwrap();
        for block in [BAD_BLOCKS.start - 1, BAD_BLOCKS.start, BAD_BLOCKS.end - 1, BAD_BLOCKS.end] {
            let read = client.read((block * BLOCK_SECTORS * 512) as u64, BLOCK_SECTORS * 512);
            let errno = read.err().map(|error| error.raw_os_error());
            let is_bad = world.bad && BAD_BLOCKS.contains(&block);
            assert_eq!(errno, is_bad.then_some(Some(EIO)), "block {block}");
            seen += u32::from(is_bad);
        }
        let states = world.states();
        assert!(
            states.values().all(|(state, failures)| state == "A" && *failures == 0),
            "{states:?}"
        );
    });
    assert!(seen > 0, "no block was bad");
}

/// While both ways are gone, requests wait and nothing fails.
#[test]
fn all_paths_gone_with_queueing() {
    survive(&Scenario::new("all_paths_gone_with_queueing"), |world, step| match step % 6 {
        0 => world.ways.iter().for_each(|way| way.set(Way::Cut)),
        3 => world.recover(),
        _ => {}
    });
}

/// While both ways are gone, requests fail. No request that succeeded is lost.
#[test]
fn all_paths_gone_without_queueing() {
    let errors = Errors::Anywhere;
    let scenario =
        Scenario { queueing: false, errors, ..Scenario::new("all_paths_gone_without_queueing") };
    let report = survive(&scenario, |world, step| {
        let kind = if step % 6 < 2 { Way::Cut } else { Way::Up };
        world.ways.iter().for_each(|way| way.set(kind));
    });
    assert!(report.failed > 0, "nothing failed: {report:?}");
}

/// A whole member fails and comes back. Its requests wait, and those of the other member do not.
#[test]
fn a_member_gone_and_back() {
    let scenario = Scenario { silences: 4, ..Scenario::new("a_member_gone_and_back") };
    survive(&scenario, |world, step| {
        let kinds = [Way::Cut, Way::Silent];
        // Longer than a way may be silent.
        if step % 14 == 0 {
            let (member, kind) =
                (world.random.below(2) as usize, kinds[world.random.below(2) as usize]);
            world.ways[2 * member].set(kind);
            world.ways[2 * member + 1].set(kind);
        } else if step % 14 == 10 {
            world.mend();
        }
    });
}

/// The server is killed and comes back. Flushed data is there, and so is all other data, because
/// this machine's page cache still has it.
#[test]
fn the_server_killed_and_back() {
    survive(&Scenario::new("the_server_killed_and_back"), |world, step| {
        if step % 8 == 4 {
            world.without_server(|world| {
                world.server.kill();
                world.server.start_again();
                let table = world.server_table(false);
                world.server.create("volume", &table).expect_ok();
            });
        }
    });
}

/// Two servers that forward to a third one are killed in turn, one each second, with all their
/// requests, and start again.
#[test]
fn forwarding_servers_killed_in_turn() {
    let scenario = Scenario { fronts: true, ..Scenario::new("forwarding_servers_killed_in_turn") };
    let (mut kills, mut next, mut failures) = (0, Instant::now(), 0);
    survive(&scenario, |world, _| {
        if Instant::now() < next {
            return;
        }
        next = Instant::now() + Duration::from_secs(1);
        let front = kills % 2;
        // The other server may not be connected again yet.
        world.without_server(|world| {
            world.fronts[front].kill();
            world.fronts[front].start_again();
            world.forward(front);
        });
        kills += 1;
        failures += world.states().values().map(|(_, failures)| failures).sum::<u64>();
    });
    assert!(kills >= 2 && failures > 0, "{kills} kills, {failures} failures of paths");
}
