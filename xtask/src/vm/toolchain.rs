//! The compiler and tools that build modules for a kernel that is newer than the host.
//!
//! Debian's kernels need the compiler of their release, because an older one does not know its
//! options. Their tools (modpost, objtool) need that release's C library. So compiler and libraries
//! are unpacked below the tree's `tools`. A script in place of each program starts it with that C
//! library's loader. Nothing is installed, and no root is needed.

use crate::apt::{self, Apt};
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The folder of libraries below the tools.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// The folders of programs below the tools.
const PROGRAMS: [&str; 2] = ["usr/bin", "usr/libexec"];

/// The compiler in `tools`, if there is one.
pub(super) fn compiler(tools: &Path) -> Option<PathBuf> {
    let programs = fs::read_dir(tools.join("usr/bin")).ok()?.flatten();
    let is_gcc = |name: &str| {
        let version = name.strip_prefix("x86_64-linux-gnu-gcc-");
        version.is_some_and(|version| version.parse::<u32>().is_ok())
    };
    let mut programs = programs.map(|program| program.path());
    programs.find(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(is_gcc))
}

/// Unpacks the compiler of the headers' packages, which have these dependencies, to `tools`.
/// Scripts there, and in the kernel's `kbuild`, start programs from `home`, which is the later
/// place of `tools`.
pub(super) fn unpack(
    apt: &Apt,
    depends: &[String],
    tools: &Path,
    home: &Path,
    kbuild: &Path,
) -> Result<()> {
    // A dependency such as gcc-14-for-host names the version.
    let version = depends
        .iter()
        .find_map(|name| name.strip_prefix("gcc-")?.split('-').next())
        .context("the kernel's headers name no compiler")?;
    let mut names =
        ["gcc", "cpp"].map(|program| format!("{program}-{version}-x86-64-linux-gnu")).to_vec();
    let kbuilds = depends.iter().filter(|name| name.starts_with("linux-kbuild-"));
    let users: Vec<String> = names.iter().chain(kbuilds).cloned().collect();
    let is_library = |name: &String| {
        (name.starts_with("lib") || name.starts_with("zlib")) && !name.ends_with("-dev")
    };
    for user in users {
        names.extend(apt.depends(&user)?.into_iter().filter(is_library));
    }
    names.sort_unstable();
    names.dedup();
    for package in apt.download(&names)? {
        apt::unpack(&package, tools)?;
    }
    for folder in PROGRAMS.map(|folder| tools.join(folder)).iter().chain([&kbuild.to_owned()]) {
        start_by_loader(folder, &home.join(LIBRARIES))?;
    }
    Ok(())
}

/// Replaces every program in `folder` and below by a script.
fn start_by_loader(folder: &Path, libraries: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            start_by_loader(&path, libraries)?;
        } else if kind.is_file() && is_program(&path)? {
            let program = PathBuf::from(format!("{}.elf", path.display()));
            fs::rename(&path, &program)?;
            let libraries = libraries.display();
            let script = format!(
                "#!/bin/sh\nexec {libraries}/ld-linux-x86-64.so.2 --argv0 \"$0\" \
                 --library-path {libraries} \"$0.elf\" \"$@\"\n"
            );
            fs::write(&path, script)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}

fn is_program(path: &Path) -> Result<bool> {
    use std::io::Read;
    let mut magic = [0; 4];
    let is_executable = fs::metadata(path)?.permissions().mode() & 0o100 != 0;
    Ok(is_executable && fs::File::open(path)?.read(&mut magic)? == 4 && magic == *b"\x7fELF")
}
