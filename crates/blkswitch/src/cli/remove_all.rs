//! `remove_all`: take away every device that nobody uses; with `--force` also make the others fail
//! their I/O.

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

/// The switches that its help shows.
pub(super) const SHOWN: &[&str] = &["force", "deferred"];

impl RemoveAll {
    /// Runs the verb.
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let Options { force, deferred, json, .. } = self.options;
        let request = Request { force, deferred };
        let sent = context.client.exchange(Method::POST, route::REMOVE_ALL, &request).await;
        let removed: Removed = sent.map_err(|error| error.about(Subject::default()))?;
        if json {
            context.print_json(&removed)?;
        }
        // dmsetup says this with --force and still exits 0.
        if force && !removed.busy.is_empty() {
            eprintln!("Unable to remove {} device(s).", removed.busy.len());
        }
        Ok(())
    }
}
