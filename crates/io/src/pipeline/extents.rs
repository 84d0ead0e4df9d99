//! Describes a range of a device for NBD's block status: which path it takes, and whether it is
//! allocated.
//!
//! Contract: reads only. The time is bounded, because a queue does this between requests. A look-up
//! that may block, as of a file system for holes, is not done here: [`Found::Ask`] names it.

use std::sync::Arc;

use super::split::Cut;
use super::split::{self, Piece, PieceTo};
use super::state::Hops;
use super::{Pipeline, WINDOW, shared_leaf_at};
use crate::engine::io::{HOLE, ZERO};
use crate::leaf::Leaf;

/// Most pieces of a device that are described at a time, because each may cost system calls. The
/// client asks again for the rest.
pub(crate) const EXTENTS_PIECES: usize = 4096;

/// The property that [`Pipeline::extents`] reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extents {
    /// The number of the path, over all segments.
    Paths,
    /// [`HOLE`] and [`ZERO`].
    Allocation,
}

/// The result for one extent.
#[derive(Clone, Copy, Debug)]
pub enum Found<'a> {
    /// The number of the path, or what is known of the allocation.
    Status(u32),
    /// The leaf is to be asked, at this offset, by a thread that may block.
    Ask(&'a Arc<Leaf>, u64),
}

impl Pipeline {
    /// Describes a range of a device from its start, extent by extent in order, until `each` says
    /// that it has enough, or as much was looked at as a queue may spend on it.
    pub fn extents(
        &self,
        device: u32,
        offset: u64,
        len: u64,
        what: Extents,
        each: &mut dyn FnMut(u64, Found<'_>) -> bool,
    ) {
        let mut pieces = Vec::new();
        let (mut done, mut described) = (0, 0);
        while done < len && described < EXTENTS_PIECES {
            let (sector, sectors) = ((offset + done) / 512, (len - done) / 512);
            let at = split::Range { device, sector, sectors, data: 0 };
            let mut cut = Cut::in_order(WINDOW);
            let taken =
                split::range(&self.devices, &at, Hops::default(), &mut pieces, &mut cut) * 512;
            if taken == 0 {
                return;
            }
            // A list that is not full has cost all the steps there are, or is the rest.
            described += if pieces.len() < WINDOW { EXTENTS_PIECES } else { pieces.len() };
            for piece in pieces.drain(..) {
                if !self.describe(&piece, what, each) {
                    return;
                }
            }
            done += taken;
        }
    }

    /// A leaf of the multipath device whose path is up. All lead to one volume.
    fn leaf_that_is_up(&self, device: u32) -> Option<&Arc<Leaf>> {
        let table = self.table(device)?;
        let (groups, paths) = table.multipath()?;
        let up = paths.iter().zip(groups.paths()).find(|(_, path)| path.is_up());
        table.leaf_of(*up?.0)
    }

    fn describe(
        &self,
        piece: &Piece,
        what: Extents,
        each: &mut dyn FnMut(u64, Found<'_>) -> bool,
    ) -> bool {
        if what == Extents::Paths {
            let path = piece.hops.all().first().map_or(0, |hop| hop.path);
            return each(piece.len, Found::Status(path));
        }
        let leaf = match piece.to {
            PieceTo::Leaf(at) => shared_leaf_at(&self.devices, at),
            PieceTo::Nowhere => return each(piece.len, Found::Status(HOLE | ZERO)),
            PieceTo::Multipath { device, .. } => self.leaf_that_is_up(device),
            PieceTo::Gate(_) | PieceTo::Fail(_) => None,
        };
        let found = match leaf {
            Some(leaf) => match leaf.engine().known_allocation() {
                Some(status) => Found::Status(status),
                None => Found::Ask(leaf, piece.offset),
            },
            None => Found::Status(0),
        };
        each(piece.len, found)
    }
}
