//! The last place where an error lives: turns failures into answers, and lets nobody forge one.
//!
//! [`RespondLayer`] stands near the top of a stack, under telemetry. It
//!
//! - answers every error from further in as the [failure table](crate::failure) says, so that what stands
//!   outside is infallible;
//! - gives the answers that layers further in made by themselves (a refusal, say) their body;
//! - removes `x-mesh-reason` and `x-mesh-detail` from every request, and from every response that neither
//!   the mesh made nor a verified sidecar sent; so an application's 503 and the mesh's 503 are never
//!   confused. What a verified sidecar explains is kept in [`Facts::remote_failure`] and goes no further;
//! - refuses requests whose headers are too large ([`MAX_HEADER_BYTES`]);
//! - explains itself in `x-mesh-detail` to callers that are verified sidecars, and to nobody else.
//!
//! Readiness: passes through; an error of the inner service's readiness becomes the answer to the next call.
//! Reads: the connection and [`Facts::upstream`]. Writes: [`Facts::set_failure`],
//! [`Facts::set_remote_failure`]; inserts [`Facts`] where there are none.
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_mesh_core::failure::{Failure, FailureCode};
//! use tower_mesh_core::respond::RespondLayer;
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let failing = service_fn(|_: Request<()>| async {
//!     Err::<Response<Full<Bytes>>, _>(Failure::new(FailureCode::ConnectFailed))
//! });
//! let service = ServiceBuilder::new().layer(RespondLayer::with_text()).service(failing);
//! let response = service.oneshot(Request::new(())).await.unwrap();
//! assert_eq!(response.status(), 503);
//! assert_eq!(response.headers()["x-mesh-reason"], "connect_failed");
//! # });
//! ```

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response, header};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::body::BoxError;
use crate::facts::{Direction, Facts};
use crate::failure::{DETAIL_HEADER, Failure, FailureCode, REASON_HEADER, is_grpc_type};

/// The largest URI and headers of a request, in bytes: Istio's default.
pub const MAX_HEADER_BYTES: usize = 60 * 1024;

/// Makes [`Respond`] services. See the [module](self).
pub struct RespondLayer<R> {
    body: fn(&'static str) -> R,
    max_head: usize,
}

/// Answers errors. See the [module](self).
pub struct Respond<S, R> {
    inner: S,
    body: fn(&'static str) -> R,
    max_head: usize,
    failed: Option<Failure>,
}

pin_project! {
    /// The answer of a [`Respond`] service.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, R> {
        #[pin]
        state: State<F>,
        facts: Facts,
        grpc: bool,
        body: fn(&'static str) -> R,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F> {
        Inner { #[pin] future: F },
        Failed { failure: Failure },
    }
}

impl<R: Default> RespondLayer<R> {
    /// Answers with empty bodies, for any body type.
    pub const fn new() -> Self {
        Self { body: |_| R::default(), max_head: MAX_HEADER_BYTES }
    }
}

impl<R: Default> Default for RespondLayer<R> {
    fn default() -> Self {
        Self::new()
    }
}

impl<R: From<Bytes>> RespondLayer<R> {
    /// Answers with a line of text that tells the failure's kind, never its detail. gRPC answers have no
    /// body.
    pub const fn with_text() -> Self {
        Self { body: |text| R::from(Bytes::from_static(text.as_bytes())), max_head: MAX_HEADER_BYTES }
    }
}

impl<R> RespondLayer<R> {
    /// Allows a request's URI and headers this many bytes, in place of [`MAX_HEADER_BYTES`]; beyond it the
    /// answer is 431 `too_large`.
    #[must_use]
    pub const fn max_header_bytes(mut self, bytes: usize) -> Self {
        self.max_head = bytes;
        self
    }
}

impl<S, R> Layer<S> for RespondLayer<R> {
    type Service = Respond<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        Respond { inner, body: self.body, max_head: self.max_head, failed: None }
    }
}

impl<S, R, A> Service<Request<A>> for Respond<S, R>
where
    S: Service<Request<A>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    R: Default,
{
    type Response = Response<R>;
    type Error = Infallible;
    type Future = ResponseFuture<S::Future, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if let Err(error) = ready!(self.inner.poll_ready(cx)) {
            self.failed = Some(Failure::of(error.into()));
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<A>) -> Self::Future {
        let facts = Facts::of_or_insert(&mut request);
        let (size, forged, grpc) = measure(&request);
        if forged {
            strip(request.headers_mut());
        }
        let too_large = (size > self.max_head).then(|| {
            let detail = format!("{size} bytes of URI and headers, where {} are allowed", self.max_head);
            Failure::new(FailureCode::HeadersTooLarge).detail(detail)
        });
        let state = match self.failed.take().or(too_large) {
            Some(failure) => State::Failed { failure },
            None => State::Inner { future: self.inner.call(request) },
        };
        ResponseFuture { state, facts, grpc, body: self.body }
    }
}

impl<F, R, E> Future for ResponseFuture<F, R>
where
    F: Future<Output = Result<Response<R>, E>>,
    E: Into<BoxError>,
    R: Default,
{
    type Output = Result<Response<R>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let failure = match this.state.project() {
            StateProj::Failed { failure } => failure.clone(),
            StateProj::Inner { future } => match ready!(future.poll(cx)) {
                Ok(response) => {
                    return Poll::Ready(Ok(finish(response, this.facts, *this.grpc, *this.body)));
                }
                Err(error) => Failure::of(error.into()),
            },
        };
        let response = failure.response(*this.grpc);
        Poll::Ready(Ok(finish(response, this.facts, *this.grpc, *this.body)))
    }
}

fn finish<R>(
    mut response: Response<R>,
    facts: &Facts,
    grpc: bool,
    body: fn(&'static str) -> R,
) -> Response<R> {
    let Some(failure) = response.extensions().get::<Failure>().cloned() else {
        receive(response.headers_mut(), facts);
        return response;
    };
    facts.set_failure(failure.clone());
    let text = failure.spec().body;
    let headers = response.headers_mut();
    // Only answers without a body of their own get one; an answer of the router's may have one.
    let bare = !headers.contains_key(header::CONTENT_TYPE) && !headers.contains_key(header::LOCATION);
    let tell = failure.code() != FailureCode::DirectResponse;
    if facts.connection().direction() == Direction::Inbound
        && facts.peer().is_some()
        && let Some(detail) = failure.detail_header()
    {
        headers.insert(DETAIL_HEADER, detail);
    }
    if bare && tell && !grpc {
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
        *response.body_mut() = body(text);
    }
    response
}

/// What a request's URI and headers come to, in bytes, whether there is something to [`strip`], and whether it is a gRPC
/// call: one look at each header.
#[inline]
fn measure<A>(request: &Request<A>) -> (usize, bool, bool) {
    let mut size = request.uri().path_and_query().map_or(0, |p| p.as_str().len());
    let mut forged = false;
    let mut grpc = None;
    for (name, value) in request.headers() {
        size += name.as_str().len() + value.len();
        forged |= is_own(name);
        if grpc.is_none() && *name == header::CONTENT_TYPE {
            grpc = Some(is_grpc_type(value));
        }
    }
    (size, forged, grpc.unwrap_or(false))
}

fn is_own(name: &HeaderName) -> bool {
    *name == REASON_HEADER || *name == DETAIL_HEADER
}

/// Removes what nobody but the mesh may say.
#[inline]
fn strip(headers: &mut HeaderMap) {
    headers.remove(REASON_HEADER);
    headers.remove(DETAIL_HEADER);
}

/// Believes the failure headers of a response only from a verified sidecar.
#[inline]
fn receive(headers: &mut HeaderMap, facts: &Facts) {
    if !headers.keys().any(is_own) {
        return;
    }
    let verified = facts.connection().direction() == Direction::Outbound
        && facts.upstream().is_some_and(|u| u.peer.is_some());
    let code = headers.get(REASON_HEADER).and_then(FailureCode::from_header).filter(|_| verified);
    let Some(code) = code else {
        strip(headers);
        return;
    };
    let mut failure = Failure::new(code);
    if let Some(detail) = headers.remove(DETAIL_HEADER) {
        let text = String::from_utf8_lossy(detail.as_bytes());
        failure = failure.detail(text.chars().take(crate::failure::MAX_DETAIL).collect::<String>());
    }
    facts.set_remote_failure(failure);
}

impl<R> Clone for RespondLayer<R> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<R> Copy for RespondLayer<R> {}
impl<R> fmt::Debug for RespondLayer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RespondLayer")
    }
}

/// A clone has not seen the inner service fail.
impl<S: Clone, R> Clone for Respond<S, R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), body: self.body, max_head: self.max_head, failed: None }
    }
}
impl<S: fmt::Debug, R> fmt::Debug for Respond<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Respond").field("inner", &self.inner).finish_non_exhaustive()
    }
}
impl<F, R> fmt::Debug for ResponseFuture<F, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
