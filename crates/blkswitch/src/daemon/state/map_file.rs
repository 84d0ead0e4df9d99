//! The file of a region map: a header, and the words in blocks with checksums.
//!
//! | at | bytes | content |
//! |---|---|---|
//! | 0, 4096 | 512 each | two copies of the header, written in turn; the newer one counts |
//! | 8192 + 512 n | 512 | block n: 63 words, then the checksum of map, number and words |
//!
//! All numbers are little-endian. A block of zeroes was never written: its regions are round robin.
//! So a map takes space only where it differs from round robin, and a map of a billion regions is
//! created at once.
//!
//! **A message** changes the file in four steps:
//!
//! 1. The header is written with the device's next generation, marked *open*, and forced.
//! 2. The words are stored in memory, where requests see them.
//! 3. The changed blocks are written and forced.
//! 4. The header is written, *closed*, with the number of written blocks and the sum of their
//!    checksums.
//!
//! A block is one sector of the medium, which holds either the old or the new content. So the
//! checksum of a block is right wherever the power fails. The sum of the checksums finds an error
//! that they cannot find alone: a block that is zero or old again. The sum counts only in a closed
//! map.
//!
//! Contract: one [`MapFile`] per file, used under the device's message lock. If a step fails, the
//! changes stay noted, and the next message writes them, too.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use blkswitch_core::switch::{Geometry, Map};
use blkswitch_io::slots::{BLOCK_WORDS, Slots};
use blkswitch_io::sparse;

use super::checksum::Checksum;
use super::description::SavedMap;
use super::files::{Files, NO_FOLLOW, OPEN_AT_ONCE};
use super::header::{Copy, HEADER_BYTES, Header, Shape};

/// Each copy of the header has a page of its own.
const COPY_BYTES: u64 = 4096;
const BLOCKS_AT: u64 = 2 * COPY_BYTES;
const BLOCK_BYTES: usize = 512;
/// Files up to this size get space for every block when they are created, so that a full disk
/// refuses no later message. Longer files take space as they grow.
const RESERVED_MAX: u64 = 64 << 20;
/// Most blocks that are read or written at a time.
const MANY_BLOCKS: usize = 128;

/// The device that a map belongs to, for people who find the file without the description.
#[derive(Clone, Debug, Default)]
pub struct Owner {
    /// Name of the device.
    pub name: String,
    /// UUID of the device.
    pub uuid: String,
}

/// The open file of a map.
#[derive(Debug)]
pub(super) struct MapFile {
    path: PathBuf,
    file: File,
    /// Whether the file was opened for writing; not so on a read-only medium.
    may_write: bool,
    header: Header,
    /// Index of the copy that holds the newest header.
    copy: u64,
    /// Checksum of each block; 0 for a block that was never written.
    sums: Box<[u64]>,
    /// The generation of the header, shared with the thread that writes the description.
    generation: Arc<AtomicU64>,
}

impl MapFile {
    /// Creates the file of a new map, in which every region is round robin.
    pub(super) fn make(
        files: &Files,
        path: &Path,
        shape: Shape,
        owner: &Owner,
    ) -> io::Result<MapFile> {
        let sums = no_sums(&shape)?;
        let file = files.make_new(path)?;
        let made = (|| {
            let bytes = file_bytes(&shape)?;
            if bytes <= RESERVED_MAX { sparse::reserve(&file, bytes) } else { file.set_len(bytes) }
        })();
        let header = Header::new(shape, owner);
        let generation = Arc::new(AtomicU64::new(header.generation));
        let (path, copy) = (path.to_owned(), 1);
        let mut map = MapFile { path, file, may_write: true, header, copy, sums, generation };
        let header = map.header.clone();
        made.and_then(|()| map.put_header(header, files)).inspect_err(|_| {
            // A file that stays behind does no harm.
            let _ = files.remove(&map.path);
        })?;
        Ok(map)
    }

    /// The identifier of the map, and its current generation.
    pub(super) fn identity(&self) -> (u64, Arc<AtomicU64>) {
        (self.header.id, self.generation.clone())
    }

    /// Called before the first store of a message. Marks the file as open until
    /// [`MapFile::finish`].
    ///
    /// `generation` is the device's from now on. The number of one map may skip some, because the
    /// device can have several maps.
    ///
    /// Errors: the message must store nothing.
    pub(super) fn begin(
        &mut self,
        files: &Files,
        owner: &Owner,
        generation: u64,
    ) -> io::Result<()> {
        self.check_place()?;
        let Owner { name, uuid } = owner.clone();
        // The newer copy of the header is the one with the higher number.
        let generation = generation.max(self.header.generation);
        let header = Header { generation, is_open: true, name, uuid, ..self.header.clone() };
        self.put_header(header, files)?;
        self.force(files)?;
        // Only after forcing, so that a description never names a generation that may be lost.
        self.generation.store(generation, Ordering::Relaxed);
        Ok(())
    }

    /// Forces the file to the medium if the folder promises that.
    pub(super) fn force(&self, files: &Files) -> io::Result<()> {
        files.force_file(&self.file, &self.path)
    }

    /// Writes the blocks that were changed, then closes the file's header.
    pub(super) fn finish(&mut self, files: &Files, slots: &Slots) -> io::Result<()> {
        let Some(changes) = slots.changes() else { return Ok(()) };
        let mut next = changes.next(0);
        while let Some(first) = next {
            let mut end = first + 1;
            while end - first < MANY_BLOCKS && changes.next(end) == Some(end) {
                end += 1;
            }
            self.write_blocks(first..end, slots.as_ref(), files)?;
            next = changes.next(end);
        }
        self.force(files)?;
        changes.clear();
        if let Err(error) = self.close(files) {
            // All changes are in the file, and it can be used. Only the check of the sum is lost.
            tracing::warn!(path = %self.path.display(), %error, "a region map cannot be closed");
        }
        Ok(())
    }

    /// Marks the file as complete. This is not forced, because an open map can be used as well.
    pub(super) fn close(&mut self, files: &Files) -> io::Result<()> {
        self.put_header(Header { is_open: false, ..self.header.clone() }, files)
    }

    pub(super) fn is_open(&self) -> bool {
        self.header.is_open
    }

    fn write_blocks(
        &mut self,
        blocks: std::ops::Range<usize>,
        words: &[AtomicU64],
        files: &Files,
    ) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(blocks.len() * BLOCK_BYTES);
        let mut sums = Vec::with_capacity(blocks.len());
        for block in blocks.clone() {
            let content = block_words(words, block);
            content.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
            let sum = sum_of(self.header.id, block, &content);
            bytes.extend(sum.to_le_bytes());
            sums.push(sum);
        }
        self.file.write_all_at(&bytes, place(blocks.start))?;
        files.wrote();
        for (block, sum) in blocks.zip(sums) {
            if let Some(old) = self.sums.get_mut(block) {
                self.header.replace(std::mem::replace(old, sum), sum);
            }
        }
        Ok(())
    }

    /// Writes the header over the older copy.
    fn put_header(&mut self, header: Header, files: &Files) -> io::Result<()> {
        let copy = 1 - self.copy;
        self.file.write_all_at(&header.encode(), copy * COPY_BYTES)?;
        files.wrote();
        (self.copy, self.header) = (copy, header);
        Ok(())
    }

    /// Checks that the file still has its name and has not become shorter.
    fn check_place(&mut self) -> io::Result<()> {
        let (ours, named) = (self.file.metadata()?, std::fs::symlink_metadata(&self.path)?);
        if (ours.dev(), ours.ino()) != (named.dev(), named.ino()) {
            return Err(damaged("somebody has replaced the file while it was in use"));
        }
        if ours.len() < file_bytes(&self.header.shape)? {
            return Err(damaged("somebody has made the file shorter while it was in use"));
        }
        if !self.may_write {
            let file = open(&self.path, true)?;
            let again = file.metadata()?;
            if (again.dev(), again.ino()) != (ours.dev(), ours.ino()) {
                return Err(damaged("somebody has replaced the file while it was in use"));
            }
            (self.file, self.may_write) = (file, true);
        }
        Ok(())
    }
}

/// The file of a map, opened but not read yet.
#[derive(Debug)]
pub(super) struct FoundMap {
    path: PathBuf,
    file: File,
    may_write: bool,
    len: u64,
    /// The newer header, and which copy it is; `None` for a file in the format without headers.
    pub(super) header: Option<(Header, u64)>,
    /// Whether the other copy is damaged.
    pub(super) lacks_copy: bool,
}

/// Totals over the blocks of a file.
#[derive(Debug, Default)]
struct Tally {
    blocks: u64,
    sum: u64,
}

impl FoundMap {
    /// Opens the file of a map and reads its header.
    ///
    /// Errors: it is no regular file, or the header is damaged or of another version.
    pub(super) fn open(path: &Path) -> io::Result<FoundMap> {
        use ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        let (file, may_write) = match open(path, true) {
            Err(error) if matches!(error.kind(), ReadOnlyFilesystem | PermissionDenied) => {
                (open(path, false)?, false)
            }
            file => (file?, true),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(damaged("it is no file"));
        }
        Files::check_owner(&file)?;
        let mut copies = Vec::new();
        for copy in 0..2 {
            let mut bytes = Vec::new();
            read_up_to(&file, copy * COPY_BYTES, HEADER_BYTES, &mut bytes)?;
            copies.push(Header::decode(&bytes)?);
        }
        let is_damaged = copies.contains(&Copy::Damaged);
        let is_foreign = copies.contains(&Copy::Foreign);
        let good = copies.into_iter().zip(0..).filter_map(|(copy, at)| match copy {
            Copy::Good(header) => Some((*header, at)),
            Copy::Damaged | Copy::Foreign | Copy::None => None,
        });
        let header = good.max_by_key(|(header, _)| (header.generation, !header.is_open));
        if header.is_none() && is_damaged {
            return Err(damaged("its header is damaged"));
        }
        let lacks_copy = header.is_some() && (is_damaged || is_foreign);
        let (path, len) = (path.to_owned(), metadata.len());
        Ok(FoundMap { path, file, may_write, len, header, lacks_copy })
    }

    /// Checks that this is the map that a description names, and not an older state of it.
    ///
    /// Errors: the reason why not.
    pub(super) fn check_identity(&self, saved: &SavedMap) -> io::Result<()> {
        let Some(id) = &saved.id else { return Ok(()) };
        let Some((header, _)) = &self.header else { return Err(damaged("it has no header")) };
        let found = format!("{:016x}", header.id);
        if found != *id {
            let text = format!("it is map {found} of device '{}', not map {id}", header.name);
            return Err(damaged(text));
        }
        if header.generation < saved.generation {
            let text = format!(
                "it is of generation {}, and was of generation {} already: is it from a backup?",
                header.generation, saved.generation
            );
            return Err(damaged(text));
        }
        Ok(())
    }

    /// Returns whether this is the map that a description names, in the same generation.
    pub(super) fn is_exactly(&self, saved: &SavedMap) -> bool {
        let generation = self.header.as_ref().map(|(header, _)| header.generation);
        self.check_identity(saved).is_ok() && generation == Some(saved.generation)
    }

    /// Checks the file, and copies its words into `slots`.
    ///
    /// Errors: the file is damaged, or it is the map of another geometry.
    pub(super) fn read(self, geometry: &Geometry, slots: &Slots) -> io::Result<MapFile> {
        let Some((header, copy)) = self.header.clone() else {
            return Err(damaged("it has no header"));
        };
        let shape = Shape::of(geometry);
        if header.shape != shape {
            let text = format!("it is the map of {}, and the table has {shape}", header.shape);
            return Err(damaged(text));
        }
        let mut sums = no_sums(&shape)?;
        let words = slots.as_ref();
        let map = Map::new(*geometry, words).map_err(|_| damaged("it has other words"))?;
        let tally = self.for_blocks(&header, |block, content, sum| {
            if let Some(at) = sums.get_mut(block) {
                *at = sum;
            }
            let first = block * BLOCK_WORDS;
            let place = words.get(first..).unwrap_or_default();
            let end = first + place.len().min(BLOCK_WORDS);
            for (word, value) in place.iter().zip(content).filter(|(_, value)| **value != 0) {
                word.store(*value, Ordering::Relaxed);
            }
            let is_valid = map.are_valid(first..end);
            is_valid.then_some(()).ok_or_else(|| {
                damaged(format!("block {block} sends a region to a path that there is not"))
            })
        })?;
        tally.check(&header)?;
        let generation = Arc::new(AtomicU64::new(header.generation));
        let mut header = header;
        (header.blocks, header.sum) = (tally.blocks, tally.sum);
        let FoundMap { path, file, may_write, .. } = self;
        Ok(MapFile { path, file, may_write, header, copy, sums, generation })
    }

    /// Returns whether the file is longer than its header says. Additional bytes do no harm.
    pub(super) fn is_longer(&self) -> bool {
        let needed = self.header.as_ref().and_then(|(header, _)| file_bytes(&header.shape).ok());
        needed.is_some_and(|bytes| bytes < self.len)
    }

    /// Checks the file without a table: header, length and every block.
    pub(super) fn check(&self) -> io::Result<()> {
        let Some((header, _)) = &self.header else { return Ok(()) };
        self.for_blocks(header, |_, _, _| Ok(()))?.check(header)
    }

    /// Calls `each` with every block that was written: its number, words and checksum.
    fn for_blocks(
        &self,
        header: &Header,
        mut each: impl FnMut(usize, &[u64; BLOCK_WORDS], u64) -> io::Result<()>,
    ) -> io::Result<Tally> {
        let (bytes, mut tally) = (file_bytes(&header.shape)?, Tally::default());
        if self.len < bytes {
            let text = format!("it has {} bytes of {bytes}: it was made shorter", self.len);
            return Err(damaged(text));
        }
        let mut at = BLOCKS_AT;
        // Holes are skipped: a map of a billion regions may have only a few blocks.
        while let Some(data) = sparse::next_data(&self.file, at)?.filter(|data| *data < bytes) {
            let hole = sparse::next_hole(&self.file, data)?.unwrap_or(bytes).min(bytes);
            at = at.max(data - data % BLOCK_BYTES as u64);
            while at < hole {
                let mut piece = Vec::new();
                let most = (MANY_BLOCKS * BLOCK_BYTES).min((bytes - at) as usize);
                read_up_to(&self.file, at, most, &mut piece)?;
                let first = ((at - BLOCKS_AT) / BLOCK_BYTES as u64) as usize;
                for (n, block) in piece.chunks_exact(BLOCK_BYTES).enumerate() {
                    if let Some((content, sum)) = decode_block(header.id, first + n, block)? {
                        tally.add(sum);
                        each(first + n, &content, sum)?;
                    }
                }
                if piece.len() < most {
                    return Err(damaged("it became shorter while it was read"));
                }
                at += most as u64;
            }
        }
        Ok(tally)
    }

    /// Reads the words of a file in the old format, which contains nothing else. The geometry tells
    /// how many there must be.
    pub(super) fn read_old(&self, geometry: &Geometry, slots: &Slots) -> io::Result<()> {
        let words = slots.as_ref();
        if self.len != words.len().max(1) as u64 * 8 {
            let text =
                format!("it has {} bytes, and the table's map {}", self.len, words.len() * 8);
            return Err(damaged(text));
        }
        let per_piece = MANY_BLOCKS * BLOCK_WORDS;
        for (n, piece) in words.chunks(per_piece).enumerate() {
            let mut bytes = Vec::new();
            read_up_to(&self.file, (n * per_piece * 8) as u64, piece.len() * 8, &mut bytes)?;
            for (at, (word, value)) in piece.iter().zip(bytes.as_chunks::<8>().0).enumerate() {
                let value = u64::from_le_bytes(*value);
                if value != 0 {
                    word.store(value, Ordering::Relaxed);
                    let block = (n * per_piece + at) / BLOCK_WORDS;
                    slots.changes().into_iter().for_each(|changes| changes.note_block(block));
                }
            }
        }
        let map = Map::new(*geometry, words).map_err(|_| damaged("it has other words"))?;
        let text = "it sends a region to a path that there is not";
        map.is_valid().then_some(()).ok_or_else(|| damaged(text))
    }
}

impl Tally {
    fn add(&mut self, sum: u64) {
        self.blocks += 1;
        self.sum = self.sum.wrapping_add(sum);
    }

    fn check(&self, header: &Header) -> io::Result<()> {
        if header.is_open || (self.blocks, self.sum) == (header.blocks, header.sum) {
            return Ok(());
        }
        let text = format!(
            "its {} written blocks are not the {} of generation {}: some are lost, or old",
            self.blocks, header.blocks, header.generation
        );
        Err(damaged(text))
    }
}

/// Decodes a block; `None` if it was never written.
fn decode_block(
    id: u64,
    block: usize,
    bytes: &[u8],
) -> io::Result<Option<([u64; BLOCK_WORDS], u64)>> {
    let (mut words, mut sum) = ([0; BLOCK_WORDS], 0);
    for (to, from) in words.iter_mut().chain([&mut sum]).zip(bytes.as_chunks::<8>().0) {
        *to = u64::from_le_bytes(*from);
    }
    if sum == 0 && words.iter().all(|word| *word == 0) {
        return Ok(None);
    }
    if sum != sum_of(id, block, &words) {
        return Err(damaged(format!("the checksum of block {block} is wrong")));
    }
    Ok(Some((words, sum)))
}

/// The words of a block. Beyond the last word of the map there are zeroes.
fn block_words(words: &[AtomicU64], block: usize) -> [u64; BLOCK_WORDS] {
    let mut content = [0; BLOCK_WORDS];
    let from = words.get(block * BLOCK_WORDS..).unwrap_or_default();
    for (to, word) in content.iter_mut().zip(from) {
        *to = word.load(Ordering::Relaxed);
    }
    content
}

/// The checksum of a block. It is never 0, because 0 stands for a block that was never written.
fn sum_of(id: u64, block: usize, words: &[u64; BLOCK_WORDS]) -> u64 {
    let mut checksum = Checksum::new();
    checksum.word(id);
    checksum.word(block as u64);
    words.iter().for_each(|word| checksum.word(*word));
    checksum.value().max(1)
}

fn place(block: usize) -> u64 {
    BLOCKS_AT + (block * BLOCK_BYTES) as u64
}

fn blocks(shape: &Shape) -> io::Result<usize> {
    let words = shape.words().ok_or_else(|| damaged("its header has no geometry"))?;
    Ok(words.div_ceil(BLOCK_WORDS))
}

fn file_bytes(shape: &Shape) -> io::Result<u64> {
    Ok(place(blocks(shape)?))
}

fn no_sums(shape: &Shape) -> io::Result<Box<[u64]>> {
    let sums = bytemuck::allocation::try_zeroed_slice_box(blocks(shape)?);
    sums.map_err(|_| ErrorKind::OutOfMemory.into())
}

fn open(path: &Path, write: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(write).custom_flags(NO_FOLLOW | OPEN_AT_ONCE).open(path)
}

/// Reads `most` bytes, or fewer at the end of the file.
fn read_up_to(file: &File, at: u64, most: usize, bytes: &mut Vec<u8>) -> io::Result<()> {
    bytes.resize(most, 0);
    let mut done = 0;
    while done < most {
        match file.read_at(&mut bytes[done..], at + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(done);
    Ok(())
}

fn damaged(text: impl Into<String>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, text.into())
}
