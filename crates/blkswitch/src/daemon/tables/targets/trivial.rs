//! The targets without devices: `error` (dm-error 1.5) fails every request, and `zero` (dm-zero
//! 1.1) reads as zeroes and drops writes.
//!
//! Contract: as [`super`].

use blkswitch_io::Target;

use super::{TargetType, refuse};
use crate::daemon::failure::Failure;
use crate::daemon::tables::builder::Builder;
use crate::daemon::tables::lines::Line;

pub(super) static ERROR: TargetType = TargetType {
    name: "error",
    version: [1, 5, 0],
    stands_alone: false,
    construct: error,
    params: |_, _| String::new(),
    status: |_, _| String::new(),
    message: None,
    needs: |_| Vec::new(),
};

pub(super) static ZERO: TargetType =
    TargetType { name: "zero", version: [1, 1, 0], construct: zero, ..ERROR };

fn error(_: &mut Builder<'_>, line: &Line<'_>) -> Result<Target, Failure> {
    match line.words.as_slice() {
        [] => Ok(Target::Error),
        _ => Err(refuse("error", "Invalid argument count", "error has no parameters".to_owned())),
    }
}

fn zero(_: &mut Builder<'_>, line: &Line<'_>) -> Result<Target, Failure> {
    match line.words.as_slice() {
        [] => Ok(Target::Zero),
        _ => Err(refuse("zero", "No arguments required", "zero has no parameters".to_owned())),
    }
}
