//! Uses a disk like any other: limits, filesystems, partitions, other devices on it.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use blkswitch_io::{Pool, PoolOptions};

use crate::lab::{self, BYTES, Folder, Lab, REGION, Under, limit, run};

const BLKDISCARD: libc::c_ulong = 0x1277;
const BLKZEROOUT: libc::c_ulong = 0x127f;

#[test]
fn the_block_layer_is_told_the_truth() {
    if !lab::ready() {
        return;
    }
    // 24 sectors and 15 MiB are not powers of two. Boundaries at every sector are more than the
    // block layer can respect.
    for (region, chunk) in [(REGION, "24"), (30720, "30720"), (1, "0")] {
        let lab = Lab::with_regions(2, Under::Memories, region);
        let node = lab.attach(None).unwrap();
        let expected = [
            ("chunk_sectors", chunk),
            ("logical_block_size", "512"),
            ("physical_block_size", "4096"),
            ("max_hw_sectors_kb", "512"),
            ("discard_granularity", "4096"),
            ("discard_max_hw_bytes", "1073741824"),
            ("write_zeroes_max_bytes", "1073741824"),
            ("rotational", "0"),
            ("write_cache", "write back"),
            ("fua", "1"),
        ];
        for (name, value) in expected {
            assert_eq!(limit(&node, name), value, "{name} with regions of {region}");
        }
        assert_eq!(
            run("blockdev", &["--getsize64", "--getro", &node.path()]),
            format!("{BYTES}\n0\n")
        );
        assert_eq!(lab.pool.ublk_node(&lab.device), Some(node));
        assert_eq!(lab.device.info().opens, 1);
        lab.detach();
        assert_eq!(lab.pool.ublk_node(&lab.device), None);
        assert_eq!(lab.device.info().opens, 0);
        assert!(!std::path::Path::new(&node.path()).exists());
    }
    let lab = Lab::new(1, Under::Memories);
    lab.device.load(lab::table(lab.pool.queues(), &Under::Memories, REGION, true)).unwrap();
    lab.device.resume().unwrap();
    let node = lab.attach(None).unwrap();
    assert_eq!(run("blockdev", &["--getro", &node.path()]), "1\n");
    let disk = OpenOptions::new().write(true).open(node.path());
    assert!(
        disk.and_then(|disk| disk.write_all_at(&[0; 512], 0)).is_err(),
        "a read-only table takes no writes"
    );
}

#[test]
fn requests_of_every_kind_reach_the_leaves() {
    if !lab::ready() {
        return;
    }
    let files = Folder::new("kinds");
    let lab = Lab::new(1, Under::Files(&files.0));
    let node = lab.attach(None).unwrap();
    let table = lab.device.live().unwrap();
    let counted = |of: fn(&blkswitch_io::stats::Totals) -> u64| -> u64 {
        (0..3).map(|path| of(&table.path_totals(path))).sum()
    };
    let disk = lab::open_direct(&node.path());
    // Newly opened files count as written to. Flush that first.
    disk.sync_all().unwrap();
    let flushes = counted(|t| t.flushes);
    let sync = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DIRECT | libc::O_DSYNC)
        .open(node.path());
    let data = AlignedMegabyte::new(0x5a);
    sync.unwrap().write_all_at(data.bytes(), 0).unwrap();
    assert_eq!(
        counted(|t| t.flushes),
        flushes,
        "FUA goes with the writes: the file leaf needs no flush"
    );
    disk.write_all_at(data.bytes(), 2 << 20).unwrap();
    disk.sync_all().unwrap();
    let each: Vec<u64> = (0..3).map(|path| table.path_totals(path).flushes).collect();
    assert!(
        each.iter().all(|flushes| *flushes > 0),
        "an fsync flushes every leaf written to: {each:?}"
    );
    let flushes = counted(|t| t.flushes);
    disk.sync_all().unwrap();
    assert_eq!(counted(|t| t.flushes), flushes, "nothing was written since: nothing is flushed");
    lab::range_ioctl(&disk, BLKDISCARD, 0, 1 << 20);
    assert!(counted(|t| t.discards) >= 3);
    lab::range_ioctl(&disk, BLKZEROOUT, 2 << 20, 1 << 20);
    assert!(counted(|t| t.zeroes) >= 3);
    let mut read = AlignedMegabyte::new(0xff);
    for at in [0, 2 << 20] {
        disk.read_exact_at(read.bytes_mut(), at).unwrap();
        assert!(
            read.bytes().iter().all(|byte| *byte == 0),
            "a file reads as zeroes where it was discarded"
        );
    }
    let left = || -> u64 { (0..3).map(|n| allocated(&files.0.join(format!("leaf{n}")))).sum() };
    assert!(
        (1 << 20..(1 << 20) + (64 << 10)).contains(&left()),
        "BLKZEROOUT keeps the space: {}",
        left()
    );
    let hole = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: a system call with integers, on a descriptor of this process.
    assert_eq!(unsafe { libc::fallocate(disk.as_raw_fd(), hole, 2 << 20, 1 << 20) }, 0);
    assert!(left() < 64 << 10, "a hole frees it: {} bytes are left", left());
    drop(disk);
    lab.detach();
}

fn allocated(path: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// A mebibyte of memory that is aligned for O_DIRECT.
struct AlignedMegabyte(Vec<u8>, usize);

impl AlignedMegabyte {
    fn new(byte: u8) -> AlignedMegabyte {
        let memory = vec![byte; (1 << 20) + 4096];
        let at = memory.as_ptr().align_offset(4096);
        AlignedMegabyte(memory, at)
    }

    fn bytes(&self) -> &[u8] {
        &self.0[self.1..][..1 << 20]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0[self.1..][..1 << 20]
    }
}

#[test]
fn a_filesystem_lives_on_it() {
    if !lab::ready() {
        return;
    }
    run("modprobe", &["ext4"]);
    for queues in [1, 2, 4] {
        let files = Folder::new("filesystem");
        let lab = Lab::new(queues, Under::Files(&files.0));
        let node = lab.attach(Some(queues as u16)).unwrap();
        // The kernel makes at most one hardware queue per processor.
        let processors = std::thread::available_parallelism().unwrap().get();
        assert_eq!(usize::from(node.queues), queues.min(processors));
        run("mkfs.ext4", &["-q", "-F", &node.path()]);
        let at = Folder::new("mount");
        let mount = at.0.to_str().unwrap();
        run("mount", &[&node.path(), mount]);
        let content = |n: usize| -> Vec<u8> {
            (0..n * 7919 % (1 << 20)).map(|byte| (byte.wrapping_mul(n + 3) >> 3) as u8).collect()
        };
        for n in 0..60 {
            let mut file = std::fs::File::create(at.0.join(n.to_string())).unwrap();
            file.write_all(&content(n)).unwrap();
            if n % 8 == 0 {
                file.sync_all().unwrap();
            }
        }
        run("umount", &[mount]);
        run("fsck.ext4", &["-f", "-n", &node.path()]);
        run("mount", &[&node.path(), mount]);
        for n in 0..60 {
            assert!(
                std::fs::read(at.0.join(n.to_string())).unwrap() == content(n),
                "file {n}, {queues} queues"
            );
        }
        (0..60)
            .filter(|n| n % 2 == 0)
            .for_each(|n| std::fs::remove_file(at.0.join(n.to_string())).unwrap());
        let table = lab.device.live().unwrap();
        let discards = |path| table.path_totals(path).discards;
        let before: Vec<u64> = (0..3).map(discards).collect();
        run("fstrim", &[mount]);
        assert!(
            (0..3).all(|path| discards(path) > before[path as usize]),
            "a trim reaches every leaf"
        );
        assert!(
            (0..3)
                .map(|path| table.path_totals(path))
                .all(|totals| totals.writes > 0 && totals.reads > 0)
        );
        run("umount", &[mount]);
        run("fsck.ext4", &["-f", "-n", &node.path()]);
        run("blkdiscard", &[&node.path()]);
        lab.detach();
    }
}

#[test]
fn remaps_and_reloads_go_on_under_io() {
    if !lab::ready() {
        return;
    }
    let lab = Lab::new(2, Under::OneMemory);
    let node = lab.attach(None).unwrap();
    let table = lab.device.live().unwrap();
    let leaf = table.leaves()[0].clone();
    lab::verify_while(&node.path(), 4, |rounds| {
        let until = Instant::now() + Duration::from_secs(8);
        let (mut region, mut turns) = (0u64, 0u32);
        // On a slow machine, go on until both counts are large enough.
        while Instant::now() < until || turns <= 64 || rounds.load(Ordering::Relaxed) <= 100 {
            let messenger = lab.device.messenger(0).unwrap();
            let geometry = *messenger.map().unwrap().geometry();
            for _ in 0..1000 {
                region = (region * 31 + 7) % geometry.nr_regions();
                assert!(messenger.writer().unwrap().set(region, (region % 3) as u32));
            }
            drop(messenger);
            turns += 1;
            if turns.is_multiple_of(16) {
                lab.device.suspend().unwrap();
                let before = rounds.load(Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
                // Each worker may have had one answer on its way.
                assert!(
                    rounds.load(Ordering::Relaxed) - before <= 4,
                    "nothing is served while it is suspended"
                );
                if turns.is_multiple_of(32) {
                    lab.device.load(reloaded(&leaf)).unwrap();
                }
                lab.device.resume().unwrap();
            }
        }
    });
    assert!((0..3).all(|path| table.path_totals(path).writes > 0), "every path was used");
    lab.detach();
}

/// A table over the same memory with other regions.
fn reloaded(leaf: &std::sync::Arc<blkswitch_io::Leaf>) -> blkswitch_io::Table {
    use blkswitch_io::core::switch::{geometry::Geometry, regions::Map};
    use blkswitch_io::{TableBuilder, Target, To, table::region_storage};
    let mut table = TableBuilder::new(false);
    let paths = [To { below: table.leaf(leaf.clone()), offset: 0 }; 3];
    let geometry = Geometry::new(BYTES / 512, 3, 40).unwrap();
    let map = Map::new(geometry, region_storage(&geometry).unwrap()).unwrap();
    table.push(BYTES / 512, Target::Switch { map, paths: paths.into() });
    table.build().unwrap()
}

#[test]
fn partitions_and_other_devices_stand_on_it() {
    if !lab::ready() {
        return;
    }
    run("modprobe", &["dm_mod"]);
    let lab = Lab::new(2, Under::Memories);
    let node = lab.attach(None).unwrap();
    let disk = OpenOptions::new().read(true).write(true).open(node.path()).unwrap();
    // A partition table with one entry: type Linux, from sector 2048 on, 4096 sectors.
    let mut mbr = [0; 512];
    mbr[446 + 4] = 0x83;
    mbr[446 + 8..446 + 12].copy_from_slice(&2048u32.to_le_bytes());
    mbr[446 + 12..446 + 16].copy_from_slice(&4096u32.to_le_bytes());
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    disk.write_all_at(&mbr, 0).unwrap();
    disk.sync_all().unwrap();
    drop(disk);
    run("blockdev", &["--rereadpt", &node.path()]);
    let part = format!("{}p1", node.path());
    assert_eq!(run("blockdev", &["--getsize64", &part]), "2097152\n");
    run(
        "dmsetup",
        &["create", "on-ublk", "--table", &format!("0 8192 linear {} 4096", node.path())],
    );
    let error = lab.pool.detach_ublk(&lab.device, false).unwrap_err().to_string();
    assert!(error.contains("is in use"), "{error}");
    let dm = OpenOptions::new().read(true).write(true).open("/dev/mapper/on-ublk").unwrap();
    dm.write_all_at(b"through dm-linear", 4096).unwrap();
    dm.sync_all().unwrap();
    drop(dm);
    run("dmsetup", &["remove", "on-ublk"]);
    let disk = OpenOptions::new().read(true).open(node.path()).unwrap();
    let mut read = [0; 17];
    disk.read_exact_at(&mut read, (4096 + 8) * 512).unwrap();
    assert_eq!(&read, b"through dm-linear");
    drop(disk);
    lab.detach();
}

/// The kernel's dm-switch over three ublk disks: the bytes of each region are in the leaf that the
/// kernel's map names.
#[test]
fn the_kernels_own_switch_stands_on_three_disks() {
    if !lab::ready() {
        return;
    }
    const REGIONS: usize = 16;
    const BYTES_OF_REGION: usize = REGION as usize * 512;
    run("modprobe", &["dm_switch"]);
    let files = Folder::new("kernels-switch");
    let pool = Pool::start(PoolOptions { queues: 2, ..PoolOptions::default() }).unwrap();
    let disks: Vec<_> = lab::leaves(pool.queues(), &Under::Files(&files.0))
        .iter()
        .enumerate()
        .map(|(n, leaf)| {
            let device = pool.registry().create(&format!("disk{n}"), "", None).unwrap();
            device.load(lab::linear(leaf)).unwrap();
            device.resume().unwrap();
            let node = lab::attach(&pool, &device, None).unwrap();
            (device, node.path())
        })
        .collect();
    let paths: String = disks.iter().map(|(_, node)| format!(" {node} 0")).collect();
    run(
        "dmsetup",
        &["create", "kernels", "--table", &format!("0 {} switch 3 {REGION} 0{paths}", BYTES / 512)],
    );
    let remap = |words: &str| {
        run("dmsetup", &["message", "kernels", "0", &format!("set_region_mappings {words}")]);
    };
    let dm = lab::open_direct("/dev/mapper/kernels");
    let write = |first: usize, regions: usize, byte: usize| {
        let mut data = lab::Memory::new(regions * BYTES_OF_REGION);
        for (n, region) in data.bytes().chunks_mut(BYTES_OF_REGION).enumerate() {
            region.fill((byte + n) as u8);
        }
        dm.write_all_at(data.bytes(), (first * BYTES_OF_REGION) as u64).unwrap();
        let mut read = lab::Memory::new(regions * BYTES_OF_REGION);
        dm.read_exact_at(read.bytes(), (first * BYTES_OF_REGION) as u64).unwrap();
        assert!(read.bytes() == data.bytes(), "{regions} regions from {first} read back");
    };
    // One byte of every region of every leaf.
    let landed = || -> Vec<Vec<u8>> {
        let leaf = |n| std::fs::read(files.0.join(format!("leaf{n}"))).unwrap();
        let bytes = |leaf: Vec<u8>| {
            leaf.chunks(BYTES_OF_REGION)
                .take(REGIONS)
                .map(|region| {
                    assert!(region.iter().all(|byte| *byte == region[0]), "a region in two leaves");
                    region[0]
                })
                .collect()
        };
        (0..3).map(leaf).map(bytes).collect()
    };
    remap("0:2 :2 :1 :0 R1,4");
    write(0, REGIONS, 1);
    let map = [2, 2, 1, 0, 0, 0, 0, 0, 2, 0, 1, 2, 0, 1, 2, 0];
    let mut expected = vec![vec![0; REGIONS]; 3];
    map.iter()
        .enumerate()
        .for_each(|(region, path)| expected[*path as usize][region] = region as u8 + 1);
    assert_eq!(landed(), expected);
    // The next write goes to another owner. The last owner keeps its old data.
    remap("0:1 8:0");
    write(0, 1, 0x70);
    write(8, 1, 0x78);
    (expected[1][0], expected[0][8]) = (0x70, 0x78);
    assert_eq!(landed(), expected);
    drop(dm);
    run("dmsetup", &["remove", "kernels"]);
    disks.iter().for_each(|(device, _)| pool.detach_ublk(device, false).unwrap());
}

/// No udev tells LVM about disks here, and LVM must be told that ublk disks are disks.
const LVM: &str = "devices { types=[\"ublkb\", 16] use_devicesfile=0 obtain_device_list_from_udev=0 }\
    activation { udev_sync=0 udev_rules=0 verify_udev_operations=0 monitoring=0 }";

#[test]
fn lvm_and_a_virtual_machines_block_layer_use_it() {
    if !lab::ready() {
        return;
    }
    run("modprobe", &["dm_mod"]);
    run("modprobe", &["ext4"]);
    let lab = Lab::new(2, Under::Memories);
    let node = lab.attach(None).unwrap();
    let (path, mapped) = (node.path(), "/dev/mapper/blkswitch_group-volume");
    run("pvcreate", &["--config", LVM, "--yes", &path]);
    run("vgcreate", &["--config", LVM, "blkswitch_group", &path]);
    run(
        "lvcreate",
        &["--config", LVM, "--yes", "--size", "32m", "--name", "volume", "blkswitch_group"],
    );
    run("mkfs.ext4", &["-q", mapped]);
    let at = Folder::new("volume");
    run("mount", &[mapped, at.0.to_str().unwrap()]);
    std::fs::write(at.0.join("file"), b"on a logical volume").unwrap();
    run("umount", &[at.0.to_str().unwrap()]);
    run("vgchange", &["--config", LVM, "--activate", "n", "blkswitch_group"]);
    // LVM finds the volume again from the metadata on the disk alone.
    run("vgchange", &["--config", LVM, "--activate", "y", "blkswitch_group"]);
    run("fsck.ext4", &["-f", "-n", mapped]);
    run("mount", &[mapped, at.0.to_str().unwrap()]);
    assert_eq!(std::fs::read(at.0.join("file")).unwrap(), b"on a logical volume");
    run("umount", &[at.0.to_str().unwrap()]);
    run("vgremove", &["--config", LVM, "--force", "--yes", "blkswitch_group"]);

    let qemu = |command: &str| {
        run("qemu-io", &["-f", "raw", "-t", "none", "-i", "native", "-c", command, &path])
    };
    qemu("write -P 0x5a 1M 192k");
    let read = qemu("read -P 0x5a 1M 192k");
    assert!(read.contains("read 196608/196608 bytes") && !read.contains("failed"), "{read}");
    lab.detach();
}
