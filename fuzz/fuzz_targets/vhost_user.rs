//! Sends hostile bytes as a vhost-user front end: as messages, and as memory with rings in it.
//! Nothing panics, and every request lies within the limits and the memory that was shared.
//!
//! The first byte chooses between the two.

#![no_main]

use blkswitch_io::export::vhost_user::fuzzing::read_chains;
use blkswitch_io::export::vhost_user::message::{Header, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&how, rest)) = data.split_first() else { return };
    if how & 1 == 0 {
        read_chains(rest);
        return;
    }
    let Some((header, payload)) = rest.split_first_chunk() else { return };
    let Ok(header) = Header::parse(header) else { return };
    let Some(payload) = payload.get(..header.size) else { return };
    for fds in 0..10 {
        let _ = Message::parse(&header, payload, fds);
    }
});
