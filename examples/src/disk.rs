//! An export of one's own: a device of a pool as a file of this process, with `Read`, `Write` and
//! `Seek`.
//!
//! A real export would serve many users, and so start many requests before it waits. This one reads
//! ahead: while its user works on one chunk, the queue reads the next ones.

use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use blkswitch_io::client::{Answer, Ask, Client, ClientError, ClientOptions};
use blkswitch_io::{AlignedBytes, Device, Pool};

/// Bytes of a request: a multiple of every logical block size.
const CHUNK: u64 = 64 << 10;
/// Chunks that are read ahead.
const AHEAD: u64 = 8;

/// A device as a file.
#[derive(Debug)]
pub struct Disk {
    client: Client,
    len: u64,
    position: u64,
    /// Chunks that are in memory, by their number.
    chunks: HashMap<u64, AlignedBytes>,
    /// Memory for the next reads.
    free: Vec<AlignedBytes>,
    answers: Vec<Answer>,
}

impl Disk {
    /// Opens a device, which counts as open as long as the disk is there.
    ///
    /// # Errors
    /// The device has no table, or the pool gives no client for it.
    pub fn open(pool: &Pool, device: &Arc<Device>) -> io::Result<Disk> {
        let table = device.live().ok_or(io::ErrorKind::NotFound)?;
        let options = ClientOptions { in_flight: AHEAD as usize, ..ClientOptions::default() };
        let client = pool.client(device, options).map_err(io::Error::other)?;
        Ok(Disk {
            client,
            len: table.len() * 512,
            position: 0,
            chunks: HashMap::new(),
            free: Vec::new(),
            answers: Vec::new(),
        })
    }

    fn len_of(&self, chunk: u64) -> usize {
        CHUNK.min(self.len - chunk * CHUNK) as usize
    }

    /// Starts a request. Whoever keeps to the bound of the client has room for it.
    fn start(&mut self, ask: Ask) -> io::Result<()> {
        self.client.start(ask).map_err(|_| io::ErrorKind::ResourceBusy.into())
    }

    /// Waits for answers and keeps the chunks that were read.
    fn wait(&mut self) -> io::Result<()> {
        self.client.wait(&mut self.answers, None).map_err(|error| match error {
            ClientError::System(error) => error,
            other => io::Error::other(other),
        })?;
        let mut result = Ok(());
        for Answer { token, result: one, data } in self.answers.drain(..) {
            match one {
                Ok(()) => drop(self.chunks.insert(token, data)),
                Err(error) => {
                    self.free.push(data);
                    result = Err(error);
                }
            }
        }
        result
    }

    fn wait_for_all(&mut self) -> io::Result<()> {
        let mut result = Ok(());
        while self.client.in_flight() > 0 {
            result = result.and(self.wait());
        }
        result
    }

    /// Has a chunk in memory, and those behind it on the way.
    fn fetch(&mut self, chunk: u64) -> io::Result<()> {
        if self.chunks.contains_key(&chunk) {
            return Ok(());
        }
        self.wait_for_all()?;
        self.free.extend(self.chunks.drain().map(|(_, data)| data));
        let end = self.len.div_ceil(CHUNK);
        for next in chunk..(chunk + AHEAD).min(end) {
            let len = self.len_of(next);
            let free = self.free.iter().position(|memory| memory.len() == len);
            let memory = match free {
                Some(at) => self.free.swap_remove(at),
                None => AlignedBytes::zeroed(len)?,
            };
            self.start(Ask::read(next * CHUNK, memory, next))?;
        }
        while !self.chunks.contains_key(&chunk) {
            self.wait()?;
        }
        Ok(())
    }
}

impl Read for Disk {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.len || out.is_empty() {
            return Ok(0);
        }
        let (chunk, at) = (self.position / CHUNK, (self.position % CHUNK) as usize);
        self.fetch(chunk)?;
        let bytes = self.chunks.get(&chunk).map_or(&[][..], |data| &data[at..]);
        let len = bytes.len().min(out.len());
        out[..len].copy_from_slice(&bytes[..len]);
        self.position += len as u64;
        Ok(len)
    }
}

impl Write for Disk {
    /// Writes through: the chunk is read, changed and written, so bytes of any number and place can
    /// be written.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.position >= self.len {
            return Ok(0);
        }
        let (chunk, at) = (self.position / CHUNK, (self.position % CHUNK) as usize);
        self.fetch(chunk)?;
        self.wait_for_all()?;
        let mut data = self.chunks.remove(&chunk).unwrap_or_default();
        let len = bytes.len().min(data.len() - at);
        data[at..at + len].copy_from_slice(&bytes[..len]);
        self.start(Ask::write(chunk * CHUNK, data, chunk))?;
        self.wait_for_all()?;
        self.position += len as u64;
        Ok(len)
    }

    /// Makes what was written durable.
    fn flush(&mut self) -> io::Result<()> {
        self.wait_for_all()?;
        // A number that no chunk has. The answer brings no bytes.
        self.start(Ask::flush(u64::MAX))?;
        let result = self.wait_for_all();
        self.chunks.remove(&u64::MAX);
        result
    }
}

impl Seek for Disk {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
