//! A small NBD client on a blocking socket for the demonstration and the tests. It sends one
//! request at a time.
//!
//! It uses the fixed-newstyle handshake with `NBD_OPT_GO`, and simple replies, as doc/proto.md of
//! NetworkBlockDevice/nbd defines them. It shares no code with the server, so that a mistake is not
//! made twice.
//!
//! Contract: errors of the server are [`io::Error`]s with its errno; lengths are checked before
//! anything is sent. After any other error a client cannot be used any more.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
/// Bytes of a request before its data.
const REQUEST_HEADER: usize = 28;
/// The magic number of a simple reply.
pub const SIMPLE_REPLY: u32 = 0x6744_6698;
/// Handshake flags: both sides use fixed newstyle and leave the 124 zeroes out.
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
/// Longest option reply. Names and messages are shorter.
const OPTION_REPLY_MAX: usize = 64 << 10;
/// Longest read or write, which every server takes.
const TRANSFER_MAX: usize = 32 << 20;
/// Time without an answer after which the server counts as dead. Tests of requests that wait set it
/// lower.
const PATIENCE: Duration = Duration::from_secs(60);

/// Number of the command that reads.
pub const CMD_READ: u16 = 0;
/// Number of the command that writes.
pub const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CMD_FLUSH: u16 = 3;
const CMD_TRIM: u16 = 4;
const CMD_WRITE_ZEROES: u16 = 6;
/// Command flag: the write is stable before it is answered.
const FLAG_FUA: u16 = 1;
/// Transmission flag: the server refuses writes.
const FLAG_READ_ONLY: u16 = 2;

/// A unix or TCP stream.
trait Stream: Read + Write + Send {
    fn set_patience(&self, patience: Option<Duration>) -> io::Result<()>;
}

impl Stream for UnixStream {
    fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        self.set_read_timeout(patience)
    }
}

impl Stream for TcpStream {
    fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        self.set_read_timeout(patience)
    }
}

/// A connection to one export.
pub struct NbdClient {
    stream: Box<dyn Stream>,
    size: u64,
    flags: u16,
    cookie: u64,
}

impl NbdClient {
    /// Connects to an export by a unix socket.
    pub fn unix(socket: &Path, export: &str) -> io::Result<NbdClient> {
        Self::over(UnixStream::connect(socket)?, export)
    }

    /// Connects to an export over a stream. Afterwards the caller can go on with a clone of the
    /// stream; the server then sends simple replies.
    pub fn over(stream: UnixStream, export: &str) -> io::Result<NbdClient> {
        Self::handshake(Box::new(stream), export)
    }

    /// Connects to an export by TCP.
    pub fn tcp(address: impl ToSocketAddrs, export: &str) -> io::Result<NbdClient> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Self::handshake(Box::new(stream), export)
    }

    /// Size of the export in bytes at the time of the connection.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns whether the server refuses writes.
    pub fn read_only(&self) -> bool {
        self.flags & FLAG_READ_ONLY != 0
    }

    /// Sets the time limit of an answer.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        self.stream.set_patience(Some(patience))
    }

    /// Reads `length` bytes from byte `offset` on.
    pub fn read(&mut self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.send(CMD_READ, 0, offset, transfer_length(length)?, &[])?;
        self.receive(length)
    }

    /// Sends a read whose answer [`NbdClient::receive`] takes later.
    pub fn send_read(&mut self, offset: u64, length: usize) -> io::Result<()> {
        self.send(CMD_READ, 0, offset, transfer_length(length)?, &[])
    }

    /// Sends a write whose answer [`NbdClient::receive`] takes later.
    pub fn send_write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.send(CMD_WRITE, 0, offset, transfer_length(data.len())?, data)
    }

    /// Writes; with `fua` the data is stable when this returns.
    pub fn write(&mut self, offset: u64, data: &[u8], fua: bool) -> io::Result<()> {
        let flags = if fua { FLAG_FUA } else { 0 };
        self.send(CMD_WRITE, flags, offset, transfer_length(data.len())?, data)?;
        self.receive(0).map(drop)
    }

    /// Makes every write that was answered stable.
    pub fn flush(&mut self) -> io::Result<()> {
        self.send(CMD_FLUSH, 0, 0, 0, &[])?;
        self.receive(0).map(drop)
    }

    /// Discards `length` bytes from byte `offset` on.
    pub fn trim(&mut self, offset: u64, length: u32) -> io::Result<()> {
        self.send(CMD_TRIM, 0, offset, length, &[])?;
        self.receive(0).map(drop)
    }

    /// Writes `length` zero bytes from byte `offset` on.
    pub fn write_zeroes(&mut self, offset: u64, length: u32) -> io::Result<()> {
        self.send(CMD_WRITE_ZEROES, 0, offset, length, &[])?;
        self.receive(0).map(drop)
    }

    /// Sends `DISC`; without it the server takes the client for lost.
    pub fn disconnect(mut self) -> io::Result<()> {
        self.send(CMD_DISC, 0, 0, 0, &[])
    }

    fn send(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u32,
        data: &[u8],
    ) -> io::Result<()> {
        self.cookie += 1;
        let mut message = Vec::with_capacity(REQUEST_HEADER + data.len());
        put_request(&mut message, command, flags, self.cookie, offset, length);
        message.extend_from_slice(data);
        self.stream.write_all(&message)
    }

    /// Reads the answer to the last request, with `length` bytes of data if it succeeded.
    pub fn receive(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let magic = u32::from_be_bytes(self.take()?);
        let errno = u32::from_be_bytes(self.take()?);
        let cookie = u64::from_be_bytes(self.take()?);
        if magic != SIMPLE_REPLY || cookie != self.cookie {
            return Err(broken(format!(
                "a reply with magic {magic:#x} and cookie {cookie}, not {}",
                self.cookie
            )));
        }
        if errno != 0 {
            return Err(io::Error::from_raw_os_error(errno as i32));
        }
        let mut data = vec![0; length];
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn handshake(stream: Box<dyn Stream>, export: &str) -> io::Result<NbdClient> {
        stream.set_patience(Some(PATIENCE))?;
        let mut client = NbdClient { stream, size: 0, flags: 0, cookie: 0 };
        let greeting = (u64::from_be_bytes(client.take()?), u64::from_be_bytes(client.take()?));
        let flags = u16::from_be_bytes(client.take()?);
        if greeting != (NBDMAGIC, IHAVEOPT) || flags & FIXED_NEWSTYLE == 0 || flags & NO_ZEROES == 0
        {
            return Err(broken(format!(
                "no fixed-newstyle NBD server: greeting {greeting:x?}, flags {flags:#x}"
            )));
        }
        let mut go = Vec::new();
        go.extend_from_slice(&u32::from(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
        go.extend_from_slice(&IHAVEOPT.to_be_bytes());
        go.extend_from_slice(&OPT_GO.to_be_bytes());
        go.extend_from_slice(&(export.len() as u32 + 6).to_be_bytes());
        go.extend_from_slice(&(export.len() as u32).to_be_bytes());
        go.extend_from_slice(export.as_bytes());
        // Ask for no information. The export's size and flags come anyway.
        go.extend_from_slice(&0u16.to_be_bytes());
        client.stream.write_all(&go)?;
        while !client.option_reply(export)? {}
        Ok(client)
    }

    /// Reads one reply to `NBD_OPT_GO`. Returns `true` for the last one.
    fn option_reply(&mut self, export: &str) -> io::Result<bool> {
        let magic = u64::from_be_bytes(self.take()?);
        let _option: [u8; 4] = self.take()?;
        let kind = u32::from_be_bytes(self.take()?);
        let length = u32::from_be_bytes(self.take()?) as usize;
        if magic != OPTION_REPLY || length > OPTION_REPLY_MAX {
            return Err(broken(format!(
                "an option reply with magic {magic:#x} and {length} bytes"
            )));
        }
        let mut data = vec![0; length];
        self.stream.read_exact(&mut data)?;
        match (kind, data.as_slice()) {
            (REP_ACK, _) => return Ok(true),
            (REP_INFO, [k0, k1, rest @ ..]) if u16::from_be_bytes([*k0, *k1]) == INFO_EXPORT => {
                let info: [u8; 10] = rest
                    .try_into()
                    .map_err(|_| broken(format!("export information of {length} bytes")))?;
                let [size @ .., f0, f1] = info;
                self.size = u64::from_be_bytes(size);
                self.flags = u16::from_be_bytes([f0, f1]);
            }
            (kind, text) if kind & REP_ERROR != 0 => {
                let text = String::from_utf8_lossy(text);
                let reason =
                    format!("the server refuses the export '{export}' ({kind:#x}): {text}");
                return Err(io::Error::new(io::ErrorKind::NotFound, reason));
            }
            _ => {}
        }
        Ok(false)
    }
}

/// Appends the header of a request. The data of a write must follow it.
pub fn put_request(
    out: &mut Vec<u8>,
    command: u16,
    flags: u16,
    cookie: u64,
    offset: u64,
    length: u32,
) {
    out.extend_from_slice(&REQUEST.to_be_bytes());
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&command.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
}

fn transfer_length(length: usize) -> io::Result<u32> {
    if length <= TRANSFER_MAX {
        return Ok(length as u32);
    }
    let reason = format!("{length} bytes in one request: at most {TRANSFER_MAX} are allowed");
    Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
}

fn broken(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
