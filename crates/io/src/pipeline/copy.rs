//! Data that lies in pages of the kernel ([`crate::sys::pages`]), and a leaf that does not take it
//! so: the copies.
//!
//! Contract: a part whose pages have a slot goes to its leaf without a copy, one whose pages have
//! none is copied; the slot is taken away here, before the leaf sees the part, and stays away until
//! the part goes to another leaf.

use super::{LeafOp, Part};
use crate::leaf::Leaf;

/// Before a part is submitted: the data of a write is where the leaf looks for it. Errors: a
/// negative errno.
///
/// # Safety
/// The part's data is lent, and nothing else uses it.
#[inline]
pub(super) unsafe fn before(part: &mut Part, leaf: &Leaf) -> Result<(), i64> {
    let Some(pages) = part.io.pages.as_mut() else { return Ok(()) };
    if !leaf.engine().takes_pages() {
        pages.slot = None;
    }
    match (pages.slot, part.io.op) {
        // SAFETY: the caller's promise.
        (None, LeafOp::Write) => unsafe { pages.fetch(part.io.data, part.io.len) },
        _ => Ok(()),
    }
}

/// When a part has a result: what a read has brought is where the request wants it. Returns the
/// result as it is to be judged.
///
/// # Safety
/// As for [`before`].
#[inline]
pub(super) unsafe fn after(part: &mut Part, result: i64) -> i64 {
    let Some(pages) = part.io.pages.as_mut() else { return result };
    match (pages.slot, part.io.op) {
        // Perhaps the pages are not aligned as the leaf's device needs them: once more, by memory
        // that is.
        (Some(_), LeafOp::Read | LeafOp::Write) if result == -i64::from(libc::EINVAL) => {
            pages.slot = None;
            -i64::from(libc::EAGAIN)
        }
        (None, LeafOp::Read) if result > 0 => {
            let moved = (result as u64).min(part.io.len);
            // SAFETY: the caller's promise; not more was read than was lent.
            unsafe { pages.store(part.io.data, moved) }.err().unwrap_or(result)
        }
        _ => result,
    }
}
