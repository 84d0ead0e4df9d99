//! The memory behind sim leaves: the data that reads return, the data that survives a power cut,
//! and the generator of all faults. All paths to it share it.
//!
//! Contract: plain data behind the one mutex of [`super::SimEngine`].

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, Weak};

use crate::sys::lock::lock;

use bytemuck::allocation::try_zeroed_vec;

use super::SECTOR;
use super::options::SimOptions;
use super::{LeafIo, MILLION};

/// A small generator (xorshift64*): the same seed gives the same disk on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Creates a generator from a seed. 0 is a valid seed.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d | 1)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end` (0 if `end` is 0).
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(end)) >> 64) as u64
    }

    /// True with a chance of `millionths`.
    pub fn chance(&mut self, millionths: u64) -> bool {
        self.below(MILLION) < millionths
    }
}

/// Versions of one sector that are not durable yet, oldest first: (order of the write, content).
type Versions = Vec<(u64, [u8; SECTOR])>;

/// The memory of one or more sim leaves.
pub(super) struct Volume {
    pub(super) random: Random,
    /// The data that reads return.
    pub(super) current: Vec<u8>,
    /// The data that survives a power cut for certain.
    stable: Vec<u8>,
    /// Versions by sector number.
    volatile: BTreeMap<usize, Versions>,
    /// Number of completed writes.
    pub(super) order: u64,
    /// Flushes under way: (queue, part), and the number of writes completed when each started.
    flushes: HashMap<(usize, u32), u64>,
    /// Sectors that cannot be read.
    pub(super) bad: Range<u64>,
}

/// The volumes that several paths lead to, by name.
static SHARED: Mutex<Vec<(String, Weak<Mutex<Volume>>)>> = Mutex::new(Vec::new());

/// The volume of a leaf: that of the other paths to it, if it is one of several, or its own. `Err`
/// if there is not enough memory for the size, which comes from a table line.
pub(super) fn open(options: &SimOptions) -> io::Result<Arc<Mutex<Volume>>> {
    let (Some(name), Some(_)) = (&options.name, &options.path) else {
        return Ok(Arc::new(Mutex::new(Volume::new(options)?)));
    };
    let mut shared = lock(&SHARED);
    shared.retain(|(_, volume)| volume.strong_count() > 0);
    let known =
        shared.iter().find(|(other, _)| other == name).and_then(|(_, volume)| volume.upgrade());
    if let Some(volume) = known {
        return Ok(volume);
    }
    let volume = Arc::new(Mutex::new(Volume::new(options)?));
    shared.push((name.clone(), Arc::downgrade(&volume)));
    Ok(volume)
}

impl Volume {
    fn new(options: &SimOptions) -> io::Result<Volume> {
        // These zeroes take no memory until they are used. A copy would touch them all.
        let zeroes = || {
            let memory = usize::try_from(options.bytes).ok().map(try_zeroed_vec);
            memory.and_then(Result::ok).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
        };
        Ok(Volume {
            random: Random::new(options.seed),
            current: zeroes()?,
            stable: zeroes()?,
            volatile: BTreeMap::new(),
            order: 0,
            flushes: HashMap::new(),
            bad: 0..0,
        })
    }

    /// Simulates a power cut: durable data stays, and of the rest each sector is kept or lost as
    /// `seed` decides.
    pub(super) fn power_cut(&mut self, seed: u64) -> Vec<u8> {
        let mut random = Random::new(seed);
        let mut image = self.stable.clone();
        for (sector, versions) in std::mem::take(&mut self.volatile) {
            // Any of the versions may have reached the medium, or none.
            let pick = random.below(versions.len() as u64 + 1) as usize;
            if let Some((_, content)) = versions.get(pick) {
                image[sector * SECTOR..(sector + 1) * SECTOR].copy_from_slice(content);
            }
        }
        self.flushes.clear();
        self.current.clone_from(&image);
        self.stable.clone_from(&image);
        image
    }

    /// A flush starts: it will cover the writes that are completed now.
    pub(super) fn start_flush(&mut self, io: &LeafIo) {
        self.flushes.insert((io.queue, io.part), self.order);
    }

    /// Ends a flush. Returns the number of writes that it covers.
    pub(super) fn end_flush(&mut self, io: &LeafIo) -> Option<u64> {
        self.flushes.remove(&(io.queue, io.part))
    }

    /// Carries out a write. A failed one is carried out up to an arbitrary sector, and is not
    /// durable even with `fua`.
    pub(super) fn write(&mut self, offset: usize, mut data: Vec<u8>, fua: bool, failed: bool) {
        if failed {
            let sectors = self.random.below((data.len() / SECTOR) as u64 + 1);
            data.truncate(sectors as usize * SECTOR);
        }
        self.current[offset..offset + data.len()].copy_from_slice(&data);
        self.order += 1;
        for (n, content) in data.as_chunks::<SECTOR>().0.iter().enumerate() {
            let sector = offset / SECTOR + n;
            if fua && !failed {
                self.volatile.remove(&sector);
                self.stable[sector * SECTOR..(sector + 1) * SECTOR].copy_from_slice(content);
            } else {
                self.volatile.entry(sector).or_default().push((self.order, *content));
            }
        }
    }

    /// Makes the writes completed up to `order` durable.
    pub(super) fn settle(&mut self, order: u64) {
        let stable = &mut self.stable;
        self.volatile.retain(|sector, versions| {
            let settled = versions.iter().take_while(|(written, _)| *written <= order).count();
            if let Some((_, content)) = settled.checked_sub(1).and_then(|last| versions.get(last)) {
                stable[sector * SECTOR..(sector + 1) * SECTOR].copy_from_slice(content);
            }
            versions.drain(..settled);
            !versions.is_empty()
        });
    }
}
