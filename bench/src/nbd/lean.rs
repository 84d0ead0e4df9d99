//! A client that is not the bottleneck: it sends requests and receives answers in the largest
//! possible pieces.
//!
//! fio (libnbd) makes one or more system calls for each request and answer, and takes as much time
//! for a request as a good server does. Then two servers that both keep up look the same. This
//! client makes one call for all requests that it can send, and one for all answers that have
//! arrived.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blkswitch::nbd_client::{CMD_READ, CMD_WRITE, NbdClient, SIMPLE_REPLY, put_request};

use super::client::{Load, Run};
use super::server::thread_cpu_ns;
use crate::report::Random;

/// Bytes of a simple reply before its data.
const REPLY_HEADER: usize = 16;

/// A connection and the requests on it.
pub(crate) struct Lean {
    stream: UnixStream,
    command: u16,
    block: usize,
    blocks: u64,
    random: Random,
    /// Numbers of requests that are not in flight.
    free: Vec<u32>,
    /// The time at which each request was sent, by its number.
    sent: Vec<Instant>,
    out: Vec<u8>,
    input: Vec<u8>,
    /// Bytes at the start of `input` that have arrived and were not parsed yet.
    filled: usize,
    /// The data that writes send.
    data: Vec<u8>,
    latencies_ns: Vec<u32>,
}

impl Lean {
    /// Connects to a server's device for `load`.
    pub(crate) fn connect(socket: &Path, device: &str, load: &Load) -> Result<Lean> {
        let stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
        let blocks =
            NbdClient::over(stream.try_clone()?, device)?.size() / load.block_bytes() as u64;
        let block = load.block_bytes();
        Ok(Lean {
            stream,
            command: if load.is_write() { CMD_WRITE } else { CMD_READ },
            block,
            blocks,
            random: Random(1),
            free: (0..load.depth).collect(),
            sent: vec![Instant::now(); load.depth as usize],
            out: Vec::new(),
            input: vec![0; load.depth as usize * (REPLY_HEADER + block)],
            filled: 0,
            data: vec![0x5a; block],
            latencies_ns: Vec::new(),
        })
    }

    /// Keeps the connection busy for a time. Returns the number of answered requests and their
    /// figures.
    pub(super) fn run(&mut self, time: Duration) -> Result<(f64, Run)> {
        let own = Path::new("/proc/thread-self");
        self.latencies_ns.clear();
        let (start, cpu) = (Instant::now(), thread_cpu_ns(own)?);
        self.carry_while(|_| start.elapsed() < time)?;
        let (seconds, cpu) = (start.elapsed().as_secs_f64(), thread_cpu_ns(own)? - cpu);
        let requests = self.latencies_ns.len() as f64;
        self.latencies_ns.sort_unstable();
        let quantile = |per_cent: usize| {
            let at = self.latencies_ns.len().saturating_sub(1) * per_cent / 100;
            self.latencies_ns.get(at).map_or(f64::NAN, |&ns| f64::from(ns) / 1e3)
        };
        let run = Run {
            per_second: requests / seconds,
            bytes_per_second: requests * self.block as f64 / seconds,
            p50_us: quantile(50),
            p99_us: quantile(99),
            client_cpu_us: cpu as f64 / 1e3 / requests,
            server_cpu_us: 0.0,
        };
        Ok((requests, run))
    }

    /// Waits for this number of answered requests, and up to the depth more.
    pub(crate) fn carry(&mut self, requests: u64) -> Result<()> {
        self.latencies_ns.clear();
        self.carry_while(|answered| answered < requests)
    }

    fn carry_while(&mut self, mut go_on: impl FnMut(u64) -> bool) -> Result<()> {
        let mut answered = 0;
        loop {
            if go_on(answered) {
                self.send()?;
            }
            if self.free.len() == self.sent.len() {
                return Ok(());
            }
            answered += self.receive()?;
        }
    }

    /// Sends all requests that are not in flight.
    fn send(&mut self) -> Result<()> {
        let now = Instant::now();
        self.out.clear();
        for slot in self.free.drain(..) {
            let offset = self.random.below(self.blocks) * self.block as u64;
            put_request(&mut self.out, self.command, 0, slot.into(), offset, self.block as u32);
            if self.command == CMD_WRITE {
                self.out.extend_from_slice(&self.data);
            }
            if let Some(sent) = self.sent.get_mut(slot as usize) {
                *sent = now;
            }
        }
        Ok(self.stream.write_all(&self.out)?)
    }

    /// Reads the answers that have arrived, or waits for some. Returns their number.
    fn receive(&mut self) -> Result<u64> {
        let got = self.stream.read(self.input.get_mut(self.filled..).unwrap_or_default())?;
        ensure!(got > 0, "the server has closed the connection");
        self.filled += got;
        let (now, mut at, mut answers) = (Instant::now(), 0, 0);
        let reply_len = REPLY_HEADER + if self.command == CMD_READ { self.block } else { 0 };
        while let Some(reply) =
            self.input.get(at..self.filled).and_then(|rest| rest.get(..reply_len))
        {
            let slot = u64::from_be_bytes(reply[8..16].try_into()?);
            ensure!(
                reply[..4] == SIMPLE_REPLY.to_be_bytes() && reply[4..8] == [0; 4],
                "a bad reply"
            );
            let sent = self.sent.get(slot as usize).context("a reply to no request")?;
            self.latencies_ns.push((now - *sent).as_nanos().try_into().unwrap_or(u32::MAX));
            self.free.push(slot as u32);
            (at, answers) = (at + reply_len, answers + 1);
        }
        self.input.copy_within(at..self.filled, 0);
        self.filled -= at;
        Ok(answers)
    }
}
