//! The command line. Every flag of `run` has an environment variable `MESH_*`.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use mesh_core::identity::TrustDomain;

/// The mesh in Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "mesh-controller", version, about, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the control plane of a cluster
    Run(Box<RunArgs>),
    /// Print the CustomResourceDefinitions of the mesh's kinds, for kubectl apply --server-side -f -
    Crds,
}

/// `mesh-controller run`
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// The namespace in which the controller runs: its Secrets and its Lease are here
    #[arg(long, value_name = "NAMESPACE", env = "MESH_NAMESPACE", default_value = "mesh-system")]
    pub namespace: String,

    /// The Service under which proxies and the API server find the controller
    #[arg(long, value_name = "NAME", env = "MESH_SERVICE", default_value = "mesh-controller")]
    pub service: String,

    /// The controller's service account
    #[arg(long, value_name = "NAME", env = "MESH_SERVICE_ACCOUNT", default_value = "mesh-controller")]
    pub service_account: String,

    /// Who this replica is among several
    #[arg(long, value_name = "NAME", env = "MESH_POD_NAME", default_value = "mesh-controller")]
    pub pod_name: String,

    /// Further names in the controller's certificate
    #[arg(long, value_name = "NAMES", env = "MESH_DNS_NAMES", value_delimiter = ',')]
    pub dns_names: Vec<String>,

    /// The mesh's trust domain
    #[arg(long, value_name = "DOMAIN", env = "MESH_TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: TrustDomain,

    /// The namespace whose policies apply to the whole mesh
    #[arg(long, value_name = "NAMESPACE", env = "MESH_ROOT_NAMESPACE", default_value = "istio-system")]
    pub root_namespace: String,

    /// The cluster's DNS domain
    #[arg(long, value_name = "DOMAIN", env = "MESH_CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,

    /// Which istio.io/rev means this controller
    #[arg(long, value_name = "NAME", env = "MESH_REVISION", default_value = "default")]
    pub revision: String,

    /// Where proxies get configuration and certificates: gRPC over TLS
    #[arg(long, value_name = "ADDR", env = "MESH_LISTEN", default_value = "[::]:15012")]
    pub listen: SocketAddr,

    /// Where the API server finds the webhooks: HTTPS
    #[arg(long, value_name = "ADDR", env = "MESH_WEBHOOK", default_value = "[::]:15017")]
    pub webhook: SocketAddr,

    /// Where /live, /ready, /metrics and /debug/proxies are served: plain HTTP
    #[arg(long, value_name = "ADDR", env = "MESH_ADMIN", default_value = "[::]:15014")]
    pub admin: SocketAddr,

    /// The webhook configurations, one of each sort, into which the CA bundle is written; empty for none
    #[arg(long, value_name = "NAME", env = "MESH_WEBHOOK_CONFIGURATION", default_value = "mesh-controller")]
    pub webhook_configuration: String,

    /// The audience that a workload's token must have
    #[arg(long, value_name = "NAME", env = "MESH_TOKEN_AUDIENCE", default_value = "istio-ca")]
    pub token_audience: String,

    /// Accept tokens that are bound to no pod
    #[arg(long, env = "MESH_ALLOW_UNBOUND_TOKENS")]
    pub allow_unbound_tokens: bool,

    /// The longest life of a workload's certificate; who asks for nothing gets it too
    #[arg(long, value_name = "TIME", env = "MESH_MAX_CERTIFICATE_LIFE", default_value = "24h", value_parser = life)]
    pub max_certificate_life: Duration,

    /// The Secret in which the controller keeps the CA that it makes
    #[arg(long, value_name = "NAME", env = "MESH_CA_SECRET", default_value = "mesh-ca")]
    pub ca_secret: String,

    /// The Secret with a CA of your own, in Istio's form; where it exists it goes before the made one
    #[arg(long, value_name = "NAME", env = "MESH_PLUGGED_CA_SECRET", default_value = "cacerts")]
    pub plugged_ca_secret: String,

    /// The image of the sidecars that are injected [default: mesh-proxy of the controller's version]
    #[arg(long, value_name = "IMAGE", env = "MESH_PROXY_IMAGE")]
    pub proxy_image: Option<String>,

    /// Its pull policy
    #[arg(long, value_name = "POLICY", env = "MESH_PROXY_IMAGE_PULL_POLICY",
        value_parser = ["Always", "IfNotPresent", "Never"])]
    pub proxy_image_pull_policy: Option<String>,

    /// What injected sidecars log
    #[arg(long, value_name = "LEVEL", env = "MESH_PROXY_LOG", default_value = "info")]
    pub proxy_log: String,

    /// Inject pods about which neither they nor their namespace say anything
    #[arg(long, env = "MESH_INJECT_BY_DEFAULT")]
    pub inject_by_default: bool,

    /// What the controller logs: off, error, warn, info, debug, trace, or directives such as
    /// info,mesh_xds=debug
    #[arg(long, value_name = "LEVEL", env = "MESH_LOG", default_value = "info")]
    pub log: String,

    /// Worker threads [default: one for each CPU]
    #[arg(long, value_name = "N", env = "MESH_WORKERS", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,

    /// How long streams and requests in flight may take after SIGTERM
    #[arg(long, value_name = "TIME", env = "MESH_DRAIN", default_value = "5s", value_parser = duration)]
    pub drain: Duration,
}

/// The longest life that can be asked for: Istio's 90 days.
const MAX_LIFE: Duration = Duration::from_secs(90 * 86_400);
/// The shortest: less is renewed more often than an issuer should bear.
const MIN_LIFE: Duration = Duration::from_secs(60);

fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<mesh_core::resource::Duration>().map(|d| d.get()).map_err(|e| e.to_string())
}

fn life(text: &str) -> Result<Duration, String> {
    let life = duration(text)?;
    if (MIN_LIFE..=MAX_LIFE).contains(&life) {
        return Ok(life);
    }
    Err("a certificate lives from 1m to 2160h".to_owned())
}

impl RunArgs {
    /// The names in the controller's certificate: its Service as others write it, then the given ones.
    pub fn server_names(&self) -> Vec<String> {
        let Self { service, namespace, cluster_domain, .. } = self;
        let own = [
            format!("{service}.{namespace}.svc"),
            format!("{service}.{namespace}.svc.{cluster_domain}"),
            format!("{service}.{namespace}"),
        ];
        own.into_iter().chain(self.dns_names.iter().cloned()).collect()
    }

    /// What injection gives every pod.
    pub fn injection(&self) -> crate::inject::Settings {
        let Self { service, namespace, .. } = self;
        let port = self.listen.port();
        let mut settings = crate::inject::Settings {
            image_pull_policy: self.proxy_image_pull_policy.clone(),
            controller: format!("https://{service}.{namespace}.svc:{port}"),
            trust_domain: self.trust_domain.as_str().to_owned(),
            root_namespace: self.root_namespace.clone(),
            token_audience: self.token_audience.clone(),
            revision: self.revision.clone(),
            by_default: self.inject_by_default,
            log: self.proxy_log.clone(),
            ..crate::inject::Settings::default()
        };
        if let Some(image) = &self.proxy_image {
            settings.image.clone_from(image);
        }
        if !settings.system_namespaces.contains(namespace) {
            settings.system_namespaces.push(namespace.clone());
        }
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parsed(extra: &[&str]) -> Result<RunArgs, clap::Error> {
        let line = ["mesh-controller", "run"].iter().chain(extra);
        match Cli::try_parse_from(line)?.command {
            Command::Run(args) => Ok(*args),
            Command::Crds => unreachable!(),
        }
    }

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
    fn a_certificate_lives_neither_too_long_nor_too_short() {
        assert_eq!(parsed(&["--max-certificate-life", "2m"]).unwrap().max_certificate_life.as_secs(), 120);
        for bad in ["59s", "2161h", "1", "-1h"] {
            assert!(parsed(&["--max-certificate-life", bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_controller_goes_by_the_names_of_its_service() {
        let args = parsed(&["--namespace", "a", "--dns-names", "x.example,localhost"]).unwrap();
        let names = args.server_names();
        assert_eq!(names[0], "mesh-controller.a.svc");
        assert_eq!(names[3..], ["x.example", "localhost"]);
        assert!(args.injection().system_namespaces.contains(&"a".to_owned()));
        assert_eq!(args.injection().controller, "https://mesh-controller.a.svc:15012");
    }
}
