//! Compares the formats with the output of a real dmsetup, the transcripts of
//! tests/golden/tools.jsonl.
//!
//! The devices are built by hand with the numbers of the recording. Each case names a command of a
//! transcript, and the test looks the text up there.

use serde_json::Value;

use super::lines::{Column, DeviceName};
use super::report::Style;
use super::{info, lines, report, slot, tree};
use crate::protocol::{Dependency, Device, LoadedTable, Segment};

/// Standard output of the `nth` time that transcript `id` runs `command`.
fn recorded(id: &str, command: &str, nth: usize) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/tools.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    let cases = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let case = cases.into_iter().find(|case| case["id"] == id).unwrap();
    let steps = case["steps"].as_array().unwrap();
    let step = steps.iter().filter(|step| step["cmd"] == command).nth(nth);
    step.unwrap_or_else(|| panic!("{id} does not run {command}"))["stdout"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn ram(minor: u32) -> Dependency {
    Dependency {
        major: 1,
        minor,
        name: format!("ram{minor}"),
        address: format!("/dev/ram{minor}"),
        is_device: false,
    }
}

fn mapped(minor: u32, name: &str) -> Dependency {
    Dependency {
        major: 253,
        minor,
        name: name.into(),
        address: format!("/dev/mapper/{name}"),
        is_device: true,
    }
}

fn device(minor: u32, name: &str, target: &str, params: &str, deps: Vec<Dependency>) -> Device {
    let segment = Segment {
        start: 0,
        length: 2048,
        target: target.into(),
        params: params.into(),
        status: String::new(),
    };
    Device {
        name: name.into(),
        major: 253,
        minor,
        live: Some(LoadedTable { segments: vec![segment], deps }),
        ..Device::default()
    }
}

/// The documented example, with the numbers of the recording.
fn switch() -> Device {
    device(0, "switch", "switch", "3 128 0 1:0 0 1:1 0 1:2 0", vec![ram(2), ram(1), ram(0)])
}

/// tools-040: a switch over two linear devices.
fn stacked() -> Vec<Device> {
    let low0 = device(0, "low0", "linear", "1:0 0", vec![ram(0)]);
    let low1 = device(1, "low1", "linear", "1:1 0", vec![ram(1)]);
    let over = vec![mapped(1, "low1"), mapped(0, "low0")];
    vec![low0, low1, device(2, "switch", "switch", "2 128 0 253:0 0 253:1 0", over)]
}

fn table_lines(devices: &[Device], inactive: bool) -> String {
    let line = |device: &Device| {
        lines::segments(slot(device, inactive), Column::Table, None, &format!("{}: ", device.name))
    };
    devices.iter().map(line).collect()
}

fn draw(devices: &[Device], options: Option<&str>) -> String {
    tree::tree(devices, &tree::Style::parse(options, false).unwrap(), tree::WIDTH_DEFAULT)
}

fn columns(
    device: Device,
    list: Option<&str>,
    noheadings: bool,
    separator: Option<&str>,
) -> String {
    let style = Style {
        columns: list.map(str::to_owned),
        sort: None,
        headings: !noheadings,
        separator: separator.map(str::to_owned),
        prefixes: false,
        quotes: true,
    };
    let all = [device];
    report::report(&[&all[0]], &all, &style).unwrap()
}

#[test]
fn table_and_status() {
    let live = switch().live;
    let alone = |what| lines::segments(live.as_ref(), what, None, "");
    assert_eq!(alone(Column::Table), recorded("tools-005", "dmsetup table switch", 0));
    assert_eq!(alone(Column::Status), recorded("tools-006", "dmsetup status switch", 0));
    assert_eq!(table_lines(&[switch()], false), recorded("tools-005", "dmsetup table", 0));
    assert_eq!(
        table_lines(&[switch()], true),
        recorded("tools-021", "dmsetup table --inactive", 0)
    );
    assert_eq!(table_lines(&stacked(), false), recorded("tools-040", "dmsetup table", 0));
    let linear = lines::segments(live.as_ref(), Column::Table, Some("linear"), "switch: ");
    assert_eq!(linear, recorded("tools-005", "dmsetup table --target linear", 0));
    let wiped = device(0, "switch", "error", "", vec![]);
    assert_eq!(table_lines(&[wiped], false), recorded("tools-032", "dmsetup table", 0));
    assert_eq!(
        table_lines(&[Device { live: None, ..switch() }], false),
        recorded("tools-035", "dmsetup table", 0)
    );
}

#[test]
fn status_with_the_block_of_info() {
    let device = switch();
    let text = info::block(&device, false)
        + &lines::segments(device.live.as_ref(), Column::Status, None, "");
    assert_eq!(text, recorded("tools-006", "dmsetup status -v switch", 0));
}

#[test]
fn concise() {
    let line = |device: &Device| lines::concise(device, device.live.as_ref(), None) + "\n";
    assert_eq!(line(&switch()), recorded("tools-005", "dmsetup table --concise switch", 0));
    let named = Device { uuid: "SWITCH-0002".into(), ..switch() };
    assert_eq!(line(&named), recorded("tools-038", "dmsetup table --concise", 0));
}

#[test]
fn info_blocks() {
    let live = switch().live;
    let cases = [
        ("tools-007", 0, switch()),
        ("tools-016", 0, Device { suspended: true, ..switch() }),
        ("tools-019", 0, Device { inactive: live.clone(), ..switch() }),
        ("tools-022", 0, Device { suspended: true, ..switch() }),
        ("tools-035", 0, Device { live: None, ..switch() }),
        ("tools-037", 0, Device { read_only: true, ..switch() }),
    ];
    for (id, nth, device) in cases {
        assert_eq!(info::block(&device, false), recorded(id, "dmsetup info switch", nth), "{id}");
    }
    let more = Device { uuid: "U-1".into(), deferred_remove: true, ..switch() };
    let block = info::block(&more, false);
    assert!(
        block.contains("State:             ACTIVE (DEFERRED REMOVE)\n")
            && block.ends_with("UUID: U-1\n\n")
    );
}

#[test]
fn info_columns() {
    assert_eq!(columns(switch(), None, false, None), recorded("tools-008", "dmsetup info -c", 0));
    let text = columns(switch(), None, true, Some(":"));
    assert_eq!(text, recorded("tools-008", "dmsetup info -c --noheadings switch", 0));
    let text = columns(switch(), None, true, Some("|"));
    assert_eq!(
        text,
        recorded("tools-008", "dmsetup info -c --noheadings --separator '|' switch", 0)
    );
    for list in [
        "name,uuid,attr,open,segments,events,devnos_used,devs_used,names_using_dev",
        "name,tables_loaded,suspended,readonly,device_count",
    ] {
        let text = columns(switch(), Some(list), false, None);
        assert_eq!(text, recorded("tools-008", &format!("dmsetup info -c -o {list} switch"), 0));
    }
    let named = Device { uuid: "SWITCH-0001".into(), ..switch() };
    assert_eq!(
        columns(named, Some("name,uuid"), false, None),
        recorded("tools-031", "dmsetup info -c -o name,uuid", 0)
    );
    let text = columns(switch(), Some("events"), true, Some(":"));
    assert_eq!(text, recorded("tools-041", "dmsetup info -c --noheadings -o events switch", 0));
}

#[test]
fn ls_and_deps() {
    let device = switch();
    assert_eq!(lines::ls(&device, DeviceName::Number), recorded("tools-009", "dmsetup ls", 0));
    assert_eq!(
        lines::ls(&device, DeviceName::Block),
        recorded("tools-009", "dmsetup ls -o blkdevname", 0)
    );
    assert_eq!(lines::ls_target(&device), recorded("tools-009", "dmsetup ls --target switch", 0));
    let deps = |by, prefix| lines::deps(device.live.as_ref(), by, prefix);
    assert_eq!(deps(DeviceName::Number, "switch: "), recorded("tools-010", "dmsetup deps", 0));
    assert_eq!(deps(DeviceName::Number, ""), recorded("tools-010", "dmsetup deps switch", 0));
    assert_eq!(
        deps(DeviceName::Mapped, ""),
        recorded("tools-010", "dmsetup deps -o devname switch", 0)
    );
    assert_eq!(
        deps(DeviceName::Block, ""),
        recorded("tools-010", "dmsetup deps -o blkdevname switch", 0)
    );
    let stacked = &stacked()[2];
    let text = lines::deps(stacked.live.as_ref(), DeviceName::Mapped, "");
    assert_eq!(text, recorded("tools-040", "dmsetup deps -o devname switch", 0));
}

#[test]
fn trees() {
    assert_eq!(draw(&[switch()], None), recorded("tools-009", "dmsetup ls --tree", 0));
    for options in ["device,blkdevname,active,open,rw,uuid,ascii", "inverted"] {
        let text = recorded("tools-009", &format!("dmsetup ls --tree -o {options}"), 0);
        assert_eq!(draw(&[switch()], Some(options)), text);
    }
    assert_eq!(draw(&stacked(), None), recorded("tools-040", "dmsetup ls --tree", 0));
    let second = device(1, "second", "switch", "1 128 0 1:0 0", vec![ram(0)]);
    assert_eq!(draw(&[second, switch()], None), recorded("tools-039", "dmsetup ls --tree", 0));
}

#[test]
fn compact_trees_keep_the_first_branch_on_the_line() {
    let text = draw(&stacked(), Some("compact,nodevice,blkdevname"));
    assert_eq!(
        text,
        "switch <dm-2>-+-low1 <dm-1>--- <ram1>\n              `-low0 <dm-0>--- <ram0>\n"
    );
}

#[test]
fn a_leaf_without_numbers_shows_its_address() {
    let leaf =
        Dependency { name: "a.img".into(), address: "/tmp/a.img".into(), ..Dependency::default() };
    let over = Dependency {
        major: 0,
        minor: 0,
        name: "low".into(),
        address: "/dev/blkswitch/low".into(),
        is_device: true,
    };
    let device =
        Device { major: 0, minor: 1, ..device(1, "d", "linear", "/tmp/a.img 0", vec![over, leaf]) };
    let deps = lines::deps(device.live.as_ref(), DeviceName::Number, "");
    assert_eq!(deps, "2 dependencies\t: (0, 0) (/tmp/a.img)\n");
    assert_eq!(draw(&[device], None), "d (0:1)\n |- (0:0)\n `- (/tmp/a.img)\n");
}

#[test]
fn rows_sort_by_number_or_text() {
    let all: Vec<_> = [(10, "b", 1), (9, "a", 2), (2, "c", 1)]
        .map(|(minor, name, open_count)| Device {
            minor,
            name: name.into(),
            open_count,
            ..Device::default()
        })
        .into();
    let sorted = |sort: &str| {
        let style = Style {
            columns: Some("name".into()),
            sort: Some(sort.into()),
            headings: false,
            separator: Some(":".into()),
            prefixes: false,
            quotes: true,
        };
        report::report(&all.iter().collect::<Vec<_>>(), &all, &style).unwrap().replace('\n', "")
    };
    assert_eq!(sorted("minor"), "cab");
    assert_eq!(sorted("-name"), "cba");
    assert_eq!(sorted("open,minor"), "cba");
    assert_eq!(sorted("-open,+minor"), "acb");
}

#[test]
fn columns_that_are_unknown_are_listed() {
    let style = Style {
        columns: Some("name,bogus".into()),
        sort: None,
        headings: true,
        separator: None,
        prefixes: false,
        quotes: true,
    };
    let complaint = report::report(&[], &[], &style).unwrap_err();
    assert!(
        complaint.contains("  devnos_used           - ")
            && complaint.ends_with("Unrecognised field: bogus")
    );
}

#[test]
fn prefixes_for_shells() {
    let style = Style {
        columns: Some("name,minor".into()),
        sort: None,
        headings: false,
        separator: None,
        prefixes: true,
        quotes: true,
    };
    let all = [switch()];
    assert_eq!(
        report::report(&[&all[0]], &all, &style).unwrap(),
        "DM_NAME='switch' DM_MINOR='0'\n"
    );
}
