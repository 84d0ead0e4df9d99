//! blkswitch-io: moves the bytes of blkswitch.
//!
//! A [`Pool`] runs queue threads. Each owns one io_uring, one pipeline and any number
//! of export connections, and shares nothing with its siblings on the way of a request but the
//! region slots of a map and one counter line per leaf. A [`Device`] is the control side of one
//! device: its live and inactive table, its gate, its message lock. Control reaches the queues
//! through a mailbox; it never waits inside one.
//!
//! See ARCHITECTURE.md for the life of a request and of a remap.

mod aligned;
pub mod closer;
pub mod device;
pub mod driver;
pub mod engine;
pub mod event;
pub mod export;
mod failing;
mod gather;
mod helper;
pub mod leaf;
mod log_limit;
pub mod memory;
pub mod multipath;
pub mod nbd;
pub mod pool;
pub mod process;
mod queues;
pub mod request;
pub mod slots;
pub mod stats;
mod sync;
pub mod table;

// The engine room. Its safe functions trust their callers with memory (a `Span` is a pointer), so
// nobody outside of this workspace may call them: what others need is above.
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod buffer;
#[cfg(not(feature = "internals"))]
#[allow(dead_code, unreachable_pub, reason = "public with `internals`")]
mod buffer;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod pages;
#[cfg(not(feature = "internals"))]
#[allow(dead_code, unreachable_pub, reason = "public with `internals`")]
mod pages;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod pipeline;
#[cfg(not(feature = "internals"))]
#[allow(dead_code, unreachable_pub, reason = "public with `internals`")]
mod pipeline;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod queue;
#[cfg(not(feature = "internals"))]
#[allow(dead_code, unreachable_pub, reason = "public with `internals`")]
mod queue;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod ring;
#[cfg(not(feature = "internals"))]
#[allow(dead_code, unreachable_pub, reason = "public with `internals`")]
mod ring;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod slab;
#[cfg(not(feature = "internals"))]
#[allow(dead_code, unreachable_pub, reason = "public with `internals`")]
mod slab;

pub use aligned::{ALIGNMENT, AlignedBytes};
pub use blkswitch_core as core;
pub use device::{Device, DeviceError};
pub use leaf::{Address, Leaf, LeafError, LeafOptions};
pub use pool::{Pool, PoolOptions};
pub use queues::Queues;
pub use table::{Below, Segment, Table, TableBuilder, TableError, Target, To};
