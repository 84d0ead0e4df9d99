//! Unix sockets whose files disappear: the daemon warns, and creates them again.
//!
//! A user's runtime folder is removed after the last session, and comes back with the next one.
//! Cleaners of temporary folders remove files that look old. The daemon goes on and holds its
//! locks, but nobody can reach it any more.
//!
//! Contract: checks every [`PERIOD`], on threads that may block. If another file has the path, it
//! belongs to another daemon and is left alone. [`keep`] ends when the daemon is to stop. It
//! returns the socket files, which are removed when they are dropped.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};

use super::listen::{self, SocketFile, There};

/// Time between two checks.
const PERIOD: Duration = Duration::from_secs(5);

/// A socket whose file is watched.
pub struct Kept {
    /// The file of the socket.
    pub file: SocketFile,
    /// Whether this is the control socket; otherwise it is a socket for NBD clients.
    pub is_control: bool,
    /// Whether the loss has been logged.
    told: bool,
}

impl Kept {
    /// Starts to watch a socket whose file exists.
    pub fn new(file: SocketFile, is_control: bool) -> Kept {
        Kept { file, is_control, told: false }
    }

    /// Checks the socket. Returns the new listener if the socket was created again.
    fn look(&mut self) -> Option<UnixListener> {
        let (path, pid) = (self.file.path().display(), std::process::id());
        match self.file.there() {
            There::Own => {
                self.told = false;
                return None;
            }
            There::Other if !self.told => tracing::warn!(
                %path, pid, "another socket is where the daemon's was: it cannot be reached there"
            ),
            There::Gone if !self.told => tracing::warn!(
                %path, pid,
                "the socket's file is gone: the daemon cannot be reached there until it can make \
                 the file again (a runtime folder goes with the user's last session: loginctl \
                 enable-linger)"
            ),
            There::Other | There::Gone => {}
        }
        self.told = true;
        if self.file.there() == There::Other {
            return None;
        }
        // If the folder cannot be created now, a later check may succeed.
        let (listener, file) = listen::unix(self.file.path()).ok()?;
        tracing::info!(path = %file.path().display(), "listens there again");
        (self.file, self.told) = (file, false);
        Some(listener)
    }
}

/// Checks the sockets until the daemon is to stop. `serve_control` and `serve_nbd` serve the
/// listeners of sockets that were created again.
pub async fn keep<F: Future<Output = ()> + Send + 'static>(
    mut sockets: Vec<Kept>,
    mut stopping: watch::Receiver<bool>,
    serve_control: impl Fn(tokio::net::UnixListener) -> F,
    serve_nbd: Arc<dyn Fn(UnixListener) + Send + Sync>,
) -> Vec<Kept> {
    let mut serving = JoinSet::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            // An error means that the sender is gone, which ends the daemon as well.
            _ = stopping.wait_for(|stopping| *stopping) => break,
        }
        let serve_nbd = serve_nbd.clone();
        let looked = spawn_blocking(move || {
            let mut control = Vec::new();
            for socket in &mut sockets {
                match socket.look() {
                    Some(listener) if socket.is_control => control.push(listener),
                    Some(listener) => serve_nbd(listener),
                    None => {}
                }
            }
            (sockets, control)
        });
        // The task does not panic. If it did, the files would be gone with it.
        let Ok((looked, control)) = looked.await else { return Vec::new() };
        sockets = looked;
        for listener in control {
            match listen::for_runtime(listener) {
                Ok(listener) => drop(serving.spawn(serve_control(listener))),
                Err(error) => tracing::warn!(%error, "nobody answers at the control socket"),
            }
        }
    }
    while serving.join_next().await.is_some() {}
    sockets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_whose_folder_has_gone_is_made_again_with_the_folder() {
        let above = tempfile::tempdir().unwrap();
        let folder = above.path().join("runtime");
        let path = folder.join("control.sock");
        let (_listener, file) = listen::unix(&path).unwrap();
        let mut socket = Kept::new(file, true);
        assert!(socket.look().is_none() && !socket.told, "it is there");
        std::fs::remove_dir_all(&folder).unwrap();
        // As in `/run/user`, where only root can create folders.
        std::fs::write(&folder, "no folder").unwrap();
        assert!(socket.look().is_none() && socket.told);
        std::fs::remove_file(&folder).unwrap();
        let again = socket.look().unwrap();
        assert!(socket.file.there() == There::Own && !socket.told);
        // The file of another daemon is left alone, now and when the socket is dropped.
        drop(again);
        std::fs::remove_file(&path).unwrap();
        // The new file may get the same inode. Its creation time differs only after a tick of the
        // kernel's clock for files, which takes a few milliseconds.
        std::thread::sleep(Duration::from_millis(20));
        let (_other, other) = listen::unix(&path).unwrap();
        assert!(socket.look().is_none() && socket.told);
        drop(socket);
        assert_eq!(other.there(), There::Own);
    }
}
