//! Starts the processes of the benchmark: nbdkit with memory, and a daemon with devices over it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Size of every volume in bytes.
pub(crate) const BYTES: u64 = 64 << 20;
/// Longest time until a server answers.
const START: Duration = Duration::from_secs(60);

/// A process with an NBD socket. It ends when this is dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) socket: PathBuf,
}

impl Server {
    /// Starts nbdkit with a volume in memory, this delay and this number of threads.
    pub(crate) fn nbdkit(folder: &Path, name: &str, delay_ms: u32, threads: u32) -> Result<Server> {
        let socket = folder.join(format!("{name}.sock"));
        let mut command = Command::new("nbdkit");
        command.args(["--foreground", "--threads", &threads.to_string(), "--unix"]).arg(&socket);
        if delay_ms > 0 {
            command.arg("--filter=delay");
        }
        command.args(["memory", &BYTES.to_string()]);
        if delay_ms > 0 {
            command.arg(format!("delay-read={delay_ms}ms"));
        }
        Server::start(command, socket)
    }

    /// Starts a blkswitch daemon without devices.
    pub(crate) fn daemon(folder: &Path, name: &str, blkswitch: &Path) -> Result<Daemon> {
        let (socket, control) =
            (folder.join(format!("{name}.sock")), folder.join(format!("{name}.control")));
        let mut command = Command::new(blkswitch);
        command.args([
            "serve",
            "--queues",
            "1",
            "--log-level",
            "error",
            "--path-checker-interval",
            "1",
        ]);
        command.arg("--socket").arg(&control).arg(format!("--nbd=unix:{}", socket.display()));
        Ok(Daemon {
            server: Server::start(command, socket)?,
            blkswitch: blkswitch.to_owned(),
            control,
        })
    }

    fn start(mut command: Command, socket: PathBuf) -> Result<Server> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let started = command.spawn();
        let child =
            started.with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let server = Server { child, socket };
        let end = Instant::now() + START;
        while std::os::unix::net::UnixStream::connect(&server.socket).is_err() {
            ensure!(Instant::now() < end, "{} does not answer", command.get_program().display());
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    /// The process id of the server.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The server's address as a leaf.
    pub(crate) fn leaf(&self, options: &str) -> String {
        format!("nbd+unix:///?socket={}{options}", self.socket.display())
    }

    /// The server's address for a client.
    pub(crate) fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    /// Sends the server the signal with this name.
    pub(crate) fn signal(&self, name: &str) -> Result<()> {
        let status = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.child.id().to_string())
            .status()?;
        ensure!(status.success(), "kill -{name} has failed");
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has no data to save.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A blkswitch daemon with its control socket.
pub(crate) struct Daemon {
    pub(crate) server: Server,
    blkswitch: PathBuf,
    control: PathBuf,
}

impl Daemon {
    /// Makes a device that is as long as a volume.
    pub(crate) fn create(&self, name: &str, target: &str) -> Result<()> {
        let table = format!("0 {} {target}", BYTES / 512);
        let made = self.command(&["create", name, "--table", &table])?;
        ensure!(made, "blkswitch create {name} --table '{table}' has failed");
        Ok(())
    }

    /// Runs a verb on the daemon. Returns whether it succeeded.
    pub(crate) fn command(&self, words: &[&str]) -> Result<bool> {
        let status =
            Command::new(&self.blkswitch).args(words).arg("--socket").arg(&self.control).status();
        Ok(status.with_context(|| format!("cannot start {}", self.blkswitch.display()))?.success())
    }
}
