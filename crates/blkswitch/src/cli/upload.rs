//! Sends the bytes of a reader as a request's body, piece by piece, with a progress bar on a
//! terminal.
//!
//! Contract: a thread reads, the runtime sends; at most [`PIECES_AHEAD`] pieces of [`PIECE_BYTES`]
//! are in memory. If the daemon stops reading, the thread ends with its next piece.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::mpsc;

/// Size of a piece in bytes. At this size, two copies and a wake-up cost nothing compared with the
/// parsing.
const PIECE_BYTES: usize = 128 << 10;
/// Pieces in memory. While one is sent, the next is read.
const PIECES_AHEAD: usize = 4;

/// The source of the text.
pub(super) struct Source<R> {
    /// The reader, which is read to its end.
    pub reader: R,
    /// The length in bytes, if it is known.
    pub length: Option<u64>,
    /// Whether to draw a progress bar (on standard error, and only if that is a terminal).
    pub bar: bool,
}

/// A request body that arrives in pieces.
pub(super) struct Pieces(mpsc::Receiver<io::Result<Bytes>>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

/// A body with the words of `first`, followed by everything from `source`.
pub(super) fn body<R: Read + Send + 'static>(mut first: Vec<u8>, source: Source<R>) -> Pieces {
    let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
    thread::spawn(move || {
        if !first.is_empty() {
            first.push(b' ');
            if sender.blocking_send(Ok(Bytes::from(first))).is_err() {
                return;
            }
        }
        if let Err(error) = pump(source, &sender) {
            // A closed channel is not an error: the request has ended before its body.
            let _ = sender.blocking_send(Err(error));
        }
    });
    Pieces(receiver)
}

fn pump<R: Read>(
    mut source: Source<R>,
    sender: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let bar = progress(&source);
    loop {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        (&mut source.reader).take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
        let length = piece.len() as u64;
        if piece.is_empty() || sender.blocking_send(Ok(Bytes::from(piece))).is_err() {
            bar.finish_and_clear();
            return Ok(());
        }
        bar.inc(length);
    }
}

fn progress<R>(source: &Source<R>) -> ProgressBar {
    let target =
        if source.bar { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(source.length, target);
    let template = match source.length {
        Some(_) => {
            "{bytes:>11} of {total_bytes} [{wide_bar:.cyan/blue}] {bytes_per_sec}, {eta} left"
        }
        None => "{spinner} {bytes:>11} {bytes_per_sec}",
    };
    // If indicatif rejects the template, its default style is used.
    bar.set_style(
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    bar
}

/// Size of standard input in bytes; `None` if it is not a regular file.
pub(super) fn length_of_stdin() -> Option<u64> {
    let stdin = fs::metadata("/proc/self/fd/0").ok()?;
    (stdin.is_file() && stdin.size() > 0).then(|| stdin.size())
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[test]
    fn everything_arrives_in_order() {
        let text: String = (0..200_000).map(|index| format!("{index:x}:1 ")).collect();
        let source = Source { reader: io::Cursor::new(text.clone()), length: None, bar: false };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let sent = runtime.block_on(body("set_region_mappings".into(), source).collect()).unwrap();
        assert_eq!(sent.to_bytes(), format!("set_region_mappings {text}"));
    }

    #[test]
    fn a_read_error_ends_the_body() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("torn tape"))
            }
        }
        let source = Source { reader: Broken, length: None, bar: false };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let error = runtime.block_on(body(Vec::new(), source).collect()).unwrap_err();
        assert_eq!(error.to_string(), "torn tape");
    }
}
