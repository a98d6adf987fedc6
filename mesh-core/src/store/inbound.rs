//! What applies to a workload.

use std::sync::Arc;

use super::Store;
use super::destination::HostPolicy;
use super::endpoints::target_port;
use super::index::ByNamespace;
use super::services::{ServiceInfo, ServicePort};
use super::workloads::Workload;
use crate::resource::peer_authentication::MutualTlsMode;
use crate::resource::{
    AuthorizationPolicy, Labels, PeerAuthentication, Resource, Selector, Sidecar, Telemetry, selects,
};

/// What applies to a workload and to calls to it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Inbound {
    /// The workload.
    pub workload: Arc<Workload>,
    /// The AuthorizationPolicies that select it, of the root namespace and of its own, by age; closed
    /// readings included. Policies with `targetRefs` are for gateways and services, and not among them.
    pub authorization: Vec<Arc<Resource<AuthorizationPolicy>>>,
    /// Whether callers must speak mTLS.
    pub peer_authentication: PeerAuthentications,
    /// The Telemetry resources, the least specific first: mesh, namespace, workload; at most one of each.
    pub telemetry: Vec<Arc<Resource<Telemetry>>>,
    /// Its Sidecar.
    pub sidecar: Option<Arc<Resource<Sidecar>>>,
    /// The ports at which it serves, one for each port of each of its services, the oldest service first.
    pub ports: Vec<InboundPort>,
}

/// A port of a workload, and the service's port that it stands behind.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct InboundPort {
    /// The workload's port: what policies compare with.
    pub workload_port: u16,
    /// The service.
    pub service: Arc<ServiceInfo>,
    /// The service's port.
    pub service_port: ServicePort,
    /// The service's own DestinationRule, whose connection pool limits the workload, too.
    pub policy: HostPolicy,
}

/// The PeerAuthentications in scope of a workload, one of each level at most.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct PeerAuthentications {
    /// Without a selector, in the root namespace.
    pub mesh: Option<Arc<Resource<PeerAuthentication>>>,
    /// Without a selector, in the workload's namespace.
    pub namespace: Option<Arc<Resource<PeerAuthentication>>>,
    /// Selecting the workload, in its namespace (and not in the root namespace, where selectors do not
    /// count).
    pub workload: Option<Arc<Resource<PeerAuthentication>>>,
}

/// A selector's labels; an empty selector is none.
pub(super) fn labels_of(selector: Option<&Selector>) -> Option<&Labels> {
    selector.map(|s| &s.match_labels).filter(|labels| !labels.is_empty())
}

impl PeerAuthentications {
    pub(super) fn of(
        all: &ByNamespace<PeerAuthentication>,
        root: &str,
        namespace: &str,
        labels: &Labels,
    ) -> Self {
        // The oldest, but a closed reading before all: it stands for something that nobody could read.
        let pick = |namespace: &str, fits: &dyn Fn(Option<&Labels>) -> bool| {
            let fits = |p: &&Arc<Resource<PeerAuthentication>>| fits(labels_of(p.spec.selector.as_ref()));
            let found = || all.of(namespace).iter().filter(fits);
            found().find(|p| p.invalid.is_some()).or_else(|| found().next()).map(Arc::clone)
        };
        let own = namespace != root;
        Self {
            mesh: pick(root, &|selector| selector.is_none()),
            namespace: if own { pick(namespace, &|selector| selector.is_none()) } else { None },
            workload: if own {
                pick(namespace, &|selector| selector.is_some_and(|wanted| selects(wanted, labels)))
            } else {
                None
            },
        }
    }

    /// The mode of a workload port: that of the port, else of the workload, the namespace, the mesh, else
    /// PERMISSIVE. Never UNSET.
    pub fn mode(&self, port: u16) -> MutualTlsMode {
        let of_port = self.workload.as_ref().and_then(|p| p.spec.port_level_mtls.get(&port));
        let levels = [&self.workload, &self.namespace, &self.mesh];
        let of_levels = levels.into_iter().flatten().filter_map(|p| p.spec.mtls.as_ref());
        of_port
            .into_iter()
            .chain(of_levels)
            .map(|mtls| mtls.mode)
            .find(|mode| *mode != MutualTlsMode::Unset)
            .unwrap_or(MutualTlsMode::Permissive)
    }
}

impl Inbound {
    /// The service port behind a port of the workload; of several services the oldest decides.
    pub fn port(&self, workload_port: u16) -> Option<&InboundPort> {
        self.ports.iter().find(|port| port.workload_port == workload_port)
    }
}

impl Store {
    /// What applies to `workload` and to calls to it.
    pub fn inbound(&self, workload: &Arc<Workload>) -> Inbound {
        let index = &*self.index;
        let (root, own) = (&*self.options.root_namespace, &*workload.namespace);
        let mut authorization: Vec<_> = index.authorization.of(root).iter().collect();
        if own != root {
            authorization.extend(index.authorization.of(own));
        }
        authorization.retain(|policy| {
            let spec = &policy.spec;
            spec.target_ref.is_none()
                && spec.target_refs.is_empty()
                && labels_of(spec.selector.as_ref()).is_none_or(|wanted| selects(wanted, &workload.labels))
        });
        authorization.sort_by(|a, b| a.meta.age_order().cmp(&b.meta.age_order()));

        Inbound {
            authorization: authorization.into_iter().map(Arc::clone).collect(),
            peer_authentication: PeerAuthentications::of(&index.peers, root, own, &workload.labels),
            telemetry: self.telemetry(workload),
            sidecar: self.sidecar(workload),
            ports: self.inbound_ports(workload),
            workload: Arc::clone(workload),
        }
    }

    fn telemetry(&self, workload: &Workload) -> Vec<Arc<Resource<Telemetry>>> {
        let (root, own) = (&*self.options.root_namespace, &*workload.namespace);
        let pick = |namespace: &str, fits: &dyn Fn(Option<&Labels>) -> bool| {
            let all = self.index.telemetry.of(namespace).iter();
            all.filter(|t| t.spec.target_ref.is_none() && t.spec.target_refs.is_empty())
                .find(|t| fits(labels_of(t.spec.selector.as_ref())))
                .map(Arc::clone)
        };
        let plain = |selector: Option<&Labels>| selector.is_none();
        let mesh = pick(root, &plain);
        let namespace = if own == root { None } else { pick(own, &plain) };
        let selecting = |s: Option<&Labels>| s.is_some_and(|wanted| selects(wanted, &workload.labels));
        mesh.into_iter().chain(namespace).chain(pick(own, &selecting)).collect()
    }

    fn inbound_ports(&self, workload: &Workload) -> Vec<InboundPort> {
        let mut ports = Vec::new();
        for service in self.index.services.of_namespace(&workload.namespace) {
            let Some((_, backend)) = service.serves(workload) else { continue };
            let policy = self.index.destinations.lookup(
                &self.options,
                &workload.namespace,
                None,
                Some(&service.info.namespace),
                &service.info.host,
            );
            for port in &service.info.ports {
                let of_backend = backend.and_then(|b| b.port(port.number)).map(|p| p.target);
                let Some(workload_port) = of_backend.or_else(|| target_port(workload, port)) else {
                    continue;
                };
                ports.push(InboundPort {
                    workload_port,
                    service: Arc::clone(&service.info),
                    service_port: port.clone(),
                    policy: policy.clone(),
                });
            }
        }
        ports
    }
}
