//! The handshake: fixed-newstyle negotiation, from the greeting to a [`Negotiated`].
//!
//! Contract: [`Handshake::input`] consumes whole steps (the client flags, an option header, an
//! option's data). The caller keeps the rest, at most [`MAX_OPTION_BYTES`]. Options that are
//! longer, unknown, or must not have data are skipped as they arrive, and then answered. The
//! answers do not depend on how the bytes were cut. The code never panics, and the limits of the
//! parent module bound its memory. The caller has the deadlines.
//!
//! Options are answered in order, and each completely, as the document requires. A client that does
//! not wait for answers is served, too. TLS and oldstyle are not supported, and are refused as the
//! document requires.

use std::sync::Arc;

use self::options::{Refusal, answer, refuse};
use super::contexts::Contexts;
use super::negotiated::Negotiated;
use super::proto::{
    CLIENT_FLAGS_LEN, INIT_MAGIC, OPTION_HEADER_LEN, OPTION_MAGIC, Reader, handshake_flag, opt, rep,
};
use super::{
    Directory, MAX_ANSWER_BYTES, MAX_OPTION_BYTES, MAX_OPTIONS_PER_CONNECTION,
    MAX_SKIPPED_OPTION_BYTES, MAX_STRING,
};

/// A connection before the transmission phase.
#[derive(Debug)]
pub struct Handshake {
    state: HandshakeState,
    no_zeroes: bool,
    structured: bool,
    extended: bool,
    /// The contexts of the last successful SET_META_CONTEXT, and its export name.
    selected: Option<(String, Contexts)>,
    /// The name that the client last gave the place of this connection ([`super::replaces`]).
    replaces: Option<Arc<str>>,
    shutting_down: bool,
    options: u32,
    answered: usize,
}

/// The result of [`Handshake::input`].
#[derive(Debug)]
pub struct Progress {
    /// Number of consumed bytes. The caller passes the rest again with more bytes behind it.
    pub consumed: usize,
    /// The next step of the caller.
    pub next: Next,
}

/// The next step of a connection, after the answers were sent.
#[derive(Debug)]
pub enum Next {
    /// Read more bytes, and pass them to [`Handshake::input`].
    More,
    /// The handshake is over. The rest of the input are the first requests.
    Transmission(Box<Negotiated>),
    /// Close the connection after the answers were sent.
    Close(CloseReason),
}

/// The reason why the server closes a connection during the handshake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The client sent ABORT.
    #[error("the client ended the negotiation")]
    Abort,
    /// The client set flags that were not offered.
    #[error("client flags {0:#x}, of which the server offered only 0x3")]
    ClientFlags(u32),
    /// The bytes are not an option.
    #[error("an option begins with {0:#018x}, not with IHAVEOPT")]
    OptionMagic(u64),
    /// EXPORT_NAME failed. It can be refused only by closing the connection.
    #[error("EXPORT_NAME failed: {0}")]
    ExportName(String),
    /// The option is too long even to skip.
    #[error("option {option} announces {bytes} bytes, more than {MAX_SKIPPED_OPTION_BYTES}")]
    OptionTooLong {
        /// The number of the option.
        option: u32,
        /// Its announced length in bytes.
        bytes: u32,
    },
    /// The client sent too many options.
    #[error("more than {MAX_OPTIONS_PER_CONNECTION} options")]
    TooManyOptions,
    /// The client asked for too many answers.
    #[error("the answers exceed {MAX_ANSWER_BYTES} bytes")]
    TooMuchAnswered,
    /// There was input after the end of the handshake.
    #[error("the handshake was over already")]
    Over,
}

#[derive(Debug)]
enum HandshakeState {
    ClientFlags,
    Header,
    Data { option: u32, len: usize },
    Skip { option: u32, left: u32, verdict: Verdict },
    Over,
}

/// The answer to an option after it was skipped.
#[derive(Clone, Copy, Debug)]
enum Verdict {
    Abort,
    Unknown,
    NeedsNoData,
    NoTls,
    TooLong(u32),
    Shutdown,
}

enum HandshakeStep {
    /// The input is too short for the next step.
    Starved,
    Ate(usize),
    End(usize, Next),
}

const OFFERED_FLAGS: u16 = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;

impl Handshake {
    /// The handshake of a connection that was just accepted.
    pub fn new() -> Self {
        Handshake {
            state: HandshakeState::ClientFlags,
            no_zeroes: false,
            structured: false,
            extended: false,
            selected: None,
            replaces: None,
            shutting_down: false,
            options: 0,
            answered: 0,
        }
    }

    /// The first bytes of the server, which it sends without waiting for the client.
    pub fn greeting(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&INIT_MAGIC.to_be_bytes());
        out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        out.extend_from_slice(&OFFERED_FLAGS.to_be_bytes());
    }

    /// Says that the server shuts down. From then on, every option except ABORT is answered with
    /// `NBD_REP_ERR_SHUTDOWN`.
    pub fn shut_down(&mut self) {
        self.shutting_down = true;
    }

    /// Consumes as much of `input` as possible and appends answers to `out`.
    pub fn input(&mut self, input: &[u8], dir: &dyn Directory, out: &mut Vec<u8>) -> Progress {
        let mut consumed = 0;
        let mut rest = input;
        loop {
            let before = out.len();
            let (ate, end) = match self.step(rest, dir, out) {
                HandshakeStep::Starved => return Progress { consumed, next: Next::More },
                HandshakeStep::Ate(ate) => (ate, None),
                HandshakeStep::End(ate, next) => (ate, Some(next)),
            };
            consumed += ate;
            rest = rest.get(ate..).unwrap_or_default();
            self.answered += out.len() - before;
            if let Some(next) = end {
                self.state = HandshakeState::Over;
                return Progress { consumed, next };
            }
            if self.answered > MAX_ANSWER_BYTES {
                self.state = HandshakeState::Over;
                return Progress { consumed, next: Next::Close(CloseReason::TooMuchAnswered) };
            }
        }
    }

    fn step(&mut self, input: &[u8], dir: &dyn Directory, out: &mut Vec<u8>) -> HandshakeStep {
        match self.state {
            HandshakeState::ClientFlags => self.client_flags(input),
            HandshakeState::Header => self.header(input),
            HandshakeState::Data { option, len } => match input.get(..len) {
                None => HandshakeStep::Starved,
                Some(data) => {
                    self.state = HandshakeState::Header;
                    match self.option(option, data, dir, out) {
                        Next::More => HandshakeStep::Ate(len),
                        end => HandshakeStep::End(len, end),
                    }
                }
            },
            HandshakeState::Skip { option, left, verdict } => {
                self.skip(option, left, verdict, input, out)
            }
            HandshakeState::Over => HandshakeStep::End(0, Next::Close(CloseReason::Over)),
        }
    }

    /// Unknown flags end the connection, because the document allows no other answer.
    fn client_flags(&mut self, input: &[u8]) -> HandshakeStep {
        let Some(flags) = Reader::new(input).u32() else { return HandshakeStep::Starved };
        if flags & !u32::from(OFFERED_FLAGS) != 0 {
            return HandshakeStep::End(
                CLIENT_FLAGS_LEN,
                Next::Close(CloseReason::ClientFlags(flags)),
            );
        }
        self.no_zeroes = flags & u32::from(handshake_flag::NO_ZEROES) != 0;
        self.state = HandshakeState::Header;
        HandshakeStep::Ate(CLIENT_FLAGS_LEN)
    }

    /// Decides whether an option is read or skipped, before its data arrives.
    fn header(&mut self, input: &[u8]) -> HandshakeStep {
        let mut reader = Reader::new(input);
        let (Some(magic), Some(option), Some(len)) = (reader.u64(), reader.u32(), reader.u32())
        else {
            return HandshakeStep::Starved;
        };
        let close = |reason| HandshakeStep::End(OPTION_HEADER_LEN, Next::Close(reason));
        if magic != OPTION_MAGIC {
            return close(CloseReason::OptionMagic(magic));
        }
        self.options += 1;
        if self.options > MAX_OPTIONS_PER_CONNECTION {
            return close(CloseReason::TooManyOptions);
        }
        if len > MAX_SKIPPED_OPTION_BYTES {
            return close(CloseReason::OptionTooLong { option, bytes: len });
        }
        if option == opt::EXPORT_NAME {
            if self.shutting_down {
                return close(CloseReason::ExportName("the server is shutting down".into()));
            }
            if len as usize > MAX_STRING {
                return close(CloseReason::ExportName(format!(
                    "a name of {len} bytes; at most {MAX_STRING}"
                )));
            }
        }
        if option == opt::SET_META_CONTEXT {
            // Replaces the selection also when it fails.
            self.selected = None;
        }
        self.state = match self.verdict(option, len) {
            Some(verdict) => HandshakeState::Skip { option, left: len, verdict },
            None => HandshakeState::Data { option, len: len as usize },
        };
        HandshakeStep::Ate(OPTION_HEADER_LEN)
    }

    /// The answer to an option, if it does not depend on the option's data.
    fn verdict(&self, option: u32, len: u32) -> Option<Verdict> {
        let has_data = match option {
            // Data is ignored rather than refused.
            opt::ABORT => return Some(Verdict::Abort),
            opt::EXPORT_NAME
            | opt::INFO
            | opt::GO
            | opt::LIST_META_CONTEXT
            | opt::SET_META_CONTEXT => true,
            opt::LIST | opt::STARTTLS | opt::STRUCTURED_REPLY | opt::EXTENDED_HEADERS => false,
            _ => return Some(Verdict::Unknown),
        };
        if self.shutting_down {
            Some(Verdict::Shutdown)
        } else if !has_data && len > 0 {
            Some(Verdict::NeedsNoData)
        } else if option == opt::STARTTLS {
            Some(Verdict::NoTls)
        } else if len as usize > MAX_OPTION_BYTES {
            Some(Verdict::TooLong(len))
        } else {
            None
        }
    }

    fn skip(
        &mut self,
        option: u32,
        left: u32,
        verdict: Verdict,
        input: &[u8],
        out: &mut Vec<u8>,
    ) -> HandshakeStep {
        let ate = input.len().min(left as usize);
        let left = left - ate as u32;
        if left > 0 {
            self.state = HandshakeState::Skip { option, left, verdict };
            return if ate == 0 { HandshakeStep::Starved } else { HandshakeStep::Ate(ate) };
        }
        self.state = HandshakeState::Header;
        let refusal = match verdict {
            Verdict::Abort => {
                answer(out, option, rep::ACK, &[]);
                return HandshakeStep::End(ate, Next::Close(CloseReason::Abort));
            }
            Verdict::Unknown => {
                Refusal::new(rep::ERR_UNSUP, format!("option {option} is not known here"))
            }
            Verdict::NeedsNoData => Refusal::invalid(format!("option {option} has no data")),
            Verdict::NoTls => Refusal::new(rep::ERR_UNSUP, "there is no TLS here"),
            Verdict::TooLong(len) => {
                let text = format!(
                    "option {option} with {len} bytes of data; at most {MAX_OPTION_BYTES} are read"
                );
                Refusal::new(rep::ERR_TOO_BIG, text)
            }
            Verdict::Shutdown => Refusal::new(rep::ERR_SHUTDOWN, "the server is shutting down"),
        };
        refuse(out, option, &refusal);
        HandshakeStep::Ate(ate)
    }
}

impl Default for Handshake {
    fn default() -> Self {
        Handshake::new()
    }
}

mod options;
#[cfg(test)]
mod tests;
