//! The constructor's words: `<num_paths> <region_size> 0 [<device> <offset>]+`.
//!
//! The kernel opens the device of path k before it looks at the offset of path k, and both before
//! those of path k + 1. So that errors come in the same order, [`Params`] hands out one path after
//! the other, and the offset is checked when [`PathArg::offset`] is called, after the caller has
//! opened [`PathArg::device`].
//!
//! Contract: no allocation, no panic. Words come split, for example by
//! [`super::super::args::split_in_place`].

use super::super::args::parse_u32;
use super::super::args::parse_u64;
use super::super::error::Error;
use super::geometry::MAX_PATHS;

/// Words before the first path.
const HEAD_WORDS: usize = 3;

/// The checked head of a constructor's words, and an iterator of its paths.
#[derive(Clone, Debug)]
pub struct Params<W> {
    num_paths: u32,
    region_size: u32,
    next_path: u32,
    words: W,
}

impl<'a, W: ExactSizeIterator<Item = &'a [u8]>> Params<W> {
    /// Checks everything that can be checked before a device is opened.
    ///
    /// ```
    /// use blkswitch_core::switch::Params;
    /// let words: [&[u8]; 5] = [b"1", b"128", b"0", b"/dev/vg1/switch0", b"8"];
    /// let mut params = Params::parse(words.into_iter())?;
    /// assert_eq!((params.num_paths(), params.region_size()), (1, 128));
    /// let path = params.next().unwrap();
    /// assert_eq!((path.device, path.offset()?), (b"/dev/vg1/switch0".as_slice(), 8));
    /// # Ok::<(), blkswitch_core::error::Error>(())
    /// ```
    pub fn parse(mut words: W) -> Result<Self, Error> {
        let num_paths = match words.next().and_then(parse_u32) {
            Some(number @ 1..=MAX_PATHS) => number,
            _ => return Err(Error::NumPaths { at: 0 }),
        };
        let region_size = match words.next().and_then(parse_u32) {
            Some(number @ 1..) => number,
            _ => return Err(Error::RegionSize { at: 1 }),
        };
        if words.next().and_then(parse_u32) != Some(0) {
            return Err(Error::OptionalArgs { at: 2 });
        }
        let expected = u64::from(num_paths).wrapping_mul(2);
        let found = words.len();
        if found as u64 != expected {
            return Err(Error::PathArguments { expected, found });
        }
        Ok(Self { num_paths, region_size, next_path: 0, words })
    }
}

impl<W> Params<W> {
    /// How many paths there are, in 1..=[`MAX_PATHS`].
    #[must_use]
    pub const fn num_paths(&self) -> u32 {
        self.num_paths
    }

    /// Sectors in a region, at least 1.
    #[must_use]
    pub const fn region_size(&self) -> u32 {
        self.region_size
    }
}

impl<'a, W: Iterator<Item = &'a [u8]>> Iterator for Params<W> {
    type Item = PathArg<'a>;

    fn next(&mut self) -> Option<PathArg<'a>> {
        let device = self.words.next()?;
        let offset_word = self.words.next()?;
        let number = self.next_path;
        self.next_path = number.wrapping_add(1);
        Some(PathArg { number, device, offset_word })
    }
}

/// One path of a constructor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathArg<'a> {
    /// Its number, counted from 0.
    pub number: u32,
    /// Its device: to be looked up before the offset is asked for.
    pub device: &'a [u8],
    /// The word of its offset.
    pub offset_word: &'a [u8],
}

impl PathArg<'_> {
    /// Where the device's part of the volume begins, in sectors.
    pub fn offset(&self) -> Result<u64, Error> {
        // Two words a path; this one is the second.
        let at = (self.number as usize).wrapping_mul(2).wrapping_add(HEAD_WORDS + 1);
        parse_u64(self.offset_word).ok_or(Error::Offset { path: self.number, at })
    }

    /// The error for a device that could not be looked up.
    #[must_use]
    pub const fn lookup_failed(&self, errno: super::super::error::Errno) -> Error {
        Error::DeviceLookup { path: self.number, errno }
    }
}
