//! Faults put in on purpose, to see what callers do about them: delays, and errors in place of answers.
//!
//! Which fault applies is the matched rule's word ([`RoutePolicy::fault`]), or the layer's own where no
//! router stands before it. Delay and abort are drawn independently; with both, the delay comes first. The
//! layer stands outside of timeout and retries, as in Istio: neither hides an injected fault.
//!
//! Readiness: may refuse (an abort gives back what readiness reserved; a delayed request keeps its
//! reservation). Reads: [`Facts::route`]. Writes: [`Facts::set_failure`] for an abort. Answers:
//! `fault_injected` with the status that the rule names.
//!
//! ```
//! use http::{Request, Response};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_mesh_route::fault::{Abort, AbortStatus, Fault, FaultLayer, FaultPolicy, Percentage};
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let always = FaultPolicy {
//!     abort: Some(Abort {
//!         percentage: Percentage::new(100.0).unwrap(),
//!         status: AbortStatus::Http(http::StatusCode::IM_A_TEAPOT),
//!     }),
//!     ..FaultPolicy::default()
//! };
//! let service = ServiceBuilder::new().layer(FaultLayer::fixed(always)).service(service_fn(
//!     |_: Request<()>| async { Ok::<_, std::convert::Infallible>(Response::new(String::from("never"))) },
//! ));
//! let response = service.oneshot(Request::new(())).await.unwrap();
//! assert_eq!(response.status(), 418);
//! assert_eq!(response.headers()["x-mesh-reason"], "fault_injected");
//! # });
//! ```

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{HeaderValue, Request, Response, StatusCode};
use mesh_core::facts::Facts;
use mesh_core::failure::{Failure, FailureCode, GrpcCode, is_grpc};
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower_layer::Layer;
use tower_service::Service;

use crate::policy::RoutePolicy;

/// The faults of a rule. The default injects none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FaultPolicy {
    /// Waits before going on.
    pub delay: Option<Delay>,
    /// Answers instead of going on.
    pub abort: Option<Abort>,
}

/// A delay for a share of the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delay {
    /// The share.
    pub percentage: Percentage,
    /// How long.
    pub duration: Duration,
}

/// An answer in place of the real one, for a share of the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abort {
    /// The share.
    pub percentage: Percentage,
    /// What is answered.
    pub status: AbortStatus,
}

/// What an abort answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbortStatus {
    /// An HTTP status; a gRPC call gets the gRPC status that stands for it.
    Http(StatusCode),
    /// A gRPC status; a call that is no gRPC gets the HTTP status that stands for it.
    Grpc(GrpcCode),
}

/// A share of requests, in millionths: Istio's smallest is 0.0001%.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percentage(u32);

/// What happens to one request.
#[derive(Debug, Clone, Default)]
pub struct Decision {
    /// Wait this long first.
    pub delay: Option<Duration>,
    /// Then answer this.
    pub abort: Option<AbortStatus>,
}

/// Makes [`Fault`] services. See the [module](self).
#[derive(Debug, Clone)]
pub struct FaultLayer {
    fixed: Option<Arc<FaultPolicy>>,
    draw: fn() -> u64,
}

/// Injects faults. See the [module](self).
#[derive(Debug, Clone)]
pub struct Fault<S> {
    inner: S,
    fixed: Option<Arc<FaultPolicy>>,
    draw: fn() -> u64,
}

pin_project! {
    /// The answer of a [`Fault`] service.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, A> where S: Service<Request<A>> {
        #[pin]
        state: State<S::Future, Delayed<S, A>>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, D> {
        Inner { #[pin] future: F },
        // Boxed: a fault is rare, and a timer with a request would make every future that large.
        Delayed { delayed: Box<D> },
        Abort { failure: Option<(Failure, AbortStatus, bool)> },
    }
}

struct Delayed<S, A> {
    sleep: Pin<Box<Sleep>>,
    /// What comes then, unless it is an abort.
    next: Option<(S, Request<A>)>,
    abort: Option<(Failure, AbortStatus, bool)>,
}

impl Percentage {
    const WHOLE: u32 = 1_000_000;

    /// A percentage, 0 to 100; `None` for anything else.
    pub fn new(percent: f64) -> Option<Self> {
        // In range, so that the cast is exact enough: ten thousand parts a percent.
        (0.0..=100.0).contains(&percent).then(|| Self((percent * 10_000.0).round() as u32))
    }

    /// Whether a request with this random draw belongs to the share.
    pub const fn holds(self, draw: u64) -> bool {
        draw % (Self::WHOLE as u64) < self.0 as u64
    }
}

impl AbortStatus {
    /// The HTTP status for a call that is no gRPC.
    pub fn http(self) -> StatusCode {
        match self {
            Self::Http(status) => status,
            Self::Grpc(GrpcCode(code)) => match code {
                0 => StatusCode::OK,
                1 => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
                3 | 9 | 11 => StatusCode::BAD_REQUEST,
                4 => StatusCode::GATEWAY_TIMEOUT,
                5 => StatusCode::NOT_FOUND,
                6 | 10 => StatusCode::CONFLICT,
                7 => StatusCode::FORBIDDEN,
                8 => StatusCode::TOO_MANY_REQUESTS,
                12 => StatusCode::NOT_IMPLEMENTED,
                14 => StatusCode::SERVICE_UNAVAILABLE,
                16 => StatusCode::UNAUTHORIZED,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            },
        }
    }

    /// The gRPC status for a gRPC call: gRPC's own table of what HTTP statuses stand for.
    pub fn grpc(self) -> GrpcCode {
        match self {
            Self::Grpc(code) => code,
            Self::Http(status) => match status.as_u16() {
                400 => GrpcCode::INTERNAL,
                401 => GrpcCode::UNAUTHENTICATED,
                403 => GrpcCode::PERMISSION_DENIED,
                404 => GrpcCode::UNIMPLEMENTED,
                429 | 502 | 503 | 504 => GrpcCode::UNAVAILABLE,
                _ => GrpcCode(2),
            },
        }
    }
}

/// A gRPC status by its name, such as `UNAVAILABLE`.
pub fn grpc_code(name: &str) -> Option<GrpcCode> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    NAMES.iter().zip(0..).find(|(known, _)| **known == name).map(|(_, code)| GrpcCode(code))
}

impl FaultPolicy {
    /// Whether it injects nothing.
    pub const fn is_empty(&self) -> bool {
        self.delay.is_none() && self.abort.is_none()
    }

    /// Decides about one request; the draws are independent. Pure.
    pub fn decide(&self, delay_draw: u64, abort_draw: u64) -> Decision {
        Decision {
            delay: self.delay.filter(|d| d.percentage.holds(delay_draw)).map(|d| d.duration),
            abort: self.abort.filter(|a| a.percentage.holds(abort_draw)).map(|a| a.status),
        }
    }
}

impl FaultLayer {
    /// Injects what the matched rule says.
    pub fn new() -> Self {
        Self { fixed: None, draw: random }
    }

    /// Injects `policy` into every request, whatever the route says.
    pub fn fixed(policy: FaultPolicy) -> Self {
        Self { fixed: Some(Arc::new(policy)), draw: random }
    }

    /// Takes random draws from elsewhere, for tests.
    #[must_use]
    pub fn draw(mut self, draw: fn() -> u64) -> Self {
        self.draw = draw;
        self
    }
}

impl Default for FaultLayer {
    fn default() -> Self {
        Self::new()
    }
}

fn random() -> u64 {
    fastrand::u64(..)
}

impl<S> Layer<S> for FaultLayer {
    type Service = Fault<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Fault { inner, fixed: self.fixed.clone(), draw: self.draw }
    }
}

impl<S, A, R> Service<Request<A>> for Fault<S>
where
    S: Service<Request<A>, Response = Response<R>> + Clone,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = ResponseFuture<S, A>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let facts = Facts::of(&request);
        let policy = match &self.fixed {
            Some(fixed) => Some(&**fixed),
            None => facts.and_then(RoutePolicy::of).map(|p| &p.fault),
        };
        let decision = match policy {
            Some(policy) if !policy.is_empty() => policy.decide((self.draw)(), (self.draw)()),
            _ => Decision::default(),
        };
        let abort = decision.abort.map(|status| {
            let failure = failure(status, decision.delay, facts);
            if let Some(facts) = facts {
                facts.set_failure(failure.clone());
            }
            (failure, status, is_grpc(request.headers()))
        });
        // The next caller starts from a clone: what was reserved goes along with a delayed request, and is
        // given back when there is none.
        let state = match (decision.delay, abort) {
            (None, None) => State::Inner { future: self.inner.call(request) },
            (None, Some(abort)) => {
                let fresh = self.inner.clone();
                self.inner = fresh;
                State::Abort { failure: Some(abort) }
            }
            (Some(delay), abort) => {
                let fresh = self.inner.clone();
                let ready = std::mem::replace(&mut self.inner, fresh);
                let next = abort.is_none().then_some((ready, request));
                let sleep = Box::pin(tokio::time::sleep(delay));
                State::Delayed { delayed: Box::new(Delayed { sleep, next, abort }) }
            }
        };
        ResponseFuture { state }
    }
}

fn failure(status: AbortStatus, delay: Option<Duration>, facts: Option<&Facts>) -> Failure {
    let flags = match delay {
        Some(delay) => format!("abort after a delay of {delay:?} (DI,FI)"),
        None => "abort (FI)".to_owned(),
    };
    let failure = Failure::new(FailureCode::FaultInjected).status(status.http()).detail(flags);
    match facts.and_then(Facts::route).and_then(|route| route.resource.clone()) {
        Some(resource) => failure.resource(resource),
        None => failure,
    }
}

fn answer<R: Default>(failure: &Failure, status: AbortStatus, grpc: bool) -> Response<R> {
    let mut response = failure.response(grpc);
    if grpc {
        let code = HeaderValue::from(u16::from(status.grpc().0));
        response.headers_mut().insert("grpc-status", code);
    }
    response
}

impl<S, A, R> Future for ResponseFuture<S, A>
where
    S: Service<Request<A>, Response = Response<R>>,
    R: Default,
{
    type Output = Result<Response<R>, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let future = match self.as_mut().project().state.project() {
                StateProj::Inner { future } => return future.poll(cx),
                StateProj::Abort { failure } => match failure.take() {
                    Some((failure, status, grpc)) => {
                        return Poll::Ready(Ok(answer(&failure, status, grpc)));
                    }
                    None => return Poll::Pending,
                },
                StateProj::Delayed { delayed } => {
                    ready!(delayed.sleep.as_mut().poll(cx));
                    if let Some((failure, status, grpc)) = delayed.abort.take() {
                        return Poll::Ready(Ok(answer(&failure, status, grpc)));
                    }
                    match delayed.next.take() {
                        Some((mut service, request)) => service.call(request),
                        None => return Poll::Pending,
                    }
                }
            };
            self.as_mut().project().state.set(State::Inner { future });
        }
    }
}

impl<S: Service<Request<A>>, A> fmt::Debug for ResponseFuture<S, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
