//! So many requests in a period, for everybody together or for each caller.
//!
//! The limit is a leaky bucket (the generic cell rate algorithm of [`governor`]): a burst passes at once,
//! then requests pass evenly spaced. It counts in this process only. A caller is told by what it cannot
//! choose, its verified identity or its address; `X-Forwarded-For` is never read. [`Key::Header`] is for headers that
//! a gateway sets, since whoever may choose its own key has no limit.
//!
//! Memory is bounded: at most [`MAX_KEYS`] callers (or what [`max_keys`](RateLimitLayer::max_keys) says)
//! have a limit of their own; when none of those has been idle long enough to be forgotten, further callers share one more. A
//! key is 16 bytes, however long the header was. No task cleans up.
//!
//! Readiness: may refuse; a refusal gives back what the inner service reserved.
//! Reads: [`Facts`]' connection (peer, address); a caller of whom the key is unknown shares one limit with
//! all such. Writes: `failure`. Answers 429 `rate_limited` with `retry-after` in seconds; a gRPC call is
//! answered `RESOURCE_EXHAUSTED`.
//!
//! ```
//! use std::time::Duration;
//! use http::{Request, Response};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_mesh_policy::ratelimit::{Key, Rate, RateLimitLayer};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
//! let app = service_fn(|_: Request<()>| async { Ok::<_, std::convert::Infallible>(Response::new(String::new())) });
//! let limit = RateLimitLayer::new(Rate::new(2, Duration::from_secs(60)).unwrap(), Key::Everybody);
//! let service = ServiceBuilder::new().layer(limit).service(app);
//!
//! assert_eq!(service.clone().oneshot(Request::new(())).await.unwrap().status(), 200);
//! assert_eq!(service.clone().oneshot(Request::new(())).await.unwrap().status(), 200);
//! let refused = service.clone().oneshot(Request::new(())).await.unwrap();
//! assert_eq!(refused.status(), 429);
//! assert_eq!(refused.headers()["retry-after"], "30");
//!
//! tokio::time::advance(Duration::from_secs(30)).await;
//! assert_eq!(service.oneshot(Request::new(())).await.unwrap().status(), 200);
//! # });
//! ```

mod limiter;

pub use crate::future::ResponseFuture;
pub use limiter::{InvalidRate, MAX_KEYS, Rate};

use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderName, HeaderValue, Request, Response, header};
use mesh_core::facts::{Connection, Facts};
use mesh_core::failure::{Failure, FailureCode, is_grpc};
use tower_layer::Layer;
use tower_service::Service;

use limiter::{Id, Limiter};

/// Makes [`RateLimit`] services, which share one count. See the [module](self).
#[derive(Debug, Clone)]
pub struct RateLimitLayer {
    limiter: Arc<Limiter>,
    key: Key,
}

/// Refuses what comes too fast. See the [module](self).
#[derive(Debug, Clone)]
pub struct RateLimit<S> {
    inner: S,
    limiter: Arc<Limiter>,
    key: Key,
}

/// Who shares a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// All requests.
    Everybody,
    /// The requests of one verified identity.
    Peer,
    /// The requests from one address; for IPv6 from one /64, which is what one host is given.
    PeerIp,
    /// The requests with the same values of a header, which must be one that callers cannot choose.
    Header(HeaderName),
}

impl RateLimitLayer {
    /// Limits to `rate`, for each `key`.
    pub fn new(rate: Rate, key: Key) -> Self {
        Self { limiter: Arc::new(Limiter::new(rate, MAX_KEYS)), key }
    }

    /// How many keys have a limit of their own. Default: [`MAX_KEYS`]. Starts with fresh counts.
    #[must_use]
    pub fn max_keys(self, keys: usize) -> Self {
        Self { limiter: Arc::new(Limiter::new(self.limiter.rate(), keys)), key: self.key }
    }

    /// How many requests were refused since start.
    pub fn refusals(&self) -> u64 {
        self.limiter.refusals()
    }

    /// How many requests fell under the shared limit because there were too many keys.
    pub fn overflows(&self) -> u64 {
        self.limiter.overflows()
    }

    /// How many keys have a limit of their own now.
    pub fn keys(&self) -> usize {
        self.limiter.keys()
    }
}

impl Key {
    /// `None` where the request has no such thing.
    fn of<A>(&self, limiter: &Limiter, request: &Request<A>) -> Option<Id> {
        let connection = || Facts::of(request).map(Facts::connection);
        match self {
            Self::Everybody => None,
            Self::Peer => {
                let id = connection()?.peer()?.id();
                Some(limiter.id([id.as_str().as_bytes()]))
            }
            Self::PeerIp => match connection()?.peer_addr()?.ip() {
                IpAddr::V4(ip) => Some(limiter.id([ip.octets().as_slice()])),
                IpAddr::V6(ip) => Some(limiter.id([ip.octets().get(..8).unwrap_or_default()])),
            },
            Self::Header(name) => {
                let mut values = request.headers().get_all(name).iter().map(HeaderValue::as_bytes).peekable();
                values.peek()?;
                Some(limiter.id(values))
            }
        }
    }

    /// Whom a limit is for, in explanations. Never the key itself: a header may be a secret.
    fn told(&self, connection: Option<&Connection>) -> String {
        match self {
            Self::Everybody => "everybody".to_owned(),
            Self::Peer => match connection.and_then(Connection::peer) {
                Some(peer) => peer.id().to_string(),
                None => "callers without identity".to_owned(),
            },
            Self::PeerIp => match connection.and_then(Connection::peer_addr) {
                Some(addr) => addr.ip().to_string(),
                None => "callers without address".to_owned(),
            },
            Self::Header(name) => format!("one value of header {name}"),
        }
    }
}

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimit { inner, limiter: Arc::clone(&self.limiter), key: self.key.clone() }
    }
}

impl<S, A, B> Service<Request<A>> for RateLimit<S>
where
    S: Service<Request<A>, Response = Response<B>> + Clone,
    B: Default,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let id = self.key.of(&self.limiter, &request);
        let Err(wait) = self.limiter.check(id) else {
            return ResponseFuture::forward(self.inner.call(request));
        };
        // Gives back what `poll_ready` has reserved further in.
        let fresh = self.inner.clone();
        self.inner = fresh;
        let facts = Facts::of(&request);
        let told = self.key.told(facts.map(|f| &**f.connection()));
        let failure = Failure::new(FailureCode::RateLimited)
            .detail(format!("the limit of {} for {told} is used up", self.limiter.rate()));
        let mut response = failure.response(is_grpc(request.headers()));
        // Whole seconds, and never so few that the same caller comes too early again.
        let seconds = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).max(1);
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        if let Some(facts) = facts {
            facts.set_failure(failure);
        }
        ResponseFuture::refuse(response)
    }
}

#[cfg(test)]
mod tests;
