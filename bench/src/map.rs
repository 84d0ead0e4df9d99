//! `map`: measures the decisions about whole maps: counting, differences, plans, and the decoding
//! of an array's referrals.

use std::convert::Infallible;
use std::hint::black_box;

use anyhow::{Context, Result, ensure};
use blkswitch_core::map::diff::Diff;
use blkswitch_core::map::keep;
use blkswitch_core::map::plan::{Move, Share, balance, balance_heat, compact, count, evacuate};
use blkswitch_core::map::referrals::{Pattern, Placement, Progress, Reader};
use blkswitch_core::map::search;
use blkswitch_core::switch::Message;

use crate::report::{Figure, LazyMap, Random, Rounds, lazy_map, writer};

const REGIONS: u64 = 1_000_000;
const MANY: u64 = 1_000_000_000;
const PATHS: u32 = 16;
/// Number of regions of the path to evacuate, in the map of a billion regions.
const FEW: u64 = 10_000;

pub(crate) fn run(rounds: Rounds) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    plans(&mut figures, rounds)?;
    differences(&mut figures, rounds)?;
    referrals(&mut figures, rounds)?;
    a_billion(&mut figures, rounds)?;
    Ok(figures)
}

fn random_map(regions: u64) -> Result<LazyMap> {
    let map = lazy_map(regions, PATHS, 128)?;
    let mut random = Random(5);
    let mut writer = writer(&map);
    for region in 0..regions {
        // The last path gets few regions.
        writer.set(region, random.below(u64::from(PATHS) * 8 - 7) as u32 / 8);
    }
    drop(writer);
    Ok(map)
}

fn plans(figures: &mut Vec<Figure>, rounds: Rounds) -> Result<()> {
    let map = random_map(REGIONS)?;
    let weights: Vec<u32> = (1..=PATHS).collect();
    let sink = |step: Move| {
        black_box(step);
        Ok::<(), Infallible>(())
    };
    let shares = || std::cell::RefCell::new([Share::default(); PATHS as usize]);
    let heat = |region: u64| (region.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u32;
    let mut add = |name: &str, seconds: f64| {
        figures.push(Figure::new(format!("{name}, 1 M regions, 16 paths"), seconds * 1e3, "ms"));
    };
    add("count", rounds.seconds(shares, |shares| count(&map, &mut *shares.borrow_mut())));
    let plan = rounds.seconds(shares, |shares| {
        let mut shares = shares.borrow_mut();
        count(&map, &mut *shares);
        evacuate(&map, 3, &[], &mut *shares, sink).expect("a plan");
    });
    add("evacuate", plan);
    let plan = rounds.seconds(shares, |shares| {
        balance(&map, &weights, &mut *shares.borrow_mut(), sink).expect("a plan");
    });
    add("balance by regions", plan);
    let plan = rounds.seconds(shares, |shares| {
        balance_heat(&map, &weights, heat, &mut *shares.borrow_mut(), sink).expect("a plan");
    });
    add("balance by heat", plan);
    let plan = rounds.seconds(shares, |shares| {
        compact(&map, u64::MAX, &mut *shares.borrow_mut(), sink).expect("a plan");
    });
    add("compact", plan);
    Ok(())
}

fn differences(figures: &mut Vec<Figure>, rounds: Rounds) -> Result<()> {
    let (before, after) = (random_map(REGIONS)?, random_map(REGIONS)?);
    let mut random = Random(6);
    for _ in 0..REGIONS / 100 {
        writer(&after).set(random.below(REGIONS), random.below(PATHS.into()) as u32);
    }
    let diff = Diff::new(&before, &after)?;
    let seconds = rounds.seconds(
        || (),
        |()| {
            black_box(diff.changes(0, REGIONS).count());
        },
    );
    figures.push(Figure::new("difference, 1 M regions, 1 in 100 changed", seconds * 1e3, "ms"));
    let mut text = Vec::new();
    let mut places = vec![0; 1 << 14];
    let mut write = || {
        text.clear();
        diff.write(0, REGIONS, &mut places, |argument| {
            text.extend_from_slice(argument);
            Ok::<(), Infallible>(())
        })
    };
    let seconds = rounds.seconds(|| (), |()| write().expect("the sink takes everything"));
    figures.push(Figure::new("the same as a message", seconds * 1e3, "ms"));
    figures.push(Figure::new("length of the message", text.len() as f64 / 1024.0, "KiB"));
    Message::new().apply_text(&mut writer(&before), &text, true)?;
    ensure!(before.runs(0, REGIONS).eq(after.runs(0, REGIONS)), "the message makes another map");

    let numbers: Vec<Option<u32>> = (0..PATHS).map(Some).collect();
    let seconds = rounds.seconds(
        || lazy_map(REGIONS, PATHS + 1, 128).expect("a map of a million regions"),
        |wider| {
            keep::carry_over(&after, &mut writer(wider), &numbers, || true).expect("all are kept");
        },
    );
    figures.push(Figure::new(
        "carry over to a table with 17 paths, 1 M regions",
        seconds * 1e3,
        "ms",
    ));
    Ok(())
}

fn referrals(figures: &mut Vec<Figure>, rounds: Rounds) -> Result<()> {
    const BLOCKS: u64 = 128;
    let unit = REGIONS * BLOCKS;
    let mut pages = Vec::new();
    let mut first = 0;
    while first < unit {
        let mut page = vec![0; 4];
        while first < unit && page.len() + 24 <= 0xffff {
            page.extend([0, 0, 0, 1]);
            page.extend(first.to_be_bytes());
            page.extend((first + BLOCKS - 1).to_be_bytes());
            page.extend([0, 0, 0, (first / BLOCKS % 7) as u8]);
            first += BLOCKS;
        }
        let len = (page.len() - 4) as u16;
        page.get_mut(2..4).context("a header")?.copy_from_slice(&len.to_be_bytes());
        pages.push(page);
    }
    let map = lazy_map(REGIONS, PATHS, BLOCKS as u32)?;
    let decode = |place: bool| {
        let mut reader = Reader::new(unit, Pattern::List);
        let placement = Placement::new(map.geometry(), &reader, 512).expect("sectors");
        let mut writer = writer(&map);
        let mut sum = 0;
        for page in &pages {
            let progress = reader.page(page, |segment| {
                let path = segment.best_path(|group| Some(group.into())).expect("a group");
                sum += u64::from(path);
                if place {
                    placement.place(&segment, path, &mut writer).expect("whole regions");
                }
            });
            black_box(progress.expect("a right list"));
        }
        black_box(sum);
        assert_eq!(reader.page(&[0; 4], |_| ()), Ok(Progress::Complete));
    };
    let seconds = rounds.seconds(|| (), |()| decode(false));
    figures.push(Figure::new("decode 1 M referral segments", seconds * 1e3, "ms"));
    let seconds = rounds.seconds(|| (), |()| decode(true));
    figures.push(Figure::new("decode and put onto a map", seconds * 1e3, "ms"));
    Ok(())
}

/// A map of a billion regions in memory, of which one path has few.
fn a_billion(figures: &mut Vec<Figure>, rounds: Rounds) -> Result<()> {
    for paths in [PATHS, 5] {
        let map = lazy_map(MANY, paths, 128)?;
        let text = format!("0:0 :1 :2 R3,{:x}", MANY - 3);
        Message::new().apply_text(&mut writer(&map), text.as_bytes(), true)?;
        let mut random = Random(7);
        for _ in 0..FEW {
            writer(&map).set(random.below(MANY), 3);
        }
        let few = Rounds { count: rounds.count.min(3), ..rounds };
        let mut shares = vec![Share::default(); paths as usize];
        let seconds = few.seconds(
            || (),
            |()| {
                let plan = evacuate(&map, 3, &[], &mut shares, |step| {
                    black_box(step);
                    Ok::<(), Infallible>(())
                });
                black_box(plan.expect("a plan"));
            },
        );
        let name = format!("evacuate a path with 10,000 of 10^9 regions, {paths} paths");
        figures.push(Figure::new(name, seconds * 1e3, "ms"));
        ensure!(search::regions_of(&map, 3, 0, MANY).count() > 0, "the path has regions");
    }
    Ok(())
}
