//! `DestinationRule`: how a host is called once a route has chosen it.

use std::collections::BTreeMap;

use super::common::{Duration, Labels, PortSelector, Selector};

mesh_types! {
    /// The spec of a `DestinationRule`.
    pub struct DestinationRule {
        /// The service it is about; short names belong to its namespace, `*.` is a wildcard.
        pub host: String,
        /// How the host is called.
        pub traffic_policy: Option<TrafficPolicy>,
        /// Named parts of the host's endpoints.
        pub subsets: Vec<Subset>,
        /// The namespaces that see it; empty means all.
        pub export_to: Vec<String>,
        /// The client workloads that it applies to; absent means all.
        pub workload_selector: Option<Selector>,
    }

    /// A named part of a host's endpoints.
    pub struct Subset {
        /// Its name.
        pub name: String,
        /// The labels that its endpoints carry.
        pub labels: Labels,
        /// Replaces, block by block, the rule's own policy.
        pub traffic_policy: Option<TrafficPolicy>,
    }

    /// How a host is called.
    pub struct TrafficPolicy {
        /// How an endpoint is picked.
        pub load_balancer: Option<LoadBalancerSettings>,
        /// Limits on connections and requests.
        pub connection_pool: Option<ConnectionPoolSettings>,
        /// When an endpoint is left out for a while; absent means never.
        pub outlier_detection: Option<OutlierDetection>,
        /// TLS toward the host; absent means automatic mTLS.
        pub tls: Option<ClientTlsSettings>,
        /// Policies for single ports; each replaces all four blocks above.
        pub port_level_settings: Vec<PortTrafficPolicy>,
        /// Wraps connections in HTTP CONNECT.
        pub tunnel: Option<TunnelSettings>,
        /// Sends a PROXY header upstream.
        pub proxy_protocol: Option<ProxyProtocol>,
        /// Limits concurrent retries.
        pub retry_budget: Option<RetryBudget>,
    }

    /// The policy of a single port.
    pub struct PortTrafficPolicy {
        /// The port of the service.
        pub port: Option<PortSelector>,
        /// How an endpoint is picked.
        pub load_balancer: Option<LoadBalancerSettings>,
        /// Limits on connections and requests.
        pub connection_pool: Option<ConnectionPoolSettings>,
        /// When an endpoint is left out for a while.
        pub outlier_detection: Option<OutlierDetection>,
        /// TLS toward this port.
        pub tls: Option<ClientTlsSettings>,
    }

    /// Wraps connections in HTTP CONNECT (or POST).
    pub struct TunnelSettings {
        /// `CONNECT` (default) or `POST`.
        pub protocol: String,
        /// Where the tunnel leads.
        pub target_host: String,
        /// The port there.
        pub target_port: u16,
    }

    /// Sends a PROXY header upstream.
    pub struct ProxyProtocol {
        /// Its version.
        pub version: ProxyProtocolVersion,
    }

    /// Limits concurrent retries to a share of the active requests.
    pub struct RetryBudget {
        /// The share; 20 when absent.
        pub percent: Option<f64>,
        /// Retries that are allowed whatever the share; 3 when absent.
        pub min_retry_concurrency: Option<u32>,
        /// The window over which requests count; 0 when absent.
        pub budget_interval: Option<Duration>,
    }

    /// How an endpoint is picked; `simple` or `consistentHash`.
    pub struct LoadBalancerSettings {
        /// A method without affinity.
        pub simple: Option<SimpleLb>,
        /// Affinity by a hash of something in the request.
        pub consistent_hash: Option<ConsistentHashLb>,
        /// Preference of near endpoints.
        pub locality_lb_setting: Option<LocalityLbSetting>,
        /// Preference of the own zone, as Envoy does it.
        pub zone_aware_lb_setting: Option<ZoneAwareLbSetting>,
        /// Deprecated upstream: the duration of a slow start.
        pub warmup_duration_secs: Option<Duration>,
        /// Slow start of new endpoints.
        pub warmup: Option<WarmupConfiguration>,
    }

    /// What is hashed; exactly one of the keys.
    pub struct ConsistentHashLb {
        /// A request header.
        pub http_header_name: Option<String>,
        /// A cookie.
        pub http_cookie: Option<HttpCookie>,
        /// The caller's address.
        pub use_source_ip: Option<bool>,
        /// A query parameter.
        pub http_query_parameter_name: Option<String>,
        /// Ketama-like ring (the default).
        pub ring_hash: Option<RingHash>,
        /// Maglev.
        pub maglev: Option<MagLev>,
        /// Deprecated upstream: the ring's size.
        pub minimum_ring_size: u64,
    }

    /// A cookie that is hashed.
    pub struct HttpCookie {
        /// Its name.
        pub name: String,
        /// Its path.
        pub path: String,
        /// How long it lives; absent means it is never made, 0 makes a session cookie.
        pub ttl: Option<Duration>,
        /// Further attributes.
        pub attributes: Vec<CookieAttribute>,
    }

    /// An attribute of a cookie.
    pub struct CookieAttribute {
        /// Its name.
        pub name: String,
        /// Its value.
        pub value: String,
    }

    /// A hash ring.
    pub struct RingHash {
        /// Its least size; 1024 when absent.
        pub minimum_ring_size: Option<u64>,
    }

    /// A Maglev table.
    pub struct MagLev {
        /// Its size, a prime; 65537 when absent.
        pub table_size: Option<u64>,
    }

    /// Preference of near endpoints; `distribute`, `failover` or `failoverPriority`.
    pub struct LocalityLbSetting {
        /// Fixed shares by locality.
        pub distribute: Vec<LocalityDistribute>,
        /// Where a region fails over to.
        pub failover: Vec<LocalityFailover>,
        /// Label keys by which endpoints are ranked.
        pub failover_priority: Vec<String>,
        /// Whether it is on.
        pub enabled: Option<bool>,
    }

    /// Fixed shares for callers of one locality.
    pub struct LocalityDistribute {
        /// The callers, `region/zone/subzone` with `*`.
        pub from: String,
        /// Shares by locality, which sum up to 100.
        pub to: BTreeMap<String, u32>,
    }

    /// Where a region fails over to.
    pub struct LocalityFailover {
        /// A region.
        pub from: String,
        /// Another region.
        pub to: String,
    }

    /// Zone-aware routing.
    pub struct ZoneAwareLbSetting {
        /// Whether it is on.
        pub enabled: Option<bool>,
        /// Where a region fails over to.
        pub failover: Vec<LocalityFailover>,
        /// Label keys by which endpoints are ranked.
        pub failover_priority: Vec<String>,
        /// The least number of endpoints for it to work; 6 when absent.
        pub min_cluster_size: Option<u64>,
    }

    /// Slow start of new endpoints.
    pub struct WarmupConfiguration {
        /// How long.
        pub duration: Option<Duration>,
        /// The share to start from; 10 when absent.
        pub minimum_percent: Option<f64>,
        /// The curve; 1 (linear) when absent.
        pub aggression: Option<f64>,
    }

    /// Limits on connections and requests.
    pub struct ConnectionPoolSettings {
        /// For every connection.
        pub tcp: Option<TcpSettings>,
        /// For HTTP.
        pub http: Option<HttpSettings>,
    }

    /// Limits on connections.
    pub struct TcpSettings {
        /// How many at most; 0 means unlimited.
        pub max_connections: u32,
        /// How long a connection may take to come about; 10 s when absent.
        pub connect_timeout: Option<Duration>,
        /// Keep-alive probes.
        pub tcp_keepalive: Option<TcpKeepalive>,
        /// How long a connection may live.
        pub max_connection_duration: Option<Duration>,
        /// How long it may be idle; 1 h when absent, 0 for ever.
        pub idle_timeout: Option<Duration>,
    }

    /// Keep-alive probes.
    pub struct TcpKeepalive {
        /// How many may go unanswered.
        pub probes: u32,
        /// The idle time before the first.
        pub time: Option<Duration>,
        /// The time between two.
        pub interval: Option<Duration>,
    }

    /// Limits on HTTP.
    pub struct HttpSettings {
        /// Requests that may wait for a connection; 0 means unlimited.
        pub http1_max_pending_requests: u32,
        /// Requests in flight; 0 means unlimited.
        pub http2_max_requests: u32,
        /// Requests on one connection; 0 means unlimited, 1 disables keep-alive.
        pub max_requests_per_connection: u32,
        /// Concurrent retries; 0 means unlimited.
        pub max_retries: u32,
        /// How long a connection may be idle; 1 h when absent.
        pub idle_timeout: Option<Duration>,
        /// Whether HTTP/1.1 becomes HTTP/2 on the way. By default it does not for whoever takes the request; two of
        /// our own proxies still share connections for it, which `DO_NOT_UPGRADE` ends.
        pub h2_upgrade_policy: H2UpgradePolicy,
        /// Whether the caller's protocol is kept.
        pub use_client_protocol: bool,
        /// Streams on one HTTP/2 connection; 0 means unlimited.
        pub max_concurrent_streams: u32,
        /// HTTP/2 pings.
        pub http2_keep_alive: Option<Http2KeepAlive>,
    }

    /// HTTP/2 pings; both fields are required.
    pub struct Http2KeepAlive {
        /// The time between two.
        pub interval: Option<Duration>,
        /// How long an answer may take.
        pub timeout: Option<Duration>,
    }

    /// When an endpoint is left out for a while.
    pub struct OutlierDetection {
        /// Deprecated upstream, and read by nobody.
        pub consecutive_errors: u32,
        /// Whether failures of our own (connect, timeout) are counted apart.
        pub split_external_local_origin_errors: bool,
        /// How many failures of our own in a row; 5 when absent.
        pub consecutive_local_origin_failures: Option<u32>,
        /// How many of 502, 503, 504 in a row; absent or 0 means not counted.
        pub consecutive_gateway_errors: Option<u32>,
        /// How many 5xx in a row; 5 when absent, 0 means not counted.
        #[serde(rename = "consecutive5xxErrors")]
        pub consecutive_5xx_errors: Option<u32>,
        /// The time between two sweeps; 10 s when absent.
        pub interval: Option<Duration>,
        /// How long the first ejection lasts; 30 s when absent.
        pub base_ejection_time: Option<Duration>,
        /// How many of the endpoints may be out; 10 when absent or 0.
        pub max_ejection_percent: u32,
        /// Below this share of healthy endpoints all are used; 0 means never.
        pub min_health_percent: u32,
        /// The statuses that count in place of 5xx.
        pub outlier_detection_http_error_codes: Vec<u32>,
    }

    /// TLS toward a host.
    pub struct ClientTlsSettings {
        /// The mode.
        pub mode: ClientTlsMode,
        /// The file of our certificate, for `MUTUAL`.
        pub client_certificate: String,
        /// The file of our key, for `MUTUAL`.
        pub private_key: String,
        /// The file of the authorities; empty means the system's.
        pub ca_certificates: String,
        /// A Kubernetes Secret in place of files.
        pub credential_name: String,
        /// Names of which the server's certificate must carry one.
        pub subject_alt_names: Vec<String>,
        /// The server name that is sent.
        pub sni: String,
        /// Whether the server's certificate is taken unverified.
        pub insecure_skip_verify: Option<bool>,
        /// The file of revoked certificates.
        pub ca_crl: String,
    }
}

mesh_enums! {
    /// The version of a PROXY header.
    pub enum ProxyProtocolVersion {
        /// Text.
        #[default]
        V1 = "V1",
        /// Binary.
        V2 = "V2",
    }

    /// How an endpoint is picked, without affinity.
    pub enum SimpleLb {
        /// As [`LeastRequest`](Self::LeastRequest).
        #[default]
        Unspecified = "UNSPECIFIED",
        /// Deprecated upstream: as [`LeastRequest`](Self::LeastRequest).
        LeastConn = "LEAST_CONN",
        /// Any.
        Random = "RANDOM",
        /// Where the caller meant to go.
        Passthrough = "PASSTHROUGH",
        /// In turn.
        RoundRobin = "ROUND_ROBIN",
        /// The less busy of two.
        LeastRequest = "LEAST_REQUEST",
    }

    /// Whether HTTP/1.1 becomes HTTP/2 between sidecars.
    pub enum H2UpgradePolicy {
        /// HTTP/1.1 arrives as such; how it is carried between two of our proxies is theirs to agree on.
        #[default]
        Default = "DEFAULT",
        /// No, and one request at a time on each connection.
        DoNotUpgrade = "DO_NOT_UPGRADE",
        /// Yes.
        Upgrade = "UPGRADE",
    }

    /// TLS toward a host.
    pub enum ClientTlsMode {
        /// None.
        #[default]
        Disable = "DISABLE",
        /// The server shows a certificate.
        Simple = "SIMPLE",
        /// Both do; ours from files.
        Mutual = "MUTUAL",
        /// Both do; ours is the mesh's identity.
        IstioMutual = "ISTIO_MUTUAL",
    }
}
