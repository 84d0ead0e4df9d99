//! Flushes from the control side: of leaves that leave a table, and of all leaves when the pool
//! stops.
//!
//! If a path of a multipath device cannot be flushed, another path is flushed instead: both lead to
//! one volume, and a flush empties the volume's cache. This does not help a path whose cache is on
//! this machine ([`Engine::forgets_failed_writes`]).
//!
//! Contract: the functions block. The gate of the device is closed, or the queues have ended.
//!
//! [`Engine::forgets_failed_writes`]: crate::engine::Engine::forgets_failed_writes

use std::io;
use std::sync::Arc;

use super::{Device, lock};
use crate::device::table::{Live, MAX_DEPTH, Table};
use crate::leaf::Leaf;

/// A leaf, and the multipath table of which it is a path.
#[derive(Clone)]
struct Reached {
    leaf: Arc<Leaf>,
    multipath: Option<Arc<Table>>,
}

impl Device {
    /// Flushes every leaf of the live table. Calls `begins` with the name of each first, because
    /// the flush may hang.
    pub(crate) fn flush_all(&self, begins: &mut dyn FnMut(&str)) {
        let Some(live) = lock(&self.state).live.clone() else { return };
        for (leaf, error) in flush_each(&live, begins) {
            tracing::error!(device = %self.name(), leaf = leaf.name(), %error, "flush failed: writes may be lost");
        }
    }
}

/// Flushes every leaf that a device uses itself. Returns those that failed, with their errors.
pub(crate) fn flush_live(live: &Live) -> Vec<(Arc<Leaf>, io::Error)> {
    flush_each(live, &mut |_| {})
}

fn flush_each(live: &Live, begins: &mut dyn FnMut(&str)) -> Vec<(Arc<Leaf>, io::Error)> {
    let multipath = live.table.multipath().map(|_| live.table.clone());
    let own = live.table.leaves().iter().map(|leaf| (leaf, multipath.clone()));
    let departed = live.departed.iter().map(|leaf| (leaf, None));
    let all =
        own.chain(departed).map(|(leaf, multipath)| Reached { leaf: leaf.clone(), multipath });
    all.filter_map(|reached| {
        begins(reached.leaf.name());
        Some((reached.leaf.clone(), flush(&reached, None).err()?))
    })
    .collect()
}

/// Flushes the leaves that requests reached through `old` or devices below it and that `new` does
/// not reach. Returns the leaves whose flush failed.
pub(crate) fn departed(old: Option<&Live>, new: &Arc<Table>) -> Box<[Arc<Leaf>]> {
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

/// Adds the leaves of a table and of the devices below it, down to `levels`.
fn reach(table: &Arc<Table>, departed: &[Arc<Leaf>], levels: usize, leaves: &mut Vec<Reached>) {
    let Some(left) = levels.checked_sub(1) else { return };
    let multipath = table.multipath().map(|_| table.clone());
    leaves.extend(
        table
            .leaves()
            .iter()
            .map(|leaf| Reached { leaf: leaf.clone(), multipath: multipath.clone() }),
    );
    // These are of earlier tables, so not necessarily of this table's volume.
    leaves.extend(departed.iter().map(|leaf| Reached { leaf: leaf.clone(), multipath: None }));
    for live in table.devices().filter_map(|device| device.running()) {
        reach(&live.table, &live.departed, left, leaves);
    }
}

/// Flushes a leaf. If it is a path that is down, flushes the volume over another path of its
/// multipath, or of the new table.
fn flush(reached: &Reached, new: Option<&Arc<Table>>) -> io::Result<()> {
    let Reached { leaf, multipath } = reached;
    let alone = leaf.engine().forgets_failed_writes() || leaf.is_lossy();
    let Some(old) = multipath.as_ref().filter(|_| !alone) else {
        return leaf.flush_blocking();
    };
    let Some(writes) = leaf.dirty().unflushed() else { return leaf.flush_blocking() };
    let mut result = Err(io::ErrorKind::NotConnected.into());
    // A path that is known to be down is not waited for.
    if up_leaves(old).any(|up| Arc::ptr_eq(up, leaf)) {
        result = leaf.flush_blocking();
        // Its server says that writes are lost, and no other path can make up for that.
        if leaf.is_lossy() {
            return result;
        }
    }
    // A new table may lead to another volume.
    let identity = leaf.engine().identity();
    let is_same = |other: &&Arc<Leaf>| identity.is_some() && other.engine().identity() == identity;
    let siblings =
        up_leaves(old).chain(new.into_iter().flat_map(|new| up_leaves(new)).filter(is_same));
    for other in siblings {
        if result.is_ok() {
            break;
        }
        // A server without flush says nothing about other paths' caches.
        if !Arc::ptr_eq(other, leaf) && other.engine().has_cache() {
            let covers = other.dirty().unflushed().unwrap_or(0);
            let flushed = other.engine().flush_blocking();
            let errno = flushed.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
            result = match other.judge_flush(covers, errno) {
                0 => {
                    leaf.dirty().flushed(writes);
                    Ok(())
                }
                errno => Err(io::Error::from_raw_os_error(errno)),
            };
        }
    }
    result
}

/// The leaves of a multipath table whose path is up.
fn up_leaves(table: &Table) -> impl Iterator<Item = &Arc<Leaf>> {
    let paths =
        table.multipath().into_iter().flat_map(|(groups, paths)| paths.iter().zip(groups.paths()));
    paths.filter(|(_, path)| path.is_up()).filter_map(|(to, _)| table.leaf_of(*to))
}
