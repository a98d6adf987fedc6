//! A store that follows its objects one by one.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use super::index::{Index, List, Parts, Registry};
use super::workloads::{Touched, Workload, Workloads};
use super::{Store, StoreOptions};
use crate::diagnostic::ResourceRef;
use crate::resource::{
    AuthorizationPolicy, DestinationRule, EndpointSlice, Kind, Object, PeerAuthentication, Pod, Resource,
    Service, ServiceEntry, Sidecar, Telemetry, VirtualService, WorkloadEntry,
};

/// Keeps the objects of a large configuration that changes all the time, and makes stores of them.
///
/// A store that is made here shares with the one before whatever has not changed, so that a change costs little
/// and [`Store::differences`] finds at once what it makes different. Of a Pod only the [`Workload`] is kept, and
/// what Pods of one Deployment have in common is kept once; metadata that makes no difference to the mesh is not
/// kept at all.
///
/// ```
/// use tower_mesh_core::resource::{Resource, Service};
/// use tower_mesh_core::store::{Keeper, StoreOptions};
///
/// let mut keeper = Keeper::new(StoreOptions::default());
/// let mut service = Resource::new("default", "reviews", Service::default());
/// assert!(keeper.put(service.clone().into()));
/// let store = keeper.store();
///
/// // Another version of the same content is no change.
/// service.meta.resource_version = "2".into();
/// assert!(!keeper.put(service.clone().into()));
///
/// let client = tower_mesh_core::store::Workload::detached(store.options(), "default", "web", "", service.meta.labels.clone());
/// assert!(store.outbound(&client, "reviews").is_some());
/// assert!(keeper.remove(&service.reference()));
/// assert!(keeper.store().outbound(&client, "reviews").is_none());
/// ```
pub struct Keeper {
    store: Store,
    /// In order, and so in the same order in every replica.
    pods: BTreeMap<ResourceRef, Arc<Workload>>,
    workload_entries: HashMap<ResourceRef, (Arc<Workload>, Arc<Resource<WorkloadEntry>>)>,
    /// The Pods and WorkloadEntries that have changed since the last store.
    touched: Touched,
    services: Kept<Service>,
    entries: Kept<ServiceEntry>,
    slices: Kept<EndpointSlice>,
    virtual_services: Kept<VirtualService>,
    rules: Kept<DestinationRule>,
    sidecars: Kept<Sidecar>,
    peers: Kept<PeerAuthentication>,
    authorization: Kept<AuthorizationPolicy>,
    telemetry: Kept<Telemetry>,
    shared: Shared,
}

/// The objects of one kind.
struct Kept<T> {
    all: HashMap<ResourceRef, Arc<Resource<T>>>,
    /// They by age, as they were when they were asked for last.
    sorted: Vec<Arc<Resource<T>>>,
    changed: bool,
}

impl Keeper {
    /// Knows nothing yet.
    pub fn new(options: StoreOptions) -> Self {
        Self {
            store: Store::new(options, Vec::new()),
            pods: BTreeMap::new(),
            workload_entries: HashMap::new(),
            touched: Touched::new(),
            services: Kept::default(),
            entries: Kept::default(),
            slices: Kept::default(),
            virtual_services: Kept::default(),
            rules: Kept::default(),
            sidecars: Kept::default(),
            peers: Kept::default(),
            authorization: Kept::default(),
            telemetry: Kept::default(),
            shared: Shared::default(),
        }
    }

    /// Takes an object that is new or has changed; says whether that makes a difference.
    pub fn put(&mut self, object: Object) -> bool {
        match object {
            Object::Pod(pod) => self.put_pod(&pod),
            Object::WorkloadEntry(entry) => self.put_entry(entry),
            Object::Service(service) => self.services.put(service),
            Object::ServiceEntry(entry) => self.entries.put(entry),
            Object::EndpointSlice(slice) => self.slices.put(thin(slice)),
            Object::VirtualService(routes) => self.virtual_services.put(routes),
            Object::DestinationRule(rule) => self.rules.put(rule),
            Object::Sidecar(sidecar) => self.sidecars.put(sidecar),
            Object::PeerAuthentication(policy) => self.peers.put(policy),
            Object::AuthorizationPolicy(policy) => self.authorization.put(policy),
            Object::Telemetry(telemetry) => self.telemetry.put(telemetry),
            Object::Namespace(_) => false,
        }
    }

    /// Forgets an object; says whether it was there.
    pub fn remove(&mut self, object: &ResourceRef) -> bool {
        let removed = match object.kind() {
            Pod::KIND => self.pods.remove(object),
            WorkloadEntry::KIND => self.workload_entries.remove(object).map(|(workload, _)| workload),
            Service::KIND => return self.services.remove(object),
            ServiceEntry::KIND => return self.entries.remove(object),
            EndpointSlice::KIND => return self.slices.remove(object),
            VirtualService::KIND => return self.virtual_services.remove(object),
            DestinationRule::KIND => return self.rules.remove(object),
            Sidecar::KIND => return self.sidecars.remove(object),
            PeerAuthentication::KIND => return self.peers.remove(object),
            AuthorizationPolicy::KIND => return self.authorization.remove(object),
            Telemetry::KIND => return self.telemetry.remove(object),
            _ => None,
        };
        if let Some(workload) = &removed {
            self.touch(workload);
        }
        removed.is_some()
    }

    /// The store of the objects as they are now.
    pub fn store(&mut self) -> Store {
        let workloads = (!self.touched.is_empty()).then(|| self.workloads());
        let peers = self.peers.list();
        let registry =
            workloads.is_some() || peers.is_some() || self.services.changed || self.entries.changed;
        let registry = (registry || self.slices.changed).then(|| Registry {
            services: self.services.sorted(),
            entries: self.entries.sorted(),
            slices: self.slices.sorted(),
            given: None,
        });
        let parts = Parts {
            workloads,
            registry,
            peers,
            virtual_services: self.virtual_services.list(),
            rules: self.rules.list(),
            sidecars: self.sidecars.list(),
            authorization: self.authorization.list(),
            telemetry: self.telemetry.list(),
        };
        let touched = std::mem::take(&mut self.touched);
        let index = Index::new(&self.store.options, parts, &self.store.index, &touched);
        self.store = Store {
            options: Arc::clone(&self.store.options),
            index: Arc::new(index),
            generation: self.store.generation + 1,
            scopes: Arc::default(),
        };
        self.shared.tidy();
        self.store.clone()
    }

    /// How many values are kept for workloads to share, once those are forgotten that nobody has.
    #[cfg(test)]
    pub(super) fn shared_values(&mut self) -> usize {
        let shared = &mut self.shared;
        (shared.texts.tidy_at, shared.labels.tidy_at, shared.ports.tidy_at, shared.telemetry.tidy_at) =
            (0, 0, 0, 0);
        shared.tidy();
        let pools = shared.texts.all.len() + shared.labels.all.len() + shared.ports.all.len();
        pools + shared.telemetry.all.len() + shared.identities.len()
    }

    fn put_pod(&mut self, pod: &Resource<Pod>) -> bool {
        let workload = Workload::of_pod(&self.store.options, pod);
        let key = pod.reference();
        if self.pods.get(&key).is_some_and(|known| **known == workload) {
            return false;
        }
        let workload = Arc::new(self.shared.workload(workload));
        // The name is kept once.
        let key = workload.resource.clone().unwrap_or(key);
        self.touch(&workload);
        self.pods.insert(key, workload);
        true
    }

    fn put_entry(&mut self, entry: Arc<Resource<WorkloadEntry>>) -> bool {
        let entry = without_restless(entry);
        let key = entry.reference();
        if self.workload_entries.get(&key).is_some_and(|(_, known)| known == &entry) {
            return false;
        }
        let workload = Workload::of_entry(&self.store.options, &entry);
        let workload = Arc::new(self.shared.workload(workload));
        self.touch(&workload);
        self.workload_entries.insert(key, (workload, entry));
        true
    }

    fn touch(&mut self, workload: &Workload) {
        let names = self.touched.entry(Arc::clone(&workload.namespace)).or_default();
        names.insert(Arc::clone(&workload.name));
    }

    fn workloads(&self) -> Workloads {
        let mut entries: Vec<_> = self.workload_entries.values().cloned().collect();
        entries.sort_by(|(_, a), (_, b)| a.meta.age_order().cmp(&b.meta.age_order()));
        let pods = self.pods.values().map(Arc::clone).collect();
        Workloads::new(pods, entries, &self.store.index.workloads, &self.touched)
    }
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { all: HashMap::new(), sorted: Vec::new(), changed: false }
    }
}

impl<T: Kind> Kept<T> {
    fn put(&mut self, resource: Arc<Resource<T>>) -> bool {
        let resource = without_restless(resource);
        let key = resource.reference();
        if self.all.get(&key).is_some_and(|known| *known == resource) {
            return false;
        }
        self.all.insert(key, resource);
        self.changed = true;
        true
    }

    fn remove(&mut self, object: &ResourceRef) -> bool {
        let removed = self.all.remove(object).is_some();
        self.changed |= removed;
        removed
    }

    /// All of them by age.
    fn sorted(&mut self) -> Vec<Arc<Resource<T>>> {
        if std::mem::take(&mut self.changed) {
            self.sorted = self.all.values().map(Arc::clone).collect();
            self.sorted.sort_by(|a, b| a.meta.age_order().cmp(&b.meta.age_order()));
        }
        self.sorted.clone()
    }

    /// The same, where they have changed since they were asked for last.
    fn list(&mut self) -> List<T> {
        self.changed.then(|| self.sorted())
    }
}

/// Leaves out the metadata that changes although nothing that the mesh uses has.
fn without_restless<T: Kind>(resource: Arc<Resource<T>>) -> Arc<Resource<T>> {
    let mut resource = Arc::unwrap_or_clone(resource);
    resource.meta.drop_restless();
    Arc::new(resource)
}

/// Leaves out what is not used of a slice: there is an entry for every Pod.
fn thin(slice: Arc<Resource<EndpointSlice>>) -> Arc<Resource<EndpointSlice>> {
    let mut slice = Arc::unwrap_or_clone(slice);
    slice.meta.annotations.clear();
    for endpoint in &mut slice.spec.endpoints {
        endpoint.addresses.truncate(1);
        endpoint.node_name = None;
        endpoint.zone = None;
        if let Some(target) = &mut endpoint.target_ref {
            target.uid = String::new();
        }
    }
    slice.spec.endpoints.shrink_to_fit();
    Arc::new(slice)
}

/// Values that many workloads have in common, each kept once.
#[derive(Default)]
struct Shared {
    texts: Pool<str>,
    labels: Pool<crate::resource::Labels>,
    ports: Pool<std::collections::BTreeMap<String, u16>>,
    telemetry: Pool<crate::facts::WorkloadLabels>,
    identities: HashSet<crate::identity::SpiffeId>,
}

impl Shared {
    fn workload(&mut self, mut workload: Workload) -> Workload {
        workload.namespace = self.texts.get(workload.namespace);
        workload.service_account = self.texts.get(workload.service_account);
        workload.locality = self.texts.get(workload.locality);
        workload.labels = self.labels.get(workload.labels);
        workload.ports = self.ports.get(workload.ports);
        workload.telemetry = self.telemetry.get(workload.telemetry);
        if let Some(identity) = workload.identity.take() {
            if let Some(known) = self.identities.get(&identity) {
                workload.identity = Some(known.clone());
            } else {
                self.identities.insert(identity.clone());
                workload.identity = Some(identity);
            }
        }
        workload
    }

    /// Forgets what nobody else has any more, now and then.
    fn tidy(&mut self) {
        self.texts.tidy();
        self.labels.tidy();
        self.ports.tidy();
        if self.telemetry.tidy() {
            // An identity is that of some workload's telemetry, or it is made again when it is needed.
            let used: HashSet<_> = self.telemetry.all.iter().filter_map(|t| t.principal.clone()).collect();
            self.identities.retain(|identity| used.contains(identity));
        }
    }
}

/// Values that are the same are one value.
struct Pool<T: ?Sized> {
    all: HashSet<Arc<T>>,
    /// At how many they are looked through for those that nobody has.
    tidy_at: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { all: HashSet::new(), tidy_at: 0 }
    }
}

impl<T: ?Sized + Eq + Hash> Pool<T> {
    fn get(&mut self, value: Arc<T>) -> Arc<T> {
        if let Some(known) = self.all.get(&value) {
            return Arc::clone(known);
        }
        self.all.insert(Arc::clone(&value));
        value
    }

    fn tidy(&mut self) -> bool {
        if self.all.len() < self.tidy_at {
            return false;
        }
        self.all.retain(|value| Arc::strong_count(value) > 1);
        self.tidy_at = (self.all.len() * 2).max(1024);
        true
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("store", &self.store).finish_non_exhaustive()
    }
}
