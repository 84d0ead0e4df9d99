//! The SCSI commands of a disk: encodes commands, decodes the properties of a logical unit, and
//! interprets sense data.
//!
//! Contract: pure, so that fuzzers reach it. Answers are read only within their length. Sources:
//! SBC-4 and SPC-5 of T10, by command.

use blkswitch_core::multipath::outcome;

/// Longest command in bytes.
pub const CDB: usize = 16;
/// Longest answer in bytes.
pub const ANSWER: usize = 255;
/// Length of the parameter list of an UNMAP with one range, in bytes.
pub const UNMAP_LIST: usize = 24;

/// A command and the direction of its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScsiCommand {
    /// The command descriptor block.
    pub cdb: [u8; CDB],
    /// Number of bytes of `cdb` that the command uses.
    pub len: usize,
    /// The direction of its data.
    pub way: Way,
}

/// The direction of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The command has no data.
    None,
    /// From the unit to the initiator.
    In,
    /// From the initiator to the unit.
    Out,
}

fn command(len: usize, way: Way, bytes: &[(usize, &[u8])]) -> ScsiCommand {
    let mut cdb = [0; CDB];
    for (at, bytes) in bytes {
        if let Some(place) = cdb.get_mut(*at..*at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
    ScsiCommand { cdb, len, way }
}

fn with_range(opcode: u8, flags: u8, way: Way, block: u64, blocks: u32) -> ScsiCommand {
    command(
        16,
        way,
        &[(0, &[opcode, flags]), (2, &block.to_be_bytes()), (10, &blocks.to_be_bytes())],
    )
}

/// READ(16) of `blocks` from `block` on.
pub fn read(block: u64, blocks: u32) -> ScsiCommand {
    with_range(0x88, 0, Way::In, block, blocks)
}

/// WRITE(16) of `blocks` from `block` on.
pub fn write(block: u64, blocks: u32, fua: bool) -> ScsiCommand {
    with_range(0x8a, if fua { 0x08 } else { 0 }, Way::Out, block, blocks)
}

/// WRITE SAME(16). With a block of zeroes it zeroes the range, and with `unmap` it may deallocate
/// it.
pub fn write_same(block: u64, blocks: u32, unmap: bool) -> ScsiCommand {
    with_range(0x93, if unmap { 0x08 } else { 0 }, Way::Out, block, blocks)
}

/// SYNCHRONIZE CACHE(16) of all blocks.
pub fn synchronize_cache() -> ScsiCommand {
    with_range(0x91, 0, Way::None, 0, 0)
}

/// UNMAP of one range, and its parameter list.
pub fn unmap(block: u64, blocks: u32) -> (ScsiCommand, [u8; UNMAP_LIST]) {
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

/// READ CAPACITY(16): size and block sizes.
pub fn read_capacity() -> ScsiCommand {
    command(16, Way::In, &[(0, &[0x9e, 0x10]), (10, &(ANSWER as u32).to_be_bytes())])
}

/// GET LBA STATUS(16) from a block on.
pub fn get_lba_status(block: u64) -> ScsiCommand {
    let length = (ANSWER as u32).to_be_bytes();
    command(16, Way::In, &[(0, &[0x9e, 0x12]), (2, &block.to_be_bytes()), (10, &length)])
}

/// Decodes the answer to GET LBA STATUS: the number of blocks from `block` on in one state, and
/// whether they are provisioned. `None` if it is not valid.
pub fn lba_status(answer: &[u8], block: u64) -> Option<(u64, bool)> {
    // The length does not include its own field. The first descriptor begins at 8.
    let len = u32::from_be_bytes(be(answer, 0)?);
    let first = u64::from_be_bytes(be(answer, 8)?);
    let blocks = u64::from(u32::from_be_bytes(be(answer, 16)?));
    let [status] = be(answer, 20)?;
    let blocks = first.checked_add(blocks)?.checked_sub(block)?;
    // 1 means deallocated. An anchored block reads like a deallocated one, but has space reserved
    // on the medium, so it counts as data.
    (len >= 20 && first <= block && blocks > 0).then_some((blocks, status & 0x0f != 1))
}

/// A query in the words of the caller: a command of at most [`CDB`] bytes whose data comes in.
/// `None` if it is empty or longer.
pub fn query(cdb: &[u8]) -> Option<ScsiCommand> {
    let is_good = (1..=CDB).contains(&cdb.len());
    is_good.then(|| command(cdb.len(), Way::In, &[(0, cdb)]))
}

/// Whether sense data says that the unit's map of blocks to port groups may have changed: "inspect
/// referrals indications", "asymmetric access state changed", or a refusal because this port group
/// does not serve the blocks now (in transition, in standby, unavailable).
pub fn tells_of_map(ascq: u16) -> bool {
    matches!(ascq, 0x3f15 | 0x2a06 | 0x040a..=0x040c)
}

/// INQUIRY of a page of vital product data.
pub fn inquiry(page: u8) -> ScsiCommand {
    command(6, Way::In, &[(0, &[0x12, 1, page]), (3, &(ANSWER as u16).to_be_bytes())])
}

/// TEST UNIT READY: checks that the unit answers.
pub fn test_unit_ready() -> ScsiCommand {
    command(6, Way::None, &[])
}

/// MODE SENSE(6) of the caching page.
pub fn mode_sense_caching() -> ScsiCommand {
    command(6, Way::In, &[(0, &[0x1a, 0x08, 0x08, 0, ANSWER as u8])])
}

/// The properties of a logical unit, as it reports them. Later sessions must keep them
/// ([`Volume::broken_promise`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// Size of the unit in blocks.
    pub blocks: u64,
    /// Size of a block in bytes.
    pub block_bytes: u32,
    /// Size of a physical block in bytes, one block or more.
    pub physical_bytes: u32,
    /// Whether the unit is write-protected.
    pub read_only: bool,
    /// Whether the medium rotates.
    pub rotational: bool,
    /// Whether single writes can be made durable (FUA).
    pub fua: bool,
    /// Whether the unit has a volatile cache.
    pub cache: bool,
    /// Most blocks of an UNMAP. 0 if the unit has no UNMAP.
    pub unmap_blocks: u32,
    /// Most blocks of a WRITE SAME. 0 for no limit.
    pub same_blocks: u64,
    /// Whether WRITE SAME may deallocate blocks, and deallocated blocks read as zeroes.
    pub same_unmaps: bool,
    /// Whether the unit may have deallocated blocks, which GET LBA STATUS reports.
    pub provisions: bool,
    /// Whether deallocated blocks read as zeroes.
    pub holes_are_zeroes: bool,
    /// Most blocks of a READ or WRITE. 0 for no limit.
    pub transfer_blocks: u32,
    /// The names of the unit; `None` if it has none.
    pub identity: Option<String>,
    /// Whether one of the names is unique in the world: a registered NAA, an EUI-64, a UUID or a
    /// SCSI name. Targets may build the other kinds from numbers that units of other machines have,
    /// too.
    pub has_unique_name: bool,
}

impl Volume {
    /// Describes the promise that a unit breaks if it was `self` and is `now`. `None` if the leaf
    /// can go on. The unit may offer more, or be larger, in which case the old size is used. It may
    /// offer less if this client can compensate: each session uses what the unit reports on it.
    pub fn broken_promise(&self, now: &Volume) -> Option<String> {
        let name = |volume: &Volume| match &volume.identity {
            Some(names) => format!("'{names}'"),
            None => "without a name".to_string(),
        };
        let broken = if now.identity != self.identity {
            format!("it is {}, and was {}", name(now), name(self))
        } else if now.block_bytes != self.block_bytes {
            format!("its blocks have {} bytes, and had {}", now.block_bytes, self.block_bytes)
        } else if now.blocks < self.blocks {
            format!("it has {} blocks, and had {}", now.blocks, self.blocks)
        } else if now.read_only && !self.read_only {
            "it is read-only, and could be written".to_string()
        } else if now.cache && !self.cache {
            "it has a volatile cache, and had none".to_string()
        } else {
            return None;
        };
        Some(format!("the logical unit is not what it was: {broken}"))
    }
}

fn be<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

impl Volume {
    /// Decodes the answer to READ CAPACITY(16). `None` if it is not valid.
    pub fn take_capacity(&mut self, answer: &[u8]) -> Option<()> {
        let last = u64::from_be_bytes(be(answer, 0)?);
        self.block_bytes = u32::from_be_bytes(be(answer, 8)?);
        self.blocks = last.checked_add(1)?;
        let good = self.block_bytes.is_power_of_two() && (512..=65536).contains(&self.block_bytes);
        let fits = self
            .blocks
            .checked_mul(u64::from(self.block_bytes))
            .is_some_and(|b| b <= i64::MAX as u64);
        let exponent = answer.get(13).map_or(0, |byte| byte & 0x0f).min(7);
        self.physical_bytes = self.block_bytes << exponent;
        // Bits for "provisioning is managed" and "deallocated blocks read as zeroes".
        let bits = answer.get(14).copied().unwrap_or(0);
        (self.provisions, self.holes_are_zeroes) = (bits & 0x80 != 0, bits & 0x40 != 0);
        self.same_unmaps = answer.get(14).is_some_and(|byte| byte & 0xc0 == 0xc0);
        (good && fits).then_some(())
    }

    /// Decodes the page of block limits (0xb0).
    pub fn take_limits(&mut self, page: &[u8]) {
        let word = |at| be(page, at).map_or(0, u32::from_be_bytes);
        self.transfer_blocks = word(8);
        let descriptors = word(24);
        self.unmap_blocks = if descriptors > 0 { word(20) } else { 0 };
        self.same_blocks = be(page, 36).map_or(0, u64::from_be_bytes);
    }

    /// Decodes the page of block device characteristics (0xb1).
    pub fn take_characteristics(&mut self, page: &[u8]) {
        // 1 means not rotating, 0 not reported.
        self.rotational = be(page, 4).map_or(0, u16::from_be_bytes) > 1;
    }

    /// Decodes the page of logical block provisioning (0xb2).
    pub fn take_provisioning(&mut self, page: &[u8]) {
        let bits = page.get(5).copied().unwrap_or(0);
        if bits & 0x80 == 0 {
            self.unmap_blocks = 0;
        }
        self.same_unmaps &= bits & 0x40 != 0;
    }

    /// Decodes the answer to MODE SENSE(6) of the caching page.
    pub fn take_mode(&mut self, answer: &[u8]) {
        let (specific, skip) =
            (answer.get(2).copied().unwrap_or(0), answer.get(3).copied().unwrap_or(0));
        self.read_only = specific & 0x80 != 0;
        self.fua = specific & 0x10 != 0;
        let page = answer.get(4 + usize::from(skip)..).unwrap_or_default();
        if let [0x08 | 0x88, _, bits, ..] = page {
            self.cache = bits & 0x04 != 0;
        }
    }

    /// Decodes the page of device identification (0x83): all names of the logical unit itself, the
    /// best first. All are used, because some targets build a single name from numbers that other
    /// units have, too.
    pub fn take_identity(&mut self, page: &[u8]) {
        let (mut names, mut at) = (Vec::new(), 4);
        let end =
            be(page, 2).map_or(0, |len| 4 + usize::from(u16::from_be_bytes(len))).min(page.len());
        while let Some([codes, kind, _, len]) = be(page, at) {
            let Some(name) = page.get(at + 4..at + 4 + usize::from(len)).filter(|_| at < end)
            else {
                break;
            };
            at += 4 + usize::from(len);
            // Association 0 is the logical unit, others are a port or the target.
            if kind & 0x30 != 0 || is_blank(name) {
                continue;
            }
            self.has_unique_name |= is_unique(kind & 0x0f, name);
            let hex = || name.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            names.extend(match (kind & 0x0f, codes & 0x0f) {
                (3, _) => Some((0, format!("naa.{}", hex()))),
                (2, _) => Some((1, format!("eui.{}", hex()))),
                (10, _) => Some((2, format!("uuid.{}", hex()))),
                (8, _) => Some((3, text(name))),
                (1, _) => Some((4, format!("t10.{}", text(name)))),
                _ => None,
            });
        }
        // Sorted, because a unit may report its names in any order.
        names.sort();
        names.dedup();
        let names: Vec<String> = names.into_iter().map(|(_, name)| name).collect();
        self.identity = Some(names.join(", ")).filter(|names| !names.is_empty());
    }

    /// Decodes the page of the unit's serial number (0x80). It becomes one more name if no other is
    /// unique.
    pub fn take_serial(&mut self, page: &[u8]) {
        let len = be(page, 2).map_or(0, u16::from_be_bytes);
        let serial =
            page.get(4..).map_or(&[][..], |rest| rest.get(..usize::from(len)).unwrap_or(rest));
        if self.has_unique_name || is_blank(serial) {
            return;
        }
        let serial = format!("serial.{}", text(serial));
        self.identity = Some(match self.identity.take() {
            Some(names) => format!("{names}, {serial}"),
            None => serial,
        });
    }
}

/// Whether a designator of this type is unique in the world, by SPC. NAA 3 is "locally assigned".
/// tgt uses a registered NAA (6) without a company, built from numbers that other machines use,
/// too. A T10 name is unique only if its vendor takes care.
fn is_unique(kind: u8, name: &[u8]) -> bool {
    match kind {
        2 | 8 | 10 => true,
        3 => match *name {
            [first, a, b, c, ..] if matches!(first >> 4, 5 | 6) => {
                u32::from_be_bytes([first & 0x0f, a, b, c]) >> 4 != 0
            }
            [first, ..] => first >> 4 == 2,
            [] => false,
        },
        _ => false,
    }
}

/// Whether a name consists of blanks and zeroes.
fn is_blank(name: &[u8]) -> bool {
    name.iter().all(|byte| matches!(byte, 0 | b' '))
}

/// The name as text. Special bytes are escaped, so that two names never look alike.
fn text(name: &[u8]) -> String {
    let is_filling = |byte: &u8| matches!(byte, 0 | b' ');
    let first = name.iter().position(|byte| !is_filling(byte)).unwrap_or(name.len());
    let end = name.iter().rposition(|byte| !is_filling(byte)).map_or(first, |last| last + 1);
    name.get(first..end).unwrap_or_default().escape_ascii().to_string()
}

/// The key and additional code of the sense data in a response, behind its length.
pub fn sense(segment: &[u8]) -> (u8, u16) {
    let data = segment.get(2..).unwrap_or_default();
    let byte = |at: usize| data.get(at).copied().unwrap_or(0);
    match byte(0) & 0x7f {
        0x70 | 0x71 => (byte(2) & 0x0f, u16::from_be_bytes([byte(12), byte(13)])),
        0x72 | 0x73 => (byte(1) & 0x0f, u16::from_be_bytes([byte(2), byte(3)])),
        _ => (NO_SENSE_DATA, 0),
    }
}

/// The key for missing sense data. A command that failed without sense data has not succeeded,
/// which the key 0 would mean.
const NO_SENSE_DATA: u8 = u8::MAX;

/// The meaning of a command's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command has succeeded.
    Good,
    /// Send it again at once: the unit reported a change of state, or the command was aborted.
    Again,
    /// It was not carried out, and the unit may be another one now. A new session must find out.
    Changed,
    /// As `Changed`, but the unit is missing now, so the path fails ([`GONE`]).
    Gone,
    /// Send it again when others are done, because the target has no room.
    Busy,
    /// It failed with this errno.
    Failed(i32),
}

/// The errno for a missing unit.
pub const GONE: i32 = libc::ENXIO;

/// The SCSI status codes.
pub mod status {
    #![allow(missing_docs, reason = "the names are the standard's")]

    pub const GOOD: i32 = 0;
    pub const CHECK_CONDITION: i32 = 2;
    pub const CONDITION_MET: i32 = 4;
    pub const BUSY: i32 = 8;
    pub const RESERVATION_CONFLICT: i32 = 0x18;
    pub const TASK_SET_FULL: i32 = 0x28;
    pub const TASK_ABORTED: i32 = 0x40;
}

/// The meaning of a status with its sense. The errnos are those of the kernel's SCSI layer, so
/// paths fail by the same rules ([`outcome`]). Errors of the medium, errors of the target and
/// reservations do not fail a path. A unit that is missing or not ready does.
pub fn judge(status: i32, key: u8, ascq: u16) -> Outcome {
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
    // Additional sense codes, each with its qualifier.
    const SPACE: u16 = 0x2707;
    const UNIT_NOT_SUPPORTED: u16 = 0x2500;
    const OUT_OF_RANGE: u16 = 0x2100;
    const OPCODE: u16 = 0x2000;
    const FIELD_IN_CDB: u16 = 0x2400;
    const FIELD_IN_LIST: u16 = 0x2600;
    const PROTECTION: u16 = 0x10;
    const RESET: u16 = 0x29;
    const CAPACITY_CHANGED: u16 = 0x2a09;
    const INQUIRY_CHANGED: u16 = 0x3f03;
    const UNITS_CHANGED: u16 = 0x3f0e;
    match (key, ascq) {
        // No sense, recovered error.
        (0 | 1, _) => Outcome::Good,
        // Not ready: standby, in transition, offline.
        (2, _) => Outcome::Failed(libc::ENXIO),
        (3, _) => Outcome::Failed(libc::ENODATA),
        // Not every target reports it when another unit has replaced this one.
        (5, UNIT_NOT_SUPPORTED) => Outcome::Gone,
        (5, OUT_OF_RANGE) => Outcome::Failed(libc::EINVAL),
        (5, OPCODE | FIELD_IN_CDB | FIELD_IN_LIST) => Outcome::Failed(libc::EOPNOTSUPP),
        (6, CAPACITY_CHANGED | INQUIRY_CHANGED | UNITS_CHANGED) => Outcome::Changed,
        // Power on or reset: the unit may be another one now.
        (6, ascq) if ascq >> 8 == RESET => Outcome::Changed,
        // Unit attention, such as changed parameters or an action of another session. The command
        // was not carried out.
        (6, _) => Outcome::Again,
        (7, SPACE) => Outcome::Failed(libc::ENOSPC),
        (7, _) => Outcome::Failed(libc::EROFS),
        (0xb, ascq) if ascq >> 8 == PROTECTION => Outcome::Failed(libc::EILSEQ),
        (0xb, _) => Outcome::Again,
        // Hardware error, blank check, vendor specific, copy aborted, overflow, miscompare.
        _ => Outcome::Failed(libc::EREMOTEIO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_has_at_most_sixteen_bytes() {
        let query = query(&[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]).unwrap();
        assert_eq!(
            (query.len, query.way, query.cdb[..2].to_vec()),
            (12, Way::In, vec![0xa3, 0x0a])
        );
        assert_eq!((super::query(&[]), super::query(&[0; 17])), (None, None));
    }

    #[test]
    fn commands_are_what_the_standard_says() {
        let read = read(0x0102_0304_0506_0708, 0x0a0b_0c0d);
        assert_eq!(read.cdb, [0x88, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0xa, 0xb, 0xc, 0xd, 0, 0]);
        assert_eq!((read.len, read.way), (16, Way::In));
        assert_eq!(write(1, 2, true).cdb[..3], [0x8a, 8, 0]);
        assert_eq!(write_same(1, 2, true).cdb[..2], [0x93, 8]);
        let (unmap, list) = unmap(7, 9);
        assert_eq!((unmap.cdb[0], unmap.cdb[8], unmap.len), (0x42, 24, 10));
        assert_eq!(
            list,
            [0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0, 0]
        );
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

    /// A page of vital product data.
    fn vpd(page: u8, parts: &[&[u8]]) -> Vec<u8> {
        let body = parts.concat();
        [&[0, page, 0, body.len() as u8][..], &body].concat()
    }

    fn identity(page: &[u8]) -> Option<String> {
        let mut volume = Volume::default();
        volume.take_identity(page);
        volume.identity
    }

    #[test]
    fn the_names_of_the_unit_are_its_identity() {
        let t10: &[u8] = &[2, 0x01, 0, 4, b'I', b'E', b'T', b' '];
        let port: &[u8] = &[1, 0x13, 0, 2, 0xaa, 0xaa];
        let naa: &[u8] = &[1, 0x03, 0, 8, 0x60, 0, 0, 0, 0, 0, 0x12, 0x34];
        let page = vpd(0x83, &[t10, port, naa]);
        assert_eq!(identity(&page).as_deref(), Some("naa.6000000000001234, t10.IET"));
        assert_eq!(identity(&vpd(0x83, &[naa, naa, t10])), identity(&page), "in any order");
        assert_ne!(
            identity(&vpd(0x83, &[naa, &[2, 1, 0, 2, b'I', b'E']])),
            identity(&page),
            "another T10 name"
        );
        assert_eq!(identity(&page[..14]).as_deref(), Some("t10.IET"));
        for cut in 0..page.len() {
            identity(&page[..cut]);
        }
        // Bytes behind the end of the page are ignored.
        assert_eq!(identity(&[&vpd(0x83, &[t10])[..], naa].concat()).as_deref(), Some("t10.IET"));
        // Names that are not text stay two.
        let odd = |byte| identity(&vpd(0x83, &[&[2, 1, 0, 1, byte]]));
        assert!(odd(0xfe).is_some() && odd(0xfe) != odd(0xff));
    }

    /// tgt's defaults: the first units of two machines have the same names, and differ only in the
    /// serial number that an administrator may have set.
    #[test]
    fn names_that_are_made_of_numbers_are_not_unique_and_the_serial_number_counts_too() {
        let t10: &[u8] = &[2, 0x01, 0, 4, b'I', b'E', b'T', b'1'];
        let local: &[u8] = &[1, 0x03, 0, 8, 0x60, 0, 0, 0, 0, 1, 0, 1];
        let of = |serial: &[u8]| {
            let mut volume = Volume::default();
            volume.take_identity(&vpd(0x83, &[t10, local]));
            volume.take_serial(&vpd(0x80, &[serial]));
            volume
        };
        assert!(!of(b"a").has_unique_name);
        assert_eq!(of(b"a").identity.unwrap(), "naa.6000000000010001, t10.IET1, serial.a");
        assert_ne!(of(b"a").identity, of(b"b").identity);
        for unique in [
            &[1, 0x02, 0, 2, 1, 2][..],
            &[1, 0x0a, 0, 2, 1, 2],
            &[3, 0x08, 0, 4, b'i', b'q', b'n', b'.'],
            &[1, 0x03, 0, 4, 0x50, 0, 0, 0x10],
            &[1, 0x03, 0, 2, 0x20, 1],
        ] {
            let mut volume = Volume::default();
            volume.take_identity(&vpd(0x83, &[t10, unique]));
            assert!(volume.has_unique_name, "{unique:?}");
        }
    }

    #[test]
    fn the_status_of_blocks_is_that_of_the_first_descriptor_and_checked() {
        let answer = |first: u64, blocks: u32, status: u8| {
            let head = [&20u32.to_be_bytes()[..], &[0; 4]].concat();
            [&head[..], &first.to_be_bytes(), &blocks.to_be_bytes(), &[status, 0, 0, 0]].concat()
        };
        assert_eq!(lba_status(&answer(8, 100, 1), 8), Some((100, false)));
        assert_eq!(lba_status(&answer(0, 100, 0), 8), Some((92, true)), "it may begin earlier");
        assert_eq!(lba_status(&answer(8, 100, 2), 8), Some((100, true)), "anchored");
        for none in [answer(9, 1, 1), answer(0, 8, 1), answer(8, 0, 1), answer(u64::MAX, 9, 1)] {
            assert_eq!(lba_status(&none, 8), None, "{none:?}");
        }
        for cut in 0..21 {
            assert_eq!(lba_status(&answer(8, 100, 1)[..cut], 8), None);
        }
    }

    #[test]
    fn a_name_that_says_nothing_is_none_and_the_serial_number_stands_in() {
        let blank: &[u8] = &[2, 0x01, 0, 4, b' ', b' ', b' ', 0];
        let zeroes: &[u8] = &[1, 0x03, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        for none in [&[][..], &[0; 4], &vpd(0x83, &[]), &vpd(0x83, &[blank, zeroes])] {
            assert_eq!(identity(none), None, "{none:?}");
        }
        let mut volume = Volume::default();
        volume.take_serial(&vpd(0x80, &[b"    "]));
        assert_eq!(volume.identity, None);
        volume.take_serial(&vpd(0x80, &[b"  S1 "]));
        assert_eq!(volume.identity.as_deref(), Some("serial.S1"));
        let naa: &[u8] = &[1, 0x03, 0, 8, 0x60, 0xa, 0, 0, 0, 0, 0x12, 0x34];
        let mut volume = Volume::default();
        volume.take_identity(&vpd(0x83, &[naa]));
        volume.take_serial(&vpd(0x80, &[b"S2"]));
        assert_eq!(volume.identity.as_deref(), Some("naa.600a000000001234"), "it is enough");
    }

    #[test]
    fn sense_data_is_read_in_both_forms_and_within_its_length() {
        let mut fixed = [0; 20];
        (fixed[2], fixed[4], fixed[14], fixed[15]) = (0x70, 0x46, 0x29, 0x02);
        assert_eq!(sense(&fixed), (6, 0x2902));
        assert_eq!(sense(&[0, 8, 0x72, 5, 0x25, 0]), (5, 0x2500));
        assert_eq!(sense(&fixed[..14]), (6, 0));
        let (key, ascq) = sense(&[]);
        let none = judge(status::CHECK_CONDITION, key, ascq);
        assert_eq!(none, Outcome::Failed(libc::EREMOTEIO), "no sense data is no success");
    }

    #[test]
    fn only_a_unit_that_is_not_there_fails_a_path() {
        use blkswitch_core::multipath::outcome::is_path_error;
        let fails = |key, ascq| match judge(status::CHECK_CONDITION, key, ascq) {
            Outcome::Failed(errno) => is_path_error(errno),
            Outcome::Gone => is_path_error(GONE),
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
        // Power on, a reset of the target, a lost nexus; another capacity, another name, other
        // units.
        for changed in [0x2900, 0x2902, 0x2907, 0x2a09, 0x3f03, 0x3f0e] {
            assert_eq!(attention(changed), Outcome::Changed, "{changed:#x}");
        }
        assert_eq!(judge(status::CHECK_CONDITION, 5, 0x2500), Outcome::Gone);
        // Other parameters, a reservation of another initiator.
        for again in [0x2a01, 0x2a03] {
            assert_eq!(attention(again), Outcome::Again, "{again:#x}");
        }
    }
}
