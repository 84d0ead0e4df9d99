//! The demonstration of both tiers: a storage group, and a host that sends every request straight
//! to the right member.
//!
//! All of it runs in this process. Each member ([`member`]) is a server that owns some regions of
//! one volume and forwards requests for the rest to their owners. The layout ([`layout`]) moves
//! regions under load. Cables ([`cable`]) between the servers can be pulled out. The host is a
//! daemon with the two tiers: a switch device over one multipath device per member. Each multipath
//! has the straight way to its member as the preferred group, and the ways through the others as
//! the second. A load ([`crate::workload`]) writes and verifies on the host's device all the time.
//!
//! Contract: as in [`super`]: one folder, which is removed, and an error for anything unexpected.

mod cable;
mod figure;
mod layout;
mod member;
mod target;
mod watch;

use std::io::{IsTerminal, stdout};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use self::cable::{Cable, Cables, Place};
use self::layout::{Layout, Move};
use self::member::Member;
use self::target::{IQN, IscsiTarget, LUN, Programs};
use self::watch::{Sample, Watch};
use super::stage::{Folder, Running, quiet, say, verb};
use crate::config::{GroupOptions, Transport};
use crate::daemon::process::runtime::runtime;
use crate::daemon::process::stop::Signals;
use crate::nbd_client::NbdClient;
use crate::workload::{Errors, Load, LoadOptions};

/// Sectors of the volume: 64 MiB.
const SECTORS: u64 = 131_072;
/// Sectors of a region: 256 KiB.
const REGION_SECTORS: u64 = 512;
/// Regions of the volume.
const REGIONS: usize = (SECTORS / REGION_SECTORS) as usize;
/// The device that members and host serve.
const VOLUME: &str = "volume";
/// The device with a member's own regions.
const STORE: &str = "store";
/// One region in this number moves at a time.
const MOVED: u32 = 4;
/// The seed of all random numbers.
const SEED: u64 = 20_061_123;
/// Probes of unused ways are forwarded reads, too. Their share of all requests is below this.
const PROBED: f64 = 0.02;
/// Fewest samples to wait for something that must happen.
const LOOKS: usize = 5;
/// Least time to wait for it, because a busy machine is slow.
const PATIENCE: Duration = Duration::from_secs(30);
/// Clients of the host's device. None of their requests may fail.
const LOAD: LoadOptions =
    LoadOptions { clients: 8, seed: SEED, errors: Errors::No, patience: Duration::from_secs(60) };
/// Seconds without an answer after which the host fails a path.
const PATH_TIMEOUT: u64 = 1;
/// Seconds without an answer after which the host fails a path over iSCSI. If a member cannot reach
/// another one, its tgt can only answer with a medium error, which fails the request and not the
/// path. So the member waits for the other one ([`ISCSI_RECONNECT`]), and tgt is silent meanwhile.
/// With a shorter time, the host would send a write another way, and the first one would be carried
/// out later.
const ISCSI_TIMEOUT: u64 = 120;
/// Seconds that a member waits for a lost store with iSCSI: longer than any member is dead.
const ISCSI_RECONNECT: u64 = 3600;

/// Shows a group at work.
pub(super) fn run(options: &GroupOptions) -> anyhow::Result<()> {
    let members = options.members;
    let programs = match options.transport {
        Transport::Nbd => None,
        Transport::Iscsi => Some(Programs::find()?),
    };
    let interrupted = interruption()?;
    let folder = Folder::new()?;
    say(&format!(
        "A storage group of {members} members, and a host with the two tiers, all in this \
         process.\n\
         One volume of 64 MiB in {REGIONS} regions; each region lies on one member, without a \
         pattern."
    ))?;
    let mut layout = Layout::new(REGIONS, members, SEED);
    let group = Group::start(&folder.0, &layout, programs.as_ref())?;
    let host = folder.0.join("host").join("control.sock");
    let daemon = Running::start(&host, None)?;
    let shown = make_host(&host, &group, &layout).and_then(|()| {
        let load = Load::start(&host.with_file_name("nbd.sock"), VOLUME, LOAD);
        let mut watch = Watch::new(stdout().is_terminal(), interrupted);
        let shown = show(options, &host, &group, &mut layout, &load, &mut watch);
        // Plug all cables in, so that nothing waits for a member any more.
        group.front.iter().chain(&group.back).for_each(|cable| cable.plug(true));
        // The load's own error says more than its early end.
        let report = load.verify()?;
        shown?;
        Ok((watch, report))
    });
    let stopped = daemon.stop();
    group.stop()?;
    stopped?;
    let (watch, report) = shown?;
    if let Some(file) = &options.figure {
        let figure = figure::draw(members, &watch.samples, &watch.events);
        std::fs::write(file, figure)
            .with_context(|| format!("cannot write '{}'", file.display()))?;
        say(&format!("The figure: {}", file.display()))?;
    }
    say(&format!(
        "All blocks were read back: each holds what was written last. Of {} requests none failed; \
         the longest waited {:.1} s.",
        report.done,
        report.longest.as_secs_f64()
    ))?;
    Ok(())
}

/// A flag that becomes true at Ctrl-C, so that the group ends in good order. A second Ctrl-C ends
/// the process at once.
fn interruption() -> anyhow::Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let (flag, runtime) = (interrupted.clone(), runtime()?);
    let mut signals = runtime.block_on(async { Signals::new() })?;
    // The thread ends with the process.
    thread::spawn(move || {
        runtime.block_on(async {
            signals.first().await;
            flag.store(true, SeqCst);
            std::future::pending::<()>().await;
        });
    });
    Ok(interrupted)
}

/// The members, and the cables to them.
struct Group {
    /// The targets in front of the members, in their order, if the host uses iSCSI.
    targets: Vec<IscsiTarget>,
    members: Vec<Member>,
    /// Cables from the host to each member.
    front: Vec<Cable>,
    /// Cables from the other members to each member's store.
    back: Vec<Cable>,
    cables: [Cables; 2],
}

impl Group {
    fn start(folder: &Path, layout: &Layout, programs: Option<&Programs>) -> anyhow::Result<Group> {
        let numbers = 0..layout.members();
        let members = numbers.clone().map(|number| Member::start(folder, number));
        let members = members.collect::<Result<Vec<_>, _>>()?;
        let nbd = |number| Place::Unix(Member::nbd(folder, number));
        let socket = |end: &str, number| folder.join(format!("{end}{number}.sock"));
        let stores: Vec<PathBuf> = numbers.clone().map(|number| socket("back", number)).collect();
        let ways = stores.iter().cloned().map(Place::Unix).zip(numbers.clone().map(nbd));
        let (behind, back) = Cables::lay(ways.collect())?;
        let reconnect = if programs.is_some() { ISCSI_RECONNECT } else { 0 };
        for member in &members {
            member.make_volume(&stores, reconnect, &layout.words())?;
        }
        let target = |programs, member: &Member| {
            IscsiTarget::start(programs, member.folder(), &member.socket())
        };
        let targets = programs
            .into_iter()
            .flat_map(|programs| members.iter().map(move |member| target(programs, member)));
        let targets = targets.collect::<Result<Vec<_>, _>>()?;
        let way = |number| match targets.get(number as usize) {
            Some(target) => (Place::Tcp(0), target.place()),
            None => (Place::Unix(socket("front", number)), nbd(number)),
        };
        let (before, front) = Cables::lay(numbers.map(way).collect())?;
        Ok(Group { targets, members, front, back, cables: [before, behind] })
    }

    /// Moves regions to their new owners without telling the host. Requests wait at every member's
    /// gate meanwhile, so none sees a region in two places.
    fn move_regions(&self, moves: &[Move]) -> anyhow::Result<()> {
        for member in &self.members {
            member.verb(&["suspend", VOLUME])?;
        }
        let store = |member: &Member| NbdClient::unix(&member.socket(), STORE);
        let mut stores = self.members.iter().map(store).collect::<Result<Vec<_>, _>>()?;
        let bytes = (REGION_SECTORS * 512) as usize;
        for moved in moves {
            let at = (moved.region * bytes) as u64;
            let content = stores[moved.from as usize].read(at, bytes)?;
            stores[moved.to as usize].write(at, &content, false)?;
        }
        for member in &self.members {
            member.message(&layout::words(moves))?;
        }
        for member in &self.members {
            member.verb(&["resume", VOLUME])?;
        }
        Ok(())
    }

    fn stop(self) -> anyhow::Result<()> {
        drop(self.targets);
        for member in self.members {
            member.stop()?;
        }
        let [before, behind] = self.cables;
        before.end(self.front)?;
        behind.end(self.back)
    }
}

/// Builds the two tiers on the host.
fn make_host(host: &Path, group: &Group, layout: &Layout) -> anyhow::Result<()> {
    let way = |cable: &Cable| match cable.place() {
        Place::Unix(path) => {
            format!("nbd+unix:///{VOLUME}?socket={}&timeout={PATH_TIMEOUT}", path.display())
        }
        place @ Place::Tcp(_) => format!("iscsi://{place}/{IQN}/{LUN}?timeout={ISCSI_TIMEOUT}"),
    };
    let others = group.front.len() - 1;
    for number in 0..group.front.len() {
        // The first group is the straight way. The second has the ways through the others, for its
        // loss.
        let mut table = format!("0 {SECTORS} multipath 1 queue_if_no_path 0 2 1 round-robin 0 1 1");
        table.push_str(&format!(" {} 1 round-robin 0 {others} 1", way(&group.front[number])));
        for (_, other) in group.front.iter().enumerate().filter(|(other, _)| *other != number) {
            table.push_str(&format!(" {} 1", way(other)));
        }
        quiet(host, &["create", &format!("member{number}"), "--table", &table])?;
    }
    let mut table = format!("0 {SECTORS} switch {} {REGION_SECTORS} 0", group.front.len());
    for number in 0..group.front.len() {
        table.push_str(&format!(" /dev/blkswitch/member{number} 0"));
    }
    say("The host: a multipath device per member, and a switch device over them.")?;
    verb(host, &["table", "member1"])?;
    verb(host, &["create", VOLUME, "--table", &table])?;
    send(host, &layout.words())?;
    verb(host, &["map", "show", VOLUME])
}

/// Sends the host's switch a message with the places of regions.
fn send(host: &Path, words: &str) -> anyhow::Result<()> {
    let mut all = vec!["message", VOLUME, "0", "set_region_mappings"];
    all.extend(words.split(' '));
    quiet(host, &all)
}

/// Runs the acts of the demonstration.
fn show(
    options: &GroupOptions,
    host: &Path,
    group: &Group,
    layout: &mut Layout,
    load: &Load,
    watch: &mut Watch,
) -> anyhow::Result<()> {
    let act = Duration::from_secs_f64(options.act);
    let look = |watch: &mut Watch| watch.look_on(act, load, &group.members);
    // Watches until `is_so`. A path comes back within the time between two probes.
    let until = |watch: &mut Watch, is_so: fn(&Sample) -> bool, what: &str| {
        let (begun, mut looks) = (Instant::now(), 0);
        while looks < LOOKS || begun.elapsed() < PATIENCE {
            let sample = look(watch)?;
            if sample.per_second > 0.0 && is_so(&sample) {
                return Ok(());
            }
            looks += 1;
        }
        bail!("{what} is not what happened")
    };
    let straight = |sample: &Sample| sample.forwarded < PROBED;
    let forwarded = |sample: &Sample| sample.forwarded > PROBED;
    say("Eight clients write and verify on the host's device without a pause.")?;
    until(watch, straight, "that nothing is forwarded while the host's map is the layout")?;
    for _ in 0..2 {
        let moves = layout.shuffle(MOVED);
        watch.event(&format!("{} regions move; the host does not know", moves.len()))?;
        group.move_regions(&moves)?;
        until(watch, forwarded, "that requests are forwarded after regions have moved")?;
        watch.event("one message tells the host")?;
        send(host, &layout::words(&moves))?;
        until(watch, straight, "that nothing is forwarded after the message")?;
    }
    let (cut, dead) = (1, layout.members() as usize - 1);
    watch.event(&format!("member {cut}'s network is cut"))?;
    group.front[cut].plug(false);
    until(
        watch,
        forwarded,
        "that a member is reached through the others while its own network is cut",
    )?;
    watch.event("it is back")?;
    group.front[cut].plug(true);
    until(watch, straight, "that the straight way is taken again")?;
    watch.event(&format!("member {dead} dies: requests for its regions wait"))?;
    group.front[dead].plug(false);
    group.back[dead].plug(false);
    look(watch)?;
    watch.event("it is back")?;
    group.back[dead].plug(true);
    group.front[dead].plug(true);
    until(watch, straight, "that all is as before")
}
