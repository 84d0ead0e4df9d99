//! Table lines, words, numbers and the sentences of errors, case by case.

use blkswitch_core::args::{Printable, Word, Words, is_space, parse_u32, parse_u64};
use blkswitch_core::error::{Errno, Error};
use blkswitch_core::switch::{Geometry, MAX_PATHS, MessageError, MessageErrorKind, Params};
use blkswitch_core::table::{
    Layout, LineError, MAX_DEVICE_SECTORS, TableLine, check_area, check_region_size, lines,
};

fn line(text: &str) -> Result<(u64, u64, &str, &str), String> {
    let mut table = lines(text.as_bytes());
    let target = table.next().expect("there is a line").map_err(|error| error.to_string())?;
    assert!(table.next().is_none());
    let text = |bytes| std::str::from_utf8(bytes).unwrap();
    Ok((target.start, target.len, text(target.kind), text(target.params)))
}

#[test]
fn table_lines() {
    let format = |line| Err(format!("Invalid format on line {line} of table ."));
    assert_eq!(line("0 8192 switch 3 128 0"), Ok((0, 8192, "switch", "3 128 0")));
    assert_eq!(line(" \t0   8192\tswitch   3  128 0 \r\n"), Ok((0, 8192, "switch", "3  128 0")));
    assert_eq!(line("0 8192 error"), Ok((0, 8192, "error", "")));
    assert_eq!(line("0 8192 switch 3 # 128 # 0"), Ok((0, 8192, "switch", "3 ")));
    assert_eq!(line("# 1\n\n \n0 1 x\n#"), Ok((0, 1, "x", "")));
    assert_eq!(line("0 8192switch 1"), Ok((0, 8192, "switch", "1")));
    assert_eq!(line("+1 -1 switch"), Ok((1, u64::MAX, "switch", "")));
    assert_eq!(
        line("99999999999999999999 18446744073709551615 x"),
        Ok((u64::MAX, u64::MAX, "x", ""))
    );
    assert_eq!(line("-99999999999999999999 1 x"), Ok((u64::MAX, 1, "x", "")));
    for wrong in ["x", "0", "0 8192", "0 8192 ", "0 switch 1", "0x10 1 switch", "- 1 x", "1 + x"] {
        assert_eq!(line(wrong), format(1), "{wrong}");
    }
    assert_eq!(line("#\n\nx"), format(3));
    assert_eq!(line("0 1 abcdefghijklmno"), Ok((0, 1, "abcdefghijklmno", "")));
    assert_eq!(
        line("0 1 abcdefghijklmnop"),
        Err("Target type name abcdefghijklmnop is too long.".into())
    );
    assert_eq!(
        LineError::Format { line: 2 }.in_table("t.txt").to_string(),
        "Invalid format on line 2 of table t.txt."
    );
    assert!(lines(b"").next().is_none());
    let starts: Vec<_> = lines(b"0 1 a\n1 1 b\n")
        .map(|target| target.map(|TableLine { line, start, .. }| (line, start)))
        .collect();
    assert_eq!(starts, [Ok((1, 0)), Ok((2, 1))]);
}

#[test]
fn places_of_targets() {
    let mut layout = Layout::new();
    assert_eq!(layout.finish(), Err(Error::NoTargets));
    assert_eq!(Layout::extent(0, 0), Err(Error::ZeroLength));
    assert_eq!(Layout::extent(0, MAX_DEVICE_SECTORS), Ok(()));
    assert_eq!(
        Layout::extent(1, MAX_DEVICE_SECTORS),
        Err(Error::TooLarge { start: 1, len: MAX_DEVICE_SECTORS })
    );
    assert_eq!(Layout::extent(u64::MAX, 2), Err(Error::TooLarge { start: u64::MAX, len: 2 }));
    assert_eq!(layout.append(8, 8), Err(Error::Gap { start: 8, expected: 0 }));
    assert_eq!(layout.append(0, 8), Ok(()));
    assert_eq!(layout.append(0, 8), Err(Error::Gap { start: 0, expected: 8 }));
    assert_eq!(layout.append(8, 8), Ok(()));
    assert_eq!((layout.end(), layout.finish()), (16, Ok(())));
}

#[test]
fn areas_of_devices() {
    let text =
        |result: Result<(), Error>| result.map_err(|error| error.of_device("sda").to_string());
    assert_eq!(text(check_area(0, 100, 100, 512)), Ok(()));
    assert_eq!(text(check_area(8, 96, 104, 4096)), Ok(()));
    assert_eq!(
        text(check_area(1, 100, 100, 512)),
        Err("sda too small for target: start=1, len=100, dev_size=100".into())
    );
    assert!(check_area(u64::MAX, 1, 100, 512).is_err() && check_area(100, 0, 100, 512).is_err());
    assert!(check_area(0, 1, 0, 512).is_err());
    assert_eq!(
        text(check_area(4, 96, 1000, 4096)),
        Err("start=4 not aligned to h/w logical block size 4096 of sda".into())
    );
    assert_eq!(
        text(check_area(8, 97, 1000, 4096)),
        Err("len=97 not aligned to h/w logical block size 4096 of sda".into())
    );
    assert!(check_region_size(12, 2, 4096).is_err());
    assert!(
        check_region_size(12, 1, 4096).is_ok()
            && check_region_size(24, 9, 4096).is_ok()
            && check_region_size(1, 9, 512).is_ok()
    );
}

#[test]
fn numbers() {
    for (word, number) in [
        ("0", Some(0)),
        ("007", Some(7)),
        ("4294967295", Some(u32::MAX)),
        (" 3", Some(3)),
        ("4294967296", None),
    ] {
        assert_eq!(parse_u32(word.as_bytes()), number, "{word}");
    }
    for word in ["", " ", "-1", "+1", "0x1", "1 ", "1x", "1\n", "99999999999999999999999"] {
        assert_eq!(parse_u32(word.as_bytes()), None, "{word}");
    }
    for (word, number) in [("0", 0), ("+8", 8), ("8\n", 8), ("18446744073709551615", u64::MAX)] {
        assert_eq!(parse_u64(word.as_bytes()), Some(number), "{word}");
    }
    for word in ["", "+", "\n", "++8", "-8", " 8", "8\n\n", "0x8", "18446744073709551616", "8 "] {
        assert_eq!(parse_u64(word.as_bytes()), None, "{word}");
    }
}

#[test]
fn words() {
    let spaces: Vec<u8> = (0..=255).filter(|&byte| is_space(byte)).collect();
    assert_eq!(spaces, [9, 10, 11, 12, 13, 32, 160]);
    let mut words = Words::new(br" a\ b c\\d e\");
    let text = |word: Word<'_>| String::from_utf8(word.bytes().collect()).unwrap();
    assert_eq!(text(words.next().unwrap()), "a b");
    assert_eq!(words.rest(), br" c\\d e\");
    let word = words.next().unwrap();
    assert_eq!(
        (text(word).as_str(), word.plain(), word.raw()),
        (r"c\d", None, br"c\\d".as_slice())
    );
    assert_eq!(word.to_string(), r"c\x5cd");
    assert_eq!(text(words.next().unwrap()), r"e\");
    assert!(words.next().is_none());
    assert_eq!(Printable(b"1:\xe9\n~").to_string(), "1:\\xe9\\x0a~");
}

#[test]
fn constructor_words_are_checked_in_order() {
    let parse = |text: &str| {
        let words: Vec<&[u8]> =
            text.split(' ').filter(|word| !word.is_empty()).map(str::as_bytes).collect();
        let mut params = Params::parse(words.into_iter())?;
        params.try_for_each(|path| path.offset().map(|_| ()))
    };
    assert_eq!(parse(""), Err(Error::NumPaths { at: 0 }));
    assert_eq!(parse(&format!("{MAX_PATHS}")), Err(Error::RegionSize { at: 1 }));
    assert_eq!(parse(&format!("{}", MAX_PATHS + 1)), Err(Error::NumPaths { at: 0 }));
    assert_eq!(parse("2 0"), Err(Error::RegionSize { at: 1 }));
    assert_eq!(parse("2 1 1"), Err(Error::OptionalArgs { at: 2 }));
    assert_eq!(parse("2 1 0 a 0 b"), Err(Error::PathArguments { expected: 4, found: 3 }));
    let error = parse("2 1 0 a 0 b x").unwrap_err();
    assert_eq!((error, error.word_position()), (Error::Offset { path: 1, at: 6 }, Some(6)));
    assert_eq!(Error::DeviceLookup { path: 1, errno: Errno::Enoent }.word_position(), Some(5));
    assert_eq!(parse("2 1 0 a 0 b +9"), Ok(()));
}

#[test]
fn errors_say_what_is_allowed() {
    let explained =
        |error: Error, word: Option<&str>| error.explain(word.map(str::as_bytes)).to_string();
    assert_eq!(
        explained(Error::NumPaths { at: 0 }, Some("0")),
        "the number of paths '0' must be a decimal number from 1 to 262141, digits only"
    );
    assert_eq!(
        explained(Error::RegionSize { at: 1 }, None),
        "the region size is missing: it must be a decimal number of 512-byte sectors from 1 to 4294967295, digits only"
    );
    assert_eq!(
        explained(Error::DeviceLookup { path: 1, errno: Errno::Enoent }, Some("/dev/x")),
        "path 1 '/dev/x' cannot be opened: No such file or directory"
    );
    assert_eq!(
        explained(Error::RegionUnaligned { region_size: 12, block_size: 4096 }, None),
        "the region size of 12 sectors must be a multiple of 8 sectors, or regions would cut the device's 4096-byte blocks"
    );
    let error = MessageError { kind: MessageErrorKind::Path { path: 9, paths: 3 }, position: 2 };
    assert_eq!(
        error.explain(Word::literal(b"5:9")).to_string(),
        "argument 2 '5:9': the path 9 (hex 9) must be from 0 to 2 (hex 2)"
    );
    let error = MessageError {
        kind: MessageErrorKind::CycleLength { last: u64::MAX, index: 4 },
        position: 1,
    };
    assert_eq!(
        error.explain(Word::literal(b"R0,1")).to_string(),
        "argument 1 'R0,1': the cycle length 0 must be from 1 to 5, as region 4 is the last one mapped"
    );
}

#[test]
fn errors_of_texts_and_lists_say_where() {
    use std::error::Error;

    use blkswitch_core::switch::compact::WriteError;
    use blkswitch_core::switch::{Message, TextError};
    let geometry = Geometry::new(16, 3, 1).unwrap();
    let refused: TextError = Message::new().check_text(&geometry, b"1:2 1:3", true).unwrap_err();
    assert_eq!((refused.at, refused.to_string()), (4, refused.error.to_string()));
    assert_eq!(refused.to_string(), "invalid set_region_mappings device: 3 >= 3");
    assert!(refused.source().is_some_and(|source| source.is::<MessageError>()));
    let ended = WriteError { region: 7, error: "no room" };
    assert_eq!(ended.to_string(), "the list of the map ends at region 7: no room");
}

#[test]
fn errnos_have_linux_numbers() {
    assert_eq!(
        (Errno::Einval.number(), Errno::Einval.name(), Errno::Einval.to_string()),
        (22, "EINVAL", "-EINVAL".into())
    );
    assert_eq!(Errno::from_number(12), Some(Errno::Enomem));
    assert_eq!(Errno::from_number(0), None);
    assert_eq!(Error::DeviceLookup { path: 0, errno: Errno::Ebusy }.errno(), Errno::Ebusy);
    assert_eq!(Error::RegionTableMemory { regions: 1 }.errno(), Errno::Enomem);
}

#[test]
fn geometries_that_cannot_be() {
    assert_eq!(Geometry::new(0, 1, 1), Err(Error::ZeroLength));
    assert_eq!(Geometry::new(1, 0, 1), Err(Error::NumPaths { at: 0 }));
    assert_eq!(Geometry::new(1, MAX_PATHS + 1, 1), Err(Error::NumPaths { at: 0 }));
    assert_eq!(Geometry::new(1, 1, 0), Err(Error::RegionSize { at: 1 }));
    assert!(matches!(Geometry::new(MAX_DEVICE_SECTORS + 1, 1, 1), Err(Error::TooLarge { .. })));
    assert!(matches!(
        Geometry::new(MAX_DEVICE_SECTORS, MAX_PATHS, 1),
        Err(Error::RegionTableTooLarge { .. })
    ));
    let geometry = Geometry::new(300, 5, 128).unwrap();
    assert_eq!((geometry.nr_regions(), geometry.nr_slots()), (3, 1));
    assert_eq!(
        (geometry.region_extent(1), geometry.region_extent(2), geometry.region_extent(3)),
        (Some((128, 128)), Some((256, 44)), None)
    );
    // Each line has entries of another width: 1, 2, 4, 8, 16 and 32 bits.
    for (num_paths, slots) in [
        (1, 1),
        (2, 1),
        (3, 2),
        (4, 2),
        (5, 4),
        (16, 4),
        (17, 8),
        (256, 8),
        (257, 16),
        (65536, 16),
        (65537, 32),
    ] {
        assert_eq!(Geometry::new(64, num_paths, 1).unwrap().nr_slots(), slots, "{num_paths} paths");
    }
}
