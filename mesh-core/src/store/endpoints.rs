//! Where a service's endpoints come from: EndpointSlices, Pods, WorkloadEntries, names.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::StoreOptions;
use super::inbound::PeerAuthentications;
use super::index::ByNamespace;
use super::services::{ServiceInfo, ServicePort};
use super::workloads::{Selection, Touched, Workload, WorkloadAddress, Workloads};
use crate::cluster::EndpointAddress;
use crate::facts::UpstreamAddr;
use crate::protocol::Protocol;
use crate::resource::kubernetes::Endpoint;
use crate::resource::peer_authentication::MutualTlsMode;
use crate::resource::service_entry::ServiceEntryResolution;
use crate::resource::{
    EndpointSlice, IntOrString, Labels, PeerAuthentication, Resource, Service, ServiceEntry,
};

/// The label by which an EndpointSlice names its service.
pub(super) const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// One endpoint of a service, all its ports together: what is left of Pods, slices and policies once they
/// have been put together. One store gives these out ([`Outbound::backends`](super::Outbound::backends)), and
/// they travel.
#[derive(Debug, Clone, PartialEq)]
pub struct Backend {
    /// What is known of it.
    pub workload: Arc<Workload>,
    /// Where it is reached.
    pub address: WorkloadAddress,
    /// How it serves the service's ports; those that it does not serve are missing.
    pub ports: Arc<[BackendPort]>,
    /// Its own host name below that of a headless service.
    pub hostname: Option<Arc<str>>,
}

/// How an endpoint serves a port of its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendPort {
    /// The service's number.
    pub service: u16,
    /// The endpoint's.
    pub target: u16,
    /// Whether this port speaks no mTLS although the endpoint does: its PeerAuthentication says so.
    pub tls_disabled: bool,
}

/// How far an endpoint of a slice is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It takes requests.
    Ready,
    /// It still does, but is to end.
    Ending,
    /// It takes none.
    Out,
}

/// The Pod that an endpoint of a slice names.
#[derive(Debug, Clone, Copy)]
enum Named<'a> {
    /// This one.
    Pod(&'a Arc<Workload>),
    /// One that there is not: it has ended, or begun a moment ago.
    Gone,
    /// None, or one that nobody can know.
    Nobody,
}

/// The slices of a service, by age.
pub(super) type Slices = Vec<Arc<Resource<EndpointSlice>>>;

/// What endpoints are made from, while a store is built.
#[derive(Debug)]
pub(super) struct Sources<'a> {
    options: &'a StoreOptions,
    workloads: &'a Workloads,
    /// Made when somebody asks: where slices name their Pods, nobody does.
    selection: OnceCell<Selection<'a>>,
    addresses: OnceCell<HashMap<IpAddr, &'a Arc<Workload>>>,
    /// By namespace and name of the service.
    slices: HashMap<&'a str, HashMap<&'a str, Slices>>,
    peers: &'a ByNamespace<PeerAuthentication>,
    /// Whether any PeerAuthentication says DISABLE; most meshes have none.
    some_disable: bool,
    /// The ports of the endpoint before: most have the same.
    last_ports: RefCell<Arc<[BackendPort]>>,
    /// Whether every endpoint of the service that is looked at has been found by its Pod's name so far.
    by_names: Cell<bool>,
}

impl Backend {
    /// An endpoint at `address` of which nothing else is known.
    pub(super) fn unknown(namespace: &str, address: WorkloadAddress, ports: &[ServicePort]) -> Self {
        let workload = Arc::new(Workload::unknown(namespace, address.clone()));
        let ports = ports.iter().filter(|port| port.protocol != Protocol::Udp).map(|port| {
            let target = match &port.target {
                Some(IntOrString::Int(number)) => u16::try_from(*number).unwrap_or(port.number),
                _ => port.number,
            };
            BackendPort { service: port.number, target, tls_disabled: false }
        });
        Self { workload, address, ports: ports.collect(), hostname: None }
    }

    /// Whether it is `workload`. An endpoint that another store gave out says no more than its name.
    pub(super) fn is(&self, workload: &Workload) -> bool {
        let own = &self.workload;
        match (&own.resource, &workload.resource) {
            (Some(own), Some(other)) => own == other,
            (None, Some(_)) => {
                !own.name.is_empty() && (&own.namespace, &own.name) == (&workload.namespace, &workload.name)
            }
            (_, None) => false,
        }
    }

    /// How it serves the service's port, if it does.
    pub fn port(&self, service: u16) -> Option<BackendPort> {
        self.ports.iter().copied().find(|port| port.service == service)
    }

    /// Its address, where it is no name.
    pub(super) fn ip(&self) -> Option<IpAddr> {
        match &self.address {
            WorkloadAddress::Ip(ip) => Some(*ip),
            WorkloadAddress::Name(_) => None,
        }
    }

    /// Whether both say the same; quick where they share their workload.
    pub(super) fn same(&self, other: &Self) -> bool {
        (Arc::ptr_eq(&self.workload, &other.workload) || self.workload == other.workload)
            && (&self.address, &self.ports, &self.hostname) == (&other.address, &other.ports, &other.hostname)
    }

    /// Where it serves on `port`.
    pub(super) fn address(&self, port: u16) -> EndpointAddress {
        match &self.address {
            WorkloadAddress::Ip(ip) => EndpointAddress::Socket(UpstreamAddr(SocketAddr::new(*ip, port))),
            WorkloadAddress::Name(name) => EndpointAddress::Name(Arc::clone(name), port),
        }
    }
}

impl<'a> Sources<'a> {
    pub(super) fn new(
        options: &'a StoreOptions,
        workloads: &'a Workloads,
        slices: &'a [Arc<Resource<EndpointSlice>>],
        peers: &'a ByNamespace<PeerAuthentication>,
    ) -> Self {
        let mut by_service: HashMap<_, HashMap<_, Slices>> = HashMap::new();
        for slice in slices {
            if let Some(service) = slice.meta.labels.get(SERVICE_NAME_LABEL) {
                let of_namespace = by_service.entry(slice.meta.namespace.as_str()).or_default();
                of_namespace.entry(service.as_str()).or_default().push(Arc::clone(slice));
            }
        }
        Self {
            options,
            workloads,
            selection: OnceCell::new(),
            addresses: OnceCell::new(),
            slices: by_service,
            peers,
            some_disable: peers.iter().any(|p| {
                let modes = p.spec.mtls.iter().chain(p.spec.port_level_mtls.values());
                modes.into_iter().any(|mtls| mtls.mode == MutualTlsMode::Disable)
            }),
            last_ports: RefCell::default(),
            by_names: Cell::new(true),
        }
    }

    fn selection(&self) -> &Selection<'a> {
        self.selection.get_or_init(|| Selection::new(self.workloads.all()))
    }

    /// The workload at an address, where it is the only one there.
    fn at(&self, ip: &IpAddr) -> Option<&'a Arc<Workload>> {
        let addresses = self.addresses.get_or_init(|| {
            let mut addresses: HashMap<_, Option<_>> = HashMap::new();
            for workload in self.workloads.all() {
                if let Some(WorkloadAddress::Ip(ip)) = workload.address {
                    // Several Pods of a node's own network share its address: then nobody can tell which.
                    addresses.entry(ip).and_modify(|known| *known = None).or_insert(Some(workload));
                }
            }
            addresses.into_iter().filter_map(|(ip, workload)| Some((ip, workload?))).collect()
        });
        addresses.get(ip).copied()
    }

    /// The slices of a Kubernetes Service, where there are any.
    pub(super) fn slices(&self, service: &Resource<Service>) -> Option<&Slices> {
        self.slices.get(service.meta.namespace.as_str())?.get(service.meta.name.as_str())
    }

    /// The endpoints of a Kubernetes Service: its slices, or else the ready Pods that it selects; and the
    /// WorkloadEntries that it selects.
    /// Also says whether slices name the Pods of all of them.
    pub(super) fn of_service(&self, service: &Resource<Service>, info: &ServiceInfo) -> (Vec<Backend>, bool) {
        let (meta, spec) = (&service.meta, &service.spec);
        self.by_names.set(true);
        if info.resolution == ServiceEntryResolution::Dns {
            let address = WorkloadAddress::parse(spec.external_name.trim_end_matches('.'));
            let unknown = |address| Backend::unknown(&meta.namespace, address, &info.ports);
            return (address.into_iter().map(unknown).collect(), true);
        }
        let slices = self.slices(service);
        let mut found = slices.map_or_else(Vec::new, |slices| self.of_slices(slices, service, info));
        if spec.selector.is_empty() || (slices.is_some() && !self.workloads.has_entries()) {
            return (found, self.by_names.get());
        }
        // Those that are to end are better than none, here as in slices.
        let mut ending = Vec::new();
        for workload in self.selection().select(&meta.namespace, &spec.selector) {
            if workload.is_pod() && slices.is_some() {
                continue;
            }
            self.by_names.set(false);
            if !workload.is_pod() || usable(workload, spec.publish_not_ready_addresses) {
                found.extend(self.of_workload(workload, &info.ports));
            } else if workload.ending {
                ending.extend(self.of_workload(workload, &info.ports));
            }
        }
        if found.is_empty() {
            found = ending;
        }
        (found, self.by_names.get())
    }

    /// Whether none of `touched` makes a difference to a service whose slices name the Pods of all of its
    /// endpoints and are the same as before.
    pub(super) fn is_untouched(&self, service: &Resource<Service>, touched: &Touched) -> bool {
        let namespace = service.meta.namespace.as_str();
        let slices = self.slices(service);
        let selects = !service.spec.selector.is_empty() && (slices.is_none() || self.workloads.has_entries());
        if selects && touched.contains_key(namespace) {
            return false;
        }
        let endpoints = slices.into_iter().flatten().flat_map(|slice| &slice.spec.endpoints);
        endpoints.filter_map(|endpoint| endpoint.target_ref.as_ref()).all(|target| {
            let of = if target.namespace.is_empty() { namespace } else { &target.namespace };
            match self.workloads.of(of, &target.name) {
                Some(_) => touched.get(of).is_none_or(|names| !names.contains(target.name.as_str())),
                // What is made of it depends on whether there is any Pod.
                None => touched.is_empty(),
            }
        })
    }

    /// The endpoints of a ServiceEntry: those that it lists or selects, or the name that it gives them.
    pub(super) fn of_entry(
        &self,
        entry: &Resource<ServiceEntry>,
        ports: &[ServicePort],
        host: &str,
    ) -> Vec<Backend> {
        let (namespace, spec) = (entry.meta.namespace.as_str(), &entry.spec);
        if let Some(selector) = &spec.workload_selector {
            let selected = self.selection().select(namespace, &selector.labels);
            return selected.filter(|w| w.ready).filter_map(|w| self.of_workload(w, ports)).collect();
        }
        if !spec.endpoints.is_empty() {
            let inline = spec.endpoints.iter();
            return inline
                .map(|endpoint| Arc::new(Workload::of_inline(self.options, namespace, endpoint)))
                .filter_map(|workload| self.of_workload(&workload, ports))
                .collect();
        }
        // Without endpoints the host names them itself; a static entry has none then.
        let named = spec.resolution != ServiceEntryResolution::Static;
        let address = WorkloadAddress::parse(host).filter(|_| named);
        address.into_iter().map(|address| Backend::unknown(namespace, address, ports)).collect()
    }

    fn of_workload(&self, workload: &Arc<Workload>, ports: &[ServicePort]) -> Option<Backend> {
        let address = workload.address.clone()?;
        let numbers = ports.iter().filter(|port| port.protocol != Protocol::Udp);
        let numbers = numbers.filter_map(|port| Some((port.number, target_port(workload, port)?)));
        Some(Backend {
            address,
            ports: self.ports(workload, numbers),
            hostname: workload.is_pod().then(|| Arc::clone(&workload.name)),
            workload: Arc::clone(workload),
        })
    }

    fn ports(&self, workload: &Workload, numbers: impl Iterator<Item = (u16, u16)>) -> Arc<[BackendPort]> {
        let modes = self.some_disable.then(|| {
            let root = &self.options.root_namespace;
            PeerAuthentications::of(self.peers, root, &workload.namespace, &workload.labels)
        });
        let disabled = |port| modes.as_ref().is_some_and(|m| m.mode(port) == MutualTlsMode::Disable);
        let port = |(service, target)| BackendPort { service, target, tls_disabled: disabled(target) };
        let ports: Vec<BackendPort> = numbers.map(port).collect();
        let mut last = self.last_ports.borrow_mut();
        if **last != *ports {
            *last = ports.into();
        }
        Arc::clone(&last)
    }

    fn of_slices(
        &self,
        slices: &[Arc<Resource<EndpointSlice>>],
        service: &Resource<Service>,
        info: &ServiceInfo,
    ) -> Vec<Backend> {
        // A service of two families has every endpoint twice; one is enough, that of its first address.
        let v6_first = service.spec.cluster_ip.contains(':');
        let family = |name: &str| slices.iter().any(|slice| slice.spec.address_type == name);
        let skipped = match (family("IPv4"), family("IPv6")) {
            (true, true) if v6_first => "IPv4",
            (true, true) => "IPv6",
            _ => "",
        };
        let slices =
            || slices.iter().filter(|slice| slice.spec.address_type != skipped || skipped.is_empty());
        let each = |wanted: Stage| -> Vec<Backend> {
            let all = slices().flat_map(|slice| slice.spec.endpoints.iter().map(move |e| (slice, e)));
            let staged = all.filter(|(slice, endpoint)| self.stage(slice, endpoint, service) == wanted);
            staged.filter_map(|(s, e)| self.of_slice_endpoint(s, e, info)).collect()
        };
        let ready = each(Stage::Ready);
        if !ready.is_empty() {
            return ready;
        }
        // Endpoints that end but still serve are better than none, as for kube-proxy.
        each(Stage::Ending)
    }

    /// How far an endpoint is. That its Pod is to be deleted is known before a slice says so, which somebody else
    /// has to write first.
    fn stage(
        &self,
        slice: &Resource<EndpointSlice>,
        endpoint: &Endpoint,
        service: &Resource<Service>,
    ) -> Stage {
        let conditions = &endpoint.conditions;
        let pod = self.pod(slice, endpoint);
        if matches!(pod, Named::Gone) {
            return Stage::Out;
        }
        if service.spec.publish_not_ready_addresses {
            return Stage::Ready;
        }
        let ending = matches!(pod, Named::Pod(pod) if pod.ending);
        match conditions.is_ready() {
            true if ending => Stage::Ending,
            true => Stage::Ready,
            false if conditions.serving == Some(true) && conditions.terminating == Some(true) => {
                Stage::Ending
            }
            false => Stage::Out,
        }
    }

    /// The Pod that an endpoint of a slice names.
    fn pod(&self, slice: &Resource<EndpointSlice>, endpoint: &Endpoint) -> Named<'a> {
        let Some(target) = endpoint.target_ref.as_ref().filter(|target| target.kind == "Pod") else {
            return Named::Nobody;
        };
        let of = if target.namespace.is_empty() { &slice.meta.namespace } else { &target.namespace };
        match self.workloads.of(of, &target.name).filter(|known| known.is_pod()) {
            Some(pod) => Named::Pod(pod),
            // Where no Pod is known at all, they are just not told of.
            None if self.workloads.has_pods() => Named::Gone,
            None => Named::Nobody,
        }
    }

    fn of_slice_endpoint(
        &self,
        slice: &Resource<EndpointSlice>,
        endpoint: &Endpoint,
        info: &ServiceInfo,
    ) -> Option<Backend> {
        let address = WorkloadAddress::parse(endpoint.addresses.first()?)?;
        let namespace = slice.meta.namespace.as_str();
        let pod = match self.pod(slice, endpoint) {
            Named::Pod(pod) => Some(pod),
            Named::Nobody | Named::Gone => {
                self.by_names.set(false);
                None
            }
        };
        let known = pod.or_else(|| match &address {
            WorkloadAddress::Ip(ip) => self.at(ip),
            WorkloadAddress::Name(_) => None,
        });
        let workload =
            known.map_or_else(|| Arc::new(Workload::unknown(namespace, address.clone())), Arc::clone);
        let numbers = info.ports.iter().filter(|port| port.protocol != Protocol::Udp).filter_map(|port| {
            let of_slice =
                slice.spec.ports.iter().find(|p| p.name.as_deref().unwrap_or_default() == &*port.name)?;
            Some((port.number, of_slice.port.or_else(|| target_port(&workload, port))?))
        });
        let hostname = endpoint.hostname.as_deref().map(Arc::from);
        Some(Backend {
            address,
            ports: self.ports(&workload, numbers),
            hostname: hostname.or_else(|| workload.is_pod().then(|| Arc::clone(&workload.name))),
            workload,
        })
    }
}

/// The port at which `workload` serves a port of a service: a WorkloadEntry's own number for the port's
/// name, else the target port by number or name, else the same number.
pub(super) fn target_port(workload: &Workload, port: &ServicePort) -> Option<u16> {
    if !workload.is_pod()
        && let Some(own) = workload.ports.get(&*port.name)
    {
        return Some(*own);
    }
    match &port.target {
        None => Some(port.number),
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok().filter(|n| *n > 0),
        Some(IntOrString::String(name)) => match workload.ports.get(name) {
            Some(number) => Some(*number),
            // A Pod without a port of that name does not serve it; a WorkloadEntry need not name it.
            None if workload.is_pod() => None,
            None => Some(port.number),
        },
    }
}

fn usable(pod: &Workload, unready_too: bool) -> bool {
    pod.ready || unready_too
}

/// Whether an endpoint belongs to a subset with these labels.
pub(super) fn in_subset(backend: &Backend, labels: &Labels) -> bool {
    crate::resource::selects(labels, &backend.workload.labels)
}

/// Whether two lists say the same; quick where they share their workloads.
pub(super) fn same_backends(a: &[Backend], b: &[Backend]) -> bool {
    std::ptr::eq(a, b) || (a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.same(b)))
}
