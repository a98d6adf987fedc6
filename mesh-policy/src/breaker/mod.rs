//! Refuses a request when too many are in flight to its destination: Istio's
//! `connectionPool.http.http2MaxRequests`.
//!
//! The limit and the count belong to the [`Cluster`], so every stack that calls it shares them, and an edit
//! of the limit takes effect with the next request. A request counts until its response's body ends or is
//! dropped, whatever comes first.
//!
//! Readiness: may refuse; a refusal gives back what the inner service reserved.
//! Reads: [`Facts::route`]'s cluster, unless the layer was made for one; a request without a cluster has
//! no limit. Writes: nothing. Errors: [`Failure`] `overflow`, which names the limit, and the inner
//! service's.
//!
//! ```
//! use http::{Request, Response};
//! use mesh_core::cluster::{ClusterKey, ClusterSettings, Limits, Registry, ServiceName};
//! use tower::{Layer, Service, ServiceExt, service_fn};
//! use tower_mesh_policy::breaker::{CircuitBreakerLayer, State};
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let settings = ClusterSettings {
//!     limits: Limits { requests: 1, ..Limits::default() },
//!     ..ClusterSettings::default()
//! };
//! let service = ServiceName::new("reviews.default.svc.cluster.local", "reviews", "default");
//! let cluster = Registry::new().cluster(&ClusterKey::new(&service.host, 9080, ""), &service, settings, vec![]);
//!
//! let app = service_fn(|_: Request<()>| async { Ok::<_, std::io::Error>(Response::new(String::from("hi"))) });
//! let mut service = CircuitBreakerLayer::for_cluster(cluster.clone()).layer(app);
//! let first = service.ready().await.unwrap().call(Request::new(())).await.unwrap();
//! assert_eq!(State::of(&cluster), State::Open);
//!
//! // The first answer's body is not read yet.
//! let second = service.ready().await.unwrap().call(Request::new(())).await.unwrap_err();
//! assert_eq!(second.code().as_str(), "overflow");
//!
//! drop(first);
//! assert_eq!(State::of(&cluster), State::Closed);
//! assert!(service.ready().await.unwrap().call(Request::new(())).await.is_ok());
//! # });
//! ```

mod body;
mod future;
mod settings;

pub use body::CountedBody;
pub use future::ResponseFuture;
pub use settings::limits;

use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use mesh_core::body::BoxError;
use mesh_core::cluster::{Cluster, Gauge, Permit};
use mesh_core::facts::Facts;
use mesh_core::failure::{Failure, FailureCode};
use tower_layer::Layer;
use tower_service::Service;

/// Makes [`CircuitBreaker`] services. See the [module](self).
#[derive(Debug, Clone, Default)]
pub struct CircuitBreakerLayer {
    cluster: Option<Arc<Cluster>>,
}

/// Refuses what exceeds the limit. See the [module](self).
#[derive(Debug, Clone)]
pub struct CircuitBreaker<S> {
    inner: S,
    cluster: Option<Arc<Cluster>>,
}

/// Whether a breaker admits the next request. It opens and closes with the count, so there is no half-open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Below the limit: the next request is admitted.
    Closed,
    /// At the limit: the next request is refused.
    Open,
}

impl State {
    /// The state of `cluster`'s breaker.
    pub fn of(cluster: &Cluster) -> Self {
        let limit = cluster.load_settings().limits.requests;
        if cluster.in_use(Gauge::Requests) < limit { Self::Closed } else { Self::Open }
    }
}

impl CircuitBreakerLayer {
    /// For the cluster that the router chose.
    pub const fn new() -> Self {
        Self { cluster: None }
    }

    /// For one cluster, whatever a router chose.
    pub const fn for_cluster(cluster: Arc<Cluster>) -> Self {
        Self { cluster: Some(cluster) }
    }
}

/// Takes one of `cluster`'s requests in flight, to be held as long as the request lasts.
///
/// # Errors
/// [`FailureCode::Overflow`] when the limit is reached.
pub fn acquire(cluster: &Cluster) -> Result<Permit, Failure> {
    let limit = cluster.load_settings().limits.requests;
    cluster.try_acquire(Gauge::Requests, limit).ok_or_else(|| {
        Failure::new(FailureCode::Overflow).detail(format!(
            "{}: {limit} requests are in flight, as many as the DestinationRule's \
             trafficPolicy.connectionPool.http.http2MaxRequests allows",
            cluster.key()
        ))
    })
}

impl<S> Layer<S> for CircuitBreakerLayer {
    type Service = CircuitBreaker<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CircuitBreaker { inner, cluster: self.cluster.clone() }
    }
}

impl<S, A, B> Service<Request<A>> for CircuitBreaker<S>
where
    S: Service<Request<A>, Response = Response<B>> + Clone,
    S::Error: Into<BoxError>,
{
    type Response = Response<CountedBody<B>>;
    type Error = Failure;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx).map_err(|e| Failure::of(e.into()))
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let routed = || Facts::of(&request)?.route()?.cluster.as_ref();
        let permit = match self.cluster.as_ref().or_else(routed) {
            None => None,
            Some(cluster) => match acquire(cluster) {
                Ok(permit) => Some(permit),
                Err(failure) => {
                    // Gives back what `poll_ready` has reserved further in.
                    let fresh = self.inner.clone();
                    self.inner = fresh;
                    return ResponseFuture::refuse(failure);
                }
            },
        };
        ResponseFuture::forward(self.inner.call(request), permit)
    }
}

#[cfg(test)]
mod tests;
