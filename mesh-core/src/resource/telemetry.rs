//! `Telemetry`: what is measured, traced and logged.

use std::collections::BTreeMap;

use super::common::{Duration, Selector, TargetRef};

mesh_types! {
    /// The spec of a `Telemetry`.
    pub struct Telemetry {
        /// The workloads it is for; absent means its namespace (in the root namespace: the mesh).
        pub selector: Option<Selector>,
        /// Legacy form of `targetRefs`.
        pub target_ref: Option<TargetRef>,
        /// The gateways or services it is for, in place of a selector.
        pub target_refs: Vec<TargetRef>,
        /// Traces.
        pub tracing: Vec<Tracing>,
        /// Metrics.
        pub metrics: Vec<Metrics>,
        /// Access logs.
        pub access_logging: Vec<AccessLogging>,
    }

    /// Traces.
    pub struct Tracing {
        /// Whose.
        #[serde(rename = "match")]
        pub matches: Option<TracingSelector>,
        /// Where they go; only the first is used.
        pub providers: Vec<ProviderRef>,
        /// The share of requests that starts one, 0 to 100.
        pub random_sampling_percentage: Option<f64>,
        /// Whether spans are not reported; the context still travels.
        pub disable_span_reporting: Option<bool>,
        /// Tags of our own.
        pub custom_tags: BTreeMap<String, CustomTag>,
        /// Whether the decision travels in `x-request-id`.
        pub use_request_id_for_trace_sampling: Option<bool>,
        /// Whether Istio's own tags are added.
        pub enable_istio_tags: Option<bool>,
        /// Whether the context does not travel.
        pub disable_context_propagation: Option<bool>,
    }

    /// Whose traces.
    pub struct TracingSelector {
        /// Those of callers, servers, or both.
        pub mode: WorkloadMode,
    }

    /// A tag of our own; one of the four.
    pub struct CustomTag {
        /// A fixed value.
        pub literal: Option<LiteralTag>,
        /// An environment variable.
        pub environment: Option<NamedTag>,
        /// A request header.
        pub header: Option<NamedTag>,
        /// An access log format.
        pub formatter: Option<LiteralTag>,
    }

    /// A value.
    pub struct LiteralTag {
        /// The value.
        pub value: String,
    }

    /// The value of something by name.
    pub struct NamedTag {
        /// The name.
        pub name: String,
        /// The value when it is not there.
        pub default_value: String,
    }

    /// A provider by name.
    pub struct ProviderRef {
        /// Its name in the mesh's configuration.
        pub name: String,
    }

    /// Metrics.
    pub struct Metrics {
        /// Where they go.
        pub providers: Vec<ProviderRef>,
        /// Changes to single metrics.
        pub overrides: Vec<MetricsOverrides>,
        /// How often TCP metrics are brought up to date; 5 s when absent.
        pub reporting_interval: Option<Duration>,
    }

    /// A change to metrics.
    pub struct MetricsOverrides {
        /// Which; all when absent.
        #[serde(rename = "match")]
        pub matches: Option<MetricSelector>,
        /// Whether they are dropped.
        pub disabled: Option<bool>,
        /// Changes to labels.
        pub tag_overrides: BTreeMap<String, TagOverride>,
    }

    /// Which metrics.
    pub struct MetricSelector {
        /// One of Istio's.
        pub metric: Option<IstioMetric>,
        /// Another, by name.
        pub custom_metric: Option<String>,
        /// Those of callers, servers, or both.
        pub mode: WorkloadMode,
    }

    /// A change to a label.
    pub struct TagOverride {
        /// Set or remove.
        pub operation: TagOperation,
        /// A CEL expression for its value.
        pub value: String,
    }

    /// Access logs.
    pub struct AccessLogging {
        /// Whose.
        #[serde(rename = "match")]
        pub matches: Option<LogSelector>,
        /// Where they go.
        pub providers: Vec<ProviderRef>,
        /// Whether they are off.
        pub disabled: Option<bool>,
        /// Which requests.
        pub filter: Option<LogFilter>,
    }

    /// Whose access logs.
    pub struct LogSelector {
        /// Those of callers, servers, or both.
        pub mode: WorkloadMode,
    }

    /// Which requests are logged.
    pub struct LogFilter {
        /// A CEL expression.
        pub expression: String,
    }
}

mesh_enums! {
    /// The caller's side, the server's, or both.
    pub enum WorkloadMode {
        /// Both.
        #[default]
        ClientAndServer = "CLIENT_AND_SERVER",
        /// The caller's.
        Client = "CLIENT",
        /// The server's.
        Server = "SERVER",
    }

    /// What happens to a label.
    pub enum TagOperation {
        /// It is added or replaced.
        #[default]
        Upsert = "UPSERT",
        /// It is removed.
        Remove = "REMOVE",
    }

    /// Istio's metrics.
    pub enum IstioMetric {
        /// Every one.
        #[default]
        AllMetrics = "ALL_METRICS",
        /// `istio_requests_total`
        RequestCount = "REQUEST_COUNT",
        /// `istio_request_duration_milliseconds`
        RequestDuration = "REQUEST_DURATION",
        /// `istio_request_bytes`
        RequestSize = "REQUEST_SIZE",
        /// `istio_response_bytes`
        ResponseSize = "RESPONSE_SIZE",
        /// `istio_tcp_connections_opened_total`
        TcpOpenedConnections = "TCP_OPENED_CONNECTIONS",
        /// `istio_tcp_connections_closed_total`
        TcpClosedConnections = "TCP_CLOSED_CONNECTIONS",
        /// `istio_tcp_sent_bytes_total`
        TcpSentBytes = "TCP_SENT_BYTES",
        /// `istio_tcp_received_bytes_total`
        TcpReceivedBytes = "TCP_RECEIVED_BYTES",
        /// `istio_request_messages_total`
        GrpcRequestMessages = "GRPC_REQUEST_MESSAGES",
        /// `istio_response_messages_total`
        GrpcResponseMessages = "GRPC_RESPONSE_MESSAGES",
    }
}
