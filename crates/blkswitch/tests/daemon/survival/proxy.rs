//! A way to a server that can be broken in many manners: a socket that forwards bytes, or does not.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use super::replies::Replies;
use super::witness::{Requests, Witness};

/// Interval at which a pump checks whether its way has changed.
const LOOK: Duration = Duration::from_millis(5);

/// The behaviour of a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Everything passes.
    Up,
    /// Connections are dropped, new ones at once, as if the server had been killed.
    Cut,
    /// Nothing passes in either direction, as in a network that does not deliver. When the way is
    /// up again, it forwards what has arrived meanwhile, late answers included, on connections
    /// whose ends are still there. Requests on a connection that its client has given up are
    /// dropped, as with a TCP connection. If a server carried them out late, no client of NBD could
    /// exclude that (docs/leaves.md, requests in doubt).
    Silent,
    /// Answers are delayed by this number of milliseconds.
    Slow(u64),
    /// Half of the next answer passes, then the connection is dropped. Each new connection goes the
    /// same way.
    Half,
    /// One answer in this number says that the server is shutting down, whatever the real answer
    /// was.
    Leaving(u64),
}

impl Way {
    fn to_word(self) -> u64 {
        match self {
            Way::Up => 0,
            Way::Cut => 1,
            Way::Silent => 2,
            Way::Half => 3,
            Way::Slow(ms) => 4 | ms << 8,
            Way::Leaving(one_in) => 5 | one_in << 8,
        }
    }

    fn from_word(word: u64) -> Way {
        match word & 0xff {
            0 => Way::Up,
            1 => Way::Cut,
            2 => Way::Silent,
            3 => Way::Half,
            4 => Way::Slow(word >> 8),
            _ => Way::Leaving(word >> 8),
        }
    }
}

/// A socket in front of a server, with a behaviour that can be changed.
pub(crate) struct Proxy {
    path: PathBuf,
    way: Arc<AtomicU64>,
}

impl Proxy {
    /// Starts a way of `member` that listens at `path` and forwards to `server`. It is up.
    pub(crate) fn start(path: PathBuf, server: PathBuf, member: usize, witness: Witness) -> Proxy {
        let listener = UnixListener::bind(&path).unwrap();
        let way = Arc::new(AtomicU64::new(Way::Up.to_word()));
        let state = way.clone();
        // The thread ends with the test process.
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                // A client that connects while the way is silent must wait.
                if Way::from_word(state.load(SeqCst)) == Way::Cut {
                    continue;
                }
                // A server that is not running drops its clients.
                let Ok(server) = UnixStream::connect(&server) else { continue };
                let requests = Follow::Requests(Requests::new(witness.clone(), member));
                let answers = Follow::Answers(Replies::default());
                for (from, to, follow) in
                    [(&client, &server, requests), (&server, &client, answers)]
                {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let state = state.clone();
                    thread::spawn(move || pump(from, to, follow, &state));
                }
            }
        });
        Proxy { path, way }
    }

    /// The socket for clients.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether everything passes.
    pub(crate) fn is_up(&self) -> bool {
        Way::from_word(self.way.load(SeqCst)) == Way::Up
    }

    /// Changes the behaviour of the way.
    pub(crate) fn set(&self, way: Way) {
        self.way.store(way.to_word(), SeqCst);
    }
}

/// The direction that a pump forwards.
enum Follow {
    Requests(Requests),
    Answers(Replies),
}

impl Follow {
    /// Notes bytes that have arrived.
    fn see(&mut self, bytes: &[u8]) {
        if let Follow::Requests(requests) = self {
            requests.pass(bytes);
        }
    }
}

/// Forwards one direction of a connection until it ends.
fn pump(mut from: UnixStream, mut to: UnixStream, mut follow: Follow, state: &AtomicU64) {
    let way = || Way::from_word(state.load(SeqCst));
    let mut buffer = vec![0; 256 << 10];
    let answers = matches!(follow, Follow::Answers(_));
    from.set_read_timeout(Some(LOOK)).unwrap();
    'pump: loop {
        if way() == Way::Cut {
            break;
        }
        let read = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                continue;
            }
            Err(_) => break,
        };
        follow.see(&buffer[..read]);
        let mut held = buffer[..read].to_vec();
        while way() == Way::Silent {
            match from.read(&mut buffer) {
                // The peer has closed the connection.
                Ok(0) => break 'pump,
                Ok(more) => {
                    follow.see(&buffer[..more]);
                    held.extend_from_slice(&buffer[..more]);
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => break 'pump,
            }
        }
        if let Follow::Answers(replies) = &mut follow {
            // Answers are followed from the beginning, so that they can be changed at any time.
            let one_in = if let Way::Leaving(one_in) = way() { one_in } else { 0 };
            held = replies.pass(&held, one_in);
        }
        let passed = match way() {
            Way::Cut => break,
            Way::Half if answers => held.len() / 2,
            Way::Slow(ms) if answers => {
                thread::sleep(Duration::from_millis(ms));
                held.len()
            }
            Way::Up | Way::Silent | Way::Half | Way::Slow(_) | Way::Leaving(_) => held.len(),
        };
        if to.write_all(&held[..passed]).is_err() || passed < held.len() {
            break;
        }
    }
    // Both ends may be closed already.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
