//! blkswitch-core decides which path each sector of a switch device takes, and which of several
//! paths to one volume a request takes.
//!
//! A *switch* device is divided into *regions* of one size. A packed table holds the *path* of each
//! region: one of several devices that lead to the same volume. The table begins as round robin,
//! and messages change it while I/O runs. This is the device-mapper `switch` target of Linux: it
//! takes the same table lines and messages, and its errors have the same words. [`multipath`] does
//! the same for the lower tier, the `multipath` target. A daemon, a library and a kernel module
//! (without `multipath`) compile the same files.
//!
//! Contract of the whole crate: no I/O, no clock, no threads, no allocation, no `unsafe`, no
//! dependency. The caller provides storage. No function panics, whatever the input. All functions
//! that a kernel calls (all but `Display`) compile to code without a symbol of libcore.
//!
//! ```
//! use core::sync::atomic::AtomicU64;
//! use blkswitch_core::switch::{Geometry, Map, Message, Route};
//!
//! // 2048 sectors, 3 paths, regions of 128 sectors: 16 regions. Zeroed storage is round robin.
//! let geometry = Geometry::new(2048, 3, 128)?;
//! let storage: Vec<AtomicU64> = (0..geometry.nr_slots()).map(|_| AtomicU64::new(0)).collect();
//! let map = Map::new(geometry, storage).expect("the storage is as long as asked for");
//! assert_eq!(map.route(130), Route { path: 1, left: 126 });
//!
//! // The first seven regions to paths 0 1 2 0 1 2 1.
//! let mut writer = map.writer().expect("nobody else changes the map");
//! let words = b"0:0 :1 :2 :0 :1 :2 :1";
//! Message::new().apply_text(&mut writer, words, true).map_err(|(_, error)| error)?;
//! assert_eq!(map.path(6), Some(1));
//!
//! // Read the map back: as runs of equal regions ...
//! let run = map.runs(6, 16).next().unwrap();
//! assert_eq!((run.start, run.count, run.path), (6, 2, 1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Inside this crate, paths begin with `super::`, never with `crate::`, because the kernel module
//! includes these files as a module of its own.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "model")]
extern crate std;

pub mod args;
pub mod error;
#[cfg(feature = "model")]
pub mod model;
#[cfg(feature = "multipath")]
pub mod multipath;
pub mod switch;
pub mod table;
pub mod units;
