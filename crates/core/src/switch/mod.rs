//! The switch target: its constructor, its region table, its messages.
//!
//! [`params`] reads the table line, [`geometry`] knows everything that is fixed then, [`regions`]
//! is the table every request looks at, [`message`] changes it, [`compact`] writes it out again.

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

pub use geometry::{Geometry, MAX_PATHS, MAX_REGION_SIZE};
pub use message::{Command, Message, MessageError, MessageErrorKind, command};
pub use params::{Params, PathArg};
pub use regions::{Map, MapWriter, Route, Run, Runs, Storage, StorageError};
