//! Resolves a word of a table to a leaf, or to another device of this daemon.
//!
//! | word | meaning |
//! |---|---|
//! | `/dev/blkswitch/NAME`, `/dev/mapper/NAME` | the device of this daemon with that name, if there is one |
//! | `0:MINOR` | the device of this daemon with that number |
//! | `MAJOR:MINOR` | the block device with that number |
//! | `nbd://`, `nbd+unix://` | an export of an NBD server |
//! | `iscsi://` | a logical unit of an iSCSI target |
//! | `mem:`, `null:`, `sim:` | a leaf in memory |
//! | any other absolute path | a regular file or block device |
//!
//! Contract: a leaf is opened once, however many tables name it and by whatever word: [`Leaves`]
//! has every open leaf by [`Leaf::key`]. Opening a leaf delays only tables that name the same leaf.
//! The last table that asks for a page cache mode sets it. All other options are those of the first
//! table that opened the leaf. May block (opening); any thread.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use blkswitch_core::args::Printable;
use blkswitch_io::export::nbd::names::export_name;
use blkswitch_io::pool::Registry;
use blkswitch_io::{Address, Device, Leaf, LeafError, LeafOptions};

use crate::daemon::failure::{Failure, MAJOR};
use crate::daemon::tables::missing;
use crate::protocol::Errno;

/// Folders whose entries name devices of this daemon. The second one is the kernel's, so that
/// existing scripts keep working.
const DEVICE_FOLDERS: [&[u8]; 2] = [b"/dev/blkswitch/", b"/dev/mapper/"];
/// Bits of a minor number in the kernel. A larger number is no device number.
const MINOR_BITS: u32 = 20;
/// Bits of a major number in the kernel.
const MAJOR_BITS: u32 = 12;
/// How long a busy file is tried again. This daemon may just be closing it: a queue drops its last
/// reference to a table shortly after the control thread, and closing a file may write data back.
const RELEASE_WAIT: Duration = Duration::from_secs(2);
/// Pause between two attempts.
const RELEASE_PAUSE: Duration = Duration::from_millis(5);

/// The meaning of a word.
pub enum Found {
    /// A device of this daemon.
    Device(Arc<Device>),
    /// A leaf to open.
    Leaf(Address),
}

/// Resolves `word` without opening anything.
pub fn find(word: &[u8], registry: &Registry) -> Result<Found, Failure> {
    if let Some(device) = own_device(word, registry) {
        return Ok(Found::Device(device));
    }
    if let Some(numbers) = device_numbers(word) {
        return by_numbers(numbers, registry);
    }
    if word.starts_with(b"/") {
        return Ok(Found::Leaf(Address::Path(PathBuf::from(OsStr::from_bytes(word)))));
    }
    let Ok(text) = std::str::from_utf8(word) else {
        let reason = format!(
            "'{}' has bytes that are not UTF-8: only a path may have them; in nbd:// and iscsi:// \
             addresses %NN stands for a byte",
            Printable(word)
        );
        return Err(Failure::new(Errno::Enoent, reason));
    };
    match text.parse::<Address>() {
        Ok(address) => Ok(Found::Leaf(address)),
        // The kernel would look the word up as a path relative to its working directory.
        Err(error @ LeafError::Address(_)) => {
            Err(Failure::new(Errno::Enoent, missing::no_address(text, &error, registry)))
        }
        Err(error) => Err(error.into()),
    }
}

/// The device name in a path below one of [`DEVICE_FOLDERS`].
pub(crate) fn device_name(path: &str) -> Option<&str> {
    let folders = DEVICE_FOLDERS.iter().filter_map(|folder| std::str::from_utf8(folder).ok());
    folders.into_iter().find_map(|folder| path.strip_prefix(folder))
}

/// The device of this daemon that a path names.
fn own_device(word: &[u8], registry: &Registry) -> Option<Arc<Device>> {
    let name = DEVICE_FOLDERS.iter().find_map(|folder| word.strip_prefix(*folder))?;
    let name = std::str::from_utf8(name).ok()?;
    registry.find(name).or_else(|| {
        // Libdm writes white space in a name as an escape, so both spellings must match.
        let is_it = |device: &Arc<Device>| export_name(&device.name()) == export_name(name);
        registry.list().into_iter().find(is_it)
    })
}

/// The numbers of a word that is exactly `MAJOR:MINOR`. A number that is too large is `None`.
fn device_numbers(word: &[u8]) -> Option<(Option<u32>, Option<u32>)> {
    let (major, minor) = std::str::from_utf8(word).ok()?.split_once(':')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let limited =
        |text: &str, bits: u32| text.parse::<u32>().ok().filter(|number| *number < 1 << bits);
    (is_number(major) && is_number(minor))
        .then(|| (limited(major, MAJOR_BITS), limited(minor, MINOR_BITS)))
}

fn by_numbers(numbers: (Option<u32>, Option<u32>), registry: &Registry) -> Result<Found, Failure> {
    let (Some(major), Some(minor)) = numbers else {
        let reason =
            "a device number must be below 4096 before the colon and below 1048576 behind it";
        return Err(Failure::new(Errno::Eoverflow, reason));
    };
    let none = |whose: &str| {
        Failure::new(Errno::Enxio, format!("there is no {whose} device {major}:{minor}"))
    };
    if major == MAJOR {
        return registry.by_id(minor).map(Found::Device).ok_or_else(|| none("blkswitch"));
    }
    block_device_node(major, minor)
        .map(|node| Found::Leaf(Address::Path(node)))
        .ok_or_else(|| none("block"))
}

/// The node of a block device, under the name that the kernel gives it.
fn block_device_node(major: u32, minor: u32) -> Option<PathBuf> {
    let properties =
        std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).ok()?;
    let name = properties.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    let node = Path::new("/dev").join(name);
    node.exists().then_some(node)
}

/// The open leaves, by [`Leaf::key`].
#[derive(Debug, Default)]
pub struct Leaves {
    open: Mutex<HashMap<String, Weak<Leaf>>>,
    /// A lock for each leaf that is being opened.
    opening: Mutex<HashMap<String, Weak<Mutex<()>>>>,
}

impl Leaves {
    /// Returns the leaf at `address`, which is opened if it is not open yet.
    pub fn open(&self, address: &Address, options: &LeafOptions) -> Result<Arc<Leaf>, LeafError> {
        // No shared lock is held while a file or server is opened: one that does not answer delays
        // this load alone.
        let key = Leaf::key_of(address);
        if address.is_remote() {
            // Two loads may open one remote leaf at once; then both use the leaf that was
            // remembered first.
            return match key.as_ref().and_then(|key| self.known(key)) {
                Some(leaf) if suits(&leaf, options) => chosen(leaf, options),
                _ => Ok(self.remember(Leaf::open(address, options)?)),
            };
        }
        // Two loads that name one file must not both open it.
        let turn = key.as_ref().map(|key| self.turn(key));
        let _mine = turn.as_ref().map(|turn| lock(turn));
        match key.as_ref().and_then(|key| self.known(key)) {
            Some(leaf) if suits(&leaf, options) => chosen(leaf, options),
            Some(reader) => Ok(self.remember(reader.open_writable(address, options)?)),
            None => Ok(self.remember(open_when_released(address, options)?)),
        }
    }

    fn known(&self, key: &str) -> Option<Arc<Leaf>> {
        lock(&self.open).get(key)?.upgrade()
    }

    /// Adds a leaf that was just opened, unless a leaf with its key is known. Returns the one to
    /// use.
    fn remember(&self, leaf: Arc<Leaf>) -> Arc<Leaf> {
        let mut open = lock(&self.open);
        let known = open.get(leaf.key()).and_then(Weak::upgrade);
        // A writable leaf replaces a read-only one.
        if let Some(known) = known.filter(|known| is_as_able(known, &leaf)) {
            return known;
        }
        open.retain(|_, leaf| leaf.strong_count() > 0);
        open.insert(leaf.key().to_owned(), Arc::downgrade(&leaf));
        leaf
    }

    /// The lock that is held while the leaf with this key is being opened.
    fn turn(&self, key: &str) -> Arc<Mutex<()>> {
        let mut opening = lock(&self.opening);
        if let Some(turn) = opening.get(key).and_then(Weak::upgrade) {
            return turn;
        }
        opening.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(Mutex::new(()));
        opening.insert(key.to_owned(), Arc::downgrade(&turn));
        turn
    }

    /// A leaf at an address that cannot be reached: another path to the volume of `other`.
    pub fn absent(&self, address: &Address, options: &LeafOptions, other: &Leaf) -> Arc<Leaf> {
        let known = Leaf::key_of(address).and_then(|key| self.known(&key));
        known.unwrap_or_else(|| self.remember(Leaf::absent(address, options, other)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns whether an open leaf is sufficient for `options`.
fn suits(leaf: &Leaf, options: &LeafOptions) -> bool {
    options.read_only || !leaf.properties().read_only
}

/// Returns whether `leaf` can do everything that `other` can.
fn is_as_able(leaf: &Leaf, other: &Leaf) -> bool {
    other.properties().read_only || !leaf.properties().read_only
}

/// Returns an open leaf, in the page cache mode that `options` asks for.
fn chosen(leaf: Arc<Leaf>, options: &LeafOptions) -> Result<Arc<Leaf>, LeafError> {
    if let Some(direct) = options.direct {
        leaf.choose_mode(direct)?;
    }
    Ok(leaf)
}

/// Opens a leaf. A busy leaf is tried again for [`RELEASE_WAIT`].
fn open_when_released(address: &Address, options: &LeafOptions) -> Result<Arc<Leaf>, LeafError> {
    let until = Instant::now() + RELEASE_WAIT;
    loop {
        match Leaf::open(address, options) {
            Err(LeafError::Busy(_)) if Instant::now() < until => std::thread::sleep(RELEASE_PAUSE),
            opened => return opened,
        }
    }
}

#[cfg(test)]
mod tests {
    use blkswitch_io::Queues;

    use super::*;

    #[test]
    fn device_numbers_are_two_plain_numbers() {
        assert_eq!(device_numbers(b"01:00"), Some((Some(1), Some(0))));
        assert_eq!(device_numbers(b"4095:1048575"), Some((Some(4095), Some(1_048_575))));
        assert_eq!(device_numbers(b"4096:1048576"), Some((None, None)));
        assert_eq!(device_numbers(b"99999999999:0"), Some((None, Some(0))));
        for not_numbers in ["1", "1:", ":", ":1", "1:0:0", "-1:0", "+1:0", "1:0 ", "a:b", "mem:1"] {
            assert_eq!(device_numbers(not_numbers.as_bytes()), None, "{not_numbers}");
        }
    }

    /// A table that was loaded read-only is loaded again for writing.
    #[test]
    fn a_file_that_is_open_for_reading_can_be_opened_for_writing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, [0; 4096]).unwrap();
        let address = Address::Path(file);
        let leaves = Leaves::default();
        let writable = LeafOptions::new(Queues::of_pipelines(1));
        let read_only = LeafOptions { read_only: true, ..writable };
        let reader = leaves.open(&address, &read_only).unwrap();
        let writer = leaves.open(&address, &writable).unwrap();
        assert!(reader.properties().read_only && !writer.properties().read_only);
        for options in [read_only, writable] {
            assert!(Arc::ptr_eq(&leaves.open(&address, &options).unwrap(), &writer));
        }
    }

    #[test]
    fn one_file_is_one_leaf_under_every_path() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        std::fs::write(&file, [0; 4096]).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let leaves = Leaves::default();
        let options = LeafOptions::new(Queues::of_pipelines(1));
        let first = leaves.open(&Address::Path(file.clone()), &options).unwrap();
        let second = leaves.open(&Address::Path(link), &options).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        drop((first, second));
        leaves.open(&Address::Path(file), &options).unwrap();
        assert_eq!(leaves.open.lock().unwrap().len(), 1);
    }
}
