//! `remove`: removes devices. With `--retry`, it tries again while a device is open.

use std::time::Duration;

use clap::Args;
use hyper::Method;

use super::context::Context;
use super::failure::Failure;
use super::names::Selector;
use super::options::Options;
use crate::protocol::{Errno, device_path, route};

/// Remove devices
///
/// An open device is refused. With --deferred it goes with its last user. With --force its I/O
/// fails, its NBD clients are disconnected, and it goes, unless another device stands on it.
#[derive(Debug, Args)]
pub(super) struct Remove {
    /// The devices
    #[arg(value_name = "DEVICE")]
    devices: Vec<String>,
    #[command(flatten)]
    options: Options,
}

pub(super) const SHOWN: &[&str] = &["force", "deferred", "retry", "uuid", "major", "minor"];

/// Number of attempts with `--retry`, as in libdm.
const RETRIES: u32 = 25;
/// Pause between two attempts. All attempts take five seconds.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

impl Remove {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        for selector in Selector::list(&self.devices, &self.options)? {
            let mut tries = if self.options.retry { RETRIES } else { 1 };
            loop {
                tries -= 1;
                match self.remove(&selector, context).await {
                    Err(failure) if failure.errno() == Some(Errno::Ebusy) && tries > 0 => {
                        tokio::time::sleep(RETRY_PAUSE).await;
                    }
                    done => break done?,
                }
            }
        }
        Ok(())
    }

    async fn remove(&self, selector: &Selector, context: &Context) -> Result<(), Failure> {
        let Options { force, deferred, .. } = self.options;
        let name = context.name_of(selector, "remove").await?;
        let path =
            format!("{}?force={force}&deferred={deferred}", device_path(route::DEVICE, &name));
        let sent = context.client.send(Method::DELETE, &path, &()).await;
        sent.map(drop).map_err(|error| error.about(selector.subject()))
    }
}
