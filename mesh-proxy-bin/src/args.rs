//! The command line. Every flag has an environment variable `MESH_*`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};

/// The mesh's sidecar.
#[derive(Debug, Parser)]
#[command(name = "mesh-proxy", version, about, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a sidecar beside one workload, configured by a directory
    Run(Box<RunArgs>),
    /// Load a directory and report what would not be applied; exits with 1 when there is something
    Check(CheckArgs),
    /// Show a small mesh at work on this machine: mTLS, a canary, a refusal
    Demo(DemoArgs),
}

/// `mesh-proxy run`
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("identity").required(true).args(["identity_dir", "dev_ca"]))]
pub(crate) struct RunArgs {
    /// Directory of Istio and Kubernetes resources (*.yaml, *.yml, *.json); changes apply while running
    #[arg(long, value_name = "DIR", env = "MESH_CONFIG")]
    pub(crate) config: PathBuf,

    /// The workload beside which this sidecar stands: a WorkloadEntry or Pod in the directory
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
            let name = format!("MESH_{}", arg.get_id().as_str().to_uppercase());
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
