//! Doubles and peers for the mesh's own tests: real sockets, real processes, real certificates.
//!
//! * [`backend`]: an HTTP/1.1 and HTTP/2 application that says who it is, echoes, fails on demand and counts.
//! * [`tcp`]: peers that do not speak HTTP.
//! * [`client`]: one connection and the calls on it; [`load`]: many of them in a closed loop, with a report.
//! * [`process`]: child processes whose output is kept and which never outlive the test.
//! * [`sidecar`]: `mesh-proxy run` as a builder.
//! * [`yaml`]: directories of resources and the texts that go into them.
//! * [`ca`]: a certificate authority that issues good and bad certificates; [`tls`]: plain peers that use them.
//! * [`ports`], [`wait`]: free ports, and waiting with a bound and a reason.
//!
//! Everything runs on the caller's tokio runtime and on the real clock; every wait is bounded. Helpers whose
//! failure means that the test cannot go on panic with what they know; what a test may want to look at
//! (a refused call, a broken connection) is a value.
//!
//! ```
//! use mesh_test::{backend::Backend, client, load::LoadGen};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let v1 = Backend::start("reviews-v1").await;
//! let reply = client::get(v1.addr(), "reviews:9080", "/").await.unwrap();
//! assert_eq!((reply.status, reply.served_by()), (200, Some("reviews-v1")));
//!
//! let load = LoadGen::to(v1.addr()).host("reviews:9080").connections(2).start();
//! mesh_test::wait::until_secs(5, "some load", async || load.snapshot().total > 20).await;
//! let report = load.stop().await;
//! assert_eq!(report.failed, 0, "{report}");
//! # }
//! ```
#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a helper that cannot go on ends the test with its reason"
)]

pub mod backend;
pub mod ca;
pub mod client;
pub mod load;
pub mod ports;
pub mod process;
pub mod sidecar;
pub mod tcp;
pub mod tls;
pub mod wait;
pub mod yaml;
