//! Reads requests and writes refusals. Every answer outside 2xx has an [`ErrorBody`], also those
//! that the HTTP library would otherwise write by itself.
//!
//! Contract: reads bodies up to a size and a time limit; no input of a client makes it panic.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use blkswitch_io::device::Interrupt;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use utoipa::IntoResponses;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};

use crate::daemon::failure::Failure;
use crate::daemon::server::accept::Peer;
use crate::protocol::{Errno, ErrorBody, NOTE_HEADER, TABLE_MAX_BYTES, object};

/// Longest JSON body: a table of which JSON escapes every second byte, and the other fields.
pub const JSON_MAX_BYTES: usize = 2 * TABLE_MAX_BYTES;
/// Time limit for a JSON body. A client has it ready when it begins to send.
pub const JSON_TIME: Duration = Duration::from_secs(30);

/// How long a request waits for one of the permits of operations that may take forever.
pub const PLACE_TIME: Duration = Duration::from_secs(10);

/// A refusal, as an answer to a request.
#[derive(Debug)]
pub struct Refused(pub Box<ErrorBody>);

impl From<ErrorBody> for Refused {
    fn from(body: ErrorBody) -> Refused {
        Refused(Box::new(body))
    }
}

impl Refused {
    /// The request does not belong to the protocol, so no ioctl has failed.
    fn malformed(errno: Errno, reason: impl Into<String>) -> Refused {
        Failure::new(errno, reason).of("", None).into()
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.errno.http_status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, axum::Json(*self.0)).into_response()
    }
}

/// Every status that a refusal may have, because errors of files and servers can have any errno.
impl IntoResponses for Refused {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let mut names: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
        for errno in Errno::ALL {
            names.entry(errno.http_status()).or_default().push(errno.name());
        }
        let answer = |(status, names): (u16, Vec<&str>)| {
            let schema = Ref::from_schema_name("ErrorBody");
            let content = ContentBuilder::new().schema(Some(schema)).build();
            let response = ResponseBuilder::new()
                .description(names.join(", "))
                .content("application/json", content)
                .build();
            (status.to_string(), RefOr::T(response))
        };
        names.into_iter().map(answer).collect()
    }
}

/// Turns a failure into an answer; `ioctl` is libdm's name of the ioctl that has failed.
pub fn refuse(ioctl: &'static str, minor: Option<u32>) -> impl FnOnce(Failure) -> Refused {
    move |failure| failure.of(ioctl, minor).into()
}

/// Runs `work` on a thread that may block.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refused> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| {
        tracing::error!(%error, "a control operation ended early");
        Refused::malformed(Errno::Eio, "the daemon failed while doing this: see its log")
    })
}

/// Runs `work`, which may wait for requests in flight. If the client leaves, the wait is given up.
pub async fn interruptible<T: Send + 'static>(
    work: impl FnOnce(&Interrupt) -> T + Send + 'static,
) -> Result<T, Refused> {
    /// Gives up when it is dropped. That happens with the request, answered or not.
    struct GiveUp(Interrupt);
    impl Drop for GiveUp {
        fn drop(&mut self) {
            self.0.give_up();
        }
    }
    let interrupt = Interrupt::default();
    let _client = GiveUp(interrupt.clone());
    blocking(move || work(&interrupt)).await
}

/// Runs `work`, which may wait for other machines, with one of the permits for that.
///
/// Errors: no permit was free within [`PLACE_TIME`].
pub async fn opening<T: Send + 'static>(
    places: &Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refused> {
    let busy = "too many tables wait for their files or servers already: see info";
    permitted(places, busy, work).await
}

/// Runs `work` on a thread that may block, with one of the permits of `places`.
///
/// Errors: no permit was free within [`PLACE_TIME`]; `busy` is the reason.
pub async fn permitted<T: Send + 'static>(
    places: &Arc<Semaphore>,
    busy: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refused> {
    let place = tokio::time::timeout(PLACE_TIME, places.clone().acquire_owned()).await;
    let Ok(Ok(place)) = place else { return Err(Refused::malformed(Errno::Ebusy, busy)) };
    blocking(move || {
        let _place = place;
        work()
    })
    .await
}

/// The `{name}` of a route.
pub struct Name(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let refuse = |error: PathRejection| Refused::malformed(Errno::Einval, error.body_text());
        path.map(|Path(name)| Name(name)).map_err(refuse)
    }
}

/// The query parameters of a request.
pub struct QueryParams<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for QueryParams<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refused> {
        let query = Query::<T>::try_from_uri(&parts.uri);
        query.map(|Query(query)| QueryParams(query)).map_err(|error| {
            let query = parts.uri.query().unwrap_or_default();
            Refused::malformed(Errno::Einval, format!("the query '{query}': {}", error.body_text()))
        })
    }
}

/// The process that has sent the request; `None` if the kernel does not tell.
pub struct Asker(pub Option<Peer>);

impl<S: Send + Sync> FromRequestParts<S> for Asker {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Asker(parts.extensions.get().copied()))
    }
}

/// A JSON body. An empty body counts as `{}`.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refused> {
        let text = read_body(request.into_body(), JSON_MAX_BYTES).await?;
        let text = if text.is_empty() { b"{}".as_slice() } else { &text };
        let mut reader = serde_json::Deserializer::from_slice(text);
        let read = object(&mut reader).and_then(|read| reader.end().map(|()| read));
        read.map(Json).map_err(|error| {
            let reason = format!("the body is not what this route takes: {error}");
            Refused::malformed(Errno::Einval, reason)
        })
    }
}

/// No body. A body that comes all the same is read and ignored: a client takes it for a failure if
/// the connection is closed before it has sent everything.
pub struct NoBody;

impl<S: Send + Sync> FromRequest<S> for NoBody {
    type Rejection = Refused;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refused> {
        read_body(request.into_body(), JSON_MAX_BYTES).await.map(|_| NoBody)
    }
}

async fn read_body(body: Body, most: usize) -> Result<Bytes, Refused> {
    let collected = tokio::time::timeout(JSON_TIME, Limited::new(body, most).collect()).await;
    match collected {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(Refused::malformed(Errno::E2big, format!("the body is longer than {most} bytes")))
        }
        Ok(Err(error)) => {
            Err(Refused::malformed(Errno::Einval, format!("the body did not arrive: {error}")))
        }
        Err(_) => {
            let reason = format!("the body was not there after {} seconds", JSON_TIME.as_secs());
            Err(Refused::malformed(Errno::Etimedout, reason))
        }
    }
}

/// Answers a request for a route that does not exist.
pub async fn no_such_route(request: Request) -> Refused {
    let reason = format!("there is no route {} {}", request.method(), request.uri().path());
    Refused::malformed(Errno::Enoent, reason)
}

/// Answers a request with a method that the route does not have.
pub async fn no_such_method(request: Request) -> Response {
    let reason = format!("the route {} does not take {}", request.uri().path(), request.method());
    let mut response = Refused::malformed(Errno::Eopnotsupp, reason).into_response();
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}

/// The header of [`NOTE_HEADER`].
const NOTE: HeaderName = HeaderName::from_static(NOTE_HEADER);

/// The headers of an answer; they carry `note` if there is one.
pub fn note_header(note: Option<String>) -> HeaderMap {
    let value = note.and_then(|note| HeaderValue::from_str(&note).ok());
    value.into_iter().map(|note| (NOTE, note)).collect()
}

/// An answer with a text body, which is produced as the client reads it.
pub fn text(content_type: &'static str, body: Body) -> Response {
    ([(CONTENT_TYPE, content_type)], body).into_response()
}
