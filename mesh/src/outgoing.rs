//! Where a connection of the application goes that was redirected here on its way out.
//!
//! Its original destination says what was called: a service's virtual address, one endpoint's own, or something
//! that the mesh does not know. HTTP is then routed by its `Host`, as in Istio; what is decided here is where
//! bytes go that are not looked into, and requests whose host nobody knows.
//!
//! | what the address is | bytes | requests to an unknown host |
//! |---|---|---|
//! | a service's, and the port is one of its | the service's TCP routes | the same; closed under REGISTRY_ONLY |
//! | an endpoint's of a service | that endpoint, with its TLS and identity | the same |
//! | unknown | as they came; closed under REGISTRY_ONLY | as they came; closed under REGISTRY_ONLY |
//! | untold: the control plane cannot be asked | TLS of the application's own as it came, closed under REGISTRY_ONLY; all else closed | closed |
//!
//! Of an untold address nobody can say that it is not the mesh's own, for which plaintext may be forbidden. What the
//! application has encrypted itself stays encrypted, and whoever it reaches decides by its own policies: so an outage
//! of the control plane does not cut an application off from `https://` elsewhere.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_core::cluster::{Cluster, ClusterKey, ClusterSettings, EndpointSpec, ServiceName};
use mesh_core::facts::{Facts, MatchedRoute};
use mesh_core::failure::{Failure, FailureCode};
use mesh_core::normal::Authority;
use mesh_core::protocol::Protocol;
use mesh_core::resource::sidecar::OutboundTrafficPolicyMode;
use mesh_core::store::{Outbound, ServicePort, Store, Workload};
use mesh_route::policy::RoutePolicy;

use crate::learn::LearntAddress;
use crate::mesh::Mesh;
use crate::tcp::TcpTarget;
use crate::world::View;

/// What telemetry calls the destination of connections that are passed on as they came; Istio's name.
pub const PASSTHROUGH: &str = "PassthroughCluster";
/// What telemetry calls the destination of connections that may go nowhere; Istio's name.
pub const BLACK_HOLE: &str = "BlackHoleCluster";

/// What becomes of redirected connections to what the mesh does not know. A Sidecar's `outboundTrafficPolicy`
/// goes before the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnknownDestinations {
    /// They are passed on as they came: Istio's `ALLOW_ANY`.
    #[default]
    Allowed,
    /// They are closed: Istio's `REGISTRY_ONLY`.
    Refused,
}

/// Where a redirected connection goes; made by [`Mesh::outgoing`].
#[derive(Debug, Clone)]
pub struct Outgoing {
    protocol: Protocol,
    kind: Kind,
    bytes: Result<TcpTarget, Failure>,
    /// Where TLS of the application's own goes, when that is elsewhere.
    encrypted: Option<TcpTarget>,
    otherwise: Option<Arc<Cluster>>,
}

/// What an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A service's, and the port is one of its.
    Service,
    /// An endpoint's of a service.
    Endpoint,
    /// Nobody's that the mesh knows.
    Unknown,
    /// It was never asked for, and cannot be now.
    Untold,
}

/// Where something goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By the service's routes.
    Routes,
    /// To the one endpoint.
    Endpoint,
    /// To the original destination, as it came.
    AsItCame,
    /// Nowhere.
    Closed,
}

/// Where bytes go, and requests to hosts that nobody knows. Pure.
fn ways(kind: Kind, unknown: UnknownDestinations) -> (Way, Way) {
    use UnknownDestinations::{Allowed, Refused};
    match (kind, unknown) {
        (Kind::Service, Allowed) => (Way::Routes, Way::Routes),
        (Kind::Service, Refused) => (Way::Routes, Way::Closed),
        (Kind::Endpoint, _) => (Way::Endpoint, Way::Endpoint),
        (Kind::Unknown, Allowed) => (Way::AsItCame, Way::AsItCame),
        (Kind::Unknown, Refused) | (Kind::Untold, _) => (Way::Closed, Way::Closed),
    }
}

/// Whether what the application has encrypted itself goes to its original destination, where other bytes do not.
/// `settled` says whether a configuration is in force that says what becomes of unknown destinations. Pure.
fn passes_encrypted(kind: Kind, unknown: UnknownDestinations, settled: bool) -> bool {
    kind == Kind::Untold && settled && unknown == UnknownDestinations::Allowed
}

/// What stands behind each address that a workload can call.
pub(crate) type Addresses = HashMap<IpAddr, LearntAddress>;

/// Looks through everything that `workload` sees. A virtual address goes before an endpoint's.
pub(crate) fn addresses(store: &Store, workload: &Workload) -> Addresses {
    let mut all = Addresses::new();
    let mut add = |ip: IpAddr, host: &Arc<str>, endpoint: bool| {
        let behind =
            all.entry(ip.to_canonical()).or_insert_with(|| LearntAddress { hosts: Vec::new(), endpoint });
        if behind.endpoint && !endpoint {
            *behind = LearntAddress::default();
        }
        if behind.endpoint == endpoint && !behind.hosts.contains(host) {
            behind.hosts.push(Arc::clone(host));
        }
    };
    for entry in store.hosts(workload) {
        let Some(outbound) = store.outbound(workload, &entry.host) else { continue };
        let Some(service) = outbound.service() else { continue };
        for ip in service.vips.iter().filter_map(|vip| vip.parse().ok()) {
            add(ip, &entry.host, false);
        }
        outbound.addresses().for_each(|ip| add(ip, &entry.host, true));
    }
    all
}

/// What `original` is, of the hosts behind its address. Pure.
fn find(
    original: SocketAddr,
    behind: Option<&LearntAddress>,
    outbound: &dyn Fn(&str) -> Option<Outbound>,
) -> Option<(Outbound, ServicePort, Kind)> {
    let behind = behind?;
    behind.hosts.iter().filter_map(|host| outbound(host)).find_map(|outbound| {
        let service = Arc::clone(outbound.service()?);
        if !behind.endpoint {
            let port = service.port(original.port())?;
            return Some((outbound, port.clone(), Kind::Service));
        }
        let port = outbound.served_at(original)?.clone();
        Some((outbound, port, Kind::Endpoint))
    })
}

impl Outgoing {
    /// What is declared to be spoken there; [`Protocol::Auto`] has to be found out.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Where bytes go that are not looked into.
    ///
    /// # Errors
    /// `unknown_host` where they may go nowhere; what the service's routes refuse.
    pub fn bytes(&self) -> Result<&TcpTarget, &Failure> {
        self.bytes.as_ref()
    }

    /// Where TLS of the application's own goes: with all other bytes, but for addresses of which the control plane
    /// cannot be asked.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes).
    pub fn encrypted(&self) -> Result<&TcpTarget, &Failure> {
        self.encrypted.as_ref().map_or_else(|| self.bytes(), Ok)
    }

    /// Where requests go whose host nobody knows; `None` refuses them.
    pub fn otherwise(&self) -> Option<&Arc<Cluster>> {
        self.otherwise.as_ref()
    }

    /// Whether the address is that of one endpoint of a service.
    pub fn is_endpoint(&self) -> bool {
        self.kind == Kind::Endpoint
    }

    /// Whether the mesh knows what was called.
    pub fn is_known(&self) -> bool {
        !matches!(self.kind, Kind::Unknown | Kind::Untold)
    }
}

impl View {
    fn unknown_destinations(&self, default: UnknownDestinations) -> UnknownDestinations {
        let sidecar = self.inbound.as_ref().and_then(|inbound| inbound.sidecar.as_ref());
        match sidecar.and_then(|s| s.spec.outbound_traffic_policy.as_ref()).map(|policy| policy.mode) {
            Some(OutboundTrafficPolicyMode::AllowAny) => UnknownDestinations::Allowed,
            Some(_) => UnknownDestinations::Refused,
            None => default,
        }
    }
}

impl Mesh {
    /// Where a redirected connection goes that was going to `original`.
    ///
    /// # Errors
    /// `overflow` where too many ask at once.
    pub async fn outgoing(&self, original: SocketAddr) -> Result<Outgoing, Failure> {
        let original = SocketAddr::new(original.ip().to_canonical(), original.port());
        let (learnt, untold) = match self.learn_address(original.ip()).await {
            Ok(learnt) => (learnt, None),
            Err(failure) if failure.code() == FailureCode::ConfigUnavailable => (None, Some(failure)),
            Err(failure) => return Err(failure),
        };
        let view = self.0.view.load_full();
        let found = view.workload.as_ref().and_then(|workload| {
            let behind = learnt.as_deref().or_else(|| view.addresses().get(&original.ip()));
            find(original, behind, &|host| view.hosts.outbound(workload, host))
        });
        let policy = view.unknown_destinations(self.0.unknown_destinations);
        let nobodys = if untold.is_some() { Kind::Untold } else { Kind::Unknown };
        let kind = found.as_ref().map_or(nobodys, |(_, _, kind)| *kind);
        let (bytes, otherwise) = ways(kind, policy);
        let encrypted = passes_encrypted(kind, policy, view.workload.is_some()).then(|| as_it_came(original));
        let bytes = match (&found, bytes) {
            _ if kind == Kind::Untold => Err(untold_failure(original, untold.as_ref())),
            (Some((outbound, port, _)), Way::Routes) => self.target_of(&view, outbound, port),
            (Some((outbound, port, _)), Way::Endpoint) => {
                Ok(self.direct(outbound, port).only_at(original))
            }
            (_, Way::AsItCame) => Ok(as_it_came(original)),
            _ => Err(Failure::new(FailureCode::UnknownHost).detail(format!(
                "nobody in the mesh knows {original}, and what it does not know is closed (REGISTRY_ONLY): add \
                 a ServiceEntry, or set outboundTrafficPolicy.mode: ALLOW_ANY in a Sidecar"
            ))),
        };
        let protocol = match &found {
            Some((_, port, _)) => port.protocol,
            None => Protocol::of_port(None, None, original.port()),
        };
        let otherwise = bytes.as_ref().ok().filter(|_| otherwise != Way::Closed);
        let otherwise = otherwise.map(|target| Arc::clone(target.cluster()));
        Ok(Outgoing { protocol, kind, bytes, encrypted, otherwise })
    }

    /// Where the application's own TLS goes that asks for the server `name` on `port`, when its address is one
    /// that nobody knows: to the host of that name, if it serves TLS there. `None` leaves it to its address.
    pub async fn outgoing_tls(&self, name: &str, port: u16) -> Option<TcpTarget> {
        let authority = Authority::parse(&format!("{name}:{port}")).ok()?;
        self.learn(&authority).await.ok()?;
        self.tcp_target(&authority).ok().filter(TcpTarget::is_opaque)
    }

    /// Returns when a connection that goes to what nobody knows may no longer do so.
    pub async fn outgoing_refused(&self, outgoing: &Outgoing) {
        if outgoing.is_known() {
            return std::future::pending().await;
        }
        let mut changes = self.0.view.changes();
        let default = self.0.unknown_destinations;
        while self.0.view.load().unknown_destinations(default) == UnknownDestinations::Allowed {
            changes.changed().await;
        }
    }

    /// Marks a connection that may go nowhere as such, for telemetry.
    pub fn note_black_hole(&self, facts: &Facts) {
        facts.set_route(MatchedRoute {
            resource: None,
            name: "block_all".into(),
            cluster: Some(nameless(BLACK_HOLE, 0, Vec::new())),
            policy: Arc::new(RoutePolicy::default()),
        });
    }
}

/// Why a connection to an address goes nowhere of which the control plane cannot be asked, and the way out.
fn untold_failure(original: SocketAddr, why: Option<&Failure>) -> Failure {
    let why = why.map(Failure::explanation).unwrap_or_default();
    Failure::new(FailureCode::ConfigUnavailable).detail(format!(
        "{original} was not called before and the control plane cannot be asked what it is ({why}); it may be the \
         mesh's own, so nothing goes there in plaintext: use TLS, or leave addresses outside of the cluster to the \
         application (traffic.sidecar.istio.io/excludeOutboundIPRanges)"
    ))
}

/// To the original destination, which the mesh knows nothing of.
fn as_it_came(original: SocketAddr) -> TcpTarget {
    let cluster = nameless(PASSTHROUGH, original.port(), vec![EndpointSpec::plaintext(original)]);
    TcpTarget::new(cluster, Protocol::Tcp)
}

fn nameless(name: &str, port: u16, endpoints: Vec<EndpointSpec>) -> Arc<Cluster> {
    let key = ClusterKey::new(name, port, "");
    // Without a namespace, which telemetry then calls unknown.
    Cluster::detached(key, ServiceName::new(name, name, ""), ClusterSettings::default(), endpoints)
}

#[cfg(test)]
#[path = "outgoing/tests.rs"]
mod tests;
