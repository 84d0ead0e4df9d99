//! A switch, or any other table, driven by its owner's own thread: requests go in by call and
//! answers come out by call, without a queue thread or an export. For programs that route requests
//! in their own process.
//!
//! Contract: one thread; a driver is neither `Send` nor `Sync`. Other threads give it work through
//! a channel of their own and a [`Waker`]. A driver is as live as it is waited on: what takes too
//! long is found out, and a remote leaf connected again, in [`Driver::wait`]. A request's memory is
//! the driver's until it is answered.

mod device;

use std::cell::OnceCell;
use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use io_uring::{opcode, types};

use crate::engine::session::turn::Turn;
use crate::pipeline::Pipeline;
use crate::queues::Queues;
pub use crate::request::{Answer, Ask};
use crate::request::{Done, Request, Span};
use crate::sys::aligned::AlignedBytes;
use crate::sys::ring::{Completion, Tag, user_data};
use crate::sys::slab::Slab;
pub use crate::sys::waker::Waker;

pub use device::DriverEvent;
use device::{Events, Local};

/// How long a driver that is dropped may wait for its leaves' idle connections to end: the kernel
/// gives back their memory in a moment, and keeps it for ever if nobody waits.
const GOODBYE: Duration = Duration::from_millis(200);

/// Why a driver refuses to change a device.
#[derive(Debug, thiserror::Error)]
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
    /// There is no device of this number.
    #[error("the driver has no device {0}")]
    NoDevice(u32),
    /// Requests to the device are not answered yet.
    #[error("device {0} has requests that are not answered yet: wait for their answers first")]
    Busy(u32),
    /// A table waits to take the place of the device's.
    #[error("a table is about to take the place of that of device {0}: wait until it has")]
    Replacing(u32),
    /// A leaf cannot be flushed.
    #[error("cannot flush '{leaf}', which has unflushed writes: {source}")]
    Flush {
        /// Its address.
        leaf: String,
        /// The system's answer.
        source: io::Error,
    },
}

/// Tables, and the requests to them that are under way, of one thread.
///
/// Answers come out of [`Driver::wait`]. [`Driver::close`] ends it in order; a driver that is just
/// dropped while the kernel may still write to the memory of requests leaks that.
///
/// A switch over two paths, in memory here; a path may be any address that `docs/leaves.md` has:
///
/// ```
/// use blkswitch_io::core::switch::{Geometry, Map};
/// use blkswitch_io::driver::{Ask, Driver};
/// use blkswitch_io::table::region_storage;
/// use blkswitch_io::{AlignedBytes, Leaf, LeafOptions, TableBuilder, Target, To};
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
/// let (data, mut answers) = (AlignedBytes::copy_of(&[7; 4096])?, Vec::new());
/// driver.start(device, Ask::write(65536, data, 1));
/// while answers.is_empty() {
///     driver.wait(&mut answers, None)?;
/// }
/// assert!(answers[0].token == 1 && answers[0].result.is_ok());
/// assert_eq!([table.path_totals(0).writes, table.path_totals(1).writes], [1, 0]);
/// driver.close(&mut answers)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// It stays on its thread:
///
/// ```compile_fail,E0277
/// fn to_another_thread<T: Send>() {}
/// to_another_thread::<blkswitch_io::driver::Driver>();
/// ```
pub struct Driver {
    queues: Queues,
    pipeline: Pipeline,
    turn: Turn,
    /// By the number of the device.
    devices: Vec<Option<Local>>,
    events: Events,
    waker: Waker,
    /// The ring looks at the waker.
    is_listening: bool,
    /// Rung by the kernel when something has completed, once somebody has asked for it.
    completed: OnceCell<Option<Waker>>,
    /// By the pipeline's token: that of the owner, and the memory that is lent.
    under_way: Slab<(u64, AlignedBytes)>,
    answers: Vec<Answer>,
    done: Vec<Done>,
    completions: Vec<Completion>,
    ticking: bool,
}

impl Driver {
    /// Without devices.
    ///
    /// # Errors
    /// The kernel has no io_uring, or forbids it (`kernel.io_uring_disabled`, a container's seccomp
    /// filter), or there is no descriptor left.
    pub fn new() -> io::Result<Driver> {
        Ok(Driver {
            queues: Queues::of_new_owner(1),
            pipeline: Pipeline::new(0),
            turn: Turn::new()?,
            devices: Vec::new(),
            events: Events::default(),
            waker: Waker::new()?,
            is_listening: false,
            completed: OnceCell::new(),
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

    /// The waker for other threads.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Starts a request; what the kernel has to do for it is handed over with the next
    /// [`Driver::wait`], together with others. It is answered exactly once, there. `EINVAL`: it is
    /// not in whole blocks of the device, has less data than it says, is a flush of a range, or is
    /// to be stable and no write. `ENXIO`: there is no such device.
    pub fn start(&mut self, device: u32, ask: Ask) {
        if let Err(errno) = self.check(device, &ask) {
            return self.answers.push(Answer::new(ask.token, errno, ask.data));
        }
        let Ask { op, fua, offset, len, mut data, token } = ask;
        // The owner may not have waited for long, and limits count from here.
        self.turn.read_clock();
        let span = if op.has_data() { Span(data.as_mut_ptr()) } else { Span::NONE };
        let id = self.under_way.insert((token, data));
        let request =
            Request { op, fua, offset, len, data: span, pages: None, token: u64::from(id) };
        if let Some(errno) = self.pipeline.start(device, &request, &mut self.turn) {
            self.answer(Done { token: request.token, errno });
        }
    }

    fn check(&self, device: u32, ask: &Ask) -> Result<(), i32> {
        let table = self.table(device).ok_or(libc::ENXIO)?;
        ask.check(u64::from(table.logical_block()))
    }

    /// Waits until something happens, at most so long (`None`: for ever), unless there are answers
    /// already, and appends these to `answers`: perhaps none. Something is an answer, a step on the
    /// way to one, a table that took its place, or a [`Waker`].
    ///
    /// # Errors
    /// The ring fails, and nothing is answered any more.
    pub fn wait(&mut self, answers: &mut Vec<Answer>, at_most: Option<Duration>) -> io::Result<()> {
        if let Some(Some(completed)) = self.completed.get() {
            completed.reset();
        }
        // A session without a connection may have answered at once.
        self.carry();
        self.listen();
        let Driver { pipeline, turn, completions, ticking, .. } = self;
        if !*ticking && turn.sessions.is_timed() {
            *ticking = true;
            turn.tick();
        }
        turn.under_way(pipeline.in_flight());
        turn.read_clock();
        let has_answers = pipeline.has_done() || !self.answers.is_empty();
        let poll = has_answers || at_most == Some(Duration::ZERO);
        let until_ns = at_most.map(|time| {
            turn.now_ns().saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
        });
        turn.wait_until(poll, until_ns, completions)?;
        for completion in completions.drain(..) {
            match completion.tag {
                Tag::Part | Tag::Window => pipeline.complete(&completion, turn),
                Tag::Session => turn.sessions.complete(&completion),
                Tag::Tick => {
                    *ticking = false;
                    turn.sessions.tick(turn.now_ns());
                }
                Tag::Wake => {
                    self.is_listening = false;
                    self.waker.reset();
                }
                Tag::Accept
                | Tag::Receive
                | Tag::Send
                | Tag::Ublk
                | Tag::Client
                | Tag::VhostUser
                | Tag::Ignored => {}
            }
        }
        self.carry();
        let happened: Vec<_> = self.pipeline.take_events().collect();
        happened.into_iter().for_each(|(device, event)| self.happened(device, event));
        self.settle_devices();
        let mut done = mem::take(&mut self.done);
        self.pipeline.take_done(&mut done);
        self.turn.answered(done.len());
        done.drain(..).for_each(|done| self.answer(done));
        self.done = done;
        answers.append(&mut self.answers);
        Ok(())
    }

    /// How soon [`Driver::wait`] must be called even if the descriptor ([`AsFd`]) does not become
    /// readable: for programs that wait for it together with others, by `poll` or `epoll`. `None`:
    /// there is nothing that only time brings. After each [`Driver::start`] a wait of
    /// `Some(Duration::ZERO)` hands the request over.
    pub fn next_wait(&mut self) -> Option<Duration> {
        let has_answers = self.pipeline.has_done() || !self.answers.is_empty();
        if has_answers || self.turn.sessions.has_finished() || self.turn.has_unsubmitted() {
            return Some(Duration::ZERO);
        }
        let next_ns = self.turn.next_deferred_ns()?;
        self.turn.read_clock();
        Some(Duration::from_nanos(next_ns.saturating_sub(self.turn.now_ns())))
    }

    /// Has the ring look at the waker.
    fn listen(&mut self) {
        if mem::replace(&mut self.is_listening, true) {
            return;
        }
        // It is polled, not read: whatever becomes of the ring, nobody writes to memory here.
        let fd = types::Fd(self.waker.fd().as_raw_fd());
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).build();
        // SAFETY: nothing is pointed to, and the descriptor lives as long as the ring.
        unsafe { self.turn.push(&entry.user_data(user_data(Tag::Wake, 0))) };
    }

    fn answer(&mut self, done: Done) {
        if let Some((token, data)) = self.under_way.remove(done.token as u32) {
            self.answers.push(Answer::new(token, done.errno, data));
        }
    }

    /// Lets sessions send and receive, and gives the pipeline what they have answered.
    fn carry(&mut self) {
        loop {
            while let Some((part, result)) = self.turn.sessions.take_finished() {
                self.pipeline.complete(&Completion::of_part(part, result), &mut self.turn);
            }
            self.turn.run_sessions();
            if !self.turn.sessions.has_finished() {
                return;
            }
        }
    }

    /// Ends it in order: waits until everything under way has been answered, into `answers`, and
    /// the connections of its leaves have ended. Requests that wait for a path or a table fail.
    /// Unflushed writes stay unflushed: start a flush first.
    ///
    /// # Errors
    /// The ring fails: what is under way keeps its memory.
    pub fn close(mut self, answers: &mut Vec<Answer>) -> io::Result<()> {
        self.end(answers, None).map(drop)
    }

    /// Ends what is under way and then the sessions, until a time if one is given. Whether it has.
    fn end(&mut self, answers: &mut Vec<Answer>, until: Option<Instant>) -> io::Result<bool> {
        self.pipeline.refuse(libc::ESHUTDOWN, &mut self.turn);
        let mut is_closed = false;
        loop {
            if self.pipeline.in_flight() == 0 && !is_closed {
                self.turn.sessions.close(self.turn.now_ns());
                self.carry();
                is_closed = true;
            }
            let is_over = is_closed && self.turn.sessions.is_empty();
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if is_over || left.is_some_and(|left| left.is_zero()) {
                // Refused requests have their answers by now.
                self.wait(answers, Some(Duration::ZERO))?;
                return Ok(is_over);
            }
            self.wait(answers, left)?;
        }
    }
}

impl AsFd for Driver {
    /// Readable when there is something to be taken by [`Driver::wait`]; see
    /// [`Driver::next_wait`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        // An eventfd, and not the ring's own descriptor: that does not wake who polls it for
        // completions that the kernel leaves to this thread (`IORING_SETUP_DEFER_TASKRUN`).
        let event = self.completed.get_or_init(|| {
            let event = Waker::new().ok().filter(|event| self.turn.announce_to(event.fd()).is_ok());
            // Nothing has announced the completions that were there before.
            event.inspect(Waker::wake)
        });
        event.as_ref().unwrap_or(&self.waker).fd().as_fd()
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("devices", &self.devices.iter().flatten().count())
            .field("under_way", &self.under_way.len())
            .finish_non_exhaustive()
    }
}

/// Does not wait for what is under way: memory that the kernel may still write to is leaked, with
/// the ring. [`Driver::close`] is the other way.
impl Drop for Driver {
    fn drop(&mut self) {
        self.pipeline.refuse(libc::ESHUTDOWN, &mut self.turn);
        if self.pipeline.in_flight() == 0 {
            let ended = self.end(&mut Vec::new(), Some(Instant::now() + GOODBYE));
            if matches!(ended, Ok(true)) {
                return;
            }
        }
        tracing::warn!("a driver is dropped with requests under way: their memory is leaked");
        mem::forget(mem::take(&mut self.under_way));
        mem::forget(mem::replace(&mut self.turn, Turn::simulated()));
        // The leaves' descriptors and connections are in use.
        mem::forget(mem::take(&mut self.devices));
    }
}
