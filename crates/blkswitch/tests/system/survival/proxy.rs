//! A way to a server that can be broken in many manners: a socket that passes bytes on, or does not.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

/// How often a pump looks whether its way has changed.
const LOOK: Duration = Duration::from_millis(5);

/// What a way does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// It passes everything on.
    Up,
    /// Connections are dropped, new ones at once: a server that was killed.
    Cut,
    /// Nothing passes, in both directions, and nothing is dropped: a server that hangs. Up again, it passes on what
    /// came meanwhile: late answers.
    Silent,
    /// Answers come late by these milliseconds.
    Slow(u64),
    /// Half of the next answer passes, then the connection is dropped, and so on with each connection.
    Half,
}

impl Way {
    fn to_word(self) -> u64 {
        match self {
            Way::Up => 0,
            Way::Cut => 1,
            Way::Silent => 2,
            Way::Half => 3,
            Way::Slow(ms) => 4 | ms << 8,
        }
    }

    fn from_word(word: u64) -> Way {
        match word & 0xff {
            0 => Way::Up,
            1 => Way::Cut,
            2 => Way::Silent,
            3 => Way::Half,
            _ => Way::Slow(word >> 8),
        }
    }
}

/// See the module's text.
pub(crate) struct Proxy {
    path: PathBuf,
    way: Arc<AtomicU64>,
}

impl Proxy {
    /// At `path`, to the server at `server`; up.
    pub(crate) fn start(path: PathBuf, server: PathBuf) -> Proxy {
        let listener = UnixListener::bind(&path).unwrap();
        let way = Arc::new(AtomicU64::new(Way::Up.to_word()));
        let state = way.clone();
        // Ends with the test process.
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                // Who connects while it is silent waits.
                if Way::from_word(state.load(SeqCst)) == Way::Cut {
                    continue;
                }
                // A server that is not there drops its clients.
                let Ok(server) = UnixStream::connect(&server) else { continue };
                for (from, to, answers) in [(&client, &server, false), (&server, &client, true)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let state = state.clone();
                    thread::spawn(move || pump(from, to, answers, &state));
                }
            }
        });
        Proxy { path, way }
    }

    /// Where to connect.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// From now on the way is like this.
    pub(crate) fn set(&self, way: Way) {
        self.way.store(way.to_word(), SeqCst);
    }
}

/// Carries one direction of a connection to its end.
fn pump(mut from: UnixStream, mut to: UnixStream, answers: bool, state: &AtomicU64) {
    let way = || Way::from_word(state.load(SeqCst));
    let mut buffer = vec![0; 256 << 10];
    from.set_read_timeout(Some(LOOK)).unwrap();
    'pump: loop {
        if way() == Way::Cut {
            break;
        }
        let read = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => break,
        };
        let bytes = loop {
            match way() {
                Way::Cut => break 'pump,
                Way::Silent => thread::sleep(LOOK),
                Way::Half if answers => break &buffer[..read / 2],
                Way::Slow(ms) if answers => {
                    thread::sleep(Duration::from_millis(ms));
                    break &buffer[..read];
                }
                Way::Up | Way::Half | Way::Slow(_) => break &buffer[..read],
            }
        };
        if to.write_all(bytes).is_err() || bytes.len() < read {
            break;
        }
    }
    // Both ends may have gone already.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
