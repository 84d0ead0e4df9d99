//! Downloads and unpacks Debian packages of any suite, without installing them.
//!
//! Packages come through apt from this machine's mirror, with a private list of suites and a
//! private state. So this needs no root, and does not change the host's apt.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An apt with the host's mirror, but with its own suites and state.
pub(crate) struct Apt {
    pub(crate) folder: PathBuf,
    options: Vec<String>,
}

impl Apt {
    /// Reads the package lists of `suites` (the first one has priority), and of Debian 12's
    /// security archive if `security` is set and the host has it. Keeps all files below `folder`.
    pub(crate) fn new(suites: &[&str], security: bool, folder: &Path) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial", "packages"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let mut sources = String::new();
        for suite in suites {
            sources += &format!("deb [signed-by={KEYRING}] {} {suite} main\n", mirror("")?);
        }
        if let (true, Ok(security)) = (security, mirror("-security")) {
            sources += &format!("deb [signed-by={KEYRING}] {security} bookworm-security main\n");
        }
        fs::write(folder.join("sources.list"), sources)?;
        let at = folder.display();
        let mut options = vec![
            format!("Dir::Etc::sourcelist={at}/sources.list"),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={at}/lists"),
            format!("Dir::Cache={at}/cache"),
            // A mirror may fail to answer for a moment.
            "Acquire::Retries=5".to_owned(),
            // Translations are not needed.
            "Acquire::Languages=none".to_owned(),
        ];
        if suites[0].ends_with("-backports") {
            // Without this, apt takes nothing from backports.
            options.push(format!("APT::Default-Release={}", suites[0]));
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

    /// The names of the packages that `package` depends on.
    pub(crate) fn depends(&self, package: &str) -> Result<Vec<String>> {
        let text = self.run("apt-cache", &["depends", "--important", package])?;
        Ok(text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .map(str::to_owned)
            .collect())
    }

    /// Downloads these packages without their dependencies. The next call removes the files.
    pub(crate) fn download(&self, names: &[String]) -> Result<Vec<PathBuf>> {
        let folder = self.folder.join("packages");
        fs::remove_dir_all(&folder)?;
        fs::create_dir(&folder)?;
        let mut words = vec!["-qq", "download"];
        words.extend(names.iter().map(String::as_str));
        self.run("apt-get", &words)?;
        let entries = fs::read_dir(folder)?;
        Ok(entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?)
    }

    /// Downloads these packages and all their dependencies, as for a machine without packages.
    pub(crate) fn download_all(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let nothing_installed = ["-qq", "-y", "-o", "Dir::State::status=/dev/null"];
        let download = ["--download-only", "--no-install-recommends", "install"];
        self.run("apt-get", &[&nothing_installed[..], &download[..], names].concat())?;
        let entries = fs::read_dir(self.folder.join("cache/archives"))?;
        let paths = entries.map(|entry| entry.map(|entry| entry.path()));
        let mut packages = paths.collect::<Result<Vec<_>, _>>()?;
        packages.retain(|path| path.extension().is_some_and(|end| end == "deb"));
        Ok(packages)
    }
}

/// Unpacks the files of a package below `root`.
pub(crate) fn unpack(package: &Path, root: &Path) -> Result<()> {
    run(Command::new("dpkg").arg("-x").arg(package).arg(root)).map(drop)
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
        "apt is configured with no Debian{suffix} archive (apt-get indextargets); 'apt-get \
         update' may help"
    )
}

/// `$XDG_CACHE_HOME/blkswitch`, or below `~/.cache`.
pub(crate) fn cache_folder() -> Result<PathBuf> {
    let base =
        std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    Ok(base.or_else(home).context("neither XDG_CACHE_HOME nor HOME is set")?.join("blkswitch"))
}

/// Makes the folder `path` once. `fill` makes it under another name, so that it appears whole or
/// not at all. Any number of runs may call this at once.
pub(crate) fn made_once(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let parent = path.parent().context("a cache folder below another folder")?;
    fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    let new = path.with_extension(format!("new-{}", std::process::id()));
    fill(&new)?;
    // If another run was faster, its folder serves as well.
    if fs::rename(&new, path).is_err() {
        ensure!(path.exists(), "cannot rename {} to {}", new.display(), path.display());
        fs::remove_dir_all(&new)?;
    }
    Ok(())
}

/// Runs a command and returns its output. A failure of the command is an error.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} failed ({}): {}", output.status, errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
