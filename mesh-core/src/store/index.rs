//! The resources, sorted by age and indexed by namespace and host.

use std::collections::HashMap;
use std::sync::Arc;

use super::StoreOptions;
use super::destination::Destinations;
use super::endpoints::Sources;
use super::hosts::{HostMap, fqdn};
use super::services::Services;
use super::visibility::{Export, Sidecars};
use super::workloads::{Selection, Workload};
use crate::resource::{
    AuthorizationPolicy, DestinationRule, Kind, Object, PeerAuthentication, Resource, Telemetry,
    VirtualService,
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
    pub(super) export: Export,
}

/// Everything that a store knows.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) workloads: Vec<Arc<Workload>>,
    by_name: HashMap<String, HashMap<String, Arc<Workload>>>,
    pub(super) services: Services,
    /// By age.
    pub(super) routes: Vec<Arc<Routes>>,
    pub(super) route_hosts: HostMap<Arc<Routes>>,
    pub(super) destinations: Destinations,
    pub(super) sidecars: Sidecars,
    pub(super) authorization: ByNamespace<AuthorizationPolicy>,
    pub(super) peers: ByNamespace<PeerAuthentication>,
    pub(super) telemetry: ByNamespace<Telemetry>,
}

impl<T> ByNamespace<T> {
    fn new(all: Vec<Arc<Resource<T>>>) -> Self {
        Self(by_namespace(all))
    }

    pub(super) fn of(&self, namespace: &str) -> &[Arc<Resource<T>>] {
        self.0.get(namespace).map_or(&[], Vec::as_slice)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Resource<T>>> {
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

impl Index {
    pub(super) fn new(options: &StoreOptions, objects: Vec<Object>) -> Self {
        sort_out! { objects:
            VirtualService => virtual_services, DestinationRule => rules, ServiceEntry => entries,
            WorkloadEntry => workload_entries, Sidecar => sidecars, PeerAuthentication => peers,
            AuthorizationPolicy => authorization, Telemetry => telemetry, Service => services,
            EndpointSlice => slices, Pod => pods, Namespace => _namespaces,
        }
        let pods = pods.iter().map(|pod| Workload::of_pod(options, pod));
        let entries_of_workloads = workload_entries.iter().map(|entry| Workload::of_entry(options, entry));
        let workloads: Vec<_> = pods.chain(entries_of_workloads).map(Arc::new).collect();
        let mut by_name: HashMap<String, HashMap<String, Arc<Workload>>> = HashMap::new();
        for workload in &workloads {
            let names = by_name.entry(workload.namespace.to_string()).or_default();
            names.entry(workload.name.to_string()).or_insert_with(|| Arc::clone(workload));
        }

        let peers = ByNamespace::new(peers);
        let services = {
            let selection = Selection::new(&workloads);
            let sources = Sources::new(options, &workloads, &selection, &slices, &peers);
            Services::new(options, &services, &entries, &sources)
        };
        let routes = virtual_services.into_iter().filter_map(|vs| Routes::new(options, vs));
        let routes: Vec<_> = routes.map(Arc::new).collect();
        let mut route_hosts = HostMap::default();
        for claim in &routes {
            for host in &claim.hosts {
                route_hosts.insert(host, Arc::clone(claim));
            }
        }
        Self {
            by_name,
            services,
            routes,
            route_hosts,
            destinations: Destinations::new(options, rules),
            sidecars: by_namespace(sidecars),
            authorization: ByNamespace::new(authorization),
            peers,
            telemetry: ByNamespace::new(telemetry),
            workloads,
        }
    }

    pub(super) fn workload(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        self.by_name.get(namespace)?.get(name)
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
        for host in &spec.hosts {
            let host = fqdn(host, namespace, &options.cluster_domain);
            if !host.is_empty() && !hosts.iter().any(|seen| **seen == *host) {
                hosts.push(host.into());
            }
        }
        Some(Self { hosts, export: Export::list(&spec.export_to, namespace), resource })
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
