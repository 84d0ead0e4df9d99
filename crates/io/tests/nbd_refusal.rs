//! When the server refuses a write, it answers after it has read the payload, not before. libnbd
//! sends header and payload separately and registers the request when both are sent. A reply before
//! that is an error to it ("no matching cookie").

use blkswitch_io::{Leaf, LeafOptions, Pool, PoolOptions, TableBuilder, Target, To};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

const PAYLOAD: usize = 4096;

#[test]
fn a_refusal_waits_for_the_payload() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd.sock");
    let pool = Pool::start(PoolOptions { queues: 1, ..PoolOptions::default() }).unwrap();
    let options = LeafOptions::new(pool.queues());
    let leaf = Leaf::open(&"mem:1m".parse().unwrap(), &options).unwrap();
    let mut table = TableBuilder::new(false);
    let below = table.leaf(leaf);
    table.push(2048, Target::Linear(To { below, offset: 0 }));
    let device = pool.registry().create("disk", "", None).unwrap();
    device.load(table.build().unwrap()).unwrap();
    device.resume().unwrap();
    pool.listen(UnixListener::bind(&path).unwrap().into()).unwrap();

    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x04disk").unwrap();
    let mut greeting_and_export = [0; 18 + 10];
    client.read_exact(&mut greeting_and_export).unwrap();

    // A WRITE beyond the end, with cookie 7.
    let header: [&[u8]; 5] = [
        &0x2560_9513u32.to_be_bytes(),
        &[0, 0, 0, 1],
        &7u64.to_be_bytes(),
        &(1u64 << 40).to_be_bytes(),
        &(PAYLOAD as u32).to_be_bytes(),
    ];
    client.write_all(&header.concat()).unwrap();
    client.write_all(&[0xaa; PAYLOAD - 1]).unwrap();
    client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut reply = [0; 16];
    let early = client.read(&mut reply).map_err(|error| error.kind());
    assert_eq!(early, Err(ErrorKind::WouldBlock), "answered before the payload was there");

    client.write_all(&[0xaa]).unwrap();
    client.set_read_timeout(None).unwrap();
    client.read_exact(&mut reply).unwrap();
    assert_eq!(reply, *b"\x67\x44\x66\x98\0\0\0\x1c\0\0\0\0\0\0\0\x07", "ENOSPC for cookie 7");
}
