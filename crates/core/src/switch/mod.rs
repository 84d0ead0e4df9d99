//! The switch target: its constructor, its region table, its messages.
//!
//! | module | does |
//! |---|---|
//! | [`params`] | reads the words of a table line |
//! | [`geometry`] | holds the sizes, which are fixed when the table is loaded |
//! | [`regions`] | holds the path of each region; every request looks it up |
//! | [`message`] | changes the map by `set_region_mappings` |
//! | [`compact`] | writes a map, or the difference of two maps, as a short message |

mod blocks;
pub mod compact;
mod entries;
pub mod geometry;
mod hex;
pub mod message;
pub mod params;
mod paths;
pub mod regions;
mod repeat;
mod sync;
mod text;
#[cfg(feature = "map")]
pub(super) mod walk;

pub use geometry::{Geometry, MAX_PATHS, MAX_REGION_SIZE};
pub use message::{Command, Message, MessageError, MessageErrorKind, TextError, command};
pub use params::{Params, PathArg};
pub use regions::{Map, MapWriter, Route, Run, Runs, Storage, StorageError};
