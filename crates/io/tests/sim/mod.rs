//! Simulates the whole data path from one seed, in one thread.
//!
//! Several real pipelines (queues) run on simulated rings over sim leaves. The control side is real
//! devices without queues of their own; their commands reach the pipelines through mailboxes of the
//! simulation, in order, but late. A scheduler that follows the seed interleaves requests of all
//! kinds with completions, messages, suspends, resumes, reloads, errors of leaves, paths of a
//! multipath that are cut, failed and reinstated, lost clients, stops and power cuts.
//!
//! The model (stack.rs, disk.rs) says what each read may return, where each write must be found,
//! which requests must fail, and what must survive. All requests of one queue have one owner, so
//! they wait for each other's pieces. The model routes waiting sectors when the pipeline does, by
//! the tables that are live then (waits.rs).

macro_rules! say {
    ($world:expr, $($text:tt)*) => {
        if $world.verbose {
            eprintln!("{:>6} {}", $world.now, format_args!($($text)*));
        }
    };
}

pub mod disk;
mod paths;
#[allow(dead_code, reason = "the path a step took is for the pipeline's tests")]
pub mod stack;
mod waits;

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use blkswitch_io::core::multipath::Event;
use blkswitch_io::core::switch::message::Message;
use blkswitch_io::engine::Engine;
use blkswitch_io::engine::Turn;
use blkswitch_io::engine::sim::{Link, Random, SimEngine, SimOptions};
use blkswitch_io::leaf::Address;
use blkswitch_io::pipeline::{Pipeline, Unrouted};
use blkswitch_io::pool::{Ack, Latch, Registry};
use blkswitch_io::request::{Done, Op, Request, Span};
use blkswitch_io::stats::Counters;
use blkswitch_io::table::Live;
use blkswitch_io::{Device, Leaf, LeafOptions, Queues};

use disk::{Disk, Through, Time};
use paths::volume_name;
use stack::{Below, DEVICE_SECTORS, LEAF_SECTORS, ModelTable, ModelTarget, Step};
use waits::Wait;

const QUEUES: usize = 3;
const LEAVES: usize = 4;
const DEVICES: usize = 5;
/// In some seeds the first device is a multipath with `PATHS` paths. Its volume is one more leaf of
/// the model.
const MULTIPATH: usize = 0;
const VOLUME: usize = LEAVES;
const PATHS: usize = 3;
const IN_FLIGHT: usize = 24;
const SECTOR: usize = 512;
/// Sizes of a window: the daemon's, and sizes so small that most requests need several windows.
const WINDOWS: [u32; 4] = [1024, 64, 16, 4];
/// Turns within which all requests must be answered once nothing holds them up.
const DRAIN_TURNS: usize = 100_000;

/// Counts what a run has done, so that a test can see that it did something.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub failed: u64,
    pub parked: u64,
    /// Number of sectors that a closed gate separated from earlier sectors of their request.
    pub rests: u64,
    pub messages: u64,
    pub swaps: u64,
    pub power_cuts: u64,
    pub stops: u64,
    pub path_failures: u64,
    pub reinstated: u64,
    pub held: u64,
}

impl Summary {
    pub fn add(&mut self, other: &Summary) {
        let Summary {
            reads,
            writes,
            flushes,
            failed,
            parked,
            rests,
            messages,
            swaps,
            power_cuts,
            stops,
            ..
        } = other;
        let Summary { path_failures, reinstated, held, .. } = other;
        self.reads += reads;
        self.writes += writes;
        self.flushes += flushes;
        self.failed += failed;
        self.parked += parked;
        self.rests += rests;
        self.messages += messages;
        self.swaps += swaps;
        self.power_cuts += power_cuts;
        self.stops += stops;
        self.path_failures += path_failures;
        self.reinstated += reinstated;
        self.held += held;
    }
}

/// Prints the replay command when a run fails.
struct Replay {
    seed: u64,
    steps: usize,
}

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Replay { seed, steps } = self;
            eprintln!(
                "replay: cargo run --release -p blkswitch-io --example simulate -- --seed {seed} --steps {steps}"
            );
        }
    }
}

/// Runs one seed. If data path and model disagree, it panics and prints the replay command.
pub fn run(seed: u64, steps: usize, verbose: bool) -> Summary {
    let _replay = Replay { seed, steps };
    let mut world = World::new(seed, verbose);
    for _ in 0..steps {
        world.step();
    }
    world.settle();
    world.summary
}

/// One sector of a request, on its leaf.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// The sector's index in the request.
    nth: usize,
    leaf: usize,
    sector: usize,
    /// When the sector was routed there.
    begin: Time,
}

struct InFlight {
    queue: usize,
    device: usize,
    op: Op,
    fua: bool,
    offset: u64,
    sectors: u64,
    data: Vec<u8>,
    started: Time,
    places: Vec<Place>,
    /// Indexes of sectors that read as zeroes.
    zeroes: Vec<usize>,
    /// Sectors that are not routed to a leaf yet.
    waits: Vec<Wait>,
    /// Errors that the answer may be: the first errors of its pieces.
    errors: Vec<i32>,
    /// One of `errors` must be the answer.
    must_fail: bool,
    /// The client has gone, so nobody checks the answer.
    orphan: bool,
}

struct Gate {
    open: bool,
    table: Option<Rc<ModelTable>>,
}

struct Queue {
    pipeline: Pipeline,
    ring: Turn,
    gates: Vec<Gate>,
    mail: VecDeque<Mail>,
}

enum Mail {
    Close { device: usize, noflush: bool, ack: Ack },
    Release,
    Open { device: usize, live: Option<Arc<Live>>, table: Option<Rc<ModelTable>>, ack: Ack },
}

enum Control {
    Open,
    Closing(Arc<Latch>),
    Closed,
    Opening(Arc<Latch>),
}

struct World {
    random: Random,
    verbose: bool,
    now: Time,
    next_request: u64,
    registry: Registry,
    owner: Queues,
    leaves: Vec<Arc<Leaf>>,
    /// The paths of the multipath, if this seed has one. The first one is the last of `leaves`.
    paths: Vec<Arc<Leaf>>,
    /// The multipath's counters on each queue.
    counters: Arc<[Counters]>,
    disks: Vec<Disk>,
    /// Which leaves cannot discard, and below, which cannot zero.
    no_discard: Vec<bool>,
    no_zero: Vec<bool>,
    devices: Vec<Arc<Device>>,
    control: Vec<Control>,
    tables: Vec<Option<Rc<ModelTable>>>,
    inactive: Vec<Option<Rc<ModelTable>>>,
    queues: Vec<Queue>,
    in_flight: BTreeMap<u64, InFlight>,
    /// Whether leaves of this seed fail at times.
    faulty: bool,
    /// How much weight of pieces one owner may have in flight.
    window: u32,
    summary: Summary,
}

fn sim(leaf: &Leaf) -> &SimEngine {
    match leaf.engine() {
        Engine::Sim(engine) => engine,
        _ => unreachable!("all leaves are sim"),
    }
}

/// The value of a sector; `None` if it is torn.
fn value_of(sector: &[u8]) -> Option<u64> {
    let words = sector.as_chunks::<8>().0;
    let first = u64::from_le_bytes(words[0]);
    words.iter().all(|word| u64::from_le_bytes(*word) == first).then_some(first)
}

/// The value that request `request` writes to its sector number `nth`.
fn stamp(request: u64, nth: usize) -> u64 {
    (request << 16) | (nth as u64 + 1)
}

impl World {
    fn new(seed: u64, verbose: bool) -> World {
        let mut random = Random::new(seed);
        let queues = Queues::of_pipelines(QUEUES);
        let faulty = random.chance(500_000);
        let rough = random.chance(500_000);
        let mut leaves = Vec::new();
        let (mut no_discard, mut no_zero) = (Vec::new(), Vec::new());
        let mut paths = Vec::new();
        let count = if random.chance(600_000) { LEAVES + 1 } else { LEAVES };
        for number in 0..count {
            let mut options = SimOptions {
                delay_ns: (0, random.below(100_000)),
                short: if rough { random.below(500_000) } else { 0 },
                interrupts: if rough { random.below(300_000) } else { 0 },
                at_once: if random.chance(400_000) { random.below(1_000_000) } else { 0 },
                no_fua: random.chance(500_000),
                no_discard: random.chance(200_000),
                no_zero: random.chance(300_000),
                ..SimOptions::new(LEAF_SECTORS * SECTOR as u64, random.bits())
            };
            no_discard.push(options.no_discard);
            no_zero.push(options.no_zero);
            let how = LeafOptions::new(queues);
            if number == VOLUME {
                options.name = Some(volume_name());
                options.timeout_ns = random.below(2_000_000);
                paths.extend((0..PATHS).map(|path| {
                    let options = SimOptions { path: Some(path.to_string()), ..options.clone() };
                    Leaf::open(&Address::Sim(options), &how).expect("a path opens")
                }));
                leaves.push(paths[0].clone());
                continue;
            }
            leaves.push(Leaf::open(&Address::Sim(options), &how).expect("a sim leaf opens"));
        }
        let mut world = World {
            random,
            verbose,
            now: 1,
            next_request: 1,
            registry: Registry::detached(queues),
            owner: queues,
            leaves,
            paths,
            counters: Counters::boxed(QUEUES).into(),
            disks: (0..=LEAVES).map(|_| Disk::new(LEAF_SECTORS as usize)).collect(),
            no_discard,
            no_zero,
            devices: Vec::new(),
            control: Vec::new(),
            tables: Vec::new(),
            inactive: Vec::new(),
            queues: Vec::new(),
            in_flight: BTreeMap::new(),
            faulty,
            window: WINDOWS[(seed % WINDOWS.len() as u64) as usize],
            summary: Summary::default(),
        };
        world.boot();
        world
    }

    /// Starts a daemon: devices without tables, and queues that know them.
    fn boot(&mut self) {
        self.in_flight.clear();
        self.queues.clear();
        self.devices.clear();
        self.registry = Registry::detached(self.owner);
        self.devices = (0..DEVICES)
            .map(|n| self.registry.create(&format!("d{n}"), "", None).expect("a new device"))
            .collect();
        self.control = (0..DEVICES).map(|_| Control::Open).collect();
        self.tables = vec![None; DEVICES];
        self.inactive = vec![None; DEVICES];
        for number in 0..QUEUES {
            let mut pipeline = Pipeline::new(number);
            pipeline.limit_owners(self.window);
            for (number, device) in self.devices.iter().enumerate() {
                let own = if number == MULTIPATH {
                    self.counters.clone()
                } else {
                    Counters::boxed(QUEUES).into()
                };
                pipeline.install(device.id(), own);
            }
            let gates = (0..DEVICES).map(|_| Gate { open: true, table: None }).collect();
            self.queues.push(Queue {
                pipeline,
                ring: Turn::simulated(),
                gates,
                mail: VecDeque::new(),
            });
        }
        for device in 0..DEVICES {
            self.load(device);
            self.close(device);
            self.drain();
        }
    }

    fn tick(&mut self) -> Time {
        self.now += 1;
        self.now
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.random.below(of.len() as u64) as usize]
    }

    fn step(&mut self) {
        match self.random.below(1000) {
            0..400 if self.in_flight.len() < IN_FLIGHT => self.request(),
            400..700 => {
                let queue = self.random.below(QUEUES as u64) as usize;
                self.turn(queue);
            }
            700..850 => {
                let queue = self.random.below(QUEUES as u64) as usize;
                self.deliver(queue);
            }
            850..875 => self.message(),
            875..900 => self.change_paths(),
            900..975 => self.manage(),
            975..980 => self.faults(),
            980..985 => self.cut(),
            985..990 => self.lose_a_client(),
            990..994 => self.settle(),
            994..996 => self.power_cut(),
            996..997 => self.stop(),
            _ => {}
        }
        self.follow_up();
    }

    // ---- requests

    fn request(&mut self) {
        let now = self.tick();
        let id = self.next_request;
        self.next_request += 1;
        let queue = self.random.below(QUEUES as u64) as usize;
        let device = self.random.below(DEVICES as u64) as usize;
        let fast = self.random.chance(300_000);
        let no_hole = self.random.chance(500_000);
        let zeroes = Op::WriteZeroes { no_hole, fast };
        let op = self.pick(&[
            Op::Read,
            Op::Read,
            Op::Read,
            Op::Write,
            Op::Write,
            Op::Write,
            Op::Flush,
            Op::Discard,
            zeroes,
        ]);
        let fua = op.is_write() && self.random.chance(200_000);
        let (offset, sectors) = match op {
            Op::Flush => (0, 0),
            _ => {
                // Some requests reach beyond the end.
                let table = self.tables[device].as_ref().filter(|_| !self.random.chance(50_000));
                let end = table.map_or(DEVICE_SECTORS, |table| table.len);
                let offset = self.random.below(end);
                (offset, 1 + self.random.below((end - offset).min(24)))
            }
        };
        let mut data =
            vec![
                0xaa;
                if matches!(op, Op::Read | Op::Write) { sectors as usize * SECTOR } else { 0 }
            ];
        if op == Op::Write {
            for (nth, sector) in data.as_chunks_mut::<SECTOR>().0.iter_mut().enumerate() {
                sector.as_chunks_mut::<8>().0.fill(stamp(id, nth).to_le_bytes());
            }
        }
        let span = if data.is_empty() { Span::NONE } else { Span(data.as_mut_ptr()) };
        say!(self, "q{queue} d{device} #{id} {op:?} fua={fua} {offset}+{sectors}");
        let flight = InFlight {
            queue,
            device,
            op,
            fua,
            offset,
            sectors,
            data,
            started: now,
            places: Vec::new(),
            zeroes: Vec::new(),
            waits: waits::at_entry(device, offset, sectors),
            errors: Vec::new(),
            must_fail: false,
            orphan: false,
        };
        match op {
            Op::Read => self.summary.reads += 1,
            Op::Flush => self.summary.flushes += 1,
            _ => self.summary.writes += 1,
        }
        let is_open = self.queues[queue].gates[device].open;
        self.summary.parked += u64::from(!is_open);
        self.in_flight.insert(id, flight);
        if is_open {
            self.enter(id);
        }
        let request = Request {
            op,
            fua,
            offset: offset * SECTOR as u64,
            len: sectors * SECTOR as u64,
            data: span,
            pages: None,
            token: id,
        };
        let Queue { pipeline, ring, .. } = &mut self.queues[queue];
        let answer = pipeline.start(device as u32, &request, ring);
        self.follow(queue);
        if let Some(errno) = answer {
            self.answered(queue, Done { token: id, errno });
        }
        self.answers(queue);
    }

    fn answers(&mut self, queue: usize) {
        self.follow(queue);
        let mut done = Vec::new();
        let pipeline = &mut self.queues[queue].pipeline;
        pipeline.take_done(&mut done);
        let failed =
            pipeline.take_events().filter(|(_, event)| matches!(event, Event::PathFailed { .. }));
        self.summary.path_failures += failed.count() as u64;
        done.into_iter().for_each(|done| self.answered(queue, done));
    }

    fn answered(&mut self, queue: usize, Done { token, errno }: Done) {
        let now = self.tick();
        say!(self, "q{queue} #{token} answered {errno}");
        let flight = self.in_flight.remove(&token);
        let flight =
            flight.unwrap_or_else(|| panic!("#{token} was answered twice, or never asked"));
        assert_eq!(flight.queue, queue, "#{token} was answered on another queue");
        self.judge(token, &flight, errno, now);
    }

    /// Compares an answer with what the model allows.
    fn judge(&mut self, id: u64, flight: &InFlight, errno: i32, now: Time) {
        assert!(errno != 0 || flight.waits.is_empty(), "#{id} is answered before it is all routed");
        let expected = flight.errors.contains(&errno)
            || self.faulty && errno == libc::EIO
            || self.may_lose_its_path(flight, errno);
        match errno {
            0 => assert!(
                !flight.must_fail,
                "#{id} {:?} succeeded; expected {:?}",
                flight.op, flight.errors
            ),
            _ => assert!(
                expected,
                "#{id} {:?} failed with {errno}; expected {:?}",
                flight.op, flight.errors
            ),
        }
        let ok = errno == 0;
        self.summary.failed += u64::from(!ok);
        match flight.op {
            Op::Read if ok => self.check_read(id, flight, now),
            Op::Read => {}
            // A flush whose client has gone promises nothing.
            Op::Flush if ok && !flight.orphan => {
                self.disks
                    .iter_mut()
                    .for_each(|disk| disk.flushed(1 << flight.device, flight.started));
            }
            Op::Flush => {}
            Op::Write | Op::Discard | Op::WriteZeroes { .. } => {
                let durable = ok && flight.fua && !flight.orphan;
                for place in &flight.places {
                    self.disks[place.leaf].end(place.sector, id, ok, durable, now);
                }
            }
        }
    }

    fn check_read(&mut self, id: u64, flight: &InFlight, now: Time) {
        let sectors = flight.data.as_chunks::<SECTOR>().0;
        assert_eq!(
            flight.places.len() + flight.zeroes.len(),
            sectors.len(),
            "#{id}: the model routed all"
        );
        for nth in &flight.zeroes {
            assert_eq!(
                value_of(&sectors[*nth]),
                Some(0),
                "#{id}: sector {nth} of it is on a zero target"
            );
        }
        for Place { nth, leaf, sector, begin } in &flight.places {
            let value =
                value_of(&sectors[*nth]).unwrap_or_else(|| panic!("#{id}: sector {nth} is torn"));
            assert!(
                self.disks[*leaf].may_read(*sector, value, *begin, now),
                "#{id} read {value:#x} at its sector {nth}, which is leaf {leaf} sector {sector}; there were{}",
                self.disks[*leaf].describe(*sector)
            );
        }
    }

    // ---- queues

    /// Lets a queue's ring go on to its next completions.
    fn turn(&mut self, queue: usize) {
        let mut completions = Vec::new();
        let Queue { pipeline, ring, .. } = &mut self.queues[queue];
        ring.wait(false, &mut completions).expect("a simulated ring");
        while !completions.is_empty() {
            let at = self.random.below(completions.len() as u64) as usize;
            pipeline.complete(&completions.swap_remove(at), ring);
        }
        self.answers(queue);
    }

    /// Lets a queue carry out the next command in its mailbox.
    fn deliver(&mut self, queue: usize) {
        let Some(mail) = self.queues[queue].mail.pop_front() else { return };
        self.tick();
        match mail {
            Mail::Release => {
                let Queue { pipeline, ring, .. } = &mut self.queues[queue];
                pipeline.release(MULTIPATH as u32, ring);
            }
            Mail::Close { device, noflush, ack } => {
                say!(self, "q{queue} d{device} gate closes");
                self.queues[queue].gates[device].open = false;
                let Queue { pipeline, ring, .. } = &mut self.queues[queue];
                pipeline.close(device as u32, noflush, ack, ring);
            }
            Mail::Open { device, live, table, ack } => {
                say!(self, "q{queue} d{device} gate opens");
                let gate = &mut self.queues[queue].gates[device];
                (gate.open, gate.table) = (true, table);
                self.enter_all(queue, device);
                let Queue { pipeline, ring, .. } = &mut self.queues[queue];
                pipeline.open(device as u32, live, ring);
                ack.done();
            }
        }
        self.answers(queue);
    }

    // ---- control

    fn message(&mut self) {
        let device = self.random.below(DEVICES as u64) as usize;
        if self.is_multipath(device) {
            return;
        }
        let Some(table) = self.tables[device].clone() else { return };
        let nth = self.random.below(table.segments.len() as u64) as usize;
        let segment = &table.segments[nth];
        let real = self.devices[device].messenger(segment.start);
        let ModelTarget::Switch { map, ways } = &segment.target else {
            return assert!(real.is_err(), "only a switch takes messages");
        };
        let regions = map.borrow().paths.len() as u64;
        let text = stack::message(&mut self.random, regions, ways.len() as u64);
        say!(self, "d{device} segment {nth}: {text}");
        let real = Message::new().apply_text(
            &mut real.expect("a switch").writer().unwrap(),
            text.as_bytes(),
            true,
        );
        let model = map.borrow_mut().message(text.as_bytes());
        assert_eq!(
            real.map(|_| ()).map_err(|refused| refused.error.position as usize),
            model.map_err(|e| e.0),
            "{text}"
        );
        self.summary.messages += 1;
    }

    /// Suspends, resumes or reloads a device.
    fn manage(&mut self) {
        let device = self.random.below(DEVICES as u64) as usize;
        match (&self.control[device], self.random.below(3)) {
            (Control::Open, 0) => self.close(device),
            (Control::Open, 1) => {
                self.load(device);
                self.close(device);
            }
            (Control::Closed, 0) => self.load(device),
            (Control::Closed, _) => self.open(device),
            _ => {}
        }
    }

    fn load(&mut self, device: usize) {
        let (table, model) = if self.is_multipath(device) {
            stack::multipath(&mut self.random, &self.paths, VOLUME)
        } else {
            stack::random(&mut self.random, device, &self.leaves[..LEAVES], &self.devices)
        };
        say!(self, "d{device} load {model:?}");
        self.devices[device].load(table).expect("no loops: a device stands on those before it");
        self.inactive[device] = Some(model);
    }

    fn close(&mut self, device: usize) {
        let noflush = self.random.chance(500_000);
        say!(self, "d{device} suspend noflush={noflush}");
        // The control side has no queues, so its own part of a suspend is done at once.
        let suspended = if noflush {
            self.devices[device].suspend_noflush()
        } else {
            self.devices[device].suspend()
        };
        suspended.expect("suspend");
        let latch = Latch::new(QUEUES);
        for queue in &mut self.queues {
            queue.mail.push_back(Mail::Close { device, noflush, ack: latch.ack() });
        }
        self.control[device] = Control::Closing(latch);
    }

    /// Resumes a device whose gates are closed. The control side exchanges the tables; the queues
    /// learn it later.
    fn open(&mut self, device: usize) {
        if let Some(model) = self.inactive[device].take() {
            self.tables[device] = Some(model);
            self.summary.swaps += 1;
        }
        say!(self, "d{device} resume");
        self.devices[device].resume().expect("resume");
        let latch = Latch::new(QUEUES);
        let live = self.devices[device].running();
        for queue in &mut self.queues {
            let (live, table) = (live.clone(), self.tables[device].clone());
            queue.mail.push_back(Mail::Open { device, live, table, ack: latch.ack() });
        }
        self.control[device] = Control::Opening(latch);
    }

    /// Continues the commands that all queues have answered.
    fn follow_up(&mut self) {
        for device in 0..DEVICES {
            match &self.control[device] {
                Control::Closing(latch) if latch.is_done() => {
                    self.check_drained(device);
                    say!(self, "d{device} is suspended");
                    self.control[device] = Control::Closed;
                    if self.inactive[device].is_some() {
                        self.open(device);
                    }
                }
                Control::Opening(latch) if latch.is_done() => self.control[device] = Control::Open,
                _ => {}
            }
        }
    }

    fn faults(&mut self) {
        let all: Vec<Arc<Leaf>> =
            self.leaves.iter().chain(self.paths.iter().skip(1)).cloned().collect();
        let leaf = self.random.below(all.len() as u64) as usize;
        if self.faulty {
            let mut chance =
                || if self.random.chance(500_000) { 0 } else { self.random.below(400_000) };
            let (errors, flush_errors) = (chance(), chance());
            sim(&all[leaf]).set_errors(errors, flush_errors);
        }
    }

    fn lose_a_client(&mut self) {
        let queue = self.random.below(QUEUES as u64) as usize;
        self.in_flight.values_mut().filter(|f| f.queue == queue).for_each(|f| f.orphan = true);
    }

    // ---- ends

    /// Opens all gates and lets all requests finish. Nothing else happens meanwhile.
    fn drain(&mut self) {
        for _ in 0..DRAIN_TURNS {
            self.mend();
            let idle = |queue: &Queue| queue.mail.is_empty() && !queue.ring.has_deferred();
            let open = self.control.iter().all(|control| matches!(control, Control::Open));
            if open && self.queues.iter().all(idle) {
                let stuck: Vec<_> = self.in_flight.keys().collect();
                assert!(stuck.is_empty(), "never answered: {stuck:?}");
                let busy: usize = self.queues.iter().map(|queue| queue.pipeline.in_flight()).sum();
                assert_eq!(busy, 0, "requests that nobody asked");
                return;
            }
            for queue in 0..QUEUES {
                self.deliver(queue);
                self.turn(queue);
            }
            for device in 0..DEVICES {
                if matches!(self.control[device], Control::Closed) {
                    self.open(device);
                }
            }
            self.follow_up();
        }
        panic!("never idle; in flight: {:?}", self.in_flight.keys().collect::<Vec<_>>());
    }

    /// Lets everything finish, and checks the data of every leaf.
    fn settle(&mut self) {
        say!(self, "-- settle");
        self.drain();
        let now = self.tick();
        for (number, leaf) in self.leaves.iter().enumerate() {
            for (sector, content) in sim(leaf).image().as_chunks::<SECTOR>().0.iter().enumerate() {
                let value = value_of(content)
                    .unwrap_or_else(|| panic!("leaf {number} sector {sector}: torn"));
                assert!(
                    self.disks[number].may_read(sector, value, now, now),
                    "leaf {number} sector {sector} holds {value:#x}; there were{}",
                    self.disks[number].describe(sector)
                );
            }
            self.disks[number].forget();
        }
    }

    /// Cuts the power at any moment, and restores it.
    fn power_cut(&mut self) {
        say!(self, "-- power cut");
        let now = self.tick();
        for (number, leaf) in self.leaves.iter().enumerate() {
            let image = sim(leaf).power_cut(self.random.bits());
            if number == VOLUME {
                // The other paths drop the operations that they had in flight.
                self.paths.iter().for_each(|path| drop(sim(path).power_cut(0)));
            }
            for (sector, content) in image.as_chunks::<SECTOR>().0.iter().enumerate() {
                let value = value_of(content)
                    .unwrap_or_else(|| panic!("leaf {number} sector {sector}: torn"));
                assert!(
                    self.disks[number].may_survive(sector, value),
                    "leaf {number} sector {sector} held {value:#x} after the power cut; there were{}",
                    self.disks[number].describe(sector)
                );
                self.disks[number].restart(sector, value, now);
            }
        }
        self.summary.power_cuts += 1;
        self.boot();
    }

    /// Stops the daemon: requests that wait at gates are refused, and the others finish without a
    /// gate being opened.
    fn stop(&mut self) {
        say!(self, "-- stop");
        // A flush may wait at a closed gate below. The model does not follow it there, so any may
        // fail.
        let flushes = self.in_flight.values_mut().filter(|flight| flight.op == Op::Flush);
        flushes.for_each(|flight| flight.errors.push(libc::ESHUTDOWN));
        // Held requests are refused, and so are those that would be held from now on.
        let on_paths =
            |flight: &&mut InFlight| flight.places.iter().any(|place| place.leaf == VOLUME);
        self.in_flight
            .values_mut()
            .filter(on_paths)
            .for_each(|flight| flight.errors.push(libc::ESHUTDOWN));
        for number in 0..QUEUES {
            self.refuse_waits(number);
            let Queue { pipeline, ring, .. } = &mut self.queues[number];
            pipeline.refuse(libc::ESHUTDOWN, ring);
            self.answers(number);
        }
        for number in 0..QUEUES {
            while self.queues[number].ring.has_deferred() {
                self.turn(number);
            }
        }
        let stuck: Vec<_> = self.in_flight.keys().collect();
        assert!(stuck.is_empty(), "never answered: {stuck:?}");
        let now = self.tick();
        self.paths.iter().for_each(|path| sim(path).set_link(Link::Up));
        for (number, (leaf, disk)) in self.leaves.iter().zip(&mut self.disks).enumerate() {
            let others = self.paths.iter().skip(1).filter(|_| number == VOLUME);
            // Cut every path, because each knows only of its own writes.
            let failed = std::iter::once(leaf)
                .chain(others)
                .filter(|leaf| leaf.flush_blocking().is_err())
                .count();
            if failed == 0 {
                disk.flushed(Through::MAX, now);
            }
            disk.forget_devices();
        }
        self.summary.stops += 1;
        self.boot();
    }
}
