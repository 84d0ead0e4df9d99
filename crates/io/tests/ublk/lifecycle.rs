//! Attaches and detaches disks at inconvenient moments.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use blkswitch_io::export::ublk::{self, Options, UblkError};

use crate::lab::{self, Folder, Lab, Under, run};

#[test]
fn what_makes_no_sense_is_refused() {
    if !lab::ready() {
        return;
    }
    let lab = Lab::new(1, Under::Null);
    assert!(matches!(lab.pool.detach_ublk(&lab.device, true), Err(UblkError::NotAttached(_))));
    let bare = lab.pool.registry().create("bare", "", None).unwrap();
    let options = Options::default();
    assert!(matches!(lab.pool.attach_ublk(&bare, &options), Err(UblkError::Table(_))));
    lab.device.suspend().unwrap();
    assert!(matches!(lab.attach(None), Err(UblkError::Suspended(_))));
    lab.device.resume().unwrap();
    lab.attach(None).unwrap();
    assert!(matches!(lab.attach(None), Err(UblkError::Attached(_))));
    assert!(lab.pool.registry().remove(&lab.device).is_err(), "it counts as open");
    lab.device.suspend().unwrap();
    assert!(matches!(lab.pool.detach_ublk(&lab.device, false), Err(UblkError::Suspended(_))));
    lab.device.resume().unwrap();
    let found = ublk::found().unwrap();
    assert_eq!(found.iter().map(|found| found.server).collect::<Vec<_>>(), [ublk::Server::Alive]);
    lab.detach();
    lab.pool.registry().remove(&lab.device).unwrap();
}

#[test]
fn a_device_comes_and_goes() {
    if !lab::ready() {
        return;
    }
    let lab = Lab::new(2, Under::Memories);
    for _ in 0..10 {
        let node = lab.attach(None).unwrap();
        lab::verify_while(&node.path(), 1, |_| std::thread::sleep(Duration::from_millis(20)));
        lab.detach();
    }
    assert!(!Path::new("/dev/ublkb0").exists());
}

#[test]
fn two_devices_share_the_queues() {
    if !lab::ready() {
        return;
    }
    let lab = Lab::new(1, Under::Memories);
    let other = lab.pool.registry().create("other", "", None).unwrap();
    other.load(lab::table(lab.pool.queues(), &Under::Memories, 40, false)).unwrap();
    other.resume().unwrap();
    let nodes =
        [lab.attach(None).unwrap(), lab.pool.attach_ublk(&other, &Options::default()).unwrap()];
    lab::verify_while(&nodes[0].path(), 2, |_| {
        lab::verify_while(&nodes[1].path(), 2, |_| std::thread::sleep(Duration::from_secs(1)));
        // Suspending the device delays its own disk only; the other one can be detached.
        lab.device.suspend().unwrap();
        lab.pool.detach_ublk(&other, false).unwrap();
        lab.device.resume().unwrap();
    });
    lab.detach();
}

#[test]
fn in_use_it_goes_by_force_alone() {
    if !lab::ready() {
        return;
    }
    run("modprobe", &["ext4"]);
    let lab = Lab::new(2, Under::Memories);
    let node = lab.attach(None).unwrap();
    run("mkfs.ext4", &["-q", "-F", &node.path()]);
    let at = Folder::new("forced");
    let mount = at.0.to_str().unwrap();
    run("mount", &[&node.path(), mount]);
    let mut file = std::fs::File::create(at.0.join("file")).unwrap();
    file.write_all(&[7; 1 << 20]).unwrap();
    let error = lab.pool.detach_ublk(&lab.device, false).unwrap_err();
    assert!(matches!(error, UblkError::InUse { .. }), "{error}");
    file.sync_all().unwrap();
    assert_eq!(lab.pool.ublk_node(&lab.device), Some(node), "the refusal changes nothing");
    // Requests wait at the gate, and nobody will open it.
    lab.device.suspend().unwrap();
    std::thread::scope(|scope| {
        let write =
            scope.spawn(move || file.write_all(&[8; 4 << 20]).and_then(|()| file.sync_all()));
        std::thread::sleep(Duration::from_millis(300));
        lab.pool.detach_ublk(&lab.device, true).unwrap();
        assert!(write.join().unwrap().is_err(), "an fsync that was not served fails");
    });
    assert!(!Path::new(&node.path()).exists());
    lab.device.resume().unwrap();
    assert_eq!(lab.device.info().opens, 0);
    run("umount", &[mount]);
    let node = lab.attach(None).unwrap();
    // Status 1 means that errors were corrected. Unwritten data is lost; the filesystem is not.
    let fsck =
        std::process::Command::new("fsck.ext4").args(["-f", "-p", &node.path()]).status().unwrap();
    assert!(matches!(fsck.code(), Some(0 | 1)), "{fsck}");
    lab.detach();
}
