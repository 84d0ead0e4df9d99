//! Decodes the request in a chain of descriptors.
//!
//! Contract: reads the memory of the chain, and changes only where its parts begin and end: the
//! header and the status are taken away, and what is left is the data.

use super::rings::{Broken, Chain, Segment};
use super::{ALIGN, MAX_IO_BYTES, MAX_SEGMENTS};
use crate::request::Op;
use crate::wire::vhost_user::{RANGE_LEN, REQUEST_LEN, UNMAP, kind, u32_at, u64_at};

/// A request of a driver.
#[derive(Debug)]
pub(super) struct Asked {
    /// Where its status goes: one byte.
    pub(super) status: Segment,
    /// The request, or the errno with which it is refused.
    pub(super) what: Result<What, i32>,
}

/// The kinds of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// The serial number.
    Id,
    /// An operation without data, on a range in bytes.
    Range(Op, u64, u64),
    /// A read or write of the chain's data.
    Data {
        /// Which of the two.
        op: Op,
        /// Where on the device, in bytes.
        offset: u64,
        /// All of the data.
        bytes: u64,
        /// Each segment can be a request of its own.
        is_aligned: bool,
    },
}

/// Reads the request of a chain, for a device with blocks of `block` bytes.
///
/// # Errors
/// There is no header, or no room for a status: nobody can be answered.
#[inline]
pub(super) fn ask(chain: &mut Chain, block: u32) -> Result<Asked, Broken> {
    let mut header = [0; REQUEST_LEN];
    if !chain.take_first(&mut header) {
        return Err(Broken("a request has no header"));
    }
    let status = chain.take_last().ok_or(Broken("a request has no room for its status"))?;
    let (kind, sector) = (u32_at(&header, 0), u64_at(&header, 8));
    Ok(Asked { status, what: what(kind, sector, chain, block) })
}

#[inline]
fn what(kind: u32, sector: u64, chain: &mut Chain, block: u32) -> Result<What, i32> {
    match kind {
        kind::IN if chain.readable().is_empty() => data(Op::Read, sector, chain.writable(), block),
        kind::OUT if chain.writable().is_empty() => {
            data(Op::Write, sector, chain.readable(), block)
        }
        kind::FLUSH => Ok(What::Range(Op::Flush, 0, 0)),
        kind::GET_ID => Ok(What::Id),
        kind::DISCARD | kind::WRITE_ZEROES => range(kind, chain),
        kind::IN | kind::OUT => Err(libc::EINVAL),
        _ => Err(libc::EOPNOTSUPP),
    }
}

#[inline]
fn data(op: Op, sector: u64, segments: &[Segment], block: u32) -> Result<What, i32> {
    let bytes = segments.iter().fold(0u64, |sum, segment| sum.saturating_add(segment.len));
    let offset = sector.checked_mul(512).ok_or(libc::EINVAL)?;
    let is_whole = bytes > 0 && bytes.is_multiple_of(512) && offset.checked_add(bytes).is_some();
    if !is_whole || bytes > MAX_IO_BYTES || segments.len() > MAX_SEGMENTS {
        return Err(libc::EINVAL);
    }
    // A request of its own must consist of whole blocks. One segment is all of the request.
    let unit = if segments.len() > 1 { u64::from(block).max(512) } else { 512 };
    let is_aligned = segments.iter().all(|segment| {
        segment.at.addr().get().is_multiple_of(ALIGN) && segment.len.is_multiple_of(unit)
    });
    Ok(What::Data { op, offset, bytes, is_aligned })
}

/// A discard or write of zeroes, of one range as the configuration space says.
fn range(kind: u32, chain: &mut Chain) -> Result<What, i32> {
    let mut range = [0; RANGE_LEN];
    if !chain.take_first(&mut range) || !chain.readable().is_empty() {
        return Err(libc::EINVAL);
    }
    let (sector, sectors, flags) = (u64_at(&range, 0), u32_at(&range, 8), u32_at(&range, 12));
    let op = match (kind, flags) {
        (kind::DISCARD, 0) => Op::Discard,
        (kind::WRITE_ZEROES, 0 | UNMAP) => {
            Op::WriteZeroes { no_hole: flags & UNMAP == 0, fast: false }
        }
        _ => return Err(libc::EOPNOTSUPP),
    };
    let offset = sector.checked_mul(512).ok_or(libc::EINVAL)?;
    Ok(What::Range(op, offset, u64::from(sectors) * 512))
}
