//! The Tokio runtime of the daemon.
//!
//! Contract: one thread drives the runtime. Blocking work goes to threads that the runtime starts.

use std::time::Duration;

use anyhow::Context;

/// Interval at which a thread for blocking work gets something to do. It is shorter than the 10
/// seconds after which the runtime ends an idle thread.
const THREAD_NEEDED: Duration = Duration::from_secs(4);

/// Creates the runtime: one thread for all control connections, others for blocking work.
pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the control runtime")
}

/// Keeps one thread for blocking work alive. If the kernel refuses a further thread, the runtime
/// waits for that one. Without any thread it would panic in the request that needs one.
pub(crate) async fn keep_a_thread() {
    loop {
        // A task of its own contains the panic if the kernel refuses even the first thread.
        let _ = tokio::spawn(async { tokio::task::spawn_blocking(|| ()).await }).await;
        tokio::time::sleep(THREAD_NEEDED).await;
    }
}
