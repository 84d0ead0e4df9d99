//! The address of an iSCSI leaf: `iscsi://[USER@]PORTAL[:PORT]/TARGET/LUN[?OPTION=VALUE&...]`. This
//! is the form of libiscsi, QEMU and others, except for secrets.
//!
//! Contract: [`IscsiAddress`] displays as an address again, in one form for all ways to write it.
//! It contains no secret, because tables, logs and process lists show addresses to everybody. An
//! address with a secret is refused, and the error does not repeat the secret.

use std::fmt;

use crate::engine::error::LeafError;
use crate::engine::session::uri::{
    Patience, Query, decode, encode, host_and_port, options, write_host,
};

/// iSCSI's default TCP port.
pub(super) const PORT: u16 = 3260;
/// Longest name of an initiator or target in bytes, a limit of the protocol.
const MAX_NAME: usize = 223;
/// Largest LUN of the flat addressing form.
const MAX_LUN: u64 = 16_383;

const SCHEME: &str = "iscsi://";
const FORM: &str = "iscsi://[USER@]PORTAL[:PORT]/TARGET/LUN, what is not plain as %XX";
const OPTIONS: &str = "secret-file=PATH, secret-env=NAME (both with USER@ only), initiator=NAME, timeout=1..3600, \
                       reconnect=0..86400, settle=0..3600 or reset-unit=yes|no";
const NO_SECRET: &str = "no secret here, where everybody can see it: put it into a file (secret-file=PATH) or into \
                         the daemon's environment (secret-env=NAME)";

/// The place of a user's secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretAt {
    /// In a file of its own. A newline at the end is not part of the secret.
    File(String),
    /// In an environment variable of the daemon.
    Env(String),
}

/// The user that logs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name for CHAP.
    pub name: String,
    /// The place of the secret.
    pub secret: SecretAt,
}

/// A parsed address of an iSCSI leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IscsiAddress {
    /// A host name, or an IP address without brackets.
    pub host: String,
    /// The TCP port of the portal.
    pub port: u16,
    /// The iSCSI name of the target.
    pub target: String,
    /// The number of the logical unit.
    pub lun: u16,
    /// The user for CHAP; `None` for no authentication.
    pub user: Option<User>,
    /// The name of the initiator; `None` for the daemon's default.
    pub initiator: Option<String>,
    /// Time limits of connections and answers.
    pub patience: Patience,
    /// Whether a session that takes over writes in doubt resets the logical unit, which ends the
    /// commands of all hosts.
    pub resets_unit: bool,
}

impl IscsiAddress {
    /// Whether a text has the scheme of an iSCSI address, valid or not.
    pub fn is_one(text: &str) -> bool {
        text.starts_with(SCHEME)
    }

    /// Parses an address. An error quotes the part that is wrong, unless it may be a secret.
    pub fn parse(text: &str) -> Result<IscsiAddress, LeafError> {
        let shown = masked(text);
        let bad = |option: &str, allowed| LeafError::Option {
            address: shown.clone(),
            option: masked(option),
            allowed,
        };
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| bad(text, FORM))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (user, rest) = match rest.rsplit_once('@') {
            Some((user, rest)) => (Some(user), rest),
            None => (None, rest),
        };
        if user.is_some_and(|user| user.contains(['%', ':'])) {
            return Err(bad("user%...", NO_SECRET));
        }
        let mut words = rest.splitn(3, '/');
        let (authority, target, lun) = (words.next(), words.next(), words.next());
        let (Some(authority), Some(target), Some(lun)) = (authority, target, lun) else {
            return Err(bad(rest, FORM));
        };
        let (host, port) = host_and_port(authority, PORT).ok_or_else(|| bad(authority, FORM))?;
        let is_name = |name: &String| {
            let plain = name.chars().all(|c| c.is_ascii_graphic() && !"/?&".contains(c));
            plain && (1..=MAX_NAME).contains(&name.len())
        };
        let target = decode(target).filter(is_name).ok_or_else(|| bad(target, FORM))?;
        let lun = crate::engine::session::uri::number(lun, 0, MAX_LUN)
            .ok_or_else(|| bad(lun, FORM))? as u16;
        let (mut secret, mut initiator, mut patience) = (None, None, Patience::default());
        let mut resets_unit = false;
        options(&shown, query, OPTIONS, |key, value| {
            match key {
                "secret-file" if user.is_some() => {
                    secret =
                        Some(SecretAt::File(decode(value).filter(|path| path.starts_with('/'))?));
                }
                "secret-env" if user.is_some() => {
                    let plain = value.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
                    secret = Some(SecretAt::Env(
                        Some(value).filter(|v| plain && !v.is_empty())?.to_string(),
                    ));
                }
                "initiator" => initiator = Some(decode(value).filter(is_name)?),
                "reset-unit" if matches!(value, "yes" | "no") => resets_unit = value == "yes",
                key => patience.option(key, value)?,
            }
            Some(())
        })?;
        let user = match (user, secret) {
            (None, _) => None,
            (Some(name), Some(secret)) if !name.is_empty() => {
                Some(User { name: name.to_string(), secret })
            }
            (Some(name), _) => {
                return Err(bad(name, "USER@ with secret-file=PATH or secret-env=NAME"));
            }
        };
        Ok(IscsiAddress { host, port, target, lun, user, initiator, patience, resets_unit })
    }
}

/// The address without the part that may be a secret.
fn masked(text: &str) -> String {
    let Some((before, behind)) = text.rsplit_once('@') else { return text.to_string() };
    match before.find(['%']).or_else(|| before.rfind(':').filter(|at| *at > SCHEME.len() - 3)) {
        Some(at) => format!("{}%...@{behind}", before.get(..at).unwrap_or_default()),
        None => text.to_string(),
    }
}

impl fmt::Display for IscsiAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SCHEME)?;
        if let Some(user) = &self.user {
            write!(f, "{}@", user.name)?;
        }
        write_host(f, &self.host, self.port, PORT)?;
        f.write_str("/")?;
        encode(&self.target, f)?;
        write!(f, "/{}", self.lun)?;
        let mut query = Query::new(f);
        match self.user.as_ref().map(|user| &user.secret) {
            Some(SecretAt::File(path)) => query.text("secret-file", path)?,
            Some(SecretAt::Env(name)) => query.text("secret-env", name)?,
            None => {}
        }
        if let Some(initiator) = &self.initiator {
            query.text("initiator", initiator)?;
        }
        self.patience.write(&mut query)?;
        if self.resets_unit { query.text("reset-unit", "yes") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip_to_one_form() {
        for (text, shown) in [
            (
                "iscsi://host/iqn.2026-01.org.example:vol/1",
                "iscsi://host/iqn.2026-01.org.example:vol/1",
            ),
            ("iscsi://192.0.2.1:3260/iqn.x/0?timeout=30", "iscsi://192.0.2.1/iqn.x/0"),
            ("iscsi://h/iqn.x/0?reset-unit=no", "iscsi://h/iqn.x/0"),
            (
                "iscsi://h/iqn.x/0?reset-unit=yes&settle=9",
                "iscsi://h/iqn.x/0?settle=9&reset-unit=yes",
            ),
            ("iscsi://[::1]:99/iqn.x/16383", "iscsi://[::1]:99/iqn.x/16383"),
            (
                "iscsi://me@h/iqn.x/2?reconnect=9&secret-file=/run/a%20b",
                "iscsi://me@h/iqn.x/2?secret-file=/run/a%20b&reconnect=9",
            ),
            (
                "iscsi://me@h/iqn.x/2?secret-env=CHAP_1&initiator=iqn.y:z",
                "iscsi://me@h/iqn.x/2?secret-env=CHAP_1&initiator=iqn.y:z",
            ),
        ] {
            let address = IscsiAddress::parse(text).unwrap();
            assert_eq!(address.to_string(), shown, "{text}");
            assert_eq!(IscsiAddress::parse(shown).unwrap(), address, "{text}");
        }
    }

    #[test]
    fn bad_addresses_are_refused_with_the_word_that_is_wrong() {
        for (text, word) in [
            ("iscsi://host", "'host'"),
            ("iscsi://host/iqn.x", "'host/iqn.x'"),
            ("iscsi://host/iqn.x/a", "'a'"),
            ("iscsi://host/iqn.x/16384", "'16384'"),
            ("iscsi://host/iqn.x/1/2", "'1/2'"),
            ("iscsi://host//1", "''"),
            ("iscsi://host:x/iqn.x/1", "'host:x'"),
            ("iscsi://me@host/iqn.x/1", "'me'"),
            ("iscsi://@host/iqn.x/1?secret-env=A", "''"),
            ("iscsi://host/iqn.x/1?secret-env=A", "'secret-env=A'"),
            ("iscsi://me@host/iqn.x/1?secret-env=A-B", "'secret-env=A-B'"),
            ("iscsi://me@host/iqn.x/1?secret-file=relative", "'secret-file=relative'"),
            ("iscsi://host/iqn.x/1?bogus=1", "'bogus=1'"),
        ] {
            let error = IscsiAddress::parse(text).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(text), "{text}: {error}");
        }
    }

    #[test]
    fn a_secret_is_refused_and_not_repeated() {
        for text in [
            "iscsi://me%hunter2@host/iqn.x/1",
            "iscsi://me%hunter2@host/iqn.x/1?bogus",
            "iscsi://me%hunter2@host",
            "iscsi://me:hunter2@host/iqn.x/1",
            "iscsi://me%hun@ter2@host/iqn.x/1",
            "iscsi://me%hun/ter2@host/iqn.x/1",
        ] {
            let error = format!("{0} {0:?}", IscsiAddress::parse(text).unwrap_err());
            assert!(!error.contains("hun") && !error.contains("ter2"), "{error}");
            assert!(error.contains("secret-file"), "{error}");
        }
    }
}
