//! The attacks: what a hostile client sends, and what it does with the answers.

use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;

pub(super) const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const STRUCTURED_REPLY: u32 = 8;
const SET_META_CONTEXT: u32 = 10;
const GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_ERROR: u32 = 1 << 31;
const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_TRIM: u16 = 4;
const CMD_WRITE_ZEROES: u16 = 6;
const CMD_BLOCK_STATUS: u16 = 7;
/// A flag of WRITE_ZEROES: write zeroes, make no hole.
const NO_HOLE: u16 = 2;
/// Number of connections of a client that sends headers without bodies.
const BODYLESS: usize = 16;

/// The kinds of attacks; each comes from clients of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attack {
    BlockStatus,
    BlockStatusFine,
    Trim,
    WriteZeroes,
    SmallReads,
    LargeReads,
    Writes,
    UnreadReads,
    Bodyless,
    Idle,
}

impl Attack {
    pub(super) const ALL: [Attack; 10] = [
        Attack::BlockStatus,
        Attack::BlockStatusFine,
        Attack::Trim,
        Attack::WriteZeroes,
        Attack::SmallReads,
        Attack::LargeReads,
        Attack::Writes,
        Attack::UnreadReads,
        Attack::Bodyless,
        Attack::Idle,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Attack::BlockStatus => "BLOCK_STATUS of holes",
            Attack::BlockStatusFine => "BLOCK_STATUS of regions",
            Attack::Trim => "TRIM flood",
            Attack::WriteZeroes => "WRITE_ZEROES of memory",
            Attack::SmallReads => "small READs",
            Attack::LargeReads => "large READs",
            Attack::Writes => "large WRITEs",
            Attack::UnreadReads => "unread READs",
            Attack::Bodyless => "WRITEs without bodies",
            Attack::Idle => "idle connections",
        }
    }

    pub(super) fn what(self) -> &'static str {
        match self {
            Attack::BlockStatus => {
                "4,600 requests of 1 GiB at a time, of a file of 60,000 extents and holes"
            }
            Attack::BlockStatusFine => {
                "the same of a switch with regions of one sector, with the context `blkswitch:path`"
            }
            Attack::Trim => "1,024 requests of 1 GiB at a time, over regions of one sector",
            Attack::WriteZeroes => "16 requests of 4 GiB at a time on `mem:4G`, without holes",
            Attack::SmallReads => "1,024 reads of 512 B at a time, whose answers are read",
            Attack::LargeReads => "64 reads of 1 MiB at a time, whose answers are read",
            Attack::Writes => "16 writes of 1 MiB at a time, with their bodies",
            Attack::UnreadReads => "8 reads of 32 MiB, whose answers are never read",
            Attack::Bodyless => "16 connections with the header of a write of 32 MiB each",
            Attack::Idle => "a connection that does nothing",
        }
    }

    fn device(self) -> &'static str {
        match self {
            Attack::BlockStatus => "sparse",
            Attack::BlockStatusFine | Attack::Trim => "fine",
            Attack::WriteZeroes => "memory",
            Attack::SmallReads
            | Attack::LargeReads
            | Attack::Writes
            | Attack::UnreadReads
            | Attack::Bodyless
            | Attack::Idle => "disk",
        }
    }

    fn contexts(self) -> &'static [&'static str] {
        match self {
            Attack::BlockStatus => &["base:allocation"],
            Attack::BlockStatusFine => &["base:allocation", "blkswitch:path"],
            _ => &[],
        }
    }

    /// The requests that a client sends at a time.
    fn requests(self) -> Vec<u8> {
        let many = |count: u64, command, flags, length: u64| {
            (0..count).flat_map(|cookie| request(command, flags, cookie, length)).collect()
        };
        match self {
            Attack::BlockStatus | Attack::BlockStatusFine => many(4600, CMD_BLOCK_STATUS, 0, GIB),
            Attack::Trim => many(1024, CMD_TRIM, 0, GIB),
            Attack::WriteZeroes => many(16, CMD_WRITE_ZEROES, NO_HOLE, 4 * GIB - 4096),
            Attack::SmallReads => many(1024, CMD_READ, 0, 512),
            Attack::LargeReads => many(64, CMD_READ, 0, MIB),
            Attack::Writes => {
                let body = vec![0; MIB as usize];
                (0..16)
                    .flat_map(|cookie| [request(CMD_WRITE, 0, cookie, MIB), body.clone()].concat())
                    .collect()
            }
            Attack::UnreadReads => many(8, CMD_READ, 0, 32 * MIB),
            Attack::Bodyless => many(1, CMD_WRITE, 0, 32 * MIB),
            Attack::Idle => Vec::new(),
        }
    }

    /// Whether the client reads the answers and sends the requests again.
    fn goes_on(self) -> bool {
        !matches!(self, Attack::UnreadReads | Attack::Bodyless | Attack::Idle)
    }
}

fn request(command: u16, flags: u16, cookie: u64, length: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(28);
    out.extend_from_slice(&REQUEST.to_be_bytes());
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&command.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&0u64.to_be_bytes());
    out.extend_from_slice(&(length as u32).to_be_bytes());
    out
}

/// The hidden subcommand that is the attackers' process.
#[derive(Args)]
pub(crate) struct Clients {
    attack: String,
    clients: usize,
    socket: PathBuf,
}

impl Clients {
    /// Connects, writes a byte to standard output, and attacks until it is killed or its input is
    /// closed.
    pub(crate) fn run(&self) -> Result<()> {
        let attack = Attack::ALL.into_iter().find(|attack| attack.name() == self.attack);
        let attack = attack.with_context(|| format!("there is no attack '{}'", self.attack))?;
        let each = if attack == Attack::Bodyless { BODYLESS } else { 1 };
        let mut streams = Vec::new();
        for number in 0..self.clients * each {
            match connect(&self.socket, attack) {
                Ok(stream) => streams.push(stream),
                // A daemon may refuse further connections.
                Err(_) if number > 0 => break,
                Err(error) => return Err(error),
            }
        }
        for stream in &streams {
            let sender = stream.try_clone()?;
            std::thread::spawn(move || send(sender, attack));
            if attack.goes_on() {
                let receiver = stream.try_clone()?;
                std::thread::spawn(move || drain(receiver));
            }
        }
        io::stdout().write_all(b"r")?;
        io::stdout().flush()?;
        io::stdin().read_to_end(&mut Vec::new())?;
        Ok(())
    }
}

/// Sends the attack. If the daemon drops the connection, the attack is over.
fn send(mut stream: UnixStream, attack: Attack) {
    let requests = attack.requests();
    while stream.write_all(&requests).is_ok() && attack.goes_on() {}
}

fn drain(mut stream: UnixStream) {
    let mut buffer = vec![0; MIB as usize];
    while stream.read(&mut buffer).is_ok_and(|read| read > 0) {}
}

fn connect(socket: &Path, attack: Attack) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.read_exact(&mut [0; 18])?;
    stream.write_all(&3u32.to_be_bytes())?;
    let export = attack.device();
    let name = [&(export.len() as u32).to_be_bytes(), export.as_bytes()].concat();
    if !attack.contexts().is_empty() {
        option(&mut stream, STRUCTURED_REPLY, &[])?;
        let mut query = name.clone();
        query.extend_from_slice(&(attack.contexts().len() as u32).to_be_bytes());
        for context in attack.contexts() {
            query.extend_from_slice(&(context.len() as u32).to_be_bytes());
            query.extend_from_slice(context.as_bytes());
        }
        option(&mut stream, SET_META_CONTEXT, &query)?;
    }
    option(&mut stream, GO, &[&name[..], &[0, 0]].concat())?;
    Ok(stream)
}

/// Sends an option and reads its replies up to the last one.
fn option(stream: &mut UnixStream, option: u32, data: &[u8]) -> Result<()> {
    let mut message = IHAVEOPT.to_be_bytes().to_vec();
    message.extend_from_slice(&option.to_be_bytes());
    message.extend_from_slice(&(data.len() as u32).to_be_bytes());
    message.extend_from_slice(data);
    stream.write_all(&message)?;
    loop {
        let mut header = [0; 20];
        stream.read_exact(&mut header)?;
        let word = |at: usize| {
            header[at..at + 4].iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte))
        };
        let magic = u64::from(word(0)) << 32 | u64::from(word(4));
        ensure!(magic == OPTION_REPLY, "no reply to an option: {magic:#x}");
        let (kind, length) = (word(12), word(16) as usize);
        stream.read_exact(&mut vec![0; length])?;
        ensure!(kind & REP_ERROR == 0, "option {option}: error {kind:#x}");
        if kind == REP_ACK {
            return Ok(());
        }
    }
}

/// Makes a file of 1 GiB in which 4 KiB of data and holes of 12 KiB alternate, up to 60,000 times.
pub(super) fn sparse_file(path: &Path) -> io::Result<()> {
    let file = std::fs::File::create(path)?;
    file.set_len(GIB)?;
    (0..60_000).try_for_each(|extent| file.write_all_at(&[b'x'; 4096], extent * 16384))
}
