//! The runtime of a daemon.
//!
//! Contract: one thread drives it; what blocks goes to threads that it starts.

use std::time::Duration;

use anyhow::Context;

/// How often a thread for what blocks has something to do, so that it stays: less than the 10 seconds
/// after which the runtime ends idle ones.
const THREAD_NEEDED: Duration = Duration::from_secs(4);

/// The runtime of a daemon: one thread for all control connections, others for what blocks.
pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the control runtime")
}

/// Keeps a thread for what blocks. While the runtime has one, it waits for that if the kernel refuses
/// another; without one, it panics amid the request that needs it.
pub(crate) async fn keep_a_thread() {
    loop {
        // In a task of its own, which takes the panic of a first thread that is refused.
        let _ = tokio::spawn(async { tokio::task::spawn_blocking(|| ()).await }).await;
        tokio::time::sleep(THREAD_NEEDED).await;
    }
}
