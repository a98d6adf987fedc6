//! Connections whose bytes are not looked into, to a host of the mesh.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use mesh_core::cluster::{Cluster, Endpoint, Gauge, InFlight, Outcome, Permit};
use mesh_core::diagnostic::ResourceRef;
use mesh_core::facts::{Connection, Facts, MatchedRoute, Upstream};
use mesh_core::failure::{Failure, FailureCode};
use mesh_core::normal::Authority;
use mesh_core::protocol::Protocol;
use mesh_core::store::{Outbound, ServicePort};
use mesh_route::balance::{Draw, at, note_unreachable, pick};
use mesh_route::policy::RoutePolicy;
use mesh_route::table::DEFAULT_PORT;
use mesh_telemetry::ConnectionRecord;
use mesh_tls::alpn::MeshAlpn;
use mesh_tls::{ConnectTo, MaybeTls};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tower_service::Service;

use crate::mesh::Mesh;
use crate::world::View;

/// How many endpoints are tried before a connection is given up. Envoy's `max_connect_attempts` is 1; a
/// connection that was never made can be made elsewhere without harm.
pub const MAX_CONNECT_ATTEMPTS: usize = 3;

/// Where a connection goes.
#[derive(Debug, Clone)]
pub struct TcpTarget {
    cluster: Arc<Cluster>,
    protocol: Protocol,
    /// The VirtualService that chose it.
    resource: Option<ResourceRef>,
    /// The one endpoint that was called by its own address.
    only: Option<SocketAddr>,
    /// Whether it is the application of this pod.
    handover: bool,
}

/// A connection to an endpoint, and what it counts as.
#[derive(Debug)]
pub struct Dialed {
    /// The bytes.
    pub io: MaybeTls<TcpStream>,
    /// Keeps the connection counted while it is open.
    pub held: Held,
}

/// What an open connection counts as: one of its cluster's connections, one in flight at its endpoint.
#[derive(Debug)]
pub struct Held {
    _connection: Permit,
    _in_flight: InFlight,
}

impl TcpTarget {
    pub(crate) fn new(cluster: Arc<Cluster>, protocol: Protocol) -> Self {
        Self { cluster, protocol, resource: None, only: None, handover: false }
    }

    /// The same, and there the endpoint with this address, as long as it is one of the cluster's.
    pub(crate) fn only_at(self, address: SocketAddr) -> Self {
        Self { only: Some(address), ..self }
    }

    /// Whether the port is declared to carry something that is not looked into.
    pub fn is_opaque(&self) -> bool {
        self.protocol.is_opaque()
    }

    /// The cluster.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }
}

impl Mesh {
    /// Where a connection to `authority` goes: the port that it names, else the host's only one, else 80.
    ///
    /// # Errors
    /// `unknown_host` for a host or port that nobody knows; whatever the host's settings refuse.
    pub fn tcp_target(&self, authority: &Authority) -> Result<TcpTarget, Failure> {
        let unknown = |why: String| Failure::new(FailureCode::UnknownHost).detail(why);
        let view = self.0.view.load();
        let nobody = || unknown(format!("no service is called {:?}", authority.name()));
        let workload = view.workload.as_ref().ok_or_else(nobody)?;
        let outbound = view.hosts.outbound(workload, authority.name()).ok_or_else(nobody)?;
        let service = outbound.service().ok_or_else(nobody)?;
        let port = match (authority.port(), &*service.ports) {
            (None, [only]) => Some(only),
            (asked, _) => service.port(asked.unwrap_or(DEFAULT_PORT)),
        };
        let port = port.ok_or_else(|| {
            let port = authority.port().unwrap_or(DEFAULT_PORT);
            unknown(format!("{} has no port {port}", outbound.host()))
        })?;
        self.target_of(&view, &outbound, port)
    }

    /// Where a connection to a port of a host goes, by the routes of that.
    pub(crate) fn target_of(
        &self,
        view: &View,
        outbound: &Outbound,
        port: &ServicePort,
    ) -> Result<TcpTarget, Failure> {
        let routes = view.tcp.get(outbound.host()).into_iter().flatten();
        if let Some((_, routes)) = routes.into_iter().find(|(number, _)| *number == port.number) {
            let cluster = Arc::clone(routes.route(fastrand::u64(..))?);
            let resource = routes.resource().cloned();
            return Ok(TcpTarget { resource, ..TcpTarget::new(cluster, port.protocol) });
        }
        Ok(self.direct(outbound, port))
    }

    /// The service's own cluster, whatever its routes say.
    pub(crate) fn direct(&self, outbound: &Outbound, port: &ServicePort) -> TcpTarget {
        let key = outbound.cluster_key(port.number, "");
        let cluster = self.0.registry.get(&key).unwrap_or_else(|| {
            let policy = outbound.effective_policy(port.number, "");
            let settings = crate::destination::settings(&policy, port.protocol);
            let endpoints = outbound.endpoints(port.number, "");
            self.0.registry.cluster(&key, &outbound.service_name(), settings, endpoints)
        });
        TcpTarget::new(cluster, port.protocol)
    }

    /// Connects to an endpoint of `target`: mTLS and identity check, connection limit, ejections. Writes the
    /// route and the endpoint into `facts`.
    ///
    /// # Errors
    /// No endpoint, a limit, or none of [`MAX_CONNECT_ATTEMPTS`] endpoints can be reached.
    pub async fn dial(&self, target: &TcpTarget, facts: &Facts) -> Result<Dialed, Failure> {
        let cluster = &target.cluster;
        facts.set_route(MatchedRoute {
            resource: target.resource.clone(),
            name: "default".into(),
            cluster: Some(Arc::clone(cluster)),
            policy: Arc::new(RoutePolicy::default()),
        });
        let settings = cluster.settings().load_full();
        if let Some(failure) = &settings.refuse {
            return Err(failure.clone());
        }
        let limit = settings.limits.connections;
        let connection = cluster.try_acquire(Gauge::Connections, limit).ok_or_else(|| {
            Failure::new(FailureCode::Overflow).detail(format!(
                "{}: {limit} connections are open, as many as the DestinationRule's \
                 trafficPolicy.connectionPool.tcp.maxConnections allows",
                cluster.key()
            ))
        })?;
        let mut tried: Vec<Arc<Endpoint>> = Vec::new();
        loop {
            let endpoint = {
                let draw = Draw { random: fastrand::u64(..), turn: cluster.next_turn() };
                let health = settings.outlier.as_ref().map_or(0, |o| o.min_health_percent);
                let set = cluster.load_endpoints();
                let found = target.only.and_then(|only| at(&set, only)).or_else(|| {
                    pick(&set, settings.balance, health, &tried, draw, Instant::now()).map(Arc::clone)
                });
                found.ok_or_else(|| {
                    Failure::new(FailureCode::NoHealthyEndpoint)
                        .detail(format!("{} has no endpoint that may be used", cluster.key()))
                })?
            };
            facts.count_attempt();
            let in_flight = endpoint.state().begin();
            let to = ConnectTo::new(endpoint.key().address.clone())
                .tls(endpoint.key().tls.clone())
                .alpn(MeshAlpn::Tcp)
                .handover(target.handover)
                .timeout(settings.connect_timeout);
            match self.0.connect.clone().call(to).await {
                Ok(connected) => {
                    // For connections, being reached is what a good answer is for requests.
                    self.observe(cluster, &endpoint, Outcome::Status(http::StatusCode::OK));
                    let (address, peer) = (connected.address, connected.peer);
                    facts.set_upstream(Upstream { endpoint, address, peer });
                    let held = Held { _connection: connection, _in_flight: in_flight };
                    return Ok(Dialed { io: connected.io, held });
                }
                Err(error) => {
                    let failure = Failure::from(error);
                    note_unreachable(&endpoint, Some(&failure), Instant::now());
                    self.observe(cluster, &endpoint, Outcome::Failed(failure.code()));
                    let seen = tried.iter().any(|t| Arc::ptr_eq(t.state(), endpoint.state()));
                    tried.push(Arc::clone(&endpoint));
                    if seen || tried.len() >= MAX_CONNECT_ATTEMPTS {
                        facts.set_upstream(Upstream { endpoint, address: None, peer: None });
                        return Err(failure);
                    }
                }
            }
        }
    }

    fn observe(&self, cluster: &Cluster, endpoint: &Endpoint, outcome: Outcome) {
        mesh_policy::outlier::observe(cluster, endpoint, outcome, Instant::now());
    }

    /// Connects to the application behind this workload, for bytes that are not looked into.
    ///
    /// # Errors
    /// There is none, or it cannot be reached, or the limit of its service's DestinationRule is reached.
    pub async fn dial_app(&self, facts: &Facts) -> Result<Dialed, Failure> {
        let Some(app) = &self.0.app else {
            return Err(Failure::new(FailureCode::Internal).detail("no application was given"));
        };
        self.dial(&TcpTarget::new(Arc::clone(app), Protocol::Tcp), facts).await
    }

    /// Connects to an application of this pod that redirected connections go to, for bytes that are not looked
    /// into: from the address that redirection leaves alone.
    ///
    /// # Errors
    /// It cannot be reached, or the limit of its service's DestinationRule is reached.
    pub async fn hand_over(&self, app: &Arc<Cluster>, facts: &Facts) -> Result<Dialed, Failure> {
        let target = TcpTarget { handover: true, ..TcpTarget::new(Arc::clone(app), Protocol::Tcp) };
        self.dial(&target, facts).await
    }

    /// The record of a connection whose bytes are carried: metrics while it is open, a log line at its end.
    pub fn connection_record(&self, connection: &Arc<Connection>) -> (Facts, ConnectionRecord) {
        let facts = Facts::new(Arc::clone(connection));
        let record = self.record_of(&facts);
        (facts, record)
    }

    /// The same, of a connection that has facts already: those with which it was [dialed](Self::dial) before it was
    /// clear that it would be one of bytes.
    pub fn record_of(&self, facts: &Facts) -> ConnectionRecord {
        ConnectionRecord::new(self.0.metrics.recorder(), self.0.access_log.clone(), facts)
    }
}

impl AsyncRead for Dialed {
    #[inline]
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Dialed {
    #[inline]
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
    #[inline]
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl fmt::Display for TcpTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cluster.key().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
apiVersion: v1
kind: Service
metadata: {name: redis, namespace: default}
spec: {selector: {app: redis}, ports: [{name: tcp-redis, port: 6379}, {name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: redis, namespace: default}
spec: {host: redis, subsets: [{name: v2, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: redis, namespace: default}
spec:
  hosts: [redis]
  tcp: [{match: [{port: 6379}], route: [{destination: {host: redis, port: {number: 6379}, subset: v2}}]}]
";

    #[test]
    fn connections_take_the_tcp_routes_of_their_virtual_service() {
        let objects = mesh_core::yaml::parse_objects("redis.yaml", TEXT).unwrap();
        let (mesh, _driver) = Mesh::builder().objects(objects).build().unwrap();
        let target = |authority: &str| mesh.tcp_target(&Authority::parse(authority).unwrap());

        let redis = target("redis:6379").unwrap();
        assert_eq!((&*redis.cluster().key().subset, redis.is_opaque()), ("v2", true));
        assert_eq!(redis.resource.unwrap().to_string(), "VirtualService default/redis");
        let web = target("redis.default.svc.cluster.local").unwrap();
        assert_eq!(
            (web.cluster().key().port, &*web.cluster().key().subset, web.is_opaque()),
            (80, "", false)
        );
        for nobody in ["redis:81", "postgres:5432"] {
            assert_eq!(target(nobody).unwrap_err().code(), FailureCode::UnknownHost, "{nobody}");
        }
    }

    #[tokio::test]
    async fn without_endpoints_there_is_a_reason() {
        let objects = mesh_core::yaml::parse_objects("redis.yaml", TEXT).unwrap();
        let (mesh, _driver) = Mesh::builder().objects(objects).build().unwrap();
        let target = mesh.tcp_target(&Authority::parse("redis:6379").unwrap()).unwrap();
        let (facts, _record) = mesh.connection_record(&Connection::builder().build());
        let failure = mesh.dial(&target, &facts).await.unwrap_err();
        assert_eq!(failure.code(), FailureCode::NoHealthyEndpoint);
    }
}
