//! The naive model: a `Vec` with the path of each region. Property tests, fuzzers and the
//! simulation compare the implementation with it. So it is written to be obviously right: no
//! packing, no reciprocals, no shortcuts, and none of the crate's code.
//!
//! Contract: it is built only with the feature `model`, which needs std. It may panic.

pub mod multipath;

use std::format;
use std::string::String;
use std::vec::Vec;

/// The path of every region of one switch target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// Path of each region.
    pub paths: Vec<u32>,
    num_paths: u32,
    region_size: u32,
}

impl Model {
    /// A model in its first state, round robin.
    #[must_use]
    pub fn new(len_sectors: u64, num_paths: u32, region_size: u32) -> Self {
        let regions = len_sectors.div_ceil(u64::from(region_size));
        let paths = (0..regions).map(|region| (region % u64::from(num_paths)) as u32).collect();
        Self { paths, num_paths, region_size }
    }

    /// The path of a sector, and the number of sectors from this one to the end of its region.
    #[must_use]
    pub fn route(&self, sector: u64) -> (u32, u64) {
        let size = u64::from(self.region_size);
        (self.paths[(sector / size) as usize], size - sector % size)
    }

    /// Applies the arguments of a `set_region_mappings` message up to the first wrong one. The
    /// error is the kernel's text and the position of the argument, counted from 1.
    pub fn message(&mut self, text: &[u8]) -> Result<(), (usize, String)> {
        let mut index = 0u64;
        for (number, word) in split(text).iter().enumerate() {
            self.argument(&mut index, word).map_err(|text| (number + 1, text))?;
        }
        Ok(())
    }

    fn argument(&mut self, index: &mut u64, word: &[u8]) -> Result<(), String> {
        let invalid = || format!("invalid set_region_mappings argument: '{}'", printable(word));
        let regions = self.paths.len() as u64;
        if word[0] == b'R' || word[0] == b'r' {
            let comma = word.iter().position(|&byte| byte == b',').ok_or_else(invalid)?;
            let cycle = hex(&word[1..comma]).ok_or_else(invalid)?;
            let count = hex(&word[comma + 1..]).ok_or_else(invalid)?;
            if cycle == 0 || cycle - 1 > *index {
                let last = cycle.wrapping_sub(1);
                return Err(format!("invalid set_region_mappings cycle length: {last} > {index}"));
            }
            if u128::from(*index) + u128::from(count) >= u128::from(regions) {
                return Err(format!(
                    "invalid set_region_mappings region number: {index} + {count} >= {regions}"
                ));
            }
            for _ in 0..count {
                *index += 1;
                self.paths[*index as usize] = self.paths[(*index - cycle) as usize];
            }
            return Ok(());
        }
        let colon = word.iter().position(|&byte| byte == b':').ok_or_else(invalid)?;
        let region =
            if colon == 0 { *index + 1 } else { hex(&word[..colon]).ok_or_else(invalid)? };
        let path = hex(&word[colon + 1..]).ok_or_else(invalid)?;
        if region >= regions {
            return Err(format!(
                "invalid set_region_mappings region number: {region} >= {regions}"
            ));
        }
        if path >= u64::from(self.num_paths) {
            return Err(format!(
                "invalid set_region_mappings device: {path} >= {}",
                self.num_paths
            ));
        }
        self.paths[region as usize] = path as u32;
        *index = region;
        Ok(())
    }
}

/// The words of a text as the kernel splits them.
#[must_use]
pub fn split(text: &[u8]) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut word = None;
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b' ' | 9 | 10 | 11 | 12 | 13 | 0xa0 => words.extend(word.take()),
            b'\\' if bytes.peek().is_some() => {
                word.get_or_insert_with(Vec::new).extend(bytes.next())
            }
            _ => word.get_or_insert_with(Vec::new).push(byte),
        }
    }
    words.extend(word);
    words
}

fn hex(digits: &[u8]) -> Option<u64> {
    let mut value = None;
    for &byte in digits {
        let digit = char::from(byte).to_digit(16)?;
        value = Some((value.unwrap_or(0u128) * 16 + u128::from(digit)) % (1 << 64));
    }
    value.map(|value| value as u64)
}

fn printable(word: &[u8]) -> String {
    let mut text = String::new();
    for &byte in word {
        if (b' '..=b'~').contains(&byte) && byte != b'\\' {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}
