//! `remove_all`: removes every device that is not open. With `--force`, the I/O of open devices
//! fails.

use clap::Args;
use hyper::Method;

use super::context::Context;
use super::failure::{Failure, Subject};
use super::options::Options;
use crate::protocol::{RemoveAll as Request, Removed, route};

/// Remove all devices that are not open
#[derive(Debug, Args)]
pub(super) struct RemoveAll {
    #[command(flatten)]
    options: Options,
}

pub(super) const SHOWN: &[&str] = &["force", "deferred"];

impl RemoveAll {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let Options { force, deferred, json, .. } = self.options;
        let request = Request { force, deferred };
        let sent = context.client.exchange(Method::POST, route::REMOVE_ALL, &request).await;
        let removed: Removed = sent.map_err(|error| error.about(Subject::default()))?;
        if json {
            context.print_json(&removed)?;
        }
        // dmsetup prints this with --force and still exits with 0.
        if force && !removed.busy.is_empty() {
            eprintln!("Unable to remove {} device(s).", removed.busy.len());
        }
        Ok(())
    }
}
