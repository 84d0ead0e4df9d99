//! The cache folder: Debian's kernel, headers and busybox, unpacked but not installed.
//!
//! `$XDG_CACHE_HOME/blkswitch/vm/<kernel>` (or below `~/.cache`) appears whole or not at all, so
//! any number of runs may need it at once. Remove the folder to get a newer kernel.

use super::toolchain;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use crate::apt::{self, Apt, cache_folder, made_once, run};

/// Modules that no test of block devices needs: four fifths of all that would be decompressed and
/// indexed.
const UNWANTED_MODULES: &str = "sound net/bluetooth net/mac80211 net/netfilter drivers/gpu \
                                drivers/media drivers/net drivers/staging drivers/iio drivers/usb \
                                drivers/infiniband drivers/input drivers/hwmon drivers/platform \
                                drivers/video drivers/mtd";
/// Folder of the tools that build modules for a kernel that is newer than the host.
const TOOLS: &str = "tools";

/// A Debian kernel that the tests run on.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// The kernel of Debian 12.
    V6_1,
    /// Debian 12's backport of Debian 13's kernel, the reference.
    #[default]
    V6_12,
    /// The newest kernel that Debian has for its stable release today.
    Newest,
}

impl Kernel {
    fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::Newest => "newest",
        }
    }

    /// The beginning of the kernel's release, if it is known.
    fn begin(self) -> &'static str {
        if self == Self::Newest { "" } else { self.name() }
    }

    /// The suites of its packages. The suite of the kernel comes first.
    fn suites(self) -> &'static [&'static str] {
        match self {
            Self::V6_1 => &["bookworm"],
            Self::V6_12 => &["bookworm-backports", "bookworm"],
            Self::Newest => &["trixie-backports", "trixie"],
        }
    }
}

impl FromStr for Kernel {
    type Err = anyhow::Error;
    fn from_str(word: &str) -> Result<Self> {
        let all = [Self::V6_12, Self::V6_1, Self::Newest];
        let found = all.into_iter().find(|kernel| kernel.name() == word);
        found.ok_or_else(|| anyhow!("unknown kernel '{word}': 6.12, 6.1 or newest"))
    }
}

impl std::fmt::Display for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The unpacked packages of one kernel.
pub(crate) struct Tree {
    /// The folder that is `/` for the packages.
    pub(crate) root: PathBuf,
    /// The output of `uname -r`.
    pub(crate) release: String,
}

impl Tree {
    /// Returns the tree of `kernel`. Makes it if it is missing.
    pub(crate) fn get(kernel: Kernel) -> Result<Self> {
        let root = cache_folder()?.join("vm").join(kernel.name());
        made_once(&root, |new| {
            eprintln!("xtask: unpacking Linux {kernel} to {}", root.display());
            unpack(kernel, new, &root)
        })?;
        let release = fs::read_to_string(root.join("release"))?;
        Ok(Self { root, release })
    }

    /// The kernel as an ELF file, which QEMU starts without decompressing anything.
    pub(crate) fn vmlinux(&self) -> PathBuf {
        self.root.join("boot/vmlinux")
    }

    /// The folder `/lib/modules/<release>`.
    pub(crate) fn modules(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.release)
    }

    /// The folder for `make KDIR=`.
    pub(crate) fn headers(&self) -> PathBuf {
        self.root.join("usr/src").join(format!("linux-headers-{}", self.release))
    }

    /// The compiler for modules of this kernel; `None` if the host's will do. A missing compiler is
    /// an error.
    pub(crate) fn compiler(&self, kernel: Kernel) -> Result<Option<PathBuf>> {
        if kernel != Kernel::Newest {
            return Ok(None);
        }
        let found = toolchain::compiler(&self.root.join(TOOLS));
        let old = || format!("{} has no compiler: remove it, to make it anew", self.root.display());
        found.map(Some).with_context(old)
    }

    /// busybox, which has all tools that the guest needs to start.
    pub(crate) fn busybox(&self) -> PathBuf {
        self.root.join("bin/busybox")
    }
}

/// Unpacks a kernel to `root`, which will be renamed to `home`.
fn unpack(kernel: Kernel, root: &Path, home: &Path) -> Result<()> {
    let security = kernel == Kernel::V6_1;
    let apt = Apt::new(kernel.suites(), security, &root.join("apt"))?;
    let release = apt
        .depends("linux-headers-amd64")?
        .iter()
        .find_map(|name| name.strip_prefix("linux-headers-").map(str::to_owned))
        .context("linux-headers-amd64 names no headers")?;
    ensure!(
        release.starts_with(kernel.begin()),
        "the mirror has {release} where {kernel} was wanted"
    );
    let (image, headers) = (format!("linux-image-{release}"), format!("linux-headers-{release}"));
    let mut names = vec!["busybox-static".to_owned(), image.clone(), headers.clone()];
    // Newer images only depend on two other packages.
    let parts = ["linux-binary-", "linux-modules-", "linux-kbuild-"];
    let depends = [apt.depends(&image)?, apt.depends(&headers)?].concat();
    let is_part =
        |name: &str| name.ends_with("-common") || parts.iter().any(|part| name.starts_with(part));
    names.extend(depends.iter().filter(|name| is_part(name)).cloned());
    for package in apt.download(&names)? {
        apt::unpack(&package, root)?;
    }
    if kernel == Kernel::Newest {
        let kbuild = root.join("usr/lib").join(kbuild_name(&depends)?);
        toolchain::unpack(&apt, &depends, &root.join(TOOLS), &home.join(TOOLS), &kbuild)?;
    }
    fs::remove_dir_all(&apt.folder)?;
    fs::write(root.join("release"), &release)?;
    let tree = Tree { root: root.to_owned(), release };
    name_as_before(&tree)?;
    extract_vmlinux(&tree)?;
    relocate_headers(&tree)?;
    index_modules(&tree)
}

/// The name of the package and folder of the kernel's own tools.
fn kbuild_name(depends: &[String]) -> Result<&str> {
    let name = depends.iter().find(|name| name.starts_with("linux-kbuild-"));
    Ok(name.context("the kernel's headers name no tools")?)
}

/// Makes links to the old places. Debian 13 has all files in `/usr`, and its kernel lies among its
/// modules.
fn name_as_before(tree: &Tree) -> Result<()> {
    for name in ["bin", "lib"] {
        if !tree.root.join(name).exists() {
            std::os::unix::fs::symlink(format!("usr/{name}"), tree.root.join(name))?;
        }
    }
    let image = tree.modules().join("vmlinuz");
    if image.exists() {
        fs::create_dir_all(tree.root.join("boot"))?;
        fs::rename(image, bzimage(tree))?;
    }
    Ok(())
}

fn bzimage(tree: &Tree) -> PathBuf {
    tree.root.join("boot").join(format!("vmlinuz-{}", tree.release))
}

/// Takes the ELF file out of the bzImage (Documentation/arch/x86/boot.rst: the payload fields of
/// the setup header).
fn extract_vmlinux(tree: &Tree) -> Result<()> {
    let path = bzimage(tree);
    let image = fs::read(&path)?;
    let field = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        Ok(u32::from_le_bytes(bytes.context("a bzImage shorter than its header")?) as usize)
    };
    let setup_sectors =
        usize::from(*image.get(0x1f1).context("a bzImage shorter than its header")?);
    let start = (setup_sectors + 1) * 512 + field(0x248)?;
    // The last four bytes are the uncompressed length.
    let payload =
        image.get(start..start + field(0x24c)?.saturating_sub(4)).context("no payload")?;
    let program = match payload {
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        _ => bail!("{} is compressed in a way that is not known here", path.display()),
    };
    let packed = tree.root.join("boot/payload");
    fs::write(&packed, payload)?;
    let out = fs::File::create(tree.vmlinux())?;
    let status =
        Command::new(program).arg("-dc").arg(&packed).stdout(out).status().context(program)?;
    ensure!(status.success(), "{program} cannot decompress {}", packed.display());
    fs::remove_file(packed)?;
    Ok(fs::remove_file(path)?)
}

/// Changes `/usr/src` and `/usr/lib` in the headers' Makefile and the kbuild link to the places
/// here.
fn relocate_headers(tree: &Tree) -> Result<()> {
    let path = tree.headers().join("Makefile");
    let here = "$(dir $(lastword $(MAKEFILE_LIST)))";
    let output = format!("KBUILD_OUTPUT=/usr/src/linux-headers-{}", tree.release);
    let text = fs::read_to_string(&path)?
        .replace(&output, &format!("KBUILD_OUTPUT := $(abspath {here})"))
        .replace("include /usr/src/", &format!("include {here}../"));
    Ok(fs::write(path, text)?)
}

/// Decompresses the modules, because busybox cannot index compressed ones, and writes modules.dep.
fn index_modules(tree: &Tree) -> Result<()> {
    for unwanted in UNWANTED_MODULES.split_whitespace() {
        let folder = tree.modules().join("kernel").join(unwanted);
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
    }
    let decompress = "find \"$1\" -name '*.ko.xz' -print0 | xargs -0 -r -n 100 -P 4 xz -d";
    run(Command::new("sh").args(["-c", decompress, "sh"]).arg(tree.modules()))?;
    run(Command::new(tree.busybox()).args(["depmod", "-b"]).arg(&tree.root).arg(&tree.release))
        .map(drop)
}
