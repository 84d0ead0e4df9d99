//! A target that lies. It harms only its own device, shows nobody another device's data, and does
//! not delay other devices. The target is `own.rs`; tgt is not needed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use blkswitch_io::engine::sim::Random;

use super::own::{self, Own, Pdu, READ16, WRITE16, get, operation, pdu, set};
use super::support::{World, eventually, in_time};
use super::{ESHUTDOWN, MIB};

const SECRET: &[u8; 16] = b"SECRET-OF-ANOTHR";
const LEN: u32 = 32 << 10;
/// Longest wait of a client of another device while a target lies.
const BESIDE: Duration = Duration::from_secs(5);

/// A lie: gets the header of a read or write and the correct answers, and changes the answers.
type Lie = fn(&[u8], &mut Vec<Pdu>);

fn is_data(answer: &Pdu) -> bool {
    answer[0] == 0x25
}

/// A response that reports success and carries no data.
fn good(request: &[u8]) -> Pdu {
    let mut end = pdu(0x21, 0x80, &[]);
    end[16..20].copy_from_slice(&request[16..20]);
    end
}

const LIES: &[(&str, Lie)] = &[
    ("no data", |request, answers| *answers = vec![good(request)]),
    ("half of the data", |request, answers| {
        answers.truncate(1);
        answers[0][1] = 0;
        answers.push(good(request));
    }),
    ("the last data with a status, without the first", |_, answers| {
        answers.remove(0);
    }),
    ("data twice", |_, answers| answers.insert(0, answers[0].clone())),
    ("data far behind the end", |_, answers| set(&mut answers[0], 40, 1 << 30)),
    ("data before the start", |_, answers| set(&mut answers[0], 40, u32::MAX - 4095)),
    ("data out of order", |_, answers| answers.swap(0, 1)),
    ("too much data", |_, answers| {
        let mut more = answers[1].clone();
        set(&mut more, 40, LEN);
        more[1] = 0;
        answers.insert(2, more);
    }),
    ("a segment longer than was agreed", |_, answers| answers[0][5] = 0xff),
    ("data for a command that there is not", |_, answers| set(&mut answers[0], 16, 0x0001_0107)),
    ("an answer to nothing", |_, answers| set(answers.last_mut().unwrap(), 16, 77)),
    ("the end twice", |_, answers| answers.push(answers.last().unwrap().clone())),
    ("an additional header", |_, answers| answers[0][4] = 255),
    ("data to be acknowledged", |_, answers| answers[0][1] |= 0x40),
    ("a request for data of a read", |request, answers| {
        let mut ready = pdu(0x31, 0x80, &[]);
        ready[16..20].copy_from_slice(&request[16..20]);
        set(&mut ready, 20, 7);
        set(&mut ready, 44, 4096);
        *answers = vec![ready];
    }),
    ("a request for no data", |request, answers| {
        let mut ready = pdu(0x31, 0x80, &[]);
        ready[16..20].copy_from_slice(&request[16..20]);
        set(&mut ready, 20, 7);
        answers.insert(0, ready);
    }),
    ("garbage", |_, answers| *answers = vec![vec![0xa5; 4096]]),
    ("a reject", |request, answers| {
        *answers = vec![{
            let mut reject = pdu(0x3f, 0x80, &request[..48]);
            reject[2] = 4;
            set(&mut reject, 16, u32::MAX);
            reject
        }]
    }),
    ("an answer to a login", |_, answers| answers[0][0] = 0x23),
    ("an answer to a text", |_, answers| answers[0][0] = 0x24),
    ("an answer to a task that is managed", |_, answers| answers[0][0] = 0x22),
    ("a thousand pings", |_, answers| {
        let mut ping = pdu(0x20, 0x80, &[]);
        (16..24).for_each(|at| ping[at] = if at < 20 { 0xff } else { 1 });
        answers.splice(0..0, std::iter::repeat_n(ping, 1000));
    }),
    ("a status that there is not", |request, answers| {
        let mut end = good(request);
        end[3] = 0x55;
        *answers = vec![end];
    }),
    ("a failed command without sense data", |request, answers| {
        let mut end = good(request);
        end[3] = 2;
        *answers = vec![end];
    }),
    ("sense data that is longer than it is", |request, answers| {
        let mut end = pdu(0x21, 0x80, &[0xff, 0xff, 0x70]);
        end[16..20].copy_from_slice(&request[16..20]);
        end[3] = 2;
        *answers = vec![end];
    }),
    ("nothing at all", |_, answers| answers.clear()),
];

/// A reader of the hostile device gets an error or the correct data, never an earlier content of a
/// buffer. Its neighbour on the same queue is served meanwhile, and everything ends when told to.
#[test]
fn a_target_that_lies_shows_no_data_and_holds_nobody_up() {
    for (name, lie) in LIES {
        for to in [READ16, WRITE16] {
            let target = Own::start(MIB, "InitialR2T=Yes\0ImmediateData=No\0");
            let world = World::new(1);
            let leaf = world.leaf(&target.address("?timeout=1"));
            world.device("hostile", world.linear(&leaf));
            let other = world.leaf("mem:1M");
            world.device("other", world.linear(&other));
            let mut neighbour = world.connect("other");
            let secret = SECRET.repeat(LEN as usize / SECRET.len());
            // From now on the queue's buffers hold the secret.
            for _ in 0..8 {
                neighbour.write(0, &secret).unwrap();
                assert!(neighbour.read(0, LEN).unwrap() == secret);
            }
            let lied = Arc::new(AtomicUsize::new(0));
            let (count, lie) = (lied.clone(), *lie);
            target.behave(move |request, answers| {
                let ends = answers.iter().any(|answer| answer[0] == 0x21 || is_data(answer));
                let has_two = to == WRITE16 || answers.len() > 1;
                if request[0] & 0x3f == 1 && operation(request) == to && ends && has_two {
                    count.fetch_add(1, Ordering::SeqCst);
                    // A write has a single answer; give the lie a second one to change.
                    if to == WRITE16 {
                        answers.push(answers[0].clone());
                    }
                    lie(request, answers);
                }
            });
            let mut client = world.connect("hostile");
            let beside = std::thread::spawn(move || {
                let mut longest = Duration::ZERO;
                for _ in 0..20 {
                    let start = Instant::now();
                    neighbour.read(0, 4096).unwrap();
                    longest = longest.max(start.elapsed());
                    std::thread::sleep(Duration::from_millis(5));
                }
                longest
            });
            if to == READ16 {
                match client.read(0, LEN) {
                    Ok(data) => assert!(data.iter().all(|byte| *byte == 0), "{name}: strange data"),
                    Err(errno) => assert!(errno > 0),
                }
            } else {
                let _ = client.write(0, &[1; LEN as usize]);
            }
            let longest = beside.join().unwrap();
            assert!(longest < BESIDE, "{name}: the neighbour waited for {longest:?}");
            assert!(lied.load(Ordering::SeqCst) > 0, "{name}: it was told");
            target.behave(|_, _| ());
            eventually("the device is well again", || {
                let _ = leaf.engine().probe(Duration::from_secs(2));
                client.read(0, 512).is_ok()
            });
            in_time("stopping", move || world.pool.stop());
        }
    }
}

/// If a target reports a short transfer, the request fails. The client never gets less data.
#[test]
fn a_read_or_write_that_is_not_whole_is_an_error() {
    let target = Own::start(MIB, "InitialR2T=Yes\0ImmediateData=No\0");
    let world = World::new(1);
    let leaf = world.leaf(&target.address("?timeout=5"));
    world.device("disk", world.linear(&leaf));
    target.behave(|request, answers| {
        if matches!(operation(request), READ16 | WRITE16) && answers[0][0] != 0x31 {
            let mut end = good(request);
            end[1] |= 0x02;
            set(&mut end, 44, 512);
            *answers = vec![end];
        }
    });
    let mut client = world.connect("disk");
    // The target answered, so the session is alive and the error is not `ESHUTDOWN`.
    assert!(client.read(0, 4096).is_err_and(|errno| errno != ESHUTDOWN));
    assert!(client.write(0, &[1; 4096]).is_err_and(|errno| errno != ESHUTDOWN));
    assert_eq!(target.shared.logins.load(Ordering::SeqCst), 2, "nobody had to log in again");
}

/// With any parameters that the login may negotiate, data arrives intact.
#[test]
fn all_that_may_be_agreed_works() {
    for keys in [
        "InitialR2T=Yes\0ImmediateData=No\0",
        "InitialR2T=No\0ImmediateData=No\0FirstBurstLength=4096\0",
        "InitialR2T=No\0ImmediateData=Yes\0FirstBurstLength=65536\0",
        "InitialR2T=Yes\0ImmediateData=Yes\0HeaderDigest=CRC32C\0",
    ] {
        let target = Own::start(4 * MIB, keys);
        let world = World::new(2);
        let leaf = world.leaf(&target.address("?timeout=20"));
        world.device("disk", world.linear(&leaf));
        let threads: Vec<_> = (0..2u64)
            .map(|number| {
                let mut client = world.connect("disk");
                std::thread::spawn(move || {
                    let (base, mut random) = (number * 2 * MIB as u64, Random::new(number));
                    let mut model = vec![0u8; 2 * MIB];
                    for _ in 0..100 {
                        let len = (1 + random.below(400) as usize) * 512;
                        let at = random.below(((model.len() - len) / 512) as u64) as usize * 512;
                        if random.chance(500_000) {
                            let data: Vec<u8> = (0..len).map(|_| random.bits() as u8).collect();
                            client.write(base + at as u64, &data).unwrap();
                            model[at..at + len].copy_from_slice(&data);
                        } else {
                            let got = client.read(base + at as u64, len as u32).unwrap();
                            assert!(got == model[at..at + len]);
                        }
                    }
                    client.flush().unwrap();
                    model
                })
            })
            .collect();
        let models: Vec<u8> = threads.into_iter().flat_map(|one| one.join().unwrap()).collect();
        assert!(*target.shared.data.lock().unwrap() == models, "{}", keys.escape_debug());
    }
}

/// The leaf answers pings, also while no request is in flight.
#[test]
fn pings_are_answered() {
    let target = Own::start(MIB, "");
    let answered = Arc::new(AtomicBool::new(false));
    let world = World::new(1);
    let leaf = world.leaf(&target.address("?timeout=20"));
    world.device("disk", world.linear(&leaf));
    let seen = answered.clone();
    target.behave(move |request, answers| {
        if request[0] & 0x3f == 0 {
            seen.store(get(request, 20) == 0x55, Ordering::SeqCst);
        } else if operation(request) == READ16 {
            let mut ping = pdu(0x20, 0x80, &[]);
            set(&mut ping, 16, u32::MAX);
            set(&mut ping, 20, 0x55);
            ping[24..36].copy_from_slice(&answers.last().unwrap()[24..36]);
            answers.push(ping);
        }
    });
    world.connect("disk").read(0, 4096).unwrap();
    eventually("the ping is answered", || answered.load(Ordering::SeqCst));
    let _ = own::BLOCK;
}

/// A target that asks to be left instead of answering, every time, holds a read for the timeout and
/// not for ever; a write of the same kind ends as well, and so does the pool.
#[test]
fn a_target_that_always_asks_to_be_left_holds_no_request_for_ever() {
    let drop_it: Lie = |request, answers| {
        let mut event = pdu(0x32, 0x80, &[]);
        event[16..20].fill(0xff);
        event[24..36].copy_from_slice(&answers[0][24..36]);
        event[36] = 2;
        assert_eq!(request[0] & 0x3f, 1);
        *answers = vec![event];
    };
    let attention: Lie = |request, answers| {
        let mut end = own::sense(6, 0x29);
        end[16..20].copy_from_slice(&request[16..20]);
        *answers = vec![end];
    };
    let cases = [
        ("drops, reads", drop_it, READ16),
        ("drops, writes", drop_it, WRITE16),
        ("resets, reads", attention, READ16),
        ("resets, writes", attention, WRITE16),
    ];
    // Each takes seconds, all of them waits.
    std::thread::scope(|scope| {
        for (name, lie, to) in cases {
            scope.spawn(move || is_given_up(name, lie, to));
        }
    });
}

fn is_given_up(name: &str, lie: Lie, to: u8) {
    let target = Own::start(MIB, "");
    let world = World::new(1);
    let leaf = world.leaf(&target.address("?timeout=4"));
    world.device("hostile", world.linear(&leaf));
    let lied = Arc::new(AtomicUsize::new(0));
    let count = lied.clone();
    target.behave(move |request, answers| {
        if request[0] & 0x3f == 1 && operation(request) == to && !answers.is_empty() {
            count.fetch_add(1, Ordering::SeqCst);
            lie(request, answers);
        }
    });
    let mut client = world.connect("hostile");
    let start = Instant::now();
    let ended = match to {
        READ16 => client.read(0, LEN).map(drop),
        _ => client.write(0, &[1; LEN as usize]),
    };
    let took = start.elapsed();
    assert!(ended.is_err(), "{name}: it never answers");
    assert!(took < Duration::from_secs(20), "{name}: {took:?}");
    let lied = lied.load(Ordering::SeqCst);
    assert!(lied > 1, "{name}: it was asked {lied} times");
    target.behave(|_, _| ());
    eventually("the device is well again", || {
        let _ = leaf.engine().probe(Duration::from_secs(2));
        client.read(0, 512).is_ok()
    });
    in_time("stopping", move || world.pool.stop());
}
