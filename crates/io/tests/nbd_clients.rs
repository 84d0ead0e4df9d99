//! The NBD codec against clients that others wrote (libnbd's nbdsh and nbdinfo): a server of a few lines around the
//! codec, a disk in memory, one blocking thread per connection. Skips, saying so, where libnbd is not installed.

use blkswitch_io::export::nbd::reply::MAX_STATUS_CHUNK;
use blkswitch_io::export::nbd::{
    Command, Directory, ExportInfo, Handshake, MAX_REPLY_HEADER, MetaContext, Next, Parsed, Request, Session,
};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process;
use std::sync::{Arc, Mutex};

/// A disk of 8 MiB whose regions of 1 MiB belong to paths 0, 1, 2, 0, 1, 2 ...
const SIZE: u64 = 8 << 20;
const REGION: u64 = 1 << 20;
const PATHS: u64 = 3;

struct OneDisk;

impl Directory for OneDisk {
    fn list(&self, each: &mut dyn FnMut(&str, &str)) {
        each("disk", "a disk in memory");
    }

    fn find(&self, name: &str) -> Option<ExportInfo> {
        matches!(name, "" | "disk").then(|| ExportInfo {
            name: "disk".into(),
            description: "a disk in memory".into(),
            size_bytes: SIZE,
            min_block: 512,
            preferred_block: 4096,
            can_discard: true,
            can_zero: true,
            can_cache: true,
            can_multi_conn: true,
            ..ExportInfo::default()
        })
    }
}

type Disk = Arc<Mutex<Vec<u8>>>;

fn serve(listener: UnixListener) {
    let disk = Disk::new(Mutex::new(vec![0; SIZE as usize]));
    for connection in listener.incoming() {
        let disk = disk.clone();
        std::thread::spawn(move || {
            let mut socket = connection?;
            match negotiate(&mut socket)? {
                Some((session, first)) => transmit(&session, first, socket, &disk),
                None => Ok(()),
            }
        });
    }
}

/// The session, and what came behind the handshake.
fn negotiate(socket: &mut UnixStream) -> std::io::Result<Option<(Box<Session>, Vec<u8>)>> {
    let (mut handshake, mut out, mut kept) = (Handshake::new(), Vec::new(), Vec::new());
    handshake.greeting(&mut out);
    loop {
        socket.write_all(&std::mem::take(&mut out))?;
        let mut piece = [0; 7]; // cuts everything in two
        let len = socket.read(&mut piece)?;
        if len == 0 {
            return Ok(None);
        }
        kept.extend_from_slice(&piece[..len]);
        let progress = handshake.input(&kept, &OneDisk, &mut out);
        kept.drain(..progress.consumed);
        match progress.next {
            Next::More => {}
            Next::Transmission(session) => {
                socket.write_all(&out)?;
                return Ok(Some((session, kept)));
            }
            Next::Close(_) => return socket.write_all(&out).map(|()| None),
        }
    }
}

fn transmit(session: &Session, first: Vec<u8>, mut socket: UnixStream, disk: &Disk) -> std::io::Result<()> {
    let mut input = std::io::Cursor::new(first).chain(socket.try_clone()?);
    loop {
        let mut header = vec![0; session.header_len()];
        input.read_exact(&mut header)?;
        match session.parse(&header) {
            Parsed::Request(request) => {
                let mut payload = vec![0; request.payload as usize];
                input.read_exact(&mut payload)?;
                socket.write_all(&carry_out(session, &request, &payload, disk))?;
            }
            Parsed::Refused { cookie, offset, error, payload, reason, .. } => {
                std::io::copy(&mut input.by_ref().take(payload), &mut std::io::sink())?;
                let mut reply = [0; MAX_REPLY_HEADER];
                let len = session.error(cookie, offset, error, reason, &mut reply);
                socket.write_all(&reply[..len])?;
            }
            Parsed::Disconnect | Parsed::Broken(_) => return Ok(()),
        }
    }
}

fn carry_out(session: &Session, request: &Request, payload: &[u8], disk: &Disk) -> Vec<u8> {
    let mut disk = disk.lock().unwrap();
    let place = &mut disk[request.offset as usize..(request.offset + request.len) as usize];
    let mut reply = [0; MAX_REPLY_HEADER];
    match request.command {
        Command::Read => {
            let len = session.read_ok(request.cookie, request.offset, request.len, &mut reply);
            return [&reply[..len], place].concat();
        }
        Command::BlockStatus => return status(session, request),
        Command::Write => place.copy_from_slice(payload),
        Command::Trim | Command::WriteZeroes => place.fill(0),
        Command::Flush | Command::Cache => {}
    }
    let len = session.ok(request.cookie, request.offset, &mut reply);
    reply[..len].to_vec()
}

fn status(session: &Session, request: &Request) -> Vec<u8> {
    let mut reply = Vec::new();
    for context in request.contexts.iter() {
        let mut out = vec![0; MAX_STATUS_CHUNK];
        let mut writer = session.block_status(request, context, &mut out);
        let mut at = request.offset;
        loop {
            let path = (at / REGION % PATHS) as u32;
            let len = REGION - at % REGION;
            if !writer.extent(len, if context == MetaContext::Path { path } else { 0 }) {
                break;
            }
            at += len;
        }
        let len = writer.finish().unwrap();
        reply.extend_from_slice(&out[..len]);
    }
    reply
}

/// What a client says whose last argument is a URI, or which finds it in its environment; `None` if there is no
/// such client here.
fn client(program: &str, arguments: &[&str], uri_is_argument: bool) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nbd.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || serve(listener));
    let uri = format!("nbd+unix:///disk?socket={}", socket.display());
    let mut command = process::Command::new(program);
    command.args(arguments).env("URI", &uri).env("SOCKET", &socket);
    if uri_is_argument {
        command.arg(&uri);
    }
    // nbdsh takes the first python3 it finds; libnbd's module belongs to that of the system.
    command.env("PATH", format!("/usr/bin:{}", std::env::var("PATH").unwrap_or_default()));
    let output = match command.output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("skipped: there is no {program}");
            return None;
        }
        output => output.unwrap(),
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program}: {text}{}", String::from_utf8_lossy(&output.stderr));
    Some(text)
}

#[test]
fn nbdinfo_sees_what_was_announced() {
    let Some(json) = client("nbdinfo", &["--json"], true) else { return };
    for line in [
        "\"export-name\": \"disk\"",
        "\"description\": \"a disk in memory\"",
        "\"export-size\": 8388608",
        "\"can_cache\": true",
        "\"can_df\": true",
        "\"can_fast_zero\": false",
        "\"can_flush\": true",
        "\"can_fua\": true",
        "\"can_multi_conn\": true",
        "\"can_trim\": true",
        "\"can_zero\": true",
        "\"is_read_only\": false",
        "\"base:allocation\"",
        "\"blkswitch:path\"",
        "\"block_size_minimum\": 512",
        "\"block_size_preferred\": 4096",
        "\"block_size_maximum\": 33554432",
        "\"structured\": true",
    ] {
        assert!(json.contains(line), "{line} is not in\n{json}");
    }
}

#[test]
fn nbdinfo_lists_the_exports() {
    let Some(text) = client("nbdinfo", &["--list"], true) else { return };
    assert!(text.contains("export=\"disk\":"), "{text}");
}

#[test]
fn nbdinfo_reads_the_region_table() {
    let Some(text) = client("nbdinfo", &["--map=blkswitch:path"], true) else { return };
    let words = text.lines().map(|line| line.split_whitespace().take(3).collect::<Vec<_>>().join(" "));
    let expected = (0..8).map(|n| format!("{} {} {}", n * REGION, REGION, n % PATHS));
    assert_eq!(words.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{text}");
}

#[test]
fn nbdsh_with_structured_replies() {
    client("nbdsh", &["-c", &format!("plain = False\n{SCRIPT}")], false);
}

#[test]
fn nbdsh_with_simple_replies() {
    client("nbdsh", &["-c", &format!("plain = True\n{SCRIPT}")], false);
}

const SCRIPT: &str = r#"
import errno, os
h.set_strict_mode(0)            # let through what the server has to refuse
h.set_request_structured_replies(not plain)
h.add_meta_context("base:allocation")
h.add_meta_context("blkswitch:path")
h.connect_uri(os.environ["URI"])
assert h.get_structured_replies_negotiated() == (not plain)
data = os.urandom(65536)
h.pwrite(data, 4096, nbd.CMD_FLAG_FUA)
assert h.pread(65536, 4096) == data
if not plain:
    assert h.pread(65536, 4096, flags=nbd.CMD_FLAG_DF) == data
h.flush()
h.zero(8192, 8192, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(12288, 4096) == data[:4096] + bytes(8192)
h.trim(4096, 4096)
h.cache(1 << 20, 0)
big = os.urandom(8 << 20)
h.pwrite(big, 0)
assert h.pread(8 << 20, 0) == big

def fails(error, call, *arguments):
    try:
        call(*arguments)
    except nbd.Error as e:
        assert e.errnum == error, (e, error, arguments)
    else:
        raise AssertionError(arguments)

fails(errno.EINVAL, h.pread, 512, 8 << 20)
fails(errno.ENOSPC, h.pwrite, bytes(512), 8 << 20)
fails(errno.ENOSPC, h.zero, 1024, (8 << 20) - 512)
fails(errno.EINVAL, h.trim, 1024, (8 << 20) - 512)
fails(errno.EINVAL, h.pwrite, bytes(100), 0)
fails(errno.EINVAL, h.zero, 512, 0, nbd.CMD_FLAG_FAST_ZERO)
fails(errno.EINVAL, h.trim, 512, 0, nbd.CMD_FLAG_REQ_ONE)
fails(errno.EINVAL, h.pwrite, bytes(40 << 20), 0)

seen = {}
def extent(context, offset, entries, error):
    seen[context] = entries

if plain:
    assert not h.can_meta_context("blkswitch:path")
else:
    h.block_status(3 << 20, 512 << 10, extent)
    assert seen == {
        "base:allocation": [3 << 20, 0],
        "blkswitch:path": [512 << 10, 0, 1 << 20, 1, 1 << 20, 2, 512 << 10, 0],
    }, seen
    h.block_status(3 << 20, 512 << 10, extent, nbd.CMD_FLAG_REQ_ONE)
    assert seen == {"base:allocation": [3 << 20, 0], "blkswitch:path": [512 << 10, 0]}, seen
    fails(errno.EINVAL, h.block_status, 1 << 20, 8 << 20, extent)
assert h.pread(4096, 0) == big[:4096]      # still in step
h.shutdown()

# The negotiation step by step.
h = nbd.NBD()
h.set_opt_mode(True)
h.set_request_structured_replies(not plain)
h.connect_unix(os.environ["SOCKET"])
exports = []
h.opt_list(lambda name, description: exports.append((name, description)))
assert exports == [("disk", "a disk in memory")], exports
h.set_export_name("none")
fails(errno.ENOENT, h.opt_info)
h.set_export_name("")
h.opt_info()
assert h.get_size() == 8 << 20
if not plain:
    contexts = []
    h.opt_list_meta_context(lambda name: contexts.append(name))
    assert contexts == ["base:allocation", "blkswitch:path"], contexts
h.opt_go()
assert len(h.pread(512, 0)) == 512
h.shutdown()
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_unix(os.environ["SOCKET"])
h.opt_abort()
"#;
