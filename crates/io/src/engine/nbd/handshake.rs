//! The client's side of the negotiation: fixed newstyle, structured replies if the server has them,
//! and `NBD_OPT_GO`.
//!
//! Contract: the functions block, on a [`Socket`] with a deadline. Their memory is bounded whatever
//! the server sends. Servers without `NBD_OPT_GO` (before 2017) and servers that require TLS are
//! refused with an explanation.

use std::io;

use crate::engine::session::socket::Socket;
use crate::wire::nbd::{
    INIT_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, Reader, handshake_flag, info, opt, rep,
    transmission_flag as flag,
};
use crate::wire::nbd::{MAX_REQUEST_BYTES, MAX_STRING};
use crate::wire::replaces;

/// Longest reply to an option in bytes: a few strings.
const MAX_REPLY: usize = 4 * MAX_STRING;
/// Most replies to one option: twice the number of kinds of information.
const MAX_REPLIES: usize = 16;
/// Largest minimum block size that the protocol allows.
const MAX_MIN_BLOCK: u32 = 64 << 10;
/// The metadata context for allocation.
const ALLOCATION: &str = "base:allocation";
/// The minimum block size of a server that announces none.
const DEFAULT_MIN_BLOCK: u32 = 1;

/// The properties of an export, as a server offers them. A later connection of the leaf must keep
/// them ([`Offer::changed`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    /// Size of the export in bytes.
    pub(super) size: u64,
    /// The transmission flags of the protocol.
    pub(super) flags: u16,
    /// Smallest request in bytes.
    pub(super) min_block: u32,
    /// Unit of efficient requests in bytes.
    pub(super) preferred_block: u32,
    /// Largest read or write in bytes.
    pub(super) max_block: u32,
    /// The server's name for the export, or the requested name if it sends none.
    pub(super) name: String,
    /// The server's description for humans. May be empty.
    pub(super) description: String,
}

impl Offer {
    /// Whether the server offers all of these flags.
    pub(super) fn has(&self, flags: u16) -> bool {
        self.flags & flags == flags
    }

    /// Describes the promise that a server breaks if it offered `self` and offers `now`. `None` if
    /// the leaf can go on.
    ///
    /// The server may offer more, or a larger export, of which the leaf uses the old size. It may
    /// offer less where [`super::protocol`] compensates: that writes zeroes out, flushes after a
    /// write that must be durable, and sends shorter requests.
    pub(super) fn changed(&self, now: &Offer) -> Option<String> {
        let lost = |flag| self.has(flag) && !now.has(flag);
        let broken = if now.name != self.name {
            format!("it is called '{}', and was '{}'", now.name, self.name)
        } else if now.size < self.size {
            format!("it has {} bytes, and had {}", now.size, self.size)
        } else if now.min_block > self.min_block.max(512) {
            format!("its smallest block is {}, and was {}", now.min_block, self.min_block)
        } else if now.has(flag::READ_ONLY) && !self.has(flag::READ_ONLY) {
            "it is read-only, and could be written".to_string()
        } else if lost(flag::SEND_FLUSH) {
            "it cannot be flushed, and could be".to_string()
        } else if !self.has(flag::SEND_FLUSH) && now.has(flag::SEND_FLUSH) {
            "it is to be flushed, and had nothing to flush".to_string()
        } else if lost(flag::CAN_MULTI_CONN) {
            "it serves one connection at a time, and served several".to_string()
        } else {
            // The description may differ, because it may contain varying text.
            return None;
        };
        Some(format!("the export is not what it was: {broken}"))
    }
}

/// Negotiates the use of an export.
pub(super) fn shake_hands(socket: &mut Socket, export: &str) -> io::Result<Offer> {
    begin(socket, export)?;
    go(socket, export)
}

/// As [`shake_hands`], for a connection that replaces older ones of the same name. Also returns the
/// server's confirmation ([`replaces`]), which only blkswitch's own export gives.
pub(super) fn shake_hands_in_place(
    socket: &mut Socket,
    export: &str,
    name: &str,
) -> io::Result<(Offer, Option<String>)> {
    let mut confirmed = None;
    if begin(socket, export)? {
        let query = format!("{}{name}", replaces::QUERY);
        // Other servers may answer anything. Only an answer with the query as its prefix is a
        // confirmation.
        contexts(socket, export, opt::LIST_META_CONTEXT, &query, |_, context| {
            let is_it = context.strip_prefix(query.as_bytes()).is_some_and(|rest| !rest.is_empty());
            confirmed = is_it.then(|| String::from_utf8_lossy(context).into_owned());
        })?;
    }
    Ok((go(socket, export)?, confirmed))
}

/// As [`shake_hands`], for allocation queries. Also returns the number that the server gives to
/// `base:allocation`. `None` if the server does not have that context.
pub(super) fn shake_hands_for_status(
    socket: &mut Socket,
    export: &str,
) -> io::Result<Option<(Offer, u32)>> {
    if !begin(socket, export)? {
        return Ok(None);
    }
    let mut number = None;
    let is_known = contexts(socket, export, opt::SET_META_CONTEXT, ALLOCATION, |of, context| {
        number = Some(of).filter(|_| context == ALLOCATION.as_bytes()).or(number);
    })?;
    let Some(number) = number.filter(|_| is_known) else { return Ok(None) };
    Ok(Some((go(socket, export)?, number)))
}

/// Sends a query about metadata contexts, and passes the number and name of each answer to `each`.
/// Returns whether the server accepts the option.
fn contexts(
    socket: &mut Socket,
    export: &str,
    option: u32,
    query: &str,
    mut each: impl FnMut(u32, &[u8]),
) -> io::Result<bool> {
    let [export_len, query_len] = [export, query].map(|text| (text.len() as u32).to_be_bytes());
    let parts = [&export_len[..], export.as_bytes(), &1u32.to_be_bytes(), &query_len];
    send(socket, option, &[&parts.concat(), query.as_bytes()].concat())?;
    for _ in 0..MAX_REPLIES {
        match reply(socket, option)? {
            (rep::ACK, _) => return Ok(true),
            (rep::META_CONTEXT, data) => {
                let mut reader = Reader::new(&data);
                if let Some(number) = reader.u32() {
                    each(number, reader.bytes(reader.len()).unwrap_or_default());
                }
            }
            (kind, _) if kind & rep::ERROR_BIT != 0 => return Ok(false),
            (kind, _) => {
                return Err(broken(format!("a reply of type {kind:#x} to option {option}")));
            }
        }
    }
    Err(broken(format!("more than {MAX_REPLIES} replies to option {option}")))
}

/// Reads the greeting and asks for structured replies. Returns whether the server has them.
fn begin(socket: &mut Socket, export: &str) -> io::Result<bool> {
    let mut greeting = Reader::new(&socket.array::<18>()?).greeting()?;
    greeting &= handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
    if greeting & handshake_flag::FIXED_NEWSTYLE == 0 {
        return Err(broken("the server speaks an old form of NBD, without options".into()));
    }
    socket.write_all(&u32::from(greeting).to_be_bytes())?;
    send(socket, opt::STRUCTURED_REPLY, &[])?;
    match reply(socket, opt::STRUCTURED_REPLY)? {
        (rep::ACK, _) => Ok(true),
        (kind, text) if kind == rep::ERR_TLS_REQD => Err(refused(export, kind, &text)),
        (kind, _) if kind & rep::ERROR_BIT != 0 => Ok(false),
        (kind, _) => Err(broken(format!("a reply of type {kind:#x} to STRUCTURED_REPLY"))),
    }
}

fn go(socket: &mut Socket, export: &str) -> io::Result<Offer> {
    let mut data = (export.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(export.as_bytes());
    let wanted = [info::NAME, info::DESCRIPTION, info::BLOCK_SIZE];
    data.extend_from_slice(&(wanted.len() as u16).to_be_bytes());
    wanted.iter().for_each(|kind| data.extend_from_slice(&kind.to_be_bytes()));
    send(socket, opt::GO, &data)?;
    let mut offer = Offer {
        size: 0,
        flags: 0,
        min_block: DEFAULT_MIN_BLOCK,
        preferred_block: 0,
        max_block: MAX_REQUEST_BYTES,
        name: export.to_string(),
        description: String::new(),
    };
    for _ in 0..MAX_REPLIES {
        match reply(socket, opt::GO)? {
            (rep::ACK, _) => return checked(offer),
            (rep::INFO, data) => inform(&mut offer, &data).ok_or_else(|| {
                broken(format!("information about the export of {} bytes", data.len()))
            })?,
            (kind, text) if kind & rep::ERROR_BIT != 0 => return Err(refused(export, kind, &text)),
            (kind, _) => return Err(broken(format!("a reply of type {kind:#x} to GO"))),
        }
    }
    Err(broken(format!("more than {MAX_REPLIES} replies to GO")))
}

/// Stores one piece of information in `offer`. `None` if it is malformed. Skips unknown kinds, as
/// the specification requires.
fn inform(offer: &mut Offer, data: &[u8]) -> Option<()> {
    let mut reader = Reader::new(data);
    let kind = reader.u16()?;
    match kind {
        info::EXPORT => (offer.size, offer.flags) = (reader.u64()?, reader.u16()?),
        info::NAME => offer.name = text(&mut reader),
        info::DESCRIPTION => offer.description = text(&mut reader),
        info::BLOCK_SIZE => {
            (offer.min_block, offer.preferred_block) = (reader.u32()?, reader.u32()?);
            offer.max_block = reader.u32()?;
        }
        _ => return Some(()),
    }
    (reader.len() == 0).then_some(())
}

/// Checks that this client can work with the offer, and limits its largest block.
fn checked(mut offer: Offer) -> io::Result<Offer> {
    offer.max_block = offer.max_block.min(MAX_REQUEST_BYTES);
    let Offer { size, flags, min_block, max_block, .. } = offer;
    if flags & flag::HAS_FLAGS == 0 {
        return Err(broken(format!(
            "transmission flags {flags:#x} without the one that says there are some"
        )));
    }
    if !min_block.is_power_of_two() || min_block > MAX_MIN_BLOCK || max_block < min_block.max(512) {
        return Err(broken(format!("blocks of {min_block} to {max_block} bytes")));
    }
    if size > i64::MAX as u64 {
        return Err(broken(format!("a size of {size} bytes")));
    }
    // Then every part of a longer request is aligned.
    offer.max_block -= max_block % min_block.max(512);
    Ok(offer)
}

fn send(socket: &mut Socket, option: u32, data: &[u8]) -> io::Result<()> {
    let head = [
        &OPTION_MAGIC.to_be_bytes()[..],
        &option.to_be_bytes(),
        &(data.len() as u32).to_be_bytes(),
    ];
    socket.write_all(&[&head.concat(), data].concat())
}

/// Reads the next reply to an option. Returns its type and data.
fn reply(socket: &mut Socket, option: u32) -> io::Result<(u32, Vec<u8>)> {
    let head = socket.array::<{ crate::wire::nbd::OPTION_REPLY_LEN }>()?;
    let mut reader = Reader::new(&head);
    let (magic, to) = (reader.u64(), reader.u32());
    let (kind, len) = (reader.u32().unwrap_or(0), reader.u32().unwrap_or(u32::MAX) as usize);
    if (magic, to) != (Some(OPTION_REPLY_MAGIC), Some(option)) || len > MAX_REPLY {
        return Err(broken(format!("no reply to option {option}: {head:x?}")));
    }
    let mut data = vec![0; len];
    socket.read_exact(&mut data)?;
    Ok((kind, data))
}

impl Reader<'_> {
    /// Reads the greeting and returns the handshake flags.
    fn greeting(&mut self) -> io::Result<u16> {
        match (self.u64(), self.u64(), self.u16()) {
            (Some(INIT_MAGIC), Some(OPTION_MAGIC), Some(flags)) => Ok(flags),
            (first, second, _) => {
                let of = |word: Option<u64>| word.map_or([0; 8], u64::to_be_bytes);
                let word = [of(first), of(second)].concat();
                let word = printable(word.split(|byte| *byte == 0).next().unwrap_or_default());
                Err(broken(match first {
                    // The second word would be `OPTION_MAGIC` in the new form.
                    Some(INIT_MAGIC) => {
                        "the server speaks the old form of NBD, without options".to_string()
                    }
                    None => "no NBD server: it says less than a greeting".to_string(),
                    Some(_) => format!("no NBD server: it greets with '{word}'"),
                }))
            }
        }
    }
}

/// The rest of `reader` as printable text.
fn text(reader: &mut Reader<'_>) -> String {
    printable(reader.bytes(reader.len()).unwrap_or_default())
}

fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .take(MAX_STRING)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

fn refused(export: &str, kind: u32, text: &[u8]) -> io::Error {
    let why = match kind {
        rep::ERR_TLS_REQD => "it asks for TLS, which is not spoken here".to_string(),
        rep::ERR_UNSUP => "it knows no NBD_OPT_GO: it is too old".to_string(),
        rep::ERR_UNKNOWN => format!("there is no export '{}'", printable(export.as_bytes())),
        _ => format!("error {kind:#x}"),
    };
    let (said, text) = (if text.is_empty() { "" } else { "; it says: " }, printable(text));
    io::Error::new(io::ErrorKind::NotFound, format!("the server refuses: {why}{said}{text}"))
}

fn broken(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
