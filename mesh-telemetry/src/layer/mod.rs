//! Measures, traces and logs each request: one layer, one record a request.
//!
//! Readiness: pass-through. It never answers itself and never changes an error.
//!
//! - Metrics ([`crate::metrics`]) and access log ([`crate::access_log`]): written once, when the body of
//!   the answer has ended or is dropped. A caller that leaves before there is an answer is recorded with
//!   code 0 and flag `DC`; one that leaves within the body with the answer's code and flag `DC`. An `Err`
//!   from inside is recorded with code 0 and what the failure in it says, if there is one: whoever turns
//!   errors into answers stands inside of this layer.
//! - Trace context ([`crate::trace`]): continued or started, put into the request's headers (with the feature
//!   `otel` into its extensions, too, as `opentelemetry::trace::SpanContext`).
//! - `x-request-id` ([`request_id`](crate::request_id)): kept or made.
//!
//! Reads [`Facts`]: connection, route, upstream, failure; and [`Failure`] in the answer's extensions, which
//! comes before the one in the facts. Writes: `Facts` where there are none (a request from nowhere in
//! particular, in the layer's direction). From an upstream whose identity is verified it logs
//! `x-mesh-reason` and `x-mesh-detail`; the latter it removes from every answer to the own workload.
//!
//! Counts bodies by wrapping them: [`Measured`] around the request's, [`Recorded`] around the answer's.
//!
//! ```
//! use std::convert::Infallible;
//! use http::{Request, Response};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_mesh_telemetry::layer::{Measured, TelemetryLayer};
//! use tower_mesh_telemetry::metrics::{Exposition, Metrics, OwnWorkload};
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let metrics = Metrics::new(OwnWorkload::default());
//! let service = ServiceBuilder::new()
//!     .layer(TelemetryLayer::new(&metrics))
//!     .service(service_fn(|request: Request<Measured<String>>| async move {
//!         assert!(request.headers().contains_key("traceparent"));
//!         assert!(request.headers().contains_key("x-request-id"));
//!         Ok::<_, Infallible>(Response::new(String::new()))
//!     }));
//! service.oneshot(Request::new(String::new())).await.unwrap();
//!
//! assert!(metrics.encode(Exposition::Classic).contains("response_code=\"200\""));
//! # });
//! ```

mod body;
mod future;
mod ids;
mod record;

pub use body::{Measured, Recorded};
pub use future::ResponseFuture;

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use http::{Request, Response};
use mesh_core::facts::{Connection, Direction, Facts};
use tower_layer::Layer;
use tower_service::Service;

use crate::access_log::AccessLog;
use crate::metrics::{Metrics, Recorder};
use crate::trace::Tracing;
use record::{Logged, Record};

#[cfg(doc)]
use mesh_core::failure::Failure;

/// Wraps services in [`Telemetry`].
#[derive(Debug, Clone)]
pub struct TelemetryLayer(Arc<Config>);

/// Measures, traces and logs each request; see the [module](self).
#[derive(Debug, Clone)]
pub struct Telemetry<S> {
    inner: S,
    config: Arc<Config>,
}

#[derive(Clone)]
struct Config {
    recorder: Recorder,
    access_log: AccessLog,
    tracing: Option<Tracing>,
    request_ids: bool,
    /// Of requests that carry no facts.
    connection: Arc<Connection>,
    clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    random: Arc<dyn Fn() -> u64 + Send + Sync>,
}

impl From<Metrics> for Recorder {
    fn from(metrics: Metrics) -> Self {
        metrics.recorder()
    }
}

impl From<&Metrics> for Recorder {
    fn from(metrics: &Metrics) -> Self {
        metrics.recorder()
    }
}

impl TelemetryLayer {
    /// Records into `metrics`. Traces and request ids are on, as [`Tracing::default`] says; there is no
    /// access log.
    pub fn new(metrics: impl Into<Recorder>) -> Self {
        Self(Arc::new(Config {
            recorder: metrics.into(),
            access_log: AccessLog::off(),
            tracing: Some(Tracing::default()),
            request_ids: true,
            connection: Arc::default(),
            clock: Arc::new(SystemTime::now),
            random: Arc::new(|| fastrand::u64(..)),
        }))
    }

    fn with(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    /// Writes a line for each request. Default: [`AccessLog::off`].
    #[must_use]
    pub fn with_access_log(self, log: AccessLog) -> Self {
        self.with(|c| c.access_log = log)
    }

    /// How traces are continued and started; `None` leaves their headers alone.
    #[must_use]
    pub fn with_tracing(self, tracing: impl Into<Option<Tracing>>) -> Self {
        self.with(|c| c.tracing = tracing.into())
    }

    /// Whether `x-request-id` is made where it is missing. Default: yes.
    #[must_use]
    pub fn with_request_ids(self, on: bool) -> Self {
        self.with(|c| c.request_ids = on)
    }

    /// The direction of requests that carry no [`Facts`]. Default: inbound, as in a server.
    #[must_use]
    pub fn with_direction(self, direction: Direction) -> Self {
        self.with(|c| c.connection = Connection::builder().direction(direction).build())
    }

    /// The wall clock of log lines. Default: the system's. Durations are tokio's.
    #[must_use]
    pub fn with_clock(self, clock: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.with(|c| c.clock = Arc::new(clock))
    }

    /// Where random numbers for ids and sampling come from. Default: `fastrand`.
    #[must_use]
    pub fn with_random(self, random: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        self.with(|c| c.random = Arc::new(random))
    }
}

impl<S> Layer<S> for TelemetryLayer {
    type Service = Telemetry<S>;

    fn layer(&self, inner: S) -> Telemetry<S> {
        Telemetry { inner, config: Arc::clone(&self.0) }
    }
}

impl<S, A, B> Service<Request<A>> for Telemetry<S>
where
    S: Service<Request<Measured<A>>, Response = Response<B>>,
    S::Error: 'static,
    A: http_body::Body,
    B: http_body::Body,
{
    type Response = Response<Recorded<B>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<A>) -> Self::Future {
        let config = &self.config;
        let facts = if let Some(facts) = Facts::of(&request) {
            facts.clone()
        } else {
            let facts = Facts::new(Arc::clone(&config.connection));
            facts.clone().insert(&mut request);
            facts
        };
        let (request_id, hop) =
            ids::mark(request.headers_mut(), config.tracing.as_ref(), config.request_ids, &mut || {
                (config.random)()
            });
        #[cfg(feature = "otel")]
        if let Some(hop) = &hop {
            request.extensions_mut().insert(hop.span_context());
        }
        let logged = config.access_log.is_on().then(|| {
            let trace_id = hop.map(|hop| hop.trace_id_hex());
            Box::new(Logged::of(&request, (config.clock)(), request_id, trace_id))
        });
        let mut record = Record::new(Arc::clone(config), facts, &request, logged);
        let request = request.map(|body| Measured::new(body, &mut record));
        ResponseFuture::new(self.inner.call(request), record)
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("access_log", &self.access_log)
            .field("tracing", &self.tracing)
            .field("request_ids", &self.request_ids)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
