//! HTTP/1.1 over the daemon's unix socket: a connection per request, bodies in both directions as
//! streams.
//!
//! Contract: knows routes and JSON, nothing of verbs. A reply outside 2xx is
//! [`ClientError::Refused`] with the daemon's own words. Used on a current-thread runtime; no
//! panics.

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::failure::{Failure, Refusal, Subject};
use crate::protocol::{ErrorBody, NOTE_HEADER};

/// Whatever may go wrong inside a body that is sent.
type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// Longest error reply that is read: kernel lines and a sentence fit a thousand times.
const ERROR_BODY_MAX_BYTES: usize = 1 << 20;

/// The way to one daemon.
#[derive(Debug, Clone)]
pub(super) struct Client {
    socket: PathBuf,
}

/// Why there is no reply of the kind asked for.
#[derive(Debug)]
pub(super) enum ClientError {
    /// Nobody listens.
    Connect(PathBuf, io::Error),
    /// The daemon refused.
    Refused(Box<ErrorBody>),
    /// The connection broke or what came is not the protocol: a sentence.
    Broken(String),
    /// What should be sent could not be read, or what came could not be written.
    Io(io::Error),
}

impl ClientError {
    /// The failure of a verb that named its device by `subject`.
    pub(super) fn about(self, subject: Subject) -> Failure {
        match self {
            Self::Connect(socket, error) => Failure::NoDaemon(socket, error),
            Self::Refused(body) => Failure::Refused(Box::new(Refusal { body: *body, subject })),
            Self::Broken(text) => Failure::Message(text),
            Self::Io(error) => Failure::Output(error),
        }
    }
}

impl Client {
    /// The client of the daemon that listens on `socket`. Connects with the first request.
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// `GET path`, as JSON.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(Method::GET, path, Bytes::new()).await
    }

    /// `method path` with a JSON body, where the reply's body does not matter. Returns what the
    /// daemon has to say of a request that it has carried out.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Option<String>, ClientError> {
        let reply = self.request(method, path, JSON, Full::new(encode(body)?)).await?;
        let note = reply.headers().get(NOTE_HEADER).and_then(|note| note.to_str().ok());
        Ok(note.map(str::to_owned))
    }

    /// `method path` with a JSON body, and a JSON reply.
    pub(super) async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.json(method, path, encode(body)?).await
    }

    /// `POST path` with text as a stream, and a JSON reply.
    pub(super) async fn post_text<T, B>(&self, path: &str, body: B) -> Result<T, ClientError>
    where
        T: DeserializeOwned,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BodyError>,
    {
        let response = self.request(Method::POST, path, "text/plain", body).await?;
        self.decode(path, response).await
    }

    /// `GET path`, handed to `sink` as it arrives.
    pub(super) async fn download(
        &self,
        path: &str,
        mut sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        let response = self.request(Method::GET, path, JSON, Full::new(Bytes::new())).await?;
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.broken(path, &error))?;
            if let Some(data) = frame.data_ref() {
                sink(data).map_err(ClientError::Io)?;
            }
        }
        Ok(())
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let response = self.request(method, path, JSON, Full::new(body)).await?;
        self.decode(path, response).await
    }

    async fn decode<T: DeserializeOwned>(
        &self,
        path: &str,
        response: Response<Incoming>,
    ) -> Result<T, ClientError> {
        let body =
            response.into_body().collect().await.map_err(|error| self.broken(path, &error))?;
        serde_json::from_slice(&body.to_bytes()).map_err(|error| self.broken(path, &error))
    }

    /// One request; the reply's head says 2xx.
    async fn request<B>(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: B,
    ) -> Result<Response<Incoming>, ClientError>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BodyError>,
    {
        let connect = |error| ClientError::Connect(self.socket.clone(), error);
        let stream = UnixStream::connect(&self.socket).await.map_err(connect)?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| self.broken(path, &error))?;
        // The connection's errors also reach the request that waits for its reply, so they are not
        // lost here.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "blkswitch")
            .header("content-type", content_type)
            .body(body)
            .map_err(|error| self.broken(path, &error))?;
        let response =
            sender.send_request(request).await.map_err(|error| self.broken(path, &error))?;
        match response.status() {
            status if status.is_success() => Ok(response),
            status => Err(self.refusal(path, status, response.into_body()).await),
        }
    }

    async fn refusal(&self, path: &str, status: StatusCode, body: Incoming) -> ClientError {
        let limited = http_body_util::Limited::new(body, ERROR_BODY_MAX_BYTES);
        let bytes = match limited.collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return self.broken(path, &*error),
        };
        match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(body) => ClientError::Refused(Box::new(body)),
            Err(_) => {
                let text = String::from_utf8_lossy(&bytes);
                self.broken(path, &io::Error::other(format!("status {status}: {}", text.trim())))
            }
        }
    }

    /// A sentence with the causes behind it, which hyper keeps apart.
    fn broken(&self, path: &str, error: &dyn std::error::Error) -> ClientError {
        let mut text = format!("{}: no proper answer to {path}: {error}", self.socket.display());
        let mut cause = error.source();
        while let Some(error) = cause {
            let _ = write!(text, ": {error}");
            cause = error.source();
        }
        ClientError::Broken(text)
    }
}

const JSON: &str = "application/json";

/// A type without content, `()`, is no body at all.
fn encode<T: Serialize>(body: &T) -> Result<Bytes, ClientError> {
    if size_of::<T>() == 0 {
        return Ok(Bytes::new());
    }
    let encoded = serde_json::to_vec(body);
    encoded
        .map(Bytes::from)
        .map_err(|error| ClientError::Broken(format!("Cannot write the request: {error}")))
}
