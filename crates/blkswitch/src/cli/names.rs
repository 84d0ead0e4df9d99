//! Names of devices on the command line: name, path, UUID or number, and libdm's escaping of names.
//!
//! Contract: pure. Names are returned in their stored form, with `\xNN` for characters that the
//! kernel's names should not contain.

use super::failure::{Failure, Subject};
use super::options::{Mangling, Options};
use crate::raw;

/// Folders of device nodes. A name may have either as its prefix.
pub(super) const DEVICE_FOLDERS: [&str; 2] = ["/dev/blkswitch/", "/dev/mapper/"];

/// A device, in the way that the user named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Selector {
    /// By name, in the stored form.
    Name(String),
    /// By uuid, in the stored form.
    Uuid(String),
    /// By major and minor number.
    Number([u32; 2]),
}

impl Selector {
    /// The device of the first positional argument, or else of `-u` or `-j -m`.
    pub(super) fn of(name: Option<&str>, options: &Options) -> Result<Self, Failure> {
        match Self::optional(name, options)? {
            Some(selector) => Ok(selector),
            None => Err(Failure::message("No device specified.")),
        }
    }

    /// As [`Selector::of`], but `None` if no device is named. Verbs take that for all devices.
    pub(super) fn optional(name: Option<&str>, options: &Options) -> Result<Option<Self>, Failure> {
        if let Some(name) = name {
            return Ok(Some(Self::Name(stored_name(name, options.manglename)?)));
        }
        if let Some(uuid) = &options.uuid {
            return Ok(Some(Self::Uuid(mangle("UUID", uuid, options.manglename)?)));
        }
        Ok(options.major.zip(options.minor).map(|(major, minor)| Self::Number([major, minor])))
    }

    /// All devices that are named, at least one.
    pub(super) fn list(names: &[String], options: &Options) -> Result<Vec<Self>, Failure> {
        if names.is_empty() {
            return Ok(vec![Self::of(None, options)?]);
        }
        names.iter().map(|name| Self::of(Some(name), options)).collect()
    }

    /// The part of an error line that names the device.
    pub(super) fn subject(&self) -> Subject {
        match self.clone() {
            Self::Name(name) => Subject { name, ..Subject::default() },
            Self::Uuid(uuid) => Subject { uuid, ..Subject::default() },
            Self::Number(devno) => Subject { devno: Some(devno), ..Subject::default() },
        }
    }
}

/// Returns whether `-u` or `-j -m` name the device, so that the first positional argument does not.
pub(super) fn named_by_switch(options: &Options) -> bool {
    options.uuid.is_some() || options.major.is_some()
}

/// The stored form of a name, or of a path to its node.
pub(super) fn stored_name(name: &str, mode: Mangling) -> Result<String, Failure> {
    let bare = DEVICE_FOLDERS.iter().find_map(|folder| name.strip_prefix(folder)).unwrap_or(name);
    if bare.is_empty() || bare.contains('/') {
        return Err(Failure::Message(format!("Device {name} not found")));
    }
    mangle("name", bare, mode)
}

/// The stored form of a new name, which is never a path.
pub(super) fn stored_new_name(name: &str, mode: Mangling) -> Result<String, Failure> {
    if name.contains('/') {
        return Err(Failure::Message(format!("Name \"{name}\" invalid. It contains \"/\".")));
    }
    if name.is_empty() {
        return Err(Failure::message("Non empty new name is required."));
    }
    mangle("name", name, mode)
}

/// Writes every character outside libdm's list as `\xNN`. Like libdm, the mode `auto` leaves a text
/// that already contains `\xNN`, and refuses a text that has both.
pub(super) fn mangle(what: &str, text: &str, mode: Mangling) -> Result<String, Failure> {
    if mode == Mangling::None {
        return Ok(text.to_owned());
    }
    let bytes = &*raw::decode(text);
    let (mut out, mut mangled, mut plain) = (String::with_capacity(text.len()), false, false);
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if mode == Mangling::Auto && is_escape(&bytes[at..]) {
            mangled = true;
            out.extend(bytes[at..at + 4].iter().copied().map(char::from));
            at += 4;
            continue;
        }
        if byte.is_ascii_alphanumeric() || b"#+-.:=@_".contains(&byte) {
            out.push(char::from(byte));
        } else {
            plain = true;
            out.push_str(&format!("\\x{byte:02x}"));
        }
        at += 1;
    }
    if mangled && plain {
        return Err(Failure::Message(format!(
            "The {what} \"{text}\" contains mixed mangled and unmangled characters or it's \
             already mangled improperly."
        )));
    }
    Ok(out)
}

/// Decodes a stored form.
pub(super) fn unmangle(stored: &str) -> String {
    let bytes = stored.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if is_escape(&bytes[at..]) {
            out.extend(u8::from_str_radix(&stored[at + 2..at + 4], 16));
            at += 4;
        } else {
            out.push(byte);
            at += 1;
        }
    }
    raw::encode(&out).into_owned()
}

fn is_escape(bytes: &[u8]) -> bool {
    matches!(bytes, [b'\\', b'x', high, low, ..]
        if high.is_ascii_hexdigit() && low.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_outside_the_list_are_written_in_hex() {
        let auto = |text| mangle("name", text, Mangling::Auto).ok();
        assert_eq!(auto("vg-lv_0.1:a=@#+").as_deref(), Some("vg-lv_0.1:a=@#+"));
        assert_eq!(auto("a b").as_deref(), Some("a\\x20b"));
        assert_eq!(auto("ä").as_deref(), Some("\\xc3\\xa4"));
        assert_eq!(auto("a\u{10fe80}").as_deref(), Some("a\\x80"));
        assert_eq!(auto("a\\x20b").as_deref(), Some("a\\x20b"));
        assert_eq!(auto("a\\x20b c"), None);
        assert_eq!(auto("a\\xg0").as_deref(), Some("a\\x5cxg0"));
        assert_eq!(mangle("name", "a\\x20b", Mangling::Hex).ok().as_deref(), Some("a\\x5cx20b"));
        assert_eq!(mangle("name", "a b", Mangling::None).ok().as_deref(), Some("a b"));
    }

    #[test]
    fn every_name_comes_back() {
        for name in ["plain", "a b", "tab\there", "ä/ö", "back\\slash", "\\x20", "a\u{10fe80}"] {
            assert_eq!(unmangle(&mangle("name", name, Mangling::Hex).unwrap()), name);
        }
        assert_eq!(unmangle("a\\x5"), "a\\x5");
    }

    #[test]
    fn a_name_may_be_a_path_into_either_folder() {
        for name in ["switch", "/dev/mapper/switch", "/dev/blkswitch/switch"] {
            assert_eq!(stored_name(name, Mangling::Auto).unwrap(), "switch");
        }
        for name in ["/dev/sda", "a/b", "/dev/mapper/a/b", "", "/dev/mapper/"] {
            let text = stored_name(name, Mangling::Auto).unwrap_err().plain();
            assert_eq!(text, format!("Device {name} not found\nCommand failed.\n"));
        }
    }
}
