//! Ends a request that takes longer than its route allows.
//!
//! The time starts when the request arrives and covers everything: retries, their pauses and the answer's
//! body, as Istio's `timeout` does. A gRPC call's own `grpc-timeout` counts when it is shorter. A retry
//! never extends it.
//!
//! Readiness: passes through. Reads: [`RoutePolicy::timeout`](crate::policy::RoutePolicy) (where no route is
//! known, the layer's own), header `grpc-timeout`. Writes nothing. Errors: the inner service's; `timeout`, as
//! the service's error before the head of the answer, as the body's error after it.
//!
//! ```
//! use std::time::Duration;
//! use http::{Request, Response};
//! use mesh_core::body::{Body, BoxError};
//! use mesh_core::failure::{Failure, FailureCode};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_mesh_route::timeout::TimeoutLayer;
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
//! let never = service_fn(|_: Request<Body>| std::future::pending::<Result<Response<Body>, BoxError>>());
//! let service = ServiceBuilder::new().layer(TimeoutLayer::new(Some(Duration::from_secs(1)))).service(never);
//! let error = service.oneshot(Request::new(Body::empty())).await.unwrap_err();
//! assert_eq!(Failure::of(error).code(), FailureCode::Timeout);
//! # });
//! ```

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Request, Response};
use mesh_core::body::{Body, BoxError};
use mesh_core::clock::now;
use mesh_core::facts::Facts;
use mesh_core::failure::{Failure, is_grpc};
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep_until};
use tower_layer::Layer;
use tower_service::Service;

use crate::policy::RoutePolicy;

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Makes [`Timeout`] services. See the [module](self).
#[derive(Debug, Clone, Copy, Default)]
pub struct TimeoutLayer {
    own: Option<Duration>,
}

/// Ends requests that take too long. See the [module](self).
#[derive(Debug, Clone, Copy)]
pub struct Timeout<S> {
    inner: S,
    own: Option<Duration>,
}

pin_project! {
    /// The answer of a [`Timeout`] service.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F> {
        #[pin]
        future: F,
        #[pin]
        sleep: Option<Sleep>,
        limit: Duration,
    }
}

impl TimeoutLayer {
    /// A layer whose limit counts where no route is known; `None` is no limit.
    pub const fn new(limit: Option<Duration>) -> Self {
        Self { own: limit }
    }
}

impl<S> Layer<S> for TimeoutLayer {
    type Service = Timeout<S>;

    fn layer(&self, inner: S) -> Timeout<S> {
        Timeout { inner, own: self.own }
    }
}

/// Reads a `grpc-timeout`: at most eight digits and a unit (`H`, `M`, `S`, `m`, `u`, `n`). Anything else is
/// no limit.
pub fn grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let (unit, digits) = value.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(n * 3600),
        b'M' => Duration::from_secs(n * 60),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        b'u' => Duration::from_micros(n),
        b'n' => Duration::from_nanos(n),
        _ => return None,
    })
}

impl<S> Timeout<S> {
    fn limit<B>(&self, request: &Request<B>) -> Option<Duration> {
        let route = Facts::of(request).and_then(RoutePolicy::of).map_or(self.own, |r| r.timeout);
        let headers = request.headers();
        // Most heads have none, and to look at each name is less than to look one up.
        let call = headers.keys().any(|name| *name == GRPC_TIMEOUT) && is_grpc(headers);
        let call = if call { headers.get(GRPC_TIMEOUT).and_then(grpc_timeout) } else { None };
        match (route, call) {
            (Some(route), Some(call)) => Some(route.min(call)),
            (route, call) => route.or(call),
        }
    }
}

impl<S, B> Service<Request<B>> for Timeout<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture<S::Future> {
        let limit = self.limit(&request);
        // A limit beyond what the clock can tell is none.
        let deadline = limit.and_then(|limit| now().checked_add(limit));
        ResponseFuture {
            future: self.inner.call(request),
            sleep: deadline.map(sleep_until),
            limit: limit.unwrap_or_default(),
        }
    }
}

impl<F, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Response<Body>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Poll::Ready(result) = this.future.poll(cx) {
            return Poll::Ready(match (result, this.sleep.as_pin_mut()) {
                (Ok(response), Some(sleep)) => {
                    let (limit, deadline) = (*this.limit, sleep.deadline());
                    Ok(response.map(|body| body.until(deadline, limit)))
                }
                (result, _) => result.map_err(Into::into),
            });
        }
        let late = this.sleep.as_mut().as_pin_mut().is_some_and(|s| s.poll(cx).is_ready());
        if late { Poll::Ready(Err(Failure::too_late(*this.limit).into())) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http_body::Frame;
    use http_body_util::{BodyExt, StreamBody};
    use mesh_core::facts::MatchedRoute;
    use mesh_core::failure::FailureCode;
    use proptest::prelude::*;
    use std::sync::Arc;
    use tokio::time::Instant;
    use tower::ServiceExt;
    use tower_test::mock;

    fn route(timeout: Option<Duration>) -> Request<()> {
        let mut request = Request::new(());
        Facts::of_or_insert(&mut request).set_route(MatchedRoute {
            resource: None,
            name: "r".into(),
            cluster: None,
            policy: Arc::new(RoutePolicy { timeout, ..RoutePolicy::default() }),
        });
        request
    }

    fn grpc(timeout: &str) -> Request<()> {
        Request::get("/")
            .header("content-type", "application/grpc")
            .header("grpc-timeout", timeout)
            .body(())
            .unwrap()
    }

    #[test]
    fn the_shorter_of_route_and_call_counts() {
        let own = Some(Duration::from_secs(9));
        let layer = Timeout { inner: (), own };
        assert_eq!(layer.limit(&Request::new(())), own);
        assert_eq!(layer.limit(&route(Some(Duration::from_secs(2)))), Some(Duration::from_secs(2)));
        assert_eq!(layer.limit(&route(None)), None);
        assert_eq!(layer.limit(&grpc("5S")), Some(Duration::from_secs(5)));
        assert_eq!(layer.limit(&grpc("50S")), own);
        let mut plain = grpc("1S");
        plain.headers_mut().remove("content-type");
        assert_eq!(layer.limit(&plain), own);
        assert_eq!(Timeout { inner: (), own: None }.limit(&grpc("1m")), Some(Duration::from_millis(1)));
    }

    proptest! {
        #[test]
        fn any_grpc_timeout_is_read_or_refused(value in proptest::collection::vec(any::<u8>(), 0..12)) {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                let _ = grpc_timeout(&value);
            }
        }
    }

    #[test]
    fn grpc_timeouts_are_strict() {
        for bad in ["", "S", "123456789S", "1", "1s", "-1S", "1.5S"] {
            assert_eq!(grpc_timeout(&HeaderValue::from_str(bad).unwrap()), None, "{bad}");
        }
        let longest = grpc_timeout(&HeaderValue::from_static("99999999H")).unwrap();
        assert_eq!(longest.as_secs(), 99_999_999 * 3600);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_in_time_wins_and_the_body_is_timed() {
        let (inner, mut handle) = mock::pair::<Request<()>, Response<Body>>();
        let service = TimeoutLayer::new(Some(Duration::from_secs(1))).layer(inner);
        let started = Instant::now();
        let answer = tokio::spawn(service.oneshot(Request::new(())));
        let (_, send) = handle.next_request().await.unwrap();
        let endless = StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, BoxError>>());
        send.send_response(Response::new(Body::new(endless)));
        let body = answer.await.unwrap().unwrap().into_body();
        assert_eq!(Failure::of(body.collect().await.unwrap_err()).code(), FailureCode::Timeout);
        assert_eq!(started.elapsed(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn both_at_once_is_an_answer_and_errors_pass() {
        let at_once =
            tower::service_fn(|_: Request<()>| async { Ok::<_, BoxError>(Response::new(Body::empty())) });
        let layer = TimeoutLayer::new(Some(Duration::ZERO));
        assert!(layer.layer(at_once).oneshot(Request::new(())).await.is_ok());
        let failing = tower::service_fn(|_: Request<()>| async {
            Err::<Response<Body>, _>(Failure::new(FailureCode::UpstreamReset))
        });
        let error = layer.layer(failing).oneshot(Request::new(())).await.unwrap_err();
        assert_eq!(Failure::of(error).code(), FailureCode::UpstreamReset);
    }
}
