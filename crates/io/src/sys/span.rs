//! A piece of memory that somebody else owns.

/// A piece of memory that an export lends to the pipeline for the life of a request.
///
/// Contract: whoever puts a span in a [`Request`](crate::request::Request) keeps the memory valid, and neither moves nor
/// touches it, until the request is answered: its start has returned an answer, or its [`Done`](crate::request::Done) was
/// taken. The pipeline touches it only in between.
#[derive(Clone, Copy, Debug)]
pub struct Span(pub *mut u8);

impl Span {
    /// No data.
    pub const NONE: Span = Span(std::ptr::null_mut());

    /// The span `bytes` further on.
    pub fn at(self, bytes: u64) -> Span {
        Span(self.0.wrapping_add(bytes as usize))
    }
}

/// Zeroes to be sent or written where the other side cannot zero by itself.
pub(crate) static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
