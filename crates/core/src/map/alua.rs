//! Decodes what a SCSI unit says about target port groups: REPORT TARGET PORT GROUPS, and the
//! designators of VPD page 83h that tell which group a path's port belongs to.
//!
//! Facts are from SPC-5 (REPORT TARGET PORT GROUPS, device identification page). All places are
//! offsets in bytes.
//!
//! Contract: any bytes; no allocation, no panic.

use core::fmt;

use super::scsi::{u8_at, u16_at, u32_at};

/// The command REPORT TARGET PORT GROUPS, with the short form of the header, for an answer of at
/// most `allocation` bytes.
#[must_use]
pub const fn report_target_port_groups(allocation: u32) -> [u8; 12] {
    let [a, b, c, d] = allocation.to_be_bytes();
    [0xa3, 0x0a, 0, 0, 0, 0, a, b, c, d, 0, 0]
}

/// The access state of a target port group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum AccessState {
    /// Active/optimized: the group serves I/O itself.
    Optimized,
    /// Active/non-optimized: the group serves I/O, but another one does it better.
    NonOptimized,
    /// Logical block dependent: the state differs from region to region.
    LbaDependent,
    /// In transition between states.
    Transitioning,
    /// Standby: the group serves no I/O.
    Standby,
    /// Unavailable.
    Unavailable,
    /// Offline.
    Offline,
    /// A code that SPC reserves.
    Reserved(u8),
}

impl AccessState {
    /// The state of this code, of which the low four bits count.
    #[must_use]
    pub const fn from_code(code: u8) -> Self {
        match code & 0x0f {
            0x0 => Self::Optimized,
            0x1 => Self::NonOptimized,
            0x2 => Self::Standby,
            0x3 => Self::Unavailable,
            0x4 => Self::LbaDependent,
            0xe => Self::Offline,
            0xf => Self::Transitioning,
            code => Self::Reserved(code),
        }
    }

    /// Whether a port of such a group takes reads and writes.
    #[must_use]
    pub const fn serves_io(self) -> bool {
        matches!(self, Self::Optimized | Self::NonOptimized)
    }
}

impl fmt::Display for AccessState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Optimized => "active/optimized",
            Self::NonOptimized => "active/non-optimized",
            Self::LbaDependent => "LBA dependent",
            Self::Transitioning => "transitioning",
            Self::Standby => "standby",
            Self::Unavailable => "unavailable",
            Self::Offline => "offline",
            Self::Reserved(code) => return write!(f, "reserved state {code}"),
        })
    }
}

/// The fault of an answer about target port groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AluaError {
    /// The answer ends inside a descriptor or before its header does.
    Short {
        /// Number of bytes that are needed.
        needed: usize,
        /// Number of bytes that came.
        found: usize,
    },
    /// The answer is longer than what was received; ask again with this allocation length.
    More {
        /// Number of bytes of the whole answer.
        needed: u64,
    },
    /// The answer describes a group twice.
    Duplicate {
        /// The group.
        group: u16,
    },
    /// A group has no ports.
    NoPorts {
        /// The group.
        group: u16,
    },
    /// The page is not the one that was asked for.
    Page {
        /// The page's code.
        found: u8,
    },
}

impl core::error::Error for AluaError {}

impl fmt::Display for AluaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { needed, found } => {
                write!(f, "the answer has {found} bytes, but its descriptors need {needed}")
            }
            Self::More { needed } => {
                write!(f, "the answer has {needed} bytes, which is more than was received")
            }
            Self::Duplicate { group } => {
                write!(f, "the answer describes target port group {group:#06x} twice")
            }
            Self::NoPorts { group } => {
                write!(f, "target port group {group:#06x} has no ports")
            }
            Self::Page { found } => {
                write!(f, "the answer is VPD page {found:02x}h, but page 83h was asked for")
            }
        }
    }
}

/// A target port group of an answer to REPORT TARGET PORT GROUPS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortGroup<'a> {
    /// The number of the group.
    pub group: u16,
    /// Its access state.
    pub state: AccessState,
    /// Whether the array prefers this group.
    pub is_preferred: bool,
    /// Whether the group can be in the state [`AccessState::LbaDependent`].
    pub can_be_lba_dependent: bool,
    ports: &'a [u8],
}

impl<'a> PortGroup<'a> {
    /// The relative identifiers of the group's ports.
    pub fn ports(&self) -> impl Iterator<Item = u16> + 'a {
        self.ports.chunks_exact(PORT_LEN).filter_map(|port| u16_at(port, 2))
    }
}

/// Length of the header of an answer.
const HEADER_LEN: usize = 4;
/// Length of a group's descriptor without its ports.
const GROUP_LEN: usize = 8;
/// Length of a port's descriptor.
const PORT_LEN: usize = 4;

/// A checked answer to REPORT TARGET PORT GROUPS with the short form of the header.
#[derive(Clone, Copy, Debug)]
pub struct PortGroups<'a> {
    descriptors: &'a [u8],
}

impl<'a> PortGroups<'a> {
    /// Checks an answer.
    ///
    /// # Errors
    /// The first thing that is wrong. [`AluaError::More`] calls for a larger allocation length.
    ///
    /// ```
    /// use blkswitch_core::map::alua::{AccessState, PortGroups};
    /// let answer = [0, 0, 0, 12, 0x84, 0x3f, 0, 7, 0, 0, 0, 1, 0, 0, 0, 9];
    /// let groups = PortGroups::parse(&answer)?;
    /// let group = groups.iter().next().expect("there is a group");
    /// assert_eq!((group.group, group.state), (7, AccessState::LbaDependent));
    /// assert_eq!(group.ports().collect::<Vec<u16>>(), [9]);
    /// # Ok::<(), blkswitch_core::map::alua::AluaError>(())
    /// ```
    pub fn parse(answer: &'a [u8]) -> Result<Self, AluaError> {
        let short = |needed| AluaError::Short { needed, found: answer.len() };
        let len = u32_at(answer, 0).ok_or(short(HEADER_LEN))?;
        let needed = u64::from(len).saturating_add(HEADER_LEN as u64);
        let end = usize::try_from(needed).map_err(|_| AluaError::More { needed })?;
        let descriptors = answer.get(HEADER_LEN..end).ok_or(AluaError::More { needed })?;
        let groups = Self { descriptors };
        let mut rest = descriptors;
        while !rest.is_empty() {
            let (group, after) = next_group(rest).ok_or_else(|| {
                let count = u8_at(rest, 7).map_or(0, usize::from);
                let at = answer.len().saturating_sub(rest.len());
                short(at.saturating_add(GROUP_LEN).saturating_add(count.saturating_mul(PORT_LEN)))
            })?;
            if group.ports.is_empty() {
                return Err(AluaError::NoPorts { group: group.group });
            }
            // Quadratic, but an answer has at most some hundred groups.
            let so_far = descriptors.len().saturating_sub(rest.len());
            let earlier = Self { descriptors: descriptors.get(..so_far).unwrap_or(&[]) };
            if earlier.get(group.group).is_some() {
                return Err(AluaError::Duplicate { group: group.group });
            }
            rest = after;
        }
        Ok(groups)
    }

    /// The groups, in the order of the answer.
    pub fn iter(&self) -> impl Iterator<Item = PortGroup<'a>> + use<'a> {
        let mut rest = self.descriptors;
        core::iter::from_fn(move || {
            let (group, after) = next_group(rest)?;
            rest = after;
            Some(group)
        })
    }

    /// The group of this number.
    #[must_use]
    pub fn get(&self, group: u16) -> Option<PortGroup<'a>> {
        self.iter().find(|other| other.group == group)
    }
}

fn next_group(bytes: &[u8]) -> Option<(PortGroup<'_>, &[u8])> {
    let state = u8_at(bytes, 0)?;
    let supports = u8_at(bytes, 1)?;
    let group = u16_at(bytes, 2)?;
    let ports = usize::from(u8_at(bytes, 7)?).checked_mul(PORT_LEN)?;
    let (ports, after) = bytes.get(GROUP_LEN..)?.split_at_checked(ports)?;
    let group = PortGroup {
        group,
        state: AccessState::from_code(state),
        is_preferred: state & 0x80 != 0,
        can_be_lba_dependent: supports & 0x10 != 0,
        ports,
    };
    Some((group, after))
}

/// The port that answered an inquiry: where a path goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// The relative identifier of the port, if the page has it.
    pub port: Option<u16>,
    /// The target port group of the port, if the page has it.
    pub group: Option<u16>,
}

impl Port {
    /// The port that a VPD page 83h describes. The page is that of a path, read through this path.
    ///
    /// # Errors
    /// [`AluaError::Page`] for another page, [`AluaError::Short`] for a cut page.
    pub fn parse(page: &[u8]) -> Result<Self, AluaError> {
        /// Codes of the association "target port" and of its two designators.
        const TARGET_PORT: u8 = 1;
        const RELATIVE_PORT: u8 = 4;
        const PORT_GROUP: u8 = 5;
        let short = |needed| AluaError::Short { needed, found: page.len() };
        let code = u8_at(page, 1).ok_or(short(HEADER_LEN))?;
        if code != 0x83 {
            return Err(AluaError::Page { found: code });
        }
        let len = usize::from(u16_at(page, 2).ok_or(short(HEADER_LEN))?);
        let end = len.saturating_add(HEADER_LEN);
        let mut rest = page.get(HEADER_LEN..end).ok_or(short(end))?;
        let mut port = Self::default();
        while !rest.is_empty() {
            let at = end.saturating_sub(rest.len());
            let kind = u8_at(rest, 1).ok_or(short(at.saturating_add(4)))?;
            let len = usize::from(u8_at(rest, 3).ok_or(short(at.saturating_add(4)))?);
            let (designator, after) = rest
                .get(4..)
                .and_then(|rest| rest.split_at_checked(len))
                .ok_or(short(at.saturating_add(4).saturating_add(len)))?;
            if kind >> 4 & 3 == TARGET_PORT {
                match kind & 0x0f {
                    RELATIVE_PORT => port.port = u16_at(designator, 2),
                    PORT_GROUP => port.group = u16_at(designator, 2),
                    _ => {}
                }
            }
            rest = after;
        }
        Ok(port)
    }
}
