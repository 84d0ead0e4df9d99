//! Flushes of one leaf: one runs at a time on a queue, and those that come meanwhile share the
//! next.
//!
//! Contract: as [`super`]. Two at once on one descriptor would let one swallow the error the other
//! must report.

use super::state::Flushing;
use super::{Pipeline, leaf_at};

impl Pipeline {
    /// Whether this flush runs now, and if so, what it will cover.
    pub(super) fn start_flush(&mut self, id: u32) -> bool {
        if !self.may_flush(id) {
            return false;
        }
        let Some(part) = self.parts.get_mut(id) else { return false };
        let Some(leaf) = leaf_at(&self.devices, part.leaf) else { return false };
        // A flush that finds everything covered by another meanwhile is still sent: it is asked
        // for.
        part.whole.covers = leaf.dirty().unflushed().unwrap_or(0);
        self.cover_failed(id);
        true
    }

    /// Whether this flush runs now; otherwise it waits for the one that does.
    fn may_flush(&mut self, id: u32) -> bool {
        let Some(at) = self.parts.get(id).map(|part| part.leaf) else { return false };
        let Some(leaf) = leaf_at(&self.devices, at).map(std::ptr::from_ref) else { return false };
        if let Some(flushing) = self.flushing.iter_mut().find(|f| f.leaf == leaf) {
            if flushing.running != id {
                flushing.next.push(id);
            }
            return flushing.running == id;
        }
        self.flushing.push(Flushing { leaf, running: id, with: Vec::new(), next: Vec::new() });
        true
    }
}
