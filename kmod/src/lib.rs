//! The switch target's decisions inside a kernel: the functions that `glue.c` calls.
//!
//! It is a freestanding object over the same core as the daemon. `blkswitch_core` has the
//! constructor words, the region table and the messages; this crate only makes the calls to the
//! kernel in the right order. It needs no symbol of libcore (no panics, no formatting), no
//! allocator and no floating point; `check-object.sh` checks that.
//!
//! Contract: each function states what `glue.c` must guarantee. `unsafe` is only in [`glue`] and in
//! these entry functions.

#![no_std]
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]
#![warn(missing_docs, unreachable_pub)]

// The core's inner attributes are meant for the root of a crate. The daemon and the library use the
// code that this module does not use.
#[allow(dead_code, unused_attributes, unused_imports, unreachable_pub)]
#[path = "../../crates/core/src/lib.rs"]
mod blkswitch_core;
mod glue;
mod message;
mod target;
mod text;

use core::ffi::{CStr, c_char, c_int, c_uint, c_ulong};
use glue::{Device, RawTarget, Words};
use target::Target;

/// Longest name of a target with its NUL, the size of the ioctl's field (`DM_MAX_TYPE_NAME`).
const MAX_NAME_LEN: usize = 16;

/// Returns 1 if this can be a target's name, else 0.
///
/// # Safety
/// `name` is a string that ends in a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkswitch_name_is_valid(name: *const c_char) -> c_int {
    // SAFETY: the caller guarantees it.
    let name = unsafe { glue::bytes(name) };
    let valid =
        !name.is_empty() && name.len() < MAX_NAME_LEN && name.iter().all(u8::is_ascii_graphic);
    c_int::from(valid)
}

/// Makes a target. Returns 0, or a negative errno after it has set `ti->error` and given everything
/// back.
///
/// # Safety
/// `device` is a `dm_target` being made, `argv` has `argc` strings that end in a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkswitch_ctr(
    device: *mut Device,
    argc: c_uint,
    argv: *const *const c_char,
    len_sectors: u64,
    strict: bool,
) -> c_int {
    // SAFETY: the caller guarantees it.
    let (builder, words) = unsafe { (glue::Builder::new(device), Words::new(argc, argv)) };
    target::build(builder, words, len_sectors, strict)
}

/// Returns the path of a sector, which is below the number of paths.
///
/// # Safety
/// `state` belongs to a target that was made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkswitch_route(state: *const Target, sector: u64) -> c_ulong {
    // SAFETY: the caller guarantees it. No mutable reference exists, and the table consists of
    // atomics.
    c_ulong::from(unsafe { (*state).route(sector) })
}

/// Returns how many of `sectors` sectors, at least 1, have the path of the first one.
///
/// # Safety
/// `state` belongs to a target that was made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkswitch_extent(state: *const Target, sector: u64, sectors: u32) -> u32 {
    // SAFETY: as in `blkswitch_route`.
    unsafe { (*state).extent(sector, sectors) }
}

/// Returns the sectors of a region.
///
/// # Safety
/// `state` belongs to a target that was made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkswitch_region_size(state: *const Target) -> u32 {
    // SAFETY: as in `blkswitch_route`.
    unsafe { (*state).map.geometry().region_size() }
}

/// Returns 1 if ioctls of any user may go to a path that begins at `start` of a device of
/// `dev_size` sectors, else 0.
///
/// # Safety
/// `state` belongs to a target that was made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkswitch_passes_ioctl(state: *const Target, start: u64, dev_size: u64) -> c_int {
    // SAFETY: as in `blkswitch_route`.
    let len = unsafe { (*state).map.geometry().len_sectors() };
    c_int::from(len.wrapping_add(start) == dev_size)
}

/// Handles a message. Returns 0, 1 with a text in `result`, or a negative errno.
///
/// # Safety
/// `state` and `raw` belong to one target that was made, and the caller holds its message lock.
/// `argv` has `argc` strings that end in a NUL. They follow each other in one buffer, with a byte
/// before each but the first. `result` has `maxlen` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkswitch_message(
    state: *const Target,
    raw: *const RawTarget,
    argc: c_uint,
    argv: *const *const c_char,
    result: *mut u8,
    maxlen: c_uint,
) -> c_int {
    // SAFETY: the caller guarantees it.
    let (target, words) = unsafe { (&*state, Words::new(argc, argv)) };
    // SAFETY: the caller guarantees it.
    let (counts, reply) = unsafe { (glue::Counts::new(raw), text::Reply::new(result, maxlen)) };
    message::handle(target, counts, words, reply)
}

/// The language requires a panic handler. It is never called: code that could panic needs a symbol
/// of libcore, and `check-object.sh` refuses those.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// A text that lives as long as the module.
type Text = &'static CStr;
