//! HTTP/1.1 over the daemon's unix socket: one connection per request, streamed bodies in both
//! directions.
//!
//! Contract: this module knows routes and JSON, but no verbs. A reply outside 2xx is a
//! [`ClientError::Refused`] with the daemon's text. It runs on a current-thread runtime and does
//! not panic.

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

/// An error inside a request body.
type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// Longest error reply. Kernel lines and a sentence are a thousandth of it.
const ERROR_BODY_MAX_BYTES: usize = 1 << 20;

/// A client of one daemon. It connects once per request.
#[derive(Debug, Clone)]
pub(super) struct Client {
    socket: PathBuf,
}

/// The reason why a request got no proper reply.
#[derive(Debug)]
pub(super) enum ClientError {
    /// No daemon listens on the socket.
    Connect(PathBuf, io::Error),
    /// The daemon refused the request.
    Refused(Box<ErrorBody>),
    /// The connection broke, or the reply broke the protocol: a sentence.
    Broken(String),
    /// The request's body could not be read, or the reply could not be written.
    Io(io::Error),
}

impl ClientError {
    /// Converts the error to the failure of a verb whose device is `subject`.
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
    /// A client of the daemon that listens on `socket`. It connects with the first request.
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Sends `GET path` and reads a JSON reply.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(Method::GET, path, Bytes::new()).await
    }

    /// Sends `method path` with a JSON body and ignores the reply's body. Returns the daemon's note
    /// about the request, if any.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Option<String>, ClientError> {
        let reply = self.request(method, path, JSON, Full::new(encode(body)?)).await?;
        Ok(note(&reply))
    }

    /// Sends `method path` with a JSON body and reads a JSON reply.
    pub(super) async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.json(method, path, encode(body)?).await
    }

    /// Sends `POST path` with streamed text and reads a JSON reply. Prints the daemon's note, if
    /// any, to standard error unless `quiet`.
    pub(super) async fn post_text<T, B>(
        &self,
        path: &str,
        body: B,
        quiet: bool,
    ) -> Result<T, ClientError>
    where
        T: DeserializeOwned,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BodyError>,
    {
        let response = self.request(Method::POST, path, "text/plain", body).await?;
        if let Some(note) = note(&response).filter(|_| !quiet) {
            // Indented like everything that is added to dmsetup's own output.
            super::terminal::complain(&format!("  {note}\n"));
        }
        self.decode(path, response).await
    }

    /// Sends `GET path` and passes the reply to `sink` as it arrives.
    pub(super) async fn download(
        &self,
        path: &str,
        sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        let response = self.request(Method::GET, path, JSON, Full::new(Bytes::new())).await?;
        self.copy(path, response, sink).await
    }

    /// Sends `POST path` with a JSON body and passes the reply to `sink` as it arrives.
    pub(super) async fn download_of(
        &self,
        path: &str,
        body: &impl Serialize,
        sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        let response = self.request(Method::POST, path, JSON, Full::new(encode(body)?)).await?;
        self.copy(path, response, sink).await
    }

    /// Sends `POST path` with streamed text and passes the reply to `sink` as it arrives.
    pub(super) async fn download_of_text<B>(
        &self,
        path: &str,
        body: B,
        sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), ClientError>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BodyError>,
    {
        let response = self.request(Method::POST, path, "text/plain", body).await?;
        self.copy(path, response, sink).await
    }

    async fn copy(
        &self,
        path: &str,
        response: Response<Incoming>,
        mut sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), ClientError> {
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

    /// Sends a request. `Ok` is a reply with a status of 2xx.
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
        // The request that waits for its reply gets the connection's errors as well, so they are
        // not lost.
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

    /// Builds a sentence from an error and its sources, which hyper does not print together.
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

/// The daemon's note about a request.
fn note(reply: &Response<Incoming>) -> Option<String> {
    let note = reply.headers().get(NOTE_HEADER)?.to_str().ok()?;
    Some(note.to_owned())
}

/// Encodes a body; `()` becomes an empty body.
fn encode<T: Serialize>(body: &T) -> Result<Bytes, ClientError> {
    if size_of::<T>() == 0 {
        return Ok(Bytes::new());
    }
    let encoded = serde_json::to_vec(body);
    encoded
        .map(Bytes::from)
        .map_err(|error| ClientError::Broken(format!("Cannot write the request: {error}")))
}
