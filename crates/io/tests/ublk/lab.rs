//! Shared by the tests of the ublk export: a pool with one switch device, programs to run, and a
//! writer that verifies what it reads.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use blkswitch_core::switch::geometry::Geometry;
use blkswitch_core::switch::regions::Map;
use blkswitch_io::export::ublk::{Node, Options, UblkError};
use blkswitch_io::table::region_storage;
use blkswitch_io::{
    Device, Leaf, LeafError, LeafOptions, Pool, PoolOptions, Queues, Table, TableBuilder, Target,
    To, core as blkswitch_core,
};

/// The environment variable that makes the disks copy data, whatever the kernel can do.
const COPY: &str = "BLKSWITCH_UBLK_TEST_COPY";
/// Size of the device in bytes.
pub(crate) const BYTES: u64 = 96 << 20;
/// Default region size in sectors. It is not a power of two, so that boundaries fall everywhere.
pub(crate) const REGION: u32 = 24;

/// Whether the tests can run. Prints the reason if not.
pub(crate) fn ready() -> bool {
    let ready = Lab::has_driver();
    if !ready {
        println!(
            "skipped: no ublk driver here (cargo xtask system-test ublk-export runs this in a guest)"
        );
    }
    ready
}

/// Whether disks work without copies. If the kernel can do so, all disks do, so that every leaf is
/// tested with it.
fn zero_copy() -> bool {
    std::env::var_os(COPY).is_none()
}

/// Whether the kernel can work without copies, so that a wrong fallback is noticed. Linux 6.16 and
/// later can.
pub(crate) fn can_zero_copy() -> bool {
    is_new_enough() && zero_copy()
}

pub(crate) fn is_new_enough() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-', '+']).map(|number| number.parse().unwrap_or(0u32));
    let version = (numbers.next(), numbers.next());
    version >= (Some(6), Some(16))
}

/// The leaves below the switch, for three paths.
pub(crate) enum Under<'a> {
    /// Null leaves, which store nothing.
    Null,
    /// Three memory leaves, a third of the regions on each.
    Memories,
    /// One memory leaf under all paths, so that every map shows the same data.
    OneMemory,
    /// Three files in this folder, created if missing.
    Files(&'a Path),
    /// The file or device at this path, under all paths.
    Leaf(&'a Path),
}

/// A pool and a device with a live switch table of three paths.
pub(crate) struct Lab {
    pub(crate) pool: Pool,
    pub(crate) device: Arc<Device>,
}

impl Lab {
    pub(crate) fn has_driver() -> bool {
        Path::new("/dev/ublk-control").exists()
    }

    pub(crate) fn new(queues: usize, under: Under<'_>) -> Lab {
        Lab::with_regions(queues, under, REGION)
    }

    pub(crate) fn with_regions(queues: usize, under: Under<'_>, region: u32) -> Lab {
        let pool = Pool::start(PoolOptions { queues, ..PoolOptions::default() }).unwrap();
        let device = pool.registry().create("switch", "", None).unwrap();
        device.load(table(pool.queues(), &under, region, false)).unwrap();
        device.resume().unwrap();
        Lab { pool, device }
    }

    pub(crate) fn attach(&self, queues: Option<u16>) -> Result<Node, UblkError> {
        attach(&self.pool, &self.device, queues)
    }

    pub(crate) fn detach(&self) {
        self.pool.detach_ublk(&self.device, false).unwrap();
    }
}

/// Attaches a device as a ublk disk.
pub(crate) fn attach(
    pool: &Pool,
    device: &Arc<Device>,
    queues: Option<u16>,
) -> Result<Node, UblkError> {
    let options = Options { queues, depth: Some(32), zero_copy: Some(zero_copy()) };
    let node = pool.attach_ublk(device, &options)?;
    settle(&node);
    Ok(node)
}

/// Newer kernels (7.3 is one) look for partitions after the start has returned. Until then the disk
/// is in use, and if the server died it would stay so.
fn settle(node: &Node) {
    const BLKRRPART: libc::c_ulong = 0x125f;
    let disk = File::open(node.path()).unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    // SAFETY: an ioctl without an argument, on a descriptor of this process.
    while unsafe { libc::ioctl(disk.as_raw_fd(), BLKRRPART) } != 0 {
        assert!(Instant::now() < until, "no end of it: {}", std::io::Error::last_os_error());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A switch table with three paths.
pub(crate) fn table(queues: Queues, under: &Under<'_>, region: u32, read_only: bool) -> Table {
    table_of(leaves(queues, under), region, read_only)
}

/// A table with one leaf.
pub(crate) fn linear(leaf: &Arc<Leaf>) -> Table {
    let mut table = TableBuilder::new(false);
    let below = table.leaf(leaf.clone());
    table.push(BYTES / 512, Target::Linear(To { below, offset: 0 }));
    table.build().unwrap()
}

/// Opens the three leaves.
pub(crate) fn leaves(queues: Queues, under: &Under<'_>) -> Vec<Arc<Leaf>> {
    match under {
        Under::Null => (0..3).map(|_| open(&format!("null:{BYTES}"), queues)).collect(),
        Under::Memories => (0..3).map(|_| open(&format!("mem:{BYTES}"), queues)).collect(),
        Under::OneMemory => vec![open(&format!("mem:{BYTES}"), queues); 3],
        Under::Files(folder) => {
            (0..3).map(|n| open(&format!("{}/leaf{n}", folder.display()), queues)).collect()
        }
        Under::Leaf(path) => vec![open(&path.display().to_string(), queues); 3],
    }
}

/// A switch table over these leaves.
pub(crate) fn table_of(leaves: Vec<Arc<Leaf>>, region: u32, read_only: bool) -> Table {
    let mut table = TableBuilder::new(read_only);
    let paths: Box<[To]> =
        leaves.into_iter().map(|leaf| To { below: table.leaf(leaf), offset: 0 }).collect();
    let geometry = Geometry::new(BYTES / 512, 3, region).unwrap();
    let map = Map::new(geometry, region_storage(&geometry).unwrap()).unwrap();
    table.push(BYTES / 512, Target::Switch { map, paths });
    table.build().unwrap()
}

fn open(address: &str, queues: Queues) -> Arc<Leaf> {
    let options = LeafOptions { make_bytes: Some(BYTES), ..LeafOptions::new(queues) };
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        match Leaf::open(&address.parse().unwrap(), &options) {
            // The server that has just died may still hold the file's lock.
            Err(LeafError::Busy(_)) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(5))
            }
            leaf => return leaf.unwrap(),
        }
    }
}

/// Runs a program that must succeed. Returns its output.
pub(crate) fn run(program: &str, words: &[&str]) -> String {
    let output =
        Command::new(program).args(words).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{program} {words:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// Reads a limit of the disk's queue from sysfs.
pub(crate) fn limit(node: &Node, name: &str) -> String {
    let path = format!("/sys/block/ublkb{}/queue/{name}", node.id);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}")).trim().to_string()
}

/// An empty folder that is removed in the end.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("ublk-test-{name}"));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Gives up root in this thread only; the C library's function would change all threads.
pub(crate) fn drop_root() {
    // SAFETY: a system call with integers.
    let result = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
    assert_eq!(result, 0);
}

/// Block size of the writer in bytes: aligned for O_DIRECT, and sometimes across a region boundary.
const BLOCK: usize = 8192;

/// One block of memory that is aligned for O_DIRECT.
#[repr(C, align(4096))]
struct Aligned([u8; BLOCK]);

/// Memory of any length that is aligned for O_DIRECT.
pub(crate) struct Memory(Vec<Aligned>, usize);

impl Memory {
    pub(crate) fn new(bytes: usize) -> Memory {
        Memory((0..bytes.div_ceil(BLOCK)).map(|_| Aligned([0; BLOCK])).collect(), bytes)
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the blocks are contiguous, have at least this many bytes, and any bits are valid
        // bytes.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.1) }
    }
}

/// Opens a disk with O_DIRECT.
pub(crate) fn open_direct(node: &str) -> File {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(node).unwrap()
}

/// Runs `during` while several threads write and read random blocks of a disk with O_DIRECT. Each
/// thread has its own blocks. Every acknowledged write must be found, whatever `during` does to the
/// device.
pub(crate) fn verify_while<T>(node: &str, threads: u64, during: impl FnOnce(&AtomicU64) -> T) -> T {
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                let (stop, rounds) = (&stop, &rounds);
                scope.spawn(move || verify(node, worker, threads, stop, rounds))
            })
            .collect();
        // If a worker panicked, its message says more than the failure of `during`.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| during(&rounds)));
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            worker.join().unwrap();
        }
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn verify(node: &str, worker: u64, workers: u64, stop: &AtomicBool, rounds: &AtomicU64) {
    let disk = open_direct(node);
    let blocks = BYTES / BLOCK as u64 / workers;
    // The last acknowledged generation of each block; 0 means never written.
    let mut known = vec![0u64; blocks as usize];
    let mut data = Box::new(Aligned([0; BLOCK]));
    let mut random = worker + 1;
    while !stop.load(Ordering::Relaxed) {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let block = (random >> 33) % blocks;
        let at = (block * workers + worker) * BLOCK as u64;
        if known[block as usize] > 0 && random >> 62 == 0 {
            check(&disk, at, known[block as usize], &mut data);
        } else {
            let generation = known[block as usize] + 1;
            stamp(&mut data.0, at, generation);
            disk.write_all_at(&data.0, at).unwrap_or_else(|e| panic!("write at {at}: {e}"));
            known[block as usize] = generation;
        }
        rounds.fetch_add(1, Ordering::Relaxed);
    }
    for (block, generation) in known.iter().enumerate().filter(|(_, generation)| **generation > 0) {
        check(&disk, (block as u64 * workers + worker) * BLOCK as u64, *generation, &mut data);
    }
}

/// Fills the data with words that name their position and the write.
fn stamp(data: &mut [u8], at: u64, generation: u64) {
    for (n, word) in data.chunks_exact_mut(16).enumerate() {
        word[..8].copy_from_slice(&(at + n as u64 * 16).to_le_bytes());
        word[8..].copy_from_slice(&generation.to_le_bytes());
    }
}

fn check(disk: &File, at: u64, generation: u64, data: &mut Aligned) {
    disk.read_exact_at(&mut data.0, at).unwrap_or_else(|e| panic!("read at {at}: {e}"));
    let mut expected = [0; BLOCK];
    stamp(&mut expected, at, generation);
    if let Some(wrong) = data.0.iter().zip(&expected).position(|(is, should)| is != should) {
        let word = &data.0[wrong / 16 * 16..][..16];
        panic!(
            "block at {at}: generation {generation} was acknowledged; from byte {wrong} it has {word:x?}"
        );
    }
}

/// Sends an ioctl with a range, such as BLKDISCARD or BLKZEROOUT.
pub(crate) fn range_ioctl(disk: &File, number: libc::c_ulong, offset: u64, len: u64) {
    let range = [offset, len];
    // SAFETY: the kernel reads two integers, which are alive.
    let result = unsafe { libc::ioctl(disk.as_raw_fd(), number, range.as_ptr()) };
    assert_eq!(result, 0, "ioctl {number:#x}: {}", std::io::Error::last_os_error());
}
