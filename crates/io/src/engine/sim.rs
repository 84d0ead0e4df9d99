//! The sim engine: memory that misbehaves from a seed. Product code: a leaf `sim:SIZE[,option...]` for trying out
//! what faults do, and the disk under our own simulation.
//!
//! It delays and reorders completions, fails operations, tears failed writes at sector boundaries, cuts transfers
//! short, interrupts operations before they do anything, may be unable to discard or zero, and has a volatile cache: a completed write is stable only once a flush that started after its completion has succeeded,
//! or when it was FUA. [`SimEngine::power_cut`] keeps what is stable plus an arbitrary choice of the rest.
//!
//! One mutex per leaf: the engine is for tests, its speed is of no interest.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{LeafIo, LeafOp, Submitted};
use crate::leaf::{LeafError, parse_size};
use crate::ring::Ring;

const SECTOR: usize = 512;
/// Chances are given in millionths.
const MILLION: u64 = 1_000_000;
/// Logical block sizes that disks have; the first is the default.
const BLOCK_SIZES: [u32; 2] = [512, 4096];

/// What a sim leaf does and how badly.
#[derive(Clone, Debug, PartialEq)]
pub struct SimOptions {
    /// Size in bytes.
    pub bytes: u64,
    /// Two addresses with one name are one leaf.
    pub name: Option<String>,
    /// Everything it does follows from this.
    pub seed: u64,
    /// Completions come this much later, in ns: at random between the two.
    pub delay_ns: (u64, u64),
    /// Chance that a read, write, discard or zero fails, in millionths.
    pub errors: u64,
    /// Chance that a flush fails, in millionths.
    pub flush_errors: u64,
    /// Chance that a read or write of several sectors ends early, in millionths.
    pub short: u64,
    /// Chance that an operation is interrupted (EINTR, EAGAIN) before it did anything, in millionths.
    pub interrupts: u64,
    /// Cannot make single writes stable.
    pub no_fua: bool,
    /// Cannot discard.
    pub no_discard: bool,
    /// Cannot zero without being sent zeroes.
    pub no_zero: bool,
    /// Logical block size in bytes: smallest I/O.
    pub block: u32,
}

impl SimOptions {
    /// A well-behaved leaf of `bytes` bytes.
    pub fn new(bytes: u64, seed: u64) -> SimOptions {
        SimOptions {
            bytes,
            name: None,
            seed,
            delay_ns: (0, 0),
            errors: 0,
            flush_errors: 0,
            short: 0,
            interrupts: 0,
            no_fua: false,
            no_discard: false,
            no_zero: false,
            block: BLOCK_SIZES[0],
        }
    }

    /// Reads `SIZE[,option...]`; `address` is the whole word, for errors.
    pub fn parse(address: &str, rest: &str) -> Result<SimOptions, LeafError> {
        let mut words = rest.split(',');
        let bytes = words.next().and_then(parse_size).ok_or_else(|| LeafError::Size(address.to_string()))?;
        let mut options = SimOptions::new(bytes, 0);
        for word in words {
            let bad = |allowed| LeafError::Option { address: address.into(), option: word.into(), allowed };
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            match key {
                "name" if !value.is_empty() => options.name = Some(value.to_string()),
                "seed" => options.seed = value.parse().map_err(|_| bad("seed=NUMBER"))?,
                "delay" => {
                    let (low, high) = value.split_once("..").unwrap_or((value, value));
                    let range =
                        parse_duration(low).zip(parse_duration(high)).filter(|(low, high)| low <= high);
                    options.delay_ns =
                        range.ok_or_else(|| bad("delay=TIME or delay=TIME..TIME with ns, us, ms or s"))?;
                }
                "errors" => {
                    options.errors = parse_chance(value).ok_or_else(|| bad("errors=CHANCE from 0 to 1"))?
                }
                "flush-errors" => {
                    options.flush_errors =
                        parse_chance(value).ok_or_else(|| bad("flush-errors=CHANCE from 0 to 1"))?;
                }
                "short" => {
                    options.short = parse_chance(value).ok_or_else(|| bad("short=CHANCE from 0 to 1"))?
                }
                "interrupts" => {
                    // Not always: an operation that is always interrupted never ends.
                    let chance = parse_chance(value).filter(|chance| *chance <= MILLION / 2);
                    options.interrupts = chance.ok_or_else(|| bad("interrupts=CHANCE from 0 to 0.5"))?
                }
                "nofua" if value.is_empty() => options.no_fua = true,
                "block" => {
                    let block = value.parse().ok().filter(|block| BLOCK_SIZES.contains(block));
                    options.block = block.ok_or_else(|| bad("block=512 or block=4096"))?;
                }
                "nodiscard" if value.is_empty() => options.no_discard = true,
                "nozero" if value.is_empty() => options.no_zero = true,
                _ => {
                    return Err(bad("name=, seed=, delay=, errors=, flush-errors=, short=, interrupts=, \
                                    block=, nofua, nodiscard or nozero"));
                }
            }
        }
        Ok(options)
    }
}

impl fmt::Display for SimOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sim:{},seed={}", self.bytes, self.seed)?;
        if let Some(name) = &self.name {
            write!(f, ",name={name}")?;
        }
        if self.delay_ns != (0, 0) {
            write!(f, ",delay={}ns..{}ns", self.delay_ns.0, self.delay_ns.1)?;
        }
        let chances = [
            ("errors", self.errors),
            ("flush-errors", self.flush_errors),
            ("short", self.short),
            ("interrupts", self.interrupts),
        ];
        for (key, chance) in chances.into_iter().filter(|(_, chance)| *chance > 0) {
            write!(f, ",{key}={}", chance as f64 / MILLION as f64)?;
        }
        if self.block != BLOCK_SIZES[0] {
            write!(f, ",block={}", self.block)?;
        }
        let lacks = [(self.no_fua, ",nofua"), (self.no_discard, ",nodiscard"), (self.no_zero, ",nozero")];
        lacks.into_iter().filter(|(lacks, _)| *lacks).try_for_each(|(_, word)| f.write_str(word))
    }
}

fn parse_duration(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let scale = match &text[split..] {
        "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        _ => return None,
    };
    text[..split].parse::<u64>().ok()?.checked_mul(scale)
}

fn parse_chance(text: &str) -> Option<u64> {
    let chance = text.parse::<f64>().ok().filter(|chance| (0.0..=1.0).contains(chance))?;
    Some((chance * MILLION as f64) as u64)
}

/// A small generator (xorshift64*): the same seed gives the same disk on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed; 0 is as good as any.
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

/// Versions of one sector that no flush has made stable, oldest first: (order of the write, content).
type Versions = Vec<(u64, [u8; SECTOR])>;

struct State {
    random: Random,
    /// What reads see.
    current: Vec<u8>,
    /// What survives a power cut for certain.
    stable: Vec<u8>,
    /// By sector number.
    volatile: BTreeMap<usize, Versions>,
    /// Completed writes so far.
    order: u64,
    /// Flushes under way: (queue, part) and the writes completed when they started.
    flushes: HashMap<(usize, u32), u64>,
    errors: u64,
    flush_errors: u64,
}

/// See the module's text.
pub struct SimEngine {
    state: Mutex<State>,
    /// As it was opened; the chances of errors may have changed since.
    options: SimOptions,
}

impl SimEngine {
    /// A disk of zeroes.
    pub fn new(options: &SimOptions) -> SimEngine {
        let image = vec![0; options.bytes as usize];
        SimEngine {
            state: Mutex::new(State {
                random: Random::new(options.seed),
                current: image.clone(),
                stable: image,
                volatile: BTreeMap::new(),
                order: 0,
                flushes: HashMap::new(),
                errors: options.errors,
                flush_errors: options.flush_errors,
            }),
            options: options.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the chances of errors, in millionths (reads and writes; flushes).
    pub fn set_errors(&self, errors: u64, flush_errors: u64) {
        let mut state = self.lock();
        (state.errors, state.flush_errors) = (errors, flush_errors);
    }

    /// What reads see now.
    pub fn image(&self) -> Vec<u8> {
        self.lock().current.clone()
    }

    /// The power goes: what is stable stays, of the rest each sector is kept or lost as `seed` decides. Returns
    /// what a restart would find, and goes on from it.
    pub fn power_cut(&self, seed: u64) -> Vec<u8> {
        let mut state = self.lock();
        let mut random = Random::new(seed);
        let mut image = state.stable.clone();
        for (sector, versions) in std::mem::take(&mut state.volatile) {
            // Any of the versions may have made it, or none.
            let pick = random.below(versions.len() as u64 + 1) as usize;
            if let Some((_, content)) = versions.get(pick) {
                image[sector * SECTOR..(sector + 1) * SECTOR].copy_from_slice(content);
            }
        }
        state.flushes.clear();
        state.current.clone_from(&image);
        state.stable.clone_from(&image);
        image
    }

    pub(super) fn has_fua(&self) -> bool {
        !self.options.no_fua
    }

    pub(super) fn flush_blocking(&self) -> io::Result<()> {
        let mut state = self.lock();
        let chance = state.flush_errors;
        if state.random.chance(chance) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let order = state.order;
        state.settle(order);
        Ok(())
    }

    /// # Safety
    /// As [`super::Engine::submit`].
    pub(super) unsafe fn submit(&self, io: &LeafIo, ring: &mut Ring) -> Submitted {
        let mut state = self.lock();
        let (low, high) = self.options.delay_ns;
        let delay = low + state.random.below(high - low + 1);
        if io.op == LeafOp::Flush {
            let order = state.order;
            state.flushes.insert((io.queue, io.part), order);
        }
        ring.defer(ring.now_ns() + delay, io.part);
        Submitted::Pending
    }

    /// # Safety
    /// As [`super::Engine::submit`].
    pub(super) unsafe fn finish(&self, io: &LeafIo) -> i64 {
        let mut state = self.lock();
        if state.random.chance(self.options.interrupts) {
            state.flushes.remove(&(io.queue, io.part));
            return -i64::from(if state.random.chance(MILLION / 2) { libc::EINTR } else { libc::EAGAIN });
        }
        match io.op {
            LeafOp::Flush => return state.finish_flush(io),
            LeafOp::Discard if self.options.no_discard => return -i64::from(libc::EOPNOTSUPP),
            LeafOp::Zero { .. } if self.options.no_zero => return -i64::from(libc::EOPNOTSUPP),
            _ => {}
        }
        let (offset, mut len) = (io.offset as usize, io.len as usize);
        if offset.checked_add(len).is_none_or(|end| end > state.current.len()) {
            return -i64::from(libc::EIO);
        }
        let chance = state.errors;
        let failed = state.random.chance(chance);
        if matches!(io.op, LeafOp::Read | LeafOp::Write)
            && len > SECTOR
            && state.random.chance(self.options.short)
        {
            len = SECTOR * (1 + state.random.below((len / SECTOR - 1) as u64) as usize);
        }
        match io.op {
            LeafOp::Read if failed => {}
            LeafOp::Read => {
                // SAFETY: the caller lends `len` bytes at `data`; the range of the image was checked above.
                unsafe { std::ptr::copy_nonoverlapping(state.current[offset..].as_ptr(), io.data.0, len) };
            }
            LeafOp::Write => {
                // SAFETY: the caller lends `len` bytes at `data`.
                let data = unsafe { std::slice::from_raw_parts(io.data.0, len) }.to_vec();
                state.write(offset, data, io.fua, failed);
            }
            LeafOp::Discard | LeafOp::Zero { .. } => state.write(offset, vec![0; len], io.fua, failed),
            LeafOp::Flush => {}
        }
        if failed { -i64::from(libc::EIO) } else { len as i64 }
    }
}

impl State {
    /// A write lands. A failed one lands up to some sector: what it covers is undefined until written again.
    fn write(&mut self, offset: usize, mut data: Vec<u8>, fua: bool, failed: bool) {
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

    fn finish_flush(&mut self, io: &LeafIo) -> i64 {
        let Some(order) = self.flushes.remove(&(io.queue, io.part)) else { return -i64::from(libc::EIO) };
        let chance = self.flush_errors;
        if self.random.chance(chance) {
            return -i64::from(libc::EIO);
        }
        self.settle(order);
        0
    }

    /// Makes the writes completed up to `order` stable.
    fn settle(&mut self, order: u64) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip() {
        let text = "sim:8M,seed=7,name=a,delay=10us..2ms,errors=0.01,flush-errors=0.5,short=0.1,interrupts=0.2,\
                    nofua,nodiscard,nozero";
        let options = SimOptions::parse(text, text.strip_prefix("sim:").unwrap()).unwrap();
        assert_eq!(options.delay_ns, (10_000, 2_000_000));
        let shown = options.to_string();
        assert_eq!(SimOptions::parse(&shown, shown.strip_prefix("sim:").unwrap()).unwrap(), options);
        for bad in
            ["0", "8M,delay=5", "8M,errors=2", "8M,bogus", "8M,interrupts=1", "8M,delay=2ms..1ms", "8M,name="]
        {
            let error = SimOptions::parse("sim:x", bad).unwrap_err().to_string();
            assert!(error.contains("sim:x"), "{bad}: {error}");
        }
    }

    #[test]
    fn only_flushed_and_fua_writes_survive_for_certain() {
        let engine = SimEngine::new(&SimOptions::new(4096, 1));
        let mut state = engine.lock();
        state.write(0, vec![1; 512], false, false);
        let order = state.order;
        state.settle(order);
        state.write(512, vec![2; 512], true, false);
        state.write(1024, vec![3; 512], false, false);
        drop(state);
        let mut lost = 0;
        for seed in 0..32 {
            let engine = SimEngine::new(&SimOptions::new(4096, 1));
            let mut state = engine.lock();
            state.write(0, vec![1; 512], false, false);
            let order = state.order;
            state.settle(order);
            state.write(512, vec![2; 512], true, false);
            state.write(1024, vec![3; 512], false, false);
            drop(state);
            let image = engine.power_cut(seed);
            assert_eq!((image[0], image[512]), (1, 2));
            lost += usize::from(image[1024] == 0);
        }
        assert!((1..32).contains(&lost), "an unflushed write is sometimes lost, sometimes not: {lost}");
    }
}
