//! Tests of results that are neither full success nor a plain error.

use blkswitch_io::request::Op;

use crate::bench::{Bench, SECTOR, sim};

const ZEROES: Op = Op::WriteZeroes { no_hole: false, fast: false };

fn pattern(sectors: usize) -> Vec<u8> {
    (0..sectors * SECTOR).map(|n| (n % 253) as u8).collect()
}

#[test]
fn short_and_interrupted_transfers_go_on_until_all_is_done() {
    for seed in 0..50 {
        let mut bench = Bench::new(1);
        let leaf = bench.leaf(&format!("sim:256K,seed={seed},short=0.8,interrupts=0.5"));
        let device = bench.device("disk", bench.linear(&leaf));
        let data = pattern(200);
        let token = bench.start(0, &device, Op::Write, false, 100, data.clone());
        assert_eq!(bench.finish(token).0, 0, "seed {seed}");
        let token = bench.start(0, &device, Op::Read, false, 100, vec![0; data.len()]);
        assert!(bench.finish(token) == (0, data), "seed {seed}");
        let token = bench.flush(0, &device);
        assert_eq!(bench.finish(token).0, 0, "seed {seed}");
        assert!(!leaf.needs_flush());
    }
}

#[test]
fn zeroes_are_written_out_where_they_cannot_be_asked_for() {
    for address in ["sim:1M", "sim:1M,nozero", "sim:1M,nozero,short=0.5", "mem:1M"] {
        let mut bench = Bench::new(1);
        let leaf = bench.leaf(address);
        let device = bench.device("disk", bench.linear(&leaf));
        bench.write(&device, 0, 2048, 0xff);
        // More than the block of zeroes that the pipeline keeps, from the middle of a page to the
        // middle of another.
        let token = bench.start(0, &device, ZEROES, false, 3, vec![0; 701 * SECTOR]);
        assert_eq!(bench.finish(token).0, 0, "{address}");
        let token = bench.start(0, &device, Op::Read, false, 0, vec![0; 2048 * SECTOR]);
        let (errno, data) = bench.finish(token);
        let expected: Vec<u8> = (0..2048 * SECTOR)
            .map(|n| if (3..704).contains(&(n / SECTOR)) { 0 } else { 0xff })
            .collect();
        assert!((errno, data) == (0, expected), "{address}");
    }
}

#[test]
fn fast_zero_fails_rather_than_be_slow() {
    let mut bench = Bench::new(1);
    let leaf = bench.leaf("sim:1M,nozero");
    let device = bench.device("disk", bench.linear(&leaf));
    bench.write(&device, 0, 8, 0xff);
    let fast = Op::WriteZeroes { no_hole: false, fast: true };
    let token = bench.start(0, &device, fast, false, 0, vec![0; 8 * SECTOR]);
    assert_eq!(bench.finish(token).0, libc::EOPNOTSUPP);
    assert_eq!(sim(&leaf).image()[..8 * SECTOR], [0xff; 8 * SECTOR]);
}

#[test]
fn a_discard_that_cannot_be_done_is_a_hint_that_was_not_taken() {
    let mut bench = Bench::new(1);
    let leaf = bench.leaf("sim:1M,nodiscard");
    let device = bench.device("disk", bench.linear(&leaf));
    bench.write(&device, 0, 8, 0xff);
    let token = bench.start(0, &device, Op::Discard, false, 0, vec![0; 8 * SECTOR]);
    assert_eq!(bench.finish(token).0, 0);
    assert_eq!(sim(&leaf).image()[..8 * SECTOR], [0xff; 8 * SECTOR]);
}

#[test]
fn fua_of_every_kind_survives_on_leaves_that_can_and_that_cannot() {
    for address in ["sim:64K", "sim:64K,nofua", "sim:64K,nofua,nozero", "sim:64K,nozero,short=0.5"]
    {
        for op in [Op::Write, ZEROES, Op::Discard] {
            let mut bench = Bench::new(1);
            let leaf = bench.leaf(address);
            let device = bench.device("disk", bench.linear(&leaf));
            bench.write(&device, 0, 8, 0xff);
            let token = bench.flush(0, &device);
            assert_eq!(bench.finish(token).0, 0);
            let token = bench.start(0, &device, op, true, 2, vec![0x11; 4 * SECTOR]);
            assert_eq!(bench.finish(token).0, 0);
            let byte = if op == Op::Write { 0x11 } else { 0 };
            for seed in 0..16 {
                let image = sim(&leaf).power_cut(seed);
                assert!(
                    image[2 * SECTOR..6 * SECTOR].iter().all(|b| *b == byte),
                    "{address} {op:?}"
                );
            }
        }
    }
}

#[test]
fn fua_fails_when_the_flush_it_became_fails() {
    let mut bench = Bench::new(1);
    let leaf = bench.leaf("sim:64K,nofua");
    let device = bench.device("disk", bench.linear(&leaf));
    sim(&leaf).set_errors(0, 1_000_000);
    let token = bench.start(0, &device, Op::Write, true, 0, vec![1; SECTOR]);
    assert_eq!(bench.finish(token).0, libc::EIO);
    assert!(leaf.needs_flush());
}

#[test]
fn a_failed_write_may_have_landed_and_is_flushed() {
    let mut bench = Bench::new(1);
    let leaf = bench.leaf("sim:64K");
    let device = bench.device("disk", bench.linear(&leaf));
    sim(&leaf).set_errors(1_000_000, 0);
    for (op, fua) in [(Op::Write, false), (Op::Write, true), (ZEROES, false), (Op::Discard, false)]
    {
        let token = bench.start(0, &device, op, fua, 0, vec![1; 8 * SECTOR]);
        assert_eq!(bench.finish(token).0, libc::EIO);
        assert!(leaf.needs_flush(), "{op:?}");
        let token = bench.flush(0, &device);
        assert_eq!(bench.finish(token).0, 0);
    }
}

#[test]
fn a_request_reports_the_error_of_its_one_bad_piece() {
    let mut bench = Bench::new(1);
    let (good, bad) = (bench.leaf("sim:64K"), bench.leaf("sim:64K,errors=1"));
    let mut table = blkswitch_io::TableBuilder::new(false);
    let (good, bad) = (table.leaf(good), table.leaf(bad));
    table.push(8, blkswitch_io::Target::Linear(blkswitch_io::To { below: good, offset: 0 }));
    table.push(8, blkswitch_io::Target::Linear(blkswitch_io::To { below: bad, offset: 0 }));
    let device = bench.device("disk", table.build().unwrap());
    for (at, expected) in [(0, 0), (4, libc::EIO), (8, libc::EIO)] {
        let token = bench.start(0, &device, Op::Read, false, at, vec![0; 8 * SECTOR]);
        assert_eq!(bench.finish(token).0, expected, "at {at}");
    }
    assert_eq!(device.live().unwrap().path_totals(0).errors, 0);
    assert_eq!(device.live().unwrap().path_totals(1).errors, 2);
}
