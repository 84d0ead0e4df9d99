//! blkswitch-io: moves the bytes of blkswitch.
//!
//! A [`Pool`] runs queue threads. Each owns one io_uring, one [`pipeline::Pipeline`] and any number
//! of export connections, and shares nothing with its siblings on the way of a request but the
//! region slots of a map and one counter line per leaf. A [`Device`] is the control side of one
//! device: its live and inactive table, its gate, its message lock. Control reaches the queues
//! through a mailbox; it never waits inside one.
//!
//! See ARCHITECTURE.md for the life of a request and of a remap.

pub mod buffer;
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
pub mod nbd;
pub mod pages;
pub mod pipeline;
pub mod pool;
pub mod process;
pub mod queue;
mod queues;
pub mod request;
pub mod ring;
pub mod slab;
pub mod slots;
pub mod stats;
mod sync;
pub mod table;

pub use blkswitch_core as core;
pub use device::{Device, DeviceError};
pub use leaf::{Address, Leaf, LeafError, LeafOptions};
pub use pool::{Pool, PoolOptions};
pub use queues::Queues;
pub use table::{Below, Segment, Table, TableBuilder, TableError, Target, To};
