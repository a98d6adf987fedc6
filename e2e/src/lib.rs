//! What end-to-end tests stand on: a namespace of a real cluster for each, and applications in pods that do what
//! they are told.
//!
//! Tests run in the network of the node (`just e2e`), from where the API server and every pod can be reached.
//!
//! ```no_run
//! # use mesh_e2e::Namespace;
//! # async fn test() {
//! mesh_e2e::in_namespace("hello", &[], async |namespace: Namespace| {
//!     namespace.apply(&mesh_e2e::yaml::deployment("web").to_string()).await;
//!     namespace.rolled_out("web").await;
//!     let web = namespace.app("web").await;
//!     assert_eq!(web.get("http://web:9080/").await.status, Some(200));
//! })
//! .await;
//! # }
//! ```
#![expect(clippy::panic, reason = "a helper that cannot go on ends the test with its reason")]

mod app;
mod capture;
mod cluster;
mod namespace;
pub mod yaml;

pub use app::{App, Outcome, Report, TcpOutcome};
pub use capture::{Capture, Seen, Segment, tls13_only};
pub use cluster::{SYSTEM, Sidecar, client, component, helm, installed, kill, kubectl, restored, sidecar};
pub use namespace::{Namespace, in_namespace};
