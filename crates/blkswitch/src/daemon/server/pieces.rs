//! Answers that are produced in pieces, for maps of a billion regions.
//!
//! Contract: a piece is produced only after the client has taken the one before, on a thread that
//! may block. So a slow client occupies neither a thread nor memory. If a piece takes several
//! steps, a client that leaves ends the work after the step.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use futures_util::stream;

use crate::daemon::server::reply::blocking;

/// Bytes of text per piece: a few milliseconds of work, and a few writes to the socket.
pub const PIECE_BYTES: usize = 64 << 10;

/// A text that is produced in pieces.
pub trait Pieces: Send + 'static {
    /// The next piece, which may be empty; `None` at the end of the text.
    fn next_piece(&mut self) -> Option<Vec<u8>>;
}

/// A body of pieces.
pub fn in_pieces(text: impl Pieces) -> Body {
    Body::from_stream(stream::unfold(text, |mut text| async {
        loop {
            let made = blocking(move || {
                let piece = text.next_piece();
                (piece, text)
            });
            // If a piece fails, the body ends early, and the client sees that it is incomplete.
            let (piece, rest) = made.await.ok()?;
            text = rest;
            let piece = piece?;
            if !piece.is_empty() {
                return Some((Ok::<Bytes, Infallible>(Bytes::from(piece)), text));
            }
        }
    }))
}
