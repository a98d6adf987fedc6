//! A service mesh taken apart: each concern is a `tower` layer that works alone; this crate puts them
//! together.
//!
//! [`Mesh::builder`] reads Istio's resources from a directory and gives a handle: a
//! [server layer](Mesh::server_layer) for calls to this program, a [client](Mesh::client) for its own calls.
//! The layers themselves are in [`route`], [`policy`], [`telemetry`] and [`tls`]; what they share is in
//! [`core`]. A sidecar, `mesh-proxy`, is made of the same parts.
//!
//! ```
//! use http::{Request, Response};
//! use tower::{Layer, ServiceExt, service_fn};
//! use tower_mesh::core::body::Body;
//! use tower_mesh::{Mesh, core::yaml::parse_objects};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let policy = parse_objects("policy.yaml", "
//! apiVersion: security.istio.io/v1
//! kind: AuthorizationPolicy
//! metadata: {name: readers}
//! spec: {rules: [{to: [{operation: {methods: [GET]}}]}]}
//! ").unwrap();
//! let (mesh, driver) = Mesh::builder().objects(policy).build().unwrap();
//! tokio::spawn(driver.run());
//!
//! let hello = service_fn(|_: Request<_>| async { Ok::<_, std::convert::Infallible>(Response::new(Body::from("hello"))) });
//! let service = mesh.server_layer().layer(hello);
//!
//! let read = service.clone().oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
//! assert_eq!(read.status(), 200);
//! let write = service.oneshot(Request::post("/").body(Body::empty()).unwrap()).await.unwrap();
//! assert_eq!(write.status(), 403);
//! assert_eq!(write.headers()["x-mesh-reason"], "denied");
//! # }
//! ```

pub mod apps;
mod bodies;
mod builder;
mod check;
pub mod client;
mod connect;
#[cfg(feature = "control-plane")]
pub mod control;
mod destination;
mod driver;
mod dump;
mod hosts;
mod identity;
mod learn;
mod mesh;
pub mod outgoing;
mod peers;
pub mod serve;
pub mod server;
mod stats;
mod status;
pub mod tcp;
mod unsupported;
mod validate;
mod world;

pub use builder::{AccessLogTo, BuildError, LogFormat, MeshBuilder};
pub use check::{Report, check};
pub use client::{AppService, Client, ClientBody};
pub use connect::MeshConnect;
#[cfg(feature = "control-plane")]
pub use control::ControlPlane;
pub use driver::Driver;
pub use identity::IdentitySource;
pub use learn::{LearnRoute, LearntAddress};
pub use mesh::Mesh;
pub use server::ServerLayer;
pub use status::{ConfigurationStatus, Readiness};
pub use validate::validate;

/// The words that every part shares: resources, identities, facts, failures, the store.
pub use mesh_core as core;
/// Whether a request may pass: authorization, rate limits, circuit breaking, outlier ejection.
pub use mesh_policy as policy;
/// Where a request goes: routing, splits, retries, faults, balancing, connection pools.
pub use mesh_route as route;
/// What happened: metrics, traces, access logs.
pub use mesh_telemetry as telemetry;
/// Who speaks: identities, certificates, mTLS.
pub use mesh_tls as tls;

/// The programs of the project's first page, kept compiling.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct FirstPage;
