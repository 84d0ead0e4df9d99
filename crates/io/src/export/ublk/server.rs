//! The hardware queues that one queue thread serves, of any number of devices.
//!
//! Contract: one thread. A token is the mark of this export, the hardware queue's place here and
//! the tag; a hardware queue is dropped only when the driver and the pipeline have given back
//! everything of it, or with the thread.

use super::hw_queue::HwQueue;
use crate::engine::session::turn::Turn;
use crate::pipeline::Pipeline;
use crate::request::{Token, UBLK_TOKEN};
use crate::sys::latch::Ack;
use crate::sys::ring::{Completion, Ring};
use crate::sys::slab::Slab;

/// See the module's text.
#[derive(Default)]
pub(crate) struct Server {
    queues: Slab<Box<HwQueue>>,
    stopping: bool,
}

/// What a queue lends for one call.
pub(crate) struct Context<'a> {
    /// Its ring, and the links on it.
    pub(crate) turn: &'a mut Turn,
    /// The pipeline.
    pub(crate) pipeline: &'a mut Pipeline,
}

/// What control asks of the hardware queues of a queue.
pub(crate) enum Order {
    /// Serve a hardware queue.
    Serve {
        /// It.
        queue: Box<HwQueue>,
        /// Answered when its first commands are on their way.
        ack: Ack,
    },
    /// Refuse the requests that ublk has for a device, those that wait at a gate included.
    Fail {
        /// Its id.
        device: u32,
        /// Answered at once.
        ack: Ack,
    },
}

/// What a completion's id says: a place here and a tag.
pub(super) fn id(at: u32, tag: u16) -> u64 {
    (u64::from(at) << 16) | u64::from(tag)
}

/// The token of the request of a tag.
pub(super) fn token(at: u32, tag: u16) -> Token {
    UBLK_TOKEN | id(at, tag)
}

fn place(id: u64) -> (u32, u16) {
    (((id & !UBLK_TOKEN) >> 16) as u32, id as u16)
}

impl Server {
    /// Whether it serves no hardware queue.
    pub(crate) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// Carries an order out.
    pub(crate) fn obey(&mut self, order: Order, context: &mut Context<'_>) {
        match order {
            Order::Serve { queue, ack } => {
                self.serve(queue, context);
                ack.done();
            }
            Order::Fail { device, ack } => {
                self.fail(device, context);
                ack.done();
            }
        }
    }

    /// Serves a hardware queue from its first fetch on.
    pub(crate) fn serve(&mut self, queue: Box<HwQueue>, context: &mut Context<'_>) {
        if self.stopping {
            return;
        }
        let at = self.queues.insert(queue);
        if let Some(queue) = self.queues.get_mut(at) {
            queue.fetch_all(at, context.turn);
        }
    }

    /// A command has completed.
    pub(crate) fn complete(&mut self, completion: &Completion, context: &mut Context<'_>) {
        let (at, tag) = place(completion.id);
        // The thread ends: what comes now stays with the driver, which gives it to the next server.
        if self.stopping {
            return;
        }
        let Some(queue) = self.queues.get_mut(at) else { return };
        queue.completed(at, tag, completion.result, context);
        if queue.is_over() {
            self.drop_queue(at, context.turn);
        }
    }

    /// A request was answered.
    pub(crate) fn answered(&mut self, token: Token, errno: i32, context: &mut Context<'_>) {
        let (at, tag) = place(token);
        // An answer that is not committed any more is not given: the kernel asks the next server
        // again.
        if self.stopping {
            return;
        }
        let Some(queue) = self.queues.get_mut(at) else { return };
        queue.answered(at, tag, errno, context);
        if queue.is_over() {
            self.drop_queue(at, context.turn);
        }
    }

    /// Refuses what comes from now on for a device, and what waits for it at a gate.
    pub(crate) fn fail(&mut self, device: u32, context: &mut Context<'_>) {
        let places: Vec<u32> = self
            .queues
            .iter()
            .filter(|(_, queue)| queue.device() == device)
            .map(|(at, _)| at)
            .collect();
        for at in places {
            if let Some(queue) = self.queues.get_mut(at) {
                queue.fail();
            }
            let is_of = |token: Token| token & UBLK_TOKEN != 0 && place(token).0 == at;
            context.pipeline.reject_parked(libc::EIO, is_of, context.turn);
        }
    }

    /// Starts and answers nothing any more. Devices are left to the driver: they wait for another
    /// server.
    pub(crate) fn stop(&mut self) {
        self.stopping = true;
    }

    fn drop_queue(&mut self, at: u32, ring: &mut Ring) {
        if let Some(mut queue) = self.queues.remove(at) {
            queue.leave(ring);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_name_a_place_and_a_tag() {
        for (at, tag) in [(0, 0), (1, 2), (u32::MAX, u16::MAX)] {
            assert_eq!(place(token(at, tag)), (at, tag));
            assert_eq!(place(id(at, tag)), (at, tag));
            assert_ne!(token(at, tag) & UBLK_TOKEN, 0);
            assert_eq!(id(at, tag) & UBLK_TOKEN, 0, "fits where a completion's id goes");
        }
    }
}
