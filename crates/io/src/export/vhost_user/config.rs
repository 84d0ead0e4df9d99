//! The features and the configuration space that a front end reads. Pure.

use super::{MAX_SEGMENTS, RING_SIZE_MAX};
use crate::device::table::Table;
use crate::wire::vhost_user::{CONFIG_LEN, feature};

/// Largest discard or write of zeroes in one request, in sectors: 1 GiB, as for a ublk disk.
const MAX_DISCARD_SECTORS: u32 = 1 << 21;

/// The features of every device.
const FEATURES: u64 = feature::SEG_MAX
    | feature::BLK_SIZE
    | feature::FLUSH
    | feature::TOPOLOGY
    | feature::MQ
    | feature::WRITE_ZEROES
    | feature::LOG_ALL
    | feature::INDIRECT_DESC
    | feature::EVENT_IDX
    | feature::PROTOCOL_FEATURES
    | feature::VERSION_1;

/// The features of a device with this table.
pub(super) fn features(table: &Table) -> u64 {
    let read_only = if table.read_only() { feature::RO } else { 0 };
    let discard = if table.can_discard() { feature::DISCARD } else { 0 };
    FEATURES | read_only | discard
}

/// The configuration space (`struct virtio_blk_config`) of a device with this table, for a front
/// end that may use `rings` rings.
pub(super) fn space(table: &Table, rings: u16) -> [u8; CONFIG_LEN] {
    let logical = table.logical_block().max(512);
    let physical = table.physical_block().max(logical);
    let sectors_per_block = u64::from(logical / 512);
    let blocks_of_physical = physical / logical;
    let max_discard = if table.can_discard() { MAX_DISCARD_SECTORS } else { 0 };
    let mut space = [0; CONFIG_LEN];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(to) = space.get_mut(at..at + bytes.len()) {
            to.copy_from_slice(bytes);
        }
    };
    put(0, &(table.len() / sectors_per_block * sectors_per_block).to_le_bytes());
    put(12, &(MAX_SEGMENTS as u32).to_le_bytes());
    put(20, &logical.to_le_bytes());
    put(24, &[blocks_of_physical.max(1).ilog2() as u8, 0]);
    put(26, &u16::try_from(blocks_of_physical).unwrap_or(1).to_le_bytes());
    // Writes may stay in a cache until a flush.
    put(32, &[1]);
    put(34, &rings.to_le_bytes());
    put(36, &max_discard.to_le_bytes());
    put(40, &1u32.to_le_bytes());
    put(44, &(physical / 512).to_le_bytes());
    put(48, &MAX_DISCARD_SECTORS.to_le_bytes());
    put(52, &1u32.to_le_bytes());
    put(56, &[1]);
    space
}

/// Whether a ring may have so many entries.
pub(super) fn is_ring_size(size: u32) -> bool {
    size.is_power_of_two() && size <= u32::from(RING_SIZE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::table::{TableBuilder, Target, To};
    use crate::leaf::{Leaf, LeafOptions};
    use crate::queues::Queues;
    use crate::wire::vhost_user::{u16_at, u32_at, u64_at};

    fn table(address: &str, sectors: u64, read_only: bool) -> Table {
        let options = LeafOptions::new(Queues::of_new_owner(1));
        let leaf = Leaf::open(&address.parse().unwrap(), &options).unwrap();
        let mut table = TableBuilder::new(read_only);
        let below = table.leaf(leaf);
        table.push(sectors, Target::Linear(To { below, offset: 0 }));
        table.build_unchecked()
    }

    #[test]
    fn the_configuration_space_is_that_of_the_table() {
        let space = space(&table("sim:1M,block=4096", 2047, false), 7);
        assert_eq!(u64_at(&space, 0), 2040, "whole blocks");
        assert_eq!((u32_at(&space, 12), u32_at(&space, 20)), (MAX_SEGMENTS as u32, 4096));
        assert_eq!((u16_at(&space, 34), u32_at(&space, 48)), (7, MAX_DISCARD_SECTORS));
        let space = super::space(&table("mem:1M", 2048, false), 1);
        assert_eq!((u64_at(&space, 0), space[24], u16_at(&space, 26)), (2048, 3, 8));
    }

    #[test]
    fn features_are_those_of_the_table() {
        let of = |address, read_only| features(&table(address, 64, read_only));
        assert_eq!(of("mem:1M", false), FEATURES | feature::DISCARD);
        assert_eq!(of("mem:1M", true) & feature::RO, feature::RO);
        assert_eq!(of("sim:1M,nodiscard,nozero", false), FEATURES);
    }
}
