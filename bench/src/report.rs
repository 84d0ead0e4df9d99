//! Takes, prints and keeps figures. Also makes maps and random numbers for the benchmarks.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use anyhow::{Context, Result};
use blkswitch_core::switch::{Geometry, Map, MapWriter};
use clap::Args;
use serde_json::{Value, json};

use crate::beside_c::{self, Row};

/// Folder of kept results.
const FOLDER: &str = "bench/results";

/// A map over zeroed memory that is not allocated before it is used.
pub(crate) type LazyMap = Map<Box<[AtomicU64]>>;

/// One measured number.
pub(crate) struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
}

impl Figure {
    pub(crate) fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit }
    }
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {:.1} {}", self.name, self.value, self.unit)
    }
}

pub(crate) fn print(figures: &[Figure], as_json: bool) {
    if as_json {
        println!("{:#}", json(figures));
        return;
    }
    let width = figures.iter().map(|figure| figure.name.len()).max().unwrap_or(0);
    for Figure { name, value, unit } in figures {
        println!("{name:width$}  {value:>12.3} {unit}");
    }
}

fn json(figures: &[Figure]) -> Value {
    let one =
        |figure: &Figure| json!({"name": figure.name, "value": figure.value, "unit": figure.unit});
    figures.iter().map(one).collect()
}

/// The option to keep results.
#[derive(Args, Clone, Copy)]
pub(crate) struct Keep {
    /// Keep the results: bench/results/DATE-NAME.json and .md
    #[arg(long)]
    pub(crate) save: bool,
}

/// Date, machine, command and versions of a measurement.
pub(crate) struct About {
    date: String,
    command: String,
    facts: Vec<(&'static str, String)>,
}

impl About {
    /// Describes a measurement that is made now on this machine. `words` are those of this
    /// program's command line, `versions` those of other programs.
    pub(crate) fn new(words: &str, mut versions: Vec<String>) -> Result<Self> {
        let date = output("date", &["+%F"])?;
        let lscpu = output("lscpu", &[])?;
        let model = lscpu
            .lines()
            .find_map(|line| line.strip_prefix("Model name:"))
            .unwrap_or("unknown")
            .trim();
        let cores = std::thread::available_parallelism()?;
        versions.push(format!("commit {}", output("git", &["rev-parse", "--short", "HEAD"])?));
        let facts = vec![
            ("processor", format!("{model}, {cores} cores")),
            ("kernel", output("uname", &["-r"])?),
            ("versions", versions.join("; ")),
            (
                "load average at the end",
                std::fs::read_to_string("/proc/loadavg")?.trim().to_owned(),
            ),
        ];
        let command = format!("cargo run --release -p blkswitch-bench -- {words}");
        Ok(Self { date, command, facts })
    }

    fn json(&self) -> Value {
        let mut facts = json!({"date": self.date, "command": self.command});
        for (name, value) in &self.facts {
            facts[*name] = json!(value);
        }
        facts
    }

    /// Writes `bench/results/DATE-NAME.json` with `results`, and `.md` with `tables` below `title`
    /// and `text`.
    pub(crate) fn keep(
        &self,
        name: &str,
        mut results: Value,
        (title, text): (&str, &str),
        tables: &str,
    ) -> Result<()> {
        let stem = Path::new(FOLDER).join(format!("{}-{name}", self.date));
        std::fs::create_dir_all(FOLDER).context(FOLDER)?;
        results["about"] = self.json();
        let mut page = format!("# {title}, {}\n\n    {}\n\n{text}\n\n", self.date, self.command);
        for (name, value) in &self.facts {
            writeln!(page, "* {name}: {value}")?;
        }
        page.push_str(tables);
        std::fs::write(stem.with_extension("json"), format!("{results:#}\n"))?;
        std::fs::write(stem.with_extension("md"), page)?;
        // Standard output is for the figures, which a program may read.
        eprintln!("written: {}.json, .md", stem.display());
        Ok(())
    }
}

/// The output of a program.
pub(crate) fn output(program: &str, words: &[&str]) -> Result<String> {
    let output = Command::new(program).args(words).output().with_context(|| program.to_owned())?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Keeps the figures of a benchmark that does not write its own pages.
pub(crate) fn keep(name: &str, title: &str, rounds: Rounds, figures: &[Figure]) -> Result<()> {
    let Rounds { count, best } = rounds;
    let option = if best { " --best" } else { "" };
    let about = About::new(&format!("{name} --rounds {count}{option} --save"), Vec::new())?;
    let which = if best { "The best" } else { "Medians" };
    let mut table = String::from("\n| figure | value | unit |\n|---|---:|---|\n");
    for Figure { name, value, unit } in figures {
        writeln!(table, "| {name} | {value:.3} | {unit} |")?;
    }
    let results = json!({"results": json(figures)});
    about.keep(name, results, (title, &format!("{which} of {count} rounds.")), &table)
}

/// Keeps the comparison with C, a line for each shape.
pub(crate) fn keep_beside_c(rounds: Rounds, rows: &[Row]) -> Result<()> {
    let Rounds { count, best } = rounds;
    let option = if best { " --best" } else { "" };
    let words = format!("beside-c --rounds {count}{option} --save");
    let compiler = output(
        "sh",
        &["-c", &format!("{} --version | head -n 1", beside_c::compiler().replace(" -O2", ""))],
    )?;
    let about = About::new(&words, vec![format!("{} ({compiler})", beside_c::compiler())])?;
    let which = if best { "The best" } else { "Medians" };
    let text = format!(
        "{which} of {count} rounds, in turns, in nanoseconds. The C side is \
         [c/baseline.c](../c/baseline.c). A factor above 1 means that blkswitch-core takes less \
         time. Its figure of a message includes the splitting of words."
    );
    let mut table = String::from(
        "\n| measured | paths | region size | blkswitch-core | C | C / core | C with splitting | \
         that / core |\n|---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for row in rows {
        let Row { num_paths, region_size, measured, ours, c, c_split } = row;
        let split = c_split
            .map_or(String::from(" | "), |split| format!("{split:.2} | {:.2}", split / ours));
        writeln!(
            table,
            "| {measured} | {num_paths} | {region_size} | {ours:.2} | {c:.2} | {:.2} | {split} |",
            c / ours
        )?;
    }
    let results = json!({"results": json(&beside_c::figures(rows))});
    about.keep("beside-c", results, ("Messages and look-ups beside plain C", &text), &table)
}

/// The number of rounds, and the choice of median or best.
#[derive(Clone, Copy)]
pub(crate) struct Rounds {
    pub(crate) count: usize,
    pub(crate) best: bool,
}

impl Rounds {
    /// Measures `work` on the result of `prepare`. Returns the seconds of a call; the first call
    /// does not count.
    pub(crate) fn seconds<T>(
        self,
        mut prepare: impl FnMut() -> T,
        mut work: impl FnMut(&T),
    ) -> f64 {
        let seconds: Vec<f64> = (0..=self.count)
            .map(|_| {
                let input = prepare();
                let start = Instant::now();
                work(&input);
                start.elapsed().as_secs_f64()
            })
            .skip(1)
            .collect();
        self.choose(seconds)
    }

    /// The median of the times, or the best one with `--best`.
    pub(crate) fn choose(self, mut times: Vec<f64>) -> f64 {
        times.sort_unstable_by(f64::total_cmp);
        let counts = if self.best { 0 } else { times.len() / 2 };
        times.get(counts).copied().unwrap_or(f64::NAN)
    }
}

/// The writer of a map.
pub(crate) fn writer(map: &LazyMap) -> MapWriter<'_, Box<[AtomicU64]>> {
    map.writer().expect("nobody else changes the map")
}

/// A round-robin map of `regions` regions.
pub(crate) fn lazy_map(regions: u64, num_paths: u32, region_size: u32) -> anyhow::Result<LazyMap> {
    let geometry = Geometry::new(regions * u64::from(region_size), num_paths, region_size)?;
    let storage = bytemuck::zeroed_slice_box(geometry.nr_slots());
    Map::new(geometry, storage).map_err(|_| anyhow::anyhow!("the storage is too short"))
}

/// A small generator of random numbers (splitmix64), with the same numbers in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }
}
