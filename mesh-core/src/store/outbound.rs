//! What applies to calls from a workload to a host.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::destination::{EffectivePolicy, HostPolicy};
use super::endpoints::{Backend, in_subset};
use super::hosts::{candidates, covers, short_forms};
use super::index::{Routes, same};
use super::services::{ServiceData, ServiceInfo, ServicePort};
use super::visibility::Scope;
use super::workloads::{Workload, WorkloadAddress};
use super::{Store, StoreOptions};
use crate::cluster::{ClusterKey, EndpointKey, EndpointSpec, Expect, ServiceName, UpstreamTls};
use crate::identity::SpiffeId;
use crate::resource::destination_rule::{ClientTlsMode, Subset};
use crate::resource::service_entry::ServiceEntryLocation;
use crate::resource::{Labels, Resource, VirtualService};

/// How many `ExternalName` services may stand for one another.
pub(super) const MAX_ALIASES: usize = 8;

/// A host that a workload can call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostEntry {
    /// The host in full: what to ask [`Store::outbound`] for. A wildcard stands for hosts that are known
    /// only when they are called.
    pub host: Arc<str>,
    /// The names by which the workload can call it, without port and in lower case: the full one, the
    /// short forms that are valid in its namespace, virtual addresses, and (with `*.` before them) the
    /// endpoints of a headless service.
    pub domains: Vec<Arc<str>>,
}

/// What applies to calls from a workload to a host.
#[derive(Debug, Clone)]
pub struct Outbound {
    called: Arc<str>,
    host: Arc<str>,
    domains: Vec<Arc<str>>,
    service: Option<Arc<ServiceData>>,
    routes: Option<Arc<Routes>>,
    policy: HostPolicy,
    /// The one endpoint of a headless service that was called by its own name.
    instance: Option<Arc<str>>,
}

/// What routes and policies toward a host are made from. Two that are equal ask for the same routes; an
/// endpoint's coming and going makes no difference.
#[derive(Debug, Clone)]
pub struct Fingerprint {
    host: Arc<str>,
    domains: Vec<Arc<str>>,
    service: Option<Arc<ServiceInfo>>,
    routes: Option<Arc<Resource<VirtualService>>>,
    policy: HostPolicy,
}

/// What a name leads to.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) service: Option<Arc<ServiceData>>,
    /// The services of which one stands for the next, the last of them for `service`; empty for most.
    pub(super) aliases: Vec<Arc<ServiceData>>,
    /// For a host that only a VirtualService knows: that host, perhaps a wildcard.
    pub(super) claimed: Option<Arc<str>>,
    instance: Option<Arc<str>>,
}

impl Found {
    fn claimed(host: Arc<str>) -> Self {
        Self { service: None, aliases: Vec::new(), claimed: Some(host), instance: None }
    }

    /// The host in full.
    pub(super) fn host(&self) -> Option<&Arc<str>> {
        self.service.as_ref().map(|service| &service.info.host).or(self.claimed.as_ref())
    }
}

impl PartialEq for Fingerprint {
    fn eq(&self, other: &Self) -> bool {
        let routes = match (&self.routes, &other.routes) {
            (Some(a), Some(b)) => same(a, b),
            (None, None) => true,
            _ => false,
        };
        routes
            && self.host == other.host
            && self.domains == other.domains
            && self.service == other.service
            && self.policy == other.policy
    }
}

impl Outbound {
    /// The name that was asked for.
    pub fn called(&self) -> &str {
        &self.called
    }

    /// The host in full. A wildcard where a ServiceEntry or VirtualService knows the called name by one.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The names by which the workload can call it; see [`HostEntry::domains`].
    pub fn domains(&self) -> &[Arc<str>] {
        &self.domains
    }

    /// The service; `None` for a host that only a VirtualService knows (which sidecars serve on port 80
    /// only, as in Istio).
    pub fn service(&self) -> Option<&Arc<ServiceInfo>> {
        self.service.as_ref().map(|service| &service.info)
    }

    /// The names that clusters and telemetry carry; those of the host itself where there is no service.
    pub fn service_name(&self) -> ServiceName {
        self.service().map_or_else(|| ServiceName::new(&self.host, &self.host, ""), |s| s.service_name())
    }

    /// The VirtualService that applies; `None` leads to the service itself.
    pub fn virtual_service(&self) -> Option<&Arc<Resource<VirtualService>>> {
        self.routes.as_ref().map(|routes| &routes.resource)
    }

    /// The DestinationRules that apply, merged.
    pub fn policy(&self) -> &HostPolicy {
        &self.policy
    }

    /// What applies to a port, or to one of a subset; see [`HostPolicy::effective`].
    pub fn effective_policy(&self, port: u16, subset: &str) -> EffectivePolicy {
        self.policy.effective(port, subset)
    }

    /// The subset's cluster.
    pub fn cluster_key(&self, port: u16, subset: &str) -> ClusterKey {
        ClusterKey { host: Arc::clone(&self.host), port, subset: subset.into() }
    }

    /// The hosts that the VirtualService leads to, mirrors included, in full or as they are written (see
    /// [`StoreOptions::full_names`]); each once.
    pub fn destinations(&self, options: &StoreOptions) -> Vec<String> {
        let all = self.routes.iter().flat_map(|routes| routes.destinations(&options.cluster_domain));
        let mut all: Vec<String> = all.collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// What routes are made from, to compare with that of another store.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint {
            host: Arc::clone(&self.host),
            domains: self.domains.clone(),
            service: self.service().map(Arc::clone),
            routes: self.virtual_service().map(Arc::clone),
            policy: self.policy.clone(),
        }
    }

    /// The endpoints of a port, or of one of a subset (empty: of all).
    ///
    /// Each says how it is spoken to. Without `tls` in a DestinationRule, mTLS is automatic: endpoints with
    /// the label `security.istio.io/tlsMode: istio` get it, unless the service is `MESH_EXTERNAL` or the
    /// endpoint's PeerAuthentication says DISABLE. `ISTIO_MUTUAL` asks it of all, `DISABLE` of none.
    /// The endpoint must be its service account, or one of the names that the DestinationRule or
    /// ServiceEntry gives; where nothing is known of it and mTLS is asked for, nobody is admitted.
    ///
    /// None where the policy [refuses](EffectivePolicy::refuse).
    pub fn endpoints(&self, port: u16, subset: &str) -> Vec<EndpointSpec> {
        let Some(service) = &self.service else { return Vec::new() };
        let policy = self.effective_policy(port, subset);
        if policy.refuse.is_some() {
            return Vec::new();
        }
        let labels =
            if subset.is_empty() { None } else { self.policy.subset(subset).map(|s: &Subset| &s.labels) };
        let none = Labels::new();
        let labels = labels.unwrap_or(&none);
        let tls = policy.tls.as_ref();
        let sni: Arc<str> = match tls {
            Some(tls) if !tls.sni.is_empty() => tls.sni.as_str().into(),
            _ => format!("outbound_.{port}_.{subset}_.{}", self.host).into(),
        };
        let names = tls.map_or(&[][..], |tls| &tls.subject_alt_names);
        let identities = Identities::new(service, names);

        let mut endpoints: Vec<EndpointSpec> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        let named = self.named_by_the_call(service);
        for backend in service.backends.iter().chain(named.as_ref()) {
            let Some(at) = backend.port(port).filter(|_| in_subset(backend, labels)) else { continue };
            if self.instance.is_some() && backend.hostname != self.instance {
                continue;
            }
            let mutual = match tls.map(|tls| tls.mode) {
                Some(mode) => mode == ClientTlsMode::IstioMutual,
                None => {
                    backend.workload.tls_capable
                        && !at.tls_disabled
                        && service.info.location == ServiceEntryLocation::MeshInternal
                }
            };
            let tls = if mutual {
                UpstreamTls::Mutual { sni: Arc::clone(&sni), expect: identities.expected(backend) }
            } else {
                UpstreamTls::Plaintext
            };
            let key = EndpointKey { address: backend.address(at.target), tls };
            if seen.insert(key.clone()) {
                let labels = Arc::clone(&backend.workload.telemetry);
                endpoints.push(EndpointSpec { key, weight: backend.workload.weight, labels });
            }
        }
        endpoints
    }

    /// Every endpoint of the host, all ports and subsets together, in the store's order.
    ///
    /// They hold whatever DestinationRules say: [`endpoints`](Self::endpoints) is what these come to for a
    /// caller. A wildcard ServiceEntry without endpoints has none here: the name that is called is one.
    pub fn backends(&self) -> &[Backend] {
        self.service.as_ref().map_or(&[], |service| &service.backends)
    }

    /// The IP addresses of the endpoints, whatever DestinationRules say of them; with repetitions.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let backends = self.service.iter().flat_map(|service| service.backends.iter());
        backends.filter_map(|backend| match backend.address {
            WorkloadAddress::Ip(ip) => Some(ip.to_canonical()),
            WorkloadAddress::Name(_) => None,
        })
    }

    /// The service's port that the endpoint at `address` serves there, whatever DestinationRules say of it.
    pub fn served_at(&self, address: SocketAddr) -> Option<&ServicePort> {
        let service = self.service.as_ref()?;
        let ip = address.ip().to_canonical();
        let here = |b: &&Backend| matches!(b.address, WorkloadAddress::Ip(own) if own.to_canonical() == ip);
        service.backends.iter().filter(here).find_map(|backend| {
            let serves = |port: &&ServicePort| {
                backend.port(port.number).is_some_and(|served| served.target == address.port())
            };
            service.info.ports.iter().find(serves)
        })
    }

    /// The endpoint of a wildcard ServiceEntry without endpoints: the name that was called.
    fn named_by_the_call(&self, service: &ServiceData) -> Option<Backend> {
        if !service.has_open_names() || self.called.starts_with('*') {
            return None;
        }
        let address = WorkloadAddress::parse(&self.called)?;
        Some(Backend::unknown(&service.info.namespace, address, &service.info.ports))
    }
}

/// Who the endpoints of a service may be.
struct Identities<'a> {
    service: &'a ServiceData,
    /// Names that replace the accounts' own.
    named: Option<Expect>,
    /// Names that count beside an account's own.
    beside: Vec<SpiffeId>,
}

impl<'a> Identities<'a> {
    fn new(service: &'a ServiceData, of_rule: &[String]) -> Self {
        // A name that is no SPIFFE ID is nobody that the mesh's certificates could prove to be.
        let parse =
            |names: &[String]| -> Vec<SpiffeId> { names.iter().filter_map(|n| n.parse().ok()).collect() };
        let named = if !of_rule.is_empty() {
            Some(Expect::AnyOf(parse(of_rule).into()))
        } else if !service.info.kubernetes && !service.alt_names.is_empty() {
            Some(Expect::AnyOf(parse(&service.alt_names).into()))
        } else {
            None
        };
        let beside = if service.info.kubernetes { parse(&service.alt_names) } else { Vec::new() };
        Self { service, named, beside }
    }

    fn expected(&self, backend: &Backend) -> Expect {
        if let Some(named) = &self.named {
            return named.clone();
        }
        let mut ids: Vec<SpiffeId> = match &backend.workload.identity {
            Some(own) => vec![own.clone()],
            // Nobody says who it is: one of those that the service is known to run as.
            None => {
                let known = self.service.backends.iter().filter_map(|b| b.workload.identity.clone());
                let mut known: Vec<_> = known.collect();
                known.sort_unstable();
                known
            }
        };
        ids.extend(self.beside.iter().cloned());
        ids.dedup();
        Expect::AnyOf(ids.into())
    }
}

impl Store {
    /// Every host that `workload` can call.
    pub fn hosts<'a>(&'a self, workload: &Workload) -> impl Iterator<Item = HostEntry> + 'a {
        let scope = self.scope(workload);
        let of_services = Arc::clone(&scope);
        let services = self.index.services.all().iter().filter(move |service| {
            let chosen = self.index.services.of_host(&service.info.host, &of_services);
            chosen.is_some_and(|chosen| Arc::ptr_eq(chosen, service))
                && self.targets(service, &of_services).is_empty()
        });
        let domains_of = Arc::clone(&scope);
        let services = services.map(move |service| HostEntry {
            host: Arc::clone(&service.info.host),
            domains: self.domains(service, &domains_of),
        });
        let mut told = std::collections::HashSet::new();
        let claims = self.index.claims.routes.iter().flat_map(|routes| &routes.hosts).filter(move |host| {
            self.index.services.of_host(host, &scope).is_none()
                && self.claim(host, host, &scope).is_some()
                && told.insert(Arc::clone(host))
        });
        services
            .chain(claims.map(|host| HostEntry { host: Arc::clone(host), domains: vec![Arc::clone(host)] }))
    }

    /// What applies to calls from `workload` to `host`, which is the name in an authority: lower case,
    /// without port, brackets or trailing dot. `None` when nobody that the workload sees knows the host.
    pub fn outbound(&self, workload: &Workload, host: &str) -> Option<Outbound> {
        let scope = self.scope(workload);
        let found = self.resolve(host, &scope)?;
        let full = Arc::clone(found.host()?);
        let routes = self.routes(&full, &scope).map(Arc::clone);
        let policy = self.index.destinations.lookup(
            &self.options,
            &scope.namespace,
            Some(&workload.labels),
            found.service.as_ref().map(|service| &*service.info.namespace),
            &full,
        );
        let domains = match &found.service {
            Some(service) => self.domains(service, &scope),
            None => vec![Arc::clone(&full)],
        };
        Some(Outbound {
            called: host.into(),
            host: full,
            domains,
            routes,
            policy,
            instance: found.instance,
            service: found.service,
        })
    }

    /// Finds what a name leads to: a service by its full name, a virtual address, a short form; a host that
    /// only a VirtualService knows; the longest wildcard.
    pub(super) fn resolve(&self, called: &str, scope: &Scope) -> Option<Found> {
        let services = &self.index.services;
        let of = |service: &Arc<ServiceData>, instance: Option<&str>| {
            let mut aliases: Vec<_> = self.targets(service, scope).into_iter().map(Arc::clone).collect();
            let last = aliases.pop();
            if last.is_some() {
                aliases.insert(0, Arc::clone(service));
            }
            let service = last.unwrap_or_else(|| Arc::clone(service));
            Found { service: Some(service), aliases, claimed: None, instance: instance.map(Arc::from) }
        };
        let names = candidates(called, &scope.namespace, &self.options.cluster_domain);
        if let Some(service) = names.iter().find_map(|name| services.of_host(name, scope)) {
            return Some(of(service, None));
        }
        if let Some(service) = called.parse::<IpAddr>().ok().and_then(|ip| services.of_vip(ip, scope)) {
            return Some(of(service, None));
        }
        let claim = |host: &str| self.claim(host, called, scope).is_some();
        if let Some(host) = names.iter().find(|name| self.claim(name, name, scope).is_some()) {
            return Some(Found::claimed(host.as_str().into()));
        }
        if let Some((instance, of_service)) = called.split_once('.') {
            let names = candidates(of_service, &scope.namespace, &self.options.cluster_domain);
            let service = names.iter().find_map(|name| services.of_host(name, scope));
            if let Some(service) = service.filter(|service| service.info.headless) {
                return Some(of(service, Some(instance)));
            }
        }
        // Both are sorted by length, and a longer suffix is a more specific wildcard.
        let service = services.wildcard(called, scope);
        let claimed = self.index.claims.hosts.wildcards(called).map(|(suffix, _)| suffix).find(|suffix| {
            let longer = service.is_none_or(|(of_service, _)| suffix.len() > of_service.len());
            longer && claim(&format!("*{suffix}"))
        });
        match (claimed, service) {
            (Some(suffix), _) => Some(Found::claimed(format!("*{suffix}").into())),
            (None, Some((_, service))) => Some(of(service, None)),
            (None, None) => None,
        }
    }

    /// The services that an `ExternalName` service stands for, one for the next, as far as the mesh knows them.
    /// None where they are too many, or a circle.
    fn targets<'a>(&'a self, service: &'a ServiceData, scope: &Scope) -> Vec<&'a Arc<ServiceData>> {
        let next = |service: &ServiceData| self.index.services.of_host(service.alias.as_ref()?, scope);
        let all = std::iter::successors(next(service), |service| next(service)).take(MAX_ALIASES + 1);
        let all: Vec<_> = all.collect();
        if all.len() > MAX_ALIASES { Vec::new() } else { all }
    }

    /// The VirtualService that claims exactly `host`, for a call to `called`.
    pub(super) fn claim(&self, host: &str, called: &str, scope: &Scope) -> Option<&Arc<Routes>> {
        // A host that no service stands behind has to be listed by the Sidecar itself.
        self.index.claims.hosts.of(host).iter().find(|routes| {
            let namespace = &routes.resource.meta.namespace;
            scope.sees_routes(&routes.export, namespace, &routes.hosts) && scope.lists(namespace, called)
        })
    }

    /// The VirtualService for `host`: of those that are seen, the oldest of the most specific claim.
    pub(super) fn routes(&self, host: &str, scope: &Scope) -> Option<&Arc<Routes>> {
        let sees = |routes: &&Arc<Routes>| {
            scope.sees_routes(&routes.export, &routes.resource.meta.namespace, &routes.hosts)
        };
        self.index.claims.hosts.covering(host).filter_map(|claims| claims.iter().find(sees)).next()
    }

    /// The names by which callers of the scope know a service.
    fn domains(&self, service: &Arc<ServiceData>, scope: &Scope) -> Vec<Arc<str>> {
        let services = &self.index.services;
        let mut domains = vec![Arc::clone(&service.info.host)];
        let mut add = |service: &ServiceData| {
            let info = &service.info;
            if !info.kubernetes {
                return;
            }
            domains.push(Arc::clone(&info.host));
            let forms = short_forms(&info.name, &info.namespace, &scope.namespace);
            // A ServiceEntry of that very name comes first.
            let free = forms.into_iter().filter(|form| services.of_host(form, scope).is_none());
            domains.extend(free.map(Arc::from));
        };
        add(service);
        for alias in services.aliases(&service.info.host) {
            if services.of_host(&alias.info.host, scope).is_some_and(|chosen| Arc::ptr_eq(chosen, alias)) {
                add(alias);
            }
        }
        if service.info.headless {
            let below: Vec<Arc<str>> = domains.iter().map(|domain| format!("*.{domain}").into()).collect();
            domains.extend(below);
        }
        for vip in &service.info.vips {
            let own = vip.parse().ok().and_then(|ip: IpAddr| Some((ip, services.of_vip(ip, scope)?)));
            if let Some((ip, _)) = own.filter(|(_, first)| Arc::ptr_eq(first, service)) {
                domains.push(ip.to_canonical().to_string().into());
            }
        }
        let mut seen = std::collections::HashSet::new();
        domains.retain(|domain| seen.insert(Arc::clone(domain)));
        domains
    }

    /// Whether any service that `namespace` sees is or covers `host`, Sidecars aside.
    pub(super) fn knows(&self, namespace: &str, host: &str) -> bool {
        let scope = self.wide_scope(namespace);
        self.index.services.covering(host).any(|service| {
            scope.sees_service(&service.export, &service.info.namespace, &service.info.host)
                && covers(&service.info.host, host)
        })
    }
}
