//! The hardware queues of any number of devices that one queue thread serves.
//!
//! Contract: one thread uses a [`Server`]. A token consists of this export's mark, the index of the
//! hardware queue, and the tag. A hardware queue is dropped only when the driver and the pipeline
//! have returned everything of it, or with the thread.

use super::hw_queue::HwQueue;
use crate::engine::session::turn::Turn;
use crate::pipeline::Pipeline;
use crate::request::{Token, UBLK_TOKEN};
use crate::sys::latch::Ack;
use crate::sys::ring::{Completion, Ring};
use crate::sys::slab::Slab;

/// The hardware queues on one queue thread.
#[derive(Default)]
pub(crate) struct Server {
    queues: Slab<Box<HwQueue>>,
    stopping: bool,
}

/// The parts of a queue that it lends to its hardware queues for one call.
pub(crate) struct Context<'a> {
    /// The queue's ring, and the sessions on it.
    pub(crate) turn: &'a mut Turn,
    /// The pipeline for requests to devices.
    pub(crate) pipeline: &'a mut Pipeline,
}

/// An order of the control side to the hardware queues of a queue.
pub(crate) enum Order {
    /// Serve a hardware queue.
    Serve {
        queue: Box<HwQueue>,
        /// Acknowledged when its first commands are on their way.
        ack: Ack,
    },
    /// Refuse the requests of ublk for a device, also those that wait at a gate.
    Fail {
        /// The id of the blkswitch device.
        device: u32,
        /// Acknowledged when they are refused.
        ack: Ack,
    },
}

/// The id of a completion: the index of a hardware queue, and a tag.
pub(super) fn id(at: u32, tag: u16) -> u64 {
    (u64::from(at) << 16) | u64::from(tag)
}

/// The token of a tag's request.
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

    /// Serves a hardware queue, beginning with its first fetches.
    pub(crate) fn serve(&mut self, queue: Box<HwQueue>, context: &mut Context<'_>) {
        if self.stopping {
            return;
        }
        let at = self.queues.insert(queue);
        if let Some(queue) = self.queues.get_mut(at) {
            queue.fetch_all(at, context.turn);
        }
    }

    /// Processes a completed command of a hardware queue.
    pub(crate) fn complete(&mut self, completion: &Completion, context: &mut Context<'_>) {
        let (at, tag) = place(completion.id);
        // The thread is ending. The driver keeps requests that arrive now for the next server.
        if self.stopping {
            return;
        }
        let Some(queue) = self.queues.get_mut(at) else { return };
        queue.completed(at, tag, completion.result, context);
        if queue.is_over() {
            self.drop_queue(at, context.turn);
        }
    }

    /// Passes the pipeline's answer to the hardware queue.
    pub(crate) fn answered(&mut self, token: Token, errno: i32, context: &mut Context<'_>) {
        let (at, tag) = place(token);
        // After the stop, answers are not committed, and the kernel asks the next server again.
        if self.stopping {
            return;
        }
        let Some(queue) = self.queues.get_mut(at) else { return };
        queue.answered(at, tag, errno, context);
        if queue.is_over() {
            self.drop_queue(at, context.turn);
        }
    }

    /// Refuses new requests for a device, and those that wait for it at a gate.
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

    /// Stops: starts and answers nothing any more. The driver keeps the devices, which wait for
    /// another server.
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
