//! An NBD server that follows a script. It has a thread per connection over shared memory, and the
//! script decides how each request is answered, or not. It shares no code with the product.

#![allow(unreachable_pub, reason = "a module of a test program")]

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

pub const HAS_FLAGS: u16 = 1;
pub const READ_ONLY: u16 = 2;
pub const FLUSH: u16 = 4;
pub const FUA: u16 = 8;
pub const TRIM: u16 = 32;
pub const ZEROES: u16 = 64;
pub const MULTI_CONN: u16 = 256;
pub const FAST_ZERO: u16 = 2048;
/// The flags of a server that can do everything.
pub const GOOD: u16 = HAS_FLAGS | FLUSH | FUA | TRIM | ZEROES | MULTI_CONN | FAST_ZERO;

/// A request as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub len: u32,
    /// The number of its connection, counted from 0.
    pub connection: usize,
}

/// How the server handles a request.
#[derive(Clone, Debug)]
pub enum Action {
    /// Carries it out and answers.
    Do,
    /// Carries it out and answers in pieces of this many bytes, the last one first, zeroes as holes
    /// (structured replies only).
    Pieces(usize),
    /// Refuses it with this error.
    Error(u32),
    /// Carries it out and answers after this time. Later requests of the connection wait.
    Late(Duration),
    /// Answers a write before reading its data.
    Early,
    /// Answers a write and closes the connection without reading its data.
    TooEarly,
    /// Reads it and never answers.
    Silence,
    /// Closes the connection instead of answering.
    Close,
    /// Sends half of the reply, and closes the connection.
    Half,
    /// Sends these bytes instead of a reply.
    Bytes(Vec<u8>),
}

/// The abilities of the server, and how it treats connections.
#[derive(Clone)]
pub struct Options {
    pub size: u64,
    pub flags: u16,
    pub structured: bool,
    /// The export's name, if the server reports one.
    pub name: Option<&'static str>,
    /// Minimum, preferred and maximum block size in bytes.
    pub blocks: Option<[u32; 3]>,
    /// While this is true, the server closes connections as soon as the export was negotiated.
    pub turns_away: Arc<AtomicBool>,
    /// Connections that are served at a time; others wait.
    pub at_once: usize,
    /// Bytes to send instead of the greeting.
    pub greeting: Option<Vec<u8>>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            size: 4 << 20,
            flags: GOOD,
            structured: true,
            name: None,
            blocks: None,
            turns_away: Arc::default(),
            at_once: usize::MAX,
            greeting: None,
        }
    }
}

type Script = Arc<dyn Fn(&Request) -> Action + Send + Sync>;

/// The data and the log of requests, which outlive a server that is killed.
#[derive(Default)]
pub struct Disk {
    pub bytes: Mutex<Vec<u8>>,
    /// All requests in the order of their arrival.
    pub requests: Mutex<Vec<Request>>,
    pub connections: AtomicUsize,
}

pub struct Server {
    pub path: PathBuf,
    pub disk: Arc<Disk>,
    stop: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<UnixStream>>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(
        path: &Path,
        options: Options,
        script: impl Fn(&Request) -> Action + Send + Sync + 'static,
    ) -> Server {
        let disk = Arc::new(Disk {
            bytes: Mutex::new(vec![0; options.size.min(64 << 20) as usize]),
            ..Disk::default()
        });
        Server::again(path, disk, options, script)
    }

    /// Starts a server over the disk of an earlier one.
    pub fn again(
        path: &Path,
        disk: Arc<Disk>,
        options: Options,
        script: impl Fn(&Request) -> Action + Send + Sync + 'static,
    ) -> Server {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, open) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let script: Script = Arc::new(script);
        let thread = {
            let (stop, open, disk) = (stop.clone(), open.clone(), disk.clone());
            std::thread::spawn(move || {
                let serving = Arc::new(AtomicUsize::new(0));
                while !stop.load(Ordering::SeqCst) {
                    let accepted = if serving.load(Ordering::SeqCst) < options.at_once {
                        listener.accept().ok()
                    } else {
                        None
                    };
                    let Some((stream, _)) = accepted else {
                        std::thread::sleep(Duration::from_millis(1));
                        continue;
                    };
                    stream.set_nonblocking(false).unwrap();
                    open.lock().unwrap().push(stream.try_clone().unwrap());
                    let number = disk.connections.fetch_add(1, Ordering::SeqCst);
                    let (disk, script, options) = (disk.clone(), script.clone(), options.clone());
                    serving.fetch_add(1, Ordering::SeqCst);
                    let serving = serving.clone();
                    std::thread::spawn(move || {
                        let mut conn = Conn { stream, number, disk, options };
                        let _ = conn.serve(&script);
                        let _ = conn.stream.shutdown(std::net::Shutdown::Both);
                        serving.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            })
        };
        Server { path: path.to_owned(), disk, stop, open, thread: Some(thread) }
    }

    pub fn address(&self, options: &str) -> String {
        format!("nbd+unix:///disk?socket={}{options}", self.path.display())
    }

    /// Cuts all connections; the server goes on listening.
    pub fn cut(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Ends the server and all connections. Returns its disk.
    pub fn kill(mut self) -> Arc<Disk> {
        self.end();
        self.disk.clone()
    }

    pub fn count(&self, command: u16) -> usize {
        self.disk
            .requests
            .lock()
            .unwrap()
            .iter()
            .filter(|request| request.command == command)
            .count()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        let _ = std::fs::remove_file(&self.path);
        self.cut();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

struct Conn {
    stream: UnixStream,
    number: usize,
    disk: Arc<Disk>,
    options: Options,
}

impl Conn {
    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn serve(&mut self, script: &Script) -> io::Result<()> {
        if let Some(greeting) = self.options.greeting.clone() {
            self.stream.write_all(&greeting)?;
            let mut rest = Vec::new();
            self.stream.read_to_end(&mut rest)?;
            return Ok(());
        }
        self.stream.write_all(b"NBDMAGICIHAVEOPT\x00\x03")?;
        assert_eq!(self.take::<4>()?, [0, 0, 0, 3]);
        let structured = self.negotiate()?;
        if self.options.turns_away.load(Ordering::SeqCst) {
            return Ok(());
        }
        loop {
            let header = self.take::<28>()?;
            assert_eq!(header[..4], 0x2560_9513u32.to_be_bytes());
            let number = |from: usize, to: usize| {
                header[from..to].iter().fold(0u64, |n, b| n << 8 | u64::from(*b))
            };
            let request = Request {
                flags: number(4, 6) as u16,
                command: number(6, 8) as u16,
                cookie: number(8, 16),
                offset: number(16, 24),
                len: number(24, 28) as u32,
                connection: self.number,
            };
            self.disk.requests.lock().unwrap().push(request.clone());
            if request.command == 2 {
                return Ok(());
            }
            let action = script(&request);
            if let Action::Early = action {
                self.answer(&request, structured, None)?;
                std::thread::sleep(Duration::from_millis(100));
            }
            if let Action::TooEarly = action {
                self.answer(&request, structured, None)?;
                std::thread::sleep(Duration::from_millis(100));
                return Ok(());
            }
            let mut data = vec![0; if request.command == 1 { request.len as usize } else { 0 }];
            self.stream.read_exact(&mut data)?;
            match &action {
                Action::Error(_) | Action::Silence | Action::Close | Action::Bytes(_) => {}
                _ => self.act(&request, &data),
            }
            match action {
                Action::Early => {}
                Action::Do => self.answer(&request, structured, None)?,
                Action::Pieces(piece) => self.answer(&request, structured, Some(piece))?,
                Action::Error(code) => self.refuse(&request, structured, code)?,
                Action::Late(time) => {
                    std::thread::sleep(time);
                    self.answer(&request, structured, None)?;
                }
                Action::Silence => {}
                Action::Close | Action::TooEarly => return Ok(()),
                Action::Half => {
                    let whole = self.reply(&request, structured, None);
                    return self.stream.write_all(&whole[..whole.len() / 2]);
                }
                Action::Bytes(bytes) => self.stream.write_all(&bytes)?,
            }
        }
    }

    fn negotiate(&mut self) -> io::Result<bool> {
        let mut structured = false;
        loop {
            assert_eq!(&self.take::<8>()?, b"IHAVEOPT");
            let option = u32::from_be_bytes(self.take()?);
            let mut data = vec![0; u32::from_be_bytes(self.take()?) as usize];
            self.stream.read_exact(&mut data)?;
            match option {
                8 if self.options.structured => {
                    structured = true;
                    self.option_reply(8, 1, &[])?;
                }
                7 => {
                    let export = [
                        &[0, 0][..],
                        &self.options.size.to_be_bytes(),
                        &self.options.flags.to_be_bytes(),
                    ];
                    self.option_reply(7, 3, &export.concat())?;
                    if let Some(name) = self.options.name {
                        self.option_reply(7, 3, &[&[0, 1], name.as_bytes()].concat())?;
                    }
                    if let Some(blocks) = self.options.blocks {
                        let blocks: Vec<u8> =
                            blocks.iter().flat_map(|block| block.to_be_bytes()).collect();
                        self.option_reply(7, 3, &[&[0, 3], &blocks[..]].concat())?;
                    }
                    self.option_reply(7, 1, &[])?;
                    return Ok(structured);
                }
                option => self.option_reply(option, (1 << 31) + 1, b"what?")?,
            }
        }
    }

    fn option_reply(&mut self, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
        let len = data.len() as u32;
        let parts: [&[u8]; 5] = [
            &0x0003_e889_0455_65a9u64.to_be_bytes(),
            &option.to_be_bytes(),
            &kind.to_be_bytes(),
            &len.to_be_bytes(),
            data,
        ];
        self.stream.write_all(&parts.concat())
    }

    fn act(&self, request: &Request, data: &[u8]) {
        let mut disk = self.disk.bytes.lock().unwrap();
        let (from, to) = (request.offset as usize, request.offset as usize + request.len as usize);
        match request.command {
            1 => disk[from..to].copy_from_slice(data),
            4 | 6 => disk[from..to].fill(0),
            _ => {}
        }
    }

    fn reply(&self, request: &Request, structured: bool, piece: Option<usize>) -> Vec<u8> {
        let (from, len) = (request.offset as usize, request.len as usize);
        let data = match request.command {
            0 => self.disk.bytes.lock().unwrap()[from..from + len].to_vec(),
            _ => Vec::new(),
        };
        if !structured {
            return [&simple(0, request.cookie), &data[..]].concat();
        }
        if data.is_empty() {
            return chunk(1, 0, request.cookie, &[]);
        }
        let piece = piece.unwrap_or(len);
        let mut reply = Vec::new();
        for (n, bytes) in data.chunks(piece).enumerate().rev() {
            let offset = (request.offset + (n * piece) as u64).to_be_bytes();
            let last = u16::from(n == 0);
            reply.extend(match bytes.iter().all(|byte| *byte == 0) && piece < len {
                true => chunk(
                    last,
                    2,
                    request.cookie,
                    &[&offset[..], &(bytes.len() as u32).to_be_bytes()].concat(),
                ),
                false => chunk(last, 1, request.cookie, &[&offset[..], bytes].concat()),
            });
        }
        reply
    }

    fn answer(
        &mut self,
        request: &Request,
        structured: bool,
        piece: Option<usize>,
    ) -> io::Result<()> {
        let reply = self.reply(request, structured, piece);
        self.stream.write_all(&reply)
    }

    fn refuse(&mut self, request: &Request, structured: bool, code: u32) -> io::Result<()> {
        let text = b"because";
        let payload = [&code.to_be_bytes()[..], &(text.len() as u16).to_be_bytes(), text].concat();
        let reply = if structured {
            chunk(1, 0x8001, request.cookie, &payload)
        } else {
            simple(code, request.cookie).to_vec()
        };
        self.stream.write_all(&reply)
    }
}

pub fn simple(code: u32, cookie: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&0x6744_6698u32.to_be_bytes());
    bytes[4..8].copy_from_slice(&code.to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

pub fn chunk(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let len = payload.len() as u32;
    let parts: [&[u8]; 6] = [
        &0x668e_33efu32.to_be_bytes(),
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &len.to_be_bytes(),
        payload,
    ];
    parts.concat()
}
