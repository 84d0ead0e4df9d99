//! The clients of this process that one queue serves.
//!
//! Contract: one thread uses a [`Server`]. A token consists of this export's mark, the index of the
//! seat, and the index of the request within it. A seat is dropped only when its client is gone and
//! the pipeline has returned everything of it, or with the thread.

use std::mem;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use io_uring::{opcode, types};

use super::Shared;
use crate::device::OpenDevice;
use crate::engine::session::turn::Turn;
use crate::pipeline::Pipeline;
use crate::request::{Answer, Ask, CLIENT_TOKEN, Done, Request, Span, Token, is_client};
use crate::sys::aligned::AlignedBytes;
use crate::sys::handoff::{Receiver, Sender};
use crate::sys::latch::Ack;
use crate::sys::ring::{Completion, Tag, user_data};
use crate::sys::slab::Slab;

/// Number of requests that are started between two readings of the clock.
const STARTS_A_LOOK: usize = 8;

/// The parts of a queue that it lends to its clients for one call.
pub(crate) struct Context<'a> {
    /// The queue's ring, and the links on it.
    pub(crate) turn: &'a mut Turn,
    /// The pipeline for requests to devices.
    pub(crate) pipeline: &'a mut Pipeline,
}

/// An order of the control side to the clients of a queue.
pub(crate) enum Order {
    /// Serve a client.
    Serve {
        seat: Box<Seat>,
        /// Acknowledged when its requests are looked for.
        ack: Ack,
    },
}

/// The queue's end of a client.
pub(crate) struct Seat {
    open: OpenDevice,
    asks: Receiver<Ask>,
    answers: Sender<Answer>,
    shared: Arc<Shared>,
    /// By the request's index: the client's token, and the memory that the pipeline borrows.
    under_way: Slab<(u64, AlignedBytes)>,
    /// The ring looks at the bell.
    is_listening: bool,
    /// It is in the list of seats that need a turn.
    is_touched: bool,
    /// There are answers that the client was not told of.
    has_news: bool,
    /// The client is gone, and its waiting requests are given up.
    is_left: bool,
}

impl Seat {
    pub(super) fn new(
        open: OpenDevice,
        asks: Receiver<Ask>,
        answers: Sender<Answer>,
        shared: Arc<Shared>,
    ) -> Seat {
        Seat {
            open,
            asks,
            answers,
            shared,
            under_way: Slab::default(),
            is_listening: false,
            is_touched: false,
            has_news: false,
            is_left: false,
        }
    }

    /// Starts a request, or answers it.
    fn start(&mut self, at: u32, ask: Ask, context: &mut Context<'_>) {
        let device = self.open.device().id();
        let table = context.pipeline.table(device);
        let block = table.map_or(512, |table| u64::from(table.logical_block()));
        if let Err(errno) = ask.check(block) {
            return self.answer(ask.token, errno, ask.data);
        }
        let Ask { op, fua, offset, len, mut data, token } = ask;
        let span = if op.has_data() { Span(data.as_mut_ptr()) } else { Span::NONE };
        let id = self.under_way.insert((token, data));
        let token = token_of(at, id);
        let request = Request { op, fua, offset, len, data: span, pages: None, token };
        if let Some(errno) = context.pipeline.start(device, &request, context.turn) {
            self.answered(id, errno);
        }
    }

    fn answered(&mut self, id: u32, errno: i32) {
        if let Some((token, data)) = self.under_way.remove(id) {
            self.answer(token, errno, data);
        }
    }

    fn answer(&mut self, token: u64, errno: i32, data: AlignedBytes) {
        // The line has room for as many as the client may have in flight.
        let sent = self.answers.send(Answer::new(token, errno, data));
        debug_assert!(sent.is_ok(), "more answers than requests");
        self.has_news = true;
    }

    /// Has the ring look at the bell.
    fn listen(&mut self, at: u32, turn: &mut Turn) {
        if mem::replace(&mut self.is_listening, true) {
            return;
        }
        // It is polled, not read: whatever becomes of the ring, the kernel writes to no memory
        // here.
        let fd = types::Fd(self.shared.bell.fd().as_raw_fd());
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).build();
        // SAFETY: nothing is pointed to. The seat, and so the descriptor, stays until the poll has
        // completed.
        unsafe { turn.push(&entry.user_data(user_data(Tag::Client, u64::from(at)))) };
    }

    fn tell(&mut self) {
        if mem::take(&mut self.has_news) {
            self.shared.answered.signal();
        }
    }

    /// Tells the client that nothing is answered any more.
    fn give_up(&self) {
        self.shared.is_over.store(true, Ordering::Release);
        self.shared.answered.signal();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.give_up();
    }
}

fn token_of(at: u32, id: u32) -> Token {
    CLIENT_TOKEN | u64::from(at) << 32 | u64::from(id)
}

/// The place of a request: the index of the seat, and the request's.
fn place(token: Token) -> (u32, u32) {
    (((token & !CLIENT_TOKEN) >> 32) as u32, token as u32)
}

/// The clients of one queue.
#[derive(Default)]
pub(crate) struct Server {
    seats: Slab<Box<Seat>>,
    /// Seats whose client has rung.
    touched: Vec<u32>,
    /// Seats with answers that their clients were not told of, perhaps more than once.
    news: Vec<u32>,
    stopping: bool,
}

impl Server {
    pub(crate) fn obey(&mut self, order: Order, context: &mut Context<'_>) {
        let Order::Serve { seat, ack } = order;
        if self.stopping {
            // Without an acknowledgement, which says that the pool stops.
            return;
        }
        let at = self.seats.insert(seat);
        if let Some(seat) = self.seats.get_mut(at) {
            seat.listen(at, context.turn);
        }
        ack.done();
    }

    /// Whether no seat needs a turn.
    pub(crate) fn is_quiet(&self) -> bool {
        self.touched.is_empty() && self.news.is_empty()
    }

    /// A client has rung.
    pub(crate) fn rung(&mut self, completion: &Completion) {
        let at = completion.id as u32;
        let Some(seat) = self.seats.get_mut(at) else { return };
        seat.is_listening = false;
        // Before the look at the line: what comes later rings again.
        seat.shared.bell.reset();
        self.touch(at);
    }

    /// Passes the pipeline's answer to the request's client.
    pub(crate) fn answered(&mut self, done: Done) {
        let (at, id) = place(done.token);
        let Some(seat) = self.seats.get_mut(at) else { return };
        seat.answered(id, done.errno);
        self.news.push(at);
        if seat.is_left {
            // It may be over now.
            self.touch(at);
        }
    }

    /// Starts what clients have asked for, until the turn has used up its budget. The clients that
    /// are left are the first ones of the next turn. Returns `true` if it must be called again.
    pub(crate) fn turn(&mut self, context: &mut Context<'_>) -> bool {
        let (mut reached, mut started) = (0, 0);
        while let Some(&at) = self.touched.get(reached) {
            let Some(seat) = self.seats.get_mut(at) else {
                reached += 1;
                continue;
            };
            // Before the look at the line: a client that is gone adds nothing to it.
            let is_closed = seat.shared.is_closed.load(Ordering::Acquire);
            let is_look = |started| started % STARTS_A_LOOK == STARTS_A_LOOK - 1;
            while !(is_look(started) && context.turn.is_spent_now()) {
                let Some(ask) = seat.asks.take() else { break };
                started += 1;
                match self.stopping {
                    true => seat.answer(ask.token, libc::ESHUTDOWN, ask.data),
                    false => seat.start(at, ask, context),
                }
            }
            if seat.has_news {
                self.news.push(at);
            }
            if !seat.asks.is_empty() {
                break;
            }
            reached += 1;
            seat.is_touched = false;
            if !is_closed {
                seat.listen(at, context.turn);
            } else if !mem::replace(&mut seat.is_left, true) {
                let is_its = |token| is_client(token) && place(token).0 == at;
                context.pipeline.abandon(libc::ESHUTDOWN, is_its, context.turn);
            }
            if seat.is_left && !seat.is_listening && seat.under_way.is_empty() {
                // Dropping it tells the client, also of its last answers.
                self.seats.remove(at);
            }
        }
        self.touched.drain(..reached);
        !self.touched.is_empty()
    }

    /// Tells clients of the answers of this turn, once each.
    pub(crate) fn tell(&mut self) {
        for at in self.news.drain(..) {
            if let Some(seat) = self.seats.get_mut(at) {
                seat.tell();
            }
        }
    }

    /// Stops: no more requests are started. Clients are told when the queue ends.
    pub(crate) fn stop(&mut self) {
        self.stopping = true;
        let seats: Vec<u32> = self.seats.iter().map(|(at, _)| at).collect();
        seats.into_iter().for_each(|at| self.touch(at));
    }

    /// Tells all clients that nothing is answered any more. The queue has failed or was given up,
    /// and leaves the memory of their requests where it is.
    pub(crate) fn give_up(&self) {
        self.seats.iter().for_each(|(_, seat)| seat.give_up());
    }

    fn touch(&mut self, at: u32) {
        if let Some(seat) = self.seats.get_mut(at)
            && !mem::replace(&mut seat.is_touched, true)
        {
            self.touched.push(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::UBLK_TOKEN;

    #[test]
    fn tokens_name_a_seat_and_a_request() {
        for (at, id) in [(0, 0), (1, 2), ((1 << 30) - 1, u32::MAX)] {
            assert_eq!(place(token_of(at, id)), (at, id));
            assert!(is_client(token_of(at, id)));
        }
        assert!(!is_client(1 << 32) && !is_client(UBLK_TOKEN | 7));
    }
}
