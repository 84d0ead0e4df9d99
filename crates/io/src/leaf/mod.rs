//! Leaves: an address, the engine that does its I/O, and the account of its writes.
//!
//! Contract: all tables that name a [`Leaf`], and all queues, share it. Queues submit through
//! [`Leaf::engine`]. The only shared words that a request touches are its queue's lines in
//! [`Dirty`] and in the count of operations under way.

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
use crate::engine::file::{self, FileEngine};
use crate::engine::iscsi::IscsiAddress;
use crate::engine::memory::MemoryEngine;
use crate::engine::mode::Unfit;
use crate::engine::nbd::{NbdAddress, NbdEngine};
use crate::engine::null::NullEngine;
use crate::engine::sim::{SimEngine, SimOptions};
use crate::engine::{Engine, Properties};
use crate::queues::Queues;
use crate::sys::helper::Helper;
use crate::sys::sync::{AtomicU64, Ordering};
use closer::Progress;

pub use crate::engine::error::LeafError;
pub use crate::engine::options::{LeafOptions, parse_size};

/// Most operations of one queue that a leaf has under way, if each may hold a worker thread of the
/// kernel. This is more than a disk's own queue, and an eighth of the workers
/// ([`crate::sys::ring`]).
pub(crate) const MAX_UNDER_WAY: u64 = 256;

/// The address of a leaf.
#[derive(Clone, Debug, PartialEq)]
pub enum Address {
    /// A regular file or block device.
    Path(PathBuf),
    /// Memory of this process, which lasts as long as a table uses it. Named memory is shared by
    /// its name.
    Memory {
        /// Size of the memory in bytes.
        bytes: u64,
        /// The name. Two addresses with one name are one memory.
        name: Option<String>,
    },
    /// An export of an NBD server.
    Nbd(NbdAddress),
    /// A logical unit of an iSCSI target.
    Iscsi(Box<IscsiAddress>),
    /// No medium: reads return zeroes, and writes are discarded.
    Null {
        /// Size of the leaf in bytes.
        bytes: u64,
    },
    /// Memory that injects faults from a seed.
    Sim(SimOptions),
}

impl Address {
    /// Whether the leaf may be down for a while and come back, so that a multipath can be loaded
    /// without it.
    pub fn may_be_absent(&self) -> bool {
        self.is_remote() || matches!(self, Address::Sim(sim) if sim.path.is_some())
    }

    /// Whether opening it waits for another machine or process.
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
    /// Writes the address in the form of a table line. Bytes of a path that are not UTF-8 are
    /// written as `\xNN`, which no table takes for bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Path(path) => f.write_str(&file::shown(path)),
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

/// The account of completed writes that no flush has covered. It is lock-free, and kept for each
/// leaf, so all devices and connections share it.
///
/// Each queue counts its completed writes in its own line, before it answers them. A flush sums the
/// lines before it starts, and records that sum after it has succeeded. So a write that completes
/// during the flush is beyond the sum and stays unflushed. A flush that fails records nothing.
#[derive(Debug)]
pub struct Dirty {
    writes: Box<[Line]>,
    /// Writes of queues without a line. [`Queues`] prevents that; if it happens anyway, no write
    /// may be left out.
    others: AtomicU64,
    flushed: AtomicU64,
}

/// One queue's counter on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line(AtomicU64);

impl Dirty {
    /// An account without writes, for `queues` queues.
    pub fn new(queues: usize) -> Dirty {
        Dirty {
            writes: (0..queues.max(1)).map(|_| Line::default()).collect(),
            others: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
        }
    }

    /// Counts a completed write of `queue`. Only that queue's thread calls this, before it answers
    /// the write.
    pub fn wrote(&self, queue: usize) {
        match self.writes.get(queue) {
            // Each line has one writer, so a load and a store suffice. `Release` lets a flush on
            // another thread see the write if it can know of the answer.
            Some(line) => line.0.store(line.0.load(Ordering::Relaxed) + 1, Ordering::Release),
            None => self.wrote_elsewhere(),
        }
    }

    #[cold]
    fn wrote_elsewhere(&self) {
        self.others.fetch_add(1, Ordering::Release);
    }

    /// The count that a flush which starts now will cover. `None` if all writes are flushed.
    pub fn unflushed(&self) -> Option<u64> {
        let lines = self.writes.iter().map(|line| &line.0).chain([&self.others]);
        let written = lines.map(|line| line.load(Ordering::Acquire)).sum();
        (written > self.flushed.load(Ordering::Acquire)).then_some(written)
    }

    /// Records the success of a flush. `written` is the result of [`Dirty::unflushed`] before it
    /// started.
    pub fn flushed(&self, written: u64) {
        self.flushed.fetch_max(written, Ordering::AcqRel);
    }
}

/// A leaf, shared by all tables that name it.
pub struct Leaf {
    queues: Queues,
    name: String,
    key: String,
    /// Taken when the leaf is dropped, to close it on another thread.
    engine: ManuallyDrop<Engine>,
    /// The progress of closing the leaf, for threads that wait for it.
    progress: Progress,
    properties: Properties,
    dirty: Dirty,
    under_way: Box<[Line]>,
    helper: Helper,
    /// Whether a failed flush may have dropped writes. Then all later flushes fail.
    lost: AtomicBool,
    /// Whether the leaf has declined a discard. The log says it once.
    declines: AtomicBool,
    /// Whether the leaf has refused a write because it is read-only.
    is_protected: AtomicBool,
    /// The error of the last probe.
    probe_error: Mutex<Option<String>>,
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf")
            .field("name", &self.name)
            .field("properties", &self.properties)
            .finish_non_exhaustive()
    }
}

/// Opens the engine of an address. Also returns its properties and its name in a table line.
pub(crate) fn open_engine(
    address: &Address,
    options: &LeafOptions,
) -> Result<(Engine, Properties, String), LeafError> {
    Ok(match address {
        Address::Path(path) => {
            let (engine, properties) = FileEngine::open(path, options)?;
            (Engine::File(engine), properties, file::shown(path))
        }
        Address::Memory { bytes, name } => {
            let engine = MemoryEngine::new(*bytes).map_err(|source| LeafError::System {
                what: "map",
                name: format!("mem:{bytes}"),
                source,
            })?;
            let shown =
                name.as_ref().map_or(format!("mem:{bytes}"), |name| format!("mem:{bytes}:{name}"));
            (Engine::Memory(engine), Properties::memory(*bytes), shown)
        }
        Address::Nbd(address) => {
            let (engine, properties) = NbdEngine::open(address, options)?;
            (Engine::Nbd(Box::new(engine)), properties, address.to_string())
        }
        Address::Iscsi(address) => {
            let (engine, properties) = crate::engine::iscsi::IscsiEngine::open(address, options)?;
            (Engine::Iscsi(Box::new(engine)), properties, address.to_string())
        }
        Address::Null { bytes } => {
            (Engine::Null(NullEngine), Properties::memory(*bytes), format!("null:{bytes}"))
        }
        Address::Sim(sim) => {
            let failed = |what| {
                let name = sim.to_string();
                move |source| LeafError::System { what, name, source }
            };
            let engine = SimEngine::new(sim).map_err(failed("make"))?;
            engine.probe(Duration::ZERO).map_err(failed("reach"))?;
            let properties =
                Properties { logical_block: sim.block, ..Properties::memory(sim.bytes) };
            (Engine::Sim(Box::new(engine)), properties, sim.to_string())
        }
    })
}

impl Leaf {
    /// Opens a leaf. If that fails, nothing stays open, and a file that was created is removed.
    pub fn open(address: &Address, options: &LeafOptions) -> Result<Arc<Leaf>, LeafError> {
        let (engine, properties, name) = open_engine(address, options)?;
        // If a write found this out later, a request in the middle would fail with an error of the
        // volume.
        if properties.read_only && !options.read_only {
            return Err(LeafError::ReadOnly(name));
        }
        Ok(Leaf::new(address, options, engine, properties, name))
    }

    /// A placeholder for a leaf that cannot be reached: a path to the same volume as `other`. It
    /// becomes the real leaf when a probe reaches it.
    pub fn absent(address: &Address, options: &LeafOptions, other: &Leaf) -> Arc<Leaf> {
        let (properties, identity) = (other.properties.clone(), other.engine.identity());
        let (to_open, how) = (address.clone(), *options);
        let open = Box::new(move || open_engine(&to_open, &how));
        let engine = Engine::Absent(Box::new(AbsentEngine::new(open, &properties, identity)));
        Leaf::new(address, options, engine, properties, address.to_string())
    }

    /// Makes a leaf of a custom engine, for the queues of a pool or driver. Each call makes a new
    /// leaf, also for an existing name.
    ///
    /// # Errors
    /// [`LeafError::Properties`] if the properties are not valid. [`LeafError::System`] if there
    /// are no descriptors left; the leaf needs one for each queue.
    pub fn custom(
        name: &str,
        engine: Box<dyn CustomEngine>,
        properties: Properties,
        queues: Queues,
    ) -> Result<Arc<Leaf>, LeafError> {
        let is_block = |block: u32| block.is_power_of_two() && (512..=1 << 16).contains(&block);
        let is_size = (1..=i64::MAX as u64 / 512).contains(&properties.sectors);
        if !is_block(properties.logical_block) || properties.physical_block < 512 || !is_size {
            return Err(LeafError::Properties { name: name.to_owned(), properties });
        }
        let system = |source| LeafError::System { what: "make", name: name.to_owned(), source };
        let engine = Custom::new(engine, queues.count()).map_err(system)?;
        let engine = Engine::Custom(Box::new(engine));
        Ok(Leaf::of(None, queues, engine, properties, name.to_owned()))
    }

    pub(crate) fn new(
        address: &Address,
        options: &LeafOptions,
        engine: Engine,
        properties: Properties,
        name: String,
    ) -> Arc<Leaf> {
        let key = match &engine {
            Engine::File(file) => Some(file.key().to_owned()),
            _ => Self::key_of(address),
        };
        Leaf::of(key, options.queues, engine, properties, name)
    }

    fn of(
        key: Option<String>,
        queues: Queues,
        engine: Engine,
        properties: Properties,
        name: String,
    ) -> Arc<Leaf> {
        static ANONYMOUS: atomic::AtomicU64 = atomic::AtomicU64::new(0);
        let key = key.unwrap_or_else(|| format!("#{}", ANONYMOUS.fetch_add(1, Ordering::Relaxed)));
        let dirty = Dirty::new(queues.count());
        let under_way = (0..queues.count()).map(|_| Line::default()).collect();
        if engine.has_cache() && !properties.read_only {
            // An earlier process may have answered writes and left them in the cache when it was
            // killed. They count like writes of this process.
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
            properties,
            dirty,
            under_way,
            helper,
            lost,
            declines,
            is_protected: AtomicBool::new(false),
            probe_error: Mutex::default(),
        })
    }

    /// The key of an address. Two addresses with one key are one leaf: the same file, device or
    /// named memory. `None` if each use of the address is a leaf of its own.
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

    /// The address in the form of a table line.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The leaf's key, by [`Leaf::key_of`].
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Size, block sizes and properties, as found when the leaf was opened.
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// The queues for which it was opened. Only their pool or driver accepts it in a table.
    pub fn queues(&self) -> Queues {
        self.queues
    }

    pub(crate) fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// The engine that does the leaf's I/O.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Switches to direct I/O, unless a user has chosen another mode. `Err` with the reason if
    /// direct I/O does not work with the announced [`Leaf::properties`]; then the leaf stays in the
    /// page cache.
    pub fn prefer_direct(&self) -> Result<(), Unfit> {
        self.engine.prefer_direct(self.properties.logical_block)
    }

    /// Sets the mode that a user has chosen: direct I/O, or the page cache. The last choice counts.
    pub fn choose_mode(&self, direct: bool) -> Result<(), LeafError> {
        self.engine.choose_mode(self.properties.logical_block, direct).map_err(|why| {
            LeafError::Mode {
                name: self.name.clone(),
                now: if direct { "through the page cache" } else { "past the page cache" },
                why,
            }
        })
    }

    /// The thread for system calls that may block.
    pub(crate) fn helper(&self) -> &Helper {
        &self.helper
    }

    /// Whether this queue has as many operations of the leaf under way as it may. If the leaf
    /// hangs, each may hold a worker thread of the kernel. The number of these is limited, and the
    /// queue's other leaves need some, too.
    #[inline]
    pub(crate) fn is_full(&self, queue: usize) -> bool {
        let line = self.under_way.get(queue);
        self.engine.takes_workers()
            && line.is_some_and(|line| line.0.load(Ordering::Relaxed) >= MAX_UNDER_WAY)
    }

    /// Counts an operation of this queue that is under way. Only that queue's thread calls this.
    #[inline]
    pub(crate) fn begins(&self, queue: usize) {
        if self.engine.takes_workers()
            && let Some(Line(count)) = self.under_way.get(queue)
        {
            count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }

    /// Counts an operation of this queue that has ended.
    #[inline]
    pub(crate) fn ends(&self, queue: usize) {
        if let Some(Line(count)) = self.under_way.get(queue) {
            count.store(count.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
        }
    }

    /// Opens a leaf for writing that is open for reading only. The read-only leaf remains for the
    /// tables that use it.
    pub fn open_writable(
        &self,
        address: &Address,
        options: &LeafOptions,
    ) -> Result<Arc<Leaf>, LeafError> {
        // The lock of the read-only leaf would keep this writer out, too.
        self.engine.set_reader_lock(false);
        let opened = Leaf::open(address, options);
        if opened.is_err() {
            self.engine.set_reader_lock(true);
        }
        opened
    }

    /// Whether the leaf can discard, as far as is known. Never blocks.
    pub fn can_discard(&self) -> bool {
        let is_able = self.engine.can_discard();
        is_able.unwrap_or_else(|| !self.declines.load(Ordering::Relaxed))
    }

    /// Notes that the leaf has declined a discard. The client gets no error, because a discard is a
    /// hint, so the log says it.
    #[cold]
    pub(crate) fn declines_discards(&self) {
        if !self.declines.swap(true, Ordering::Relaxed) {
            tracing::warn!(leaf = self.name, "it cannot discard: discards are counted as ignored");
        }
    }

    /// Probes the leaf ([`Engine::probe`]). If it had become read-only, also checks whether it can
    /// be written again. A leaf that answers but is read-only counts as reachable: see
    /// [`Leaf::is_protected`].
    pub fn probe(&self, timeout: Duration) -> io::Result<()> {
        match self.engine.probe(timeout) {
            Err(error) if error.raw_os_error() == Some(libc::EROFS) => {
                self.has_refused_write(libc::EROFS);
            }
            Ok(()) if self.is_protected() && self.engine.can_be_written(timeout)? => {
                self.is_protected.store(false, Ordering::Release);
                tracing::info!(leaf = self.name, "can be written again");
            }
            answer => return answer,
        }
        Ok(())
    }

    /// Whether the leaf has become read-only: it has refused a write of a multipath device, and no
    /// later probe has found it writable.
    pub fn is_protected(&self) -> bool {
        self.is_protected.load(Ordering::Acquire)
    }

    /// Notes that the leaf is read-only: it has answered a write, or a probe, with this errno.
    #[cold]
    pub(crate) fn has_refused_write(&self, errno: i32) {
        if !self.is_protected.swap(true, Ordering::AcqRel) {
            let error = io::Error::from_raw_os_error(errno);
            tracing::warn!(leaf = self.name, %error,
                "refuses writes as something read-only does: other paths are written to");
        }
    }

    /// Records the result of a checker's last probe, for [`Leaf::trouble`].
    pub fn probed(&self, answer: &io::Result<()>) {
        let why = answer.as_ref().err().map(io::Error::to_string);
        *self.probe_error.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Why the leaf cannot be used: the error of the last attempt to connect, or else of the last
    /// probe. `None` if no error is known.
    pub fn trouble(&self) -> Option<String> {
        let probed = || self.probe_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let protected = || self.is_protected().then(|| "it has become read-only".to_owned());
        self.engine.trouble().or_else(probed).or_else(protected)
    }

    /// The account of its unflushed writes.
    pub fn dirty(&self) -> &Dirty {
        &self.dirty
    }

    /// Whether a failed flush may have dropped writes. From then on, every flush of the leaf fails.
    pub fn is_lossy(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Whether a flush must include this leaf.
    pub fn needs_flush(&self) -> bool {
        self.lost.load(Ordering::Acquire) || self.dirty.unflushed().is_some()
    }

    /// Judges a flush that covered `written` writes and ended with `errno` (0 for success). Returns
    /// the errno for the client.
    ///
    /// The kernel reports a failed write-back once and then forgets the pages: the next fsync
    /// succeeds although the data is gone. So after a failed flush of a cached file, every later
    /// flush fails until the leaf is opened anew.
    pub fn judge_flush(&self, written: u64, errno: i32) -> i32 {
        if errno != 0 {
            if self.engine.may_have_dropped_writes(errno) {
                self.lost.store(true, Ordering::Release);
            }
            return errno;
        }
        if self.lost.load(Ordering::Acquire) {
            // Not EIO, because that would fail the path. A multipath would then flush another path,
            // which does not know of the data lost here.
            return libc::EREMOTEIO;
        }
        self.dirty.flushed(written);
        0
    }

    /// Flushes from the control side, when the leaf leaves a table or the pool stops. Blocks.
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
    /// Closes the engine on another thread, because the last reference may be dropped by a thread
    /// that must not block.
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

    /// If the writes of a queue without a line were lost, a FLUSH would be answered without
    /// flushing.
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

    /// After a path error, a multipath would ask another path, which knows nothing of the lost
    /// writes and would answer with success.
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
