//! Text without `core::fmt`: numbers for the log, answers to messages.
//!
//! Contract: no allocation, no panic. Text that does not fit is cut. An answer that was cut fills
//! its memory ([`Reply::is_full`]).

use core::ffi::{CStr, c_uint};

/// Longest log text without a user's word: some words and four numbers of twenty digits.
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

    /// Appends a byte. The last byte of the line stays a NUL.
    fn push(&mut self, byte: u8) {
        if self.len.wrapping_add(1) < LEN
            && let Some(slot) = self.bytes.get_mut(self.len)
        {
            *slot = byte;
            self.len = self.len.wrapping_add(1);
        }
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        // SAFETY: the last byte and all bytes that `push` has not written are NUL.
        unsafe { CStr::from_ptr(self.bytes.as_ptr().cast()) }
    }
}

/// Pushes the digits of a number, the most significant first.
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

/// The answer to a message, in the memory that the kernel provides.
///
/// The kernel takes an answer that fills the memory as cut, and dmsetup then asks again with twice
/// the memory.
pub(crate) struct Reply {
    first: *mut u8,
    /// Size of the memory without the NUL.
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
            // SAFETY: `len` is below `room`, which leaves a byte for the NUL.
            unsafe { self.first.add(self.len).write(byte) }
            self.len = self.len.wrapping_add(1);
        }
    }

    /// Writes the NUL after the text.
    pub(crate) fn end(self) {
        if self.room > 0 {
            // SAFETY: `len` is at most `room`, and the memory has one byte more.
            unsafe { self.first.add(self.len).write(0) }
        }
    }
}
