//! A reference to memory that another owner lends.

/// Memory that an export lends to the pipeline for the life of a request.
///
/// Contract: the code that puts a span in a [`Request`](crate::request::Request) keeps the memory
/// valid, and neither moves nor touches it, until the request is answered: its start has returned
/// an answer, or its [`Done`](crate::request::Done) was taken. The pipeline touches the memory only
/// in between.
#[derive(Clone, Copy, Debug)]
pub struct Span(pub *mut u8);

impl Span {
    /// The span of a request without data.
    pub const NONE: Span = Span(std::ptr::null_mut());

    /// The span that begins `bytes` bytes later.
    pub fn at(self, bytes: u64) -> Span {
        Span(self.0.wrapping_add(bytes as usize))
    }
}

/// Zeroes to send or write if the other side cannot zero by itself.
pub(crate) static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
