//! Chooses an endpoint of the request's cluster.
//!
//! [`pick`] is the whole decision, without clock or randomness. [`Balance`] stands around it: it reads the
//! cluster, makes a [`Dispatch`] and hands it on. Ejected endpoints are left out, unless so many are ejected
//! that the cluster's `minHealthPercent` says to ignore that; endpoints that earlier tries went to are left
//! out as long as others are there. A connection that was going to an endpoint by its own address
//! ([`called_endpoint`](mesh_core::facts::Connection::called_endpoint)) stays with it.
//!
//! Readiness: passes through; may refuse (a refusal gives what `poll_ready` reserved back). Reads: the
//! cluster of [`Facts::route`] (a balancer made with [`BalanceLayer::to`] needs no route),
//! [`Attempt`]. Writes: where the request went, into the `Attempt`, or without one into
//! [`Facts::set_upstream`]; without an `Attempt` it also counts the one try there is
//! ([`Facts::count_attempt`]). Errors: the inner service's; `no_healthy_endpoint`; what the cluster's
//! settings say when calls to it must fail; `internal` where no cluster is known.
//!
//! ```
//! use std::convert::Infallible;
//! use http::{Request, Response};
//! use mesh_core::cluster::{ClusterKey, ClusterSettings, Dispatch, EndpointSpec, Registry, ServiceName};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_mesh_route::balance::BalanceLayer;
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let key = ClusterKey::new("reviews.default.svc.cluster.local", 9080, "");
//! let name = ServiceName::new(&key.host, "reviews", "default");
//! let endpoints = vec![EndpointSpec::plaintext("127.0.0.1:1".parse().unwrap())];
//! let cluster = Registry::new().cluster(&key, &name, ClusterSettings::default(), endpoints);
//!
//! let echo = service_fn(|dispatch: Dispatch<()>| async move {
//!     Ok::<_, Infallible>(Response::new(dispatch.endpoint.key().address.to_string()))
//! });
//! let service = ServiceBuilder::new().layer(BalanceLayer::to(cluster)).service(echo);
//! assert_eq!(service.oneshot(Request::new(())).await.unwrap().body(), "127.0.0.1:1");
//! # });
//! ```

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Response};
use mesh_core::body::BoxError;
use mesh_core::clock::now;
use mesh_core::cluster::{Balance as How, Cluster, Dispatch, Endpoint, EndpointAddress, EndpointSet};
use mesh_core::facts::Facts;
use mesh_core::failure::{Failure, FailureCode};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use crate::attempt::{Attempt, Report, unconnected};

/// How long others are preferred to an endpoint to which no connection could be made. Without it an endpoint
/// that is gone would look like the least busy of all, since it refuses so quickly.
pub const CONNECT_BACKOFF: Duration = Duration::from_secs(1);
/// How often an endpoint is drawn blindly before all are looked at; enough while most are usable.
const BLIND_DRAWS: u32 = 4;

/// What one choice needs of chance and of order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// A random number.
    pub random: u64,
    /// The number of this choice, for round robin.
    pub turn: usize,
}

/// Makes [`Balance`] services. See the [module](self).
#[derive(Debug, Clone, Default)]
pub struct BalanceLayer {
    to: Option<Arc<Cluster>>,
}

/// Chooses endpoints. See the [module](self).
#[derive(Debug, Clone)]
pub struct Balance<S> {
    inner: S,
    to: Option<Arc<Cluster>>,
}

pin_project! {
    /// The answer of a [`Balance`] service.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = StateProj]
    enum State<F> {
        Sent {
            #[pin]
            future: F,
            endpoint: Arc<Endpoint>,
            report: Report,
        },
        Refused { failure: Option<Failure> },
    }
}

impl BalanceLayer {
    /// For the cluster of each request's route.
    pub const fn new() -> Self {
        Self { to: None }
    }

    /// For one cluster, whatever the route says.
    pub fn to(cluster: Arc<Cluster>) -> Self {
        Self { to: Some(cluster) }
    }
}

/// Who may be chosen, in the order in which one settles for less.
#[derive(Clone, Copy)]
struct Usable<'a> {
    now: Instant,
    tried: &'a [Arc<Endpoint>],
    panic: bool,
    /// Leaves out those to which no connection could be made a moment ago.
    reachable: bool,
}

impl Usable<'_> {
    fn admits(&self, endpoint: &Endpoint) -> bool {
        let state = endpoint.state();
        let ejected = !self.panic && state.is_ejected(self.now);
        let unreachable = self.reachable && state.is_unreachable(self.now);
        // Compared by state: a new description is the same endpoint.
        let tried = self.tried.iter().any(|t| Arc::ptr_eq(t.state(), state));
        !ejected && !unreachable && !tried
    }
}

/// Remembers for [`CONNECT_BACKOFF`] that no usable connection to the endpoint could be made.
pub fn note_unreachable(endpoint: &Endpoint, failure: Option<&Failure>, now: Instant) {
    use FailureCode::{ConnectFailed, IdentityMismatch, TlsFailed};
    if failure.is_some_and(|f| matches!(f.code(), ConnectFailed | TlsFailed | IdentityMismatch)) {
        endpoint.state().mark_unreachable(now + CONNECT_BACKOFF);
    }
}

/// Chooses an endpoint of `set`; `None` when there is none that may be used.
///
/// Ejected endpoints are not chosen, unless less than `min_health_percent` of the set are healthy: then
/// ejections are ignored. Endpoints to which [no connection could be made](CONNECT_BACKOFF) a moment ago, and
/// those in `tried`, are chosen only when there is no other. An endpoint's weight
/// is its share of the load; weight 0 takes no load while another endpoint can.
pub fn pick<'a>(
    set: &'a EndpointSet,
    how: How,
    min_health_percent: u32,
    tried: &[Arc<Endpoint>],
    draw: Draw,
    now: Instant,
) -> Option<&'a Arc<Endpoint>> {
    let panic = min_health_percent > 0 && {
        let (all, ejected) = (set.members().len() as u64, set.ejected(now) as u64);
        all.saturating_sub(ejected) * 100 < all * u64::from(min_health_percent)
    };
    let usable = Usable { now, tried, panic, reachable: true };
    choose(set, how, draw, usable)
        .or_else(|| choose(set, how, draw, Usable { reachable: false, ..usable }))
        .or_else(|| {
            let any = Usable { reachable: false, tried: &[], ..usable };
            if tried.is_empty() { None } else { choose(set, how, draw, any) }
        })
}

/// The endpoint of `set` with this address: where a connection goes that was going to it, whatever is known
/// of others.
pub fn at(set: &EndpointSet, address: SocketAddr) -> Option<Arc<Endpoint>> {
    let is = |e: &&Arc<Endpoint>| matches!(&e.key().address, EndpointAddress::Socket(a) if a.0 == address);
    set.members().iter().find(is).map(Arc::clone)
}

fn choose<'a>(set: &'a EndpointSet, how: How, draw: Draw, usable: Usable<'_>) -> Option<&'a Arc<Endpoint>> {
    if !set.is_weighted() && how != How::RoundRobin {
        let first = blind(set, draw.random, None, usable);
        let second = first.and_then(|f| blind(set, scramble(draw.random), Some(f), usable));
        match (how, first, second) {
            (How::Random, Some(one), _) => return Some(one),
            (How::LeastRequest, Some(one), Some(other)) => return Some(less_busy(one, other)),
            // Few are usable, or chance was against it.
            _ => {}
        }
    }
    let all = Weights::of(set, usable)?;
    match how {
        How::Random => all.at(draw.random % all.total, None),
        How::RoundRobin => all.at(all.turn(draw.turn), None),
        How::LeastRequest => {
            let first = all.at(draw.random % all.total, None)?;
            let rest = all.total - all.weigh(first);
            let Some(at) = scramble(draw.random).checked_rem(rest) else { return Some(first) };
            Some(all.at(at, Some(first)).map_or(first, |second| less_busy(first, second)))
        }
    }
}

/// Draws an endpoint by its place alone, a few times; all weights are equal.
fn blind<'a>(
    set: &'a EndpointSet,
    mut random: u64,
    except: Option<&Arc<Endpoint>>,
    usable: Usable<'_>,
) -> Option<&'a Arc<Endpoint>> {
    let members = set.members();
    for _ in 0..BLIND_DRAWS {
        let at = random.checked_rem(members.len() as u64)?;
        let found = members.get(usize::try_from(at).ok()?)?;
        if usable.admits(found) && !except.is_some_and(|e| Arc::ptr_eq(e, found)) {
            return Some(found);
        }
        random = scramble(random);
    }
    None
}

/// The one with fewer requests in flight for its weight; the first of equals, which is the one that was
/// drawn by weight.
fn less_busy<'a>(first: &'a Arc<Endpoint>, second: &'a Arc<Endpoint>) -> &'a Arc<Endpoint> {
    let load =
        |one: &Endpoint, other: &Endpoint| u64::from(one.state().active()) * u64::from(other.weight().max(1));
    if load(first, second) <= load(second, first) { first } else { second }
}

/// Another random number from one (the finalizer of SplitMix64, Steele et al. 2014).
fn scramble(random: u64) -> u64 {
    let mut z = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The usable endpoints on a line, each as long as its weight.
struct Weights<'a, 'b> {
    set: &'a EndpointSet,
    usable: Usable<'b>,
    total: u64,
    /// All that are usable have weight 0, and count as 1.
    all_zero: bool,
}

impl<'a, 'b> Weights<'a, 'b> {
    fn of(set: &'a EndpointSet, usable: Usable<'b>) -> Option<Self> {
        let (mut count, mut sum) = (0u64, 0u64);
        for endpoint in set.members().iter().filter(|e| usable.admits(e)) {
            count += 1;
            sum += u64::from(endpoint.weight());
        }
        let all_zero = sum == 0;
        let total = if all_zero { count } else { sum };
        (total > 0).then_some(Self { set, usable, total, all_zero })
    }

    fn weigh(&self, endpoint: &Endpoint) -> u64 {
        if self.all_zero { 1 } else { u64::from(endpoint.weight()) }
    }

    /// Who is at this place of the line, `except` taken out of it.
    fn at(&self, mut place: u64, except: Option<&Arc<Endpoint>>) -> Option<&'a Arc<Endpoint>> {
        let candidates = self.set.members().iter().filter(|e| self.usable.admits(e));
        for endpoint in candidates.filter(|e| !except.is_some_and(|x| Arc::ptr_eq(x, e))) {
            let weight = self.weigh(endpoint);
            if place < weight {
                return Some(endpoint);
            }
            place -= weight;
        }
        None
    }

    /// The place of this turn: every place once in `total` turns, neighbours far apart, so that a heavy
    /// endpoint does not take its whole share in one go.
    fn turn(&self, turn: usize) -> u64 {
        let turn = turn as u64 % self.total;
        if !self.set.is_weighted() {
            return turn;
        }
        // Near the golden section of the line, and coprime to its length.
        let mut stride = (u128::from(self.total) * 618 / 1000).max(1);
        while gcd(stride, u128::from(self.total)) != 1 {
            stride += 1;
        }
        let place = u128::from(turn) * stride % u128::from(self.total);
        u64::try_from(place).unwrap_or_default()
    }
}

fn gcd(a: u128, b: u128) -> u128 {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

impl<S> Layer<S> for BalanceLayer {
    type Service = Balance<S>;

    fn layer(&self, inner: S) -> Balance<S> {
        Balance { inner, to: self.to.clone() }
    }
}

impl<S> Balance<S> {
    fn choose<B>(&self, request: &Request<B>) -> Result<(Arc<Cluster>, Arc<Endpoint>), Failure> {
        let facts = Facts::of(request);
        let cluster = match &self.to {
            Some(cluster) => cluster,
            None => {
                let route = facts.and_then(Facts::route);
                route.and_then(|r| r.cluster.as_ref()).ok_or_else(|| {
                    Failure::new(FailureCode::Internal).detail(
                        "the balancer knows no cluster: no router stands outside, and it was not made for one",
                    )
                })?
            }
        };
        let settings = cluster.load_settings();
        if let Some(failure) = &settings.refuse {
            return Err(failure.clone());
        }
        if let Some(called) = facts.and_then(|facts| facts.connection().called_endpoint())
            && let Some(endpoint) = at(&cluster.load_endpoints(), called)
        {
            return Ok((Arc::clone(cluster), endpoint));
        }
        let tried = request.extensions().get::<Attempt>().map(Attempt::tried).unwrap_or_default();
        let draw = Draw {
            random: fastrand::u64(..),
            turn: if settings.balance == How::RoundRobin { cluster.next_turn() } else { 0 },
        };
        let min_health = settings.outlier.as_ref().map_or(0, |o| o.min_health_percent);
        let set = cluster.load_endpoints();
        let found = pick(&set, settings.balance, min_health, tried, draw, now());
        found.map(|e| (Arc::clone(cluster), Arc::clone(e))).ok_or_else(|| {
            let all = set.members().len();
            Failure::new(FailureCode::NoHealthyEndpoint).detail(if all == 0 {
                format!("{} has no endpoint", cluster.key())
            } else {
                format!("{}: all of {all} endpoints are ejected", cluster.key())
            })
        })
    }
}

impl<S, B, R> Service<Request<B>> for Balance<S>
where
    S: Service<Dispatch<B>, Response = Response<R>> + Clone,
    S::Error: Into<BoxError>,
{
    type Response = Response<R>;
    type Error = BoxError;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture<S::Future> {
        let state = match self.choose(&request) {
            Ok((cluster, endpoint)) => {
                let report = Report::of(request.extensions());
                if let Report::Facts(facts) = &report {
                    facts.count_attempt();
                }
                let dispatch = Dispatch { cluster, endpoint: Arc::clone(&endpoint), request };
                State::Sent { future: self.inner.call(dispatch), endpoint, report }
            }
            Err(failure) => {
                // What was reserved for this request is given back.
                let fresh = self.inner.clone();
                self.inner = fresh;
                State::Refused { failure: Some(failure) }
            }
        };
        ResponseFuture { state }
    }
}

impl<F, R, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Response<R>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Sent { future, endpoint, report } => {
                let result = ready!(future.poll(cx));
                // The pool knows more and has told it; another inner service may not have.
                report.tell(|| unconnected(Arc::clone(endpoint)));
                Poll::Ready(result.map_err(|error| {
                    let error = error.into();
                    note_unreachable(endpoint, Failure::find(&*error).as_ref(), Instant::now());
                    error
                }))
            }
            StateProj::Refused { failure } => {
                let failure = failure.take().unwrap_or_else(|| FailureCode::Internal.into());
                Poll::Ready(Err(failure.into()))
            }
        }
    }
}

#[cfg(test)]
mod tests;
