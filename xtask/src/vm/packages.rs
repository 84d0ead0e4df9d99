//! The cache folder: Debian's kernel, headers and busybox, unpacked and never installed.
//!
//! `$XDG_CACHE_HOME/blkswitch/vm/<kernel>` (or below `~/.cache`) appears whole or not at all, so
//! that any number of runs may want it at once. Packages come through apt from the mirror this
//! machine is configured with, with a private list of suites and a private state: neither root nor
//! any change to the host's apt is needed. Removing the folder is how one gets a newer kernel.

use anyhow::{Context, Result, anyhow, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

/// Modules that no test of block devices wants: four fifths of what would be decompressed and
/// indexed.
const UNWANTED_MODULES: &str = "sound net/bluetooth net/mac80211 net/netfilter drivers/gpu drivers/media drivers/net drivers/staging \
    drivers/iio drivers/usb drivers/infiniband drivers/input drivers/hwmon drivers/platform drivers/video drivers/mtd";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A Debian kernel we test on.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// Debian 12's own.
    V6_1,
    /// Debian 12's backport of Debian 13's: the reference.
    #[default]
    V6_12,
    /// The newest that Debian has for its stable release, whatever that is today.
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

    /// What its release begins with, if that is known.
    fn begin(self) -> &'static str {
        if self == Self::Newest { "" } else { self.name() }
    }

    /// Where its packages are: the suite that has the kernel comes first.
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
    /// The folder that stands for `/` of the packages.
    pub(crate) root: PathBuf,
    /// What `uname -r` says.
    pub(crate) release: String,
}

impl Tree {
    /// The tree of `kernel`, made if it is not there.
    pub(crate) fn get(kernel: Kernel) -> Result<Self> {
        let root = cache_folder()?.join(kernel.name());
        if !root.exists() {
            eprintln!("xtask: unpacking Linux {kernel} to {}", root.display());
            let parent = root.parent().context("a cache folder below another folder")?;
            fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
            let new = parent.join(format!("{kernel}.new-{}", std::process::id()));
            unpack(kernel, &new)?;
            // Another run may have been quicker; its tree is as good.
            if fs::rename(&new, &root).is_err() {
                ensure!(root.exists(), "cannot rename {} to {}", new.display(), root.display());
                fs::remove_dir_all(&new)?;
            }
        }
        let release = fs::read_to_string(root.join("release"))?;
        Ok(Self { root, release })
    }

    /// The kernel as an ELF file, which QEMU starts without decompressing anything.
    pub(crate) fn vmlinux(&self) -> PathBuf {
        self.root.join("boot/vmlinux")
    }

    /// `/lib/modules/<release>`.
    pub(crate) fn modules(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.release)
    }

    /// The folder that `make KDIR=` wants.
    pub(crate) fn headers(&self) -> PathBuf {
        self.root.join("usr/src").join(format!("linux-headers-{}", self.release))
    }

    /// One program that is all the tools the guest needs to start.
    pub(crate) fn busybox(&self) -> PathBuf {
        self.root.join("bin/busybox")
    }
}

fn cache_folder() -> Result<PathBuf> {
    let base =
        std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    Ok(base.or_else(home).context("neither XDG_CACHE_HOME nor HOME is set")?.join("blkswitch/vm"))
}

fn unpack(kernel: Kernel, root: &Path) -> Result<()> {
    let apt = Apt::new(kernel, &root.join("apt"))?;
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
    // Newer images are a name for two other packages.
    let parts = ["linux-binary-", "linux-modules-", "linux-kbuild-"];
    let depends = [apt.depends(&image)?, apt.depends(&headers)?].concat();
    let is_part = |name: &String| {
        name.ends_with("-common") || parts.iter().any(|part| name.starts_with(part))
    };
    names.extend(depends.into_iter().filter(is_part));
    for package in apt.download(&names)? {
        run(Command::new("dpkg").arg("-x").arg(package).arg(root))?;
    }
    fs::remove_dir_all(&apt.folder)?;
    fs::write(root.join("release"), &release)?;
    let tree = Tree { root: root.to_owned(), release };
    name_as_before(&tree)?;
    extract_vmlinux(&tree)?;
    relocate_headers(&tree)?;
    index_modules(&tree)
}

/// An apt of our own: the mirror of the host, our suites, our state.
struct Apt {
    folder: PathBuf,
    options: Vec<String>,
}

impl Apt {
    fn new(kernel: Kernel, folder: &Path) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial", "packages"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let mut sources = String::new();
        for suite in kernel.suites() {
            sources += &format!("deb [signed-by={KEYRING}] {} {suite} main\n", mirror("")?);
        }
        if let (Kernel::V6_1, Ok(security)) = (kernel, mirror("-security")) {
            sources += &format!("deb [signed-by={KEYRING}] {security} bookworm-security main\n");
        }
        fs::write(folder.join("sources.list"), sources)?;
        let at = folder.display();
        let mut options = vec![
            format!("Dir::Etc::sourcelist={at}/sources.list"),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={at}/lists"),
            format!("Dir::Cache={at}/cache"),
            // A mirror that does not answer now may do so in a moment.
            "Acquire::Retries=5".to_owned(),
            // The lists of translations are not worth fetching.
            "Acquire::Languages=none".to_owned(),
        ];
        if kernel.suites()[0].ends_with("-backports") {
            // apt takes nothing from backports unless told to.
            options.push(format!("APT::Default-Release={}", kernel.suites()[0]));
        }
        let apt = Self { folder: folder.to_owned(), options };
        apt.run("apt-get", &["-qq", "update"])?;
        Ok(apt)
    }

    fn run(&self, program: &str, words: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        command.current_dir(self.folder.join("packages"));
        self.options.iter().for_each(|option| {
            command.args(["-o", option]);
        });
        run(command.args(words))
    }

    fn depends(&self, package: &str) -> Result<Vec<String>> {
        let text = self.run("apt-cache", &["depends", "--important", package])?;
        Ok(text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .map(str::to_owned)
            .collect())
    }

    fn download(&self, names: &[String]) -> Result<Vec<PathBuf>> {
        let mut words = vec!["-qq", "download"];
        words.extend(names.iter().map(String::as_str));
        self.run("apt-get", &words)?;
        let entries = fs::read_dir(self.folder.join("packages"))?;
        Ok(entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?)
    }
}

/// The address of the Debian archive (`suffix` "") or of its security archive ("-security") in the
/// host's configuration.
fn mirror(suffix: &str) -> Result<String> {
    let format = "$(RELEASE) $(COMPONENT) $(ORIGIN) $(REPO_URI)";
    let targets = run(Command::new("apt-get").args([
        "indextargets",
        "--format",
        format,
        "Created-By: Packages",
    ]))?;
    for line in targets.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [suite, "main", "Debian", address] = words[..]
            && suite.ends_with(suffix)
            && (!suffix.is_empty() || !suite.contains('-'))
        {
            return Ok(address.to_owned());
        }
    }
    bail!(
        "apt is configured with no Debian{suffix} archive (apt-get indextargets); 'apt-get update' may help"
    )
}

/// Debian 13 has nothing outside `/usr`, and its kernel lies among its modules: gives all the
/// places they had.
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
    // The last four bytes are the length of what was compressed.
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

/// The headers' Makefile and the kbuild link say `/usr/src`, `/usr/lib`: they are elsewhere here.
fn relocate_headers(tree: &Tree) -> Result<()> {
    let path = tree.headers().join("Makefile");
    let text = fs::read_to_string(&path)?;
    Ok(fs::write(
        path,
        text.replace("include /usr/src/", "include $(dir $(lastword $(MAKEFILE_LIST)))../"),
    )?)
}

/// Decompresses the modules (busybox wants every one it indexes plain) and writes modules.dep.
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

/// What a command prints; it must succeed.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} failed ({}): {}", output.status, errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
