//! The generation of a device's maps: where it is shown, and when it rises.

use blkswitch::protocol::{ErrorBody, MessageReply, RegionMap, route};
use serde_json::{Value, json};

use crate::fixture::Daemon;
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
