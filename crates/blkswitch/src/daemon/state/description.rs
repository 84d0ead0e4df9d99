//! The description of the devices that are kept: JSON with a checksum in it.
//!
//! The checksum is that of the text with zeroes in its own place. So any change is noticed, also
//! one that would read as another table. A person who changes the text on purpose puts the new
//! checksum in, which the refusal says.
//!
//! Contract: pure. The version before had no checksum, and named maps by their files alone; it is
//! read, and replaced when something is saved.

use std::collections::HashSet;
use std::io::{self, ErrorKind};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::checksum;
use crate::protocol::LeafCache;

/// Version of the description: others than this and [`OLD`] are refused.
const VERSION: u32 = 2;
/// The version before.
const OLD: u32 = 1;
/// What the kernel calls its life since it was started: numbers of disks mean nothing in another.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";
/// In the place of a checksum while it is made.
const NO_CHECKSUM: &str = "0000000000000000";
/// What stands before the checksum.
const FIELD: &[u8] = b"\"checksum\": \"";

/// The devices that are kept, what is below first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    version: u32,
    #[serde(default)]
    checksum: String,
    /// In which life of the machine.
    #[serde(default)]
    boot: String,
    /// The devices.
    pub devices: Vec<SavedDevice>,
    /// Maps of devices that are described no more, and that were in use still: nobody will come
    /// for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unused: Vec<SavedMap>,
}

/// A device as it is made again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedDevice {
    /// Its name.
    pub name: String,
    /// Its uuid; empty if it has none.
    pub uuid: String,
    /// Its number.
    pub minor: u32,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether its gate is closed.
    pub suspended: bool,
    /// How its leaves are opened.
    pub cache: LeafCache,
    /// Its live table.
    pub table: String,
    /// The files of the maps, one per switch segment.
    pub maps: Vec<SavedMap>,
    /// The ublk driver's number of the disk, if it is one itself.
    pub disk: Option<u32>,
    /// Bytes of the logical blocks that users were told of; 0 where that was not saved.
    #[serde(default)]
    pub block: u32,
}

/// A map of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "MapText", into = "MapText")]
pub struct SavedMap {
    /// The name of its file.
    pub file: PathBuf,
    /// Its own number, in hexadecimal digits; nothing of a map of the format without a header.
    pub id: Option<String>,
    /// How often it was changed when that was written: the file has this generation or a later one.
    pub generation: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum MapText {
    Name(PathBuf),
    Map(MapFields),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MapFields {
    file: PathBuf,
    id: String,
    generation: u64,
}

impl From<MapText> for SavedMap {
    fn from(text: MapText) -> SavedMap {
        match text {
            MapText::Name(file) => SavedMap { file, id: None, generation: 0 },
            MapText::Map(MapFields { file, id, generation }) => {
                SavedMap { file, id: Some(id), generation }
            }
        }
    }
}

impl From<SavedMap> for MapText {
    fn from(map: SavedMap) -> MapText {
        let SavedMap { file, id, generation } = map;
        match id {
            Some(id) => MapText::Map(MapFields { file, id, generation }),
            None => MapText::Name(file),
        }
    }
}

impl SavedMap {
    /// Errors: a name that leads out of the folder, or to something else in it.
    pub fn check_name(&self) -> io::Result<()> {
        let is_map = |name: &str| name.starts_with(super::MAP) && !name.contains('/');
        if self.file.to_str().is_some_and(is_map) {
            return Ok(());
        }
        Err(damaged(format!("'{}' is not the name of a region map's file", self.file.display())))
    }
}

impl State {
    /// Of these devices, in this life of the machine.
    pub fn new(devices: Vec<SavedDevice>) -> State {
        let checksum = NO_CHECKSUM.into();
        State { version: VERSION, checksum, boot: boot(), devices, unused: Vec::new() }
    }

    /// The maps of the devices.
    pub fn maps(&self) -> impl Iterator<Item = &SavedMap> {
        self.devices.iter().flat_map(|device| &device.maps)
    }

    /// The files of the maps.
    pub fn files(&self) -> HashSet<PathBuf> {
        self.maps().map(|map| map.file.clone()).collect()
    }

    /// Whether the devices are the same, whatever has become of their maps since. Another life of
    /// the machine matters only to disks.
    pub fn is_as_good_as(&self, other: &State) -> bool {
        let without = |state: &State| {
            let mut devices = state.devices.clone();
            devices
                .iter_mut()
                .flat_map(|device| &mut device.maps)
                .for_each(|map| map.generation = 0);
            devices
        };
        let has_disks = self.devices.iter().any(|device| device.disk.is_some());
        without(self) == without(other) && (self.boot == other.boot || !has_disks)
    }

    /// The numbers of disks mean nothing if the machine was started anew since.
    pub fn without_gone_disks(mut self) -> State {
        if self.boot != boot() {
            self.devices.iter_mut().for_each(|device| device.disk = None);
        }
        self
    }

    /// Whether it was read from a description without a checksum.
    pub fn is_old(&self) -> bool {
        self.version == OLD
    }

    /// As it is written.
    pub fn to_text(&self) -> io::Result<Vec<u8>> {
        let state = State { version: VERSION, checksum: NO_CHECKSUM.into(), ..self.clone() };
        let mut text = serde_json::to_vec_pretty(&state)?;
        text.push(b'\n');
        let sum = checksum::of(&text);
        if let Some(place) = place(&text) {
            text[place].copy_from_slice(format!("{sum:016x}").as_bytes());
        }
        Ok(text)
    }

    /// Errors: it is damaged, or of another version.
    pub fn from_text(text: &[u8]) -> io::Result<State> {
        /// What every version has.
        #[derive(Deserialize)]
        struct Any {
            version: u32,
        }
        let any: Any = serde_json::from_slice(text)?;
        if any.version != VERSION && any.version != OLD {
            let text = format!(
                "version {} where {OLD} and {VERSION} are understood: a newer blkswitch wrote it",
                any.version
            );
            return Err(damaged(text));
        }
        let state: State = serde_json::from_slice(text)?;
        if state.version == OLD && state.checksum.is_empty() {
            return Ok(state);
        }
        let mut zeroed = text.to_vec();
        if let Some(place) = place(&zeroed) {
            zeroed[place].copy_from_slice(NO_CHECKSUM.as_bytes());
        }
        let sum = format!("{:016x}", checksum::of(&zeroed));
        if state.version != VERSION || state.checksum != sum {
            let text = format!(
                "its checksum is '{}' and its content has '{sum}': it was damaged, or changed by \
                 hand. If every word of it is as it should be, put '{sum}' in as the checksum",
                state.checksum
            );
            return Err(damaged(text));
        }
        Ok(state)
    }
}

/// Where the digits of the checksum are.
fn place(text: &[u8]) -> Option<std::ops::Range<usize>> {
    let at = text.windows(FIELD.len()).position(|window| window == FIELD)? + FIELD.len();
    let end = at + NO_CHECKSUM.len();
    (end <= text.len()).then_some(at..end)
}

/// Empty where the kernel does not say.
fn boot() -> String {
    std::fs::read_to_string(BOOT).map(|text| text.trim().to_owned()).unwrap_or_default()
}

fn damaged(text: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let map = SavedMap { file: "map-0".into(), id: Some("00ff".into()), generation: 3 };
        State::new(vec![SavedDevice {
            name: "a".into(),
            uuid: String::new(),
            minor: 3,
            read_only: false,
            suspended: true,
            cache: LeafCache::Direct,
            table: "0 1 error\n".into(),
            maps: vec![map],
            disk: Some(7),
            block: 512,
        }])
    }

    #[test]
    fn any_changed_bit_is_noticed() {
        let text = state().to_text().unwrap();
        assert_eq!(State::from_text(&text).unwrap().devices, state().devices);
        for bit in 0..text.len() * 8 {
            let mut other = text.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(State::from_text(&other).is_err(), "{}", String::from_utf8_lossy(&other));
        }
        for len in 0..text.len() - 1 {
            assert!(State::from_text(&text[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn the_checksum_of_what_was_changed_on_purpose_is_said() {
        let text = String::from_utf8(state().to_text().unwrap()).unwrap();
        let text = text.replace("0 1 error", "0 1 zero");
        let refusal = State::from_text(text.as_bytes()).unwrap_err().to_string();
        let sum = |nth| refusal.split('\'').nth(nth).unwrap();
        let mended = text.replace(sum(1), sum(3));
        let read = State::from_text(mended.as_bytes()).unwrap();
        assert_eq!(read.devices[0].table, "0 1 zero\n");
    }

    #[test]
    fn the_version_before_is_read_and_a_newer_one_is_refused() {
        let old = r#"{"version": 1, "boot": "b", "devices": [{"name": "a", "uuid": "", "minor": 0,
            "read_only": false, "suspended": false, "cache": "auto", "table": "0 1 error",
            "maps": ["map-3"], "disk": 2}]}"#;
        let state = State::from_text(old.as_bytes()).unwrap();
        assert!(state.is_old());
        let device = &state.without_gone_disks().devices[0];
        assert_eq!((device.maps[0].file.to_str(), device.disk), (Some("map-3"), None));
        assert_eq!(device.maps[0].id, None);
        let newer = old.replace("\"version\": 1", "\"version\": 3");
        let refusal = State::from_text(newer.as_bytes()).unwrap_err().to_string();
        assert!(refusal.contains("version 3 where 1 and 2"), "{refusal}");
    }

    #[test]
    fn maps_are_files_of_the_folder() {
        let map = |file: &str| SavedMap { file: file.into(), id: None, generation: 0 };
        assert!(map("map-0").check_name().is_ok());
        for name in ["../map-0", "map-0/../../x", "devices.json", "/map-0", ""] {
            assert!(map(name).check_name().is_err(), "{name}");
        }
    }
}
