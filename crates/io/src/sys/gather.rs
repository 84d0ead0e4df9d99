//! Sends bytes from many places with one call, and sets up sockets. Connections of exports and of
//! leaves share this code.

use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{opcode, squeue, types};

/// Size of a socket buffer, so that a batch leaves at once.
const SOCKET_BUFFER: i32 = 4 << 20;

/// Makes the socket's close a reset, which drops undelivered bytes and informs the other side.
/// Without it, a closed TCP socket goes on delivering for minutes. It would also deliver requests
/// that were given up long ago and sent again over another path.
pub(crate) fn reset_on_close(socket: BorrowedFd<'_>) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let len = size_of::<libc::linger>() as libc::socklen_t;
    // SAFETY: a system call on a borrowed descriptor with a live structure. Sockets other than TCP
    // ignore it.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            len,
        )
    };
}

/// A list of pieces of memory and how far it has been sent.
///
/// Contract: the caller keeps each piece valid and in place until the list is cleared. While the
/// kernel has the message, the caller neither clears nor changes the list.
#[derive(Default)]
pub(crate) struct Gather {
    iovecs: Vec<libc::iovec>,
    /// First of `iovecs` that is not wholly sent.
    at: usize,
    message: Option<Box<libc::msghdr>>,
}

impl Gather {
    pub(crate) fn push(&mut self, from: *const u8, len: usize) {
        self.iovecs.push(libc::iovec { iov_base: from.cast_mut().cast(), iov_len: len });
    }

    /// Whether nothing is left to send.
    pub(crate) fn is_done(&self) -> bool {
        self.at >= self.iovecs.len()
    }

    pub(crate) fn clear(&mut self) {
        self.iovecs.clear();
        self.at = 0;
    }

    /// Counts `bytes` more as sent.
    pub(crate) fn advance(&mut self, mut bytes: usize) {
        while let Some(iovec) = self.iovecs.get_mut(self.at) {
            if bytes < iovec.iov_len {
                iovec.iov_base = iovec.iov_base.wrapping_byte_add(bytes);
                iovec.iov_len -= bytes;
                return;
            }
            bytes -= iovec.iov_len;
            self.at += 1;
        }
    }

    /// Sends as much as the socket takes at once, by a plain system call. That is nearly always
    /// everything. A send through the ring would complete during its submission and cost an extra
    /// turn of the loop. The ring finds errors later ([`Gather::entry`]).
    pub(crate) fn send_now(&mut self, socket: BorrowedFd<'_>) {
        let Some(message) = self.message() else { return };
        let (fd, flags) = (socket.as_raw_fd(), libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT);
        // SAFETY: a system call on a live descriptor. The header's memory is valid (the type's
        // contract) and only read. This is not libc's function, which costs some 35 ns more because
        // it is a cancellation point.
        let sent = unsafe { libc::syscall(libc::SYS_sendmsg, fd, message, flags) };
        self.advance(sent.max(0) as usize);
    }

    /// The submission that sends the rest, if there is one. The list must not change until it has
    /// completed.
    pub(crate) fn entry(&mut self, socket: BorrowedFd<'_>) -> Option<squeue::Entry> {
        let fd = types::Fd(socket.as_raw_fd());
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
        Some(opcode::SendMsg::new(fd, self.message()?).flags(flags).build())
    }

    /// The header of the message, if there are bytes to send.
    fn message(&mut self) -> Option<*const libc::msghdr> {
        let left = self.iovecs.get_mut(self.at..).filter(|left| !left.is_empty())?;
        let (first, count) = (left.as_mut_ptr(), left.len());
        // SAFETY: msghdr is plain data; all zeroes means no address, no control data, no flags.
        let message = self.message.get_or_insert_with(|| Box::new(unsafe { std::mem::zeroed() }));
        message.msg_iov = first;
        message.msg_iovlen = count as _;
        Some(&raw const **message)
    }
}

/// Sets an option of a socket. Sockets without this option are left alone.
pub(crate) fn set_option(socket: BorrowedFd<'_>, level: i32, option: i32, value: i32) {
    // SAFETY: a system call on a live descriptor with a live integer.
    unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), 4) };
}

/// Sets up a socket: large buffers, no delay of small sends, keepalive.
pub(crate) fn tune(socket: BorrowedFd<'_>) {
    set_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUF, SOCKET_BUFFER);
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, SOCKET_BUFFER);
    set_option(socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
}

/// Detects within a minute, instead of two hours, that a TCP client's host is gone. Until then the
/// device stays open, and its requests hold memory. Other sockets do not have these options.
pub(crate) fn keep_alive(socket: BorrowedFd<'_>) {
    const IDLE_SECONDS: i32 = 30;
    const PROBE_SECONDS: i32 = 10;
    const PROBES: i32 = 3;
    const UNACKNOWLEDGED_MS: i32 = 60_000;
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, IDLE_SECONDS);
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, PROBE_SECONDS);
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, PROBES);
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS);
}

/// Whether the other side has closed an idle socket.
pub(crate) fn is_closed(socket: BorrowedFd<'_>) -> bool {
    let (mut byte, flags) = (0u8, libc::MSG_PEEK | libc::MSG_DONTWAIT);
    // SAFETY: receives at most one byte into a live one.
    let got = unsafe { libc::recv(socket.as_raw_fd(), (&raw mut byte).cast(), 1, flags) };
    got == 0
        || (got < 0 && std::io::Error::last_os_error().kind() != std::io::ErrorKind::WouldBlock)
}

/// Shuts a socket down in one direction or both.
pub(crate) fn shutdown(socket: BorrowedFd<'_>, how: libc::c_int) {
    // SAFETY: a system call on a live descriptor.
    unsafe { libc::shutdown(socket.as_raw_fd(), how) };
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    /// Number of bytes written before `give_up`, and of those that the other side still gets.
    fn delivered(give_up: impl Fn(&TcpStream)) -> (usize, usize) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut theirs, _) = listener.accept().unwrap();
        tune(ours.as_fd());
        ours.set_nonblocking(true).unwrap();
        let mut written = 0;
        loop {
            match ours.write(&[0; 64 << 10]) {
                Ok(bytes) => written += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        give_up(&ours);
        drop(ours);
        let (mut read, mut buffer) = (0, vec![0; 64 << 10]);
        loop {
            match theirs.read(&mut buffer) {
                Ok(0) => return (written, read),
                Ok(bytes) => read += bytes,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return (written, read),
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn what_was_given_up_is_not_delivered_later() {
        let end = |socket: &TcpStream| shutdown(socket.as_fd(), libc::SHUT_RDWR);
        let (written, read) = delivered(end);
        assert_eq!(read, written, "this is what the reset is for");
        let (written, read) = delivered(|socket| {
            reset_on_close(socket.as_fd());
            end(socket);
        });
        assert!(
            read < written,
            "all {written} bytes were delivered after the connection was given up"
        );
    }
}
