//! Options for opening a leaf, and the parser of sizes in addresses.

use crate::queues::Queues;

/// Options for opening a leaf.
#[derive(Clone, Copy, Debug)]
pub struct LeafOptions {
    /// Direct I/O (`Some(true)`), the page cache (`Some(false)`), or the default (`None`): direct
    /// for block devices, the page cache for regular files.
    pub direct: Option<bool>,
    /// Whether to open the leaf for reading only.
    pub read_only: bool,
    /// The queues that will submit to the leaf: [`Pool::queues`](crate::Pool::queues) or
    /// [`Driver::queues`](crate::driver::Driver::queues).
    pub queues: Queues,
    /// If the file is missing, create a sparse one of this many bytes.
    pub make_bytes: Option<u64>,
}

impl LeafOptions {
    /// Options for reading and writing in the default mode. A missing file is an error.
    pub fn new(queues: Queues) -> LeafOptions {
        LeafOptions { direct: None, read_only: false, queues, make_bytes: None }
    }
}

/// Parses a size as `4096`, `64K`, `1M`, `2G` or `1T` (powers of 1024). `None` unless it is a
/// multiple of 512 above 0.
pub fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        b'T' | b't' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let bytes = digits.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    (bytes > 0 && bytes % 512 == 0 && bytes <= i64::MAX as u64).then_some(bytes)
}
