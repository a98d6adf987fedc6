//! Tries a request again where that is safe and helps.
//!
//! [`decide`] is the whole decision; [`Retry`] stands around it. In short:
//!
//! - What provably never reached the application (no connection, a refused stream, a request that the peer's
//!   GOAWAY leaves out, a verified sidecar that says so) is repeated for every method.
//! - Everything else only for idempotent methods, for gRPC statuses that the policy names, or where somebody
//!   wrote the conditions down.
//! - Under the cluster's retry budget; each retry is counted there until its answer's body has ended.
//! - Of many requests that break at once, as when an endpoint dies, those beyond the budget wait a quarter of
//!   a second at most for their turn.
//! - Bodies are kept up to [`MAX_REPLAY_BYTES`](mesh_core::cluster::MAX_REPLAY_BYTES) while they are sent; a
//!   request whose body is larger is not tried again once it was read from.
//! - A retry goes to an endpoint that was not tried yet, where there is one, after a pause with jitter.
//! - Once the head of an answer has gone to the caller, nothing is tried again.
//!
//! Readiness: passes through; a retry waits for the inner service to be ready again. Reads:
//! [`RoutePolicy`](crate::policy::RoutePolicy) (else the layer's own policy), the route's cluster. Writes:
//! header [`ATTEMPT_COUNT`], extension [`Attempt`](crate::attempt::Attempt),
//! [`Facts::count_attempt`](mesh_core::facts::Facts::count_attempt), and at the end
//! [`Facts::set_upstream`](mesh_core::facts::Facts::set_upstream). Errors: those of the last try, as
//! [`TryError`](crate::pool::TryError); `timeout` when the last try took too long.
//!
//! ```
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicU32, Ordering};
//! use http::{Request, Response};
//! use mesh_core::body::Body;
//! use mesh_core::failure::{Failure, FailureCode};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_mesh_route::retry::{RetryLayer, RetryPolicy};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
//! let tries = Arc::new(AtomicU32::new(0));
//! let count = Arc::clone(&tries);
//! let once_unreachable = service_fn(move |_: Request<Body>| {
//!     let n = count.fetch_add(1, Ordering::Relaxed);
//!     async move {
//!         if n == 0 { Err(Failure::new(FailureCode::ConnectFailed)) } else { Ok(Response::new(Body::empty())) }
//!     }
//! });
//! let service = ServiceBuilder::new().layer(RetryLayer::new(RetryPolicy::default())).service(once_unreachable);
//! let request = Request::post("/").body(Body::from("order")).unwrap();
//! assert_eq!(service.oneshot(request).await.unwrap().status(), 200);
//! assert_eq!(tries.load(Ordering::Relaxed), 2);
//! # });
//! ```

mod decide;
mod policy;
mod replay;
mod service;

pub use decide::{Context, Outcome, Verdict, decide};
pub use policy::{
    Condition, MAX_ATTEMPTS, MAX_BACKOFF_FACTOR, RetryOn, RetryPolicy, UNSENT_ATTEMPTS, UnknownCondition,
};
pub use service::{ATTEMPT_COUNT, ResponseFuture, Retry, RetryLayer};

#[cfg(test)]
mod tests;
