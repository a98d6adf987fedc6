//! A sidecar in a pod whose connections are redirected to it: flags, sockets, and what is served beside them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use anyhow::Context;
use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};
use mesh::Mesh;
use mesh::outgoing::UnknownDestinations;
use tokio::sync::Notify;

use crate::bind;
use crate::drain::{Drain, Entrance};
use crate::inbound::Inbound;
use crate::loops::Loops;
use crate::redirected::Redirected;
use crate::status::{self, AppMetrics, Probes, Role, Status};

/// The flags of a sidecar in a pod. Their defaults are what `mesh-proxy init` and injection expect.
#[derive(Debug, Args)]
pub(crate) struct PodArgs {
    /// Take the connections that `mesh-proxy init` redirects, and serve probes, readiness and metrics beside them
    #[arg(long, env = "MESH_TRANSPARENT", value_parser = BoolishValueParser::new())]
    pub(crate) transparent: bool,

    /// Where redirected calls of this workload arrive
    #[arg(long, value_name = "ADDR", env = "MESH_TRANSPARENT_OUTBOUND", default_value = "[::]:15001")]
    transparent_outbound: SocketAddr,

    /// Where redirected calls to this workload arrive
    #[arg(long, value_name = "ADDR", env = "MESH_TRANSPARENT_INBOUND", default_value = "[::]:15006")]
    transparent_inbound: SocketAddr,

    /// With --transparent: the application's probes and hooks, and the metrics of both
    #[arg(long, value_name = "ADDR", env = "MESH_STATUS", default_value = "[::]:15020")]
    status: SocketAddr,

    /// With --transparent: /healthz/ready
    #[arg(long, value_name = "ADDR", env = "MESH_HEALTH", default_value = "[::]:15021")]
    health: SocketAddr,

    /// With --transparent: /stats/prometheus, the sidecar's own metrics
    #[arg(long, value_name = "ADDR", env = "MESH_PROMETHEUS", default_value = "[::]:15090")]
    prometheus: SocketAddr,

    /// What becomes of redirected calls to what the mesh does not know; a Sidecar's outboundTrafficPolicy goes first
    #[arg(
        long,
        value_name = "MODE",
        env = "MESH_OUTBOUND_POLICY",
        default_value = "ALLOW_ANY",
        ignore_case = true
    )]
    outbound_policy: OutboundPolicy,

    /// The application's probes by the path at --status, as JSON
    #[arg(long, value_name = "JSON", env = "MESH_APP_PROBES", hide_env_values = true)]
    app_probes: Option<Probes>,

    /// Where the application's metrics are, as JSON: port, path, scheme
    #[arg(long, value_name = "JSON", env = "MESH_APP_METRICS")]
    app_metrics: Option<AppMetrics>,

    /// The pod's address, at which the application is asked [default: 127.0.0.1]
    #[arg(long, value_name = "IP", env = "POD_IP")]
    pod_ip: Option<IpAddr>,
}

/// Istio's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OutboundPolicy {
    #[value(name = "ALLOW_ANY")]
    AllowAny,
    #[value(name = "REGISTRY_ONLY")]
    RegistryOnly,
}

/// The sockets of a sidecar in a pod, and what it knows of the application.
pub(crate) struct Pod {
    loops: Loops,
    pages: Vec<(TcpListener, Role)>,
    probes: Arc<Probes>,
    app_metrics: Option<AppMetrics>,
    app: IpAddr,
}

/// The sockets of one worker.
pub(crate) struct Redirections {
    inbound: TcpListener,
    outbound: TcpListener,
    loops: Loops,
}

impl PodArgs {
    /// What becomes of calls to what the mesh does not know; `None` where nothing is redirected.
    pub(crate) fn redirected(&self) -> Option<UnknownDestinations> {
        self.transparent.then_some(match self.outbound_policy {
            OutboundPolicy::AllowAny => UnknownDestinations::Allowed,
            OutboundPolicy::RegistryOnly => UnknownDestinations::Refused,
        })
    }

    /// Listens, when connections are redirected: gives the pod, and each worker's sockets.
    pub(crate) fn listen(&self, workers: usize) -> anyhow::Result<(Option<Pod>, Vec<Option<Redirections>>)> {
        if !self.transparent {
            return Ok((None, (0..workers).map(|_| None).collect()));
        }
        let inbound = bind::listeners("transparent-inbound", self.transparent_inbound, workers)?;
        let outbound = bind::listeners("transparent-outbound", self.transparent_outbound, workers)?;
        let port = |all: &[TcpListener]| all.first().context("no socket")?.local_addr().context("a socket");
        let loops = Loops([port(&inbound)?.port(), port(&outbound)?.port()]);
        let page = |flag, addr, role| {
            let socket = bind::listeners(flag, addr, 1)?.pop().context("no socket")?;
            anyhow::Ok((socket, role))
        };
        let pages = vec![
            page("status", self.status, Role::Status)?,
            page("health", self.health, Role::Health)?,
            page("prometheus", self.prometheus, Role::Metrics)?,
        ];
        let pod = Pod {
            loops,
            pages,
            probes: Arc::new(self.app_probes.clone().unwrap_or_default()),
            app_metrics: self.app_metrics.clone(),
            app: self.pod_ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        };
        let each = inbound.into_iter().zip(outbound);
        let each = each.map(|(inbound, outbound)| Some(Redirections { inbound, outbound, loops: pod.loops }));
        let each = each.collect();
        Ok((Some(pod), each))
    }
}

impl Pod {
    /// Serves its pages until the process ends. `quit` is told when the application asks the sidecar to end.
    pub(crate) fn serve(self, mesh: &Mesh, drain: &Drain, quit: &Arc<Notify>) -> anyhow::Result<()> {
        let status = Status {
            mesh: mesh.clone(),
            watch: drain.watch(),
            leave: drain.leave(),
            quit: Arc::clone(quit),
            probes: self.probes,
            app_metrics: self.app_metrics.map(Arc::new),
            app: self.app,
            room: Status::room(),
        };
        let (configuration, leave) = (mesh.readiness().configuration(), drain.leave());
        tokio::spawn(async move {
            status::ending(&configuration).await;
            tokio::time::sleep(status::LEAVE_AFTER).await;
            tracing::info!("leaving: the workload is to end");
            leave.leave();
        });
        for (socket, role) in self.pages {
            tokio::spawn(status.clone().serve(tokio::net::TcpListener::from_std(socket)?, role));
        }
        Ok(())
    }
}

impl Redirections {
    /// Takes connections on this worker's runtime.
    pub(crate) fn serve(
        self,
        mesh: &Mesh,
        worker: usize,
        detect: std::time::Duration,
        entrance: &Entrance,
    ) -> std::io::Result<()> {
        let inbound = Inbound::redirected(mesh.clone(), self.loops, worker, detect);
        let listener = tokio::net::TcpListener::from_std(self.inbound)?;
        tokio::spawn(inbound.serve_redirected(listener, entrance.clone()));
        let outbound = Redirected::new(mesh.clone(), self.loops, worker, detect);
        let listener = tokio::net::TcpListener::from_std(self.outbound)?;
        tokio::spawn(outbound.serve(listener, entrance.clone()));
        Ok(())
    }
}
