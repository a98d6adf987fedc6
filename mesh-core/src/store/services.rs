//! Services: what Kubernetes' Services and ServiceEntries declare, under one form.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;

use super::StoreOptions;
use super::endpoints::{Backend, Slices, Sources, same_backends};
use super::hosts::HostMap;
use super::index::Registry;
use super::visibility::{Export, Scope};
use super::workloads::{Touched, Workload, WorkloadAddress};
use crate::cluster::ServiceName;
use crate::protocol::Protocol;
use crate::resource::service_entry::{ServiceEntryLocation, ServiceEntryResolution};
use crate::resource::{IntOrString, ObjectMeta, Resource, Service, ServiceEntry, selects};

/// The annotation by which a Kubernetes Service says which namespaces see it.
const EXPORT_ANNOTATION: &str = "networking.istio.io/exportTo";

/// What is known of a service, without its endpoints.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ServiceInfo {
    /// The full host name; a wildcard only for a ServiceEntry.
    pub host: Arc<str>,
    /// The short name; the host itself for a ServiceEntry.
    pub name: Arc<str>,
    /// The namespace.
    pub namespace: Arc<str>,
    /// The ports, in the order in which they are written.
    pub ports: Vec<ServicePort>,
    /// Whether it is part of the mesh; Kubernetes' services always are.
    pub location: ServiceEntryLocation,
    /// How endpoints are found; `STATIC` for Kubernetes' services.
    pub resolution: ServiceEntryResolution,
    /// Virtual addresses; a ServiceEntry's may be CIDR blocks.
    pub vips: Vec<Arc<str>>,
    /// Whether it is a Kubernetes Service.
    pub kubernetes: bool,
    /// Whether it is a Kubernetes Service with `clusterIP: None`.
    pub headless: bool,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ServicePort {
    /// The number that callers use.
    pub number: u16,
    /// Its name, empty where it has none.
    pub name: Arc<str>,
    /// What it speaks.
    pub protocol: Protocol,
    /// The number or name at the endpoints; `None` is the same number.
    pub target: Option<IntOrString>,
}

/// The resources that a service comes from.
#[derive(Debug, Clone)]
pub(super) enum Origin {
    Service(Arc<Resource<Service>>),
    Entries(Vec<Arc<Resource<ServiceEntry>>>),
}

/// What was known before.
#[derive(Debug)]
pub(super) struct Known<'a> {
    pub(super) services: &'a Arc<Services>,
    /// The workloads that have changed since; `None` where PeerAuthentications have, and with them anything.
    pub(super) touched: Option<&'a Touched>,
}

/// ServiceEntries for one audience.
type Entries = (Export, Vec<Arc<Resource<ServiceEntry>>>);

/// A service of the registry.
#[derive(Debug)]
pub(super) struct ServiceData {
    pub(super) info: Arc<ServiceInfo>,
    pub(super) origin: Origin,
    pub(super) export: Export,
    pub(super) backends: Arc<[Backend]>,
    /// The slices that its endpoints come from.
    slices: Slices,
    /// Whether these name the Pods of all of its endpoints.
    by_names: bool,
    /// Names that certificates of its endpoints may carry beside (for Kubernetes) or instead of (for a
    /// ServiceEntry) those of their accounts.
    pub(super) alt_names: Vec<String>,
    /// The host that an `ExternalName` service stands for.
    pub(super) alias: Option<String>,
}

/// Every service, by host, namespace and address.
#[derive(Debug, Default)]
pub(super) struct Services {
    all: Vec<Arc<ServiceData>>,
    /// The places in `all` of Kubernetes' services, by where their resource lies in memory.
    services: HashMap<usize, usize>,
    hosts: HostMap<Arc<ServiceData>>,
    namespaces: HashMap<Arc<str>, Vec<Arc<ServiceData>>>,
    vips: HashMap<IpAddr, Vec<Arc<ServiceData>>>,
    /// The blocks of addresses of ServiceEntries.
    blocks: Vec<(IpNet, Arc<ServiceData>)>,
    /// The places in `all` of the services with an endpoint at an address; made when it is asked for first.
    endpoints: OnceLock<HashMap<IpAddr, Vec<u32>>>,
    /// `ExternalName` services by the host that they stand for.
    aliases: HashMap<String, Vec<Arc<ServiceData>>>,
}

impl ServiceInfo {
    /// Its port with this number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// Its virtual addresses that are no blocks.
    pub(super) fn ips(&self) -> impl Iterator<Item = IpAddr> {
        self.vips.iter().filter_map(|vip| vip.parse::<IpAddr>().ok()).map(|ip| ip.to_canonical())
    }

    /// Its names, as clusters and telemetry carry them.
    pub fn service_name(&self) -> ServiceName {
        ServiceName {
            host: Arc::clone(&self.host),
            name: Arc::clone(&self.name),
            namespace: Arc::clone(&self.namespace),
        }
    }
}

impl Origin {
    /// Whether it is the very same resources.
    pub(super) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Service(a), Self::Service(b)) => Arc::ptr_eq(a, b),
            (Self::Entries(a), Self::Entries(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
            }
            _ => false,
        }
    }
}

impl ServiceData {
    fn meta(&self) -> Option<&ObjectMeta> {
        match &self.origin {
            Origin::Service(service) => Some(&service.meta),
            Origin::Entries(entries) => entries.first().map(|entry| &entry.meta),
        }
    }

    /// Whether `workload` serves it: whether a selector says so, and the endpoint that it is. `None` where it
    /// does not.
    pub(super) fn serves(&self, workload: &Workload) -> Option<(bool, Option<&Backend>)> {
        let selected = match &self.origin {
            Origin::Service(s) => !s.spec.selector.is_empty() && selects(&s.spec.selector, &workload.labels),
            Origin::Entries(entries) => entries
                .iter()
                .filter_map(|e| e.spec.workload_selector.as_ref())
                .any(|s| selects(&s.labels, &workload.labels)),
        };
        // A slice may know a Pod that no selector finds.
        let backend = self.backends.iter().find(|b| b.is(workload));
        (selected || backend.is_some()).then_some((selected, backend))
    }

    /// Whether a wildcard host stands for whatever name is called.
    pub(super) fn has_open_names(&self) -> bool {
        let open = |entry: &Resource<ServiceEntry>| {
            entry.spec.endpoints.is_empty()
                && entry.spec.workload_selector.is_none()
                && entry.spec.resolution != ServiceEntryResolution::Static
        };
        self.info.host.starts_with('*')
            && matches!(&self.origin, Origin::Entries(entries) if entries.iter().any(|e| open(e)))
    }

    fn of_service(
        options: &StoreOptions,
        service: &Arc<Resource<Service>>,
        sources: &Sources<'_>,
        before: &Known<'_>,
    ) -> Self {
        let (meta, spec) = (&service.meta, &service.spec);
        let slices = sources.slices(service).map_or(&[][..], Vec::as_slice);
        if let Some(touched) = before.touched
            && let Some(known) = before.services.made_from(service)
            && known.slices.iter().map(Arc::as_ptr).eq(slices.iter().map(Arc::as_ptr))
            && (touched.is_empty() || (known.by_names && sources.is_untouched(service, touched)))
        {
            return Self {
                info: Arc::clone(&known.info),
                origin: Origin::Service(Arc::clone(service)),
                export: known.export.clone(),
                backends: Arc::clone(&known.backends),
                slices: known.slices.clone(),
                by_names: known.by_names,
                alt_names: Vec::new(),
                alias: known.alias.clone(),
            };
        }
        let headless = spec.cluster_ip == "None";
        let mut vips: Vec<Arc<str>> = Vec::new();
        for ip in spec.cluster_ips.iter().chain([&spec.cluster_ip]).chain(&spec.external_ips) {
            if ip.parse::<IpAddr>().is_ok() && !vips.iter().any(|seen| **seen == **ip) {
                vips.push(ip.as_str().into());
            }
        }
        let ports = spec.ports.iter().map(|port| ServicePort {
            number: port.port,
            name: port.name.as_str().into(),
            protocol: match port.protocol.as_str() {
                "" | "TCP" => Protocol::of_port(Some(&port.name), port.app_protocol.as_deref(), port.port),
                _ => Protocol::Udp,
            },
            target: port.target_port.clone(),
        });
        let external = spec.service_type == "ExternalName" && !spec.external_name.is_empty();
        let info = ServiceInfo {
            host: format!("{}.{}.svc.{}", meta.name, meta.namespace, options.cluster_domain).into(),
            name: meta.name.as_str().into(),
            namespace: meta.namespace.as_str().into(),
            ports: ports.collect(),
            location: if external {
                ServiceEntryLocation::MeshExternal
            } else {
                ServiceEntryLocation::MeshInternal
            },
            resolution: if external { ServiceEntryResolution::Dns } else { ServiceEntryResolution::Static },
            vips,
            kubernetes: true,
            headless,
        };
        let export = meta.annotations.get(EXPORT_ANNOTATION).map_or("", String::as_str);
        let (backends, by_names) = sources.of_service(service, &info);
        Self {
            backends: backends.into(),
            by_names,
            slices: slices.to_vec(),
            export: Export::new(export.split(','), &meta.namespace),
            info: Arc::new(info),
            origin: Origin::Service(Arc::clone(service)),
            alt_names: Vec::new(),
            alias: external.then(|| spec.external_name.trim_end_matches('.').to_ascii_lowercase()),
        }
    }

    fn of_entries(
        host: &str,
        entries: Vec<Arc<Resource<ServiceEntry>>>,
        sources: &Sources<'_>,
    ) -> Option<Self> {
        let first = entries.first()?;
        let namespace = first.meta.namespace.as_str();
        let mut info = ServiceInfo {
            host: host.into(),
            name: host.into(),
            namespace: namespace.into(),
            ports: Vec::new(),
            location: first.spec.location,
            resolution: first.spec.resolution,
            vips: Vec::new(),
            kubernetes: false,
            headless: false,
        };
        let (mut backends, mut alt_names) = (Vec::new(), Vec::new());
        for entry in &entries {
            let ports = ports_of(entry);
            backends.extend(sources.of_entry(entry, &ports, host));
            for port in ports {
                if info.port(port.number).is_none() {
                    info.ports.push(port);
                }
            }
            for address in &entry.spec.addresses {
                if !info.vips.iter().any(|seen| **seen == **address) {
                    info.vips.push(address.as_str().into());
                }
            }
            alt_names.extend(entry.spec.subject_alt_names.iter().cloned());
        }
        Some(Self {
            export: Export::list(&first.spec.export_to, namespace),
            info: Arc::new(info),
            origin: Origin::Entries(entries),
            backends: backends.into(),
            slices: Vec::new(),
            by_names: false,
            alt_names,
            alias: None,
        })
    }
}

fn ports_of(entry: &Resource<ServiceEntry>) -> Vec<ServicePort> {
    let ports = entry.spec.ports.iter();
    ports
        .map(|port| ServicePort {
            number: port.number,
            name: port.name.as_str().into(),
            // A ServiceEntry says its protocol; where it does not, its port's name does.
            protocol: Protocol::named(&port.protocol)
                .unwrap_or_else(|| Protocol::of_port(Some(&port.name), None, port.number)),
            target: (port.target_port != 0).then(|| IntOrString::Int(port.target_port.into())),
        })
        .collect()
}

impl Services {
    /// Builds the registry. What is in `before` already is taken from there, so that whoever compares two
    /// stores sees at a glance what has changed.
    pub(super) fn new(
        options: &StoreOptions,
        Registry { services, entries, given, .. }: &Registry,
        sources: &Sources<'_>,
        before: &Known<'_>,
    ) -> Arc<Self> {
        let of_service = |service| ServiceData::of_service(options, service, sources, before);
        let mut all: Vec<ServiceData> = services.iter().map(of_service).collect();
        let before = before.services;
        let beside = if entries.is_empty() { &[][..] } else { &all[..] };
        let kubernetes: HashMap<(String, String), usize> = beside
            .iter()
            .enumerate()
            .map(|(at, s)| ((s.info.host.to_string(), s.info.namespace.to_string()), at))
            .collect();

        // Entries of one namespace that say the same host to the same audience are one service.
        let mut groups: BTreeMap<(String, &str), Vec<Entries>> = BTreeMap::new();
        for entry in entries {
            let export = Export::list(&entry.spec.export_to, &entry.meta.namespace);
            for host in &entry.spec.hosts {
                let parts = groups.entry((host.to_ascii_lowercase(), &entry.meta.namespace)).or_default();
                match parts.iter_mut().find(|(seen, _)| *seen == export) {
                    Some((_, group)) => group.push(Arc::clone(entry)),
                    None => parts.push((export.clone(), vec![Arc::clone(entry)])),
                }
            }
        }
        for ((host, namespace), parts) in groups {
            let key = (host, namespace.to_owned());
            let service = kubernetes.get(&key).and_then(|at| all.get_mut(*at));
            if let Some(service) = service {
                // Kubernetes wins. Names are taken from the service's own namespace only: anybody else's
                // could widen who passes for the service.
                let entries = parts.iter().flat_map(|(_, group)| group);
                service.alt_names.extend(entries.flat_map(|e| e.spec.subject_alt_names.iter().cloned()));
            }
            for (_, group) in parts {
                all.extend(ServiceData::of_entries(&key.0, group, sources));
            }
        }
        all.sort_by(|a, b| {
            let key = |s: &ServiceData| !s.info.kubernetes;
            key(a)
                .cmp(&key(b))
                .then_with(|| a.meta().map(ObjectMeta::age_order).cmp(&b.meta().map(ObjectMeta::age_order)))
        });
        if let Some(given) = given {
            all.iter_mut().for_each(|service| service.backends = Arc::clone(given));
        }
        let all: Vec<_> = all.into_iter().map(|service| before.shared(service)).collect();
        let same = |(a, b): (&Arc<ServiceData>, &Arc<ServiceData>)| Arc::ptr_eq(a, b);
        if all.len() == before.all.len() && all.iter().zip(&before.all).all(same) {
            return Arc::clone(before);
        }
        let mut registry = Self::default();
        for service in all {
            registry.add(service);
        }
        Arc::new(registry)
    }

    /// The service that was made from this very resource.
    fn made_from(&self, service: &Arc<Resource<Service>>) -> Option<&Arc<ServiceData>> {
        let at = self.services.get(&Arc::as_ptr(service).addr())?;
        self.all.get(*at).filter(|known| known.origin.same(&Origin::Service(Arc::clone(service))))
    }

    /// A service as this registry has it, where nothing but its address in memory would differ.
    fn shared(&self, mut service: ServiceData) -> Arc<ServiceData> {
        let known = self.hosts.of(&service.info.host).iter();
        let mut known = known.filter(|known| known.origin.same(&service.origin));
        let Some(known) = known.next() else { return Arc::new(service) };
        if same_backends(&known.backends, &service.backends) {
            service.backends = Arc::clone(&known.backends);
        }
        let same_slices = known.slices.iter().map(Arc::as_ptr).eq(service.slices.iter().map(Arc::as_ptr));
        if known.info == service.info {
            service.info = Arc::clone(&known.info);
        }
        let same = Arc::ptr_eq(&known.backends, &service.backends)
            && Arc::ptr_eq(&known.info, &service.info)
            && same_slices
            && known.export == service.export
            && known.alt_names == service.alt_names
            && known.alias == service.alias;
        if same { Arc::clone(known) } else { Arc::new(service) }
    }

    fn add(&mut self, service: Arc<ServiceData>) {
        self.hosts.insert(&service.info.host, Arc::clone(&service));
        self.namespaces.entry(Arc::clone(&service.info.namespace)).or_default().push(Arc::clone(&service));
        for vip in service.info.ips() {
            self.vips.entry(vip).or_default().push(Arc::clone(&service));
        }
        for block in service.info.vips.iter().filter_map(|vip| vip.parse::<IpNet>().ok()) {
            self.blocks.push((block, Arc::clone(&service)));
        }
        if let Some(target) = &service.alias {
            self.aliases.entry(target.clone()).or_default().push(Arc::clone(&service));
        }
        if let Origin::Service(of) = &service.origin {
            self.services.insert(Arc::as_ptr(of).addr(), self.all.len());
        }
        self.all.push(service);
    }

    /// Every service, Kubernetes' first, then by age.
    pub(super) fn all(&self) -> &[Arc<ServiceData>] {
        &self.all
    }

    /// The services of a namespace.
    pub(super) fn of_namespace(&self, namespace: &str) -> &[Arc<ServiceData>] {
        self.namespaces.get(namespace).map_or(&[], Vec::as_slice)
    }

    /// The services of exactly this host (or wildcard), whoever sees them.
    pub(super) fn exactly(&self, host: &str) -> &[Arc<ServiceData>] {
        self.hosts.of(host)
    }

    /// The service of exactly this host (or wildcard) that the scope sees.
    pub(super) fn of_host(&self, host: &str, scope: &Scope) -> Option<&Arc<ServiceData>> {
        choose(self.hosts.of(host), scope)
    }

    /// The most specific wildcard service that covers `host`, with what follows its star.
    pub(super) fn wildcard<'a>(
        &'a self,
        host: &'a str,
        scope: &Scope,
    ) -> Option<(&'a str, &'a Arc<ServiceData>)> {
        self.hosts.wildcards(host).find_map(|(suffix, found)| Some((suffix, choose(found, scope)?)))
    }

    /// The service with this virtual address.
    pub(super) fn of_vip(&self, ip: IpAddr, scope: &Scope) -> Option<&Arc<ServiceData>> {
        choose(self.vips.get(&ip.to_canonical())?, scope)
    }

    /// All that the scope sees of an address: those with the virtual address, the one that decides first; where
    /// there is none, those with a block that covers it, the smallest block first.
    pub(super) fn at_vip<'a>(&'a self, ip: IpAddr, scope: &Scope) -> Vec<&'a Arc<ServiceData>> {
        let ip = ip.to_canonical();
        let sees = |s: &&Arc<ServiceData>| scope.sees_service(&s.export, &s.info.namespace, &s.info.host);
        let first = self.of_vip(ip, scope);
        if let Some(first) = first {
            let others = self.vips.get(&ip).into_iter().flatten().filter(|other| !Arc::ptr_eq(other, first));
            return std::iter::once(first).chain(others.filter(sees)).collect();
        }
        let covering = self.blocks.iter().filter(|(block, service)| block.contains(&ip) && sees(&service));
        let mut covering: Vec<_> = covering.collect();
        covering.sort_by_key(|(block, _)| std::cmp::Reverse(block.prefix_len()));
        covering.into_iter().map(|(_, service)| service).collect()
    }

    /// The services that the scope sees with an endpoint at an address.
    pub(super) fn at_endpoint<'a>(&'a self, ip: IpAddr, scope: &Scope) -> Vec<&'a Arc<ServiceData>> {
        let endpoints = self.endpoints.get_or_init(|| {
            let mut endpoints: HashMap<IpAddr, Vec<u32>> = HashMap::new();
            for (at, service) in (0..).zip(&self.all) {
                for backend in &*service.backends {
                    if let WorkloadAddress::Ip(ip) = backend.address {
                        let of = endpoints.entry(ip).or_default();
                        if of.last() != Some(&at) {
                            of.push(at);
                        }
                    }
                }
            }
            endpoints
        });
        let at = endpoints.get(&ip.to_canonical()).into_iter().flatten();
        let found = at.filter_map(|at| self.all.get(usize::try_from(*at).ok()?));
        found.filter(|s| scope.sees_service(&s.export, &s.info.namespace, &s.info.host)).collect()
    }

    /// Those that have a virtual address, whoever sees them.
    pub(super) fn sharing(&self, vip: IpAddr) -> &[Arc<ServiceData>] {
        self.vips.get(&vip).map_or(&[], Vec::as_slice)
    }

    /// The `ExternalName` services that stand for `host`.
    pub(super) fn aliases(&self, host: &str) -> &[Arc<ServiceData>] {
        self.aliases.get(host).map_or(&[], Vec::as_slice)
    }

    /// The services that cover or are `host`, for whoever sees them.
    pub(super) fn covering<'s>(&'s self, host: &str) -> impl Iterator<Item = &'s Arc<ServiceData>> {
        self.hosts.covering(host).flatten()
    }
}

/// Of several services of one host, the one that the scope sees: Kubernetes', else that of the own
/// namespace, else the oldest. `found` is in this order but for the namespace.
fn choose<'a>(found: &'a [Arc<ServiceData>], scope: &Scope) -> Option<&'a Arc<ServiceData>> {
    let sees = |s: &&Arc<ServiceData>| scope.sees_service(&s.export, &s.info.namespace, &s.info.host);
    let first = found.iter().find(sees)?;
    if first.info.kubernetes {
        return Some(first);
    }
    let own = found.iter().filter(sees).find(|s| s.info.namespace == scope.namespace);
    Some(own.unwrap_or(first))
}
