//! A daemon for each test: the program runs in a temporary folder, with files in place of RAM
//! disks.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use blkswitch::nbd_client::NbdClient;
use blkswitch::protocol::{self, RegionMap, device_path, route};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::{self, Reply};

/// Sectors of every RAM disk.
pub(crate) const RAM_SECTORS: u64 = 8192;
/// Bytes of a sector.
pub(crate) const SECTOR: usize = 512;
/// How long to wait for something that must happen. A loaded machine needs far less.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `is_so` returns `true`, and fails the test if that takes too long.
#[track_caller]
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "this never happened: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A daemon's process. A thread reads its log all the time, because a full pipe would block it.
pub(crate) struct Process {
    pub(crate) child: Child,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Process {
    fn new(mut child: Child) -> Process {
        let (log, mut stderr) = (Arc::new(Mutex::new(String::new())), child.stderr.take().unwrap());
        let into = log.clone();
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = stderr.read(&mut bytes) {
                into.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..read]));
            }
        });
        Process { child, log, reader: Some(reader) }
    }

    /// The log so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until the process ends. Returns its exit status and its whole log.
    pub(crate) fn wait(&mut self) -> (ExitStatus, String) {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.reader.take().into_iter().for_each(|reader| reader.join().unwrap());
                return (status, self.log());
            }
            assert!(Instant::now() < until, "the daemon does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process may have ended already, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running daemon and its folder.
pub(crate) struct Daemon {
    pub(crate) folder: TempDir,
    process: Process,
}

impl Daemon {
    /// Starts a daemon in a new folder with the disks `ram0` to `ram3`.
    pub(crate) fn start() -> Daemon {
        let folder = tempfile::tempdir().unwrap();
        for ram in 0..4 {
            make_disk(&folder.path().join(format!("ram{ram}")), RAM_SECTORS);
        }
        Daemon { process: spawn(folder.path(), &[]), folder }
    }

    /// Starts the daemon again after it was killed.
    pub(crate) fn start_again(&mut self) {
        self.process = spawn(self.folder.path(), &[]);
    }

    /// Starts the daemon again with further options, after it was killed or has ended.
    pub(crate) fn start_again_with(&mut self, options: &[&str]) {
        self.process = spawn(self.folder.path(), options);
    }

    /// Starts a daemon in an empty folder, with further options.
    pub(crate) fn start_with(options: &[&str]) -> Daemon {
        let folder = tempfile::tempdir().unwrap();
        Daemon { process: spawn(folder.path(), options), folder }
    }

    /// Starts a daemon in an empty folder, with a limit of the shell's `ulimit`.
    pub(crate) fn start_limited(limit: &str) -> Daemon {
        let folder = tempfile::tempdir().unwrap();
        let serve = serve(folder.path(), &[]);
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit {limit} && exec \"$@\""), "sh"]);
        command.arg(serve.get_program()).args(serve.get_args()).stdin(Stdio::null());
        Daemon { process: started(command), folder }
    }

    /// Ends the daemon, and starts another one in the same folder.
    pub(crate) fn restart(mut self) -> Daemon {
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        drop(self);
        Daemon { process: spawn(folder.path(), &[]), folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("control.sock")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// Sends a request to the control socket.
    pub(crate) fn request(&self, method: &str, path: &str, body: Value) -> Reply {
        http::request(&self.socket(), method, path, &body)
    }

    /// Sends a request to a route of one device.
    pub(crate) fn on(&self, method: &str, route: &str, name: &str, body: Value) -> Reply {
        self.request(method, &device_path(route, name), body)
    }

    pub(crate) fn create(&self, name: &str, table: &str) -> Reply {
        self.request("POST", route::DEVICES, json!({"name": name, "table": table}))
    }

    pub(crate) fn describe(&self, name: &str) -> protocol::Device {
        self.on("GET", route::DEVICE, name, Value::Null).json()
    }

    /// Removes a device. A client that has just left may still count as its user for a moment.
    pub(crate) fn remove(&self, name: &str) {
        let until = Instant::now() + PATIENCE;
        loop {
            let reply = self.on("DELETE", route::DEVICE, name, Value::Null);
            if reply.is_ok() {
                return;
            }
            assert!(
                reply.error().errno == protocol::Errno::Ebusy && Instant::now() < until,
                "{reply}"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn message(&self, name: &str, sector: u64, words: &[u8]) -> Reply {
        let path = format!("{}?sector={sector}", device_path(route::MESSAGE, name));
        http::send(&self.socket(), "POST", &path, words)
    }

    /// The path of each region, as the daemon reports it.
    pub(crate) fn map(&self, name: &str, sector: u64) -> Vec<u32> {
        let path = format!("{}?sector={sector}", device_path(route::MAP, name));
        let map: RegionMap = self.request("GET", &path, Value::Null).json();
        let mut paths = Vec::new();
        for run in &map.runs {
            assert_eq!(run.start, paths.len() as u64, "runs are in order and without gaps");
            paths.extend((0..run.count).map(|_| run.path));
        }
        assert_eq!(paths.len() as u64, map.regions);
        paths
    }

    pub(crate) fn nbd(&self, name: &str) -> NbdClient {
        NbdClient::unix(&self.path("nbd.sock"), name).unwrap()
    }

    /// The program as a client of this daemon.
    pub(crate) fn client(&self) -> Command {
        let mut command = Command::new(program());
        command.env("BLKSWITCH_SOCKET", self.socket()).env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    /// Runs a verb as a client of this daemon, to its end.
    pub(crate) fn run(&self, words: &[&str]) -> Output {
        self.client().args(words).output().unwrap()
    }

    /// Kills the daemon, which gets no chance to write anything.
    pub(crate) fn kill(&mut self) {
        self.process.child.kill().unwrap();
        self.process.child.wait().unwrap();
    }

    /// Asks the daemon to end.
    pub(crate) fn terminate(&self) {
        signal(self.pid(), "TERM");
    }

    /// The daemon's log so far.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    /// Waits until the daemon ends. Returns its exit status and its log.
    pub(crate) fn wait(&mut self) -> (Option<i32>, String) {
        let (status, log) = self.process.wait();
        (status.code(), log)
    }
}

/// The program under test.
pub(crate) fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_blkswitch"))
}

/// Sends a signal. A shell does it, so that the test needs no unsafe code.
pub(crate) fn signal(pid: u32, name: &str) {
    let status = Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status().unwrap();
    assert!(status.success());
}

/// Starts a daemon in a folder, and waits until it is ready.
pub(crate) fn spawn(folder: &Path, more: &[&str]) -> Process {
    started(serve(folder, more))
}

/// Starts a daemon with `command`, and waits until it is ready.
pub(crate) fn started(mut command: Command) -> Process {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut process = Process::new(child);
    for what in ["control socket", "nbd"] {
        match lines.next() {
            Some(Ok(line)) if line.starts_with("ready: ") && line.contains(what) => {}
            other => {
                let _ = process.child.kill();
                panic!("the daemon says {other:?}\n{}", process.wait().1);
            }
        }
    }
    process
}

/// The command that starts a daemon in a folder.
pub(crate) fn serve(folder: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(program());
    command
        .arg("serve")
        .arg("--socket")
        .arg(folder.join("control.sock"))
        .args(["--queues", "2"])
        .args(more);
    command.stdin(Stdio::null());
    command
}

/// Makes a disk whose sectors contain the disk's name and their own number.
pub(crate) fn make_disk(path: &Path, sectors: u64) {
    let name = path.file_name().unwrap().to_str().unwrap();
    let mut image = Vec::with_capacity(sectors as usize * SECTOR);
    for sector in 0..sectors {
        image.extend_from_slice(&sector_of(name, sector));
    }
    std::fs::write(path, image).unwrap();
}

/// The content of a sector of such a disk.
pub(crate) fn sector_of(disk: &str, sector: u64) -> [u8; SECTOR] {
    let text = format!("{disk:<7.7}{sector:>9}");
    // A word of 16 bytes, repeated 32 times.
    let mut sector = [0; SECTOR];
    sector.chunks_exact_mut(16).for_each(|word| word.copy_from_slice(text.as_bytes()));
    sector
}
