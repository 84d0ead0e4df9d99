//! `rename`: gives a device a new name, or a uuid if it has none.

use clap::Args;
use hyper::Method;

use super::context::Context;
use super::failure::Failure;
use super::names::{Selector, mangle, stored_new_name};
use super::options::Options;
use crate::protocol::{Rename as Request, route};

/// Rename a device, or give it a uuid with --setuuid
#[derive(Debug, Args)]
#[command(override_usage = "blkswitch rename [OPTIONS] <DEVICE> <NEW_NAME_OR_UUID>")]
pub(super) struct Rename {
    /// The device (unless -u or -j -m name it) and its new name or uuid
    #[arg(value_names = ["DEVICE", "NEW_NAME_OR_UUID"], num_args = 1..=2, required = true)]
    args: Vec<String>,
    #[command(flatten)]
    options: Options,
}

pub(super) const SHOWN: &[&str] = &["setuuid", "uuid", "major", "minor"];

impl Rename {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let mode = self.options.manglename;
        let (device, new) = match self.args.as_slice() {
            [device, new] => (Some(device.as_str()), new),
            [new] => (None, new),
            _ => return Err(Failure::WrongNumberOfArguments("rename")),
        };
        let selector = Selector::of(device, &self.options)?;
        let request = if self.options.setuuid {
            Request::Uuid(mangle("UUID", new, mode)?)
        } else {
            Request::Name(stored_new_name(new, mode)?)
        };
        context.command(Method::POST, route::RENAME, &selector, "rename", &request).await
    }
}
