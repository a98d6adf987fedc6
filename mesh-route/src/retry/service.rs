//! The layer around the decision.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Extensions, HeaderName, HeaderValue, Method, Request, Response, Uri, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use mesh_core::body::{Body, BoxError};
use mesh_core::cluster::{Cluster, Endpoint, Permit, RetryBudget};
use mesh_core::facts::Facts;
use mesh_core::failure::{Failure, FailureCode, REASON_HEADER};
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};
use tower_layer::Layer;
use tower_service::Service;

use super::decide::{Context as Known, Outcome, Verdict, decide};
use super::policy::RetryPolicy;
use super::replay::Replay;
use crate::attempt::Attempt;
use crate::policy::RoutePolicy;
use crate::pool::TryError;

/// Tells the endpoint which try this is, from 1; Envoy's header.
pub const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");

/// How long a request that failed waits for a share of the budget, between looks.
const BUDGET_PAUSE: Duration = Duration::from_millis(10);
/// How often it looks: a quarter of a second in all, as long as the longest backoff of the default policy.
const BUDGET_LOOKS: u32 = 25;

/// Makes [`Retry`] services. See the [module](super).
#[derive(Debug, Clone)]
pub struct RetryLayer {
    own: Arc<Own>,
}

/// Tries requests again. See the [module](super).
#[derive(Debug, Clone)]
pub struct Retry<S> {
    inner: S,
    own: Arc<Own>,
}

/// What the layer was made with, and what it counts.
#[derive(Debug)]
struct Own {
    policy: RetryPolicy,
    cluster: Option<Arc<Cluster>>,
    in_flight: AtomicU32,
    too_large: AtomicU64,
}

/// What follows a try.
enum Next {
    /// Another one, after this time.
    Retry(Duration),
    /// Another one, once the budget has a share for it.
    Starved,
    /// Nothing: the result stands.
    Final,
}

/// One retry under a budget.
#[derive(Debug)]
enum Budgeted {
    Cluster { _permit: Permit },
    Own(Arc<Own>),
}

/// A request as it is sent in every try. Few are sent again, so what is kept of it is what costs least to keep: a list
/// of headers is made into a map when it is wanted.
#[derive(Debug)]
struct Head {
    method: Method,
    uri: Uri,
    version: Version,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// `None` where the facts were the only one, which is known anyway.
    extensions: Option<Extensions>,
}

pin_project! {
    /// The answer of a [`Retry`] service.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, F> {
        #[pin]
        state: State<F>,
        limit: Option<Timer>,
        request: Running<S>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F> {
        Trying { #[pin] future: F },
        Waiting { sleep: Timer },
        Starved { sleep: Timer, result: Option<Box<Tried>> },
        Ready,
    }
}

/// Boxed, as is all that few requests need: what a future has room for is moved about with each request.
type Timer = Pin<Box<Sleep>>;

fn timer(duration: Duration) -> Timer {
    Box::pin(sleep(duration))
}

/// All that one request needs between its tries.
struct Running<S> {
    inner: S,
    own: Arc<Own>,
    facts: Option<Facts>,
    method: Method,
    /// `None` where there is no retry.
    head: Option<Box<Head>>,
    replay: Replay,
    attempt: Attempt,
    tried: Vec<Arc<Endpoint>>,
    retries: u32,
    budget: Option<Budgeted>,
    /// How often the budget was found spent.
    starved: u32,
}

/// The body of an answer that a retry brought, with its share of the budget.
#[derive(Debug)]
struct Retried {
    inner: Body,
    _budget: Budgeted,
}

impl RetryLayer {
    /// A layer whose policy counts where the request's route says nothing of retries.
    pub fn new(policy: RetryPolicy) -> Self {
        let (in_flight, too_large) = (AtomicU32::new(0), AtomicU64::new(0));
        Self { own: Arc::new(Own { policy, cluster: None, in_flight, too_large }) }
    }

    /// Keeps to this cluster's budget where no route says which cluster it is. Without either, no more
    /// retries than the floor of the default budget are in flight at once.
    #[must_use]
    pub fn within(self, cluster: Arc<Cluster>) -> Self {
        let own = Own {
            policy: self.own.policy.clone(),
            cluster: Some(cluster),
            in_flight: AtomicU32::new(0),
            too_large: AtomicU64::new(0),
        };
        Self { own: Arc::new(own) }
    }

    /// How many requests were not tried again because their bodies were larger than what is kept.
    pub fn bodies_too_large(&self) -> u64 {
        self.own.too_large.load(Ordering::Relaxed)
    }
}

impl Default for RetryLayer {
    fn default() -> Self {
        Self::new(RetryPolicy::default())
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Retry<S> {
        Retry { inner, own: Arc::clone(&self.own) }
    }
}

impl Own {
    fn policy<'a>(&'a self, facts: Option<&'a Facts>) -> &'a RetryPolicy {
        facts.and_then(RoutePolicy::of).map_or(&self.policy, |route| &route.retry)
    }

    /// Whether the budget has a share left, without taking or counting anything.
    fn has_budget(&self, facts: Option<&Facts>) -> bool {
        let route = facts.and_then(Facts::route).and_then(|r| r.cluster.as_ref());
        match route.or(self.cluster.as_ref()) {
            Some(cluster) => cluster.has_retry(),
            None => self.in_flight.load(Ordering::Relaxed) < RetryBudget::default().min_concurrent,
        }
    }

    fn budget(self: &Arc<Self>, facts: Option<&Facts>) -> Option<Budgeted> {
        let route = facts.and_then(Facts::route).and_then(|r| r.cluster.as_ref());
        if let Some(cluster) = route.or(self.cluster.as_ref()) {
            return cluster.try_retry().map(|permit| Budgeted::Cluster { _permit: permit });
        }
        let limit = RetryBudget::default().min_concurrent;
        let take = |n: u32| (n < limit).then(|| n + 1);
        let taken = self.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.is_ok().then(|| Budgeted::Own(Arc::clone(self)))
    }
}

impl Drop for Budgeted {
    fn drop(&mut self) {
        if let Self::Own(own) = self {
            own.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl<S> Service<Request<Body>> for Retry<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone,
    S::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = ResponseFuture<S, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let facts = Facts::of(&request).cloned();
        let policy = self.own.policy(facts.as_ref());
        let (parts, body) = request.into_parts();
        let method = parts.method.clone();
        let (head, replay, body) = if policy.attempts == 0 {
            (None, Replay::new(Body::empty()), body)
        } else {
            let mut headers = Vec::with_capacity(parts.headers.len());
            headers.extend(parts.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
            let head = Box::new(Head {
                method: parts.method.clone(),
                uri: parts.uri.clone(),
                version: parts.version,
                headers,
                extensions: (facts.is_none() || parts.extensions.len() > 1).then(|| parts.extensions.clone()),
            });
            let replay = Replay::new(body);
            let body = replay.next();
            (Some(head), replay, body)
        };
        let mut request = Request::from_parts(parts, body);
        let attempt = Attempt::default();
        mark(&mut request, &attempt, facts.as_ref(), 1);
        let limit = policy.per_try_timeout.map(timer);
        // Whoever tries again asks a clone whether it is ready.
        let inner = self.inner.clone();
        let future = self.inner.call(request);
        let own = Arc::clone(&self.own);
        let running = Running {
            inner,
            own,
            facts,
            method,
            head,
            replay,
            attempt,
            tried: Vec::new(),
            retries: 0,
            budget: None,
            starved: 0,
        };
        ResponseFuture { state: State::Trying { future }, limit, request: running }
    }
}

/// Makes a request the try with this number.
fn mark(request: &mut Request<Body>, attempt: &Attempt, facts: Option<&Facts>, number: u32) {
    if let Some(facts) = facts {
        facts.count_attempt();
    }
    request.headers_mut().insert(ATTEMPT_COUNT, count(number));
    request.extensions_mut().insert(attempt.clone());
}

/// The number as a header's value; the usual ones allocate nothing.
fn count(number: u32) -> HeaderValue {
    match number {
        1 => HeaderValue::from_static("1"),
        2 => HeaderValue::from_static("2"),
        3 => HeaderValue::from_static("3"),
        more => HeaderValue::from(more),
    }
}

type Tried = Result<Response<Body>, TryError>;

impl<S> Running<S> {
    fn policy(&self) -> &RetryPolicy {
        self.own.policy(self.facts.as_ref())
    }

    /// What follows a try.
    fn again(&mut self, result: &Tried) -> Next {
        let outcome = match result {
            Err(error) => Outcome::of(error),
            Ok(response) if self.never_arrived(response) => Outcome::Unsent,
            Ok(response) => Outcome::Answer(response.status(), response.headers()),
        };
        let known = Known { retries: self.retries, replayable: self.replay.is_possible() };
        match decide(self.policy(), outcome, &self.method, known) {
            Verdict::Retry => {}
            Verdict::BodyTooLarge => {
                self.own.too_large.fetch_add(1, Ordering::Relaxed);
                return Next::Final;
            }
            Verdict::Final | Verdict::Exhausted => return Next::Final,
        }
        if self.budget.is_none() {
            // Of many requests that fail at once, as when an endpoint dies, not all are retried at once. The
            // others wait for their turn, but not long: under a lasting failure nothing is gained by it.
            let last = self.starved >= BUDGET_LOOKS || result.is_ok();
            if !last && !self.own.has_budget(self.facts.as_ref()) {
                self.starved += 1;
                return Next::Starved;
            }
            match self.own.budget(self.facts.as_ref()) {
                Some(budget) => self.budget = Some(budget),
                None => return Next::Final,
            }
        }
        if self.policy().ignore_previous_hosts
            && let Some(upstream) = self.attempt.upstream()
        {
            self.tried.push(Arc::clone(&upstream.endpoint));
        }
        self.retries += 1;
        Next::Retry(self.policy().backoff(self.retries, fastrand::f64()))
    }

    /// Whether a verified sidecar at the other end says that the application never saw the request: it is
    /// shutting down, or has no connection to the application.
    fn never_arrived(&self, response: &Response<Body>) -> bool {
        let verified = self.attempt.upstream().is_some_and(|u| u.peer.is_some());
        let reason = || response.headers().get(REASON_HEADER).and_then(FailureCode::from_header);
        verified && reason().is_some_and(|code| code.spec().unsent)
    }

    fn next_request(&mut self) -> Option<Request<Body>> {
        let head = self.head.as_ref()?;
        let mut request = Request::new(self.replay.next());
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = head.uri.clone();
        *request.version_mut() = head.version;
        let headers = request.headers_mut();
        headers.reserve(head.headers.len());
        for (name, value) in &head.headers {
            headers.append(name.clone(), value.clone());
        }
        match (&head.extensions, &self.facts) {
            (Some(extensions), _) => *request.extensions_mut() = extensions.clone(),
            (None, Some(facts)) => facts.clone().insert(&mut request),
            (None, None) => {}
        }
        self.attempt = Attempt::after(self.tried.clone());
        mark(&mut request, &self.attempt, self.facts.as_ref(), self.retries + 1);
        Some(request)
    }

    fn finish(&mut self, result: Tried) -> Result<Response<Body>, BoxError> {
        if let (Some(facts), Some(upstream)) = (&self.facts, self.attempt.upstream()) {
            facts.set_upstream(upstream.clone());
        }
        let response = result?;
        Ok(match self.budget.take() {
            None => response,
            Some(budget) => response.map(|inner| Body::new(Retried { inner, _budget: budget })),
        })
    }
}

impl<S> Future for ResponseFuture<S, S::Future>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Error: Into<BoxError>,
{
    type Output = Result<Response<Body>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let result = match this.state.as_mut().project() {
                StateProj::Trying { future } => match future.poll(cx) {
                    Poll::Ready(result) => result.map_err(|e| TryError::of(e.into())),
                    Poll::Pending => {
                        let late = this.limit.as_mut().is_some_and(|l| l.as_mut().poll(cx).is_ready());
                        if !late {
                            return Poll::Pending;
                        }
                        Err(TryError::sent(
                            Failure::new(FailureCode::Timeout).detail("no answer within the time of one try"),
                        ))
                    }
                },
                StateProj::Waiting { sleep } => {
                    if sleep.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    this.state.set(State::Ready);
                    continue;
                }
                StateProj::Starved { sleep, result } => {
                    if sleep.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    match result.take() {
                        Some(result) => *result,
                        None => Err(Failure::new(FailureCode::Internal).into()),
                    }
                }
                StateProj::Ready => match this.request.inner.poll_ready(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(e)) => Err(TryError::of(e.into())),
                    Poll::Ready(Ok(())) => match this.request.next_request() {
                        Some(request) => {
                            let future = this.request.inner.call(request);
                            *this.limit = this.request.policy().per_try_timeout.map(timer);
                            this.state.set(State::Trying { future });
                            continue;
                        }
                        None => Err(Failure::new(FailureCode::Internal).into()),
                    },
                },
            };
            match this.request.again(&result) {
                // The try's future goes first: what it holds may be what the next one needs.
                Next::Retry(pause) => this.state.set(State::Waiting { sleep: timer(pause) }),
                Next::Starved => {
                    this.state
                        .set(State::Starved { sleep: timer(BUDGET_PAUSE), result: Some(Box::new(result)) });
                }
                Next::Final => return Poll::Ready(this.request.finish(result)),
            }
        }
    }
}

impl<S, F> fmt::Debug for ResponseFuture<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").field("retries", &self.request.retries).finish_non_exhaustive()
    }
}

impl HttpBody for Retried {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
