//! Tests of [`blkswitch_io::client::Client`]: what it does, what it refuses, and how it ends.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use blkswitch_io::client::{Answer, Ask, Client, ClientError, ClientOptions};
use blkswitch_io::request::Op;
use blkswitch_io::{
    AlignedBytes, Device, DeviceError, Leaf, LeafOptions, Pool, PoolOptions, TableBuilder, Target,
    To,
};

const BLOCK: usize = 4096;
const LONG: Option<Duration> = Some(Duration::from_secs(20));

fn pool(queues: usize) -> Pool {
    Pool::start(PoolOptions { queues, ..PoolOptions::default() }).unwrap()
}

fn device(pool: &Pool, name: &str, address: &str) -> Arc<Device> {
    let leaf = Leaf::open(&address.parse().unwrap(), &LeafOptions::new(pool.queues())).unwrap();
    let mut table = TableBuilder::new(false);
    let below = table.leaf(leaf);
    table.push(2048, Target::Linear(To { below, offset: 0 }));
    let device = pool.registry().create(name, "", None).unwrap();
    device.load(table.build().unwrap()).unwrap();
    device.resume().unwrap();
    device
}

fn client(pool: &Pool, device: &Arc<Device>, in_flight: usize) -> Client {
    pool.client(device, ClientOptions { in_flight, queue: None }).unwrap()
}

fn filled(byte: u8) -> AlignedBytes {
    AlignedBytes::copy_of(&[byte; BLOCK]).unwrap()
}

/// The errno of an answer, 0 if it succeeded.
fn errno(answer: &Answer) -> i32 {
    answer.result.as_ref().err().map_or(0, |error| error.raw_os_error().unwrap())
}

/// Starts a request and waits for its answer.
fn ask(client: &mut Client, ask: Ask) -> Answer {
    let mut answers = Vec::new();
    client.start(ask).unwrap();
    client.wait(&mut answers, LONG).unwrap();
    assert_eq!(answers.len(), 1, "one request, one answer");
    answers.remove(0)
}

/// Waits until nobody has the device open.
fn await_closed(device: &Device) {
    let began = Instant::now();
    while device.info().opens > 0 {
        assert!(began.elapsed() < Duration::from_secs(20), "the device stays open");
        std::thread::yield_now();
    }
}

#[test]
fn many_threads_write_and_read_through_all_queues() {
    let pool = pool(2);
    let device = device(&pool, "disk", "sim:1M,delay=1us..50us");
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let mut client = client(&pool, &device, 8);
            assert_eq!(client.queue() as u64, thread % 2);
            scope.spawn(move || {
                let (mut answers, mut token, mut answered) = (Vec::new(), 0, 0);
                for op in [Op::Write, Op::Read] {
                    for block in 0..64_u64 {
                        let offset = (thread * 64 + block) * BLOCK as u64;
                        let byte = (thread * 64 + block) as u8;
                        let mut next = match op {
                            Op::Write => Ask::write(offset, filled(byte), token),
                            _ => Ask::read(offset, filled(0xee), token),
                        };
                        while let Err(full) = client.start(next) {
                            next = full;
                            client.wait(&mut answers, LONG).unwrap();
                        }
                        token += 1;
                    }
                    while client.in_flight() > 0 {
                        client.wait(&mut answers, LONG).unwrap();
                    }
                    for answer in answers.drain(..) {
                        answer.result.unwrap();
                        answered += 1;
                        let byte = (thread * 64 + answer.token % 64) as u8;
                        assert!(answer.data.iter().all(|one| *one == byte), "{}", answer.token);
                    }
                }
                assert_eq!(answered, token);
                ask(&mut client, Ask::flush(9)).result.unwrap();
                client.close(&mut answers).unwrap();
            });
        }
    });
    await_closed(&device);
    let totals = device.totals();
    assert_eq!((totals.reads, totals.writes, totals.flushes), (256, 256, 4));
    pool.registry().remove(&device).unwrap();
    pool.stop();
}

#[test]
fn what_makes_no_sense_is_answered_and_nothing_else_happens() {
    let pool = pool(1);
    let device = device(&pool, "disk", "mem:1M");
    let mut client = client(&pool, &device, 2);
    let with = |op, fua, offset, len, bytes| {
        let data = AlignedBytes::zeroed(bytes).unwrap();
        Ask { op, fua, offset, len, data, token: 9 }
    };
    for (next, expected) in [
        (with(Op::Flush, false, 0, 4096, 0), libc::EINVAL),
        (with(Op::Read, true, 0, 4096, 4096), libc::EINVAL),
        (with(Op::Read, false, 1, 512, 4096), libc::EINVAL),
        (with(Op::Write, false, 0, 4096, 512), libc::EINVAL),
        (with(Op::Read, false, u64::MAX - 511, 512, 512), libc::EINVAL),
        (with(Op::Write, false, 1 << 20, 512, 512), libc::ENOSPC),
        (with(Op::Read, false, 0, 0, 0), 0),
        (with(Op::Write, true, 0, 512, 512), 0),
    ] {
        let text = format!("{next:?}");
        let answer = ask(&mut client, next);
        assert_eq!((answer.token, errno(&answer)), (9, expected), "{text}");
    }
    // The third has no room; the memory comes back.
    client.start(Ask::flush(1)).unwrap();
    client.start(Ask::flush(2)).unwrap();
    assert_eq!((client.room(), client.in_flight()), (0, 2));
    let refused = client.start(Ask::write(0, filled(3), 3)).unwrap_err();
    assert_eq!((refused.token, refused.data[7]), (3, 3));
    // A wait without requests does not last.
    let mut answers = Vec::new();
    while client.in_flight() > 0 {
        client.wait(&mut answers, None).unwrap();
    }
    client.wait(&mut answers, None).unwrap();
    client.wait(&mut answers, Some(Duration::from_millis(1))).unwrap();
    assert_eq!(answers.iter().map(|answer| answer.token).collect::<Vec<_>>(), [1, 2]);
    pool.stop();
}

#[test]
fn what_cannot_be_opened_is_said() {
    let (pool, other) = (pool(2), pool(1));
    let own = device(&pool, "disk", "mem:1M");
    let foreign = device(&other, "foreign", "mem:1M");
    let error = |device, in_flight, queue| {
        pool.client(device, ClientOptions { in_flight, queue }).unwrap_err().to_string()
    };
    assert_eq!(error(&own, 0, None), "0 requests in flight: a client may have 1 to 4096");
    assert_eq!(error(&own, 5000, None), "5000 requests in flight: a client may have 1 to 4096");
    assert_eq!(error(&own, 1, Some(2)), "there is no queue 2: the pool has 2, counted from 0");
    assert_eq!(error(&foreign, 1, None), "Device foreign not found");
    let client = client(&pool, &own, 1);
    let busy = pool.registry().remove(&own).unwrap_err();
    assert!(matches!(busy, DeviceError::Busy { opens: 1, .. }), "{busy}");
    drop(client);
    await_closed(&own);
    pool.registry().remove(&own).unwrap();
    assert_eq!(error(&own, 1, None), "Device disk not found");
    pool.stop();
    other.stop();
}

/// Requests at a closed gate wait. A client that closes gets them back, and one that is just
/// dropped does not keep the device.
#[test]
fn a_suspended_device_does_not_keep_a_client_that_goes() {
    let pool = pool(1);
    let device = device(&pool, "disk", "mem:1M");
    let mut waits = client(&pool, &device, 4);
    let mut closes = client(&pool, &device, 4);
    let mut drops = client(&pool, &device, 4);
    device.suspend().unwrap();
    for client in [&mut waits, &mut closes, &mut drops] {
        client.start(Ask::write(0, filled(1), 1)).unwrap();
        client.submit();
    }
    let mut answers = Vec::new();
    closes.close(&mut answers).unwrap();
    assert_eq!((answers.len(), errno(&answers[0])), (1, libc::ESHUTDOWN));
    drop(drops);
    // The other client's request waits on, until somebody wakes the client.
    let waker = waits.waker();
    let thread = std::thread::spawn(move || waker.wake());
    answers.clear();
    waits.wait(&mut answers, None).unwrap();
    thread.join().unwrap();
    assert!(answers.is_empty() && waits.in_flight() == 1);
    device.resume().unwrap();
    waits.wait(&mut answers, LONG).unwrap();
    assert_eq!(errno(&answers[0]), 0);
    drop(waits);
    await_closed(&device);
    pool.stop();
}

#[test]
fn the_end_of_the_pool_is_noticed() {
    let pool = pool(1);
    let device = device(&pool, "disk", "mem:1M");
    let mut client = client(&pool, &device, 4);
    ask(&mut client, Ask::write(0, filled(1), 1)).result.unwrap();
    device.suspend().unwrap();
    client.start(Ask::write(0, filled(2), 2)).unwrap();
    client.submit();
    let waits = std::thread::spawn(move || {
        let (mut answers, mut errors) = (Vec::new(), Vec::new());
        while errors.is_empty() {
            errors.extend(client.wait(&mut answers, LONG).err());
            if errors.is_empty() && client.in_flight() == 0 {
                client.start(Ask::flush(3)).unwrap();
            }
        }
        (answers, errors.remove(0))
    });
    std::thread::sleep(Duration::from_millis(20));
    pool.stop();
    let (answers, error) = waits.join().unwrap();
    assert!(answers.iter().all(|answer| errno(answer) == libc::ESHUTDOWN), "{answers:?}");
    assert!(answers.first().is_some_and(|answer| answer.token == 2), "{answers:?}");
    assert!(matches!(error, ClientError::Ended { .. }), "{error}");
    let late = pool.client(&device, ClientOptions::default()).unwrap_err();
    assert!(matches!(late, ClientError::Device(DeviceError::Stopping)), "{late}");
}
