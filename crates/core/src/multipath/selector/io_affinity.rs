//! `io-affinity`: each CPU has a path.
//!
//! A path lists its CPUs. A request takes the first path in the order of the table that lists its
//! CPU and is up. A request without such a path counts as a miss and takes any path that is up, in
//! turn.
//!
//! Fairness: the table decides which path a CPU uses; misses are spread as by `round-robin`.

use core::cmp::Ordering;
use core::fmt;

use super::super::group::Group;
use super::super::path::Path;
use super::turn;

/// Length of a mask in words of 64 bits.
const WORDS: usize = 8;
/// Number of CPUs of a mask: one cache line of bits, more than a daemon is pinned to.
pub const MAX_CPUS: u32 = 64 * WORDS as u32;
/// Most hexadecimal digits between two commas.
const CHUNK_DIGITS: usize = 8;

/// A set of CPUs, below [`MAX_CPUS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuMask([u64; WORDS]);

impl CpuMask {
    /// The set without a CPU.
    pub const NONE: Self = Self([0; WORDS]);

    /// Parses a mask like the kernel: hexadecimal, in chunks of at most 8 digits with commas
    /// between them, the highest CPUs first. `None` if it has another form, or names CPUs from
    /// [`MAX_CPUS`] on.
    ///
    /// ```
    /// use blkswitch_core::multipath::CpuMask;
    /// let mask = CpuMask::parse(b"3,00000001").unwrap();
    /// assert!(mask.contains(0) && mask.contains(32) && mask.contains(33) && !mask.contains(1));
    /// assert_eq!(mask.to_string(), "3,00000001");
    /// ```
    #[must_use]
    pub fn parse(word: &[u8]) -> Option<Self> {
        let mut mask = Self::NONE;
        for chunk in word.split(|byte| *byte == b',') {
            let mut value = 0u64;
            if chunk.is_empty() || chunk.len() > CHUNK_DIGITS {
                return None;
            }
            for &byte in chunk {
                let digit = char::from(byte).to_digit(16)?;
                value = value << 4 | u64::from(digit);
            }
            mask = mask.shifted_by_chunk()?;
            if let Some(lowest) = mask.0.first_mut() {
                *lowest |= value;
            }
        }
        Some(mask)
    }

    /// Whether the mask names this CPU.
    #[inline]
    #[must_use]
    pub fn contains(&self, cpu: u16) -> bool {
        self.0.get(usize::from(cpu / 64)).is_some_and(|word| word >> (cpu % 64) & 1 != 0)
    }

    /// Moves all CPUs up by 32; `None` if one would be beyond the end.
    fn shifted_by_chunk(self) -> Option<Self> {
        let mut carry = 0;
        let mut words = self.0;
        for word in &mut words {
            let high = *word >> 32;
            *word = *word << 32 | carry;
            carry = high;
        }
        if carry == 0 { Some(Self(words)) } else { None }
    }
}

impl fmt::Display for CpuMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chunks = self.0.iter().rev().flat_map(|word| [word >> 32, word & u64::from(u32::MAX)]);
        let mut begun = false;
        for chunk in chunks {
            if begun {
                write!(f, ",{chunk:08x}")?;
            } else if chunk != 0 {
                write!(f, "{chunk:x}")?;
                begun = true;
            }
        }
        if begun { Ok(()) } else { f.write_str("0") }
    }
}

#[inline]
pub(super) fn pick(group: &Group, paths: &[Path], cpu: u16) -> Option<u32> {
    let mut mine = paths.iter().zip(0u32..).filter(|(path, _)| path.args().cpus.contains(cpu));
    if let Some((_, place)) = mine.find(|(path, _)| path.is_up()) {
        return Some(place);
    }
    let place = turn::pick(paths, |_, _| Ordering::Equal)?;
    group.count_miss();
    Some(place)
}
