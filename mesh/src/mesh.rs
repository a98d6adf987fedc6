//! The handle that programs and proxies hold.

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderValue;
use mesh_core::cluster::{Cluster, Registry};
use mesh_core::diagnostic::Diagnostic;
use mesh_core::facts::Connection;
use mesh_core::failure::Failure;
use mesh_core::live::Live;
use mesh_core::normal::Authority;
use mesh_core::protocol::Protocol;
use mesh_policy::authorization::{AuthorizationLayer, Rules, until_refused};
use mesh_route::pool::Pool;
use mesh_route::table::RouteTable;
use mesh_telemetry::metrics::negotiate;
use mesh_telemetry::trace::{Spans, Tracing};
use mesh_telemetry::{AccessLog, Metrics, TelemetryLayer};
use mesh_tls::modes::TlsModes;
use mesh_tls::{AcceptError, Accepted, AcceptedStream, Credentials, TlsAccept, TlsConnect};
use tokio::io::{AsyncRead, AsyncWrite};
use tower_service::Service;

use crate::MeshBuilder;
use crate::apps::{AppClusters, Apps};
use crate::client::{AppService, Client};
use crate::connect::MeshConnect;
use crate::learn::{Learner, LearntAddress};
use crate::outgoing::UnknownDestinations;
use crate::server::ServerLayer;
use crate::stats::OwnMetrics;
use crate::status::Readiness;
use crate::world::View;

/// A mesh, as one workload sees it: server layers, a client, and everything in force.
///
/// Made by [`Mesh::builder`]. Cheap to clone; clones share everything. It lives on what the
/// [`Driver`](crate::Driver) publishes: without it running, the first configuration and certificate stay in
/// force for ever.
#[derive(Clone)]
pub struct Mesh(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) registry: Arc<Registry>,
    pub(crate) routes: Live<RouteTable>,
    pub(crate) rules: Live<Rules>,
    pub(crate) modes: Live<TlsModes>,
    pub(crate) view: Live<View>,
    pub(crate) credentials: Live<Credentials>,
    pub(crate) readiness: Readiness,
    pub(crate) metrics: Metrics,
    pub(crate) own_metrics: OwnMetrics,
    pub(crate) access_log: AccessLog,
    pub(crate) accept: TlsAccept,
    pub(crate) pool: Pool<MeshConnect>,
    pub(crate) apps_pool: Pool<MeshConnect>,
    pub(crate) connect: TlsConnect,
    pub(crate) app: Option<Arc<Cluster>>,
    pub(crate) apps: Arc<AppClusters>,
    pub(crate) unknown_destinations: UnknownDestinations,
    pub(crate) inbound_port: Option<u16>,
    pub(crate) learner: Learner,
    #[cfg(feature = "control-plane")]
    pub(crate) control: Option<crate::control::Handle>,
}

impl Mesh {
    /// Starts with nothing configured.
    pub fn builder() -> MeshBuilder {
        MeshBuilder::default()
    }

    /// The layers for calls to this workload: telemetry, answers for failures, authorization. Put it around
    /// a tower service or an axum router.
    pub fn server_layer<R: From<bytes::Bytes>>(&self) -> ServerLayer<R> {
        let telemetry = self.telemetry().with_direction(mesh_core::facts::Direction::Inbound);
        ServerLayer::new(telemetry, AuthorizationLayer::new(self.0.rules.clone()))
    }

    /// A client for calls from this workload: routing, faults, timeouts, retries, circuit breaking,
    /// balancing, outlier detection, connection pools and mTLS. Always ready; clones share the pools.
    pub fn client(&self) -> Client {
        self.client_on(0)
    }

    /// As [`client`](Self::client), for one of several runtimes: connections made on one are used on that
    /// one only. See [`MeshBuilder::shards`].
    pub fn client_on(&self, shard: usize) -> Client {
        let telemetry = self.telemetry().with_direction(mesh_core::facts::Direction::Outbound);
        let (routes, learner) = (self.0.routes.clone(), self.0.learner.clone());
        crate::client::client(telemetry, routes, learner, self.0.pool.clone().with_shard(shard))
    }

    /// A service that takes calls through the [server layers](Self::server_layer) and hands them to the
    /// application at [`MeshBuilder::app`], over pooled plaintext connections: the inbound half of a sidecar.
    /// `None` where no application was given.
    pub fn app_service(&self, shard: usize) -> Option<AppService> {
        let app = Arc::clone(self.0.app.as_ref()?);
        Some(crate::client::app(self.server_layer(), app, self.0.pool.clone().with_shard(shard)))
    }

    /// Returns once what applies to calls to `authority`'s host is in force. At once where it is, and where the
    /// whole configuration is there from the start. The [client](Self::client) does it by itself; for
    /// connections ([`tcp_target`](Self::tcp_target)) it has to be done before.
    ///
    /// # Errors
    /// `unknown_host` where nobody knows the host, `config_unavailable` where the control plane does not say,
    /// `overflow` where too many calls wait for that already.
    pub async fn learn(&self, authority: &Authority) -> Result<(), Failure> {
        match &self.0.learner {
            Some(learner) if self.0.routes.load().host(authority.name()).is_none() => {
                learner.host(authority).await
            }
            _ => Ok(()),
        }
    }

    /// What stands behind an address, for connections that are known by nothing else: the hosts, which have been
    /// [learnt](Self::learn) when this returns. `None` where nobody knows the address, and where the whole
    /// configuration is there from the start ([`tcp_target`](Self::tcp_target) finds virtual addresses itself).
    ///
    /// # Errors
    /// As [`learn`](Self::learn), but for `unknown_host`.
    pub async fn learn_address(&self, ip: IpAddr) -> Result<Option<Arc<LearntAddress>>, Failure> {
        match &self.0.learner {
            Some(learner) => learner.address(ip.to_canonical()).await,
            None => Ok(None),
        }
    }

    /// The applications of this workload that redirected calls are handed to, each where the call was going.
    pub fn apps(&self, shard: usize) -> Apps {
        let pool = self.0.apps_pool.clone().with_shard(shard);
        Apps::new(Arc::clone(&self.0.apps), self.server_layer(), pool)
    }

    fn telemetry(&self) -> TelemetryLayer {
        TelemetryLayer::new(self.0.metrics.recorder())
            .with_access_log(self.0.access_log.clone())
            .with_tracing(Tracing::default().spans(Spans::Same))
    }

    /// Takes an accepted connection: finds out whether it is the mesh's TLS, terminates it, and says who is
    /// on the other end.
    ///
    /// # Errors
    /// When it is refused; it is closed by then.
    pub async fn accept<IO>(&self, stream: AcceptedStream<IO>) -> Result<Accepted<IO>, AcceptError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.0.accept.clone().call(stream).await
    }

    /// Counts a connection that [`accept`](Self::accept) refused, under a short word for the reason.
    pub fn count_refused(&self, reason: &'static str) {
        self.0.own_metrics.refused(reason);
    }

    /// The connection with what the configuration knows of the peer's workload, for telemetry.
    pub fn describe_peer(&self, connection: Arc<Connection>) -> Arc<Connection> {
        let Some(peer) = connection.peer() else { return connection };
        match self.0.view.load().peer(peer.id()) {
            Some(labels) => Arc::new(connection.with_peer_labels(Arc::clone(labels))),
            None => connection,
        }
    }

    /// What the service behind a port of this workload is declared to speak.
    pub fn inbound_protocol(&self, port: u16) -> Protocol {
        let view = self.0.view.load();
        let port = view.inbound.as_ref().and_then(|inbound| inbound.port(port));
        port.map_or(Protocol::Auto, |p| p.service_port.protocol)
    }

    /// Returns when a connection of this transport may no longer stay, because its port has become STRICT.
    pub async fn transport_refused(&self, connection: &Connection) {
        let mut changes = self.0.modes.changes();
        let port = connection.workload_port().unwrap_or_default();
        while self.0.modes.load().for_port(port).mode.keeps(connection.transport()) {
            changes.changed().await;
        }
    }

    /// Returns as soon as policy refuses a connection whose bytes are not looked into, and tells why. To be
    /// polled before the first byte is carried, and beside carrying.
    pub fn connection_refused(&self, connection: Arc<Connection>) -> impl Future<Output = Failure> + use<> {
        until_refused(self.0.rules.clone(), connection)
    }

    /// Whether the first configuration and certificate are in force.
    pub fn readiness(&self) -> &Readiness {
        &self.0.readiness
    }

    /// What is wrong with the configuration in force, and what is skipped.
    pub fn diagnostics(&self) -> Arc<[Diagnostic]> {
        Arc::clone(&self.0.view.load().diagnostics)
    }

    /// The metrics, for registering more and for reading.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// The metrics as a scraper asks for them by its `Accept`: content type and text.
    pub fn metrics_page(&self, accept: Option<&HeaderValue>) -> (HeaderValue, String) {
        let format = negotiate(accept);
        (format.content_type(), self.0.metrics.encode(format))
    }

    /// Takes no more lines into the access log; the [`Driver`](crate::Driver) then writes what is there and
    /// ends.
    pub fn close_access_log(&self) {
        self.0.access_log.close();
    }

    /// The certificate in force.
    pub fn credentials(&self) -> Live<Credentials> {
        self.0.credentials.clone()
    }

    /// The rules in force for calls to this workload.
    pub fn rules(&self) -> Live<Rules> {
        self.0.rules.clone()
    }

    /// The routes in force for calls from this workload.
    pub fn routes(&self) -> Live<RouteTable> {
        self.0.routes.clone()
    }

    /// The clusters and endpoints that calls from this workload go to.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.0.registry
    }

    /// Closes idle connections that have been so for too long. The [`Driver`](crate::Driver) does it every
    /// few seconds.
    pub(crate) fn sweep(&self) {
        self.0.pool.sweep(tokio::time::Instant::now());
        self.0.apps_pool.sweep(tokio::time::Instant::now());
    }
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh")
            .field("workload", &self.0.view.load().workload.as_ref().map(|w| &w.resource))
            .finish_non_exhaustive()
    }
}
