//! The data path of blkswitch as a library: region routing, failover and NBD in your own process.
//!
//! A [`Pool`] runs queue threads, one per core. Each has its own io_uring and any number of
//! connections, and shares nothing with the others on the way of a request. Clients see a
//! [`Device`]. It has a [`Table`] of segments. The [`Target`] of a segment sends requests down
//! paths, to a [`Leaf`] (a file, a disk, an NBD export, an iSCSI unit, your own engine) or to
//! another device. A new table is loaded beside the running one and swapped in. Region maps change
//! at once, under load.
//!
//! Where to begin:
//!
//! | to | see |
//! |---|---|
//! | serve a device over NBD, and remap it while it is in use | the program below; `examples/serve.rs` |
//! | remap under the load of your own threads | [`client::Client`]; `examples/remap.rs` |
//! | reach one volume over several paths | [`multipath::MultipathBuilder`]; `examples/multipath.rs` |
//! | route requests on your own thread, without queues or exports | [`driver::Driver`]; `examples/driver.rs` |
//! | bring your own leaf | [`engine::CustomEngine`], [`Leaf::custom`] |
//! | bring your own export | [`Pool::client`] |
//! | bring your own path selector | [`core::multipath::selector::CustomSelector`] |
//!
//! The examples run with `cargo run --release -p blkswitch-io --example NAME`.
//!
//! ```
//! use std::os::unix::net::UnixListener;
//!
//! use blkswitch_io::core::switch::{Geometry, Map};
//! use blkswitch_io::table::region_storage;
//! use blkswitch_io::{Leaf, LeafOptions, Pool, PoolOptions, TableBuilder, Target, To};
//!
//! let pool = Pool::start(PoolOptions { queues: 1, ..PoolOptions::default() })?;
//!
//! // A switch of 2048 sectors in regions of 128, over two paths.
//! let options = LeafOptions::new(pool.queues());
//! let mut table = TableBuilder::new(false);
//! let mut paths = Vec::new();
//! for address in ["mem:1M", "mem:1M"] {
//!     let leaf = Leaf::open(&address.parse()?, &options)?;
//!     paths.push(To { below: table.leaf(leaf), offset: 0 });
//! }
//! let geometry = Geometry::new(2048, 2, 128).map_err(|error| error.to_string())?;
//! let storage = region_storage(&geometry).ok_or("no memory for the map")?;
//! let map = Map::new(geometry, storage).map_err(|_| "the storage is too small")?;
//! table.push(2048, Target::Switch { map, paths: paths.into() });
//!
//! let device = pool.registry().create("switch", "", None)?;
//! device.load(table.build()?)?;
//! device.resume()?;
//!
//! // Clients find it by its name from now on.
//! let socket = std::env::temp_dir().join(format!("blkswitch-doc-{}.sock", std::process::id()));
//! pool.listen(UnixListener::bind(&socket)?.into())?;
//!
//! // Send region 1 to path 0, from the next request on.
//! device.messenger(0)?.writer().ok_or("no switch")?.set(1, 0);
//! pool.stop();
//! # std::fs::remove_file(socket)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! If you write an export or change this crate, begin with `ARCHITECTURE.md`. It describes the life
//! of a request, of a remap and of a table, and the rules for all code here.

pub mod device;
pub mod driver;
pub mod engine;
pub mod export;
pub mod leaf;
pub mod pool;
mod queue;
mod queues;
pub mod request;
pub mod stats;
#[cfg_attr(
    not(feature = "internals"),
    allow(dead_code, unreachable_pub, reason = "public with `internals`")
)]
mod sys;
mod wire;

// Internal modules. Their safe functions trust callers with memory (a `Span` is a pointer), so only
// this workspace may call them. The items above are for other users.
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod pipeline;
#[cfg(not(feature = "internals"))]
#[allow(dead_code, unreachable_pub, reason = "public with `internals`")]
mod pipeline;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub use sys::{buffer, handoff, pages, ring, slab};

pub use device::{event, multipath, table};
pub use export::client;
pub use leaf::closer;
pub use sys::{memory, process, slots, sparse};
pub use wire::nbd;

pub use blkswitch_core as core;
pub use device::table::{Below, Segment, Table, TableBuilder, TableError, Target, To};
pub use device::{Device, DeviceError};
pub use leaf::{Address, Leaf, LeafError, LeafOptions};
pub use pool::{Pool, PoolOptions, STOP_TIME};
pub use queues::Queues;
pub use sys::aligned::{ALIGNMENT, AlignedBytes};
