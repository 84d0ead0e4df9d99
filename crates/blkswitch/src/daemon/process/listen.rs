//! Listening sockets: creates them with private permissions, and removes their files again.
//!
//! The file of a unix socket outlives a daemon that was killed. Such a file is replaced; the file
//! of a socket that somebody listens on is not. Only a connection attempt can tell the two apart.
//! The attempt, the removal and the new socket happen under a lock on the folder. So if two daemons
//! start at once, one gets the path and the other gets an error.
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

/// How long to wait for another daemon that is creating a socket in the same folder.
const LOCK_TIME: Duration = Duration::from_secs(5);
/// Pause between two attempts to take the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// How long a killed daemon may still seem to listen. The kernel releases the sockets only when it
/// has taken down the daemon's rings, which is after the process has gone.
const GONE_TIME: Duration = Duration::from_secs(2);
/// Pause between two checks whether it still seems to listen.
const GONE_PAUSE: Duration = Duration::from_millis(100);
/// A folder that is made for sockets is private to the user, as the sockets are.
const FOLDER_MODE: u32 = 0o700;

/// The file of a unix socket. It is removed when this is dropped, unless another file has its name.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// The file's identity when the socket was created.
    identity: Identity,
}

/// The result of looking for a socket's file at its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum There {
    /// The socket's own file.
    Own,
    /// Another file, or the path cannot be looked at.
    Other,
    /// There is no file.
    Gone,
}

impl SocketFile {
    /// The path at which the socket was created.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Looks for the socket's file.
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

/// Distinguishes a file from others that had its path: device, inode, and creation time. The
/// creation time is needed because the inode of a removed file is used again.
type Identity = (u64, u64, Option<SystemTime>);

fn identity(path: &Path) -> io::Result<Identity> {
    std::fs::symlink_metadata(path).map(|file| (file.dev(), file.ino(), file.created().ok()))
}

/// Listens on a unix socket of mode 0600. Creates the folder if it is missing, and replaces a
/// socket that nobody listens on.
pub fn unix(path: &Path) -> anyhow::Result<(UnixListener, SocketFile)> {
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_folder(folder)?;
    let _lock = lock(folder)?;
    remove_stale(path)?;
    let cannot = || format!("cannot listen on '{}'", path.display());
    // Connecting needs write permission, and nobody else ever has it. The mode is not changed by
    // name afterwards, because the name could lead to another file by then.
    let listener = process::private_files(|| UnixListener::bind(path)).with_context(cannot)?;
    let identity = identity(path).with_context(cannot)?;
    Ok((listener, SocketFile { path: path.to_owned(), identity }))
}

/// Converts a socket for Tokio. Must be called within a Tokio runtime.
pub fn for_runtime(listener: UnixListener) -> io::Result<tokio::net::UnixListener> {
    listener.set_nonblocking(true)?;
    tokio::net::UnixListener::from_std(listener)
}

/// Creates a folder and those above it, unless they exist.
fn make_folder(folder: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder);
    let Err(error) = made else { return Ok(()) };
    // The standard library reports `AlreadyExists` also for a folder that it may not look at.
    if error.kind() == ErrorKind::AlreadyExists {
        let cannot = || format!("cannot look at the folder '{}'", folder.display());
        let there = std::fs::metadata(folder).with_context(cannot)?;
        ensure!(there.is_dir(), "'{}' is there and is no folder", folder.display());
        return Ok(());
    }
    Err(error).with_context(|| format!("cannot make the folder '{}'", folder.display()))
}

/// Locks the folder until the result is dropped.
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

/// Removes the file of a socket that nobody listens on.
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
    /// The socket, which listens already.
    pub listener: Listener,
    /// The NBD URI of the socket, without an export name.
    pub uri: String,
    /// The file of a unix socket; `None` for TCP.
    pub file: Option<SocketFile>,
}

/// Listens for NBD clients at an address. A host with several addresses gives several sockets.
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

/// Listens at each of the addresses that this machine has, and at least at one.
fn tcp(text: &str, at: &[SocketAddr]) -> anyhow::Result<Vec<NbdSocket>> {
    let mut sockets = Vec::<NbdSocket>::new();
    let mut failure = None;
    for (n, address) in at.iter().enumerate() {
        let listener = match bind(*address) {
            Ok(listener) => listener,
            // The socket of IPv6 serves IPv4, too.
            Err(error)
                if error.kind() == ErrorKind::AddrInUse
                    && address.ip().is_unspecified()
                    && !sockets.is_empty() =>
            {
                continue;
            }
            // A host name may have an address of a protocol that is not set up on this machine.
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
            // The system has chosen the port, and would choose another one for a further socket.
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

/// Listens at an address. Waits for a killed daemon to release it.
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

/// Returns whether the machine does not have the address or its protocol.
fn is_not_here(error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.kind() == ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
}

/// The URI of a unix socket as NBD's specification has it. Slashes are not escaped.
fn uri_of_path(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let text = percent_encode(&path.to_string_lossy()).replace("%2F", "/");
    format!("nbd+unix:///?socket={text}")
}

/// The URI of a device at the URI of a socket.
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
        // As after a kill: the listener is gone, the file is not.
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
        // The machine has one or two of the addresses, depending on IPv6.
        let has_v6 = TcpListener::bind("[::1]:0").is_ok();
        let named = "localhost:0".parse::<NbdAddress>();
        assert!(named.is_err(), "it begins with tcp:");
        let at = ["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()];
        assert_eq!(tcp("localhost:0", &at).unwrap().len(), 1 + usize::from(has_v6));
        // At a wildcard address, IPv4 always works, whatever protocol the socket has.
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
