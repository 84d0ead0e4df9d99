//! Texts: errors of table lines with their position and the allowed values, tables and states that
//! no recording covers, messages, and log lines.

use std::collections::BTreeSet;

use blkswitch_core::error::Errno;
use blkswitch_core::multipath::{Ask, CpuMask, Event, MessageError, MultipathCommand, ParamsError};

use super::loading::{Loaded, load, send};

fn open(name: &str) -> Result<String, Errno> {
    if name == "missing" { Err(Errno::Enoent) } else { Ok(name.to_owned()) }
}

fn refused(line: &str) -> ParamsError {
    load(line, open).map(|loaded| loaded.devices).expect_err(line)
}

fn texts(loaded: &Loaded) -> (String, String) {
    let device =
        |path: u32, f: &mut std::fmt::Formatter<'_>| f.write_str(&loaded.devices[path as usize]);
    (loaded.multipath.info(device).to_string(), loaded.multipath.table(device).to_string())
}

/// `(line, the kernel's text, the wrong word, part of the sentence for people)`. The word is `None`
/// if it is missing.
#[rustfmt::skip]
const REFUSED: &[(&str, &str, Option<&str>, &str)] = &[
    ("", "invalid number of feature args", None, "is missing: it must be a decimal number up to 8"),
    ("9 a b c d e f g h i", "invalid number of feature args", Some("9"), "up to 8, and as many words must follow"),
    ("2 queue_if_no_path", "invalid number of feature args", Some("2"), "as many words"),
    ("-1", "invalid number of feature args", Some("-1"), "'-1' must be"),
    ("4294967296 0 0 0", "invalid number of feature args", Some("4294967296"), "must be"),
    ("2 pg_init_retries 0 0 0 0", "pg_init_retries must be between 1 and 50", Some("0"), "from 1 to 50"),
    ("2 pg_init_retries 51 0 0 0", "pg_init_retries must be between 1 and 50", Some("51"), "from 1 to 50"),
    ("2 pg_init_delay_msecs 60001 0 0 0", "pg_init_delay_msecs must be between 0 and 60000", Some("60001"), "up to 60000"),
    ("2 queue_mode nvme 0 0 0", "Unknown 'queue_mode' requested", Some("nvme"), "bio, rq or mq"),
    ("1 queue_mode 0 0 0", "Unrecognised multipath feature request", Some("queue_mode"), "with a value"),
    ("1 pg_init_retries 0 0 0", "Unrecognised multipath feature request", Some("pg_init_retries"), "with a value"),
    ("2 queue_if_no_path fast 0 0 0", "Unrecognised multipath feature request", Some("fast"), "retain_attached_hw_handler"),
    ("0", "invalid number of hardware handler args", None, "up to 1024"),
    ("0 1", "invalid number of hardware handler args", Some("1"), "as many words must follow"),
    ("0 0", "invalid number of priority groups", None, "up to 1024"),
    ("0 0 1025 1", "invalid number of priority groups", Some("1025"), "up to 1024"),
    ("0 0 1", "invalid initial priority group number", None, "up to 1024"),
    ("0 0 1 1025", "invalid initial priority group number", Some("1025"), "up to 1024"),
    ("0 0 1 0", "invalid initial priority group", Some("0"), "groups count from 1"),
    ("0 0 0 1", "invalid initial priority group", Some("1"), "0 if there is no group"),
    ("0 0 1 1", "priority group count mismatch", None, "says that there are 1 priority groups, but there are 0"),
    ("0 0 1 1 round-robin", "not enough priority group arguments", None, "begins with a selector"),
    ("0 0 1 1 random 0", "unknown path selector type", Some("random"), "historical-service-time or io-affinity"),
    ("0 0 1 1 Round-Robin 0 1 0 a", "unknown path selector type", Some("Round-Robin"), "round-robin, queue-length"),
    ("0 0 1 1 round-robin 1", "invalid number of path selector args", Some("1"), "as many words"),
    ("0 0 1 1 historical-service-time 1 1024 1 0 a", "path selector constructor failed", Some("1024"), "from 0 to 1023"),
    ("0 0 1 1 historical-service-time 3 1 1 1 1 0 a", "path selector constructor failed", Some("1"), "at most"),
    ("0 0 1 1 round-robin 0", "invalid number of paths", None, "from 1 to 1024"),
    ("0 0 1 1 round-robin 0 0 0", "invalid number of paths", Some("0"), "from 1 to 1024"),
    ("0 0 1 1 round-robin 0 1025 0", "invalid number of paths", Some("1025"), "from 1 to 1024"),
    ("0 0 1 1 round-robin 0 1", "invalid number of selector args", None, "up to 1024"),
    ("0 0 1 1 round-robin 0 1 1025", "invalid number of selector args", Some("1025"), "up to 1024"),
    ("0 0 1 1 round-robin 0 1 0", "not enough path parameters", None, "within a path"),
    ("0 0 1 1 round-robin 0 2 1 a 1 b", "not enough path parameters", None, "as many words as the group says"),
    ("0 0 1 1 round-robin 0 1 1 missing x", "error getting device", Some("missing"), "'missing' cannot be opened: No such file"),
    ("0 1 scsi 1 1 round-robin 0 1 1 missing x", "error getting device", Some("missing"), "cannot be opened"),
    ("0 1 scsi 1 1 round-robin 0 1 1 a x", "error attaching hardware handler", Some("scsi"), "alua, emc, hp_sw or rdac"),
    ("0 1 scsi 0 0", "error attaching hardware handler", Some("scsi"), "alua"),
    ("0 0 1 1 round-robin 0 1 1 a x", "round-robin ps: invalid repeat count", Some("x"), "a decimal number"),
    ("0 0 1 1 round-robin 0 1 2 a 1 1", "round-robin ps: incorrect number of arguments", Some("a"), "at most a repeat count"),
    ("0 0 1 1 queue-length 0 1 2 a 1 1", "queue-length ps: incorrect number of arguments", Some("a"), "at most a repeat count"),
    ("0 0 1 1 historical-service-time 0 1 1 a -", "historical-service-time ps: invalid repeat count", Some("-"), "a decimal"),
    ("0 0 1 1 service-time 0 1 2 a 1 101", "service-time ps: invalid relative_throughput value", Some("101"), "from 0 to 100"),
    ("0 0 1 1 service-time 0 1 2 a x 101", "service-time ps: invalid repeat count", Some("x"), "a decimal number"),
    ("0 0 1 1 service-time 0 1 3 a 1 1 1", "service-time ps: incorrect number of arguments", Some("a"), "relative throughput"),
    ("0 0 1 1 io-affinity 0 1 0 a", "io-affinity ps: invalid number of arguments", Some("a"), "one mask of CPUs"),
    ("0 0 1 1 io-affinity 0 1 2 a 1 1", "io-affinity ps: invalid number of arguments", Some("a"), "one mask of CPUs"),
    ("0 0 1 1 io-affinity 0 1 1 a 0x1", "io-affinity ps: invalid cpumask", Some("0x1"), "hexadecimal without a prefix"),
    ("0 0 1 1 round-robin 0 1 0 a round-robin 0 1 0 b", "priority group count mismatch", None, "but there are 2"),
];

#[test]
fn refused_lines() {
    for (line, text, word, explanation) in REFUSED {
        let error = refused(line);
        assert_eq!(error.to_string(), *text, "{line}");
        let words: Vec<&str> = line.split_whitespace().collect();
        let found = words.get(error.at).copied();
        assert_eq!(found, *word, "{line}");
        let sentence = error.explain(found.map(str::as_bytes)).to_string();
        assert!(sentence.contains(explanation), "{line}: {sentence}");
        let errno = if text.contains("device") { Errno::Enoent } else { Errno::Einval };
        assert_eq!(error.errno(), errno, "{line}");
    }
    // The list above covers every kind of error.
    let kinds: BTreeSet<String> =
        REFUSED.iter().map(|(line, ..)| format!("{:?}", refused(line).kind)).collect();
    let kinds: BTreeSet<&str> =
        kinds.iter().map(|kind| kind.split([' ', '(']).next().unwrap()).collect();
    assert_eq!(kinds.len(), 20, "{kinds:?}");
}

#[test]
fn tables_are_normalised() {
    for (line, table, info) in [
        (
            "5 QUEUE_IF_NO_PATH pg_init_delay_msecs 0 Queue_Mode RQ 2 rdac x 1 1 queue-length 2 x y 1 0 a",
            "3 queue_if_no_path pg_init_delay_msecs 0 1 rdac 1 1 queue-length 0 1 1 a 1 ",
            "2 1 0 0 1 1 E 0 1 1 a A 0 0 ",
        ),
        // In bio mode, nobody looks at the handler's words, so an unknown handler is not an error.
        (
            "2 queue_mode bio 2 scsi x 1 1 round-robin 0 1 1 a 0",
            "3 retain_attached_hw_handler queue_mode bio 0 1 1 round-robin 0 1 1 a 0 ",
            "2 1 0 0 1 1 E 0 1 0 a A 0 ",
        ),
        (
            "0 0 1 1 historical-service-time 1 512 1 1 a 1",
            "0 0 1 1 historical-service-time 2 512 0 1 1 a 1 ",
            "2 1 0 0 1 1 E 2 512 0 1 3 a A 0 0 0 0 ",
        ),
        (
            "0 0 1 1 historical-service-time 0 1 0 a",
            "0 0 1 1 historical-service-time 2 972 0 1 1 a 1 ",
            "2 1 0 0 1 1 E 2 972 0 1 3 a A 0 0 0 0 ",
        ),
        (
            "0 0 1 1 io-affinity 0 2 1 a 0001 b 1,00000000",
            "0 0 1 1 io-affinity 0 2 1 a 1 b 1,00000000 ",
            "2 1 0 0 1 1 E 0 2 1 a A 0 0 b A 0 0 ",
        ),
    ] {
        let loaded = load(line, open).unwrap();
        assert_eq!(texts(&loaded), (info.to_owned(), table.to_owned()), "{line}");
        // The text of a table, loaded again, gives the same text.
        assert_eq!(texts(&load(table, open).unwrap()).1, table);
    }
}

#[test]
fn what_is_in_flight_shows() {
    let loaded = load(
        "0 0 3 1 service-time 0 1 2 a 1 5 queue-length 0 1 0 b historical-service-time 0 1 0 c",
        open,
    )
    .unwrap();
    let select = |now_ns| {
        send(loaded.multipath.select(Ask { bytes: 4096, now_ns, cpu: 0 }, &mut |_| {})).unwrap()
    };
    let a = select(0);
    loaded.multipath.fail_path(0, &mut |_| {});
    let b = select(0);
    loaded.multipath.fail_path(1, &mut |_| {});
    let c = select(100);
    assert_eq!(
        texts(&loaded).0,
        "2 0 0 0 3 3 E 0 1 2 a F 1 4096 5 E 0 1 1 b F 1 1 A 2 972 0 1 3 c A 0 0 1 0 "
    );
    for attempt in [a, b, c] {
        drop(loaded.multipath.judge(attempt, 0, 300, &mut |_| {}));
    }
    assert_eq!(
        texts(&loaded).0,
        "2 0 0 0 3 3 E 0 1 2 a F 1 0 5 E 0 1 1 b F 1 0 A 2 972 0 1 3 c A 0 200 0 200300 "
    );
}

#[test]
fn masks_of_cpus() {
    for (word, shown) in [
        ("0", "0"),
        ("00000003", "3"),
        ("A,0,f", "a,00000000,0000000f"),
        ("80000000,00000000", "80000000,00000000"),
    ] {
        assert_eq!(
            CpuMask::parse(word.as_bytes()).map(|mask| mask.to_string()).as_deref(),
            Some(shown)
        );
    }
    let chunks = |count: usize| ["1"].repeat(count).join(",");
    assert!(CpuMask::parse(chunks(16).as_bytes()).unwrap().contains(480));
    for word in ["", ",", "1,", "g", "123456789", "-1", " 1", &chunks(17)] {
        assert_eq!(CpuMask::parse(word.as_bytes()), None, "{word}");
    }
    let high = CpuMask::parse(format!("80000000{}", ",0".repeat(15)).as_bytes()).unwrap();
    assert!(
        high.contains(511)
            && !high.contains(510)
            && !high.contains(512)
            && !high.contains(u16::MAX)
    );
}

#[test]
fn messages_that_are_refused() {
    let loaded = load("0 0 2 1 round-robin 0 1 0 a round-robin 0 1 0 a", open).unwrap();
    let apply = |words: &[&str]| {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        let command = MultipathCommand::parse(&words)?;
        let is_meant =
            |path: u32| command.device() == Some(loaded.devices[path as usize].as_bytes());
        loaded.multipath.apply(&command, is_meant, &mut |_| {})
    };
    for (words, text, sentence) in [
        (
            &[][..],
            "Invalid multipath message arguments. Expected 2 arguments, got 0.",
            "words found: 0",
        ),
        (&["fail_path", "b"], "", "no path leads over the device 'b'"),
        (
            &["Fail", "b\x01"],
            "Unrecognised multipath message received: Fail",
            "'Fail' is no message",
        ),
        (
            &["switch_group", "3"],
            "invalid PG number supplied to switch_pg_num",
            "'3' must be a decimal number from 1 to 2",
        ),
        (&["enable_group", "4294967297"], "invalid PG number supplied to bypass_pg", "from 1 to 2"),
    ] {
        let error = apply(words).unwrap_err();
        let bytes: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        let word = error.word(&bytes);
        assert_eq!(
            (error.of_word(word).to_string().as_str(), error.errno()),
            (text, Errno::Einval)
        );
        let explained = error.explain(word).to_string();
        assert!(explained.contains(sentence), "{explained}");
    }
    assert_eq!(
        (MessageError::Suspended.errno(), MessageError::Suspended.to_string()),
        (Errno::Ebusy, String::new())
    );
    let lookup = MessageError::Device { errno: Errno::Enodev };
    assert_eq!(lookup.of_word(b"/dev/x").to_string(), "message: error getting device /dev/x");
    assert_eq!(lookup.errno(), Errno::Enodev);

    // A message about a device that is a path of two groups fails both paths.
    assert_eq!(apply(&["FAIL_PATH", "a"]), Ok(()));
    assert_eq!((loaded.multipath.live_paths(), texts(&loaded).0.matches(" F 1 ").count()), (0, 2));
}

#[test]
fn log_lines() {
    let line = |event: Event| event.log_line("253:1", "8:48").to_string();
    assert_eq!(
        line(Event::PathFailed { path: 0, left: 1 }),
        "multipath: 253:1: Failing path 8:48."
    );
    assert_eq!(
        line(Event::PathReinstated { path: 0, left: 1 }),
        "multipath: 253:1: Reinstating path 8:48."
    );
    assert_eq!(
        line(Event::GroupSwitched { group: 2 }),
        "multipath: 253:1: Using priority group 2."
    );
    let all = [
        Event::PathFailed { path: 0, left: 0 },
        Event::PathReinstated { path: 0, left: 1 },
        Event::GroupSwitched { group: 1 },
        Event::GroupChosen { group: 1 },
        Event::GroupDisabled { group: 1 },
        Event::GroupEnabled { group: 1 },
        Event::QueueingOn,
        Event::QueueingOff,
    ];
    assert_eq!(all.map(|event| event.name()).into_iter().collect::<BTreeSet<_>>().len(), all.len());
    assert_eq!(all.map(line).into_iter().collect::<BTreeSet<_>>().len(), all.len());
    assert_eq!(
        all.map(|event| event.is_counted()),
        [true, true, false, true, true, true, false, false]
    );
    assert_eq!(
        all.map(|event| event.releases_held()),
        [false, true, false, false, false, false, false, true]
    );
}
