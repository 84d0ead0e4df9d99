//! Modules that know nothing of block devices: the ring, memory, sockets, threads.

pub(crate) mod aligned;
pub mod buffer;
pub(crate) mod eventfd;
pub(crate) mod fds;
pub(crate) mod gather;
pub(crate) mod guarded;
pub mod handoff;
pub(crate) mod helper;
pub(crate) mod latch;
pub(crate) mod lock;
pub(crate) mod log_limit;
pub(crate) mod mailbox;
pub mod memory;
pub mod pages;
pub mod process;
pub mod ring;
pub mod slab;
pub mod slots;
pub(crate) mod span;
pub mod sparse;
pub(crate) mod sync;
pub(crate) mod waker;
