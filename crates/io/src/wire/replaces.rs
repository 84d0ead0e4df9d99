//! `blkswitch:replaces=NAME`: a client says that a connection replaces its older ones with the same
//! NAME.
//!
//! A client that sends requests again on a new connection must know that the old connections have
//! ended. An address does not distinguish the connections of one client, and a connection that the
//! client has given up may look healthy here. So the client names the role of a connection, as
//! iSCSI names a session by its ISID. It uses LIST_META_CONTEXT, because other servers answer a
//! query of an unknown namespace with an empty list.
//!
//! Contract: pure. The answer is [`confirmation`]. Two connections with equal confirmations reach
//! the same server. The later one began when the earlier one had nothing under way any more.

use std::sync::Arc;

/// The prefix of the query.
pub const QUERY: &str = "blkswitch:replaces=";
/// Longest name in bytes.
pub const MAX_NAME: usize = 64;

/// The allowed names, for error texts.
pub const ALLOWED: &str = "1 to 64 letters, digits, dots and hyphens";

/// The name in such a query; `None` for other queries. `Some(Err)` if the name is not allowed.
pub fn name_in(query: &str) -> Option<Result<Arc<str>, &str>> {
    let name = query.strip_prefix(QUERY)?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-';
    let is_allowed = (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(is_plain);
    Some(if is_allowed { Ok(name.into()) } else { Err(name) })
}

/// The context that a server with this number answers.
pub fn confirmation(name: &str, instance: u64) -> String {
    format!("{QUERY}{name}@{instance:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        let longest = "x".repeat(MAX_NAME);
        for name in ["a", "0123-ef.15", &longest] {
            let query = format!("{QUERY}{name}");
            assert_eq!(name_in(&query), Some(Ok(name.into())));
        }
        let too_long = "x".repeat(MAX_NAME + 1);
        for name in ["", "a b", "a@1", "\u{e4}", &too_long] {
            let query = format!("{QUERY}{name}");
            assert_eq!(name_in(&query), Some(Err(name)));
        }
        assert_eq!(name_in("blkswitch:path"), None);
        assert_eq!(confirmation("a.1", 255), "blkswitch:replaces=a.1@00000000000000ff");
    }
}
