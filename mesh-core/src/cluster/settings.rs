//! What a DestinationRule decides about a cluster, as plain values.

use std::time::Duration;

use crate::failure::Failure;
use crate::protocol::Protocol;

/// The largest request body that is kept for a retry, in bytes. Linkerd's limit, too.
pub const MAX_REPLAY_BYTES: usize = 64 * 1024;

/// The settings of one cluster. The default is what Istio does without a DestinationRule.
#[derive(Debug, Clone)]
pub struct ClusterSettings {
    /// What the service's port speaks.
    pub protocol: Protocol,
    /// Whether HTTP/1.1 may be carried over HTTP/2 to a proxy that knows how
    /// (`http.h2UpgradePolicy: DO_NOT_UPGRADE` says no). Default: yes.
    pub carry: bool,
    /// How an endpoint is chosen. Default: least request.
    pub balance: Balance,
    /// How long a connection may take, TLS included. Default: 10 s.
    pub connect_timeout: Duration,
    /// How long an unused connection is kept. Default: 1 h; `None` keeps it for ever.
    pub idle_timeout: Option<Duration>,
    /// How much at once.
    pub limits: Limits,
    /// How many retries at once.
    pub retry_budget: RetryBudget,
    /// When an endpoint is ejected; `None` never.
    pub outlier: Option<OutlierSettings>,
    /// Set when calls to this cluster must fail, and why: a `tls` block that could not be read, a subset
    /// that does not exist.
    pub refuse: Option<Failure>,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Balance {
    /// The less busy of two drawn at random (power of two choices, Mitzenmacher 2001).
    #[default]
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Drawn at random.
    Random,
}

/// Circuit-breaker limits. The default is Istio's: practically none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Open connections (`tcp.maxConnections`), and HTTP/1.1 requests at once on those that carry several.
    pub connections: u32,
    /// Requests that wait for a connection (`http.http1MaxPendingRequests`).
    pub pending: u32,
    /// Requests in flight (`http.http2MaxRequests`).
    pub requests: u32,
    /// Retries in flight (`http.maxRetries`).
    pub retries: u32,
    /// Requests on one connection before it is closed (`http.maxRequestsPerConnection`); 0 is no limit.
    pub requests_per_connection: u32,
}

/// How many retries may be in flight: a share of the requests in flight, but always a few.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudget {
    /// The share, in percent. Default: 20.
    pub percent: f64,
    /// The floor. Default: 3.
    pub min_concurrent: u32,
}

/// When an endpoint is ejected, as a DestinationRule's `outlierDetection` says. Defaults are Istio's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlierSettings {
    /// 5xx answers in a row, failures on the way included; 0 is off. Default: 5.
    pub consecutive_5xx: u32,
    /// 502, 503, 504 in a row, failures on the way included; 0 is off. Default: 0.
    pub consecutive_gateway: u32,
    /// Failures on the way in a row, when they are counted apart; 0 is off. Default: 5.
    pub consecutive_local: u32,
    /// Whether failures on the way are counted apart from answers. Default: no.
    pub split_local: bool,
    /// Which statuses count as 5xx; empty is 500 to 599.
    pub error_codes: Vec<u16>,
    /// How often an ejected endpoint is looked at again. Default: 10 s.
    pub interval: Duration,
    /// How long the first ejection lasts; the n-th lasts n times as long. Default: 30 s.
    pub base_ejection: Duration,
    /// How much of the cluster may be ejected, in percent; one endpoint always may. Default: 10.
    pub max_ejection_percent: u32,
    /// Below this share of healthy endpoints, in percent, ejections are ignored. Default: 0 (never).
    pub min_health_percent: u32,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            protocol: Protocol::default(),
            carry: true,
            balance: Balance::default(),
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Some(Duration::from_secs(3600)),
            limits: Limits::default(),
            retry_budget: RetryBudget::default(),
            outlier: None,
            refuse: None,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: u32::MAX,
            pending: u32::MAX,
            requests: u32::MAX,
            retries: u32::MAX,
            requests_per_connection: 0,
        }
    }
}

impl RetryBudget {
    /// How many retries may be in flight beside `active` requests.
    pub fn limit(self, active: u32) -> u32 {
        // Whole retries only; the cast saturates, and a negative percentage is refused long before.
        let share = (f64::from(active) * self.percent / 100.0).floor();
        (share as u32).max(self.min_concurrent)
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { percent: 20.0, min_concurrent: 3 }
    }
}

impl Default for OutlierSettings {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway: 0,
            consecutive_local: 5,
            split_local: false,
            error_codes: Vec::new(),
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection_percent: 10,
            min_health_percent: 0,
        }
    }
}
