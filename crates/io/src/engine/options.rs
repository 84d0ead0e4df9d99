//! How a leaf is opened, and how a size is written in an address.

use crate::queues::Queues;

/// How a leaf is opened.
#[derive(Clone, Copy, Debug)]
pub struct LeafOptions {
    /// Past the page cache (`Some(true)`), through it (`Some(false)`), or what suits: block devices
    /// direct, regular files through it.
    pub direct: Option<bool>,
    /// Open for reading only.
    pub read_only: bool,
    /// The queues that will submit: [`Pool::queues`](crate::Pool::queues) or
    /// [`Driver::queues`](crate::driver::Driver::queues).
    pub queues: Queues,
    /// Make a missing file, sparse, of this many bytes.
    pub make_bytes: Option<u64>,
}

impl LeafOptions {
    /// For reading and writing, past the page cache or through it as suits, for these queues; a
    /// missing file is an error.
    pub fn new(queues: Queues) -> LeafOptions {
        LeafOptions { direct: None, read_only: false, queues, make_bytes: None }
    }
}

/// A size as `4096`, `64K`, `1M`, `2G`, `1T` (powers of 1024).
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
