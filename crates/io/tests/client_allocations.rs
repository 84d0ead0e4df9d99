//! In steady state neither a client of a pool nor its queue allocates.
//!
//! The test is a program of its own because it counts the allocations of all threads.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use blkswitch_io::client::{Ask, ClientOptions};
use blkswitch_io::{AlignedBytes, Leaf, LeafOptions, Pool, PoolOptions, TableBuilder, Target, To};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: forwards to the system's allocator; the counter does not touch the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller upholds the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the contract of `dealloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting;

#[test]
fn requests_of_a_client_allocate_nothing() {
    let pool = Pool::start(PoolOptions { queues: 1, ..PoolOptions::default() }).unwrap();
    let leaf = Leaf::open(&"mem:1M".parse().unwrap(), &LeafOptions::new(pool.queues())).unwrap();
    let mut table = TableBuilder::new(false);
    let below = table.leaf(leaf);
    table.push(2048, Target::Linear(To { below, offset: 0 }));
    let device = pool.registry().create("disk", "", None).unwrap();
    device.load(table.build().unwrap()).unwrap();
    device.resume().unwrap();
    let mut client = pool.client(&device, ClientOptions::default()).unwrap();
    let mut free: Vec<_> = (0..16).map(|_| AlignedBytes::zeroed(4096).unwrap()).collect();
    let mut answers = Vec::with_capacity(16);
    let mut batch = |round: u64| {
        for (data, token) in free.drain(..).zip(0..) {
            let offset = (round * 7 + token) % 256 * 4096;
            let ask = if token % 2 == 0 { Ask::read } else { Ask::write };
            assert!(client.start(ask(offset, data, token)).is_ok());
        }
        while client.in_flight() > 0 {
            client.wait(&mut answers, None).unwrap();
        }
        assert!(answers.iter().all(|answer| answer.result.is_ok()));
        free.extend(answers.drain(..).map(|answer| answer.data));
    };
    (0..200).for_each(&mut batch);
    // The harness allocates now and then on its own thread.
    let fewest = (0..10).map(|_| {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        assert!(before > 0, "nothing is counted");
        (0..200).for_each(&mut batch);
        ALLOCATIONS.load(Ordering::Relaxed) - before
    });
    assert_eq!(fewest.min(), Some(0));
    pool.stop();
}
