//! A real device whose write-back fails: a loop device over a file that cannot grow, on a full
//! tmpfs. The kernel reports the error once and then forgets the pages, so the leaf must keep
//! reporting it. Needs root and a loop device; otherwise the test prints that it is skipped.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use blkswitch_io::{Leaf, LeafError, LeafOptions};
use support::{FUA, WRITE, World};

const MIB: usize = 1 << 20;
const EIO: u32 = 5;

fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output =
        Command::new(program).args(args).output().map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "{program} {args:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// A loop device of 16 MiB over a file on a tmpfs that has room for 1 MiB.
struct Failing {
    device: PathBuf,
    mount: PathBuf,
}

impl Failing {
    fn new(dir: &Path) -> Result<Failing, String> {
        let mount = dir.join("full");
        std::fs::create_dir(&mount).map_err(|error| error.to_string())?;
        let at = mount.to_str().unwrap();
        run("mount", &["-t", "tmpfs", "-o", "size=1m", "tmpfs", at])?;
        let mut failing = Failing { device: PathBuf::new(), mount: mount.clone() };
        let file = mount.join("file");
        let made = std::fs::File::create(&file).and_then(|file| file.set_len(16 * MIB as u64));
        made.map_err(|error| error.to_string())?;
        failing.device = run("losetup", &["--find", "--show", file.to_str().unwrap()])?.into();
        Ok(failing)
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        if !self.device.as_os_str().is_empty() {
            let _ = run("losetup", &["--detach", self.device.to_str().unwrap()]);
        }
        let _ = run("umount", &["--lazy", self.mount.to_str().unwrap()]);
    }
}

fn open(failing: &Failing, world: &World) -> std::sync::Arc<Leaf> {
    let cached = LeafOptions { direct: Some(false), ..LeafOptions::new(world.pool.queues()) };
    let mut opened = None;
    // A queue drops its last reference to a leaf shortly after the device was removed.
    support::eventually("the device is free", || {
        match Leaf::open(&failing.device.to_str().unwrap().parse().unwrap(), &cached) {
            Err(LeafError::Busy(_)) => {}
            leaf => opened = Some(leaf.unwrap()),
        }
        opened.is_some()
    });
    opened.unwrap()
}

#[test]
fn a_flush_that_failed_once_fails_on_every_queue_until_the_leaf_is_opened_anew() {
    let dir = tempfile::tempdir().unwrap();
    let failing = match Failing::new(dir.path()) {
        Ok(failing) => failing,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let world = World::new(2);
    let device = world.device("disk", world.linear(&open(&failing, &world)));
    // New connections go to the queues in turn.
    let mut clients = [world.connect("disk"), world.connect("disk"), world.connect("disk")];
    clients[0].write(0, &vec![0x11; 8 * MIB]).unwrap();
    for (n, client) in [0, 1, 2, 0, 1, 0].into_iter().enumerate() {
        assert_eq!(clients[client].flush(), Err(EIO), "flush {n}, on connection {client}");
    }
    // A small write that has room reaches the medium, but the flush still reports the lost writes.
    clients[1].call(0, WRITE, 0, 512, &[1; 512]).unwrap();
    assert_eq!(clients[1].flush(), Err(EIO));
    let mut gone = clients;
    gone.iter_mut().for_each(|client| client.socket.shutdown(std::net::Shutdown::Both).unwrap());
    support::eventually("the clients are gone", || device.info().opens == 0);
    world.pool.registry().remove(&device).unwrap();
    drop(device);
    let device = world.device("again", world.linear(&open(&failing, &world)));
    let mut client = world.connect("again");
    client.flush().unwrap();
    drop(device);
}

/// A write with FUA that fails reports its own error. It must not use up the error that a later
/// flush has to report.
#[test]
fn a_stable_write_that_fails_swallows_no_error_of_a_flush() {
    let dir = tempfile::tempdir().unwrap();
    let failing = match Failing::new(dir.path()) {
        Ok(failing) => failing,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let world = World::new(1);
    let _device = world.device("disk", world.linear(&open(&failing, &world)));
    let mut client = world.connect("disk");
    client.write(0, &vec![0x11; 8 * MIB]).unwrap();
    // Write back first, as the kernel does by itself after a while. The next sync call of any
    // process gets the error.
    let written_back = run("sync", &[failing.device.to_str().unwrap()]);
    assert!(written_back.is_err(), "{written_back:?}");
    let fua = client.call(FUA, WRITE, 12 << 20, 4096, &[2; 4096]);
    assert_eq!(client.flush(), Err(EIO), "after a stable write that ended with {fua:?}");
}
