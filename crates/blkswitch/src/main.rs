//! blkswitch: daemon and command line in one binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    blkswitch::cli::run(std::env::args_os())
}
