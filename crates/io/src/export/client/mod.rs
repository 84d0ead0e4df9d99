//! The client of this process: a device is offered to a thread of the embedding program, without a
//! socket.
//!
//! A [`Client`] belongs to one device and one queue of the pool. Requests and answers cross between
//! its thread and the queue's in two bounded lines without locks ([`crate::sys::handoff`]). The
//! memory of a request ([`crate::AlignedBytes`]) crosses with it, so nothing is copied.
//!
//! Contract: every request is answered exactly once, unless the queue ends before it has begun with
//! it; [`Client::wait`] then says so. At most [`ClientOptions::in_flight`] requests are between
//! [`Client::start`] and their answers, so neither line is ever full on the queue's side. In steady
//! state the queue takes no lock for a client and allocates nothing.

pub(crate) mod server;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::device::{Device, DeviceError, OpenDevice};
pub use crate::request::{Answer, Ask};
use crate::sys::eventfd::EventFd;
use crate::sys::handoff::{Receiver, Sender, line};
pub use crate::sys::waker::Waker;
use server::Seat;

/// Most requests that a client may have in flight.
pub const MAX_IN_FLIGHT: usize = 4096;

/// How a client is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// Most requests in flight, from 1 to [`MAX_IN_FLIGHT`].
    pub in_flight: usize,
    /// The queue that serves the client, counted from 0. `None`: the queues take turns.
    pub queue: Option<usize>,
}

impl Default for ClientOptions {
    /// 128 requests in flight, as a ublk disk has. The queues take turns.
    fn default() -> Self {
        ClientOptions { in_flight: 128, queue: None }
    }
}

/// Why a client cannot be made, or cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The device cannot be opened.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The number of requests in flight is out of range.
    #[error("{0} requests in flight: a client may have 1 to {max}", max = MAX_IN_FLIGHT)]
    InFlight(usize),
    /// There is no such queue.
    #[error("there is no queue {queue}: the pool has {queues}, counted from 0")]
    NoQueue {
        /// The queue that was asked for.
        queue: usize,
        /// Number of queues of the pool.
        queues: usize,
    },
    /// The system refuses a descriptor, or a wait.
    #[error("a client needs three eventfds and waits for two of them: {0}")]
    System(#[from] io::Error),
    /// The pool has stopped, or the client's queue has failed. Nothing is answered any more.
    #[error(
        "the pool has stopped or the client's queue has failed: {unanswered} requests have no answer"
    )]
    Ended {
        /// Number of requests without an answer. They may have been carried out.
        unanswered: usize,
    },
}

/// Shared by a client and its seat on the queue, beside the two lines.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Rung by the client: there are requests, or it is gone.
    bell: EventFd,
    /// Rung by the queue: there are answers, or the queue is gone.
    answered: EventFd,
    /// The client is gone or about to go.
    is_closed: AtomicBool,
    /// The queue answers nothing any more.
    is_over: AtomicBool,
}

/// A user of a device, on a thread of the embedding program. From
/// [`Pool::client`](crate::Pool::client).
///
/// The device counts as open until the client is gone and its requests have ended. Dropping a
/// client does not wait: its queue keeps the memory of requests in flight, and drops it with their
/// answers. [`Client::close`] waits.
///
/// A thread that needs several queues makes several clients. A client can be sent to another
/// thread, but two threads cannot use it at once.
///
/// ```
/// use blkswitch_io::client::{Ask, ClientOptions};
/// use blkswitch_io::{AlignedBytes, Leaf, LeafOptions, Pool, PoolOptions};
/// use blkswitch_io::{TableBuilder, Target, To};
///
/// let pool = Pool::start(PoolOptions { queues: 1, ..PoolOptions::default() })?;
/// let leaf = Leaf::open(&"mem:1M".parse()?, &LeafOptions::new(pool.queues()))?;
/// let mut table = TableBuilder::new(false);
/// let below = table.leaf(leaf);
/// table.push(2048, Target::Linear(To { below, offset: 0 }));
/// let device = pool.registry().create("disk", "", None)?;
/// device.load(table.build()?)?;
/// device.resume()?;
///
/// let mut client = pool.client(&device, ClientOptions::default())?;
/// let mut answers = Vec::new();
/// client.start(Ask::write(4096, AlignedBytes::copy_of(&[7; 512])?, 1)).map_err(|_| "full")?;
/// client.wait(&mut answers, None)?;
/// client.start(Ask::read(4096, AlignedBytes::zeroed(512)?, 2)).map_err(|_| "full")?;
/// client.wait(&mut answers, None)?;
/// for answer in &answers {
///     assert!(answer.result.is_ok());
/// }
/// assert_eq!((answers[1].token, answers[1].data[511]), (2, 7));
/// client.close(&mut answers)?;
/// pool.stop();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Client {
    asks: Sender<Ask>,
    answers: Receiver<Answer>,
    shared: Arc<Shared>,
    waker: Waker,
    queue: usize,
    most: usize,
    in_flight: usize,
    /// Requests were put into the line since the bell was rung.
    has_new: bool,
}

/// Makes both ends: the client, and its seat for queue number `queue`.
pub(crate) fn pair(
    device: &Arc<Device>,
    most: usize,
    queue: usize,
) -> Result<(Client, Box<Seat>), ClientError> {
    if most == 0 || most > MAX_IN_FLIGHT {
        return Err(ClientError::InFlight(most));
    }
    let open = OpenDevice::new(device).ok_or_else(|| DeviceError::NotFound(device.name()))?;
    let shared = Arc::new(Shared {
        bell: EventFd::nonblocking()?,
        answered: EventFd::nonblocking()?,
        is_closed: AtomicBool::new(false),
        is_over: AtomicBool::new(false),
    });
    let ((asks, to_do), (done, answers)) = (line(most), line(most));
    let seat = Box::new(Seat::new(open, to_do, done, shared.clone()));
    let waker = Waker::new()?;
    Ok((Client { asks, answers, shared, waker, queue, most, in_flight: 0, has_new: false }, seat))
}

impl Client {
    /// Puts a request into the line to the queue. The queue learns of it with the next
    /// [`Client::submit`] or [`Client::wait`], together with others.
    ///
    /// A request that is not in whole blocks of the device, has less memory than it says, flushes a
    /// range, or is to be durable and no write, is answered with `EINVAL`.
    ///
    /// # Errors
    /// As many requests are in flight as the client may have: returns the request. Take answers
    /// first.
    pub fn start(&mut self, ask: Ask) -> Result<(), Ask> {
        if self.in_flight >= self.most {
            return Err(ask);
        }
        self.asks.send(ask)?;
        self.in_flight += 1;
        self.has_new = true;
        Ok(())
    }

    /// Tells the queue of the requests that were started. Does not wait.
    pub fn submit(&mut self) {
        if std::mem::take(&mut self.has_new) {
            self.shared.bell.signal();
        }
    }

    /// Submits, then waits until there are answers, at most so long (`None`: for ever), and appends
    /// them to `answers`. Also returns when a [`Waker`] wakes it. With nothing in flight it does
    /// not wait for ever: then it returns at once.
    ///
    /// # Errors
    /// [`ClientError::Ended`] when the queue is gone and its last answers are taken, or
    /// [`ClientError::System`].
    pub fn wait(
        &mut self,
        answers: &mut Vec<Answer>,
        at_most: Option<Duration>,
    ) -> Result<(), ClientError> {
        self.submit();
        let until = at_most.and_then(|time| Instant::now().checked_add(time));
        let mut is_woken = false;
        loop {
            // In this order: what comes after the look at the line rings again.
            self.shared.answered.reset();
            let is_over = self.shared.is_over.load(Ordering::Acquire);
            let before = self.in_flight;
            while let Some(answer) = self.answers.take() {
                self.in_flight -= 1;
                answers.push(answer);
            }
            if self.in_flight < before || is_woken {
                return Ok(());
            }
            if is_over {
                return Err(ClientError::Ended { unanswered: self.in_flight });
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) || (at_most.is_none() && before == 0) {
                return Ok(());
            }
            is_woken = wait_for([self.shared.answered.fd(), self.waker.fd()], left)?;
            if is_woken {
                self.waker.reset();
            }
        }
    }

    /// Ends the client in order: waits until its requests are answered, into `answers`. Requests
    /// that wait for a path or for a suspended device fail with `ESHUTDOWN`. Completed writes stay
    /// unflushed: start a flush before.
    ///
    /// # Errors
    /// As [`Client::wait`].
    pub fn close(mut self, answers: &mut Vec<Answer>) -> Result<(), ClientError> {
        self.leave();
        while self.in_flight > 0 {
            self.wait(answers, None)?;
        }
        Ok(())
    }

    /// Number of requests without an answer that was taken.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Number of requests that [`Client::start`] takes before it refuses one.
    #[must_use]
    pub fn room(&self) -> usize {
        self.most - self.in_flight
    }

    /// The queue that serves the client, counted from 0.
    #[must_use]
    pub fn queue(&self) -> usize {
        self.queue
    }

    /// A handle with which other threads end the client's wait.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn leave(&self) {
        self.shared.is_closed.store(true, Ordering::Release);
        self.shared.bell.signal();
    }
}

impl AsFd for Client {
    /// A descriptor that is readable when there are answers, for programs that wait for several
    /// descriptors by `poll` or `epoll`. Call [`Client::submit`] before, and [`Client::wait`] with
    /// a time of zero when it is readable.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.answered.fd().as_fd()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.leave();
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Client { queue, most, in_flight, .. } = self;
        f.debug_struct("Client")
            .field("queue", queue)
            .field("most", most)
            .field("in_flight", in_flight)
            .finish_non_exhaustive()
    }
}

/// Waits until one of the descriptors is readable, at most so long. Returns whether the second is.
fn wait_for(fds: [&OwnedFd; 2], at_most: Option<Duration>) -> io::Result<bool> {
    let polled =
        |fd: &OwnedFd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut polls = fds.map(polled);
    let time = at_most.map(|time| libc::timespec {
        tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: time.subsec_nanos().into(),
    });
    let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: two entries and, if there is one, a time, all of which outlive the call.
    if unsafe { libc::ppoll(polls.as_mut_ptr(), 2, time, std::ptr::null()) } < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok(false) } else { Err(error) };
    }
    Ok(polls[1].revents != 0)
}
