//! Messages with file descriptors, over unix sockets.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Most descriptors of one message. The kernel closes those beyond, and the message is an error.
pub(crate) const MAX_FDS: usize = 8;

/// Room for the descriptors of a message, aligned as its header needs it.
#[repr(C, align(8))]
struct Control([u8; 128]);

const FDS_BYTES: u32 = (MAX_FDS * size_of::<RawFd>()) as u32;

/// Receives what is there, without waiting: bytes to `bytes`, descriptors to `fds`. 0 at the end of
/// the stream.
///
/// # Errors
/// `WouldBlock` if nothing is there, and what the kernel says of a socket. Too many descriptors.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut control = Control([0; 128]);
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all zeroes are a valid value of this structure.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    message.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: arithmetic only. It is less than the room there is.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(FDS_BYTES) } as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: a system call on a borrowed descriptor; all that the header names is live.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has filled the header and the control bytes.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while let Some(found) = header.as_ref() {
            if (found.cmsg_level, found.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let len = found.cmsg_len - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                for at in 0..len / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(at).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a message has more than {MAX_FDS} descriptors"),
        ));
    }
    Ok(got as usize)
}

/// Sends all of a short message, perhaps with a descriptor, without waiting.
///
/// # Errors
/// The kernel's error; `WriteZero` if the socket takes only a part.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut control = Control([0; 128]);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all zeroes are a valid value of this structure.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    if let Some(fd) = fd {
        let len = size_of::<RawFd>() as u32;
        message.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: one header with one descriptor fits into the control bytes.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(len) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(len) as _;
            libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd.as_raw_fd());
        }
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: a system call on a borrowed descriptor; all that the header names is live.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
    match usize::try_from(sent) {
        Ok(sent) if sent == bytes.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Waits until one of the descriptors is readable or its other side is gone. Returns which are.
///
/// # Errors
/// The kernel's error.
pub(crate) fn wait_readable<const N: usize>(fds: [BorrowedFd<'_>; N]) -> io::Result<[bool; N]> {
    let mut polled =
        fds.map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    loop {
        // SAFETY: a system call with a live array of the length given.
        match unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, -1) } {
            0.. => return Ok(polled.map(|one| one.revents != 0)),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

/// Whether the other side of a socket has closed it.
pub(crate) fn is_hung_up(socket: BorrowedFd<'_>) -> bool {
    let mut polled = libc::pollfd { fd: socket.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: a system call with one live structure; it does not wait.
    unsafe { libc::poll(&raw mut polled, 1, 0) > 0 && polled.revents & libc::POLLHUP != 0 }
}

/// Whether a descriptor is an eventfd. Reads and writes of others may block, or mean something.
pub(crate) fn is_eventfd(fd: BorrowedFd<'_>) -> bool {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    link.is_ok_and(|link| link.as_os_str() == "anon_inode:[eventfd]")
}

/// Signals an eventfd, unless that would block.
pub(crate) fn signal(fd: BorrowedFd<'_>) {
    let one = 1u64;
    let mut polled = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: system calls with live memory, of the lengths given; the first does not wait.
    unsafe {
        if libc::poll(&raw mut polled, 1, 0) == 1 {
            libc::write(fd.as_raw_fd(), (&raw const one).cast(), 8);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::super::eventfd::EventFd;
    use super::*;

    #[test]
    fn descriptors_travel_with_bytes() {
        let (one, two) = UnixStream::pair().unwrap();
        let event = EventFd::nonblocking().unwrap();
        send(one.as_fd(), b"hello", Some(event.fd().as_fd())).unwrap();
        let (mut bytes, mut fds) = ([0; 16], Vec::new());
        assert_eq!(receive(two.as_fd(), &mut bytes, &mut fds).unwrap(), 5);
        assert_eq!((&bytes[..5], fds.len()), (&b"hello"[..], 1));
        assert!(is_eventfd(fds[0].as_fd()) && !is_eventfd(one.as_fd()));
        let none = receive(two.as_fd(), &mut bytes, &mut fds).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
        assert!(!is_hung_up(two.as_fd()));
        drop(one);
        assert!(is_hung_up(two.as_fd()));
        assert_eq!(wait_readable([two.as_fd()]).unwrap(), [true]);
        assert_eq!(receive(two.as_fd(), &mut bytes, &mut fds).unwrap(), 0);
    }
}
