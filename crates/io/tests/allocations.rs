//! In steady state a request through a switch over multipath devices allocates nothing.
//!
//! The test is a program of its own because it counts every allocation of the thread that carries
//! the requests out. The test harness has another thread, which allocates at any time.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::{Arc, LazyLock};

use blkswitch_io::core::multipath::{Item, Multipath, Params};
use blkswitch_io::core::switch::{Geometry, Map};
use blkswitch_io::engine::Turn;
use blkswitch_io::pipeline::Pipeline;
use blkswitch_io::pool::Registry;
use blkswitch_io::request::{Done, Op, Request, Span};
use blkswitch_io::stats::Counters;
use blkswitch_io::table::region_storage;
use blkswitch_io::{Device, Leaf, LeafOptions, Queues, TableBuilder, Target, To};

struct Counting;

thread_local! {
    // `const` and without a destructor, so that reading the counter does not allocate.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn allocations() -> u64 {
    ALLOCATIONS.get()
}

// SAFETY: forwards to the system's allocator; the counter does not touch the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
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

const SECTORS: u64 = 2048;
const BATCH: u64 = 16;

/// The ids of the only queue of this program.
static QUEUES: LazyLock<Queues> = LazyLock::new(|| Queues::of_pipelines(1));

fn leaf() -> Arc<Leaf> {
    let options = LeafOptions::new(*QUEUES);
    Leaf::open(&format!("mem:{}", SECTORS * 512).parse().unwrap(), &options).unwrap()
}

fn make(
    registry: &Registry,
    pipeline: &mut Pipeline,
    name: &str,
    builder: TableBuilder,
) -> Arc<Device> {
    let device = registry.create(name, "", None).unwrap();
    device.load(builder.build().unwrap()).unwrap();
    device.resume().unwrap();
    pipeline.install(device.id(), Counters::boxed(1).into());
    pipeline.open(device.id(), device.running(), &mut Turn::simulated());
    device
}

fn multipath(line: &str) -> TableBuilder {
    let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    let mut params = Params::parse(&words).unwrap();
    let mut builder = TableBuilder::new(false);
    let (mut groups, mut paths, mut tos) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(item) = params.next_item().unwrap() {
        match item {
            Item::Group(group) => groups.push(group.group()),
            Item::Path(path) => {
                paths.push(path.path().unwrap().path);
                tos.push(To { below: builder.leaf(leaf()), offset: 0 });
            }
        }
    }
    let groups = Multipath::new(*params.features(), 1, groups.into(), paths.into()).unwrap();
    builder.push(SECTORS, Target::Multipath { groups, paths: tos.into() });
    builder
}

#[test]
fn requests_through_a_switch_over_multipaths_allocate_nothing() {
    let (registry, mut pipeline, mut ring) =
        (Registry::detached(*QUEUES), Pipeline::new(0), Turn::simulated());
    let members = [
        "0 0 2 1 round-robin 0 2 0 a b queue-length 0 1 0 c",
        "0 0 1 1 service-time 0 2 2 a 1 1 b 1 3",
        "0 0 1 1 historical-service-time 0 2 0 a b",
    ];
    let mut switch = TableBuilder::new(false);
    let mut paths = Vec::new();
    for (number, line) in members.iter().enumerate() {
        let member = make(&registry, &mut pipeline, &format!("member{number}"), multipath(line));
        paths.push(To { below: switch.device(&member).unwrap(), offset: 0 });
    }
    let geometry = Geometry::new(SECTORS, paths.len() as u32, 8).unwrap();
    let map =
        Map::new(geometry, region_storage(&geometry).unwrap()).unwrap_or_else(|_| unreachable!());
    switch.push(SECTORS, Target::Switch { map, paths: paths.into() });
    let device = make(&registry, &mut pipeline, "switch", switch);
    let mut data = vec![0u8; 64 * 512];
    let mut done = Vec::with_capacity(BATCH as usize);
    let mut batch = |seed: u64| {
        for token in 0..BATCH {
            let op = if (seed + token).is_multiple_of(3) { Op::Write } else { Op::Read };
            // Some requests stay within a region, some cross several.
            let sectors = if token.is_multiple_of(4) { 60 } else { 4 };
            let offset = (seed * 7919 + token * 131) % (SECTORS - 64) * 512;
            let span = Span(data.as_mut_ptr());
            let request = Request {
                op,
                fua: false,
                offset,
                len: sectors * 512,
                data: span,
                pages: None,
                token,
            };
            if let Some(errno) = pipeline.start(device.id(), &request, &mut ring) {
                done.push(Done { token, errno });
            }
        }
        pipeline.take_done(&mut done);
        assert_eq!(done.len() as u64, BATCH);
        assert!(done.drain(..).all(|done| done.errno == 0));
    };
    (0..200).for_each(&mut batch);
    let before = allocations();
    assert!(before > 0, "nothing is counted");
    (200..5000).for_each(&mut batch);
    assert_eq!(allocations() - before, 0);
}
