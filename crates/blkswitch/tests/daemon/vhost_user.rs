//! `attach --vhost-user`: sockets for front ends of virtual machines. What goes over them is tested
//! in `crates/io/tests/vhost_user` and `tests/system/vhost-user.sh`.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use blkswitch::protocol::{self, VhostUser, route};
use serde_json::{Value, json};

use crate::fixture::{Daemon, eventually};
use crate::state::Kept;

fn socket(daemon: &Daemon, name: &str) -> Option<VhostUser> {
    daemon.describe(name).vhost_user
}

#[test]
fn a_socket_is_shown_private_and_gone_when_it_is_detached() {
    let daemon = Daemon::start();
    daemon.create("disk", "0 64 zero").expect_ok();
    let said = daemon.run(&["attach", "disk", "--vhost-user", "--queues", "3"]).stdout;
    let path = PathBuf::from(String::from_utf8_lossy(&said).trim_end());
    assert_eq!(path, daemon.path("disk.vhost"));
    let file = std::fs::metadata(&path).unwrap();
    assert!(file.file_type().is_socket() && file.permissions().mode() & 0o777 == 0o600);
    let shown = VhostUser { socket: path.display().to_string(), queues: 3, connected: false };
    assert_eq!(socket(&daemon, "disk"), Some(shown.clone()));
    assert_eq!(daemon.describe("disk").open_count, 1);
    for verb in ["info", "ls"] {
        let text = String::from_utf8(daemon.run(&[verb]).stdout).unwrap();
        assert!(text.contains(&shown.socket), "{text}");
    }
    let again = daemon.on("PUT", route::VHOST_USER, "disk", Value::Null).error();
    assert_eq!(again.errno, protocol::Errno::Ebusy, "{}", again.reason);
    let wrong = daemon.on("PUT", route::VHOST_USER, "disk", json!({"queues": 257})).error();
    assert!(wrong.reason.contains("attached"), "{}", wrong.reason);
    // A front end is there: only by force.
    let front_end = UnixStream::connect(&path).unwrap();
    eventually("it is connected", || socket(&daemon, "disk").unwrap().connected);
    let refused = daemon.on("DELETE", route::VHOST_USER, "disk", Value::Null).error();
    assert!(refused.reason.contains("a vhost-user front end is connected"), "{}", refused.reason);
    daemon.run(&["detach", "disk", "--force"]);
    assert!(socket(&daemon, "disk").is_none() && !path.exists());
    drop(front_end);
    let none = daemon.on("DELETE", route::VHOST_USER, "disk", Value::Null).error();
    assert_eq!(none.errno, protocol::Errno::Enxio, "{}", none.reason);
    // A device that is removed takes its socket with it, unless somebody uses it.
    daemon.run(&["attach", "disk", "--vhost-user"]);
    assert_eq!(socket(&daemon, "disk").unwrap().queues, 64);
    daemon.remove("disk");
    assert!(!path.exists());
}

#[test]
fn a_device_may_have_its_socket_from_the_beginning() {
    let daemon = Daemon::start();
    daemon.run(&["create", "disk", "--vhost-user", "--queues", "2", "--table", "0 64 zero"]);
    assert_eq!(socket(&daemon, "disk").unwrap().queues, 2);
    let body = json!({"name": "bare", "vhost_user": {}});
    let refused = daemon.request("POST", route::DEVICES, body).error();
    assert!(refused.reason.contains("without a table"), "{}", refused.reason);
    let body = json!({"name": "many", "table": "0 64 zero", "vhost_user": {"queues": 257}});
    let refused = daemon.request("POST", route::DEVICES, body).error();
    assert!(refused.reason.contains("1 to 256 is allowed"), "{}", refused.reason);
    assert!(socket(&daemon, "many").is_none() && !daemon.path("many.vhost").exists());
}

#[test]
fn a_daemon_that_comes_back_listens_where_front_ends_expect_it() {
    let kept = Kept::new();
    let mut daemon = kept.start();
    kept.create(&daemon, "disk", 10);
    daemon.run(&["attach", "disk", "--vhost-user", "--queues", "5"]);
    daemon.run(&["rename", "disk", "vol"]);
    let before = socket(&daemon, "vol").unwrap();
    assert_eq!(before.socket, daemon.path("disk.vhost").display().to_string());
    for end in ["killed", "stopped"] {
        if end == "stopped" {
            daemon.terminate();
            assert_eq!(daemon.wait().0, Some(0));
        } else {
            daemon.kill();
        }
        daemon.start_again_with(&kept.options.each_ref().map(String::as_str));
        assert_eq!(socket(&daemon, "vol").as_ref(), Some(&before), "{end}");
        UnixStream::connect(&before.socket).unwrap();
    }
    daemon.run(&["detach", "vol", "--force"]);
    daemon.kill();
    daemon.start_again_with(&kept.options.each_ref().map(String::as_str));
    assert_eq!(socket(&daemon, "vol"), None);
}
