//! Questions about maps, and plans: `map where`, `map regions`, `map diff` and `map plan`.

use std::io::Write as _;
use std::process::{Output, Stdio};

use blkswitch::protocol::{MapDiff, MapPlan, Place, Places, RegionMap, device_path, route};
use serde_json::{Value, json};

use crate::fixture::{Daemon, SECTOR, sector_of};

/// What a verb prints; it must succeed.
#[track_caller]
fn printed(daemon: &Daemon, words: &[&str]) -> String {
    let ran = daemon.run(words);
    assert!(ran.status.success(), "{words:?}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).unwrap()
}

/// What a verb says when it refuses.
#[track_caller]
fn refused(daemon: &Daemon, words: &[&str]) -> String {
    let ran = daemon.run(words);
    assert_eq!(ran.status.code(), Some(1), "{words:?}: {ran:?}");
    String::from_utf8(ran.stderr).unwrap()
}

/// Runs a verb with `input` as its standard input.
fn run_with(daemon: &Daemon, words: &[&str], input: &str) -> Output {
    let mut command = daemon.client();
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_owned());
    let writer = std::thread::spawn(move || {
        // A verb that refuses its input does not read all of it.
        let _ = stdin.write_all(input.as_bytes());
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// The place of every sector of a stack of all targets, checked against what a client reads there:
/// each sector of the files says which one it is.
#[test]
fn the_place_of_a_sector_is_where_a_read_finds_it() {
    let daemon = Daemon::start();
    let [a, b, c, d] =
        ["ram0", "ram1", "ram2", "ram3"].map(|name| daemon.path(name).display().to_string());
    daemon.create("striped", &format!("0 96 striped 3 4 {a} 8 {b} 0 {c} 100")).expect_ok();
    let inner = format!("0 90 switch 2 7 0 {d} 11 /dev/blkswitch/striped 0\n90 6 linear {a} 500");
    daemon.create("inner", &inner).expect_ok();
    daemon.create("paths", &format!("0 8192 multipath 0 0 1 1 round-robin 0 1 0 {b}")).expect_ok();
    let top = format!(
        "0 3 linear {c} 40\n3 93 switch 4 5 0 /dev/blkswitch/inner 3 {a} 700 /dev/blkswitch/paths 20 {b} 1"
    );
    daemon.create("top", &top).expect_ok();
    daemon.message("inner", 0, b"set_region_mappings 2:0 :0 :1").expect_ok();
    daemon.message("top", 3, b"set_region_mappings 3:2 :0 :0 R3,6").expect_ok();
    let sectors: String = (0..96).map(|sector| format!("{sector}\n")).collect();
    let ran = run_with(&daemon, &["map", "where", "top", "--ndjson"], &sectors);
    assert!(ran.status.success(), "{ran:?}");
    let text = String::from_utf8(ran.stdout).unwrap();
    let places: Vec<Place> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(places.len(), 96);
    let mut nbd = daemon.nbd("top");
    let paths = daemon.map("top", 3);
    for (sector, place) in (0..).zip(&places) {
        assert_eq!((place.number, place.sector), (sector, sector));
        let leaf = place.leaf.as_deref().unwrap().rsplit('/').next().unwrap();
        let at = place.leaf_sector.unwrap();
        let read = nbd.read(sector * SECTOR as u64, SECTOR).unwrap();
        assert_eq!(read, sector_of(leaf, at), "sector {sector}: {place:?}");
        if sector >= 3 {
            let region = (sector - 3) / 5;
            assert_eq!(place.region, Some(region));
            assert_eq!(place.path, Some(paths[region as usize]));
        }
        // The sectors after it lie beside it as far as the place says, and no longer.
        for (more, next) in (1..place.sectors).zip(&places[sector as usize + 1..]) {
            assert_eq!((&next.leaf, next.leaf_sector), (&place.leaf, Some(at + more)));
        }
    }
    assert!(places.iter().any(|place| place.tiers.len() == 3), "inner leads to striped");
    assert!(places.iter().any(|place| place.tiers.iter().any(|tier| tier.target == "multipath")));
    // Bytes and regions are the same places.
    let line = printed(&daemon, &["map", "where", "top", "--byte", "1537", "--region", "0"]);
    assert_eq!(
        line,
        format!(
            "byte 1537: region 0, path 0 -> inner: region 0, path 0 -> {d} byte 7169\n\
             region 0: path 0 -> inner: region 0, path 0 -> {d} sector 14, 4 sectors\n"
        ),
    );
    let whole: Places = serde_json::from_str(&printed(
        &daemon,
        &["map", "where", "top", "--json", "--sector", "0", "--sector", "95"],
    ))
    .unwrap();
    assert_eq!(whole.places, [places[0].clone(), places[95].clone()]);
}

#[test]
fn a_trace_of_any_length_is_looked_up() {
    let daemon = Daemon::start();
    daemon.create("vol", "0 65536 switch 3 1 0 mem:64M:v 0 mem:64M:v 0 mem:64M:v 0").expect_ok();
    let trace: String =
        (0..200_000u64).map(|at| format!("{}\n", at * 7919 % 65536)).collect::<String>();
    let ran = run_with(&daemon, &["map", "where", "vol"], &format!("# a trace\n\n{trace}"));
    assert!(ran.status.success(), "{ran:?}");
    let text = String::from_utf8(ran.stdout).unwrap();
    assert_eq!(text.lines().count(), 200_000);
    for (at, line) in (0..200_000u64).zip(text.lines()) {
        let region = at * 7919 % 65536;
        let start = format!("sector {region}: region {region}, path {} -> mem:", region % 3);
        assert!(line.starts_with(&start), "{line}");
    }
    let bad = run_with(&daemon, &["map", "where", "vol"], "1\n2\nsector 3\n");
    assert_eq!(bad.status.code(), Some(1));
    let said = String::from_utf8(bad.stderr).unwrap();
    assert!(said.contains("line 3: 'sector 3' is no sector"), "{said}");
    let bad = run_with(&daemon, &["map", "where", "vol", "--region", "-"], "1\n65536\n");
    let said = String::from_utf8(bad.stderr).unwrap();
    assert!(said.contains("lines 1 to 2: region 65536: it must be from 0 to 65535"), "{said}");
    // What leads to no leaf says so.
    daemon.create("none", "0 8 zero\n8 8 error").expect_ok();
    let text = printed(&daemon, &["map", "where", "none", "--sector", "3", "--sector", "9"]);
    assert_eq!(text, "sector 3: zero\nsector 9: error\n");
    let said = refused(&daemon, &["map", "where", "none", "--region", "0"]);
    assert!(said.contains("only switch has a region map"), "{said}");
    let numbers = vec![0; 65_537];
    let reply = daemon.on("POST", route::MAP_WHERE, "vol", json!({"numbers": numbers}));
    assert!(reply.error().reason.contains("65537 numbers: at most 65536"), "{reply}");
}

#[test]
fn the_regions_of_a_path_are_ranges_that_map_set_takes() {
    let daemon = Daemon::start();
    daemon.create("vol", "0 600 switch 3 1 0 mem:1M:v 0 mem:1M:v 0 mem:1M:v 0").expect_ok();
    printed(&daemon, &["map", "set", "vol", "0-99", "2", "300-399", "2", "150", "1"]);
    let map = daemon.map("vol", 0);
    let ranges = printed(&daemon, &["map", "regions", "vol", "--path", "2"]);
    assert!(ranges.starts_with("0-99\n101\n104\n"), "{ranges}");
    let json = printed(&daemon, &["map", "regions", "vol", "--path", "2", "--json"]);
    let listed: RegionMap = serde_json::from_str(&json).unwrap();
    assert_eq!(listed.runs.len(), ranges.lines().count());
    let mut found = vec![false; 600];
    for run in &listed.runs {
        assert_eq!(run.path, 2);
        (run.start..run.start + run.count).for_each(|region| found[region as usize] = true);
    }
    assert!((0..600).all(|region| found[region] == (map[region] == 2)));
    // Their lines, each with a path, move them.
    let words: String = ranges.lines().map(|range| format!("{range} 0\n")).collect();
    assert!(run_with(&daemon, &["map", "set", "vol"], &words).status.success());
    assert_eq!(printed(&daemon, &["map", "regions", "vol", "--path", "2"]), "");
    let none = printed(&daemon, &["map", "regions", "vol", "--path", "2", "--json"]);
    assert!(serde_json::from_str::<RegionMap>(&none).unwrap().runs.is_empty());
    let said = refused(&daemon, &["map", "regions", "vol", "--path", "3"]);
    assert!(said.contains("path 3: it must be from 0 to 2"), "{said}");
    let path = format!("{}?path=1&form=compact", device_path(route::MAP, "vol"));
    let reply = daemon.request("GET", &path, Value::Null);
    assert!(reply.error().reason.contains("form=compact"), "{reply}");
}

#[test]
fn a_difference_is_ranges_json_and_a_message() {
    let daemon = Daemon::start();
    let table = "0 3000 switch 3 1 0 mem:4M:v 0 mem:4M:v 0 mem:4M:v 0";
    for name in ["one", "two"] {
        daemon.create(name, table).expect_ok();
    }
    assert_eq!(printed(&daemon, &["map", "diff", "one", "two"]), "");
    printed(&daemon, &["map", "set", "two", "9", "2", "300-311", "1", "2999", "0"]);
    let text = printed(&daemon, &["map", "diff", "one", "two"]);
    assert!(text.starts_with("9: path 0 -> 2\n300: path 0 -> 1\n302: path 2 -> 1\n"), "{text}");
    let json = printed(&daemon, &["map", "diff", "one", "two", "--json"]);
    let diff: MapDiff = serde_json::from_str(&json).unwrap();
    assert_eq!((diff.regions, diff.region_size, diff.paths), (3000, 1, [3, 3]));
    assert_eq!(diff.changes.len(), text.lines().count());
    let (one, two) = (daemon.map("one", 0), daemon.map("two", 0));
    let mut changed = one.clone();
    for change in &diff.changes {
        for region in change.start..change.start + change.count {
            assert_eq!(changed[region as usize], change.from);
            changed[region as usize] = change.to;
        }
    }
    assert_eq!(changed, two);
    // A file says the same as the device that it was written from.
    let file = daemon.path("two.map").display().to_string();
    printed(&daemon, &["map", "export", "two", "-o", &file]);
    assert_eq!(printed(&daemon, &["map", "diff", "one", &file]), text);
    assert_eq!(printed(&daemon, &["map", "diff", "one", &file, "--json"]), json);
    let piped = std::fs::read_to_string(&file).unwrap();
    let ran = run_with(&daemon, &["map", "diff", "one", "-"], &piped);
    assert_eq!(String::from_utf8(ran.stdout).unwrap(), text);
    assert_eq!(daemon.map("one", 0), one, "nothing is changed");
    // The message turns the first map into the second.
    let message = printed(&daemon, &["map", "diff", "one", "two", "--message"]);
    assert_eq!(printed(&daemon, &["map", "diff", "one", &file, "--message"]), message);
    daemon.message("one", 0, message.as_bytes()).expect_ok();
    assert_eq!(daemon.map("one", 0), two);
    let message = printed(&daemon, &["map", "diff", "one", "two", "--message"]);
    assert_eq!(message, "set_region_mappings\n", "a message that changes nothing");
    // What cannot be compared.
    daemon.create("other", "0 3000 switch 3 2 0 mem:4M:v 0 mem:4M:v 0 mem:4M:v 0").expect_ok();
    let said = refused(&daemon, &["map", "diff", "one", "other"]);
    assert!(said.contains("regions of 1 and of 2 sectors"), "{said}");
    let said = refused(&daemon, &["map", "diff", "one", "nothing"]);
    assert!(said.contains("neither a device nor a file 'nothing'"), "{said}");
    std::fs::write(&file, "set_region_mappings 0:1 bb8:0").unwrap();
    let said = refused(&daemon, &["map", "diff", "one", &file]);
    assert!(said.contains("argument 2 'bb8:0': the region 3000"), "{said}");
    std::fs::write(&file, "hello").unwrap();
    let said = refused(&daemon, &["map", "diff", "one", &file]);
    assert!(said.contains("'hello' begins no map"), "{said}");
    assert_eq!(daemon.map("one", 0), two);
}

/// Whether the regions of each path are as the plan promises.
type IsRight = fn(&[u64]) -> bool;

/// Regions of each path.
fn shares(map: &[u32], paths: usize) -> Vec<u64> {
    let mut shares = vec![0; paths];
    map.iter().for_each(|path| shares[*path as usize] += 1);
    shares
}

#[test]
fn plans_change_nothing_and_their_messages_do_what_they_say() {
    let daemon = Daemon::start();
    let table = "0 4003 switch 4 4 0 mem:4M:v 0 mem:4M:v 0 mem:4M:v 0 mem:4M:v 0";
    daemon.create("vol", table).expect_ok();
    printed(&daemon, &["map", "set", "vol", "0-99", "1", "200-499", "3"]);
    let plans: [(&[&str], IsRight); 6] = [
        (&["evacuate", "--path", "1"], |shares| shares[1] == 0),
        (&["evacuate", "--path", "3", "--onto", "0,2"], |shares| shares[3] == 0),
        (&["balance"], |shares| shares.iter().all(|share| [250, 251].contains(share))),
        (&["balance", "--by", "regions", "--weights", "2,1,1,0"], |shares| shares[3] == 0),
        (&["compact", "--max-moves", "20"], |_| true),
        (&["compact"], |_| true),
    ];
    for (words, is_right) in plans {
        let words = [&["map", "plan", "vol"], words].concat();
        let before = daemon.map("vol", 0);
        let text = printed(&daemon, &words);
        let json = printed(&daemon, &[words.as_slice(), &["--json"]].concat());
        let message = printed(&daemon, &[words.as_slice(), &["--message"]].concat());
        assert_eq!(daemon.map("vol", 0), before, "a plan changes nothing");
        let plan: MapPlan = serde_json::from_str(&json).unwrap();
        assert!(plan.message.split_whitespace().eq(message.split_whitespace()));
        assert_eq!(plan.generation, Some(daemon.describe("vol").generation));
        assert!(text.ends_with(&message), "{text}");
        daemon.message("vol", 0, message.as_bytes()).expect_ok();
        let after = daemon.map("vol", 0);
        let moved: Vec<usize> = (0..1001).filter(|at| before[*at] != after[*at]).collect();
        assert_eq!(plan.regions, moved.len() as u64, "{words:?}");
        assert!(plan.regions > 0, "{words:?}");
        let bytes = |region: &usize| if *region == 1000 { 3 * 512 } else { 4 * 512 };
        assert_eq!(plan.bytes, moved.iter().map(bytes).sum::<u64>(), "{words:?}");
        let counted: Vec<u64> = plan.shares.iter().map(|share| share.before.unwrap()).collect();
        assert_eq!(counted, shares(&before, 4), "{words:?}");
        let counted: Vec<u64> = plan.shares.iter().map(|share| share.after.unwrap()).collect();
        assert_eq!(counted, shares(&after, 4), "{words:?}");
        assert!(is_right(&counted), "{words:?}: {counted:?}");
        for share in &plan.shares {
            assert_eq!(share.before.unwrap() - share.gives + share.gets, share.after.unwrap());
        }
        if words.contains(&"compact") {
            let runs = |map: &[u32]| map.chunk_by(|a, b| a == b).count() as u64;
            assert_eq!(plan.runs, Some([runs(&before), runs(&after)]));
            assert!(runs(&after) < runs(&before));
        }
    }
    let again = printed(&daemon, &["map", "plan", "vol", "compact"]);
    assert!(again.starts_with("compact vol: no region needs to move\n"), "{again}");
    let before = daemon.map("vol", 0);
    for (words, part) in [
        (["evacuate", "--path", "4"].as_slice(), "the path 4 must be from 0 to 3"),
        (&["evacuate"], "evacuate needs --path P"),
        (&["evacuate", "--path", "1", "--onto", "1"], "cannot be moved onto path 1 itself"),
        (&["evacuate", "--path", "1", "--max-moves", "3"], "--max-moves belongs to"),
        (&["balance", "--weights", "1,2"], "there are 2 weights, but there must be 4"),
        (&["balance", "--weights", "0,0,0,0"], "all weights are 0"),
        (&["balance", "--weights", "1,x"], "'x'"),
        (&["balance", "--by", "colour"], "'colour'"),
        (&["squeeze"], "'squeeze'"),
    ] {
        let said = refused(&daemon, &[&["map", "plan", "vol"], words].concat());
        assert!(said.contains(part), "{words:?}: {said}");
    }
    assert_eq!(daemon.map("vol", 0), before);
}
