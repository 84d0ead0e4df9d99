//! The parameters of a table for the block layer: sizes, boundaries, abilities. Pure.

use super::abi::{BasicParams, DiscardParams, UblkParams, param};
use crate::device::table::{Table, Target};

/// Logical block sizes in bytes that the driver accepts: from a sector to a page.
const LOGICAL_BLOCK_BYTES: std::ops::RangeInclusive<u32> = 512..=4096;
/// Largest discard or write-zeroes of one request, in sectors. A large device needs few requests,
/// and each is still limited work.
const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// Smallest boundary that is announced, in sectors. The block layer must be able to send a page as
/// one request.
const MIN_CHUNK_SECTORS: u64 = 8;

/// The parameters of a device with `table`, for requests of at most `max_io_bytes`. `None` if the
/// driver does not accept the logical block size, or if the device is smaller than one block.
pub(super) fn params(table: &Table, max_io_bytes: u32) -> Option<UblkParams> {
    let logical = table.logical_block();
    if !LOGICAL_BLOCK_BYTES.contains(&logical) || !logical.is_power_of_two() {
        return None;
    }
    let physical = table.physical_block().max(logical).next_power_of_two();
    let sectors_per_block = u64::from(logical / 512);
    let dev_sectors = table.len() / sectors_per_block * sectors_per_block;
    let flags = [
        (table.read_only(), param::ATTR_READ_ONLY),
        (table.rotational(), param::ATTR_ROTATIONAL),
        // Announced always, because a table after a reload may need it, and then it cannot be
        // changed any more.
        (true, param::ATTR_VOLATILE_CACHE | param::ATTR_FUA),
    ];
    let basic = BasicParams {
        attrs: flags.into_iter().filter(|(is, _)| *is).fold(0, |attrs, (_, flag)| attrs | flag),
        logical_bs_shift: logical.ilog2() as u8,
        physical_bs_shift: physical.ilog2() as u8,
        io_opt_shift: physical.ilog2() as u8,
        io_min_shift: physical.ilog2() as u8,
        max_sectors: max_io_bytes / 512,
        chunk_sectors: chunk_sectors(table, sectors_per_block),
        dev_sectors,
        virt_boundary_mask: 0,
    };
    let discard = DiscardParams {
        discard_alignment: 0,
        discard_granularity: physical,
        // Zeroing is always possible, by writing zeroes.
        max_discard_sectors: if table.can_discard() { MAX_DISCARD_SECTORS } else { 0 },
        max_write_zeroes_sectors: MAX_DISCARD_SECTORS,
        max_discard_segments: 1,
        reserved0: 0,
    };
    let types = param::TYPE_BASIC | param::TYPE_DISCARD;
    (dev_sectors > 0).then_some(UblkParams {
        len: size_of::<UblkParams>() as u32,
        types,
        basic,
        discard,
        pad: 0,
    })
}

/// The distance in sectors of the boundaries at which requests are split anyway. 0 if there are
/// none, or if the block layer cannot use them. It need not be a power of two (Linux 5.10 and
/// later).
fn chunk_sectors(table: &Table, sectors_per_block: u64) -> u32 {
    let [segment] = table.segments() else { return 0 };
    let chunk = match &segment.target {
        Target::Switch { map, .. } => u64::from(map.geometry().region_size()),
        Target::Striped { chunk, .. } => *chunk,
        Target::Linear(_) | Target::Multipath { .. } | Target::Error | Target::Zero => 0,
    };
    let usable = chunk >= MIN_CHUNK_SECTORS && chunk.is_multiple_of(sectors_per_block);
    if usable { u32::try_from(chunk).unwrap_or(0) } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::device::table::{TableBuilder, To, region_storage};
    use crate::engine::Properties;
    use crate::leaf::open_engine;
    use crate::leaf::{Leaf, LeafOptions};
    use crate::queues::Queues;
    use blkswitch_core::switch::geometry::Geometry;
    use blkswitch_core::switch::regions::Map;

    fn open(address: &str) -> Arc<Leaf> {
        Leaf::open(&address.parse().unwrap(), &LeafOptions::new(Queues::of_new_owner(1))).unwrap()
    }

    fn switch(len: u64, region_size: u32, read_only: bool) -> Table {
        over(open("mem:1M"), len, region_size, read_only)
    }

    fn over(leaf: Arc<Leaf>, len: u64, region_size: u32, read_only: bool) -> Table {
        let mut table = TableBuilder::new(read_only);
        let paths = [To { below: table.leaf(leaf), offset: 0 }; 2];
        let geometry = Geometry::new(len, 2, region_size).unwrap();
        let map = Map::new(geometry, region_storage(&geometry).unwrap()).unwrap();
        table.push(len, Target::Switch { map, paths: paths.into() });
        // Unchecked, because a device below may have changed its block size since.
        table.build_unchecked()
    }

    #[test]
    fn a_switch_announces_its_regions() {
        // Regions of 15 MiB are not a power of two. Regions below a page are not a boundary that
        // the block layer can use.
        for (region_size, chunk) in [(8, 8), (24, 24), (30720, 30720), (1, 0), (4, 0)] {
            let params = params(&switch(2048, region_size, false), 512 << 10).unwrap();
            assert_eq!(params.basic.chunk_sectors, chunk, "regions of {region_size} sectors");
            assert_eq!(params.basic.dev_sectors, 2048);
            assert_eq!(params.basic.max_sectors, 1024);
            assert_eq!((params.basic.logical_bs_shift, params.basic.physical_bs_shift), (9, 12));
        }
    }

    #[test]
    fn attributes_are_those_of_the_table() {
        let attrs = |read_only| params(&switch(64, 8, read_only), 4096).unwrap().basic.attrs;
        let cache = param::ATTR_VOLATILE_CACHE | param::ATTR_FUA;
        assert_eq!(attrs(false), cache);
        assert_eq!(attrs(true), cache | param::ATTR_READ_ONLY);
    }

    #[test]
    fn blocks_of_4096_bytes_below_are_blocks_of_the_disk() {
        let below = |len, region_size| over(open("sim:1M,block=4096"), len, region_size, false);
        // The end that does not fill a block is left out, and regions that cut blocks are not a
        // boundary.
        for (len, sectors, region_size, chunk) in
            [(2048, 2048, 16, 16), (2047, 2040, 24, 24), (64, 64, 12, 0)]
        {
            let params = params(&below(len, region_size), 4096).unwrap();
            let basic = params.basic;
            assert_eq!((basic.logical_bs_shift, basic.physical_bs_shift), (12, 12));
            assert_eq!((basic.io_min_shift, basic.io_opt_shift), (12, 12));
            assert_eq!(
                (basic.dev_sectors, basic.chunk_sectors),
                (sectors, chunk),
                "{len} by {region_size}"
            );
            assert_eq!(params.discard.discard_granularity, 4096);
        }
        assert!(params(&below(7, 8), 4096).is_none(), "not one block");
    }

    #[test]
    fn a_disk_over_what_turns_is_rotational() {
        let address = "mem:1M".parse().unwrap();
        let (engine, properties, name) =
            open_engine(&address, &LeafOptions::new(Queues::of_new_owner(1))).unwrap();
        let leaf = Leaf::new(
            &address,
            &LeafOptions::new(Queues::of_new_owner(1)),
            engine,
            Properties { rotational: true, ..properties },
            name,
        );
        let attrs = params(&over(leaf, 64, 8, false), 4096).unwrap().basic.attrs;
        assert_eq!(attrs, param::ATTR_VOLATILE_CACHE | param::ATTR_FUA | param::ATTR_ROTATIONAL);
    }

    #[test]
    fn zeroes_are_announced_whatever_the_leaf_can_and_discards_if_something_can() {
        for (leaf, max_discard) in [("mem:1M", MAX_DISCARD_SECTORS), ("sim:1M,nodiscard,nozero", 0)]
        {
            let UblkParams { types, discard, .. } =
                params(&over(open(leaf), 64, 8, false), 4096).unwrap();
            assert_eq!(types, param::TYPE_BASIC | param::TYPE_DISCARD, "{leaf}");
            let most = (discard.max_discard_sectors, discard.max_write_zeroes_sectors);
            assert_eq!(most, (max_discard, MAX_DISCARD_SECTORS), "{leaf}");
        }
    }
}
