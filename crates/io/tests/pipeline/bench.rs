//! A few pipelines, the devices they serve, and the requests in flight.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::Arc;

use blkswitch_io::core::multipath::{Item, Multipath, Params};
use blkswitch_io::engine::Engine;
use blkswitch_io::engine::Turn;
use blkswitch_io::engine::sim::SimEngine;
use blkswitch_io::pages::Pages;
use blkswitch_io::pipeline::Pipeline;
use blkswitch_io::pool::{Latch, Registry};
use blkswitch_io::request::{Done, Op, Request, Span};
use blkswitch_io::stats::Counters;
use blkswitch_io::{Device, Leaf, LeafOptions, Queues, Table, TableBuilder, Target, To};

pub(crate) const SECTOR: usize = 512;
/// Where pages begin in their file.
const PAGES_AT: u64 = 1 << 31;

pub(crate) struct Bench {
    pub(crate) queues: Vec<(Pipeline, Turn)>,
    registry: Registry,
    next: u64,
    data: BTreeMap<u64, Vec<u8>>,
    /// Every other request has its data in pages, which a file stands for.
    pages: BTreeMap<u64, File>,
    answers: BTreeMap<u64, i32>,
}

impl Bench {
    pub(crate) fn new(queues: usize) -> Bench {
        Bench {
            queues: (0..queues).map(|queue| (Pipeline::new(queue), Turn::simulated())).collect(),
            registry: Registry::detached(Queues::of_pipelines(queues)),
            next: 0,
            data: BTreeMap::new(),
            pages: BTreeMap::new(),
            answers: BTreeMap::new(),
        }
    }

    pub(crate) fn leaf(&self, address: &str) -> Arc<Leaf> {
        let options = LeafOptions::new(self.registry.queues());
        let leaf = Leaf::open(&address.parse().unwrap(), &options).unwrap();
        // A file may hold unflushed data of an earlier process, so a new leaf counts as written to.
        // Flush it to begin without.
        leaf.flush_blocking().unwrap();
        leaf
    }

    pub(crate) fn create(&mut self, name: &str) -> Arc<Device> {
        let device = self.registry.create(name, "", None).unwrap();
        for (pipeline, _) in &mut self.queues {
            pipeline.install(device.id(), Counters::boxed(8).into());
        }
        device
    }

    pub(crate) fn device(&mut self, name: &str, table: Table) -> Arc<Device> {
        let device = self.create(name);
        self.reload(&device, table);
        device
    }

    pub(crate) fn linear(&self, leaf: &Arc<Leaf>) -> Table {
        let mut table = TableBuilder::new(false);
        let below = table.leaf(leaf.clone());
        table.push(leaf.properties().sectors, Target::Linear(To { below, offset: 0 }));
        table.build().unwrap()
    }

    /// Makes a multipath device from the words of its table line. The line names leaves by their
    /// index in `leaves`.
    pub(crate) fn multipath(&self, line: &str, leaves: &[Arc<Leaf>]) -> Table {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let mut params = Params::parse(&words).unwrap();
        let (mut groups, mut paths, mut tos) = (Vec::new(), Vec::new(), Vec::new());
        let mut table = TableBuilder::new(false);
        while let Some(item) = params.next_item().unwrap() {
            match item {
                Item::Group(group) => groups.push(group.group()),
                Item::Path(path) => {
                    let place: usize = std::str::from_utf8(path.device).unwrap().parse().unwrap();
                    tos.push(To { below: table.leaf(leaves[place].clone()), offset: 0 });
                    paths.push(path.path().unwrap().path);
                }
            }
        }
        let (features, initial) = (*params.features(), params.initial_group());
        let groups = Multipath::new(features, initial, groups.into(), paths.into()).unwrap();
        let sectors = leaves.iter().map(|leaf| leaf.properties().sectors).min().unwrap_or(128);
        table.push(sectors, Target::Multipath { groups, paths: tos.into() });
        table.build().unwrap()
    }

    pub(crate) fn linear_on(&self, device: &Arc<Device>, sectors: u64) -> Table {
        let mut table = TableBuilder::new(false);
        let below = table.device(device).unwrap();
        table.push(sectors, Target::Linear(To { below, offset: 0 }));
        table.build().unwrap()
    }

    pub(crate) fn close(&mut self, device: &Device) -> Arc<Latch> {
        self.close_as(device, false)
    }

    pub(crate) fn close_as(&mut self, device: &Device, noflush: bool) -> Arc<Latch> {
        let latch = Latch::new(self.queues.len());
        for (pipeline, ring) in &mut self.queues {
            pipeline.close(device.id(), noflush, latch.ack(), ring);
        }
        latch
    }

    /// Resumes the device and opens its gate on every queue.
    pub(crate) fn open(&mut self, device: &Device) {
        device.resume().unwrap();
        for (pipeline, ring) in &mut self.queues {
            pipeline.open(device.id(), device.running(), ring);
        }
        self.collect();
    }

    /// Lets held requests ask for a path again, on all queues.
    pub(crate) fn release(&mut self, device: &Device) {
        for (pipeline, ring) in &mut self.queues {
            pipeline.release(device.id(), ring);
        }
        self.collect();
    }

    pub(crate) fn reload(&mut self, device: &Device, table: Table) {
        device.load(table).unwrap();
        let latch = self.close(device);
        while !latch.is_done() {
            self.turn();
        }
        device.suspend().unwrap();
        self.open(device);
    }

    /// Starts a request with the data of a write, or with a buffer of the same length for a read.
    pub(crate) fn start(
        &mut self,
        queue: usize,
        device: &Device,
        op: Op,
        fua: bool,
        at: u64,
        data: Vec<u8>,
    ) -> u64 {
        let sectors = data.len() / SECTOR;
        let (data, len) = match op {
            Op::Read | Op::Write => (data, sectors * SECTOR),
            _ => (Vec::new(), sectors * SECTOR),
        };
        self.next += 1;
        let token = self.next;
        let data = self.data.entry(token).or_insert(data);
        let span = if data.is_empty() { Span::NONE } else { Span(data.as_mut_ptr()) };
        let pages = NonNull::new(span.0).filter(|_| token % 2 == 1).map(|memory| {
            let file = self.pages.entry(token).or_insert_with(|| tempfile::tempfile().unwrap());
            file.write_all_at(data, PAGES_AT).unwrap();
            data.fill(0xee);
            // The tests' leaves cannot use pages, with or without a slot.
            let slot = (token % 4 == 1).then_some(7);
            Pages { memory, file: file.as_raw_fd(), at: PAGES_AT, slot }
        });
        let request = Request {
            op,
            fua,
            offset: at * SECTOR as u64,
            len: len as u64,
            data: span,
            pages,
            token,
        };
        let (pipeline, ring) = &mut self.queues[queue];
        if let Some(errno) = pipeline.start(device.id(), &request, ring) {
            assert_eq!(self.answers.insert(token, errno), None, "answered twice");
        }
        self.collect();
        token
    }

    pub(crate) fn flush(&mut self, queue: usize, device: &Device) -> u64 {
        self.start(queue, device, Op::Flush, false, 0, Vec::new())
    }

    /// Lets every queue handle its next completions.
    pub(crate) fn turn(&mut self) {
        for queue in 0..self.queues.len() {
            self.turn_queue(queue);
        }
    }

    pub(crate) fn turn_queue(&mut self, queue: usize) {
        let mut completions = Vec::new();
        let (pipeline, ring) = &mut self.queues[queue];
        ring.wait(false, &mut completions).unwrap();
        completions.iter().for_each(|completion| pipeline.complete(completion, ring));
        self.collect();
    }

    pub(crate) fn collect(&mut self) {
        let mut done = Vec::new();
        self.queues.iter_mut().for_each(|(pipeline, _)| pipeline.take_done(&mut done));
        for Done { token, errno } in done {
            assert_eq!(self.answers.insert(token, errno), None, "answered twice");
        }
    }

    /// The answer; `None` if there is none yet.
    pub(crate) fn answer(&self, token: u64) -> Option<i32> {
        self.answers.get(&token).copied()
    }

    /// Runs all queues until nothing is in flight, and returns the answer and the data.
    #[track_caller]
    pub(crate) fn finish(&mut self, token: u64) -> (i32, Vec<u8>) {
        self.run();
        let mut data = self.data.remove(&token).unwrap();
        if let Some(pages) = self.pages.remove(&token) {
            pages.read_exact_at(&mut data, PAGES_AT).unwrap();
        }
        (self.answers[&token], data)
    }

    /// Runs all queues until nothing is in flight.
    #[track_caller]
    pub(crate) fn run(&mut self) {
        for _ in 0..1_000_000 {
            if !self.queues.iter().any(|(_, ring)| ring.has_deferred()) {
                return;
            }
            self.turn();
        }
        panic!("this never ends");
    }

    /// Writes whole sectors and expects success.
    #[track_caller]
    pub(crate) fn write(&mut self, device: &Device, at: u64, sectors: usize, byte: u8) {
        let token = self.start(0, device, Op::Write, false, at, vec![byte; sectors * SECTOR]);
        assert_eq!(self.finish(token).0, 0);
    }
}

pub(crate) fn sim(leaf: &Leaf) -> &SimEngine {
    match leaf.engine() {
        Engine::Sim(engine) => engine,
        _ => panic!("not a sim leaf"),
    }
}
