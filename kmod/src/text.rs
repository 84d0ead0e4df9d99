//! Text without `core::fmt`: numbers for the log, answers to messages.
//!
//! Contract: no allocation, no panic; what does not fit is cut off, and said so.

use core::ffi::{CStr, c_uint};

/// Longest log text without a user's word: words, and four numbers of twenty digits.
pub(crate) const MAX_LINE: usize = 160;
/// Digits of the largest 64-bit number.
const MAX_DIGITS: usize = 20;

/// A short line of words and numbers that ends in a NUL.
pub(crate) struct Line<const LEN: usize> {
    bytes: [u8; LEN],
    len: usize,
}

impl<const LEN: usize> Line<LEN> {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; LEN], len: 0 }
    }

    pub(crate) fn text(mut self, text: &[u8]) -> Self {
        self.push_all(text);
        self
    }

    pub(crate) fn decimal(mut self, number: u64) -> Self {
        write_decimal(number, |byte| self.push(byte));
        self
    }

    fn push_all(&mut self, text: &[u8]) {
        for &byte in text {
            self.push(byte);
        }
    }

    /// The last byte stays a NUL.
    fn push(&mut self, byte: u8) {
        if self.len.wrapping_add(1) < LEN
            && let Some(slot) = self.bytes.get_mut(self.len)
        {
            *slot = byte;
            self.len = self.len.wrapping_add(1);
        }
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        // SAFETY: `push` leaves the last byte, and what it has not written, NUL.
        unsafe { CStr::from_ptr(self.bytes.as_ptr().cast()) }
    }
}

/// A number's digits, the first first.
fn write_decimal(mut number: u64, mut push: impl FnMut(u8)) {
    let mut digits = [0u8; MAX_DIGITS];
    let mut used = 0usize;
    for slot in digits.iter_mut().rev() {
        *slot = b'0'.wrapping_add((number % 10) as u8);
        used = used.wrapping_add(1);
        number /= 10;
        if number == 0 {
            break;
        }
    }
    for &digit in digits.iter().skip(MAX_DIGITS.wrapping_sub(used)) {
        push(digit);
    }
}

/// The answer to a message, in the memory the kernel gave for it.
///
/// The kernel takes an answer that fills the memory for one that was cut off, and dmsetup then asks
/// again with twice the memory.
pub(crate) struct Reply {
    first: *mut u8,
    /// Bytes there are, without the NUL.
    room: usize,
    len: usize,
}

impl Reply {
    /// # Safety
    /// `first` has `maxlen` bytes as long as this lives.
    pub(crate) unsafe fn new(first: *mut u8, maxlen: c_uint) -> Self {
        Self { first, room: (maxlen as usize).saturating_sub(1), len: 0 }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len >= self.room
    }

    pub(crate) fn text(&mut self, text: &[u8]) {
        for &byte in text {
            self.push(byte);
        }
    }

    pub(crate) fn decimal(&mut self, number: u64) {
        write_decimal(number, |byte| self.push(byte));
    }

    fn push(&mut self, byte: u8) {
        if self.len < self.room {
            // SAFETY: below `room`, which leaves a byte for the NUL.
            unsafe { self.first.add(self.len).write(byte) }
            self.len = self.len.wrapping_add(1);
        }
    }

    /// Ends the text.
    pub(crate) fn end(self) {
        if self.room > 0 {
            // SAFETY: `len` is at most `room`, and there is a byte more.
            unsafe { self.first.add(self.len).write(0) }
        }
    }
}
