//! Connections to the control socket: limits their number, and how long each may take to send a
//! request.
//!
//! A connection that has not sent a complete request header within [`HEADER_TIME`] is dropped. The
//! time starts when it connects, and again when a request is answered. When [`Limits::connections`]
//! are open, a new connection replaces the oldest one that has never sent a header. So a client
//! that opens connections without end cannot lock out the administrator.
//!
//! Contract: runs on the control runtime; nothing here blocks.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::error::Error;
use std::io::{self, ErrorKind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// Time limit for a request's header. A client has it ready when it connects.
const HEADER_TIME: Duration = Duration::from_secs(10);
/// Most connections. Long polls and the verbs of all users need fewer.
const CONNECTIONS_MAX: usize = 512;
/// The control socket may use one in this many of the process's descriptors.
const DESCRIPTOR_SHARE: usize = 8;
/// Pause after a failure to accept, because its reason (no descriptors) may last.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Limits of the control socket.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most connections at a time.
    pub connections: usize,
}

impl Limits {
    /// The limits for a process that may have this many descriptors.
    pub fn of(descriptors: usize) -> Limits {
        Limits { connections: (descriptors / DESCRIPTOR_SHARE).clamp(8, CONNECTIONS_MAX) }
    }
}

/// The process at the other end of a connection. Its requests carry it.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Its user.
    pub uid: u32,
    /// Its number; `None` if it is in another namespace.
    pub pid: Option<u32>,
}

/// An open connection, as the accepting task sees it.
struct Open {
    /// Whether it has sent a complete request header.
    has_asked: Arc<AtomicBool>,
    task: AbortHandle,
}

/// Answers requests until `stopping` is set, then finishes those under way.
pub async fn serve(
    listener: UnixListener,
    router: Router,
    limits: Limits,
    stopping: watch::Receiver<bool>,
) {
    let (mut open, mut tasks) = (VecDeque::<Open>::new(), JoinSet::new());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(stopping.clone()) => break,
        };
        while tasks.try_join_next().is_some() {}
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the control socket cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        open.retain(|one| !one.task.is_finished());
        if open.len() >= limits.connections && !make_room(&mut open) {
            // All connections are being served. A client that waits for an answer is not dropped
            // for one that has not asked yet.
            tracing::debug!(connections = open.len(), "a control connection is refused");
            continue;
        }
        let has_asked = Arc::new(AtomicBool::new(false));
        let one = connection(stream, router.clone(), has_asked.clone(), stopping.clone());
        open.push_back(Open { has_asked, task: tasks.spawn(one) });
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

/// Waits until the daemon is to stop.
async fn stopped(mut stopping: watch::Receiver<bool>) {
    // An error means that the sender is gone, which ends the server as well.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// Drops the oldest connection that has never sent a header. Returns `false` if all have.
fn make_room(open: &mut VecDeque<Open>) -> bool {
    let oldest = open.iter().position(|one| !one.has_asked.load(Relaxed));
    let Some(oldest) = oldest.and_then(|at| open.remove(at)) else { return false };
    oldest.task.abort();
    true
}

async fn connection(
    stream: UnixStream,
    router: Router,
    has_asked: Arc<AtomicBool>,
    stopping: watch::Receiver<bool>,
) {
    let peer = stream.peer_cred().ok().map(|peer| Peer {
        uid: peer.uid(),
        pid: peer.pid().and_then(|pid| u32::try_from(pid).ok()),
    });
    let service = tower_of(router, has_asked, peer);
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = pin!(serving);
    let served = tokio::select! {
        served = serving.as_mut() => served,
        () = stopped(stopping) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    match served {
        Ok(()) => {}
        Err(error) if is_of_the_system(&error) => tracing::warn!(
            error = &error as &dyn Error,
            "a control connection failed: its client may have no answer to what was done"
        ),
        Err(error) => tracing::debug!(%error, "a control connection ended"),
    }
}

/// Returns whether a connection failed because of an error of this system. Other failures are not
/// logged: clients that leave, stall or send nonsense could fill the log.
fn is_of_the_system(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    let left = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset, ErrorKind::NotConnected];
    cause.is_some_and(|cause| cause.raw_os_error().is_some() && !left.contains(&cause.kind()))
}

/// The routes as a service. It notes in `has_asked` that a request has arrived, and tells the
/// handler who has sent it.
fn tower_of(
    router: Router,
    has_asked: Arc<AtomicBool>,
    peer: Option<Peer>,
) -> impl hyper::service::Service<
    Request<Incoming>,
    Response = axum::response::Response,
    Error = Infallible,
    Future: Send,
> {
    let router = TowerToHyperService::new(router);
    hyper::service::service_fn(move |mut request: Request<Incoming>| {
        has_asked.store(true, Relaxed);
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        hyper::service::Service::call(&router, request)
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::{Instant, timeout};

    use super::*;

    const ASK: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

    /// The answer; empty if the connection is refused.
    async fn ask(path: &Path) -> String {
        let mut stream = UnixStream::connect(path).await.unwrap();
        let (sent, mut answer) = (stream.write_all(ASK).await, String::new());
        let read = stream.read_to_string(&mut answer).await;
        assert!(sent.and(read).is_ok() || answer.is_empty());
        answer
    }

    /// Serves a socket with room for `connections`.
    fn served(connections: usize) -> (tempfile::TempDir, watch::Sender<bool>) {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        let (stop, stopping) = watch::channel(false);
        let router = Router::new().route("/", get(async || "here")).route(
            "/slow",
            get(async || {
                tokio::time::sleep(Duration::from_secs(60)).await;
                "late"
            }),
        );
        tokio::spawn(serve(listener, router, Limits { connections }, stopping));
        (folder, stop)
    }

    #[tokio::test]
    async fn half_sent_headers_keep_nobody_out() {
        let (folder, _stop) = served(16);
        let path = folder.path().join("s");
        let mut silent = Vec::new();
        for n in 0..300 {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            if n % 2 == 0 {
                stream.write_all(&ASK[..20]).await.unwrap();
            }
            silent.push(stream);
        }
        let start = Instant::now();
        for _ in 0..20 {
            let answer = timeout(Duration::from_secs(5), ask(&path)).await.unwrap();
            assert!(answer.ends_with("here"), "{answer}");
        }
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_has_its_time_and_an_answer_all_of_it() {
        let (folder, _stop) = served(16);
        let path = folder.path().join("s");
        let mut half = UnixStream::connect(&path).await.unwrap();
        half.write_all(&ASK[..20]).await.unwrap();
        let mut slow = UnixStream::connect(&path).await.unwrap();
        let request = b"GET /slow HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        slow.write_all(request).await.unwrap();
        let start = Instant::now();
        assert_eq!(half.read(&mut [0; 1]).await.unwrap_or(0), 0, "it is closed");
        let took = start.elapsed();
        assert!((HEADER_TIME..HEADER_TIME * 2).contains(&took), "{took:?}");
        let mut answer = String::new();
        slow.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("late"), "{answer}");
    }

    #[tokio::test]
    async fn who_waits_for_an_answer_is_not_given_up_for_others() {
        let (folder, stop) = served(8);
        let path = folder.path().join("s");
        let mut waiting = Vec::new();
        for _ in 0..8 {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            stream.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            waiting.push(stream);
        }
        // Gives the server time to read all requests.
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(ask(&path).await, "", "there is no room");
        drop(waiting.pop());
        let mut answer = String::new();
        while answer.is_empty() {
            answer = ask(&path).await;
        }
        assert!(answer.ends_with("here"), "{answer}");
        drop(stop);
    }
}
