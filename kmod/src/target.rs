//! A target: its construction from a table line, and the routes of its requests.
//!
//! Contract: [`build`] makes it once. Afterwards only the region table changes, whose entries are
//! atomic. Any number of processors call [`Target::route`] while the holder of the message lock
//! writes.

use core::ffi::{c_int, c_void};

use super::Text;
use super::blkswitch_core::error::{Errno, Error};
use super::blkswitch_core::switch::{Geometry, Map, Params, PathArg};
use super::glue::{self, Builder, Slots, Words};
use super::text::{Line, MAX_LINE};

/// Size of a target's state in `struct glue_target`, in bytes.
const STATE_SIZE: usize = 16 * size_of::<u64>();
/// Most paths whose requests are counted. The counters of all paths are one piece of per-processor
/// memory of at most 32 KiB.
pub(crate) const MAX_COUNTED_PATHS: u32 = 512;
/// Most regions of one path that a discard covers as one request. The look-ups are not interrupted,
/// so they must end soon.
const MAX_EXTENT_REGIONS: u32 = 1024;
/// Words before the first path.
const HEAD_WORDS: usize = 3;

/// The state of a target.
pub struct Target {
    pub(crate) map: Map<Slots>,
    strict: bool,
}

const _: () = assert!(size_of::<Target>() <= STATE_SIZE, "BLKSWITCH_STATE_WORDS in glue.c is too small");

impl Target {
    /// The path of a sector.
    #[inline(always)]
    pub(crate) fn route(&self, sector: u64) -> u32 {
        self.map.route(sector).path
    }

    /// The number of `sectors` sectors, at least 1, that have the path of the first one.
    pub(crate) fn extent(&self, sector: u64, sectors: u32) -> u32 {
        if self.strict {
            return sectors;
        }
        let first = self.map.route(sector);
        let mut taken = first.left;
        for _ in 1..MAX_EXTENT_REGIONS {
            if taken >= u64::from(sectors) {
                break;
            }
            let next = self.map.route(sector.wrapping_add(taken));
            if next.path != first.path {
                break;
            }
            taken = taken.wrapping_add(next.left);
        }
        u32::try_from(taken).unwrap_or(u32::MAX).min(sectors)
    }
}

/// Makes a target from a constructor's words. Returns 0, or a negative errno after it has set the
/// text and given everything back.
pub(crate) fn build(builder: Builder, words: Words<'_>, len_sectors: u64, strict: bool) -> c_int {
    let params = match Params::parse(words.iter()) {
        Ok(params) => params,
        Err(error) => return refuse(&builder, error),
    };
    let counted = params.num_paths() <= MAX_COUNTED_PATHS;
    let Some(state) = builder.alloc(params.num_paths(), counted) else {
        return refuse(&builder, Error::ContextMemory);
    };
    match fill(&builder, state, params, words, len_sectors, strict) {
        Ok(()) => 0,
        Err(Refusal { text, errno }) => {
            builder.give_back();
            builder.set_error(text);
            errno
        }
    }
}

fn refuse(builder: &Builder, error: Error) -> c_int {
    let refusal = Refusal::from(error);
    builder.set_error(refusal.text);
    refusal.errno
}

/// Opens the paths in their order, makes the region table and writes the state.
fn fill<'a>(
    builder: &Builder,
    state: *mut c_void,
    params: Params<impl Iterator<Item = &'a [u8]>>,
    words: Words<'_>,
    len_sectors: u64,
    strict: bool,
) -> Result<(), Refusal> {
    let (num_paths, region_size) = (params.num_paths(), params.region_size());
    for path in params {
        open(builder, &path, words)?;
        if !strict {
            check_area(builder, &path, len_sectors, region_size)?;
        }
    }
    let geometry = Geometry::new(len_sectors, num_paths, region_size)?;
    let too_little = Error::RegionTableMemory { regions: geometry.nr_regions() };
    let slots = builder.alloc_table(geometry.nr_slots()).ok_or(too_little)?;
    let map = Map::new(geometry, slots).map_err(|_| too_little)?;
    // The reference passes no flush on, and has neither write-zeroes nor secure erase.
    let (flushes, write_zeroes) = if strict { (0, 0) } else { (num_paths, 1) };
    builder.set_limits(region_size, flushes, 1, write_zeroes);
    // SAFETY: C allocated `STATE_SIZE` bytes, and no other code reads them yet.
    unsafe { state.cast::<Target>().write(Target { map, strict }) };
    Ok(())
}

fn open(builder: &Builder, path: &PathArg<'_>, words: Words<'_>) -> Result<(), Refusal> {
    let word = HEAD_WORDS.wrapping_add((path.number as usize).wrapping_mul(2));
    match builder.open(path.number, words.c_str(word)) {
        0 => {}
        // Keep the errno: the kernel has more of them than the core has names for.
        errno => return Err(Refusal { text: c"Device lookup failed", errno }),
    }
    builder.set_start(path.number, path.offset()?);
    Ok(())
}

/// Checks when the table is loaded what the kernel checks only when the table goes live, or not
/// before I/O fails.
fn check_area(
    builder: &Builder,
    path: &PathArg<'_>,
    len: u64,
    region_size: u32,
) -> Result<(), Refusal> {
    let (start, dev_size) = (path.offset()?, builder.dev_size(path.number));
    let block_size = builder.dev_block_size(path.number);
    // A size of 0 means that the device does not know its size yet.
    if dev_size != 0 && start.checked_add(len).is_none_or(|end| end > dev_size) {
        let line = Line::<MAX_LINE>::new().text(b"path ").decimal(u64::from(path.number));
        let line = line.text(b" too small for target: start=").decimal(start);
        let line = line.text(b", len=").decimal(len).text(b", dev_size=").decimal(dev_size);
        glue::warn(line.as_c_str(), c"", c"");
        return Err(Error::DeviceTooSmall { start, len, dev_size }.into());
    }
    let region_bytes = u64::from(region_size).wrapping_mul(512);
    // Block sizes are powers of two.
    if u64::from(region_size) < len && region_bytes & u64::from(block_size).wrapping_sub(1) != 0 {
        let line = Line::<MAX_LINE>::new().text(b"region size=").decimal(u64::from(region_size));
        let line = line.text(b" not aligned to h/w logical block size ").decimal(u64::from(block_size));
        glue::warn(line.text(b" of path ").decimal(u64::from(path.number)).as_c_str(), c"", c"");
        return Err(Error::RegionUnaligned { region_size, block_size }.into());
    }
    Ok(())
}

/// Why a constructor was refused: the text and the errno.
struct Refusal {
    text: Text,
    errno: c_int,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let (text, errno) = match error {
            Error::NumPaths { .. } => (c"Invalid number of paths", Errno::Einval),
            Error::RegionSize { .. } => (c"Invalid region size", Errno::Einval),
            Error::OptionalArgs { .. } => (c"Invalid number of optional args", Errno::Einval),
            Error::PathArguments { .. } => (c"Incorrect number of path arguments", Errno::Einval),
            Error::ContextMemory => (c"Cannot allocate redirection context", Errno::Enomem),
            Error::DeviceLookup { .. } => (c"Device lookup failed", Errno::Einval),
            Error::Offset { .. } => (c"Invalid device starting offset", Errno::Einval),
            Error::RegionTableMemory { .. } => (c"Cannot allocate region table", Errno::Enomem),
            Error::DeviceTooSmall { .. } => (c"Path too small for target", Errno::Einval),
            Error::RegionUnaligned { .. } => {
                (c"Region size not aligned to logical block size", Errno::Einval)
            }
            // The kernel has checked everything else before it makes a target.
            _ => (c"Region table too large", Errno::Einval),
        };
        Self { text, errno: errno.number().wrapping_neg() }
    }
}
