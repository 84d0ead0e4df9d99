//! Disks of an earlier server: finds out which process serves them, and removes them.
//!
//! The driver's state of a disk decides, not whether its process looks alive. A killed server can
//! stay in the process list as long as its disk waits, because its exit may unmount a file system
//! on that disk. The kernel tears the server's rings down only afterwards. So the driver keeps the
//! server for good, and no other server can take the disk over (Linux 6.12). The daemon prevents
//! that by keeping such mounts out of its namespace. If it has happened, the disk is still found,
//! as [`Server::Leaving`], and is not forgotten.
//!
//! Contract: every function may block. [`wait_until_left`] documents how long.

use std::time::{Duration, Instant};

use super::abi::{DevInfo, state};
use super::control::Control;
use super::{UblkError, block_node};

/// The mark "blkswtch", which the driver stores with each blkswitch disk to identify it.
pub(super) const MARK: u64 = u64::from_be_bytes(*b"blkswtch");
/// How long a killed server may take to release its disk. The kernel tears its ring down, but first
/// ends the operations that were under way on it.
const LEAVING: Duration = Duration::from_secs(30);
/// As [`LEAVING`], for a server that looks alive. One that was just killed still looks alive.
const ALIVE: Duration = Duration::from_secs(2);
/// Pause between two checks whether the server has left.
const LOOK: Duration = Duration::from_millis(10);
/// The folder in which the driver lists its devices.
const CLASS: &str = "/sys/class/ublk-char";

/// The state of a disk's server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// A running process serves the disk.
    Alive,
    /// The process is ending, or may be; the driver still considers it the server.
    Leaving,
    /// There is no server. Requests wait for the next one.
    Gone,
    /// There is neither a server nor a disk: it was never started, or was stopped. Only the number
    /// is left.
    NoDisk,
}

/// A disk that a blkswitch server has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The driver's number of the disk.
    pub id: u32,
    /// The process that serves or served it. -1 if the kernel has forgotten it (7.3 does, 6.12 does
    /// not).
    pub pid: i32,
    /// The state of its server.
    pub server: Server,
}

impl Found {
    /// The path of the block device, `/dev/ublkbN`.
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

/// The state of a process in the process list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Process {
    Runs,
    /// It is ending, was told to end, or sleeps uninterruptibly, as an ending process does.
    Ends,
    Gone,
}

fn server(driver: u16, process: Process) -> Server {
    match (driver, process) {
        (state::QUIESCED, _) => Server::Gone,
        // A disk that is being made looks the same.
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

/// The state of a process, from the text of `/proc/PID/stat`.
fn process_of(stat: &str) -> Process {
    /// `PF_EXITING` of the kernel's `include/linux/sched.h`.
    const EXITING: u32 = 0x4;
    // The fields follow the name, which is in parentheses and may contain any character.
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

/// The disks that blkswitch servers have made, in the order of their numbers. Empty without a
/// driver.
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

/// The disk with this number; `None` if a blkswitch server has not made it.
fn look_with(control: &mut Control, id: u32) -> Result<Option<Found>, UblkError> {
    match control.info(id) {
        Ok(info) => Ok(Found::of(&info)),
        // The disk is just disappearing.
        Err(UblkError::Command { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Waits until the server of a disk has released it. `None` if there is no such disk. `Err` if a
/// process still serves it after the time that a killed one may take: 2 s for one that looks alive,
/// 30 s for one that is ending.
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

/// Waits until the dead server has released the disk, then begins the recovery.
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
            // The driver still has the dead server's open file.
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

/// Removes a disk that a dead blkswitch server has left. Requests that wait for another server
/// fail. Waits until the dead server has released the disk. `Err` if a process still serves it.
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
        // The flags are the ninth field; the bit 4 means that the process is exiting.
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
