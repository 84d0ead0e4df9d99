//! Disks that a server before this one has made: who serves them now, and letting go of them.
//!
//! The driver's state of a disk decides, not whether the process that made it looks alive. A server
//! that was killed can stay in the process list for as long as its disk waits: its exit may unmount
//! a file system that is on that disk. The kernel takes the server's rings down only after that, so
//! the driver counts on the server for good, and nobody can take the disk over (Linux 6.12). That
//! must not happen (the daemon keeps such mounts out of its namespace), and where it has happened,
//! the disk is found all the same, as [`Server::Leaving`], and is not forgotten.
//!
//! Contract: every function may block, [`wait_until_left`] for as long as it says.

use std::time::{Duration, Instant};

use super::abi::{DevInfo, state};
use super::control::Control;
use super::{UblkError, block_node};

/// What the driver keeps for us with each of our disks, to know them again: "blkswtch".
pub(super) const MARK: u64 = u64::from_be_bytes(*b"blkswtch");
/// How long a server that was killed may take to let go of its disk: the kernel takes its ring
/// down, and first ends what the ring had under way.
const LEAVING: Duration = Duration::from_secs(30);
/// The same for a server that looks alive: one that was killed a moment ago looks so, too.
const ALIVE: Duration = Duration::from_secs(2);
/// How often to look whether it has left.
const LOOK: Duration = Duration::from_millis(10);
/// Where the driver lists its devices.
const CLASS: &str = "/sys/class/ublk-char";

/// Who serves a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// A process that runs.
    Alive,
    /// A process that ends, or cannot be told from one: the driver still counts on it.
    Leaving,
    /// Nobody: its requests wait for the next server.
    Gone,
    /// Nobody, and there is no disk: it was never started, or it was stopped. Only its number is
    /// left.
    NoDisk,
}

/// A disk that a blkswitch has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The driver's number of the disk.
    pub id: u32,
    /// The process that serves or served it; -1 if the kernel has forgotten (7.3 does so, 6.12 does
    /// not).
    pub pid: i32,
    /// Whether it still does.
    pub server: Server,
}

impl Found {
    /// The block device, `/dev/ublkbN`.
    pub fn path(&self) -> String {
        block_node(self.id)
    }

    fn of(info: &DevInfo) -> Option<Found> {
        (info.ublksrv_flags == MARK).then(|| Found {
            id: info.dev_id,
            pid: info.ublksrv_pid,
            server: server(info.state, process(info.ublksrv_pid)),
        })
    }
}

/// What the process list says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Process {
    Runs,
    /// It ends, was told to, or sleeps where no signal reaches it, as one that ends does.
    Ends,
    Gone,
}

fn server(driver: u16, process: Process) -> Server {
    match (driver, process) {
        (state::QUIESCED, _) => Server::Gone,
        // One that is being made is so, too.
        (state::DEAD, Process::Runs) => Server::Alive,
        (state::DEAD, _) => Server::NoDisk,
        (_, Process::Runs) => Server::Alive,
        (_, Process::Ends | Process::Gone) => Server::Leaving,
    }
}

fn process(pid: i32) -> Process {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => process_of(&stat),
        Err(_) => Process::Gone,
    }
}

/// By the text of `/proc/PID/stat`.
fn process_of(stat: &str) -> Process {
    /// `PF_EXITING` of the kernel's `include/linux/sched.h`.
    const EXITING: u32 = 0x4;
    // The fields follow the name, which is in parentheses and may hold any character.
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let mut fields = fields.split_ascii_whitespace();
    let (state, flags) = (fields.next(), fields.nth(5));
    let is_exiting = flags.and_then(|flags| flags.parse().ok()).unwrap_or(0u32) & EXITING != 0;
    match state {
        None | Some("X") => Process::Gone,
        Some("Z" | "D") => Process::Ends,
        Some(_) if is_exiting => Process::Ends,
        Some(_) => Process::Runs,
    }
}

/// The disks that blkswitches have made, by their numbers. None if there is no driver.
pub fn found() -> Result<Vec<Found>, UblkError> {
    let Ok(entries) = std::fs::read_dir(CLASS) else { return Ok(Vec::new()) };
    let mut ids: Vec<u32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("ublkc")?.parse().ok())
        .collect();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    ids.sort_unstable();
    let mut control = Control::open()?;
    let looked = ids.into_iter().map(|id| look_with(&mut control, id));
    looked.filter_map(Result::transpose).collect()
}

/// The disk of this number, if a blkswitch has made it.
fn look_with(control: &mut Control, id: u32) -> Result<Option<Found>, UblkError> {
    match control.info(id) {
        Ok(info) => Ok(Found::of(&info)),
        // It goes just now.
        Err(UblkError::Command { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Waits until the server of a disk has let go of it; nothing if there is no such disk. Errors: a
/// process still serves it after the time that one which was killed may take.
pub fn wait_until_left(id: u32) -> Result<Option<Found>, UblkError> {
    wait_with(&mut Control::open()?, id)
}

fn wait_with(control: &mut Control, id: u32) -> Result<Option<Found>, UblkError> {
    let start = Instant::now();
    loop {
        let Some(found) = look_with(control, id)? else { return Ok(None) };
        let (patience, why) = match found.server {
            Server::Gone | Server::NoDisk => return Ok(Some(found)),
            Server::Alive => (ALIVE, format!("process {} serves it", found.pid)),
            Server::Leaving => (LEAVING, not_let_go(found.pid)),
        };
        if start.elapsed() >= patience {
            return Err(UblkError::NotLeftover { id, why });
        }
        std::thread::sleep(LOOK);
    }
}

fn not_let_go(pid: i32) -> String {
    format!("process {pid}, its last server, ends, but the driver still counts on it")
}

/// Waits until the dead server has left, then tells the driver of the next.
pub(super) fn begin_recovery(control: &mut Control, id: u32) -> Result<DevInfo, UblkError> {
    let until = Instant::now() + LEAVING;
    loop {
        let refuse = |why: String| Err(UblkError::NotLeftover { id, why });
        let found = match wait_with(control, id)? {
            Some(found) if found.server == Server::Gone => found,
            Some(_) => return refuse("it was stopped: there is no disk any more".into()),
            None => return refuse("it is not a device of blkswitch".into()),
        };
        match control.start_recovery(id) {
            Ok(()) => return control.info(id),
            // The driver still has the file that the dead server had open.
            Err(UblkError::Command { source, .. })
                if source.raw_os_error() == Some(libc::EBUSY) && Instant::now() < until => {}
            Err(UblkError::Command { source, .. })
                if source.raw_os_error() == Some(libc::EBUSY) =>
            {
                return refuse(not_let_go(found.pid));
            }
            Err(error) => return Err(error),
        }
        std::thread::sleep(LOOK);
    }
}

/// Removes a disk that a dead server of ours has left behind: requests that wait for another server
/// fail. Waits until that server has let go of it. Errors: a process serves it.
pub fn remove_leftover(id: u32) -> Result<(), UblkError> {
    let why = match wait_until_left(id) {
        Ok(Some(_)) => {
            let mut control = Control::open()?;
            control.stop(id)?;
            return control.delete(id);
        }
        Ok(None) => "a blkswitch did not make it".into(),
        Err(UblkError::NotLeftover { why, .. }) => why,
        Err(error) => return Err(error),
    };
    let why = format!("{} was not left behind by a blkswitch that is dead: {why}", block_node(id));
    Err(UblkError::NotLeftover { id, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_told_by_their_line() {
        let own = std::process::id() as i32;
        assert_eq!((process(own), process(-1)), (Process::Runs, Process::Gone));
        // Flags are the ninth field; 4 says that it exits.
        let line = |state: &str, flags: &str| format!("7 (a) b) {state} 1 7 7 0 -1 {flags} 0 0\n");
        for (state, flags, is) in [
            ("S", "4194560", Process::Runs),
            ("R", "4194564", Process::Ends),
            ("D", "4194564", Process::Ends),
            ("D", "4194560", Process::Ends),
            ("Z", "4227084", Process::Ends),
            ("X", "4", Process::Gone),
        ] {
            assert_eq!(process_of(&line(state, flags)), is, "{state} {flags}");
        }
        assert_eq!(process_of(""), Process::Gone);
    }

    #[test]
    fn the_driver_decides_whether_a_disk_is_left() {
        const LIVE: u16 = 1;
        for process in [Process::Runs, Process::Ends, Process::Gone] {
            assert_eq!(server(state::QUIESCED, process), Server::Gone, "{process:?}");
        }
        assert_eq!(server(LIVE, Process::Runs), Server::Alive);
        assert_eq!(server(LIVE, Process::Ends), Server::Leaving);
        assert_eq!(server(LIVE, Process::Gone), Server::Leaving);
        assert_eq!(server(state::DEAD, Process::Runs), Server::Alive);
        assert_eq!(server(state::DEAD, Process::Gone), Server::NoDisk);
    }
}
