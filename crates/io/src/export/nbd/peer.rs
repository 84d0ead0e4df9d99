//! The other end of a connection, as the kernel reports it. Nothing that a client sends influences
//! it.
//!
//! A [`Peer`] is shown to administrators. [`Peer::is_same_client`] is the one rule that decides
//! whether two connections belong to one client.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A client over TCP, with its address.
    Tcp(SocketAddr),
    /// A process of this machine, with its ids at the time of connecting.
    Unix {
        /// The process id; 0 if the process is in another PID namespace.
        pid: i32,
        /// The user id of the process.
        uid: u32,
    },
    /// Another kind of socket, or one whose other end the kernel does not report.
    Unknown,
}

impl Peer {
    /// Asks the kernel for the peer of a connected socket.
    pub fn of(socket: BorrowedFd<'_>) -> Peer {
        // SAFETY: sockaddr_storage is plain data.
        let mut address: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        // SAFETY: a system call that writes at most `len` bytes into a live structure.
        let failed = unsafe {
            libc::getpeername(socket.as_raw_fd(), (&raw mut address).cast(), &raw mut len)
        };
        if failed != 0 {
            return Peer::Unknown;
        }
        match i32::from(address.ss_family) {
            libc::AF_UNIX => credentials(socket),
            libc::AF_INET => {
                // SAFETY: the family says that the structure is of this type; storage is larger
                // and as aligned.
                let v4 = unsafe { *(&raw const address).cast::<libc::sockaddr_in>() };
                let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
                Peer::Tcp(SocketAddr::from((ip, u16::from_be(v4.sin_port))))
            }
            libc::AF_INET6 => {
                // SAFETY: as above.
                let v6 = unsafe { *(&raw const address).cast::<libc::sockaddr_in6>() };
                let ip = IpAddr::from(Ipv6Addr::from(v6.sin6_addr.s6_addr)).to_canonical();
                Peer::Tcp(SocketAddr::from((ip, u16::from_be(v6.sin6_port))))
            }
            _ => Peer::Unknown,
        }
    }

    /// Whether two connections belong to one client: the same host, or the same process. Several
    /// hosts behind one address count as one client.
    pub fn is_same_client(&self, other: &Peer) -> bool {
        match (self, other) {
            (Peer::Tcp(one), Peer::Tcp(other)) => one.ip() == other.ip(),
            (Peer::Unix { .. }, Peer::Unix { .. }) => self == other,
            _ => false,
        }
    }
}

/// The process at the other end of a unix socket.
fn credentials(socket: BorrowedFd<'_>) -> Peer {
    let mut who = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: a system call that writes at most `len` bytes into a live structure.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut who).cast(),
            &raw mut len,
        )
    };
    match failed {
        0 => Peer::Unix { pid: who.pid, uid: who.uid },
        _ => Peer::Unknown,
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp(address) => address.fmt(f),
            Peer::Unix { pid, uid } => write!(f, "pid {pid} uid {uid}"),
            Peer::Unknown => f.write_str("unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn hosts_and_processes_are_told_apart() {
        for bind in ["127.0.0.1:0", "[::1]:0"] {
            // A machine without IPv6 has no second case.
            let Ok(listener) = TcpListener::bind(bind) else { continue };
            let first = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let accepted = listener.accept().unwrap().0;
            let peer = Peer::of(accepted.as_fd());
            assert_eq!(peer, Peer::Tcp(first.local_addr().unwrap()));
            assert_eq!(peer.to_string(), first.local_addr().unwrap().to_string());
            let second = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let other = Peer::of(listener.accept().unwrap().0.as_fd());
            assert!(other != peer && other.is_same_client(&peer), "another port, the same host");
            drop(second);
        }
        let (one, _other) = UnixStream::pair().unwrap();
        let pid = std::process::id() as i32;
        let peer = Peer::of(one.as_fd());
        assert!(matches!(peer, Peer::Unix { pid: its, .. } if its == pid), "{peer}");
        assert!(peer.is_same_client(&peer) && !peer.is_same_client(&Peer::Unknown));
        assert!(!Peer::Unknown.is_same_client(&Peer::Unknown));
        assert!(peer.to_string().starts_with(&format!("pid {pid} uid ")));
    }
}
