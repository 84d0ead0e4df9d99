//! A connection of a front end: its messages, and what they change.
//!
//! Contract: one thread uses a [`FrontEnd`], and may block. A ring is with a queue only while all
//! that it consists of stays as it is: each change ends the ring first, which waits for its
//! requests, and begins it anew. Everything that a front end says is checked.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::inflight::Area;
use super::log::Log;
use super::memory::Memory;
use super::message::{Header, Message, RegionAt, RingAt, RingEvent, frame};
use super::rings::Rings;
use super::server::Order;
use super::trouble::Trouble;
use super::vring::{Setup, Vring};
use super::{MAX_REGIONS, config};
use crate::device::Device;
use crate::sys::fds::{self, is_eventfd, is_hung_up, wait_readable};
use crate::sys::latch::{Latch, Waited};
use crate::sys::mailbox::Post;
use crate::wire::vhost_user::{
    BACKEND_CONFIG_CHANGE_MSG, CONFIG_LEN, HEADER_LEN, ID_LEN, VERSION, feature, protocol,
};

/// The features of the protocol that are there.
const PROTOCOL: u64 = protocol::MQ
    | protocol::LOG_SHMFD
    | protocol::REPLY_ACK
    | protocol::BACKEND_REQ
    | protocol::CONFIG
    | protocol::INFLIGHT_SHMFD
    | protocol::RESET_DEVICE
    | protocol::CONFIGURE_MEM_SLOTS;

/// How often a wait for the end of a ring looks whether the front end is still there.
const LOOK: Duration = Duration::from_millis(100);
/// How long answers are shown to a front end that is gone: its guest may go on with the next back
/// end, which need not carry out these requests again.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// How long the end of a thread waits for the end of a ring. The queue keeps what the ring needs.
const END_TIME: Duration = Duration::from_secs(2);

/// How a connection has ended.
pub(super) enum Ended {
    /// The front end has closed it.
    Closed,
    /// The device is detached, or the pool stops.
    Stopping,
    /// The front end is out of order.
    Refused(String),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Ended {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Ended::Closed,
            _ => Ended::Refused(error.to_string()),
        }
    }
}

/// A ring, as far as the front end has described it.
#[derive(Default)]
struct Ring {
    size: u16,
    at: Option<RingAt>,
    /// Where it goes on.
    next: Arc<AtomicU16>,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    err: Option<OwnedFd>,
    is_enabled: bool,
    /// The number under which a queue serves it.
    served: Option<u64>,
}

/// The answer to a message.
enum Reply {
    /// None, unless the front end has asked for one.
    Nothing,
    Bytes(Vec<u8>),
    WithFile(Vec<u8>, OwnedFd),
}

/// See the module's text.
pub(super) struct FrontEnd<'a> {
    socket: UnixStream,
    device: &'a Arc<Device>,
    post: Arc<dyn Post<Order>>,
    trouble: Arc<Trouble>,
    rings: Vec<Ring>,
    memory: Arc<Memory>,
    features: u64,
    protocol: u64,
    inflight: Option<Arc<Area>>,
    log: Option<Arc<Log>>,
    /// Where our messages go.
    back: Option<OwnedFd>,
    /// The configuration space as the front end knows it.
    shown: [u8; CONFIG_LEN],
}

impl<'a> FrontEnd<'a> {
    pub(super) fn new(
        socket: UnixStream,
        device: &'a Arc<Device>,
        rings: u16,
        post: Arc<dyn Post<Order>>,
        trouble: Arc<Trouble>,
    ) -> FrontEnd<'a> {
        let mut all = Vec::new();
        all.resize_with(rings.into(), Ring::default);
        FrontEnd {
            socket,
            device,
            post,
            trouble,
            rings: all,
            memory: Arc::default(),
            features: 0,
            protocol: 0,
            inflight: None,
            log: None,
            back: None,
            shown: [0; CONFIG_LEN],
        }
    }

    /// Serves the front end until its end. Then no queue serves a ring of it any more.
    pub(super) fn serve(mut self) -> Ended {
        let Err(ended) = self.obey_all();
        let refused = matches!(ended, Ended::Refused(_));
        if refused {
            self.tell_broken();
        }
        self.end_all(refused);
        ended
    }

    fn obey_all(&mut self) -> Result<std::convert::Infallible, Ended> {
        loop {
            if !self.wait()? {
                continue;
            }
            let mut fds = Vec::new();
            let mut bytes = [0; HEADER_LEN];
            self.receive(&mut bytes, &mut fds)?;
            let header =
                Header::parse(&bytes).map_err(|error| Ended::Refused(error.to_string()))?;
            let mut payload = vec![0; header.size];
            self.receive(&mut payload, &mut fds)?;
            let message = Message::parse(&header, &payload, fds.len());
            let message = message.map_err(|error| Ended::Refused(error.to_string()))?;
            let obeyed = self.obey(message, fds).and_then(|reply| {
                self.begin_all()?;
                Ok(reply)
            });
            match obeyed {
                Ok(Reply::Bytes(payload)) => self.reply(&header, &payload, None)?,
                Ok(Reply::WithFile(payload, file)) => self.reply(&header, &payload, Some(file))?,
                Ok(Reply::Nothing) if self.wants_reply(&header) => {
                    self.reply(&header, &0u64.to_le_bytes(), None)?;
                }
                Ok(Reply::Nothing) => {}
                Err(Ended::Refused(why)) => {
                    if self.wants_reply(&header) {
                        self.reply(&header, &1u64.to_le_bytes(), None)?;
                    }
                    return Err(Ended::Refused(why));
                }
                Err(ended) => return Err(ended),
            }
        }
    }

    fn wants_reply(&self, header: &Header) -> bool {
        self.protocol & protocol::REPLY_ACK != 0 && header.needs_reply()
    }

    fn reply(&self, header: &Header, payload: &[u8], file: Option<OwnedFd>) -> Result<(), Ended> {
        let file = file.as_ref().map(AsFd::as_fd);
        Ok(fds::send(self.socket.as_fd(), &header.reply(payload), file)?)
    }

    /// Waits until the front end has said something: true. False if the bell has rung.
    fn wait(&mut self) -> Result<bool, Ended> {
        let [has_message, has_rung] = wait_readable([self.socket.as_fd(), self.trouble.fd()])?;
        if has_rung {
            self.trouble.reset();
            if self.trouble.is_stopping() {
                return Err(Ended::Stopping);
            }
            if let Some(why) = self.trouble.take_broken() {
                return Err(Ended::Refused(why.into()));
            }
            if self.trouble.take_changed() {
                self.tell_changed();
            }
        }
        Ok(has_message)
    }

    /// Receives all of `bytes`.
    fn receive(&mut self, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<(), Ended> {
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match fds::receive(self.socket.as_fd(), rest, fds) {
                Ok(0) if done == 0 => return Err(Ended::Closed),
                Ok(0) => return Err(Ended::Refused("a message has no end".into())),
                Ok(more) => done += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait()?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn obey(&mut self, message: Message, mut fds: Vec<OwnedFd>) -> Result<Reply, Ended> {
        let number = |value: u64| Ok(Reply::Bytes(value.to_le_bytes().to_vec()));
        match message {
            Message::GetFeatures => return number(self.offered()?),
            Message::GetProtocolFeatures => return number(PROTOCOL),
            Message::GetQueueNum => return number(self.rings.len() as u64),
            Message::GetMaxMemSlots => return number(MAX_REGIONS as u64),
            Message::SetFeatures(features) => self.set_features(features)?,
            Message::SetProtocolFeatures(features) if features & !PROTOCOL == 0 => {
                self.protocol = features;
            }
            Message::SetProtocolFeatures(features) => {
                return refuse(format!("it wants protocol features {features:#x}"));
            }
            Message::Owner | Message::SetLogFd => {}
            Message::SetConfig => return refuse("it writes to the configuration space".into()),
            Message::SetMemTable(regions) => self.set_memory(&regions, &fds)?,
            Message::AddMemReg(region) => self.add_region(region, &fds)?,
            Message::RemMemReg(region) => {
                let memory = self.memory.without(region);
                let text = || Ended::Refused(format!("there is no region of memory {region:?}"));
                self.use_memory(memory.ok_or_else(text)?)?;
            }
            Message::SetLogBase { len, offset } => {
                let file = fds.pop().ok_or(Ended::Closed)?;
                let log = Log::map(&file, offset, len).map_err(because("the log"))?;
                self.end_rings()?;
                self.log = Some(Arc::new(log));
                return number(0);
            }
            Message::GetConfig { offset, len, flags } => return self.config(offset, len, flags),
            Message::GetInflightFd(at) => {
                if usize::from(at.rings) > self.rings.len() || !config::is_ring_size(at.size.into())
                {
                    return refuse(format!("it wants an area for {at:?}"));
                }
                let (file, at) = Area::create(at.rings, at.size).map_err(because("an area"))?;
                let mut bytes = [at.len.to_le_bytes(), at.offset.to_le_bytes()].concat();
                bytes.extend([at.rings.to_le_bytes(), at.size.to_le_bytes()].concat());
                // The structure's padding in C.
                bytes.extend([0; 4]);
                return Ok(Reply::WithFile(bytes, file));
            }
            Message::SetInflightFd(at) => {
                let file = fds.pop().ok_or(Ended::Closed)?;
                let area = Area::map(&file, at).map_err(because("the area of requests"))?;
                self.end_rings()?;
                self.inflight = Some(Arc::new(area));
            }
            Message::SetBackendReqFd => self.back = fds.pop(),
            Message::ResetDevice => {
                self.end_rings()?;
                self.rings.iter_mut().for_each(|ring| *ring = Ring::default());
                (self.features, self.log, self.inflight) = (0, None, None);
            }
            ring => return self.obey_ring(ring, fds.pop()),
        }
        Ok(Reply::Nothing)
    }

    /// Messages about one ring.
    fn obey_ring(&mut self, message: Message, fd: Option<OwnedFd>) -> Result<Reply, Ended> {
        match message {
            Message::SetVringNum { ring, size } => {
                if !config::is_ring_size(size) {
                    return refuse(format!("ring {ring} has {size} entries"));
                }
                self.change(ring)?.size = size as u16;
            }
            Message::SetVringAddr { ring, at } => self.change(ring)?.at = Some(at),
            Message::SetVringBase { ring, base } => {
                self.change(ring)?.next = Arc::new(AtomicU16::new(base as u16));
            }
            Message::GetVringBase { ring } => {
                let of = self.change(ring)?;
                (of.kick, of.call) = (None, None);
                let next = u32::from(of.next.load(Ordering::Acquire));
                let bytes = [ring.to_le_bytes(), next.to_le_bytes()].concat();
                return Ok(Reply::Bytes(bytes));
            }
            Message::SetVringKick(RingEvent { ring, .. }) => {
                let Some(fd) = fd.filter(|fd| is_eventfd(fd.as_fd())) else {
                    return refuse(format!("ring {ring} has no eventfd for kicks"));
                };
                let without_enable = self.features & feature::PROTOCOL_FEATURES == 0;
                let of = self.change(ring)?;
                of.kick = Some(fd);
                of.is_enabled |= without_enable;
            }
            Message::SetVringCall(RingEvent { ring, .. }) => self.set_call(ring, fd)?,
            Message::SetVringErr(RingEvent { ring, .. }) => {
                self.ring(ring)?.err = fd.filter(|fd| is_eventfd(fd.as_fd()));
            }
            Message::SetVringEnable { ring, enable } => {
                if self.ring(ring)?.is_enabled != enable {
                    self.change(ring)?.is_enabled = enable;
                }
            }
            other => return refuse(format!("{other:?} is not about a ring")),
        }
        Ok(Reply::Nothing)
    }

    fn ring(&mut self, ring: u32) -> Result<&mut Ring, Ended> {
        let (rings, text) = (self.rings.len(), format!("there is no ring {ring}"));
        let found = self.rings.get_mut(ring as usize);
        found.ok_or_else(|| Ended::Refused(format!("{text}: 0 to {} are allowed", rings - 1)))
    }

    /// A ring that is about to change: no queue serves it.
    fn change(&mut self, ring: u32) -> Result<&mut Ring, Ended> {
        self.ring(ring)?;
        self.end_ring(ring as usize)?;
        self.ring(ring)
    }

    fn set_call(&mut self, ring: u32, fd: Option<OwnedFd>) -> Result<(), Ended> {
        if fd.as_ref().is_some_and(|fd| !is_eventfd(fd.as_fd())) {
            return refuse(format!("ring {ring} has no eventfd for calls"));
        }
        let for_queue = fd.as_ref().map(OwnedFd::try_clone).transpose();
        let call = for_queue.map_err(because("an eventfd"))?;
        let queue = self.queue_of(ring as usize);
        let of = self.ring(ring)?;
        of.call = fd;
        if let Some(id) = of.served {
            self.post.send(queue, Order::Call { id, call });
        }
        Ok(())
    }

    fn offered(&self) -> Result<u64, Ended> {
        let table = self.device.live();
        Ok(config::features(&*table.ok_or_else(|| Ended::Refused("there is no table".into()))?))
    }

    fn set_features(&mut self, features: u64) -> Result<(), Ended> {
        if features == self.features {
            return Ok(());
        }
        // A discard that the table has lost since is refused when it comes.
        let offered = self.offered()? | feature::DISCARD;
        if features & !offered != 0 {
            return refuse(format!("it wants features {features:#x} of {offered:#x}"));
        }
        self.end_rings()?;
        self.features = features;
        Ok(())
    }

    fn set_memory(&mut self, regions: &[RegionAt], files: &[OwnedFd]) -> Result<(), Ended> {
        let mut memory = Memory::default();
        for (region, file) in regions.iter().zip(files) {
            memory = memory.with(*region, file).map_err(because("the guest's memory"))?;
        }
        self.use_memory(memory)
    }

    fn add_region(&mut self, region: RegionAt, files: &[OwnedFd]) -> Result<(), Ended> {
        let file = files.first().ok_or(Ended::Closed)?;
        if self.memory.len() >= MAX_REGIONS {
            return refuse(format!("it adds a region of memory to {MAX_REGIONS}"));
        }
        let memory = self.memory.with(region, file).map_err(because("the guest's memory"))?;
        self.use_memory(memory)
    }

    fn use_memory(&mut self, memory: Memory) -> Result<(), Ended> {
        self.end_rings()?;
        self.memory = Arc::new(memory);
        Ok(())
    }

    fn config(&mut self, offset: u32, len: u32, flags: u32) -> Result<Reply, Ended> {
        self.shown = self.space()?;
        let mut reply = [offset, len, flags].map(u32::to_le_bytes).concat();
        let space = self.shown.iter().copied().chain(std::iter::repeat(0));
        reply.extend(space.skip(offset as usize).take(len as usize));
        Ok(Reply::Bytes(reply))
    }

    fn space(&self) -> Result<[u8; CONFIG_LEN], Ended> {
        let table = self.device.live();
        let table = table.ok_or_else(|| Ended::Refused("there is no table".into()))?;
        Ok(config::space(&table, self.rings.len() as u16))
    }

    /// Tells the front end that the configuration space is another one now.
    fn tell_changed(&mut self) {
        let Some(back) = &self.back else { return };
        if self.space().is_ok_and(|space| space != self.shown) {
            // A front end that does not read our messages does without.
            let _ = fds::send(back.as_fd(), &frame(BACKEND_CONFIG_CHANGE_MSG, VERSION, &[]), None);
        }
    }

    /// Tells the front end that its rings are not served any more.
    fn tell_broken(&self) {
        for err in self.rings.iter().filter_map(|ring| ring.err.as_ref()) {
            fds::signal(err.as_fd());
        }
    }

    fn queue_of(&self, ring: usize) -> usize {
        (self.device.id() as usize).wrapping_add(ring) % self.post.queues().max(1)
    }

    /// Gives the rings to queues of which everything is known and that are not served yet.
    fn begin_all(&mut self) -> Result<(), Ended> {
        for ring in 0..self.rings.len() {
            self.begin_ring(ring)?;
        }
        Ok(())
    }

    fn begin_ring(&mut self, number: usize) -> Result<(), Ended> {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let queue = self.queue_of(number);
        let Some(ring) = self.rings.get_mut(number) else { return Ok(()) };
        let is_ready =
            ring.served.is_none() && ring.is_enabled && ring.size > 0 && self.memory.len() > 0;
        let (true, Some(kick), Some(at)) = (is_ready, &ring.kick, &ring.at) else { return Ok(()) };
        let rings = Rings::new(self.memory.clone(), at, ring.size, self.features);
        let rings = rings.ok_or_else(|| {
            Ended::Refused(format!("ring {number} is not in the memory, or not aligned: {at:x?}"))
        })?;
        let no_fd = because("an eventfd");
        let id = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let has_log = self.features & feature::LOG_ALL != 0;
        let setup = Setup {
            id,
            device: self.device.id(),
            rings,
            base: ring.next.load(Ordering::Acquire),
            kick: kick.try_clone().map_err(no_fd)?,
            call: ring.call.as_ref().map(OwnedFd::try_clone).transpose().map_err(no_fd)?,
            inflight: self.inflight.as_ref().and_then(|area| area.part(number as u16, ring.size)),
            log: self.log.clone().filter(|_| has_log),
            serial: serial(self.device),
            trouble: self.trouble.clone(),
            next: ring.next.clone(),
        };
        let latch = Latch::new(1);
        let vring = Box::new(Vring::new(setup));
        self.post.send(queue, Order::Serve { ring: vring, ack: latch.ack() });
        latch.wait().map_err(|_| Ended::Stopping)?;
        ring.served = Some(id);
        Ok(())
    }

    /// Ends all rings, for a change that concerns all of them.
    fn end_rings(&mut self) -> Result<(), Ended> {
        (0..self.rings.len()).try_for_each(|ring| self.end_ring(ring))
    }

    /// Ends a ring: what it has taken is answered. If the front end goes meanwhile, the rest is
    /// left to the next back end.
    fn end_ring(&mut self, number: usize) -> Result<(), Ended> {
        let queue = self.queue_of(number);
        let Some(ring) = self.rings.get_mut(number) else { return Ok(()) };
        let Some(id) = ring.served.take() else { return Ok(()) };
        let latch = Latch::new(1);
        self.post.send(queue, Order::End { id, mute: false, ack: latch.ack() });
        loop {
            match latch.wait_for(LOOK) {
                Waited::Done => return Ok(()),
                Waited::Gone => return Err(Ended::Stopping),
                Waited::NotYet | Waited::Cancelled => {}
            }
            let is_gone = is_hung_up(self.socket.as_fd());
            if is_gone || self.trouble.is_stopping() {
                // Ended with all the others.
                if let Some(ring) = self.rings.get_mut(number) {
                    ring.served = Some(id);
                }
                return Err(if is_gone { Ended::Closed } else { Ended::Stopping });
            }
        }
    }

    /// Ends all rings because the front end is at its end. With `mute`, at once. Requests that wait
    /// at a gate are refused, and are left to the next back end.
    fn end_all(&mut self, mute: bool) {
        let served: Vec<(usize, u64)> = (0..self.rings.len())
            .filter_map(|ring| {
                Some((self.queue_of(ring), self.rings.get_mut(ring)?.served.take()?))
            })
            .collect();
        let latch = Latch::new(served.len());
        for (queue, id) in &served {
            self.post.send(*queue, Order::End { id: *id, mute, ack: latch.ack() });
        }
        if !mute && latch.wait_for(LAST_ANSWERS) != Waited::NotYet {
            return;
        }
        let latch = Latch::new(served.len());
        for (queue, id) in &served {
            self.post.send(*queue, Order::End { id: *id, mute: true, ack: latch.ack() });
        }
        let mut until = None;
        while latch.wait_for(LOOK) == Waited::NotYet {
            // A guest must not get the rings to another back end while leaves may still write to
            // its memory. At the end of the process, or of the export, nobody waits for that.
            if self.trouble.is_stopping()
                && Instant::now() > *until.get_or_insert_with(|| Instant::now() + END_TIME)
            {
                return;
            }
        }
    }
}

fn refuse<T>(why: String) -> Result<T, Ended> {
    Err(Ended::Refused(why))
}

/// An error about what the front end has given.
fn because(what: &'static str) -> impl Fn(io::Error) -> Ended + Copy {
    move |error| Ended::Refused(format!("cannot use {what}: {error}"))
}

/// The answer to GET_ID: the uuid, or the name.
fn serial(device: &Device) -> [u8; ID_LEN] {
    let info = device.info();
    let text = if info.uuid.is_empty() { info.name } else { info.uuid };
    let mut serial = [0; ID_LEN];
    serial.iter_mut().zip(text.bytes()).for_each(|(to, byte)| *to = byte);
    serial
}
