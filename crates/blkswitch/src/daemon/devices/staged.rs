//! Long messages that expect a generation of the map.
//!
//! Such a message is all or nothing, and may be longer than memory. So it is applied to a copy of
//! the map while it arrives. If the map still has the generation at the end, the regions that
//! differ are changed. The message lock is held for the copy and for the changes, but not while a
//! client sends.
//!
//! Contract: as [`super`]. Memory is bounded by the size of the map, and each device has one such
//! message at a time.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use blkswitch_core::args::Words;
use blkswitch_core::map::diff::Diff;
use blkswitch_core::switch::{Command, Map, Message, command};
use blkswitch_io::Device;
use blkswitch_io::event::Who;
use blkswitch_io::slots::Slots;

use crate::daemon::devices::Devices;
use crate::daemon::devices::following::set_all;
use crate::daemon::devices::message::{Keeping, check_generation};
use crate::daemon::devices::plan::copy_of;
use crate::daemon::failure::Failure;
use crate::daemon::tables::targets::switch::bad_argument;
use crate::daemon::tables::targets::{Keeper as _, More, Text};
use crate::protocol::{Errno, MessageReply};

/// The devices that have such a message, by number.
#[derive(Debug, Default)]
pub(crate) struct Staging(Mutex<HashSet<u32>>);

/// One message. Dropping it lets the next one in.
struct Stage<'a> {
    staging: &'a Staging,
    device: u32,
}

impl Staging {
    fn begin(&self, device: u32) -> Result<Stage<'_>, Failure> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.insert(device) {
            let reason = "another long message with --if-generation is arriving: try again";
            return Err(Failure::new(Errno::Ebusy, reason));
        }
        Ok(Stage { staging: self, device })
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        self.staging.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.device);
    }
}

impl Devices {
    /// Applies a long message if the map has the generation `expected` before and after it arrives.
    pub(super) fn message_staged(
        &self,
        device: &Device,
        sector: u64,
        expected: u64,
        who: &Who,
        mut text: Text<'_>,
    ) -> Result<MessageReply, Failure> {
        let mut words = Words::new(&text.head);
        let first: Vec<u8> = words.next().map(|word| word.bytes().collect()).unwrap_or_default();
        if command(&first) != Some(Command::SetRegionMappings) {
            let reason = format!(
                "only set_region_mappings may be longer than {} bytes with --if-generation",
                text.head.len()
            );
            return Err(Failure::new(Errno::E2big, reason));
        }
        let begin = text.head.len() - words.rest().len();
        text.head.drain(..begin);
        let _stage = self.staging.begin(device.id())?;
        let copy = {
            let messenger = device.messenger(sector)?;
            check_generation(&messenger, device, expected)?;
            copy_of(messenger.map().ok_or_else(no_map)?)?
        };
        let Some(arguments) = apply(&copy, text)? else {
            // The handler that reads the message knows why it was cut off, and answers.
            return Ok(MessageReply { generation: device.generation(), ..MessageReply::default() });
        };
        let messenger = device.messenger(sector)?;
        check_generation(&messenger, device, expected)?;
        let map = messenger.map().ok_or_else(no_map)?;
        let diff = Diff::new(map, &copy).map_err(|error| {
            Failure::new(Errno::Estale, format!("another table is live meanwhile: {error}"))
        })?;
        let keeper = Keeping { devices: self, device, messenger: &messenger, who };
        keeper.begin(map)?;
        set_all(messenger.writer().ok_or_else(no_map)?, &diff);
        let generation = device.generation();
        keeper.end(map, arguments).map_err(|failure| failure.with_generation(generation))?;
        Ok(MessageReply { text: None, arguments, generation })
    }
}

fn no_map() -> Failure {
    Failure::new(Errno::Eio, "the segment has no map")
}

/// Applies the text to the copy. Returns the number of arguments; `None` if the text was cut off.
fn apply(copy: &Map<Slots>, text: Text<'_>) -> Result<Option<u64>, Failure> {
    let mut state = Message::new();
    let mut writer = copy.writer().ok_or_else(no_map)?;
    let Text { head: mut text, complete: mut last, next } = text;
    loop {
        let taken = state.apply_text(&mut writer, &text, last);
        let taken = taken.map_err(|refused| bad_argument(&text, refused))?;
        if last {
            return Ok(Some(state.arguments()));
        }
        text.drain(..taken);
        match next() {
            More::Bytes(bytes) => text.extend_from_slice(&bytes),
            More::End => last = true,
            More::Cut => return Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_one_such_message_at_a_time() {
        let staging = Staging::default();
        let one = staging.begin(7).unwrap();
        assert!(staging.begin(8).is_ok());
        assert_eq!(staging.begin(7).map(drop).unwrap_err().errno, Errno::Ebusy);
        drop(one);
        assert!(staging.begin(7).is_ok());
    }
}
