//! An iSCSI target in front of a member, for a host that uses iSCSI.
//!
//! nbdfuse offers the member's volume as a file, and tgt serves that file without the page cache.
//! So every member's target is a way to the whole volume, as in an array whose members forward
//! requests.
//!
//! Contract: it needs root. tgt and nbdfuse are separate programs. They end when a [`Target`] is
//! dropped; if this process is killed before that, the kernel ends them. nbdfuse has a mount
//! namespace of its own, so its mount ends with it.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::cable::Place;
use super::{SECTORS, VOLUME};

/// The name of the volume, the same through every member.
pub(super) const IQN: &str = "iqn.2026-11.org.blkswitch:volume";
/// The volume's unit number; tgt itself uses 0.
pub(super) const LUN: u32 = 1;
/// Longest time until a program is ready.
const PATIENCE: Duration = Duration::from_secs(30);
/// Number of ports to try, because another program may take a port after it was found free.
const PORTS_TRIED: usize = 5;

/// The paths of the external programs.
pub(super) struct Programs {
    tgtd: PathBuf,
    tgtadm: PathBuf,
    nbdfuse: PathBuf,
}

impl Programs {
    /// Finds the programs. `Err` names all that are missing.
    pub(super) fn find() -> anyhow::Result<Programs> {
        let mut missing = Vec::new();
        let mut find = |name: &str, package: &str| {
            let found = find(name);
            if found.is_none() {
                missing.push(format!("{name} (Debian package {package})"));
            }
            found.unwrap_or_default()
        };
        let (tgtd, tgtadm) = (find("tgtd", "tgt"), find("tgtadm", "tgt"));
        let nbdfuse = find("nbdfuse", "libnbd-bin");
        // The owner of /proc/self is the user of this process.
        if fs::metadata("/proc/self").map_or(u32::MAX, |own| own.uid()) != 0 {
            missing.push("root".to_owned());
        } else if let Err(error) = File::open("/dev/fuse") {
            missing.push(format!("/dev/fuse ({error})"));
        }
        ensure!(
            missing.is_empty(),
            "a group over iSCSI needs what is not here: {}",
            missing.join(", ")
        );
        Ok(Programs { tgtd, tgtadm, nbdfuse })
    }
}

/// Finds a program in `PATH` and in the folders for administrators.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|program| program.is_file())
}

/// A target in front of a member. Fields are dropped in order: nbdfuse first, so that tgt cannot
/// hang in its file.
pub(super) struct IscsiTarget {
    _nbdfuse: Program,
    tgtd: Program,
    port: u16,
}

impl IscsiTarget {
    /// Starts a target in front of the member with the NBD socket `nbd`, with its files in
    /// `folder`.
    pub(super) fn start(
        programs: &Programs,
        folder: &Path,
        nbd: &Path,
    ) -> anyhow::Result<IscsiTarget> {
        let mount = folder.join("mount");
        fs::create_dir(&mount).with_context(|| format!("cannot make '{}'", mount.display()))?;
        let file = mount.join(VOLUME);
        let mut nbdfuse = Command::new("unshare");
        nbdfuse.args(["--mount", "--"]).args([&programs.nbdfuse, &file]);
        nbdfuse.arg(format!("nbd+unix:///{VOLUME}?socket={}", nbd.display()));
        let mut nbdfuse = Program::start("nbdfuse", &mut nbdfuse, &folder.join("nbdfuse.log"))?;
        // The path in nbdfuse's mount namespace.
        let file = PathBuf::from(format!("/proc/{}/root{}", nbdfuse.child.id(), file.display()));
        nbdfuse.until(|| fs::metadata(&file).is_ok_and(|file| file.len() == SECTORS * 512))?;
        let (tgtd, port) = serve(programs, folder)?;
        let target = IscsiTarget { _nbdfuse: nbdfuse, tgtd, port };
        target.make_volume(programs, folder, &file)?;
        Ok(target)
    }

    /// The address of the target.
    pub(super) fn place(&self) -> Place {
        Place::Tcp(self.port)
    }

    fn make_volume(&self, programs: &Programs, folder: &Path, file: &Path) -> anyhow::Result<()> {
        let (lun, file) = (LUN.to_string(), file.display().to_string());
        // Bypass the page cache, which does not see writes that come by other members.
        let unit =
            ["--mode", "logicalunit", "--op", "new", "--tid", "1", "--lun", &lun, "-b", &file];
        for words in [
            &["--mode", "target", "--op", "new", "--tid", "1", "-T", IQN][..],
            &[&unit[..], &["--bsoflags", "direct"]].concat(),
            &["--mode", "target", "--op", "bind", "--tid", "1", "-I", "ALL"],
        ] {
            let run = tgtadm(programs, folder).args(words).output().context("cannot run tgtadm")?;
            if !run.status.success() {
                let (said, log) = (String::from_utf8_lossy(&run.stderr), self.tgtd.log());
                bail!("tgtadm {} failed: {} {log}", words.join(" "), said.trim());
            }
        }
        Ok(())
    }
}

/// Starts a tgtd on a port of its own.
fn serve(programs: &Programs, folder: &Path) -> anyhow::Result<(Program, u16)> {
    for attempt in 1.. {
        // The port is free now. Another program may rarely take it before tgtd does.
        let port =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|free| free.local_addr())?.port();
        let mut tgtd = Command::new(&programs.tgtd);
        tgtd.args(["--foreground", "--control-port", "0", "--iscsi"]);
        tgtd.arg(format!("portal={}:{port}", Ipv4Addr::LOCALHOST))
            .env("TGT_IPC_SOCKET", control(folder));
        let mut tgtd = Program::start("tgtd", &mut tgtd, &folder.join("tgtd.log"))?;
        let is_ready = || {
            let mut shown = tgtadm(programs, folder);
            shown
                .args(["--mode", "sys", "--op", "show"])
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            shown.status().is_ok_and(|status| status.success())
        };
        match tgtd.until(is_ready) {
            Ok(()) => return Ok((tgtd, port)),
            Err(error) if attempt == PORTS_TRIED => return Err(error),
            Err(_) => {}
        }
    }
    bail!("tgtd does not start")
}

/// The path of tgtd's control socket without the control number, which tgtd appends.
fn control(folder: &Path) -> PathBuf {
    folder.join("tgt")
}

fn tgtadm(programs: &Programs, folder: &Path) -> Command {
    let mut command = Command::new(&programs.tgtadm);
    command.args(["--control-port", "0", "--lld", "iscsi"]).env("TGT_IPC_SOCKET", control(folder));
    command.stdin(Stdio::null());
    command
}

/// A program that runs until it is dropped.
struct Program {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts the program. The kernel kills it if this process dies. Ctrl-C in a terminal does not
    /// reach it.
    fn start(name: &'static str, command: &mut Command, log: &Path) -> anyhow::Result<Program> {
        let out = File::create(log).with_context(|| format!("cannot make '{}'", log.display()))?;
        let mut guarded = Command::new("setpriv");
        guarded
            .args(["--pdeathsig", "KILL", "--"])
            .arg(command.get_program())
            .args(command.get_args());
        guarded.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        guarded.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).process_group(0);
        let child = guarded.spawn().with_context(|| format!("cannot run {name} by setpriv"))?;
        Ok(Program { name, child, log: log.to_owned() })
    }

    /// Waits until the program is ready.
    fn until(&mut self, is_ready: impl Fn() -> bool) -> anyhow::Result<()> {
        let until = Instant::now() + PATIENCE;
        while !is_ready() {
            let ended = self.child.try_wait()?;
            if let Some(status) = ended {
                bail!("{} ended: {status}: {}", self.name, self.log());
            }
            ensure!(Instant::now() < until, "{} does not get ready: {}", self.name, self.log());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// The output of the program.
    fn log(&self) -> String {
        fs::read(&self.log)
            .map(|log| String::from_utf8_lossy(&log).trim().to_owned())
            .unwrap_or_default()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // The program may have ended already; then both calls fail, which does not matter.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
