//! A device's gate: control closes and opens it, requests and pieces wait at it.
//!
//! Contract: as [`super`]. A request that waits is not in flight at its own device. So a closing
//! gate does not wait for it, and it meets the table that is live when the gate opens again.

use std::collections::HashSet;
use std::mem;
use std::sync::Arc;

use super::Pipeline;
use super::state::Parked;
use crate::device::host::Order;
use crate::device::table::Live;
use crate::engine::session::turn::Turn;
use crate::request::{Done, Token};
use crate::sys::latch::Ack;

impl Pipeline {
    /// Carries out what the control side of a device asks for.
    pub(crate) fn obey(&mut self, order: Order, turn: &mut Turn) {
        match order {
            Order::Install { device, counters, ack } => {
                self.install(device, counters);
                ack.done();
            }
            Order::Remove { device, ack } => {
                self.remove(device);
                ack.done();
            }
            Order::Close { device, noflush, ack } => self.close(device, noflush, ack, turn),
            Order::Release { device } => self.release(device, turn),
            Order::FailHeld { device } => self.fail_held(device, libc::EIO, turn),
            Order::Open { device, live, ack } => {
                self.open(device, live, turn);
                ack.done();
            }
            Order::Drain { device, number, changed, ack } => {
                self.drain(number, (device, &changed), ack);
            }
            Order::EndDrain { number } => self.end_drain(number),
            Order::Exchange { device, live, ack } => {
                self.exchange(device, live);
                ack.done();
            }
        }
    }

    /// Closes a device's gate; acknowledged when nothing is in flight. Requests that wait for a
    /// path do not count as in flight. A request that finds no path from now on waits with
    /// `noflush`, and fails without, whatever the device's policy is.
    pub fn close(&mut self, device: u32, noflush: bool, ack: Ack, turn: &mut Turn) {
        let Some(local) = self.local(device) else { return ack.done() };
        local.open = false;
        local.noflush = noflush;
        local.closing = Some(ack);
        // Not acknowledged before the last of it has been looked at: what is parked leaves.
        local.in_flight += 1;
        self.park_waiting(device, turn);
        if let Some(local) = self.local(device) {
            local.leave();
        }
    }

    /// As [`Pipeline::close`], while a request is in flight.
    #[cfg(test)]
    pub(crate) fn close_with_one_in_flight(&mut self, device: u32, ack: Ack) {
        if let Some(local) = self.local(device) {
            local.in_flight += 1;
        }
        self.close(device, false, ack, &mut Turn::simulated());
    }

    /// The queue has failed: whoever waits for a gate to close is told so.
    pub fn forget_commands(&mut self) {
        for local in self.devices.iter_mut() {
            local.closing = None;
        }
        self.drains.forget();
    }

    /// Opens a device's gate on what is live now, and lets in what has waited.
    pub fn open(&mut self, device: u32, live: Option<Arc<Live>>, turn: &mut Turn) {
        self.failures.forget(device);
        let Some(local) = self.local(device) else { return };
        local.live = live;
        local.open = true;
        // The caller that closed the gate has given up, or has its answer.
        local.closing = None;
        self.release(device, turn);
        let Some(local) = self.local(device) else { return };
        // Requests that park again (at a device below) go to another list.
        for parked in mem::take(&mut local.parked) {
            match parked {
                Parked::Request(request) => {
                    if let Some(errno) = self.begin(device, &request, turn) {
                        self.done.push(Done { token: request.token, errno });
                    }
                }
                Parked::Piece { request, piece } => self.unpark(request, piece, turn),
                Parked::Rest(id) => self.resume_rest(id, turn),
            }
        }
    }

    /// Puts what is live now behind a closed gate.
    pub fn exchange(&mut self, device: u32, live: Arc<Live>) {
        if let Some(local) = self.local(device) {
            local.live = Some(live);
        }
    }

    /// Answers everything that waits at a closed gate or for a path with an error, and what comes
    /// to one or finds none from now on. Requests of more pieces than are under way end with what
    /// is.
    pub fn refuse(&mut self, errno: i32, turn: &mut Turn) {
        self.refusal = Some(errno);
        self.abandon(errno, |_| true, turn);
    }

    /// Gives up the requests that `is_of` names, because their client is gone or will not wait.
    /// Requests that wait at a closed gate, for a path or for their turn fail with `errno`. Of
    /// requests with more pieces than are under way, the rest does not begin.
    pub fn abandon(&mut self, errno: i32, is_of: impl Fn(Token) -> bool, turn: &mut Turn) {
        self.end_waiting(errno, &is_of, turn);
        self.reject_parked(errno, is_of, turn);
    }

    /// Fails the requests under way of a device, as far as they wait: for a path, at a gate below,
    /// or for their turn.
    pub fn fail_held(&mut self, device: u32, errno: i32, turn: &mut Turn) {
        let of_device = self.running.iter().filter(|(_, running)| running.device == device);
        let tokens: HashSet<Token> = of_device.map(|(_, running)| running.request.token).collect();
        self.abandon(errno, |token| tokens.contains(&token), turn);
    }

    /// Answers with an error what waits at a closed gate or for a path, of those requests that
    /// `is_of` names by their token.
    pub fn reject_parked(&mut self, errno: i32, is_of: impl Fn(Token) -> bool, turn: &mut Turn) {
        let devices: Vec<u32> = self.devices.iter().map(|(device, _)| device).collect();
        for device in devices {
            self.reject_held(device, errno, &is_of, turn);
            let Some(local) = self.local(device) else { continue };
            for parked in mem::take(&mut local.parked) {
                let token = match parked {
                    Parked::Request(request) => Some(request.token),
                    Parked::Piece { request, .. } | Parked::Rest(request) => {
                        self.running.get(request).map(|r| r.request.token)
                    }
                };
                if !token.is_none_or(&is_of) {
                    if let Some(local) = self.local(device) {
                        local.parked.push_back(parked);
                    }
                    continue;
                }
                match parked {
                    Parked::Request(request) => {
                        self.done.push(Done { token: request.token, errno })
                    }
                    Parked::Piece { request, piece } => {
                        self.leave_below(&piece.hops);
                        self.piece_done(request, errno, turn);
                    }
                    Parked::Rest(id) => self.fail_rest(id, errno, turn),
                }
            }
        }
    }
}
