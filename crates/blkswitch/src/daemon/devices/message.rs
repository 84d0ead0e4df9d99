//! The verb `message`: applies words to a target of a device. Everything else that changes a region
//! map goes the same way.
//!
//! Contract: as [`super`]. The device's message lock is held from the first word to the last, also
//! while a long message is still arriving. The caller that supplies the text makes sure that it
//! does not stall.

use blkswitch_core::args::Words;
use blkswitch_core::switch::message::EMPTY_MESSAGE;
use blkswitch_core::switch::{Command, command};
use blkswitch_io::Device;
use blkswitch_io::device::Messenger;
use blkswitch_io::event::Who;
use blkswitch_io::table::RegionMap;

use crate::daemon::devices::Devices;
use crate::daemon::failure::Failure;
use crate::daemon::tables::targets::{self, Call, Keeper, Text};
use crate::protocol::{Errno, MessageReply};

/// Longest message to the device-mapper core. Such a message has only a few words.
const CORE_MAX_BYTES: usize = 256 << 10;

/// How a message is applied.
#[derive(Clone, Debug, Default)]
pub(crate) struct How {
    /// The message is checked whole before any of it is applied.
    pub(crate) atomic: bool,
    /// The generation that the map must have. It implies `atomic`.
    pub(crate) if_generation: Option<u64>,
    /// A map that a source supplies is changed, too.
    pub(crate) force: bool,
    /// The caller that asked.
    pub(crate) who: Who,
}

/// Saves the changes of one message to the state folder.
pub(super) struct Keeping<'a> {
    pub(super) devices: &'a Devices,
    pub(super) device: &'a Device,
    pub(super) messenger: &'a Messenger<'a>,
    pub(super) who: &'a Who,
}

impl Keeper for Keeping<'_> {
    fn begin(&self, map: &RegionMap) -> Result<(), Failure> {
        self.devices.begin_change(self.device, map, self.messenger.next_generation())
    }

    fn end(&self, map: &RegionMap, applied: u64) -> Result<(), Failure> {
        if applied > 0 {
            let (sector, who) = (self.messenger.segment().start, self.who.clone());
            self.device.remapped(sector, applied, who);
        }
        self.devices.end_change(map)
    }
}

impl Devices {
    /// Applies a message to the target that holds `sector`.
    pub(crate) fn message(
        &self,
        device: &Device,
        sector: u64,
        how: How,
        text: Text<'_>,
    ) -> Result<MessageReply, Failure> {
        let Some(first) = Words::new(&text.head).next() else {
            let failure = Failure::new(Errno::Einval, "the message has no words");
            return Err(failure.logged(EMPTY_MESSAGE));
        };
        if first.bytes().next() == Some(b'@') {
            let reply = core_message(device, &text)?;
            // The message may have cancelled a deferred removal; then the device is kept again.
            self.save_kept()?;
            return Ok(reply);
        }
        self.check_there(device)?;
        let How { atomic, if_generation, force, who } = how;
        let first: Vec<u8> = first.bytes().collect();
        if !force && command(&first) == Some(Command::SetRegionMappings) {
            self.check_not_supplied(device)?;
        }
        if let Some(expected) = if_generation.filter(|_| !text.complete) {
            return self.message_staged(device, sector, expected, &who, text);
        }
        let messenger = device.messenger(sector)?;
        if let Some(expected) = if_generation {
            check_generation(&messenger, device, expected)?;
        }
        let atomic = atomic || if_generation.is_some();
        let kind = messenger.segment().target.name();
        let takes = targets::by_name(kind.as_bytes()).and_then(|kind| kind.message);
        let Some(take) = takes else {
            let reason = format!("{kind} takes no messages");
            return Err(Failure::new(Errno::Einval, reason));
        };
        let registry = self.pool().registry();
        let keeper = Keeping { devices: self, device, messenger: &messenger, who: &who };
        let before = device.generation();
        let taken = take(Call { messenger: &messenger, registry, text, atomic, keeper: &keeper });
        let generation = device.generation();
        match taken {
            Ok(reply) => Ok(MessageReply { generation, ..reply }),
            Err(failure) if generation != before => Err(failure.with_generation(generation)),
            refused => refused,
        }
    }

    /// Applies a complete message, for tests without a client.
    #[cfg(test)]
    pub(crate) fn message_whole(
        &self,
        device: &Device,
        text: &str,
        atomic: bool,
    ) -> Result<MessageReply, Failure> {
        let next = &mut || targets::More::End;
        let how = How { atomic, ..How::default() };
        self.message(device, 0, how, Text { head: text.into(), complete: true, next })
    }
}

/// Refuses a message that expects another generation of the map.
pub(super) fn check_generation(
    messenger: &Messenger<'_>,
    device: &Device,
    expected: u64,
) -> Result<(), Failure> {
    if messenger.map().is_none() {
        let kind = messenger.segment().target.name();
        let reason = format!("{kind} has no generation: only the map of a switch has one");
        return Err(Failure::new(Errno::Einval, reason));
    }
    let generation = device.generation();
    if generation == expected {
        return Ok(());
    }
    let reason = format!("the map is no longer of generation {expected}: nothing was changed");
    Err(Failure::new(Errno::Estale, reason).with_generation(generation))
}

/// Handles a message to the device-mapper core itself.
fn core_message(device: &Device, text: &Text<'_>) -> Result<MessageReply, Failure> {
    if !text.complete {
        let reason =
            format!("a message that begins with @ may have at most {CORE_MAX_BYTES} bytes");
        return Err(Failure::new(Errno::E2big, reason));
    }
    let words: Vec<String> = Words::new(&text.head)
        .map(|word| String::from_utf8_lossy(&word.bytes().collect::<Vec<u8>>()).into_owned())
        .collect();
    let [first, rest @ ..] = words.as_slice() else { return Ok(MessageReply::default()) };
    if !first.eq_ignore_ascii_case("@cancel_deferred_remove") {
        let reason = format!(
            "'{first}' is not known here; blkswitch stats has what @stats_ messages give elsewhere"
        );
        let line = format!("Unsupported message sent to DM core: {first}");
        return Err(Failure::new(Errno::Einval, reason).logged(line));
    }
    if !rest.is_empty() {
        let failure = Failure::new(Errno::Einval, "@cancel_deferred_remove stands alone");
        return Err(failure.logged("Invalid arguments for @cancel_deferred_remove"));
    }
    device.set_deferred_remove(false);
    Ok(MessageReply::default())
}
