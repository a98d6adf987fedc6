//! Whether a port takes mutual TLS only, both, or none: PeerAuthentication, compiled for one workload.
//!
//! The most specific policy that sets a mode decides, as in Istio: port, workload, namespace, mesh; of
//! several on one level the oldest. With none at all a port is PERMISSIVE. A policy that could not be read
//! stands before all others of its level, as STRICT.
//!
//! ```
//! use mesh_core::resource::peer_authentication::{MutualTls, MutualTlsMode, PeerAuthentication};
//! use mesh_core::resource::{Labels, Resource, Selector};
//! use tower_mesh_tls::modes::{Mode, TlsModes};
//!
//! let strict = Resource::new("default", "strict", PeerAuthentication {
//!     mtls: Some(MutualTls { mode: MutualTlsMode::Strict }),
//!     ..Default::default()
//! });
//! let metrics = Resource::new("default", "metrics", PeerAuthentication {
//!     selector: Some(Selector::new([("app", "web")])),
//!     port_level_mtls: [(9090, MutualTls { mode: MutualTlsMode::Disable })].into(),
//!     ..Default::default()
//! });
//! let web = Labels::from([("app".to_owned(), "web".to_owned())]);
//! let modes = TlsModes::compile([&strict, &metrics], "istio-system", "default", &web);
//! assert_eq!(modes.for_port(8080).mode, Mode::Strict);
//! assert_eq!(modes.for_port(9090).mode, Mode::Disable);
//! assert_eq!(modes.for_port(9090).source.as_ref().unwrap().name(), "metrics");
//! assert_eq!(TlsModes::default().for_port(1).mode, Mode::Permissive);
//! ```

use std::collections::BTreeMap;
use std::fmt;

use mesh_core::diagnostic::{Diagnostic, Effect, ResourceRef};
use mesh_core::facts::Transport;
use mesh_core::resource::peer_authentication::{MutualTls, MutualTlsMode, PeerAuthentication};
use mesh_core::resource::{Labels, Resource, selects};

/// What a port takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// Everything, as it comes; no TLS of the mesh.
    Disable,
    /// The mesh's TLS and plaintext.
    #[default]
    Permissive,
    /// The mesh's TLS only.
    Strict,
}

impl Mode {
    /// Whether a connection of this transport may stay when this mode comes into force: turning STRICT
    /// ends what is not the mesh's TLS.
    pub const fn keeps(self, transport: &Transport) -> bool {
        !matches!(self, Self::Strict) || matches!(transport, Transport::Tls { .. })
    }
}

impl fmt::Display for Mode {
    /// As PeerAuthentication writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disable => "DISABLE",
            Self::Permissive => "PERMISSIVE",
            Self::Strict => "STRICT",
        })
    }
}

/// The mode of a port, and the resource that it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PortMode {
    /// The mode.
    pub mode: Mode,
    /// The PeerAuthentication; `None` where nobody has said anything.
    pub source: Option<ResourceRef>,
}

/// The modes of one workload's ports. The default, as Istio's, is PERMISSIVE everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsModes {
    others: PortMode,
    ports: BTreeMap<u16, PortMode>,
}

impl TlsModes {
    /// One mode for every port, which no resource asks for.
    pub const fn fixed(mode: Mode) -> Self {
        Self { others: PortMode { mode, source: None }, ports: BTreeMap::new() }
    }

    /// Compiles what `policies`, in any order, ask of a workload with `labels` in `namespace`; `root` is
    /// the mesh's root namespace. Selectors in the root namespace do not count.
    pub fn compile<'a>(
        policies: impl IntoIterator<Item = &'a Resource<PeerAuthentication>>,
        root: &str,
        namespace: &str,
        labels: &Labels,
    ) -> Self {
        let mut policies: Vec<_> = policies.into_iter().collect();
        policies.sort_by(|a, b| {
            let order = |p: &'a Resource<PeerAuthentication>| (p.invalid.is_none(), p.meta.age_order());
            order(a).cmp(&order(b))
        });
        let first = |namespace: &str, fits: &dyn Fn(Option<&Labels>) -> bool| {
            let found = |p: &&&Resource<PeerAuthentication>| {
                p.meta.namespace == namespace && fits(selector_of(&p.spec))
            };
            policies.iter().find(found).copied()
        };
        let everything = |selector: Option<&Labels>| selector.is_none();
        let mesh = first(root, &everything);
        if namespace == root {
            return Self::of_levels(mesh, None, None);
        }
        let workload = first(namespace, &|s| s.is_some_and(|wanted| selects(wanted, labels)));
        Self::of_levels(mesh, first(namespace, &everything), workload)
    }

    /// Compiles the one policy of each level that a store has found for a workload.
    pub fn of_levels(
        mesh: Option<&Resource<PeerAuthentication>>,
        namespace: Option<&Resource<PeerAuthentication>>,
        workload: Option<&Resource<PeerAuthentication>>,
    ) -> Self {
        let mut others = PortMode::default();
        for policy in [mesh, namespace, workload].into_iter().flatten() {
            let set = if policy.invalid.is_some() {
                Some(Mode::Strict)
            } else {
                policy.spec.mtls.as_ref().and_then(mode_of)
            };
            if let Some(mode) = set {
                others = PortMode { mode, source: Some(policy.reference()) };
            }
        }
        let ports = workload.into_iter().filter(|policy| policy.invalid.is_none()).flat_map(|policy| {
            policy.spec.port_level_mtls.iter().filter_map(|(port, mtls)| {
                Some((*port, PortMode { mode: mode_of(mtls)?, source: Some(policy.reference()) }))
            })
        });
        Self { ports: ports.collect(), others }
    }

    /// The mode of the workload's port `port`.
    pub fn for_port(&self, port: u16) -> &PortMode {
        self.ports.get(&port).unwrap_or(&self.others)
    }

    /// The mode of ports that have none of their own.
    pub const fn others(&self) -> &PortMode {
        &self.others
    }

    /// The ports that have a mode of their own.
    pub fn ports(&self) -> impl Iterator<Item = (u16, &PortMode)> {
        self.ports.iter().map(|(port, mode)| (*port, mode))
    }
}

/// `None` for `UNSET`, which inherits.
fn mode_of(mtls: &MutualTls) -> Option<Mode> {
    match mtls.mode {
        MutualTlsMode::Unset => None,
        MutualTlsMode::Disable => Some(Mode::Disable),
        MutualTlsMode::Permissive => Some(Mode::Permissive),
        MutualTlsMode::Strict => Some(Mode::Strict),
    }
}

/// The labels that a policy selects by; a selector without any is none.
fn selector_of(spec: &PeerAuthentication) -> Option<&Labels> {
    spec.selector.as_ref().map(|s| &s.match_labels).filter(|labels| !labels.is_empty())
}

/// What of `policy` is not honoured; `root` is the mesh's root namespace. What the schema itself forbids is
/// found when the resource is read.
pub fn validate(policy: &Resource<PeerAuthentication>, root: &str) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let mut add = |field: &str, message: String| {
        let mut diagnostic =
            Diagnostic::new(Effect::NoEffect, message).resource(policy.reference()).field(field);
        diagnostic.origin.clone_from(&policy.origin);
        found.push(diagnostic);
    };
    let selects = selector_of(&policy.spec).is_some();
    if selects && policy.meta.namespace == root {
        let message = format!(
            "a policy with a selector does not count in the root namespace {root}; \
             put it into the namespace of the workloads"
        );
        add("spec.selector", message);
    }
    if !selects && !policy.spec.port_level_mtls.is_empty() {
        add("spec.portLevelMtls", "modes of single ports count beside a selector only; add one".to_owned());
    }
    found
}

#[cfg(test)]
mod tests;
