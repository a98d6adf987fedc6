//! Metrics with Istio's names and labels, in bounded memory.
//!
//! [`Metrics`] holds them; [`Recorder`] writes them, without a lock, a formatted byte or a hashed label a
//! request: what determines a set of labels (the two workloads, the cluster, the identities) is shared by
//! address, and a small cache finds the numbers by these addresses. A label's value is never text that a
//! caller chose: no path, method, host header or user agent.
//!
//! Label sets have a budget ([`DEFAULT_LABEL_BUDGET`]). Past it, records go to sets in which everything
//! that the other side determines is [`OVERFLOW`], and `mesh_telemetry_label_overflow_total` counts them.
//!
//! Families: `istio_requests_total`, `istio_request_duration_milliseconds`, `istio_request_bytes`,
//! `istio_response_bytes` (bodies, without headers), `istio_tcp_connections_opened_total`,
//! `istio_tcp_connections_closed_total`, `istio_tcp_sent_bytes_total` (to the caller),
//! `istio_tcp_received_bytes_total` (from the caller), `istio_build`.
//!
//! ```
//! use std::time::Duration;
//! use mesh_core::facts::Facts;
//! use tower_mesh_telemetry::metrics::{Exposition, Metrics, Outcome, OwnWorkload};
//!
//! let metrics = Metrics::new(OwnWorkload::default());
//! metrics.recorder().request(&Facts::default(), Outcome::http(200), Duration::from_millis(3), 0, 120);
//!
//! let text = metrics.encode(Exposition::Classic);
//! assert!(text.contains("# TYPE istio_requests_total counter\n"));
//! assert!(text.contains("connection_security_policy=\"none\"} 1\n"));
//! assert!(metrics.encode(Exposition::OpenMetrics).ends_with("# EOF\n"));
//! ```

mod exposition;
mod labels;
mod series;

pub use exposition::{Exposition, negotiate, to_classic};
pub use labels::{
    DOWNSTREAM_CLOSED, Labels, NO_FLAG, OVERFLOW, Outcome, OwnWorkload, RequestProtocol, UNKNOWN,
};
pub use series::{BUCKETS, MAX_OVERFLOW_SETS};

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_core::facts::Facts;
use mesh_core::live::Live;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use series::{CONNECTION_SLOTS, Histogram, HttpSeries, Interned, REQUEST_SLOTS, TcpSeries};

/// How many label sets requests may have, and how many connections may have, beside the overflown ones.
///
/// A set costs about 1 KiB of memory, and each scrape about 60 lines.
pub const DEFAULT_LABEL_BUDGET: usize = 2_000;

/// The mesh's metrics of one workload, and the registry that they are read from. Clones share both.
#[derive(Clone)]
pub struct Metrics {
    families: Arc<Families>,
    /// Locked for registering and for scraping, never for recording.
    registry: Arc<Mutex<Registry>>,
}

/// Makes [`Metrics`].
#[derive(Debug)]
pub struct MetricsBuilder {
    own: Live<OwnWorkload>,
    registry: Registry,
    label_budget: usize,
    build: (&'static str, &'static str),
}

/// Writes requests and connections into [`Metrics`]. Clones are cheap and share the numbers.
#[derive(Debug, Clone)]
pub struct Recorder(Arc<Families>);

/// What is counted of one open connection, while it is open.
///
/// Bytes are in the metrics as soon as they are reported. The connection counts as opened from the start
/// and as closed when this is dropped, under the flag that [`fail`](Self::fail) gave.
#[derive(Debug)]
pub struct TcpRecorder {
    families: Arc<Families>,
    facts: Facts,
    series: Arc<TcpSeries>,
    flags: &'static str,
    sent: AtomicU64,
    received: AtomicU64,
}

/// Everything that is counted; a collector for the registry.
struct Families {
    own: Live<OwnWorkload>,
    http: Interned<HttpSeries>,
    tcp: Interned<TcpSeries>,
    overflows: AtomicU64,
    overflow_told: AtomicBool,
    build: (&'static str, &'static str),
}

impl Metrics {
    /// Metrics of `own`, in a registry of their own.
    ///
    /// `own` is the workload's plain description, or a [`Live`] one where it is known only later.
    pub fn new(own: impl Into<Own>) -> Self {
        Self::builder(own).build()
    }

    /// Starts with an empty registry and the default limits.
    pub fn builder(own: impl Into<Own>) -> MetricsBuilder {
        MetricsBuilder {
            own: own.into().0,
            registry: Registry::default(),
            label_budget: DEFAULT_LABEL_BUDGET,
            build: ("proxy", env!("CARGO_PKG_VERSION")),
        }
    }

    /// What writes into these metrics.
    pub fn recorder(&self) -> Recorder {
        Recorder(Arc::clone(&self.families))
    }

    /// Registers further metrics beside the mesh's, at any time. The registry is locked while
    /// `register` runs: it must not call [`encode`](Self::encode).
    pub fn with_registry<R>(&self, register: impl FnOnce(&mut Registry) -> R) -> R {
        register(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets the mesh's own families be read from another registry, too.
    pub fn register_in(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(Arc::clone(&self.families)));
    }

    /// Everything in the registry, as text for a scraper; see [`negotiate`].
    pub fn encode(&self, format: Exposition) -> String {
        let mut text = String::new();
        let written = self.with_registry(|r| prometheus_client::encoding::text::encode(&mut text, r));
        if written.is_err() {
            tracing::error!("a registered metric could not be encoded; the scrape is cut short");
        }
        match format {
            Exposition::OpenMetrics => text,
            Exposition::Classic => to_classic(&text),
        }
    }

    /// How many records went to overflown label sets.
    pub fn label_overflows(&self) -> u64 {
        self.families.overflows.load(Ordering::Relaxed)
    }
}

/// The own workload of [`Metrics`]: fixed, or live.
#[derive(Debug, Clone)]
pub struct Own(Live<OwnWorkload>);

impl From<OwnWorkload> for Own {
    fn from(own: OwnWorkload) -> Self {
        Self(Live::fixed(own))
    }
}

impl From<mesh_core::facts::WorkloadLabels> for Own {
    fn from(labels: mesh_core::facts::WorkloadLabels) -> Self {
        Self(Live::fixed(OwnWorkload { labels, service: None, ports: Vec::new() }))
    }
}

impl From<Live<OwnWorkload>> for Own {
    fn from(own: Live<OwnWorkload>) -> Self {
        Self(own)
    }
}

impl MetricsBuilder {
    /// Uses this registry instead of an empty one.
    #[must_use]
    pub fn registry(mut self, registry: Registry) -> Self {
        self.registry = registry;
        self
    }

    /// The registry, for registering further metrics.
    pub fn registry_mut(&mut self) -> &mut Registry {
        &mut self.registry
    }

    /// How many label sets requests, and connections, may have. Default: [`DEFAULT_LABEL_BUDGET`].
    #[must_use]
    pub fn label_budget(mut self, sets: usize) -> Self {
        self.label_budget = sets;
        self
    }

    /// The labels of `istio_build`. Default: component `proxy`, tag the version of this crate.
    #[must_use]
    pub fn build_info(mut self, component: &'static str, tag: &'static str) -> Self {
        self.build = (component, tag);
        self
    }

    /// Registers the families.
    pub fn build(mut self) -> Metrics {
        let families = Arc::new(Families {
            own: self.own,
            http: Interned::new(self.label_budget, REQUEST_SLOTS),
            tcp: Interned::new(self.label_budget, CONNECTION_SLOTS),
            overflows: AtomicU64::new(0),
            overflow_told: AtomicBool::new(false),
            build: self.build,
        });
        self.registry.register_collector(Box::new(Arc::clone(&families)));
        Metrics { families, registry: Arc::new(Mutex::new(self.registry)) }
    }
}

impl Recorder {
    /// Writes one request: how it ended, how long it took, and how many bytes its bodies had.
    pub fn request(
        &self,
        facts: &Facts,
        outcome: Outcome,
        duration: Duration,
        request_bytes: u64,
        response_bytes: u64,
    ) {
        let own = self.0.own.load();
        let ((), overflown) = self.0.http.find(&own, facts, outcome, |series| {
            series.record(duration, request_bytes, response_bytes);
        });
        self.0.count_overflow(overflown);
    }

    /// Counts a connection as opened; the rest goes through the [`TcpRecorder`].
    ///
    /// Call it once the endpoint is known (or known to be unreachable): the labels are taken now.
    pub fn connection(&self, facts: &Facts) -> TcpRecorder {
        let series = self.0.tcp_series(facts, NO_FLAG);
        series.opened.fetch_add(1, Ordering::Relaxed);
        TcpRecorder {
            families: Arc::clone(&self.0),
            facts: facts.clone(),
            series,
            flags: NO_FLAG,
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
        }
    }
}

impl TcpRecorder {
    /// Counts bytes that went to the caller. From one task at a time: the total is not exact otherwise.
    pub fn sent(&self, bytes: u64) {
        add_alone(&self.sent, bytes);
        self.series.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes that came from the caller. From one task at a time: the total is not exact otherwise.
    pub fn received(&self, bytes: u64) {
        add_alone(&self.received, bytes);
        self.series.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// How many bytes went to the caller.
    pub fn total_sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// How many bytes came from the caller.
    pub fn total_received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Says why it ends: Envoy's response flag. Empty is none.
    pub fn fail(&mut self, flags: &'static str) {
        self.flags = if flags.is_empty() { NO_FLAG } else { flags };
    }
}

/// Adds without an atomic operation, which is a part of what a small message costs: nobody else writes to it.
fn add_alone(counter: &AtomicU64, bytes: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(bytes), Ordering::Relaxed);
}

impl Drop for TcpRecorder {
    fn drop(&mut self) {
        let closed = if self.flags == NO_FLAG {
            Arc::clone(&self.series)
        } else {
            self.families.tcp_series(&self.facts, self.flags)
        };
        closed.closed.fetch_add(1, Ordering::Relaxed);
    }
}

impl Families {
    fn count_overflow(&self, overflown: bool) {
        if !overflown {
            return;
        }
        self.overflows.fetch_add(1, Ordering::Relaxed);
        if !self.overflow_told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the label budget is used up: new peers and destinations are counted as {OVERFLOW:?}"
            );
        }
    }

    fn tcp_series(&self, facts: &Facts, flags: &'static str) -> Arc<TcpSeries> {
        let own = self.own.load();
        let (series, overflown) = self.tcp.find(&own, facts, Outcome::tcp(flags), Arc::clone);
        self.count_overflow(overflown);
        series
    }
}

/// What an encoder calls a counter: a family's name without `_total`.
struct Family(&'static str, &'static str);

impl Family {
    fn counter<S>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        all: &[Arc<S>],
        of: impl Fn(&S) -> (&Labels, &AtomicU64),
    ) -> fmt::Result {
        if all.is_empty() {
            return Ok(());
        }
        let mut encoder = encoder.encode_descriptor(self.0, self.1, None, MetricType::Counter)?;
        for series in all {
            let (labels, count) = of(series);
            encoder
                .encode_family(labels)?
                .encode_counter::<NoLabelSet, _, u64>(&count.load(Ordering::Relaxed), None)?;
        }
        Ok(())
    }

    fn histogram(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        all: &[Arc<HttpSeries>],
        per_unit: f64,
        of: impl Fn(&HttpSeries) -> &Histogram,
    ) -> fmt::Result {
        if all.is_empty() {
            return Ok(());
        }
        let mut encoder = encoder.encode_descriptor(self.0, self.1, None, MetricType::Histogram)?;
        for series in all {
            let seen = of(series).snapshot();
            let sum = seen.raw_sum as f64 / per_unit;
            encoder.encode_family(&*series.labels)?.encode_histogram::<NoLabelSet>(
                sum,
                seen.count,
                &seen.buckets,
                None,
            )?;
        }
        Ok(())
    }
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let e = &mut encoder;
        let http = self.http.all();
        Family("istio_requests", "Requests, by who called whom and how it ended.").counter(
            e,
            &http,
            |s| (&*s.labels, &s.requests),
        )?;
        Family(
            "istio_request_duration_milliseconds",
            "Time from the arrival of a request to the end of its answer.",
        )
        .histogram(e, &http, 1e3, |s| &s.duration)?;
        Family("istio_request_bytes", "Sizes of request bodies.")
            .histogram(e, &http, 1.0, |s| &s.request_bytes)?;
        Family("istio_response_bytes", "Sizes of response bodies.")
            .histogram(e, &http, 1.0, |s| &s.response_bytes)?;

        let tcp = self.tcp.all();
        Family("istio_tcp_connections_opened", "Connections opened.")
            .counter(e, &tcp, |s| (&*s.labels, &s.opened))?;
        Family("istio_tcp_connections_closed", "Connections closed.")
            .counter(e, &tcp, |s| (&*s.labels, &s.closed))?;
        Family("istio_tcp_sent_bytes", "Bytes sent to callers on connections.")
            .counter(e, &tcp, |s| (&*s.labels, &s.sent))?;
        Family("istio_tcp_received_bytes", "Bytes received from callers on connections.").counter(
            e,
            &tcp,
            |s| (&*s.labels, &s.received),
        )?;

        e.encode_descriptor(
            "mesh_telemetry_label_overflow",
            "Records that went to overflown label sets because the label budget is used up.",
            None,
            MetricType::Counter,
        )?
        .encode_counter::<NoLabelSet, _, u64>(&self.overflows.load(Ordering::Relaxed), None)?;
        let (component, tag) = self.build;
        e.encode_descriptor("istio_build", "What is running: 1, with its version.", None, MetricType::Gauge)?
            .encode_family(&[("component", component), ("tag", tag)])?
            .encode_gauge(&1_i64)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("families", &self.families).finish_non_exhaustive()
    }
}

impl fmt::Debug for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Families")
            .field("http", &self.http)
            .field("tcp", &self.tcp)
            .field("overflows", &self.overflows)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
