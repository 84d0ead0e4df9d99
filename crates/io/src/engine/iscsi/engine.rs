//! The engine itself: opens the leaf and gives each operation to the session of its queue.
//!
//! Contract: as the parent module's.

use std::cell::{Cell, RefCell};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use blkswitch_core::multipath::outcome::is_path_error;

use super::address::IscsiAddress;
use super::protocol::{Facts, IscsiProtocol};
use super::scsi::{self, Volume};
use super::session::{IscsiSession, Isid, Nexus};
use crate::engine::error::LeafError;
use crate::engine::io::answered;
use crate::engine::io::{HOLE, ZERO};
use crate::engine::options::LeafOptions;
use crate::engine::session::reconnecting::{self, Reconnecting, no_doubt};
use crate::engine::session::reconnector::Reconnector;
use crate::engine::session::sessions::Session;
use crate::engine::session::turn::Turn;
use crate::engine::{LeafIo, LeafOp, Properties, Submitted};
use crate::sys::lock::lock;

type Shared = reconnecting::Shared<IscsiProtocol>;

/// A leaf that is a logical unit of an iSCSI target.
pub struct IscsiEngine {
    shared: Arc<Shared>,
    identity: String,
    target: String,
    /// Whether the unit has refused GET LBA STATUS.
    knows_no_status: AtomicBool,
    read_only: bool,
    control: Mutex<Control>,
}

/// Longest wait for an answer to GET LBA STATUS.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// The number of the control side's session among the sessions of a leaf.
const CONTROL: u16 = u16::MAX;

/// The control side's session. If it was lost, the next call logs in again.
struct Control {
    address: IscsiAddress,
    volume: Volume,
    isid: Isid,
    session: Option<IscsiSession>,
}

impl IscsiEngine {
    /// Logs in for the queues of `options`. Errors quote the address.
    pub(crate) fn open(
        address: &IscsiAddress,
        options: &LeafOptions,
    ) -> Result<(IscsiEngine, Properties), LeafError> {
        let system =
            |source| LeafError::System { what: "reach", name: address.to_string(), source };
        Self::connect(address, options).map_err(system)
    }

    fn connect(
        address: &IscsiAddress,
        options: &LeafOptions,
    ) -> io::Result<(IscsiEngine, Properties)> {
        let deadline = Instant::now() + address.patience.timeout;
        let drawn = draw()?;
        let again = |volume: &Volume, isid| {
            login_again(address, volume, isid, Instant::now() + address.patience.timeout)
        };
        let mut first = IscsiSession::login(address, Isid::new(drawn, 0), deadline)?;
        let volume = first.volume(deadline)?;
        first.can(volume.clone());
        let mut sessions = vec![first];
        while sessions.len() < options.queues.count() {
            sessions.push(again(&volume, Isid::new(drawn, sessions.len() as u16))?);
        }
        let isid = Isid::new(drawn, CONTROL);
        let session = Some(again(&volume, isid)?);
        let control = Control { address: address.clone(), volume: volume.clone(), isid, session };
        let identity = identity(address, &volume);
        let properties = properties(&volume, options.read_only);
        let of = (address.clone(), volume.clone());
        let in_doubt = no_doubt(sessions.len());
        let doubts = in_doubt.clone();
        let places = sessions.iter().map(|session| session.nexus().clone()).collect();
        let places: Mutex<Vec<Nexus>> = Mutex::new(places);
        let dial = Box::new(move |number: usize| {
            let (address, volume) = &of;
            let deadline = Instant::now() + address.patience.timeout;
            let mut session =
                IscsiSession::login(address, Isid::new(drawn, number as u16), deadline)?;
            let is_doubted = doubts.get(number).is_some_and(|doubt| doubt.load(Acquire));
            let is_elsewhere =
                lock(&places).get(number).is_none_or(|before| !session.nexus().is_same(before));
            if address.resets_unit && is_doubted && is_elsewhere {
                reset_unit(&mut session, address, deadline);
            }
            let session = confirm(session, volume, deadline)?;
            if let Some(before) = lock(&places).get_mut(number) {
                before.clone_from(session.nexus());
            }
            Ok(session)
        });
        let shared = Arc::new(Shared {
            reconnector: Reconnector::new(address.to_string(), sessions.len(), sessions, dial)?,
            facts: Facts { volume, map_notices: AtomicU64::new(0) },
            patience: address.patience,
            doubted: AtomicU64::new(0),
            in_doubt,
        });
        let read_only = properties.read_only;
        let (target, control) = (address.target.clone(), Mutex::new(control));
        let knows_no_status = AtomicBool::new(false);
        Ok((
            IscsiEngine { shared, identity, target, knows_no_status, read_only, control },
            properties,
        ))
    }

    /// # Safety
    /// As [`crate::engine::Engine::submit`].
    pub(in crate::engine) unsafe fn submit(&self, io: &LeafIo, turn: &mut Turn) -> Submitted {
        let volume = &self.shared.facts.volume;
        let refusal = match io.op {
            LeafOp::Write | LeafOp::Discard | LeafOp::Zero { .. } if self.read_only => libc::EPERM,
            LeafOp::Discard if volume.unmap_blocks == 0 => libc::EOPNOTSUPP,
            // Only unmapping is certain to be faster than writing.
            LeafOp::Zero { no_hole } if io.fast && (no_hole || !volume.same_unmaps) => {
                libc::EOPNOTSUPP
            }
            LeafOp::Flush if !volume.cache => return Submitted::Done(0),
            LeafOp::Read
            | LeafOp::Write
            | LeafOp::Flush
            | LeafOp::Discard
            | LeafOp::Zero { .. } => 0,
        };
        if refusal != 0 {
            return Submitted::Done(-i64::from(refusal));
        }
        let make =
            || Box::new(Reconnecting::new(self.shared.clone(), io.queue)) as Box<dyn Session>;
        match self.shared.reconnector.slot(io.queue) {
            Some(slot) => slot.submit(io, turn, make),
            None => Submitted::Done(-i64::from(libc::ENOTCONN)),
        }
    }

    /// Makes all completed writes durable. Blocks at most for the time limit of an answer.
    pub(in crate::engine) fn flush_blocking(&self) -> io::Result<()> {
        if !self.has_cache() {
            return Ok(());
        }
        let deadline = Instant::now() + self.shared.patience.timeout;
        self.control().call(deadline, |session, _| session.flush(deadline))
    }

    /// Checks that the unit answers a read, is still the same, and that every queue is logged in.
    /// Blocks. `EROFS` if the unit is now write-protected.
    pub(in crate::engine) fn probe(&self, timeout: Duration) -> io::Result<()> {
        let deadline = Instant::now() + timeout;
        let is_protected = Cell::new(false);
        self.control().call(deadline, |session, volume| {
            answered(session.read_first(volume, deadline))?;
            // Ask the unit, because not every target tells its sessions about another unit in its
            // place.
            let mut now = session.volume(deadline)?;
            // Write protection alone does not end the session, because the unit can still be read.
            is_protected.set(now.read_only && !volume.read_only);
            now.read_only = volume.read_only;
            same(&now, volume)
        })?;
        self.shared.reconnector.wait_connected(deadline)?;
        if is_protected.get() { Err(io::Error::from_raw_os_error(libc::EROFS)) } else { Ok(()) }
    }

    pub(in crate::engine) fn trouble(&self) -> Option<String> {
        self.shared.reconnector.trouble()
    }

    pub(in crate::engine) fn doubted_writes(&self) -> u64 {
        self.shared.doubted.load(std::sync::atomic::Ordering::Relaxed)
    }

    pub(in crate::engine) fn is_reachable(&self) -> bool {
        !self.shared.reconnector.is_cut_off()
    }

    /// `Some(0)` for a unit that has no thin provisioning, or does not answer GET LBA STATUS.
    pub(in crate::engine) fn known_allocation(&self) -> Option<u32> {
        let knows_holes =
            self.shared.facts.volume.provisions && !self.knows_no_status.load(Relaxed);
        (!knows_holes).then_some(0)
    }

    /// As [`crate::engine::Engine::allocation`]. Uses the control side's session, so other callers
    /// may wait for up to [`STATUS_TIMEOUT`].
    pub(in crate::engine) fn allocation(&self, offset: u64, len: u64) -> (u64, u32) {
        let (volume, deadline) = (&self.shared.facts.volume, Instant::now() + STATUS_TIMEOUT);
        let block_bytes = u64::from(volume.block_bytes);
        if self.known_allocation().is_some() || !offset.is_multiple_of(block_bytes) {
            return (len, 0);
        }
        let found = Cell::new((0, true));
        let asked = self.control().call(deadline, |session, _| {
            found.set(session.lba_status(offset / block_bytes, deadline)?);
            Ok(())
        });
        if let Err(error) = asked {
            tracing::debug!(%error, "the allocation is not known");
            self.knows_no_status.store(!is_path_error(error.raw_os_error().unwrap_or(0)), Relaxed);
            return (len, 0);
        }
        let (blocks, is_provisioned) = found.get();
        let status = match (is_provisioned, volume.holes_are_zeroes) {
            (true, _) => 0,
            (false, true) => HOLE | ZERO,
            (false, false) => HOLE,
        };
        (blocks.saturating_mul(block_bytes).min(len), status)
    }

    /// As [`crate::engine::Engine::scsi_query`].
    pub(in crate::engine) fn query(
        &self,
        cdb: &[u8],
        answer: &mut [u8],
        timeout: Duration,
    ) -> io::Result<usize> {
        let Some(query) = scsi::query(cdb) else {
            let reason =
                format!("a command has 1 to {} bytes, and this one has {}", scsi::CDB, cdb.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        };
        let deadline = Instant::now() + timeout;
        let (came, answer) = (Cell::new(0), RefCell::new(answer));
        self.control().call(deadline, |session, _| {
            came.set(session.query(&query, &mut answer.borrow_mut(), deadline)?);
            Ok(())
        })?;
        Ok(came.get())
    }

    pub(in crate::engine) fn map_notices(&self) -> u64 {
        self.shared.facts.map_notices.load(Relaxed)
    }

    /// The identity of the volume, the same over every path.
    pub(in crate::engine) fn identity(&self) -> String {
        self.identity.clone()
    }

    pub(in crate::engine) fn unique_within(&self) -> Option<&str> {
        (!self.shared.facts.volume.has_unique_name).then_some(&*self.target)
    }

    pub(in crate::engine) fn has_fua(&self) -> bool {
        self.shared.facts.volume.fua
    }

    pub(in crate::engine) fn can_discard(&self) -> bool {
        self.shared.facts.volume.unmap_blocks != 0
    }

    pub(in crate::engine) fn has_cache(&self) -> bool {
        self.shared.facts.volume.cache
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        lock(&self.control)
    }
}

impl Drop for IscsiEngine {
    fn drop(&mut self) {
        self.shared.reconnector.close();
    }
}

impl Control {
    /// Calls with the existing session. If that was lost meanwhile, tries once more with a new one.
    fn call(
        &mut self,
        deadline: Instant,
        call: impl Fn(&mut IscsiSession, &Volume) -> io::Result<()>,
    ) -> io::Result<()> {
        if let Some(session) = &mut self.session {
            let result = call(session, &self.volume);
            if session.is_there() || Instant::now() >= deadline {
                return result;
            }
        }
        self.session = None;
        let mut session = login_again(&self.address, &self.volume, self.isid, deadline)?;
        let result = call(&mut session, &self.volume);
        self.session = Some(session).filter(IscsiSession::is_there);
        result
    }
}

/// Draws random numbers for a leaf, so that its session identifiers differ from those of other
/// leaves.
fn draw() -> io::Result<[u8; 3]> {
    let mut drawn = [0; 3];
    // SAFETY: writes three bytes into live memory.
    match unsafe { libc::getrandom(drawn.as_mut_ptr().cast(), drawn.len(), 0) } {
        3 => Ok(drawn),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Resets the unit, which ends all commands that a lost session may have left there. Logs the
/// result.
fn reset_unit(session: &mut IscsiSession, address: &IscsiAddress, deadline: Instant) {
    let leaf = address.to_string();
    match session.reset_unit(deadline) {
        Ok(()) => {
            tracing::warn!(leaf, "writes in doubt: the logical unit was reset, for all hosts");
        }
        Err(error) => {
            tracing::warn!(leaf, %error, "writes in doubt: the logical unit could not be reset");
        }
    }
}

/// Checks that the unit is what it was, and returns the session. `Err` if it is not.
fn confirm(
    mut session: IscsiSession,
    volume: &Volume,
    deadline: Instant,
) -> io::Result<IscsiSession> {
    let now = session.volume(deadline)?;
    same(&now, volume)?;
    session.can(now);
    Ok(session)
}

/// Logs in again. `Err` if the unit is not what it was.
fn login_again(
    address: &IscsiAddress,
    volume: &Volume,
    isid: Isid,
    deadline: Instant,
) -> io::Result<IscsiSession> {
    confirm(IscsiSession::login(address, isid, deadline)?, volume, deadline)
}

fn same(now: &Volume, volume: &Volume) -> io::Result<()> {
    match volume.broken_promise(now) {
        None => Ok(()),
        Some(why) => Err(io::Error::new(io::ErrorKind::InvalidData, why)),
    }
}

/// The identity of the unit. A unit without a name is identified by its target and number. Units of
/// different targets then count as different volumes, because nothing can show that they are one.
fn identity(IscsiAddress { target, lun, .. }: &IscsiAddress, volume: &Volume) -> String {
    let nameless = || format!("unit {lun} of {target}, which has no name of its own");
    volume.identity.clone().unwrap_or_else(nameless)
}

fn properties(volume: &Volume, read_only: bool) -> Properties {
    Properties {
        logical_block: volume.block_bytes,
        physical_block: volume.physical_bytes,
        read_only: read_only || volume.read_only,
        rotational: volume.rotational,
        ..Properties::memory(volume.blocks * u64::from(volume.block_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_without_a_name_are_one_only_by_one_target_and_number() {
        let of = |address: &str, name: Option<&str>| {
            let volume = Volume { identity: name.map(str::to_string), ..Volume::default() };
            identity(&IscsiAddress::parse(address).unwrap(), &volume)
        };
        let one = of("iscsi://192.0.2.1/iqn.x:a/1", None);
        assert_eq!(of("iscsi://192.0.2.2:99/iqn.x:a/1?timeout=9", None), one, "by another portal");
        for other in ["iscsi://192.0.2.1/iqn.x:a/2", "iscsi://192.0.2.1/iqn.x:b/1"] {
            assert_ne!(of(other, None), one, "{other}");
        }
        assert_ne!(of("iscsi://192.0.2.1/iqn.x:a/1", Some("naa.1")), one);
        assert_eq!(of("iscsi://192.0.2.1/iqn.x:a/1", Some("naa.1")), "naa.1");
    }
}
