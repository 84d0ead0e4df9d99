//! The messages and their answers.
//!
//! | message | does |
//! |---|---|
//! | `set_region_mappings <argument>...` | as the reference: arguments before a wrong one stay applied |
//! | `set_region_mappings_atomic <argument>...` | checks all arguments first, then applies all or nothing |
//! | `get_region_mappings [<first> [<count>]]` | answers with arguments that make this map again |
//! | `get_path_counters` | answers with a line for each path, see [`path_counters`] |
//!
//! The words of a message have any case, and numbers are hexadecimal. A long message is handled in
//! turns. Between two turns, other tasks may run, and the message ends if its sender was killed. A
//! message that was checked whole is always applied to its end.
//!
//! Contract: the caller holds the message lock, and may sleep.

use core::ffi::c_int;

use super::blkswitch_core::error::Errno;
use super::blkswitch_core::switch::{
    self, Command, Message, MessageError, MessageErrorKind, compact,
};
use super::glue::{self, Counts, Words};
use super::target::{MAX_COUNTED_PATHS, Target};
use super::text::{Line, MAX_LINE, Reply};

/// The kernel's kinds of requests: reads, writes, discards, flushes.
const KINDS: u32 = 4;
/// Number of words in a turn, which takes a tenth of a millisecond.
const TURN_WORDS: usize = 4096;
/// Size of the compact writer's table: 1 KiB of a kernel stack.
const PLACES: usize = 128;
/// The result of a message whose sender was killed: `-EINTR`.
const INTERRUPTED: c_int = -4;
/// The result of a message with an answer.
const ANSWERED: c_int = 1;

/// Handles a message. Returns 0, 1 if there is an answer, or a negative errno.
pub(crate) fn handle(target: &Target, counts: Counts, words: Words<'_>, reply: Reply) -> c_int {
    let name = words.get(0);
    match switch::command(name) {
        Some(Command::SetRegionMappings) => apply(target, words, &glue::go_on),
        Some(Command::GetRegionMappings) => region_mappings(target, words, reply),
        None if name.eq_ignore_ascii_case(b"set_region_mappings_atomic") => match check(target, words) {
            // The message is correct, so apply all of it without a stop.
            0 => apply(target, words, &|| {
                glue::go_on();
                true
            }),
            errno => errno,
        },
        None if name.eq_ignore_ascii_case(b"get_path_counters") => {
            path_counters(target, &counts, words, reply)
        }
        None => {
            glue::warn(c"Unrecognised message received.", c"", c"");
            failure(Errno::Einval)
        }
    }
}

fn failure(errno: Errno) -> c_int {
    errno.number().wrapping_neg()
}

/// Applies arguments one after the other while `go_on` returns true.
fn apply(target: &Target, words: Words<'_>, go_on: &impl Fn() -> bool) -> c_int {
    // The caller holds the message lock, so no other writer exists.
    let Some(writer) = target.map.writer() else { return failure(Errno::Ebusy) };
    run(
        words,
        writer,
        go_on,
        |writer, message, text| message.apply_split_in_turns(writer, text, go_on),
        |writer, message, word| message.apply_word_in_turns(writer, word, go_on),
    )
}

/// Checks that [`apply`] would take all arguments. Errors depend on the words alone, never on the
/// map.
fn check(target: &Target, words: Words<'_>) -> c_int {
    run(
        words,
        target.map.geometry(),
        &glue::go_on,
        |geometry, message, text| message.check_split(geometry, text),
        |geometry, message, word| message.check_word(geometry, word),
    )
}

/// Passes the arguments to `many` in the message's buffer, the words of a turn at a time, and the
/// ones that it does not take to `one`. Both act on `on`.
#[inline(always)]
fn run<T>(
    words: Words<'_>,
    mut on: T,
    go_on: &impl Fn() -> bool,
    many: impl Fn(&mut T, &mut Message, &[u8]) -> Result<(), MessageError>,
    one: impl Fn(&mut T, &mut Message, &[u8]) -> Result<(), MessageError>,
) -> c_int {
    let mut message = Message::new();
    loop {
        let before = message.arguments();
        // The message's name is a word, too, so argument `before` is word `before + 1`.
        let next = (before as usize).wrapping_add(1);
        if next >= words.len() {
            return 0;
        }
        // SAFETY: the words of a message are in one buffer, and `next` is not the first word.
        let text = unsafe { words.text_from(next, TURN_WORDS) };
        let result = match many(&mut on, &mut message, text) {
            Ok(()) if message.arguments() == before => one(&mut on, &mut message, words.get(next)),
            result => result,
        };
        if let Err(error) = result {
            report(&error, words);
            return failure(error.errno());
        }
        if !go_on() {
            return INTERRUPTED;
        }
    }
}

/// Logs the reference's text for an error.
fn report(error: &MessageError, words: Words<'_>) {
    let line = Line::<MAX_LINE>::new().text(b"invalid set_region_mappings ");
    let line = match error.kind {
        MessageErrorKind::Argument => {
            let argument = words.c_str(error.position as usize);
            return glue::warn(c"invalid set_region_mappings argument: '", argument, c"'");
        }
        MessageErrorKind::CycleLength { last, index } => {
            line.text(b"cycle length: ").decimal(last).text(b" > ").decimal(index)
        }
        MessageErrorKind::RepeatRange { index, count, regions } => {
            let line = line.text(b"region number: ").decimal(index).text(b" + ").decimal(count);
            line.text(b" >= ").decimal(regions)
        }
        MessageErrorKind::Region { region, regions } => {
            line.text(b"region number: ").decimal(region).text(b" >= ").decimal(regions)
        }
        MessageErrorKind::Path { path, paths } => {
            line.text(b"device: ").decimal(path).text(b" >= ").decimal(u64::from(paths))
        }
    };
    glue::warn(line.as_c_str(), c"", c"");
}

/// Answers with arguments for `set_region_mappings` that make this map again: all regions, or
/// `count` from `first` on.
fn region_mappings(target: &Target, words: Words<'_>, mut reply: Reply) -> c_int {
    let nr_regions = target.map.geometry().nr_regions();
    let (first, count) = match (hex(words, 1, 0), hex(words, 2, nr_regions)) {
        (Some(first), Some(count)) if words.len() <= 3 && first < nr_regions => (first, count),
        _ => {
            glue::warn(
                c"get_region_mappings wants [<first region> [<number of regions>]]: '",
                words.c_str(1),
                c"'",
            );
            return failure(Errno::Einval);
        }
    };
    let mut places = [0u64; PLACES];
    let end = first.saturating_add(count);
    // A full reply ends the list: the kernel asks again with more room.
    let mut is_wanted = true;
    let sink = |argument: &[u8]| {
        reply.text(argument);
        is_wanted = glue::go_on();
        if reply.is_full() || !is_wanted { Err(()) } else { Ok(()) }
    };
    let _ = compact::write_in_turns(&target.map, first, end, &mut places, sink, &glue::go_on);
    reply.end();
    if is_wanted { ANSWERED } else { INTERRUPTED }
}

/// Word `index` as a hexadecimal number, or `absent` if the word is missing.
fn hex(words: Words<'_>, index: usize, absent: u64) -> Option<u64> {
    if index >= words.len() {
        return Some(absent);
    }
    let mut value = 0u64;
    for &byte in words.get(index) {
        let digit = char::from(byte).to_digit(16)?;
        value = value.checked_mul(16)?.checked_add(u64::from(digit))?;
    }
    Some(value)
}

/// Answers with a line for each path: its number, then the requests and sectors of reads, writes
/// (with write-zeroes and secure erase), discards and flushes, in decimal.
fn path_counters(target: &Target, counts: &Counts, words: Words<'_>, mut reply: Reply) -> c_int {
    let num_paths = target.map.geometry().num_paths();
    if words.len() != 1 {
        glue::warn(c"get_path_counters takes no argument: '", words.c_str(1), c"'");
        return failure(Errno::Einval);
    }
    if !counts.is_on() {
        glue::warn(
            c"get_path_counters: nothing is counted, as the module's parameter counters is N",
            c"",
            c"",
        );
        return failure(Errno::Eopnotsupp);
    }
    if num_paths > MAX_COUNTED_PATHS {
        glue::warn(c"get_path_counters: nothing is counted with more than 512 paths", c"", c"");
        return failure(Errno::Eopnotsupp);
    }
    for path in 0..num_paths {
        if reply.is_full() {
            break;
        }
        if path > 0 {
            reply.text(b"\n");
        }
        reply.decimal(u64::from(path));
        for kind in 0..KINDS {
            let (requests, sectors) = counts.get(path, kind);
            reply.text(b" ");
            reply.decimal(requests);
            reply.text(b" ");
            reply.decimal(sectors);
        }
    }
    reply.end();
    ANSWERED
}
