//! The description of the kept devices: JSON that contains its own checksum.
//!
//! The checksum is computed over the text with zeroes in the place of the checksum. So the daemon
//! notices any change, also one that would read as a valid table. A person who changes the text on
//! purpose puts in the new checksum, which the refusal quotes.
//!
//! Contract: pure. The previous version had no checksum and named maps by their files alone. It is
//! still read, and replaced when something is saved.

use std::collections::HashSet;
use std::io::{self, ErrorKind};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::checksum;
use crate::protocol::LeafCache;

/// Version of the description. All versions but this one and [`OLD`] are refused.
const VERSION: u32 = 2;
/// The previous version, which is still read.
const OLD: u32 = 1;
/// The kernel's identifier of the current boot. Numbers of disks are valid within one boot only.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";
/// Placeholder for the checksum while it is computed.
const NO_CHECKSUM: &str = "0000000000000000";
/// The text before the checksum.
const FIELD: &[u8] = b"\"checksum\": \"";

/// The kept devices. A device below another comes first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    version: u32,
    #[serde(default)]
    checksum: String,
    /// The boot in which it was saved.
    #[serde(default)]
    boot: String,
    /// The devices, lower ones first.
    pub devices: Vec<SavedDevice>,
    /// Maps that were in use when no device of the description had them any more. No later daemon
    /// needs them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unused: Vec<SavedMap>,
}

/// Everything that is needed to create a device again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedDevice {
    /// The name of the device.
    pub name: String,
    /// The UUID; empty if the device has none.
    pub uuid: String,
    /// The device's minor number.
    pub minor: u32,
    /// Whether the device refuses writes.
    pub read_only: bool,
    /// Whether the gate is closed.
    pub suspended: bool,
    /// The page cache mode of the leaves.
    pub cache: LeafCache,
    /// The text of the live table.
    pub table: String,
    /// The files of the maps, one per switch segment.
    pub maps: Vec<SavedMap>,
    /// The ublk driver's number of the disk; `None` if the device is not attached as a disk.
    pub disk: Option<u32>,
    /// The socket for vhost-user front ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vhost_user: Option<SavedVhostUser>,
    /// Logical block size in bytes that users were told; 0 if it was not saved.
    #[serde(default)]
    pub block: u32,
    /// The generation of the device's maps when the description was written, or after the change
    /// that it was written for. The headers of the maps may have a higher one. Daemons that do not
    /// know the field read a device that never needed it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub generation: u64,
    /// The source of the map; `None` if only messages change it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map_from: Option<String>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl SavedDevice {
    /// The generation of the device's maps, as far as this description knows it.
    pub fn known_generation(&self) -> u64 {
        self.maps.iter().map(|map| map.generation).fold(self.generation, u64::max)
    }
}

/// The socket of a device for vhost-user front ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedVhostUser {
    /// Its path, where front ends connect again.
    pub socket: PathBuf,
    /// Most virtqueues that a front end may use.
    pub queues: u16,
}

/// A map in the description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "MapText", into = "MapText")]
pub struct SavedMap {
    /// The file name, within the folder.
    pub file: PathBuf,
    /// The map's identifier in hexadecimal digits; `None` for a map in the format without a header.
    pub id: Option<String>,
    /// The generation when the description was written. The file has this generation or a later
    /// one.
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
    /// Checks the file name.
    ///
    /// Errors: it leads out of the folder, or to a file that is no map.
    pub fn check_name(&self) -> io::Result<()> {
        let is_map = |name: &str| name.starts_with(super::MAP) && !name.contains('/');
        if self.file.to_str().is_some_and(is_map) {
            return Ok(());
        }
        Err(damaged(format!("'{}' is not the name of a region map's file", self.file.display())))
    }
}

impl Description {
    /// A description of `devices` in the current boot.
    pub fn new(devices: Vec<SavedDevice>) -> Description {
        let checksum = NO_CHECKSUM.into();
        Description { version: VERSION, checksum, boot: boot(), devices, unused: Vec::new() }
    }

    /// The maps of all devices.
    pub fn maps(&self) -> impl Iterator<Item = &SavedMap> {
        self.devices.iter().flat_map(|device| &device.maps)
    }

    /// The files of the devices' maps.
    pub fn files(&self) -> HashSet<PathBuf> {
        self.maps().map(|map| map.file.clone()).collect()
    }

    /// Returns whether the devices are the same, and their generations can be found. The generation
    /// that `other` has of a map is on the medium, in the map's header. So only a higher one of the
    /// device itself must be described. The boot matters only to disks.
    pub fn is_as_good_as(&self, other: &Description) -> bool {
        let without = |state: &Description| {
            let mut devices = state.devices.clone();
            for device in &mut devices {
                device.generation = 0;
                device.maps.iter_mut().for_each(|map| map.generation = 0);
            }
            devices
        };
        let mut pairs = self.devices.iter().zip(&other.devices);
        let has_generations = pairs.all(|(saved, now)| {
            let in_headers = now.maps.iter().map(|map| map.generation).max().unwrap_or(0);
            now.generation <= saved.generation.max(in_headers)
        });
        let has_disks = self.devices.iter().any(|device| device.disk.is_some());
        has_generations
            && without(self) == without(other)
            && (self.boot == other.boot || !has_disks)
    }

    /// Drops the disks if the machine has been booted since: their numbers are not valid any more.
    pub fn without_gone_disks(mut self) -> Description {
        if self.boot != boot() {
            self.devices.iter_mut().for_each(|device| device.disk = None);
        }
        self
    }

    /// Returns whether it was read from a description without a checksum.
    pub fn is_old(&self) -> bool {
        self.version == OLD
    }

    /// The text of the description, with its checksum.
    pub fn to_text(&self) -> io::Result<Vec<u8>> {
        let state = Description { version: VERSION, checksum: NO_CHECKSUM.into(), ..self.clone() };
        let mut text = serde_json::to_vec_pretty(&state)?;
        text.push(b'\n');
        let sum = checksum::of(&text);
        if let Some(place) = place(&text) {
            text[place].copy_from_slice(format!("{sum:016x}").as_bytes());
        }
        Ok(text)
    }

    /// Parses a description.
    ///
    /// Errors: it is damaged, or of another version.
    pub fn from_text(text: &[u8]) -> io::Result<Description> {
        /// The field that every version has.
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
        let state: Description = serde_json::from_slice(text)?;
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

/// The range of the checksum's digits in `text`.
fn place(text: &[u8]) -> Option<std::ops::Range<usize>> {
    let at = text.windows(FIELD.len()).position(|window| window == FIELD)? + FIELD.len();
    let end = at + NO_CHECKSUM.len();
    (end <= text.len()).then_some(at..end)
}

/// The current boot; empty if the kernel does not tell.
fn boot() -> String {
    std::fs::read_to_string(BOOT).map(|text| text.trim().to_owned()).unwrap_or_default()
}

fn damaged(text: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> Description {
        let map = SavedMap { file: "map-0".into(), id: Some("00ff".into()), generation: 3 };
        Description::new(vec![SavedDevice {
            name: "a".into(),
            uuid: String::new(),
            minor: 3,
            read_only: false,
            suspended: true,
            cache: LeafCache::Direct,
            table: "0 1 error\n".into(),
            maps: vec![map],
            disk: Some(7),
            vhost_user: Some(SavedVhostUser { socket: "/run/a.vhost".into(), queues: 2 }),
            block: 512,
            generation: 9,
            map_from: Some("file:/run/map".into()),
        }])
    }

    #[test]
    fn any_changed_bit_is_noticed() {
        let text = state().to_text().unwrap();
        assert_eq!(Description::from_text(&text).unwrap().devices, state().devices);
        for bit in 0..text.len() * 8 {
            let mut other = text.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(Description::from_text(&other).is_err(), "{}", String::from_utf8_lossy(&other));
        }
        for len in 0..text.len() - 1 {
            assert!(Description::from_text(&text[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn the_checksum_of_what_was_changed_on_purpose_is_said() {
        let text = String::from_utf8(state().to_text().unwrap()).unwrap();
        let text = text.replace("0 1 error", "0 1 zero");
        let refusal = Description::from_text(text.as_bytes()).unwrap_err().to_string();
        let sum = |nth| refusal.split('\'').nth(nth).unwrap();
        let mended = text.replace(sum(1), sum(3));
        let read = Description::from_text(mended.as_bytes()).unwrap();
        assert_eq!(read.devices[0].table, "0 1 zero\n");
    }

    #[test]
    fn the_version_before_is_read_and_a_newer_one_is_refused() {
        let old = r#"{"version": 1, "boot": "b", "devices": [{"name": "a", "uuid": "", "minor": 0,
            "read_only": false, "suspended": false, "cache": "auto", "table": "0 1 error",
            "maps": ["map-3"], "disk": 2}]}"#;
        let state = Description::from_text(old.as_bytes()).unwrap();
        assert!(state.is_old());
        let device = &state.without_gone_disks().devices[0];
        assert_eq!((device.maps[0].file.to_str(), device.disk), (Some("map-3"), None));
        assert_eq!(device.maps[0].id, None);
        let newer = old.replace("\"version\": 1", "\"version\": 3");
        let refusal = Description::from_text(newer.as_bytes()).unwrap_err().to_string();
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
