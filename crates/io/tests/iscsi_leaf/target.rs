//! tgt as the tests use it: a daemon with its own control number and port, and one target with two
//! units over files. The tests of the daemon use this file, too.

#![allow(dead_code, reason = "each test program uses its part")]

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::eventually;

/// How initiators log in.
pub(crate) enum Login {
    Open,
    Chap { user: &'static str, secret: &'static str },
}

pub(crate) struct Target {
    pub(crate) iqn: String,
    dir: Arc<tempfile::TempDir>,
    control: u32,
    port: u16,
    daemon: Option<Child>,
    setup: Vec<Vec<String>>,
}

/// The next control number. They are global to the machine, and must be below 32768.
static NEXT: AtomicU32 = AtomicU32::new(0);

fn control_number() -> u32 {
    std::process::id() % 1000 + 1000 * NEXT.fetch_add(1, Ordering::SeqCst)
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Target {
    /// Starts a target. Panics if tgtd cannot run here.
    pub(crate) fn start(bytes: usize, login: &Login) -> Target {
        let number = control_number();
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let iqn = format!("iqn.2026-11.org.example:test{number}");
        let mut setup = vec![format!("--mode target --op new --tid 1 -T {iqn}")];
        for lun in [1, 2] {
            let file = dir.path().join(format!("lun{lun}"));
            std::fs::File::create(&file).unwrap().set_len(bytes as u64).unwrap();
            setup.push(format!(
                "--mode logicalunit --op new --tid 1 --lun {lun} -b {}",
                file.display()
            ));
            let names = format!(
                "scsi_id=IET-{number}-{lun},scsi_sn=IET-{number}-{lun},thin_provisioning=1"
            );
            setup.push(format!(
                "--mode logicalunit --op update --tid 1 --lun {lun} --params {names}"
            ));
        }
        setup.push("--mode target --op bind --tid 1 -I ALL".to_string());
        if let Login::Chap { user, secret } = login {
            setup.push(format!("--mode account --op new --user {user} --password {secret}"));
            setup.push(format!("--mode account --op bind --tid 1 --user {user}"));
        }
        let setup =
            setup.iter().map(|line| line.split(' ').map(str::to_string).collect()).collect();
        let mut target =
            Target { iqn, dir, control: number, port: free_port(), daemon: None, setup };
        target.serve().expect("tgtd, of Debian's package tgt, as root");
        target
    }

    /// Replaces the first unit while sessions use it. The new unit has this size, and this text in
    /// its T10 name.
    pub(crate) fn exchange(&self, bytes: u64, name: &str) {
        let (file, unit) = (self.file(1), ["--mode", "logicalunit", "--tid", "1", "--lun", "1"]);
        // tgt refuses to delete a unit that has requests in flight.
        eventually("the unit is deleted", || {
            self.admin(&[&unit[..], &["--op", "delete"]].concat())
        });
        std::fs::File::options().write(true).open(&file).unwrap().set_len(bytes).unwrap();
        assert!(
            self.admin(&[&unit[..], &["--op", "new", "-b", &file.display().to_string()]].concat())
        );
        let names = format!("scsi_id={name},scsi_sn={name},thin_provisioning=1");
        assert!(self.admin(&[&unit[..], &["--op", "update", "--params", &names]].concat()));
    }

    /// The text in the T10 name of the first unit.
    pub(crate) fn name(&self) -> String {
        format!("IET-{}-1", self.iqn.trim_start_matches("iqn.2026-11.org.example:test"))
    }

    /// Starts another daemon with the same units over the same files, like another member of a
    /// group.
    pub(crate) fn twin(&self) -> Target {
        let (iqn, dir, setup) = (self.iqn.clone(), self.dir.clone(), self.setup.clone());
        let mut target =
            Target { iqn, dir, control: control_number(), port: free_port(), daemon: None, setup };
        target.serve().expect("tgtd, of Debian's package tgt, as root");
        target
    }

    fn serve(&mut self) -> std::io::Result<()> {
        let portal = format!("portal={}", self.portal());
        let control = self.control.to_string();
        let spawned = Command::new("/usr/sbin/tgtd")
            .args(["--foreground", "--iscsi", &portal, "--control-port", &control])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        self.daemon = Some(spawned);
        let mut tries = 0;
        while !self.admin(&["--mode", "sys", "--op", "show"]) {
            let over =
                self.daemon.as_mut().is_none_or(|daemon| daemon.try_wait().unwrap().is_some());
            if over || tries > 1200 {
                return Err(std::io::Error::other("tgtd ended, or does not answer"));
            }
            tries += 1;
            std::thread::sleep(Duration::from_millis(25));
        }
        for line in self.setup.clone() {
            let words: Vec<&str> = line.iter().map(String::as_str).collect();
            assert!(self.admin(&words), "tgtadm {words:?}");
        }
        Ok(())
    }

    fn admin(&self, words: &[&str]) -> bool {
        let mut command = Command::new("/usr/sbin/tgtadm");
        command.args(["--control-port", &self.control.to_string(), "--lld", "iscsi"]).args(words);
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }

    pub(crate) fn address(&self, user: &str, query: &str) -> String {
        self.address_of(1, user, query)
    }

    pub(crate) fn address_of(&self, lun: u32, user: &str, query: &str) -> String {
        format!("iscsi://{user}127.0.0.1:{}/{}/{lun}{query}", self.port, self.iqn)
    }

    /// The data that the first unit has stored.
    pub(crate) fn stored(&self) -> Vec<u8> {
        std::fs::read(self.file(1)).unwrap()
    }

    /// The path of a unit's file.
    pub(crate) fn file(&self, lun: u32) -> PathBuf {
        self.dir.path().join(format!("lun{lun}"))
    }

    /// Adds a unit with this size and block size.
    pub(crate) fn unit(&self, lun: u32, bytes: u64, block_bytes: u32) {
        std::fs::File::create(self.file(lun)).unwrap().set_len(bytes).unwrap();
        let (file, lun, block) =
            (self.file(lun).display().to_string(), lun.to_string(), block_bytes.to_string());
        let unit = ["--mode", "logicalunit", "--tid", "1", "--lun", &lun];
        assert!(
            self.admin(&[&unit[..], &["--op", "new", "-b", &file, "--blocksize", &block]].concat())
        );
        assert!(
            self.admin(
                &[&unit[..], &["--op", "update", "--params", "thin_provisioning=1"]].concat()
            )
        );
    }

    /// The address and port on which it listens.
    pub(crate) fn portal(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The address of its first unit through another portal.
    pub(crate) fn address_by(&self, portal: &str, query: &str) -> String {
        format!("iscsi://{portal}/{}/1{query}", self.iqn)
    }

    fn signal(&self, signal: &str) {
        if let Some(daemon) = &self.daemon {
            let _ = Command::new("kill").args([signal, &daemon.id().to_string()]).status();
        }
    }

    /// Number of sessions that are logged in.
    pub(crate) fn sessions(&self) -> usize {
        let mut command = Command::new("/usr/sbin/tgtadm");
        let number = self.control.to_string();
        command.args([
            "--control-port",
            &number,
            "--lld",
            "iscsi",
            "--mode",
            "conn",
            "--op",
            "show",
            "--tid",
            "1",
        ]);
        String::from_utf8_lossy(&command.output().unwrap().stdout).matches("Session: ").count()
    }

    /// Stops the daemon with SIGSTOP; its connections stay open.
    pub(crate) fn pause(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    /// Kills the daemon; its files stay.
    pub(crate) fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
        }
    }

    pub(crate) fn again(&mut self) {
        // The dead daemon's sockets may still be in the way.
        eventually("tgtd runs again", || self.serve().is_ok());
    }

    /// Changes the first unit's size and the target's number at the next start. tgt makes the
    /// units' names from the number (`scsi_id` appears only in names of a lower rank).
    pub(crate) fn change(&mut self, bytes: usize, number: u32) {
        let file = std::fs::File::options().write(true).open(self.dir.path().join("lun1")).unwrap();
        file.set_len(bytes as u64).unwrap();
        for line in &mut self.setup {
            let at = line.iter().position(|word| word == "--tid");
            at.into_iter().for_each(|at| line[at + 1] = number.to_string());
        }
    }

    /// Adds a unit and removes it again.
    pub(crate) fn another_unit(&self, lun: u32) {
        let (file, lun) = (self.dir.path().join("lun2"), lun.to_string());
        let unit = ["--mode", "logicalunit", "--tid", "1", "--lun", &lun];
        assert!(
            self.admin(&[&unit[..], &["--op", "new", "-b", &file.display().to_string()]].concat())
        );
        assert!(self.admin(&[&unit[..], &["--op", "delete"]].concat()));
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.resume();
        self.kill();
        for name in ["", ".lock"] {
            let _ = std::fs::remove_file(format!("/var/run/tgtd/socket.{}{name}", self.control));
        }
    }
}
