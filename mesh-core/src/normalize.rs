//! Brings paths into their normal form on entry, so that policy, logs and the application see the same bytes.
//!
//! [`NormalizeLayer`] stands before whatever decides by path. What it changes is what travels on: a rule
//! about `/admin` cannot be got around by `/x/../admin`. See [`normal_path`] for what is done.
//!
//! Readiness: may refuse (what readiness reserved is given back). Reads: nothing. Writes:
//! [`Facts::set_failure`], where facts are there. Answers: `bad_request` 400 to a path that has no normal
//! form.
//!
//! ```
//! use http::{Request, Response};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_mesh_core::normalize::NormalizeLayer;
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let echo = service_fn(|r: Request<()>| async move {
//!     Ok::<_, std::convert::Infallible>(Response::new(r.uri().to_string()))
//! });
//! let service = ServiceBuilder::new().layer(NormalizeLayer::new()).service(echo);
//!
//! let request = Request::get("/x/%2e%2e/admin?q=1").body(()).unwrap();
//! assert_eq!(service.clone().oneshot(request).await.unwrap().body(), "/admin?q=1");
//! let request = Request::get("/../admin").body(()).unwrap();
//! assert_eq!(service.oneshot(request).await.unwrap().status(), 400);
//! # });
//! ```

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::uri::PathAndQuery;
use http::{Method, Request, Response, Uri};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::facts::Facts;
use crate::failure::{Failure, FailureCode, is_grpc};
use crate::normal::normal_path;

/// Makes [`Normalize`] services. See the [module](self).
#[derive(Debug, Clone, Copy, Default)]
pub struct NormalizeLayer(());

/// Normalizes paths. See the [module](self).
#[derive(Debug, Clone)]
pub struct Normalize<S> {
    inner: S,
}

pin_project! {
    /// The answer of a [`Normalize`] service.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, R> {
        #[pin]
        state: State<F, R>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = StateProj]
    enum State<F, R> {
        Inner { #[pin] future: F },
        Refused { response: Option<Response<R>> },
    }
}

impl NormalizeLayer {
    /// A layer; there is nothing to choose.
    pub const fn new() -> Self {
        Self(())
    }
}

impl<S> Layer<S> for NormalizeLayer {
    type Service = Normalize<S>;

    fn layer(&self, inner: S) -> Normalize<S> {
        Normalize { inner }
    }
}

/// Puts the normal form of the path in place of the path; leaves everything else as it is.
///
/// # Errors
/// `bad_request` where there is none.
#[inline]
pub fn normalize(method: &Method, uri: &mut Uri) -> Result<(), Failure> {
    // An authority alone, or a host alone with its implied path.
    if *method == Method::CONNECT {
        return Ok(());
    }
    let bad = |why: &dyn std::fmt::Display| Failure::new(FailureCode::BadRequest).detail(why.to_string());
    let path = match normal_path(uri.path()).map_err(|e| bad(&e))? {
        Cow::Borrowed(_) => return Ok(()),
        Cow::Owned(path) => path,
    };
    let with_query = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(with_query).map_err(|e| bad(&e))?);
    *uri = Uri::from_parts(parts).map_err(|e| bad(&e))?;
    Ok(())
}

impl<S, A, R> Service<Request<A>> for Normalize<S>
where
    S: Service<Request<A>, Response = Response<R>> + Clone,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<A>) -> Self::Future {
        let method = request.method().clone();
        let state = match normalize(&method, request.uri_mut()) {
            Ok(()) => State::Inner { future: self.inner.call(request) },
            Err(failure) => {
                if let Some(facts) = Facts::of(&request) {
                    facts.set_failure(failure.clone());
                }
                // Gives back what `poll_ready` reserved.
                let fresh = self.inner.clone();
                self.inner = fresh;
                State::Refused { response: Some(failure.response(is_grpc(request.headers()))) }
            }
        };
        ResponseFuture { state }
    }
}

impl<F, R, E> Future for ResponseFuture<F, R>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Default,
{
    type Output = Result<Response<R>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Inner { future } => future.poll(cx),
            StateProj::Refused { response } => Poll::Ready(Ok(response.take().unwrap_or_default())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_travels_on() {
        let table = [
            ("/a/b?x=/../y", Some("/a/b?x=/../y")),
            ("/a/../b?x=1", Some("/b?x=1")),
            ("http://reviews:9080/a/./b", Some("http://reviews:9080/a/b")),
            ("/a/..", Some("/")),
            ("*", Some("*")),
            ("/..", None),
            ("/a/../../etc", None),
        ];
        for (uri, want) in table {
            let mut found: Uri = uri.parse().unwrap();
            let result = normalize(&Method::GET, &mut found);
            assert_eq!(result.ok().map(|()| found.to_string()).as_deref(), want, "{uri}");
        }
        let mut connect: Uri = "reviews:9080".parse().unwrap();
        assert!(normalize(&Method::CONNECT, &mut connect).is_ok());
        assert_eq!(connect.to_string(), "reviews:9080");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_gives_the_permit_back() {
        use std::future::poll_fn;
        use tower::limit::ConcurrencyLimitLayer;

        let ok = tower::service_fn(|_: Request<()>| async { Ok::<_, Failure>(Response::new(String::new())) });
        let limited = ConcurrencyLimitLayer::new(1).layer(ok);
        let mut a = NormalizeLayer::new().layer(limited);
        let mut b = a.clone();
        poll_fn(|cx| a.poll_ready(cx)).await.unwrap();
        let refused = a.call(Request::get("/..").body(()).unwrap()).await.unwrap();
        assert_eq!(
            (refused.status().as_u16(), refused.headers()["x-mesh-reason"].as_bytes()),
            (400, &b"bad_request"[..])
        );
        let ready = tokio::time::timeout(std::time::Duration::ZERO, poll_fn(|cx| b.poll_ready(cx))).await;
        assert!(ready.is_ok(), "the permit of the refused clone is still taken");
    }
}
