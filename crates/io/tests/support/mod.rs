//! Shared by the tests with real threads: a pool with devices over any addresses, and a small NBD
//! client.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use blkswitch_io::core::multipath::{Item, Multipath, Params};
use blkswitch_io::core::switch::geometry::Geometry;
use blkswitch_io::core::switch::regions::Map;
use blkswitch_io::table::region_storage;
use blkswitch_io::{
    Below, Device, Leaf, LeafOptions, Pool, PoolOptions, Queues, Table, TableBuilder, Target, To,
};

/// How long a test waits before it reports a hang. This is far more than a loaded machine with two
/// cores needs.
pub const HANG: Duration = Duration::from_secs(60);

/// A pool that listens on a Unix socket in a temporary folder.
pub struct World {
    pub pool: Pool,
    pub dir: tempfile::TempDir,
}

impl World {
    pub fn new(queues: usize) -> World {
        World::with(PoolOptions { queues, ..PoolOptions::default() })
    }

    pub fn with(options: PoolOptions) -> World {
        let world =
            World { pool: Pool::start(options).unwrap(), dir: tempfile::tempdir().unwrap() };
        world.pool.listen(UnixListener::bind(world.socket()).unwrap().into()).unwrap();
        world
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd.sock")
    }

    pub fn leaf(&self, address: &str) -> Arc<Leaf> {
        let options = LeafOptions::new(self.pool.queues());
        Leaf::open(&address.parse().unwrap(), &options).unwrap()
    }

    /// Makes a file of zeroes in the folder.
    pub fn file(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }

    pub fn file_leaf(&self, name: &str, bytes: u64) -> Arc<Leaf> {
        let path = self.file(name, bytes);
        self.leaf(path.to_str().unwrap())
    }

    /// Makes a device without a table.
    pub fn create(&self, name: &str) -> Arc<Device> {
        self.pool.registry().create(name, "", None).unwrap()
    }

    /// A table with one segment that covers a whole leaf.
    pub fn linear(&self, leaf: &Arc<Leaf>) -> Table {
        let mut table = TableBuilder::new(leaf.properties().read_only);
        let below = table.leaf(leaf.clone());
        table.push(leaf.properties().sectors, Target::Linear(To { below, offset: 0 }));
        table.build().unwrap()
    }

    /// A table with one segment of `sectors` sectors over another device.
    pub fn linear_on(&self, device: &Arc<Device>, sectors: u64) -> Table {
        let mut table = TableBuilder::new(false);
        let below = table.device(device).unwrap();
        table.push(sectors, Target::Linear(To { below, offset: 0 }));
        table.build().unwrap()
    }

    /// A switch over these leaves, as long as the shortest one.
    pub fn switch(&self, leaves: &[Arc<Leaf>], region_size: u32) -> Table {
        let sectors = leaves.iter().map(|leaf| leaf.properties().sectors).min().unwrap();
        let mut table = TableBuilder::new(false);
        let below: Vec<Below> = leaves.iter().map(|leaf| table.leaf(leaf.clone())).collect();
        table.push(sectors, switch(sectors, region_size, &below));
        table.build().unwrap()
    }

    /// Makes a multipath device from the words of its table line. The line names leaves by their
    /// index in `leaves`.
    pub fn multipath(&self, line: &str, leaves: &[Arc<Leaf>]) -> Table {
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
        table.push(leaves[0].properties().sectors, Target::Multipath { groups, paths: tos.into() });
        table.build().unwrap()
    }

    /// Makes a device with a live table.
    pub fn device(&self, name: &str, table: Table) -> Arc<Device> {
        let device = self.create(name);
        device.load(table).unwrap();
        device.resume().unwrap();
        device
    }

    pub fn connect(&self, name: &str) -> Client {
        Client::connect(&self.socket(), name).unwrap()
    }
}

/// Options for a leaf that is in no table.
pub fn options() -> LeafOptions {
    LeafOptions::new(Queues::of_pipelines(1))
}

/// A switch target of `sectors` sectors over these paths, each with offset 0.
pub fn switch(sectors: u64, region_size: u32, below: &[Below]) -> Target {
    let geometry = Geometry::new(sectors, below.len() as u32, region_size).unwrap();
    let map =
        Map::new(geometry, region_storage(&geometry).unwrap()).unwrap_or_else(|_| unreachable!());
    Target::Switch { map, paths: below.iter().map(|&below| To { below, offset: 0 }).collect() }
}

/// Waits until `is_so` returns true. Fails the test after [`HANG`].
#[track_caller]
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < HANG, "this never happened: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs `work` on a thread of its own, and fails the test if it does not end in time.
#[track_caller]
pub fn in_time<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(work()));
    is_done
        .recv_timeout(HANG)
        .unwrap_or_else(|error| panic!("this hangs or panics: {what}: {error}"))
}

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISCONNECT: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const WRITE_ZEROES: u16 = 6;
pub const FUA: u16 = 1;

/// A client without negotiation: EXPORT_NAME, compact headers, simple replies.
pub struct Client {
    pub socket: UnixStream,
    pub bytes: u64,
    cookie: u64,
}

impl Client {
    /// Connects to an export. Fails if the connection is refused, or closed because the export does
    /// not exist.
    pub fn connect(path: &Path, export: &str) -> io::Result<Client> {
        let mut socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(HANG))?;
        socket.set_write_timeout(Some(HANG))?;
        let mut greeting = [0; 18];
        socket.read_exact(&mut greeting)?;
        let mut hello = 3u32.to_be_bytes().to_vec();
        hello.extend(option(1, export.as_bytes()));
        socket.write_all(&hello)?;
        let mut answer = [0; 10];
        socket.read_exact(&mut answer)?;
        let bytes = u64::from_be_bytes(answer[..8].try_into().unwrap());
        Ok(Client { socket, bytes, cookie: 0 })
    }

    /// Sends a request and returns its cookie.
    pub fn send(
        &mut self,
        flags: u16,
        command: u16,
        offset: u64,
        len: u32,
        payload: &[u8],
    ) -> io::Result<u64> {
        self.cookie += 1;
        let mut bytes = request(flags, command, self.cookie, offset, len).to_vec();
        bytes.extend_from_slice(payload);
        self.socket.write_all(&bytes)?;
        Ok(self.cookie)
    }

    /// Reads the header of the next reply: (error, cookie).
    pub fn reply(&mut self) -> io::Result<(u32, u64)> {
        let mut header = [0; 16];
        self.socket.read_exact(&mut header)?;
        assert_eq!(header[..4], 0x6744_6698u32.to_be_bytes(), "not a simple reply");
        Ok((
            u32::from_be_bytes(header[4..8].try_into().unwrap()),
            u64::from_be_bytes(header[8..].try_into().unwrap()),
        ))
    }

    /// Sends one request and waits for the answer. Returns the data of a successful read, or NBD's
    /// error number.
    pub fn call(
        &mut self,
        flags: u16,
        command: u16,
        offset: u64,
        len: u32,
        payload: &[u8],
    ) -> Result<Vec<u8>, u32> {
        let cookie = self.send(flags, command, offset, len, payload).expect("send");
        let (error, answered) = self.reply().expect("reply");
        assert_eq!(answered, cookie, "an answer to another request");
        if error != 0 {
            return Err(error);
        }
        let mut data = vec![0; if command == READ { len as usize } else { 0 }];
        self.socket.read_exact(&mut data).expect("data");
        Ok(data)
    }

    pub fn read(&mut self, offset: u64, len: u32) -> Result<Vec<u8>, u32> {
        self.call(0, READ, offset, len, &[])
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), u32> {
        self.call(0, WRITE, offset, data.len() as u32, data).map(|_| ())
    }

    pub fn flush(&mut self) -> Result<(), u32> {
        self.call(0, FLUSH, 0, 0, &[]).map(|_| ())
    }
}

/// Encodes an option with its header.
pub fn option(number: u32, data: &[u8]) -> Vec<u8> {
    [b"IHAVEOPT", &number.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
}

/// Encodes a compact request header.
pub fn request(flags: u16, command: u16, cookie: u64, offset: u64, len: u32) -> [u8; 28] {
    let mut bytes = [0; 28];
    bytes[..4].copy_from_slice(&0x2560_9513u32.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&command.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&len.to_be_bytes());
    bytes
}
