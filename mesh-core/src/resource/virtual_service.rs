//! `VirtualService`: where requests to a host go.

use std::collections::BTreeMap;

use super::common::{Duration, Labels, Percent, PortSelector, StringMatch};

mesh_types! {
    /// The spec of a `VirtualService`.
    pub struct VirtualService {
        /// The hosts that are called; empty makes it a delegate of other VirtualServices.
        pub hosts: Vec<String>,
        /// The gateways that it applies to; empty means `mesh`, that is, sidecars.
        pub gateways: Vec<String>,
        /// Routes for HTTP; the first that matches wins.
        pub http: Vec<HttpRoute>,
        /// Routes for TLS that is passed on unopened, by SNI.
        pub tls: Vec<TlsRoute>,
        /// Routes for everything else.
        pub tcp: Vec<TcpRoute>,
        /// The namespaces that see it; empty means all.
        pub export_to: Vec<String>,
    }

    /// One rule for HTTP. What few rules have is boxed: a configuration may hold ten thousand of them.
    pub struct HttpRoute {
        /// A name for logs.
        pub name: String,
        /// When it applies: any of these; empty means always.
        #[serde(rename = "match")]
        pub matches: Vec<HttpMatchRequest>,
        /// Where requests go, by weight.
        pub route: Vec<HttpRouteDestination>,
        /// Answer with a redirect instead.
        pub redirect: Option<Box<HttpRedirect>>,
        /// Answer with this instead.
        pub direct_response: Option<Box<HttpDirectResponse>>,
        /// Another VirtualService that has the routes.
        pub delegate: Option<Box<Delegate>>,
        /// Changes of path and authority before forwarding.
        pub rewrite: Option<Box<HttpRewrite>>,
        /// For the whole request with its retries; absent or 0 means none.
        pub timeout: Option<Duration>,
        /// How failed requests are repeated.
        pub retries: Option<Box<HttpRetry>>,
        /// Faults that are put in on purpose.
        pub fault: Option<Box<HttpFaultInjection>>,
        /// Where a copy of each request goes.
        pub mirror: Option<Box<Destination>>,
        /// Where copies of requests go, several.
        pub mirrors: Vec<HttpMirrorPolicy>,
        /// Deprecated upstream: the share of requests that is copied, whole percent.
        #[serde(alias = "mirror_percent")]
        pub mirror_percent: Option<u32>,
        /// The share of requests that is copied; all when absent.
        pub mirror_percentage: Option<Percent>,
        /// Cross-origin sharing.
        pub cors_policy: Option<Box<CorsPolicy>>,
        /// Header changes for the whole route.
        pub headers: Option<Box<Headers>>,
    }

    /// The name of the VirtualService that a rule delegates to.
    pub struct Delegate {
        /// Its name.
        pub name: String,
        /// Its namespace; empty for the rule's own.
        pub namespace: String,
    }

    /// A condition on a request; all that is set must hold.
    pub struct HttpMatchRequest {
        /// A name for logs.
        pub name: String,
        /// The path, without the query.
        pub uri: Option<StringMatch>,
        /// The scheme.
        pub scheme: Option<StringMatch>,
        /// The method.
        pub method: Option<StringMatch>,
        /// The authority, with the port where the client sent one.
        pub authority: Option<StringMatch>,
        /// Headers that must match.
        pub headers: BTreeMap<String, StringMatch>,
        /// The port of the service that was called; 0 means any.
        pub port: u16,
        /// Labels of the calling workload.
        pub source_labels: Labels,
        /// Gateways it applies to, instead of the VirtualService's.
        pub gateways: Vec<String>,
        /// Query parameters that must match.
        pub query_params: BTreeMap<String, StringMatch>,
        /// Whether exact and prefix of `uri` ignore case.
        pub ignore_uri_case: bool,
        /// Headers that must not match.
        pub without_headers: BTreeMap<String, StringMatch>,
        /// The namespace of the calling workload.
        pub source_namespace: String,
        /// A prefix for per-route statistics.
        pub stat_prefix: String,
    }

    /// A weighted destination of HTTP requests.
    pub struct HttpRouteDestination {
        /// Where.
        pub destination: Option<Destination>,
        /// The share is this over the sum of all; one destination alone gets everything.
        pub weight: u32,
        /// Header changes for this destination.
        pub headers: Option<Box<Headers>>,
    }

    /// A weighted destination of connections.
    pub struct RouteDestination {
        /// Where.
        pub destination: Option<Destination>,
        /// The share is this over the sum of all.
        pub weight: u32,
    }

    /// A host, perhaps a subset of it, perhaps one of its ports.
    pub struct Destination {
        /// The name of a service; short names belong to the rule's namespace.
        pub host: String,
        /// A subset of the DestinationRule for that host; empty for all endpoints.
        pub subset: String,
        /// The port of the service; may be absent where it has one only.
        pub port: Option<PortSelector>,
    }

    /// Header changes on both ways.
    pub struct Headers {
        /// Before the request is forwarded.
        pub request: Option<HeaderOperations>,
        /// Before the response is returned.
        pub response: Option<HeaderOperations>,
    }

    /// Header changes; removal comes first.
    pub struct HeaderOperations {
        /// Overwrite or add.
        pub set: BTreeMap<String, String>,
        /// Add a further value.
        pub add: BTreeMap<String, String>,
        /// Remove.
        pub remove: Vec<String>,
    }

    /// Answers with a redirect.
    pub struct HttpRedirect {
        /// The new path.
        pub uri: String,
        /// Replaces the prefix that matched.
        pub prefix_rewrite: String,
        /// The new authority.
        pub authority: String,
        /// The new port.
        pub port: Option<u16>,
        /// Where the new port comes from when `port` is absent.
        pub derive_port: Option<RedirectPortSelection>,
        /// `http` or `https`.
        pub scheme: String,
        /// 301, 302, 303, 307 or 308; 0 means 301.
        pub redirect_code: u16,
    }

    /// Answers with a fixed response.
    pub struct HttpDirectResponse {
        /// The status, 200 to 599.
        pub status: u16,
        /// The body.
        pub body: Option<HttpBody>,
    }

    /// A fixed body; one of the two.
    pub struct HttpBody {
        /// As text.
        pub string: Option<String>,
        /// As base64.
        pub bytes: Option<String>,
    }

    /// Changes of path and authority before forwarding.
    pub struct HttpRewrite {
        /// Replaces the prefix that matched, or else the whole path.
        pub uri: String,
        /// The new authority.
        pub authority: String,
        /// Replaces what an expression finds in the path.
        pub uri_regex_rewrite: Option<RegexRewrite>,
    }

    /// A replacement by regular expression.
    pub struct RegexRewrite {
        /// RE2.
        #[serde(rename = "match")]
        pub matches: String,
        /// The replacement, with `\0`, `\1` and so on for what was captured.
        pub rewrite: String,
    }

    /// How failed requests are repeated.
    pub struct HttpRetry {
        /// How often at most, beyond the first try; 0 disables retries.
        pub attempts: u32,
        /// For each try; absent means the route's timeout.
        pub per_try_timeout: Option<Duration>,
        /// When to retry: comma-separated conditions and status codes.
        pub retry_on: String,
        /// Whether a retry may leave the locality.
        pub retry_remote_localities: Option<bool>,
        /// Whether a retry avoids endpoints that were tried; true when absent.
        pub retry_ignore_previous_hosts: Option<bool>,
        /// The base of the exponential back-off; 25 ms when absent.
        pub backoff: Option<Duration>,
    }

    /// Faults put in on purpose.
    pub struct HttpFaultInjection {
        /// Delay before forwarding.
        pub delay: Option<FaultDelay>,
        /// Answer with an error instead.
        pub abort: Option<FaultAbort>,
    }

    /// A delay for a share of the requests.
    pub struct FaultDelay {
        /// Deprecated upstream: the share in whole percent.
        pub percent: u32,
        /// How long.
        pub fixed_delay: Option<Duration>,
        /// In the schema; implemented by nobody.
        pub exponential_delay: Option<Duration>,
        /// The share; absent means never.
        pub percentage: Option<Percent>,
    }

    /// An error for a share of the requests; one of the three statuses.
    pub struct FaultAbort {
        /// An HTTP status.
        pub http_status: Option<u16>,
        /// The name of a gRPC status, such as `UNAVAILABLE`.
        pub grpc_status: Option<String>,
        /// In the schema; implemented by nobody.
        pub http2_error: Option<String>,
        /// The share; absent means never.
        pub percentage: Option<Percent>,
    }

    /// Where a copy of requests goes.
    pub struct HttpMirrorPolicy {
        /// Where.
        pub destination: Option<Destination>,
        /// The share; all when absent.
        pub percentage: Option<Percent>,
    }

    /// Cross-origin resource sharing.
    pub struct CorsPolicy {
        /// Deprecated upstream: exact origins.
        pub allow_origin: Vec<String>,
        /// The origins that are allowed.
        pub allow_origins: Vec<StringMatch>,
        /// The methods that are allowed.
        pub allow_methods: Vec<String>,
        /// The request headers that are allowed.
        pub allow_headers: Vec<String>,
        /// The response headers that scripts may read.
        pub expose_headers: Vec<String>,
        /// How long a preflight's answer may be kept.
        pub max_age: Option<Duration>,
        /// Whether credentials are allowed.
        pub allow_credentials: Option<bool>,
        /// What becomes of preflights from origins that are not allowed.
        pub unmatched_preflights: UnmatchedPreflights,
    }

    /// One rule for TLS that is passed on unopened.
    pub struct TlsRoute {
        /// When it applies: any of these.
        #[serde(rename = "match")]
        pub matches: Vec<TlsMatchAttributes>,
        /// Where connections go, by weight.
        pub route: Vec<RouteDestination>,
    }

    /// A condition on a TLS connection.
    pub struct TlsMatchAttributes {
        /// Server names, each covered by the VirtualService's hosts.
        pub sni_hosts: Vec<String>,
        /// Addresses that were called.
        pub destination_subnets: Vec<String>,
        /// The port that was called; 0 means any.
        pub port: u16,
        /// Labels of the calling workload.
        pub source_labels: Labels,
        /// Gateways it applies to, instead of the VirtualService's.
        pub gateways: Vec<String>,
        /// The namespace of the calling workload.
        pub source_namespace: String,
    }

    /// One rule for connections that are neither HTTP nor TLS.
    pub struct TcpRoute {
        /// When it applies: any of these; empty means always.
        #[serde(rename = "match")]
        pub matches: Vec<L4MatchAttributes>,
        /// Where connections go, by weight.
        pub route: Vec<RouteDestination>,
    }

    /// A condition on a connection.
    pub struct L4MatchAttributes {
        /// Addresses that were called.
        pub destination_subnets: Vec<String>,
        /// The port that was called; 0 means any.
        pub port: u16,
        /// In the schema; used by nobody.
        pub source_subnet: String,
        /// Labels of the calling workload.
        pub source_labels: Labels,
        /// Gateways it applies to, instead of the VirtualService's.
        pub gateways: Vec<String>,
        /// The namespace of the calling workload.
        pub source_namespace: String,
    }
}

mesh_enums! {
    /// Where a redirect's port comes from.
    pub enum RedirectPortSelection {
        /// The default port of the new scheme.
        #[default]
        FromProtocolDefault = "FROM_PROTOCOL_DEFAULT",
        /// The port of the request.
        FromRequestPort = "FROM_REQUEST_PORT",
    }

    /// What becomes of preflights from origins that are not allowed.
    pub enum UnmatchedPreflights {
        /// As [`Forward`](Self::Forward).
        #[default]
        Unspecified = "UNSPECIFIED",
        /// They go to the upstream.
        Forward = "FORWARD",
        /// They are answered without CORS headers.
        Ignore = "IGNORE",
    }
}
