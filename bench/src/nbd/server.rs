//! The compared servers, each a process of its own with an NBD socket over files in memory.
//!
//! Contract: a [`Server`] answers on its URI once it is made, and its process ends when it is
//! dropped. All of them serve [`DEVICE_BYTES`] bytes of the same content. All but blkswitch have
//! the options that their manuals advise for speed.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::report::Random;

/// Size of a device in bytes: larger than a processor's caches, small enough for several in memory.
pub(super) const DEVICE_BYTES: u64 = 256 << 20;
/// Region size of the switch device, from the kernel document's example.
const REGION_SECTORS: u64 = 128;
/// The kernel reports times to user space in hundredths of a second, whatever its own tick is.
const NS_PER_TICK: u64 = 10_000_000;
/// Longest time until a server answers.
const START: Duration = Duration::from_secs(60);

/// A kind of server to measure.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A switch device with one image for all three paths, and a queue per core. With one image, it
    /// touches the same memory as the others. With an image for each path, look-ups in the page
    /// cache would use three trees.
    Switch,
    /// As [`Kind::Switch`] with one queue, plus a `linear` device over the same image, which
    /// differs only in the switch.
    OneQueue,
    /// A switch device with a file for each of the three paths, and one queue.
    ThreeFiles,
    /// nbdkit with its file plugin.
    Nbdkit,
    /// qemu-nbd with io_uring.
    QemuNbd,
    /// qemu-storage-daemon with io_uring.
    QemuStorageDaemon,
}

impl Kind {
    pub(super) const ALL: [Kind; 6] = [
        Kind::Switch,
        Kind::OneQueue,
        Kind::ThreeFiles,
        Kind::Nbdkit,
        Kind::QemuNbd,
        Kind::QemuStorageDaemon,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Switch => "blkswitch",
            Kind::OneQueue => "blkswitch, 1 queue",
            Kind::ThreeFiles => "blkswitch, 1 queue, three files",
            Kind::Nbdkit => "nbdkit",
            Kind::QemuNbd => "qemu-nbd",
            Kind::QemuStorageDaemon => "qemu-storage-daemon",
        }
    }

    /// The name of the device that is compared with those of other servers.
    pub(super) fn device(self) -> &'static str {
        if self == Kind::OneQueue { "switch" } else { "" }
    }

    pub(super) fn is_peer(self) -> bool {
        matches!(self, Kind::Nbdkit | Kind::QemuNbd | Kind::QemuStorageDaemon)
    }

    /// The version that the server's program prints.
    pub(super) fn version(self) -> Result<String> {
        let program = match self {
            Kind::Nbdkit => "nbdkit",
            Kind::QemuNbd => "qemu-nbd",
            Kind::QemuStorageDaemon => "qemu-storage-daemon",
            Kind::Switch | Kind::OneQueue | Kind::ThreeFiles => {
                return Ok(format!("blkswitch {}", env!("CARGO_PKG_VERSION")));
            }
        };
        let output =
            Command::new(program).arg("--version").output().with_context(|| program.to_owned())?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or(program).to_owned())
    }
}

pub(super) struct Server {
    pub(super) kind: Kind,
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Starts a server over its own files in `folder`.
    pub(super) fn start(kind: Kind, folder: &Path, blkswitch: &Path) -> Result<Server> {
        let at =
            |what: &str| folder.join(format!("{}.{what}", kind.name().replace([' ', ','], "")));
        let (socket, image) = (at("sock"), at("image"));
        let (nbd, file) = (socket.display(), image.display());
        let files: Vec<PathBuf> = match kind {
            Kind::ThreeFiles => ["a", "b", "c"].map(at).into(),
            _ => vec![image.clone()],
        };
        files.iter().try_for_each(|file| fill(file))?;
        let mut command = match kind {
            Kind::Switch | Kind::OneQueue | Kind::ThreeFiles => {
                let mut command = Command::new(blkswitch);
                command.args(["serve", "--log-level", "warn", "--socket"]).arg(at("control"));
                command.arg("--nbd").arg(format!("unix:{nbd}"));
                if kind != Kind::Switch {
                    command.args(["--queues", "1"]);
                }
                command
            }
            Kind::Nbdkit => words(&format!("nbdkit --foreground --unix {nbd} file {file}")),
            Kind::QemuNbd => words(&format!(
                "qemu-nbd --format raw --aio io_uring --persistent --shared 8 --socket {nbd} {file}"
            )),
            Kind::QemuStorageDaemon => words(&format!(
                "qemu-storage-daemon --blockdev \
                 driver=file,node-name=disk,filename={file},aio=io_uring --nbd-server \
                 addr.type=unix,addr.path={nbd},max-connections=8 --export \
                 type=nbd,id=disk,node-name=disk,name=,writable=on"
            )),
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let mut server = Server { kind, child, socket: socket.clone() };
        server.wait_for(&socket)?;
        if !kind.is_peer() {
            let paths = files.iter().chain(&files).chain(&files).take(3);
            let paths: String = paths.map(|path| format!(" {} 0", path.display())).collect();
            let sectors = DEVICE_BYTES / 512;
            let switch = format!("0 {sectors} switch 3 {REGION_SECTORS} 0{paths}");
            create(blkswitch, &at("control"), "switch", &switch)?;
            if kind == Kind::OneQueue {
                create(
                    blkswitch,
                    &at("control"),
                    "linear",
                    &format!("0 {sectors} linear {file} 0"),
                )?;
            }
        }
        Ok(server)
    }

    fn wait_for(&mut self, socket: &Path) -> Result<()> {
        let end = Instant::now() + START;
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended at once: {status}", self.kind.name());
            }
            ensure!(Instant::now() < end, "{} does not answer", self.kind.name());
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// The URI of its `device`. The empty name stands for its only device.
    pub(super) fn uri(&self, device: &str) -> String {
        format!("nbd+unix:///{device}?socket={}", self.socket.display())
    }

    /// The path of its socket.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// User and system time of the server so far, in nanoseconds and in steps of a clock tick. It
    /// includes threads that have ended, as nbdkit's do with their connection.
    pub(super) fn cpu_ns(&self) -> Result<u64> {
        let path = format!("/proc/{}/stat", self.child.id());
        let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        // The name before the last parenthesis may contain anything; utime and stime are fields 14
        // and 15.
        let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: Vec<u64> =
            fields.skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
        ensure!(ticks.len() == 2, "{path} has no utime and stime");
        Ok(ticks.iter().sum::<u64>() * NS_PER_TICK)
    }

    /// As [`Server::cpu_ns`], but exact, and only for threads that still run. For blkswitch, whose
    /// threads stay.
    pub(super) fn threads_cpu_ns(&self) -> Result<u64> {
        process_cpu_ns(self.child.id())
    }
}

/// Processor time of the threads that a process has now, in nanoseconds.
pub(crate) fn process_cpu_ns(process: u32) -> Result<u64> {
    let tasks = format!("/proc/{process}/task");
    let tasks = std::fs::read_dir(&tasks).with_context(|| tasks.clone())?;
    tasks.map(|task| thread_cpu_ns(&task?.path())).sum()
}

/// Processor time of the thread that `/proc` describes in `folder`, in nanoseconds. Exact while it
/// sleeps.
pub(super) fn thread_cpu_ns(folder: &Path) -> Result<u64> {
    let text = std::fs::read_to_string(folder.join("schedstat")).context("schedstat")?;
    let ns = text.split_whitespace().next().and_then(|ns| ns.parse::<u64>().ok());
    ns.context("schedstat does not begin with a number")
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has no data to save, and the folder is removed with its files.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn create(blkswitch: &Path, control: &Path, name: &str, table: &str) -> Result<()> {
    let words = ["create", name, "--table", table, "--socket"];
    let status = Command::new(blkswitch).args(words).arg(control).status()?;
    ensure!(status.success(), "blkswitch create {name} has failed");
    Ok(())
}

/// Makes a command of words without spaces in them.
fn words(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
}

/// Writes the common content of all files.
fn fill(path: &Path) -> Result<()> {
    let mut file = File::create(path).with_context(|| path.display().to_string())?;
    let mut random = Random(1);
    let mut block = vec![0; 1 << 20];
    for _ in 0..DEVICE_BYTES / block.len() as u64 {
        block
            .chunks_exact_mut(8)
            .for_each(|word| word.copy_from_slice(&random.next().to_ne_bytes()));
        file.write_all(&block)?;
    }
    Ok(())
}
