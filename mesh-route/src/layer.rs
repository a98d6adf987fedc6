//! The router as a layer: decides once where a request goes, and lets the layers behind it act on it.
//!
//! [`Route`] brings the path into its normal form, parses the authority (of the URI, else of `Host`), asks a
//! live [`RouteTable`], and then changes the request as the rule says: headers, authority, path. What it
//! found stands in [`Facts::route`], where balancing, retries, timeouts and faults read it: a weighted split
//! is drawn here, once, so that a retry stays on its subset.
//!
//! Readiness: may refuse (what readiness reserved is given back). Reads: the connection's addresses; an
//! intercepted connection's original destination gives the service port, and
//! [`Connection::otherwise`](mesh_core::facts::Connection::otherwise) where requests go whose host nobody knows.
//! Writes: [`Facts::set_route`] (once
//! a request: a second router in the same stack sees its own decision only in what it forwards),
//! [`Facts::set_failure`]; inserts [`Facts`] where there are none. Answers: `bad_request` 400,
//! `unknown_host` 502, `no_route` 404, `unknown_subset` 503; redirects and fixed responses.
//!
//! ```
//! use std::sync::Arc;
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use mesh_core::live::Live;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_mesh_route::layer::RouteLayer;
//! use tower_mesh_route::table::RouteTable;
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let nobody = Live::fixed(RouteTable::default());
//! let service = ServiceBuilder::new().layer(RouteLayer::new(nobody)).service(service_fn(
//!     |_: Request<()>| async { Ok::<_, std::convert::Infallible>(Response::new(Full::<Bytes>::default())) },
//! ));
//! let request = Request::get("http://reviews:9080/").body(()).unwrap();
//! let response = service.oneshot(request).await.unwrap();
//! assert_eq!(response.status(), 502);
//! assert_eq!(response.headers()["x-mesh-reason"], "unknown_host");
//! # });
//! ```

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, Version, header, uri};
use mesh_core::facts::{Facts, MatchedRoute, OriginalDst};
use mesh_core::failure::{Failure, FailureCode, is_grpc};
use mesh_core::live::Live;
use mesh_core::normal::{Authority, normal_path};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::matching::RequestView;
use crate::policy::RoutePolicy;
use crate::retry::RetryPolicy;
use crate::rewrite::set_path;
use crate::table::{Applied, RouteTable};

/// Makes [`Route`] services. See the [module](self).
#[derive(Debug, Clone)]
pub struct RouteLayer {
    table: Live<RouteTable>,
    draw: fn() -> u64,
}

/// Decides where requests go. See the [module](self).
#[derive(Debug, Clone)]
pub struct Route<S> {
    inner: S,
    table: Live<RouteTable>,
    draw: fn() -> u64,
}

pin_project! {
    /// The answer of a [`Route`] service.
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
        Inner { #[pin] future: F, after: Option<After> },
        Answer { response: Option<Response<R>> },
    }
}

/// What is left to do to the response.
#[derive(Debug)]
struct After {
    applied: Applied,
    facts: Facts,
    version: Version,
}

impl RouteLayer {
    /// Routes by the table in force.
    pub fn new(table: Live<RouteTable>) -> Self {
        Self { table, draw: || fastrand::u64(..) }
    }

    /// Takes the random draws of weighted splits from elsewhere, for tests.
    #[must_use]
    pub fn draw(mut self, draw: fn() -> u64) -> Self {
        self.draw = draw;
        self
    }
}

impl<S> Layer<S> for RouteLayer {
    type Service = Route<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Route { inner, table: self.table.clone(), draw: self.draw }
    }
}

impl<S, A, R> Service<Request<A>> for Route<S>
where
    S: Service<Request<A>, Response = Response<R>> + Clone,
    R: Default + From<Bytes>,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<A>) -> Self::Future {
        let facts = Facts::of_or_insert(&mut request);
        let decided = decide(&self.table.load(), &mut request, &facts, self.draw);
        self.act(decided, request, facts)
    }
}

/// A request to a host that nobody knows, given back by [`Route::call_known`].
#[derive(Debug)]
pub struct UnknownHost<A> {
    /// The request, in its normal form.
    pub request: Request<A>,
    /// Whom it calls.
    pub authority: Authority,
}

impl<S> Route<S> {
    /// As `call`, but gives a request to a host that is not in the table back, so that whoever can learn of
    /// hosts does, and calls then. A known host costs nothing more.
    ///
    /// # Errors
    /// The request, where the table does not know its host.
    pub fn call_known<A, R>(
        &mut self,
        mut request: Request<A>,
    ) -> Result<ResponseFuture<S::Future, R>, Box<UnknownHost<A>>>
    where
        S: Service<Request<A>, Response = Response<R>> + Clone,
        R: Default + From<Bytes>,
    {
        let facts = Facts::of_or_insert(&mut request);
        let decided = {
            let table = self.table.load();
            match route(&table, &mut request, &facts, self.draw) {
                Ok(decided) => decided,
                Err(failure) => {
                    if failure.code() == FailureCode::UnknownHost
                        && let Ok(authority) = normalize(&mut request)
                        && table.host(authority.name()).is_none()
                    {
                        return Err(Box::new(UnknownHost { request, authority }));
                    }
                    otherwise(&facts, failure, request.headers())
                }
            }
        };
        Ok(self.act(decided, request, facts))
    }

    /// Puts the answer to a request that cannot go anywhere into its facts.
    pub fn answer<A, R: Default>(request: &mut Request<A>, failure: Failure) -> Response<R> {
        let facts = Facts::of_or_insert(request);
        facts.set_failure(failure.clone());
        failure.response(is_grpc(request.headers()))
    }

    fn act<A, R>(
        &mut self,
        decided: Decided<R>,
        request: Request<A>,
        facts: Facts,
    ) -> ResponseFuture<S::Future, R>
    where
        S: Service<Request<A>, Response = Response<R>> + Clone,
    {
        let state = match decided {
            Decided::Forward(applied) => {
                let version = request.version();
                let after = applied.map(|applied| After { applied, facts, version });
                State::Inner { future: self.inner.call(request), after }
            }
            Decided::Answer(response) => {
                let fresh = self.inner.clone();
                self.inner = fresh;
                State::Answer { response: Some(response) }
            }
        };
        ResponseFuture { state }
    }
}

/// The route of requests to hosts that nobody knows: its name, and that nothing is tried again.
static OTHERWISE: LazyLock<(Arc<str>, Arc<RoutePolicy>)> = LazyLock::new(|| {
    let retry = RetryPolicy { attempts: 0, ..RetryPolicy::default() };
    ("otherwise".into(), Arc::new(RoutePolicy { retry, ..RoutePolicy::default() }))
});

enum Decided<R> {
    Forward(Option<Applied>),
    Answer(Response<R>),
}

fn decide<A, R: Default + From<Bytes>>(
    table: &RouteTable,
    request: &mut Request<A>,
    facts: &Facts,
    draw: fn() -> u64,
) -> Decided<R> {
    match route(table, request, facts, draw) {
        Ok(decided) => decided,
        Err(failure) => otherwise(facts, failure, request.headers()),
    }
}

/// What becomes of a request that cannot be routed: one whose host nobody knows goes where its connection was
/// going, if it may; any other is answered.
fn otherwise<R: Default + From<Bytes>>(facts: &Facts, failure: Failure, headers: &HeaderMap) -> Decided<R> {
    if failure.code() == FailureCode::UnknownHost
        && let Some(cluster) = facts.connection().otherwise()
    {
        facts.set_route(MatchedRoute {
            resource: None,
            name: Arc::clone(&OTHERWISE.0),
            cluster: Some(Arc::clone(cluster)),
            policy: Arc::clone(&OTHERWISE.1) as _,
        });
        return Decided::Forward(None);
    }
    facts.set_failure(failure.clone());
    Decided::Answer(failure.response(is_grpc(headers)))
}

fn route<A, R: Default + From<Bytes>>(
    table: &RouteTable,
    request: &mut Request<A>,
    facts: &Facts,
    draw: fn() -> u64,
) -> Result<Decided<R>, Failure> {
    let authority = normalize(request)?;
    let mut view = RequestView::of(request, &authority);
    if let Some(port) = facts.connection().original_dst().map(OriginalDst::port) {
        view = view.with_port(port);
    }
    let found = table.route(&view, draw())?;
    facts.set_route(found.matched_route());
    found.cluster()?;
    let after = found.on_response();
    if let Some(mut response) = found.answer(&view) {
        if let Some(failure) = response.extensions().get::<Failure>() {
            facts.set_failure(failure.clone());
        }
        if let Some(after) = after {
            let version = request.version();
            after.apply(response.headers_mut(), version, Some(facts));
        }
        return Ok(Decided::Answer(response));
    }
    found.apply(request, Some(facts))?;
    Ok(Decided::Forward(after))
}

/// Brings a request into the one form that everything further in reads: a normal path, and one authority,
/// which is parsed.
///
/// # Errors
/// `bad_request` for a path without normal form, and for an authority that is absent, doubled or invalid.
pub fn normalize<A>(request: &mut Request<A>) -> Result<Authority, Failure> {
    let bad = |reason: String| Failure::new(FailureCode::BadRequest).detail(reason);
    let authority = match request.uri().authority().map(uri::Authority::as_str) {
        Some(text) => Authority::parse(text),
        None => Authority::parse(host(request.headers()).map_err(|reason| bad(reason.to_owned()))?),
    };
    let authority = authority.map_err(|reason| bad(format!("the authority is invalid: {reason}")))?;
    // A request to a proxy names its host twice; the URI's counts (RFC 9112, 3.2.2).
    if request.uri().authority().is_some()
        && let Some(host) = request.headers().get(header::HOST)
        && host.as_bytes() != authority.original().as_bytes()
    {
        let value = HeaderValue::from_str(authority.original())
            .map_err(|_| bad("the authority is invalid".to_owned()))?;
        request.headers_mut().insert(header::HOST, value);
    }
    let path = request.uri().path();
    // `CONNECT` has no path, and needs none.
    if !path.is_empty() {
        let normal = normal_path(path).map_err(|reason| bad(reason.to_string()))?;
        if let Cow::Owned(normal) = normal {
            set_path(request, &normal).map_err(|reason| bad(reason.to_string()))?;
        }
    }
    Ok(authority)
}

fn host(headers: &HeaderMap) -> Result<&str, &'static str> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().ok_or("the request names no host")?;
    if hosts.next().is_some() {
        return Err("the request has several Host headers");
    }
    host.to_str().map_err(|_| "the Host header holds what no host name has")
}

impl<F, R, E> Future for ResponseFuture<F, R>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<R>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Inner { future, after } => {
                let mut response = ready!(future.poll(cx))?;
                if let Some(after) = after.take() {
                    after.applied.apply(response.headers_mut(), after.version, Some(&after.facts));
                }
                Poll::Ready(Ok(response))
            }
            StateProj::Answer { response } => match response.take() {
                Some(response) => Poll::Ready(Ok(response)),
                None => Poll::Pending,
            },
        }
    }
}

#[cfg(test)]
mod tests;
