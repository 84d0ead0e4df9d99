//! Connections against real queue threads: clients that pause, stop half-way, lie, flood, never read, or die, beside
//! others that must not notice.

mod support;

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::{Client, WRITE, World, in_time};

const MIB: usize = 1 << 20;

/// Three writes of 32 MiB are more than a connection may have lent, so the third waits in the input buffer, and while
/// it waits a receive into that buffer is under way. The body that comes then belongs to the write, not behind it.
#[test]
fn the_body_of_a_write_that_had_to_wait_arrives_whole() {
    let world = World::new(1);
    let leaf = world.leaf("mem:128M");
    let device = world.device("disk", world.linear(&leaf));
    device.suspend().unwrap();
    let mut client = world.connect("disk");
    let data: Vec<u8> = (0..96 * MIB).map(|n| (n / 4093) as u8).collect();
    let len = 32 * MIB;
    for n in 0..2 {
        client.send(0, WRITE, (n * len) as u64, len as u32, &data[n * len..][..len]).unwrap();
    }
    client.send(0, WRITE, 2 * len as u64, len as u32, &[]).unwrap();
    // Until the server has all that was sent, and waits for more.
    std::thread::sleep(Duration::from_millis(100));
    device.resume().unwrap();
    for _ in 0..2 {
        assert_eq!(client.reply().unwrap().0, 0);
    }
    client.socket.write_all(&data[2 * len..]).unwrap();
    assert_eq!(client.reply().unwrap(), (0, 3));
    assert!(
        client.read(2 * len as u64, len as u32).unwrap() == data[2 * len..],
        "the third write is damaged"
    );
}

/// A handshake looks devices up while another is being made: neither may wait for the other.
#[test]
fn devices_are_made_while_clients_connect() {
    let world = Arc::new(World::new(2));
    let leaf = world.leaf("mem:1M");
    let _device = world.device("disk", world.linear(&leaf));
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let (path, stop) = (world.socket(), stop.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    Client::connect(&path, "disk").unwrap().read(0, 512).unwrap();
                }
            })
        })
        .collect();
    in_time("making and removing devices", {
        let world = world.clone();
        move || {
            for n in 0..300 {
                let device = world.create(&format!("other{n}"));
                world.pool.registry().remove(&device).unwrap();
            }
        }
    });
    stop.store(true, Ordering::Relaxed);
    clients.into_iter().for_each(|client| client.join().unwrap());
}
