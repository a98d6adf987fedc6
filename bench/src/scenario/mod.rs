//! What is measured.

pub mod handshakes;
pub mod idle;
pub mod latency;
pub mod layers;
pub mod mtls;
pub mod plain;
pub mod routes;
pub mod tcp;

use anyhow::Result;
use std::net::SocketAddr;

use crate::args::TcpWork;
use crate::measure::{BUSY, CPU, GROWN, HTTP, LOGGED, P50, P99, RPS, RSS};
use crate::peer::Peer;
use crate::proc::Proc;
use crate::report::{Metric, Row, Sample};
use crate::stage::Stage;

/// One table of the report.
#[derive(Debug)]
pub struct Case {
    /// `SCENARIO`, or `SCENARIO/CASE` where a scenario has several.
    pub id: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    /// What it measures, in the order of the columns.
    pub metrics: &'static [Metric],
    /// Who can take part.
    pub peers: &'static [Peer],
    /// To whom the ratios are.
    pub base: Peer,
    kind: Kind,
}

/// What speaks between the load, the proxies and the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// HTTP/1.1.
    H1,
    /// HTTP/2 with prior knowledge.
    H2,
    /// gRPC.
    Grpc,
}

#[derive(Debug)]
enum Kind {
    Plain { wire: Wire, connections: u32 },
    Mtls { wire: Wire },
    Idle,
    Layers,
    Tcp { work: TcpWork, mtls: bool },
    Latency,
    Handshakes,
    Routes(routes::Size),
}

/// What all peers of a case share.
#[derive(Debug, Default)]
pub struct Prepared {
    /// Where the backends are: of version 1, and of version 2.
    pub backends: Vec<SocketAddr>,
    /// Requests per second, where all get the same.
    pub rate: u32,
    /// What the report has to say besides.
    pub notes: Vec<String>,
    /// Keeps the backend's process.
    pub procs: Vec<Proc>,
}

impl Prepared {
    /// The n-th backend.
    ///
    /// # Errors
    /// When there is none.
    pub fn backend(&self, n: usize) -> Result<SocketAddr> {
        self.backends.get(n).copied().ok_or_else(|| anyhow::anyhow!("no backend {n}"))
    }
}

const ONE_HOP: &[Peer] = &[Peer::Ours, Peer::OursB, Peer::Envoy, Peer::Nginx, Peer::Haproxy, Peer::Relay];
const H2: &[Peer] = &[Peer::Ours, Peer::OursB, Peer::Envoy, Peer::Haproxy, Peer::Relay];
const VARIANTS: &[Peer] = &[Peer::Alone, Peer::Layers, Peer::LayersLimit, Peer::LayersLog, Peer::TraceLayer];
const AND_DIRECT: &[Peer] =
    &[Peer::Ours, Peer::OursB, Peer::Envoy, Peer::Nginx, Peer::Haproxy, Peer::Relay, Peer::Direct];
const SIDECARS: &[Peer] = &[Peer::Ours, Peer::OursB, Peer::Envoy];

/// Memory for each connection of the load, the one to the backend included.
const PER_CONNECTION: Metric = Metric::new("rss_kib_per_connection", "KiB/conn", 1);
const CONNS: &[Metric] = &[RPS, CPU, P50, P99, RSS, PER_CONNECTION, BUSY, LOGGED];

/// All cases, in the order in which they are run.
pub const CASES: &[Case] = &[
    Case {
        id: "plain",
        about: "one hop, HTTP/1.1, 64 connections; split 90/10, retries, limits, outlier detection, JSON log, metrics",
        metrics: HTTP,
        peers: ONE_HOP,
        base: Peer::Ours,
        kind: Kind::Plain { wire: Wire::H1, connections: 64 },
    },
    Case {
        id: "mtls",
        about: "two sidecars, mTLS between them, policy by SPIFFE identity, HTTP/1.1, 64 connections; the sum of both",
        metrics: HTTP,
        peers: SIDECARS,
        base: Peer::Ours,
        kind: Kind::Mtls { wire: Wire::H1 },
    },
    Case {
        id: "h2",
        about: "as plain, HTTP/2 without TLS end to end, 4 connections of 25 streams",
        metrics: HTTP,
        peers: H2,
        base: Peer::Ours,
        kind: Kind::Plain { wire: Wire::H2, connections: 4 },
    },
    Case {
        id: "h2mtls",
        about: "as mtls, HTTP/2 end to end, 4 connections of 25 streams; the sum of both",
        metrics: HTTP,
        peers: SIDECARS,
        base: Peer::Ours,
        kind: Kind::Mtls { wire: Wire::H2 },
    },
    Case {
        id: "grpc",
        about: "as h2, unary gRPC calls with 32 bytes each way and trailers",
        metrics: HTTP,
        peers: H2,
        base: Peer::Ours,
        kind: Kind::Plain { wire: Wire::Grpc, connections: 4 },
    },
    Case {
        id: "conns/1000",
        about: "as plain, 1000 connections",
        metrics: CONNS,
        peers: ONE_HOP,
        base: Peer::Ours,
        kind: Kind::Plain { wire: Wire::H1, connections: 1000 },
    },
    Case {
        id: "conns/5000",
        about: "as plain, 5000 connections",
        metrics: CONNS,
        peers: ONE_HOP,
        base: Peer::Ours,
        kind: Kind::Plain { wire: Wire::H1, connections: 5000 },
    },
    Case {
        id: "tcp/bulk",
        about: "bytes in plaintext, one hop, one connection, as fast as they go",
        metrics: tcp::BULK,
        peers: ONE_HOP,
        base: Peer::Ours,
        kind: Kind::Tcp { work: TcpWork::Bulk, mtls: false },
    },
    Case {
        id: "tcp/pingpong",
        about: "bytes in plaintext, one hop, 32 connections, messages of 64 bytes there and back",
        metrics: tcp::PINGPONG,
        peers: ONE_HOP,
        base: Peer::Ours,
        kind: Kind::Tcp { work: TcpWork::Pingpong, mtls: false },
    },
    Case {
        id: "tcp/mtls-bulk",
        about: "as tcp/bulk through two sidecars with mTLS between them (ours by CONNECT); the sum of both",
        metrics: tcp::BULK,
        peers: SIDECARS,
        base: Peer::Ours,
        kind: Kind::Tcp { work: TcpWork::Bulk, mtls: true },
    },
    Case {
        id: "tcp/mtls-pingpong",
        about: "as tcp/pingpong through two sidecars with mTLS between them (ours by CONNECT); the sum of both",
        metrics: tcp::PINGPONG,
        peers: SIDECARS,
        base: Peer::Ours,
        kind: Kind::Tcp { work: TcpWork::Pingpong, mtls: true },
    },
    Case {
        id: "latency",
        about: "as plain, open loop at a fixed rate, from the time a request was due; added to the way without a proxy",
        metrics: latency::METRICS,
        peers: AND_DIRECT,
        base: Peer::Ours,
        kind: Kind::Latency,
    },
    Case {
        id: "handshakes",
        about: "the server's sidecar of mtls: new connections, full handshakes (P-256), one request each",
        metrics: handshakes::METRICS,
        peers: SIDECARS,
        base: Peer::Ours,
        kind: Kind::Handshakes,
    },
    Case {
        id: "routes/1",
        about: "one host with one rule, one hop, HTTP/1.1, 64 connections",
        metrics: routes::METRICS,
        peers: SIDECARS,
        base: Peer::Ours,
        kind: Kind::Routes(routes::Size { hosts: 1, rules: 1, endpoints: 1 }),
    },
    Case {
        id: "routes/endpoints",
        about: "as routes/1 with 1,000 endpoints: as many connections as the next two, and still one rule",
        metrics: routes::METRICS,
        peers: SIDECARS,
        base: Peer::Ours,
        kind: Kind::Routes(routes::Size { hosts: 1, rules: 1, endpoints: 1000 }),
    },
    Case {
        id: "routes/1000",
        about: "as routes/1 with 1,000 hosts of one rule each, called in turn: a connection and counters for each",
        metrics: routes::METRICS,
        peers: SIDECARS,
        base: Peer::Ours,
        kind: Kind::Routes(routes::Size { hosts: 1000, rules: 1, endpoints: 1 }),
    },
    Case {
        id: "routes/10000",
        about: "as routes/1000 with ten rules each, 10,000 in all, called by its last rule",
        metrics: routes::METRICS,
        peers: SIDECARS,
        base: Peer::Ours,
        kind: Kind::Routes(routes::Size { hosts: 1000, rules: 10, endpoints: 1 }),
    },
    Case {
        id: "idle",
        about: "the server's sidecar of mtls: from its start until it is ready, and its memory when idle",
        metrics: idle::METRICS,
        peers: SIDECARS,
        base: Peer::Ours,
        kind: Kind::Idle,
    },
    Case {
        id: "layers",
        about: "no sidecar: an axum service alone, and with layers around it; HTTP/1.1, 64 connections",
        metrics: HTTP,
        peers: VARIANTS,
        base: Peer::Alone,
        kind: Kind::Layers,
    },
];

impl Case {
    /// The scenario that it belongs to.
    pub fn scenario(&self) -> &'static str {
        self.id.split('/').next().unwrap_or(self.id)
    }

    /// Starts what all peers share.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn prepare(&self, stage: &Stage, peers: &[Peer]) -> Result<Prepared> {
        match &self.kind {
            Kind::Plain { wire, .. } | Kind::Mtls { wire } => backends(stage, *wire).await,
            Kind::Idle | Kind::Handshakes => backends(stage, Wire::H1).await,
            Kind::Routes(_) => routes::prepare(stage).await,
            Kind::Tcp { .. } => tcp::prepare(stage).await,
            Kind::Latency => {
                let mut prepared = backends(stage, Wire::H1).await?;
                latency::find_rate(stage, &mut prepared, peers).await?;
                Ok(prepared)
            }
            Kind::Layers => Ok(Prepared::default()),
        }
    }

    /// Starts a peer, makes sure in the first round that it does what it is measured for, and measures it.
    ///
    /// # Errors
    /// When it does not work, or did not all the time.
    pub async fn measure(
        &self,
        stage: &Stage,
        prepared: &Prepared,
        peer: Peer,
        first: bool,
    ) -> Result<Sample> {
        match &self.kind {
            Kind::Plain { wire, connections } => {
                let mut sample = plain::measure(stage, prepared, peer, (*wire, *connections), first).await?;
                if let Some(grown) = sample.get(GROWN.id) {
                    let each = grown * 1024.0 / f64::from(*connections);
                    sample.insert(PER_CONNECTION.id, each);
                }
                Ok(sample)
            }
            Kind::Idle => idle::measure(stage, prepared, peer).await,
            Kind::Layers => layers::measure(stage, peer).await,
            Kind::Tcp { work, mtls } => tcp::measure(stage, prepared, peer, (*work, *mtls), first).await,
            Kind::Latency => latency::measure(stage, prepared, peer).await,
            Kind::Handshakes => handshakes::measure(stage, prepared, peer).await,
            Kind::Routes(size) => routes::measure(stage, prepared, peer, *size).await,
            Kind::Mtls { wire } => mtls::measure(stage, prepared, peer, *wire, first).await,
        }
    }

    /// Works out figures that need more than one row.
    pub fn finish(&self, rows: &mut [Row]) {
        if matches!(self.kind, Kind::Latency) {
            latency::finish(rows);
        }
    }
}

/// A backend process that stands for both versions.
async fn backends(stage: &Stage, wire: Wire) -> Result<Prepared> {
    backends_at(stage, wire, [mesh_test::ports::free_addr(), mesh_test::ports::free_addr()]).await
}

/// The same with addresses of its own.
async fn backends_at(stage: &Stage, wire: Wire, [one, two]: [SocketAddr; 2]) -> Result<Prepared> {
    let role = if wire == Wire::H1 { "backend" } else { "backend-h2" };
    let args = [role.into(), "--listen".into(), one.to_string(), "--listen".into(), two.to_string()];
    let proc = stage.role(&args, false, two).await?;
    Ok(Prepared { backends: vec![one, two], procs: vec![proc], ..Prepared::default() })
}
