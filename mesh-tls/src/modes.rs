//! Whether a port takes mutual TLS only, both, or none: PeerAuthentication, compiled for one workload.
//!
//! The most specific policy that sets a mode decides, as in Istio: port, workload, namespace, mesh; of
//! several on one level the oldest. With none at all a port is PERMISSIVE.
//!
//! ```
//! use mesh_core::diagnostic::ResourceRef;
//! use tower_mesh_tls::modes::{Mode, ModePolicy, Scope, TlsModes};
//!
//! let policy = |scope, name| ModePolicy::new(ResourceRef::new("PeerAuthentication", "default", name), scope);
//! let modes = TlsModes::compile(&[
//!     policy(Scope::Namespace, "strict").mode(Mode::Strict),
//!     policy(Scope::Workload, "metrics").port(9090, Some(Mode::Disable)),
//! ]);
//! assert_eq!(modes.for_port(8080).mode, Mode::Strict);
//! assert_eq!(modes.for_port(9090).mode, Mode::Disable);
//! assert_eq!(modes.for_port(9090).source.as_ref().unwrap().name(), "metrics");
//! assert_eq!(TlsModes::default().for_port(1).mode, Mode::Permissive);
//! ```

use std::collections::BTreeMap;
use std::fmt;

use mesh_core::diagnostic::ResourceRef;
use mesh_core::facts::Transport;

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

/// How much of the mesh a policy speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// All of it: without selector, in the root namespace.
    Mesh,
    /// A namespace: without selector, elsewhere.
    Namespace,
    /// Workloads that its selector picks.
    Workload,
}

/// What one PeerAuthentication asks of one workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModePolicy {
    source: ResourceRef,
    scope: Scope,
    mode: Option<Mode>,
    ports: BTreeMap<u16, Option<Mode>>,
}

impl ModePolicy {
    /// A policy that asks for nothing yet (`UNSET`).
    pub const fn new(source: ResourceRef, scope: Scope) -> Self {
        Self { source, scope, mode: None, ports: BTreeMap::new() }
    }

    /// Sets `mtls.mode`.
    #[must_use]
    pub fn mode(mut self, mode: impl Into<Option<Mode>>) -> Self {
        self.mode = mode.into();
        self
    }

    /// Adds an entry of `portLevelMtls`; `None` is `UNSET`. Has no effect beside a selector only.
    #[must_use]
    pub fn port(mut self, port: u16, mode: Option<Mode>) -> Self {
        self.ports.insert(port, mode);
        self
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

    /// Compiles the policies that speak for one workload, oldest first; those of other workloads and
    /// namespaces must have been left out.
    pub fn compile(policies: &[ModePolicy]) -> Self {
        let oldest = |scope| policies.iter().find(|p| p.scope == scope);
        let mut others = PortMode::default();
        for policy in [Scope::Mesh, Scope::Namespace, Scope::Workload].into_iter().filter_map(oldest) {
            if let Some(mode) = policy.mode {
                others = PortMode { mode, source: Some(policy.source.clone()) };
            }
        }
        let workload = oldest(Scope::Workload);
        let set = workload.into_iter().flat_map(|policy| {
            policy.ports.iter().filter_map(|(port, mode)| {
                Some((*port, PortMode { mode: (*mode)?, source: Some(policy.source.clone()) }))
            })
        });
        Self { ports: set.collect(), others }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(scope: Scope, name: &str) -> ModePolicy {
        ModePolicy::new(ResourceRef::new("PeerAuthentication", "ns", name), scope)
    }

    fn told(modes: &TlsModes, port: u16) -> (Mode, &str) {
        let found = modes.for_port(port);
        (found.mode, found.source.as_ref().map_or("", ResourceRef::name))
    }

    #[test]
    fn each_level_inherits_from_the_one_above() {
        use Mode::{Disable, Permissive, Strict};
        use Scope::{Mesh, Namespace, Workload};
        let mesh = policy(Mesh, "mesh").mode(Strict);
        let modes = |p: &[ModePolicy]| TlsModes::compile(p);

        assert_eq!(told(&modes(&[]), 1), (Permissive, ""));
        assert_eq!(told(&modes(&[policy(Mesh, "unset")]), 1), (Permissive, ""));
        assert_eq!(told(&modes(std::slice::from_ref(&mesh)), 1), (Strict, "mesh"));
        let unset = [policy(Workload, "w"), policy(Namespace, "n"), mesh.clone()];
        assert_eq!(told(&modes(&unset), 1), (Strict, "mesh"));
        let namespace = [mesh.clone(), policy(Namespace, "n").mode(Disable)];
        assert_eq!(told(&modes(&namespace), 1), (Disable, "n"));
        let workload = [namespace.as_slice(), &[policy(Workload, "w").mode(Permissive)]].concat();
        assert_eq!(told(&modes(&workload), 1), (Permissive, "w"));
    }

    #[test]
    fn of_several_on_a_level_the_oldest_decides_even_when_unset() {
        let modes = TlsModes::compile(&[
            policy(Scope::Mesh, "mesh").mode(Mode::Strict),
            policy(Scope::Namespace, "old"),
            policy(Scope::Namespace, "young").mode(Mode::Disable),
            policy(Scope::Workload, "first").port(1, Some(Mode::Disable)),
            policy(Scope::Workload, "second").port(2, Some(Mode::Disable)).mode(Mode::Permissive),
        ]);
        assert_eq!(told(&modes, 1), (Mode::Disable, "first"));
        assert_eq!(told(&modes, 2), (Mode::Strict, "mesh"));
    }

    #[test]
    fn ports_count_beside_a_selector_only_and_inherit_when_unset() {
        let modes = TlsModes::compile(&[
            policy(Scope::Namespace, "n").mode(Mode::Strict).port(1, Some(Mode::Disable)),
            policy(Scope::Workload, "w").port(2, None).port(3, Some(Mode::Permissive)),
        ]);
        assert_eq!(told(&modes, 1), (Mode::Strict, "n"));
        assert_eq!(told(&modes, 2), (Mode::Strict, "n"));
        assert_eq!(told(&modes, 3), (Mode::Permissive, "w"));
        assert_eq!(modes.ports().count(), 1);
    }

    #[test]
    fn turning_strict_keeps_the_meshs_tls_only() {
        let tls = Transport::Tls { sni: None, alpn: None };
        let passed = Transport::Passthrough { sni: None };
        assert!(Mode::Strict.keeps(&tls));
        assert!(!Mode::Strict.keeps(&passed) && !Mode::Strict.keeps(&Transport::Plaintext));
        assert!(Mode::Permissive.keeps(&Transport::Plaintext) && Mode::Disable.keeps(&tls));
    }
}
