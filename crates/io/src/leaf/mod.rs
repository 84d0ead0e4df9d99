//! Leaves: what finally does the I/O. An address, the engine that reaches it, and what is known
//! about its writes.
//!
//! Contract: a [`Leaf`] is shared by every table that names it and every queue. Queues submit
//! through
//! [`Leaf::engine`]; the only shared words a request touches are its queue's line in [`Dirty`].

pub mod closer;

use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{self, AtomicBool};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::engine::absent::AbsentEngine;
use crate::engine::custom::{Custom, CustomEngine};
use crate::engine::file::FileEngine;
use crate::engine::iscsi::IscsiAddress;
use crate::engine::memory::MemoryEngine;
use crate::engine::mode::Unfit;
use crate::engine::nbd::{NbdAddress, NbdEngine};
use crate::engine::null::NullEngine;
use crate::engine::sim::{SimEngine, SimOptions};
use crate::engine::{Engine, Limits};
use crate::queues::Queues;
use crate::sys::helper::Helper;
use crate::sys::sync::{AtomicU64, Ordering};
use closer::Progress;

pub use crate::engine::error::LeafError;
pub use crate::engine::options::{LeafOptions, parse_size};

/// Operations of a queue that a leaf has under way at most, where each may hold a worker thread of
/// the kernel: deeper than any disk's own queue; an eighth of the workers ([`crate::sys::ring`]).
pub(crate) const MAX_UNDER_WAY: u64 = 256;

/// Where a leaf is.
#[derive(Clone, Debug, PartialEq)]
pub enum Address {
    /// A regular file or block device.
    Path(PathBuf),
    /// Memory of this process, gone with the last table that names it. With a name it is shared by
    /// name.
    Memory {
        /// Size in bytes.
        bytes: u64,
        /// Two addresses with one name are one memory.
        name: Option<String>,
    },
    /// An export of an NBD server.
    Nbd(NbdAddress),
    /// A logical unit of an iSCSI target.
    Iscsi(Box<IscsiAddress>),
    /// Reads give zeroes, writes vanish.
    Null {
        /// Size in bytes.
        bytes: u64,
    },
    /// Memory that misbehaves from a seed.
    Sim(SimOptions),
}

impl Address {
    /// Whether it may be down for a while and come back, so that a multipath can be had without it.
    pub fn may_be_absent(&self) -> bool {
        self.is_remote() || matches!(self, Address::Sim(sim) if sim.path.is_some())
    }

    /// Whether opening it waits for another machine, or another process of this one.
    pub fn is_remote(&self) -> bool {
        match self {
            Address::Nbd(_) | Address::Iscsi(_) => true,
            Address::Path(_) | Address::Memory { .. } | Address::Null { .. } | Address::Sim(_) => {
                false
            }
        }
    }
}

impl fmt::Display for Address {
    /// As it can be written in a table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Path(path) => write!(f, "{}", path.display()),
            Address::Memory { bytes, name: None } => write!(f, "mem:{bytes}"),
            Address::Memory { bytes, name: Some(name) } => write!(f, "mem:{bytes}:{name}"),
            Address::Nbd(address) => address.fmt(f),
            Address::Iscsi(address) => address.fmt(f),
            Address::Null { bytes } => write!(f, "null:{bytes}"),
            Address::Sim(sim) => sim.fmt(f),
        }
    }
}

impl FromStr for Address {
    type Err = LeafError;

    fn from_str(text: &str) -> Result<Address, LeafError> {
        let size = |s: &str| parse_size(s).ok_or_else(|| LeafError::Size(text.to_string()));
        if let Some(rest) = text.strip_prefix("mem:") {
            let (bytes, name) = match rest.split_once(':') {
                Some((bytes, name)) => (bytes, Some(name.to_string())),
                None => (rest, None),
            };
            return Ok(Address::Memory { bytes: size(bytes)?, name });
        }
        if let Some(rest) = text.strip_prefix("null:") {
            return Ok(Address::Null { bytes: size(rest)? });
        }
        if let Some(rest) = text.strip_prefix("sim:") {
            return SimOptions::parse(text, rest).map(Address::Sim);
        }
        if NbdAddress::is_one(text) {
            return NbdAddress::parse(text).map(Address::Nbd);
        }
        if IscsiAddress::is_one(text) {
            return IscsiAddress::parse(text).map(|address| Address::Iscsi(Box::new(address)));
        }
        if text.starts_with('/') {
            return Ok(Address::Path(PathBuf::from(text)));
        }
        Err(LeafError::Address(text.to_string()))
    }
}

/// Which completed writes no flush has covered yet. Lock-free; per leaf, so per device whatever the
/// connection.
///
/// Each queue counts the writes it completed in its own line, before the write is answered. A flush
/// sums the lines *before* it starts, and records that sum when it has succeeded: a write that
/// completes while the flush runs is beyond the sum and stays unflushed. A flush that fails records
/// nothing.
#[derive(Debug)]
pub struct Dirty {
    writes: Box<[Line]>,
    /// Of queues that have no line. A table is refused before it could come to that
    /// ([`Queues`]); if it does all the same, no write may be left out.
    others: AtomicU64,
    flushed: AtomicU64,
}

/// One queue's counter on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line(AtomicU64);

impl Dirty {
    /// Nothing written yet, `queues` writers.
    pub fn new(queues: usize) -> Dirty {
        Dirty {
            writes: (0..queues.max(1)).map(|_| Line::default()).collect(),
            others: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
        }
    }

    /// A write of `queue` has completed. Called by that queue's thread only, before the write is
    /// answered.
    pub fn wrote(&self, queue: usize) {
        match self.writes.get(queue) {
            // One writer per line: a plain add, published so that a flush elsewhere that hears of
            // the answer sees it.
            Some(line) => line.0.store(line.0.load(Ordering::Relaxed) + 1, Ordering::Release),
            None => self.wrote_elsewhere(),
        }
    }

    #[cold]
    fn wrote_elsewhere(&self) {
        self.others.fetch_add(1, Ordering::Release);
    }

    /// What a flush that starts now will cover, or nothing if all is covered.
    pub fn unflushed(&self) -> Option<u64> {
        let lines = self.writes.iter().map(|line| &line.0).chain([&self.others]);
        let written = lines.map(|line| line.load(Ordering::Acquire)).sum();
        (written > self.flushed.load(Ordering::Acquire)).then_some(written)
    }

    /// A flush that covered `written` ([`Dirty::unflushed`] before it started) has succeeded.
    pub fn flushed(&self, written: u64) {
        self.flushed.fetch_max(written, Ordering::AcqRel);
    }
}

/// See the module's text.
pub struct Leaf {
    queues: Queues,
    name: String,
    key: String,
    /// Taken when the leaf is dropped.
    engine: ManuallyDrop<Engine>,
    /// How far its closing is, for whoever waits for that.
    progress: Progress,
    limits: Limits,
    dirty: Dirty,
    under_way: Box<[Line]>,
    helper: Helper,
    /// A flush of this leaf failed in a way that may have dropped its writes: say so from now on.
    lost: AtomicBool,
    /// It has declined a discard: said once.
    declines: AtomicBool,
    /// It has refused a write because it cannot be written.
    is_protected: AtomicBool,
    /// Why the last probe failed.
    probe_error: Mutex<Option<String>>,
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf")
            .field("name", &self.name)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// The engine of an address, what is known of it, and the address as it can be written in a table.
pub(crate) fn open_engine(
    address: &Address,
    options: &LeafOptions,
) -> Result<(Engine, Limits, String), LeafError> {
    Ok(match address {
        Address::Path(path) => {
            let (engine, limits) = FileEngine::open(path, options)?;
            (Engine::File(engine), limits, path.display().to_string())
        }
        Address::Memory { bytes, name } => {
            let engine = MemoryEngine::new(*bytes).map_err(|source| LeafError::System {
                what: "map",
                name: format!("mem:{bytes}"),
                source,
            })?;
            let shown =
                name.as_ref().map_or(format!("mem:{bytes}"), |name| format!("mem:{bytes}:{name}"));
            (Engine::Memory(engine), Limits::memory(*bytes), shown)
        }
        Address::Nbd(address) => {
            let (engine, limits) = NbdEngine::open(address, options)?;
            (Engine::Nbd(Box::new(engine)), limits, address.to_string())
        }
        Address::Iscsi(address) => {
            let (engine, limits) = crate::engine::iscsi::IscsiEngine::open(address, options)?;
            (Engine::Iscsi(Box::new(engine)), limits, address.to_string())
        }
        Address::Null { bytes } => {
            (Engine::Null(NullEngine), Limits::memory(*bytes), format!("null:{bytes}"))
        }
        Address::Sim(sim) => {
            let failed = |what| {
                let name = sim.to_string();
                move |source| LeafError::System { what, name, source }
            };
            let engine = SimEngine::new(sim).map_err(failed("make"))?;
            engine.probe(Duration::ZERO).map_err(failed("reach"))?;
            let limits = Limits { logical_block: sim.block, ..Limits::memory(sim.bytes) };
            (Engine::Sim(Box::new(engine)), limits, sim.to_string())
        }
    })
}

impl Leaf {
    /// Opens a leaf. Errors leave nothing open; a file that was made is removed again.
    pub fn open(address: &Address, options: &LeafOptions) -> Result<Arc<Leaf>, LeafError> {
        let (engine, limits, name) = open_engine(address, options)?;
        // Found out by a write it would be an error of the volume, in the middle of a request.
        if limits.read_only && !options.read_only {
            return Err(LeafError::ReadOnly(name));
        }
        Ok(Leaf::new(address, options, engine, limits, name))
    }

    /// A leaf that cannot be reached, and becomes what it should be once a probe reaches it: a path
    /// to the same volume as `other`.
    pub fn absent(address: &Address, options: &LeafOptions, other: &Leaf) -> Arc<Leaf> {
        let (limits, identity) = (other.limits.clone(), other.engine.identity());
        let (to_open, how) = (address.clone(), *options);
        let open = Box::new(move || open_engine(&to_open, &how));
        let engine = Engine::Absent(Box::new(AbsentEngine::new(open, &limits, identity)));
        Leaf::new(address, options, engine, limits, address.to_string())
    }

    /// A leaf of somebody else's engine, under a name of theirs, for the queues of a pool or
    /// driver. Each call makes a leaf of its own.
    ///
    /// # Errors
    /// [`LeafError::Limits`]: the limits make no sense. [`LeafError::System`]: there are no
    /// descriptors left; it takes one per queue.
    pub fn custom(
        name: &str,
        engine: Box<dyn CustomEngine>,
        limits: Limits,
        queues: Queues,
    ) -> Result<Arc<Leaf>, LeafError> {
        let is_block = |block: u32| block.is_power_of_two() && (512..=1 << 16).contains(&block);
        let is_size = (1..=i64::MAX as u64 / 512).contains(&limits.sectors);
        if !is_block(limits.logical_block) || limits.physical_block < 512 || !is_size {
            return Err(LeafError::Limits { name: name.to_owned(), limits });
        }
        let system = |source| LeafError::System { what: "make", name: name.to_owned(), source };
        let engine = Custom::new(engine, queues.count()).map_err(system)?;
        let engine = Engine::Custom(Box::new(engine));
        Ok(Leaf::of(None, queues, engine, limits, name.to_owned()))
    }

    pub(crate) fn new(
        address: &Address,
        options: &LeafOptions,
        engine: Engine,
        limits: Limits,
        name: String,
    ) -> Arc<Leaf> {
        let key = match &engine {
            Engine::File(file) => Some(file.key().to_owned()),
            _ => Self::key_of(address),
        };
        Leaf::of(key, options.queues, engine, limits, name)
    }

    fn of(
        key: Option<String>,
        queues: Queues,
        engine: Engine,
        limits: Limits,
        name: String,
    ) -> Arc<Leaf> {
        static ANONYMOUS: atomic::AtomicU64 = atomic::AtomicU64::new(0);
        let key = key.unwrap_or_else(|| format!("#{}", ANONYMOUS.fetch_add(1, Ordering::Relaxed)));
        let dirty = Dirty::new(queues.count());
        let under_way = (0..queues.count()).map(|_| Line::default()).collect();
        if engine.has_cache() && !limits.read_only {
            // An earlier process may have answered writes, been killed, and left them in the cache:
            // as good as ours.
            dirty.wrote(0);
        }
        let (engine, lost) = (ManuallyDrop::new(engine), AtomicBool::new(false));
        let (progress, helper) = (closer::open(), Helper::default());
        let declines = AtomicBool::new(false);
        Arc::new(Leaf {
            queues,
            name,
            key,
            engine,
            progress,
            limits,
            dirty,
            under_way,
            helper,
            lost,
            declines,
            is_protected: AtomicBool::new(false),
            probe_error: Mutex::default(),
        })
    }

    /// Two addresses with one key are one leaf: the same file or device, the same named memory.
    /// Nothing for what is its own leaf each time.
    pub fn key_of(address: &Address) -> Option<String> {
        match address {
            Address::Path(path) => FileEngine::key_of(path),
            Address::Memory { name: Some(name), .. } => Some(format!("mem:{name}")),
            Address::Sim(sim) => sim.name.as_ref().map(|name| match &sim.path {
                Some(path) => format!("sim:{name}/{path}"),
                None => format!("sim:{name}"),
            }),
            Address::Nbd(address) => Some(address.to_string()),
            Address::Iscsi(address) => Some(address.to_string()),
            Address::Memory { name: None, .. } | Address::Null { .. } => None,
        }
    }

    /// The address as it can be written in a table.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// See [`Leaf::key_of`].
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Size, block size and abilities.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The queues that it was opened for: only their pool or driver takes it in a table.
    pub fn queues(&self) -> Queues {
        self.queues
    }

    pub(crate) fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// How it is reached.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Goes past the page cache, if nobody has asked for another mode, and if that serves whoever
    /// was told of [`Leaf::limits`]. Errors: it stays in the page cache, and why.
    pub fn prefer_direct(&self) -> Result<(), Unfit> {
        self.engine.prefer_direct(self.limits.logical_block)
    }

    /// Takes the mode that a user asks for: past the page cache, or through it. The last who asks
    /// decides.
    pub fn choose_mode(&self, direct: bool) -> Result<(), LeafError> {
        self.engine.choose_mode(self.limits.logical_block, direct).map_err(|why| LeafError::Mode {
            name: self.name.clone(),
            now: if direct { "through the page cache" } else { "past the page cache" },
            why,
        })
    }

    /// The thread for what may block.
    pub(crate) fn helper(&self) -> &Helper {
        &self.helper
    }

    /// Whether it has as many operations of this queue under way as it may. If it hangs, each of
    /// them may hold a worker thread of the kernel, and these are bounded: the other leaves of the
    /// queue need some, too.
    #[inline]
    pub(crate) fn is_full(&self, queue: usize) -> bool {
        let line = self.under_way.get(queue);
        self.engine.takes_workers()
            && line.is_some_and(|line| line.0.load(Ordering::Relaxed) >= MAX_UNDER_WAY)
    }

    /// The ring has one more operation of this queue for it. By that queue's thread only.
    #[inline]
    pub(crate) fn begins(&self, queue: usize) {
        if self.engine.takes_workers()
            && let Some(Line(count)) = self.under_way.get(queue)
        {
            count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }

    /// One of them has ended.
    #[inline]
    pub(crate) fn ends(&self, queue: usize) {
        if let Some(Line(count)) = self.under_way.get(queue) {
            count.store(count.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
        }
    }

    /// Opens once more what is open for reading only, now for writing as well. The leaf that reads
    /// stays what it is for the tables that have it.
    pub fn open_writable(
        &self,
        address: &Address,
        options: &LeafOptions,
    ) -> Result<Arc<Leaf>, LeafError> {
        // The lock of a reader keeps every writer out, also this one.
        self.engine.set_reader_lock(false);
        let opened = Leaf::open(address, options);
        if opened.is_err() {
            self.engine.set_reader_lock(true);
        }
        opened
    }

    /// Whether it can discard, as far as is known.
    pub fn can_discard(&self) -> bool {
        let is_able = self.engine.can_discard();
        is_able.unwrap_or_else(|| !self.declines.load(Ordering::Relaxed))
    }

    /// It has declined a discard. A hint that is not taken is no error, so the log says it.
    #[cold]
    pub(crate) fn declines_discards(&self) {
        if !self.declines.swap(true, Ordering::Relaxed) {
            tracing::warn!(leaf = self.name, "it cannot discard: discards are counted as ignored");
        }
    }

    /// Probes it ([`Engine::probe`]), and looks whether it can be written again if it could not. One
    /// that answers but cannot be written is there: see [`Leaf::is_protected`].
    pub fn probe(&self, timeout: Duration) -> io::Result<()> {
        match self.engine.probe(timeout) {
            Err(error) if error.raw_os_error() == Some(libc::EROFS) => self.is_found_protected(),
            Ok(()) if self.is_protected() && self.engine.can_be_written(timeout)? => {
                self.is_protected.store(false, Ordering::Release);
                tracing::info!(leaf = self.name, "can be written again");
            }
            answer => return answer,
        }
        Ok(())
    }

    /// Whether it has become read-only: it has refused a write of a multipath device, and no probe
    /// has found since that it can be written.
    pub fn is_protected(&self) -> bool {
        self.is_protected.load(Ordering::Acquire)
    }

    #[cold]
    pub(crate) fn is_found_protected(&self) {
        if !self.is_protected.swap(true, Ordering::AcqRel) {
            tracing::warn!(leaf = self.name, "has become read-only: other paths are written to");
        }
    }

    /// A checker tells how its last probe has ended, for [`Leaf::trouble`].
    pub fn probed(&self, answer: &io::Result<()>) {
        let why = answer.as_ref().err().map(io::Error::to_string);
        *self.probe_error.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Why it cannot be used: what the last attempt to connect again has found, or else the last
    /// probe. `None` while all is well, as far as is known.
    pub fn trouble(&self) -> Option<String> {
        let probed = || self.probe_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let protected = || self.is_protected().then(|| "it has become read-only".to_owned());
        self.engine.trouble().or_else(probed).or_else(protected)
    }

    /// Its unflushed writes.
    pub fn dirty(&self) -> &Dirty {
        &self.dirty
    }

    /// Whether a flush has failed so that writes may be gone: from then on it fails whenever it is
    /// flushed.
    pub fn is_lossy(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Whether a flush must reach it.
    pub fn needs_flush(&self) -> bool {
        self.lost.load(Ordering::Acquire) || self.dirty.unflushed().is_some()
    }

    /// The verdict on a flush that covered `written` and ended with `errno` (0: success).
    ///
    /// The kernel reports a failed write-back once and then forgets the pages: the next fsync
    /// succeeds although the data is gone. So once a flush of a cached file has failed, every later
    /// one fails too, until the leaf is opened anew.
    pub fn judge_flush(&self, written: u64, errno: i32) -> i32 {
        if errno != 0 {
            if self.engine.may_have_dropped_writes(errno) {
                self.lost.store(true, Ordering::Release);
            }
            return errno;
        }
        if self.lost.load(Ordering::Acquire) {
            // Not EIO: that would say that the path is no good, and a multipath would ask another
            // one, which knows nothing of what is gone here.
            return libc::EREMOTEIO;
        }
        self.dirty.flushed(written);
        0
    }

    /// Flushes from the control side (a leaf that leaves a table, a clean stop). Blocks.
    pub fn flush_blocking(&self) -> io::Result<()> {
        let Some(written) = self.dirty.unflushed() else {
            return if self.lost.load(Ordering::Acquire) {
                Err(io::Error::from_raw_os_error(libc::EIO))
            } else {
                Ok(())
            };
        };
        let errno =
            self.engine.flush_blocking().err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EIO));
        match self.judge_flush(written, errno) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

impl Drop for Leaf {
    /// Any thread may be the last that has it, also one that must not block.
    fn drop(&mut self) {
        // SAFETY: the engine is taken once, here, and never used afterwards.
        let engine = unsafe { ManuallyDrop::take(&mut self.engine) };
        closer::close(engine, self.progress.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_addresses() {
        assert_eq!(parse_size("64K"), Some(65536));
        assert_eq!(parse_size("1g"), Some(1 << 30));
        for bad in ["", "K", "0", "511", "-1", "+512", "1.5M", "99999999999999T", "512 "] {
            assert_eq!(parse_size(bad), None, "{bad:?}");
        }
        assert_eq!(
            "mem:1M".parse::<Address>().unwrap(),
            Address::Memory { bytes: 1 << 20, name: None }
        );
        assert_eq!("/dev/sda".parse::<Address>().unwrap(), Address::Path("/dev/sda".into()));
        let error = "ram0".parse::<Address>().unwrap_err().to_string();
        assert!(error.contains("'ram0'") && error.contains("mem:SIZE"), "{error}");
    }

    #[test]
    fn a_flush_covers_what_was_complete_when_it_started() {
        let dirty = Dirty::new(2);
        assert_eq!(dirty.unflushed(), None);
        dirty.wrote(0);
        dirty.wrote(1);
        let first = dirty.unflushed().unwrap();
        dirty.wrote(1);
        dirty.flushed(first);
        let second = dirty.unflushed().expect("the write during the flush is not covered");
        dirty.flushed(second);
        assert_eq!(dirty.unflushed(), None);
        dirty.flushed(first);
        assert_eq!(dirty.unflushed(), None, "an older flush that ends late takes nothing back");
    }

    /// A queue without a line of its own must not lose what it wrote: FLUSH would be answered
    /// without flushing.
    #[test]
    fn a_write_of_an_unknown_queue_is_not_left_out() {
        let dirty = Dirty::new(1);
        dirty.wrote(1);
        let written = dirty.unflushed().expect("the write counts");
        dirty.flushed(written);
        assert_eq!(dirty.unflushed(), None);
        dirty.wrote(7);
        assert!(dirty.unflushed().is_some());
    }

    /// A path error would have a multipath ask a path that knows nothing of the lost writes, and be
    /// told that all is well.
    #[test]
    fn a_leaf_that_lost_writes_goes_on_saying_so_and_blames_no_path() {
        use blkswitch_core::multipath::outcome::is_path_error;

        let dir = tempfile::tempdir().unwrap();
        let address = Address::Path(dir.path().join("file"));
        let options =
            LeafOptions { make_bytes: Some(4096), ..LeafOptions::new(Queues::of_new_owner(1)) };
        let leaf = Leaf::open(&address, &options).unwrap();
        assert_eq!(leaf.judge_flush(1, libc::EIO), libc::EIO);
        for _ in 0..2 {
            let errno = leaf.judge_flush(1, 0);
            assert!(errno != 0 && !is_path_error(errno), "errno {errno}");
        }
        assert!(leaf.is_lossy() && leaf.needs_flush());
    }
}
