//! The ublk export against a real driver: disks, filesystems on them, servers that die.
//!
//! `cargo xtask system-test ublk-export` runs this in a guest, as root with `ublk_drv` loaded.
//! Elsewhere each test prints why it is skipped. Tests about a machine without a driver run there.

mod fsx;
mod lab;
mod lifecycle;
mod recovery;
mod use_as_disk;
mod zero_copy;

use lab::{Lab, Under};

#[test]
fn without_a_driver_the_error_says_so() {
    if Lab::has_driver() {
        println!("skipped: this machine has a ublk driver");
        return;
    }
    let lab = Lab::new(1, Under::Null);
    let error = lab.attach(None).unwrap_err();
    assert!(matches!(error, blkswitch_io::export::ublk::UblkError::NoDriver { .. }), "{error}");
    let text = error.to_string();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    for part in [
        "/dev/ublk-control does not exist",
        "modprobe ublk_drv",
        "6.1) cannot do it",
        release.trim(),
    ] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    assert_eq!(lab.device.info().opens, 0, "a failed attach leaves nothing behind");
    assert_eq!(blkswitch_io::export::ublk::found().unwrap(), []);
}

#[test]
fn without_root_the_error_says_so() {
    if !lab::ready() {
        return;
    }
    let lab = Lab::new(1, Under::Null);
    std::thread::scope(|scope| {
        let error = scope.spawn(|| {
            lab::drop_root();
            lab.attach(None).unwrap_err()
        });
        let text = error.join().unwrap().to_string();
        assert!(text.contains("ublk needs root"), "{text}");
    });
    assert_eq!(lab.device.info().opens, 0);
    lab.attach(None).unwrap();
}
