//! The PDUs of iSCSI: encodes the headers of an initiator, and decodes those of a target.
//!
//! Contract: pure. A PDU is read only within its length. A PDU whose meaning depends on a feature
//! that was not negotiated becomes [`Heard::Broken`]. Layouts and field names are those of RFC
//! 7143, section 11.

use super::scsi::{ScsiCommand, Way};

/// Length of a basic header in bytes.
pub const HEADER: usize = 48;
/// Length of a header's digest in bytes.
pub const DIGEST: usize = 4;
/// Longest data segment that is accepted, in bytes. The login tells the target.
pub const MAX_DATA: u32 = 256 << 10;
/// The reserved tag, which means that there is none.
pub const NO_TAG: u32 = u32::MAX;

/// The opcodes in the first byte of a header.
mod opcode {
    pub(super) const NOP_OUT: u8 = 0x00;
    pub(super) const COMMAND: u8 = 0x01;
    pub(super) const TASK_MANAGEMENT: u8 = 0x02;
    pub(super) const LOGIN: u8 = 0x03;
    pub(super) const DATA_OUT: u8 = 0x05;
    pub(super) const LOGOUT: u8 = 0x06;
    pub(super) const IMMEDIATE: u8 = 0x40;
    pub(super) const NOP_IN: u8 = 0x20;
    pub(super) const RESPONSE: u8 = 0x21;
    pub(super) const TASK_MANAGEMENT_RESPONSE: u8 = 0x22;
    pub(super) const LOGIN_RESPONSE: u8 = 0x23;
    pub(super) const DATA_IN: u8 = 0x25;
    pub(super) const LOGOUT_RESPONSE: u8 = 0x26;
    pub(super) const R2T: u8 = 0x31;
    pub(super) const ASYNC: u8 = 0x32;
    pub(super) const REJECT: u8 = 0x3f;
}

/// The flag of the last PDU of a sequence.
const FINAL: u8 = 0x80;

/// The bytes of a basic header segment.
pub type Header = [u8; HEADER];

fn put<const N: usize>(header: &mut Header, at: usize, bytes: [u8; N]) {
    if let Some(place) = header.get_mut(at..at + N) {
        place.copy_from_slice(&bytes);
    }
}

fn word(header: &mut Header, at: usize, value: u32) {
    put(header, at, value.to_be_bytes());
}

fn put_len(header: &mut Header, len: u32) {
    let [_, high, mid, low] = len.to_be_bytes();
    put(header, 5, [high, mid, low]);
}

/// Encodes a LUN as the standard's eight bytes.
pub fn lun(number: u16) -> [u8; 8] {
    let [high, low] = number.to_be_bytes();
    // Numbers below 256 have the peripheral form, which every target knows. Others have the flat
    // form.
    let first = if high == 0 { 0 } else { 0x40 | high };
    [first, low, 0, 0, 0, 0, 0, 0]
}

/// The counters of a session, as the next header must have them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Numbers {
    /// The number of the next command.
    pub command: u32,
    /// The number of the next expected status.
    pub status: u32,
}

/// Encodes the PDU of a command. `bytes` is the length of all of its data, `immediate` that of the
/// data in this PDU. `more` says whether further data follows unasked.
pub fn command(
    command: &ScsiCommand,
    lun: [u8; 8],
    tag: u32,
    numbers: Numbers,
    bytes: u32,
    immediate: u32,
    more: bool,
) -> Header {
    const SIMPLE: u8 = 1;
    const READ: u8 = 0x40;
    const WRITE: u8 = 0x20;
    let mut header = [0; HEADER];
    let way = match command.way {
        Way::None => 0,
        Way::In => READ,
        Way::Out => WRITE,
    };
    put(&mut header, 0, [opcode::COMMAND, way | SIMPLE | if more { 0 } else { FINAL }]);
    put_len(&mut header, immediate);
    put(&mut header, 8, lun);
    word(&mut header, 16, tag);
    word(&mut header, 20, bytes);
    word(&mut header, 24, numbers.command);
    word(&mut header, 28, numbers.status);
    put(&mut header, 32, command.cdb);
    header
}

/// Parameters of a PDU with data of a write.
#[derive(Clone, Copy, Debug)]
pub struct DataOut {
    /// The tag of the command.
    pub tag: u32,
    /// The target's tag of its request, or [`NO_TAG`] for unasked data.
    pub transfer: u32,
    /// The PDU's number in its sequence.
    pub number: u32,
    /// Offset within the command's data, in bytes.
    pub offset: u32,
    /// Length of the data in this PDU, in bytes.
    pub len: u32,
    /// Whether the PDU is the last of its sequence.
    pub last: bool,
}

/// Encodes the PDU with data of a write.
pub fn data_out(out: &DataOut, lun: [u8; 8], numbers: Numbers) -> Header {
    let mut header = [0; HEADER];
    put(&mut header, 0, [opcode::DATA_OUT, if out.last { FINAL } else { 0 }]);
    put_len(&mut header, out.len);
    put(&mut header, 8, lun);
    word(&mut header, 16, out.tag);
    word(&mut header, 20, out.transfer);
    word(&mut header, 28, numbers.status);
    word(&mut header, 36, out.number);
    word(&mut header, 40, out.offset);
    header
}

/// Encodes the answer to a target's ping.
pub fn nop_out(lun: [u8; 8], transfer: u32, numbers: Numbers) -> Header {
    let mut header = [0; HEADER];
    put(&mut header, 0, [opcode::NOP_OUT | opcode::IMMEDIATE, FINAL]);
    put(&mut header, 8, lun);
    word(&mut header, 16, NO_TAG);
    word(&mut header, 20, transfer);
    word(&mut header, 24, numbers.command);
    word(&mut header, 28, numbers.status);
    header
}

/// Encodes the request to end the session.
pub fn logout(tag: u32, numbers: Numbers) -> Header {
    // Reason 0 ends the whole session.
    let mut header = [0; HEADER];
    put(&mut header, 0, [opcode::LOGOUT | opcode::IMMEDIATE, FINAL]);
    word(&mut header, 16, tag);
    word(&mut header, 24, numbers.command);
    word(&mut header, 28, numbers.status);
    header
}

/// Encodes the request to reset a logical unit, which ends all of its commands, also those of other
/// initiators.
pub fn reset_unit(lun: [u8; 8], tag: u32, numbers: Numbers) -> Header {
    const LOGICAL_UNIT_RESET: u8 = 5;
    let mut header = [0; HEADER];
    put(&mut header, 0, [opcode::TASK_MANAGEMENT | opcode::IMMEDIATE, FINAL | LOGICAL_UNIT_RESET]);
    put(&mut header, 8, lun);
    word(&mut header, 16, tag);
    word(&mut header, 20, NO_TAG);
    word(&mut header, 24, numbers.command);
    word(&mut header, 28, numbers.status);
    header
}

/// A stage of the login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Authentication and choice of the target.
    Security = 0,
    /// Negotiation of the parameters for transfers.
    Operational = 1,
    /// The full feature phase, after the login.
    Full = 3,
}

/// Encodes a login request with `len` bytes of text. `next` is the next stage, if this one is over.
pub fn login(
    isid: [u8; 6],
    stage: Stage,
    next: Option<Stage>,
    numbers: Numbers,
    len: u32,
) -> Header {
    let mut header = [0; HEADER];
    let turn = next.map_or(0, |next| FINAL | next as u8);
    put(&mut header, 0, [opcode::LOGIN | opcode::IMMEDIATE, turn | (stage as u8) << 2]);
    put_len(&mut header, len);
    put(&mut header, 8, isid);
    word(&mut header, 24, numbers.command);
    word(&mut header, 28, numbers.status);
    header
}

/// Number of padding bytes after a data segment of `len` bytes, up to a multiple of four.
pub fn padding(len: u32) -> u32 {
    len.wrapping_neg() & 3
}

/// A decoded header of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// The tag of the request to which it belongs.
    pub tag: u32,
    /// Length of its data segment in bytes, without padding.
    pub data: u32,
    /// The target's counters, for flow control.
    pub counters: Counters,
    /// The content of the PDU.
    pub heard: Heard,
}

/// The target's counters in a header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// The number of the status; `None` if the PDU does not count as one.
    pub status: Option<u32>,
    /// The next command number that the target expects.
    pub expected: u32,
    /// The last command number that the target accepts.
    pub most: u32,
}

/// The part of the data that was not transferred, as the target says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// All data was transferred.
    None,
    /// This number of bytes was not transferred.
    Under(u32),
    /// The data was longer than the command allows.
    Over,
}

/// The end of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// The SCSI status; `None` if the target itself failed.
    pub status: Option<u8>,
    /// The data that was not transferred.
    pub residual: Residual,
}

/// The content of a target's PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The end of a command. The data segment is sense data.
    Response(Status),
    /// Data of a read.
    DataIn {
        /// Offset within the command's data, in bytes.
        offset: u32,
        /// The end of the command, if this is its last PDU.
        status: Option<Status>,
    },
    /// A request for data of a write (R2T).
    Ready {
        /// The target's tag of its request.
        transfer: u32,
        /// Offset within the command's data, in bytes.
        offset: u32,
        /// Length of the requested data in bytes.
        len: u32,
    },
    /// A ping. It needs an answer if `transfer` is a tag.
    Ping {
        /// The target's tag, or [`NO_TAG`].
        transfer: u32,
        /// The LUN, for the answer.
        lun: [u8; 8],
    },
    /// An answer to a login request.
    Login {
        /// Status class and detail. Class 0 is success.
        status: [u8; 2],
        /// The next stage; `None` if the stage goes on.
        next: Option<u8>,
        /// Whether more text follows.
        continues: bool,
    },
    /// An answer to a task management request.
    Managed {
        /// 0 if the function is complete.
        response: u8,
    },
    /// An answer to a logout.
    Logout {
        /// 0 if the session has ended, with all of its commands.
        response: u8,
    },
    /// An asynchronous event of the target.
    Event {
        /// The kind of the event.
        code: u8,
        /// Parameters of the event. For a logout, the third is the time for it in seconds.
        parameters: [u16; 3],
    },
    /// The target rejects a PDU, whose header is in the data segment.
    Reject {
        /// The reason for the rejection.
        reason: u8,
    },
    /// A PDU that a target must not send.
    Broken(&'static str),
}

fn field<const N: usize>(header: &Header, at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    if let Some(place) = header.get(at..at + N) {
        bytes.copy_from_slice(place);
    }
    bytes
}

fn be32(header: &Header, at: usize) -> u32 {
    u32::from_be_bytes(field(header, at))
}

impl Incoming {
    /// Decodes a header. Never fails: an invalid one is [`Heard::Broken`].
    pub fn parse(header: &Header) -> Incoming {
        let [first, flags, _, status] = field(header, 0);
        let [ahs, high, mid, low] = field(header, 4);
        let data = u32::from_be_bytes([0, high, mid, low]);
        let code = first & 0x3f;
        let heard = match code {
            _ if ahs != 0 => Heard::Broken("an additional header, which was not asked for"),
            _ if data > MAX_DATA => Heard::Broken("more data at once than was agreed"),
            opcode::RESPONSE => Heard::Response(end_of(header, flags, status)),
            opcode::DATA_IN => data_in(header, flags, status),
            opcode::R2T if data != 0 => Heard::Broken("a request for data that has data"),
            opcode::R2T => Heard::Ready {
                transfer: be32(header, 20),
                offset: be32(header, 40),
                len: be32(header, 44),
            },
            opcode::NOP_IN => Heard::Ping { transfer: be32(header, 20), lun: field(header, 8) },
            opcode::LOGIN_RESPONSE => Heard::Login {
                status: field(header, 36),
                next: (flags & FINAL != 0).then_some(flags & 3),
                continues: flags & 0x40 != 0,
            },
            opcode::LOGOUT_RESPONSE => Heard::Logout { response: be32(header, 0).to_be_bytes()[2] },
            opcode::ASYNC => {
                let at = |at| u16::from_be_bytes(field(header, at));
                Heard::Event {
                    code: field::<1>(header, 36)[0],
                    parameters: [at(38), at(40), at(42)],
                }
            }
            opcode::TASK_MANAGEMENT_RESPONSE => {
                Heard::Managed { response: be32(header, 0).to_be_bytes()[2] }
            }
            opcode::REJECT => Heard::Reject { reason: be32(header, 0).to_be_bytes()[2] },
            _ => Heard::Broken("a kind of PDU that no target sends, or that was not asked for"),
        };
        let tag = be32(header, 16);
        let has_status = match heard {
            Heard::DataIn { status, .. } => status.is_some(),
            // R2T has the number of the next status.
            Heard::Ready { .. } => false,
            Heard::Ping { .. } => tag != NO_TAG,
            _ => true,
        };
        let counters = Counters {
            status: has_status.then(|| be32(header, 24)),
            expected: be32(header, 28),
            most: be32(header, 32),
        };
        Incoming { tag, data, counters, heard }
    }
}

fn end_of(header: &Header, flags: u8, status: u8) -> Status {
    let [_, _, response, _] = field(header, 0);
    Status { status: (response == 0).then_some(status), residual: residual(header, flags) }
}

fn residual(header: &Header, flags: u8) -> Residual {
    match (flags & 0x02 != 0, flags & 0x04 != 0, be32(header, 44)) {
        (_, _, 0) | (false, false, _) => Residual::None,
        (true, _, bytes) => Residual::Under(bytes),
        (false, true, _) => Residual::Over,
    }
}

fn data_in(header: &Header, flags: u8, status: u8) -> Heard {
    const ACKNOWLEDGE: u8 = 0x40;
    const HAS_STATUS: u8 = 0x01;
    if flags & ACKNOWLEDGE != 0 {
        return Heard::Broken("data that wants to be acknowledged, which was not agreed");
    }
    if flags & HAS_STATUS != 0 && flags & FINAL == 0 {
        return Heard::Broken("a status before the last data");
    }
    let end = Status { status: Some(status), residual: residual(header, flags) };
    Heard::DataIn { offset: be32(header, 40), status: (flags & HAS_STATUS != 0).then_some(end) }
}

/// The progress of a command's data. The login negotiates data in order, so a count is enough to
/// know which bytes have been moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The direction of the data.
    pub way: Way,
    /// Length of all data in bytes.
    pub bytes: u32,
    /// For a read, the bytes that have arrived. For a write, those that the target has asked for or
    /// that were sent unasked.
    pub moved: u32,
}

impl Transfer {
    /// The target sends `len` bytes of a read. `Err` if they do not fit.
    pub fn came(&mut self, offset: u32, len: u32) -> Result<(), &'static str> {
        match self.way {
            Way::In => self.next(offset, len, "data that was not asked for, or not in order"),
            Way::None | Way::Out => Err("data to a command that is no read"),
        }
    }

    /// The target asks for `len` bytes of a write. `Err` if they do not fit.
    pub fn asked(&mut self, offset: u32, len: u32) -> Result<(), &'static str> {
        match self.way {
            Way::Out if len == 0 => Err("a request for no data"),
            Way::Out => self.next(offset, len, "a request for data that there is not"),
            Way::None | Way::In => Err("a request for data of a command that is no write"),
        }
    }

    fn next(&mut self, offset: u32, len: u32, broken: &'static str) -> Result<(), &'static str> {
        if offset != self.moved || len > self.bytes - self.moved {
            return Err(broken);
        }
        self.moved += len;
        Ok(())
    }

    /// Whether all data was moved, when the target says that the command is done. `Err` if data is
    /// missing and the target does not say so.
    pub fn is_whole(&self, residual: Residual) -> Result<bool, &'static str> {
        match residual {
            Residual::None if self.moved == self.bytes => Ok(true),
            Residual::None if self.way == Way::In => {
                Err("a read was answered with less data than was asked for")
            }
            Residual::None => Err("a write was answered before all of its data was asked for"),
            Residual::Under(_) | Residual::Over => Ok(false),
        }
    }
}

/// CRC-32C of header digests, bit by bit. It is computed only if digests were negotiated, for 48
/// bytes a PDU.
pub fn digest(bytes: &[u8]) -> [u8; DIGEST] {
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    });
    (!crc).to_le_bytes()
}

/// Whether a counter is ahead of another, in the arithmetic of RFC 1982.
pub fn is_after(a: u32, b: u32) -> bool {
    a != b && a.wrapping_sub(b) < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::iscsi::scsi;

    #[test]
    fn headers_are_what_the_standard_says() {
        let numbers = Numbers { command: 7, status: 9 };
        let header = command(&scsi::write(1, 8, false), lun(3), 5, numbers, 4096, 512, true);
        assert_eq!(header[..10], [1, 0x21, 0, 0, 0, 0, 2, 0, 0, 3]);
        assert_eq!(
            header[16..36],
            [0, 0, 0, 5, 0, 0, 16, 0, 0, 0, 0, 7, 0, 0, 0, 9, 0x8a, 0, 0, 0]
        );
        assert_eq!(lun(0x1234)[..3], [0x52, 0x34, 0]);
        assert_eq!(
            login([1; 6], Stage::Security, Some(Stage::Operational), numbers, 9)[..2],
            [0x43, 0x81]
        );
        // RFC 7143, A.4: thirty-two bytes of zeroes.
        assert_eq!(digest(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!([0, 1, 2, 3, 4].map(padding), [0, 3, 2, 1, 0]);
        assert!(is_after(1, u32::MAX) && !is_after(u32::MAX, 1) && !is_after(4, 4));
    }

    #[test]
    fn every_byte_is_counted_once_and_in_order() {
        let mut read = Transfer { way: Way::In, bytes: 1024, moved: 0 };
        assert_eq!(read.came(0, 512), Ok(()));
        for (offset, len) in [(0, 512), (256, 512), (512, 513), (1024, 0), (u32::MAX, 2)] {
            assert!(read.came(offset, len).is_err(), "{offset} {len}");
        }
        assert!(read.is_whole(Residual::None).is_err());
        assert_eq!(read.is_whole(Residual::Under(512)), Ok(false));
        assert_eq!(read.came(512, 512), Ok(()));
        assert_eq!(read.is_whole(Residual::None), Ok(true));
        assert!(read.asked(0, 512).is_err(), "a read has no data to be asked for");
        let mut write = Transfer { way: Way::Out, bytes: 1024, moved: 512 };
        assert!(write.came(512, 512).is_err());
        assert!(write.asked(512, 0).is_err() && write.asked(0, 512).is_err());
        assert!(write.is_whole(Residual::None).is_err());
        assert_eq!(write.asked(512, 512), Ok(()));
        assert_eq!(write.is_whole(Residual::None), Ok(true));
    }

    #[test]
    fn what_was_not_agreed_is_broken() {
        let parse = |bytes: &[(usize, u8)]| {
            let mut header = [0; HEADER];
            bytes.iter().for_each(|(at, byte)| header[*at] = *byte);
            Incoming::parse(&header).heard
        };
        for bytes in [
            &[(0, 0x21), (4, 1)][..],
            &[(0, 0x25), (5, 0xff)],
            &[(0, 0x25), (1, 0x40)],
            &[(0, 0x25), (1, 0x01)],
            &[(0, 0x31), (7, 4)],
            &[(0, 0x01)],
            &[(0, 0x24)],
        ] {
            assert!(matches!(parse(bytes), Heard::Broken(_)), "{bytes:?}");
        }
        assert_eq!(parse(&[(0, 0x22), (2, 5)]), Heard::Managed { response: 5 });
        assert_eq!(parse(&[(0, 0x26), (2, 1)]), Heard::Logout { response: 1 });
        assert_eq!(
            parse(&[(0, 0x32), (36, 1), (43, 9)]),
            Heard::Event { code: 1, parameters: [0, 0, 9] }
        );
        let under = Status { status: Some(0), residual: Residual::Under(5) };
        assert_eq!(parse(&[(0, 0x21), (1, 0x82), (47, 5)]), Heard::Response(under));
        assert_eq!(
            parse(&[(0, 0x21), (2, 1)]),
            Heard::Response(Status { status: None, residual: Residual::None })
        );
    }
}
