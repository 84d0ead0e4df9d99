//! Flushes from the control side: of leaves that leave a table, and of all when the pool stops.
//!
//! A path of a multipath device that cannot be flushed is answered for by another: they lead to one volume, whose cache
//! is what a flush empties. Not so if its cache is on this side ([`Engine::forgets_failed_writes`]).
//!
//! Contract: blocks; the gate of the device is closed, or nothing runs any more.
//!
//! [`Engine::forgets_failed_writes`]: crate::engine::Engine::forgets_failed_writes

use std::io;
use std::sync::Arc;

use super::{Device, lock};
use crate::leaf::Leaf;
use crate::table::{Live, MAX_DEPTH, Table};

/// A leaf, and the multipath table it is a path of.
#[derive(Clone)]
struct Reached {
    leaf: Arc<Leaf>,
    multipath: Option<Arc<Table>>,
}

impl Device {
    /// Flushes every leaf of the live table.
    pub(crate) fn flush_all(&self) {
        let Some(live) = lock(&self.state).live.clone() else { return };
        for leaf in live.table.leaves().iter().chain(&live.departed) {
            let multipath = live.table.multipath().is_some().then(|| live.table.clone());
            if let Err(error) = flush(&Reached { leaf: leaf.clone(), multipath }, None) {
                tracing::error!(device = %self.name(), leaf = leaf.name(), %error, "flush failed: writes may be lost");
            }
        }
    }
}

/// Leaves that requests reached through `old`, in it or in devices below, that `new` does not reach and that a last
/// flush could not make clean.
pub(super) fn departed(old: Option<&Live>, new: &Arc<Table>) -> Box<[Arc<Leaf>]> {
    let (mut reached, mut stays) = (Vec::new(), Vec::new());
    if let Some(old) = old {
        reach(&old.table, &old.departed, MAX_DEPTH, &mut reached);
    }
    reach(new, &[], MAX_DEPTH, &mut stays);
    reached.sort_by_key(|reached| Arc::as_ptr(&reached.leaf));
    reached.dedup_by_key(|reached| Arc::as_ptr(&reached.leaf));
    reached.retain(|reached| !stays.iter().any(|stays| Arc::ptr_eq(&stays.leaf, &reached.leaf)));
    reached.retain(|reached| match flush(reached, Some(new)) {
        Ok(()) => false,
        Err(error) => {
            tracing::error!(leaf = reached.leaf.name(), %error, "a leaf left the table with unflushed writes");
            true
        }
    });
    reached.into_iter().map(|reached| reached.leaf).collect()
}

/// Adds the leaves of a table and of the devices below it, as far as a request can go.
fn reach(table: &Arc<Table>, departed: &[Arc<Leaf>], levels: usize, leaves: &mut Vec<Reached>) {
    let Some(left) = levels.checked_sub(1) else { return };
    let multipath = table.multipath().map(|_| table.clone());
    let all = table.leaves().iter().chain(departed);
    leaves.extend(all.map(|leaf| Reached { leaf: leaf.clone(), multipath: multipath.clone() }));
    for live in table.devices().filter_map(|device| device.running()) {
        reach(&live.table, &live.departed, left, leaves);
    }
}

/// Flushes a leaf, or, if it is a path that is down, the volume over another: a path of its own multipath, or of the
/// table that takes the place of that.
fn flush(reached: &Reached, new: Option<&Arc<Table>>) -> io::Result<()> {
    let Reached { leaf, multipath } = reached;
    let alone = leaf.engine().forgets_failed_writes() || leaf.is_lossy();
    let Some(old) = multipath.as_ref().filter(|_| !alone) else {
        return leaf.flush_blocking();
    };
    let Some(writes) = leaf.dirty().unflushed() else { return leaf.flush_blocking() };
    let mut result = Err(io::ErrorKind::NotConnected.into());
    // One that is known to be down is not waited for.
    if up_leaves(old).any(|up| Arc::ptr_eq(up, leaf)) {
        result = leaf.flush_blocking();
    }
    let tables = [Some(old), new.filter(|new| new.multipath().is_some())];
    for other in tables.into_iter().flatten().flat_map(|table| up_leaves(table)) {
        if result.is_ok() {
            break;
        }
        if !Arc::ptr_eq(other, leaf) {
            result = other.engine().flush_blocking();
            if result.is_ok() {
                leaf.dirty().flushed(writes);
            }
        }
    }
    result
}

/// The leaves of a multipath table that a path that is up leads to.
fn up_leaves(table: &Table) -> impl Iterator<Item = &Arc<Leaf>> {
    let paths = table.multipath().into_iter().flat_map(|(groups, paths)| paths.iter().zip(groups.paths()));
    paths.filter(|(_, path)| path.is_up()).filter_map(|(to, _)| table.leaf_of(*to))
}
