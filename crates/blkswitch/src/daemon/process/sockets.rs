//! Unix sockets whose files go away: said, and made again.
//!
//! A user's runtime folder goes with the last session (and comes back with the next), and cleaners
//! of temporary folders take what looks old. The daemon goes on, but nobody can reach it any more,
//! and it holds its locks.
//!
//! Contract: looks every [`PERIOD`]; blocks on threads that may. A file that is another one by now
//! is left alone: it is another daemon's. Ends when the daemon is to stop, and then gives the files
//! back, which are removed as they are dropped.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};

use super::listen::{self, SocketFile, There};

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(5);

/// A socket that is kept.
pub struct Kept {
    /// Its file.
    pub file: SocketFile,
    /// Whether it is the control socket; else NBD clients connect there.
    pub is_control: bool,
    /// The loss was said.
    told: bool,
}

impl Kept {
    /// One whose file is there.
    pub fn new(file: SocketFile, is_control: bool) -> Kept {
        Kept { file, is_control, told: false }
    }

    /// Looks after it. What listens now, if it was made again.
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
        // A folder that cannot be made now can be later.
        let (listener, file) = listen::unix(self.file.path()).ok()?;
        tracing::info!(path = %file.path().display(), "listens there again");
        (self.file, self.told) = (file, false);
        Some(listener)
    }
}

/// Looks after the sockets until the daemon is to stop. Those that were made again are served by
/// `serve_control` and `serve_nbd`.
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
            // An error means that the sender is gone, which is the end as well.
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
        // It does not panic. If it did, the files would be gone with it.
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
        // As in /run/user, where only root makes folders.
        std::fs::write(&folder, "no folder").unwrap();
        assert!(socket.look().is_none() && socket.told);
        std::fs::remove_file(&folder).unwrap();
        let again = socket.look().unwrap();
        assert!(socket.file.there() == There::Own && !socket.told);
        // Another daemon's is left alone, now and at the end.
        drop(again);
        std::fs::remove_file(&path).unwrap();
        // It may get the same inode; the kernel's clock for files ticks every few milliseconds.
        std::thread::sleep(Duration::from_millis(20));
        let (_other, other) = listen::unix(&path).unwrap();
        assert!(socket.look().is_none() && socket.told);
        drop(socket);
        assert_eq!(other.there(), There::Own);
    }
}
