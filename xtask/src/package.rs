//! `cargo xtask package`: makes a Debian package of the daemon.
//!
//! Contract: the files come from one release build and from the program itself (manual pages,
//! completions). The dependencies are the packages of its linked libraries, in this machine's
//! versions or later.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

const USAGE: &str = "\
Usage: cargo xtask package

Makes target/package/blkswitch_VERSION_ARCHITECTURE.deb: the program with iSCSI, its manual pages, completions and
documentation, and a unit of systemd, which is not started by itself. Needs the Debian package binutils.
";

/// The unit of systemd. Devices survive a restart (docs/state.md).
const UNIT: &str = "\
[Unit]
Description=Switch and multipath block devices in user space, served over NBD
Documentation=man:blkswitch(1)
Wants=network-online.target
After=network-online.target

[Service]
ExecStart=/usr/bin/blkswitch serve --state /var/lib/blkswitch
RuntimeDirectory=blkswitch
RuntimeDirectoryMode=0700
StateDirectory=blkswitch
StateDirectoryMode=0700
Restart=on-failure
LimitNOFILE=65536
# For disks (docs/ublk.md): memory can be locked, and the daemon is the last to be killed for memory.
LimitMEMLOCK=infinity
OOMScoreAdjust=-999
TimeoutStopSec=120

[Install]
WantedBy=multi-user.target
";

const COPYRIGHT: &str = "\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: the blkswitch authors
License: MIT or Apache-2.0
 Both texts are beside this file. The libraries in the program have licences of their own, which allow this.
";

const DOCUMENTS: [&str; 3] = ["README.md", "LICENSE-MIT", "LICENSE-APACHE"];

/// The place of each shell's completions.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/blkswitch"),
    ("zsh", "usr/share/zsh/vendor-completions/_blkswitch"),
    ("fish", "usr/share/fish/vendor_completions.d/blkswitch.fish"),
];

pub(crate) fn main(words: &[String]) -> Result<ExitCode> {
    if !words.is_empty() {
        print!("{USAGE}");
        return Ok(if words == ["--help"] { ExitCode::SUCCESS } else { ExitCode::from(2) });
    }
    let programs = crate::system::build()?;
    let work = programs.parent().context("the build is in no folder")?.join("package");
    let root = work.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    let program = root.join("usr/bin/blkswitch");
    write(&program, fs::read(programs.join("blkswitch"))?, 0o755)?;
    let run = |words: &[&str]| output(Command::new(&program).args(words));
    let pages = root.join("usr/share/man/man1");
    fs::create_dir_all(&pages)?;
    run(&["man", &pages.to_string_lossy()])?;
    for page in fs::read_dir(&pages)? {
        output(Command::new("gzip").args(["-9", "--no-name"]).arg(page?.path()))?;
    }
    for (shell, path) in COMPLETIONS {
        write(&root.join(path), run(&["completions", shell])?, 0o644)?;
    }
    let doc = root.join("usr/share/doc/blkswitch");
    for name in DOCUMENTS {
        write(&doc.join(name), fs::read(name)?, 0o644)?;
    }
    for entry in fs::read_dir("docs")? {
        let path = entry?.path();
        write(&doc.join(&path), fs::read(&path)?, 0o644)?;
    }
    write(&doc.join("copyright"), COPYRIGHT, 0o644)?;
    write(&root.join("lib/systemd/system/blkswitch.service"), UNIT, 0o644)?;
    let depends = depends(&program)?;
    output(Command::new("strip").args(["--strip-unneeded"]).arg(&program))?;
    let architecture = output(Command::new("dpkg").arg("--print-architecture"))?;
    let (version, architecture) = (env!("CARGO_PKG_VERSION"), architecture.trim());
    let control = format!(
        "Package: blkswitch\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: the \
         blkswitch authors\n\
         Section: admin\nPriority: optional\nDepends: {depends}\n\
         Description: switch and multipath block devices in user space\n \
         The device-mapper targets switch and multipath, driven with dmsetup's verbs and\n \
         served over NBD or as ublk disks. Paths are files, disks, NBD servers and iSCSI.\n"
    );
    write(&root.join("DEBIAN/control"), control, 0o644)?;
    let package = work.join(format!("blkswitch_{version}_{architecture}.deb"));
    output(
        Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).args([&root, &package]),
    )?;
    println!("{}", package.display());
    Ok(ExitCode::SUCCESS)
}

/// The packages of the libraries that a program is linked with.
fn depends(program: &Path) -> Result<String> {
    let libraries = output(Command::new("ldd").arg(program))?;
    let mut depends = Vec::new();
    for path in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        let name = owner(path)?;
        let version =
            output(Command::new("dpkg-query").args(["--show", "--showformat=${Version}", &name]))?;
        // A rebuild without changes has the same version up to `+b`.
        let version = version.split("+b").next().unwrap_or_default();
        depends.push(format!("{} (>= {version})", name.split(':').next().unwrap_or_default()));
    }
    depends.sort_unstable();
    depends.dedup();
    Ok(depends.join(", "))
}

/// The package that owns a file. /lib is /usr/lib, and a package may list either path.
fn owner(path: &str) -> Result<String> {
    let other = match path.strip_prefix("/usr") {
        Some(rest) => rest.to_owned(),
        None => format!("/usr{path}"),
    };
    for path in [path, &other] {
        if let Ok(text) = output(Command::new("dpkg-query").args(["--search", path])) {
            return Ok(text.split(": ").next().unwrap_or_default().to_owned());
        }
    }
    anyhow::bail!("no Debian package has {path}")
}

fn write(path: &Path, bytes: impl AsRef<[u8]>, mode: u32) -> Result<()> {
    let shown = || path.display().to_string();
    let folder: PathBuf = path.parent().with_context(shown)?.to_owned();
    fs::create_dir_all(&folder).with_context(shown)?;
    fs::write(path, bytes).with_context(shown)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).with_context(shown)
}

/// Runs a program and returns its output. A failure of the program is an error.
fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command.output().with_context(|| shown.clone())?;
    ensure!(output.status.success(), "{shown}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
