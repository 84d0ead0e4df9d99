//! The address of an NBD leaf: `nbd://HOST[:PORT]/EXPORT[?OPTION=VALUE&...]` or
//! `nbd+unix:///EXPORT?socket=PATH[&OPTION=VALUE...]`. This is the form of the NBD project
//! (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md>), with additional options.
//!
//! Contract: [`NbdAddress`] displays as an address again, in one form for all ways to write it.

use std::fmt;

use crate::engine::error::LeafError;
pub use crate::engine::session::uri::Place;
use crate::engine::session::uri::{
    Patience, Query, decode, encode, host_and_port, number, options, write_host,
};

/// NBD's default TCP port.
const PORT: u16 = 10809;
/// Longest name of an export in bytes, a limit of the protocol.
const MAX_NAME: usize = crate::wire::nbd::MAX_STRING;
/// Most connections that one queue makes. More make no difference.
const MAX_CONNECTIONS: u64 = 16;

/// The schemes of the two forms.
const TCP: &str = "nbd://";
const UNIX: &str = "nbd+unix://";

const FORMS: &str =
    "nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH, what is not plain as %XX";
const OPTIONS: &str = "socket=PATH (nbd+unix: only), connections=1..16, timeout=1..3600, reconnect=0..86400 or \
     settle=0..3600";

/// A parsed address of an NBD leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdAddress {
    /// The place where the server listens.
    pub place: Place,
    /// The name of the export. May be empty.
    pub export: String,
    /// Number of connections of each queue, if the server allows several.
    pub connections: usize,
    /// Time limits of connections and answers.
    pub patience: Patience,
}

impl NbdAddress {
    /// Whether a text has the scheme of an NBD address, valid or not.
    pub fn is_one(text: &str) -> bool {
        text.starts_with(TCP) || text.starts_with(UNIX)
    }

    /// Parses an address. An error quotes the part that is wrong.
    pub fn parse(text: &str) -> Result<NbdAddress, LeafError> {
        let bad = |option: &str| LeafError::Option {
            address: text.to_string(),
            option: option.to_string(),
            allowed: FORMS,
        };
        let is_unix = text.starts_with(UNIX);
        let rest = text.strip_prefix(if is_unix { UNIX } else { TCP }).ok_or_else(|| bad(text))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, name) = rest.split_once('/').ok_or_else(|| bad(rest))?;
        let export = decode(name).filter(|name| name.len() <= MAX_NAME && !name.contains('\0'));
        let export = export.ok_or_else(|| bad(name))?;
        let (mut connections, mut socket, mut patience) = (1, None, Patience::default());
        options(text, query, OPTIONS, |key, value| match key {
            "socket" if is_unix => {
                let path = decode(value).filter(|path| path.starts_with('/'))?;
                socket = Some(path);
                Some(())
            }
            "connections" => number(value, 1, MAX_CONNECTIONS).map(|n| connections = n as usize),
            key => patience.option(key, value),
        })?;
        let place = match (is_unix, authority, socket) {
            (true, "", Some(socket)) => Place::Unix(socket.into()),
            (false, authority, _) => {
                let (host, port) = host_and_port(authority, PORT).ok_or_else(|| bad(authority))?;
                Place::Tcp { host, port }
            }
            (true, "", None) => return Err(LeafError::NoSocket(text.to_owned())),
            _ => return Err(bad(rest)),
        };
        Ok(NbdAddress { place, export, connections, patience })
    }
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let socket = match &self.place {
            Place::Tcp { host, port } => {
                f.write_str(TCP)?;
                write_host(f, host, *port, PORT)?;
                None
            }
            Place::Unix(socket) => {
                f.write_str(UNIX)?;
                Some(socket.to_string_lossy())
            }
        };
        f.write_str("/")?;
        encode(&self.export, f)?;
        let mut query = Query::new(f);
        if let Some(socket) = socket {
            query.text("socket", &socket)?;
        }
        if self.connections != 1 {
            query.number("connections", self.connections as u64)?;
        }
        self.patience.write(&mut query)
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
            (
                "nbd+unix:///v%C3%A9?timeout=1&socket=/a%26b",
                "nbd+unix:///v%C3%A9?socket=/a%26b&timeout=1",
            ),
        ] {
            let address = NbdAddress::parse(text).unwrap();
            assert_eq!(address.to_string(), shown, "{text}");
            assert_eq!(NbdAddress::parse(shown).unwrap(), address, "{text}");
        }
        let address = NbdAddress::parse("nbd+unix:///v%C3%A9%20?socket=/s").unwrap();
        assert_eq!(
            (address.export.as_str(), address.place),
            ("v\u{e9} ", Place::Unix("/s".into()))
        );
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
            ("nbd+unix:///d", "socket=PATH is missing"),
            ("nbd+unix:///d?socket=relative", "'socket=relative'"),
            ("nbd+unix://host/d?socket=/s", "'host/d'"),
        ] {
            let error = NbdAddress::parse(text).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(text), "{text}: {error}");
        }
    }
}
