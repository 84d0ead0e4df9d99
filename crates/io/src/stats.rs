//! Counters: reads, writes, bytes, flushes, discards, errors and latencies.
//!
//! Contract: one queue thread writes a [`Counters`] (plain load, add and store, without a locked
//! instruction). Any thread may read it, relaxed. Totals are sums over the queues. Latencies are
//! counted in buckets of a quarter of a power of two, so a quantile is accurate to 25 %.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::request::Op;

/// Buckets for each power of two.
const STEPS: u32 = 4;
/// Powers of two with buckets, from 2^SHIFT ns (256 ns) up to more than a minute.
const POWERS: u32 = 28;
const SHIFT: u32 = 8;
/// Number of buckets of a histogram.
pub const BUCKETS: usize = (STEPS * POWERS) as usize;

/// The counters of one queue for a device, or for one path of it.
#[repr(C)]
pub struct Counters {
    reads: AtomicU64,
    writes: AtomicU64,
    read_bytes: AtomicU64,
    write_bytes: AtomicU64,
    flushes: AtomicU64,
    discards: AtomicU64,
    ignored_discards: AtomicU64,
    zeroes: AtomicU64,
    errors: AtomicU64,
    held: AtomicU64,
    read_latency: Latencies,
    write_latency: Latencies,
}

/// The latencies of operations of one kind.
#[repr(C)]
struct Latencies {
    sum_ns: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl Latencies {
    fn count(&self, ns: u64) {
        add(&self.sum_ns, ns);
        if let Some(bucket) = self.buckets.get(bucket(ns)) {
            add(bucket, 1);
        }
    }
}

// SAFETY: the fields are integers, and all zeroes mean that nothing was counted.
unsafe impl bytemuck::Zeroable for Counters {}

/// The kind of a counted operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A read, [`Op::Read`].
    Read,
    /// A write, [`Op::Write`].
    Write,
    /// A flush, [`Op::Flush`].
    Flush,
    /// A discard, [`Op::Discard`].
    Discard,
    /// A write of zeroes, [`Op::WriteZeroes`].
    Zeroes,
}

impl Kind {
    /// The kind as which an operation is counted.
    #[inline]
    pub fn of(op: Op) -> Kind {
        match op {
            Op::Read => Kind::Read,
            Op::Write => Kind::Write,
            Op::Flush => Kind::Flush,
            Op::Discard => Kind::Discard,
            Op::WriteZeroes { .. } => Kind::Zeroes,
        }
    }
}

fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
}

/// The index of a latency's bucket.
#[inline]
fn bucket(ns: u64) -> usize {
    let scaled = (ns >> (SHIFT - 2)).max(u64::from(STEPS));
    let power = scaled.ilog2();
    let step = (scaled >> (power - 2)) & u64::from(STEPS - 1);
    let index = (power - 2) * STEPS + step as u32;
    (index as usize).min(BUCKETS - 1)
}

/// The upper end of a bucket in ns.
pub fn bucket_end_ns(bucket: usize) -> u64 {
    let (power, step) = (bucket as u32 / STEPS, bucket as u64 % u64::from(STEPS));
    (u64::from(STEPS) + step + 1) << (power + SHIFT - 2)
}

impl Counters {
    /// `count` zeroed counters, allocated without touching the memory.
    pub fn boxed(count: usize) -> Box<[Counters]> {
        bytemuck::zeroed_slice_box(count)
    }

    /// Sets the number of pieces that wait for a path of the device now. Only the owning queue
    /// calls this.
    pub fn set_held(&self, held: u64) {
        self.held.store(held, Relaxed);
    }

    /// Counts a discard that a leaf has declined. Only the owning queue calls this.
    pub fn count_ignored(&self) {
        add(&self.ignored_discards, 1);
    }

    /// Counts one operation. Only the owning queue calls this.
    ///
    /// The bytes of a failed operation do not count, because it is unknown how many were moved.
    #[inline]
    pub fn count(&self, kind: Kind, bytes: u64, failed: bool, ns: u64) {
        let bytes = if failed { 0 } else { bytes };
        match kind {
            Kind::Read => {
                add(&self.reads, 1);
                add(&self.read_bytes, bytes);
                self.read_latency.count(ns);
            }
            Kind::Write => {
                add(&self.writes, 1);
                add(&self.write_bytes, bytes);
                self.write_latency.count(ns);
            }
            Kind::Flush => add(&self.flushes, 1),
            Kind::Discard => add(&self.discards, 1),
            Kind::Zeroes => add(&self.zeroes, 1),
        }
        if failed {
            add(&self.errors, 1);
        }
    }
}

/// The latencies of all queues, for reading.
#[derive(Clone, Debug)]
pub struct Histogram {
    /// The sum of all latencies in ns.
    pub sum_ns: u64,
    /// Number of operations by bucket. A bucket ends at [`bucket_end_ns`].
    pub buckets: [u64; BUCKETS],
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { sum_ns: 0, buckets: [0; BUCKETS] }
    }
}

impl Histogram {
    fn add(&mut self, latencies: &Latencies) {
        self.sum_ns = self.sum_ns.wrapping_add(latencies.sum_ns.load(Relaxed));
        for (total, bucket) in self.buckets.iter_mut().zip(&latencies.buckets) {
            *total += bucket.load(Relaxed);
        }
    }

    /// The latency in ns below which a fraction (0.5, 0.99, ...) of the operations stayed. `None`
    /// if there were no operations.
    pub fn quantile_ns(&self, fraction: f64) -> Option<u64> {
        let all: u64 = self.buckets.iter().sum();
        let mut left = (all as f64 * fraction).ceil().max(1.0) as u64;
        for (bucket, n) in self.buckets.iter().enumerate() {
            if *n >= left {
                return Some(bucket_end_ns(bucket));
            }
            left -= n;
        }
        None
    }
}

/// The counters of all queues, for reading.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Number of completed reads.
    pub reads: u64,
    /// Number of completed writes.
    pub writes: u64,
    /// Bytes of the reads that succeeded.
    pub read_bytes: u64,
    /// Bytes of the writes that succeeded.
    pub write_bytes: u64,
    /// Number of completed flushes.
    pub flushes: u64,
    /// Number of completed discards.
    pub discards: u64,
    /// Number of parts of discards that a leaf has declined.
    pub ignored_discards: u64,
    /// Number of completed write-zeroes.
    pub zeroes: u64,
    /// Number of failed operations of any kind.
    pub errors: u64,
    /// Number of pieces that wait for a path of a multipath device now.
    pub held: u64,
    /// Histogram of the latencies of reads.
    pub read_latency: Histogram,
    /// Histogram of the latencies of writes.
    pub write_latency: Histogram,
}

impl Totals {
    /// Adds the counters of one queue.
    pub fn add(&mut self, counters: &Counters) {
        for (total, counter) in [
            (&mut self.reads, &counters.reads),
            (&mut self.writes, &counters.writes),
            (&mut self.read_bytes, &counters.read_bytes),
            (&mut self.write_bytes, &counters.write_bytes),
            (&mut self.flushes, &counters.flushes),
            (&mut self.discards, &counters.discards),
            (&mut self.ignored_discards, &counters.ignored_discards),
            (&mut self.zeroes, &counters.zeroes),
            (&mut self.errors, &counters.errors),
            (&mut self.held, &counters.held),
        ] {
            *total += counter.load(Relaxed);
        }
        self.read_latency.add(&counters.read_latency);
        self.write_latency.add(&counters.write_latency);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_ordered_and_within_a_quarter() {
        let mut last = 0;
        for ns in
            (0..40).flat_map(|p| [1u64 << p, (1 << p) + (1 << p) / 3, (1 << p) + (1 << p) / 2])
        {
            let index = bucket(ns);
            assert!(index >= last || index == BUCKETS - 1, "{ns}");
            last = index;
            if (256..1 << 35).contains(&ns) {
                let end = bucket_end_ns(index);
                assert!(end > ns && end <= ns + ns / 4 + 64, "{ns} ends at {end}");
            }
        }
    }

    #[test]
    fn quantiles_of_what_was_counted() {
        let counters = Counters::boxed(1);
        for _ in 0..99 {
            counters[0].count(Kind::Read, 4096, false, 10_000);
        }
        counters[0].count(Kind::Write, 512, true, 5_000_000);
        let mut totals = Totals::default();
        totals.add(&counters[0]);
        assert_eq!((totals.reads, totals.writes, totals.errors), (99, 1, 1));
        assert_eq!((totals.read_bytes, totals.write_bytes), (99 * 4096, 0), "the write failed");
        counters[0].count(Kind::Write, 512, false, 5_000_000);
        let mut totals = Totals::default();
        totals.add(&counters[0]);
        assert_eq!((totals.write_bytes, totals.writes, totals.errors), (512, 2, 1));
        assert!((10_000..12_800).contains(&totals.read_latency.quantile_ns(0.99).unwrap()));
        assert!((5_000_000..6_500_000).contains(&totals.write_latency.quantile_ns(0.5).unwrap()));
        assert_eq!(
            (totals.read_latency.sum_ns, totals.write_latency.sum_ns),
            (990_000, 10_000_000)
        );
        assert_eq!(Totals::default().read_latency.quantile_ns(0.5), None);
    }
}
