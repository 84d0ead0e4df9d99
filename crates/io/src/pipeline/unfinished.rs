//! Lists the leaves that do not answer when a queue is given up.

use std::time::Duration;

use super::{Pipeline, leaf_at};

/// Operations of one leaf that have not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// The leaf's address, as a table has it.
    pub leaf: String,
    /// How many.
    pub operations: usize,
    /// How long the oldest has taken.
    pub oldest: Duration,
}

/// Adds to what is known of a leaf.
pub(crate) fn merge(all: &mut Vec<Unfinished>, one: Unfinished) {
    match all.iter_mut().find(|known| known.leaf == one.leaf) {
        Some(known) => {
            known.operations += one.operations;
            known.oldest = known.oldest.max(one.oldest);
        }
        None => all.push(one),
    }
}

impl Pipeline {
    /// The leaves that have operations under way.
    pub(crate) fn unfinished(&self, now_ns: u64) -> Vec<Unfinished> {
        let mut all = Vec::new();
        for (_, part) in self.parts.iter() {
            let Some(leaf) = leaf_at(&self.devices, part.leaf) else { continue };
            let oldest = Duration::from_nanos(now_ns.saturating_sub(part.started_ns));
            merge(&mut all, Unfinished { leaf: leaf.name().to_owned(), operations: 1, oldest });
        }
        all
    }

    /// The queue is given up, and what it has is kept for good. Tables that nothing under way needs
    /// are not: their files can be closed.
    pub(crate) fn drop_idle_tables(&mut self) {
        for local in self.devices.iter_mut() {
            if local.in_flight == 0 {
                local.live = None;
            }
        }
    }
}
