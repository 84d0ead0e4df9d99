//! `serve --state`: folders that are damaged, or that an older daemon has left.

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use blkswitch::protocol::route;
use serde_json::json;

use crate::fixture::{Daemon, SECTOR, program, serve};
use crate::state::Kept;

/// The damaged part of a state folder, the damage, and a word of the reason.
type Damage<'a> = (&'a str, Box<dyn Fn(&Path, &Path) + 'a>, &'a str);

/// The error of a daemon that cannot start with a state folder; `None` if it starts.
fn refusal(kept: &Kept) -> Option<String> {
    let folder = kept.folder.path().join("refused");
    let mut command = serve(&folder, &["--state", &kept.options[1]]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    if line.starts_with("ready") {
        child.kill().unwrap();
        child.wait().unwrap();
        return None;
    }
    let mut error = String::new();
    child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    child.wait().unwrap();
    Some(error)
}

fn state_check(folder: &str) -> (bool, String) {
    let checked = Command::new(program()).args(["state", "check", folder]).output().unwrap();
    (checked.status.success(), String::from_utf8(checked.stdout).unwrap())
}

/// Changes the content of a file.
fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn damage_is_never_taken_for_another_map_or_table() {
    let kept = Kept::new();
    let mut daemon = kept.start();
    kept.create(&daemon, "disk", 20_000);
    let fine = kept.folder.path().join("fine").display().to_string();
    let fine = json!({"name": "fine", "table": format!("0 80 linear {fine} 0"),
        "leaves": {"make_files": true}});
    daemon.request("POST", route::DEVICES, fine).expect_ok();
    daemon.message("disk", 0, b"set_region_mappings 0:2 R1,4e1f").expect_ok();
    let before = daemon.map("disk", 0);
    let map = kept.map();
    let old = std::fs::read(&map).unwrap();
    daemon.message("disk", 0, b"set_region_mappings 5:1").expect_ok();
    daemon.terminate();
    daemon.wait();
    drop(daemon);
    let (state, good) = (Path::new(&kept.options[1]), kept.folder.path().join("good"));
    std::fs::rename(state, &good).unwrap();
    let json = |from: &'static str, to: &'static str| {
        move |json: &Path, _: &Path| {
            edit(json, |text| *text = String::from_utf8_lossy(text).replace(from, to).into_bytes());
        }
    };
    let map_edit = |change: fn(&mut Vec<u8>)| move |_: &Path, map: &Path| edit(map, change);
    let damages: Vec<Damage<'_>> = vec![
        ("one bit of a word", Box::new(map_edit(|map| map[8192 + 100] ^= 1)), "checksum"),
        ("a block of zeroes", Box::new(map_edit(|map| map[8192..8704].fill(0))), "are lost"),
        (
            "a block elsewhere",
            Box::new(map_edit(|map| map.copy_within(8192..8704, 8704))),
            "block 1",
        ),
        ("all zeroes", Box::new(map_edit(|map| map.fill(0))), "no header"),
        (
            "both headers",
            Box::new(map_edit(|map| {
                map[20] ^= 1;
                map[4116] ^= 1
            })),
            "header",
        ),
        ("made shorter", Box::new(map_edit(|map| map.truncate(9000))), "shorter"),
        ("empty", Box::new(map_edit(Vec::clear)), "no header"),
        ("from a backup", Box::new(|_, map| std::fs::write(map, &old).unwrap()), "backup"),
        ("gone", Box::new(|_, map| std::fs::remove_file(map).unwrap()), "No such file"),
        (
            "a link",
            Box::new(|_, map| {
                std::fs::remove_file(map).unwrap();
                std::os::unix::fs::symlink(good.join("map-0"), map).unwrap();
            }),
            "symbolic links",
        ),
        (
            "a folder",
            Box::new(|_, map| {
                std::fs::remove_file(map).unwrap();
                std::fs::create_dir(map).unwrap();
            }),
            "directory",
        ),
        ("another region size", Box::new(json("switch 3 8", "switch 3 4")), "checksum"),
        (
            "another table's map",
            Box::new(|json, _| {
                edit(json, |text| {
                    let line = "\"table\": \"0 160000 switch 3 8 0";
                    let text_now =
                        String::from_utf8_lossy(text).replace(line, &line.replace('8', "16"));
                    *text = with_checksum(&text_now);
                });
            }),
            "20000 regions of 8 sectors",
        ),
        ("no description", Box::new(|json, _| std::fs::remove_file(json).unwrap()), "missing"),
        ("half a description", Box::new(|json, _| edit(json, |text| text.truncate(300))), "EOF"),
    ];
    for (what, damage, why) in &damages {
        copy_folder(&good, state);
        damage(&state.join("devices.json"), &state.join(map.file_name().unwrap()));
        let files = std::fs::read_dir(state).unwrap().count();
        let (is_good, report) = state_check(&kept.options[1]);
        assert!(!is_good && report.contains("DAMAGED"), "{what}: {report}");
        // A bad description stops the daemon. A bad map stops only its own device.
        let error = refusal(&kept).unwrap_or_else(|| {
            let daemon = kept.start();
            assert!(daemon.describe("fine").away.is_none(), "{what}");
            daemon.nbd("fine").read(0, SECTOR).unwrap();
            daemon.nbd("disk").read(0, SECTOR).unwrap_err();
            daemon.describe("disk").away.unwrap_or_default()
        });
        assert!(error.contains(why), "{what}: {error}");
        assert_eq!(std::fs::read_dir(state).unwrap().count(), files, "{what}: a file is gone");
        std::fs::remove_dir_all(state).unwrap();
    }
    // One of the two headers is sufficient.
    copy_folder(&good, state);
    edit(&state.join(map.file_name().unwrap()), |map| map[20] ^= 1);
    assert!(!state_check(&kept.options[1]).0);
    let daemon = kept.start();
    assert_eq!((before[5], daemon.map("disk", 0)[5]), (2, 1));
}

/// Changes a description on purpose, with the checksum that the refusal quotes.
fn with_checksum(text: &str) -> Vec<u8> {
    let temporary = tempfile::tempdir().unwrap();
    std::fs::write(temporary.path().join("devices.json"), text).unwrap();
    let (_, report) = state_check(&temporary.path().display().to_string());
    let mut sums = report.split('\'').filter(|word| word.len() == 16);
    let (old, new) = (sums.next().unwrap(), sums.next().unwrap());
    text.replace(old, new).into_bytes()
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    std::fs::set_permissions(to, Permissions::from_mode(0o700)).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn the_format_of_older_daemons_is_read_and_written_anew() {
    let kept = Kept::new();
    let daemon = kept.start();
    kept.create(&daemon, "disk", 100);
    drop(daemon);
    let state = Path::new(&kept.options[1]);
    let table = kept.table(100);
    let old = json!({"version": 1, "boot": "", "devices": [{"name": "disk", "uuid": "", "minor": 0,
        "read_only": false, "suspended": false, "cache": "auto", "table": table,
        "maps": ["map-7"], "disk": null}]});
    std::fs::remove_dir_all(state).unwrap();
    std::fs::create_dir(state).unwrap();
    std::fs::set_permissions(state, Permissions::from_mode(0o755)).unwrap();
    std::fs::write(state.join("devices.json"), serde_json::to_vec(&old).unwrap()).unwrap();
    // There are 100 regions with two bits each. Region 0 is one path further than in round robin.
    let words: Vec<u8> = [1_u64, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    std::fs::write(state.join("map-7"), &words).unwrap();
    assert!(state_check(&kept.options[1]).0);
    let mut daemon = kept.start();
    assert_eq!(daemon.map("disk", 0)[..4], [1, 1, 2, 0]);
    assert!(!state.join("map-7").exists() && state.join("map-0").exists());
    daemon.message("disk", 0, b"set_region_mappings 1:2").expect_ok();
    daemon.kill();
    drop(daemon);
    let (is_good, report) = state_check(&kept.options[1]);
    assert!(is_good && report.contains("generation 1"), "{report}");
    assert_eq!(kept.start().map("disk", 0)[..4], [1, 2, 2, 0]);
}

#[test]
fn a_file_that_is_changed_while_it_is_in_use_ends_no_daemon() {
    let kept = Kept::new();
    let daemon = kept.start();
    kept.create(&daemon, "disk", 20_000);
    let map = kept.map();
    std::fs::OpenOptions::new().write(true).open(&map).unwrap().set_len(0).unwrap();
    daemon.nbd("disk").read(0, SECTOR).unwrap();
    let refused = daemon.message("disk", 0, b"set_region_mappings 0:1").error().reason;
    assert!(refused.contains("has made the file shorter"), "{refused}");
    assert_eq!(daemon.map("disk", 0)[0], 0, "nothing was changed");
    std::fs::remove_file(&map).unwrap();
    let refused = daemon.message("disk", 0, b"set_region_mappings 0:1").error().reason;
    assert!(refused.contains("No such file"), "{refused}");
}

#[test]
fn what_cannot_be_saved_has_not_happened_and_keeps_no_daemon_down() {
    let kept = Kept::new();
    let mut daemon = kept.start();
    kept.create(&daemon, "disk", 100);
    kept.create(&daemon, "other", 100);
    daemon.on("PUT", route::TABLE, "other", json!({"table": kept.table(50)})).expect_ok();
    // A folder in the place where the description is written first. It cannot be removed as a file.
    let in_the_way = Path::new(&kept.options[1]).join("devices.json.new");
    std::fs::create_dir(&in_the_way).unwrap();
    let shown = |daemon: &Daemon| {
        let all = [&["info"][..], &["table"], &["table", "--inactive"]];
        all.map(|words| {
            let shown = String::from_utf8(daemon.run(words).stdout).unwrap();
            // Renaming and undoing it are two events.
            shown
                .lines()
                .filter(|line| !line.starts_with("Event number"))
                .collect::<Vec<_>>()
                .join("\n")
        })
    };
    let before = shown(&daemon);
    let verbs: [&[&str]; 6] = [
        &["rename", "disk", "new"],
        &["rename", "disk", "--setuuid", "id-1"],
        &["suspend", "disk"],
        &["resume", "other"],
        &["remove", "disk"],
        &["remove", "--deferred", "disk"],
    ];
    for words in verbs {
        let refused = daemon.run(words);
        let error = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success(), "{words:?}");
        assert!(error.contains("cannot save in") && error.contains("Is a directory"), "{error}");
        assert_eq!(shown(&daemon), before, "{words:?}");
    }
    assert!(!daemon.create("third", "0 80 linear null:40K 0").is_ok());
    assert_eq!(shown(&daemon), before);
    // A message does not need the description.
    daemon.message("disk", 0, b"set_region_mappings 0:2").expect_ok();
    for end in ["killed", "stopped"] {
        if end == "killed" {
            daemon.kill();
        } else {
            daemon.terminate();
            assert_eq!(daemon.wait().0, Some(0), "{end}");
        }
        drop(daemon);
        daemon = kept.start();
        assert_eq!(daemon.map("disk", 0)[0], 2, "{end}");
        let table = String::from_utf8(daemon.run(&["table"]).stdout).unwrap();
        assert_eq!(table.trim_end(), before[1], "{end}");
    }
    std::fs::remove_dir(&in_the_way).unwrap();
    daemon.run(&["rename", "disk", "new"]);
    daemon.message("new", 0, b"set_region_mappings 1:0").expect_ok();
    daemon.kill();
    assert_eq!(kept.start().map("new", 0)[..2], [2, 0]);
}
