//! Listening sockets: made private, made once, and removed again.
//!
//! A unix socket's file outlives a daemon that was killed. Such a file is replaced; one that
//! somebody listens on is not. The two cannot be told apart by looking, so a connection is tried,
//! and the try, the removal and the new socket happen under a lock on the folder: of two daemons
//! that start at once one gets the path and the other is told.
//!
//! Contract: blocking; called before the daemon serves anything.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail, ensure};
use blkswitch_io::export::Listener;
use blkswitch_io::process;

use crate::config::NbdAddress;
use crate::protocol::percent_encode;
use blkswitch_io::export::nbd::names::export_name;

/// How long to wait for another daemon that is about to make its socket in the same folder.
const LOCK_TIME: Duration = Duration::from_secs(5);
/// Pause between two tries for the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// How long a daemon that was killed may seem to listen: the kernel takes its rings down, and with
/// them the last hold on its sockets, after the process itself is gone.
const GONE_TIME: Duration = Duration::from_secs(2);
/// Pause between two tries whether it still does.
const GONE_PAUSE: Duration = Duration::from_millis(100);
/// A folder made for sockets is its user's alone, as they are.
const FOLDER_MODE: u32 = 0o700;

/// The file of a unix socket; removed when this is dropped, unless it is another one by then.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode of the file.
    identity: Identity,
}

/// What is at a socket's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum There {
    /// The socket's file.
    Own,
    /// Another file, or it cannot be told.
    Other,
    /// Nothing.
    Gone,
}

impl SocketFile {
    /// Where it was made.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is there now.
    pub fn there(&self) -> There {
        match identity(&self.path) {
            Ok(now) if now == self.identity => There::Own,
            Err(error)
                if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&error.kind()) =>
            {
                There::Gone
            }
            _ => There::Other,
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "the socket's file stays behind");
        }
    }
}

/// Tells a file from others that were at its path: device, inode, and the time when it was made,
/// because the inode of a removed file is used again.
type Identity = (u64, u64, Option<SystemTime>);

fn identity(path: &Path) -> io::Result<Identity> {
    std::fs::symlink_metadata(path).map(|file| (file.dev(), file.ino(), file.created().ok()))
}

/// Listens on a unix socket of mode 0600. Makes the folder if it is missing; replaces a socket that
/// nobody listens on.
pub fn unix(path: &Path) -> anyhow::Result<(UnixListener, SocketFile)> {
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_folder(folder)?;
    let _lock = lock(folder)?;
    remove_stale(path)?;
    let cannot = || format!("cannot listen on '{}'", path.display());
    // To connect one needs the right to write. Nobody else ever has it, and the mode is not changed
    // by name, which could lead elsewhere by then.
    let listener = process::private_files(|| UnixListener::bind(path)).with_context(cannot)?;
    let identity = identity(path).with_context(cannot)?;
    Ok((listener, SocketFile { path: path.to_owned(), identity }))
}

/// A socket for the runtime, within which this is called.
pub fn for_runtime(listener: UnixListener) -> io::Result<tokio::net::UnixListener> {
    listener.set_nonblocking(true)?;
    tokio::net::UnixListener::from_std(listener)
}

/// Makes a folder and those above it, unless they are there.
fn make_folder(folder: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder);
    let Err(error) = made else { return Ok(()) };
    // The standard library says of a folder that it cannot look at that it exists.
    if error.kind() == ErrorKind::AlreadyExists {
        let cannot = || format!("cannot look at the folder '{}'", folder.display());
        let there = std::fs::metadata(folder).with_context(cannot)?;
        ensure!(there.is_dir(), "'{}' is there and is no folder", folder.display());
        return Ok(());
    }
    Err(error).with_context(|| format!("cannot make the folder '{}'", folder.display()))
}

/// A lock on the folder, until it is dropped.
fn lock(folder: &Path) -> anyhow::Result<File> {
    let cannot = || format!("cannot lock the folder '{}'", folder.display());
    let file = File::open(folder).with_context(cannot)?;
    let until = Instant::now() + LOCK_TIME;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < until => {
                std::thread::sleep(LOCK_PAUSE)
            }
            Err(error) => return Err(io::Error::from(error)).with_context(cannot),
        }
    }
}

/// Removes a socket's file that nobody listens on.
fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(file) => file.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot look at '{}'", path.display()));
        }
    };
    if !kind.is_socket() {
        bail!("'{}' is there and is no socket: it is left alone", path.display());
    }
    let until = Instant::now() + GONE_TIME;
    let mut connected = UnixStream::connect(path);
    while connected.is_ok() && Instant::now() < until {
        std::thread::sleep(GONE_PAUSE);
        connected = UnixStream::connect(path);
    }
    match connected {
        Ok(_) => {
            bail!(
                "'{}': somebody listens there already, perhaps another blkswitch serve",
                path.display()
            )
        }
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "replacing the socket of a daemon that is gone");
            std::fs::remove_file(path)
                .with_context(|| format!("cannot remove the stale socket '{}'", path.display()))
        }
        Err(error) => Err(error).with_context(|| {
            format!("cannot tell whether anybody listens on '{}'", path.display())
        }),
    }
}

/// A socket for NBD clients.
pub struct NbdSocket {
    /// What listens.
    pub listener: Listener,
    /// Its URI without an export name.
    pub uri: String,
    /// The file of a unix socket.
    pub file: Option<SocketFile>,
}

/// The sockets for NBD clients at an address: one, or several if a host has several addresses.
pub fn nbd(address: &NbdAddress) -> anyhow::Result<Vec<NbdSocket>> {
    match address {
        NbdAddress::Unix(path) => {
            let (listener, file) = unix(path)?;
            let uri = uri_of_path(path);
            Ok(vec![NbdSocket { listener: listener.into(), uri, file: Some(file) }])
        }
        NbdAddress::Tcp { text, at } => {
            if at.iter().any(|address| address.ip().is_unspecified()) {
                tracing::warn!(
                    "tcp:{text} offers every device, for reading and writing, to every host that \
                     can reach this machine: there is no TLS and no list of clients. Listen at \
                     127.0.0.1 or at a unix socket, or have a firewall"
                );
            }
            tcp(text, at)
        }
    }
}

/// Listens at each of the addresses that this machine has, one at least.
fn tcp(text: &str, at: &[SocketAddr]) -> anyhow::Result<Vec<NbdSocket>> {
    let mut sockets = Vec::<NbdSocket>::new();
    let mut failure = None;
    for (n, address) in at.iter().enumerate() {
        let listener = match bind(*address) {
            Ok(listener) => listener,
            // The socket of IPv6 has taken IPv4, too.
            Err(error)
                if error.kind() == ErrorKind::AddrInUse
                    && address.ip().is_unspecified()
                    && !sockets.is_empty() =>
            {
                continue;
            }
            // A name may stand for an address of a protocol that is not set up here.
            Err(error) if is_not_here(&error) => {
                failure.get_or_insert(error);
                continue;
            }
            Err(error) => return Err(error).context(format!("cannot listen on tcp:{address}")),
        };
        let bound = listener.local_addr().context("a socket has no address")?;
        sockets.push(NbdSocket {
            listener: listener.into(),
            uri: format!("nbd://{bound}"),
            file: None,
        });
        if n == 0 && bound.ip().is_unspecified() && bound.port() != address.port() {
            // The port was for the system to choose, and is another for each socket.
            break;
        }
    }
    match failure {
        Some(error) if sockets.is_empty() => {
            Err(error).context(format!("cannot listen on tcp:{text}"))
        }
        _ => Ok(sockets),
    }
}

/// Listens at an address, and waits for a daemon that was killed to let go of it.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let until = Instant::now() + GONE_TIME;
    loop {
        match TcpListener::bind(address) {
            Err(error)
                if error.kind() == ErrorKind::AddrInUse
                    && !address.ip().is_unspecified()
                    && Instant::now() < until =>
            {
                std::thread::sleep(LOCK_PAUSE);
            }
            bound => return bound,
        }
    }
}

/// The machine does not have the address, or not its protocol.
fn is_not_here(error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.kind() == ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
}

/// The URI of NBD's specification for a unix socket; slashes stay readable.
fn uri_of_path(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let text = percent_encode(&path.to_string_lossy()).replace("%2F", "/");
    format!("nbd+unix:///?socket={text}")
}

/// The URI of one device at a socket's URI.
pub fn uri_of_device(socket: &str, name: &str) -> String {
    let name = percent_encode(&export_name(name));
    match socket.strip_prefix("nbd+unix:///") {
        Some(query) => format!("nbd+unix:///{name}{query}"),
        None => format!("{socket}/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_socket_is_refused_and_a_stale_one_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/control.sock");
        let (listener, file) = unix(&path).unwrap();
        let modes =
            [&path, path.parent().unwrap()].map(|path| path.metadata().unwrap().mode() & 0o777);
        assert_eq!(modes, [0o600, 0o700]);
        let error = unix(&path).unwrap_err().to_string();
        assert!(error.contains("somebody listens there already"), "{error}");
        // Killed: the listener is gone, the file is not.
        drop(listener);
        std::mem::forget(file);
        let (_listener, file) = unix(&path).unwrap();
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        let error = unix(&path).unwrap_err().to_string();
        assert!(error.contains("is no socket"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "data");
        let error = unix(&path.join("control.sock")).unwrap_err().to_string();
        assert!(error.contains("is there and is no folder"), "{error}");
    }

    #[test]
    fn a_file_that_another_daemon_made_since_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let (_listener, file) = unix(&path).unwrap();
        std::fs::rename(&path, folder.path().join("moved")).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(file);
        assert!(path.exists());
    }

    #[test]
    fn a_host_has_all_its_addresses() {
        let sockets = |text: &str| nbd(&text.parse().unwrap()).unwrap();
        let one = sockets("tcp:127.0.0.1:0");
        assert_eq!(one.len(), 1);
        assert!(one[0].uri.starts_with("nbd://127.0.0.1:"), "{}", one[0].uri);
        // As many as the machine has of them: two, but for one without IPv6.
        let has_v6 = TcpListener::bind("[::1]:0").is_ok();
        let named = "localhost:0".parse::<NbdAddress>();
        assert!(named.is_err(), "it begins with tcp:");
        let at = ["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()];
        assert_eq!(tcp("localhost:0", &at).unwrap().len(), 1 + usize::from(has_v6));
        // Every address: IPv4 reaches it, whatever protocol the socket is of.
        let all = sockets("tcp:*:0");
        let port = all[0].uri.rsplit_once(':').unwrap().1.to_owned();
        std::net::TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
        let taken = tcp("x", &[one[0].uri["nbd://".len()..].parse().unwrap()]);
        let error = format!("{:#}", taken.err().unwrap());
        assert!(error.contains("cannot listen on tcp:127.0.0.1:"), "{error}");
    }

    #[test]
    fn an_address_that_is_let_go_soon_is_waited_for() {
        let before = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = before.local_addr().unwrap();
        let letting_go = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            drop(before);
        });
        tcp("x", &[address]).unwrap();
        letting_go.join().unwrap();
    }

    #[test]
    fn uris_name_socket_and_device() {
        let uri = uri_of_path(Path::new("/run/a b/nbd.sock"));
        assert_eq!(uri, "nbd+unix:///?socket=/run/a%20b/nbd.sock");
        assert_eq!(uri_of_device(&uri, "x y"), "nbd+unix:///x%20y?socket=/run/a%20b/nbd.sock");
        assert_eq!(uri_of_device("nbd://[::1]:10809", "sw"), "nbd://[::1]:10809/sw");
    }
}
