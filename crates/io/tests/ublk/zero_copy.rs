//! Disks without copies, and the cases that still need a copy: leaves that come with a later table,
//! boundaries within a request, and memory that a leaf's device cannot use.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use blkswitch_io::Leaf;
use blkswitch_io::export::ublk::Options;

use crate::lab::{self, BYTES, Folder, Lab, REGION, Under, run};

/// A device over three open files, and other leaves for its later tables.
struct Stage {
    lab: Lab,
    files: Vec<Arc<Leaf>>,
    memories: Vec<Arc<Leaf>>,
    nothing: Vec<Arc<Leaf>>,
}

impl Stage {
    fn new(folder: &Folder) -> Stage {
        let lab = Lab::new(1, Under::Null);
        let files = lab::leaves(lab.pool.queues(), &Under::Files(&folder.0));
        let (memories, nothing) = (
            lab::leaves(lab.pool.queues(), &Under::Memories),
            lab::leaves(lab.pool.queues(), &Under::Null),
        );
        let stage = Stage { lab, files, memories, nothing };
        stage.load(&stage.files);
        stage
    }

    /// The files, with a memory leaf in place of the second one.
    fn mixed(&self) -> Vec<Arc<Leaf>> {
        vec![self.files[0].clone(), self.memories[1].clone(), self.files[2].clone()]
    }

    fn load(&self, leaves: &[Arc<Leaf>]) {
        self.lab.device.load(lab::table_of(leaves.to_vec(), REGION, false)).unwrap();
        self.lab.device.resume().unwrap();
    }

    fn attach(&self) -> String {
        let node = self.lab.attach(None).unwrap();
        assert_eq!(node.zero_copy, lab::can_zero_copy());
        assert_eq!(self.lab.pool.ublk_node(&self.lab.device), Some(node));
        node.path()
    }
}

#[test]
fn it_is_had_where_it_pays() {
    if !lab::ready() {
        return;
    }
    let folder = Folder::new("zero-copy");
    let stage = Stage::new(&folder);
    let disk = LoopDevice::new(&folder);
    let disks = lab::leaves(stage.lab.pool.queues(), &Under::Leaf(&disk.0));
    let pays = lab::is_new_enough();
    for (leaves, zero_copy) in [
        // Through the page cache, zero copy is not worth it.
        (stage.files.clone(), false),
        (disks.clone(), pays),
        (vec![disks[0].clone(), stage.files[0].clone(), disks[0].clone()], pays),
        (vec![disks[0].clone(), stage.memories[0].clone(), disks[0].clone()], false),
        (stage.nothing.clone(), false),
    ] {
        stage.load(&leaves);
        let node = stage.lab.pool.attach_ublk(&stage.lab.device, &Options::default()).unwrap();
        assert_eq!(node.zero_copy, zero_copy, "over {}", leaves[0].name());
        stage.lab.detach();
    }
}

/// Writes different bytes everywhere, in requests that cross many regions. A third of the regions
/// is on each leaf.
#[test]
fn a_later_table_may_have_any_leaves() {
    if !lab::ready() {
        return;
    }
    let folder = Folder::new("other-leaves");
    let stage = Stage::new(&folder);
    let disk = lab::open_direct(&stage.attach());
    let mut random = 1u64;
    let (mut written, mut read) = (lab::Memory::new(384 << 10), lab::Memory::new(384 << 10));
    for leaves in [
        &stage.files,
        &stage.mixed(),
        &stage.memories,
        &stage.mixed(),
        &stage.nothing,
        &stage.files,
    ] {
        stage.load(leaves);
        for word in written.bytes().chunks_exact_mut(8) {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&random.to_le_bytes());
        }
        disk.write_all_at(written.bytes(), 4096).unwrap();
        read.bytes().fill(0xee);
        disk.read_exact_at(read.bytes(), 4096).unwrap();
        if Arc::ptr_eq(&leaves[0], &stage.nothing[0]) {
            assert!(read.bytes().iter().all(|byte| *byte == 0), "nothing reads as zeroes");
        } else {
            assert!(read.bytes() == written.bytes());
        }
    }
    // Read what the leaves hold, whichever way the data was written.
    stage.load(&stage.memories);
    disk.read_exact_at(read.bytes(), 4096).unwrap();
    let region = REGION as usize * 512;
    let differ = (0..384 << 10)
        .filter(|at| read.bytes()[*at] != written.bytes()[*at])
        .map(|at| (at + 4096) / region % 3);
    let paths: std::collections::BTreeSet<usize> = differ.collect();
    assert_eq!(paths, [0, 1, 2].into(), "memories and files are not the same");
    drop(disk);
    stage.lab.detach();
}

#[test]
fn leaves_of_both_kinds_serve_one_request_under_io() {
    if !lab::ready() {
        return;
    }
    let folder = Folder::new("both-kinds");
    let stage = Stage::new(&folder);
    let node = stage.attach();
    stage.load(&stage.mixed());
    lab::verify_while(&node, 4, |rounds| {
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            let before = rounds.load(Ordering::Relaxed);
            while rounds.load(Ordering::Relaxed) < before + 20 {
                std::thread::sleep(Duration::from_millis(1));
            }
            stage.lab.device.suspend().unwrap();
            stage.load(&stage.mixed());
        }
    });
    let table = stage.lab.device.live().unwrap();
    // The counters belong to the last table, which served the final reads.
    assert!((0..3).all(|path| table.path_totals(path).reads > 0));
    drop(table);
    stage.lab.detach();
}

/// A loop device with O_DIRECT needs memory that is aligned to sectors. The disk accepts less
/// alignment from its users, and the daemon makes up for it.
#[test]
fn memory_that_the_device_below_cannot_use_is_copied() {
    if !lab::ready() {
        return;
    }
    let folder = Folder::new("alignment");
    let below = LoopDevice::new(&folder);
    {
        let lab = Lab::new(1, Under::Leaf(&below.0));
        let node = lab.attach(None).unwrap();
        assert_eq!(node.zero_copy, lab::can_zero_copy());
        let disk = lab::open_direct(&node.path());
        let mut memory = lab::Memory::new(64 << 10);
        for shift in [0, 512, 4, 8] {
            let data = &mut memory.bytes()[shift..][..32 << 10];
            data.fill(shift as u8 + 1);
            // The block layer may refuse such memory. If it accepts it, the data must be right.
            if disk.write_all_at(data, 64 << 10).is_err() {
                println!("the block layer takes no memory {shift} bytes off");
                continue;
            }
            data.fill(0);
            disk.read_exact_at(data, 64 << 10).unwrap();
            assert!(data.iter().all(|byte| *byte == shift as u8 + 1), "{shift} bytes off");
        }
        drop(disk);
        lab.detach();
    }
}

/// A loop device, detached when dropped.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn new(folder: &Folder) -> LoopDevice {
        run("modprobe", &["loop"]);
        let file = folder.0.join("below");
        std::fs::File::create(&file).unwrap().set_len(BYTES).unwrap();
        LoopDevice(run("losetup", &["--find", "--show", file.to_str().unwrap()]).trim().into())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        run("losetup", &["--detach", self.0.to_str().unwrap()]);
    }
}
