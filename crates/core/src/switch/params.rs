//! The constructor's words: `<num_paths> <region_size> 0 [<device> <offset>]+`.
//!
//! The kernel opens the device of a path, then checks its offset, then goes on to the next path.
//! Errors must come in the same order. So [`Params`] returns the paths one by one, and
//! [`PathArg::offset`] checks an offset after the caller has opened [`PathArg::device`].
//!
//! Contract: no allocation, no panic. The words are split already, for example by
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
    /// Checks all words that the kernel checks before it opens a device.
    ///
    /// # Errors
    /// The first wrong word, in the kernel's order: [`Error::NumPaths`], [`Error::RegionSize`],
    /// [`Error::OptionalArgs`], [`Error::PathArguments`].
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
    /// Number of paths, in 1..=[`MAX_PATHS`].
    #[must_use]
    pub const fn num_paths(&self) -> u32 {
        self.num_paths
    }

    /// Sectors of a region, at least 1.
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
    /// Its device. Open it before asking for the offset.
    pub device: &'a [u8],
    /// The word of its offset.
    pub offset_word: &'a [u8],
}

impl PathArg<'_> {
    /// The first sector of the volume on the device.
    ///
    /// # Errors
    /// [`Error::Offset`] if the word is not an unsigned decimal of 64 bits.
    pub fn offset(&self) -> Result<u64, Error> {
        // Each path has two words; this one is the second.
        let at = (self.number as usize).wrapping_mul(2).wrapping_add(HEAD_WORDS + 1);
        parse_u64(self.offset_word).ok_or(Error::Offset { path: self.number, at })
    }

    /// The error for a device that could not be looked up.
    #[must_use]
    pub const fn lookup_failed(&self, errno: super::super::error::Errno) -> Error {
        Error::DeviceLookup { path: self.number, errno }
    }
}
