//! Signals: when the daemon stops, and when it refuses to.
//!
//! SIGTERM and SIGINT have the same effect. The daemon refuses a signal if somebody uses a disk and
//! would be left waiting. It says who, and what to do; a second signal confirms the first. A
//! service manager that stops the daemon to start it again at once says so beforehand, with
//! `serve --leave-disks`.
//!
//! Contract: one [`Signals`] at a time decides. From its creation on, the signals do not end the
//! process by themselves.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{sleep, timeout};

/// How long a refused signal can be confirmed by a second one. The user needs time to read the
/// reason.
const CONFIRM: Duration = Duration::from_secs(10);
/// Signals within this time count as one: nobody can have read the reason, and some programs send
/// each signal twice.
const ECHO: Duration = Duration::from_millis(500);
/// How long it may take to find out who uses the disks. A disk that has not answered by then counts
/// as used.
const LOOK: Duration = Duration::from_secs(5);
/// Exit status of a daemon that did not stop in good order.
const EXIT_AT_ONCE: i32 = 130;

/// Returns the disks that are in use, with their users. May block.
pub type InUse = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// Receives SIGTERM and SIGINT.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Starts to receive. From now on the signals do not end the process by themselves.
    pub fn new() -> anyhow::Result<Signals> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// Waits for the first signal. From then on a second one ends the process at once.
    pub async fn first(&mut self) {
        self.agreed(None).await;
    }

    /// Waits for a signal to stop. From then on another one ends the process at once. A signal
    /// while disks are in use, as `in_use` finds out, must be given twice.
    pub async fn agreed(&mut self, in_use: Option<InUse>) {
        let name = loop {
            let name = self.next().await;
            let used = match &in_use {
                Some(in_use) => looked(in_use.clone()).await,
                None => Vec::new(),
            };
            if used.is_empty() {
                break name;
            }
            tracing::error!(
                "{name} is refused, for disks are in use: {}. Their users would wait until serve runs again. Unmount them \
                 and the like, then try again. To stop all the same give the signal again within {} s (serve \
                 --leave-disks: at once)",
                used.join(", "),
                CONFIRM.as_secs()
            );
            sleep(ECHO).await;
            // Drops a signal that came during the pause.
            let _ = timeout(Duration::ZERO, self.next()).await;
            if let Ok(name) = timeout(CONFIRM - ECHO, self.next()).await {
                break name;
            }
        };
        match watch_for_second() {
            Ok(()) => tracing::info!(signal = name, "a second signal ends at once"),
            Err(error) => {
                tracing::warn!(signal = name, %error, "a second signal is ignored: SIGKILL ends at once")
            }
        }
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// From now on a signal ends the process at once, whatever its other threads wait for. The thread
/// has a runtime of its own, because the daemon's ends before the daemon closes its last files.
fn watch_for_second() -> anyhow::Result<()> {
    let (listens, is_listening) = mpsc::channel();
    thread::Builder::new().name("second-signal".into()).spawn(move || {
        let prepared = super::runtime::runtime().and_then(|runtime| {
            let signals = runtime.block_on(async { Signals::new() })?;
            Ok((runtime, signals))
        });
        let (runtime, mut signals) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return drop(listens.send(Err(error))),
        };
        let _ = listens.send(Ok(()));
        let name = runtime.block_on(signals.next());
        tracing::warn!(signal = name, "ended at once: what was in flight may be lost");
        std::process::exit(EXIT_AT_ONCE);
    })?;
    is_listening.recv()?
}

/// The disks in use; looked up on a thread that may block.
async fn looked(in_use: InUse) -> Vec<String> {
    let looked = tokio::task::spawn_blocking(move || in_use());
    match timeout(LOOK, looked).await {
        Ok(used) => used.unwrap_or_default(),
        Err(_) => vec!["it takes too long to find out which".into()],
    }
}
