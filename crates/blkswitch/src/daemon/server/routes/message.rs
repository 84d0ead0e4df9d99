//! `message`: words for a target, of any number, applied as they arrive.
//!
//! The body is read by the runtime and handed over in blocks to a thread that holds the device's
//! message lock and applies them ([`apply`]). A message that fits one block, as nearly all do, is
//! complete before the lock is taken. A longer one holds the lock while the rest arrives, so each
//! further block must be there within [`BLOCK_TIME`]: a client that stalls cannot keep others out.
//!
//! Contract: memory is bounded by [`BLOCK_BYTES`] times [`BLOCKS_AHEAD`], and for an atomic message
//! by
//! [`ATOMIC_MAX_BYTES`]. Whatever is refused, the rest of the body is read and dropped before the
//! answer, so the client always gets the reason.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::HeaderMap;
use blkswitch_core::args::{Words, is_space};
use blkswitch_core::switch::message::{EMPTY_MESSAGE, MAX_WORD_LEN, UNRECOGNISED_MESSAGE};
use blkswitch_core::switch::{Command, MapWriter, Message, TextError, command};
use blkswitch_io::Device;
use blkswitch_io::device::Messenger;
use blkswitch_io::pool::Registry;
use blkswitch_io::slots::Slots;
use blkswitch_io::table::RegionMap;
use http_body_util::BodyExt;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::compact::Compact;
use crate::daemon::devices::Devices;
use crate::daemon::failure::Failure;
use crate::daemon::server::App;
use crate::daemon::server::reply::{Name, Params, Refused, blocking, note_header, refuse};
use crate::daemon::tables::targets::multipath;
use crate::nearest::did_you_mean;
use crate::protocol::{Errno, MessageQuery, MessageReply, route};

const IOCTL: &str = "message";
/// The first words that [`command`] knows.
const MESSAGES: [&str; 2] = ["set_region_mappings", "get_region_mappings"];
/// What is handed over at a time: large enough that handing over costs nothing beside parsing.
const BLOCK_BYTES: usize = 256 << 10;
/// Blocks in the channel: the next is read while one is applied.
const BLOCKS_AHEAD: usize = 2;
/// A block must be full, or the message complete, after this long: 25 KiB/s is less than any client
/// has that means it.
const BLOCK_TIME: Duration = Duration::from_secs(10);
/// Longest atomic message: it is kept until all of it was checked. Some ten million mappings.
const ATOMIC_MAX_BYTES: usize = 128 << 20;
/// Longest answer of `get_region_mappings`; longer maps are streamed by `map export`.
const ANSWER_MAX_BYTES: usize = 1 << 20;

/// What the reading side hands over.
enum Piece {
    /// More of the text.
    Block(Vec<u8>),
    /// There is no more. Without it the message was cut.
    End,
}

/// Why the body ended early.
enum Cut {
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
    Params(query): Params<MessageQuery>,
    body: Body,
) -> Result<(HeaderMap, Json<MessageReply>), Refused> {
    let mut incoming = Incoming { body, left: None };
    let device = match app.devices.find(&name) {
        Ok(device) => device,
        Err(failure) => {
            incoming.drain().await;
            return Err(refuse(IOCTL, None)(failure));
        }
    };
    let number = device.id();
    let reply = receive(&app, device, query, &mut incoming).await?;
    if reply.is_err() {
        incoming.drain().await;
    }
    let reply = reply.map_err(refuse(IOCTL, Some(number)));
    reply.map(|(reply, note)| (note_header(note), Json(reply)))
}

/// Reads the body and has it applied.
async fn receive(
    app: &App,
    device: Arc<Device>,
    query: MessageQuery,
    incoming: &mut Incoming,
) -> Result<Result<(MessageReply, Option<String>), Failure>, Refused> {
    let most = if query.atomic { ATOMIC_MAX_BYTES } else { BLOCK_BYTES };
    let (head, complete) = match incoming.head(most).await {
        Ok(head) => head,
        Err(cut) => return Ok(Err(cut.into())),
    };
    if query.atomic && !complete {
        let reason = format!("an atomic message may have at most {ATOMIC_MAX_BYTES} bytes");
        return Ok(Err(Failure::new(Errno::E2big, reason)));
    }
    let (sender, pieces) = mpsc::channel(BLOCKS_AHEAD);
    let devices = app.devices.clone();
    let applied = blocking(move || {
        let reply = apply(&device, &devices, query, head, complete, pieces)?;
        // Only a remap counts its arguments.
        let is_remap = reply.arguments > 0;
        let note = is_remap.then(|| devices.noted.of_remap(&device, query.sector)).flatten();
        Ok((reply, note))
    });
    if complete {
        return applied.await;
    }
    let (sent, applied) = tokio::join!(incoming.hand_over(sender), applied);
    Ok(match (sent, applied?) {
        // The reason for a message that was refused is the refusal, whatever became of the rest of
        // it.
        (Err(cut), Ok(_)) => Err(cut.into()),
        (_, applied) => applied,
    })
}

/// The body of a message.
struct Incoming {
    body: Body,
    /// What came with the last block and did not fit it.
    left: Option<Bytes>,
}

impl Incoming {
    /// The first `most` bytes, leading blanks left out, and whether that is all.
    async fn head(&mut self, most: usize) -> Result<(Vec<u8>, bool), Cut> {
        loop {
            let (mut head, complete) = self.block(most).await?;
            let blank = head.iter().take_while(|byte| is_space(**byte)).count();
            if complete || blank < head.len() {
                head.drain(..blank);
                return Ok((head, complete));
            }
        }
    }

    /// The next `most` bytes, fewer only at the end, and whether that was the end.
    async fn block(&mut self, most: usize) -> Result<(Vec<u8>, bool), Cut> {
        let mut block = Vec::new();
        // The time begins anew with each [`BLOCK_BYTES`], also where a larger block is asked for.
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

    /// Fills a block up to `full` bytes; true at the end of the body.
    async fn fill(&mut self, block: &mut Vec<u8>, full: usize) -> Result<bool, Cut> {
        while block.len() < full {
            let mut data = match self.left.take() {
                Some(data) => data,
                None => match self.body.frame().await {
                    None => return Ok(true),
                    Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                    Some(Err(error)) => return Err(Cut::Broken(error.to_string())),
                },
            };
            let taken = data.split_to(data.len().min(full - block.len()));
            block.extend_from_slice(&taken);
            self.left = Some(data).filter(|data| !data.is_empty());
        }
        Ok(false)
    }

    /// Hands the rest over, block by block. Ends early when the other side wants no more.
    async fn hand_over(&mut self, pieces: mpsc::Sender<Piece>) -> Result<(), Cut> {
        loop {
            let (block, end) = self.block(BLOCK_BYTES).await?;
            if pieces.send(Piece::Block(block)).await.is_err() {
                return Ok(());
            }
            if end {
                // A receiver that is gone has refused the message, which is its own answer.
                let _ = pieces.send(Piece::End).await;
                return Ok(());
            }
        }
    }

    /// Reads the rest and forgets it.
    async fn drain(&mut self) {
        while let Ok((_, false)) = self.block(BLOCK_BYTES).await {}
    }
}

/// Applies a message: its head, and what follows unless that is all.
fn apply(
    device: &Device,
    devices: &Devices,
    query: MessageQuery,
    mut head: Vec<u8>,
    complete: bool,
    pieces: mpsc::Receiver<Piece>,
) -> Result<MessageReply, Failure> {
    let mut words = Words::new(&head);
    let Some(first) = words.next() else {
        return Err(Failure::new(Errno::Einval, "the message has no words").logged(EMPTY_MESSAGE));
    };
    let first: Vec<u8> = first.bytes().collect();
    if first.starts_with(b"@") {
        let reply = core_message(device, &head, complete)?;
        // One that was to go with its last user is kept again.
        devices.save_kept()?;
        return Ok(reply);
    }
    devices.check_there(device)?;
    let messenger = device.messenger(query.sector)?;
    let Some(map) = messenger.map() else {
        return to_multipath(&messenger, &head, complete, devices.pool().registry());
    };
    match command(&first) {
        Some(Command::SetRegionMappings) => {
            let begin = head.len() - words.rest().len();
            let writer = messenger.writer().ok_or_else(|| {
                Failure::new(Errno::Ebusy, "the map is being changed by something else: try again")
            })?;
            head.drain(..begin);
            if query.atomic {
                let mut check = Message::new();
                let checked = check.check_text(writer.geometry(), &head, true);
                checked.map_err(|refused| bad_argument(&head, refused))?;
            }
            devices.begin_change(device, map)?;
            let reply = set_region_mappings(writer, head, complete, pieces);
            let applied =
                reply.as_ref().map_or_else(|(_, arguments)| *arguments, |reply| reply.arguments);
            if applied > 0 {
                device.remapped(messenger.segment().start, applied);
            }
            devices.end_change(map)?;
            reply.map_err(|(failure, _)| failure)
        }
        Some(Command::GetRegionMappings) => get_region_mappings(map),
        None => {
            let word = String::from_utf8_lossy(&first).chars().take(64).collect::<String>();
            let near = did_you_mean(&word, MESSAGES);
            let reason = format!(
                "'{word}' is no message of switch: {near}the first word must be one of {}",
                MESSAGES.join(", ")
            );
            let mut failure = Failure::new(Errno::Einval, reason);
            failure.kernel.push(format!("device-mapper: switch: {UNRECOGNISED_MESSAGE}"));
            Err(failure)
        }
    }
}

/// A message as the route applies it, for tests that have no route.
#[cfg(test)]
pub(in crate::daemon) fn apply_whole(
    device: &Device,
    devices: &Devices,
    text: &str,
    atomic: bool,
) -> Result<MessageReply, Failure> {
    let query = MessageQuery { sector: 0, atomic };
    apply(device, devices, query, text.into(), true, mpsc::channel(1).1)
}

/// A message that the device-mapper core takes for itself.
fn core_message(device: &Device, text: &[u8], complete: bool) -> Result<MessageReply, Failure> {
    if !complete {
        let reason = format!("a message that begins with @ may have at most {BLOCK_BYTES} bytes");
        return Err(Failure::new(Errno::E2big, reason));
    }
    let words: Vec<String> = Words::new(text)
        .map(|word| String::from_utf8_lossy(&word.bytes().collect::<Vec<u8>>()).into_owned())
        .collect();
    let [first, rest @ ..] = words.as_slice() else { return Ok(MessageReply::default()) };
    if !first.eq_ignore_ascii_case("@cancel_deferred_remove") {
        let reason = format!(
            "'{first}' is not known here; blkswitch stats has what @stats_ messages give elsewhere"
        );
        let line = format!("Unsupported message sent to DM core: {first}");
        return Err(Failure::new(Errno::Einval, reason).logged(line));
    }
    if !rest.is_empty() {
        let failure = Failure::new(Errno::Einval, "@cancel_deferred_remove stands alone");
        return Err(failure.logged("Invalid arguments for @cancel_deferred_remove"));
    }
    device.set_deferred_remove(false);
    Ok(MessageReply::default())
}

/// A message to a multipath: a few words.
fn to_multipath(
    messenger: &Messenger<'_>,
    text: &[u8],
    complete: bool,
    registry: &Registry,
) -> Result<MessageReply, Failure> {
    if !complete {
        let reason = format!("a message to a multipath may have at most {BLOCK_BYTES} bytes");
        return Err(Failure::new(Errno::E2big, reason));
    }
    let words: Vec<Vec<u8>> = Words::new(text).map(|word| word.bytes().collect()).collect();
    multipath::message(messenger, &words, registry)
}

fn get_region_mappings(map: &RegionMap) -> Result<MessageReply, Failure> {
    let (mut text, mut compact) = (Vec::new(), Compact::default());
    if compact.write(map, ANSWER_MAX_BYTES, &mut text) {
        let reason = format!(
            "the map takes more than {ANSWER_MAX_BYTES} bytes: read it with blkswitch map export"
        );
        return Err(Failure::new(Errno::E2big, reason));
    }
    Ok(MessageReply {
        text: Some(String::from_utf8_lossy(&text).into_owned()),
        ..MessageReply::default()
    })
}

/// Changes the map by the arguments in `text` and in the pieces after it. With a refusal comes how
/// many were applied.
fn set_region_mappings(
    mut writer: MapWriter<'_, Slots>,
    mut text: Vec<u8>,
    complete: bool,
    mut pieces: mpsc::Receiver<Piece>,
) -> Result<MessageReply, (Failure, u64)> {
    let mut state = Message::new();
    let mut last = complete;
    loop {
        let taken = state.apply_text(&mut writer, &text, last);
        let taken = taken.map_err(|refused| (bad_argument(&text, refused), state.arguments()))?;
        if last {
            return Ok(MessageReply { arguments: state.arguments(), ..MessageReply::default() });
        }
        text.drain(..taken);
        match pieces.blocking_recv() {
            Some(Piece::Block(block)) => text.extend_from_slice(&block),
            Some(Piece::End) => last = true,
            // The reading side knows why the message was cut and answers.
            None => {
                return Ok(MessageReply {
                    arguments: state.arguments(),
                    ..MessageReply::default()
                });
            }
        }
    }
}

/// The refusal of the argument that begins at `at`.
fn bad_argument(text: &[u8], TextError { at, error }: TextError) -> Failure {
    let rest = text.get(at..).unwrap_or_default();
    let word = Words::new(rest.get(..MAX_WORD_LEN).unwrap_or(rest)).next();
    let word = word.unwrap_or(blkswitch_core::args::Word::literal(b""));
    let mut failure = Failure::new(Errno::Einval, error.explain(word).to_string());
    failure.kernel.push(format!("device-mapper: switch: {}", error.of_argument(word)));
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incoming(parts: &[&'static [u8]]) -> Incoming {
        let parts: Vec<Result<Bytes, std::io::Error>> =
            parts.iter().map(|part| Ok(Bytes::from_static(part))).collect();
        Incoming { body: Body::from_stream(futures_util::stream::iter(parts)), left: None }
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
            let mut body = Incoming { body: Body::from_stream(stalled), left: None };
            assert!(matches!(body.block(10).await, Err(Cut::Late)));
        });
    }
}
