//! A front end of our own: it shares memory with the export, and drives one ring in it.

#![allow(unreachable_pub, reason = "the tests of this program use it")]

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering, fence};
use std::time::{Duration, Instant};

use super::support::HANG;

pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_LOG_BASE: u32 = 6;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const GET_PROTOCOL_FEATURES: u32 = 15;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const GET_QUEUE_NUM: u32 = 17;
pub const SET_VRING_ENABLE: u32 = 18;
pub const SET_BACKEND_REQ_FD: u32 = 21;
pub const GET_CONFIG: u32 = 24;
pub const GET_INFLIGHT_FD: u32 = 31;
pub const SET_INFLIGHT_FD: u32 = 32;

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;

pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;

pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT: u64 = 1 << 28;
pub const LOG_ALL: u64 = 1 << 26;
const PROTOCOL: u64 = 1 << 30;

/// Where the guest has its memory, and where the front end says that it has it.
pub const GUEST: u64 = 0x10_0000;
pub const USER: u64 = 0x7000_0000_0000;
pub const MEMORY: usize = 4 << 20;
pub const SIZE: u16 = 64;

const DESCRIPTORS: usize = 0;
const AVAILABLE: usize = 0x1000;
const USED: usize = 0x2000;
/// Headers, statuses and tables of requests, by head.
const HEADERS: usize = 0x4000;
const TABLES: usize = 0x10000;
/// Memory for data.
pub const DATA: usize = 0x10_0000;

/// Flags of a descriptor.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const TABLE: u16 = 4;

/// A file in memory, and its mapping.
pub struct Shared {
    pub file: OwnedFd,
    at: NonNull<u8>,
    len: usize,
}

impl Shared {
    pub fn new(len: usize) -> Shared {
        // SAFETY: a system call with a literal; the kernel makes the descriptor for us.
        let file = unsafe {
            OwnedFd::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC))
        };
        // SAFETY: a system call on an own descriptor.
        assert_eq!(unsafe { libc::ftruncate(file.as_raw_fd(), len as i64) }, 0);
        Shared::of(file, len)
    }

    pub fn of(file: OwnedFd, len: usize) -> Shared {
        let (none, fd) = (std::ptr::null_mut(), file.as_raw_fd());
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let at = unsafe { libc::mmap(none, len, protection, libc::MAP_SHARED, fd, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Shared { file, at: NonNull::new(at.cast()).unwrap(), len }
    }

    pub fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len);
        // SAFETY: within the mapping.
        unsafe { self.at.as_ptr().add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    pub fn read(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= self.len);
        let mut bytes = vec![0; len];
        // SAFETY: within the mapping.
        unsafe { self.at.as_ptr().add(at).copy_to_nonoverlapping(bytes.as_mut_ptr(), len) };
        bytes
    }

    pub fn word(&self, at: usize) -> &AtomicU16 {
        assert!(at + 2 <= self.len);
        // SAFETY: within the mapping, and aligned by the callers.
        unsafe { self.at.add(at).cast::<AtomicU16>().as_ref() }
    }

    /// Takes the pages away.
    pub fn shrink(&self) {
        // SAFETY: a system call on an own descriptor.
        assert_eq!(unsafe { libc::ftruncate(self.file.as_raw_fd(), 0) }, 0);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: mapped in of() with this length.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.len) };
    }
}

pub fn eventfd() -> OwnedFd {
    // SAFETY: a system call with integers; the kernel makes the descriptor for us.
    unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)) }
}

fn signal(fd: &OwnedFd) {
    let one = 1u64;
    // SAFETY: writes eight bytes of a live integer.
    unsafe { libc::write(fd.as_raw_fd(), (&raw const one).cast(), 8) };
}

/// Waits for a signal. False after `time`.
fn wait(fd: &OwnedFd, time: Duration) -> bool {
    let mut polled = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut count = 0u64;
    // SAFETY: system calls with live structures.
    unsafe {
        let ready = libc::poll(&raw mut polled, 1, time.as_millis() as i32) == 1;
        libc::read(fd.as_raw_fd(), (&raw mut count).cast(), 8);
        ready
    }
}

/// A piece of a request's data: its place in the memory, and its length.
pub type Piece = (usize, u32);

/// A connection to an export, with one ring.
pub struct Front {
    pub socket: UnixStream,
    pub memory: Shared,
    pub features: u64,
    /// The features of the protocol that may be used.
    pub protocol: u64,
    kick: OwnedFd,
    call: OwnedFd,
    /// The next entry of the available ring, and the next used one that was not seen.
    pub available: u16,
    pub seen: u16,
    /// Whether chains are in tables of their own.
    pub indirect: bool,
    /// Kicks that were sent.
    pub kicks: u32,
}

impl Front {
    /// Connects, and has a ring served.
    pub fn connect(path: &Path, features: u64) -> Front {
        Front::connect_as(path, features, u64::MAX)
    }

    /// As above, with some features of the protocol only.
    pub fn connect_as(path: &Path, features: u64, protocol: u64) -> Front {
        let mut front = Front::bare(path, Shared::new(MEMORY), features);
        front.protocol = protocol;
        front.negotiate();
        front.begin(0);
        front
    }

    /// Connects, and says nothing.
    pub fn bare(path: &Path, memory: Shared, features: u64) -> Front {
        let socket = UnixStream::connect(path).unwrap();
        socket.set_read_timeout(Some(HANG)).unwrap();
        Front {
            socket,
            memory,
            features: features | VERSION_1,
            protocol: u64::MAX,
            kick: eventfd(),
            call: eventfd(),
            available: 0,
            seen: 0,
            indirect: false,
            kicks: 0,
        }
    }

    pub fn negotiate(&mut self) {
        let offered = self.ask(GET_FEATURES);
        assert_eq!(offered & self.features, self.features, "{offered:#x}");
        let protocol = self.ask(GET_PROTOCOL_FEATURES) & self.protocol;
        self.tell(SET_PROTOCOL_FEATURES, &protocol.to_le_bytes(), None);
        self.tell(SET_FEATURES, &(self.features | PROTOCOL).to_le_bytes(), None);
        self.share();
    }

    /// Shares the memory.
    pub fn share(&mut self) {
        let table = words(&[1, GUEST, MEMORY as u64, USER, 0]);
        let file = self.memory.file.try_clone().unwrap();
        self.tell(SET_MEM_TABLE, &table, Some(&file));
    }

    /// Has the ring served from `base` on.
    pub fn begin(&mut self, base: u16) {
        let at = |at: usize| USER + at as u64;
        self.tell(SET_VRING_NUM, &state(0, SIZE.into()), None);
        self.tell(SET_VRING_BASE, &state(0, base.into()), None);
        let log = u64::from(self.features & LOG_ALL != 0) << 32;
        let places = [log, at(DESCRIPTORS), at(USED), at(AVAILABLE), GUEST + USED as u64];
        self.tell(SET_VRING_ADDR, &words(&places), None);
        let (call, kick) = (self.call.try_clone().unwrap(), self.kick.try_clone().unwrap());
        self.tell(SET_VRING_CALL, &words(&[0]), Some(&call));
        self.tell(SET_VRING_KICK, &words(&[0]), Some(&kick));
        self.tell(SET_VRING_ENABLE, &state(0, 1), None);
    }

    /// Sends a message.
    pub fn send(&mut self, request: u32, flags: u32, payload: &[u8], file: Option<&OwnedFd>) {
        let mut bytes = words32(&[request, 1 | flags, payload.len() as u32]);
        bytes.extend(payload);
        let mut control = [0u64; 4];
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: all that the header names is live; the control bytes have room for a descriptor.
        let sent = unsafe {
            let mut message: libc::msghdr = std::mem::zeroed();
            (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
            if let Some(file) = file {
                message.msg_control = control.as_mut_ptr().cast();
                message.msg_controllen = libc::CMSG_SPACE(4) as _;
                let header = libc::CMSG_FIRSTHDR(&raw const message);
                (*header).cmsg_level = libc::SOL_SOCKET;
                (*header).cmsg_type = libc::SCM_RIGHTS;
                (*header).cmsg_len = libc::CMSG_LEN(4) as _;
                libc::CMSG_DATA(header).cast::<i32>().write_unaligned(file.as_raw_fd());
            }
            libc::sendmsg(self.socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
        };
        assert_eq!(sent, bytes.len() as isize);
    }

    /// Sends a message, and waits until it was obeyed.
    #[track_caller]
    pub fn tell(&mut self, request: u32, payload: &[u8], file: Option<&OwnedFd>) {
        // The features that allow replies come before everything that needs them.
        let early = request == SET_PROTOCOL_FEATURES;
        self.send(request, if early { 0 } else { 8 }, payload, file);
        if !early {
            assert_eq!(self.reply(request), 0u64.to_le_bytes(), "message {request} is refused");
        }
    }

    /// Asks for a number.
    pub fn ask(&mut self, request: u32) -> u64 {
        self.send(request, 0, &[], None);
        u64::from_le_bytes(self.reply(request).try_into().unwrap())
    }

    /// The payload of the reply to a message.
    #[track_caller]
    pub fn reply(&mut self, request: u32) -> Vec<u8> {
        let mut header = [0; 12];
        self.socket.read_exact(&mut header).unwrap();
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(4)), (request, 1 | 4));
        let mut payload = vec![0; word(8) as usize];
        self.socket.read_exact(&mut payload).unwrap();
        payload
    }

    /// The reply with a descriptor to a message.
    pub fn reply_with_file(&mut self) -> (Vec<u8>, OwnedFd) {
        let mut bytes = vec![0u8; 512];
        let mut control = [0u64; 4];
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: all that the header names is live, and the kernel makes the descriptor for us.
        let (got, file) = unsafe {
            let mut message: libc::msghdr = std::mem::zeroed();
            (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = size_of_val(&control) as _;
            let got = libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, 0);
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            assert!(!header.is_null(), "no descriptor");
            (got, OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<i32>().read_unaligned()))
        };
        bytes.truncate(got as usize);
        (bytes.split_off(12), file)
    }

    /// Stops the ring, and says where it goes on.
    pub fn stop(&mut self) -> u16 {
        self.send(GET_VRING_BASE, 0, &state(0, 0), None);
        let reply = self.reply(GET_VRING_BASE);
        u16::from_le_bytes(reply[4..6].try_into().unwrap())
    }

    /// Whether the export closes the connection.
    pub fn is_dropped(&mut self) -> bool {
        self.socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut rest = [0; 64];
        loop {
            match self.socket.read(&mut rest) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }

    /// Writes a descriptor of the ring's table.
    pub fn descriptor(&self, number: u16, guest: u64, len: u32, flags: u16, next: u16) {
        self.memory.write(DESCRIPTORS + usize::from(number) * 16, &entry(guest, len, flags, next));
    }

    /// Where the status of a head is.
    fn status_at(head: u16) -> usize {
        HEADERS + usize::from(head) * 64 + 32
    }

    /// Makes a request available whose head is `head`. It uses the descriptors from there on, so
    /// heads must be far enough apart.
    pub fn submit(&mut self, head: u16, kind: u32, sector: u64, pieces: &[Piece]) {
        let mut header = words32(&[kind, 0]);
        header.extend(sector.to_le_bytes());
        let header_at = HEADERS + usize::from(head) * 64;
        self.memory.write(header_at, &header);
        self.memory.write(Self::status_at(head), &[0xee]);
        let data = if matches!(kind, IN | GET_ID) { WRITE } else { 0 };
        let guest = |at: usize| GUEST + at as u64;
        let mut all = vec![(guest(header_at), 16, 0)];
        all.extend(pieces.iter().map(|&(at, len)| (guest(at), len, data)));
        all.push((guest(Self::status_at(head)), 1, WRITE));
        let (table, first) = match self.indirect {
            true => (TABLES + usize::from(head) * 4096, 0),
            false => (DESCRIPTORS + usize::from(head) * 16, head),
        };
        let last = all.len() - 1;
        for (n, (guest, len, flags)) in all.iter().enumerate() {
            let next = if n == last { 0 } else { NEXT };
            let bytes = entry(*guest, *len, flags | next, first + n as u16 + 1);
            self.memory.write(table + n * 16, &bytes);
        }
        if self.indirect {
            self.descriptor(head, guest(table), all.len() as u32 * 16, TABLE, 0);
        }
        self.make_available(head);
    }

    /// Makes a head available, and notifies if the export wants that.
    pub fn make_available(&mut self, head: u16) {
        let place = AVAILABLE + 4 + 2 * usize::from(self.available % SIZE);
        self.memory.word(place).store(head, Ordering::Relaxed);
        self.available = self.available.wrapping_add(1);
        self.memory.word(AVAILABLE + 2).store(self.available, Ordering::Release);
        fence(Ordering::SeqCst);
        let event = self.memory.word(USED + 4 + 8 * usize::from(SIZE)).load(Ordering::Relaxed);
        let has_event = self.features & EVENT_IDX != 0;
        if !has_event || event == self.available.wrapping_sub(1) {
            self.kick();
        }
    }

    pub fn kick(&mut self) {
        self.kicks += 1;
        signal(&self.kick);
    }

    /// Takes the next answer: its head, its status, and the bytes written. `None` after `time`.
    pub fn answer_within(&mut self, time: Duration) -> Option<(u16, u8, u32)> {
        let until = Instant::now() + time;
        while self.memory.word(USED + 2).load(Ordering::Acquire) == self.seen {
            // The export notifies from the entry on that is not seen.
            let event = AVAILABLE + 4 + 2 * usize::from(SIZE);
            self.memory.word(event).store(self.seen, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if self.memory.word(USED + 2).load(Ordering::Acquire) != self.seen {
                break;
            }
            let left = until.checked_duration_since(Instant::now())?;
            wait(&self.call, left);
        }
        let at = USED + 4 + 8 * usize::from(self.seen % SIZE);
        self.seen = self.seen.wrapping_add(1);
        let entry = self.memory.read(at, 8);
        let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
        let head = word(0) as u16;
        Some((head, self.memory.read(Self::status_at(head), 1)[0], word(4)))
    }

    #[track_caller]
    pub fn answer(&mut self) -> (u16, u8, u32) {
        self.answer_within(HANG).expect("no answer")
    }

    /// Carries out one request.
    #[track_caller]
    pub fn call(&mut self, kind: u32, sector: u64, pieces: &[Piece]) -> u8 {
        self.submit(0, kind, sector, pieces);
        let (head, status, _) = self.answer();
        assert_eq!(head, 0);
        status
    }

    #[track_caller]
    pub fn write(&mut self, sector: u64, bytes: &[u8]) {
        self.memory.write(DATA, bytes);
        assert_eq!(self.call(OUT, sector, &[(DATA, bytes.len() as u32)]), OK);
    }

    #[track_caller]
    pub fn read(&mut self, sector: u64, len: usize) -> Vec<u8> {
        self.memory.write(DATA, &vec![0xaa; len]);
        assert_eq!(self.call(IN, sector, &[(DATA, len as u32)]), OK);
        self.memory.read(DATA, len)
    }

    /// A discard or write of zeroes.
    #[track_caller]
    pub fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let mut range = sector.to_le_bytes().to_vec();
        range.extend(words32(&[sectors, flags]));
        self.memory.write(DATA, &range);
        self.call(kind, 0, &[(DATA, 16)])
    }

    /// Sends bytes that need not be a message.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes);
    }
}

fn entry(guest: u64, len: u32, flags: u16, next: u16) -> Vec<u8> {
    let mut bytes = guest.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    bytes
}

pub fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub fn words32(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The number of a ring, and a value.
pub fn state(ring: u32, value: u32) -> Vec<u8> {
    words32(&[ring, value])
}
