//! From what the control plane tells to what is in force.
//!
//! Each name is taken or refused as a whole. What is taken is settled name by name; routes are compiled for the
//! hosts alone that something has changed for, and a change of endpoints touches nothing but the clusters that
//! they are of.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesh_core::diagnostic::{Diagnostic, Effect};
use mesh_core::live::Live;
use mesh_core::resource::{Invalid, Object, Resource};
use mesh_core::store::{Inbound, Store, StoreOptions, Workload};
use mesh_xds::client::{Change, Client, Now, Refusal, Sink, Unavailable};
use mesh_xds::{Payload, ResourceType};

use super::slots::{Each, Slot, Told};
use crate::builder::tell;
use crate::hosts::Hosts;
use crate::learn::LearntAddress;
use crate::validate::validate;
use crate::world::{Served, View, World};

/// What was told, and the world that is made of it. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct ConfigurationSink(Arc<Configuration>);

/// See [`ConfigurationSink`].
#[derive(Debug)]
pub(crate) struct Configuration {
    inner: Mutex<Inner>,
    view: Live<View>,
}

#[derive(Debug)]
struct Inner {
    world: World,
    view: Live<View>,
    client: Client,
    /// The workload's name, `NAMESPACE/NAME`.
    name: Arc<str>,
    /// The namespace whose policies are everybody's, until it is told.
    root: Arc<str>,
    own: Option<Own>,
    /// What the mesh had in common when all hosts were settled last.
    settled: Option<StoreOptions>,
    each: Each,
    /// Whether what is missing counts as absent until it is told: everything is taken from a snapshot.
    alone: bool,
    /// What compiling has found.
    found: Vec<Diagnostic>,
    diagnostics: HashMap<(ResourceType, Arc<str>), Vec<Diagnostic>>,
}

/// What was told of the workload itself.
#[derive(Debug, Clone)]
struct Own {
    options: StoreOptions,
    resources: Vec<Object>,
    store: Store,
    workload: Option<Arc<Workload>>,
    inbound: Option<Inbound>,
}

impl ConfigurationSink {
    pub(super) fn new(configuration: Arc<Configuration>) -> Self {
        Self(configuration)
    }
}

impl Sink for ConfigurationSink {
    fn apply(&mut self, changes: &[Change]) -> Vec<Refusal> {
        self.0.inner().apply(changes)
    }
}

impl Configuration {
    pub(super) fn new(world: World, client: Client, name: Arc<str>, root: Arc<str>) -> Arc<Self> {
        let view = world.out.view.live();
        let inner = Inner {
            world,
            view: view.clone(),
            client,
            name,
            root,
            own: None,
            settled: None,
            each: Each::default(),
            alone: false,
            found: Vec::new(),
            diagnostics: HashMap::new(),
        };
        Arc::new(Self { inner: Mutex::new(inner), view })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn view(&self) -> Live<View> {
        self.view.clone()
    }

    /// Takes up what was kept of an earlier life. What it does not hold counts as absent until it is told.
    pub(super) fn restore(self: &Arc<Self>, snapshot: &[u8]) {
        let client = self.inner().client.clone();
        match client.restore(snapshot, &mut ConfigurationSink(Arc::clone(self))) {
            Ok(taken) => {
                let mut inner = self.inner();
                inner.alone = true;
                let missing = inner.missing();
                inner.settle(&missing, &HashSet::new());
                inner.alone = false;
                tracing::info!(resources = taken, "the configuration of an earlier life is in force");
            }
            Err(error) => tracing::warn!("state: the configuration: {error}; it is asked for anew"),
        }
    }

    /// Says that there is no configuration yet, and why, as long as there is none.
    pub(super) fn tell_problem(&self, problem: String) {
        let inner = self.inner();
        let status = inner.world.out.status.live().load_full();
        if status.workload.is_none() && status.problem.as_ref() != Some(&problem) {
            let mut status = (*status).clone();
            status.problem = Some(problem);
            inner.world.out.status.publish(status);
        }
    }

    /// Tells the client what is in use.
    pub(super) fn touch_used(&self) {
        let client = self.inner().client.clone();
        for (kind, name) in self.take_used() {
            client.touch(kind, &name);
        }
    }

    /// The hosts to which something was sent since this was asked last, those that they need, and the addresses behind
    /// which they are: a connection asks for its address when it is opened, may live for hours, and when the next one
    /// is opened there may be nobody to ask.
    pub(super) fn take_used(&self) -> Vec<(ResourceType, String)> {
        let inner = self.inner();
        let clusters = inner.world.registry().all();
        let used: HashSet<_> = clusters.iter().filter(|c| c.take_used()).map(|c| c.key().clone()).collect();
        if used.is_empty() {
            return Vec::new();
        }
        let mut names: HashSet<&str> = HashSet::new();
        for (host, mut keys) in inner.world.compiled() {
            if keys.any(|key| used.contains(key)) {
                names.extend(inner.each.closure(host));
            }
        }
        let hosts = names.iter().flat_map(|name| {
            [ResourceType::Host, ResourceType::Endpoints].map(|kind| (kind, (*name).to_owned()))
        });
        let addresses = inner.each.addresses.iter();
        let addresses = addresses.filter(|(_, behind)| behind.hosts.iter().any(|h| names.contains(&**h)));
        hosts.chain(addresses.map(|(ip, _)| (ResourceType::Address, ip.to_string()))).collect()
    }
}

impl Inner {
    fn apply(&mut self, changes: &[Change]) -> Vec<Refusal> {
        let mut refused = Vec::new();
        let (mut told, mut moved) = (HashSet::new(), HashSet::new());
        let mut own = false;
        let mut addresses = false;
        for change in changes {
            let taken = match change.kind {
                ResourceType::Workload => self.workload(change).map(|()| own = true),
                ResourceType::Host => self.host(change).map(|()| {
                    told.insert(Arc::clone(&change.name));
                }),
                ResourceType::Endpoints => {
                    self.endpoints(change);
                    moved.insert(Arc::clone(&change.name));
                    Ok(())
                }
                ResourceType::Address => {
                    self.address(change);
                    addresses = true;
                    Ok(())
                }
            };
            if let Err(reason) = taken {
                refused.push(Refusal { name: Arc::clone(&change.name), reason });
            }
        }
        if own {
            self.own_changed();
        } else if !told.is_empty() || !moved.is_empty() {
            self.settle(&told, &moved);
        } else if addresses {
            self.publish(false);
        }
        refused
    }

    /// What applies to the workload itself.
    fn workload(&mut self, change: &Change) -> Result<(), String> {
        if change.name != self.name {
            return Ok(());
        }
        let content = match &change.now {
            Now::Content(payload) => match &**payload {
                Payload::Workload(content) => content.clone(),
                _ => return Ok(()),
            },
            // What is in force stays: the workload is running, and whoever does not know it is mistaken or late.
            Now::Absent | Now::Forgotten => {
                if self.own.is_none() {
                    self.problem(format!("the control plane does not know the workload {} yet", self.name));
                }
                return Ok(());
            }
        };
        let root = Arc::clone(&content.options.root_namespace);
        let first = self.own.is_none();
        let resources = self.check(change, content.resources, &root, first)?;
        let store = Store::new(content.options.clone(), resources.clone());
        let workload = self.name.split_once('/').and_then(|(ns, name)| store.workload(ns, name));
        if workload.is_none() {
            return Err(format!("the workload {} itself is not in it", self.name));
        }
        self.root = root;
        self.each.own = Some(store.clone());
        self.own = Some(Own { options: content.options, resources, store, workload, inbound: None });
        Ok(())
    }

    fn host(&mut self, change: &Change) -> Result<(), String> {
        let resources = match &change.now {
            Now::Content(payload) => match &**payload {
                Payload::Host(host) => {
                    self.ask_for_endpoints(&change.name);
                    let slot = self.each.slots.get(&change.name);
                    let first = slot.is_none_or(|slot| slot.resources.content().is_none());
                    let root = Arc::clone(&self.root);
                    Told::Content(self.check(change, host.resources.clone(), &root, first)?)
                }
                _ => return Ok(()),
            },
            Now::Absent => Told::Absent,
            Now::Forgotten if self.is_needed(&change.name) => {
                // What names nothing is forgotten soon, and asked for again where it is needed.
                let _ = self.client.want(ResourceType::Host, &change.name);
                return Ok(());
            }
            Now::Forgotten => {
                self.each.slots.remove(&change.name);
                self.diagnostics.remove(&(change.kind, Arc::clone(&change.name)));
                return Ok(());
            }
        };
        self.change_slot(&change.name, |slot| slot.resources = resources);
        Ok(())
    }

    /// Makes sure that it is told, or known, what the endpoints of a host are.
    fn ask_for_endpoints(&mut self, name: &Arc<str>) {
        if self.each.slots.get(name).is_some_and(|slot| !matches!(slot.endpoints, Told::Waiting)) {
            return;
        }
        match self.client.exists(ResourceType::Endpoints, name) {
            Some(false) => self.change_slot(name, |slot| slot.endpoints = Told::Absent),
            _ => {
                let _ = self.client.want(ResourceType::Endpoints, name);
            }
        }
    }

    fn is_needed(&self, name: &Arc<str>) -> bool {
        self.each.slots.values().any(|slot| slot.needs.contains(name))
    }

    fn endpoints(&mut self, change: &Change) {
        let endpoints = match &change.now {
            Now::Content(payload) => match &**payload {
                Payload::Endpoints(endpoints) => {
                    let options = self.own.as_ref().map(|own| own.options.clone()).unwrap_or_default();
                    Told::Content(endpoints.backends(&options).collect())
                }
                _ => return,
            },
            // What has no host is of no interest.
            _ if !self.each.slots.contains_key(&change.name) => return,
            Now::Absent => Told::Absent,
            Now::Forgotten => {
                let _ = self.client.want(ResourceType::Endpoints, &change.name);
                return;
            }
        };
        self.change_slot(&change.name, |slot| slot.endpoints = endpoints);
    }

    fn address(&mut self, change: &Change) {
        let Ok(ip) = change.name.parse::<IpAddr>() else { return };
        match &change.now {
            Now::Content(payload) => {
                if let Payload::Address(address) = &**payload {
                    let hosts = address.hosts.iter().map(|host| host.as_str().into()).collect();
                    let learnt = LearntAddress { hosts, endpoint: address.endpoint };
                    self.each.addresses.insert(ip, Arc::new(learnt));
                }
            }
            Now::Absent | Now::Forgotten => {
                self.each.addresses.remove(&ip);
            }
        }
    }

    fn change_slot(&mut self, name: &Arc<str>, change: impl FnOnce(&mut Slot)) {
        let slot = self.each.slots.entry(Arc::clone(name)).or_default();
        change(Arc::make_mut(slot));
    }

    /// Checks resources as a directory's are. Something wrong refuses them all, where an older form is in force;
    /// where none is, what is wrong takes its closed reading or is left out.
    fn check(
        &mut self,
        change: &Change,
        resources: Vec<Object>,
        root: &str,
        first: bool,
    ) -> Result<Vec<Object>, String> {
        let mut taken = Vec::with_capacity(resources.len());
        let mut told = Vec::new();
        for object in resources {
            if let Some(invalid) = object.invalid() {
                let reading = Diagnostic::new(Effect::ClosedReading, invalid.reason.clone());
                told.push(reading.resource(object.reference()));
                taken.push(object);
                continue;
            }
            let found = validate(&object, root);
            let Some(wrong) = found.iter().find(|d| d.is_error()) else {
                told.extend(found);
                taken.push(object);
                continue;
            };
            let reason = wrong.to_string();
            if !first {
                return Err(reason);
            }
            let closed = closed_reading(&object, &reason);
            let effect = if closed.is_some() { Effect::ClosedReading } else { Effect::NotApplied };
            told.extend(found.into_iter().map(|mut d| {
                if d.is_error() {
                    d.effect = effect;
                }
                d
            }));
            taken.extend(closed);
        }
        self.diagnostics.insert((change.kind, Arc::clone(&change.name)), told);
        Ok(taken)
    }

    fn problem(&self, problem: String) {
        tracing::warn!("{problem}");
        let status = (**self.world.out.status.load()).clone();
        self.world
            .out
            .status
            .publish(crate::status::ConfigurationStatus { problem: Some(problem), ..status });
    }

    /// What applies to the workload has changed: its inbound side is compiled anew, and since labels and options
    /// may be others, so is what follows for calls.
    fn own_changed(&mut self) {
        let Some(own) = &mut self.own else { return };
        let Some(workload) = own.workload.clone() else { return };
        let mut found = Vec::new();
        own.inbound = Some(self.world.inbound(&own.store, &workload, &mut found));
        let key = (ResourceType::Workload, Arc::clone(&self.name));
        let told = self.diagnostics.entry(key).or_default();
        for diagnostic in found {
            if !told.contains(&diagnostic) {
                told.push(diagnostic);
            }
        }
        let before = self.view.load().workload.clone();
        let same = before.is_some_and(|b| b.labels == workload.labels && b.namespace == workload.namespace);
        if same && self.settled.as_ref() == Some(&own.options) {
            return self.publish(true);
        }
        self.settled = Some(own.options.clone());
        let all: HashSet<_> = self.each.slots.keys().cloned().collect();
        self.settle(&all, &HashSet::new());
    }

    /// The names that were asked for and not told of.
    fn missing(&self) -> HashSet<Arc<str>> {
        let waiting = self.each.slots.iter().filter(|(_, slot)| !slot.is_told());
        waiting.map(|(name, _)| Arc::clone(name)).collect()
    }

    /// Settles the hosts whose resources (`told`) or endpoints (`moved`) have changed, asks for what they need,
    /// and puts in force what is whole.
    fn settle(&mut self, told: &HashSet<Arc<str>>, moved: &HashSet<Arc<str>>) {
        let Some((options, workload)) =
            self.own.as_ref().and_then(|own| Some((own.options.clone(), own.workload.clone()?)))
        else {
            return;
        };
        let mut next: Vec<Arc<str>> = told.iter().chain(moved).cloned().collect();
        while let Some(name) = next.pop() {
            let Some(slot) = self.each.slots.get(&name) else { continue };
            let mut slot = (**slot).clone();
            if self.alone {
                slot.take_missing_as_absent();
            }
            let slot = slot.settled(&name, &options, &workload);
            for needed in &slot.needs {
                if self.each.slots.contains_key(needed) {
                    continue;
                }
                let asked = self.ask_for(needed);
                self.each.slots.insert(Arc::clone(needed), Arc::new(asked));
                next.push(Arc::clone(needed));
            }
            self.each.slots.insert(name, Arc::new(slot));
        }

        // What nobody needs and nothing was told of is let go of.
        let needed: HashSet<Arc<str>> =
            self.each.slots.values().flat_map(|slot| slot.needs.iter().cloned()).collect();
        self.each.slots.retain(|name, slot| {
            let held = slot.resources.content().is_some() || slot.endpoints.content().is_some();
            held || needed.contains(name)
        });

        let each = self.each.clone();
        let find = |called: &str| each.destination(&options, &workload, called);
        let compiled: HashSet<Arc<str>> = self.world.compiled().map(|(name, _)| Arc::clone(name)).collect();
        let changed = |name: &str| told.contains(name) || moved.contains(name);
        let served = each.slots.iter().filter_map(|(name, slot)| {
            let known = slot.known.as_ref().filter(|_| slot.stands_for.is_none())?;
            let (whole, before) = (each.is_whole(name), compiled.contains(name));
            // A host that waits for something new keeps its old routes meanwhile.
            if !whole && !before {
                return None;
            }
            let touched =
                changed(name) || (!slot.needs.is_empty() && each.closure(name).into_iter().any(&changed));
            Some(Served {
                host: Arc::clone(name),
                // A name below a wildcard that cannot be asked for itself is served under that name alone.
                alone: known.outbound.host() != &**name,
                outbound: Arc::clone(&known.outbound),
                fresh: whole && (touched || !before),
            })
        });
        let mut served: Vec<Served> = served.collect();
        served.sort_unstable_by(|a, b| a.host.cmp(&b.host));
        let mut found = Vec::new();
        if let Some(table) = self.world.serve(&options, &workload, &find, served, &mut found) {
            let table = Arc::new(table);
            self.each.table = Arc::clone(&table);
            self.world.out.routes.publish_arc(table);
            self.found = found;
        }
        self.publish(!told.is_empty());
    }

    /// Subscribes to a host that another needs.
    fn ask_for(&self, name: &Arc<str>) -> Slot {
        let asked = self.client.want(ResourceType::Host, name);
        match asked.and_then(|()| self.client.want(ResourceType::Endpoints, name)) {
            Ok(()) => Slot::default(),
            Err(error) => {
                if error == Unavailable::Full {
                    tracing::error!(host = %name, "a route leads to a host for which there is no room: {error}");
                }
                Slot { resources: Told::Absent, ..Slot::default() }
            }
        }
    }

    /// Publishes what is in force for whoever asks rarely.
    fn publish(&mut self, content: bool) {
        let before = self.view.load_full();
        let Some(own) = &self.own else {
            // Addresses alone: whoever waits for one looks here.
            let hosts = Hosts::Each(Arc::new(self.each.clone()));
            self.world.out.view.publish(View { hosts, ..(*before).clone() });
            return;
        };
        let Some(workload) = &own.workload else { return };
        let (objects, diagnostics) = if content || before.workload.is_none() {
            (self.objects(own), self.all_diagnostics())
        } else {
            (Arc::clone(&before.objects), Arc::clone(&before.diagnostics))
        };
        tell(&diagnostics, &before.diagnostics);
        let view = View {
            addresses: Arc::default(),
            tcp: if content { self.world.tcp() } else { Arc::clone(&before.tcp) },
            peers: Arc::default(),
            hosts: Hosts::Each(Arc::new(self.each.clone())),
            inbound: own.inbound.clone(),
            objects,
            diagnostics,
            workload: Some(Arc::clone(workload)),
        };
        self.world.in_force(workload, view);
    }

    /// Every resource in force, each once.
    fn objects(&self, own: &Own) -> Arc<[Object]> {
        let mut seen = HashSet::new();
        let of_hosts = self.each.slots.values().filter_map(|slot| slot.resources.content()).flatten();
        let mut all: Vec<_> = own.resources.iter().chain(of_hosts).cloned().collect();
        all.retain(|object| seen.insert(object.reference()));
        all.sort_by_key(Object::reference);
        all.into()
    }

    fn all_diagnostics(&self) -> Arc<[Diagnostic]> {
        let mut all: Vec<Diagnostic> = Vec::new();
        let mut of: Vec<_> = self.diagnostics.iter().filter(|(_, told)| !told.is_empty()).collect();
        of.sort_by(|a, b| a.0.cmp(b.0));
        for diagnostic in of.into_iter().flat_map(|(_, told)| told).chain(&self.found) {
            if !all.contains(diagnostic) {
                all.push(diagnostic.clone());
            }
        }
        all.into()
    }
}

impl Slot {
    fn take_missing_as_absent(&mut self) {
        if matches!(self.resources, Told::Waiting) {
            self.resources = Told::Absent;
        }
        if matches!(self.endpoints, Told::Waiting) {
            self.endpoints = Told::Absent;
        }
    }
}

/// The closed reading of a resource that cannot be done as it is written: it refuses what it selects.
fn closed_reading(object: &Object, reason: &str) -> Option<Object> {
    fn closed<T: Clone>(resource: &Resource<T>, reason: &str) -> Resource<T> {
        Resource { invalid: Some(Invalid { reason: reason.to_owned() }), ..resource.clone() }
    }
    match object {
        Object::AuthorizationPolicy(policy) => Some(closed(policy, reason).into()),
        Object::PeerAuthentication(policy) => Some(closed(policy, reason).into()),
        Object::DestinationRule(rule) => Some(closed(rule, reason).into()),
        _ => None,
    }
}
