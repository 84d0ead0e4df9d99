//! A connection as one of its client's connections: it is listed, the administrator can end it, and
//! a newer one waits for it.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::stalling::{is_half_closed, is_hung_up};
use super::{Conn, Phase};
use crate::export::nbd::Order;
use crate::export::nbd::clients::{Barrier, Client, Newer};
use crate::export::nbd::context::Context;

/// Longest wait of a connection for its client's older ones. Until then the client sees a slow
/// handshake. Afterwards the connection is dropped, and the client may try again.
const SETTLE_TIMEOUT_NS: u64 = 60_000_000_000;

impl Conn {
    /// The client; `None` before a device is open.
    pub(in crate::export::nbd) fn client(&self) -> Option<Client> {
        let Phase::Transmission { device, .. } = &self.phase else { return None };
        Some(Client {
            device: device.device().id(),
            number: self.place.number(),
            peer: self.peer,
            since: self.since,
            in_flight: self.in_flight(),
        })
    }

    /// The name of the connections that this one replaces.
    fn replaces(&self) -> Option<&Arc<str>> {
        let Phase::Transmission { negotiated, .. } = &self.phase else { return None };
        negotiated.replaces.as_ref()
    }

    /// Whether `newer` replaces this connection.
    pub(in crate::export::nbd) fn is_replaced_by(&self, newer: &Newer) -> bool {
        let is_older = self.place.number() < newer.number;
        is_older && self.replaces().is_some() && self.replaces() == newer.replaces.as_ref()
    }

    /// Ends the connection. The newer one waits until the work under way here has ended.
    pub(in crate::export::nbd) fn yield_place(&mut self, barrier: &Arc<Barrier>) {
        self.barriers.push(barrier.clone());
        self.end_now();
    }

    /// Ends the connection: nothing more is received or sent.
    pub(in crate::export::nbd) fn end_now(&mut self) {
        (self.broken, self.ending) = (true, true);
    }

    /// Makes the handshake wait for the work of the client's older connections.
    pub(super) fn settle(&mut self, id: u32, context: &mut Context<'_>) {
        let Some(Client { device, number, peer, .. }) = self.client() else { return };
        let replaces = self.replaces().cloned();
        self.is_settling = true;
        self.deadline_ns = Some(context.turn.now_ns() + SETTLE_TIMEOUT_NS);
        let post = context.post;
        let barrier = Arc::new(Barrier::new(post.clone(), context.queue, id, number));
        let newer = Newer { device, peer, number, replaces };
        post.send_all(|_| Order::Settle { newer: newer.clone(), barrier: barrier.clone() });
    }

    /// Ends the wait for the work of older connections.
    pub(in crate::export::nbd) fn settled(&mut self, number: u64) {
        if self.place.number() == number {
            self.is_settling = false;
            self.deadline_ns = None;
        }
    }

    /// Makes a newer connection of the same client wait until the work under way here has ended.
    /// Returns whether the client has closed this connection.
    pub(in crate::export::nbd) fn yield_to(&mut self, barrier: &Arc<Barrier>) -> bool {
        let is_gone = is_hung_up(self.socket.as_fd());
        if is_gone || self.ending || self.at_end || is_half_closed(self.socket.as_fd()) {
            // Include requests that were sent and not read yet.
            self.barriers.push(barrier.clone());
        }
        if is_gone {
            self.end_now();
            return true;
        }
        let incomplete = self.body.as_ref().map(|body| body.slot);
        for (slot, pending) in self.pending.iter_mut() {
            if pending.request.command.writes() && incomplete != Some(slot) {
                pending.barriers.push(barrier.clone());
            }
        }
        false
    }
}
