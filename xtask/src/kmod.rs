//! `cargo xtask kmod`: builds the kernel module against the headers of a Debian kernel.
//!
//! The headers are those of the laboratory ([`super::vm`]). The sources are first copied to a
//! folder for each kernel below the target folder, because kbuild writes beside its sources.

use super::apt::run;
use super::vm::{Kernel, Tree};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const USAGE: &str = "\
Usage: cargo xtask kmod [--kernel 6.12|6.1|newest]

Builds blkswitch.ko against Debian's headers of that kernel (6.12) and prints where it is.";

pub(crate) fn main(words: &[String]) -> Result<ExitCode> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let kernel = match words[..] {
        [] => Kernel::default(),
        ["--kernel", kernel] => kernel.parse()?,
        _ => bail!("unknown arguments {words:?}\n\n{USAGE}"),
    };
    println!("{}", build(kernel)?.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the module for `kernel` and returns its file. A warning of compiler, modpost or objtool
/// is an error.
pub(crate) fn build(kernel: Kernel) -> Result<PathBuf> {
    let tree = Tree::get(kernel)?;
    let folder = target_folder()?.join("kmod").join(&tree.release);
    fs::create_dir_all(&folder)?;
    for part in ["kmod", "crates/core/src"] {
        let to = folder.join(part);
        fs::create_dir_all(&to)?;
        let from = source_folder().join(part).join(".");
        run(Command::new("cp").args(["-r", "--update"]).arg(from).arg(to))?;
    }
    let kmod = folder.join("kmod");
    lint(&kmod)?;
    let mut make = Command::new("make");
    make.arg("-C").arg(&kmod).arg(format!("KDIR={}", tree.headers().display()));
    if let Some(compiler) = tree.compiler(kernel)? {
        // No type information is made, so pahole is not needed.
        make.arg(format!("CC={}", compiler.display())).arg("CONFIG_PAHOLE_VERSION=0");
    }
    let output = make.output().context("make (Debian packages make, gcc, binutils, libelf1)")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && errors.trim().is_empty(),
        "the kernel module does not build without complaint:\n{}{errors}",
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(kmod.join("blkswitch.ko"))
}

/// Runs clippy on the Rust part, because the kernel's build mutes rustc.
fn lint(kmod: &Path) -> Result<()> {
    let mut clippy = Command::new("clippy-driver");
    clippy.args([
        "--edition=2024",
        "--crate-name=switch",
        "--crate-type=staticlib",
        "-Cpanic=abort",
        "--emit=metadata",
        "-Dwarnings",
    ]);
    run(clippy.arg("-o").arg(kmod.join("lint.rmeta")).arg(kmod.join("src/lib.rs"))).map(drop)
}

/// The root of the repository.
pub(crate) fn source_folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Cargo's target folder: two levels above this program.
fn target_folder() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    Ok(program.ancestors().nth(2).context("xtask is not in a target folder")?.to_owned())
}
