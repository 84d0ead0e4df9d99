//! Tests the client as a program: command lines in, requests out, and on the terminal the text that
//! dmsetup would have printed.

mod fake;

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use blkswitch::protocol::{
    Cell, Dependency, Device, DeviceList, Disk, Errno, ErrorBody, Events, LoadedTable, MapPicture,
    MessageReply, Segment,
};
use fake::{Answer, Asked, Fake, Ran, client};
use serde_json::{Value, json};

/// The documented example, as the recording of dmsetup has it.
fn switch() -> Device {
    let segment = Segment {
        start: 0,
        length: 2048,
        target: "switch".into(),
        params: "3 128 0 1:0 0 1:1 0 1:2 0".into(),
        status: String::new(),
    };
    let ram = |minor| Dependency {
        major: 1,
        minor,
        name: format!("ram{minor}"),
        address: format!("/dev/ram{minor}"),
        is_device: false,
    };
    Device {
        name: "switch".into(),
        major: 253,
        live: Some(LoadedTable { segments: vec![segment], deps: vec![ram(2), ram(1), ram(0)] }),
        ..Device::default()
    }
}

fn named(name: &str, uuid: &str, minor: u32) -> Device {
    Device { name: name.into(), uuid: uuid.into(), minor, ..switch() }
}

fn lists(devices: Vec<Device>) -> Fake {
    Fake::start(move |_| Answer::json(&DeviceList { devices: devices.clone() }))
}

fn recorded(id: &str) -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/tools.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    let cases = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let case = cases.into_iter().find(|case| case["id"] == id).unwrap();
    case["steps"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|step| step["cmd"].is_string())
        .cloned()
        .collect()
}

/// Runs the commands of a transcript, with `dmsetup` replaced by `blkswitch`.
fn replay(fake: &Fake, id: &str) {
    for step in recorded(id) {
        let command = step["cmd"].as_str().unwrap().replace("dmsetup", "blkswitch");
        let expected = Ran {
            rc: step["rc"].as_i64().unwrap() as i32,
            out: step["stdout"].as_str().unwrap().into(),
            err: step["stderr"].as_str().unwrap().into(),
        };
        assert_eq!(fake.shell(&command), expected, "{id}: {command}");
    }
}

fn refusal(errno: Errno, ioctl: &str, kernel: &str, reason: &str) -> ErrorBody {
    ErrorBody {
        errno,
        ioctl: ioctl.into(),
        kernel: vec![kernel.into()],
        reason: reason.into(),
        device: None,
        generation: None,
    }
}

#[test]
fn transcripts_of_reporting_verbs() {
    let none = lists(vec![]);
    replay(&none, "tools-002");
    let one = lists(vec![switch()]);
    for id in ["tools-005", "tools-006", "tools-007", "tools-008", "tools-009", "tools-010"] {
        replay(&one, id);
    }
}

#[test]
fn transcripts_of_messages_that_fail() {
    let fake = Fake::start(|asked| {
        let (errno, kernel, reason) = match asked.body.as_str() {
            _ if asked.line.contains("nosuch") => (Errno::Enxio, "", "There is no device nosuch."),
            "" => (
                Errno::Einval,
                "device-mapper: ioctl: Empty message received.",
                "The message has no words.",
            ),
            _ => (Errno::Einval, "device-mapper: switch: not that", "Regions are 0 to f."),
        };
        let kernel = (!kernel.is_empty()).then(|| kernel.to_owned()).into_iter().collect();
        Answer::refused(&ErrorBody { kernel, ..refusal(errno, "message", "", reason) })
    });
    for step in recorded("tools-013") {
        let command = step["cmd"].as_str().unwrap();
        let ran = fake.shell(&command.replace("dmsetup", "blkswitch"));
        let dmsetup = step["stderr"].as_str().unwrap();
        assert_eq!(
            (i64::from(ran.rc), ran.out.as_str()),
            (step["rc"].as_i64().unwrap(), ""),
            "{command}"
        );
        if let Some(first) = dmsetup.strip_suffix("\n").and_then(|text| text.split_once("Usage:\n"))
        {
            // The usage is blkswitch's; the sentence before it is dmsetup's.
            assert!(
                ran.err.starts_with(&format!("{}Usage: blkswitch message", first.0)),
                "{command}: {}",
                ran.err
            );
            continue;
        }
        let without_ours: String =
            ran.err.split_inclusive('\n').filter(|line| !line.starts_with("  ")).collect();
        assert_eq!(without_ours, dmsetup, "{command}");
        if dmsetup.contains("ioctl") {
            assert!(
                ran.err.contains("\n  Regions are 0 to f.\n") || ran.err.contains("\n  The"),
                "{}",
                ran.err
            );
        }
    }
}

#[test]
fn words_are_joined_by_single_spaces_and_sent_as_they_are() {
    let fake = Fake::start(|_| {
        Answer::json(&MessageReply { text: Some("0: 0+2048".into()), arguments: 2, generation: 1 })
    });
    for line in [
        "message /dev/mapper/switch 2047 'a  b' c\\\\d",
        "message 'a b' 0 x --atomic",
        "-v message s 1 x",
    ] {
        assert_eq!(fake.shell(&format!("blkswitch {line}")).rc, 0);
    }
    assert_eq!(
        fake.lines(),
        [
            "POST /v1/devices/switch/message?sector=2047&atomic=false",
            "POST /v1/devices/a%5Cx20b/message?sector=0&atomic=true",
            "POST /v1/devices/s/message?sector=1&atomic=false",
        ]
    );
    assert_eq!(fake.bodies(), ["a  b c\\d", "x", "x"]);
    assert_eq!(fake.shell("blkswitch message s 1 x").out, "0: 0+2048\n");
    assert_eq!(fake.shell("blkswitch -v message s 1 x").out, "2 arguments applied.\n0: 0+2048\n");
    let reply: MessageReply =
        serde_json::from_str(&fake.shell("blkswitch message s 1 x --json").out).unwrap();
    assert_eq!(reply.arguments, 2);
}

/// Peak memory of a process in KiB. The program itself needs a few thousand.
fn peak_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_message_from_standard_input_is_streamed_in_bounded_memory() {
    const ENTRIES: usize = 8 << 20;
    static CLIENT: AtomicU32 = AtomicU32::new(0);
    static PEAK_KIB: Mutex<u64> = Mutex::new(0);
    let fake = Fake::start(|asked| {
        // The client waits for this answer, so its peak includes the streaming.
        *PEAK_KIB.lock().unwrap() = peak_kib(CLIENT.load(Ordering::SeqCst));
        Answer::json(&MessageReply {
            text: None,
            arguments: asked.body.matches(':').count() as u64,
            generation: 0,
        })
    });
    let mut command = fake.command();
    command.args(["message", "switch", "0", "set_region_mappings", "-", "--json"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    CLIENT.store(child.id(), Ordering::SeqCst);
    let mut stdin = child.stdin.take().unwrap();
    let piece = ":1 ".repeat(1 << 16);
    for _ in 0..ENTRIES >> 16 {
        stdin.write_all(piece.as_bytes()).unwrap();
    }
    drop(stdin);
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!((ran.rc, ran.err.as_str()), (0, ""));
    assert_eq!(serde_json::from_str::<MessageReply>(&ran.out).unwrap().arguments, ENTRIES as u64);
    assert!(fake.bodies()[0].starts_with("set_region_mappings :1 :1 "));
    let (peak, sent) = (*PEAK_KIB.lock().unwrap(), (ENTRIES * 3) as u64 >> 10);
    assert!(peak < sent, "the client took {peak} KiB to send {sent} KiB");
}

#[test]
fn create_sends_what_the_command_line_says() {
    let fake = Fake::start(|asked| match asked.line.contains("/ublk") {
        true => Answer::json(&Disk::default()),
        false => Answer::json(&switch()),
    });
    let file = fake.folder().join("table");
    std::fs::write(&file, "# two lines\n0 8 zero\n8 8 error # the end\n").unwrap();
    let request = |line: &str| -> Value {
        let ran = fake.shell(line);
        assert_eq!((ran.rc, ran.err.as_str()), (0, ""), "{line}");
        serde_json::from_str(fake.bodies().last().unwrap()).unwrap()
    };
    let leaves = json!({"make_files": false, "cache": "auto"});
    let expected = |name: &str, table: Value| json!({"name": name, "uuid": null, "minor": null, "read_only": false, "table": table, "leaves": leaves});
    assert_eq!(
        request("blkswitch create s --table '0 8 zero'"),
        expected("s", json!("0 8 zero\n"))
    );
    assert_eq!(request("blkswitch create s --notable"), expected("s", json!(null)));
    assert_eq!(request("blkswitch create s < /dev/null"), expected("s", json!(null)));
    assert_eq!(
        request("echo ' 0  8 zero' | blkswitch create 'a b'"),
        expected("a\\x20b", json!("0 8 zero\n"))
    );
    let from_file = request(&format!("blkswitch create /dev/mapper/s {}", file.display()));
    assert_eq!(from_file, expected("s", json!("0 8 zero\n8 8 error\n")));
    let all = request(
        "blkswitch create s -u U-1 -r --make-files --direct -j 253 -m 7 --table '0 8 zero'",
    );
    assert_eq!(
        all,
        json!({
            "name": "s", "uuid": "U-1", "minor": 7, "read_only": true, "table": "0 8 zero\n",
            "leaves": {"make_files": true, "cache": "direct"},
        })
    );
    // Sent only if the user asks for it, because an older daemon does not know the field.
    let ublk = request("blkswitch create s --ublk --notable");
    assert_eq!(ublk["ublk"], json!({"queues": null, "depth": null}));
    assert_eq!(
        request("blkswitch attach s --ublk --queues 4"),
        json!({"queues": 4, "depth": null})
    );
    assert_eq!(fake.shell("blkswitch attach s").rc, 1, "how, is not said");
    assert_eq!(fake.shell("blkswitch attach s --ublk --depth 4097").rc, 1);
    assert_eq!(fake.shell("blkswitch detach --force s").rc, 0);
    let concise = "blkswitch create --concise 'a,U,3,ro,0 8 zero;b,,,,0 8 zero,8 8 error'";
    assert_eq!(request(concise), expected("b", json!("0 8 zero\n8 8 error\n")));
    let first: Value = serde_json::from_str(&fake.bodies()[fake.bodies().len() - 2]).unwrap();
    assert_eq!(
        (&first["name"], &first["uuid"], &first["minor"]),
        (&json!("a"), &json!("U"), &json!(3))
    );
    assert_eq!(first["read_only"], true);
}

#[test]
fn create_complains_as_dmsetup_does() {
    let failed = ErrorBody {
        device: Some([253, 0]),
        ..refusal(
            Errno::Einval,
            "reload",
            "device-mapper: table: 253:0: switch: Invalid number of paths (-EINVAL)",
            "Why.",
        )
    };
    let fake = Fake::start(move |_| Answer::refused(&failed));
    let step = &recorded("tools-036")[0];
    let ran = fake.shell(&step["cmd"].as_str().unwrap().replace("dmsetup", "blkswitch"));
    let dmsetup: String =
        ran.err.split_inclusive('\n').filter(|line| !line.starts_with("  ")).collect();
    assert_eq!((ran.rc, dmsetup.as_str()), (1, step["stderr"].as_str().unwrap()));
    assert!(ran.err.contains(
        "\n  device-mapper: table: 253:0: switch: Invalid number of paths (-EINVAL)\n  Why.\n"
    ));
    for (line, complaint) in [
        ("create switch --table x", "Invalid format on line 1 of table .\nCommand failed.\n"),
        ("create", "Please provide a name for the new device.\nCommand failed.\n"),
        ("create a/b --notable", "Device a/b not found\nCommand failed.\n"),
        ("create s /nosuch", "Couldn't open '/nosuch' for reading.\nCommand failed.\n"),
        ("load", "Please specify device.\nCommand failed.\n"),
        (
            "load s --notable",
            "--notable only available when creating new device.\nCommand failed.\n",
        ),
        ("wait", "No device specified.\nCommand failed.\n"),
        ("suspend", "No device specified.\nCommand failed.\n"),
        ("rename s a/b", "Name \"a/b\" invalid. It contains \"/\".\nCommand failed.\n"),
        ("ls -o bogus", "Option not recognised: bogus.\nCouldn't process command line.\n"),
        (
            "ls --tree -o bogus",
            "Tree option not recognised: bogus.\nCouldn't process command line.\n",
        ),
    ] {
        let ran = fake.shell(&format!("blkswitch {line}"));
        let lines = ran.err.split_inclusive('\n');
        let dmsetup: String = lines.filter(|line| !line.starts_with("  ")).collect();
        assert_eq!((ran.rc, dmsetup.as_str()), (1, complaint), "{line}");
    }
    assert!(fake.shell("blkswitch bogus").err.starts_with("Unknown command.\n"));
}

#[test]
fn verbs_ask_for_what_they_say() {
    let fake = Fake::start(|asked| match asked.line.as_str() {
        "GET /v1/devices" => Answer::json(&DeviceList { devices: vec![named("switch", "U-1", 4)] }),
        "POST /v1/remove_all" => Answer::json(&json!({"removed": [], "busy": ["x"]})),
        _ => Answer::done(),
    });
    for (line, request, body) in [
        (
            "suspend a --noflush",
            "POST /v1/devices/a/suspend",
            r#"{"noflush":true,"nolockfs":false}"#,
        ),
        ("resume -u U-1", "POST /v1/devices/switch/resume", ""),
        ("resume -j 253 -m 4", "POST /v1/devices/switch/resume", ""),
        ("clear /dev/blkswitch/a", "DELETE /v1/devices/a/table", ""),
        (
            "load a --table '0 8 zero'",
            "PUT /v1/devices/a/table",
            r#"{"table":"0 8 zero\n","read_only":false,"leaves":{"make_files":false,"cache":"auto"}}"#,
        ),
        (
            "reload -r -u U-1 /dev/null",
            "PUT /v1/devices/switch/table",
            r#"{"table":"","read_only":true,"leaves":{"make_files":false,"cache":"auto"}}"#,
        ),
        ("rename a b", "POST /v1/devices/a/rename", r#"{"name":"b"}"#),
        ("rename -u U-1 b", "POST /v1/devices/switch/rename", r#"{"name":"b"}"#),
        ("rename --setuuid a 'U 2'", "POST /v1/devices/a/rename", r#"{"uuid":"U\\x202"}"#),
        ("wipe_table -f a", "POST /v1/devices/a/wipe", r#"{"noflush":true,"nolockfs":true}"#),
        ("remove a", "DELETE /v1/devices/a?force=false&deferred=false", ""),
        ("remove -f --deferred a", "DELETE /v1/devices/a?force=true&deferred=true", ""),
        ("remove_all", "POST /v1/remove_all", r#"{"force":false,"deferred":false}"#),
    ] {
        let ran = fake.shell(&format!("blkswitch {line}"));
        assert_eq!(ran, Ran { rc: 0, out: String::new(), err: String::new() }, "{line}");
        assert_eq!(fake.lines().last().unwrap(), request, "{line}");
        assert_eq!(fake.bodies().last().unwrap(), body, "{line}");
    }
    let several = fake.lines().len();
    assert_eq!(fake.shell("blkswitch remove a b c").rc, 0);
    assert_eq!(fake.lines().len(), several + 3);
    let ran = fake.shell("blkswitch suspend -u U-9");
    assert!(
        ran.err.starts_with(
            "device-mapper: suspend ioctl on  U-9 failed: No such device or address\n"
        ),
        "{ran:?}"
    );
    assert_eq!(fake.shell("blkswitch remove_all --force").err, "Unable to remove 1 device(s).\n");
}

#[test]
fn a_missing_device_is_told_as_libdm_does() {
    let fake = lists(vec![switch()]);
    for (line, err) in [
        ("info nosuch", "Device does not exist.\n  there is no device 'nosuch': "),
        (
            "status swich",
            "Device does not exist.\n  there is no device 'swich': did you mean 'switch'",
        ),
        (
            "table nosuch",
            "device-mapper: table ioctl on nosuch  failed: No such device or address\n",
        ),
        ("deps -u X", "device-mapper: deps ioctl on  X failed: No such device or address\n"),
    ] {
        let ran = fake.shell(&format!("blkswitch {line}"));
        assert_eq!((ran.rc, ran.out.as_str()), (1, ""), "{line}");
        assert!(ran.err.starts_with(err), "{line}: {}", ran.err);
    }
}

#[test]
fn remove_retries_while_the_device_is_busy() {
    let tries = AtomicU32::new(0);
    let fake = Fake::start(move |_| match tries.fetch_add(1, Ordering::SeqCst) {
        0 | 1 | 3 => Answer::refused(&refusal(Errno::Ebusy, "remove", "", "Open.")),
        _ => Answer::done(),
    });
    assert_eq!(fake.shell("blkswitch remove --retry a").rc, 0);
    assert_eq!(fake.lines().len(), 3);
    let ran = fake.shell("blkswitch remove a");
    assert!(
        ran.err.starts_with("device-mapper: remove ioctl on a  failed: Device or resource busy\n"),
        "{ran:?}"
    );
}

#[test]
fn wait_asks_again_until_something_happens() {
    let polls = AtomicU32::new(0);
    let fake = Fake::start(move |_| {
        let changed = polls.fetch_add(1, Ordering::SeqCst) == 2;
        Answer::json(&Events { event_nr: if changed { 6 } else { 5 }, changed })
    });
    assert_eq!(fake.shell("blkswitch wait a 5").rc, 0);
    assert_eq!(fake.lines(), ["GET /v1/devices/a/events?after=5"; 3]);
    assert!(
        fake.shell("blkswitch wait a x")
            .err
            .starts_with("The event number 'x' is not a number from 0 to")
    );
}

#[test]
fn maps_are_drawn_printed_saved_and_restored() {
    let runs = r#"{"regions": 4, "paths": 2, "region_size": 8, "runs": [{"start": 0, "count": 4, "path": 1}]}"#;
    let message = "set_region_mappings 0:1 R1,3\n";
    let fake = Fake::start(move |asked: &Asked| match asked.line.as_str() {
        line if line.contains("/map/picture?") => Answer::json(&MapPicture {
            regions: 4,
            paths: 2,
            region_size: 8,
            to: 3,
            cells: vec![Cell { start: 0, count: 4, path: 1, majority: 4 }],
            totals: vec![0, 4],
            ..MapPicture::default()
        }),
        line if line.contains("/map/message") => Answer::text(message),
        line if line.contains("/map") => Answer::text(runs),
        "GET /v1/devices" => Answer::json(&DeviceList { devices: vec![switch()] }),
        _ => Answer::json(&MessageReply::default()),
    });
    let drawn = fake.shell("blkswitch map show s --range 1-2");
    assert!(drawn.out.contains("\n         0              0  1\n"), "{drawn:?}");
    assert_eq!(
        fake.lines().last().unwrap(),
        "GET /v1/devices/s/map/picture?cells=1600&from=1&to=2"
    );
    assert_eq!(fake.shell("blkswitch map show s --json --sector 9").out, format!("{runs}\n"));
    assert_eq!(fake.lines().last().unwrap(), "GET /v1/devices/s/map?sector=9");
    assert_eq!(fake.shell("blkswitch map export s").out, message);
    let file = fake.folder().join("map");
    let saved = fake.shell(&format!("blkswitch map export s -o {0} && cat {0}", file.display()));
    assert_eq!(saved.out, message);
    for source in [file.display().to_string(), format!("- < {}", file.display())] {
        assert_eq!(fake.shell(&format!("blkswitch map import switch {source} --atomic")).rc, 0);
        assert_eq!(
            fake.lines().last().unwrap(),
            "POST /v1/devices/switch/message?sector=0&atomic=true"
        );
        assert_eq!(fake.bodies().last().unwrap(), message);
    }
    let missing = fake.shell("blkswitch map import switch /nosuch");
    assert!(
        missing.err.starts_with("Couldn't open '/nosuch' for reading: No such file"),
        "{missing:?}"
    );
}

#[test]
fn exec_runs_a_command_with_the_path_of_each_device() {
    let fake = lists(vec![named("a", "", 0), named("b", "", 1)]);
    assert_eq!(fake.shell("blkswitch ls --exec 'echo -n'").out, "/dev/blkswitch/a/dev/blkswitch/b");
    assert_eq!(
        fake.shell("blkswitch status --target switch -v --exec true").out.matches("Name:").count(),
        2
    );
    assert_eq!(fake.shell("blkswitch table --target linear --exec echo").out, "");
}

#[test]
fn verbs_about_nodes_and_udev_do_nothing_and_succeed() {
    for line in
        ["mknodes", "mknodes a b", "udevcreatecookie", "udevcomplete 0xd4d0001", "udevcookies"]
    {
        let words = line.split(' ');
        let ran = Ran::from(client().args(["--socket", "/nosuch"]).args(words).output().unwrap());
        assert_eq!(ran, Ran { rc: 0, out: String::new(), err: String::new() }, "{line}");
    }
}

#[test]
fn json_is_the_protocol() {
    let devices = vec![named("a", "U", 0), named("b", "", 1)];
    let fake = lists(devices.clone());
    for verb in ["ls", "info", "table", "status", "deps", "ls --tree"] {
        let list: DeviceList =
            serde_json::from_str(&fake.shell(&format!("blkswitch {verb} --json")).out).unwrap();
        assert_eq!(list.devices, devices, "{verb}");
    }
    let one: DeviceList = serde_json::from_str(&fake.shell("blkswitch info b --json").out).unwrap();
    assert_eq!(one.devices, devices[1..]);
}

#[test]
fn json_of_one_target_is_of_those_devices_only() {
    let linear = |table: &mut LoadedTable| table.segments[0].target = "linear".into();
    let mut other = named("b", "", 1);
    other.live.as_mut().map(linear).unwrap();
    other.inactive = switch().live;
    let fake = lists(vec![named("a", "", 0), other]);
    let names = |line: String| -> Vec<String> {
        let list: DeviceList = serde_json::from_str(&fake.shell(&line).out).unwrap();
        list.devices.into_iter().map(|device| device.name).collect()
    };
    for verb in ["ls", "table", "status"] {
        assert_eq!(names(format!("blkswitch {verb} --target switch --json")), ["a"], "{verb}");
        assert_eq!(names(format!("blkswitch {verb} --target linear --json")), ["b"], "{verb}");
        assert_eq!(
            names(format!("blkswitch {verb} --target switch --inactive --json")),
            ["b"],
            "{verb}"
        );
        assert!(names(format!("blkswitch {verb} --target zero --json")).is_empty(), "{verb}");
    }
    assert!(names("blkswitch table a --target linear --json".to_owned()).is_empty());
}

#[test]
fn json_of_the_other_verbs_is_what_the_daemon_said() {
    let disk = json!({"node": "/dev/ublkb3", "link": "/dev/blkswitch/a", "queues": 2, "depth": 64, "zero_copy": false, "sectors": 8, "logical_block": 512});
    let events = json!({"event_nr": 6, "changed": true});
    let targets = json!({"targets": [{"name": "switch", "version": [1, 1, 0]}]});
    let removed = json!({"removed": ["a"], "busy": ["b"]});
    let message = "set_region_mappings 0:1 R1,3";
    let says = [disk.clone(), events.clone(), targets.clone(), removed.clone()];
    let fake = Fake::start(move |asked| match asked.line.as_str() {
        "PUT /v1/devices/a/ublk" => Answer::json(&says[0]),
        "GET /v1/devices/a/events?after=5" => Answer::json(&says[1]),
        "GET /v1/targets" => Answer::json(&says[2]),
        "POST /v1/remove_all" => Answer::json(&says[3]),
        _ => Answer::text(&format!("{message}\n")),
    });
    for (line, said) in [
        ("attach a --ublk", disk),
        ("wait a 5", events),
        ("targets", targets),
        ("remove_all", removed),
        ("map export a", json!({"message": message})),
    ] {
        let ran = fake.shell(&format!("blkswitch {line} --json"));
        assert_eq!((ran.rc, ran.err.as_str()), (0, ""), "{line}");
        assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap(), said, "{line}");
    }
    assert!(fake.shell("blkswitch map export a --json -o f").err.contains("cannot be used with"));
}

#[test]
fn no_daemon_and_no_sense() {
    let ran =
        Ran::from(client().args(["--socket", "/nosuch/control.sock", "ls"]).output().unwrap());
    assert_eq!(ran.rc, 1);
    assert!(
        ran.err.starts_with("/nosuch/control.sock: cannot connect: No such file or directory"),
        "{}",
        ran.err
    );
    assert!(
        ran.err.contains("blkswitch serve") && ran.err.ends_with("\nCommand failed.\n"),
        "{}",
        ran.err
    );
    for (status, text) in [(500, "oops"), (200, "{}"), (404, "")] {
        let fake = Fake::start(move |_| Answer::garbage(status, text));
        let ran = fake.shell("blkswitch ls");
        assert_eq!(ran.rc, 1);
        assert!(ran.err.contains("no proper answer to /v1/devices: "), "{}", ran.err);
    }
}

/// With `su`, cron and containers there is no runtime folder, or that of another user.
#[test]
fn without_a_runtime_folder_everything_but_a_daemon_works() {
    for verb in ["help", "help create", "man", "completions bash", "mknodes", "--version"] {
        for runtime in ["", "/nosuch", "/proc"] {
            let mut command = client();
            command.env("XDG_RUNTIME_DIR", runtime).args(verb.split(' '));
            let folder = tempfile::tempdir().unwrap();
            if verb == "man" {
                command.arg(folder.path());
            }
            let ran = Ran::from(command.output().unwrap());
            assert_eq!((ran.rc, ran.err.as_str()), (0, ""), "{verb} with '{runtime}'");
        }
    }
    let ran = Ran::from(client().env("XDG_RUNTIME_DIR", "/nosuch").arg("ls").output().unwrap());
    let user = std::fs::metadata("/proc/self").unwrap().uid();
    let folder =
        if user == 0 { "/run/blkswitch".to_owned() } else { format!("/tmp/blkswitch-{user}") };
    // A daemon of this user may be running. Otherwise the client names the socket that it tried.
    assert!(ran.rc == 0 || ran.err.starts_with(&folder), "{}", ran.err);
}

/// Runs the script of `completions bash` in a real bash.
#[test]
fn completions_offer_devices_and_messages() {
    let device = |name: &str, target: &str| Device {
        name: name.into(),
        live: Some(LoadedTable {
            segments: vec![Segment { length: 8, target: target.into(), ..Segment::default() }],
            deps: Vec::new(),
        }),
        ..Device::default()
    };
    let devices =
        vec![device("member:0", "multipath"), device("vol", "switch"), device("z", "zero")];
    let fake = Fake::start(move |_| Answer::json(&DeviceList { devices: devices.clone() }));
    for (line, offered) in [
        ("info ", "member:0 vol z"),
        ("info vol ", "member:0 z"),
        ("message ", "member:0 vol"),
        ("message vol ", "0"),
        ("message vol 0 s", "set_region_mappings"),
        ("message member:0 0 queue", "queue_if_no_path"),
        ("map show ", "vol"),
        ("map sh", "show"),
        ("detach ", ""),
        // Bash has split the word at the colon.
        ("info member:", "0"),
    ] {
        let current = if line.ends_with(':') { ":" } else { line.rsplit(' ').next().unwrap() };
        let script = format!(
            "eval \"$(blkswitch completions bash)\"; COMP_LINE='blkswitch {line}'; \
             COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=(x '{current}'); COMP_CWORD=1; _blkswitch; \
             echo \"${{COMPREPLY[@]}}\""
        );
        let file = fake.folder().join("complete.bash");
        std::fs::write(&file, script).unwrap();
        let ran = fake.shell(&format!("bash {}", file.display()));
        assert_eq!((ran.out.trim_end(), ran.err.as_str()), (offered, ""), "{line}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure_to_report() {
    let fake = Fake::start(|_| Answer::text(&"x".repeat(1 << 22)));
    let mut command = fake.command();
    command.args(["map", "show", "s", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 10]).unwrap();
    drop(stdout);
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!((ran.rc, ran.err.as_str()), (1, ""));
}
