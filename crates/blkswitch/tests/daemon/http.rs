//! Sends requests to the control socket byte by byte, with the types of the protocol in and out.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use blkswitch::protocol::ErrorBody;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::fixture::Daemon;

/// Time limit for an answer. Nothing in a test takes that long.
const PATIENCE: Duration = Duration::from_secs(60);

/// The answer to a request.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// Parses the body of an answer. Panics if the answer is not a success.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> T {
        assert!(self.is_ok(), "{self}");
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self}"))
    }

    /// Parses the body of a refusal. Panics if the answer is a success.
    pub(crate) fn error(&self) -> ErrorBody {
        assert!(!self.is_ok(), "{self}");
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self}"))
    }

    pub(crate) fn is_ok(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Panics with the daemon's text if the answer is not a success.
    #[track_caller]
    pub(crate) fn expect_ok(self) -> Reply {
        assert!(self.is_ok(), "{self}");
        self
    }
}

impl std::fmt::Display for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.status, String::from_utf8_lossy(&self.body))
    }
}

/// Sends a request with a JSON body, or without a body for `Null`.
pub(crate) fn request(socket: &Path, method: &str, path: &str, body: &Value) -> Reply {
    let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body).unwrap() };
    send(socket, method, path, &body)
}

/// Sends a request with any body.
pub(crate) fn send(socket: &Path, method: &str, path: &str, body: &[u8]) -> Reply {
    let mut stream = connect(socket);
    write_request(&mut stream, method, path, body);
    read_reply(&mut stream)
}

/// Writes a request. It is the only one of its connection.
pub(crate) fn write_request(stream: &mut UnixStream, method: &str, path: &str, body: &[u8]) {
    let request = [head(method, path, body.len()), body.to_vec()].concat();
    // The daemon may refuse a request after its head, and close the connection before it has read
    // the body. The reply is there all the same.
    match stream.write_all(&request) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        written => written.unwrap(),
    }
}

/// The head of a request with a body of `length` bytes.
pub(crate) fn head(method: &str, path: &str, length: usize) -> Vec<u8> {
    let head = "HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length:";
    format!("{method} {path} {head} {length}\r\n\r\n").into_bytes()
}

/// Sends a GET about a device that is not answered soon. When this returns, the daemon has begun to
/// handle it: one thread drives all connections in order, and it has answered later requests.
pub(crate) fn begin(daemon: &Daemon, device: &str, path: &str) -> UnixStream {
    let mut stream = connect(&daemon.socket());
    write_request(&mut stream, "GET", path, &[]);
    for _ in 0..3 {
        daemon.describe(device);
    }
    stream
}

/// Connects to the control socket.
pub(crate) fn connect(socket: &Path) -> UnixStream {
    let stream =
        UnixStream::connect(socket).unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Reads an answer to the end of the connection.
pub(crate) fn read_reply(stream: &mut UnixStream) -> Reply {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        // A daemon that answers before it has read everything resets the connection after its
        // answer. The checks below find out whether the answer is complete.
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("an answer has a head");
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_ascii_lowercase();
    let status =
        head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a head has a status");
    let body = &bytes[end + 4..];
    let body =
        if head.contains("transfer-encoding: chunked") { unchunk(body) } else { body.to_vec() };
    if let Some(length) = head.lines().find_map(|line| line.strip_prefix("content-length:")) {
        assert_eq!(length.trim().parse(), Ok(body.len()), "an answer that was cut");
    }
    Reply { status, body }
}

fn unchunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|two| two == b"\r\n").expect("a chunk has a length");
        let length =
            usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        if length == 0 {
            return body;
        }
        body.extend_from_slice(&rest[line + 2..line + 2 + length]);
        rest = &rest[line + 4 + length..];
    }
}
