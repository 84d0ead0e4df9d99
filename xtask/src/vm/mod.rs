//! `cargo xtask vm`: the laboratory, which runs a script as root under a stock Debian kernel.
//!
//! QEMU emulates the processor, so KVM is not needed. The guest's root is an overlay over the
//! host's root, which is shared read-only over 9p. So programs of the host run in the guest under
//! the same path, and the guest's writes vanish at its end. The laboratory changes only the cache
//! folder of the host and installs nothing. `guest-init.sh` starts the guest;
//! docs/kernel-laboratory.md is the user's page.

mod ending;
mod initramfs;
mod packages;
mod toolchain;

pub(crate) use packages::{Kernel, Tree};

use anyhow::{Context, Result, bail};
use ending::Ending;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Default time limit of a guest: longer than any run, shorter than a stuck CI.
const DEFAULT_TIMEOUT_SECONDS: u64 = 600;
/// Guest memory in MiB: twice the largest region tables of the tests.
const DEFAULT_MEMORY_MIB: u32 = 1024;
/// The exit status of `timeout(1)`.
const EXIT_TIMEOUT: u8 = 124;
/// The guest ended without a status: its kernel crashed.
const EXIT_CRASH: u8 = 125;
/// Boots if the emulator is killed, which is not a failure of the test.
const MAX_BOOTS: u32 = 2;

/// Pause between two checks for a stuck guest.
const LOOK: Duration = Duration::from_secs(5);

/// The guest's console, in the folder of a run.
const CONSOLE: &str = "console";
/// The guest's disk, if it has one: a sparse file in the folder of a run.
const DISK: &str = "disk";
/// The emulator's messages, in the folder of a run.
const ERRORS: &str = "errors";
/// The emulator's notes about reset processors, in the folder of a run.
const RESETS: &str = "resets";

const USAGE: &str = "\
Usage: cargo xtask vm [OPTION]... SCRIPT [ARGUMENT]...

Boots a stock Debian kernel in QEMU, runs SCRIPT in it as root in this folder, prints what it prints and exits
with its status (124: time ran out, 125: the guest's kernel crashed).

  --kernel 6.12|6.1|newest
                      which kernel (6.12)
  --icount            one processor whose clock counts instructions: 1 ns of guest time is 1 instruction
  --cpus N            processors (2)
  --memory MIB        memory (1024)
  --disk MIB          an empty disk, /dev/vda, for what must not be in memory (none)
  --vhost-user SOCKET a vhost-user-blk device at this socket, a queue for each processor; connects again
  --timeout SECONDS   end the guest after that (600)
  --user-space        what is tested is no kernel: a guest whose kernel is stuck is booted once more
  --append WORDS      more words for the kernel's command line
  --prepare           only fill the cache folder";

/// The settings of a guest.
pub(crate) struct Vm {
    pub(crate) kernel: Kernel,
    /// Whether the guest has one processor, with a clock that counts instructions.
    pub(crate) icount: bool,
    /// Number of processors; 1 under `icount`.
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u32,
    /// Size of an empty disk in MiB; 0 for none.
    pub(crate) disk_mib: u32,
    /// The socket of a vhost-user-blk device.
    pub(crate) vhost_user: Option<PathBuf>,
    /// How long the guest may run.
    pub(crate) timeout: Duration,
    /// Whether the test is about a program, so that a stuck kernel is not its failure.
    pub(crate) user_space: bool,
    /// More words for the kernel's command line.
    pub(crate) append: String,
}

impl Default for Vm {
    fn default() -> Self {
        Self {
            kernel: Kernel::default(),
            icount: false,
            cpus: 2,
            memory_mib: DEFAULT_MEMORY_MIB,
            disk_mib: 0,
            vhost_user: None,
            timeout: Duration::from_secs(DEFAULT_TIMEOUT_SECONDS),
            user_space: false,
            append: String::new(),
        }
    }
}

pub(crate) fn main(words: &[String]) -> Result<ExitCode> {
    let mut vm = Vm::default();
    let mut words = words.iter();
    let mut next = |option: &str| words.next().with_context(|| format!("{option} wants a value"));
    loop {
        let Ok(word) = next("SCRIPT") else { bail!("no SCRIPT given\n\n{USAGE}") };
        match word.as_str() {
            "--kernel" => vm.kernel = next("--kernel")?.parse()?,
            "--icount" => vm.icount = true,
            "--cpus" => vm.cpus = number("--cpus", next("--cpus")?)?,
            "--memory" => vm.memory_mib = number("--memory", next("--memory")?)?,
            "--disk" => vm.disk_mib = number("--disk", next("--disk")?)?,
            "--vhost-user" => vm.vhost_user = Some(next("--vhost-user")?.into()),
            "--timeout" => {
                vm.timeout = Duration::from_secs(number("--timeout", next("--timeout")?)?)
            }
            "--user-space" => vm.user_space = true,
            "--append" => vm.append = next("--append")?.clone(),
            "--prepare" => {
                println!("{}", Tree::get(vm.kernel)?.root.display());
                return Ok(ExitCode::SUCCESS);
            }
            "-h" | "--help" => {
                println!("{USAGE}");
                return Ok(ExitCode::SUCCESS);
            }
            option if option.starts_with('-') => bail!("unknown option '{option}'\n\n{USAGE}"),
            _ => {
                let mut command = vec![word.clone()];
                command.extend(words.cloned());
                return vm.run(&command).map(ExitCode::from);
            }
        }
    }
}

pub(crate) fn number<T: std::str::FromStr>(option: &str, word: &str) -> Result<T> {
    word.parse().ok().with_context(|| format!("{option} wants a number, not '{word}'"))
}

impl Vm {
    /// Boots a guest, runs `command` in the current folder with its output on this program's, and
    /// returns its exit status.
    ///
    /// If the emulator is killed, the guest boots once more. After a crash of the guest it does
    /// not, because that is a finding. A stuck kernel is a finding, too, unless the test is about a
    /// program.
    pub(crate) fn run(&self, command: &[String]) -> Result<u8> {
        let tree = Tree::get(self.kernel)?;
        let folder = std::env::current_dir().context("the current folder")?;
        let initramfs = initramfs::build(&tree, &folder, command)?;
        let mut boot = 1;
        loop {
            let scratch = Scratch::new()?;
            let ending = self.boot(&tree, &initramfs, &scratch.0)?;
            ending::show_complaints(&scratch.0);
            if !matches!(ending, Ending::Script(_)) {
                ending::show_console(&scratch.0);
            }
            match ending {
                Ending::Script(status) => return Ok(status),
                Ending::Timeout => {
                    eprintln!("xtask: the guest did not end within {} s", self.timeout.as_secs());
                    return Ok(EXIT_TIMEOUT);
                }
                Ending::Stuck if boot < MAX_BOOTS => {
                    boot += 1;
                    eprintln!(
                        "xtask: THE GUEST'S KERNEL WAS STUCK, see its console above. This says \
                         nothing about the programs that are tested: BOOTING AGAIN"
                    );
                }
                Ending::Stuck => bail!("the guest's kernel was stuck, {MAX_BOOTS} times"),
                Ending::Crash => {
                    eprintln!(
                        "xtask: the guest ended without a status: its kernel crashed, see its \
                         console above"
                    );
                    return Ok(EXIT_CRASH);
                }
                Ending::Killed(signal) if boot < MAX_BOOTS => {
                    boot += 1;
                    eprintln!(
                        "xtask: THE EMULATOR WAS KILLED BY SIGNAL {signal}. This says nothing \
                         about what is tested: BOOTING AGAIN"
                    );
                }
                Ending::Killed(signal) => {
                    bail!("the emulator was killed by signal {signal}, {MAX_BOOTS} times")
                }
                Ending::Gave(exit) => bail!("the emulator ended by itself: {exit}"),
            }
        }
    }

    /// Boots once. The files of the run are in `scratch`.
    fn boot(&self, tree: &Tree, initramfs: &[u8], scratch: &Path) -> Result<Ending> {
        if self.disk_mib > 0 {
            File::create(scratch.join(DISK))?.set_len(u64::from(self.disk_mib) << 20)?;
        }
        let path = scratch.join("initramfs");
        fs::write(&path, initramfs)?;
        let mut child = self
            .qemu(tree, &path, scratch)
            // A pipe without a writer. At the end of its input, QEMU would unplug the output's
            // port.
            .stdin(Stdio::piped())
            .stderr(File::create(scratch.join(ERRORS))?)
            .spawn()
            .context("qemu-system-x86_64 (Debian package qemu-system-x86)")?;
        let is_stuck = || self.user_space && ending::is_stuck(scratch);
        let exit = wait(&mut child, self.timeout, is_stuck)?;
        Ok(if exit.is_none() && is_stuck() { Ending::Stuck } else { ending::of(scratch, exit) })
    }

    fn qemu(&self, tree: &Tree, initramfs: &Path, scratch: &Path) -> Command {
        let mut qemu = Command::new("qemu-system-x86_64");
        // The simplest processor for a current Debian, because it is the fastest to emulate.
        qemu.args([
            "-nodefaults",
            "-no-reboot",
            "-display",
            "none",
            "-machine",
            "q35",
            "-cpu",
            "Nehalem",
        ]);
        if self.icount {
            qemu.args(["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-smp", "1"]);
        } else {
            qemu.args(["-accel", "tcg,thread=multi", "-smp", &self.cpus.to_string()]);
        }
        qemu.args(["-m", &self.memory_mib.to_string()]);
        qemu.arg("-kernel").arg(tree.vmlinux()).arg("-initrd").arg(initramfs);
        // no_timer_check: under load, the boot-time check of the emulated timer sometimes fails and
        // panics. rcu_expedited: device-mapper waits for grace periods at every change, and idle
        // emulated processors make them long. oops=panic: a fault ends the run as a crash, so that
        // it is seen.
        let words =
            "console=ttyS0 loglevel=5 no_timer_check rcupdate.rcu_expedited=1 oops=panic panic=-1";
        // On a busy host the kernel measures its processor's clock several times too fast. The
        // HPET's rate is known.
        let clock = if self.icount { "tsc=reliable" } else { "tsc=unstable clocksource=hpet" };
        qemu.args(["-append", format!("{words} {clock} {}", self.append).trim()]);
        qemu.args([
            "-virtfs",
            "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
        ]);
        qemu.args(["-device", "virtio-serial-pci"]);
        if self.disk_mib > 0 {
            let disk = scratch.join(DISK);
            qemu.arg("-drive").arg(format!("if=virtio,format=raw,file={}", disk.display()));
        }
        if let Some(socket) = &self.vhost_user {
            // The export uses the guest's memory in place, so it must be a file that can be shared.
            let memory =
                format!("memory-backend-memfd,id=memory,size={}M,share=on", self.memory_mib);
            qemu.args(["-object", &memory, "-machine", "memory-backend=memory"]);
            let chardev = format!("socket,id=vhost,reconnect=1,path={}", socket.display());
            qemu.args(["-chardev", &chardev, "-device"]);
            qemu.arg(format!("vhost-user-blk-pci,chardev=vhost,num-queues={}", self.cpus));
        }
        for (port, chardev) in [
            "stdio,id=port0,signal=on".to_owned(),
            format!("file,id=port1,path={}", scratch.join("status").display()),
        ]
        .iter()
        .enumerate()
        {
            qemu.args(["-chardev", chardev]);
            qemu.arg("-device").arg(format!("virtserialport,chardev=port{port},nr={}", port + 1));
        }
        qemu.arg("-serial").arg(format!("file:{}", scratch.join(CONSOLE).display()));
        qemu.args(["-d", "cpu_reset", "-D"]).arg(scratch.join(RESETS));
        qemu
    }
}

/// Waits for the child. `None` if it was killed at the time limit or because it was stuck.
fn wait(
    child: &mut Child,
    timeout: Duration,
    mut is_stuck: impl FnMut() -> bool,
) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + timeout;
    let mut next_look = Instant::now() + LOOK;
    loop {
        if let Some(exit) = child.try_wait()? {
            return Ok(Some(exit));
        }
        let is_over = Instant::now() >= next_look && {
            next_look = Instant::now() + LOOK;
            is_stuck()
        };
        if is_over || Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A folder of this run, removed when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        // Process ids are not enough: containers that share a temporary folder have the same ones.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (next, now) =
            (NEXT.fetch_add(1, Ordering::Relaxed), std::time::SystemTime::UNIX_EPOCH.elapsed()?);
        let name = format!("blkswitch-vm-{}-{next}-{:x}", std::process::id(), now.as_nanos());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // If this fails, a folder is left behind, which does no harm.
        let _ = fs::remove_dir_all(&self.0);
    }
}
