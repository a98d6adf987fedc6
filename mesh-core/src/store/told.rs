//! What another store has to be given so that it answers as this one does: no more than the asker may see.
//!
//! The controller's store knows a whole cluster, a proxy's what the proxy uses. What decides an answer of the
//! first is told to the second, resource by resource, as their users wrote them.

use std::net::IpAddr;
use std::sync::Arc;

use super::Store;
use super::endpoints::{Backend, SERVICE_NAME_LABEL, target_port};
use super::hosts::short_forms;
use super::services::{Origin, ServiceData};
use super::visibility::Scope;
use super::workloads::{Workload, WorkloadAddress};
use crate::diagnostic::ResourceRef;
use crate::resource::kubernetes::{
    Container, ContainerPort, Endpoint, EndpointPort, ObjectReference, PodCondition, PodSpec, PodStatus,
};
use crate::resource::{EndpointSlice, Kind, Object, ObjectMeta, Pod, Resource};

/// The time of deletion of a Pod that is to end. That it has one is what counts.
const ENDING: &str = "1970-01-01T00:00:00Z";

/// What the workloads of one namespace see, under the one Sidecar that they have in common if they have one.
/// What two views with the same namespace and the same Sidecar see of one store is the same.
#[derive(Debug, Clone)]
pub struct View {
    scope: Arc<Scope>,
    sidecar: Option<ResourceRef>,
}

/// The hosts behind an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressHosts {
    /// The hosts in full, the one that decides first.
    pub hosts: Vec<Arc<str>>,
    /// Whether it is the address of an endpoint rather than that of the whole service.
    pub endpoint: bool,
}

impl View {
    /// The namespace.
    pub fn namespace(&self) -> &Arc<str> {
        &self.scope.namespace
    }

    /// The Sidecar, where it narrows what is seen or not.
    pub fn sidecar(&self) -> Option<&ResourceRef> {
        self.sidecar.as_ref()
    }
}

/// Objects, each once.
struct Told<'a> {
    store: &'a Store,
    scope: &'a Scope,
    objects: Vec<Object>,
}

impl Told<'_> {
    fn add(&mut self, object: impl Into<Object>) {
        let object = object.into();
        if !self.objects.iter().any(|told| told.ptr_eq(&object)) {
            self.objects.push(object);
        }
    }

    /// A service, as far as it decides who its endpoints are and who sees it.
    fn service(&mut self, service: &ServiceData) {
        let info = &service.info;
        match &service.origin {
            Origin::Service(of) => {
                self.add(Arc::clone(of));
                // Entries of its own namespace give it names.
                if !service.alt_names.is_empty() {
                    for other in self.store.index.services.exactly(&info.host) {
                        if let Origin::Entries(entries) = &other.origin
                            && other.info.namespace == info.namespace
                        {
                            entries.iter().for_each(|entry| self.add(Arc::clone(entry)));
                        }
                    }
                }
            }
            Origin::Entries(entries) => entries.iter().for_each(|entry| self.add(Arc::clone(entry))),
        }
        if !self.scope.lists(&info.namespace, &info.host) {
            // It is seen because a VirtualService leads to it.
            let mut routes = self.store.index.claims.routes.iter();
            let seen = routes.find(|routes| {
                let namespace = &routes.resource.meta.namespace;
                routes.leads_to.contains(&info.host)
                    && self.scope.sees_routes(&routes.export, namespace, &routes.hosts)
            });
            if let Some(seen) = seen {
                self.add(Arc::clone(&seen.resource));
            }
        }
    }

    /// What decides under which names a service is known.
    fn names(&mut self, service: &ServiceData) {
        let (services, info) = (&self.store.index.services, &service.info);
        if info.kubernetes {
            for form in short_forms(&info.name, &info.namespace, &self.scope.namespace) {
                if let Some(other) = services.of_host(&form, self.scope) {
                    self.service(other);
                }
            }
        }
        for vip in info.ips() {
            if let Some(first) = services.of_vip(vip, self.scope) {
                self.service(first);
            }
        }
    }

    /// In an order that does not depend on who found them first.
    fn sorted(mut self) -> Vec<Object> {
        let key =
            |object: &Object| (object.kind(), object.meta().namespace.clone(), object.meta().name.clone());
        self.objects.sort_by_cached_key(key);
        self.objects
    }
}

impl Store {
    /// What `workload` sees.
    pub fn view(&self, workload: &Workload) -> View {
        let sidecar = self.sidecar(workload);
        let name = sidecar.as_ref().map(|sidecar| sidecar.reference());
        View { scope: self.scope_of(&workload.namespace, sidecar), sidecar: name }
    }

    /// Everything that decides what applies to calls to `host`, but for its endpoints: a store of these objects
    /// gives each workload with this view the same [`outbound`](Self::outbound), Pods and slices aside.
    /// `host` is a name as it may be called. `None` where nobody that the view sees knows it.
    ///
    /// Of the hosts that its VirtualService leads to nothing is told: they are asked for by their own names.
    /// What is told may say something of other hosts, too, and not all of it; only what was asked for counts.
    pub fn host_resources(&self, view: &View, host: &str) -> Option<Vec<Object>> {
        let scope = &*view.scope;
        let found = self.resolve(host, scope)?;
        let full = found.host()?;
        let mut told = Told { store: self, scope, objects: Vec::new() };
        found.aliases.iter().for_each(|service| told.service(service));
        if let Some(service) = &found.service {
            told.service(service);
            told.names(service);
            for alias in self.index.services.aliases(full) {
                let chosen = self.index.services.of_host(&alias.info.host, scope);
                if chosen.is_some_and(|chosen| Arc::ptr_eq(chosen, alias)) {
                    told.service(alias);
                    told.names(alias);
                }
            }
        }
        if let Some(claimed) = &found.claimed
            && let Some(claim) =
                self.claim(claimed, if claimed.starts_with('*') { host } else { claimed }, scope)
        {
            told.add(Arc::clone(&claim.resource));
        }
        if let Some(routes) = self.routes(full, scope) {
            told.add(Arc::clone(&routes.resource));
        }
        let namespace = found.service.as_ref().map(|service| &*service.info.namespace);
        let rules =
            self.index.destinations.candidates(&self.options, &scope.namespace, true, namespace, full);
        rules.into_iter().for_each(|rule| told.add(Arc::clone(rule)));
        Some(told.sorted())
    }

    /// Every endpoint of the host that `host` leads to, all ports together: what
    /// [`Outbound::backends`](super::Outbound::backends) gives. `None` where no service that the view sees is
    /// behind it.
    pub fn host_backends(&self, view: &View, host: &str) -> Option<Arc<[Backend]>> {
        let found = self.resolve(host, &view.scope)?;
        found.service.map(|service| Arc::clone(&service.backends))
    }

    /// The hosts behind an address: of services with that virtual address or with a block that covers it, else of
    /// those with an endpoint there. `None` where the view sees none.
    pub fn address_hosts(&self, view: &View, ip: IpAddr) -> Option<AddressHosts> {
        let services = &self.index.services;
        let of_service = services.at_vip(ip, &view.scope);
        let endpoint = of_service.is_empty();
        let found = if endpoint { services.at_endpoint(ip, &view.scope) } else { of_service };
        let mut hosts: Vec<Arc<str>> = Vec::new();
        for service in found {
            if !hosts.contains(&service.info.host) {
                hosts.push(Arc::clone(&service.info.host));
            }
        }
        (!hosts.is_empty()).then_some(AddressHosts { hosts, endpoint })
    }

    /// Everything that decides what applies to `workload`, but for the workload itself: a store of these objects
    /// and of [`workload_object`](Self::workload_object) gives it the same [`inbound`](Self::inbound).
    pub fn workload_resources(&self, workload: &Arc<Workload>) -> Vec<Object> {
        let scope = self.wide_scope(&workload.namespace);
        let mut told = Told { store: self, scope: &scope, objects: Vec::new() };
        let inbound = self.inbound(workload);
        inbound.authorization.into_iter().for_each(|policy| told.add(policy));
        let peers = inbound.peer_authentication;
        peers.mesh.into_iter().chain(peers.namespace).chain(peers.workload).for_each(|p| told.add(p));
        inbound.telemetry.into_iter().for_each(|telemetry| told.add(telemetry));
        inbound.sidecar.into_iter().for_each(|sidecar| told.add(sidecar));
        for port in &inbound.ports {
            port.policy.rules().iter().for_each(|rule| told.add(Arc::clone(rule)));
        }
        let mut slices = Vec::new();
        for service in self.index.services.of_namespace(&workload.namespace) {
            let Some((selected, backend)) = service.serves(workload) else { continue };
            match &service.origin {
                Origin::Service(of) => told.add(Arc::clone(of)),
                Origin::Entries(entries) => entries.iter().for_each(|entry| told.add(Arc::clone(entry))),
            }
            // A slice is told where the workload and the service by themselves would say something else.
            let differs = |backend: &Backend| {
                !selected
                    || service.info.ports.iter().any(|port| {
                        let of_slice = backend.port(port.number).map(|p| p.target);
                        of_slice.is_some_and(|of_slice| target_port(workload, port) != Some(of_slice))
                    })
            };
            if let (Origin::Service(of), Some(backend)) = (&service.origin, backend.filter(|b| differs(b))) {
                slices.push(slice_of(of, workload, backend));
            }
        }
        let mut objects = told.sorted();
        objects.extend(slices.into_iter().map(Object::from));
        objects
    }

    /// Whether it is to end, and nobody is led to it any more. Where there is nobody else for one of its services
    /// yet, it is still called.
    fn is_withdrawn(&self, workload: &Workload) -> bool {
        let leads_to_it = |service: &ServiceData| {
            // To one that is published whether it is ready or not callers are led to the end.
            let published =
                matches!(&service.origin, Origin::Service(of) if of.spec.publish_not_ready_addresses);
            !published && matches!(service.serves(workload), Some((_, Some(_))))
        };
        workload.ending
            && !self
                .index
                .services
                .of_namespace(&workload.namespace)
                .iter()
                .any(|service| leads_to_it(service))
    }

    /// The Pod or WorkloadEntry that a workload was made from; of a Pod only what the mesh uses. `None` for
    /// one that no resource describes. A Pod that is to end has a time of deletion once nobody is led to it any more.
    pub fn workload_object(&self, workload: &Workload) -> Option<Object> {
        let resource = workload.resource.as_ref()?;
        if !workload.is_pod() {
            let entry = self.index.workloads.entry(&workload.namespace, &workload.name)?;
            return (entry.reference() == *resource).then(|| Arc::clone(entry).into());
        }
        let address = match &workload.address {
            Some(WorkloadAddress::Ip(ip)) => ip.to_string(),
            _ => String::new(),
        };
        let port = |(name, port): (&String, &u16)| ContainerPort {
            name: name.clone(),
            container_port: *port,
            ..Default::default()
        };
        let ports: Vec<_> = workload.ports.iter().map(port).collect();
        let ready = if workload.ready { "True" } else { "False" };
        let pod = Pod {
            spec: PodSpec {
                service_account_name: workload.service_account.to_string(),
                containers: if ports.is_empty() {
                    Vec::new()
                } else {
                    vec![Container { ports, ..Default::default() }]
                },
                ..Default::default()
            },
            status: PodStatus {
                pod_ip: address,
                conditions: vec![PodCondition { condition_type: "Ready".into(), status: ready.into() }],
                ..Default::default()
            },
        };
        let meta = ObjectMeta {
            labels: (*workload.labels).clone(),
            deletion_timestamp: if self.is_withdrawn(workload) { ENDING.to_owned() } else { String::new() },
            ..ObjectMeta::new(&workload.namespace, &workload.name)
        };
        Some(Resource { meta, ..Resource::new("", "", pod) }.into())
    }
}

/// The part of a service's slices that is about one workload.
fn slice_of(
    service: &Resource<crate::resource::Service>,
    workload: &Workload,
    backend: &Backend,
) -> Resource<EndpointSlice> {
    let address = match &backend.address {
        WorkloadAddress::Ip(ip) => ip.to_string(),
        WorkloadAddress::Name(name) => name.to_string(),
    };
    let family = match &backend.address {
        WorkloadAddress::Ip(IpAddr::V6(_)) => "IPv6",
        WorkloadAddress::Ip(_) => "IPv4",
        WorkloadAddress::Name(_) => "FQDN",
    };
    let ports = service.spec.ports.iter().filter_map(|port| {
        let target = backend.port(port.port)?.target;
        Some(EndpointPort { name: Some(port.name.clone()), port: Some(target), ..Default::default() })
    });
    let endpoint = Endpoint {
        addresses: vec![address],
        hostname: backend.hostname.as_deref().filter(|name| **name != *workload.name).map(str::to_owned),
        target_ref: Some(ObjectReference {
            kind: Pod::KIND.to_owned(),
            name: workload.name.to_string(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let slice =
        EndpointSlice { address_type: family.to_owned(), endpoints: vec![endpoint], ports: ports.collect() };
    let name = format!("{}-{}", service.meta.name, workload.name);
    let mut slice = Resource::new(&service.meta.namespace, &name, slice);
    slice.meta.labels.insert(SERVICE_NAME_LABEL.to_owned(), service.meta.name.clone());
    slice
}
