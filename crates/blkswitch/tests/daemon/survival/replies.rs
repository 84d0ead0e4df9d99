//! Splits the bytes that a server sends on a connection into messages, so that some answers can be
//! changed.
//!
//! Contract: the client has negotiated structured replies, as blkswitch's does, so every reply
//! states its length. Bytes that are no message cause a panic, because the server is blkswitch
//! itself.

const GREETING_LEN: usize = 18;
const OPTION_REPLY_LEN: usize = 20;
const SIMPLE_REPLY_LEN: usize = 16;
const STRUCTURED_REPLY_LEN: usize = 20;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const STRUCTURED_REPLY: u32 = 0x668e_33ef;
/// Set in the last piece of a reply.
const FLAG_DONE: u16 = 1;
const TYPE_ERROR: u16 = 0x8001;
const ESHUTDOWN: u32 = 108;

/// The kind of the next message.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Greeting,
    Options,
    Transmission,
}

/// The stream of a server's messages.
#[derive(Default)]
pub(super) struct Replies {
    phase: Phase,
    /// The beginning of a message that is not complete yet.
    rest: Vec<u8>,
    answers: u64,
}

impl Replies {
    /// Returns the complete messages. One answer in `one_in` is replaced by that of a server that
    /// shuts down; with 0, none is.
    pub(super) fn pass(&mut self, bytes: &[u8], one_in: u64) -> Vec<u8> {
        self.rest.extend_from_slice(bytes);
        let mut passed = Vec::with_capacity(self.rest.len());
        while let Some(len) = self.message_len().filter(|len| *len <= self.rest.len()) {
            let message: Vec<u8> = self.rest.drain(..len).collect();
            match self.phase {
                Phase::Greeting => self.phase = Phase::Options,
                Phase::Options if (word(&message, 8), word(&message, 12)) == (OPT_GO, REP_ACK) => {
                    self.phase = Phase::Transmission;
                }
                Phase::Options => {}
                Phase::Transmission => {
                    if let Some(changed) = self.changed(&message, one_in) {
                        passed.extend(changed);
                        continue;
                    }
                }
            }
            passed.extend(message);
        }
        passed
    }

    /// The length of the next message; `None` if too little of it has arrived.
    fn message_len(&self) -> Option<usize> {
        let word_at = |at: usize| (self.rest.len() >= at + 4).then(|| word(&self.rest, at));
        match self.phase {
            Phase::Greeting => Some(GREETING_LEN),
            Phase::Options => Some(OPTION_REPLY_LEN + word_at(16)? as usize),
            Phase::Transmission => match word_at(0)? {
                SIMPLE_REPLY => Some(SIMPLE_REPLY_LEN),
                STRUCTURED_REPLY => Some(STRUCTURED_REPLY_LEN + word_at(16)? as usize),
                magic => panic!("a reply begins with {magic:#x}"),
            },
        }
    }

    /// Returns the replacement for the last piece of an answer; `None` if the answer stays.
    fn changed(&mut self, message: &[u8], one_in: u64) -> Option<Vec<u8>> {
        let is_simple = word(message, 0) == SIMPLE_REPLY;
        let flags = u16::from_be_bytes([message[4], message[5]]);
        if !is_simple && flags & FLAG_DONE == 0 {
            return None;
        }
        self.answers += 1;
        if one_in == 0 || !self.answers.is_multiple_of(one_in) {
            return None;
        }
        if is_simple {
            return Some([&message[..4], &ESHUTDOWN.to_be_bytes(), &message[8..]].concat());
        }
        // An error without a text.
        let (kind, len) = (TYPE_ERROR.to_be_bytes(), 6u32.to_be_bytes());
        let payload = [&ESHUTDOWN.to_be_bytes()[..], &[0, 0]].concat();
        Some([&message[..6], &kind[..], &message[8..16], &len[..], &payload[..]].concat())
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
