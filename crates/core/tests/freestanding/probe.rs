//! Calls everything that the kernel module calls. `freestanding.rs` compiles this file as the
//! kernel module compiles the core (included as a module, without std) and inspects the symbols it
//! needs.
#![no_std]

#[path = "../../src/lib.rs"]
mod blkswitch;

use core::sync::atomic::AtomicU64;

use blkswitch::error::Error;
use blkswitch::switch::compact::WriteError;
use blkswitch::switch::{
    Command, Geometry, Map, MapWriter, Message, MessageError, Params, Route, Run, StorageError,
    TextError, command, compact,
};
use blkswitch::table::{Layout, check_area, check_region_size};

type Slots<'a> = &'a [AtomicU64];

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(no_mangle)]
pub fn probe_geometry(len: u64, num_paths: u32, region_size: u32) -> Result<Geometry, Error> {
    Geometry::new(len, num_paths, region_size)
}

#[unsafe(no_mangle)]
pub fn probe_map<'a>(
    geometry: Geometry,
    slots: Slots<'a>,
) -> Result<Map<Slots<'a>>, StorageError<Slots<'a>>> {
    Map::new(geometry, slots)
}

#[unsafe(no_mangle)]
pub fn probe_checked_map<'a>(geometry: Geometry, slots: Slots<'a>) -> Option<Map<Slots<'a>>> {
    Map::checked(geometry, slots).ok()
}

#[unsafe(no_mangle)]
pub fn probe_params(
    words: &[&[u8]],
    open: fn(&[u8]) -> bool,
    offset: fn(u64),
) -> Result<(u32, u32), Error> {
    let params = Params::parse(words.iter().copied())?;
    let head = (params.num_paths(), params.region_size());
    for path in params {
        if !open(path.device) {
            return Err(path.lookup_failed(blkswitch::error::Errno::Enoent));
        }
        offset(path.offset()?);
    }
    Ok(head)
}

#[unsafe(no_mangle)]
pub fn probe_checks(
    layout: &mut Layout,
    geometry: &Geometry,
    start: u64,
    size: u64,
    block: u32,
) -> Result<(), Error> {
    Layout::extent(start, size)?;
    layout.append(start, size)?;
    check_area(start, geometry.len_sectors(), size, block)?;
    check_region_size(geometry.region_size(), geometry.nr_regions(), block)
}

#[unsafe(no_mangle)]
pub fn probe_route(map: &Map<Slots<'_>>, sector: u64) -> Route {
    map.route(sector)
}

#[unsafe(no_mangle)]
pub fn probe_set(map: &Map<Slots<'_>>, region: u64, path: u32) -> (bool, Option<u32>) {
    (map.writer().is_some_and(|mut writer| writer.set(region, path)), map.path(region))
}

#[unsafe(no_mangle)]
pub fn probe_command(word: &[u8]) -> Option<Command> {
    command(word)
}

#[unsafe(no_mangle)]
pub fn probe_word(
    message: &mut Message,
    map: &mut MapWriter<'_, Slots<'_>>,
    word: &[u8],
) -> Result<(), MessageError> {
    message.apply_word(map, word)
}

#[unsafe(no_mangle)]
pub fn probe_check(
    message: &mut Message,
    geometry: &Geometry,
    word: &[u8],
) -> Result<(), MessageError> {
    message.check_word(geometry, word)
}

#[unsafe(no_mangle)]
pub fn probe_text(
    message: &mut Message,
    map: &mut MapWriter<'_, Slots<'_>>,
    text: &[u8],
) -> Result<usize, TextError> {
    message.apply_text(map, text, true)
}

#[unsafe(no_mangle)]
pub fn probe_split(
    message: &mut Message,
    map: &mut MapWriter<'_, Slots<'_>>,
    text: &[u8],
) -> Result<(), MessageError> {
    message.apply_split(map, text)?;
    message.check_split(map.geometry(), text)
}

#[unsafe(no_mangle)]
pub fn probe_runs(map: &Map<Slots<'_>>, from: u64, to: u64, each: fn(Run)) -> Option<u64> {
    map.runs(from, to).for_each(each);
    map.next_changed(from, to)
}

#[unsafe(no_mangle)]
pub fn probe_compact(
    map: &Map<Slots<'_>>,
    places: &mut [u64],
    sink: fn(&[u8]) -> Result<(), i32>,
) -> Result<(), WriteError<i32>> {
    compact::write(map, 0, u64::MAX, places, sink)?;
    compact::write_changes(map, 0, u64::MAX, places, sink)
}

// The kernel module leaves the multipath target out, but the target keeps the same promise.
use blkswitch::multipath::{
    Ask, Attempt, Choice, Event, Group, Item, MessageError as MpathMessageError, Multipath,
    Params as MpathParams, ParamsError, Path, Verdict,
};

type Mpath<'a> = Multipath<&'a [Group], &'a [Path]>;

#[unsafe(no_mangle)]
pub fn probe_mpath_params(
    words: &[&[u8]],
    open: fn(&[u8]) -> bool,
    group: fn(Group),
    path: fn(Path),
) -> Result<u32, ParamsError> {
    let mut params = MpathParams::parse(words)?;
    while let Some(item) = params.next_item()? {
        match item {
            Item::Group(arg) => group(arg.group()),
            Item::Path(arg) if open(arg.device) => path(arg.path()?.path),
            Item::Path(arg) => return Err(arg.lookup_failed(blkswitch::error::Errno::Enoent)),
        }
    }
    Ok(params.initial_group())
}

#[unsafe(no_mangle)]
pub fn probe_mpath_select(mpath: &Mpath<'_>, ask: Ask, on: fn(Event)) -> Choice {
    mpath.select(ask, &mut |event| on(event))
}

#[unsafe(no_mangle)]
pub fn probe_mpath_judge(
    mpath: &Mpath<'_>,
    attempt: Attempt,
    errno: i32,
    now_ns: u64,
    on: fn(Event),
) -> Verdict {
    mpath.judge(attempt, errno, now_ns, &mut |event| on(event))
}

#[unsafe(no_mangle)]
pub fn probe_mpath_message(
    mpath: &Mpath<'_>,
    words: &[&[u8]],
    is_meant: fn(u32) -> bool,
    on: fn(Event),
) -> Result<(), MpathMessageError> {
    let command = blkswitch::multipath::MultipathCommand::parse(words)?;
    mpath.apply(&command, is_meant, &mut |event| on(event))
}
