//! Lists the sectors that are not routed yet, for tests that know where every sector must go and
//! when.
//!
//! Contract: reads only. Sectors that are not listed are routed: at a leaf, held by a multipath
//! device, or done.

use super::Pipeline;
use super::split::{Piece, PieceTo};
use super::state::Parked;
use super::turns::Work;
use crate::request::{Request, Token};

/// A range of a request that waits to be routed by a device: for its turn, or at the gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unrouted {
    /// The request.
    pub token: Token,
    /// The device that will route it.
    pub device: u32,
    /// The devices it came through.
    pub above: Vec<u32>,
    /// Byte offset on the device.
    pub offset: u64,
    /// Bytes; 0 for a flush.
    pub len: u64,
    /// Byte offset in the request's data, if it has data or has come through no device.
    pub data: u64,
    /// It waits at the device's gate and does not count as in flight there.
    pub is_parked: bool,
}

impl Pipeline {
    /// Everything that waits to be routed. Slow: it looks at all that is kept.
    pub fn unrouted(&self) -> Vec<Unrouted> {
        let mut out = Vec::new();
        let mut rests = Vec::new();
        for (device, local) in self.devices.iter() {
            for parked in &local.parked {
                match parked {
                    Parked::Request(request) => out.push(whole(request, device, 0, true)),
                    Parked::Piece { request, piece } => {
                        out.extend(self.piece(*request, piece, true));
                    }
                    Parked::Rest(id) => rests.push(*id),
                }
            }
        }
        let mut turns = Vec::new();
        for work in self.turns.waiting() {
            match work {
                Work::Request(id) => turns.push(*id),
                Work::Piece { request, piece } => out.extend(self.piece(*request, piece, false)),
            }
        }
        for (id, running) in self.running.iter() {
            let waits = rests.contains(&id) || turns.contains(&id);
            if waits || running.split < running.request.len {
                let is_parked = rests.contains(&id);
                out.push(whole(&running.request, running.device, running.split, is_parked));
            }
        }
        out
    }

    /// Lets each owner have so few pieces under way that requests of a few are cut into windows.
    pub fn limit_owners(&mut self, weight: u32) {
        self.turns.owner_weight = weight;
    }

    fn piece(&self, request: u32, piece: &Piece, is_parked: bool) -> Option<Unrouted> {
        let PieceTo::Gate(device) = piece.to else { return None };
        Some(Unrouted {
            token: self.running.get(request)?.request.token,
            device,
            above: piece.hops.all().iter().map(|hop| hop.device).collect(),
            offset: piece.offset,
            len: piece.len,
            data: piece.data,
            is_parked,
        })
    }
}

/// All of a request from a byte of it on.
fn whole(request: &Request, device: u32, from: u64, is_parked: bool) -> Unrouted {
    Unrouted {
        token: request.token,
        device,
        above: Vec::new(),
        offset: request.offset + from,
        len: request.len - from,
        data: from,
        is_parked,
    }
}
