//! The border to C: declares the functions of `glue.c` once and makes them safe to call.
//!
//! Contract: the entry functions in [`super`] guarantee the raw pointers for the duration of a
//! call. Nothing here keeps a pointer after it. Functions here cannot panic.

use core::ffi::{CStr, c_char, c_int, c_uint, c_void};
use core::ptr::NonNull;
use core::sync::atomic::AtomicU64;

use super::blkswitch_core::switch::Storage;

/// The kernel's `struct dm_target`.
#[repr(C)]
pub struct Device {
    _opaque: [u8; 0],
}

/// The C part of a target, `struct glue_target`.
#[repr(C)]
pub struct RawTarget {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    fn glue_alloc(ti: *mut Device, num_paths: u32, counted: bool) -> *mut c_void;
    fn glue_open(ti: *mut Device, path: u32, device: *const c_char) -> c_int;
    fn glue_set_start(ti: *mut Device, path: u32, start: u64);
    fn glue_dev_size(ti: *const Device, path: u32) -> u64;
    fn glue_dev_block_size(ti: *const Device, path: u32) -> u32;
    fn glue_alloc_table(ti: *mut Device, size: usize) -> *mut AtomicU64;
    fn glue_set_limits(
        ti: *mut Device,
        region_size: u32,
        flushes: u32,
        discards: u32,
        write_zeroes: u32,
    );
    fn glue_set_error(ti: *mut Device, text: *const c_char);
    fn glue_free(ti: *mut Device);
    fn glue_warn(head: *const c_char, middle: *const c_char, tail: *const c_char);
    fn glue_count(target: *const RawTarget, path: u32, group: u32, sectors: bool) -> u64;
    fn glue_is_counting() -> bool;
    fn glue_go_on() -> bool;
    fn strlen(string: *const c_char) -> usize;
}

/// Returns the bytes of a string without its NUL.
///
/// # Safety
/// `string` ends in a NUL and lives as long as `'a`.
pub(crate) unsafe fn bytes<'a>(string: *const c_char) -> &'a [u8] {
    // SAFETY: the caller guarantees it.
    unsafe { core::slice::from_raw_parts(string.cast(), strlen(string)) }
}

/// Writes a line to the kernel's log, in three parts. `middle` may be a word of the user.
pub(crate) fn warn(head: &CStr, middle: &CStr, tail: &CStr) {
    // SAFETY: three strings that end in a NUL.
    unsafe { glue_warn(head.as_ptr(), middle.as_ptr(), tail.as_ptr()) }
}

/// Lets other tasks run if they wait for the processor. Returns whether to go on: `false` if the
/// sender of the message was killed.
pub(crate) fn go_on() -> bool {
    // SAFETY: called by the sender of a message, where the kernel may sleep.
    unsafe { glue_go_on() }
}

/// The words of a constructor or a message, as the kernel split them.
#[derive(Clone, Copy)]
pub(crate) struct Words<'a> {
    argv: &'a [*const c_char],
}

impl<'a> Words<'a> {
    /// Takes the words as the kernel passes them.
    ///
    /// # Safety
    /// `argv` has `argc` strings that end in a NUL and live as long as `'a`.
    pub(crate) unsafe fn new(argc: c_uint, argv: *const *const c_char) -> Self {
        if argc == 0 {
            return Self { argv: &[] };
        }
        // SAFETY: the caller guarantees it.
        Self { argv: unsafe { core::slice::from_raw_parts(argv, argc as usize) } }
    }

    pub(crate) fn len(&self) -> usize {
        self.argv.len()
    }

    /// The word at `index`; empty, which no word is, after the last one.
    pub(crate) fn get(&self, index: usize) -> &'a [u8] {
        // SAFETY: the strings end in a NUL.
        self.argv.get(index).map_or(&[], |&word| unsafe { bytes(word) })
    }

    /// As [`Words::get`], for C functions.
    pub(crate) fn c_str(&self, index: usize) -> &'a CStr {
        // SAFETY: the strings end in a NUL.
        self.argv.get(index).map_or(c"", |&word| unsafe { CStr::from_ptr(word) })
    }

    /// The text from the byte before word `index` to the end of the last word, but at most `most`
    /// words after `index`, as the splitter left it. Empty if there is no such word.
    ///
    /// # Safety
    /// The words follow each other in one buffer, and `index` is not 0.
    pub(crate) unsafe fn text_from(&self, index: usize, most: usize) -> &'a [u8] {
        let end = index.saturating_add(most);
        let last = self.argv.get(end).or(self.argv.last());
        let (Some(&first), Some(&last)) = (self.argv.get(index), last) else { return &[] };
        // SAFETY: all bytes are within the buffer, because the words are in order and another word
        // precedes this one.
        unsafe {
            let start = first.sub(1).cast::<u8>();
            let end = last.add(strlen(last)).cast::<u8>();
            core::slice::from_raw_parts(start, end.offset_from(start) as usize)
        }
    }

    /// Iterates over the words.
    pub(crate) fn iter(self) -> WordsIter<'a> {
        WordsIter { words: self, next: 0 }
    }
}

/// The iterator that [`Words::iter`] returns.
pub(crate) struct WordsIter<'a> {
    words: Words<'a>,
    next: usize,
}

impl<'a> Iterator for WordsIter<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.next >= self.words.len() {
            return None;
        }
        let word = self.words.get(self.next);
        self.next = self.next.wrapping_add(1);
        Some(word)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.words.len().wrapping_sub(self.next);
        (left, Some(left))
    }
}

impl ExactSizeIterator for WordsIter<'_> {}

/// The memory of a region table, which C frees with the target.
#[derive(Clone, Copy)]
pub(crate) struct Slots {
    first: NonNull<AtomicU64>,
    len: usize,
}

impl AsRef<[AtomicU64]> for Slots {
    #[inline(always)]
    fn as_ref(&self) -> &[AtomicU64] {
        // SAFETY: `Builder::alloc_table` allocated this many slots, which live as long as the
        // target.
        unsafe { core::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl Storage for Slots {}

/// A target under construction. [`Builder::give_back`] releases everything that it has taken.
pub(crate) struct Builder {
    device: *mut Device,
}

impl Builder {
    /// Begins the construction.
    ///
    /// # Safety
    /// `device` is a `dm_target` under construction, for as long as this lives.
    pub(crate) unsafe fn new(device: *mut Device) -> Self {
        Self { device }
    }

    /// Allocates the target. Returns the memory for its state; `None` if there is no memory.
    pub(crate) fn alloc(&self, num_paths: u32, counted: bool) -> Option<*mut c_void> {
        // SAFETY: `device` is under construction.
        let state = unsafe { glue_alloc(self.device, num_paths, counted) };
        if state.is_null() { None } else { Some(state) }
    }

    /// Opens a path's device. Returns 0 or a negative errno.
    pub(crate) fn open(&self, path: u32, device: &CStr) -> c_int {
        // SAFETY: `alloc` made room for this path.
        unsafe { glue_open(self.device, path, device.as_ptr()) }
    }

    pub(crate) fn set_start(&self, path: u32, start: u64) {
        // SAFETY: `alloc` made room for this path.
        unsafe { glue_set_start(self.device, path, start) }
    }

    /// Size of a path's device in sectors.
    pub(crate) fn dev_size(&self, path: u32) -> u64 {
        // SAFETY: the path is open.
        unsafe { glue_dev_size(self.device, path) }
    }

    /// Block size of a path's device in bytes.
    pub(crate) fn dev_block_size(&self, path: u32) -> u32 {
        // SAFETY: the path is open.
        unsafe { glue_dev_block_size(self.device, path) }
    }

    /// Allocates zeroed memory for a region table.
    pub(crate) fn alloc_table(&self, slots: usize) -> Option<Slots> {
        let size = slots.checked_mul(size_of::<AtomicU64>())?;
        // SAFETY: `alloc` allocated the target.
        let first = unsafe { glue_alloc_table(self.device, size) };
        Some(Slots { first: NonNull::new(first)?, len: slots })
    }

    /// Sets the longest read or write, and the number of bios that a flush, a discard, and a
    /// write-zeroes or secure erase become.
    pub(crate) fn set_limits(
        &self,
        region_size: u32,
        flushes: u32,
        discards: u32,
        write_zeroes: u32,
    ) {
        // SAFETY: `device` is under construction.
        unsafe { glue_set_limits(self.device, region_size, flushes, discards, write_zeroes) }
    }

    /// Sets the text for the kernel's log.
    pub(crate) fn set_error(&self, text: super::Text) {
        // SAFETY: the text lives as long as the module, which outlives its targets.
        unsafe { glue_set_error(self.device, text.as_ptr()) }
    }

    /// Releases everything that was taken since [`Builder::alloc`].
    pub(crate) fn give_back(&self) {
        // SAFETY: `alloc` allocated the target, and nothing uses it after this.
        unsafe { glue_free(self.device) }
    }
}

/// The counters of a target: what each path was sent.
pub(crate) struct Counts {
    target: *const RawTarget,
}

impl Counts {
    /// Reads the counters of this target.
    ///
    /// # Safety
    /// `target` is constructed, and lives as long as this.
    pub(crate) unsafe fn new(target: *const RawTarget) -> Self {
        Self { target }
    }

    /// Whether the module counts requests now.
    pub(crate) fn is_on(&self) -> bool {
        // SAFETY: the function only reads a parameter of the module.
        unsafe { glue_is_counting() }
    }

    /// The requests and sectors of one kind that a path was sent.
    pub(crate) fn get(&self, path: u32, kind: u32) -> (u64, u64) {
        // SAFETY: called for counted targets only, with their paths and the kernel's four kinds.
        unsafe {
            (
                glue_count(self.target, path, kind, false),
                glue_count(self.target, path, kind, true),
            )
        }
    }
}
