//! Ejects endpoints that keep failing: a `DestinationRule`'s `outlierDetection`.
//!
//! [`Outlier`] watches what becomes of each try at an endpoint, [`decide`] says whether the endpoint is
//! ejected and how long, and the balancer, which reads the same [`EndpointState`], leaves it out until
//! then. Everything is counted on the endpoint's handle, so an edit of the configuration forgets nothing.
//!
//! What counts (as in Envoy, unless said):
//!
//! - an answer of 500 to 599 (or of the statuses that `outlierDetectionHttpErrorCodes` lists), and among
//!   those 502, 503 and 504 as gateway errors; a gRPC error in the response's headers counts as the HTTP
//!   status that it corresponds to;
//! - a failure on the way (connect, TLS, reset, timeout), as a gateway error, or on its own when
//!   `splitExternalLocalOriginErrors` says so; a caller that gives up is none;
//! - not what a policy or the caller is to blame for: a verified sidecar's own refusal, a circuit breaker, and
//!   429 or gRPC `RESOURCE_EXHAUSTED`, which tell of load. They neither count nor reset;
//! - every other answer resets.
//!
//! The n-th ejection in a row lasts n times the base time, at most [`MAX_EJECTION`]; each interval without
//! one takes back one step. An endpoint comes back by itself: no timer, no task.
//!
//! Readiness: passes through. Reads: [`Facts::failure`](mesh_core::facts::Facts::failure) and the extension
//! [`TryDeadline`](mesh_core::cluster::TryDeadline), to tell a try that is abandoned because its time is
//! over from a caller that went away. Writes: [`EndpointState`], [`Cluster::count_ejection`], and one
//! warning per ejection in the log. Errors: the inner service's.
//!
//! ```
//! use std::time::Duration;
//! use http::StatusCode;
//! use mesh_core::cluster::{ClusterKey, ClusterSettings, EndpointSpec, Outcome, OutlierSettings, Registry, ServiceName};
//! use tokio::time::Instant;
//! use tower_mesh_policy::outlier::observe;
//!
//! let settings = ClusterSettings {
//!     outlier: Some(OutlierSettings { consecutive_5xx: 2, ..OutlierSettings::default() }),
//!     ..ClusterSettings::default()
//! };
//! let service = ServiceName::new("reviews.default.svc.cluster.local", "reviews", "default");
//! let specs = vec![EndpointSpec::plaintext("127.0.0.1:19081".parse().unwrap())];
//! let cluster = Registry::new().cluster(&ClusterKey::new(&service.host, 9080, ""), &service, settings, specs);
//! let endpoint = cluster.load_endpoints().members()[0].clone();
//!
//! let now = Instant::now();
//! observe(&cluster, &endpoint, Outcome::Status(StatusCode::INTERNAL_SERVER_ERROR), now);
//! assert!(!endpoint.state().is_ejected(now));
//! observe(&cluster, &endpoint, Outcome::Status(StatusCode::INTERNAL_SERVER_ERROR), now);
//! assert!(endpoint.state().is_ejected(now));
//! assert!(!endpoint.state().is_ejected(now + Duration::from_secs(31)));
//! ```
//!
//! [`EndpointState`]: mesh_core::cluster::EndpointState
//! [`Cluster::count_ejection`]: mesh_core::cluster::Cluster::count_ejection

mod decide;
mod layer;
mod settings;

pub use decide::{Counts, Ejection, MAX_EJECTION, Reason, Verdict, classify, decide};
pub use layer::{Outlier, OutlierLayer, ResponseFuture, observe};
pub use settings::{settings, validate};

#[cfg(test)]
mod tests;
