//! A connected socket of the control side for any protocol. It blocks, but never past a deadline.
//!
//! Contract: every call ends at the deadline, with [`io::ErrorKind::TimedOut`] if it is not done by
//! then. Only look-ups of host names have no deadline, because the resolver has its own.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::uri::Place;
use crate::sys::gather::{set_option, tune};

/// Shortest timeout of a system call, because 0 means none.
const SHORTEST: Duration = Duration::from_millis(1);

/// A connected socket with a deadline.
pub(crate) struct Socket {
    stream: Stream,
    deadline: Instant,
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// Connects. From then on, a peer that acknowledges nothing for `silence` counts as gone.
    pub(crate) fn connect(
        place: &Place,
        silence: Duration,
        deadline: Instant,
    ) -> io::Result<Socket> {
        let stream = match place {
            Place::Tcp { host, port } => Stream::Tcp(connect_tcp(host, *port, deadline)?),
            Place::Unix(path) => Stream::Unix(connect_unix(path, deadline)?),
        };
        let socket = Socket { stream, deadline };
        tune(socket.as_fd());
        if let Stream::Tcp(_) = socket.stream {
            keep_alive(socket.as_fd(), silence);
        }
        Ok(socket)
    }

    /// Sets the deadline of later calls.
    pub(crate) fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    /// Fills `into`. `Err` at the end of the stream or at the deadline.
    pub(crate) fn read_exact(&mut self, into: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while let Some(rest) = into.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let left = left(self.deadline)?;
            let read = match &mut self.stream {
                Stream::Tcp(stream) => {
                    stream.set_read_timeout(Some(left)).and_then(|()| stream.read(rest))
                }
                Stream::Unix(stream) => {
                    stream.set_read_timeout(Some(left)).and_then(|()| stream.read(rest))
                }
            };
            match progress(read)? {
                Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(read) => filled += read,
                None => {}
            }
        }
        Ok(())
    }

    /// Reads the next `N` bytes. `Err` as [`Socket::read_exact`].
    pub(crate) fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Sends all of `bytes`. `Err` at the deadline, or if the connection is lost.
    pub(crate) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            let left = left(self.deadline)?;
            let wrote = match &mut self.stream {
                Stream::Tcp(stream) => {
                    stream.set_write_timeout(Some(left)).and_then(|()| stream.write(rest))
                }
                Stream::Unix(stream) => {
                    stream.set_write_timeout(Some(left)).and_then(|()| stream.write(rest))
                }
            };
            written += progress(wrote)?.unwrap_or(0);
        }
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> OwnedFd {
        match socket.stream {
            Stream::Tcp(stream) => stream.into(),
            Stream::Unix(stream) => stream.into(),
        }
    }
}

/// Time until the deadline.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left.max(SHORTEST)) }
}

/// The result of a read or write; `None` if the caller must try again, after a check of the
/// deadline.
fn progress(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Connects to the first of a host's addresses that answers.
fn connect_tcp(host: &str, port: u16, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Connects to a unix socket. The standard library's connect waits for ever if the server's backlog
/// is full.
fn connect_unix(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    // SAFETY: plain data, for which zeroes are valid.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= address.sun_path.len() {
        let reason =
            format!("the path of a socket has at most {} bytes", address.sun_path.len() - 1);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    for (place, byte) in address.sun_path.iter_mut().zip(bytes) {
        *place = *byte as libc::c_char;
    }
    // SAFETY: makes a new descriptor.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    let stream = UnixStream::from(socket);
    stream.set_write_timeout(Some(left(deadline)?))?;
    let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: the address is valid for its length, and only read.
    match unsafe { libc::connect(stream.as_raw_fd(), (&raw const address).cast(), len) } {
        0 => Ok(stream),
        _ => Err(match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            error => error,
        }),
    }
}

/// Sets options so that a peer that acknowledges nothing for `silence` is gone, with or without
/// traffic.
fn keep_alive(socket: BorrowedFd<'_>, silence: Duration) {
    let seconds = silence.as_secs().clamp(1, i32::MAX as u64 / 1000) as i32;
    // Several probes, so that a lost one means nothing.
    let (probes, interval) = (3, (seconds / 4).max(1));
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, interval);
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, interval);
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, probes);
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, seconds * 1000);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixListener;

    const BACKLOG: usize = 8;

    #[test]
    fn nothing_takes_longer_than_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let silent = UnixListener::bind(&path).unwrap();
        // A short queue of connections: a test must fit into 1,024 descriptors.
        // SAFETY: the descriptor is open, and listen() reads no memory of this process.
        assert_eq!(unsafe { libc::listen(silent.as_raw_fd(), BACKLOG as libc::c_int) }, 0);
        let start = Instant::now();
        let soon = || Instant::now() + Duration::from_millis(50);
        let timed_out = |error: io::Error| assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let place = Place::Unix(path);
        let later = Instant::now() + Duration::from_secs(60);
        let mut socket = Socket::connect(&place, Duration::from_secs(1), later).unwrap();
        socket.set_deadline(soon());
        timed_out(socket.array::<1>().unwrap_err());
        socket.set_deadline(soon());
        timed_out(socket.write_all(&vec![0; 64 << 20]).unwrap_err());
        // Until the backlog is full.
        let mut waiting = Vec::new();
        let error = loop {
            match Socket::connect(&place, Duration::from_secs(1), soon()) {
                Ok(socket) => waiting.push(socket),
                Err(error) => break error,
            }
            assert!(waiting.len() <= 2 * BACKLOG);
        };
        timed_out(error);
        assert!(start.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn a_server_that_is_not_there_is_an_error() {
        let deadline = Instant::now() + Duration::from_secs(60);
        let connect =
            |place| Socket::connect(&place, Duration::from_secs(1), deadline).err().unwrap();
        assert_eq!(connect(Place::Unix("/no/such/socket".into())).kind(), io::ErrorKind::NotFound);
        assert_eq!(
            connect(Place::Unix("/".repeat(200).into())).kind(),
            io::ErrorKind::InvalidInput
        );
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let error = connect(Place::Tcp { host: "127.0.0.1".into(), port: free });
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_peer_that_acknowledges_nothing_is_found_out() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let place =
            Place::Tcp { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() };
        let deadline = Instant::now() + Duration::from_secs(60);
        let socket = Socket::connect(&place, Duration::from_secs(20), deadline).unwrap();
        for (level, option, wanted) in [
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
            (libc::IPPROTO_TCP, libc::TCP_NODELAY, 1),
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 5),
            (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 5),
            (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 3),
            (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 20_000),
        ] {
            let (mut value, mut len) = (0_i32, 4);
            let (to, bytes) = ((&raw mut value).cast(), &raw mut len);
            // SAFETY: writes at most four bytes into a live integer.
            let status =
                unsafe { libc::getsockopt(socket.as_fd().as_raw_fd(), level, option, to, bytes) };
            assert_eq!((status, value), (0, wanted), "option {option}");
        }
    }
}
