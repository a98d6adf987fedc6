//! What happened: metrics with Istio's names, trace propagation, request ids and access logs.
//!
//! [`TelemetryLayer`] does all of it for HTTP, in one layer and with one record a request;
//! [`ConnectionRecord`] does it for connections whose bytes are not looked into. Both work alone, from
//! plain values.
//!
//! - [`metrics`]: the numbers, their labels, and how a scraper reads them.
//! - [`trace`]: W3C `traceparent`/`tracestate` and B3, read, continued and passed on.
//! - [`request_id`]: the request's id, kept or made.
//! - [`access_log`]: one line a request or connection, JSON or text.
//! - [`layer`]: the layer.
//! - [`connection`]: the record of a relayed connection.

pub mod access_log;
pub mod connection;
pub mod layer;
pub mod metrics;
pub mod request_id;
pub mod trace;

pub use access_log::{AccessLog, AccessLogWriter};
pub use connection::ConnectionRecord;
pub use layer::{Telemetry, TelemetryLayer};
pub use metrics::{Exposition, Metrics, OwnWorkload};
pub use trace::TraceContext;
