//! A pipeline that its owner's own thread drives: requests go in by call and answers come out by call, without a queue
//! thread, a device's gate or an export. For programs that route requests in their own process.
//!
//! Contract: as [`Pipeline`]; one thread. A driver is as live as it is waited on: what takes too long is found out, and a
//! remote leaf connected again, in [`Driver::wait`].

use std::io;

use crate::engine::links::Links;
use crate::pipeline::Pipeline;
use crate::request::{Done, Request};
use crate::ring::{Completion, Ring, Tag};

/// See the module's text.
///
/// A switch over two paths, in memory here; a path may be any address that `docs/leaves.md` has:
///
/// ```
/// use blkswitch_io::core::switch::{Geometry, Map};
/// use blkswitch_io::request::{Op, Request, Span};
/// use blkswitch_io::stats::Counters;
/// use blkswitch_io::table::{Live, region_storage};
/// use blkswitch_io::{Driver, Leaf, LeafOptions, TableBuilder, Target, To};
///
/// let options = LeafOptions { direct: None, read_only: false, queues: 1, make_bytes: None };
/// let mut table = TableBuilder::new(false);
/// let mut paths = Vec::new();
/// for address in ["mem:1M", "mem:1M"] {
///     let leaf = Leaf::open(&address.parse()?, &options)?;
///     paths.push(To { below: table.leaf(leaf), offset: 0 });
/// }
/// // 2048 sectors, two paths, 128 sectors a region.
/// let geometry = Geometry::new(2048, 2, 128).map_err(|error| error.to_string())?;
/// let storage = region_storage(&geometry).ok_or("no memory for the map")?;
/// let map = Map::new(geometry, storage).map_err(|_| "the storage is too small")?;
/// table.push(2048, Target::Switch { map, paths: paths.into() });
///
/// let mut driver = Driver::new(0)?;
/// driver.pipeline.install(0, Counters::boxed(2).into());
/// let live = Live { table: table.build(1).into(), departed: Box::default() };
/// driver.pipeline.open(0, Some(live.into()), &mut driver.ring);
///
/// let mut data = vec![7u8; 4096];
/// let span = Span(data.as_mut_ptr());
/// let request = Request { op: Op::Write, fua: false, offset: 65536, len: 4096, data: span, pages: None, token: 1 };
/// let mut done = Vec::new();
/// if let Some(errno) = driver.start(0, &request) {
///     assert_eq!(errno, 0);
/// } else {
///     while done.is_empty() {
///         driver.wait(&mut done)?;
///     }
///     assert_eq!((done[0].token, done[0].errno), (1, 0));
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Driver {
    /// Devices are installed and opened here, with [`Driver::ring`].
    pub pipeline: Pipeline,
    /// Where the leaves' operations are.
    pub ring: Ring,
    completions: Vec<Completion>,
    ticking: bool,
}

impl Driver {
    /// As queue number `queue` of the leaves, without devices. Errors: as [`Ring::new`].
    pub fn new(queue: usize) -> io::Result<Driver> {
        let (pipeline, ring) = (Pipeline::new(queue), Ring::new()?);
        Ok(Driver { pipeline, ring, completions: Vec::new(), ticking: false })
    }

    /// Starts a request; it is handed to the kernel with the next [`Driver::wait`], together with others. `Some`: it is
    /// done already, with this errno (0: none). Otherwise its data must stay valid until its token comes out.
    pub fn start(&mut self, device: u32, request: &Request) -> Option<i32> {
        self.pipeline.start(device, request, &mut self.ring)
    }

    /// Waits until something happens, unless there are answers already, and appends these to `done`: perhaps none yet. Only
    /// for who has requests under way: without, nothing may ever happen. Errors: the ring fails, and nothing is answered any more.
    pub fn wait(&mut self, done: &mut Vec<Done>) -> io::Result<()> {
        // A link without a connection may have answered at once.
        self.carry();
        let Driver { pipeline, ring, completions, ticking } = self;
        if !*ticking && ring.links.is_timed() {
            *ticking = true;
            ring.tick();
        }
        ring.under_way(pipeline.in_flight());
        ring.wait(pipeline.has_done(), completions)?;
        for completion in completions.drain(..) {
            match completion.tag {
                Tag::Part | Tag::Window => pipeline.complete(&completion, ring),
                Tag::Link => ring.links.complete(&completion),
                Tag::Tick => {
                    *ticking = false;
                    ring.links.tick(ring.now_ns());
                }
                Tag::Wake | Tag::Accept | Tag::Receive | Tag::Send | Tag::Ublk | Tag::Ignored => {}
            }
        }
        self.carry();
        let before = done.len();
        self.pipeline.take_done(done);
        self.ring.answered(done.len() - before);
        Ok(())
    }

    /// Lets links send and receive, and gives the pipeline what they have answered.
    fn carry(&mut self) {
        loop {
            while let Some((part, result)) = self.ring.links.take_finished() {
                self.pipeline.complete(&Completion::of_part(part, result), &mut self.ring);
            }
            Links::turn(&mut self.ring);
            if !self.ring.links.has_finished() {
                return;
            }
        }
    }
}
