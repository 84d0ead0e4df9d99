//! The rings of any number of front ends that one queue thread serves.
//!
//! Contract: one thread uses a [`Server`]. A token consists of this export's mark, the index of the
//! ring, and the head of the request; the parts of a request share a token. A ring is dropped only
//! when the kernel and the pipeline have returned everything of it, or with the thread.

use std::mem;
use std::os::fd::OwnedFd;

use super::rings::Chain;
use super::vring::Vring;
use crate::engine::session::turn::Turn;
use crate::pipeline::Pipeline;
use crate::request::{Token, VHOST_USER_TOKEN, is_vhost_user};
use crate::sys::buffer::Buffers;
use crate::sys::latch::Ack;
use crate::sys::ring::{Completion, Tag, user_data};
use crate::sys::slab::Slab;

/// Requests between two looks at the clock.
const TAKEN_A_LOOK: usize = 16;
/// Marks the number of a poll among operations whose results do not matter, so that it can be
/// cancelled.
const POLL: u64 = 1 << 55;

/// The rings on one queue thread.
pub(crate) struct Server {
    rings: Slab<Box<Vring>>,
    /// Rings that have something to do in this turn.
    touched: Vec<u32>,
    /// As above; exchanged with it.
    spare: Vec<u32>,
    chain: Chain,
    stopping: bool,
}

impl Default for Server {
    fn default() -> Self {
        Server {
            rings: Slab::default(),
            touched: Vec::new(),
            spare: Vec::new(),
            chain: Chain::with_room(),
            stopping: false,
        }
    }
}

/// The parts of a queue that it lends to its rings for one call.
pub(crate) struct Context<'a> {
    /// The queue's ring, and the links on it.
    pub(crate) turn: &'a mut Turn,
    /// The pipeline for requests to devices.
    pub(crate) pipeline: &'a mut Pipeline,
    /// Memory for requests whose own cannot be used.
    pub(crate) buffers: &'a mut Buffers,
}

impl Context<'_> {
    /// The block size of a device; that of a sector if it has no table.
    #[inline]
    pub(super) fn block(&self, device: u32) -> u32 {
        self.pipeline.table(device).map_or(512, |table| table.logical_block())
    }
}

/// An order of a front end's thread to the rings of a queue.
pub(crate) enum Order {
    /// Serve a ring.
    Serve {
        ring: Box<Vring>,
        /// Acknowledged when it is served.
        ack: Ack,
    },
    /// Serve it no more.
    End {
        /// The number of the ring.
        id: u64,
        /// Whether the front end gets no answers any more. Requests that wait at a gate fail then.
        mute: bool,
        /// Acknowledged when it is over; at once if it is over already.
        ack: Ack,
    },
    /// Use another eventfd for calls.
    Call {
        /// The number of the ring.
        id: u64,
        call: Option<OwnedFd>,
    },
}

/// The owner of a completion.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(super) enum Kind {
    Kick = 0,
    Call = 1,
}

/// The id of a completion: the index of a ring, and of what it is.
pub(super) fn id(at: u32, kind: Kind) -> u64 {
    (u64::from(at) << 8) | kind as u64
}

/// The `user_data` of a ring's poll.
pub(super) fn poll_id(at: u32) -> u64 {
    user_data(Tag::Ignored, POLL | u64::from(at))
}

/// The `user_data` of an operation whose result does not matter.
pub(super) fn ignored() -> u64 {
    user_data(Tag::Ignored, 0)
}

/// The token of a request's parts.
pub(super) fn token(at: u32, head: u16) -> Token {
    VHOST_USER_TOKEN | (u64::from(at) << 16) | u64::from(head)
}

fn place(token: Token) -> (u32, u16) {
    (((token & !VHOST_USER_TOKEN) >> 16) as u32, token as u16)
}

/// Whether the turn has cost enough, after so many requests.
#[inline]
pub(super) fn is_spent(taken: usize, turn: &mut Turn) -> bool {
    if taken.is_multiple_of(TAKEN_A_LOOK) { turn.is_spent_now() } else { turn.is_spent() }
}

impl Server {
    /// Whether it serves no ring.
    pub(crate) fn is_empty(&self) -> bool {
        self.rings.is_empty()
    }

    /// Whether no ring has anything to do.
    pub(crate) fn is_quiet(&self) -> bool {
        self.touched.is_empty()
    }

    /// Whether it is to be told that a second has passed.
    pub(crate) fn is_timed(&self) -> bool {
        self.rings.iter().any(|(_, ring)| ring.is_starved)
    }

    pub(crate) fn obey(&mut self, order: Order, context: &mut Context<'_>) {
        match order {
            // Without an answer: the front end's thread learns that nobody serves any more.
            Order::Serve { .. } if self.stopping => {}
            Order::Serve { ring, ack } => {
                let at = self.rings.insert(ring);
                if let Some(ring) = self.rings.get_mut(at) {
                    ring.arm(at, context.turn);
                }
                self.touch(at);
                ack.done();
            }
            Order::End { id, mute, ack } => match self.find(id) {
                Some(at) => self.end(at, mute, Some(ack), context),
                None => ack.done(),
            },
            Order::Call { id, call } => {
                if let Some(at) = self.find(id)
                    && let Some(ring) = self.rings.get_mut(at)
                {
                    ring.set_call(call);
                    self.touch(at);
                }
            }
        }
    }

    fn find(&self, id: u64) -> Option<u32> {
        self.rings.iter().find(|(_, ring)| ring.id() == id).map(|(at, _)| at)
    }

    fn end(&mut self, at: u32, mute: bool, ack: Option<Ack>, context: &mut Context<'_>) {
        if let Some(ring) = self.rings.get_mut(at) {
            ring.end(at, mute, ack, context.turn);
        }
        if mute {
            let is_of = |token: Token| is_vhost_user(token) && place(token).0 == at;
            context.pipeline.reject_parked(libc::EIO, is_of, context.turn);
        }
        self.drop_if_over(at);
    }

    fn touch(&mut self, at: u32) {
        if let Some(ring) = self.rings.get_mut(at)
            && !mem::replace(&mut ring.is_touched, true)
        {
            self.touched.push(at);
        }
    }

    /// Processes a completed operation of a ring.
    pub(crate) fn complete(&mut self, completion: &Completion, context: &mut Context<'_>) {
        let at = (completion.id >> 8) as u32;
        let Some(ring) = self.rings.get_mut(at) else { return };
        if completion.id & 0xff == Kind::Kick as u64 {
            ring.kicked(at, context.turn);
            self.touch(at);
        } else {
            ring.called();
        }
        self.drop_if_over(at);
    }

    /// Passes the pipeline's answer to the ring.
    #[inline]
    pub(crate) fn answered(&mut self, token: Token, errno: i32, context: &mut Context<'_>) {
        let (at, head) = place(token);
        let Some(ring) = self.rings.get_mut(at) else { return };
        ring.answered(head, errno, context);
        self.touch(at);
    }

    /// Looks for requests of rings that have something to do, and tells their drivers of answers.
    /// True if the turn has cost enough before everything was done.
    pub(crate) fn turn(&mut self, context: &mut Context<'_>) -> bool {
        mem::swap(&mut self.touched, &mut self.spare);
        for at in 0..self.spare.len() {
            let Some(at) = self.spare.get(at).copied() else { break };
            let Some(ring) = self.rings.get_mut(at) else { continue };
            ring.is_touched = false;
            let has_more = ring.take(at, &mut self.chain, context);
            ring.call(at, context.turn);
            if has_more {
                self.touch(at);
            }
            self.drop_if_over(at);
        }
        self.spare.clear();
        !self.touched.is_empty()
    }

    /// A second has passed: requests that wait for memory try again.
    pub(crate) fn tick(&mut self) {
        let starved: Vec<u32> =
            self.rings.iter().filter(|(_, ring)| ring.is_starved).map(|(at, _)| at).collect();
        starved.into_iter().for_each(|at| self.touch(at));
    }

    /// Stops: takes nothing more. Answers are shown, except of requests that wait: those are for
    /// the next back end.
    pub(crate) fn stop(&mut self, context: &mut Context<'_>) {
        self.stopping = true;
        let all: Vec<u32> = self.rings.iter().map(|(at, _)| at).collect();
        all.into_iter().for_each(|at| self.end(at, false, None, context));
    }

    fn drop_if_over(&mut self, at: u32) {
        if self.rings.get_mut(at).is_some_and(|ring| ring.is_over() && !ring.is_touched)
            && let Some(ring) = self.rings.remove(at)
        {
            ring.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_name_a_place_and_a_head() {
        for (at, head) in [(0, 0), (1, 2), (1 << 20, u16::MAX)] {
            assert_eq!(place(token(at, head)), (at, head));
            assert!(is_vhost_user(token(at, head)));
        }
    }
}
