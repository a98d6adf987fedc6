//! Connections to endpoints: kept, shared, counted and limited.
//!
//! [`Pool`] is the bottom of the client stack: it takes a request that a balancer has given an endpoint
//! ([`Dispatch`]), finds or makes a connection to that endpoint, and sends it. Connections hang on the
//! endpoint's own state, so they survive every change of configuration that keeps the endpoint; and because
//! TLS mode and expected identity are part of what makes an endpoint, a connection is used only under those
//! for which it was verified.
//!
//! - HTTP/1.1 (see [`h1`]): the connection that was used last is used next; it goes back when its response's
//!   body has ended. HTTP/2: one connection is shared, another is made when its streams are in use; so it is where
//!   HTTP/1.1 is [`carried`] to another proxy.
//! - The cluster's limits: connections, requests that wait for one, requests on one connection, the time
//!   that a connection may take and how long an unused one is kept (looked at when one is needed, and by
//!   [`Pool::sweep`], which the owner calls now and then). When all connections are in use, a request waits
//!   for one no longer than a connection may take.
//! - A connection that is being made when the cluster loses the endpoint is given up a second later
//!   ([`WITHDRAWN_PATIENCE`]).
//! - A request that a connection hands back unsent moves to another connection; that is no retry.
//! - The answer's body holds the count of requests in flight at the endpoint.
//! - Upgrades (WebSocket) pass over HTTP/1.1: see [`caller_half`], [`Upgrade`] and [`join_upgrade`].
//!
//! A connection of HTTP/2 has one task, spawned on the runtime that the request runs on; one of HTTP/1.1 has none,
//! and no request has. A program with one current-thread runtime per core gives each its own shard of
//! connections: [`Pool::shards`], [`Pool::with_shard`].
//!
//! Readiness: always ready; limits answer with failures. Reads: [`Attempt`](crate::attempt::Attempt) or
//! [`Facts`](mesh_core::facts::Facts), to write there where the request went ([`Upstream`]). Errors:
//! [`TryError`], which says whether the request provably never reached the application: `connect_failed`,
//! `tls_failed`, `identity_mismatch` and whatever else the connector says, `overflow`, `upstream_reset`,
//! `upstream_protocol`, `downstream_closed`.
//!
//! ```
//! use std::sync::Arc;
//! use http::Request;
//! use mesh_core::body::Body;
//! use mesh_core::cluster::{ClusterKey, ClusterSettings, Dispatch, EndpointSpec, Registry, ServiceName};
//! use mesh_core::failure::FailureCode;
//! use tower::ServiceExt;
//! use tower_mesh_route::pool::{Pool, TcpConnect};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! // A port that was just free, and where nobody listens.
//! let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
//! let key = ClusterKey::new("reviews.default.svc.cluster.local", 9080, "");
//! let name = ServiceName::new(&key.host, "reviews", "default");
//! let endpoints = vec![EndpointSpec::plaintext(free)];
//! let cluster = Registry::new().cluster(&key, &name, ClusterSettings::default(), endpoints);
//! let endpoint = Arc::clone(&cluster.load_endpoints().members()[0]);
//!
//! let request = Request::get("/").body(Body::empty()).unwrap();
//! let pool = Pool::new(TcpConnect::new());
//! let error = pool.oneshot(Dispatch { cluster, endpoint, request }).await.unwrap_err();
//! assert_eq!(error.failure().code(), FailureCode::ConnectFailed);
//! assert!(error.is_unsent());
//! # });
//! ```

mod body;
pub mod carried;
mod connect;
mod drive;
mod endpoint;
mod error;
mod gather;
pub mod h1;
mod handshake;
mod io;
mod kept;
mod shared;
mod take;
mod upgrade;
mod wire;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use http::Response;
use mesh_core::body::{Body, BoxError};
use mesh_core::cluster::Dispatch;
#[cfg(doc)]
use mesh_core::facts::Upstream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tower_service::Service;

pub use connect::{ConnectTo, Connected, HttpVersion, TcpConnect, TcpFuture};
pub use endpoint::{MAX_HTTP2_CONNECTIONS, MAX_IDLE};
pub use error::TryError;
pub use gather::{Gather, MAX_GATHERED, MAX_YIELDS};
pub use h1::MAX_HEAD_BYTES;
pub use take::{MAX_STALE, WITHDRAWN_PATIENCE};
pub use upgrade::{Upgrade, caller_half, join_upgrade};

use endpoint::EndpointPool;
use shared::Shared;

/// Sends requests to endpoints over connections that it keeps. See the [module](self). Clones share the
/// connections.
#[derive(Clone)]
pub struct Pool<C> {
    connector: C,
    shared: Arc<Shared>,
    shard: usize,
}

/// The answer of a [`Pool`].
#[must_use = "futures do nothing unless polled"]
pub struct ResponseFuture(Pin<Box<dyn Future<Output = Result<Response<Body>, TryError>> + Send>>);

impl<C> Pool<C> {
    /// A pool with one shard that makes connections with `connector`: a
    /// `tower::Service<ConnectTo, Response = Connected<IO>>`.
    pub fn new(connector: C) -> Self {
        Self { connector, shared: Arc::new(Shared::new(1)), shard: 0 }
    }

    /// Divides the pool among `shards` runtimes, before it is used; connections made on one are used on that
    /// one only. Fewer than one is one. Limits stay those of the whole process.
    #[must_use]
    pub fn shards(self, shards: usize) -> Self {
        Self { shared: Arc::new(Shared::new(shards)), ..self }
    }

    /// The same pool, for the runtime with this number.
    #[must_use]
    pub fn with_shard(self, shard: usize) -> Self {
        Self { shard, ..self }
    }

    /// Closes connections that have been idle for too long or that the other end has closed; says how many.
    /// Cheap enough to be called every few seconds; without it, connections to endpoints that nobody calls
    /// any more stay open until the other end closes them.
    pub fn sweep(&self, now: Instant) -> usize {
        let endpoints = self.shared.endpoints();
        endpoints.iter().filter_map(|e| EndpointPool::of(e, &self.shared)).map(|p| p.sweep(now)).sum()
    }

    /// Closes what is idle, and from now on each connection when its requests have ended. Requests are still
    /// taken: a program that shuts down may have calls to make. [`Pool::connections`] tells when all is over.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::Relaxed);
        for endpoint in self.shared.endpoints() {
            if let Some(pool) = EndpointPool::of(&endpoint, &self.shared) {
                pool.close();
            }
        }
    }

    /// How many connections are open or being opened, upgraded ones included.
    pub fn connections(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }
}

impl<C, IO> Service<Dispatch<Body>> for Pool<C>
where
    C: Service<ConnectTo, Response = Connected<IO>> + Clone + Send + Sync + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send,
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Response = Response<Body>;
    type Error = TryError;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TryError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut dispatch: Dispatch<Body>) -> ResponseFuture {
        // Counted here, so that the next choice of a balancer knows of it.
        let mut in_flight = Some(dispatch.endpoint.state().begin());
        if let Some(kept) = kept::begin(&self.shared, self.shard, &mut dispatch, &mut in_flight) {
            return ResponseFuture(Box::pin(kept));
        }
        let in_flight = in_flight.unwrap_or_else(|| dispatch.endpoint.state().begin());
        let (connector, shared) = (self.connector.clone(), Arc::clone(&self.shared));
        ResponseFuture(Box::pin(take::send(connector, shared, self.shard, dispatch, in_flight)))
    }
}

impl Future for ResponseFuture {
    type Output = Result<Response<Body>, TryError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl<C> fmt::Debug for Pool<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("shard", &self.shard)
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResponseFuture")
    }
}
