//! Tests of splitting against the model: where each sector goes, and how few pieces there are.

use std::rc::Rc;
use std::sync::Arc;

use blkswitch_io::engine::sim::Random;
use blkswitch_io::pipeline::{Extents, Found};
use blkswitch_io::request::Op;
use blkswitch_io::table::region_storage;
use blkswitch_io::{Device, Leaf, TableBuilder, Target, To};

use crate::bench::{Bench, SECTOR, sim};
use crate::stack::{self, Below, LEAF_SECTORS, ModelTable, Step, Way};

const CASES: u64 = 400;
const LEAVES: usize = 3;
const DEVICES: usize = 3;

/// Runs a case for every seed, or only for the seed in `CASE`.
fn cases(test: &str, case: impl Fn(u64)) {
    struct Replay<'a>(&'a str, u64);
    impl Drop for Replay<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!(
                    "replay: CASE={} cargo test -p blkswitch-io --test pipeline {}",
                    self.1, self.0
                );
            }
        }
    }
    let one = std::env::var("CASE").ok().map(|seed| seed.parse().expect("CASE is a number"));
    for seed in one.map_or(0..CASES, |seed| seed..seed + 1) {
        let _replay = Replay(test, seed);
        case(seed);
    }
}

/// Where a sector arrives: the (device, path) pairs on the way, and the sector of the leaf or
/// device.
#[derive(Clone, PartialEq, Debug)]
struct End {
    hops: Vec<(usize, usize)>,
    at: At,
    sector: u64,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum At {
    Leaf(usize),
    Zero(usize),
    Fail(usize),
}

impl End {
    fn fails(&self) -> bool {
        matches!(self.at, At::Fail(_))
    }
}

fn end(tables: &[Rc<ModelTable>], mut device: usize, mut sector: u64) -> End {
    let mut hops = Vec::new();
    loop {
        let (path, Way { below, offset }) = match tables[device].step(sector) {
            Step::Below(path, way) => (path, way),
            Step::Zero => return End { hops, at: At::Zero(device), sector },
            Step::Fail => return End { hops, at: At::Fail(device), sector },
        };
        hops.push((device, path));
        match below {
            Below::Leaf(leaf) => return End { hops, at: At::Leaf(leaf), sector: offset },
            Below::Device(below) => (device, sector) = (below, offset),
        }
    }
}

/// Whether the next sector, which ends at `b`, belongs to the same piece as `a`.
fn merges(a: &End, b: &End) -> bool {
    (&a.hops, a.at, a.sector + 1) == (&b.hops, b.at, b.sector)
}

struct Stack {
    bench: Bench,
    leaves: Vec<Arc<Leaf>>,
    devices: Vec<Arc<Device>>,
    tables: Vec<Rc<ModelTable>>,
    random: Random,
}

fn stack(seed: u64) -> Stack {
    let mut random = Random::new(seed);
    let mut bench = Bench::new(1);
    let leaves: Vec<_> =
        (0..LEAVES).map(|_| bench.leaf(&format!("sim:{}", LEAF_SECTORS * 512))).collect();
    let devices: Vec<_> = (0..DEVICES).map(|n| bench.create(&format!("d{n}"))).collect();
    let mut tables = Vec::new();
    for (n, device) in devices.iter().enumerate() {
        let (table, mut model) = stack::random(&mut random, n, &leaves, &devices);
        Rc::get_mut(&mut model).unwrap().read_only = false;
        let table = if table.read_only() {
            stack::random(&mut random, n, &leaves, &devices)
        } else {
            (table, model)
        };
        bench.reload(device, table.0);
        tables.push(table.1);
    }
    Stack { bench, leaves, devices, tables, random }
}

#[test]
fn every_sector_of_a_write_lands_where_the_model_says_in_as_few_pieces_as_can_be() {
    cases("every_sector_of_a_write", |seed| {
        let Stack { mut bench, leaves, devices, tables, mut random } = stack(seed);
        let top = random.below(DEVICES as u64) as usize;
        if tables[top].read_only {
            return;
        }
        let len = tables[top].len;
        let offset = random.below(len);
        let sectors = 1 + random.below(len - offset);
        let data: Vec<u8> = (0..sectors).flat_map(|n| [n as u8 + 1; SECTOR]).collect();
        let token = bench.start(0, &devices[top], Op::Write, false, offset, data.clone());
        let (errno, _) = bench.finish(token);

        let ends: Vec<End> = (0..sectors).map(|n| end(&tables, top, offset + n)).collect();
        let mut images = vec![vec![0u8; LEAF_SECTORS as usize]; LEAVES];
        // Two sectors of one request may arrive at the same sector of a leaf. The piece of the
        // later one completes later.
        for (n, end) in ends.iter().enumerate() {
            if let At::Leaf(leaf) = end.at {
                images[leaf][end.sector as usize] = n as u8 + 1;
            }
        }
        assert_eq!(errno != 0, ends.iter().any(End::fails), "{errno}");
        for (leaf, image) in leaves.iter().zip(&images) {
            let real: Vec<u8> = sim(leaf).image().chunks(SECTOR).map(|sector| sector[0]).collect();
            assert_eq!(real, *image);
        }
        let mut pieces = vec![0; 16];
        for (n, end) in ends.iter().enumerate() {
            if let Some((_, path)) = end.hops.first() {
                let starts = n == 0 || !merges(&ends[n - 1], end);
                pieces[*path] += u64::from(starts);
            }
        }
        let table = devices[top].live().unwrap();
        let counted: Vec<u64> = (0..16)
            .map(|path| if path < table.path_count() { table.path_totals(path).writes } else { 0 })
            .collect();
        assert_eq!(counted, pieces);
    });
}

/// A byte that differs between neighbouring sectors and between leaves.
fn marker(leaf: usize, sector: u64) -> u8 {
    ((leaf as u64 * 83 + sector) % 251) as u8
}

#[test]
fn every_sector_of_a_read_comes_from_where_the_model_says() {
    cases("every_sector_of_a_read", |seed| {
        let Stack { mut bench, leaves, devices, tables, mut random } = stack(seed);
        for (n, leaf) in leaves.iter().enumerate() {
            let direct = bench.device(&format!("leaf{n}"), bench.linear(leaf));
            let data = (0..LEAF_SECTORS).flat_map(|sector| [marker(n, sector); SECTOR]).collect();
            let token = bench.start(0, &direct, Op::Write, false, 0, data);
            assert_eq!(bench.finish(token).0, 0);
        }
        let top = random.below(DEVICES as u64) as usize;
        let len = tables[top].len;
        let offset = random.below(len);
        let sectors = 1 + random.below(len - offset);
        let token = bench.start(
            0,
            &devices[top],
            Op::Read,
            false,
            offset,
            vec![0xee; sectors as usize * SECTOR],
        );
        let (errno, data) = bench.finish(token);
        for n in 0..sectors {
            let end = end(&tables, top, offset + n);
            let expected = match end.at {
                At::Leaf(leaf) => marker(leaf, end.sector),
                At::Zero(_) => 0,
                At::Fail(_) => {
                    assert_eq!(errno, libc::EIO);
                    continue;
                }
            };
            assert_eq!(data[n as usize * SECTOR..][..SECTOR], [expected; SECTOR], "sector {n}");
        }
        assert!(
            errno == 0 || (0..sectors).any(|n| end(&tables, top, offset + n).fails()),
            "{errno}"
        );
    });
}

/// A device whose neighbouring sectors are all on different leaves.
fn striped(bench: &mut Bench, sectors: u64) -> (Vec<Arc<Leaf>>, Arc<Device>) {
    let leaves: Vec<_> =
        (0..2).map(|_| bench.leaf(&format!("sim:{},delay=1us", sectors * 512))).collect();
    let mut table = TableBuilder::new(false);
    let stripes =
        leaves.iter().map(|leaf| To { below: table.leaf(leaf.clone()), offset: 0 }).collect();
    table.push(sectors, Target::Striped { chunk: 1, stripes });
    let device = bench.device("striped", table.build().unwrap());
    (leaves, device)
}

/// 4000 pieces fill several windows.
#[test]
fn a_request_of_many_windows_is_whole() {
    let mut bench = Bench::new(1);
    let (_, device) = striped(&mut bench, 4000);
    let data: Vec<u8> = (0..4000 * SECTOR).map(|n| (n / 512 % 251) as u8).collect();
    let token = bench.start(0, &device, Op::Write, false, 0, data.clone());
    assert_eq!(bench.finish(token).0, 0);
    let table = device.live().unwrap();
    assert_eq!((table.path_totals(0).writes, table.path_totals(1).writes), (2000, 2000));
    let token = bench.start(0, &device, Op::Read, false, 0, vec![0; data.len()]);
    assert!(bench.finish(token) == (0, data));
}

/// A stop answers the requests that wait at gates. If a later window of a request meets a closed
/// gate after the stop, the request must not wait there for ever.
#[test]
fn a_later_window_does_not_wait_at_a_gate_after_a_stop() {
    let mut bench = Bench::new(1);
    let (_, below) = striped(&mut bench, 4000);
    let (leaves, device) = {
        let leaf = bench.leaf("sim:4M,delay=1us");
        let mut table = TableBuilder::new(false);
        let (to_leaf, to_device) = (table.leaf(leaf.clone()), table.device(&below).unwrap());
        let stripes = [to_leaf, to_leaf].map(|below| To { below, offset: 0 }).into();
        table.push(2000, Target::Striped { chunk: 1, stripes });
        table.push(1000, Target::Linear(To { below: to_device, offset: 0 }));
        (leaf, bench.device("top", table.build().unwrap()))
    };
    let closed = bench.close(&below);
    assert!(closed.is_done());
    let token = bench.start(0, &device, Op::Read, false, 0, vec![0; 3000 * SECTOR]);
    let (pipeline, ring) = &mut bench.queues[0];
    pipeline.refuse(libc::ESHUTDOWN, ring);
    bench.run();
    assert_eq!(bench.answer(token), Some(libc::ESHUTDOWN));
    assert_eq!(bench.queues[0].0.in_flight(), 0);
    drop(leaves);
}

/// A tebibyte over regions of one sector. A queue describes it a little at a time, so that it is
/// not busy for long.
#[test]
fn a_huge_request_is_split_a_little_at_a_time() {
    let mut bench = Bench::new(1);
    let leaf = bench.leaf("null:1T");
    let sectors = leaf.properties().sectors;
    let mut table = TableBuilder::new(false);
    let below = table.leaf(leaf);
    let geometry = blkswitch_io::core::switch::geometry::Geometry::new(sectors, 1, 1).unwrap();
    let map =
        blkswitch_io::core::switch::regions::Map::new(geometry, region_storage(&geometry).unwrap());
    let map = map.unwrap_or_else(|_| unreachable!());
    table.push(sectors, Target::Switch { map, paths: [To { below, offset: 0 }].into() });
    let device = bench.device("huge", table.build().unwrap());
    let describe = |bench: &Bench, offset: u64| {
        let mut described = 0;
        let mut each = |bytes, found: Found<'_>| {
            assert!(matches!(found, Found::Status(0)), "{found:?}");
            described += bytes;
            true
        };
        let (what, len) = (Extents::Paths, sectors * 512 - offset);
        bench.queues[0].0.extents(device.id(), offset, len, what, &mut each);
        described
    };
    let first = describe(&bench, 0);
    assert!(first < 1 << 30, "{first} bytes of a tebibyte in one go");
    assert!(first > 0 && describe(&bench, first) > 0, "whoever asks on gets on");
    assert_eq!(describe(&bench, sectors * 512 - 1024), 1024);
}

/// A queue's thread never asks a file for its holes, because that may block.
#[test]
fn holes_of_a_file_are_for_others_to_find() {
    let mut bench = Bench::new(1);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let (file, null) = (bench.leaf(path.to_str().unwrap()), bench.leaf("null:1M"));
    let mut table = TableBuilder::new(false);
    for leaf in [&file, &null] {
        let below = table.leaf(leaf.clone());
        table.push(2048, Target::Linear(To { below, offset: 0 }));
    }
    let device = bench.device("both", table.build().unwrap());
    let mut found = Vec::new();
    let mut each = |bytes: u64, what: Found<'_>| {
        found.push((bytes, format!("{what:?}").contains("Ask")));
        true
    };
    bench.queues[0].0.extents(device.id(), 4096, (2 << 20) - 4096, Extents::Allocation, &mut each);
    assert_eq!(found, [((1 << 20) - 4096, true), (1 << 20, false)]);
}

/// Leaves that answer at once must not let one long request keep the queue from all others.
#[test]
fn a_long_request_lets_others_pass() {
    let mut bench = Bench::new(1);
    let (leaf, other) = (bench.leaf("null:1G"), bench.leaf("null:1M"));
    let sectors = leaf.properties().sectors;
    let mut table = TableBuilder::new(false);
    let stripe = table.leaf(leaf);
    // More stripes than a piece looks back, so that no two chunks are joined.
    let stripes = (0..32).map(|stripe_nr| To { below: stripe, offset: 8 * stripe_nr }).collect();
    table.push(sectors / 2, Target::Striped { chunk: 1, stripes });
    let long = bench.device("long", table.build().unwrap());
    let short = bench.device("short", bench.linear(&other));
    let len = sectors as usize / 4;
    let discard = bench.start(0, &long, Op::Discard, false, 0, vec![0; len * SECTOR]);
    let mut turns = 0;
    while bench.answer(discard).is_none() {
        let read = bench.start(0, &short, Op::Read, false, 0, vec![0; SECTOR]);
        assert_eq!(bench.answer(read), Some(0), "a read beside the discard waits");
        bench.turn();
        turns += 1;
    }
    assert_eq!(bench.answer(discard), Some(0));
    assert!(turns > 100, "{len} pieces in {turns} turns");
}
