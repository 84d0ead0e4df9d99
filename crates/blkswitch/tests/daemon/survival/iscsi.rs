//! Two tiers over iSCSI: a switch device over two multipath devices, whose paths are sessions to
//! two tgt daemons with one volume. Each daemon is the first way of one member and the second way
//! of the other. The loads, the moves of regions and the disturber are those of the other
//! scenarios, but here the daemons themselves fail.
//!
//! The tests need the feature `iscsi`, root, and tgtd. Without root or tgtd a test says so and
//! passes; with `CI=true` it fails.

#[path = "../../../../io/tests/iscsi_leaf/target.rs"]
mod target;

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use blkswitch::workload::{Errors, Load, LoadOptions, Random};

use self::target::{Login, Target};
use super::disturber::{Disturbed, Disturber};
use super::{BUSY, CHECKER_INTERVAL, LONGEST_INTERVAL, Run};
use crate::fixture::{Daemon, PATIENCE, eventually};

const REGION_SECTORS: u64 = 64;
const BYTES: usize = 8 << 20;
const BLOCK: usize = 4096;

struct Scenario {
    name: &'static str,
    queueing: bool,
    errors: Errors,
    /// Seconds without an answer after which a session counts as lost.
    timeout: u64,
    /// How often a request may meet a silent daemon: on both ways in turn, and before that once
    /// more on both while a gate closes.
    silences: u32,
    bytes: usize,
}

impl Scenario {
    /// A scenario in which nothing may fail and no daemon is silent. The timeout is long, so that
    /// no session counts as lost because the machine is busy.
    fn new(name: &'static str) -> Scenario {
        Scenario {
            name,
            queueing: true,
            errors: Errors::No,
            timeout: 20,
            silences: 0,
            bytes: BYTES,
        }
    }
}

struct World {
    targets: Vec<Target>,
    host: Arc<Daemon>,
    random: Random,
    timeout: u64,
    queueing: bool,
    sectors: u64,
    /// The longest time that both daemons were gone.
    outage: Duration,
}

impl World {
    fn new(seed: u64, scenario: &Scenario) -> World {
        let first = Target::start(scenario.bytes, &Login::Open);
        let targets = vec![first.twin(), first];
        let options = ["--path-checker-interval", CHECKER_INTERVAL, "--failback", "immediate"];
        let world = World {
            targets,
            host: Arc::new(Daemon::start_with(&options)),
            random: Random(seed),
            timeout: scenario.timeout,
            queueing: scenario.queueing,
            sectors: scenario.bytes as u64 / 512,
            outage: Duration::ZERO,
        };
        for member in 0..2 {
            world.host.create(&format!("member{member}"), &world.member_table(member)).expect_ok();
        }
        world.host.create("volume", &world.switch_table()).expect_ok();
        world
    }

    fn address(&self, target: usize) -> String {
        self.targets[target].address("", &format!("?timeout={}", self.timeout))
    }

    fn member_table(&self, member: usize) -> String {
        let (sectors, features) =
            (self.sectors, if self.queueing { "1 queue_if_no_path" } else { "0" });
        let (first, second) = (self.address(member), self.address(1 - member));
        format!(
            "0 {sectors} multipath {features} 0 2 1 round-robin 0 1 1 {first} 1 round-robin 0 1 1 {second} 1"
        )
    }

    fn switch_table(&self) -> String {
        let sectors = self.sectors;
        format!(
            "0 {sectors} switch 2 {REGION_SECTORS} 0 /dev/blkswitch/member0 0 /dev/blkswitch/member1 0"
        )
    }

    fn disturb(&self, seed: u64) -> Disturber {
        let device = |name: &str, table, may_flush| Disturbed {
            name: name.to_owned(),
            table,
            witness: None,
            may_flush,
        };
        let devices = vec![
            device("volume", self.switch_table(), true),
            device("member0", self.member_table(0), false),
            device("member1", self.member_table(1), false),
        ];
        Disturber::start(self.host.clone(), devices, Random(!seed))
    }

    /// Moves some regions to other members.
    fn remap(&mut self) {
        let (regions, mut words) =
            (self.sectors / REGION_SECTORS, String::from("set_region_mappings"));
        for _ in 0..8 {
            let (region, path) = (self.random.below(regions as u32), self.random.below(2));
            words.push_str(&format!(" {region:x}:{path}"));
        }
        self.host.message("volume", 0, words.as_bytes()).expect_ok();
    }

    /// The `status` of a member: its current group, and for both daemons whether the path is up and
    /// how often it has failed.
    fn status(&self, member: usize) -> (String, [(bool, u64); 2]) {
        let shown = self.host.run(&["status", &format!("member{member}")]);
        let text = String::from_utf8(shown.stdout).unwrap();
        let words: Vec<&str> = text.split_whitespace().collect();
        let state = |target| {
            let at = words.iter().position(|word| *word == self.address(target)).expect(&text);
            (words[at + 1] == "A", words[at + 2].parse().expect(&text))
        };
        // 0 SECTORS multipath 2 QUEUED INITS 0 GROUPS GROUP
        (words[8].to_owned(), [state(0), state(1)])
    }

    fn failures(&self) -> u64 {
        (0..2).flat_map(|member| self.status(member).1).map(|(_, failures)| failures).sum()
    }

    /// Waits until a daemon is found to be gone, by the member whose first way it is.
    fn is_failed(&self, target: usize) {
        eventually("the path is failed", || !self.status(target).1[target].0);
    }

    /// Both daemons are gone for a while, and come back.
    fn outage(&mut self) {
        self.gone(|world| {
            (0..2).for_each(|target| world.is_failed(target));
            world.remap();
            world.rest();
        });
        self.recover();
    }

    /// Waits until all paths are up again by themselves and each member uses its better group.
    fn recover(&self) {
        let is_well =
            |member| matches!(self.status(member), (group, [(true, _), (true, _)]) if group == "1");
        eventually("all paths are up", || (0..2).all(is_well));
    }

    fn gone(&mut self, act: impl FnOnce(&mut World)) {
        let began = Instant::now();
        (0..2).for_each(|target| self.targets[target].kill());
        act(self);
        (0..2).for_each(|target| self.targets[target].again());
        self.outage = self.outage.max(began.elapsed());
    }

    fn rest(&mut self) {
        thread::sleep(Duration::from_millis(50 + u64::from(self.random.below(200))));
    }
}

/// The result of a scenario.
struct Survived {
    failed: u64,
    /// The highest number of path failures that was counted at one time. A table that is loaded
    /// starts to count at zero.
    failures: u64,
}

/// Runs a load. Meanwhile `act` changes something again and again, regions move, and a disturber
/// disturbs. Then it verifies all data that was written.
#[track_caller]
fn survive(
    scenario: &Scenario,
    start: impl FnOnce(&World, u64) -> Box<dyn Verifies>,
    mut act: impl FnMut(&mut World, u32),
) -> Survived {
    let name = scenario.name;
    let run = Run::new("cargo test -p blkswitch --test daemon -- --ignored survival::iscsi", name);
    let seed = run.seed;
    let mut world = World::new(seed, scenario);
    let load = start(&world, seed);
    let disturber = world.disturb(seed);
    let end = Instant::now() + run.time;
    let (mut step, mut failures) = (0, 0);
    while Instant::now() < end || step < 2 {
        world.rest();
        act(&mut world, step);
        failures = failures.max(world.failures());
        world.remap();
        step += 1;
        assert!(!load.has_failed(), "{:#}", load.verify().unwrap_err());
        assert!(!disturber.has_failed(), "a device could not be suspended, reloaded or resumed");
    }
    let disturbed = disturber.end();
    world.recover();
    let (done, failed, wait) = load.verify().unwrap();
    let silences = Duration::from_secs(scenario.timeout + 1) * scenario.silences;
    let held = if scenario.queueing { world.outage + LONGEST_INTERVAL } else { Duration::ZERO };
    let longest = silences + held + BUSY;
    let _ = writeln!(
        std::io::stderr(),
        "iscsi::{name}: SEED={seed}, {step} rounds, {done} requests, {failed} failed, {disturbed} times suspended, \
         paths failed {failures} times, longest wait {wait:.1?} of at most {longest:.1?}"
    );
    assert!(wait < longest, "{wait:?}, at most {longest:?}");
    assert!(done > 0 && disturbed > 0);
    assert!(scenario.errors != Errors::No || failed == 0);
    Survived { failed, failures }
}

/// A load of any kind.
trait Verifies {
    fn has_failed(&self) -> bool;
    /// Ends the load and reads everything back. Returns the requests done, those that failed, and
    /// the longest wait.
    fn verify(self: Box<Self>) -> anyhow::Result<(u64, u64, Duration)>;
}

impl Verifies for Load {
    fn has_failed(&self) -> bool {
        Load::has_failed(self)
    }

    fn verify(self: Box<Self>) -> anyhow::Result<(u64, u64, Duration)> {
        Load::verify(*self).map(|report| (report.done, report.failed, report.longest))
    }
}

fn load(errors: Errors) -> impl FnOnce(&World, u64) -> Box<dyn Verifies> {
    |world, seed| {
        let options = LoadOptions { clients: 4, seed, errors, patience: PATIENCE };
        Box::new(Load::start(&world.host.path("nbd.sock"), "volume", options))
    }
}

/// A load that never overwrites its data with other data. It is for daemons that carry out requests
/// late, after those have failed. No client can exclude that this hits a block with newer data
/// (docs/leaves.md).
struct OnceLoad {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<anyhow::Result<(u64, Duration)>>>,
}

impl OnceLoad {
    fn start(world: &World, seed: u64) -> Box<dyn Verifies> {
        const CLIENTS: usize = 2;
        let stop = Arc::new(AtomicBool::new(false));
        let client = |number: usize| {
            let (host, stop, mut random) =
                (world.host.clone(), stop.clone(), Random(seed + number as u64));
            thread::spawn(move || {
                let mut client = host.nbd("volume");
                client.set_patience(PATIENCE)?;
                let own = client.size() as usize / BLOCK / CLIENTS;
                let (mut written, mut done, mut longest) = (0, 0, Duration::ZERO);
                let offset = |own: usize| ((own * CLIENTS + number) * BLOCK) as u64;
                let content = |own: usize| -> Vec<u8> {
                    offset(own + 1)
                        .wrapping_add(seed)
                        .to_le_bytes()
                        .into_iter()
                        .cycle()
                        .take(BLOCK)
                        .collect()
                };
                while !stop.load(SeqCst) {
                    let began = Instant::now();
                    if written == 0 || written < own && random.below(2) == 0 {
                        client.write(offset(written), &content(written), random.below(16) == 0)?;
                        written += 1;
                    } else {
                        let block = random.below(written as u32) as usize;
                        let read = client.read(offset(block), BLOCK)?;
                        anyhow::ensure!(read == content(block), "block {block} of client {number}");
                    }
                    longest = longest.max(began.elapsed());
                    done += 1;
                    // At full speed the volume would be full too soon.
                    thread::sleep(Duration::from_millis(1));
                }
                for block in 0..own {
                    let read = client.read(offset(block), BLOCK)?;
                    let wanted = if block < written { content(block) } else { vec![0; BLOCK] };
                    anyhow::ensure!(read == wanted, "block {block} of client {number} at the end");
                }
                Ok((done, longest))
            })
        };
        let clients = (0..CLIENTS).map(client).collect();
        Box::new(OnceLoad { stop, clients })
    }
}

impl Verifies for OnceLoad {
    fn has_failed(&self) -> bool {
        self.clients.iter().any(JoinHandle::is_finished)
    }

    fn verify(self: Box<Self>) -> anyhow::Result<(u64, u64, Duration)> {
        self.stop.store(true, SeqCst);
        let mut sum = (0, 0, Duration::ZERO);
        for client in self.clients {
            let (done, longest) = client.join().expect("a client panicked")?;
            sum = (sum.0 + done, 0, sum.2.max(longest));
        }
        Ok(sum)
    }
}

#[test]
#[ignore = "needs root and tgtd"]
fn paths_failed_and_reinstated_by_message() {
    let mut taken = 0;
    let survived = survive(
        &Scenario::new("paths_failed_and_reinstated_by_message"),
        load(Errors::No),
        |world, _| {
            let (member, target) = (world.random.below(2), world.random.below(2));
            let verb = if world.random.below(2) == 0 { "fail_path" } else { "reinstate_path" };
            let address = world.address(target as usize);
            let run = world.host.run(&["message", &format!("member{member}"), "0", verb, &address]);
            let said = String::from_utf8_lossy(&run.stderr);
            // A suspended multipath takes no messages.
            assert!(run.status.success() || said.contains("busy"), "{verb}: {said}");
            taken += u32::from(run.status.success());
        },
    );
    assert!(survived.failed == 0 && taken > 0);
}

/// Each daemon is killed in turn, as often as time allows. Requests use the other one, and nothing
/// fails, although nothing may be held.
#[test]
#[ignore = "needs root and tgtd"]
fn targets_killed_and_started_again() {
    let scenario =
        Scenario { queueing: false, ..Scenario::new("targets_killed_and_started_again") };
    survive(&scenario, load(Errors::No), |world, step| {
        let target = step as usize % 2;
        world.targets[target].kill();
        world.is_failed(target);
        world.rest();
        world.targets[target].again();
        // The other daemon may be killed only when this one is in use again.
        world.recover();
    });
}

/// The daemons are silent for less than the timeout: the answers are late, and no path fails.
#[test]
#[ignore = "needs root and tgtd"]
fn targets_that_answer_late() {
    let survived =
        survive(&Scenario::new("targets_that_answer_late"), load(Errors::No), |world, step| {
            let target = step as usize % 2;
            world.targets[target].pause();
            (0..4).for_each(|_| world.rest());
            world.targets[target].resume();
            world.rest();
        });
    assert_eq!(survived.failures, 0);
}

/// A daemon is silent for longer than the timeout and is then killed, like a machine that hangs.
/// Its pending requests are lost.
#[test]
#[ignore = "needs root and tgtd"]
fn targets_that_hang_and_are_killed() {
    let scenario =
        Scenario { timeout: 1, silences: 4, ..Scenario::new("targets_that_hang_and_are_killed") };
    survive(&scenario, load(Errors::No), |world, step| {
        let target = step as usize % 2;
        world.targets[target].pause();
        world.is_failed(target);
        world.targets[target].kill();
        world.targets[target].again();
        world.recover();
    });
}

/// A daemon is silent for longer than the timeout, and then goes on with its pending requests,
/// which others have done long ago.
#[test]
#[ignore = "needs root and tgtd"]
fn targets_that_hang_and_go_on() {
    let name = "targets_that_hang_and_go_on";
    let scenario = Scenario { timeout: 1, silences: 4, bytes: 64 << 20, ..Scenario::new(name) };
    survive(&scenario, OnceLoad::start, |world, step| {
        let target = step as usize % 2;
        world.targets[target].pause();
        world.is_failed(target);
        world.rest();
        world.targets[target].resume();
        world.recover();
    });
}

/// Both daemons are gone, and requests wait until they are back.
#[test]
#[ignore = "needs root and tgtd"]
fn all_gone_with_queueing() {
    survive(&Scenario::new("all_gone_with_queueing"), load(Errors::No), |world, _| world.outage());
}

/// Both daemons are gone, and requests fail meanwhile. No request that succeeded is lost.
#[test]
#[ignore = "needs root and tgtd"]
fn all_gone_without_queueing() {
    let errors = Errors::Anywhere;
    let name = "all_gone_without_queueing";
    let scenario = Scenario { queueing: false, errors: errors.clone(), ..Scenario::new(name) };
    let survived = survive(&scenario, load(errors), |world, _| world.outage());
    assert!(survived.failed > 0);
}
