//! The guest's first file system: busybox, the modules for the host's root, and the command.
//!
//! An initramfs is a cpio archive in the "newc" form
//! (Documentation/driver-api/early-userspace/buffer-format.rst): for each file a header of
//! hexadecimal numbers, its name, its bytes, each padded to four bytes.

use super::Tree;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

const INIT: &str = include_str!("guest-init.sh");
/// Modules for mounting the host's root and for the status port. A kernel may have some of them
/// built in.
const BOOT_MODULES: [&str; 5] = ["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"];

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// Builds the archive of a guest that runs `command` in `folder` of the host.
pub(super) fn build(tree: &Tree, folder: &Path, command: &[String]) -> Result<Vec<u8>> {
    let mut cpio = Cpio::default();
    for name in ["bin", "dev", "proc", "sys", "host", "upper", "root", "modules"] {
        cpio.entry(name, FOLDER, &[]);
    }
    cpio.entry("bin/busybox", PROGRAM, &fs::read(tree.busybox())?);
    cpio.entry("init", PROGRAM, INIT.as_bytes());
    cpio.entry("run", PROGRAM, run_script(tree, folder, command).as_bytes());
    for (number, path) in boot_modules(tree)?.iter().enumerate() {
        let bytes =
            fs::read(tree.modules().join(path)).with_context(|| format!("module {path}"))?;
        // Numbers make the shell's order of names the order of loading.
        cpio.entry(&format!("modules/{number:02}.ko"), PROGRAM, &bytes);
    }
    Ok(cpio.end())
}

/// The files of the boot modules and of their dependencies, which come first.
fn boot_modules(tree: &Tree) -> Result<Vec<String>> {
    let index = fs::read_to_string(tree.modules().join("modules.dep"))?;
    let mut files: Vec<String> = Vec::new();
    for module in BOOT_MODULES {
        let file = format!("/{module}.ko");
        let Some((path, needs)) = index
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(path, _)| path.ends_with(&file))
        else {
            continue; // built in
        };
        // modules.dep lists direct dependencies first.
        let needed = needs.split_whitespace().rev();
        for path in needed.chain([path]) {
            if !files.iter().any(|known| known == path) {
                files.push(path.to_owned());
            }
        }
    }
    Ok(files)
}

/// The script that the guest runs on its root.
fn run_script(tree: &Tree, folder: &Path, command: &[String]) -> String {
    let words: Vec<String> = command.iter().map(|word| quote(word)).collect();
    let (modules, folder) =
        (quote(&tree.modules().to_string_lossy()), quote(&folder.to_string_lossy()));
    format!("MODULES={modules}\nFOLDER={folder}\nset -- {}\n", words.join(" "))
}

fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A cpio archive being written.
#[derive(Default)]
struct Cpio {
    bytes: Vec<u8>,
    files: u32,
}

impl Cpio {
    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.files += 1;
        let (size, name_size) = (content.len(), name.len() + 1);
        // Magic, inode, mode, owner, group, links, time, size, four device numbers, length of the
        // name, checksum.
        let header = format!(
            "070701{:08x}{mode:08x}{z}{z}{:08x}{z}{size:08x}{z}{z}{z}{z}{name_size:08x}{z}",
            self.files,
            1,
            z = "00000000"
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}
