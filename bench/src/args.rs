//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::peer::Peer;

/// Measures mesh-proxy beside Envoy, nginx, HAProxy and a bare relay on the same work.
///
/// Proxies run on one core, the load and the backends on another. Each peer is measured once in each round, the
/// order changes from round to round, and the report shows the median of the rounds. A peer that answers with an
/// error is not given a figure.
#[derive(Debug, Parser)]
#[command(name = "bench/run", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// The role in which the program starts itself again.
    #[command(subcommand)]
    pub role: Option<Internal>,
    /// What to measure.
    #[command(flatten)]
    pub options: Options,
}

/// What to measure, and how long.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Scenarios to run, all when none is given; a name with a slash picks one case (see --list)
    #[arg(value_name = "SCENARIO")]
    pub scenarios: Vec<String>,

    /// Lists the scenarios and their cases
    #[arg(long)]
    pub list: bool,

    /// Whom to measure beside mesh-proxy
    #[arg(long, value_name = "PEERS", value_delimiter = ',', default_value = "envoy,nginx,haproxy,relay")]
    pub peers: Vec<PeerName>,

    /// Writes everything that was measured, every round of it, into this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Seconds of each measurement
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub seconds: u32,

    /// Rounds; the report shows their median
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,

    /// Cores: of the proxies, and of the load with the backends
    #[arg(long, value_name = "P,L", default_value = "0,1", value_parser = cores)]
    pub cores: Cores,

    /// Another mesh-proxy to measure beside the built one, as the peer "ours-b"
    #[arg(long, value_name = "PATH")]
    pub ours: Option<PathBuf>,

    /// The mesh-proxy to measure [default: the one beside this program]
    #[arg(long, value_name = "PATH")]
    pub mesh_proxy: Option<PathBuf>,

    /// Envoy's binary (not a script around it: its start is measured too)
    #[arg(long, value_name = "PATH", env = "ENVOY", default_value = "envoy")]
    pub envoy: PathBuf,

    /// The folder with the configurations of the peers [default: bench/peers of the source tree]
    #[arg(long, value_name = "DIR")]
    pub peer_files: Option<PathBuf>,
}

/// The two cores in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cores {
    /// Of the proxies.
    pub proxy: usize,
    /// Of the load generator, the backends and the runner.
    pub load: usize,
}

fn cores(text: &str) -> Result<Cores, String> {
    let parsed =
        text.split_once(',').and_then(|(p, l)| Some((p.trim().parse().ok()?, l.trim().parse().ok()?)));
    match parsed {
        Some((proxy, load)) if proxy != load => Ok(Cores { proxy, load }),
        _ => Err("write two different cores, such as 0,1".into()),
    }
}

/// A peer that can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PeerName {
    /// Envoy, as Istio sets it up
    Envoy,
    /// nginx
    Nginx,
    /// HAProxy
    Haproxy,
    /// A relay of hyper with no features at all: the floor
    Relay,
}

impl PeerName {
    /// The peer by that name.
    pub fn peer(self) -> Peer {
        match self {
            Self::Envoy => Peer::Envoy,
            Self::Nginx => Peer::Nginx,
            Self::Haproxy => Peer::Haproxy,
            Self::Relay => Peer::Relay,
        }
    }
}

/// Wraps the roles, so that their names are not taken for scenarios.
#[derive(Debug, Subcommand)]
pub enum Internal {
    /// Part of a measurement; started by the runner
    #[command(subcommand, hide = true)]
    Role(Role),
}

/// What the program is when it is started by its own runner.
#[derive(Debug, Subcommand)]
pub enum Role {
    /// Answers HTTP/1.1 with a fixed body, as cheaply as possible
    Backend {
        /// Where to listen; the n-th says that it is version n
        #[arg(long, required = true)]
        listen: Vec<SocketAddr>,
    },
    /// Answers HTTP/2 with a fixed body, or gRPC with trailers
    BackendH2 {
        /// Where to listen; the n-th says that it is version n
        #[arg(long, required = true)]
        listen: Vec<SocketAddr>,
    },
    /// Hands HTTP/1.1 requests on and does nothing else
    Relay {
        /// Where to listen
        #[arg(long)]
        listen: SocketAddr,
        /// The backend
        #[arg(long)]
        to: SocketAddr,
        /// Speaks HTTP/2 on both sides
        #[arg(long)]
        h2: bool,
    },
    /// Sends bytes back, or without end
    TcpBackend {
        /// Where to listen
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Hands bytes on and does nothing else
    TcpRelay {
        /// Where to listen
        #[arg(long)]
        listen: SocketAddr,
        /// The backend
        #[arg(long)]
        to: SocketAddr,
    },
    /// Receives bytes, or sends messages that come back
    TcpLoad {
        /// The proxy
        #[arg(long)]
        to: SocketAddr,
        /// Asks the proxy for a tunnel to this target
        #[arg(long)]
        tunnel: Option<String>,
        /// What to do
        #[arg(long)]
        work: TcpWork,
        /// On how many connections
        #[arg(long)]
        connections: usize,
        /// For how long
        #[arg(long)]
        seconds: u32,
    },
    /// Sends requests at a fixed rate
    OpenLoop {
        /// The proxy
        #[arg(long)]
        to: SocketAddr,
        /// The header Host
        #[arg(long)]
        host: String,
        /// Requests per second
        #[arg(long)]
        rate: u32,
        /// Requests in all
        #[arg(long)]
        count: u64,
        /// On how many connections
        #[arg(long)]
        connections: usize,
    },
    /// Makes mTLS connections, each with one request
    Handshakes {
        /// The proxy
        #[arg(long)]
        to: SocketAddr,
        /// The folder of the authority
        #[arg(long)]
        ca: PathBuf,
        /// Connections at once
        #[arg(long)]
        concurrency: usize,
        /// For how long
        #[arg(long)]
        seconds: u32,
    },
    /// An axum service, with or without layers
    Layers {
        /// Where to listen
        #[arg(long)]
        listen: SocketAddr,
        /// What is around it
        #[arg(long)]
        variant: Variant,
        /// The access log, for the variants that write one
        #[arg(long)]
        log: PathBuf,
    },
}

/// What is around the service of the scenario `layers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Variant {
    /// Nothing
    Alone,
    /// Our server stack
    Layers,
    /// Our server stack and a rate limit
    LayersLimit,
    /// Our server stack, which writes an access log
    LayersLog,
    /// tower-http's tracing, which writes a log
    TraceLayer,
}

impl Variant {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Layers => "layers",
            Self::LayersLimit => "layers-limit",
            Self::LayersLog => "layers-log",
            Self::TraceLayer => "trace-layer",
        }
    }
}

/// What a load of bytes does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TcpWork {
    /// Receives bytes without end
    Bulk,
    /// Sends messages, each after the last came back
    Pingpong,
}

impl TcpWork {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bulk => "bulk",
            Self::Pingpong => "pingpong",
        }
    }
}
