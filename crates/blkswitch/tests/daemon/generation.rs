//! The generation of a device's maps: where it is shown, and when it rises.

use blkswitch::protocol::{ErrorBody, MessageReply, RegionMap, route};
use serde_json::{Value, json};

use crate::fixture::Daemon;
use crate::http;
use crate::state::Kept;

const TWO_SEGMENTS: &str = "0 64 switch 2 8 0 mem:1M:v 0 mem:1M:v 0\n\
                            64 64 switch 2 8 0 mem:1M:v 0 mem:1M:v 0";

fn out(daemon: &Daemon, words: &[&str]) -> String {
    let ran = daemon.run(words);
    assert!(ran.status.success(), "{ran:?}");
    String::from_utf8(ran.stdout).unwrap()
}

#[test]
fn it_rises_with_every_message_and_swap_and_is_shown_everywhere() {
    let daemon = Daemon::start();
    daemon.create("vol", TWO_SEGMENTS).expect_ok();
    let now = || daemon.describe("vol").generation;
    assert_eq!(now(), 0);
    // The second segment has the same number.
    for (sector, wanted) in [(0, 1), (64, 2)] {
        let reply = daemon.message("vol", sector, b"set_region_mappings 0:1 :0");
        assert_eq!(reply.json::<MessageReply>().generation, wanted);
    }
    // A message that fails may have changed regions before the mistake.
    let error: ErrorBody = daemon.message("vol", 0, b"set_region_mappings 0:0 0:7").error();
    assert_eq!(error.generation, Some(3));
    let ran = daemon.run(&["message", "vol", "0", "set_region_mappings", "0:0", "9:9"]);
    let text = String::from_utf8(ran.stderr).unwrap();
    assert!(text.contains("\n  the map's generation is 4 now\n"), "{text}");
    // An atomic one that fails has not; nor has one that only reads.
    let ran = daemon.run(&["message", "--atomic", "vol", "0", "set_region_mappings", "0:0", "0:7"]);
    assert!(!ran.status.success());
    daemon.message("vol", 0, b"get_region_mappings").expect_ok();
    assert_eq!(now(), 4);

    let column = ["info", "-c", "--noheadings", "-o", "name,generation", "--separator", ":", "vol"];
    assert_eq!(out(&daemon, &column), "vol:4\n");
    assert!(out(&daemon, &["status", "vol", "--json"]).contains("\"generation\": 4"));
    let metrics = daemon.request("GET", route::METRICS, Value::Null).to_string();
    assert!(metrics.contains("\nblkswitch_map_generation{device=\"vol\"} 4"), "{metrics}");
    for form in ["", "&form=compact"] {
        let path = format!("/v1/devices/vol/map?sector=64{form}");
        let map: Value = daemon.request("GET", &path, Value::Null).json();
        assert_eq!(map["generation"], 4, "{map}");
    }
    let lines = out(&daemon, &["map", "show", "vol", "--ndjson", "--sector", "0"]);
    assert!(lines.lines().next().unwrap().ends_with(r#","generation":4}"#), "{lines}");
    let json: Value =
        serde_json::from_str(&out(&daemon, &["map", "export", "vol", "--sector", "0", "--json"]))
            .unwrap();
    assert_eq!(json["generation"], 4);
    assert!(!json["message"].as_str().unwrap().contains('#'), "{json}");
    let exported = out(&daemon, &["map", "export", "vol", "--sector", "0"]);
    assert_eq!(exported.lines().last(), Some("# generation 4"));
    let plain = out(&daemon, &["map", "export", "vol", "--sector", "0", "--plain"]);
    assert_eq!(exported, format!("{plain}# generation 4\n"));

    // An import understands the comment, also in two parts of the body.
    let file = daemon.path("map");
    std::fs::write(&file, format!("# saved before the change\n{exported}")).unwrap();
    out(&daemon, &["map", "import", "vol", file.to_str().unwrap(), "--sector", "64"]);
    let map = |sector: u64| -> RegionMap {
        let path = format!("/v1/devices/vol/map?sector={sector}");
        daemon.request("GET", &path, Value::Null).json()
    };
    assert_eq!((map(0).runs, map(64).generation), (map(64).runs, Some(5)));

    // A swap of the table changes where regions go; one without switches does not.
    for (table, wanted) in
        [(TWO_SEGMENTS, 6), ("0 128 linear mem:1M:v 0", 7), ("0 128 linear mem:1M:v 8", 7)]
    {
        daemon.on("PUT", route::TABLE, "vol", json!({"table": table})).expect_ok();
        assert_ne!(now(), wanted + 1, "a load alone changes nothing");
        daemon.on("POST", route::RESUME, "vol", Value::Null).expect_ok();
        assert_eq!(now(), wanted, "{table}");
    }
}

/// Kills the daemon after messages and a swap. The number must not fall, or a number that a user
/// has seen would come again with another map.
#[test]
fn it_survives_restarts() {
    let kept = Kept::new();
    let mut daemon = kept.start();
    let (a, b) = (kept.path(0), kept.path(1));
    let table = format!("0 64 switch 2 8 0 {a} 0 {b} 0\n64 64 switch 2 8 0 {a} 0 {b} 0");
    let body = json!({"name": "vol", "table": table, "leaves": {"make_files": true}});
    daemon.request("POST", route::DEVICES, body).expect_ok();
    let mut wanted = 0;
    for round in 0..3 {
        for sector in [64, 0, 0] {
            daemon.message("vol", sector, b"set_region_mappings 0:1 :0 :1").expect_ok();
            wanted += 1;
        }
        daemon.kill();
        daemon = kept.start();
        assert_eq!(daemon.describe("vol").generation, wanted, "round {round}: after messages");
        daemon.on("PUT", route::TABLE, "vol", json!({"table": table})).expect_ok();
        daemon.on("POST", route::RESUME, "vol", Value::Null).expect_ok();
        wanted += 1;
        daemon.kill();
        daemon = kept.start();
        assert_eq!(daemon.describe("vol").generation, wanted, "round {round}: after a swap");
    }
}

/// A message that expects an older generation changes nothing, however long it is.
#[test]
fn a_message_for_another_generation_is_refused() {
    let daemon = Daemon::start();
    let regions = 1 << 18;
    let table = format!("0 {regions} switch 3 1 0 mem:128M:v 0 mem:128M:v 0 mem:128M:v 0");
    daemon.create("vol", &table).expect_ok();
    let send = |query: &str, words: &str| {
        let path = format!("/v1/devices/vol/message?{query}");
        http::send(&daemon.socket(), "POST", &path, words.as_bytes())
    };
    let long = |path: u32| -> String {
        let edits: String = (0..regions).step_by(3).map(|at| format!(" {at:x}:{path}")).collect();
        format!("set_region_mappings{edits}")
    };
    assert!(long(1).len() > 512 << 10);
    let mut generation = 0;
    for words in ["set_region_mappings 5:1 :2", &long(1), &long(2)] {
        let reply: MessageReply = send(&format!("if_generation={generation}"), words).json();
        assert_eq!(reply.generation, generation + 1);
        let map = daemon.map("vol", 0);
        let error = send(&format!("if_generation={generation}"), &long(0)).error();
        assert_eq!((error.errno.name(), error.generation), ("ESTALE", Some(generation + 1)));
        // It implies `atomic`, and a refusal of the words raises nothing.
        generation += 1;
        for wrong in ["set_region_mappings 0:0 R1,20 0:3", &format!("{} 0:3", long(0))] {
            let error = send(&format!("if_generation={generation}"), wrong).error();
            assert_eq!((error.errno.name(), error.generation), ("EINVAL", None), "{error:?}");
        }
        assert_eq!(daemon.map("vol", 0), map);
        assert_eq!(daemon.describe("vol").generation, generation);
    }
    assert_eq!(daemon.map("vol", 0)[..7], [2, 1, 2, 2, 1, 1, 2]);
    let error = send("if_generation=x", "set_region_mappings 0:0").error();
    assert!(error.reason.contains("if_generation=x"), "{}", error.reason);
    let ran =
        daemon.run(&["message", "vol", "0", "--if-generation", "1", "set_region_mappings", "0:0"]);
    let text = String::from_utf8(ran.stderr).unwrap();
    assert!(text.contains("no longer of generation 1") && text.contains("is 3 now"), "{text}");
    assert!(!ran.status.success());
    out(&daemon, &["map", "set", "vol", "0", "0", "--if-generation", "3"]);
    let file = daemon.path("map");
    std::fs::write(&file, long(1)).unwrap();
    let file = file.to_str().unwrap();
    assert!(!daemon.run(&["map", "import", "vol", file, "--if-generation", "3"]).status.success());
    out(&daemon, &["map", "import", "vol", file, "--if-generation", "4"]);
    assert_eq!(daemon.describe("vol").generation, 5);
}

/// While a long message arrives, others are not held up. It is refused at its end if one of them
/// has changed the map.
#[test]
fn a_long_message_with_a_generation_holds_nobody_up() {
    use std::io::{Read, Write};
    let daemon = Daemon::start();
    let table = "0 1048576 switch 2 8 0 mem:1G:v 0 mem:1G:v 0";
    daemon.create("vol", table).expect_ok();
    let words = "0:1 ".repeat(1 << 18);
    let mut slow = std::os::unix::net::UnixStream::connect(daemon.socket()).unwrap();
    let length = "set_region_mappings ".len() + words.len();
    let head = format!(
        "POST /v1/devices/vol/message?if_generation=0 HTTP/1.1\r\nhost: x\r\n\
         connection: close\r\ncontent-length: {length}\r\n\r\nset_region_mappings "
    );
    slow.write_all(head.as_bytes()).unwrap();
    slow.write_all(&words.as_bytes()[..words.len() / 2]).unwrap();
    daemon.message("vol", 0, b"set_region_mappings 7:0").expect_ok();
    slow.write_all(&words.as_bytes()[words.len() / 2..]).unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 412") && answer.contains("ESTALE"), "{answer}");
    assert_eq!(daemon.map("vol", 0)[..2], [0, 1]);
}
