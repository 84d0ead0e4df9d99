//! The options of a sim leaf: `SIZE[,option...]`.
//!
//! Contract: pure. `Display` writes what [`SimOptions::parse`] reads.

use std::fmt;
use std::path::PathBuf;

use super::MILLION;
use crate::engine::error::LeafError;
use crate::engine::options::parse_size;

/// Logical block sizes that disks have; the first is the default.
const BLOCK_SIZES: [u32; 2] = [512, 4096];

/// The options of a sim leaf: its size and its faults.
#[derive(Clone, Debug, PartialEq)]
pub struct SimOptions {
    /// Size of the leaf in bytes.
    pub bytes: u64,
    /// The name of the leaf. Two addresses with one name are one leaf.
    pub name: Option<String>,
    /// The seed of all random decisions.
    pub seed: u64,
    /// Range of the random delay of completions, in ns.
    pub delay_ns: (u64, u64),
    /// Chance that a read, write, discard or zero fails, in millionths.
    pub errors: u64,
    /// Chance that a flush fails, in millionths.
    pub flush_errors: u64,
    /// Chance that a read or write of several sectors ends early, in millionths.
    pub short: u64,
    /// Chance that an operation is interrupted (EINTR, EAGAIN) before it does anything, in
    /// millionths.
    pub interrupts: u64,
    /// Chance that an operation completes within its submission, in millionths.
    pub at_once: u64,
    /// Whether single writes cannot be made durable (no FUA).
    pub no_fua: bool,
    /// Whether the leaf cannot discard.
    pub no_discard: bool,
    /// Whether the leaf can only zero by writing zeroes.
    pub no_zero: bool,
    /// Logical block size in bytes: smallest I/O.
    pub block: u32,
    /// The name of this path to the memory `name`. Each path is a leaf of its own.
    pub path: Option<String>,
    /// How long an operation on a silent path takes to fail, in ns.
    pub timeout_ns: u64,
    /// While this file exists, the path is down. If the file contains the word `silent`, it is
    /// silent.
    pub cut: Option<PathBuf>,
}

/// Default of [`SimOptions::timeout_ns`]: a second.
const TIMEOUT_NS: u64 = 1_000_000_000;

impl SimOptions {
    /// A leaf of `bytes` bytes without faults.
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
            at_once: 0,
            no_fua: false,
            no_discard: false,
            no_zero: false,
            block: BLOCK_SIZES[0],
            path: None,
            timeout_ns: TIMEOUT_NS,
            cut: None,
        }
    }

    /// Parses `SIZE[,option...]`. `address` is the whole word, for errors.
    pub fn parse(address: &str, rest: &str) -> Result<SimOptions, LeafError> {
        let mut words = rest.split(',');
        let bytes = words
            .next()
            .and_then(parse_size)
            .ok_or_else(|| LeafError::Size(address.to_string()))?;
        let mut options = SimOptions::new(bytes, 0);
        for word in words {
            let bad = |allowed| LeafError::Option {
                address: address.into(),
                option: word.into(),
                allowed,
            };
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            match key {
                "name" if !value.is_empty() => options.name = Some(value.to_string()),
                "seed" => options.seed = value.parse().map_err(|_| bad("seed=NUMBER"))?,
                "delay" => {
                    let (low, high) = value.split_once("..").unwrap_or((value, value));
                    let range = parse_duration(low)
                        .zip(parse_duration(high))
                        .filter(|(low, high)| low <= high);
                    options.delay_ns = range.ok_or_else(|| {
                        bad("delay=TIME or delay=TIME..TIME with ns, us, ms or s")
                    })?;
                }
                "errors" => {
                    options.errors =
                        parse_chance(value).ok_or_else(|| bad("errors=CHANCE from 0 to 1"))?
                }
                "flush-errors" => {
                    options.flush_errors = parse_chance(value)
                        .ok_or_else(|| bad("flush-errors=CHANCE from 0 to 1"))?;
                }
                "short" => {
                    options.short =
                        parse_chance(value).ok_or_else(|| bad("short=CHANCE from 0 to 1"))?
                }
                "interrupts" => {
                    // An operation that is always interrupted would never end.
                    let chance = parse_chance(value).filter(|chance| *chance <= MILLION / 2);
                    options.interrupts =
                        chance.ok_or_else(|| bad("interrupts=CHANCE from 0 to 0.5"))?
                }
                "at-once" => {
                    options.at_once =
                        parse_chance(value).ok_or_else(|| bad("at-once=CHANCE from 0 to 1"))?
                }
                "nofua" if value.is_empty() => options.no_fua = true,
                "block" => {
                    let block = value.parse().ok().filter(|block| BLOCK_SIZES.contains(block));
                    options.block = block.ok_or_else(|| bad("block=512 or block=4096"))?;
                }
                "path" if !value.is_empty() => options.path = Some(value.to_string()),
                "timeout" => {
                    options.timeout_ns = parse_duration(value)
                        .ok_or_else(|| bad("timeout=TIME with ns, us, ms or s"))?;
                }
                "cut" if value.starts_with('/') => options.cut = Some(PathBuf::from(value)),
                "nodiscard" if value.is_empty() => options.no_discard = true,
                "nozero" if value.is_empty() => options.no_zero = true,
                _ => {
                    return Err(bad(
                        "name=, seed=, delay=, errors=, flush-errors=, short=, interrupts=, \
                                    at-once=, block=, path=, timeout=, cut=/FILE, nofua, nodiscard or nozero",
                    ));
                }
            }
        }
        if options.path.is_some() && options.name.is_none() {
            let option = options.path.unwrap_or_default();
            let allowed = "path= needs the name= of what it leads to";
            return Err(LeafError::Option { address: address.into(), option, allowed });
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
            ("at-once", self.at_once),
        ];
        for (key, chance) in chances.into_iter().filter(|(_, chance)| *chance > 0) {
            write!(f, ",{key}={}", chance as f64 / MILLION as f64)?;
        }
        if self.block != BLOCK_SIZES[0] {
            write!(f, ",block={}", self.block)?;
        }
        if let Some(path) = &self.path {
            write!(f, ",path={path}")?;
        }
        if self.timeout_ns != TIMEOUT_NS {
            write!(f, ",timeout={}ns", self.timeout_ns)?;
        }
        if let Some(file) = &self.cut {
            write!(f, ",cut={}", file.display())?;
        }
        let lacks =
            [(self.no_fua, ",nofua"), (self.no_discard, ",nodiscard"), (self.no_zero, ",nozero")];
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip() {
        let text = "sim:8M,seed=7,name=a,delay=10us..2ms,errors=0.01,flush-errors=0.5,short=0.1,interrupts=0.2,\
                    at-once=0.3,nofua,nodiscard,nozero,path=b,timeout=5ms,cut=/tmp/x";
        let options = SimOptions::parse(text, text.strip_prefix("sim:").unwrap()).unwrap();
        assert_eq!(options.delay_ns, (10_000, 2_000_000));
        let shown = options.to_string();
        assert_eq!(
            SimOptions::parse(&shown, shown.strip_prefix("sim:").unwrap()).unwrap(),
            options
        );
        for bad in [
            "0",
            "8M,delay=5",
            "8M,errors=2",
            "8M,bogus",
            "8M,interrupts=1",
            "8M,delay=2ms..1ms",
            "8M,name=",
            "8M,path=a",
            "8M,cut=x",
        ] {
            let error = SimOptions::parse("sim:x", bad).unwrap_err().to_string();
            assert!(error.contains("sim:x"), "{bad}: {error}");
        }
    }
}
