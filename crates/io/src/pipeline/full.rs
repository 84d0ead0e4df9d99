//! Parts that wait for their leaf: it has as many operations of this queue under way as it may
//! ([`Leaf::is_full`]).
//!
//! Contract: as [`super`]. A part waits only while its leaf has operations with the ring, and goes
//! on when one of these ends. Flushes never wait: there is one of a leaf at a time.

use std::collections::VecDeque;

use super::{LeafOp, Part, Pipeline, leaf_at};
use crate::engine::session::turn::Turn;
use crate::leaf::Leaf;

/// The parts that wait, by the address of their leaf, whatever device it is used by.
#[derive(Default)]
pub(super) struct Full(Vec<(*const Leaf, VecDeque<u32>)>);

/// Whether the part has to wait for others on its leaf.
#[inline]
pub(super) fn must_wait(part: &Part, leaf: &Leaf) -> bool {
    part.io.op != LeafOp::Flush && leaf.is_full(part.io.queue)
}

impl Pipeline {
    /// The part waits for its leaf.
    #[cold]
    pub(super) fn wait_for_leaf(&mut self, id: u32) {
        let Some(part) = self.parts.get(id) else { return };
        let Some(leaf) = leaf_at(&self.devices, part.leaf) else { return };
        let leaf: *const Leaf = leaf;
        match self.full.0.iter_mut().find(|(of, _)| *of == leaf) {
            Some((_, waiting)) => waiting.push_back(id),
            None => self.full.0.push((leaf, VecDeque::from([id]))),
        }
    }

    /// The ring has ended an operation. Returns the part that may go on for it.
    #[inline]
    pub(super) fn leaf_ended(&mut self, id: u32) -> Option<u32> {
        let part = self.parts.get(id)?;
        let leaf = leaf_at(&self.devices, part.leaf)?;
        if !leaf.engine().takes_workers() {
            return None;
        }
        leaf.ends(part.io.queue);
        if self.full.0.is_empty() {
            return None;
        }
        let leaf: *const Leaf = leaf;
        self.next_of(leaf)
    }

    #[cold]
    fn next_of(&mut self, leaf: *const Leaf) -> Option<u32> {
        let at = self.full.0.iter().position(|(of, _)| *of == leaf)?;
        let (_, waiting) = self.full.0.get_mut(at)?;
        let next = waiting.pop_front();
        if waiting.is_empty() {
            self.full.0.swap_remove(at);
        }
        next
    }

    /// A part that has waited is submitted.
    pub(super) fn drive_next(&mut self, next: Option<u32>, turn: &mut Turn) {
        if let Some(next) = next {
            self.drive(next, None, turn);
        }
    }
}
