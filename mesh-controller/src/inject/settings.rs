//! What is the same for every pod of a mesh: images, addresses, names.

use std::collections::BTreeMap;

use super::capture::Capture;

/// The sidecar's user and group. What they send is never redirected, so nothing else may run as them.
pub const PROXY_ID: u32 = 1337;
/// The name of the sidecar's container.
pub const PROXY_CONTAINER: &str = "mesh-proxy";
/// The name of the init container that redirects the pod's traffic.
pub const INIT_CONTAINER: &str = "mesh-init";
/// Where the pod's outgoing connections arrive.
pub const OUTBOUND_PORT: u16 = 15001;
/// Where the pod's incoming connections arrive.
pub const INBOUND_PORT: u16 = 15006;
/// The administration pages, on the pod's loopback only.
pub const ADMIN_PORT: u16 = 15000;
/// Probes of the application, and metrics of sidecar and application together.
pub const STATUS_PORT: u16 = 15020;
/// Whether the sidecar itself is ready.
pub const READY_PORT: u16 = 15021;
/// The sidecar's own metrics.
pub const METRICS_PORT: u16 = 15090;
/// The longest life that is asked for a token, in seconds: Istio's 12 hours.
pub const TOKEN_SECONDS: u32 = 43_200;

/// What is the same for every pod of a mesh. [`Default`] is what an installation without wishes uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The image that holds `mesh-proxy`; the default names no registry.
    pub image: String,
    /// `Always`, `IfNotPresent` or `Never`; absent leaves it to Kubernetes.
    pub image_pull_policy: Option<String>,
    /// Where sidecars find the controller.
    pub controller: String,
    /// The mesh's trust domain.
    pub trust_domain: String,
    /// The namespace whose policies apply to the whole mesh.
    pub root_namespace: String,
    /// Whom the sidecar's token is for; `istio-ca` unless the CA wants another name.
    pub token_audience: String,
    /// The ConfigMap of every namespace that holds the mesh's roots, under `root-cert.pem`.
    pub root_config_map: String,
    /// The revision that this controller is: which `istio.io/rev` means it. Only `default` answers to
    /// `istio-injection=enabled`.
    pub revision: String,
    /// Whether pods about which neither they nor their namespace say anything are injected.
    pub by_default: bool,
    /// Namespaces whose pods are left alone whatever they say. Kubernetes' own are the default, with the
    /// controller's, which has to start without its own help.
    pub system_namespaces: Vec<String>,
    /// What the sidecar logs; a pod's `sidecar.istio.io/logLevel` goes before it.
    pub log: String,
    /// `requests` and `limits` of the sidecar; when a pod's annotations give any, they alone count.
    pub resources: Resources,
    /// What is redirected; a pod's annotations go before each part of it.
    pub capture: Capture,
    /// Whether Prometheus' annotations lead to the page on which the sidecar shows its own metrics and the
    /// application's.
    pub merge_metrics: bool,
}

/// Requests and limits of a container, as Kubernetes writes them: `cpu` and `memory` to a quantity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// What is set aside for it.
    pub requests: BTreeMap<String, String>,
    /// What it may take at most.
    pub limits: BTreeMap<String, String>,
}

impl Default for Settings {
    fn default() -> Self {
        let quantities = |cpu: &str, memory: &str| {
            BTreeMap::from([("cpu".into(), cpu.to_owned()), ("memory".into(), memory.to_owned())])
        };
        Self {
            image: concat!("mesh-proxy:", env!("CARGO_PKG_VERSION")).into(),
            image_pull_policy: None,
            controller: "https://mesh-controller.mesh-system.svc:15012".into(),
            trust_domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
            token_audience: "istio-ca".into(),
            root_config_map: "mesh-root-cert".into(),
            revision: "default".into(),
            by_default: false,
            system_namespaces: [
                "kube-system",
                "kube-public",
                "kube-node-lease",
                "local-path-storage",
                "mesh-system",
            ]
            .map(str::to_owned)
            .into(),
            log: "info".into(),
            resources: Resources { requests: quantities("50m", "48Mi"), limits: quantities("2", "1Gi") },
            capture: Capture::default(),
            merge_metrics: true,
        }
    }
}
