//! A switch, or any other table, driven by its owner's own thread: requests go in by call and
//! answers come out by call, without a queue thread, a gate or an export. For programs that route
//! requests in their own process.
//!
//! Contract: one thread. A driver is as live as it is waited on: what takes too long is found out,
//! and a remote leaf connected again, in [`Driver::wait`]. A request's memory is the driver's until
//! it is answered.

use std::io;
use std::mem;
use std::sync::Arc;

use crate::engine::links::Links;
use crate::pipeline::Pipeline;
use crate::queues::Queues;
use crate::request::{Done, Op, Request, Span};
use crate::ring::{Completion, Ring, Tag};
use crate::slab::Slab;
use crate::stats::Counters;
use crate::table::{Live, Table};

/// A request to a device of a [`Driver`].
#[derive(Debug)]
pub struct Ask {
    /// What to do.
    pub op: Op,
    /// Stable before it is answered (force unit access). Only with writes.
    pub fua: bool,
    /// Byte offset on the device, in whole sectors.
    pub offset: u64,
    /// Length in bytes, in whole sectors; 0 for a flush.
    pub len: u64,
    /// What is written, or memory for what is read: at least `len` bytes. Nothing for other
    /// operations.
    pub data: Vec<u8>,
    /// Comes back with the answer.
    pub token: u64,
}

/// The answer to an [`Ask`].
#[derive(Debug)]
pub struct Answer {
    /// Of the request.
    pub token: u64,
    /// 0, or why it failed. A write that failed may have been done, or a part of it.
    pub errno: i32,
    /// The request's memory; of a read, with what was read.
    pub data: Vec<u8>,
}

/// Why a driver refuses a table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// A leaf or a device below belongs to somebody else.
    #[error(
        "'{0}' belongs to a pool or another driver: open a leaf with \
         LeafOptions::new(driver.queues()); a driver's tables have leaves only, no devices"
    )]
    OtherQueues(String),
    /// All numbers are taken.
    #[error("the driver has no number left for a device")]
    TooMany,
}

/// See the module's text.
///
/// A switch over two paths, in memory here; a path may be any address that `docs/leaves.md` has:
///
/// ```
/// use blkswitch_io::core::switch::{Geometry, Map};
/// use blkswitch_io::driver::{Ask, Driver};
/// use blkswitch_io::request::Op;
/// use blkswitch_io::table::region_storage;
/// use blkswitch_io::{Leaf, LeafOptions, TableBuilder, Target, To};
///
/// let mut driver = Driver::new()?;
/// let options = LeafOptions::new(driver.queues());
/// let mut table = TableBuilder::new(false);
/// let mut paths = Vec::new();
/// for address in ["mem:1M", "mem:1M"] {
///     let leaf = Leaf::open(&address.parse()?, &options)?;
///     paths.push(To { below: table.leaf(leaf), offset: 0 });
/// }
/// // 2048 sectors, two paths, 128 sectors a region.
/// let geometry = Geometry::new(2048, 2, 128).map_err(|error| error.to_string())?;
/// let storage = region_storage(&geometry).ok_or("no memory for the map")?;
/// let map = Map::new(geometry, storage).map_err(|_| "the storage is too small")?;
/// table.push(2048, Target::Switch { map, paths: paths.into() });
/// let device = driver.add(table.build()?)?;
/// let table = driver.table(device).ok_or("the device has a table")?.clone();
/// // Region 1 goes to path 0 from now on; others may do this while requests are under way.
/// if let Target::Switch { map, .. } = &table.segments()[0].target {
///     map.writer().ok_or("somebody else changes the map")?.set(1, 0);
/// }
/// let (data, mut answers) = (vec![7; 4096], Vec::new());
/// driver.start(device, Ask { op: Op::Write, fua: false, offset: 65536, len: 4096, data, token: 1 });
/// while answers.is_empty() {
///     driver.wait(&mut answers)?;
/// }
/// assert_eq!((answers[0].token, answers[0].errno), (1, 0));
/// assert_eq!([table.path_totals(0).writes, table.path_totals(1).writes], [1, 0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Driver {
    queues: Queues,
    pipeline: Pipeline,
    ring: Ring,
    /// By the number of the device.
    devices: Vec<Arc<Live>>,
    /// By the pipeline's token: that of the owner, and the memory that is lent.
    under_way: Slab<(u64, Vec<u8>)>,
    answers: Vec<Answer>,
    done: Vec<Done>,
    completions: Vec<Completion>,
    ticking: bool,
}

impl Driver {
    /// Without devices. Errors: as [`Ring::new`].
    pub fn new() -> io::Result<Driver> {
        Ok(Driver {
            queues: Queues::of_new_owner(1),
            pipeline: Pipeline::new(0),
            ring: Ring::new()?,
            devices: Vec::new(),
            under_way: Slab::default(),
            answers: Vec::new(),
            done: Vec::new(),
            completions: Vec::new(),
            ticking: false,
        })
    }

    /// Its queue: what its leaves are opened for.
    pub fn queues(&self) -> Queues {
        self.queues
    }

    /// A device with this table, whose paths are leaves of this driver. Returns its number.
    ///
    /// # Errors
    /// A leaf was opened for the queues of a pool or another driver, or a path leads to a device of
    /// a pool.
    pub fn add(&mut self, mut table: Table) -> Result<u32, DriverError> {
        table.serve(self.queues).map_err(DriverError::OtherQueues)?;
        let device = u32::try_from(self.devices.len()).map_err(|_| DriverError::TooMany)?;
        let live = Arc::new(Live { table: Arc::new(table), departed: Box::default() });
        self.devices.push(live.clone());
        self.pipeline.install(device, Counters::boxed(1).into());
        self.pipeline.open(device, Some(live), &mut self.ring);
        Ok(device)
    }

    /// The table of a device: its maps, and what was counted for its paths.
    pub fn table(&self, device: u32) -> Option<&Arc<Table>> {
        self.devices.get(device as usize).map(|live| &live.table)
    }

    /// Starts a request; what the kernel has to do for it is handed over with the next
    /// [`Driver::wait`], together with others. It is answered exactly once, there. `EINVAL`: it is
    /// not in whole sectors, or has less data than it says.
    pub fn start(&mut self, device: u32, ask: Ask) {
        let Ask { op, fua, offset, len, mut data, token } = ask;
        let needs = if matches!(op, Op::Read | Op::Write) { len } else { 0 };
        if !offset.is_multiple_of(512) || !len.is_multiple_of(512) || (data.len() as u64) < needs {
            return self.answers.push(Answer { token, errno: libc::EINVAL, data });
        }
        // The owner may not have waited for long, and limits count from here.
        self.ring.read_clock();
        let span = Span(data.as_mut_ptr());
        let id = self.under_way.insert((token, data));
        let request =
            Request { op, fua, offset, len, data: span, pages: None, token: u64::from(id) };
        if let Some(errno) = self.pipeline.start(device, &request, &mut self.ring) {
            self.answer(Done { token: request.token, errno });
        }
    }

    /// Waits until something happens, unless there are answers already, and appends these to
    /// `answers`: perhaps none yet. Only for who has requests to be answered: without, nothing may
    /// ever happen. Errors: the ring fails, and nothing is answered any more.
    pub fn wait(&mut self, answers: &mut Vec<Answer>) -> io::Result<()> {
        // A link without a connection may have answered at once.
        self.carry();
        let Driver { pipeline, ring, completions, ticking, .. } = self;
        if !*ticking && ring.links.is_timed() {
            *ticking = true;
            ring.tick();
        }
        ring.under_way(pipeline.in_flight());
        ring.read_clock();
        ring.wait(pipeline.has_done() || !self.answers.is_empty(), completions)?;
        for completion in completions.drain(..) {
            match completion.tag {
                Tag::Part | Tag::Window => pipeline.complete(&completion, ring),
                Tag::Link => ring.links.complete(&completion),
                Tag::Tick => {
                    *ticking = false;
                    ring.links.tick(ring.now_ns());
                }
                Tag::Wake | Tag::Accept | Tag::Receive | Tag::Send | Tag::Ublk | Tag::Ignored => {}
            }
        }
        self.carry();
        // Paths tell of themselves by their state: nobody listens to these.
        self.pipeline.take_events().for_each(drop);
        let mut done = mem::take(&mut self.done);
        self.pipeline.take_done(&mut done);
        self.ring.answered(done.len());
        done.drain(..).for_each(|done| self.answer(done));
        self.done = done;
        answers.append(&mut self.answers);
        Ok(())
    }

    fn answer(&mut self, done: Done) {
        if let Some((token, data)) = self.under_way.remove(done.token as u32) {
            self.answers.push(Answer { token, errno: done.errno, data });
        }
    }

    /// Lets links send and receive, and gives the pipeline what they have answered.
    fn carry(&mut self) {
        loop {
            while let Some((part, result)) = self.ring.links.take_finished() {
                self.pipeline.complete(&Completion::of_part(part, result), &mut self.ring);
            }
            Links::turn(&mut self.ring);
            if !self.ring.links.has_finished() {
                return;
            }
        }
    }
}

/// Waits for what is under way, as closing a file does: the kernel may write to its memory until
/// then. What is held for want of a path fails.
impl Drop for Driver {
    fn drop(&mut self) {
        self.pipeline.refuse(libc::ESHUTDOWN, &mut self.ring);
        let mut answers = Vec::new();
        let mut is_closed = false;
        loop {
            if self.pipeline.in_flight() == 0 && !is_closed {
                self.ring.links.close(self.ring.now_ns());
                self.carry();
                is_closed = true;
            }
            if is_closed && self.ring.links.is_empty() {
                return;
            }
            if let Err(error) = self.wait(&mut answers) {
                tracing::error!(%error, "a driver's ring fails: what is under way keeps its memory");
                mem::forget(mem::take(&mut self.under_way));
                return mem::forget(mem::replace(&mut self.ring, Ring::simulated()));
            }
        }
    }
}
