//! Common parts of addresses of leaves on other machines: percent-encoding, hosts, options behind a
//! `?`.
//!
//! Contract: pure. An address is one word of a table line, so characters with a meaning in a line
//! or in an address are percent-encoded.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::engine::error::LeafError;

/// Time limit of an answer in seconds: the default, and the most.
const TIMEOUT: u64 = 30;
const MAX_TIMEOUT: u64 = 3600;
/// Longest `reconnect` time in seconds.
const MAX_RECONNECT: u64 = 86_400;

/// The place of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A host and its port.
    Tcp {
        /// A name, or an address without brackets.
        host: String,
        /// The TCP port of the server.
        port: u16,
    },
    /// A socket of this machine.
    Unix(PathBuf),
}

/// Default waits of writes in doubt. The first is for a connection that the other side has ended:
/// it is alive or has died. The second is for silence: the other side may go on with them.
const SETTLE: Duration = Duration::from_millis(100);
const SETTLE_SILENT: Duration = Duration::from_secs(5);
/// Longest `settle` time in seconds.
const MAX_SETTLE: u64 = 3600;

/// The options for a server that does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Time limit of a connection, its negotiation and an answer.
    pub timeout: Duration,
    /// How long operations wait for a lost connection. 0 means that they fail at once.
    pub reconnect: Duration,
    /// How long writes in doubt wait before they are answered or sent again. `None` means the
    /// default for the kind of loss.
    pub settle: Option<Duration>,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { timeout: Duration::from_secs(TIMEOUT), reconnect: Duration::ZERO, settle: None }
    }
}

impl Patience {
    /// Takes an option if it is one of these. `None` if it is another one or has a bad value.
    pub(crate) fn option(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "timeout" => self.timeout = Duration::from_secs(number(value, 1, MAX_TIMEOUT)?),
            "reconnect" => self.reconnect = Duration::from_secs(number(value, 0, MAX_RECONNECT)?),
            "settle" => self.settle = Some(seconds(value, MAX_SETTLE)?),
            _ => return None,
        }
        Some(())
    }

    /// The wait of writes in doubt. `silent` means that their connection was lost by silence.
    pub(crate) fn settling(&self, silent: bool) -> Duration {
        self.settle.unwrap_or(if silent { SETTLE_SILENT } else { SETTLE })
    }

    /// Writes the options that are not the defaults.
    pub(crate) fn write(&self, query: &mut Query<'_, '_>) -> fmt::Result {
        let usual = Patience::default();
        if self.timeout != usual.timeout {
            query.number("timeout", self.timeout.as_secs())?;
        }
        if self.reconnect != usual.reconnect {
            query.number("reconnect", self.reconnect.as_secs())?;
        }
        match self.settle {
            Some(settle) => query.text("settle", &settle.as_secs_f64().to_string()),
            None => Ok(()),
        }
    }
}

/// Parses seconds with up to three digits behind the point, up to `most`.
fn seconds(value: &str, most: u64) -> Option<Duration> {
    let (whole, part) = value.split_once('.').unwrap_or((value, "0"));
    let whole = number(whole, 0, most)?;
    let digits = part.len();
    let scale = match digits {
        1 => 100,
        2 => 10,
        3 => 1,
        _ => return None,
    };
    let time = Duration::from_millis(whole * 1000 + number(part, 0, 999)? * scale);
    (time <= Duration::from_secs(most)).then_some(time)
}

/// Parses a number of plain digits from `least` to `most`.
pub(crate) fn number(value: &str, least: u64, most: u64) -> Option<u64> {
    let plain = value.bytes().all(|b| b.is_ascii_digit());
    value.parse().ok().filter(|number| plain && (least..=most).contains(number))
}

/// Passes name and value of each option of a query to `take`. The first one that it does not take
/// is the error.
pub(crate) fn options(
    address: &str,
    query: &str,
    allowed: &'static str,
    mut take: impl FnMut(&str, &str) -> Option<()>,
) -> Result<(), LeafError> {
    for word in query.split('&').filter(|word| !word.is_empty()) {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        take(key, value).ok_or_else(|| LeafError::Option {
            address: address.to_string(),
            option: word.to_string(),
            allowed,
        })?;
    }
    Ok(())
}

/// Parses `HOST`, `HOST:PORT`, `[ADDRESS]` or `[ADDRESS]:PORT`.
pub(crate) fn host_and_port(authority: &str, default_port: u16) -> Option<(String, u16)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port = match port.strip_prefix(':') {
        Some(port) => number(port, 1, u64::from(u16::MAX))? as u16,
        None if port.is_empty() => default_port,
        None => return None,
    };
    let plain =
        !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-_:%".contains(c));
    plain.then(|| (host.to_string(), port))
}

/// Writes a host and its port, unless that is the default.
pub(crate) fn write_host(
    f: &mut fmt::Formatter<'_>,
    host: &str,
    port: u16,
    default_port: u16,
) -> fmt::Result {
    let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
    write!(f, "{open}{host}{close}")?;
    if port == default_port { Ok(()) } else { write!(f, ":{port}") }
}

/// Undoes percent-encoding. `None` if it is malformed or not UTF-8.
pub(crate) fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        bytes.push((digit()? * 16 + digit()?) as u8);
    }
    String::from_utf8(bytes).ok()
}

/// Writes a name with percent-encoding.
pub(crate) fn encode(name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    name.bytes().try_for_each(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => write!(f, "{}", char::from(byte)),
        b'-' | b'.' | b'_' | b'~' | b'/' | b':' | b'@' | b',' | b'+' => {
            write!(f, "{}", char::from(byte))
        }
        _ => write!(f, "%{byte:02X}"),
    })
}

/// Writes options, with the right separators.
pub(crate) struct Query<'a, 'f> {
    f: &'a mut fmt::Formatter<'f>,
    separator: char,
}

impl<'a, 'f> Query<'a, 'f> {
    /// For the options of an address.
    pub(crate) fn new(f: &'a mut fmt::Formatter<'f>) -> Query<'a, 'f> {
        Query { f, separator: '?' }
    }

    /// Writes an option with a number.
    pub(crate) fn number(&mut self, key: &str, value: u64) -> fmt::Result {
        let separator = std::mem::replace(&mut self.separator, '&');
        write!(self.f, "{separator}{key}={value}")
    }

    /// Writes an option with a text.
    pub(crate) fn text(&mut self, key: &str, value: &str) -> fmt::Result {
        let separator = std::mem::replace(&mut self.separator, '&');
        write!(self.f, "{separator}{key}=")?;
        encode(value, self.f)
    }
}
