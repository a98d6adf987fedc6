//! The command line. Every flag of `run` has an environment variable `MESH_*`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::control::ControlArgs;

/// The mesh's sidecar.
#[derive(Debug, Parser)]
#[command(name = "mesh-proxy", version, about, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a sidecar beside one workload, configured by a directory or a control plane
    Run(Box<RunArgs>),
    /// Load a directory and report what would not be applied; exits with 1 when there is something
    Check(CheckArgs),
    /// Redirect the traffic of this network (a pod's) to the sidecar in it; needs NET_ADMIN
    Init(Box<InitArgs>),
    /// Return when the sidecar of this pod is ready: its `postStart` hook, so that nothing starts before it is
    Wait(WaitArgs),
    /// Show a small mesh at work on this machine: mTLS, a canary, a refusal
    Demo(DemoArgs),
}

/// `mesh-proxy run`
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("source").required(true).args(["config", "controller"]))]
#[command(group = ArgGroup::new("identity").required(true).args(["identity_dir", "dev_ca", "controller"]))]
pub(crate) struct RunArgs {
    /// Directory of Istio and Kubernetes resources (*.yaml, *.yml, *.json); changes apply while running
    #[arg(long, value_name = "DIR", env = "MESH_CONFIG")]
    pub(crate) config: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) control: ControlArgs,

    /// The workload beside which this sidecar stands: a WorkloadEntry or Pod
    #[arg(long, value_name = "NAMESPACE/NAME", env = "MESH_WORKLOAD", value_parser = WorkloadName::parse)]
    pub(crate) workload: WorkloadName,

    /// The mesh's trust domain
    #[arg(long, value_name = "DOMAIN", env = "MESH_TRUST_DOMAIN", default_value = "cluster.local")]
    pub(crate) trust_domain: mesh::core::identity::TrustDomain,

    /// The namespace whose policies apply to the whole mesh
    #[arg(long, value_name = "NAMESPACE", env = "MESH_ROOT_NAMESPACE", default_value = "istio-system")]
    pub(crate) root_namespace: String,

    /// Directory with tls.crt, tls.key and ca.crt, as in a Kubernetes TLS secret
    #[arg(long, value_name = "DIR", env = "MESH_IDENTITY_DIR")]
    pub(crate) identity_dir: Option<PathBuf>,

    /// Directory of a development CA (ca.crt, ca.key), made on first use
    #[arg(long, value_name = "DIR", env = "MESH_DEV_CA")]
    pub(crate) dev_ca: Option<PathBuf>,

    /// Where calls to this workload arrive
    #[arg(long, value_name = "ADDR", env = "MESH_INBOUND", requires = "app")]
    pub(crate) inbound: Option<SocketAddr>,

    /// Where calls to this workload are handed to: the application
    #[arg(long, value_name = "ADDR", env = "MESH_APP", requires = "inbound")]
    pub(crate) app: Option<SocketAddr>,

    /// Where this workload's own calls arrive: by Host or :authority, absolute-form, or CONNECT
    #[arg(long, value_name = "ADDR", env = "MESH_OUTBOUND")]
    pub(crate) outbound: Option<SocketAddr>,

    /// Where /ready, /metrics, /stats/prometheus, /config_dump, /clusters, /certs and /logging are served
    #[arg(long, value_name = "ADDR", env = "MESH_ADMIN", default_value = "127.0.0.1:15000")]
    pub(crate) admin: SocketAddr,

    /// Access log: off, - for standard output, or a file
    #[arg(long, value_name = "off|-|FILE", env = "MESH_ACCESS_LOG", default_value = "off")]
    pub(crate) access_log: String,

    /// Form of the access log
    #[arg(long, value_name = "FORMAT", env = "MESH_ACCESS_LOG_FORMAT", default_value = "json")]
    pub(crate) access_log_format: LogFormat,

    /// What the proxy itself logs: off, error, warn, info, debug, trace, or directives such as
    /// info,mesh_route=debug
    #[arg(long, value_name = "LEVEL", env = "MESH_LOG", default_value = "info")]
    pub(crate) log: String,

    /// Worker threads [default: the CPU limit, rounded up]
    #[arg(long, value_name = "N", env = "MESH_WORKERS", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) workers: Option<u16>,

    /// How long requests in flight may take after SIGTERM
    #[arg(long, value_name = "TIME", env = "MESH_DRAIN", default_value = "5s", value_parser = duration)]
    pub(crate) drain: Duration,

    /// How long a silent connection is waited for before it counts as server-first
    #[arg(long, value_name = "TIME", env = "MESH_DETECT_TIMEOUT", default_value = "1s", value_parser = duration)]
    pub(crate) detect_timeout: Duration,

    #[command(flatten)]
    pub(crate) pod: crate::pod::PodArgs,
}

/// `mesh-proxy check`
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The directory
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,

    /// The namespace whose policies apply to the whole mesh
    #[arg(long, value_name = "NAMESPACE", env = "MESH_ROOT_NAMESPACE", default_value = "istio-system")]
    pub(crate) root_namespace: String,

    /// Form of the report
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub(crate) output: OutputFormat,
}

/// `mesh-proxy init`
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Where outgoing connections are redirected to
    #[arg(long, value_name = "PORT", default_value = "15001", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) outbound_port: u16,

    /// Where incoming connections are redirected to
    #[arg(long, value_name = "PORT", default_value = "15006", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) inbound_port: u16,

    /// The sidecar's user, whose own connections are left alone
    #[arg(long, value_name = "UID", default_value = "1337", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) uid: u32,

    /// The sidecar's group, whose own connections are left alone
    #[arg(long, value_name = "GID", default_value = "1337", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) gid: u32,

    /// Incoming ports that are redirected; * for all, nothing for none
    #[arg(long, value_name = "PORTS", default_value = "*", value_parser = selection::<u16>)]
    pub(crate) include_inbound_ports: Selection<u16>,

    /// Incoming ports that are not
    #[arg(long, value_name = "PORTS", default_value = "15020,15021,15090", value_parser = list::<u16>)]
    pub(crate) exclude_inbound_ports: List<u16>,

    /// Outgoing ports that are redirected whatever the address
    #[arg(long, value_name = "PORTS", default_value = "", value_parser = list::<u16>)]
    pub(crate) include_outbound_ports: List<u16>,

    /// Outgoing ports that are not
    #[arg(long, value_name = "PORTS", default_value = "", value_parser = list::<u16>)]
    pub(crate) exclude_outbound_ports: List<u16>,

    /// Addresses to which connections are redirected; * for all, nothing for none
    #[arg(long, value_name = "RANGES", default_value = "*", value_parser = selection::<IpNet>)]
    pub(crate) include_outbound_ranges: Selection<IpNet>,

    /// Addresses to which they are not
    #[arg(long, value_name = "RANGES", default_value = "", value_parser = list::<IpNet>)]
    pub(crate) exclude_outbound_ranges: List<IpNet>,

    /// Network interfaces that are left alone
    #[arg(long, value_name = "NAMES", default_value = "", value_parser = list::<Interface>)]
    pub(crate) exclude_interfaces: List<Interface>,

    /// By which program the rules are set up; auto takes nft, or iptables where that is missing
    #[arg(long, value_name = "PROGRAM", default_value = "auto")]
    pub(crate) backend: Backend,

    /// Remove what an earlier run set up
    #[arg(long)]
    pub(crate) cleanup: bool,

    /// Print the rules and change nothing; needs no right
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// `mesh-proxy wait`
#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// Where the sidecar listens for /healthz/ready
    #[arg(long, value_name = "ADDR", env = "MESH_HEALTH", default_value = "[::]:15021")]
    pub(crate) health: SocketAddr,

    /// How long to wait before failing; a pod that is deleted meanwhile ends so much later
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub(crate) timeout: Duration,

    /// Where to write what is missing then, if that file is there
    #[arg(long, value_name = "FILE", default_value = "/dev/termination-log")]
    pub(crate) message: Option<PathBuf>,
}

/// `mesh-proxy demo`
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// How long the load runs (at least 4s)
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = duration)]
    pub(crate) duration: Duration,

    /// Keep the demo's directory afterwards, and say where it is
    #[arg(long)]
    pub(crate) keep: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Json,
    Text,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    Text,
    Json,
}

/// How many entries a list of `mesh-proxy init` may have.
const MAX_LIST: usize = 512;
/// The longest name of a network interface: Linux' `IFNAMSIZ` without its final zero.
const MAX_INTERFACE: usize = 15;

/// The program that sets rules up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    Auto,
    Nftables,
    Iptables,
}

/// A list with commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct List<T>(pub(crate) Vec<T>);

/// Everything, or a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selection<T> {
    All,
    Only(Vec<T>),
}

/// The name of a network interface. It is written into scripts, so nothing else may be one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface(pub(crate) String);

/// What a list may hold.
trait Item: Sized {
    fn read(text: &str) -> Result<Self, String>;
}

impl Item for u16 {
    fn read(text: &str) -> Result<Self, String> {
        let port = text.parse().ok().filter(|port| *port > 0);
        port.ok_or_else(|| format!("{text:?} is no port; write numbers from 1 to 65535"))
    }
}

impl Item for IpNet {
    fn read(text: &str) -> Result<Self, String> {
        let net = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        net.map_err(|_| format!("{text:?} is no range of addresses; write such as 10.0.0.0/8"))
    }
}

impl Item for Interface {
    fn read(text: &str) -> Result<Self, String> {
        let good = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if good && text.len() <= MAX_INTERFACE {
            return Ok(Self(text.to_owned()));
        }
        Err(format!("{text:?} is no name of a network interface, such as eth1"))
    }
}

fn list<T: Item>(text: &str) -> Result<List<T>, String> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(T::read);
    let list = items.collect::<Result<Vec<_>, _>>()?;
    match list.len() {
        0..=MAX_LIST => Ok(List(list)),
        n => Err(format!("{n} entries; at most {MAX_LIST} are allowed")),
    }
}

fn selection<T: Item>(text: &str) -> Result<Selection<T>, String> {
    if text.trim() == "*" { Ok(Selection::All) } else { list(text).map(|list| Selection::Only(list.0)) }
}

/// `NAMESPACE/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WorkloadName {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl WorkloadName {
    fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.into(), name: name.into() })
            }
            _ => Err("write it as NAMESPACE/NAME, such as default/reviews-v1".into()),
        }
    }
}

impl std::fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<mesh::core::resource::Duration>().map(|d| d.get()).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_run_has_a_variable() {
        let run = Cli::command().find_subcommand("run").unwrap().clone();
        for arg in run.get_arguments().filter(|a| !matches!(a.get_id().as_str(), "help" | "version")) {
            let name = match arg.get_id().as_str() {
                "pod_ip" => "POD_IP".to_owned(),
                id => format!("MESH_{}", id.to_uppercase()),
            };
            assert_eq!(arg.get_env().and_then(|e| e.to_str()), Some(name.as_str()));
        }
    }

    #[test]
    fn a_sidecar_needs_one_identity_and_an_app_for_its_inbound() {
        let run = |extra: &[&str]| {
            let base = ["mesh-proxy", "run", "--config", "d", "--workload", "a/b"];
            Cli::try_parse_from(base.iter().chain(extra)).is_ok()
        };
        assert!(!run(&[]));
        assert!(run(&["--dev-ca", "x"]));
        assert!(!run(&["--dev-ca", "x", "--identity-dir", "y"]));
        assert!(!run(&["--dev-ca", "x", "--inbound", "127.0.0.1:1"]));
        assert!(run(&["--dev-ca", "x", "--inbound", "127.0.0.1:1", "--app", "127.0.0.1:2"]));
        assert!(!run(&["--dev-ca", "x", "--workers", "0"]));
        assert!(!run(&["--dev-ca", "x", "--drain", "5"]));
    }
}
