//! How a guest ended, and a diagnosis if it did not end well.
//!
//! A script's status comes through a port of its own. If it is missing, there are two cases. The
//! emulator died from a signal (the host's OOM killer, an assertion). Or it ended normally because
//! the guest's kernel panicked, which the console shows, or because the processor reset itself,
//! which only the emulator's log shows.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

/// Lines of the console that are shown: enough for a panic with the traces of all processors and
/// the lines before it.
const CONSOLE_LINES: usize = 200;

/// Time after which a processor counts as stuck. On a busy host, some tens of seconds mean nothing.
const STUCK_SECONDS: u32 = 150;

/// How a boot ended.
pub(super) enum Ending {
    /// The script ended with this status.
    Script(u8),
    /// The time limit was reached.
    Timeout,
    /// The guest's kernel ended without a status.
    Crash,
    /// The guest's kernel is stuck, as [`is_stuck`] decides.
    Stuck,
    /// This signal ended the emulator.
    Killed(i32),
    /// The emulator failed with this status.
    Gave(ExitStatus),
}

/// Reads the end of a boot from its folder. `exit` is the emulator's status; `None` if it was
/// killed at the time limit.
pub(super) fn of(scratch: &Path, exit: Option<ExitStatus>) -> Ending {
    let Some(exit) = exit else { return Ending::Timeout };
    if let Ok(status) = text(scratch, "status").trim().parse() {
        return Ending::Script(status);
    }
    match exit.signal() {
        Some(signal) => Ending::Killed(signal),
        None if exit.success() => Ending::Crash,
        None => Ending::Gave(exit),
    }
}

/// Whether the guest's kernel reports a soft lockup that is too long to come from a busy host:
/// "watchdog: BUG: soft lockup - CPU#0 stuck for 425s!".
pub(super) fn is_stuck(scratch: &Path) -> bool {
    let seconds = |line: &str| {
        let (_, rest) = line.split_once("BUG: soft lockup")?.1.split_once("stuck for ")?;
        rest.split_once('s')?.0.parse::<u32>().ok()
    };
    text(scratch, super::CONSOLE).lines().filter_map(seconds).any(|stuck| stuck >= STUCK_SECONDS)
}

/// Prints the emulator's messages; usually there are none.
pub(super) fn show_complaints(scratch: &Path) {
    for line in text(scratch, super::ERRORS).lines() {
        eprintln!("xtask: qemu says: {line}");
    }
}

/// Prints the end of the guest's console, and the emulator's notes about processors.
pub(super) fn show_console(scratch: &Path) {
    let console = text(scratch, super::CONSOLE);
    let skipped = console.lines().count().saturating_sub(CONSOLE_LINES);
    eprintln!("xtask: the guest's console, {skipped} lines before this left out:");
    console.lines().skip(skipped).for_each(|line| eprintln!("    {line}"));
    if console.is_empty() {
        eprintln!("    (nothing was printed)");
    }
    if console.contains("Oops: int3") {
        eprintln!(
            "xtask: int3 is what QEMU before 8.1 makes of code that another processor patches: \
             docs/kernel-laboratory.md"
        );
    }
    let resets = text(scratch, super::RESETS);
    if resets.contains("Triple fault") {
        eprintln!(
            "xtask: a processor could not handle a fault and reset itself (a triple fault): no \
             kernel prints that"
        );
    }
}

/// Reads a file with any bytes: the console has those of bad messages that tests send.
fn text(scratch: &Path, name: &str) -> String {
    String::from_utf8_lossy(&fs::read(scratch.join(name)).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_are_told_apart() {
        let scratch = super::super::Scratch::new().unwrap();
        let of = |raw: i32| of(&scratch.0, Some(ExitStatus::from_raw(raw)));
        assert!(matches!(super::of(&scratch.0, None), Ending::Timeout));
        assert!(matches!(of(0), Ending::Crash));
        assert!(matches!(of(9), Ending::Killed(9)));
        assert!(matches!(of(1 << 8), Ending::Gave(_)));
        fs::write(scratch.0.join("status"), "3\n").unwrap();
        assert!(matches!(of(9), Ending::Script(3)), "what the script said counts");
    }

    #[test]
    fn a_kernel_that_is_stuck_is_told_from_one_that_had_to_wait() {
        let scratch = super::super::Scratch::new().unwrap();
        let console = scratch.0.join(super::super::CONSOLE);
        assert!(!is_stuck(&scratch.0), "nothing was printed yet");
        for (seconds, stuck) in [(26, false), (149, false), (150, true), (425, true)] {
            let line = format!(
                "[  1.0] watchdog: BUG: soft lockup - CPU#0 stuck for {seconds}s! [queue-0:432]"
            );
            fs::write(&console, format!("stuck for 999s\n{line}\n")).unwrap();
            assert_eq!(is_stuck(&scratch.0), stuck, "{line}");
        }
    }

    #[test]
    fn a_console_is_no_utf8() {
        let scratch = super::super::Scratch::new().unwrap();
        fs::write(scratch.0.join(super::super::CONSOLE), b"argument: '\xe9'\nKernel panic\n")
            .unwrap();
        assert_eq!(text(&scratch.0, super::super::CONSOLE), "argument: '\u{fffd}'\nKernel panic\n");
    }
}
