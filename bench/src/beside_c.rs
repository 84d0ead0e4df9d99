//! `beside-c`: measures messages and look-ups beside `c/baseline.c`, a plain switch target in C, in
//! one process and by shape: number of paths and region size.
//!
//! The figures of both sides come from the same texts and sectors, in turns, so that a change of
//! the processor's clock meets both. The maps are compared after each message.
//!
//! C gets two figures for a message: with the words split already, as a kernel's target gets them,
//! and with the splitting, which blkswitch-core's figure includes.

use crate::report::Figure;

/// Number of entries of a message, and of regions of a map.
#[cfg(baseline)]
const ENTRIES: u64 = 1_000_000;
#[cfg(baseline)]
const LOOKUPS: usize = 1_000_000;

/// One shape: its measured times, in nanoseconds.
#[cfg_attr(not(baseline), allow(dead_code))]
pub(crate) struct Row {
    pub(crate) num_paths: u32,
    pub(crate) region_size: u32,
    pub(crate) measured: &'static str,
    pub(crate) ours: f64,
    /// Plain C; of a message with words that are split already.
    pub(crate) c: f64,
    /// Plain C. For a message, its words are split already.
    pub(crate) c_split: Option<f64>,
}

/// Measures all shapes, or says that this program was built without a C compiler.
#[cfg(not(baseline))]
pub(crate) fn run(_rounds: crate::report::Rounds) -> anyhow::Result<Vec<Row>> {
    anyhow::bail!(
        "this program was built on a machine without a C compiler: install cc and ar, and build it \
         again (touch bench/build.rs)"
    )
}

/// Whether this program has the C side.
pub(crate) const IS_BUILT: bool = cfg!(baseline);

/// The compiler of the C side.
pub(crate) fn compiler() -> &'static str {
    option_env!("BASELINE_COMPILER").unwrap_or("none")
}

/// The figures of rows, for the terminal.
pub(crate) fn figures(rows: &[Row]) -> Vec<Figure> {
    rows.iter()
        .flat_map(|row| {
            let name =
                format!("{}, {} paths, size {}", row.measured, row.num_paths, row.region_size);
            let times =
                |factor: f64, what: &str| Figure::new(format!("{name}, {what}"), factor, "x");
            let mut figures = vec![
                Figure::new(&name, row.ours, "ns"),
                Figure::new(format!("{name}, C"), row.c, "ns"),
                times(row.c / row.ours, "C / ours"),
            ];
            if let Some(split) = row.c_split {
                figures.push(Figure::new(format!("{name}, C that splits"), split, "ns"));
                figures.push(times(split / row.ours, "C that splits / ours"));
            }
            figures
        })
        .collect()
}

#[cfg(baseline)]
pub(crate) use measure::run;

#[cfg(baseline)]
mod measure {
    use std::fmt::Write;
    use std::hint::black_box;
    use std::time::Instant;

    use anyhow::{Context, Result, ensure};
    use blkswitch_core::switch::Message;

    use super::{ENTRIES, LOOKUPS, Row};
    use crate::beside_c::c::{Sectors, Target, Words};
    use crate::report::{LazyMap, Random, Rounds, lazy_map, writer};

    const PATHS: [u32; 8] = [2, 3, 5, 16, 40, 256, 300, 4096];
    const REGION_SIZES: [u32; 2] = [128, 30_720];

    pub(crate) fn run(rounds: Rounds) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for num_paths in PATHS {
            for (measured, text) in messages(num_paths)? {
                rows.push(message(rounds, num_paths, measured, &text)?);
            }
        }
        for region_size in REGION_SIZES {
            for num_paths in PATHS {
                rows.extend(look_up(rounds, num_paths, region_size)?);
            }
        }
        Ok(rows)
    }

    fn messages(num_paths: u32) -> Result<Vec<(&'static str, String)>> {
        let mut random = Random(1);
        let (mut next, mut indexed) = (String::from("0:0"), String::new());
        for _ in 1..ENTRIES {
            write!(next, " :{:x}", random.below(num_paths.into()))?;
            write!(indexed, " {:x}:{:x}", random.below(ENTRIES), random.below(num_paths.into()))?;
        }
        Ok(vec![("a :p of a message", next), ("an i:p of a message", indexed)])
    }

    /// A map with all of its memory touched, because page faults are not measured here.
    fn touched(num_paths: u32, region_size: u32) -> Result<LazyMap> {
        let map = lazy_map(ENTRIES, num_paths, region_size)?;
        let mut writer = writer(&map);
        for region in (0..ENTRIES).step_by(2) {
            ensure!(writer.set(region, num_paths - 1), "region {region} cannot be set");
        }
        writer.reset();
        drop(writer);
        Ok(map)
    }

    fn message(rounds: Rounds, num_paths: u32, measured: &'static str, text: &str) -> Result<Row> {
        let text = text.as_bytes();
        let mut times = [const { Vec::new() }; 3];
        for _ in 0..=rounds.count {
            let map = touched(num_paths, 30_720)?;
            let mut writer = writer(&map);
            let start = Instant::now();
            let applied = Message::new().apply_text(&mut writer, black_box(text), true);
            times[0].push(start.elapsed());
            applied?;

            let mut target = Target::new(ENTRIES, num_paths, 30_720).context("no memory")?;
            let mut words = Words::new(text).context("no memory")?;
            let start = Instant::now();
            let split = words.split();
            let between = Instant::now();
            let applied = target.apply(black_box(&words));
            times[1].push(between.elapsed());
            times[2].push(start.elapsed());
            ensure!(split && applied, "{measured}: C refuses the message");
            ensure!(
                (0..ENTRIES).all(|region| map.path(region) == Some(target.path(region))),
                "{measured}, {num_paths} paths: the maps differ"
            );
        }
        let [ours, c, c_split] = times.map(|times| {
            let nanos = times.iter().map(|time| time.as_secs_f64() * 1e9 / ENTRIES as f64);
            rounds.choose(nanos.skip(1).collect())
        });
        Ok(Row { num_paths, region_size: 30_720, measured, ours, c, c_split: Some(c_split) })
    }

    fn look_up(rounds: Rounds, num_paths: u32, region_size: u32) -> Result<[Row; 2]> {
        let (map, mut target) = (
            touched(num_paths, region_size)?,
            Target::new(ENTRIES, num_paths, region_size).context("no memory")?,
        );
        let mut random = Random(num_paths.into());
        let mut text = String::from("0:0");
        for _ in 1..ENTRIES {
            write!(text, " :{:x}", random.below(num_paths.into()))?;
        }
        let applied = Message::new().apply_text(&mut writer(&map), text.as_bytes(), true);
        applied?;
        let mut words = Words::new(text.as_bytes()).context("no memory")?;
        ensure!(words.split() && target.apply(&words), "C refuses the message");
        let sectors: Vec<u64> =
            (0..LOOKUPS).map(|_| random.below(map.geometry().len_sectors())).collect();
        let mut times = [const { Vec::new() }; 4];
        for _ in 0..=rounds.count {
            let start = Instant::now();
            let ours = batch(&map, black_box(&sectors));
            times[0].push(start.elapsed());
            let start = Instant::now();
            let theirs = target.batch(&Sectors::new(black_box(&sectors)));
            times[1].push(start.elapsed());
            ensure!(ours == theirs, "{num_paths} paths, size {region_size}: the routes differ");
            let start = Instant::now();
            black_box(chain(&map, black_box(&sectors)));
            times[2].push(start.elapsed());
            let start = Instant::now();
            black_box(target.chain(&Sectors::new(black_box(&sectors))));
            times[3].push(start.elapsed());
        }
        let [batch, c_batch, chain, c_chain] = times.map(|times| {
            let nanos = times.iter().map(|time| time.as_secs_f64() * 1e9 / LOOKUPS as f64);
            rounds.choose(nanos.skip(1).collect())
        });
        let row =
            |measured, ours, c| Row { num_paths, region_size, measured, ours, c, c_split: None };
        Ok([row("a look-up of many", batch, c_batch), row("a look-up in a chain", chain, c_chain)])
    }

    #[inline(never)]
    fn batch(map: &LazyMap, sectors: &[u64]) -> u64 {
        let mut sum = 0u64;
        for &sector in sectors {
            let route = map.route(sector);
            sum += u64::from(route.path) + route.left;
        }
        sum
    }

    #[inline(never)]
    fn chain(map: &LazyMap, sectors: &[u64]) -> u64 {
        let mut before = 0;
        for &sector in sectors {
            // This is never above 0, but the compiler does not know that.
            before = u64::from(map.route(sector ^ before).path >> 31);
        }
        before
    }
}

/// `c/baseline.c`, with the types that make its functions safe to call: texts and sectors are
/// borrowed, and what the C side allocates is freed once.
#[cfg(baseline)]
mod c {
    use std::marker::PhantomData;
    use std::ptr::NonNull;

    #[repr(C)]
    struct Text<'a> {
        at: *const u8,
        len: usize,
        borrowed: PhantomData<&'a [u8]>,
    }

    #[repr(C)]
    pub(super) struct Sectors<'a> {
        at: *const u64,
        len: usize,
        borrowed: PhantomData<&'a [u64]>,
    }

    impl<'a> Sectors<'a> {
        pub(super) fn new(sectors: &'a [u64]) -> Self {
            Self { at: sectors.as_ptr(), len: sectors.len(), borrowed: PhantomData }
        }
    }

    #[repr(C)]
    struct RawTarget {
        opaque: [u8; 0],
    }

    #[repr(C)]
    struct RawWords {
        opaque: [u8; 0],
    }

    // SAFETY: the declarations are those of c/baseline.c. Only the wrappers below call them: with
    // slices that live as long as the call, and with what the `_new` functions gave, which they
    // free once. C checks regions of messages; the wrappers check the others.
    unsafe extern "C" {
        safe fn baseline_new(
            regions: u64,
            paths: u32,
            region_size: u32,
        ) -> Option<NonNull<RawTarget>>;
        safe fn baseline_free(target: NonNull<RawTarget>);
        safe fn baseline_path(target: NonNull<RawTarget>, region: u64) -> u32;
        safe fn baseline_batch(target: NonNull<RawTarget>, sectors: &Sectors<'_>) -> u64;
        safe fn baseline_chain(target: NonNull<RawTarget>, sectors: &Sectors<'_>) -> u64;
        safe fn baseline_apply(target: NonNull<RawTarget>, words: NonNull<RawWords>) -> i32;
        safe fn baseline_words_new(text: &Text<'_>) -> Option<NonNull<RawWords>>;
        safe fn baseline_words_free(words: NonNull<RawWords>);
        safe fn baseline_split(words: NonNull<RawWords>) -> i32;
    }

    pub(super) struct Target {
        raw: NonNull<RawTarget>,
        regions: u64,
    }

    impl Target {
        pub(super) fn new(regions: u64, paths: u32, region_size: u32) -> Option<Self> {
            Some(Self { raw: baseline_new(regions, paths, region_size)?, regions })
        }

        pub(super) fn path(&self, region: u64) -> u32 {
            assert!(region < self.regions, "region {region} of {}", self.regions);
            baseline_path(self.raw, region)
        }

        pub(super) fn batch(&self, sectors: &Sectors<'_>) -> u64 {
            baseline_batch(self.raw, sectors)
        }

        pub(super) fn chain(&self, sectors: &Sectors<'_>) -> u64 {
            baseline_chain(self.raw, sectors)
        }

        pub(super) fn apply(&mut self, words: &Words) -> bool {
            baseline_apply(self.raw, words.0) == 0
        }
    }

    impl Drop for Target {
        fn drop(&mut self) {
            baseline_free(self.raw);
        }
    }

    pub(super) struct Words(NonNull<RawWords>);

    impl Words {
        pub(super) fn new(text: &[u8]) -> Option<Self> {
            let text = Text { at: text.as_ptr(), len: text.len(), borrowed: PhantomData };
            baseline_words_new(&text).map(Self)
        }

        /// Splits the text, once.
        pub(super) fn split(&mut self) -> bool {
            baseline_split(self.0) == 0
        }
    }

    impl Drop for Words {
        fn drop(&mut self) {
            baseline_words_free(self.0);
        }
    }
}
