//! SCSI as far as a disk needs it: commands to bytes, what a logical unit says about itself, what sense data means.
//!
//! Contract: pure. Whatever a target sends is read within its length. Sources: SBC-4 and SPC-5 of T10, by command.

use blkswitch_core::multipath::outcome;

/// Longest command here.
pub(super) const CDB: usize = 16;
/// Longest answer that is asked for.
pub(super) const ANSWER: usize = 255;
/// Parameter list of an UNMAP of one range.
pub(super) const UNMAP_LIST: usize = 24;

/// A command and which way its data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) cdb: [u8; CDB],
    pub(super) len: usize,
    pub(super) way: Way,
}

/// Which way data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    None,
    In,
    Out,
}

fn command(len: usize, way: Way, bytes: &[(usize, &[u8])]) -> Command {
    let mut cdb = [0; CDB];
    for (at, bytes) in bytes {
        if let Some(place) = cdb.get_mut(*at..*at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
    Command { cdb, len, way }
}

fn with_range(opcode: u8, flags: u8, way: Way, block: u64, blocks: u32) -> Command {
    command(16, way, &[(0, &[opcode, flags]), (2, &block.to_be_bytes()), (10, &blocks.to_be_bytes())])
}

/// READ(16).
pub(super) fn read(block: u64, blocks: u32) -> Command {
    with_range(0x88, 0, Way::In, block, blocks)
}

/// WRITE(16).
pub(super) fn write(block: u64, blocks: u32, fua: bool) -> Command {
    with_range(0x8a, if fua { 0x08 } else { 0 }, Way::Out, block, blocks)
}

/// WRITE SAME(16); of a block of zeroes, it zeroes, and may give the space up if `unmap`.
pub(super) fn write_same(block: u64, blocks: u32, unmap: bool) -> Command {
    with_range(0x93, if unmap { 0x08 } else { 0 }, Way::Out, block, blocks)
}

/// SYNCHRONIZE CACHE(16) of all blocks.
pub(super) fn synchronize_cache() -> Command {
    with_range(0x91, 0, Way::None, 0, 0)
}

/// UNMAP, and the list of its one range.
pub(super) fn unmap(block: u64, blocks: u32) -> (Command, [u8; UNMAP_LIST]) {
    let mut list = [0; UNMAP_LIST];
    let fields: [(usize, &[u8]); 4] = [
        (0, &(UNMAP_LIST as u16 - 2).to_be_bytes()),
        (2, &16u16.to_be_bytes()),
        (8, &block.to_be_bytes()),
        (16, &blocks.to_be_bytes()),
    ];
    for (at, bytes) in fields {
        if let Some(place) = list.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
    (command(10, Way::Out, &[(0, &[0x42]), (7, &(UNMAP_LIST as u16).to_be_bytes())]), list)
}

/// READ CAPACITY(16).
pub(super) fn read_capacity() -> Command {
    command(16, Way::In, &[(0, &[0x9e, 0x10]), (10, &(ANSWER as u32).to_be_bytes())])
}

/// INQUIRY of a page of vital product data.
pub(super) fn inquiry(page: u8) -> Command {
    command(6, Way::In, &[(0, &[0x12, 1, page]), (3, &(ANSWER as u16).to_be_bytes())])
}

/// MODE SENSE(6) of the caching page.
pub(super) fn mode_sense_caching() -> Command {
    command(6, Way::In, &[(0, &[0x1a, 0x08, 0x08, 0, ANSWER as u8])])
}

/// What a logical unit says about itself. It must be the same on every session of a leaf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Volume {
    pub(super) blocks: u64,
    pub(super) block_bytes: u32,
    pub(super) physical_bytes: u32,
    pub(super) read_only: bool,
    pub(super) rotational: bool,
    /// A write can be made stable by itself.
    pub(super) fua: bool,
    /// It has a volatile cache.
    pub(super) cache: bool,
    /// Most blocks of an UNMAP; 0: it has none.
    pub(super) unmap_blocks: u32,
    /// Most blocks of a WRITE SAME; 0: whatever is asked.
    pub(super) same_blocks: u64,
    /// WRITE SAME may give space up, and what was given up reads as zeroes.
    pub(super) same_unmaps: bool,
    /// Most blocks of a READ or WRITE; 0: whatever is asked.
    pub(super) transfer_blocks: u32,
    /// The volume's name in the world.
    pub(super) identity: Option<String>,
}

fn be<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

impl Volume {
    /// Takes the answer to READ CAPACITY(16). Nothing if it makes no sense.
    pub(super) fn take_capacity(&mut self, answer: &[u8]) -> Option<()> {
        let last = u64::from_be_bytes(be(answer, 0)?);
        self.block_bytes = u32::from_be_bytes(be(answer, 8)?);
        self.blocks = last.checked_add(1)?;
        let good = self.block_bytes.is_power_of_two() && (512..=65536).contains(&self.block_bytes);
        let fits = self.blocks.checked_mul(u64::from(self.block_bytes)).is_some_and(|b| b <= i64::MAX as u64);
        let exponent = answer.get(13).map_or(0, |byte| byte & 0x0f).min(7);
        self.physical_bytes = self.block_bytes << exponent;
        // Logical block provisioning is there, and reads of what was given up return zeroes.
        self.same_unmaps = answer.get(14).is_some_and(|byte| byte & 0xc0 == 0xc0);
        (good && fits).then_some(())
    }

    /// Takes the page of block limits (0xb0).
    pub(super) fn take_limits(&mut self, page: &[u8]) {
        let word = |at| be(page, at).map_or(0, u32::from_be_bytes);
        self.transfer_blocks = word(8);
        let descriptors = word(24);
        self.unmap_blocks = if descriptors > 0 { word(20) } else { 0 };
        self.same_blocks = be(page, 36).map_or(0, u64::from_be_bytes);
    }

    /// Takes the page of block device characteristics (0xb1).
    pub(super) fn take_characteristics(&mut self, page: &[u8]) {
        // 1: not rotating; 0: not told.
        self.rotational = be(page, 4).map_or(0, u16::from_be_bytes) > 1;
    }

    /// Takes the page of logical block provisioning (0xb2).
    pub(super) fn take_provisioning(&mut self, page: &[u8]) {
        let bits = page.get(5).copied().unwrap_or(0);
        if bits & 0x80 == 0 {
            self.unmap_blocks = 0;
        }
        self.same_unmaps &= bits & 0x40 != 0;
    }

    /// Takes the answer to MODE SENSE(6) of the caching page.
    pub(super) fn take_mode(&mut self, answer: &[u8]) {
        let (specific, skip) = (answer.get(2).copied().unwrap_or(0), answer.get(3).copied().unwrap_or(0));
        self.read_only = specific & 0x80 != 0;
        self.fua = specific & 0x10 != 0;
        let page = answer.get(4 + usize::from(skip)..).unwrap_or_default();
        if let [0x08 | 0x88, _, bits, ..] = page {
            self.cache = bits & 0x04 != 0;
        }
    }

    /// Takes the page of device identification (0x83): the best name of the logical unit itself.
    pub(super) fn take_identity(&mut self, page: &[u8]) {
        let (mut best, mut at) = (None, 4);
        while let Some([codes, kind, _, len]) = be(page, at) {
            let Some(name) = page.get(at + 4..at + 4 + usize::from(len)) else { break };
            at += 4 + usize::from(len);
            // Association 0: the logical unit, not the port.
            if kind & 0x30 != 0 || name.is_empty() {
                continue;
            }
            let hex = || name.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            let text = || String::from_utf8_lossy(name).trim_matches(['\0', ' ']).to_string();
            let (rank, shown) = match (kind & 0x0f, codes & 0x0f) {
                (3, _) => (4, format!("naa.{}", hex())),
                (2, _) => (3, format!("eui.{}", hex())),
                (8, _) => (2, text()),
                (1, _) => (1, format!("t10.{}", text())),
                _ => continue,
            };
            if best.as_ref().is_none_or(|(least, _)| *least < rank) {
                best = Some((rank, shown));
            }
        }
        self.identity = best.map(|(_, name)| name);
    }
}

/// What a command's end means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is done.
    Good,
    /// It is to be sent again at once: something about the unit had changed, or it was aborted.
    Again,
    /// It was not carried out, and the unit may not be what it was: another session is to find out.
    Changed,
    /// It is to be sent again when others are done: the target has no room.
    Busy,
    /// It failed: an errno.
    Failed(i32),
}

/// Status of a command as the transport has it.
pub(super) mod status {
    pub(in super::super) const GOOD: i32 = 0;
    pub(in super::super) const CHECK_CONDITION: i32 = 2;
    pub(in super::super) const CONDITION_MET: i32 = 4;
    pub(in super::super) const BUSY: i32 = 8;
    pub(in super::super) const RESERVATION_CONFLICT: i32 = 0x18;
    pub(in super::super) const TASK_SET_FULL: i32 = 0x28;
    pub(in super::super) const TASK_ABORTED: i32 = 0x40;
}

/// What status and sense mean. Errnos are those the kernel's SCSI layer maps to, so that paths fail by the same rules
/// ([`outcome`]): the medium, the target, reservations do not fail a path; a unit that is not there or not ready does.
pub(super) fn judge(status: i32, key: u8, ascq: u16) -> Outcome {
    match status {
        status::GOOD | status::CONDITION_MET => Outcome::Good,
        status::CHECK_CONDITION => judge_sense(key, ascq),
        status::BUSY | status::TASK_SET_FULL => Outcome::Busy,
        status::RESERVATION_CONFLICT => Outcome::Failed(libc::EBADE),
        status::TASK_ABORTED => Outcome::Again,
        _ => Outcome::Failed(outcome::EIO),
    }
}

fn judge_sense(key: u8, ascq: u16) -> Outcome {
    // Additional sense codes.
    const SPACE: u16 = 0x2707;
    const UNIT_NOT_SUPPORTED: u16 = 0x2500;
    const OUT_OF_RANGE: u16 = 0x2100;
    const OPCODE: u16 = 0x2000;
    const FIELD_IN_CDB: u16 = 0x2400;
    const FIELD_IN_LIST: u16 = 0x2600;
    const PROTECTION: u16 = 0x10;
    const CAPACITY_CHANGED: u16 = 0x2a09;
    const INQUIRY_CHANGED: u16 = 0x3f03;
    const UNITS_CHANGED: u16 = 0x3f0e;
    match (key, ascq) {
        // No sense, recovered.
        (0 | 1, _) => Outcome::Good,
        // Not ready: standby, in transition, offline.
        (2, _) => Outcome::Failed(libc::ENXIO),
        (3, _) => Outcome::Failed(libc::ENODATA),
        (5, UNIT_NOT_SUPPORTED) => Outcome::Failed(libc::ENXIO),
        (5, OUT_OF_RANGE) => Outcome::Failed(libc::EINVAL),
        (5, OPCODE | FIELD_IN_CDB | FIELD_IN_LIST) => Outcome::Failed(libc::EOPNOTSUPP),
        (6, CAPACITY_CHANGED | INQUIRY_CHANGED | UNITS_CHANGED) => Outcome::Changed,
        // Attention: a reset, other parameters, another session's doing. The command was not carried out.
        (6, _) => Outcome::Again,
        (7, SPACE) => Outcome::Failed(libc::ENOSPC),
        (7, _) => Outcome::Failed(libc::EROFS),
        (0xb, ascq) if ascq >> 8 == PROTECTION => Outcome::Failed(libc::EILSEQ),
        (0xb, _) => Outcome::Again,
        // Hardware, blank, vendor's, copy, overflow, miscompare.
        _ => Outcome::Failed(libc::EREMOTEIO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_what_the_standard_says() {
        let read = read(0x0102_0304_0506_0708, 0x0a0b_0c0d);
        assert_eq!(read.cdb, [0x88, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0xa, 0xb, 0xc, 0xd, 0, 0]);
        assert_eq!((read.len, read.way), (16, Way::In));
        assert_eq!(write(1, 2, true).cdb[..3], [0x8a, 8, 0]);
        assert_eq!(write_same(1, 2, true).cdb[..2], [0x93, 8]);
        let (unmap, list) = unmap(7, 9);
        assert_eq!((unmap.cdb[0], unmap.cdb[8], unmap.len), (0x42, 24, 10));
        assert_eq!(list, [0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0, 0]);
        assert_eq!(inquiry(0x83).cdb[..5], [0x12, 1, 0x83, 0, 255]);
    }

    #[test]
    fn a_volume_is_what_it_says() {
        let mut volume = Volume::default();
        let mut capacity = [0; 32];
        capacity[..8].copy_from_slice(&2047u64.to_be_bytes());
        capacity[8..12].copy_from_slice(&512u32.to_be_bytes());
        (capacity[13], capacity[14]) = (3, 0xc0);
        volume.take_capacity(&capacity).unwrap();
        assert_eq!((volume.blocks, volume.block_bytes, volume.physical_bytes), (2048, 512, 4096));
        assert!(volume.same_unmaps);
        volume.take_provisioning(&[0, 0xb2, 0, 4, 0, 0x80]);
        assert!(!volume.same_unmaps);
        volume.take_mode(&[15, 0, 0x90, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0x08, 10, 0x04]);
        assert!(volume.read_only && volume.fua && volume.cache);
        for bad in [&[0u8; 11][..], &[0; 32], &[0xff; 32]] {
            assert_eq!(Volume::default().take_capacity(bad), None);
        }
    }

    #[test]
    fn the_best_name_of_the_unit_is_its_identity() {
        let mut volume = Volume::default();
        // T10 name of the unit, NAA name of a port, NAA name of the unit.
        let page = [
            &[0, 0x83, 0, 0][..],
            &[2, 0x01, 0, 4, b'I', b'E', b'T', b' '],
            &[1, 0x13, 0, 2, 0xaa, 0xaa],
            &[1, 0x03, 0, 8, 0x60, 0, 0, 0, 0, 0, 0x12, 0x34],
        ];
        let page = page.concat();
        volume.take_identity(&page);
        assert_eq!(volume.identity.as_deref(), Some("naa.6000000000001234"));
        volume.take_identity(&page[..14]);
        assert_eq!(volume.identity.as_deref(), Some("t10.IET"));
        for cut in 0..page.len() {
            volume.take_identity(&page[..cut]);
        }
        volume.take_identity(&[0; 4]);
        assert_eq!(volume.identity, None);
    }

    #[test]
    fn only_a_unit_that_is_not_there_fails_a_path() {
        use blkswitch_core::multipath::outcome::is_path_error;
        let fails = |key, ascq| match judge(status::CHECK_CONDITION, key, ascq) {
            Outcome::Failed(errno) => is_path_error(errno),
            Outcome::Good | Outcome::Again | Outcome::Changed | Outcome::Busy => false,
        };
        let failing: Vec<u8> = (0..16).filter(|key| fails(*key, 0)).collect();
        assert_eq!(failing, [2], "not ready");
        assert!(fails(5, 0x2500), "no such unit");
        assert_eq!(judge(status::RESERVATION_CONFLICT, 0, 0), Outcome::Failed(libc::EBADE));
        assert_eq!(judge(status::BUSY, 0, 0), Outcome::Busy);
    }

    #[test]
    fn after_an_attention_that_it_may_be_another_the_unit_is_looked_at_again() {
        let attention = |ascq| judge(status::CHECK_CONDITION, 6, ascq);
        for changed in [0x2a09, 0x3f03, 0x3f0e] {
            assert_eq!(attention(changed), Outcome::Changed, "{changed:#x}");
        }
        // Power on, a reset of the target, other parameters, a reservation of somebody else's.
        for again in [0x2900, 0x2902, 0x2a01, 0x2a03] {
            assert_eq!(attention(again), Outcome::Again, "{again:#x}");
        }
    }
}
