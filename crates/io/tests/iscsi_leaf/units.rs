//! Units with unusual sizes and blocks, and the effect of discards and zeroes on tgt's files.

use std::os::unix::fs::MetadataExt;

use super::support::{READ, TRIM, WRITE_ZEROES, World, options};
use super::target::{Login, Target};
use super::{Leaf, MIB};

/// NBD's flag for zeroes that must keep their space.
const NO_HOLE: u16 = 1 << 1;
const EINVAL: u32 = 22;

/// Bytes that a unit's file occupies on its filesystem.
fn allocated(target: &Target, lun: u32) -> u64 {
    let file = std::fs::File::open(target.file(lun)).unwrap();
    // A filesystem may allocate blocks only when data is written back.
    file.sync_all().unwrap();
    file.metadata().unwrap().blocks() * 512
}

#[test]
#[ignore = "needs root and tgtd"]
fn discards_and_zeroes_give_the_space_up() {
    let target = Target::start(8 * MIB, &Login::Open);
    let world = World::new(1);
    let leaf = world.leaf(&target.address("", ""));
    world.device("disk", world.linear(&leaf));
    let mut client = world.connect("disk");
    let all = vec![0xa5; 8 * MIB];
    let (mib, small) = (MIB as u64, 256 << 10);
    client.write(0, &all).unwrap();
    client.flush().unwrap();
    let full = allocated(&target, 1);
    assert!(full >= 8 * mib, "{full}");
    client.call(0, TRIM, mib, 2 * MIB as u32, &[]).unwrap();
    let trimmed = allocated(&target, 1);
    assert!(full - trimmed >= 2 * mib - small, "a discard: {full}, {trimmed}");
    client.call(0, WRITE_ZEROES, 4 * mib, 2 * MIB as u32, &[]).unwrap();
    let zeroed = allocated(&target, 1);
    assert!(trimmed - zeroed >= 2 * mib - small, "zeroes: {trimmed}, {zeroed}");
    client.call(NO_HOLE, WRITE_ZEROES, 7 * mib, MIB as u32, &[]).unwrap();
    client.call(NO_HOLE, WRITE_ZEROES, mib, MIB as u32, &[]).unwrap();
    client.flush().unwrap();
    let kept = allocated(&target, 1);
    assert!(kept >= zeroed + mib - small, "zeroes that keep their space: {zeroed}, {kept}");
    let mut wanted = all;
    for zero in [1..3, 4..6, 7..8] {
        wanted[zero.start * MIB..zero.end * MIB].fill(0);
    }
    assert!(target.stored() == wanted, "nothing beside them is touched");
    for at in 0..8 {
        assert!(
            client.read(at * mib, MIB as u32).unwrap() == wanted[at as usize * MIB..][..MIB],
            "MiB {at}"
        );
    }
}

#[test]
#[ignore = "needs root and tgtd"]
fn units_of_other_blocks_and_sizes() {
    let target = Target::start(MIB, &Login::Open);
    let world = World::new(1);
    // One block; a size that is not a multiple of 4 KiB; a file that ends within a block; large
    // blocks, also with a partial block at the end of the file; and a number of blocks that needs
    // more than 32 bits.
    for (lun, bytes, block) in [
        (3, 512u64, 512u32),
        (4, MIB as u64 + 3584, 512),
        (5, 2 * MIB as u64 + 1023, 512),
        (6, 4 * MIB as u64, 4096),
        (7, MIB as u64 + 3584, 4096),
        (8, (3 << 40) + 512, 512),
    ] {
        target.unit(lun, bytes, block);
        let name = format!("unit {lun} of {bytes} bytes in blocks of {block}");
        let leaf = world.leaf(&target.address_of(lun, "", ""));
        let properties = leaf.properties();
        let whole = bytes / u64::from(block) * u64::from(block);
        assert_eq!((properties.sectors, properties.logical_block), (whole / 512, block), "{name}");
        world.device(&name, world.linear(&leaf));
        let mut client = world.connect(&name);
        let last = whole - u64::from(block);
        let data: Vec<u8> = (0..block).map(|at| (at / 7) as u8 | 1).collect();
        client.write(last, &data).unwrap();
        assert_eq!(client.read(last, block).unwrap(), data, "{name}");
        assert!(client.call(0, READ, last, 2 * block, &[]).is_err(), "{name}: behind the end");
        if block == 4096 {
            // The leaf refuses half blocks. It never reads, changes and writes back a whole block.
            for (offset, len) in [(512, 4096), (0, 512), (4096, 4608)] {
                assert_eq!(client.read(offset, len), Err(EINVAL), "{name}");
                assert_eq!(client.write(offset, &vec![1; len as usize]), Err(EINVAL), "{name}");
            }
        }
        client.flush().unwrap();
        let stored = std::fs::File::open(target.file(lun)).unwrap();
        let mut found = vec![0; block as usize];
        std::os::unix::fs::FileExt::read_exact_at(&stored, &mut found, last).unwrap();
        assert_eq!(found, data, "{name}");
        client.call(0, WRITE_ZEROES, last, block, &[]).unwrap();
        assert_eq!(client.read(last, block).unwrap(), vec![0; block as usize], "{name}");
    }
    // The file is smaller than a block.
    target.unit(9, 2048, 4096);
    let error = Leaf::open(&target.address_of(9, "", "?timeout=5").parse().unwrap(), &options());
    assert!(error.as_ref().is_err_and(|error| error.to_string().contains("/9")), "{error:?}");
}
