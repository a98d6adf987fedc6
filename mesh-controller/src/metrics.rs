//! What the controller counts.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use mesh_xds::server::ServerCounters;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use crate::authority::ca::Ca;

/// The content type of [`Metrics::page`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the controller counts. Every label has a fixed set of values.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    issued: Counter,
    refused: Family<Reason, Counter>,
    tokens: Family<Outcome, Counter>,
    webhooks: Family<Decision, Counter>,
    connections: Family<Port, Gauge>,
    closed: Family<Closed, Counter>,
    root_end: Gauge,
    ca_end: Gauge,
    server_end: Gauge,
    leader: Gauge,
}

/// What is counted of one sort of writes to the API server. Cheap to clone; all clones count together.
///
/// ```
/// use mesh_controller::metrics::Writes;
/// use prometheus_client::registry::Registry;
///
/// let (writes, mut registry) = (Writes::default(), Registry::default());
/// writes.register(&mut registry, "status", "Statuses of resources");
/// let mut page = String::new();
/// prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
/// assert!(page.contains("status_writes_total 0") && page.contains("status_failures_total 0"));
/// ```
#[derive(Debug, Clone, Default)]
pub struct Writes {
    written: Counter,
    failed: Counter,
}

impl Writes {
    /// Puts them into a registry, as `NAME_writes` and `NAME_failures`; `what` is written, such as "Statuses".
    pub fn register(&self, registry: &mut Registry, name: &str, what: &str) {
        registry.register(format!("{name}_writes"), format!("{what} written"), self.written.clone());
        registry.register(
            format!("{name}_failures"),
            format!("{what} that could not be written, each try counted"),
            self.failed.clone(),
        );
    }

    pub(crate) fn written(&self) {
        self.written.inc();
    }

    pub(crate) fn failed(&self) {
        self.failed.inc();
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Decision {
    webhook: &'static str,
    decision: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Port {
    port: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Closed {
    port: &'static str,
    reason: &'static str,
}

impl Metrics {
    /// All at zero.
    ///
    /// ```
    /// let metrics = mesh_controller::metrics::Metrics::new();
    /// metrics.refused("expired");
    /// let page = metrics.page();
    /// assert!(page.contains("mesh_controller_certificates_refused_total{reason=\"expired\"} 1"));
    /// ```
    pub fn new() -> Self {
        Self::with(Registry::with_prefix("mesh_controller"))
    }

    /// With the counts of a discovery server besides.
    pub fn of(discovery: Arc<ServerCounters>) -> Self {
        let mut registry = Registry::with_prefix("mesh_controller");
        registry.register_collector(Box::new(Discovery(discovery)));
        Self::with(registry)
    }

    fn with(mut registry: Registry) -> Self {
        let issued = Counter::default();
        let refused = Family::<Reason, Counter>::default();
        let tokens = Family::<Outcome, Counter>::default();
        let webhooks = Family::<Decision, Counter>::default();
        let connections = Family::<Port, Gauge>::default();
        let closed = Family::<Closed, Counter>::default();
        let (root_end, ca_end, server_end, leader) =
            (Gauge::default(), Gauge::default(), Gauge::default(), Gauge::default());
        registry.register("certificates_issued", "Certificates that workloads were issued", issued.clone());
        registry.register(
            "certificates_refused",
            "Requests for certificates that were refused, by reason",
            refused.clone(),
        );
        registry.register(
            "tokens",
            "Tokens that were shown, by what came of it: accepted, cached, stale, or why not",
            tokens.clone(),
        );
        registry.register("webhook_decisions", "Answers of the webhooks", webhooks.clone());
        registry.register("connections", "Open connections, by port", connections.clone());
        registry.register(
            "connections_refused",
            "Connections that were closed before they could ask, by port and reason",
            closed.clone(),
        );
        registry.register(
            "ca_root_expiry_timestamp_seconds",
            "When the last root expires, in seconds since 1970; 0 while there is no CA",
            root_end.clone(),
        );
        registry.register(
            "ca_expiry_timestamp_seconds",
            "When the certificate that signs expires, in seconds since 1970; 0 while there is no CA",
            ca_end.clone(),
        );
        registry.register(
            "server_certificate_expiry_timestamp_seconds",
            "When the controller's own certificate expires, in seconds since 1970; 0 while it has none",
            server_end.clone(),
        );
        registry.register("leader", "1 while this replica is the one that writes", leader.clone());
        Self {
            registry: Mutex::new(registry),
            issued,
            refused,
            tokens,
            webhooks,
            connections,
            closed,
            root_end,
            ca_end,
            server_end,
            leader,
        }
    }

    /// The page that Prometheus reads, in the OpenMetrics text format.
    pub fn page(&self) -> String {
        let mut page = String::new();
        // Writing into a String does not fail.
        let _ = text::encode(&mut page, &self.registry());
        page
    }

    /// Others register what they count, under the prefix `mesh_controller`.
    ///
    /// ```
    /// use prometheus_client::metrics::gauge::Gauge;
    ///
    /// let metrics = mesh_controller::metrics::Metrics::new();
    /// metrics.register(|registry| registry.register("moons", "How many there are", Gauge::<i64>::default()));
    /// assert!(metrics.page().contains("mesh_controller_moons 0"));
    /// ```
    pub fn register(&self, others: impl FnOnce(&mut Registry)) {
        others(&mut self.registry());
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A certificate was issued.
    pub fn issued(&self) {
        self.issued.inc();
    }

    /// A certificate was refused.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    /// A token was shown.
    pub fn token(&self, outcome: &'static str) {
        self.tokens.get_or_create(&Outcome { outcome }).inc();
    }

    /// A webhook has answered.
    pub fn webhook(&self, webhook: &'static str, decision: &'static str) {
        self.webhooks.get_or_create(&Decision { webhook, decision }).inc();
    }

    /// A connection was accepted on `port`; it counts as open until what is returned is dropped.
    pub fn connection(&self, port: &'static str) -> OpenConnection {
        let gauge = self.connections.get_or_create(&Port { port }).clone();
        gauge.inc();
        OpenConnection(gauge)
    }

    /// A connection was closed before it could ask.
    pub fn closed(&self, port: &'static str, reason: &'static str) {
        self.closed.get_or_create(&Closed { port, reason }).inc();
    }

    /// This authority is in force.
    pub fn authority(&self, ca: &Ca) {
        self.root_end.set(seconds(ca.root_not_after()));
        self.ca_end.set(seconds(ca.not_after()));
    }

    /// The controller's own certificate is in force until then.
    pub fn server_certificate(&self, not_after: SystemTime) {
        self.server_end.set(seconds(not_after));
    }

    /// Whether this replica is the one that writes.
    pub fn leader(&self, leader: bool) {
        self.leader.set(i64::from(leader));
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Counts a connection as open until it is dropped.
#[derive(Debug)]
pub struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// The counts of a discovery server, read when the page is.
#[derive(Debug)]
struct Discovery(Arc<ServerCounters>);

impl Collector for Discovery {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counts = self.0.read();
        let proxies = ConstGauge::new(i64::try_from(counts.streams).unwrap_or(i64::MAX));
        let help = "Proxies whose discovery stream is open";
        proxies.encode(encoder.encode_descriptor("proxies", help, None, proxies.metric_type())?)?;
        for (name, help, count) in [
            ("streams_opened", "Discovery streams that were opened", counts.opened),
            (
                "streams_refused",
                "Discovery streams that were refused because there were too many",
                counts.refused_streams,
            ),
            (
                "streams_unauthenticated",
                "Discovery streams of which nobody knew whose they are",
                counts.unauthenticated,
            ),
            (
                "stream_violations",
                "Discovery streams that were closed for what the peer said",
                counts.violations,
            ),
            ("discovery_requests", "Requests of proxies", counts.requests),
            ("pushes", "Responses to proxies", counts.responses),
            ("pushed_resources", "Resources in responses", counts.resources),
            ("pushed_removals", "Removals in responses", counts.removals),
            ("pushed_bytes", "Bytes of content in responses", counts.bytes),
            ("acks", "Responses that proxies have taken", counts.acks),
            ("nacks", "Responses that proxies have refused", counts.nacks),
            ("stale_verdicts", "Verdicts on responses that were not the last", counts.stale),
        ] {
            let counter = ConstCounter::new(count);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}
