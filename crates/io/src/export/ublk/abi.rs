//! The interface of the ublk driver: numbers and structures.
//!
//! Source of all facts: `include/uapi/linux/ublk_cmd.h` and `Documentation/block/ublk.rst` of Linux
//! 6.12 (7.3 for zero copy), and `include/uapi/asm-generic/ioctl.h` for `_IOWR`. Structures are
//! passed by address in the layout of C. Their sizes are checked below, because the driver checks
//! them, too.

/// The path of the control device.
pub(super) const CONTROL: &str = "/dev/ublk-control";

/// Commands on the control device. Each has a [`ControlCommand`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Control {
    GetDevInfo = ioc(READ, 0x02, CONTROL_SIZE),
    AddDev = ioc(READ | WRITE, 0x04, CONTROL_SIZE),
    DelDev = ioc(READ | WRITE, 0x05, CONTROL_SIZE),
    StartDev = ioc(READ | WRITE, 0x06, CONTROL_SIZE),
    StopDev = ioc(READ | WRITE, 0x07, CONTROL_SIZE),
    SetParams = ioc(READ | WRITE, 0x08, CONTROL_SIZE),
    GetParams = ioc(READ, 0x09, CONTROL_SIZE),
    StartUserRecovery = ioc(READ | WRITE, 0x10, CONTROL_SIZE),
    EndUserRecovery = ioc(READ | WRITE, 0x11, CONTROL_SIZE),
    GetFeatures = ioc(READ, 0x13, CONTROL_SIZE),
}

impl Control {
    /// The command's name in the kernel's documentation.
    pub(super) fn name(self) -> &'static str {
        match self {
            Control::GetDevInfo => "GET_DEV_INFO",
            Control::AddDev => "ADD_DEV",
            Control::DelDev => "DEL_DEV",
            Control::StartDev => "START_DEV",
            Control::StopDev => "STOP_DEV",
            Control::SetParams => "SET_PARAMS",
            Control::GetParams => "GET_PARAMS",
            Control::StartUserRecovery => "START_USER_RECOVERY",
            Control::EndUserRecovery => "END_USER_RECOVERY",
            Control::GetFeatures => "GET_FEATURES",
        }
    }
}

/// Commands on a device's character device. Each has an [`IoCommand`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Io {
    /// The first command for a tag. It completes when a request has arrived.
    Fetch = ioc(READ | WRITE, 0x20, IO_SIZE),
    /// Answers the tag's request, and fetches the next one like [`Io::Fetch`].
    CommitAndFetch = ioc(READ | WRITE, 0x21, IO_SIZE),
}

const WRITE: u32 = 1;
const READ: u32 = 2;
const CONTROL_SIZE: u32 = size_of::<ControlCommand>() as u32;
const IO_SIZE: u32 = size_of::<IoCommand>() as u32;

const fn ioc(direction: u32, number: u32, size: u32) -> u32 {
    (direction << 30) | (size << 16) | ((b'u' as u32) << 8) | number
}

/// Features of the driver, `UBLK_F_*`.
pub(super) mod feature {
    /// A request's pages can be in a ring's table of buffers.
    pub(in super::super) const SUPPORT_ZERO_COPY: u64 = 1 << 0;
    /// The device outlives its server, and requests wait for the next server.
    pub(in super::super) const USER_RECOVERY: u64 = 1 << 3;
    /// Requests of the dead server are sent again to the next one.
    pub(in super::super) const USER_RECOVERY_REISSUE: u64 = 1 << 4;
    /// Commands are numbered as ioctls are.
    pub(in super::super) const CMD_IOCTL_ENCODE: u64 = 1 << 6;
    /// A request's bytes are read and written through the character device, and are not copied
    /// otherwise.
    pub(in super::super) const USER_COPY: u64 = 1 << 7;
    /// A request's pages are put into the table before it arrives, and removed with its answer.
    pub(in super::super) const AUTO_BUF_REG: u64 = 1 << 11;
}

/// State of a device, `UBLK_S_DEV_*`.
pub(super) mod state {
    /// There is no disk, because it was never started or was stopped.
    pub(in super::super) const DEAD: u16 = 0;
    /// The disk exists without a server, and waits for the next one.
    pub(in super::super) const QUIESCED: u16 = 2;
}

/// Kinds of request, `UBLK_IO_OP_*`.
pub(super) mod op {
    pub(in super::super) const READ: u8 = 0;
    pub(in super::super) const WRITE: u8 = 1;
    pub(in super::super) const FLUSH: u8 = 2;
    pub(in super::super) const DISCARD: u8 = 3;
    pub(in super::super) const WRITE_ZEROES: u8 = 5;
}

/// Flags of a request, `UBLK_IO_F_*`.
pub(super) mod io_flag {
    /// The write must be durable before it is answered.
    pub(in super::super) const FUA: u32 = 1 << 13;
    /// WRITE_ZEROES must keep the range allocated.
    pub(in super::super) const NOUNMAP: u32 = 1 << 15;
    /// The driver could not put the request's pages into the table.
    pub(in super::super) const NEED_REG_BUF: u32 = 1 << 17;
}

/// The word of a fetch for the pages of its request (`struct ublk_auto_buf_reg`): their slot, and
/// the flag that the request may arrive without them (`UBLK_AUTO_BUF_REG_FALLBACK`).
pub(super) fn auto_buf_reg(slot: u16) -> u64 {
    const FALLBACK: u64 = 1 << 0;
    u64::from(slot) | (FALLBACK << 16)
}

/// The offset of a tag's bytes in the character device (`UBLKSRV_IO_BUF_OFFSET` and the definitions
/// after it).
pub(super) fn bytes_at(queue: u16, tag: u16) -> u64 {
    0x8000_0000 + (u64::from(queue) << 41) + (u64::from(tag) << 25)
}

/// `UBLK_ATTR_*` and `UBLK_PARAM_TYPE_*`.
pub(super) mod param {
    pub(in super::super) const ATTR_READ_ONLY: u32 = 1 << 0;
    pub(in super::super) const ATTR_ROTATIONAL: u32 = 1 << 1;
    pub(in super::super) const ATTR_VOLATILE_CACHE: u32 = 1 << 2;
    pub(in super::super) const ATTR_FUA: u32 = 1 << 3;
    pub(in super::super) const TYPE_BASIC: u32 = 1 << 0;
    pub(in super::super) const TYPE_DISCARD: u32 = 1 << 1;
}

/// The result of a fetch with a request.
pub(super) const IO_RES_OK: i32 = 0;
/// The result of a fetch that the driver aborted because the device was stopped
/// (`UBLK_IO_RES_ABORT`).
pub(super) const IO_RES_ABORT: i32 = -libc::ENODEV;

/// Most tags of one hardware queue.
pub(super) const MAX_QUEUE_DEPTH: u16 = 4096;

/// `struct ublksrv_ctrl_cmd`, for the 80 bytes of a large submission's command.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct ControlCommand {
    pub(super) dev_id: u32,
    pub(super) queue_id: u16,
    pub(super) len: u16,
    pub(super) addr: u64,
    pub(super) data: u64,
    pub(super) dev_path_len: u16,
    pub(super) pad: u16,
    pub(super) reserved: u32,
}

impl ControlCommand {
    /// The queue number of a command for the whole device.
    pub(super) const NO_QUEUE: u16 = u16::MAX;

    pub(super) fn bytes(&self) -> [u8; 80] {
        let mut bytes = [0; 80];
        let (head, _) = bytes.split_at_mut(size_of::<Self>());
        head.copy_from_slice(bytemuck::bytes_of(self));
        bytes
    }
}

// SAFETY: integers only, and their sizes add up to that of the whole (checked below): no padding.
unsafe impl bytemuck::Zeroable for ControlCommand {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for ControlCommand {}

/// `struct ublksrv_ctrl_dev_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct DevInfo {
    pub(super) nr_hw_queues: u16,
    pub(super) queue_depth: u16,
    pub(super) state: u16,
    pub(super) pad0: u16,
    pub(super) max_io_buf_bytes: u32,
    pub(super) dev_id: u32,
    pub(super) ublksrv_pid: i32,
    pub(super) pad1: u32,
    pub(super) flags: u64,
    /// Defined by the server. The driver keeps it and returns it.
    pub(super) ublksrv_flags: u64,
    pub(super) owner_uid: u32,
    pub(super) owner_gid: u32,
    pub(super) reserved: [u64; 2],
}

/// The first part of `struct ublk_params`. The driver uses only `len` bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct UblkParams {
    pub(super) len: u32,
    pub(super) types: u32,
    pub(super) basic: BasicParams,
    pub(super) discard: DiscardParams,
    /// The first word of the next parameters, which only the driver fills in.
    pub(super) pad: u32,
}

impl UblkParams {
    /// The logical block size in bytes.
    pub(super) fn logical_block(&self) -> u32 {
        1u32.checked_shl(self.basic.logical_bs_shift.into()).unwrap_or(u32::MAX)
    }
}

/// `struct ublk_param_basic`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct BasicParams {
    pub(super) attrs: u32,
    pub(super) logical_bs_shift: u8,
    pub(super) physical_bs_shift: u8,
    pub(super) io_opt_shift: u8,
    pub(super) io_min_shift: u8,
    pub(super) max_sectors: u32,
    pub(super) chunk_sectors: u32,
    pub(super) dev_sectors: u64,
    pub(super) virt_boundary_mask: u64,
}

/// `struct ublk_param_discard`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct DiscardParams {
    pub(super) discard_alignment: u32,
    pub(super) discard_granularity: u32,
    pub(super) max_discard_sectors: u32,
    pub(super) max_write_zeroes_sectors: u32,
    pub(super) max_discard_segments: u16,
    pub(super) reserved0: u16,
}

/// `struct ublksrv_io_desc`: the request of a tag, in memory shared with the driver.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct IoDesc {
    /// The kind of request in the low byte, and flags above it.
    pub(super) op_flags: u32,
    pub(super) nr_sectors: u32,
    pub(super) start_sector: u64,
    pub(super) addr: u64,
}

impl IoDesc {
    /// The kind of request, one of [`op`].
    pub(super) fn op(&self) -> u8 {
        self.op_flags as u8
    }

    /// Length of the range in bytes.
    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.nr_sectors) * 512
    }
}

/// `struct ublksrv_io_cmd`, for the 16 bytes of a submission's command.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct IoCommand {
    pub(super) queue: u16,
    pub(super) tag: u16,
    pub(super) result: i32,
    pub(super) addr: u64,
}

impl IoCommand {
    pub(super) fn bytes(self) -> [u8; 16] {
        // Both sizes are equal (checked below), so this cannot panic.
        bytemuck::cast(self)
    }
}

// SAFETY: integers only, and their sizes add up to that of the whole (checked below): no padding.
unsafe impl bytemuck::Zeroable for IoCommand {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for IoCommand {}

const _: () = {
    assert!(size_of::<ControlCommand>() == 4 + 2 + 2 + 8 + 8 + 2 + 2 + 4);
    assert!(size_of::<IoCommand>() == 2 + 2 + 4 + 8);
    assert!(size_of::<DevInfo>() == 64);
    assert!(size_of::<BasicParams>() == 32);
    assert!(size_of::<DiscardParams>() == 20);
    assert!(size_of::<UblkParams>() == 64);
    assert!(size_of::<IoDesc>() == 24);
};

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers that a C compiler computes from the macros of ublk_cmd.h.
    #[test]
    fn commands_have_the_numbers_of_the_header() {
        assert_eq!(Control::AddDev as u32, 0xc020_7504);
        assert_eq!(Control::GetDevInfo as u32, 0x8020_7502);
        assert_eq!(Control::GetFeatures as u32, 0x8020_7513);
        assert_eq!(Control::EndUserRecovery as u32, 0xc020_7511);
        assert_eq!(Io::Fetch as u32, 0xc010_7520);
        assert_eq!(Io::CommitAndFetch as u32, 0xc010_7521);
    }

    #[test]
    fn places_are_those_of_the_header() {
        assert_eq!(auto_buf_reg(0x0102), 0x0001_0102);
        assert_eq!(bytes_at(0, 0), 0x8000_0000);
        assert_eq!(bytes_at(4095, 4095), 0x8000_0000 + (4095 << 41) + (4095 << 25));
    }

    #[test]
    fn commands_have_the_layout_of_the_header() {
        let command = ControlCommand {
            dev_id: 0x0403_0201,
            queue_id: 0x0605,
            len: 0x0807,
            addr: 0x100f_0e0d_0c0b_0a09,
            data: 0x1817_1615_1413_1211,
            dev_path_len: 0x1a19,
            pad: 0,
            reserved: 0,
        };
        let expected: Vec<u8> = (1..=26).chain([0; 54]).collect();
        assert_eq!(command.bytes().as_slice(), expected, "on a little-endian machine");
        let command = IoCommand {
            queue: 0x0201,
            tag: 0x0403,
            result: 0x0807_0605,
            addr: 0x100f_0e0d_0c0b_0a09,
        };
        assert_eq!(command.bytes().as_slice(), (1..=16).collect::<Vec<u8>>());
    }
}
