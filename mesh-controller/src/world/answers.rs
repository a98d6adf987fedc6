//! What each proxy is answered.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesh_core::live::Live;
use mesh_core::resource::{Labels, Object};
use mesh_core::store::{Store, Workload};
use mesh_xds::server::{Answer, Notifier, Peer, Source};
use mesh_xds::{Payload, ResourceType};

use super::cache::{Cache, Scope};
use super::content::{Content, Inputs, largest};

/// Says what is behind names, as each peer may see it. Cheap to clone.
///
/// A peer sees by its namespace, which is its identity's, and by its workload's Sidecar, where whoever vouched
/// for the identity named the workload. A peer whose identity names no namespace of this trust domain, or
/// whose workload lies in another namespace, sees nothing.
#[derive(Clone)]
pub struct Answers {
    shared: Arc<Shared>,
}

struct Shared {
    store: Live<Store>,
    cache: Mutex<Cache>,
    /// The workloads that are too large to be told, each logged once.
    large_workloads: Mutex<HashSet<String>>,
}

/// Something that is too large to travel: proxies keep what they had of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Its type.
    pub kind: ResourceType,
    /// Its name.
    pub name: Arc<str>,
    /// The namespace that asks; for a workload its own.
    pub namespace: Arc<str>,
    /// What is too large, and the way out.
    pub problem: Arc<str>,
}

impl Answers {
    pub(super) fn new(store: Live<Store>, most: usize) -> Self {
        let cache = Mutex::new(Cache::new(most));
        Self { shared: Arc::new(Shared { store, cache, large_workloads: Mutex::default() }) }
    }

    /// What is too large to travel now, of what proxies subscribe to.
    pub fn refused(&self) -> Vec<Refused> {
        let cache = lock(&self.shared.cache);
        let refused = cache.too_large().map(|(kind, name, scope, problem)| Refused {
            kind,
            name: Arc::clone(name),
            namespace: Arc::clone(&scope.0),
            problem: Arc::clone(problem),
        });
        refused.collect()
    }

    /// How many names are kept, counted for each namespace that asks, and how many different contents.
    pub fn kept(&self) -> (usize, usize) {
        lock(&self.shared.cache).len()
    }

    pub(super) fn tidy(&self, notifier: &Notifier) {
        let store = self.shared.store.load_full();
        lock(&self.shared.cache).tidy(notifier, |sidecar| store.has_sidecar(sidecar));
        lock(&self.shared.large_workloads)
            .retain(|name| notifier.is_subscribed(ResourceType::Workload, name));
    }

    fn shared_answer(&self, store: &Store, workload: &Workload, kind: ResourceType, name: &str) -> Answer {
        let sidecar = store.sidecar(workload).map(|sidecar| sidecar.reference());
        let scope: Scope = (Arc::clone(&workload.namespace), sidecar);
        let generation = store.generation();
        let before = match lock(&self.shared.cache).get(&scope, kind, name, generation) {
            Some((content, true)) => return answer(&content),
            before => before.map(|(content, _)| content),
        };
        // What takes long is done without the lock.
        let Some(inputs) = Inputs::find(store, &store.view(workload), kind, name) else {
            lock(&self.shared.cache).remove(&scope, kind, name);
            return Answer::Absent;
        };
        let known = before.as_ref().filter(|content| content.inputs.same(&inputs)).map(Arc::clone);
        let known = known.or_else(|| lock(&self.shared.cache).shared(&inputs));
        let content = known.unwrap_or_else(|| {
            let content = inputs.encode(before.as_deref());
            if let Some(problem) = &content.too_large {
                let namespace = &scope.0;
                tracing::error!(%kind, name, %namespace, %problem, "it cannot be told, the last good form stays");
            }
            Arc::new(content)
        });
        lock(&self.shared.cache).put(scope, kind, name, generation, &content);
        answer(&content)
    }

    fn own_answer(&self, store: &Store, workload: &Arc<Workload>, name: &str) -> Answer {
        let mut resources: Vec<Object> = store.workload_object(workload).into_iter().collect();
        resources.extend(store.workload_resources(workload));
        let content = mesh_xds::Workload { options: store.options().clone(), resources };
        let payload = Payload::from(content);
        match payload.encode() {
            Ok(encoded) => {
                lock(&self.shared.large_workloads).remove(name);
                Answer::Found(encoded)
            }
            Err(problem) => {
                if lock(&self.shared.large_workloads).insert(name.to_owned()) {
                    let Payload::Workload(content) = &payload else { return Answer::Unchanged };
                    let part = largest(&content.resources);
                    tracing::error!(kind = "Workload", name, problem = %format_args!("{problem}{part}"), "it cannot be told, the last good form stays");
                }
                Answer::Unchanged
            }
        }
    }
}

/// The workload that a peer is, and whether it is its own name. `None` where the peer is nobody here.
fn workload_of(store: &Store, peer: &Peer) -> Option<(Arc<Workload>, Arc<str>)> {
    let namespace = peer.identity.namespace()?;
    let account = peer.identity.service_account()?;
    if peer.identity.trust_domain() != store.options().trust_domain.as_str() {
        return None;
    }
    let (name, full) = match &peer.workload {
        Some(full) => {
            let (own, name) = full.split_once('/')?;
            if own != namespace {
                return None;
            }
            if let Some(known) = store.workload(namespace, name) {
                return Some((known, Arc::clone(full)));
            }
            (name, Arc::clone(full))
        }
        // Nobody says which workload it is: it gets what its account gets.
        None => (account, format!("{namespace}/{account}").into()),
    };
    let workload = Workload::detached(store.options(), namespace, name, account, Labels::new());
    Some((Arc::new(workload), full))
}

impl Source for Answers {
    fn answer(&self, peer: &Peer, kind: ResourceType, name: &str) -> Answer {
        let store = self.shared.store.load();
        let Some((workload, own)) = workload_of(&store, peer) else { return Answer::Absent };
        match kind {
            ResourceType::Workload if *own != *name => Answer::Absent,
            // A Pod that is not known yet, or no more. What would apply to one without labels is not what
            // applies to it.
            ResourceType::Workload if peer.workload.is_some() && workload.resource.is_none() => {
                Answer::Unchanged
            }
            ResourceType::Workload => self.own_answer(&store, &workload, name),
            _ => self.shared_answer(&store, &workload, kind, name),
        }
    }
}

fn answer(content: &Content) -> Answer {
    // Where there was never a form that could travel, whoever has something from elsewhere keeps it.
    content.encoded.clone().map_or(Answer::Unchanged, Answer::Found)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (names, contents) = self.kept();
        f.debug_struct("Answers").field("names", &names).field("contents", &contents).finish_non_exhaustive()
    }
}
