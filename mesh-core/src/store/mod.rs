//! The store: everything that a process knows of the mesh, and the two questions that it answers.
//!
//! A [`Store`] is built once from resources and never changes; a new configuration is a new store. It
//! answers *what applies to this workload* ([`Store::inbound`]) and *what applies to calls from this
//! workload to that host* ([`Store::outbound`]). Who sees what (`exportTo`, `Sidecar`, the order of
//! namespaces) is decided here and nowhere else, so that files, a controller and an explanation agree.
//!
//! Answers hand out the resources themselves, shared. Whether an answer of a new store differs from that of
//! the one before is told by [`Outbound::fingerprint`] and by comparing [`Inbound`]s; a change of endpoints
//! changes no fingerprint.
//!
//! Short names follow Istio: in a resource they belong to the resource's namespace, in a call to the
//! caller's.
//!
//! ```
//! use tower_mesh_core::resource::{Resource, Service, WorkloadEntry};
//! use tower_mesh_core::resource::kubernetes::ServicePort;
//! use tower_mesh_core::store::{Store, StoreOptions};
//!
//! let labels: std::collections::BTreeMap<_, _> = [("app".to_owned(), "reviews".to_owned())].into();
//! let service = Service {
//!     selector: labels.clone(),
//!     ports: vec![ServicePort { name: "http".into(), port: 9080, ..Default::default() }],
//!     ..Default::default()
//! };
//! let entry = WorkloadEntry { address: "127.0.0.1".into(), labels, ..Default::default() };
//! let store = Store::new(StoreOptions::default(), vec![
//!     Resource::new("default", "reviews", service).into(),
//!     Resource::new("default", "reviews-v1", entry).into(),
//! ]);
//!
//! let caller = store.workload("default", "reviews-v1").unwrap();
//! let reviews = store.outbound(&caller, "reviews").unwrap();
//! assert_eq!(reviews.host(), "reviews.default.svc.cluster.local");
//! assert_eq!(reviews.endpoints(9080, "")[0].key.address.to_string(), "127.0.0.1:9080");
//! assert!(store.outbound(&caller, "nobody").is_none());
//! ```

mod changes;
mod destination;
mod diagnostics;
mod endpoints;
mod hosts;
mod inbound;
mod index;
mod keeper;
mod outbound;
mod services;
mod told;
mod visibility;
mod workloads;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

pub use changes::Differences;
pub use destination::{EffectivePolicy, HostPolicy};
pub use endpoints::{Backend, BackendPort};
pub use inbound::{Inbound, InboundPort, PeerAuthentications};
pub use keeper::Keeper;
pub use outbound::{Fingerprint, HostEntry, Outbound};
pub use services::{ServiceInfo, ServicePort};
pub use told::{AddressHosts, View};
pub use workloads::{DEFAULT_ACCOUNT, TLS_MODE_LABEL, Workload, WorkloadAddress};

use crate::diagnostic::{Diagnostic, ResourceRef};
use crate::identity::TrustDomain;
use crate::resource::sidecar::OutboundTrafficPolicy;
use crate::resource::{Object, Resource, Sidecar};
use index::{Index, Parts};
use visibility::{Scope, sidecar_of};

/// What a store has to know beside the resources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreOptions {
    /// The trust domain of the mesh's identities. Default: `cluster.local`.
    pub trust_domain: TrustDomain,
    /// The namespace whose policies are everybody's. Default: `istio-system`.
    pub root_namespace: Arc<str>,
    /// The domain of Kubernetes' services. Default: `cluster.local`.
    pub cluster_domain: Arc<str>,
}

/// Everything that a process knows of the mesh, at one moment. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    options: Arc<StoreOptions>,
    index: Arc<Index>,
    generation: u64,
    /// What a namespace sees under a Sidecar that narrows it, found out once.
    scopes: Arc<Mutex<HashMap<ScopeKey, Arc<Scope>>>>,
}

/// A namespace, and the namespace and name of its Sidecar.
type ScopeKey = (Arc<str>, String, String);

impl StoreOptions {
    /// The full names that a caller in `namespace` may mean by a name, in the order in which they are looked
    /// for: the name itself, then the service that it is a short form of.
    pub fn full_names(&self, called: &str, namespace: &str) -> Vec<String> {
        hosts::candidates(called, namespace, &self.cluster_domain)
    }
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::default(),
            root_namespace: "istio-system".into(),
            cluster_domain: "cluster.local".into(),
        }
    }
}

impl Default for Store {
    /// A store that knows nothing.
    fn default() -> Self {
        Self::new(StoreOptions::default(), Vec::new())
    }
}

impl Store {
    /// Builds a store. The order of `objects` makes no difference, but for several of one kind and name,
    /// which a source never gives.
    pub fn new(options: StoreOptions, objects: Vec<Object>) -> Self {
        Self::of(options, objects, None)
    }

    /// A store of what applies to calls to one host, whose endpoints are known already: all services among
    /// `objects` have these, and none besides. What another store [gave out](Outbound::backends) is taken here.
    ///
    /// ```
    /// use tower_mesh_core::resource::{Resource, Service};
    /// use tower_mesh_core::resource::kubernetes::ServicePort;
    /// use tower_mesh_core::store::{Backend, BackendPort, Store, StoreOptions, Workload, WorkloadAddress};
    ///
    /// let options = StoreOptions::default();
    /// let none = std::collections::BTreeMap::new();
    /// let pod = Workload::detached(&options, "default", "reviews-1", "reviews", none);
    /// let endpoint = Backend {
    ///     address: WorkloadAddress::parse("10.0.0.1").unwrap(),
    ///     ports: [BackendPort { service: 80, target: 8080, tls_disabled: false }].into(),
    ///     hostname: None,
    ///     workload: pod.clone().into(),
    /// };
    /// let ports = vec![ServicePort { port: 80, ..Default::default() }];
    /// let service = Resource::new("default", "reviews", Service { ports, ..Default::default() });
    /// let store = Store::of_host(options, vec![service.into()], &[endpoint]);
    /// let reviews = store.outbound(&pod, "reviews").unwrap();
    /// assert_eq!(reviews.endpoints(80, "")[0].key.address.to_string(), "10.0.0.1:8080");
    /// ```
    pub fn of_host(options: StoreOptions, objects: Vec<Object>, endpoints: &[Backend]) -> Self {
        Self::of(options, objects, Some(endpoints.into()))
    }

    fn of(options: StoreOptions, objects: Vec<Object>, given: Option<Arc<[Backend]>>) -> Self {
        let mut parts = Parts::new(&options, objects);
        if let Some(registry) = &mut parts.registry {
            registry.given = given;
        }
        let index = Index::new(&options, parts, &Index::default(), &HashMap::new());
        Self { options: Arc::new(options), index: Arc::new(index), generation: 0, scopes: Arc::default() }
    }

    /// How many stores its [`Keeper`] made before it: two of one keeper with the same number are the same. 0
    /// for a store that is none of a keeper's.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What it was built with.
    pub fn options(&self) -> &StoreOptions {
        &self.options
    }

    /// The Pod or WorkloadEntry of this name; of two, the Pod.
    pub fn workload(&self, namespace: &str, name: &str) -> Option<Arc<Workload>> {
        self.index.workloads.of(namespace, name).map(Arc::clone)
    }

    /// Every Pod and WorkloadEntry.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.index.workloads.all().iter()
    }

    /// A host of a resource in `namespace`, in full: `reviews` is
    /// `reviews.NAMESPACE.svc.cluster.local`, and what holds a dot stays as it is.
    pub fn fqdn(&self, host: &str, namespace: &str) -> String {
        hosts::fqdn(host, namespace, &self.options.cluster_domain)
    }

    /// The Sidecar of `workload`: that of its namespace which selects it, else its namespace's, else the
    /// root namespace's.
    pub fn sidecar(&self, workload: &Workload) -> Option<Arc<Resource<Sidecar>>> {
        sidecar_of(&self.index.sidecars, &self.options.root_namespace, workload)
    }

    /// Whether there is this Sidecar.
    pub fn has_sidecar(&self, sidecar: &ResourceRef) -> bool {
        let of_namespace = self.index.sidecars.get(sidecar.namespace());
        of_namespace.is_some_and(|all| all.iter().any(|known| known.meta.name == sidecar.name()))
    }

    /// What becomes of `workload`'s calls to hosts that nobody knows, where its Sidecar says so.
    pub fn outbound_traffic_policy(&self, workload: &Workload) -> Option<OutboundTrafficPolicy> {
        self.sidecar(workload)?.spec.outbound_traffic_policy.clone()
    }

    /// What is worth telling about resources that are fine by themselves: claims that lose, references
    /// that lead nowhere, selectors that select nothing. None of them keeps anything from being applied.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        diagnostics::find(self)
    }

    /// What `workload` sees.
    fn scope(&self, workload: &Workload) -> Arc<Scope> {
        self.scope_of(&workload.namespace, self.sidecar(workload))
    }

    /// What a namespace sees where no Sidecar narrows it.
    fn wide_scope(&self, namespace: &str) -> Arc<Scope> {
        self.scope_of(&Arc::from(namespace), None)
    }

    fn scope_of(&self, namespace: &Arc<str>, sidecar: Option<Arc<Resource<Sidecar>>>) -> Arc<Scope> {
        let Some(of) = sidecar else { return Arc::new(Scope::new(namespace, None)) };
        let key = (Arc::clone(namespace), of.meta.namespace.clone(), of.meta.name.clone());
        let scopes = || self.scopes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scope) = scopes().get(&key) {
            return Arc::clone(scope);
        }
        let mut scope = Scope::new(namespace, Some(&of.spec));
        if scope.is_narrowed() {
            let seen = self.index.claims.routes.iter();
            let seen = seen.filter(|r| scope.sees_routes(&r.export, &r.resource.meta.namespace, &r.hosts));
            let pulled: Vec<_> = seen.flat_map(|r| &r.leads_to).map(Arc::clone).collect();
            scope.pull(pulled);
        }
        let scope = Arc::new(scope);
        scopes().insert(key, Arc::clone(&scope));
        scope
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("options", &self.options)
            .field("workloads", &self.index.workloads.all().len())
            .field("services", &self.index.services.all().len())
            .field("virtual_services", &self.index.claims.routes.len())
            .finish_non_exhaustive()
    }
}
