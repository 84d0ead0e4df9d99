//! The numbers of vhost-user and virtio-blk, and readers of little-endian bytes.
//!
//! Contract: only translation. Names are those of the specifications ("Vhost-user Protocol" of
//! QEMU, and virtio 1.2), without the prefix that the module gives. Everything is little-endian: a
//! front end without `VIRTIO_F_VERSION_1` uses the byte order of the guest, which is the same on
//! all machines that this is for.

/// Length of a message's header: request, flags, size of the payload.
pub(crate) const HEADER_LEN: usize = 12;
/// Version of the protocol, in the lowest two bits of a message's flags.
pub(crate) const VERSION: u32 = 1;
/// The bits of the version.
pub(crate) const VERSION_MASK: u32 = 3;
/// Flag of a message: it is a reply.
pub(crate) const REPLY: u32 = 1 << 2;
/// Flag of a message: its sender waits for a reply (`VHOST_USER_PROTOCOL_F_REPLY_ACK`).
pub(crate) const NEED_REPLY: u32 = 1 << 3;

/// Messages of a front end.
pub(crate) mod request {
    /// Which virtio features are there.
    pub(crate) const GET_FEATURES: u32 = 1;
    /// Which of them are used.
    pub(crate) const SET_FEATURES: u32 = 2;
    /// The first message of a session.
    pub(crate) const SET_OWNER: u32 = 3;
    /// Deprecated.
    pub(crate) const RESET_OWNER: u32 = 4;
    /// The guest's memory: a descriptor for each region.
    pub(crate) const SET_MEM_TABLE: u32 = 5;
    /// The log of pages that were written to.
    pub(crate) const SET_LOG_BASE: u32 = 6;
    /// An eventfd for that log.
    pub(crate) const SET_LOG_FD: u32 = 7;
    /// Size of a ring.
    pub(crate) const SET_VRING_NUM: u32 = 8;
    /// Addresses of a ring.
    pub(crate) const SET_VRING_ADDR: u32 = 9;
    /// Where the ring goes on.
    pub(crate) const SET_VRING_BASE: u32 = 10;
    /// Stop a ring, and say where it goes on.
    pub(crate) const GET_VRING_BASE: u32 = 11;
    /// The eventfd that says that there are requests. It starts the ring.
    pub(crate) const SET_VRING_KICK: u32 = 12;
    /// The eventfd that says that there are answers.
    pub(crate) const SET_VRING_CALL: u32 = 13;
    /// The eventfd that says that the ring is broken.
    pub(crate) const SET_VRING_ERR: u32 = 14;
    /// Which features of the protocol are there.
    pub(crate) const GET_PROTOCOL_FEATURES: u32 = 15;
    /// Which of them are used.
    pub(crate) const SET_PROTOCOL_FEATURES: u32 = 16;
    /// Most rings of the device.
    pub(crate) const GET_QUEUE_NUM: u32 = 17;
    /// Serve a ring, or do not.
    pub(crate) const SET_VRING_ENABLE: u32 = 18;
    /// A socket for messages of the back end.
    pub(crate) const SET_BACKEND_REQ_FD: u32 = 21;
    /// Read the device's configuration space.
    pub(crate) const GET_CONFIG: u32 = 24;
    /// Write to it.
    pub(crate) const SET_CONFIG: u32 = 25;
    /// Make the area in which requests under way are noted.
    pub(crate) const GET_INFLIGHT_FD: u32 = 31;
    /// Use that area.
    pub(crate) const SET_INFLIGHT_FD: u32 = 32;
    /// Forget everything about the device.
    pub(crate) const RESET_DEVICE: u32 = 34;
    /// Most regions of memory.
    pub(crate) const GET_MAX_MEM_SLOTS: u32 = 36;
    /// One more region of memory.
    pub(crate) const ADD_MEM_REG: u32 = 37;
    /// One less.
    pub(crate) const REM_MEM_REG: u32 = 38;
}

/// Message of a back end: the configuration space has changed.
pub(crate) const BACKEND_CONFIG_CHANGE_MSG: u32 = 2;

/// Features of the protocol, `VHOST_USER_PROTOCOL_F_*`.
pub(crate) mod protocol {
    /// More than one ring.
    pub(crate) const MQ: u64 = 1 << 0;
    /// The log of written pages is shared memory.
    pub(crate) const LOG_SHMFD: u64 = 1 << 1;
    /// Messages without a reply get one if they ask for it.
    pub(crate) const REPLY_ACK: u64 = 1 << 3;
    /// The back end sends messages, too.
    pub(crate) const BACKEND_REQ: u64 = 1 << 5;
    /// The configuration space.
    pub(crate) const CONFIG: u64 = 1 << 9;
    /// The area of requests under way.
    pub(crate) const INFLIGHT_SHMFD: u64 = 1 << 12;
    /// The device can be reset.
    pub(crate) const RESET_DEVICE: u64 = 1 << 13;
    /// Regions of memory come and go one by one.
    pub(crate) const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
}

/// Features of the device, `VIRTIO_BLK_F_*`, `VIRTIO_F_*`, `VIRTIO_RING_F_*` and `VHOST_*`.
pub(crate) mod feature {
    /// The configuration space says how many segments a request may have.
    pub(crate) const SEG_MAX: u64 = 1 << 2;
    /// The device cannot be written to.
    pub(crate) const RO: u64 = 1 << 5;
    /// The configuration space has the block size.
    pub(crate) const BLK_SIZE: u64 = 1 << 6;
    /// There is a flush.
    pub(crate) const FLUSH: u64 = 1 << 9;
    /// The configuration space has the physical block size.
    pub(crate) const TOPOLOGY: u64 = 1 << 10;
    /// More than one ring.
    pub(crate) const MQ: u64 = 1 << 12;
    /// There is a discard.
    pub(crate) const DISCARD: u64 = 1 << 13;
    /// There is a way to write zeroes.
    pub(crate) const WRITE_ZEROES: u64 = 1 << 14;
    /// Written pages are logged.
    pub(crate) const LOG_ALL: u64 = 1 << 26;
    /// A descriptor may point to a table of descriptors.
    pub(crate) const INDIRECT_DESC: u64 = 1 << 28;
    /// Notifications are asked for by index.
    pub(crate) const EVENT_IDX: u64 = 1 << 29;
    /// There are features of the protocol ([`super::protocol`]).
    pub(crate) const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// The device follows virtio 1.0.
    pub(crate) const VERSION_1: u64 = 1 << 32;
}

/// Flag of `SET_VRING_KICK`, `_CALL` and `_ERR`: the message has no descriptor.
pub(crate) const VRING_NOFD: u64 = 1 << 8;
/// The bits of a ring's number there.
pub(crate) const VRING_INDEX: u64 = 0xff;
/// Flag of `SET_VRING_ADDR`: writes to the used ring are logged.
pub(crate) const VRING_LOG: u32 = 1 << 0;

/// Flags of a descriptor.
pub(crate) mod descriptor {
    /// The chain goes on.
    pub(crate) const NEXT: u16 = 1 << 0;
    /// The device writes to the memory.
    pub(crate) const WRITE: u16 = 1 << 1;
    /// The memory is a table of descriptors.
    pub(crate) const INDIRECT: u16 = 1 << 2;
}

/// Flag of an available ring: the driver wants no notification.
pub(crate) const NO_INTERRUPT: u16 = 1 << 0;

/// Kinds of requests, `VIRTIO_BLK_T_*`.
pub(crate) mod kind {
    /// Read.
    pub(crate) const IN: u32 = 0;
    /// Write.
    pub(crate) const OUT: u32 = 1;
    /// Make completed writes durable.
    pub(crate) const FLUSH: u32 = 4;
    /// Say the device's serial number.
    pub(crate) const GET_ID: u32 = 8;
    /// The range is not needed any more.
    pub(crate) const DISCARD: u32 = 11;
    /// The range is to read as zeroes.
    pub(crate) const WRITE_ZEROES: u32 = 13;
}

/// The status of a request, `VIRTIO_BLK_S_*`.
pub(crate) mod status {
    /// Done.
    pub(crate) const OK: u8 = 0;
    /// Failed.
    pub(crate) const IOERR: u8 = 1;
    /// There is no such request.
    pub(crate) const UNSUPP: u8 = 2;
}

/// Length of a request's header: kind, reserved, sector.
pub(crate) const REQUEST_LEN: usize = 16;
/// Length of a range of a discard or of zeroes: sector, sectors, flags.
pub(crate) const RANGE_LEN: usize = 16;
/// Flag of a range of zeroes: it may become a hole.
pub(crate) const UNMAP: u32 = 1 << 0;
/// Length of a serial number.
pub(crate) const ID_LEN: usize = 20;
/// Length of the configuration space, up to the fields of write-zeroes.
pub(crate) const CONFIG_LEN: usize = 60;
/// Longest configuration space of the protocol (`VHOST_USER_MAX_CONFIG_SIZE`).
pub(crate) const MAX_CONFIG_LEN: u32 = 256;

/// Two bytes at an offset; 0 beyond the end.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

/// Four bytes at an offset; 0 beyond the end.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

/// Eight bytes at an offset; 0 beyond the end.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.copied().unwrap_or([0; N])
}
