//! The parts that the demonstrations share: a folder, a daemon in this process, verbs of this
//! program.
//!
//! Contract: the folder and the daemon end with their values.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io::{self, IsTerminal, Write as _, stdout};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use blkswitch_io::STOP_TIME;
use tokio::sync::oneshot;

use crate::config::{LogFormat, NbdAddress, PathOptions, ServeOptions};
use crate::daemon::Daemon;
use crate::daemon::devices::Devices;
use crate::daemon::process::runtime::runtime;

/// Time between two probes of a path, short for people who watch.
const PROBES: Duration = Duration::from_millis(250);

/// Runs a verb of this program and shows its output.
pub(crate) fn verb(socket: &Path, words: &[&str]) -> anyhow::Result<()> {
    let shown: Vec<String> = words
        .iter()
        .map(|word| if word.contains(' ') { format!("'{word}'") } else { (*word).to_owned() })
        .collect();
    writeln!(stdout(), "$ blkswitch {}", shown.join(" "))?;
    // The verb's output must come after the text printed here.
    stdout().flush()?;
    let status = Command::new(program()?)
        .args(words)
        .env("BLKSWITCH_SOCKET", socket)
        .status()
        .context("cannot run this program once more")?;
    if !status.success() {
        bail!("`blkswitch {}` failed: {status}", shown.join(" "));
    }
    Ok(())
}

/// Runs a verb of this program and shows its output only if it fails.
pub(crate) fn quiet(socket: &Path, words: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new(program()?);
    let run = command.args(words).env("BLKSWITCH_SOCKET", socket).stdin(Stdio::null()).output();
    let run = run.context("cannot run this program once more")?;
    if !run.status.success() {
        let first: Vec<&str> = words.iter().take(4).copied().collect();
        bail!(
            "`blkswitch {}` failed: {}",
            first.join(" "),
            String::from_utf8_lossy(&run.stderr).trim()
        );
    }
    Ok(())
}

pub(crate) fn program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot find this program's own file")
}

/// Prints a line of explanation, bold on a terminal.
pub(crate) fn say(text: &str) -> io::Result<()> {
    if stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value == OsStr::new(""))
    {
        writeln!(stdout(), "\n\x1b[1m{text}\x1b[0m")
    } else {
        writeln!(stdout(), "\n{text}")
    }
}

/// A new folder that is removed when this is dropped.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> anyhow::Result<Folder> {
        let path = std::env::temp_dir().join(format!("blkswitch-demo-{}", std::process::id()));
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("cannot make the folder '{}'", path.display()))?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove '{}': {error}", self.0.display());
        }
    }
}

/// A daemon on a thread of this process.
pub(crate) struct Running {
    pub(crate) uri: String,
    devices: Arc<Devices>,
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<anyhow::Result<()>>,
}

impl Running {
    /// Starts a daemon with `queues` queues. Its control socket is `socket`, and `nbd.sock` is
    /// beside it.
    pub(crate) fn start(socket: &Path, queues: Option<usize>) -> anyhow::Result<Running> {
        let options = ServeOptions {
            socket: socket.to_owned(),
            nbd: vec![NbdAddress::Unix(socket.with_file_name("nbd.sock"))],
            queues,
            ublk: false,
            state: None,
            abandon_disks: false,
            leave_disks: false,
            stop_timeout: STOP_TIME,
            paths: PathOptions { path_checker_interval: PROBES, ..PathOptions::default() },
            log_format: LogFormat::Human,
            log_level: String::new(),
        };
        let runtime = runtime()?;
        let daemon = runtime.block_on(async { Daemon::start(&options) })?;
        let uri = daemon.nbd().first().context("the daemon offers nothing")?.clone();
        let devices = daemon.devices().clone();
        let (stop, stopped) = oneshot::channel();
        let until = async move {
            // A dropped sender ends the daemon as well.
            let _ = stopped.await;
        };
        let thread = thread::spawn(move || runtime.block_on(daemon.run(until)));
        Ok(Running { uri, devices, stop, thread })
    }

    pub(crate) fn devices(&self) -> &Devices {
        &self.devices
    }

    pub(crate) fn stop(self) -> anyhow::Result<()> {
        drop((self.stop, self.devices));
        self.thread.join().unwrap_or_else(|_| bail!("the daemon's thread panicked"))
    }
}
