//! The header of a map's file: the device, the geometry, and the number of changes.
//!
//! Contract: pure. The header has 512 bytes; the last eight are a checksum of the rest.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, ErrorKind};

use blkswitch_core::switch::Geometry;

use super::checksum;
use super::map_file::Owner;

const MAGIC: [u8; 8] = *b"BLKSWMAP";
/// Version of the format of map files.
const FORMAT: u32 = 1;
/// Size of a header in the file.
pub(super) const HEADER_BYTES: usize = 512;
const CHECKSUM_AT: usize = HEADER_BYTES - 8;

/// The geometry that gives the words of a map their meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) regions: u64,
    region_sectors: u32,
    paths: u32,
    entry_bits: u32,
}

impl Shape {
    pub(super) fn of(geometry: &Geometry) -> Shape {
        Shape {
            regions: geometry.nr_regions(),
            region_sectors: geometry.region_size(),
            paths: geometry.num_paths(),
            entry_bits: geometry.entry_bits(),
        }
    }

    /// Number of words of a map with this shape; `None` if no map can have it.
    pub(super) fn words(&self) -> Option<usize> {
        let entries = 64_u64.checked_div(u64::from(self.entry_bits)).filter(|some| *some > 0)?;
        usize::try_from(self.regions.div_ceil(entries)).ok().filter(|words| *words < 1 << 56)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { regions, region_sectors, paths, .. } = self;
        write!(f, "{regions} regions of {region_sectors} sectors over {paths} paths")
    }
}

/// The decoded content of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Random identifier of the map. It enters the blocks' checksums, so a block of another map is
    /// detected.
    pub(super) id: u64,
    /// The device's generation when the map was changed last.
    pub(super) generation: u64,
    /// Set while a message is under way. If the daemon or the machine ends then, it stays set.
    pub(super) is_open: bool,
    pub(super) shape: Shape,
    /// Number of blocks that were written.
    pub(super) blocks: u64,
    /// Sum of the blocks' checksums.
    pub(super) sum: u64,
    /// Name of the device at the last message.
    pub(super) name: String,
    pub(super) uuid: String,
}

/// The result of looking for a copy of the header.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Copy {
    /// All bytes are zero: no header was written.
    None,
    /// Other data: the words of a file without a header, or a header with another magic number.
    Foreign,
    Damaged,
    Good(Box<Header>),
}

impl Header {
    /// The header of a new map.
    pub(super) fn new(shape: Shape, owner: &Owner) -> Header {
        let Owner { name, uuid } = owner.clone();
        // `RandomState` takes its keys from the kernel's random numbers, so each map gets another
        // identifier.
        let id = RandomState::new().build_hasher().finish();
        Header { id, generation: 0, is_open: false, shape, blocks: 0, sum: 0, name, uuid }
    }

    /// Updates the totals after a block with checksum `old` has got checksum `new`.
    pub(super) fn replace(&mut self, old: u64, new: u64) {
        self.blocks += u64::from(old == 0);
        self.sum = self.sum.wrapping_sub(old).wrapping_add(new);
    }

    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(FORMAT.to_le_bytes());
        bytes.extend(u32::from(self.is_open).to_le_bytes());
        let Shape { regions, region_sectors, paths, entry_bits } = self.shape;
        for number in [self.id, self.generation, regions, self.blocks, self.sum] {
            bytes.extend(number.to_le_bytes());
        }
        for number in [region_sectors, paths, entry_bits] {
            bytes.extend(number.to_le_bytes());
        }
        for text in [&self.name, &self.uuid] {
            let text = text.as_bytes();
            let len = u8::try_from(text.len()).unwrap_or(u8::MAX);
            bytes.push(len);
            bytes.extend(text.iter().take(usize::from(len)));
        }
        let mut block = [0; HEADER_BYTES];
        for (to, from) in block.iter_mut().take(CHECKSUM_AT).zip(&bytes) {
            *to = *from;
        }
        let sum = checksum::of(&block[..CHECKSUM_AT]);
        block[CHECKSUM_AT..].copy_from_slice(&sum.to_le_bytes());
        block
    }

    /// Decodes a copy of the header.
    ///
    /// Errors: the header has another version, so nothing can be said about it.
    pub(super) fn decode(bytes: &[u8]) -> io::Result<Copy> {
        if bytes.len() < HEADER_BYTES || !bytes.starts_with(&MAGIC) {
            let is_empty = bytes.iter().all(|byte| *byte == 0);
            return Ok(if is_empty { Copy::None } else { Copy::Foreign });
        }
        let sum = checksum::of(&bytes[..CHECKSUM_AT]).to_le_bytes();
        if bytes[CHECKSUM_AT..HEADER_BYTES] != sum {
            return Ok(Copy::Damaged);
        }
        let mut rest = Fields(&bytes[MAGIC.len()..]);
        let format = rest.u32();
        if format != FORMAT {
            let text = format!("its format is {format}, and {FORMAT} is understood");
            return Err(io::Error::new(ErrorKind::InvalidData, text));
        }
        let is_open = rest.u32() != 0;
        let [id, generation, regions, blocks, sum] = std::array::from_fn(|_| rest.u64());
        let [region_sectors, paths, entry_bits] = std::array::from_fn(|_| rest.u32());
        let shape = Shape { regions, region_sectors, paths, entry_bits };
        let (name, uuid) = (rest.text(), rest.text());
        let header = Header { id, generation, is_open, shape, blocks, sum, name, uuid };
        Ok(Copy::Good(Box::new(header)))
    }
}

/// Reads the fields of a header one after the other. Past the end it reads zeroes.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((field, rest)) = self.0.split_first_chunk() else { return [0; N] };
        self.0 = rest;
        *field
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn text(&mut self) -> String {
        let [len] = self.take();
        let (text, rest) = self.0.split_at(usize::from(len).min(self.0.len()));
        self.0 = rest;
        String::from_utf8_lossy(text).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written_and_any_changed_bit_is_noticed() {
        let shape = Shape::of(&Geometry::new(80_000, 5, 8).unwrap());
        let owner = Owner { name: "n".repeat(127), uuid: "u".repeat(129) };
        let mut header = Header::new(shape, &owner);
        (header.generation, header.is_open) = (7, true);
        header.replace(0, 9);
        header.replace(9, u64::MAX);
        assert_eq!((header.blocks, header.sum), (1, u64::MAX));
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes).unwrap(), Copy::Good(Box::new(header)));
        for bit in 0..HEADER_BYTES * 8 {
            let mut other = bytes;
            other[bit / 8] ^= 1 << (bit % 8);
            let expected = if bit < 64 { Copy::Foreign } else { Copy::Damaged };
            assert_eq!(Header::decode(&other).unwrap(), expected, "bit {bit}");
        }
    }
}
