//! The ring of one queue: io_uring for the work of the kernel, and a heap of deferred completions.
//!
//! Contract: one thread owns a ring and passes it as an argument. Submissions are collected and go
//! to the kernel with one system call per turn of the queue's loop ([`Ring::wait`]). The clock is
//! read once per turn ([`Ring::now_ns`]), and all code on the way of a request uses that reading. A
//! ring without a kernel side ([`Ring::simulated`]) has a clock that jumps to the next deferred
//! completion. The simulation runs on it.

mod budget;
mod polling;
mod trouble;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};

use budget::Budget;
use polling::Polling;
use trouble::Trouble;

/// Most submissions that are collected before they must go to the kernel: twice the deepest batch
/// seen in practice. More only cost another system call.
const SUBMISSIONS: u32 = 512;
/// Completions that the kernel holds without its overflow list: the requests in flight of several
/// connections.
const COMPLETIONS: u32 = 8192;

/// How often the kernel is asked again for a ring when it has no memory for it, and the pause
/// between.
const PAUSES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(50);

/// Most worker threads of the kernel for this ring's operations on files and disks. The kernel
/// starts one only if all others wait, so there are usually few. One file that hangs must not
/// occupy all of them ([`crate::leaf::MAX_UNDER_WAY`]).
const MAX_WORKERS: u32 = 2048;

/// Slots of the ring's table of buffers, once it is needed: the most that the kernel allows
/// (`IORING_MAX_REG_BUFFERS`). The table takes 128 KiB.
const SLOTS: u16 = 1 << 14;

/// Seconds between two checks of deadlines, which are all several seconds long.
pub const TICK_SECONDS: u64 = 1;

/// The owner of a completion: the top byte of `user_data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Tag {
    /// A part of a request; the id is its slab index.
    Part = 1,
    /// The mailbox was written to.
    Wake = 2,
    /// A listening socket; the id is the listener's index.
    Accept = 3,
    /// Bytes from a connection's socket; the id is the connection's index.
    Receive = 4,
    /// Bytes were sent to a connection's socket; the id is the connection's index.
    Send = 5,
    /// A second has passed ([`Ring::tick`]).
    Tick = 6,
    /// A cancellation, or another operation whose result does not matter.
    Ignored = 7,
    /// A command of a ublk hardware queue; the id is the queue's index and the tag.
    Ublk = 8,
    /// Requests whose turn has come go on.
    Window = 9,
    /// An operation of a leaf's session; the sessions define the id.
    Session = 10,
    /// A client of this process has rung; the id is the index of its seat.
    Client = 11,
    /// An eventfd of a vhost-user ring; the id is the ring's index and which of its eventfds.
    VhostUser = 12,
}

impl Tag {
    fn from_byte(byte: u8) -> Tag {
        match byte {
            1 => Tag::Part,
            2 => Tag::Wake,
            3 => Tag::Accept,
            4 => Tag::Receive,
            5 => Tag::Send,
            6 => Tag::Tick,
            8 => Tag::Ublk,
            10 => Tag::Session,
            11 => Tag::Client,
            12 => Tag::VhostUser,
            _ => Tag::Ignored,
        }
    }
}

/// A completion: its owner, and the result (negative errno or a count).
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// The owner of the operation.
    pub tag: Tag,
    /// The id given at submission (56 bits).
    pub id: u64,
    /// The result, as the kernel gives it.
    pub result: i32,
    /// Whether it comes from [`Ring::defer`] and not from the kernel, so that the engine must still
    /// act.
    pub deferred: bool,
}

impl Completion {
    /// The completion of a part whose result does not come from the ring.
    pub(crate) fn of_part(part: u32, result: i64) -> Completion {
        // No transfer is longer than a request, which is far below 2^31.
        let result = result.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
        Completion { tag: Tag::Part, id: u64::from(part), result, deferred: false }
    }
}

/// Builds the `user_data` of a submission. `id` has at most 56 bits.
pub fn user_data(tag: Tag, id: u64) -> u64 {
    ((tag as u64) << 56) | (id & ((1 << 56) - 1))
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Deferred {
    at_ns: u64,
    /// Insertion order, which decides between equal times.
    order: u64,
    tag: Tag,
    id: u32,
}

/// The io_uring of one thread, with its deferred completions.
pub struct Ring {
    kernel: Option<IoUring>,
    /// Submissions that the kernel's queue had no room for, oldest first.
    backlog: VecDeque<squeue::Entry>,
    trouble: Trouble,
    budget: Budget,
    deferred: BinaryHeap<Reverse<Deferred>>,
    order: u64,
    now_ns: u64,
    polling: Polling,
    /// Free slots of the table of buffers; `None` while there is no table.
    slots: Option<Vec<u16>>,
    /// Number of requests answered in this turn.
    answered: usize,
    /// Number of requests under way when the turn ended.
    under_way: usize,
}

impl Ring {
    /// Creates a ring, which only this thread may use. `Err` if the kernel has no io_uring, or
    /// forbids it (`kernel.io_uring_disabled`, a container's seccomp filter).
    pub fn new() -> io::Result<Ring> {
        let kernel = Ring::build()?;
        // Kernels before 5.15 have no such call. There, a file that hangs may delay other leaves.
        let _ = kernel.submitter().register_iowq_max_workers(&mut [MAX_WORKERS, 0]);
        Ok(Ring { kernel: Some(kernel), now_ns: clock_ns(), ..Ring::simulated() })
    }

    /// Creates the kernel's side of a ring.
    ///
    /// From Linux 6.14 on, the kernel counts the memory of rings (160 KiB each) against the memory
    /// that its user may lock (`ulimit -l`, often 8 MiB). It releases that some time after a ring
    /// has ended, so a refusal may pass.
    fn build() -> io::Result<IoUring> {
        let mut pauses = 0;
        loop {
            // With DEFER_TASKRUN (6.1), completions run when this thread waits, and do not
            // interrupt its work. A flag in the ring says that there are some. Older kernels get a
            // plain ring.
            let made = IoUring::builder()
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_taskrun_flag()
                .setup_cqsize(COMPLETIONS)
                .build(SUBMISSIONS)
                .or_else(|_| IoUring::builder().setup_cqsize(COMPLETIONS).build(SUBMISSIONS));
            match made {
                Err(error) if error.kind() == io::ErrorKind::OutOfMemory && pauses < PAUSES => {
                    pauses += 1;
                    std::thread::sleep(PAUSE);
                }
                made => return made,
            }
        }
    }

    /// Creates a ring without a kernel side. Its clock starts at 0 and moves only in
    /// [`Ring::wait`].
    pub fn simulated() -> Ring {
        Ring {
            kernel: None,
            backlog: VecDeque::new(),
            trouble: Trouble::default(),
            budget: Budget::default(),
            deferred: BinaryHeap::new(),
            order: 0,
            now_ns: 0,
            polling: Polling::default(),
            slots: None,
            answered: 0,
            under_way: 0,
        }
    }

    /// The system's monotonic clock in ns, as read at the last turn. For a simulated ring, the
    /// simulated time.
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// Reads the clock now. For use after a system call that may have taken long.
    pub fn read_clock(&mut self) {
        if self.kernel.is_some() {
            self.now_ns = clock_ns();
        }
    }

    /// Queues one submission. It goes to the kernel with the next [`Ring::wait`].
    ///
    /// # Safety
    /// Everything that the entry points to (buffers, message headers, descriptors) stays valid
    /// until its completion is taken.
    pub unsafe fn push(&mut self, entry: &squeue::Entry) {
        let Some(kernel) = self.kernel.as_mut() else {
            debug_assert!(false, "a simulated ring has no kernel side");
            return;
        };
        if self.backlog.is_empty() {
            // SAFETY: the caller keeps what the entry points to alive.
            if unsafe { kernel.submission().push(entry) }.is_ok() {
                return;
            }
            // The queue is full, so submit it. The next wait() submits again and judges any error.
            // Until then, the entry waits behind the refused ones.
            let _ = kernel.submit();
        }
        self.backlog.push_back(entry.clone());
        self.refill();
    }

    /// Moves submissions from the backlog into the kernel's queue, as many as fit.
    fn refill(&mut self) {
        let Some(kernel) = self.kernel.as_mut() else { return };
        let mut queue = kernel.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: the code that pushed the entry keeps what it points to alive.
            if unsafe { queue.push(entry) }.is_err() {
                return;
            }
            self.backlog.pop_front();
        }
    }

    /// Requests a [`Tag::Tick`] after [`TICK_SECONDS`].
    pub fn tick(&mut self) {
        static TICK: types::Timespec = types::Timespec::new().sec(TICK_SECONDS);
        let entry =
            opcode::Timeout::new(&raw const TICK).build().user_data(user_data(Tag::Tick, 0));
        // SAFETY: the time it points to is static.
        unsafe { self.push(&entry) };
    }

    /// Counts `bytes` bytes as copied in this turn: on this thread for a request, or by the kernel
    /// while it takes a submission.
    #[inline]
    pub fn spend(&mut self, bytes: u64) {
        self.budget.spend(bytes);
    }

    /// Whether this turn has used up its budget, by the last reading of the clock. The rest of the
    /// work is left to the next turn, so that other requests get their turn. On a simulated ring,
    /// time does not count.
    #[inline]
    pub fn is_spent(&self) -> bool {
        self.budget.is_spent(self.now_ns)
    }

    /// As [`Ring::is_spent`], after reading the clock.
    pub fn is_spent_now(&mut self) -> bool {
        self.read_clock();
        self.is_spent()
    }

    /// Begins the next stage of the turn, with a new time budget.
    pub fn next_stage(&mut self) {
        if self.kernel.is_some() {
            self.budget.next_stage(self.now_ns);
        }
    }

    /// Completes part `part` at `at_ns` (on the clock of [`Ring::now_ns`]), in the next turn at the
    /// earliest.
    pub fn defer(&mut self, at_ns: u64, part: u32) {
        self.defer_as(at_ns, Tag::Part, part);
    }

    /// Requests a [`Tag::Window`] in the next turn, after the completions that are due.
    pub fn defer_window(&mut self) {
        self.defer_as(self.now_ns, Tag::Window, 0);
    }

    fn defer_as(&mut self, at_ns: u64, tag: Tag, id: u32) {
        self.order += 1;
        self.deferred.push(Reverse(Deferred { at_ns, order: self.order, tag, id }));
    }

    /// Takes up to `wanted` slots of the ring's table of buffers; fewer if there are not enough.
    pub(crate) fn take_slots(&mut self, wanted: usize) -> Vec<u16> {
        let Some(kernel) = self.kernel.as_ref() else { return Vec::new() };
        let free = self.slots.get_or_insert_with(|| {
            match kernel.submitter().register_buffers_sparse(SLOTS.into()) {
                Ok(()) => (0..SLOTS).rev().collect(),
                Err(error) => {
                    tracing::warn!(%error, "no table of buffers: data will be copied");
                    Vec::new()
                }
            }
        });
        free.split_off(free.len() - wanted.min(free.len()))
    }

    /// Returns slots whose buffers were removed.
    pub(crate) fn give_slots(&mut self, slots: Vec<u16>) {
        self.slots.get_or_insert_default().extend(slots);
    }

    /// Counts requests that were answered in this turn. If they come in batches, sleeping is better
    /// than polling, because the next batch gathers meanwhile.
    pub fn answered(&mut self, requests: usize) {
        self.answered += requests;
    }

    /// Sets the number of requests under way at the end of the turn. With several, sleeping is
    /// better than polling, too.
    pub fn under_way(&mut self, requests: usize) {
        self.under_way = requests;
    }

    /// The time of the next deferred completion; `None` if there is none.
    pub(crate) fn next_deferred_ns(&self) -> Option<u64> {
        self.deferred.peek().map(|Reverse(next)| next.at_ns)
    }

    /// Whether there are submissions that go to the kernel with the next [`Ring::wait`].
    pub(crate) fn has_unsubmitted(&mut self) -> bool {
        let queued = self.kernel.as_mut().is_some_and(|kernel| !kernel.submission().is_empty());
        queued || !self.backlog.is_empty()
    }

    /// Lets the kernel signal an eventfd whenever an operation has completed.
    pub(crate) fn announce_to(&self, event: &OwnedFd) -> io::Result<()> {
        let kernel = self.kernel.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        kernel.submitter().register_eventfd(event.as_raw_fd())
    }

    /// Whether there are deferred completions.
    pub fn has_deferred(&self) -> bool {
        !self.deferred.is_empty()
    }

    /// Submits all collected entries, waits for a completion (not if `poll`), reads the clock, and
    /// appends the completions to `out`. A new turn begins ([`Ring::is_spent`]).
    ///
    /// A refusal that may pass (`EAGAIN`, `ENOMEM`, ...) is tried again, also by later calls. `Err`
    /// if the kernel has refused for so long that the ring cannot be used any more.
    pub fn wait(&mut self, poll: bool, out: &mut Vec<Completion>) -> io::Result<()> {
        self.wait_until(poll, None, out)
    }

    /// As [`Ring::wait`], but waits at most until `until_ns` (on the clock of [`Ring::now_ns`]).
    pub(crate) fn wait_until(
        &mut self,
        poll: bool,
        until_ns: Option<u64>,
        out: &mut Vec<Completion>,
    ) -> io::Result<()> {
        if self.kernel.is_some() {
            let waited = self.wait_kernel(poll, until_ns, out)?;
            let began_ns = self.now_ns;
            self.now_ns = clock_ns();
            if let Some(found) = waited {
                self.polling.waited(found, self.now_ns - began_ns);
            }
            self.budget.begin(self.now_ns);
        } else if !poll && let Some(Reverse(next)) = self.deferred.peek() {
            self.now_ns = self.now_ns.max(next.at_ns);
        }
        while let Some(Reverse(next)) = self.deferred.peek()
            && next.at_ns <= self.now_ns
        {
            out.push(Completion {
                tag: next.tag,
                id: u64::from(next.id),
                result: 0,
                deferred: true,
            });
            self.deferred.pop();
        }
        Ok(())
    }

    /// Waits for the kernel. Returns whether polling before the wait found a completion; `None` if
    /// it did not wait, or if requests come in batches, so that polling was not in question.
    fn wait_kernel(
        &mut self,
        poll: bool,
        until_ns: Option<u64>,
        out: &mut Vec<Completion>,
    ) -> io::Result<Option<bool>> {
        let next_ns = self.next_deferred_ns().into_iter().chain(until_ns).min();
        let Some(kernel) = self.kernel.as_mut() else { return Ok(None) };
        let ready = !kernel.completion().is_empty();
        let want = usize::from(!poll && !ready);
        // The last turn's reading of the clock is accurate enough as the start, because a turn is
        // short compared with the times that polling distinguishes.
        let one_by_one = mem::take(&mut self.answered) <= 1 && self.under_way <= 1;
        let look_ns = if want == 1 && one_by_one { self.polling.look_ns() } else { 0 };
        let until_ns = (self.now_ns + look_ns).min(next_ns.unwrap_or(u64::MAX));
        let found = look_ns > 0 && look(kernel, until_ns);
        // Polling may have found everything already: a receive of bytes that have arrived completes
        // during its submission.
        let all_there = found && !kernel.submission().taskrun();
        let result = self.enter(want, next_ns, all_there);
        let Some(kernel) = self.kernel.as_mut() else { return Ok(None) };
        let (now_ns, has_come) = (clock_ns_if(result.is_err()), !kernel.completion().is_empty());
        self.trouble.judge(result, now_ns, has_come)?;
        for cqe in kernel.completion() {
            let data = cqe.user_data();
            out.push(Completion {
                tag: Tag::from_byte((data >> 56) as u8),
                id: data & ((1 << 56) - 1),
                result: cqe.result(),
                deferred: false,
            });
        }
        Ok((want == 1 && one_by_one).then_some(found))
    }

    /// Submits everything, and waits for `want` completions until `next_ns`.
    fn enter(&mut self, want: usize, next_ns: Option<u64>, all_there: bool) -> io::Result<()> {
        while !self.backlog.is_empty() {
            self.refill();
            let Some(kernel) = self.kernel.as_mut() else { return Ok(()) };
            if self.backlog.is_empty() {
                break;
            }
            if kernel.submit()? == 0 {
                return Err(io::Error::from_raw_os_error(libc::EAGAIN));
            }
        }
        let Some(kernel) = self.kernel.as_mut() else { return Ok(()) };
        #[cfg(test)]
        self.trouble.inject()?;
        match next_ns {
            _ if all_there => Ok(()),
            Some(next_ns) if want == 1 => {
                let ns = next_ns.saturating_sub(clock_ns());
                let time = types::Timespec::new()
                    .sec(ns / 1_000_000_000)
                    .nsec((ns % 1_000_000_000) as u32);
                let args = types::SubmitArgs::new().timespec(&time);
                kernel.submitter().submit_with_args(1, &args).map(drop)
            }
            _ => kernel.submit_and_wait(want).map(drop),
        }
    }
}

/// Reads the clock only if `is_needed`.
fn clock_ns_if(is_needed: bool) -> u64 {
    if is_needed { clock_ns() } else { 0 }
}

/// The system's monotonic clock in ns. All threads share it, so measurements of different queues
/// can be compared. It is read directly, because converting the standard library's `Instant` to a
/// number takes twice the time.
pub(crate) fn clock_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to a live structure. Every Linux has this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Polls for a completion until `until_ns`, without sleeping. Returns whether there is one.
fn look(kernel: &mut IoUring, until_ns: u64) -> bool {
    /// Number of polls between two readings of the clock.
    const LOOKS: u32 = 32;
    let is_over = || clock_ns() >= until_ns;
    if is_over() {
        return false;
    }
    // The submission of all entries judges a refusal.
    if kernel.submit().is_err() {
        return false;
    }
    loop {
        for _ in 0..LOOKS {
            if kernel.submission().taskrun() || !kernel.completion().is_empty() {
                return true;
            }
            std::hint::spin_loop();
        }
        if is_over() {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pushes no-ops until `count` of them have completed, whatever the kernel refuses meanwhile.
    fn complete(ring: &mut Ring, count: usize) {
        for id in 0..count as u64 {
            let entry = opcode::Nop::new().build().user_data(user_data(Tag::Send, id));
            // SAFETY: points to nothing.
            unsafe { ring.push(&entry) };
        }
        let mut out = Vec::new();
        while out.len() < count {
            ring.wait(false, &mut out).unwrap();
        }
        let mut ids: Vec<_> = out.iter().map(|completion| completion.id).collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..count as u64).collect::<Vec<_>>(), "each exactly once");
    }

    #[test]
    fn a_transient_refusal_loses_nothing() {
        let mut ring = Ring::new().unwrap();
        for errno in [libc::EAGAIN, libc::ENOMEM, libc::EBUSY, libc::EINTR] {
            ring.trouble.injected.extend([errno; 3]);
            while !ring.trouble.injected.is_empty() {
                complete(&mut ring, 10);
            }
        }
        ring.trouble.injected.push_back(libc::EBADF);
        let error = ring.wait(false, &mut Vec::new()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF), "that does not pass");
    }

    #[test]
    fn more_submissions_than_there_is_room_for_wait_in_order() {
        let mut ring = Ring::new().unwrap();
        complete(&mut ring, 5 * SUBMISSIONS as usize);
        // As if the kernel had refused what the queue holds: the rest waits in the backlog.
        for id in 0..u64::from(SUBMISSIONS) {
            let entry = opcode::Nop::new().build().user_data(user_data(Tag::Send, id));
            ring.backlog.push_back(entry);
        }
        complete_backlog(&mut ring);
    }

    fn complete_backlog(ring: &mut Ring) {
        let (count, mut out) = (ring.backlog.len(), Vec::new());
        let entry = opcode::Nop::new().build().user_data(user_data(Tag::Send, count as u64));
        // SAFETY: points to nothing.
        unsafe { ring.push(&entry) };
        while out.len() <= count {
            ring.wait(false, &mut out).unwrap();
        }
        let ids: Vec<_> = out.iter().map(|completion| completion.id).collect();
        assert_eq!(ids, (0..=count as u64).collect::<Vec<_>>(), "in the order of submission");
    }
}
