//! The resources, sorted by age and indexed by namespace and host.

use std::collections::HashMap;
use std::sync::Arc;

use super::StoreOptions;
use super::destination::Destinations;
use super::endpoints::{Backend, Sources};
use super::hosts::{HostMap, fqdn};
use super::services::{Known, Services};
use super::visibility::{Export, Sidecars};
use super::workloads::{Touched, Workload, Workloads};
use crate::resource::{
    AuthorizationPolicy, DestinationRule, EndpointSlice, Kind, Object, PeerAuthentication, Resource, Service,
    ServiceEntry, Sidecar, Telemetry, VirtualService,
};

/// The gateway that stands for all sidecars.
const MESH_GATEWAY: &str = "mesh";

/// Resources of one kind by namespace, each list by age.
#[derive(Debug)]
pub(super) struct ByNamespace<T>(HashMap<String, Vec<Arc<Resource<T>>>>);

/// A VirtualService that sidecars use.
#[derive(Debug)]
pub(super) struct Routes {
    pub(super) resource: Arc<Resource<VirtualService>>,
    /// Its hosts in full.
    pub(super) hosts: Vec<Arc<str>>,
    /// The hosts that its rules lead to, in full, each once.
    pub(super) leads_to: Vec<Arc<str>>,
    pub(super) export: Export,
}

/// The VirtualServices that sidecars use.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// By age.
    pub(super) routes: Vec<Arc<Routes>>,
    pub(super) hosts: HostMap<Arc<Routes>>,
}

/// Everything that a store knows. Its parts are shared with the index before, where that had them already.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) workloads: Arc<Workloads>,
    pub(super) services: Arc<Services>,
    pub(super) claims: Arc<Claims>,
    pub(super) destinations: Arc<Destinations>,
    pub(super) sidecars: Arc<Sidecars>,
    pub(super) authorization: Arc<ByNamespace<AuthorizationPolicy>>,
    pub(super) peers: Arc<ByNamespace<PeerAuthentication>>,
    pub(super) telemetry: Arc<ByNamespace<Telemetry>>,
}

/// Resources of one kind by age; `None` where the index before has them.
pub(super) type List<T> = Option<Vec<Arc<Resource<T>>>>;

/// What an index is made from.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) workloads: Option<Workloads>,
    /// There whenever workloads or PeerAuthentications are.
    pub(super) registry: Option<Registry>,
    pub(super) virtual_services: List<VirtualService>,
    pub(super) rules: List<DestinationRule>,
    pub(super) sidecars: List<Sidecar>,
    pub(super) peers: List<PeerAuthentication>,
    pub(super) authorization: List<AuthorizationPolicy>,
    pub(super) telemetry: List<Telemetry>,
}

/// What services and their endpoints are made from, each list by age.
#[derive(Debug)]
pub(super) struct Registry {
    pub(super) services: Vec<Arc<Resource<Service>>>,
    pub(super) entries: Vec<Arc<Resource<ServiceEntry>>>,
    pub(super) slices: Vec<Arc<Resource<EndpointSlice>>>,
    /// The endpoints of every service, where they are known already.
    pub(super) given: Option<Arc<[Backend]>>,
}

impl<T> ByNamespace<T> {
    fn new(all: Vec<Arc<Resource<T>>>) -> Self {
        Self(by_namespace(all))
    }

    pub(super) fn of(&self, namespace: &str) -> &[Arc<Resource<T>>] {
        self.0.get(namespace).map_or(&[], Vec::as_slice)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Resource<T>>> + Clone {
        self.0.values().flatten()
    }
}

fn by_namespace<T>(all: Vec<Arc<Resource<T>>>) -> HashMap<String, Vec<Arc<Resource<T>>>> {
    let mut map: HashMap<_, Vec<_>> = HashMap::new();
    for resource in all {
        map.entry(resource.meta.namespace.clone()).or_default().push(resource);
    }
    map
}

/// The resources of each kind, by age.
macro_rules! sort_out {
    ($objects:ident: $($kind:ident => $list:ident),* $(,)?) => {
        $( let mut $list: Vec<Arc<Resource<crate::resource::$kind>>> = Vec::new(); )*
        for object in $objects {
            match object {
                $( Object::$kind(resource) => $list.push(resource), )*
            }
        }
        $( $list.sort_by(|a, b| a.meta.age_order().cmp(&b.meta.age_order())); )*
    };
}

impl Parts {
    /// Sorts all of them out.
    pub(super) fn new(options: &StoreOptions, objects: Vec<Object>) -> Self {
        sort_out! { objects:
            VirtualService => virtual_services, DestinationRule => rules, ServiceEntry => entries,
            WorkloadEntry => workload_entries, Sidecar => sidecars, PeerAuthentication => peers,
            AuthorizationPolicy => authorization, Telemetry => telemetry, Service => services,
            EndpointSlice => slices, Pod => pods, Namespace => _namespaces,
        }
        let pods = pods.iter().map(|pod| Arc::new(Workload::of_pod(options, pod))).collect();
        let entry = |entry: Arc<Resource<_>>| (Arc::new(Workload::of_entry(options, &entry)), entry);
        let pods: Vec<Arc<Workload>> = pods;
        let entries_of_workloads: Vec<_> = workload_entries.into_iter().map(entry).collect();
        let all = pods.iter().chain(entries_of_workloads.iter().map(|(workload, _)| workload));
        let mut touched = Touched::new();
        for workload in all {
            touched.entry(Arc::clone(&workload.namespace)).or_default();
        }
        Self {
            workloads: Some(Workloads::new(pods, entries_of_workloads, &Workloads::default(), &touched)),
            registry: Some(Registry { services, entries, slices, given: None }),
            virtual_services: Some(virtual_services),
            rules: Some(rules),
            sidecars: Some(sidecars),
            peers: Some(peers),
            authorization: Some(authorization),
            telemetry: Some(telemetry),
        }
    }
}

impl Index {
    /// An index of `parts`, and of those of `before` that are not among them. `touched` are the workloads that
    /// are not what they were before.
    pub(super) fn new(options: &StoreOptions, parts: Parts, before: &Self, touched: &Touched) -> Self {
        fn part<P, T>(new: Option<P>, before: &Arc<T>, make: impl FnOnce(P) -> T) -> Arc<T> {
            new.map_or_else(|| Arc::clone(before), |new| Arc::new(make(new)))
        }
        let workloads = part(parts.workloads, &before.workloads, |new| new);
        let peers = part(parts.peers, &before.peers, ByNamespace::new);
        let services = parts.registry.map(|registry| {
            let sources = Sources::new(options, &workloads, &registry.slices, &peers);
            let touched = Arc::ptr_eq(&peers, &before.peers).then_some(touched);
            let known = Known { services: &before.services, touched };
            Services::new(options, &registry, &sources, &known)
        });
        Self {
            services: services.unwrap_or_else(|| Arc::clone(&before.services)),
            claims: part(parts.virtual_services, &before.claims, |new| Claims::new(options, new)),
            destinations: part(parts.rules, &before.destinations, |new| Destinations::new(options, new)),
            sidecars: part(parts.sidecars, &before.sidecars, by_namespace),
            authorization: part(parts.authorization, &before.authorization, ByNamespace::new),
            telemetry: part(parts.telemetry, &before.telemetry, ByNamespace::new),
            peers,
            workloads,
        }
    }
}

impl Default for Index {
    fn default() -> Self {
        Self {
            workloads: Arc::default(),
            services: Arc::default(),
            claims: Arc::default(),
            destinations: Arc::default(),
            sidecars: Arc::default(),
            authorization: Arc::new(ByNamespace::new(Vec::new())),
            peers: Arc::new(ByNamespace::new(Vec::new())),
            telemetry: Arc::new(ByNamespace::new(Vec::new())),
        }
    }
}

impl Claims {
    fn new(options: &StoreOptions, virtual_services: Vec<Arc<Resource<VirtualService>>>) -> Self {
        let routes = virtual_services.into_iter().filter_map(|vs| Routes::new(options, vs));
        let routes: Vec<_> = routes.map(Arc::new).collect();
        let mut hosts = HostMap::default();
        for claim in &routes {
            for host in &claim.hosts {
                hosts.insert(host, Arc::clone(claim));
            }
        }
        Self { routes, hosts }
    }
}

impl Routes {
    /// `None` for a VirtualService of gateways only, and for a delegate.
    fn new(options: &StoreOptions, resource: Arc<Resource<VirtualService>>) -> Option<Self> {
        let spec = &resource.spec;
        let for_sidecars = spec.gateways.is_empty() || spec.gateways.iter().any(|g| g == MESH_GATEWAY);
        if !for_sidecars || spec.hosts.is_empty() {
            return None;
        }
        let namespace = &resource.meta.namespace;
        let mut hosts: Vec<Arc<str>> = Vec::with_capacity(spec.hosts.len());
        let mut leads_to = Vec::new();
        let add = |list: &mut Vec<Arc<str>>, host: &str| {
            let host = fqdn(host, namespace, &options.cluster_domain);
            if !host.is_empty() && !list.iter().any(|seen| **seen == *host) {
                list.push(host.into());
            }
        };
        spec.hosts.iter().for_each(|host| add(&mut hosts, host));
        destinations_of(spec).for_each(|destination| add(&mut leads_to, &destination.host));
        let export = Export::list(&spec.export_to, namespace);
        Some(Self { hosts, leads_to, export, resource })
    }

    /// The hosts that its rules lead to, in full.
    pub(super) fn destinations(&self, cluster_domain: &str) -> impl Iterator<Item = String> {
        let namespace = &self.resource.meta.namespace;
        destinations_of(&self.resource.spec).map(move |d| fqdn(&d.host, namespace, cluster_domain))
    }
}

/// Every destination that a VirtualService names, mirrors included.
pub(super) fn destinations_of(
    spec: &VirtualService,
) -> impl Iterator<Item = &crate::resource::virtual_service::Destination> {
    let http = spec.http.iter().flat_map(|rule| {
        let routes = rule.route.iter().filter_map(|route| route.destination.as_ref());
        let mirrors = rule.mirrors.iter().filter_map(|mirror| mirror.destination.as_ref());
        routes.chain(rule.mirror.as_deref()).chain(mirrors)
    });
    let tls = spec.tls.iter().flat_map(|rule| &rule.route);
    let tcp = spec.tcp.iter().flat_map(|rule| &rule.route);
    http.chain(tls.chain(tcp).filter_map(|route| route.destination.as_ref()))
}

/// Whether two resources say the same, wherever and whenever they were written. The same `Arc` does.
pub(super) fn same<T: Kind>(a: &Arc<Resource<T>>, b: &Arc<Resource<T>>) -> bool {
    let same = |a: &Resource<T>, b: &Resource<T>| {
        a.meta.name == b.meta.name
            && a.meta.namespace == b.meta.namespace
            && a.meta.labels == b.meta.labels
            && a.meta.annotations == b.meta.annotations
            && a.invalid == b.invalid
            && a.spec == b.spec
    };
    Arc::ptr_eq(a, b) || same(a, b)
}

/// The same as [`same`], for lists.
pub(super) fn same_list(a: &[Arc<Resource<DestinationRule>>], b: &[Arc<Resource<DestinationRule>>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
}
