//! One address behind a cluster, and what is counted on it.

use std::any::Any;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;

use crate::facts::{UpstreamAddr, WorkloadLabels};
use crate::identity::SpiffeId;

/// Where an endpoint listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndpointAddress {
    /// An address.
    Socket(UpstreamAddr),
    /// A name that is looked up for each new connection, and a port.
    Name(Arc<str>, u16),
}

/// How a connection to an endpoint is secured; part of what makes a pooled connection usable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum UpstreamTls {
    /// Not at all.
    Plaintext,
    /// Mutual TLS with the mesh's identities.
    Mutual {
        /// The server name, in Istio's form `outbound_.PORT_.SUBSET_.HOST`.
        sni: Arc<str>,
        /// Who the endpoint must be.
        expect: Expect,
    },
}

/// Who an endpoint must be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Expect {
    /// One of these; an empty list admits nobody.
    AnyOf(Arc<[SpiffeId]>),
    /// Anybody with an identity of the caller's own trust domain.
    AnyInTrustDomain,
}

/// What makes an endpoint the same endpoint, within its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EndpointKey {
    /// Where it listens.
    pub address: EndpointAddress,
    /// How it is spoken to, and who it must be.
    pub tls: UpstreamTls,
}

/// An endpoint as the configuration describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSpec {
    /// What makes it the same endpoint.
    pub key: EndpointKey,
    /// Its share of the load against others. Default: 1.
    pub weight: u32,
    /// What telemetry says of it.
    pub labels: Arc<WorkloadLabels>,
}

/// An endpoint in force: its description, and the state that survives a new description.
#[derive(Debug)]
pub struct Endpoint {
    spec: EndpointSpec,
    state: Arc<EndpointState>,
}

/// The endpoints of a cluster, in the order of the configuration.
#[derive(Debug, Default)]
pub struct EndpointSet {
    members: Box<[Arc<Endpoint>]>,
    /// Found out once, so that a balancer need not look at every member for each request.
    uneven: bool,
}

/// What is counted on an endpoint, and what hangs on it. Survives as long as its key is configured.
pub struct EndpointState {
    /// Ejection times are kept as milliseconds after this, so that they fit an atomic.
    epoch: Instant,
    active: AtomicU32,
    connections: AtomicU32,
    consecutive_5xx: AtomicU32,
    consecutive_gateway: AtomicU32,
    consecutive_local: AtomicU32,
    ejections: AtomicU32,
    ejected_until: AtomicU64,
    unreachable_until: AtomicU64,
    attachment: OnceLock<Box<dyn Any + Send + Sync>>,
}

/// One request in flight at an endpoint; counted until dropped.
#[derive(Debug)]
pub struct InFlight(Arc<EndpointState>);

impl EndpointSpec {
    /// An endpoint that is spoken to without TLS, nothing else known of it.
    pub fn plaintext(address: SocketAddr) -> Self {
        Self {
            key: EndpointKey {
                address: EndpointAddress::Socket(UpstreamAddr(address)),
                tls: UpstreamTls::Plaintext,
            },
            weight: 1,
            labels: Arc::default(),
        }
    }

    /// Speaks to it with mutual TLS.
    #[must_use]
    pub fn mutual(mut self, sni: &str, expect: Expect) -> Self {
        self.key.tls = UpstreamTls::Mutual { sni: sni.into(), expect };
        self
    }

    /// Sets its weight.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Sets what telemetry says of it.
    #[must_use]
    pub fn labels(mut self, labels: WorkloadLabels) -> Self {
        self.labels = Arc::new(labels);
        self
    }
}

impl Endpoint {
    /// An endpoint on its own, with fresh state. Configurations go through a
    /// [`Registry`](super::Registry), which keeps state.
    pub fn new(spec: EndpointSpec) -> Self {
        Self { spec, state: Arc::new(EndpointState::new()) }
    }

    pub(super) fn with_state(spec: EndpointSpec, state: Arc<EndpointState>) -> Self {
        Self { spec, state }
    }

    /// What makes it this endpoint.
    pub fn key(&self) -> &EndpointKey {
        &self.spec.key
    }

    /// The whole description.
    pub fn spec(&self) -> &EndpointSpec {
        &self.spec
    }

    /// Its share of the load.
    pub fn weight(&self) -> u32 {
        self.spec.weight
    }

    /// What telemetry says of it.
    pub fn labels(&self) -> &Arc<WorkloadLabels> {
        &self.spec.labels
    }

    /// What is counted on it.
    pub fn state(&self) -> &Arc<EndpointState> {
        &self.state
    }
}

impl EndpointSet {
    /// The endpoints, in the order of the configuration.
    pub fn members(&self) -> &[Arc<Endpoint>] {
        &self.members
    }

    /// Whether some have a larger share of the load than others.
    pub fn is_weighted(&self) -> bool {
        self.uneven
    }

    /// How many are ejected at `now`.
    #[inline]
    pub fn ejected(&self, now: Instant) -> usize {
        self.members.iter().filter(|e| e.state.is_ejected(now)).count()
    }
}

impl FromIterator<Arc<Endpoint>> for EndpointSet {
    fn from_iter<I: IntoIterator<Item = Arc<Endpoint>>>(endpoints: I) -> Self {
        let members: Box<[_]> = endpoints.into_iter().collect();
        let first = members.first().map_or(1, |e| e.weight());
        let uneven = members.iter().any(|e| e.weight() != first);
        Self { members, uneven }
    }
}

impl EndpointState {
    fn new() -> Self {
        Self {
            epoch: Instant::now(),
            active: AtomicU32::new(0),
            connections: AtomicU32::new(0),
            consecutive_5xx: AtomicU32::new(0),
            consecutive_gateway: AtomicU32::new(0),
            consecutive_local: AtomicU32::new(0),
            ejections: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            unreachable_until: AtomicU64::new(0),
            attachment: OnceLock::new(),
        }
    }

    /// Counts a request until the guard is dropped.
    #[inline]
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.active.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    /// Requests in flight.
    #[inline]
    pub fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    /// Open connections. The pool keeps this number.
    pub fn connections(&self) -> &AtomicU32 {
        &self.connections
    }

    /// 5xx answers in a row.
    pub fn consecutive_5xx(&self) -> &AtomicU32 {
        &self.consecutive_5xx
    }

    /// 502, 503 and 504 in a row.
    pub fn consecutive_gateway(&self) -> &AtomicU32 {
        &self.consecutive_gateway
    }

    /// Failures on the way in a row.
    pub fn consecutive_local(&self) -> &AtomicU32 {
        &self.consecutive_local
    }

    /// How many ejections in a row there were: what the ejection time is multiplied with.
    pub fn ejections(&self) -> &AtomicU32 {
        &self.ejections
    }

    /// Whether it is ejected at `now`.
    #[inline]
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.ejected_until().is_some_and(|until| now < until)
    }

    /// Until when it is (or last was) ejected.
    pub fn ejected_until(&self) -> Option<Instant> {
        match self.ejected_until.load(Ordering::Relaxed) {
            0 => None,
            ms => self.epoch.checked_add(Duration::from_millis(ms)),
        }
    }

    /// Ejects it until then. Says whether it was not ejected before, so that one of several callers counts.
    pub fn eject(&self, now: Instant, until: Instant) -> bool {
        let ms = |t: Instant| {
            u64::try_from(t.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX)
        };
        let (now, until) = (ms(now), ms(until).max(1));
        let before = self.ejected_until.load(Ordering::Relaxed);
        if before > now {
            return false;
        }
        self.ejected_until.compare_exchange(before, until, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Says that no connection can be made, so that others are preferred until then. Unlike an ejection it
    /// keeps nobody from trying where there is no other endpoint.
    pub fn mark_unreachable(&self, until: Instant) {
        let ms = u64::try_from(until.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX);
        self.unreachable_until.store(ms, Ordering::Relaxed);
    }

    /// Whether others are to be preferred at `now`, because no connection could be made a moment ago.
    #[inline]
    pub fn is_unreachable(&self, now: Instant) -> bool {
        let until = self.unreachable_until.load(Ordering::Relaxed);
        until > 0 && now.saturating_duration_since(self.epoch).as_millis() < u128::from(until)
    }

    /// Ends an ejection.
    pub fn uneject(&self) {
        self.ejected_until.store(0, Ordering::Relaxed);
    }

    /// What hangs on the endpoint, made on first use: a connection pool. One type per program; a second
    /// type finds the place taken and gets `None`.
    pub fn attachment<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> Option<&T> {
        self.attachment.get_or_init(|| Box::new(make())).downcast_ref()
    }
}

impl Drop for InFlight {
    #[inline]
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for EndpointState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointState")
            .field("active", &self.active())
            .field("ejected_until", &self.ejected_until())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for EndpointAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(addr) => addr.fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}
