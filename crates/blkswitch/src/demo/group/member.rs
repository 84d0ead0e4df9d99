//! A member of the group: a server that owns some regions of the volume and forwards requests for
//! the rest to their owners.
//!
//! A member is a daemon with two devices. `store` is the memory of its own regions. `volume` is a
//! switch device: one path is that memory, the others are the stores of the other members over NBD.
//! So its switch forwards requests by sending them down the other paths.

use std::path::{Path, PathBuf};

use anyhow::Context;
use blkswitch_io::Device;
use std::sync::Arc;

use super::{REGION_SECTORS, SECTORS, STORE, VOLUME};
use crate::demo::stage::{Running, quiet};

/// Seconds without an answer after which a member loses the connection to another's store.
const STORE_TIMEOUT: u64 = 1;

/// A daemon with a store and a volume.
pub(super) struct Member {
    number: u32,
    socket: PathBuf,
    daemon: Running,
}

impl Member {
    /// The NBD socket of member `number` in the folder of the group.
    pub(super) fn nbd(folder: &Path, number: u32) -> PathBuf {
        folder.join(format!("member{number}")).join("nbd.sock")
    }

    /// Starts a member with a store but without a volume.
    pub(super) fn start(folder: &Path, number: u32) -> anyhow::Result<Member> {
        let socket = folder.join(format!("member{number}")).join("control.sock");
        let daemon = Running::start(&socket, Some(1))?;
        let member = Member { number, socket, daemon };
        member.verb(&[
            "create",
            STORE,
            "--table",
            &format!("0 {SECTORS} linear {} 0", member.memory()),
        ])?;
        Ok(member)
    }

    /// Creates the member's volume. It reaches the stores of the others through `stores`, and waits
    /// `reconnect` seconds for a lost one.
    pub(super) fn make_volume(
        &self,
        stores: &[PathBuf],
        reconnect: u64,
        words: &str,
    ) -> anyhow::Result<()> {
        let mut table = format!("0 {SECTORS} switch {} {REGION_SECTORS} 0", stores.len());
        for (store, number) in stores.iter().zip(0u32..) {
            let path = match number == self.number {
                true => self.memory(),
                false => format!(
                    "nbd+unix:///{STORE}?socket={}&timeout={STORE_TIMEOUT}&reconnect={reconnect}",
                    store.display()
                ),
            };
            table.push_str(&format!(" {path} 0"));
        }
        self.verb(&["create", VOLUME, "--table", &table])?;
        self.message(words)
    }

    /// Sends the member's volume a message that moves regions.
    pub(super) fn message(&self, words: &str) -> anyhow::Result<()> {
        let mut all = vec!["message", VOLUME, "0", "set_region_mappings"];
        all.extend(words.split(' '));
        self.verb(&all)
    }

    /// Runs a verb on the member's daemon.
    pub(super) fn verb(&self, words: &[&str]) -> anyhow::Result<()> {
        quiet(&self.socket, words).with_context(|| format!("member {}", self.number))
    }

    /// The folder of the member's files.
    pub(super) fn folder(&self) -> &Path {
        self.socket.parent().unwrap_or(&self.socket)
    }

    /// The socket of the member's NBD server.
    pub(super) fn socket(&self) -> PathBuf {
        self.socket.with_file_name("nbd.sock")
    }

    /// Number of requests to the member's volume, and how many of them the member forwarded.
    pub(super) fn counted(&self) -> anyhow::Result<(u64, u64)> {
        let device = self.volume()?;
        let table = device.live().context("the volume of a member has no table")?;
        let (mut own, mut forwarded) = (0, 0);
        for path in 0..table.path_count() {
            let totals = table.path_totals(path);
            let count = if path == self.number { &mut own } else { &mut forwarded };
            *count += totals.reads + totals.writes;
        }
        Ok((own + forwarded, forwarded))
    }

    /// Stops the member's daemon.
    pub(super) fn stop(self) -> anyhow::Result<()> {
        self.daemon.stop()
    }

    fn volume(&self) -> anyhow::Result<Arc<Device>> {
        self.daemon.devices().pool().registry().find(VOLUME).context("a member has no volume")
    }

    /// The leaf with the memory of the member's regions. All leaves with one name share one memory.
    fn memory(&self) -> String {
        format!("mem:{}:store{}", SECTORS * 512, self.number)
    }
}
