//! What lives longer than a configuration: clusters, endpoints, and what is counted on them.
//!
//! A [`Cluster`] is one destination (host, port, subset); an [`Endpoint`] one address behind it, under one
//! TLS mode and one expected identity. In-flight counts, ejections, retry budgets and connection pools
//! belong to these handles. A [`Registry`] keeps every handle whose key survives a change of configuration,
//! so that an edit never drops a pool, forgets an ejection or resets a limit; and a change of endpoints
//! touches no route table, because each cluster's endpoints are a [`Live`] of their own.
//!
//! ```
//! use std::sync::Arc;
//! use tower_mesh_core::cluster::{ClusterKey, ClusterSettings, EndpointSpec, Registry, ServiceName};
//!
//! let registry = Registry::new();
//! let key = ClusterKey::new("reviews.default.svc.cluster.local", 9080, "v1");
//! let service = ServiceName::new("reviews.default.svc.cluster.local", "reviews", "default");
//! let one = vec![EndpointSpec::plaintext("127.0.0.1:19081".parse().unwrap())];
//!
//! let cluster = registry.cluster(&key, &service, ClusterSettings::default(), one.clone());
//! let before = Arc::clone(cluster.endpoints().load().members()[0].state());
//! let _in_flight = before.begin();
//!
//! // The same endpoint published again is the same handle.
//! let again = registry.cluster(&key, &service, ClusterSettings::default(), one);
//! assert!(Arc::ptr_eq(&cluster, &again));
//! assert_eq!(again.endpoints().load().members()[0].state().active(), 1);
//! ```

mod endpoint;
mod registry;
mod settings;

pub use endpoint::{
    Endpoint, EndpointAddress, EndpointKey, EndpointSet, EndpointSpec, EndpointState, Expect, InFlight,
    UpstreamTls,
};
pub use registry::Registry;
pub use settings::{Balance, ClusterSettings, Limits, MAX_REPLAY_BYTES, OutlierSettings, RetryBudget};

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use http::{Request, StatusCode};

use crate::failure::FailureCode;
use crate::live::{Live, Publisher};

/// What makes a destination the same destination.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterKey {
    /// The service's full host name.
    pub host: Arc<str>,
    /// The service's port.
    pub port: u16,
    /// The DestinationRule's subset; empty for the whole service.
    pub subset: Arc<str>,
}

/// A service by its names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceName {
    /// The full host name, such as `reviews.default.svc.cluster.local`.
    pub host: Arc<str>,
    /// The short name, such as `reviews`; the host itself for a ServiceEntry.
    pub name: Arc<str>,
    /// The namespace.
    pub namespace: Arc<str>,
}

/// One destination: its settings, its endpoints, and what is counted on it.
pub struct Cluster {
    key: ClusterKey,
    service: ServiceName,
    settings: Publisher<ClusterSettings>,
    endpoints: Publisher<EndpointSet>,
    counts: Arc<Counts>,
    round_robin: AtomicUsize,
}

/// What is counted on a cluster. Gauges of now, and totals since start.
#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU32,
    pending: AtomicU32,
    connections: AtomicU32,
    carried: AtomicU32,
    retries: AtomicU32,
    overflows: AtomicU64,
    retry_overflows: AtomicU64,
    ejections: AtomicU64,
    /// Set by every use, taken back by whoever looks.
    used: AtomicBool,
}

/// Which of a cluster's gauges a [`Permit`] holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gauge {
    /// Requests in flight, retries included.
    Requests,
    /// Requests that wait for a connection.
    Pending,
    /// Open connections.
    Connections,
    /// HTTP/1.1 requests on connections that carry several at once; counted where connections are limited.
    Carried,
    /// Retries in flight.
    Retries,
}

/// One unit of a cluster's gauge; gives it back when dropped.
#[derive(Debug)]
pub struct Permit {
    counts: Arc<Counts>,
    gauge: Gauge,
}

/// What became of one try at one endpoint, as outlier detection counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The application (or a sidecar for it) answered.
    Status(StatusCode),
    /// The try failed on the way.
    Failed(FailureCode),
}

/// A request on its way to one endpoint: what a balancer hands to the connection pool.
#[derive(Debug)]
pub struct Dispatch<B> {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// The endpoint that the balancer chose.
    pub endpoint: Arc<Endpoint>,
    /// The request.
    pub request: Request<B>,
}

/// When the time of a try is over: an extension of its request, for whoever learns only that the try was
/// abandoned and must tell a timeout from a caller that went away. Written by what enforces the time
/// (the earlier of two wins), read by outlier detection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TryDeadline(pub tokio::time::Instant);

impl ClusterKey {
    /// A destination; an empty subset is the whole service.
    pub fn new(host: &str, port: u16, subset: &str) -> Self {
        Self { host: host.into(), port, subset: subset.into() }
    }
}

/// Istio's form: `outbound|PORT|SUBSET|HOST`.
impl fmt::Display for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "outbound|{}|{}|{}", self.port, self.subset, self.host)
    }
}

impl ServiceName {
    /// A service by its full host name, short name and namespace.
    pub fn new(host: &str, name: &str, namespace: &str) -> Self {
        Self { host: host.into(), name: name.into(), namespace: namespace.into() }
    }
}

impl Cluster {
    fn new(key: ClusterKey, service: ServiceName, settings: ClusterSettings, set: EndpointSet) -> Self {
        Self {
            key,
            service,
            settings: Publisher::new(settings),
            endpoints: Publisher::new(set),
            counts: Arc::default(),
            round_robin: AtomicUsize::new(0),
        }
    }

    /// A cluster on its own, with fresh state, outside every [`Registry`]: for a destination that is no part
    /// of the configuration, such as the application behind a sidecar.
    pub fn detached(
        key: ClusterKey,
        service: ServiceName,
        settings: ClusterSettings,
        endpoints: Vec<EndpointSpec>,
    ) -> Arc<Self> {
        let set = endpoints.into_iter().map(|spec| Arc::new(Endpoint::new(spec))).collect();
        Arc::new(Self::new(key, service, settings, set))
    }

    /// Puts these settings in force.
    pub fn publish_settings(&self, settings: ClusterSettings) {
        self.settings.publish(settings);
    }

    /// What makes it this destination.
    pub fn key(&self) -> &ClusterKey {
        &self.key
    }

    /// The service behind it.
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// The settings in force.
    pub fn settings(&self) -> Live<ClusterSettings> {
        self.settings.live()
    }

    /// The settings in force, for one look.
    #[inline]
    pub fn load_settings(&self) -> crate::live::Snapshot<ClusterSettings> {
        self.settings.load()
    }

    /// The endpoints in force.
    pub fn endpoints(&self) -> Live<EndpointSet> {
        self.endpoints.live()
    }

    /// The endpoints in force, for one look.
    #[inline]
    pub fn load_endpoints(&self) -> crate::live::Snapshot<EndpointSet> {
        self.endpoints.load()
    }

    /// How much of a gauge is in use.
    pub fn in_use(&self, gauge: Gauge) -> u32 {
        self.counts.gauge(gauge).load(Ordering::Relaxed)
    }

    /// Takes one unit of `gauge` if less than `limit` are in use; counts an overflow otherwise.
    #[inline]
    pub fn try_acquire(&self, gauge: Gauge, limit: u32) -> Option<Permit> {
        let cell = self.counts.gauge(gauge);
        let mut now = cell.load(Ordering::Relaxed);
        loop {
            if now >= limit {
                let total = match gauge {
                    Gauge::Retries => &self.counts.retry_overflows,
                    _ => &self.counts.overflows,
                };
                total.fetch_add(1, Ordering::Relaxed);
                return None;
            }
            match cell.compare_exchange_weak(now, now + 1, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    // Reading first keeps the line from being written again and again.
                    if !self.counts.used.load(Ordering::Relaxed) {
                        self.counts.used.store(true, Ordering::Relaxed);
                    }
                    return Some(Permit { counts: Arc::clone(&self.counts), gauge });
                }
                Err(found) => now = found,
            }
        }
    }

    /// Takes a retry if the budget allows one more now: fewer retries are in flight than the budget's
    /// share of the requests in flight, or than its floor, whichever is more.
    #[inline]
    pub fn try_retry(&self) -> Option<Permit> {
        self.try_acquire(Gauge::Retries, self.retry_limit())
    }

    /// Whether [`try_retry`](Self::try_retry) would give one now; counts nothing.
    pub fn has_retry(&self) -> bool {
        self.in_use(Gauge::Retries) < self.retry_limit()
    }

    fn retry_limit(&self) -> u32 {
        let settings = self.load_settings();
        settings.retry_budget.limit(self.in_use(Gauge::Requests)).min(settings.limits.retries)
    }

    /// How many requests and connections were refused because a limit was reached.
    pub fn overflows(&self) -> u64 {
        self.counts.overflows.load(Ordering::Relaxed)
    }

    /// How many retries were refused because the budget was used up.
    pub fn retry_overflows(&self) -> u64 {
        self.counts.retry_overflows.load(Ordering::Relaxed)
    }

    /// How many endpoints have been ejected since start.
    pub fn ejections(&self) -> u64 {
        self.counts.ejections.load(Ordering::Relaxed)
    }

    /// Counts an ejection.
    pub fn count_ejection(&self) {
        self.counts.ejections.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether anything was [acquired](Self::try_acquire) since this was asked last, or is held now: how it is
    /// told which configuration is in use.
    #[inline]
    pub fn take_used(&self) -> bool {
        let used = self.counts.used.swap(false, Ordering::Relaxed);
        used || self.in_use(Gauge::Requests) > 0 || self.in_use(Gauge::Connections) > 0
    }

    /// The next number of this cluster's round robin.
    #[inline]
    pub fn next_turn(&self) -> usize {
        self.round_robin.fetch_add(1, Ordering::Relaxed)
    }
}

impl Counts {
    fn gauge(&self, gauge: Gauge) -> &AtomicU32 {
        match gauge {
            Gauge::Requests => &self.requests,
            Gauge::Pending => &self.pending,
            Gauge::Connections => &self.connections,
            Gauge::Carried => &self.carried,
            Gauge::Retries => &self.retries,
        }
    }
}

impl Drop for Permit {
    #[inline]
    fn drop(&mut self) {
        self.counts.gauge(self.gauge).fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("key", &self.key)
            .field("endpoints", &self.load_endpoints().members().len())
            .field("requests", &self.in_use(Gauge::Requests))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
