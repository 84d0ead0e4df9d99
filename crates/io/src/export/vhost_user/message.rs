//! Messages of a front end: from bytes to a [`Message`], and replies to bytes. Pure.
//!
//! Contract: any bytes give a message or a [`Malformed`]. The descriptors of a message are counted
//! here, and looked at by whoever obeys it.

use crate::wire::vhost_user::{
    HEADER_LEN, MAX_CONFIG_LEN, NEED_REPLY, REPLY, VERSION, VERSION_MASK, VRING_INDEX, VRING_LOG,
    VRING_NOFD, request, u16_at, u32_at, u64_at,
};

/// Longest payload of a message that is understood: eight regions, or a configuration space.
pub const MAX_PAYLOAD: usize = 12 + MAX_CONFIG_LEN as usize + 64;
/// Most regions of one `SET_MEM_TABLE`: as many as one message has descriptors.
const MAX_TABLE: u32 = 8;
const REGION_LEN: usize = 32;

/// The header of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The number of the request ([`request`]).
    pub request: u32,
    /// Version and flags.
    pub flags: u32,
    /// Bytes of the payload.
    pub size: usize,
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// Another version of the protocol, a reply, or a longer payload than any message has.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Header, Malformed> {
        let [request, flags, size] = [u32_at(bytes, 0), u32_at(bytes, 4), u32_at(bytes, 8)];
        if flags & VERSION_MASK != VERSION || flags & REPLY != 0 {
            return Err(Malformed::Flags { request, flags });
        }
        if size as usize > MAX_PAYLOAD {
            return Err(Malformed::Length { request, bytes: size as usize });
        }
        Ok(Header { request, flags, size: size as usize })
    }

    /// Whether the front end waits for an answer to a message that has none of its own.
    pub fn needs_reply(&self) -> bool {
        self.flags & NEED_REPLY != 0
    }

    /// The bytes of a reply.
    pub fn reply(&self, payload: &[u8]) -> Vec<u8> {
        frame(self.request, VERSION | REPLY, payload)
    }
}

/// The bytes of a message.
pub fn frame(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
    for word in [request, flags, payload.len() as u32] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(payload);
    bytes
}

/// A region of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionAt {
    /// Its address in the guest.
    pub guest: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Its address in the front end.
    pub user: u64,
    /// Its offset in the file.
    pub offset: u64,
}

/// The addresses of a ring, in the front end's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAt {
    /// The table of descriptors.
    pub descriptors: u64,
    /// The available ring.
    pub available: u64,
    /// The used ring.
    pub used: u64,
    /// The used ring's guest address for the log of written pages; `None` if its writes are not
    /// logged.
    pub log: Option<u64>,
}

/// The place of the area in which requests under way are noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InflightAt {
    /// Its length in bytes.
    pub len: u64,
    /// Its offset in the file.
    pub offset: u64,
    /// Rings.
    pub rings: u16,
    /// Size of each ring.
    pub size: u16,
}

/// An eventfd of a ring: its number, and whether a descriptor came with the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingEvent {
    /// The ring.
    pub ring: u32,
    /// Whether there is a descriptor.
    pub has_fd: bool,
}

/// A message of a front end.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the specification")]
pub enum Message {
    GetFeatures,
    SetFeatures(u64),
    /// `SET_OWNER` and `RESET_OWNER`.
    Owner,
    SetMemTable(Vec<RegionAt>),
    AddMemReg(RegionAt),
    RemMemReg(RegionAt),
    GetMaxMemSlots,
    SetLogBase {
        len: u64,
        offset: u64,
    },
    SetLogFd,
    SetVringNum {
        ring: u32,
        size: u32,
    },
    SetVringAddr {
        ring: u32,
        at: RingAt,
    },
    SetVringBase {
        ring: u32,
        base: u32,
    },
    GetVringBase {
        ring: u32,
    },
    SetVringKick(RingEvent),
    SetVringCall(RingEvent),
    SetVringErr(RingEvent),
    SetVringEnable {
        ring: u32,
        enable: bool,
    },
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetBackendReqFd,
    GetConfig {
        offset: u32,
        len: u32,
        flags: u32,
    },
    SetConfig,
    GetInflightFd(InflightAt),
    SetInflightFd(InflightAt),
    ResetDevice,
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum Malformed {
    #[error("message {request} has the flags {flags:#x}: version 1 and no reply is expected")]
    Flags { request: u32, flags: u32 },
    #[error("message {request} has {bytes} bytes, which is not its length")]
    Length { request: u32, bytes: usize },
    #[error("message {request} has {fds} descriptors, and {expected} are expected")]
    Descriptors { request: u32, fds: usize, expected: usize },
    #[error("message {request} is not one of a block device")]
    Unknown { request: u32 },
    #[error("message {request} has {given} regions: 1 to {MAX_TABLE} are allowed")]
    Regions { request: u32, given: u32 },
}

/// The payload of a message, of a length that fits.
struct Payload<'a> {
    request: u32,
    bytes: &'a [u8],
    fds: usize,
}

impl Payload<'_> {
    fn is(&self, bytes: usize, fds: usize) -> Result<(), Malformed> {
        let request = self.request;
        if self.bytes.len() != bytes {
            return Err(Malformed::Length { request, bytes: self.bytes.len() });
        }
        self.has(fds)
    }

    fn has(&self, expected: usize) -> Result<(), Malformed> {
        let (request, fds) = (self.request, self.fds);
        if fds == expected {
            Ok(())
        } else {
            Err(Malformed::Descriptors { request, fds, expected })
        }
    }

    fn number(&self) -> Result<u64, Malformed> {
        self.is(8, 0)?;
        Ok(u64_at(self.bytes, 0))
    }

    /// The number of a ring, and a value.
    fn state(&self) -> Result<(u32, u32), Malformed> {
        self.is(8, 0)?;
        Ok((u32_at(self.bytes, 0), u32_at(self.bytes, 4)))
    }

    fn region(&self, at: usize) -> RegionAt {
        let word = |n: usize| u64_at(self.bytes, at + 8 * n);
        RegionAt { guest: word(0), len: word(1), user: word(2), offset: word(3) }
    }

    fn table(&self) -> Result<Message, Malformed> {
        let (request, given) = (self.request, u32_at(self.bytes, 0));
        if !(1..=MAX_TABLE).contains(&given) {
            return Err(Malformed::Regions { request, given });
        }
        let regions = given as usize;
        self.is(8 + regions * REGION_LEN, regions)?;
        Ok(Message::SetMemTable((0..regions).map(|n| self.region(8 + n * REGION_LEN)).collect()))
    }

    /// A region with a padding before it; a descriptor that comes with a removal is not used.
    fn one_region(&self, is_added: bool) -> Result<RegionAt, Malformed> {
        let fds = if is_added { 1 } else { self.fds.min(1) };
        self.is(8 + REGION_LEN, fds)?;
        Ok(self.region(8))
    }

    fn event(&self) -> Result<RingEvent, Malformed> {
        let value = u64_at(self.bytes, 0);
        let has_fd = value & VRING_NOFD == 0;
        self.is(8, usize::from(has_fd))?;
        Ok(RingEvent { ring: (value & VRING_INDEX) as u32, has_fd })
    }

    fn ring_at(&self) -> Result<Message, Malformed> {
        self.is(40, 0)?;
        let word = |at: usize| u64_at(self.bytes, at);
        let log = (u32_at(self.bytes, 4) & VRING_LOG != 0).then(|| word(32));
        let at = RingAt { descriptors: word(8), used: word(16), available: word(24), log };
        Ok(Message::SetVringAddr { ring: u32_at(self.bytes, 0), at })
    }

    /// The last bytes may be padding, as some front ends send the structure's size in C.
    fn inflight(&self, fds: usize) -> Result<InflightAt, Malformed> {
        if self.bytes.len() != 24 {
            self.is(20, fds)?;
        }
        self.has(fds)?;
        let bytes = self.bytes;
        let (len, offset) = (u64_at(bytes, 0), u64_at(bytes, 8));
        Ok(InflightAt { len, offset, rings: u16_at(bytes, 16), size: u16_at(bytes, 18) })
    }

    fn config(&self) -> Result<Message, Malformed> {
        self.has(0)?;
        let (request, bytes) = (self.request, self.bytes.len());
        let [offset, len, flags] = [0, 4, 8].map(|at| u32_at(self.bytes, at));
        let is_whole = bytes.checked_sub(12) == Some(len as usize);
        if !is_whole || offset.checked_add(len).is_none_or(|end| end > MAX_CONFIG_LEN) {
            return Err(Malformed::Length { request, bytes });
        }
        Ok(Message::GetConfig { offset, len, flags })
    }
}

impl Message {
    /// Reads the message of a header, its payload, and the number of its descriptors.
    ///
    /// # Errors
    /// The message is unknown, or not as long as it is to be.
    pub fn parse(header: &Header, bytes: &[u8], fds: usize) -> Result<Message, Malformed> {
        let of = Payload { request: header.request, bytes, fds };
        let empty = |message: Message| of.is(0, 0).map(|()| message);
        Ok(match header.request {
            request::GET_FEATURES => empty(Message::GetFeatures)?,
            request::SET_FEATURES => Message::SetFeatures(of.number()?),
            request::SET_OWNER | request::RESET_OWNER => empty(Message::Owner)?,
            request::SET_MEM_TABLE => of.table()?,
            request::ADD_MEM_REG => Message::AddMemReg(of.one_region(true)?),
            request::REM_MEM_REG => Message::RemMemReg(of.one_region(false)?),
            request::GET_MAX_MEM_SLOTS => empty(Message::GetMaxMemSlots)?,
            request::SET_LOG_BASE => {
                of.is(16, 1)?;
                Message::SetLogBase { len: u64_at(bytes, 0), offset: u64_at(bytes, 8) }
            }
            request::SET_LOG_FD => of.has(1).map(|()| Message::SetLogFd)?,
            request::SET_VRING_NUM => {
                let (ring, size) = of.state()?;
                Message::SetVringNum { ring, size }
            }
            request::SET_VRING_ADDR => of.ring_at()?,
            request::SET_VRING_BASE => {
                let (ring, base) = of.state()?;
                Message::SetVringBase { ring, base }
            }
            request::GET_VRING_BASE => Message::GetVringBase { ring: of.state()?.0 },
            request::SET_VRING_KICK => Message::SetVringKick(of.event()?),
            request::SET_VRING_CALL => Message::SetVringCall(of.event()?),
            request::SET_VRING_ERR => Message::SetVringErr(of.event()?),
            request::SET_VRING_ENABLE => {
                let (ring, value) = of.state()?;
                Message::SetVringEnable { ring, enable: value != 0 }
            }
            request::GET_PROTOCOL_FEATURES => empty(Message::GetProtocolFeatures)?,
            request::SET_PROTOCOL_FEATURES => Message::SetProtocolFeatures(of.number()?),
            request::GET_QUEUE_NUM => empty(Message::GetQueueNum)?,
            request::SET_BACKEND_REQ_FD => of.has(1).map(|()| Message::SetBackendReqFd)?,
            request::GET_CONFIG => of.config()?,
            request::SET_CONFIG => of.config().map(|_| Message::SetConfig)?,
            request::GET_INFLIGHT_FD => Message::GetInflightFd(of.inflight(0)?),
            request::SET_INFLIGHT_FD => Message::SetInflightFd(of.inflight(1)?),
            request::RESET_DEVICE => empty(Message::ResetDevice)?,
            request => return Err(Malformed::Unknown { request }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(request: u32, payload: &[u8], fds: usize) -> Result<Message, Malformed> {
        let bytes = frame(request, VERSION, payload);
        let header = Header::parse(bytes.first_chunk().unwrap())?;
        assert_eq!(header.size, payload.len());
        Message::parse(&header, payload, fds)
    }

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn messages_have_their_lengths_and_descriptors() {
        assert_eq!(of(request::GET_FEATURES, &[], 0), Ok(Message::GetFeatures));
        assert_eq!(of(request::SET_FEATURES, &words(&[5]), 0), Ok(Message::SetFeatures(5)));
        let table = words(&[1, 0x1000, 0x2000, 0x7000, 0]);
        let region = RegionAt { guest: 0x1000, len: 0x2000, user: 0x7000, offset: 0 };
        assert_eq!(of(request::SET_MEM_TABLE, &table, 1), Ok(Message::SetMemTable(vec![region])));
        for (request, payload, fds) in [
            (request::GET_FEATURES, vec![0], 0),
            (request::GET_FEATURES, vec![], 1),
            (request::SET_FEATURES, vec![0; 7], 0),
            (request::SET_MEM_TABLE, table[..39].to_vec(), 1),
            (request::SET_MEM_TABLE, table.clone(), 2),
            (request::SET_MEM_TABLE, words(&[9, 0, 0, 0, 0]), 9),
            (request::SET_MEM_TABLE, vec![], 0),
            (request::SET_VRING_KICK, words(&[0]), 0),
            (request::SET_VRING_KICK, words(&[VRING_NOFD]), 1),
            (request::GET_CONFIG, words(&[60 << 32, 0]), 0),
            (request::GET_CONFIG, vec![0xff; 12], 0),
            (77, vec![], 0),
        ] {
            assert!(of(request, &payload, fds).is_err(), "{request} {payload:?} {fds}");
        }
    }

    #[test]
    fn rings_are_named_by_their_messages() {
        let at = [2 | 1 << 32, 0x10, 0x20, 0x30, 0x40];
        let ring = RingAt { descriptors: 0x10, used: 0x20, available: 0x30, log: Some(0x40) };
        assert_eq!(
            of(request::SET_VRING_ADDR, &words(&at), 0),
            Ok(Message::SetVringAddr { ring: 2, at: ring })
        );
        assert_eq!(
            of(request::SET_VRING_CALL, &words(&[3 | VRING_NOFD]), 0),
            Ok(Message::SetVringCall(RingEvent { ring: 3, has_fd: false }))
        );
        assert_eq!(
            of(request::SET_VRING_ENABLE, &words(&[1 | 1 << 32]), 0),
            Ok(Message::SetVringEnable { ring: 1, enable: true })
        );
    }

    #[test]
    fn a_header_of_another_version_or_of_a_reply_is_refused() {
        for flags in [0, 2, 3, VERSION | REPLY] {
            let bytes = frame(1, flags, &[]);
            assert!(Header::parse(bytes.first_chunk().unwrap()).is_err(), "{flags}");
        }
        let long = frame(1, VERSION, &[0; MAX_PAYLOAD + 1]);
        assert!(Header::parse(long.first_chunk().unwrap()).is_err());
    }
}
