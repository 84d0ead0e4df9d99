//! Remaps as a user types them: in decimal, and with the warning that data does not move.

use std::io::Write as _;
use std::process::{Output, Stdio};

use blkswitch::protocol::{CompactMap, MapHead, RegionMap, Run};

use crate::fixture::Daemon;

/// Part of the warning.
const MOVES_NO_DATA: &str = "a message moves no data";

fn said(ran: &Output) -> String {
    assert!(ran.status.success(), "{ran:?}");
    String::from_utf8(ran.stderr.clone()).unwrap()
}

#[test]
fn a_remap_between_different_files_says_once_that_no_data_moves() {
    let daemon = Daemon::start();
    let [a, b] = ["ram0", "ram1"].map(|name| daemon.path(name).display().to_string());
    for (name, table, warns) in [
        ("files", format!("0 16 switch 2 8 0 {a} 0 {b} 0"), true),
        ("offsets", format!("0 16 switch 2 8 0 {a} 0 {a} 16"), true),
        ("memories", "0 16 switch 2 8 0 mem:1M:x 0 mem:1M:y 0".to_owned(), true),
        ("one", format!("0 16 switch 2 8 0 {a} 32 {a} 32"), false),
        ("kinds", format!("0 16 switch 2 8 0 {a} 0 mem:1M 0"), false),
        ("below", "0 16 linear /dev/blkswitch/files 0".to_owned(), false),
        (
            "upper",
            "0 16 switch 2 8 0 /dev/blkswitch/below 0 /dev/blkswitch/one 0".to_owned(),
            false,
        ),
    ] {
        daemon.create(name, &table).expect_ok();
        if name == "below" {
            continue;
        }
        let message = ["message", name, "0", "set_region_mappings", "0:1"];
        let first = said(&daemon.run(&message));
        assert_eq!(first.contains(MOVES_NO_DATA), warns, "{name}: {first}");
        assert!(first.lines().all(|line| line.starts_with("  ")), "added to dmsetup's: {first}");
        assert_eq!(said(&daemon.run(&message)), "", "{name}: said once");
    }
    // A new device with the same name is another device.
    daemon.remove("memories");
    daemon.create("memories", "0 16 switch 2 8 0 mem:1M:x 0 mem:1M:y 0").expect_ok();
    assert_eq!(said(&daemon.run(&["map", "set", "memories", "0", "1", "--quiet"])), "");
    // A message that changes nothing gives no warning.
    daemon.create("quiet", &format!("0 16 switch 2 8 0 {a} 64 {b} 64")).expect_ok();
    assert_eq!(said(&daemon.run(&["message", "quiet", "0", "get_region_mappings"])), "");
    assert!(said(&daemon.run(&["map", "set", "quiet", "0", "1"])).contains(MOVES_NO_DATA));
}

/// Ten million random regions once took 349 MB.
#[test]
fn a_map_is_printed_in_three_forms() {
    let daemon = Daemon::start();
    let table = "0 65536 switch 3 1 0 mem:64M:v 0 mem:64M:v 0 mem:64M:v 0";
    daemon.create("vol", table).expect_ok();
    assert_eq!(said(&daemon.run(&["map", "set", "vol", "10-19", "2"])), "");
    let print = |words: &[&str]| {
        let words = [["map", "show", "vol"].as_slice(), words].concat();
        String::from_utf8(daemon.run(&words).stdout).unwrap()
    };
    for range in ["0-65535", "9-30", "12-12"] {
        let whole: RegionMap = serde_json::from_str(&print(&["--range", range, "--json"])).unwrap();
        let compact: CompactMap =
            serde_json::from_str(&print(&["--range", range, "--json", "--compact"])).unwrap();
        let mut next = compact.head.from;
        for (run, [count, path]) in whole.runs.iter().zip(&compact.runs) {
            assert_eq!(
                (run.start, run.count, u64::from(run.path)),
                (next, *count, *path),
                "{range}"
            );
            next += count;
        }
        assert_eq!(whole.runs.len(), compact.runs.len());
        assert_eq!((next, compact.head.regions), (compact.head.to + 1, 65536));
        let lines = print(&["--range", range, "--ndjson"]);
        let (head, runs) = lines.split_once('\n').unwrap();
        assert_eq!(serde_json::from_str::<MapHead>(head).unwrap(), compact.head);
        let runs: Vec<Run> = runs.lines().map(|run| serde_json::from_str(run).unwrap()).collect();
        assert_eq!(runs, whole.runs, "{range}");
    }
    let [all, compact] =
        [["--json"].as_slice(), &["--json", "--compact"]].map(|words| print(words).len());
    assert!(compact * 4 < all, "{compact} and {all} bytes");
    // An exported map has lines, and can be imported.
    let before = daemon.map("vol", 0);
    let words: String = (0..4000).map(|at| format!(" {at:x}:{:x}", at * at % 7 % 3)).collect();
    let message = format!("set_region_mappings{words}");
    daemon.message("vol", 0, message.as_bytes()).expect_ok();
    let mixed = daemon.map("vol", 0);
    let file = daemon.path("map").display().to_string();
    assert_eq!(said(&daemon.run(&["map", "export", "vol", "-o", &file])), "");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.lines().all(|line| line.len() <= 100), "{text}");
    said(&daemon.run(&["map", "set", "vol", "0-65535", "1"]));
    said(&daemon.run(&["map", "import", "vol", &file]));
    assert_eq!(daemon.map("vol", 0), mixed);
    assert_ne!(mixed, before);
    // The old form with a single line can be imported as well.
    std::fs::write(&file, text.replace('\n', " ")).unwrap();
    said(&daemon.run(&["map", "set", "vol", "0-65535", "1"]));
    said(&daemon.run(&["map", "import", "vol", &file]));
    assert_eq!(daemon.map("vol", 0), mixed);
}

#[test]
fn regions_are_set_in_decimal() {
    let daemon = Daemon::start();
    daemon.create("vol", "0 2400 switch 3 8 0 mem:2M:v 0 mem:2M:v 0 mem:2M:v 0").expect_ok();
    let path_of = |region: u64| (region % 3) as u32;
    let mut expected: Vec<u32> = (0..300).map(path_of).collect();
    assert_eq!(said(&daemon.run(&["map", "set", "vol", "0-99", "2", "256", "0"])), "");
    expected[..100].fill(2);
    expected[256] = 0;
    assert_eq!(daemon.map("vol", 0), expected);
    // Ranges come from standard input, with comments.
    let mut command = daemon.client();
    command.args(["map", "set", "vol", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"# all\n0-299 1\n10 0 # one\n").unwrap();
    assert_eq!(said(&child.wait_with_output().unwrap()), "");
    expected.fill(1);
    expected[10] = 0;
    assert_eq!(daemon.map("vol", 0), expected);
    // A typing error is found before anything is sent. The refusal quotes the words.
    for (words, part) in [
        (["0-9", "2", "20", "3"], "'20 3': the paths are 0 to 2"),
        (["0-9", "2", "290-300", "1"], "'290-300': the regions are 0 to 299"),
        (["0-9", "1", "0x10", "1"], "'0x10' is no range"),
    ] {
        let refused = daemon.run(&[&["map", "set", "vol"], &words[..]].concat());
        let text = String::from_utf8(refused.stderr).unwrap();
        assert!(text.contains(part) && refused.status.code() == Some(1), "{text}");
        assert_eq!(daemon.map("vol", 0), expected);
    }
}
