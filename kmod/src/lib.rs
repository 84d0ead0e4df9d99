//! The switch target's decisions inside a kernel: what `glue.c` calls.
//!
//! A freestanding object over the same core as the daemon: constructor words, region table and
//! messages are `blkswitch_core`'s, this crate only says in which order the kernel is asked for
//! what. It needs no symbol of libcore (no panics, no formatting), no allocator and no floating
//! point; `check-object.sh` sees to that.
//!
//! Contract: each function says what `glue.c` promises; `unsafe` is in [`glue`] and at these
//! entries only.

#![no_std]
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]
#![warn(missing_docs, unreachable_pub)]

// Its inner attributes are meant for a crate's root; what this module does not use is for the other
// homes.
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

/// Longest name of a target, with the NUL: the field of the ioctl (`DM_MAX_TYPE_NAME`).
const MAX_NAME_LEN: usize = 16;

/// Is this a name for a target? 1 or 0.
///
/// # Safety
/// `name` is a string that ends in a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkswitch_name_is_valid(name: *const c_char) -> c_int {
    // SAFETY: promised by the caller.
    let name = unsafe { glue::bytes(name) };
    let valid = !name.is_empty() && name.len() < MAX_NAME_LEN && name.iter().all(u8::is_ascii_graphic);
    c_int::from(valid)
}

/// Makes a target; 0 or a negative errno, with `ti->error` set and everything given back.
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
    // SAFETY: promised by the caller.
    let (builder, words) = unsafe { (glue::Builder::new(device), Words::new(argc, argv)) };
    target::build(builder, words, len_sectors, strict)
}

/// The path of a sector, below the number of paths.
///
/// # Safety
/// `state` is that of a target that was made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkswitch_route(state: *const Target, sector: u64) -> c_ulong {
    // SAFETY: promised by the caller; nobody has a mutable reference, the table is of atomics.
    c_ulong::from(unsafe { (*state).route(sector) })
}

/// How many of `sectors` sectors, at least 1, take the path of the first.
///
/// # Safety
/// `state` is that of a target that was made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkswitch_extent(state: *const Target, sector: u64, sectors: u32) -> u32 {
    // SAFETY: as in `blkswitch_route`.
    unsafe { (*state).extent(sector, sectors) }
}

/// Sectors in a region.
///
/// # Safety
/// `state` is that of a target that was made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkswitch_region_size(state: *const Target) -> u32 {
    // SAFETY: as in `blkswitch_route`.
    unsafe { (*state).map.geometry().region_size() }
}

/// May anyone's ioctl go to a path that begins at `start` of a device of `dev_size` sectors? 1 or
/// 0.
///
/// # Safety
/// `state` is that of a target that was made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkswitch_passes_ioctl(state: *const Target, start: u64, dev_size: u64) -> c_int {
    // SAFETY: as in `blkswitch_route`.
    let len = unsafe { (*state).map.geometry().len_sectors() };
    c_int::from(len.wrapping_add(start) == dev_size)
}

/// Handles a message: 0, 1 with a text in `result`, or a negative errno.
///
/// # Safety
/// `state` and `raw` are of one target that was made, whose message lock the caller holds. `argv`
/// has `argc` strings that end in a NUL, one behind the other in one buffer, and there is a byte
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
    // SAFETY: promised by the caller.
    let (target, words) = unsafe { (&*state, Words::new(argc, argv)) };
    // SAFETY: promised by the caller.
    let (counts, reply) = unsafe { (glue::Counts::new(raw), text::Reply::new(result, maxlen)) };
    message::handle(target, counts, words, reply)
}

/// The language wants one. Whatever would lead here wants a symbol of libcore first, and
/// `check-object.sh` refuses those: so this is for the linker, and never called.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// A text that lives as long as the module.
type Text = &'static CStr;
