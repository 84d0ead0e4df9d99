//! The address of an NBD leaf: `nbd://HOST[:PORT]/EXPORT[?OPTION=VALUE&...]` and
//! `nbd+unix:///EXPORT?socket=PATH[&OPTION=VALUE...]`, as the NBD project writes them
//! (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md>), with options of our own.
//!
//! Contract: an address is one word of a table line, so what is not plain in a name is percent-encoded.
//! [`NbdAddress`]'s text is the address again, in one form for all ways to write it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::leaf::LeafError;

/// The port of NBD.
const PORT: u16 = 10809;
/// Longest name of an export: the protocol's limit.
const MAX_NAME: usize = crate::export::nbd::MAX_STRING;
/// Most connections that one queue makes: more than make a difference.
const MAX_CONNECTIONS: usize = 16;
/// How long an answer may take, by default and at most, in seconds.
const TIMEOUT: u64 = 30;
const MAX_TIMEOUT: u64 = 3600;
/// Longest time that operations may wait for a server to come back, in seconds.
const MAX_RECONNECT: u64 = 86_400;

/// The schemes.
const TCP: &str = "nbd://";
const UNIX: &str = "nbd+unix://";

const FORMS: &str = "nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH, what is not plain as %XX";
const OPTIONS: &str =
    "socket=PATH (nbd+unix: only), connections=1..16, timeout=1..3600 or reconnect=0..86400";

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A host and its port.
    Tcp {
        /// A name, or an address without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// A socket of this machine.
    Unix(PathBuf),
}

/// See the module's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdAddress {
    /// Where the server listens.
    pub place: Place,
    /// The name of the export; may be empty.
    pub export: String,
    /// Connections that each queue makes, if the server can have several.
    pub connections: usize,
    /// How long a connection, its handshake and an answer may take.
    pub timeout: Duration,
    /// How long operations wait for a lost connection to come back. 0: they fail at once.
    pub reconnect: Duration,
}

impl NbdAddress {
    /// Whether a text is such an address, good or bad.
    pub fn is_one(text: &str) -> bool {
        text.starts_with(TCP) || text.starts_with(UNIX)
    }

    /// Reads an address. Errors quote the part that is wrong.
    pub fn parse(text: &str) -> Result<NbdAddress, LeafError> {
        let bad = |option: &str, allowed| LeafError::Option {
            address: text.to_string(),
            option: option.to_string(),
            allowed,
        };
        let is_unix = text.starts_with(UNIX);
        let rest = text.strip_prefix(if is_unix { UNIX } else { TCP }).ok_or_else(|| bad(text, FORMS))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, name) = rest.split_once('/').ok_or_else(|| bad(rest, FORMS))?;
        let export = decode(name).filter(|name| name.len() <= MAX_NAME && !name.contains('\0'));
        let mut address = NbdAddress {
            place: Place::Unix(PathBuf::new()),
            export: export.ok_or_else(|| bad(name, FORMS))?,
            connections: 1,
            timeout: Duration::from_secs(TIMEOUT),
            reconnect: Duration::ZERO,
        };
        let mut socket = None;
        for word in query.split('&').filter(|word| !word.is_empty()) {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let number = |least: u64, most: u64| {
                let plain = value.bytes().all(|b| b.is_ascii_digit());
                value.parse().ok().filter(|number| plain && (least..=most).contains(number))
            };
            let seconds = |least, most| number(least, most).map(Duration::from_secs);
            let known = match key {
                "socket" if is_unix => {
                    decode(value).filter(|path| path.starts_with('/')).map(|path| socket = Some(path))
                }
                "connections" => number(1, MAX_CONNECTIONS as u64).map(|n| address.connections = n as usize),
                "timeout" => seconds(1, MAX_TIMEOUT).map(|time| address.timeout = time),
                "reconnect" => seconds(0, MAX_RECONNECT).map(|time| address.reconnect = time),
                _ => None,
            };
            known.ok_or_else(|| bad(word, OPTIONS))?;
        }
        address.place = match (is_unix, authority, socket) {
            (true, "", Some(socket)) => Place::Unix(socket.into()),
            (false, authority, _) => tcp(authority).ok_or_else(|| bad(authority, FORMS))?,
            _ => return Err(bad(rest, FORMS)),
        };
        Ok(address)
    }
}

/// `HOST`, `HOST:PORT`, `[ADDRESS]` or `[ADDRESS]:PORT`.
fn tcp(authority: &str) -> Option<Place> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port = match port.strip_prefix(':') {
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => {
            port.parse().ok().filter(|port| *port > 0)?
        }
        None if port.is_empty() => PORT,
        _ => return None,
    };
    let plain = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-_:%".contains(c));
    plain.then(|| Place::Tcp { host: host.to_string(), port })
}

/// Undoes percent-encoding. Nothing if it is none, or not UTF-8.
fn decode(text: &str) -> Option<String> {
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

/// Writes a name with everything percent-encoded that means something in an address or in a table line.
fn encode(name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    name.bytes().try_for_each(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => write!(f, "{}", char::from(byte)),
        b'-' | b'.' | b'_' | b'~' | b'/' | b':' | b'@' | b',' | b'+' => write!(f, "{}", char::from(byte)),
        _ => write!(f, "%{byte:02X}"),
    })
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = '?';
        let mut next = || std::mem::replace(&mut separator, '&');
        match &self.place {
            Place::Tcp { host, port } => {
                let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
                write!(f, "{TCP}{open}{host}{close}")?;
                if *port != PORT {
                    write!(f, ":{port}")?;
                }
                f.write_str("/")?;
                encode(&self.export, f)?;
            }
            Place::Unix(socket) => {
                write!(f, "{UNIX}/")?;
                encode(&self.export, f)?;
                write!(f, "{}socket=", next())?;
                // Read from text, so it is text.
                encode(&socket.to_string_lossy(), f)?;
            }
        }
        if self.connections != 1 {
            write!(f, "{}connections={}", next(), self.connections)?;
        }
        if self.timeout.as_secs() != TIMEOUT {
            write!(f, "{}timeout={}", next(), self.timeout.as_secs())?;
        }
        if self.reconnect > Duration::ZERO {
            write!(f, "{}reconnect={}", next(), self.reconnect.as_secs())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip_to_one_form() {
        for (text, shown) in [
            ("nbd://host/disk", "nbd://host/disk"),
            ("nbd://host:10809/disk", "nbd://host/disk"),
            ("nbd://192.0.2.1:9/", "nbd://192.0.2.1:9/"),
            ("nbd://[2001:db8::1]/a/b", "nbd://[2001:db8::1]/a/b"),
            ("nbd://[::1]:7/a%20b%3f?timeout=30", "nbd://[::1]:7/a%20b%3F"),
            (
                "nbd://h/d?reconnect=5&timeout=2&connections=4",
                "nbd://h/d?connections=4&timeout=2&reconnect=5",
            ),
            ("nbd+unix:///?socket=/run/nbd.sock", "nbd+unix:///?socket=/run/nbd.sock"),
            ("nbd+unix:///v%C3%A9?timeout=1&socket=/a%26b", "nbd+unix:///v%C3%A9?socket=/a%26b&timeout=1"),
        ] {
            let address = NbdAddress::parse(text).unwrap();
            assert_eq!(address.to_string(), shown, "{text}");
            assert_eq!(NbdAddress::parse(shown).unwrap(), address, "{text}");
        }
        let address = NbdAddress::parse("nbd+unix:///v%C3%A9%20?socket=/s").unwrap();
        assert_eq!((address.export.as_str(), address.place), ("v\u{e9} ", Place::Unix("/s".into())));
    }

    #[test]
    fn bad_addresses_are_refused_with_the_word_that_is_wrong() {
        for (text, word) in [
            ("nbd://host", "'host'"),
            ("nbd:///disk", "''"),
            ("nbd://host:/disk", "'host:'"),
            ("nbd://host:0/disk", "'host:0'"),
            ("nbd://host:65536/disk", "'host:65536'"),
            ("nbd://user@host/disk", "'user@host'"),
            ("nbd://[::1/disk", "'[::1'"),
            ("nbd://host/di%sk", "'di%sk'"),
            ("nbd://host/%ff", "'%ff'"),
            ("nbd://host/%00", "'%00'"),
            ("nbd://host/d?socket=/s", "'socket=/s'"),
            ("nbd://host/d?timeout=0", "'timeout=0'"),
            ("nbd://host/d?timeout=+1", "'timeout=+1'"),
            ("nbd://host/d?connections=17", "'connections=17'"),
            ("nbd://host/d?reconnect=", "'reconnect='"),
            ("nbd://host/d?bogus", "'bogus'"),
            ("nbd+unix:///d", "'/d'"),
            ("nbd+unix:///d?socket=relative", "'socket=relative'"),
            ("nbd+unix://host/d?socket=/s", "'host/d'"),
        ] {
            let error = NbdAddress::parse(text).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(text), "{text}: {error}");
        }
    }
}
