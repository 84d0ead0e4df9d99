//! What a user can set: plain settings, which the command line fills and the daemon and the
//! demonstrations read.
//!
//! Contract: values only; nothing here opens, starts or prints anything.

mod demo;
mod serve;

pub use self::demo::{DemoOf, DemoOptions, GroupOptions, Transport};
pub use self::serve::{LogFormat, NbdAddress, PathOptions, ServeOptions};
