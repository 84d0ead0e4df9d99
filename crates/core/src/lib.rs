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
//! | to | see |
//! |---|---|
//! | look up the path of a sector, and change a map by a message | the first example |
//! | apply a message as a whole or not at all | [the second](#a-message-as-a-whole-or-not-at-all) |
//! | read a map back, as runs or as a message | [the third](#reading-a-map-back) |
//! | read a table line | [`table::lines`], [`switch::Params`], [`multipath::Params`] |
//! | choose among several paths to one volume | [`multipath`] |
//! | compare maps, carry one over to another table, plan moves, decode an array's map | [`map`] |
//!
//! Lengths and places are in sectors of 512 bytes ([`table::SECTOR_SIZE`]).
//!
//! # A map and a message
//!
//! ```
//! use core::sync::atomic::AtomicU64;
//! use blkswitch_core::switch::{Geometry, Map, Message, Route};
//!
//! // 2048 sectors, 3 paths, regions of 128 sectors: 16 regions. Zeroed storage is round robin.
//! let geometry = Geometry::new(2048, 3, 128)?;
//! let storage: Vec<AtomicU64> = (0..geometry.nr_slots()).map(|_| AtomicU64::new(0)).collect();
//! let map = Map::new(geometry, storage)?;
//! assert_eq!(map.route(130), Route { path: 1, left: 126 });
//!
//! // The first seven regions to paths 0 1 2 0 1 2 1.
//! let mut writer = map.writer().expect("nobody else changes the map");
//! Message::new().apply_text(&mut writer, b"0:0 :1 :2 :0 :1 :2 :1", true)?;
//! assert_eq!(map.path(6), Some(1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # A message as a whole or not at all
//!
//! A bad argument ends a message, and the arguments before it stay applied, as in the kernel. If a
//! message must not be applied in part, check it first. Whether it is right does not depend on the
//! map's contents, so it cannot fail afterwards.
//!
//! ```
//! # use core::sync::atomic::AtomicU64;
//! # use blkswitch_core::switch::{Geometry, Map, Message};
//! use blkswitch_core::args::Words;
//!
//! # let geometry = Geometry::new(2048, 3, 128)?;
//! # let map = Map::new(geometry, vec![AtomicU64::new(0)])?;
//! let text = b"5:1 6:3";
//! let refused = Message::new().check_text(&geometry, text, true).unwrap_err();
//! let argument = Words::new(&text[refused.at..]).next().expect("the refused argument");
//! assert_eq!(
//!     refused.error.explain(argument).to_string(),
//!     "argument 2 '6:3': the path 3 (hex 3) must be from 0 to 2 (hex 2)"
//! );
//! assert_eq!(map.path(5), Some(2));
//!
//! let text = b"5:1 6:2";
//! Message::new().check_text(&geometry, text, true)?;
//! let mut writer = map.writer().expect("nobody else changes the map");
//! Message::new().apply_text(&mut writer, text, true)?;
//! assert_eq!(map.path(5), Some(1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Reading a map back
//!
//! ```
//! # use core::sync::atomic::AtomicU64;
//! # use blkswitch_core::switch::{Geometry, Map, Message, Run};
//! use blkswitch_core::switch::compact;
//!
//! # let geometry = Geometry::new(2048, 3, 128)?;
//! # let map = Map::new(geometry, vec![AtomicU64::new(0)])?;
//! let mut writer = map.writer().expect("nobody else changes the map");
//! Message::new().apply_text(&mut writer, b"0:2 R1,9", true)?;
//!
//! // As runs of regions with the same path.
//! let run = map.runs(0, 16).next().expect("a map has a region");
//! assert_eq!(run, Run { start: 0, count: 10, path: 2 });
//!
//! // As a short message that makes the same map: a copy of the runs above, and round robin.
//! let mut text = String::new();
//! compact::write(&map, 0, 16, &mut [0; 256], |argument| {
//!     std::str::from_utf8(argument).map(|argument| text.push_str(argument))
//! })?;
//! assert_eq!(text, "0:2 R1,9 :1 :2 :0 R3,3");
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
// Its functions take words of plain atomics; loom checks those of its own.
#[cfg(all(feature = "map", not(loom)))]
pub mod map;
#[cfg(feature = "model")]
pub mod model;
#[cfg(feature = "multipath")]
pub mod multipath;
pub mod switch;
pub mod table;
