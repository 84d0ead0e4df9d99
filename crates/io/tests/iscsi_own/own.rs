//! An iSCSI target with one unit in memory that misbehaves when told to. Each answer goes through a
//! function that may change it, and a test can send events. The fuzzer of PDUs uses this file, too,
//! so it depends only on the standard library.

#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::VecDeque;
use std::io::{Read, Result, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

pub(crate) const IQN: &str = "iqn.2026-11.org.example:own";
pub(crate) const BLOCK: usize = 512;
pub(crate) const READ16: u8 = 0x88;
pub(crate) const WRITE16: u8 = 0x8a;
const HEADER: usize = 48;
/// Data bytes in one PDU of a read.
const CHUNK: usize = 16 << 10;
/// Data bytes that one R2T asks for.
const BURST: usize = 64 << 10;

/// A PDU: header, data, padding.
pub(crate) type Pdu = Vec<u8>;

/// Gets the header of a request, and changes the answers to it.
pub(crate) type Manner = Box<dyn Fn(&[u8], &mut Vec<Pdu>) + Send + Sync>;

/// Gets a command, and gives the data of its answer; `None` for a command that it does not know.
pub(crate) type Pages = Box<dyn Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync>;

pub(crate) struct Own {
    pub(crate) address: SocketAddr,
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) data: Arc<Mutex<Vec<u8>>>,
    pub(crate) logins: AtomicUsize,
    /// Number of logins that ended an older session with the same identifier.
    pub(crate) reinstated: AtomicUsize,
    pub(crate) logouts: AtomicUsize,
    /// Number of resets of the logical unit.
    pub(crate) resets: AtomicUsize,
    /// Changes the answers to commands.
    pub(crate) manner: Mutex<Arc<Manner>>,
    /// Answers queries before the target's own answers do.
    pub(crate) pages: Mutex<Option<Pages>>,
    /// If set, logins are redirected to this address.
    pub(crate) elsewhere: Mutex<Option<String>>,
    /// If set, the target reads requests and answers nothing.
    pub(crate) silent: AtomicBool,
    /// Flags of the unit for writes: 0x10 means that FUA is supported, 0x80 that it is
    /// write-protected.
    pub(crate) writes: AtomicU8,
    /// The parameters that the login negotiates, as text keys.
    keys: &'static str,
    lines: Mutex<Vec<Line>>,
    name: u8,
}

/// A connection that has logged in.
struct Line {
    isid: [u8; 6],
    stream: TcpStream,
    writer: Arc<Mutex<()>>,
}

/// The sequence numbers of a connection.
#[derive(Default)]
struct Numbers {
    status: u32,
    expected: u32,
}

struct Connection {
    shared: Arc<Shared>,
    stream: TcpStream,
    writer: Arc<Mutex<()>>,
    numbers: Numbers,
    /// Requests that arrived while the target waited for data.
    waiting: VecDeque<(Vec<u8>, Vec<u8>)>,
    is_in: bool,
    next_transfer: u32,
}

/// Encodes a PDU with this header and data.
pub(crate) fn pdu(opcode: u8, flags: u8, data: &[u8]) -> Pdu {
    let mut pdu = vec![0; HEADER];
    (pdu[0], pdu[1]) = (opcode, flags);
    pdu[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
    pdu.extend_from_slice(data);
    pdu.resize(pdu.len().next_multiple_of(4), 0);
    pdu
}

pub(crate) fn set(pdu: &mut [u8], at: usize, value: u32) {
    pdu[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

pub(crate) fn get(pdu: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(pdu[at..at + 4].try_into().unwrap())
}

/// The operation code of a request's command.
pub(crate) fn operation(request: &[u8]) -> u8 {
    request[32]
}

impl Own {
    /// Starts a target with a unit of `bytes` bytes. Its threads end with their connections.
    pub(crate) fn start(bytes: usize, keys: &'static str) -> Own {
        Own::named(bytes, keys, 1)
    }

    /// As [`Own::start`], with another name of the unit.
    pub(crate) fn named(bytes: usize, keys: &'static str, name: u8) -> Own {
        Own::over(Arc::new(Mutex::new(vec![0; bytes])), keys, name)
    }

    /// Starts another target with the same unit.
    pub(crate) fn twin(&self) -> Own {
        Own::over(self.shared.data.clone(), self.shared.keys, self.shared.name)
    }

    fn over(data: Arc<Mutex<Vec<u8>>>, keys: &'static str, name: u8) -> Own {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let honest: Manner = Box::new(|_, _| ());
        let shared = Arc::new(Shared {
            data,
            logins: AtomicUsize::new(0),
            reinstated: AtomicUsize::new(0),
            logouts: AtomicUsize::new(0),
            resets: AtomicUsize::new(0),
            manner: Mutex::new(Arc::new(honest)),
            pages: Mutex::new(None),
            elsewhere: Mutex::new(None),
            silent: AtomicBool::new(false),
            writes: AtomicU8::new(0x10),
            keys,
            lines: Mutex::default(),
            name,
        });
        let all = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = all.clone();
                // A client may hang up at any time, so the result does not matter.
                std::thread::spawn(move || Connection::serve(shared, stream));
            }
        });
        Own { address, shared }
    }

    pub(crate) fn address(&self, query: &str) -> String {
        format!("iscsi://{}/{IQN}/1{query}", self.address)
    }

    pub(crate) fn behave(&self, manner: impl Fn(&[u8], &mut Vec<Pdu>) + Send + Sync + 'static) {
        *self.shared.manner.lock().unwrap() = Arc::new(Box::new(manner));
    }

    pub(crate) fn answer_queries(
        &self,
        pages: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync + 'static,
    ) {
        *self.shared.pages.lock().unwrap() = Some(Box::new(pages));
    }

    /// Sends an event on every connection.
    pub(crate) fn event(&self, code: u8, parameters: [u16; 3]) {
        let mut event = pdu(0x32, 0x80, &[]);
        set(&mut event, 16, u32::MAX);
        event[36] = code;
        for (at, parameter) in [38, 40, 42].into_iter().zip(parameters) {
            event[at..at + 2].copy_from_slice(&parameter.to_be_bytes());
        }
        for line in self.shared.lines.lock().unwrap().iter() {
            let _writes = line.writer.lock().unwrap();
            let _ = (&line.stream).write_all(&event);
        }
    }

    /// Closes the connections of all sessions.
    pub(crate) fn hang_up(&self) {
        for line in self.shared.lines.lock().unwrap().drain(..) {
            let _ = line.stream.shutdown(Shutdown::Both);
        }
    }
}

impl Connection {
    fn serve(shared: Arc<Shared>, stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let numbers = Numbers { status: 1, expected: 1 };
        let mut connection = Connection {
            shared,
            stream,
            writer: Arc::default(),
            numbers,
            waiting: VecDeque::new(),
            is_in: false,
            next_transfer: 1,
        };
        loop {
            let (header, data) = connection.next()?;
            let answers = connection.answer(&header, &data)?;
            let is_over = header[0] & 0x3f == 0x06;
            connection.send(&header, answers)?;
            if is_over {
                return connection.stream.shutdown(Shutdown::Both);
            }
        }
    }

    fn next(&mut self) -> Result<(Vec<u8>, Vec<u8>)> {
        match self.waiting.pop_front() {
            Some(next) => Ok(next),
            None => self.receive(),
        }
    }

    fn has_digest(&self) -> bool {
        self.is_in && self.shared.keys.contains("CRC32C")
    }

    fn receive(&mut self) -> Result<(Vec<u8>, Vec<u8>)> {
        let mut header = vec![0; HEADER];
        self.stream.read_exact(&mut header)?;
        if self.has_digest() {
            let mut digest = [0; 4];
            self.stream.read_exact(&mut digest)?;
            assert_eq!(digest, crc(&header), "the digest of a header");
        }
        let len = (get(&header, 4) & 0x00ff_ffff) as usize;
        let mut data = vec![0; len.next_multiple_of(4)];
        self.stream.read_exact(&mut data)?;
        data.truncate(len);
        if !matches!(header[0] & 0x3f, 0x05) && header[0] & 0x40 == 0 {
            self.numbers.expected = get(&header, 24).wrapping_add(1);
        }
        Ok((header, data))
    }

    /// Passes the answers through the target's `manner`, numbers them and sends them.
    fn send(&mut self, request: &[u8], mut answers: Vec<Pdu>) -> Result<()> {
        for answer in &mut answers {
            set(answer, 28, self.numbers.expected);
            set(answer, 32, self.numbers.expected.wrapping_add(63));
            set(answer, 24, self.numbers.status);
            let is_bare = answer[0] == 0x25 && answer[1] & 1 == 0;
            if !is_bare && answer[0] != 0x31 {
                self.numbers.status = self.numbers.status.wrapping_add(1);
            }
        }
        if self.is_in {
            let manner = self.shared.manner.lock().unwrap().clone();
            manner(request, &mut answers);
            if self.shared.silent.load(Ordering::SeqCst) {
                return Ok(());
            }
        }
        let has_digest = self.has_digest();
        let _writes = self.writer.lock().unwrap();
        for answer in answers {
            let (header, data) = answer.split_at(HEADER.min(answer.len()));
            (&self.stream).write_all(header)?;
            if has_digest {
                (&self.stream).write_all(&crc(header))?;
            }
            (&self.stream).write_all(data)?;
        }
        if request[0] & 0x3f == 0x03 && request[1] & 0x83 == 0x83 {
            self.is_in = true;
        }
        Ok(())
    }

    fn answer(&mut self, header: &[u8], data: &[u8]) -> Result<Vec<Pdu>> {
        let mut answers = match header[0] & 0x3f {
            0x03 => self.login(header),
            0x01 => self.command(header, data)?,
            0x06 => {
                self.shared.logouts.fetch_add(1, Ordering::SeqCst);
                vec![pdu(0x26, 0x80, &[])]
            }
            0x02 => {
                assert_eq!(header[1], 0x85, "a reset of the unit");
                self.shared.resets.fetch_add(1, Ordering::SeqCst);
                vec![pdu(0x22, 0x80, &[])]
            }
            _ => Vec::new(),
        };
        for answer in &mut answers {
            answer[16..20].copy_from_slice(&header[16..20]);
        }
        Ok(answers)
    }

    fn login(&mut self, header: &[u8]) -> Vec<Pdu> {
        let elsewhere = self.shared.elsewhere.lock().unwrap().clone();
        if let Some(to) = elsewhere {
            let mut answer = pdu(0x23, 0, format!("TargetAddress={to},1\0").as_bytes());
            (answer[36], answer[37]) = (1, 1);
            answer[8..16].copy_from_slice(&header[8..16]);
            return vec![answer];
        }
        let is_first = header[1] & 0x0c == 0;
        let text = if is_first {
            "AuthMethod=None\0TargetPortalGroupTag=1\0".to_string()
        } else {
            format!("{}MaxRecvDataSegmentLength=8192\0", self.shared.keys)
        };
        if !is_first {
            self.shared.logins.fetch_add(1, Ordering::SeqCst);
            let isid: [u8; 6] = header[8..14].try_into().unwrap();
            let mut lines = self.shared.lines.lock().unwrap();
            lines.retain(|line| {
                let is_same = line.isid == isid;
                if is_same {
                    self.shared.reinstated.fetch_add(1, Ordering::SeqCst);
                    let _ = line.stream.shutdown(Shutdown::Both);
                }
                !is_same
            });
            let stream = self.stream.try_clone().unwrap();
            lines.push(Line { isid, stream, writer: self.writer.clone() });
        }
        let mut answer = pdu(0x23, header[1], text.as_bytes());
        answer[8..16].copy_from_slice(&header[8..16]);
        vec![answer]
    }

    fn command(&mut self, header: &[u8], data: &[u8]) -> Result<Vec<Pdu>> {
        let cdb = &header[32..48];
        let page = self.shared.pages.lock().unwrap().as_ref().and_then(|pages| pages(cdb));
        if let Some(page) = page {
            return Ok(self.data_in(header, &page));
        }
        let block = u64::from_be_bytes(cdb[2..10].try_into().unwrap()) as usize;
        let blocks = get(cdb, 10) as usize;
        let range = block.saturating_mul(BLOCK)..block.saturating_add(blocks).saturating_mul(BLOCK);
        let size = self.shared.data.lock().unwrap().len();
        Ok(match cdb[0] {
            READ16 | WRITE16 | 0x93 if range.end > size => vec![sense(5, 0x21)],
            READ16 => {
                let data = self.shared.data.lock().unwrap()[range].to_vec();
                self.data_in(header, &data)
            }
            WRITE16 => {
                let data = self.gather(header, data)?;
                self.shared.data.lock().unwrap()[range].copy_from_slice(&data);
                vec![pdu(0x21, 0x80, &[])]
            }
            0x93 => {
                self.gather(header, data)?;
                self.shared.data.lock().unwrap()[range].fill(0);
                vec![pdu(0x21, 0x80, &[])]
            }
            0x00 | 0x91 => vec![pdu(0x21, 0x80, &[])],
            0x9e => {
                let mut answer = [0; 32];
                answer[..8].copy_from_slice(&((size / BLOCK) as u64 - 1).to_be_bytes());
                answer[8..12].copy_from_slice(&(BLOCK as u32).to_be_bytes());
                self.data_in(header, &answer)
            }
            0x12 => match cdb[2] {
                0x83 => {
                    let mut page = vec![0, 0x83, 0, 12, 1, 3, 0, 8, 0x60, 0, 0, 0, 0, 0, 0];
                    page.push(self.shared.name);
                    self.data_in(header, &page)
                }
                0xb0 => self.data_in(header, &[&[0, 0xb0, 0, 60][..], &[0; 60]].concat()),
                _ => vec![sense(5, 0x24)],
            },
            // MODE SENSE: a header with the flags of `writes`, and a caching page with the cache
            // enabled.
            0x1a => {
                let writes = self.shared.writes.load(Ordering::SeqCst);
                let page = [23, 0, writes, 0, 8, 18, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                self.data_in(header, &[&page[..], &[0; 4]].concat())
            }
            _ => vec![sense(5, 0x20)],
        })
    }

    /// The data of a read in several PDUs, with the status in the last one or in a response after
    /// it.
    fn data_in(&mut self, header: &[u8], data: &[u8]) -> Vec<Pdu> {
        let wanted = get(header, 20) as usize;
        let data = &data[..data.len().min(wanted)];
        let mut answers: Vec<Pdu> = Vec::new();
        for (number, chunk) in (0u32..).zip(data.chunks(CHUNK)) {
            let mut answer = pdu(0x25, 0, chunk);
            set(&mut answer, 20, u32::MAX);
            set(&mut answer, 36, number);
            set(&mut answer, 40, number * CHUNK as u32);
            answers.push(answer);
        }
        let missing = (wanted - data.len()) as u32;
        let residual = if missing > 0 { 0x02 } else { 0 };
        let is_odd = get(header, 24) % 2 == 1;
        match answers.last_mut() {
            Some(last) if is_odd => {
                last[1] = 0x81 | residual;
                set(last, 44, missing);
            }
            last => {
                last.into_iter().for_each(|last| last[1] = 0x80);
                let mut end = pdu(0x21, 0x80 | residual, &[]);
                set(&mut end, 44, missing);
                answers.push(end);
            }
        }
        answers
    }

    /// Collects all data of a write: immediate, unsolicited, and asked for with R2Ts.
    fn gather(&mut self, header: &[u8], data: &[u8]) -> Result<Vec<u8>> {
        let (tag, len) = (get(header, 16), get(header, 20) as usize);
        let mut all = data.to_vec();
        if header[1] & 0x80 == 0 {
            self.burst(tag, &mut all)?;
        }
        while all.len() < len {
            let mut ready = pdu(0x31, 0x80, &[]);
            set(&mut ready, 16, tag);
            set(&mut ready, 20, self.next_transfer);
            set(&mut ready, 40, all.len() as u32);
            set(&mut ready, 44, (len - all.len()).min(BURST) as u32);
            self.next_transfer += 1;
            self.send(header, vec![ready])?;
            self.burst(tag, &mut all)?;
        }
        assert_eq!(all.len(), len, "more data than was asked for");
        Ok(all)
    }

    fn burst(&mut self, tag: u32, all: &mut Vec<u8>) -> Result<()> {
        loop {
            let (header, data) = self.receive()?;
            if header[0] & 0x3f != 0x05 {
                self.waiting.push_back((header, data));
                continue;
            }
            // A changed R2T asked for this data. Read and drop it.
            if get(&header, 16) != tag {
                continue;
            }
            assert_eq!(get(&header, 40) as usize, all.len(), "data in order");
            all.extend_from_slice(&data);
            if header[1] & 0x80 != 0 {
                return Ok(());
            }
        }
    }
}

/// The response to a command that failed, with sense data.
pub(crate) fn sense(key: u8, code: u8) -> Pdu {
    let mut data = vec![0, 18, 0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, code, 0, 0, 0, 0, 0];
    data.truncate(20);
    let mut pdu = pdu(0x21, 0x80, &data);
    pdu[3] = 2;
    pdu
}

fn crc(bytes: &[u8]) -> [u8; 4] {
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    });
    (!crc).to_le_bytes()
}
