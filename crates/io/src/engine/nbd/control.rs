//! The control side's own connection. It carries one request at a time, blocking, with a deadline.
//! If it was lost, the next request makes a new one.
//!
//! Contract: any thread except a queue's may use it, one at a time.

use std::io;
use std::time::Instant;

use super::address::NbdAddress;
use super::handshake::{Offer, shake_hands, shake_hands_in_place};
use super::protocol::Connection;
use super::wire::{self, Covered, Parsed, Reply, ReplyKind};
use crate::engine::io::answered;
use crate::engine::session::socket::Socket;
use crate::wire::nbd::{NbdCommand, SIMPLE_REPLY_LEN};

/// Connects to the export of an address and negotiates its use.
pub(super) fn dial(address: &NbdAddress, deadline: Instant) -> io::Result<(Socket, Offer)> {
    let mut socket = Socket::connect(&address.place, address.patience.timeout, deadline)?;
    let offer = shake_hands(&mut socket, &address.export)?;
    Ok((socket, offer))
}

/// Connects again. `Err` if the export does not keep what it offered first.
pub(super) fn dial_again(
    address: &NbdAddress,
    offer: &Offer,
    deadline: Instant,
) -> io::Result<Socket> {
    let (socket, now) = dial(address, deadline)?;
    keeps(offer, &now)?;
    Ok(socket)
}

/// Connects for a session. The new connection replaces the ones that the session had before.
pub(super) fn dial_session(
    address: &NbdAddress,
    leaf: &str,
    number: usize,
    deadline: Instant,
) -> io::Result<(Connection, Offer)> {
    let mut socket = Socket::connect(&address.place, address.patience.timeout, deadline)?;
    let name = format!("{leaf}.{number}");
    let (offer, confirmed) = shake_hands_in_place(&mut socket, &address.export, &name)?;
    Ok((Connection::new(socket, &offer, confirmed), offer))
}

/// As [`dial_session`], again. `Err` if the export does not keep what it offered first.
pub(super) fn dial_session_again(
    address: &NbdAddress,
    leaf: &str,
    number: usize,
    offer: &Offer,
    deadline: Instant,
) -> io::Result<Connection> {
    let (connection, now) = dial_session(address, leaf, number, deadline)?;
    keeps(offer, &now)?;
    Ok(connection)
}

/// `Err` if the offer `now` breaks a promise of `offer`.
fn keeps(offer: &Offer, now: &Offer) -> io::Result<()> {
    match offer.changed(now) {
        None => Ok(()),
        Some(why) => Err(io::Error::new(io::ErrorKind::InvalidData, why)),
    }
}

/// The control side's connection to one export.
pub(super) struct Control {
    address: NbdAddress,
    offer: Offer,
    socket: Option<Socket>,
    cookie: u64,
}

/// The way in which a request failed.
enum Failed {
    /// The server answered with this errno.
    Answer(i32),
    /// The connection failed before there was an answer.
    Connection(io::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Failed {
        Failed::Connection(error)
    }
}

impl Control {
    /// Uses a connection that was just made.
    pub(super) fn new(address: NbdAddress, offer: Offer, socket: Socket) -> Control {
        Control { address, offer, socket: Some(socket), cookie: 0 }
    }

    /// Makes completed writes durable.
    pub(super) fn flush(&mut self, deadline: Instant) -> io::Result<()> {
        self.call(NbdCommand::Flush, &mut [], deadline)?
    }

    /// Reads from the start of the export, to check whether the server answers.
    pub(super) fn probe(&mut self, into: &mut [u8], deadline: Instant) -> io::Result<()> {
        answered(self.call(NbdCommand::Read, into, deadline)?)
    }

    /// Whether the server offers the export as writable on a new connection.
    pub(super) fn is_writable(&self, deadline: Instant) -> io::Result<bool> {
        let (_, now) = dial(&self.address, deadline)?;
        Ok(!now.has(crate::wire::nbd::transmission_flag::READ_ONLY))
    }

    /// Sends a request and returns the server's answer. If the existing connection was lost
    /// meanwhile, tries once more on a new one.
    fn call(
        &mut self,
        command: NbdCommand,
        data: &mut [u8],
        deadline: Instant,
    ) -> io::Result<io::Result<()>> {
        let had_one = self.socket.is_some();
        for attempt in 0.. {
            match self.call_once(command, data, deadline) {
                Ok(()) => return Ok(Ok(())),
                Err(Failed::Answer(errno)) => return Ok(Err(io::Error::from_raw_os_error(errno))),
                Err(Failed::Connection(error)) => {
                    self.socket = None;
                    if !had_one || attempt > 0 || error.kind() == io::ErrorKind::TimedOut {
                        return Err(error);
                    }
                }
            }
        }
        Ok(Ok(()))
    }

    fn call_once(
        &mut self,
        command: NbdCommand,
        data: &mut [u8],
        deadline: Instant,
    ) -> Result<(), Failed> {
        if self.socket.is_none() {
            self.socket = Some(dial_again(&self.address, &self.offer, deadline)?);
        }
        let Some(socket) = &mut self.socket else { return Ok(()) };
        socket.set_deadline(deadline);
        self.cookie += 1;
        socket.write_all(&wire::request(0, command as u16, self.cookie, 0, data.len() as u32))?;
        let (mut covered, mut errno) = (Covered::default(), 0);
        loop {
            let reply = next_reply(socket)?;
            if reply.cookie != self.cookie {
                return Err(broken("a reply to no request"));
            }
            match reply.kind {
                ReplyKind::Error { code, skip } => {
                    errno = wire::errno(code);
                    socket.read_exact(&mut vec![0; skip as usize])?;
                }
                ReplyKind::Simple if command == NbdCommand::Read => {
                    socket.read_exact(data)?;
                    covered.add(0, data.len() as u64);
                }
                ReplyKind::Data { offset, len } | ReplyKind::Hole { offset, len } => {
                    let end =
                        offset.checked_add(u64::from(len)).filter(|end| *end <= data.len() as u64);
                    let end = end.filter(|_| covered.add(offset, u64::from(len)));
                    let place = end.and_then(|end| data.get_mut(offset as usize..end as usize));
                    let place =
                        place.ok_or_else(|| broken("data that was not asked for, or twice"))?;
                    match reply.kind {
                        ReplyKind::Data { .. } => socket.read_exact(place)?,
                        _ => place.fill(0),
                    }
                }
                ReplyKind::Simple | ReplyKind::Nothing => {}
            }
            match (reply.last, errno) {
                (false, _) => {}
                (true, 0) if covered.is(data.len() as u64) => return Ok(()),
                (true, 0) => return Err(broken("a read was answered in part")),
                // The server lets no other client in while this connection is open.
                (true, libc::ESHUTDOWN) => return Err(Failed::Connection(going_away())),
                (true, errno) => return Err(Failed::Answer(errno)),
            }
        }
    }
}

/// The header of the next reply.
fn next_reply(socket: &mut Socket) -> Result<Reply, Failed> {
    let mut bytes = socket.array::<SIMPLE_REPLY_LEN>()?.to_vec();
    loop {
        match wire::parse(&bytes) {
            Parsed::Reply(reply) => return Ok(reply),
            Parsed::Broken(why) => return Err(broken(why)),
            // This never reads beyond the header, because the length of each kind is a multiple of
            // two bytes.
            Parsed::More => bytes.extend_from_slice(&socket.array::<2>()?),
        }
    }
}

fn going_away() -> io::Error {
    io::Error::from_raw_os_error(libc::ESHUTDOWN)
}

fn broken(why: &'static str) -> Failed {
    Failed::Connection(io::Error::new(io::ErrorKind::InvalidData, why))
}
