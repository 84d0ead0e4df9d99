//! Drops connections of clients that do nothing or are gone. Checked once a second.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use super::{Conn, Receiving};
use crate::export::nbd::context::Context;
use crate::sys::log_limit::LogLimit;
use crate::sys::ring::TICK_SECONDS;

/// Time in seconds after which a client is dropped if it holds memory while others wait for it, and
/// neither sends announced data nor takes replies.
const STALL_SECONDS: u64 = 10;
/// Time in seconds for which a client counts as present after it has closed its sending side while
/// its requests wait at a closed gate. It may still want to read their answers.
const HALF_CLOSED_SECONDS: u64 = 30;

/// The progress of a connection between two checks.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Whether a receive or send has completed.
    pub(super) has_moved: bool,
    /// The kernel's count of moved bytes at the last check.
    moved: u64,
    stalled_seconds: u64,
    half_closed_seconds: u64,
}

impl Conn {
    /// Checks the connection. Returns whether its requests at a gate or without a path must be
    /// given up, because the client has gone.
    pub(in crate::export::nbd) fn look(&mut self, context: &Context<'_>) -> bool {
        let now_ns = context.turn.now_ns();
        if !self.broken && context.buffers.memory().is_awaited(now_ns) && self.is_stalled() {
            static LIMIT: LogLimit = LogLimit::new();
            if let Some(suppressed) = LIMIT.pass() {
                tracing::warn!(
                    client = %self.peer,
                    held_bytes = self.lent_bytes,
                    suppressed,
                    "connection dropped: others wait for the memory it holds, and for \
                     {STALL_SECONDS} s the client has sent and taken nothing"
                );
            }
            (self.broken, self.ending) = (true, true);
        }
        if self.pending.is_empty() && self.statuses.is_empty() {
            return false;
        }
        if !self.broken && self.receiving == Receiving::Nothing && is_hung_up(self.socket.as_fd()) {
            (self.broken, self.ending) = (true, true);
        }
        if self.at_end {
            self.watch.half_closed_seconds += TICK_SECONDS;
        }
        self.broken || self.watch.half_closed_seconds >= HALF_CLOSED_SECONDS
    }

    /// Whether the client has held memory without progress for [`STALL_SECONDS`].
    fn is_stalled(&mut self) -> bool {
        let awaits_body = self.body.is_some() && self.starved.is_none();
        let has_moved = std::mem::take(&mut self.watch.has_moved);
        if self.lent_bytes == 0 || has_moved || !(self.sending.active || awaits_body) {
            self.watch.stalled_seconds = 0;
            return false;
        }
        let moved = moved_by_kernel(self.socket.as_fd());
        if std::mem::replace(&mut self.watch.moved, moved) != moved {
            self.watch.stalled_seconds = 0;
        }
        self.watch.stalled_seconds += TICK_SECONDS;
        self.watch.stalled_seconds > STALL_SECONDS
    }
}

/// A number that changes when bytes move on a socket, also within a receive or send under way.
fn moved_by_kernel(socket: BorrowedFd<'_>) -> u64 {
    /// Offsets of `tcpi_bytes_acked` and `tcpi_bytes_received` in `struct tcp_info` of linux/tcp.h,
    /// in words of 8 bytes.
    const ACKED: usize = 15;
    const RECEIVED: usize = 16;
    let mut info = [0u64; 32];
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: a system call that writes at most `len` bytes into a live array.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if failed == 0 {
        return info[ACKED].wrapping_add(info[RECEIVED]);
    }
    let mut unsent: libc::c_int = 0;
    // SAFETY: a system call that writes an integer into a live one.
    unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut unsent) };
    unsent as u64
}

/// Whether the other side has closed both directions, or the connection is lost.
pub(super) fn is_hung_up(socket: BorrowedFd<'_>) -> bool {
    has_happened(socket, libc::POLLHUP | libc::POLLERR)
}

/// Whether the other side sends nothing more, apart from bytes that may have arrived already.
pub(super) fn is_half_closed(socket: BorrowedFd<'_>) -> bool {
    has_happened(socket, libc::POLLRDHUP)
}

fn has_happened(socket: BorrowedFd<'_>, events: i16) -> bool {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events, revents: 0 };
    // SAFETY: a system call on one live structure, without waiting.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready > 0 && poll.revents & events != 0
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_the_kernel_moves_is_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut theirs, _) = listener.accept().unwrap();
        let before = moved_by_kernel(ours.as_fd());
        theirs.write_all(&[0; 1000]).unwrap();
        ours.read_exact(&mut [0; 1000]).unwrap();
        let received = moved_by_kernel(ours.as_fd());
        assert_eq!(received.wrapping_sub(before), 1000);
        ours.write_all(&[0; 500]).unwrap();
        theirs.read_exact(&mut [0; 500]).unwrap();
        assert_eq!(moved_by_kernel(ours.as_fd()).wrapping_sub(received), 500);
        let (mut one, mut other) = UnixStream::pair().unwrap();
        one.write_all(&[0; 100]).unwrap();
        let full = moved_by_kernel(one.as_fd());
        other.read_exact(&mut [0; 100]).unwrap();
        assert_ne!(moved_by_kernel(one.as_fd()), full);
    }

    #[test]
    fn who_has_closed_one_direction_is_still_there() {
        let (one, other) = UnixStream::pair().unwrap();
        assert!(!is_hung_up(one.as_fd()) && !is_half_closed(one.as_fd()));
        other.shutdown(Shutdown::Write).unwrap();
        assert!(!is_hung_up(one.as_fd()) && is_half_closed(one.as_fd()));
        drop(other);
        assert!(is_hung_up(one.as_fd()));
    }
}
