//! A client that negotiates EXTENDED_HEADERS with a real server over a socket. It is written from
//! the protocol's document (NetworkBlockDevice/nbd, doc/proto.md) and shares no code with the
//! server. One test sends what QEMU 10 sends, which differs from the document.

mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use support::{FLUSH, FUA, HANG, READ, TRIM, WRITE, WRITE_ZEROES, World, option};

const OPTION_GO: u32 = 7;
const OPTION_SET_META_CONTEXT: u32 = 10;
const OPTION_EXTENDED_HEADERS: u32 = 11;
const REPLY_ACK: u32 = 1;
const REPLY_META_CONTEXT: u32 = 4;

const BLOCK_STATUS: u16 = 7;
const FLAG_PAYLOAD_LEN: u16 = 1 << 5;

const CHUNK_NONE: u16 = 0;
const CHUNK_OFFSET_DATA: u16 = 1;
const CHUNK_OFFSET_HOLE: u16 = 2;
const CHUNK_BLOCK_STATUS_EXT: u16 = 6;
const CHUNK_IS_ERROR: u16 = 1 << 15;
const CHUNK_DONE: u16 = 1;

const EINVAL: u32 = 22;
const GIB: u64 = 1 << 30;

struct Chunk {
    done: bool,
    kind: u16,
    cookie: u64,
    offset: u64,
    payload: Vec<u8>,
}

struct Client {
    socket: UnixStream,
    contexts: Vec<u32>,
    cookie: u64,
}

fn read<const N: usize>(socket: &mut UnixStream) -> [u8; N] {
    let mut bytes = [0; N];
    socket.read_exact(&mut bytes).expect("the server closed the connection");
    bytes
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

impl Client {
    fn connect(world: &World, export: &str, contexts: &[&str]) -> Client {
        let mut socket = UnixStream::connect(world.socket()).unwrap();
        socket.set_read_timeout(Some(HANG)).unwrap();
        read::<18>(&mut socket);
        socket.write_all(&3u32.to_be_bytes()).unwrap();
        let mut client = Client { socket, contexts: Vec::new(), cookie: 0 };
        client.socket.write_all(&option(OPTION_EXTENDED_HEADERS, &[])).unwrap();
        assert_eq!(client.option_reply().0, REPLY_ACK, "the server has no extended headers");
        let name = [&(export.len() as u32).to_be_bytes()[..], export.as_bytes()].concat();
        let mut queries = [&name[..], &(contexts.len() as u32).to_be_bytes()].concat();
        for context in contexts {
            queries.extend((context.len() as u32).to_be_bytes());
            queries.extend(context.as_bytes());
        }
        client.socket.write_all(&option(OPTION_SET_META_CONTEXT, &queries)).unwrap();
        while let (REPLY_META_CONTEXT, data) = client.option_reply() {
            client.contexts.push(u32_at(&data, 0));
        }
        client.socket.write_all(&option(OPTION_GO, &[&name[..], &[0, 0]].concat())).unwrap();
        while client.option_reply().0 != REPLY_ACK {}
        client
    }

    fn option_reply(&mut self) -> (u32, Vec<u8>) {
        let header = read::<20>(&mut self.socket);
        assert_eq!(u64_at(&header, 0), 0x0003_e889_0455_65a9);
        let kind = u32_at(&header, 12);
        assert!(kind < 1 << 31, "the server refused: {kind:x}");
        let mut data = vec![0; u32_at(&header, 16) as usize];
        self.socket.read_exact(&mut data).unwrap();
        (kind, data)
    }

    fn send(&mut self, flags: u16, command: u16, offset: u64, len: u64, payload: &[u8]) -> u64 {
        self.cookie += 1;
        let mut bytes = 0x21e4_1c71u32.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(self.cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.extend(payload);
        self.socket.write_all(&bytes).unwrap();
        self.cookie
    }

    fn chunk(&mut self) -> Chunk {
        let header = read::<32>(&mut self.socket);
        assert_eq!(u32_at(&header, 0), 0x6e8a_278c, "not an extended reply");
        let mut payload = vec![0; u64_at(&header, 24) as usize];
        self.socket.read_exact(&mut payload).unwrap();
        Chunk {
            done: u16::from_be_bytes([header[4], header[5]]) & CHUNK_DONE != 0,
            kind: u16::from_be_bytes([header[6], header[7]]),
            cookie: u64_at(&header, 8),
            offset: u64_at(&header, 16),
            payload,
        }
    }

    /// Returns all chunks of one request. Each must carry its cookie and offset.
    fn call(
        &mut self,
        flags: u16,
        command: u16,
        offset: u64,
        len: u64,
        payload: &[u8],
    ) -> Vec<Chunk> {
        let cookie = self.send(flags, command, offset, len, payload);
        let mut chunks = Vec::new();
        loop {
            let chunk = self.chunk();
            assert_eq!((chunk.cookie, chunk.offset), (cookie, offset));
            let done = chunk.done;
            chunks.push(chunk);
            if done {
                return chunks;
            }
        }
    }

    fn done(&mut self, flags: u16, command: u16, offset: u64, len: u64, payload: &[u8]) {
        let chunks = self.call(flags, command, offset, len, payload);
        assert_eq!(chunks.iter().map(|chunk| chunk.kind).collect::<Vec<_>>(), [CHUNK_NONE]);
    }

    fn read(&mut self, offset: u64, len: u64) -> Vec<u8> {
        let mut data = vec![0xff; len as usize];
        for chunk in self.call(0, READ, offset, len, &[]) {
            match chunk.kind {
                CHUNK_NONE => continue,
                CHUNK_OFFSET_DATA => {
                    let at = (u64_at(&chunk.payload, 0) - offset) as usize;
                    let bytes = &chunk.payload[8..];
                    data[at..at + bytes.len()].copy_from_slice(bytes);
                }
                CHUNK_OFFSET_HOLE => {
                    let at = (u64_at(&chunk.payload, 0) - offset) as usize;
                    data[at..at + u32_at(&chunk.payload, 8) as usize].fill(0);
                }
                kind => panic!("chunk of kind {kind:x}"),
            }
        }
        data
    }

    fn error(&mut self, flags: u16, command: u16, offset: u64, len: u64, payload: &[u8]) -> u32 {
        let chunks = self.call(flags, command, offset, len, payload);
        let [chunk] = &chunks[..] else { panic!("{} chunks", chunks.len()) };
        assert!(chunk.kind & CHUNK_IS_ERROR != 0, "no error: {}", chunk.kind);
        u32_at(&chunk.payload, 0)
    }

    /// Returns the extents of one context as (length, status).
    fn extents(&mut self, offset: u64, len: u64, context: u32) -> Vec<(u64, u64)> {
        let mut extents = Vec::new();
        for chunk in self.call(0, BLOCK_STATUS, offset, len, &[]) {
            if chunk.kind == CHUNK_BLOCK_STATUS_EXT && u32_at(&chunk.payload, 0) == context {
                let list = chunk.payload[8..]
                    .chunks(16)
                    .map(|extent| (u64_at(extent, 0), u64_at(extent, 8)));
                extents.extend(list);
                assert_eq!(extents.len(), u32_at(&chunk.payload, 4) as usize);
            }
        }
        extents
    }
}

#[test]
fn requests_longer_than_4_gib() {
    let world = World::new(2);
    world.device("disk", world.linear(&world.leaf("mem:16G")));
    let mut client = Client::connect(&world, "disk", &["base:allocation"]);
    let data: Vec<u8> = (0..256 << 10).map(|n| (n / 509) as u8).collect();
    for at in [4096, 9 * GIB] {
        client.done(FLAG_PAYLOAD_LEN, WRITE, at, data.len() as u64, &data);
        assert_eq!(client.read(at, data.len() as u64), data);
    }
    client.done(0, FLUSH, 0, 0, &[]);
    let [context] = client.contexts[..] else { panic!("one context was asked for") };
    let described: u64 = client.extents(0, 16 * GIB, context).iter().map(|extent| extent.0).sum();
    assert_eq!(described, 16 * GIB, "one answer describes what 32 bits cannot");
    client.done(0, TRIM, 0, 8 * GIB, &[]);
    assert_eq!(client.read(4096, data.len() as u64), vec![0; data.len()]);
    assert_eq!(client.read(9 * GIB, data.len() as u64), data, "behind the trimmed range");
    client.done(0, WRITE_ZEROES, 8 * GIB, 8 * GIB, &[]);
    assert_eq!(client.read(9 * GIB, data.len() as u64), vec![0; data.len()]);
}

/// QEMU 10 asks for extended headers and then sends WRITE with FUA without PAYLOAD_LEN. The data
/// follows, and the server must find the next request after it.
#[test]
fn a_write_as_qemu_10_sends_it() {
    let world = World::new(1);
    world.device("disk", world.linear(&world.leaf("mem:64M")));
    let mut client = Client::connect(&world, "disk", &["base:allocation"]);
    for (n, len) in [512usize, 4096, 1 << 20, 32 << 20].into_iter().enumerate() {
        let data: Vec<u8> = (0..len).map(|at| (at / 511 + n) as u8).collect();
        client.done(FUA, WRITE, 4096, len as u64, &data);
        assert_eq!(client.read(4096, len as u64), data);
        client.done(0, FLUSH, 0, 0, &[]);
    }
}

#[test]
fn the_region_map_in_long_extents() {
    let world = World::new(1);
    let leaves = [world.leaf("mem:8G"), world.leaf("mem:8G")];
    let device = world.device("disk", world.switch(&leaves, 1 << 20));
    let mut client = Client::connect(&world, "disk", &["blkswitch:path"]);
    let [context] = client.contexts[..] else { panic!("one context was asked for") };
    let region = 512 << 20;
    let expected: Vec<(u64, u64)> = (0..16).map(|n| (region, n % 2)).collect();
    assert_eq!(client.extents(0, 8 * GIB, context), expected);
    let message = device.messenger(0).unwrap();
    blkswitch_io::core::switch::Message::new()
        .apply_text(&mut message.writer().unwrap(), b"0:1 R1,f", true)
        .unwrap();
    drop(message);
    assert_eq!(client.extents(0, 8 * GIB, context), [(8 * GIB, 1)], "one extent of 8 GiB");
}

#[test]
fn what_cannot_be_served_is_refused_and_the_connection_goes_on() {
    let world = World::new(1);
    world.device("disk", world.linear(&world.leaf("mem:1M")));
    let mut client = Client::connect(&world, "disk", &["base:allocation"]);
    assert_eq!(client.error(0, READ, 1 << 63, 512, &[]), EINVAL);
    assert_eq!(client.error(0, TRIM, 0, u64::MAX, &[]), EINVAL);
    assert_eq!(client.error(0, 99, 0, 0, &[]), EINVAL);
    client.done(FLAG_PAYLOAD_LEN, WRITE, 0, 512, &[7; 512]);
    assert_eq!(client.read(0, 512), [7; 512]);
    // The server refuses a payload that is longer than any buffer, whatever its header claims.
    client.send(FLAG_PAYLOAD_LEN, WRITE, 0, 1 << 62, &[]);
    let mut rest = Vec::new();
    client.socket.shutdown(std::net::Shutdown::Write).unwrap();
    client.socket.read_to_end(&mut rest).unwrap();
    let mut next = Client::connect(&world, "disk", &["base:allocation"]);
    assert_eq!(next.read(0, 512), [7; 512]);
}
