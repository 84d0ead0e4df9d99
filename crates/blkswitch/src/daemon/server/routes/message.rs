//! `message`: any number of words for a target, applied as they arrive.
//!
//! The runtime reads the body and passes it in blocks to a thread that holds the device's message
//! lock and applies them (`Devices::message`). Nearly all messages fit one block and are complete
//! before the lock is taken. A longer message holds the lock while the rest arrives. So each
//! further block must arrive within [`BLOCK_TIME`]: a client that stalls cannot lock others out.
//!
//! A word that begins with `#` begins a comment, to the end of the line, as in the last line of an
//! exported map. Comments are dropped as the body arrives.
//!
//! Contract: memory is bounded by [`BLOCK_BYTES`] times [`BLOCKS_AHEAD`], for an atomic message by
//! [`ATOMIC_MAX_BYTES`], and for a long one with a generation by the size of the map. After a
//! refusal, the rest of the body is read and dropped before the answer, so the client always gets
//! the reason.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::HeaderMap;
use blkswitch_core::args::is_space;
use blkswitch_io::Device;
use blkswitch_io::event::Who;
use http_body_util::BodyExt;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::compact::Comments;
use crate::daemon::devices::message::How;
use crate::daemon::failure::Failure;
use crate::daemon::server::app::App;
use crate::daemon::server::reply::{
    Asker, Name, QueryParams, Refused, blocking, note_header, refuse,
};
use crate::daemon::tables::targets::{More, Text};
use crate::protocol::{Errno, MessageQuery, MessageReply, route};

const IOCTL: &str = "message";
/// Size of a block: large enough that passing it on costs nothing compared with parsing it.
pub(super) const BLOCK_BYTES: usize = 256 << 10;
/// Blocks in the channel: the next one is read while one is applied.
const BLOCKS_AHEAD: usize = 2;
/// Time limit for a block. It allows 25 KiB/s, and every client that does not stall is faster.
const BLOCK_TIME: Duration = Duration::from_secs(10);
/// Longest atomic message, some ten million mappings. It is kept in memory until all of it is
/// checked.
const ATOMIC_MAX_BYTES: usize = 128 << 20;

/// Passed from the reading task to the applying thread.
enum Piece {
    /// More of the text.
    Block(Vec<u8>),
    /// The message is complete. Without this it was cut off.
    End,
}

/// Why the body ended early.
pub(super) enum Cut {
    Late,
    Broken(String),
}

impl From<Cut> for Failure {
    fn from(cut: Cut) -> Failure {
        match cut {
            Cut::Late => {
                let seconds = BLOCK_TIME.as_secs();
                let reason = format!(
                    "the message stalled: {BLOCK_BYTES} bytes, or its end, must arrive within {seconds} seconds"
                );
                Failure::new(Errno::Etimedout, reason)
            }
            Cut::Broken(error) => {
                Failure::new(Errno::Eintr, format!("the message was cut: {error}"))
            }
        }
    }
}

/// Send the words of a message to the target that holds a sector.
#[utoipa::path(
    post,
    path = route::MESSAGE,
    params(("name" = String, Path, description = "The device"), MessageQuery),
    request_body(content = String, description = "Words, as a stream", content_type = "text/plain"),
    responses((status = 200, body = MessageReply), Refused)
)]
pub async fn message(
    State(app): State<App>,
    Name(name): Name,
    QueryParams(query): QueryParams<MessageQuery>,
    Asker(peer): Asker,
    body: Body,
) -> Result<(HeaderMap, Json<MessageReply>), Refused> {
    let mut incoming = Incoming::new(body);
    let device = match app.devices.find(&name) {
        Ok(device) => device,
        Err(failure) => {
            incoming.drain().await;
            return Err(refuse(IOCTL, None)(failure));
        }
    };
    let number = device.id();
    let MessageQuery { sector, atomic, if_generation, force } = query;
    let (uid, pid) = (peer.map(|peer| peer.uid), peer.and_then(|peer| peer.pid));
    let who = Who { uid, pid, source: "message".to_owned() };
    let how = How { atomic, if_generation, force, who };
    let reply = receive(&app, device, sector, how, &mut incoming).await?;
    if reply.is_err() {
        incoming.drain().await;
    }
    let reply = reply.map_err(refuse(IOCTL, Some(number)));
    reply.map(|(reply, note)| (note_header(note), Json(reply)))
}

/// Reads the body and applies it.
async fn receive(
    app: &App,
    device: Arc<Device>,
    sector: u64,
    how: How,
    incoming: &mut Incoming,
) -> Result<Result<(MessageReply, Option<String>), Failure>, Refused> {
    let is_whole = how.atomic && how.if_generation.is_none();
    let most = if is_whole { ATOMIC_MAX_BYTES } else { BLOCK_BYTES };
    let (head, complete) = match incoming.head(most).await {
        Ok(head) => head,
        Err(cut) => return Ok(Err(cut.into())),
    };
    if is_whole && !complete {
        let reason = format!(
            "an atomic message may have at most {ATOMIC_MAX_BYTES} bytes: a longer one needs \
             --if-generation"
        );
        return Ok(Err(Failure::new(Errno::E2big, reason)));
    }
    let devices = app.devices.clone();
    let work = move |text: Text<'_>| {
        let reply = devices.message(&device, sector, how, text)?;
        // Only a remap counts its arguments.
        let is_remap = reply.arguments > 0;
        let note = is_remap.then(|| devices.noted.of_remap(&device, sector)).flatten();
        Ok((reply, note))
    };
    let cut_off = |cut: Cut, (reply, _): &(MessageReply, Option<String>)| {
        Failure::from(cut).with_generation(reply.generation)
    };
    feed(incoming, head, complete, work, cut_off).await
}

/// Runs `work` on a thread that may block, and passes it the text that begins with `head`. The rest
/// is read while `work` runs. If it was cut off and `work` has not refused it, `cut_off` makes the
/// failure.
pub(super) async fn feed<T: Send + 'static>(
    incoming: &mut Incoming,
    head: Vec<u8>,
    complete: bool,
    work: impl FnOnce(Text<'_>) -> Result<T, Failure> + Send + 'static,
    cut_off: impl FnOnce(Cut, &T) -> Failure,
) -> Result<Result<T, Failure>, Refused> {
    let (sender, mut pieces) = mpsc::channel(BLOCKS_AHEAD);
    let applied = blocking(move || {
        let next = &mut || match pieces.blocking_recv() {
            Some(Piece::Block(block)) => More::Bytes(block),
            Some(Piece::End) => More::End,
            None => More::Cut,
        };
        work(Text { head, complete, next })
    });
    if complete {
        return applied.await;
    }
    let (sent, applied) = tokio::join!(incoming.hand_over(sender), applied);
    Ok(match (sent, applied?) {
        // If the message was refused, that is the answer, whatever happened to the rest of the
        // body.
        (Err(cut), Ok(done)) => Err(cut_off(cut, &done)),
        (_, applied) => applied,
    })
}

/// The body of a message.
pub(super) struct Incoming {
    body: Body,
    /// Bytes of the last frame that did not fit the block.
    left: Option<Bytes>,
    comments: Comments,
}

impl Incoming {
    /// A body of which nothing was read.
    pub(super) fn new(body: Body) -> Incoming {
        Incoming { body, left: None, comments: Comments::default() }
    }

    /// Reads the first `most` bytes, without leading white space. The flag tells whether that is
    /// everything.
    pub(super) async fn head(&mut self, most: usize) -> Result<(Vec<u8>, bool), Cut> {
        loop {
            let (mut head, complete) = self.block(most).await?;
            let blank = head.iter().take_while(|byte| is_space(**byte)).count();
            if complete || blank < head.len() {
                head.drain(..blank);
                return Ok((head, complete));
            }
        }
    }

    /// Reads up to `most` bytes, fewer only at the end. The flag tells whether the end was reached.
    async fn block(&mut self, most: usize) -> Result<(Vec<u8>, bool), Cut> {
        let mut block = Vec::new();
        // Each [`BLOCK_BYTES`] have their own time limit, also within a larger block.
        while block.len() < most {
            let part = (block.len() + BLOCK_BYTES).min(most);
            match timeout(BLOCK_TIME, self.fill(&mut block, part)).await {
                Ok(Ok(true)) => return Ok((block, true)),
                Ok(Ok(false)) => {}
                Ok(Err(cut)) => return Err(cut),
                Err(_) => return Err(Cut::Late),
            }
        }
        Ok((block, false))
    }

    /// Fills a block up to `full` bytes. Returns `true` at the end of the body.
    async fn fill(&mut self, block: &mut Vec<u8>, full: usize) -> Result<bool, Cut> {
        while block.len() < full {
            let mut data = match self.left.take() {
                Some(data) => data,
                None => match self.body.frame().await {
                    None => return Ok(true),
                    Some(Ok(frame)) => self.comments.strip(frame.into_data().unwrap_or_default()),
                    Some(Err(error)) => return Err(Cut::Broken(error.to_string())),
                },
            };
            let taken = data.split_to(data.len().min(full - block.len()));
            block.extend_from_slice(&taken);
            self.left = Some(data).filter(|data| !data.is_empty());
        }
        Ok(false)
    }

    /// Passes the rest on, block by block. Ends early if the receiver wants no more.
    async fn hand_over(&mut self, pieces: mpsc::Sender<Piece>) -> Result<(), Cut> {
        loop {
            let (block, end) = self.block(BLOCK_BYTES).await?;
            if pieces.send(Piece::Block(block)).await.is_err() {
                return Ok(());
            }
            if end {
                // If the receiver is gone, it has refused the message and answers.
                let _ = pieces.send(Piece::End).await;
                return Ok(());
            }
        }
    }

    /// Reads the rest and drops it.
    pub(super) async fn drain(&mut self) {
        while let Ok((_, false)) = self.block(BLOCK_BYTES).await {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incoming(parts: &[&'static [u8]]) -> Incoming {
        let parts: Vec<Result<Bytes, std::io::Error>> =
            parts.iter().map(|part| Ok(Bytes::from_static(part))).collect();
        let body = Body::from_stream(futures_util::stream::iter(parts));
        Incoming { body, left: None, comments: Comments::default() }
    }

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
            .block_on(work)
    }

    #[test]
    fn blocks_do_not_depend_on_how_the_body_arrives() {
        run(async {
            let mut body = incoming(&[b"abc", b"", b"defgh", b"i"]);
            let mut got = Vec::new();
            loop {
                let Ok((block, end)) = body.block(2).await else { panic!("the body is whole") };
                got.push(String::from_utf8(block).unwrap());
                if end {
                    break;
                }
            }
            assert_eq!(got, ["ab", "cd", "ef", "gh", "i"]);
        });
    }

    #[test]
    fn leading_blanks_do_not_count() {
        run(async {
            let mut body = incoming(&[b"      ", b"    \t\n set", b" 1"]);
            let Ok((head, complete)) = body.head(4).await else { panic!("the body is whole") };
            assert_eq!((head.as_slice(), complete), (b"set".as_slice(), false));
        });
    }

    #[test]
    fn a_client_that_stalls_is_given_up() {
        run(async {
            let stalled = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
            let body = Body::from_stream(stalled);
            let mut body = Incoming { body, left: None, comments: Comments::default() };
            assert!(matches!(body.block(10).await, Err(Cut::Late)));
        });
    }
}
