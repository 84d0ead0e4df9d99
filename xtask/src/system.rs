//! `cargo xtask system-test`: tests the real daemon with stock programs.
//!
//! Each `tests/system/*.sh` is a test: a bash script in a temporary folder of its own. The release
//! build of `blkswitch` comes first in its `PATH`, and it sources `tests/system/lib.sh`. Exit
//! status 0 means that the test passed. [`EXIT_SKIP`] means that something is missing on this
//! machine; the last line of output says what. Under `CI=true` everything is installed, so a
//! skipped test is a failure. The output of failed tests is shown; `--verbose` also shows that of
//! passed ones.
//!
//! A script with the line [`ALSO_CURRENT`] is two tests: `NAME` runs with the programs of this
//! machine, `NAME@13` with Debian 13's (`clients.rs`).

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

const FOLDER: &str = "tests/system";
/// The exit status of automake's tests that cannot run.
const EXIT_SKIP: i32 = 77;
/// Time limit of a test: longer than the longest one (guests under emulation) on a busy machine,
/// shorter than a stuck CI.
const TIMEOUT: Duration = Duration::from_secs(2100);

const USAGE: &str = "\
Usage: cargo xtask system-test [--verbose] [--list] [NAME]...

Builds blkswitch and runs the scripts tests/system/NAME.sh (all without a NAME) against it.
NAME@13 is the same script with Debian 13's client programs, where it has such a run.";

/// The line of scripts that also run with Debian 13's programs.
const ALSO_CURRENT: &str = "# Debian 13's programs, too.";
/// The suffix of such a run's name.
const CURRENT: &str = "@13";

/// How a test ended.
enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

pub(crate) fn main(words: &[String]) -> Result<ExitCode> {
    let (options, mut names): (Vec<_>, Vec<_>) =
        words.iter().cloned().partition(|word| word.starts_with('-'));
    let (mut verbose, mut list) = (false, false);
    for option in &options {
        match option.as_str() {
            "-v" | "--verbose" => verbose = true,
            "--list" => list = true,
            "-h" | "--help" => {
                println!("{USAGE}");
                return Ok(ExitCode::SUCCESS);
            }
            _ => bail!("unknown option '{option}'\n\n{USAGE}"),
        }
    }
    let known = tests()?;
    if list {
        known.iter().for_each(|name| println!("{name}"));
        return Ok(ExitCode::SUCCESS);
    }
    for name in &names {
        ensure!(known.contains(name), "there is no test '{name}'; there are {}", known.join(", "));
    }
    if names.is_empty() {
        names = known;
    }
    run_all(&names, verbose)
}

/// The names of all tests, sorted.
fn tests() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in
        fs::read_dir(FOLDER).with_context(|| format!("{FOLDER} (run this in the repository)"))?
    {
        let name = entry?.file_name().to_string_lossy().into_owned();
        // The library is not a test.
        let Some(name) = name.strip_suffix(".sh").filter(|name| *name != "lib") else { continue };
        let text = fs::read_to_string(script(name))?;
        if text.lines().any(|line| line == ALSO_CURRENT) {
            names.push(format!("{name}{CURRENT}"));
        }
        names.push(name.to_owned());
    }
    names.sort();
    Ok(names)
}

/// The script of a test.
fn script(name: &str) -> PathBuf {
    Path::new(FOLDER).join(format!("{}.sh", name.trim_end_matches(CURRENT)))
}

fn run_all(names: &[String], verbose: bool) -> Result<ExitCode> {
    let programs = build()?;
    let strict = std::env::var("CI").is_ok_and(|ci| ci == "true");
    let (mut failed, mut skipped) = (0, 0);
    for name in names {
        let start = Instant::now();
        let (outcome, output) = run(name, &programs)?;
        let seconds = start.elapsed().as_secs_f64();
        if verbose || matches!(outcome, Outcome::Failed(_)) {
            output.lines().for_each(|line| println!("    {line}"));
        }
        match outcome {
            Outcome::Passed => println!("ok    {name:<22}{seconds:6.1} s"),
            Outcome::Skipped(reason) => {
                println!("skip  {name:<22}{reason}");
                skipped += 1;
            }
            Outcome::Failed(reason) => {
                println!("FAIL  {name:<22}{seconds:6.1} s, {reason}");
                failed += 1;
            }
        }
    }
    println!(
        "system-test: {} passed, {failed} failed, {skipped} skipped",
        names.len() - failed - skipped
    );
    if strict && skipped > 0 {
        println!("system-test: CI=true, so a skipped test is a failure");
    }
    Ok(if failed == 0 && !(strict && skipped > 0) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the daemon and returns its folder.
pub(crate) fn build() -> Result<PathBuf> {
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--package", "blkswitch"])
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "blkswitch does not build");
    // This program is in <target>/<profile>/.
    let own = std::env::current_exe()?;
    let target =
        own.parent().and_then(Path::parent).context("this program is not in a target folder")?;
    Ok(target.join("release"))
}

/// Runs a test. Returns how it ended, and its output.
fn run(name: &str, programs: &Path) -> Result<(Outcome, String)> {
    let scratch = std::env::temp_dir().join(format!("blkswitch-{name}-{}", std::process::id()));
    fs::create_dir(&scratch).with_context(|| format!("create {}", scratch.display()))?;
    let output_path = scratch.join("output");
    let output = File::create(&output_path)?;
    let repository = std::env::current_dir()?;
    let mut path = std::env::var("PATH").unwrap_or_default();
    path = format!("/usr/bin:/usr/sbin:{path}");
    if name.ends_with(CURRENT) {
        path = format!("{}:{path}", crate::clients::prepare()?.display());
    }
    let mut child = Command::new("bash")
        .arg(repository.join(script(name)))
        .current_dir(&scratch)
        .env("PATH", format!("{}:{path}", programs.display()))
        .env("REPOSITORY", &repository)
        .env("XTASK", std::env::current_exe()?)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        // The test gets its own process group, so that no process of it survives.
        .process_group(0)
        .spawn()
        .context("cannot run bash")?;
    let status = wait(&mut child)?;
    end_group(child.id());
    child.wait()?;
    let text = String::from_utf8_lossy(&fs::read(&output_path)?).into_owned();
    fs::remove_dir_all(&scratch).with_context(|| format!("remove {}", scratch.display()))?;
    let outcome = match status {
        None => Outcome::Failed(format!("not finished within {} s", TIMEOUT.as_secs())),
        Some(status) if status.success() => Outcome::Passed,
        Some(status) if status.code() == Some(EXIT_SKIP) => {
            Outcome::Skipped(text.lines().last().unwrap_or("no reason given").to_owned())
        }
        Some(status) => Outcome::Failed(status.to_string()),
    };
    Ok((outcome, text))
}

/// Waits for a test. Returns `None` if it did not end in time.
fn wait(child: &mut Child) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + TIMEOUT;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Kills the remaining processes of a test's group; usually there are none.
fn end_group(leader: u32) {
    let _ = Command::new("kill")
        .args(["-KILL", "--", &format!("-{leader}")])
        .stderr(Stdio::null())
        .status();
}
