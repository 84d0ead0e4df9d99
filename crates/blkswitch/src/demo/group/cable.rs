//! Cables: sockets that pass bytes on to other sockets, and that can be pulled out.
//!
//! Contract: a cable is a unix socket of its own; whoever connects to it talks to the server behind it. Pulled out, it
//! drops its connections and takes no new ones. Plugged in again, it carries what connects from then on.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, bail};
use tokio::io::copy_bidirectional;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use crate::daemon::runtime;

/// See the module's text.
pub(super) struct Cable {
    path: PathBuf,
    plugged: watch::Sender<bool>,
}

impl Cable {
    /// The socket to connect to.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Pulls it out, or plugs it in.
    pub(super) fn plug(&self, plugged: bool) {
        self.plugged.send_replace(plugged);
    }
}

/// All cables, on a thread of their own.
pub(super) struct Cables {
    thread: thread::JoinHandle<anyhow::Result<()>>,
}

impl Cables {
    /// Lays cables: each has a socket's path and that of the server behind it.
    pub(super) fn lay(ways: Vec<(PathBuf, PathBuf)>) -> anyhow::Result<(Cables, Vec<Cable>)> {
        let runtime = runtime()?;
        let (mut cables, mut ends) = (Vec::new(), Vec::new());
        for (path, server) in ways {
            let (plugged, state) = watch::channel(true);
            let listener = {
                let _context = runtime.enter();
                let cannot = || format!("cannot listen on '{}'", path.display());
                UnixListener::bind(&path).with_context(cannot)?
            };
            ends.push((listener, server, state));
            cables.push(Cable { path, plugged });
        }
        let carry_all = async move {
            let ends: Vec<_> = ends.into_iter().map(|end| tokio::spawn(serve(end.0, end.1, end.2))).collect();
            for end in ends {
                end.await.context("a cable's task panicked")??;
            }
            Ok(())
        };
        Ok((Cables { thread: thread::spawn(move || runtime.block_on(carry_all)) }, cables))
    }

    /// Waits for the end, which comes when all cables are gone.
    pub(super) fn end(self, cables: Vec<Cable>) -> anyhow::Result<()> {
        drop(cables);
        self.thread.join().unwrap_or_else(|_| bail!("the cables' thread panicked"))
    }
}

/// Carries connections until the cable is gone.
async fn serve(
    listener: UnixListener,
    server: PathBuf,
    mut plugged: watch::Receiver<bool>,
) -> io::Result<()> {
    loop {
        let client = tokio::select! {
            accepted = listener.accept() => accepted?.0,
            changed = plugged.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return Ok(()),
            },
        };
        // Out: whoever connects is dropped at once.
        if *plugged.borrow() {
            tokio::spawn(carry(client, server.clone(), plugged.clone()));
        }
    }
}

/// One connection, until an end closes it or the cable is pulled out.
async fn carry(mut client: UnixStream, server: PathBuf, mut plugged: watch::Receiver<bool>) {
    let carried = async {
        let mut server = UnixStream::connect(&server).await?;
        copy_bidirectional(&mut client, &mut server).await
    };
    tokio::select! {
        // Ends break connections as it suits them, that is not the cable's concern.
        carried = carried => if let Err(error) = carried && error.kind() != ErrorKind::ConnectionReset {
            tracing::debug!(%error, "a connection through a cable ended");
        },
        _ = plugged.wait_for(|plugged| !plugged) => {}
    }
}
