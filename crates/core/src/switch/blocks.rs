//! Reads `:<digit>` arguments, the form in which a whole map is sent, eight at a time.
//!
//! Eight arguments, each with one separator before it (a blank, or the NUL of a kernel's splitter),
//! are 24 bytes of a known pattern. Every third byte is a digit. As 3 and 8 have no common factor,
//! the digits of the pattern's three words lie at different bytes. Or-ed together they are one word
//! of eight digits in a known order (argument k at byte (3 k + 2) mod 8). The code checks all eight
//! at once for digits and for paths, and computes their differences from round robin. Then it
//! gathers them and stores them in the region table 8, 16 or 32 bits at a time.
//!
//! Contract: it takes only complete, correct blocks, and leaves all other text and all errors to
//! slower code. It serves up to 16 paths, whose numbers have one digit. No allocation, no panic.

use super::geometry::Geometry;
use super::hex::{self, ONES, TOPS};
use super::message::{EditSink, Message};

/// Arguments in a block.
const BLOCK: u64 = 8;
/// Most paths with numbers of one digit.
const MAX_BLOCK_PATHS: u32 = 16;
/// Masks of the digits in the three words of a block.
const DIGITS: [u64; 3] = [0x0000_ff00_00ff_0000, 0x00ff_0000_ff00_00ff, 0xff00_00ff_0000_ff00];
/// The three words of a block with digits of 0 bytes.
const fn pattern(separator: u8) -> [u64; 3] {
    let s = separator;
    [
        u64::from_le_bytes([s, b':', 0, s, b':', 0, s, b':']),
        u64::from_le_bytes([0, s, b':', 0, s, b':', 0, s]),
        u64::from_le_bytes([b':', 0, s, b':', 0, s, b':', 0]),
    ]
}

/// Applies the blocks at the start of `text` and returns the rest.
#[inline]
pub(super) fn run<'a, const SEPARATOR: u8, T: EditSink>(
    message: &mut Message,
    table: &T,
    text: &'a [u8],
) -> &'a [u8] {
    let geometry = table.geometry();
    let num_paths = geometry.num_paths();
    // The set-up for blocks takes some work, so first check that there is one.
    match text.first_chunk::<24>() {
        Some(block)
            if block[1] == b':'
                && num_paths <= MAX_BLOCK_PATHS
                && paths::<SEPARATOR>(block, u64::from(num_paths)).is_some() => {}
        _ => return text,
    }
    match geometry.entry_bits() {
        1 => blocks::<1, SEPARATOR, T>(message, table, text),
        2 => blocks::<2, SEPARATOR, T>(message, table, text),
        _ => blocks::<4, SEPARATOR, T>(message, table, text),
    }
}

fn blocks<'a, const BITS: u32, const SEPARATOR: u8, T: EditSink>(
    message: &mut Message,
    table: &T,
    text: &'a [u8],
) -> &'a [u8] {
    let geometry = table.geometry();
    let first = message.index().wrapping_add(1);
    let mut room = geometry.nr_regions().saturating_sub(first);
    let mut lanes = Lanes::new(geometry, first);
    let mut writer = Writer::new(table, first);
    let mut rest = text;
    while room >= BLOCK {
        let Some((block, after)) = rest.split_first_chunk::<24>() else { break };
        // The last digit must be the end of its argument.
        if after.first() != Some(&SEPARATOR) {
            break;
        }
        let Some(paths) = paths::<SEPARATOR>(block, lanes.num_paths) else { break };
        writer.append(8 * BITS, gather::<BITS>(lanes.entries(paths)));
        room = room.wrapping_sub(BLOCK);
        rest = after;
    }
    writer.finish();
    message.advance(geometry.nr_regions().saturating_sub(first).wrapping_sub(room));
    rest
}

/// The paths of a block, a byte each; `None` if it has another pattern or a path is not below
/// `num_paths`.
#[inline]
fn paths<const SEPARATOR: u8>(block: &[u8; 24], num_paths: u64) -> Option<u64> {
    let (a, rest) = block.split_first_chunk::<8>()?;
    let (b, rest) = rest.split_first_chunk::<8>()?;
    let (c, _) = rest.split_first_chunk::<8>()?;
    let (a, b, c) = (u64::from_le_bytes(*a), u64::from_le_bytes(*b), u64::from_le_bytes(*c));
    let pattern = const { pattern(SEPARATOR) };
    let others = (a & !DIGITS[0] ^ pattern[0])
        | (b & !DIGITS[1] ^ pattern[1])
        | (c & !DIGITS[2] ^ pattern[2]);
    let text = a & DIGITS[0] | b & DIGITS[1] | c & DIGITS[2];
    let (values, others_among_digits) = hex::digits_of(text);
    let too_large = values.wrapping_add(ONES.wrapping_mul(0x80u64.wrapping_sub(num_paths)));
    if others | others_among_digits | (too_large & TOPS) == 0 { Some(values) } else { None }
}

/// The round-robin paths of a block's eight regions, a byte each, in the order of the block's
/// digits.
struct Lanes {
    /// At most 16.
    num_paths: u64,
    round_robin: u64,
    step: u64,
}

impl Lanes {
    #[inline]
    fn new(geometry: &Geometry, first: u64) -> Self {
        let mut round_robin = 0u64;
        let mut argument = 0u64;
        while argument < BLOCK {
            let path = u64::from(geometry.default_path(first.wrapping_add(argument)));
            let byte = argument.wrapping_mul(3).wrapping_add(2) & 7;
            round_robin |= path.wrapping_shl((byte as u32).wrapping_mul(8));
            argument = argument.wrapping_add(1);
        }
        let step = ONES.wrapping_mul(u64::from(geometry.default_path(BLOCK)));
        Self { num_paths: u64::from(geometry.num_paths()), round_robin, step }
    }

    /// Returns the entries for these paths and goes on to the next block.
    #[inline]
    fn entries(&mut self, paths: u64) -> u64 {
        let entries = self.reduce(
            paths.wrapping_add(ONES.wrapping_mul(self.num_paths)).wrapping_sub(self.round_robin),
        );
        self.round_robin = self.reduce(self.round_robin.wrapping_add(self.step));
        entries
    }

    /// Reduces every byte modulo the number of paths. Each is below twice that number.
    #[inline]
    fn reduce(&self, bytes: u64) -> u64 {
        let too_large =
            bytes.wrapping_add(ONES.wrapping_mul(0x80u64.wrapping_sub(self.num_paths))) >> 7 & ONES;
        bytes.wrapping_sub(too_large.wrapping_mul(self.num_paths))
    }
}

/// Packs the entries of a block, `BITS` bits each.
///
/// In each of the block's words the digits are three bytes apart. One multiplication moves three of
/// them next to each other at bit 48. No other term reaches that place: with entries x, y, z at
/// bits 0, 24, 48 the product's other terms are x 2^(2 BITS), x 2^(24 + BITS), y 2^(24 + 2 BITS),
/// which end below bit 36 and overlap nowhere, and terms past bit 64.
#[inline]
fn gather<const BITS: u32>(entries: u64) -> u64 {
    let factor = const { 1 << 48 | 1 << (24 + BITS) | 1 << (2 * BITS) };
    let from = |word: usize, byte: u32| {
        ((entries & DIGITS[word]) >> (8 * byte)).wrapping_mul(factor) >> 48
    };
    from(0, 2) | from(1, 0) << (2 * BITS) | from(2, 1) << (5 * BITS)
}

/// Writes bits to a table from one region on, in whole slots as far as possible.
pub(super) struct Writer<'a, T> {
    table: &'a T,
    slot: u64,
    /// The new bits of the slot up to `fill`; 0 above.
    word: u64,
    fill: u32,
}

impl<'a, T: EditSink> Writer<'a, T> {
    #[inline]
    pub(super) fn new(table: &'a T, first: u64) -> Self {
        let (slot, fill) = (table.geometry().slot_of(first), table.geometry().bit_of(first));
        Self { table, slot, word: table.slot(slot) & below(fill), fill }
    }

    /// Appends `count` bits, fewer than 64.
    #[inline]
    pub(super) fn append(&mut self, count: u32, bits: u64) {
        self.word |= bits.wrapping_shl(self.fill);
        let fill = self.fill.wrapping_add(count);
        if fill >= u64::BITS {
            self.table.store_slot(self.slot, self.word);
            self.slot = self.slot.wrapping_add(1);
            // Shifts down by 64 - fill in two steps, because that may be 64.
            self.word = (bits >> 1).wrapping_shr(63u32.wrapping_sub(self.fill));
        }
        self.fill = fill & (u64::BITS - 1);
    }

    #[inline]
    pub(super) fn finish(self) {
        let above = self.table.slot(self.slot) & !below(self.fill);
        self.table.store_slot(self.slot, self.word | above);
    }
}

/// A mask of the bits below `bit`, which is below 64.
#[inline]
const fn below(bit: u32) -> u64 {
    1u64.wrapping_shl(bit).wrapping_sub(1)
}
