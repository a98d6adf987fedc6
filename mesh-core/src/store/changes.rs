//! What is different between two stores, said as the names whose answers may be others.
//!
//! More may be named than has changed, never less.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::Store;
use super::endpoints::Backend;
use super::hosts::{fqdn, short_forms, suffixes};
use super::index::{ByNamespace, Index};
use super::services::ServiceData;
use super::workloads::Workload;
use crate::resource::Resource;

/// The names whose answers may differ between two stores; made by [`Store::differences`].
///
/// ```
/// use tower_mesh_core::resource::{Resource, Service, Telemetry};
/// use tower_mesh_core::store::{Keeper, StoreOptions};
///
/// let mut keeper = Keeper::new(StoreOptions::default());
/// let before = keeper.store();
/// keeper.put(Resource::new("default", "reviews", Service::default()).into());
/// keeper.put(Resource::new("shop", "all", Telemetry::default()).into());
/// let now = keeper.store().differences(&before);
/// assert!(now.host("reviews.default.svc.cluster.local") && now.host("reviews") && !now.host("ratings"));
/// assert!(now.workload("shop", "web-1") && !now.workload("books", "web-1"));
/// assert!(!now.is_empty() && keeper.store().differences(&keeper.store()).is_empty());
/// ```
#[derive(Debug, Default)]
pub struct Differences {
    hosts: Names,
    endpoints: Names,
    addresses: Addresses,
    /// By namespace.
    workloads: HashMap<Arc<str>, HashSet<Arc<str>>>,
    /// Of all workloads of these.
    namespaces: HashSet<Arc<str>>,
    all_workloads: bool,
}

/// Hosts, exact and wildcards, and the forms in which Kubernetes' services are called.
#[derive(Debug, Default)]
struct Names {
    exact: HashSet<Arc<str>>,
    /// What follows the star.
    wild: HashSet<Arc<str>>,
    all: bool,
}

#[derive(Debug, Default)]
struct Addresses {
    ips: HashSet<IpAddr>,
    blocks: Vec<IpNet>,
    all: bool,
}

impl Differences {
    /// Whether there is none at all.
    pub fn is_empty(&self) -> bool {
        let addresses = &self.addresses;
        let names = |names: &Names| !names.all && names.is_idle();
        names(&self.hosts)
            && names(&self.endpoints)
            && !addresses.all
            && addresses.ips.is_empty()
            && addresses.blocks.is_empty()
            && !self.all_workloads
            && self.namespaces.is_empty()
            && self.workloads.is_empty()
    }

    /// Whether what is told of a workload may differ.
    pub fn workload(&self, namespace: &str, name: &str) -> bool {
        self.all_workloads
            || self.namespaces.contains(namespace)
            || self.workloads.get(namespace).is_some_and(|names| names.contains(name))
    }

    /// Whether what is told of calls to a host may differ, in whatever form it is called.
    pub fn host(&self, called: &str) -> bool {
        self.hosts.covers(called)
    }

    /// Whether the endpoints of a host may differ, in whatever form it is called.
    pub fn endpoints(&self, called: &str) -> bool {
        self.endpoints.covers(called)
    }

    /// Whether the hosts behind an address may differ.
    pub fn address(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.addresses.all
            || self.addresses.ips.contains(&ip)
            || self.addresses.blocks.iter().any(|block| block.contains(&ip))
    }

    fn add_workload(&mut self, workload: &Workload) {
        let names = self.workloads.entry(Arc::clone(&workload.namespace)).or_default();
        names.insert(Arc::clone(&workload.name));
    }

    fn everything_seen(&mut self) {
        self.hosts.all = true;
        self.endpoints.all = true;
        self.addresses.all = true;
    }
}

impl Names {
    /// Whether there is nothing to follow: all of them are meant, or none.
    fn is_idle(&self) -> bool {
        self.all || (self.exact.is_empty() && self.wild.is_empty())
    }

    /// Adds a host; says whether it is new.
    fn add(&mut self, host: &Arc<str>, cluster_domain: &str) -> bool {
        if let Some(suffix) = host.strip_prefix('*') {
            return self.wild.insert(suffix.into());
        }
        if !self.exact.insert(Arc::clone(host)) {
            return false;
        }
        let service = host.strip_suffix(cluster_domain).and_then(|rest| rest.strip_suffix(".svc."));
        if let Some((name, namespace)) = service.and_then(|service| service.split_once('.')) {
            let forms = short_forms(name, namespace, namespace);
            self.exact.extend(forms.into_iter().map(Arc::from));
        }
        true
    }

    /// Whether the host, or that of which it is an endpoint, is among them.
    fn covers(&self, called: &str) -> bool {
        self.all
            || self.exact.contains(called)
            || called.split_once('.').is_some_and(|(_, of_service)| self.exact.contains(of_service))
            || (!self.wild.is_empty() && suffixes(called).any(|suffix| self.wild.contains(suffix)))
    }
}

/// What two lists do not have in common, by the address that `key` gives.
fn apart<'a, T>(
    a: impl Iterator<Item = &'a T> + Clone,
    b: impl Iterator<Item = &'a T> + Clone,
    key: impl Fn(&T) -> usize,
) -> Vec<&'a T> {
    // Sorted lists of addresses are quicker than sets of them.
    let sorted = |items: &mut dyn Iterator<Item = &'a T>| {
        let mut keys: Vec<usize> = items.map(&key).collect();
        keys.sort_unstable();
        keys
    };
    let (in_a, in_b) = (sorted(&mut a.clone()), sorted(&mut b.clone()));
    let only_a = a.filter(|item| in_b.binary_search(&key(item)).is_err());
    let only_b = b.filter(|item| in_a.binary_search(&key(item)).is_err());
    only_a.chain(only_b).collect()
}

fn at<T>(shared: &Arc<T>) -> usize {
    Arc::as_ptr(shared).addr()
}

/// What has changed of a service.
struct Changed<'a> {
    service: &'a Arc<ServiceData>,
    /// Whether nothing but its endpoints has.
    endpoints_only: bool,
}

impl Store {
    /// What may be answered differently than by `before`, whoever asks. Both are of one
    /// [`Keeper`](super::Keeper): what they have in common they share.
    pub fn differences(&self, before: &Self) -> Differences {
        let (new, old) = (&*self.index, &*before.index);
        let mut found = Differences::default();
        let services = changed_services(old, new);
        self.services_apart(before, &services, &mut found);
        self.routes_apart(before, &mut found);
        for rule in apart_unless_same(&old.destinations, &new.destinations, |d| d.all()) {
            found.hosts.add(&self.full(&rule.spec.host, &rule.meta.namespace), &self.options.cluster_domain);
            self.reach(rule, &mut found);
        }
        self.workloads_apart(before, &mut found);
        self.policies_apart(&old.authorization, &new.authorization, &mut found);
        self.policies_apart(&old.peers, &new.peers, &mut found);
        self.policies_apart(&old.telemetry, &new.telemetry, &mut found);
        for sidecar in apart_unless_same(&old.sidecars, &new.sidecars, |s| s.values().flatten()) {
            found.everything_seen();
            self.reach(sidecar, &mut found);
        }
        self.spread(before, &mut found);
        found
    }

    fn full(&self, host: &str, namespace: &str) -> Arc<str> {
        fqdn(host, namespace, &self.options.cluster_domain).into()
    }

    /// A policy counts for the workloads of its namespace, one of the root namespace for all.
    fn reach<T>(&self, policy: &Resource<T>, found: &mut Differences) {
        if *policy.meta.namespace == *self.options.root_namespace {
            found.all_workloads = true;
        } else if !found.namespaces.contains(policy.meta.namespace.as_str()) {
            found.namespaces.insert(policy.meta.namespace.as_str().into());
        }
    }

    fn policies_apart<T>(
        &self,
        old: &Arc<ByNamespace<T>>,
        new: &Arc<ByNamespace<T>>,
        found: &mut Differences,
    ) {
        for policy in apart_unless_same(old, new, |policies| policies.iter()) {
            self.reach(policy, found);
        }
    }

    fn services_apart(&self, before: &Self, services: &[Changed<'_>], found: &mut Differences) {
        let domain = &self.options.cluster_domain;
        for Changed { service, endpoints_only } in services {
            let info = &service.info;
            found.endpoints.add(&info.host, domain);
            if *endpoints_only {
                continue;
            }
            found.hosts.add(&info.host, domain);
            // It may take a name or an address from another, or give one back.
            for registry in [&before.index.services, &self.index.services] {
                for vip in info.ips() {
                    for other in registry.sharing(vip) {
                        found.hosts.add(&other.info.host, domain);
                    }
                }
            }
            found.addresses.ips.extend(info.ips());
            found.addresses.blocks.extend(info.vips.iter().filter_map(|vip| vip.parse::<IpNet>().ok()));
            if !info.kubernetes {
                self.short_form(&info.host, found);
            }
            found.addresses.ips.extend(service.backends.iter().filter_map(Backend::ip));
            found.namespaces.insert(Arc::clone(&info.namespace));
        }
        // Of endpoints that come and go, the address and the workload.
        for changed in services.iter().filter(|changed| changed.endpoints_only) {
            let other = services.iter().find(|other| {
                !Arc::ptr_eq(other.service, changed.service)
                    && other.service.origin.same(&changed.service.origin)
                    && other.service.info.host == changed.service.info.host
            });
            let there = other.map_or(&[][..], |other| &other.service.backends);
            let known: HashMap<&super::WorkloadAddress, &Backend> =
                there.iter().map(|backend| (&backend.address, backend)).collect();
            for backend in &*changed.service.backends {
                if known.get(&backend.address).is_some_and(|known| known.same(backend)) {
                    continue;
                }
                found.addresses.ips.extend(backend.ip());
                let workload = &backend.workload;
                if workload.resource.is_some() {
                    found.add_workload(workload);
                }
            }
        }
    }

    /// A ServiceEntry may have a host that is a short form of Kubernetes' services.
    fn short_form(&self, host: &str, found: &mut Differences) {
        let domain = &self.options.cluster_domain;
        match host.split('.').collect::<Vec<_>>().as_slice() {
            [name] => {
                let all = self.index.services.all().iter().filter(|service| *service.info.name == **name);
                for service in all {
                    found.hosts.add(&service.info.host, domain);
                }
            }
            [_, _] => drop(found.hosts.add(&format!("{host}.svc.{domain}").into(), domain)),
            [_, _, "svc"] => drop(found.hosts.add(&format!("{host}.{domain}").into(), domain)),
            _ => {}
        }
    }

    fn routes_apart(&self, before: &Self, found: &mut Differences) {
        let (new, old) = (&self.index.claims, &before.index.claims);
        if Arc::ptr_eq(new, old) {
            return;
        }
        let domain = &self.options.cluster_domain;
        let narrowed = !self.index.sidecars.is_empty() || !before.index.sidecars.is_empty();
        for routes in apart(old.routes.iter(), new.routes.iter(), |routes| at(&routes.resource)) {
            for host in &routes.hosts {
                found.hosts.add(host, domain);
                found.endpoints.add(host, domain);
            }
            if narrowed {
                // Under a Sidecar it makes its destinations seen.
                for host in &routes.leads_to {
                    found.hosts.add(host, domain);
                    found.endpoints.add(host, domain);
                }
                found.addresses.all = true;
            }
        }
    }

    fn workloads_apart(&self, before: &Self, found: &mut Differences) {
        let (new, old) = (&self.index.workloads, &before.index.workloads);
        if Arc::ptr_eq(new, old) {
            return;
        }
        for workload in old.apart(new) {
            found.add_workload(workload);
            // With other labels, it may see something else.
            let sidecar = |store: &Self| {
                let known = store.workload(&workload.namespace, &workload.name);
                let unknown = || Workload::nobody(&workload.namespace);
                store.sidecar(&known.unwrap_or_else(|| Arc::new(unknown()))).map(|s| s.reference())
            };
            if !self.index.sidecars.is_empty() && sidecar(before) != sidecar(self) {
                found.everything_seen();
            }
        }
    }

    /// Follows names: a service that is covered by a wildcard, that is called by its address, or that stands
    /// for another.
    fn spread(&self, before: &Self, found: &mut Differences) {
        let domain = &self.options.cluster_domain;
        let mut grown = true;
        while grown && !(found.hosts.is_idle() && found.endpoints.is_idle()) {
            grown = false;
            let claims = [before, self].into_iter().flat_map(|store| &store.index.claims.routes);
            for host in claims.flat_map(|routes| &routes.hosts) {
                for names in [&mut found.hosts, &mut found.endpoints] {
                    grown |= names.covers(host) && names.add(host, domain);
                }
            }
            for service in [before, self].into_iter().flat_map(|store| store.index.services.all()) {
                let (info, alias) = (&service.info, service.alias.as_deref());
                for names in [&mut found.hosts, &mut found.endpoints] {
                    if names.covers(&info.host) || alias.is_some_and(|alias| names.covers(alias)) {
                        grown |= names.add(&info.host, domain);
                        let others = info.ips().map(|ip| Arc::from(ip.to_string()));
                        for other in others.chain(alias.map(Arc::from)) {
                            grown |= names.add(&other, domain);
                        }
                    }
                }
            }
        }
        // Which service a name leads to decides whose endpoints are meant.
        let (hosts, endpoints) = (&found.hosts, &mut found.endpoints);
        endpoints.all |= hosts.all;
        endpoints.exact.extend(hosts.exact.iter().map(Arc::clone));
        endpoints.wild.extend(hosts.wild.iter().map(Arc::clone));
    }
}

fn apart_unless_same<'a, T, R: 'a, I: Iterator<Item = &'a Arc<Resource<R>>> + Clone>(
    old: &'a Arc<T>,
    new: &'a Arc<T>,
    all: impl Fn(&'a T) -> I,
) -> Vec<&'a Arc<Resource<R>>> {
    if Arc::ptr_eq(old, new) { Vec::new() } else { apart(all(old), all(new), at) }
}

fn changed_services<'a>(old: &'a Index, new: &'a Index) -> Vec<Changed<'a>> {
    let (old, new) = (&old.services, &new.services);
    if Arc::ptr_eq(old, new) {
        return Vec::new();
    }
    let services = apart(old.all().iter(), new.all().iter(), at);
    let changed = |service: &'a Arc<ServiceData>| {
        // Its other form, in the other registry.
        let of_host = |registry: &'a super::services::Services| registry.exactly(&service.info.host).iter();
        let other = of_host(old)
            .chain(of_host(new))
            .find(|other| !Arc::ptr_eq(other, service) && other.origin.same(&service.origin));
        let endpoints_only = other.is_some_and(|other| {
            Arc::ptr_eq(&other.info, &service.info)
                && other.export == service.export
                && other.alt_names == service.alt_names
                && other.alias == service.alias
        });
        Changed { service, endpoints_only }
    };
    services.into_iter().map(changed).collect()
}
