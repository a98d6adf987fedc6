//! What is known about a request, in one extension.
//!
//! A [`Facts`] is made once a request (by whoever accepted it) and inserted once into its extensions.
//! Clones share one record: a layer further out keeps a clone and, when the answer comes back, reads what
//! layers further in have found out. Each fact is written at most once, without a lock; the first writer
//! wins. Absence is handled: a rule that needs an identity and finds none refuses.
//!
//! ```
//! use http::Request;
//! use tower_mesh_core::facts::{Connection, Facts, PeerIdentity};
//!
//! let peer = PeerIdentity::new("spiffe://cluster.local/ns/default/sa/web".parse().unwrap());
//! let connection = Connection::builder().peer_addr("10.0.0.7:40000".parse().unwrap()).peer(peer).build();
//! let mut request = Request::new(());
//! Facts::new(connection).insert(&mut request);
//!
//! let facts = Facts::of(&request).unwrap();
//! assert_eq!(facts.peer().unwrap().id().service_account(), Some("web"));
//! assert!(facts.route().is_none());
//! ```

use std::any::Any;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use http::Request;

use crate::cluster::{Cluster, Endpoint};
use crate::diagnostic::ResourceRef;
use crate::failure::Failure;
use crate::identity::SpiffeId;

macro_rules! addr {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub SocketAddr);

        impl $name {
            /// The IP address, an IPv4-mapped IPv6 address as IPv4.
            pub fn ip(self) -> IpAddr {
                self.0.ip().to_canonical()
            }
            /// The port.
            pub fn port(self) -> u16 {
                self.0.port()
            }
        }
        impl From<SocketAddr> for $name {
            fn from(addr: SocketAddr) -> Self {
                Self(addr)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

addr!(
    /// Where the other end of an accepted connection is.
    PeerAddr
);
addr!(
    /// Where a connection was accepted.
    LocalAddr
);
addr!(
    /// Where an intercepted connection was going before it was redirected.
    OriginalDst
);
addr!(
    /// Where an endpoint of the called service listens.
    UpstreamAddr
);

/// Which way a request goes, seen from the workload that the mesh stands beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Direction {
    /// From others to this workload: Istio's reporter `destination`.
    #[default]
    Inbound,
    /// From this workload to others: Istio's reporter `source`.
    Outbound,
}

/// How the bytes of an accepted connection arrive.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Transport {
    /// Without TLS.
    #[default]
    Plaintext,
    /// TLS that the mesh terminated.
    Tls {
        /// The server name that the peer asked for.
        sni: Option<Arc<str>>,
        /// The protocol that was agreed on.
        alpn: Option<Arc<[u8]>>,
    },
    /// TLS that the mesh passes on as bytes.
    Passthrough {
        /// The server name that the peer asked for.
        sni: Option<Arc<str>>,
    },
}

/// Who a peer has proved to be.
#[derive(Debug, Clone)]
pub struct PeerIdentity {
    id: SpiffeId,
    digest: u64,
    not_after: Option<SystemTime>,
    fingerprint: Option<[u8; 32]>,
}

/// What telemetry says of a workload: Istio's canonical names. Unknown parts are empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct WorkloadLabels {
    /// The workload's name.
    pub workload: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Label `service.istio.io/canonical-name`, else `app.kubernetes.io/name`, else `app`, else the name.
    pub canonical_service: Arc<str>,
    /// Label `service.istio.io/canonical-revision`, else `app.kubernetes.io/version`, else `version`, else `latest`.
    pub canonical_revision: Arc<str>,
    /// Label `app`.
    pub app: Arc<str>,
    /// Label `version`.
    pub version: Arc<str>,
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// The SPIFFE ID of its service account.
    pub principal: Option<SpiffeId>,
}

/// An accepted connection; shared by all its requests.
#[derive(Debug, Clone, Default)]
pub struct Connection {
    direction: Direction,
    peer_addr: Option<PeerAddr>,
    local_addr: Option<LocalAddr>,
    original_dst: Option<OriginalDst>,
    workload_port: Option<u16>,
    transport: Transport,
    peer: Option<Arc<PeerIdentity>>,
    peer_labels: Option<Arc<WorkloadLabels>>,
    otherwise: Option<Arc<Cluster>>,
    to_endpoint: bool,
}

/// Makes a [`Connection`].
#[derive(Debug, Clone, Default)]
pub struct ConnectionBuilder(Connection);

/// The route that a request took.
#[derive(Clone)]
pub struct MatchedRoute {
    /// The resource that decided; `None` for the default route of a service without one.
    pub resource: Option<ResourceRef>,
    /// The route's name, as in access logs: the rule's name, else `default`.
    pub name: Arc<str>,
    /// Where the request goes; `None` when the route answers by itself.
    pub cluster: Option<Arc<Cluster>>,
    /// The router's own compiled form of the rule, for the layers of its crate.
    pub policy: Arc<dyn Any + Send + Sync>,
}

/// The endpoint that answered (or was tried last).
#[derive(Debug, Clone)]
pub struct Upstream {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Where it was reached.
    pub address: Option<UpstreamAddr>,
    /// Who it has proved to be; `None` without mTLS.
    pub peer: Option<Arc<PeerIdentity>>,
}

/// What is known about one request. Clones share the record.
#[derive(Clone)]
pub struct Facts(Arc<Record>);

struct Record {
    connection: Arc<Connection>,
    route: OnceLock<MatchedRoute>,
    upstream: OnceLock<Upstream>,
    failure: OnceLock<Failure>,
    remote_failure: OnceLock<Failure>,
    attempts: AtomicU32,
}

impl PeerIdentity {
    /// A verified identity, nothing else known of its certificate.
    #[inline]
    pub fn new(id: SpiffeId) -> Self {
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        Self { id, digest: hasher.finish(), not_after: None, fingerprint: None }
    }

    /// Adds what the certificate says: until when it is valid, and its SHA-256 fingerprint.
    #[must_use]
    pub fn with_certificate(mut self, not_after: SystemTime, fingerprint: [u8; 32]) -> Self {
        self.not_after = Some(not_after);
        self.fingerprint = Some(fingerprint);
        self
    }

    /// The SPIFFE ID.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// A hash of the SPIFFE ID, the same for all connections of one identity: taken once, so that a table can be
    /// looked into for each request without reading the text. Equal ones need not be of one identity.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Until when the certificate is valid.
    pub fn not_after(&self) -> Option<SystemTime> {
        self.not_after
    }

    /// SHA-256 of the certificate.
    pub fn fingerprint(&self) -> Option<&[u8; 32]> {
        self.fingerprint.as_ref()
    }
}

impl Connection {
    /// Starts with nothing known: inbound, plaintext, no addresses, no identity.
    pub fn builder() -> ConnectionBuilder {
        ConnectionBuilder::default()
    }

    /// Which way its requests go.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// The other end.
    pub fn peer_addr(&self) -> Option<PeerAddr> {
        self.peer_addr
    }

    /// This end.
    pub fn local_addr(&self) -> Option<LocalAddr> {
        self.local_addr
    }

    /// Where it was going before it was redirected.
    pub fn original_dst(&self) -> Option<OriginalDst> {
        self.original_dst
    }

    /// The port of the workload that policies compare with: the one set, else the original destination's,
    /// else the local one.
    pub fn workload_port(&self) -> Option<u16> {
        self.workload_port
            .or_else(|| self.original_dst.map(OriginalDst::port))
            .or_else(|| self.local_addr.map(LocalAddr::port))
    }

    /// Where its requests go whose host nobody knows: where the connection was going by its address. `None`
    /// refuses them.
    pub fn otherwise(&self) -> Option<&Arc<Cluster>> {
        self.otherwise.as_ref()
    }

    /// The endpoint of a service that the connection was going to by the endpoint's own address (a headless
    /// service's, or a Pod's). Requests go to it wherever they are routed to a cluster that it belongs to.
    pub fn called_endpoint(&self) -> Option<SocketAddr> {
        self.original_dst.filter(|_| self.to_endpoint).map(|original| original.0)
    }

    /// How the bytes arrive.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// The server name of a TLS connection.
    pub fn sni(&self) -> Option<&str> {
        match &self.transport {
            Transport::Tls { sni, .. } | Transport::Passthrough { sni } => sni.as_deref(),
            Transport::Plaintext => None,
        }
    }

    /// Who the peer has proved to be.
    pub fn peer(&self) -> Option<&Arc<PeerIdentity>> {
        self.peer.as_ref()
    }

    /// What telemetry says of the peer's workload, where it is known.
    pub fn peer_labels(&self) -> Option<&Arc<WorkloadLabels>> {
        self.peer_labels.as_ref()
    }

    /// The same connection, with what telemetry says of the peer's workload.
    #[must_use]
    pub fn with_peer_labels(&self, labels: impl Into<Arc<WorkloadLabels>>) -> Self {
        Self { peer_labels: Some(labels.into()), ..self.clone() }
    }

    /// Whether the peer has proved who it is over mutual TLS.
    pub fn is_mutual_tls(&self) -> bool {
        self.peer.is_some()
    }
}

impl ConnectionBuilder {
    /// Sets the direction.
    #[must_use]
    pub fn direction(mut self, direction: Direction) -> Self {
        self.0.direction = direction;
        self
    }
    /// Sets the other end's address.
    #[must_use]
    pub fn peer_addr(mut self, addr: SocketAddr) -> Self {
        self.0.peer_addr = Some(PeerAddr(addr));
        self
    }
    /// Sets this end's address.
    #[must_use]
    pub fn local_addr(mut self, addr: SocketAddr) -> Self {
        self.0.local_addr = Some(LocalAddr(addr));
        self
    }
    /// Sets the original destination.
    #[must_use]
    pub fn original_dst(mut self, addr: SocketAddr) -> Self {
        self.0.original_dst = Some(OriginalDst(addr));
        self
    }
    /// Sets the workload's port, where it is neither the original destination's nor the local one.
    #[must_use]
    pub fn workload_port(mut self, port: u16) -> Self {
        self.0.workload_port = Some(port);
        self
    }
    /// Sets where requests go whose host nobody knows.
    #[must_use]
    pub fn otherwise(mut self, cluster: Option<Arc<Cluster>>) -> Self {
        self.0.otherwise = cluster;
        self
    }
    /// Says that the original destination is the address of one endpoint of a service, not that of all.
    #[must_use]
    pub fn to_endpoint(mut self, is: bool) -> Self {
        self.0.to_endpoint = is;
        self
    }
    /// Sets how the bytes arrive.
    #[must_use]
    pub fn transport(mut self, transport: Transport) -> Self {
        self.0.transport = transport;
        self
    }
    /// Sets who the peer has proved to be.
    #[must_use]
    pub fn peer(mut self, peer: impl Into<Arc<PeerIdentity>>) -> Self {
        self.0.peer = Some(peer.into());
        self
    }
    /// Sets what telemetry says of the peer's workload.
    #[must_use]
    pub fn peer_labels(mut self, labels: impl Into<Arc<WorkloadLabels>>) -> Self {
        self.0.peer_labels = Some(labels.into());
        self
    }
    /// The connection, ready to be shared by its requests.
    pub fn build(self) -> Arc<Connection> {
        Arc::new(self.0)
    }
}

impl Facts {
    /// Facts of a request on `connection`.
    #[inline]
    pub fn new(connection: Arc<Connection>) -> Self {
        Self(Arc::new(Record {
            connection,
            route: OnceLock::new(),
            upstream: OnceLock::new(),
            failure: OnceLock::new(),
            remote_failure: OnceLock::new(),
            attempts: AtomicU32::new(0),
        }))
    }

    /// The facts of `request`, if somebody inserted them.
    pub fn of<B>(request: &Request<B>) -> Option<&Self> {
        request.extensions().get()
    }

    /// The facts of `request`; makes and inserts empty ones where there are none.
    pub fn of_or_insert<B>(request: &mut Request<B>) -> Self {
        if let Some(facts) = Self::of(request) {
            return facts.clone();
        }
        let facts = Self::default();
        facts.clone().insert(request);
        facts
    }

    /// Inserts the facts into `request`.
    pub fn insert<B>(self, request: &mut Request<B>) {
        request.extensions_mut().insert(self);
    }

    /// The connection that the request arrived on.
    #[inline]
    pub fn connection(&self) -> &Arc<Connection> {
        &self.0.connection
    }

    /// Who the caller has proved to be.
    pub fn peer(&self) -> Option<&PeerIdentity> {
        self.0.connection.peer.as_deref()
    }

    /// The route taken; written by the router.
    pub fn route(&self) -> Option<&MatchedRoute> {
        self.0.route.get()
    }

    /// Remembers the route; the first one wins.
    #[inline]
    pub fn set_route(&self, route: MatchedRoute) {
        let _ = self.0.route.set(route);
    }

    /// The endpoint that answered; written by whoever ends the tries.
    pub fn upstream(&self) -> Option<&Upstream> {
        self.0.upstream.get()
    }

    /// Remembers the endpoint; the first one wins.
    #[inline]
    pub fn set_upstream(&self, upstream: Upstream) {
        let _ = self.0.upstream.set(upstream);
    }

    /// Why the mesh answered, if it did.
    pub fn failure(&self) -> Option<&Failure> {
        self.0.failure.get()
    }

    /// Remembers why the mesh answers; the first reason wins.
    pub fn set_failure(&self, failure: Failure) {
        let _ = self.0.failure.set(failure);
    }

    /// Why the mesh at the other end answered, as its verified sidecar told.
    pub fn remote_failure(&self) -> Option<&Failure> {
        self.0.remote_failure.get()
    }

    /// Remembers why the mesh at the other end answered.
    pub fn set_remote_failure(&self, failure: Failure) {
        let _ = self.0.remote_failure.set(failure);
    }

    /// How many times the request was sent to an endpoint.
    pub fn attempts(&self) -> u32 {
        self.0.attempts.load(Ordering::Relaxed)
    }

    /// Counts a try; returns its number, from 1.
    #[inline]
    pub fn count_attempt(&self) -> u32 {
        self.0.attempts.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl Default for Facts {
    fn default() -> Self {
        Self::new(Arc::new(Connection::default()))
    }
}

impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Facts")
            .field("connection", &self.0.connection)
            .field("route", &self.route())
            .field("upstream", &self.upstream())
            .field("failure", &self.failure())
            .field("attempts", &self.attempts())
            .finish()
    }
}

impl fmt::Debug for MatchedRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MatchedRoute")
            .field("resource", &self.resource)
            .field("name", &self.name)
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::FailureCode;

    #[test]
    fn the_first_failure_wins_and_every_clone_sees_it() {
        let mut request = Request::new(());
        let outer = Facts::of_or_insert(&mut request);
        let inner = Facts::of(&request).unwrap().clone();
        inner.set_failure(FailureCode::Denied.into());
        inner.set_failure(FailureCode::Timeout.into());
        assert_eq!(outer.failure().unwrap().code(), FailureCode::Denied);
        assert_eq!(Facts::of_or_insert(&mut request).failure().unwrap().code(), FailureCode::Denied);
    }

    #[test]
    fn the_workload_port_falls_back_to_what_is_known() {
        let local = Connection::builder().local_addr("127.0.0.1:1".parse().unwrap());
        assert_eq!(local.clone().build().workload_port(), Some(1));
        let dst = local.original_dst("10.0.0.1:2".parse().unwrap());
        assert_eq!(dst.clone().build().workload_port(), Some(2));
        assert_eq!(dst.workload_port(3).build().workload_port(), Some(3));
        assert_eq!(Connection::default().workload_port(), None);
    }

    #[test]
    fn a_mapped_address_is_ipv4() {
        assert_eq!(PeerAddr("[::ffff:10.1.2.3]:80".parse().unwrap()).ip().to_string(), "10.1.2.3");
    }
}
