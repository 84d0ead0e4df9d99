//! `serve --state`: devices, tables and region maps outlive the daemon, however it ends.

use std::path::{Path, PathBuf};

use blkswitch::protocol::route;
use serde_json::json;

use crate::fixture::{Daemon, SECTOR, eventually, serve};

/// A folder with a daemon that keeps its devices in `state` below it.
pub(crate) struct Kept {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) options: [String; 2],
}

impl Kept {
    pub(crate) fn new() -> Kept {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state").display().to_string();
        Kept { folder, options: ["--state".into(), state] }
    }

    pub(crate) fn start(&self) -> Daemon {
        Daemon::start_with(&self.options.each_ref().map(String::as_str))
    }

    /// A table of `regions` regions of 8 sectors over three files, which are made if they do not
    /// exist.
    pub(crate) fn table(&self, regions: u64) -> String {
        let paths: String = (0..3).map(|nr| format!(" {} 0", self.path(nr))).collect();
        format!("0 {} switch 3 8 0{paths}", regions * 8)
    }

    pub(crate) fn path(&self, nr: u32) -> String {
        self.folder.path().join(format!("path{nr}")).display().to_string()
    }

    pub(crate) fn create(&self, daemon: &Daemon, name: &str, regions: u64) {
        let body =
            json!({"name": name, "table": self.table(regions), "leaves": {"make_files": true}});
        daemon.request("POST", route::DEVICES, body).expect_ok();
    }

    /// The file of the only map.
    pub(crate) fn map(&self) -> PathBuf {
        let entries = std::fs::read_dir(&self.options[1]).unwrap();
        let mut paths = entries.map(|entry| entry.unwrap().path());
        paths.find(|path| path.file_name().unwrap().to_str().unwrap().starts_with("map-")).unwrap()
    }

    fn maps(&self) -> usize {
        let entries = std::fs::read_dir(Path::new(&self.options[1])).unwrap();
        entries
            .filter(|entry| {
                entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("map-")
            })
            .count()
    }
}

#[test]
fn a_daemon_that_was_killed_or_stopped_comes_back_with_devices_and_maps() {
    let kept = Kept::new();
    let mut daemon = kept.start();
    kept.create(&daemon, "disk", 10);
    daemon.create("upper", "0 40 linear /dev/blkswitch/disk 8").expect_ok();
    daemon.message("disk", 0, b"set_region_mappings 0:2 :2 R1,3 9:0").expect_ok();
    daemon.run(&["rename", "disk", "--setuuid", "id-1"]);
    daemon.run(&["suspend", "upper"]);
    let (map, table) = (daemon.map("disk", 0), daemon.run(&["table"]).stdout);
    assert_eq!(map, [2, 2, 2, 2, 2, 2, 0, 1, 2, 0]);
    let mut client = daemon.nbd("disk");
    client.write(9 * 8 * 512, &[9; SECTOR], true).unwrap();
    for end in ["killed", "stopped", "killed again"] {
        if end == "stopped" {
            daemon.terminate();
            assert_eq!(daemon.wait().0, Some(0));
        } else {
            daemon.kill();
        }
        drop(daemon);
        daemon = kept.start();
        assert_eq!(daemon.map("disk", 0), map, "{end}");
        assert_eq!(daemon.run(&["table"]).stdout, table, "{end}");
        let (disk, upper) = (daemon.describe("disk"), daemon.describe("upper"));
        assert_eq!(
            (disk.uuid.as_str(), disk.suspended, upper.suspended),
            ("id-1", false, true),
            "{end}"
        );
        assert_eq!(daemon.nbd("disk").read(9 * 8 * 512, SECTOR).unwrap(), [9; SECTOR], "{end}");
    }
    daemon.message("disk", 0, b"set_region_mappings 9:1").expect_ok();
    daemon.kill();
    let daemon = kept.start();
    assert_eq!(daemon.map("disk", 0)[9], 1, "maps that were read back are kept, too");
}

#[test]
fn what_is_replaced_or_removed_does_not_come_back() {
    let kept = Kept::new();
    let mut daemon = kept.start();
    kept.create(&daemon, "a", 10);
    kept.create(&daemon, "deferred", 10);
    daemon.message("a", 0, b"set_region_mappings 0:1").expect_ok();
    daemon.on("PUT", route::TABLE, "a", json!({"table": kept.table(5)})).expect_ok();
    assert_eq!(kept.maps(), 3, "the inactive table has one, too");
    daemon.run(&["resume", "a"]);
    assert_eq!((daemon.map("a", 0), kept.maps()), (vec![0, 1, 2, 0, 1], 2));
    let client = daemon.nbd("deferred");
    assert!(daemon.run(&["remove", "--deferred", "deferred"]).status.success());
    daemon.kill();
    drop((client, daemon));
    let daemon = kept.start();
    assert_eq!(daemon.map("a", 0), [0, 1, 2, 0, 1]);
    assert_eq!(
        (String::from_utf8(daemon.run(&["ls"]).stdout).unwrap(), kept.maps()),
        ("a\t(0:0)\n".into(), 1)
    );
    assert!(daemon.run(&["remove", "a"]).status.success());
    assert_eq!(kept.maps(), 0);
    drop(daemon);
    let daemon = kept.start();
    assert_eq!(daemon.run(&["ls"]).stdout, b"No devices found\n");
}

#[test]
fn what_cannot_be_kept_is_said_and_what_cannot_be_made_again_is_not_forgotten() {
    let kept = Kept::new();
    let mut daemon = kept.start();
    kept.create(&daemon, "files", 10);
    daemon.create("memory", "0 80 switch 1 8 0 mem:40K 0").expect_ok();
    eventually("a warning", || daemon.log().contains("is not kept"));
    let second =
        serve(&kept.folder.path().join("second"), &["--state", &kept.options[1]]).output().unwrap();
    let error = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && error.contains("another daemon uses it"), "{error}");
    daemon.kill();
    drop(daemon);
    let (path, aside) = (kept.path(1), kept.folder.path().join("aside"));
    std::fs::rename(&path, &aside).unwrap();
    let daemon = kept.start();
    let away = daemon.describe("files").away.unwrap_or_default();
    assert!(away.contains(&path), "{away}");
    std::fs::rename(&aside, &path).unwrap();
    served(&daemon, "files");
    assert_eq!(String::from_utf8(daemon.run(&["ls"]).stdout).unwrap(), "files\t(0:0)\n");
}

/// Waits until a device has its table.
fn served(daemon: &Daemon, name: &str) {
    eventually("the device has its table", || daemon.describe(name).away.is_none());
}

/// A file is missing when the daemon starts. Its device exists and says why it is not served; all
/// other devices are served; nothing is forgotten; and the device recovers by itself when the file
/// is back.
#[test]
fn a_device_whose_file_is_away_stops_no_other_and_comes_back_by_itself() {
    let kept = Kept::new();
    let mut daemon = kept.start();
    kept.create(&daemon, "disk", 10);
    let other = kept.folder.path().join("other").display().to_string();
    let body = json!({"name": "other", "table": format!("0 80 linear {other} 0"), "leaves": {"make_files": true}});
    daemon.request("POST", route::DEVICES, body).expect_ok();
    daemon.create("upper", "0 40 linear /dev/blkswitch/disk 8").expect_ok();
    daemon.message("disk", 0, b"set_region_mappings 0:2 R1,9").expect_ok();
    daemon.nbd("upper").write(0, &[7; SECTOR], true).unwrap();
    let table = daemon.run(&["table"]).stdout;
    daemon.kill();
    drop(daemon);
    let (path, aside) = (kept.path(2), kept.folder.path().join("aside"));
    std::fs::rename(&path, &aside).unwrap();
    for _ in 0..2 {
        let mut daemon = kept.start();
        daemon.nbd("other").write(0, &[1; SECTOR], true).unwrap();
        let shown = String::from_utf8(daemon.run(&["info", "disk"]).stdout).unwrap();
        assert!(
            shown.contains(&format!("Away:              line 1: path 2: cannot open '{path}'")),
            "{shown}"
        );
        let listed = String::from_utf8(daemon.run(&["ls"]).stdout).unwrap();
        assert!(listed.contains("disk\t(0:0)\taway\n"), "{listed}");
        let status = String::from_utf8(daemon.run(&["status", "disk"]).stdout).unwrap();
        assert!(status.contains("0 80 switch away: line 1"), "{status}");
        assert_eq!(daemon.run(&["table"]).stdout, table);
        let state = String::from_utf8(daemon.run(&["state", "ls"]).stdout).unwrap();
        assert!(
            state.contains("disk\t(0:0)\taway: ") && state.contains("other\t(0:1)\tserved"),
            "{state}"
        );
        // The device is exported with its size, and so is the device above it.
        for (name, bytes) in [("disk", 80 * 512), ("upper", 40 * 512)] {
            let mut client = daemon.nbd(name);
            assert_eq!(client.size(), bytes, "{name}");
            assert!(client.read(0, SECTOR).is_err(), "{name}");
        }
        let refused = daemon.message("disk", 0, b"set_region_mappings 0:1").error();
        assert!(refused.reason.contains("is away"), "{}", refused.reason);
        assert!(!daemon.run(&["state", "forget", "other"]).status.success(), "it is served");
        daemon.kill();
    }
    let mut daemon = kept.start();
    assert!(daemon.run(&["rename", "disk", "renamed"]).status.success());
    std::fs::rename(&aside, &path).unwrap();
    served(&daemon, "renamed");
    assert_eq!(daemon.map("renamed", 0), [2; 10]);
    assert_eq!(daemon.nbd("upper").read(0, SECTOR).unwrap(), [7; SECTOR]);
    daemon.message("renamed", 0, b"set_region_mappings 0:1").expect_ok();
    daemon.kill();
    drop(daemon);
    std::fs::rename(&path, &aside).unwrap();
    let daemon = kept.start();
    assert!(daemon.run(&["remove", "upper"]).status.success());
    assert!(daemon.run(&["state", "forget", "renamed"]).status.success());
    let ls = String::from_utf8(daemon.run(&["ls"]).stdout).unwrap();
    assert_eq!((ls.as_str(), kept.maps()), ("other\t(0:1)\n", 0));
}

/// A table keeps the name by which it was loaded, even if another table has opened the file by
/// another name. After a restart, either name may be gone or lead elsewhere.
#[test]
fn two_names_of_one_file_stay_what_their_tables_were_loaded_by() {
    let kept = Kept::new();
    let mut daemon = kept.start();
    let names = ["first", "hard", "soft"].map(|name| kept.folder.path().join(name));
    std::fs::write(&names[0], [0; 40 * 512]).unwrap();
    std::fs::hard_link(&names[0], &names[1]).unwrap();
    std::os::unix::fs::symlink(&names[1], &names[2]).unwrap();
    let words = names.each_ref().map(|name| name.display().to_string());
    let tables = [
        format!("0 8 linear {} 0", words[0]),
        format!("0 8 linear {} 8", words[1]),
        format!("0 16 switch 2 8 0 {} 0 {} 16", words[2], words[1]),
    ];
    for (name, table) in ["first", "hard", "both"].iter().zip(&tables) {
        daemon.create(name, table).expect_ok();
    }
    let shown = |daemon: &Daemon, name: &str| {
        String::from_utf8(daemon.run(&["table", name]).stdout).unwrap().trim().to_owned()
    };
    let check = |daemon: &Daemon| {
        for (name, table) in ["first", "hard", "both"].iter().zip(&tables) {
            assert_eq!(shown(daemon, name), *table);
        }
    };
    check(&daemon);
    daemon.nbd("first").write(0, &[5; SECTOR], true).unwrap();
    assert_eq!(daemon.nbd("both").read(0, SECTOR).unwrap(), [5; SECTOR], "one leaf");
    daemon.kill();
    drop(daemon);
    std::fs::remove_file(&names[0]).unwrap();
    let daemon = kept.start();
    check(&daemon);
    let away = ["first", "hard", "both"].map(|name| daemon.describe(name).away.is_some());
    assert_eq!(away, [true, false, false]);
}

/// A path that cannot be written is refused with its name, unless the table is read-only. If it has
/// become read-only by the next start, it counts as failed and does not stop anything else.
#[test]
fn a_read_only_path_is_refused_and_one_that_has_become_so_stops_nothing_else() {
    let kept = Kept::new();
    let (server, mut daemon) = (Daemon::start(), kept.start());
    let serve = |read_only: bool| {
        let table = format!("0 80 linear {} 0", server.path("ram0").display());
        let load = json!({"table": table, "read_only": read_only});
        server.on("PUT", route::TABLE, "disk", load).expect_ok();
        server.on("POST", route::RESUME, "disk", json!({})).expect_ok();
    };
    server.request("POST", route::DEVICES, json!({"name": "disk"})).expect_ok();
    serve(true);
    let remote = format!("nbd+unix:///disk?socket={}", server.path("nbd.sock").display());
    let files = [0, 1].map(|nr| kept.path(nr));
    files.iter().for_each(|file| std::fs::write(file, [0; 80 * SECTOR]).unwrap());
    let table = format!("0 80 switch 3 8 0 {} 0 {remote} 0 {} 0", files[0], files[1]);
    let group = format!("0 80 multipath 0 0 1 1 round-robin 0 1 0 {remote}");
    for table in [&table, &group] {
        let refused = daemon.create("disk", table).error();
        assert!(refused.reason.contains(&format!("'{remote}' is read-only")), "{}", refused.reason);
    }
    let read_only = json!({"name": "disk", "table": table, "read_only": true});
    daemon.request("POST", route::DEVICES, read_only).expect_ok();
    daemon.remove("disk");
    serve(false);
    daemon.create("disk", &table).expect_ok();
    daemon.kill();
    drop(daemon);
    serve(true);
    let daemon = kept.start();
    let shown = daemon.describe("disk");
    assert_eq!((shown.away, shown.read_only_paths), (None, vec![remote]));
    let mut client = daemon.nbd("disk");
    for region in 0..3u64 {
        let at = region * 8 * SECTOR as u64;
        client.read(at, SECTOR).unwrap();
        assert_eq!(client.write(at, &[1; SECTOR], false).is_ok(), region != 1, "{region}");
    }
}

/// A user who does not want to wait gives the device another table.
#[test]
fn a_device_whose_file_is_away_can_be_given_another_table_and_a_suspended_one_stays_so() {
    let kept = Kept::new();
    let mut daemon = kept.start();
    kept.create(&daemon, "one", 10);
    kept.create(&daemon, "two", 10);
    daemon.run(&["suspend", "two"]);
    daemon.kill();
    drop(daemon);
    let (path, aside) = (kept.path(2), kept.folder.path().join("aside"));
    std::fs::rename(&path, &aside).unwrap();
    let mut daemon = kept.start();
    assert!(daemon.describe("one").away.is_some() && daemon.describe("two").away.is_some());
    let table = format!("0 80 linear {} 0", kept.path(0));
    daemon.on("PUT", route::TABLE, "one", json!({"table": table})).expect_ok();
    daemon.on("POST", route::RESUME, "one", json!({})).expect_ok();
    assert_eq!(daemon.describe("one").away, None);
    std::fs::rename(&aside, &path).unwrap();
    served(&daemon, "two");
    assert!(daemon.describe("two").suspended);
    daemon.kill();
    drop(daemon);
    let daemon = kept.start();
    let shown = String::from_utf8(daemon.run(&["table", "one"]).stdout).unwrap();
    assert_eq!(shown.trim(), table);
}

#[test]
fn a_device_that_could_not_be_made_again_has_lost_nothing() {
    let kept = Kept::new();
    let mut daemon = kept.start();
    let other = kept.folder.path().join("other").display().to_string();
    let table = format!("{}\n80 80 linear {other} 0\n", kept.table(10));
    let body = json!({"name": "both", "table": table, "leaves": {"make_files": true}});
    daemon.request("POST", route::DEVICES, body).expect_ok();
    kept.create(&daemon, "shrunk", 10);
    daemon.message("both", 0, b"set_region_mappings 0:1 R1,9").expect_ok();
    daemon.message("shrunk", 0, b"set_region_mappings 0:2 R1,9").expect_ok();
    daemon.kill();
    drop(daemon);
    let away = |name: &str, why: &str| {
        let mut daemon = kept.start();
        assert!(daemon.describe(name).away.is_some(), "{why}");
        daemon.kill();
    };
    // The first segment is built, with its map, before the second one fails.
    std::fs::rename(&other, format!("{other}.aside")).unwrap();
    away("both", "a second segment without its file");
    std::fs::rename(format!("{other}.aside"), &other).unwrap();
    // Every segment is built before a path is found to be too short.
    let file = std::fs::OpenOptions::new().write(true).open(kept.path(2)).unwrap();
    file.set_len(4096).unwrap();
    away("shrunk", "a file that is too short");
    file.set_len(10 * 8 * 512).unwrap();
    let daemon = kept.start();
    assert_eq!((daemon.map("both", 0), daemon.map("shrunk", 0)), (vec![1; 10], vec![2; 10]));
}
