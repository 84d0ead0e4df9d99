//! Common parts of this protocol's tests: a directory, and a readable notation for conversations.

use super::{Directory, ExportInfo};

/// A directory of fixed devices.
pub(super) struct Shelf(pub(super) Vec<ExportInfo>);

impl Directory for Shelf {
    fn list(&self, each: &mut dyn FnMut(&str, &str)) {
        for export in &self.0 {
            each(&export.name, &export.description);
        }
    }

    fn find(&self, name: &str) -> Option<ExportInfo> {
        match (name, &self.0[..]) {
            ("", [only]) => Some(only.clone()),
            ("", _) => None,
            _ => self.0.iter().find(|export| export.name == name).cloned(),
        }
    }

    fn instance(&self) -> u64 {
        0x1234
    }
}

/// A writable device of 1 MiB with all features, and with blocks of 512 and 4096 bytes.
pub(super) fn disk(name: &str) -> ExportInfo {
    ExportInfo {
        id: 7,
        name: name.into(),
        description: "a disk".into(),
        size_bytes: 1 << 20,
        read_only: false,
        rotational: false,
        min_block: 512,
        preferred_block: 4096,
        can_discard: true,
        can_zero: true,
        can_fast_zero: true,
        can_cache: true,
        can_multi_conn: true,
    }
}

/// Parses the notation: hex digits, `'text'`, and `[ ... ]` for bytes with their 32-bit length in
/// front.
pub(super) fn wire(notation: &str) -> Vec<u8> {
    let mut levels = vec![Vec::new()];
    let mut chars = notation.chars();
    while let Some(c) = chars.next() {
        let top = levels.last_mut().unwrap();
        match c {
            ' ' | '\n' => {}
            '\'' => {
                top.extend(chars.by_ref().take_while(|&c| c != '\'').collect::<String>().bytes())
            }
            '[' => levels.push(Vec::new()),
            ']' => {
                let inner = levels.pop().unwrap();
                let outer = levels.last_mut().expect("a ] without [");
                outer.extend((inner.len() as u32).to_be_bytes());
                outer.extend(inner);
            }
            high => {
                let pair = [high, chars.next().unwrap()]
                    .map(|c| c.to_digit(16).expect("hex digits") as u8);
                top.push(pair[0] << 4 | pair[1]);
            }
        }
    }
    assert_eq!(levels.len(), 1, "a [ without ]");
    levels.pop().unwrap()
}

/// Hex in groups of four bytes, so that a failing test can be read.
pub(super) fn hex(bytes: &[u8]) -> String {
    let groups = bytes
        .chunks(4)
        .map(|group| group.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    groups.collect::<Vec<_>>().join(" ")
}

#[test]
fn notation() {
    assert_eq!(wire("0001 'a b' [ff ['x']]"), b"\x00\x01a b\0\0\0\x06\xff\0\0\0\x01x");
}
