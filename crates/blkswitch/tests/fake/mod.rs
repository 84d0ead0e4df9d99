//! A fake daemon for tests of the client. It gives the answers that the test chooses, and records
//! the requests.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::response::Response;
use blkswitch::protocol::ErrorBody;
use serde::Serialize;
use tokio::net::UnixListener;

/// A request that the daemon has received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Method, path and query.
    pub(crate) line: String,
    /// The whole body, as text.
    pub(crate) body: String,
}

/// An answer that a test chooses.
pub(crate) struct Answer {
    status: u16,
    body: Vec<u8>,
}

impl Answer {
    /// Status 200 with JSON.
    pub(crate) fn json(value: &impl Serialize) -> Self {
        Self { status: 200, body: serde_json::to_vec(value).unwrap() }
    }

    /// Status 200 with text.
    pub(crate) fn text(text: &str) -> Self {
        Self { status: 200, body: text.into() }
    }

    /// Status 204, without a body.
    pub(crate) fn done() -> Self {
        Self { status: 204, body: Vec::new() }
    }

    /// An error, with its status and body.
    pub(crate) fn refused(error: &ErrorBody) -> Self {
        Self { status: error.errno.http_status(), body: serde_json::to_vec(error).unwrap() }
    }

    /// An answer that no real daemon gives.
    pub(crate) fn garbage(status: u16, text: &str) -> Self {
        Self { status, body: text.into() }
    }
}

/// The fake daemon. Its thread lives as long as the process.
pub(crate) struct Fake {
    folder: tempfile::TempDir,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Fake {
    /// Starts a daemon that answers every request with `answer`.
    pub(crate) fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (socket, log, answer) =
            (folder.path().join("control.sock"), asked.clone(), Arc::new(answer));
        let (ready, started) = mpsc::channel();
        thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = UnixListener::bind(socket).unwrap();
                ready.send(()).unwrap();
                let handler = move |request: Request| {
                    let (log, answer) = (log.clone(), answer.clone());
                    async move {
                        let line = format!("{} {}", request.method(), request.uri());
                        let body = to_bytes(request.into_body(), usize::MAX).await.unwrap();
                        let asked = Asked { line, body: String::from_utf8(body.into()).unwrap() };
                        let Answer { status, body } = answer(&asked);
                        log.lock().unwrap().push(asked);
                        Response::builder().status(status).body(Body::from(body)).unwrap()
                    }
                };
                axum::serve(listener, Router::new().fallback(handler)).await.unwrap();
            });
        });
        started.recv().unwrap();
        Self { folder, asked }
    }

    /// Method, path and query of all requests so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|asked| asked.line.clone()).collect()
    }

    /// The bodies of all requests so far.
    pub(crate) fn bodies(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|asked| asked.body.clone()).collect()
    }

    /// A folder for the files of a test.
    pub(crate) fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// The client, without its arguments.
    pub(crate) fn command(&self) -> Command {
        let mut command = client();
        command.env("BLKSWITCH_SOCKET", self.folder.path().join("control.sock"));
        command
    }

    /// Runs a shell line in which `blkswitch` is the client.
    pub(crate) fn shell(&self, line: &str) -> Ran {
        let folder = PathBuf::from(env!("CARGO_BIN_EXE_blkswitch")).parent().unwrap().to_owned();
        let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("sh");
        command.args(["-c", line]).env("PATH", path).env("LC_ALL", "C").env("NO_COLOR", "1");
        command
            .env("BLKSWITCH_SOCKET", self.folder.path().join("control.sock"))
            .stdin(Stdio::null());
        Ran::from(command.output().unwrap())
    }
}

/// The client, without its arguments and without a daemon.
pub(crate) fn client() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blkswitch"));
    command.env_remove("BLKSWITCH_SOCKET").env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// The result of a run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) rc: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            rc: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}
