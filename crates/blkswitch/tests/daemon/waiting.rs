//! A slow file or server delays only its own device.

use std::thread;

use blkswitch::protocol::{Errno, route};
use serde_json::{Value, json};

use crate::fixture::{Daemon, eventually};

/// The daemon waits two seconds for a file that another daemon has open.
#[test]
fn a_create_that_waits_holds_up_no_other_verb_and_says_what_it_waits_for() {
    let (owner, daemon) = (Daemon::start(), Daemon::start());
    let file = owner.path("ram0").display().to_string();
    owner.create("owner", &format!("0 8 linear {file} 0")).expect_ok();
    daemon.create("there", "0 8 zero").expect_ok();
    let table = format!("0 8 linear {file} 0");
    thread::scope(|scope| {
        let waits = scope.spawn(|| daemon.create("waits", &table));
        eventually("the device says what it waits for", || {
            let reply = daemon.on("GET", route::DEVICE, "waits", Value::Null);
            reply.is_ok()
                && reply.json::<Value>()["waits"].as_str().is_some_and(|text| text.contains(&file))
        });
        daemon
            .create("other", &format!("0 8 linear {} 0", daemon.path("ram1").display()))
            .expect_ok();
        daemon.on("PUT", route::TABLE, "there", json!({"table": "0 8 error"})).expect_ok();
        daemon.on("POST", route::RESUME, "there", json!({})).expect_ok();
        daemon.on("DELETE", route::DEVICE, "there", Value::Null).expect_ok();
        let taken = daemon.create("waits", "0 8 zero").error();
        assert_eq!(taken.errno, Errno::Ebusy);
        assert!(taken.reason.contains(&format!("waits for '{file}'")), "{}", taken.reason);
        let busy = daemon.on("PUT", route::TABLE, "waits", json!({"table": "0 8 zero"})).error();
        assert!(busy.reason.contains("is busy: another load waits for"), "{}", busy.reason);
        assert!(!waits.is_finished(), "all others were faster than the one that waits");
        assert_eq!(waits.join().unwrap().error().errno, Errno::Ebusy);
    });
}
