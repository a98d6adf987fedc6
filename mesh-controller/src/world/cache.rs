//! Content that is kept for all who ask for it.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use mesh_core::diagnostic::ResourceRef;
use mesh_xds::ResourceType;
use mesh_xds::server::Notifier;

use super::content::{Content, Inputs};

/// The most names, counted once for each namespace and Sidecar that asks, whose content is kept. What comes
/// beyond is made anew each time that it is asked for.
pub const MAX_CACHED: usize = 262_144;

/// Who sees the same: a namespace and, where one applies, a Sidecar.
pub(super) type Scope = (Arc<str>, Option<ResourceRef>);

/// What is known of a name.
#[derive(Debug)]
struct Entry {
    /// The store by which it was looked at last.
    generation: u64,
    content: Arc<Content>,
}

#[derive(Debug, Default)]
struct Names {
    hosts: HashMap<Arc<str>, Entry>,
    endpoints: HashMap<Arc<str>, Entry>,
    addresses: HashMap<Arc<str>, Entry>,
}

/// The content behind names, by who sees it; the content itself once for all for whom it is the same.
#[derive(Debug)]
pub(super) struct Cache {
    scopes: HashMap<Scope, Names>,
    contents: HashMap<u64, Vec<Weak<Content>>>,
    /// At how many contents those that nobody has are forgotten.
    sweep_at: usize,
    most: usize,
    len: usize,
}

impl Names {
    fn of(&mut self, kind: ResourceType) -> Option<&mut HashMap<Arc<str>, Entry>> {
        match kind {
            ResourceType::Workload => None,
            ResourceType::Host => Some(&mut self.hosts),
            ResourceType::Endpoints => Some(&mut self.endpoints),
            ResourceType::Address => Some(&mut self.addresses),
        }
    }

    fn all(&self) -> impl Iterator<Item = (ResourceType, &Arc<str>, &Entry)> {
        let hosts = self.hosts.iter().map(|(name, entry)| (ResourceType::Host, name, entry));
        let endpoints = self.endpoints.iter().map(|(name, entry)| (ResourceType::Endpoints, name, entry));
        let addresses = self.addresses.iter().map(|(name, entry)| (ResourceType::Address, name, entry));
        hosts.chain(endpoints).chain(addresses)
    }
}

impl Cache {
    pub(super) fn new(most: usize) -> Self {
        Self { scopes: HashMap::new(), contents: HashMap::new(), sweep_at: 0, most, len: 0 }
    }

    /// What is kept of a name, and whether it is of this store.
    pub(super) fn get(
        &mut self,
        scope: &Scope,
        kind: ResourceType,
        name: &str,
        generation: u64,
    ) -> Option<(Arc<Content>, bool)> {
        let entry = self.scopes.get_mut(scope)?.of(kind)?.get(name)?;
        Some((Arc::clone(&entry.content), entry.generation == generation))
    }

    /// Content that was made from the same, whoever asked for it.
    pub(super) fn shared(&self, inputs: &Inputs) -> Option<Arc<Content>> {
        let known = self.contents.get(&inputs.hash())?;
        known.iter().filter_map(Weak::upgrade).find(|content| content.inputs.same(inputs))
    }

    /// Keeps the content of a name.
    pub(super) fn put(
        &mut self,
        scope: Scope,
        kind: ResourceType,
        name: &str,
        generation: u64,
        content: &Arc<Content>,
    ) {
        let full = self.len >= self.most;
        let Some(names) = self.scopes.entry(scope).or_default().of(kind) else { return };
        let entry = Entry { generation, content: Arc::clone(content) };
        match names.get_mut(name) {
            // Somebody may have been quicker, with a newer store.
            Some(known) if known.generation > generation => return,
            Some(known) => *known = entry,
            None if full => return,
            None => {
                names.insert(name.into(), entry);
                self.len += 1;
            }
        }
        if content.too_large.is_none() {
            self.share(content);
        }
    }

    fn share(&mut self, content: &Arc<Content>) {
        let of_hash = self.contents.entry(content.inputs.hash()).or_default();
        if !of_hash.iter().any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(content))) {
            of_hash.push(Arc::downgrade(content));
        }
        if self.contents.len() > self.sweep_at {
            self.sweep();
        }
    }

    fn sweep(&mut self) {
        self.contents.retain(|_, contents| {
            contents.retain(|content| content.strong_count() > 0);
            !contents.is_empty()
        });
        self.sweep_at = (self.contents.len() * 2).max(1024);
    }

    /// Forgets a name behind which there is nothing any more.
    pub(super) fn remove(&mut self, scope: &Scope, kind: ResourceType, name: &str) {
        let names = self.scopes.get_mut(scope).and_then(|names| names.of(kind));
        if names.is_some_and(|names| names.remove(name).is_some()) {
            self.len -= 1;
        }
    }

    /// Forgets what nobody subscribes to, and whoever sees by a Sidecar that is gone.
    pub(super) fn tidy(&mut self, notifier: &Notifier, is_there: impl Fn(&ResourceRef) -> bool) {
        self.scopes.retain(|(_, sidecar), names| {
            for kind in [ResourceType::Host, ResourceType::Endpoints, ResourceType::Address] {
                if let Some(names) = names.of(kind) {
                    names.retain(|name, _| notifier.is_subscribed(kind, name));
                    names.shrink_to(names.len() * 2);
                }
            }
            sidecar.as_ref().is_none_or(&is_there) && names.all().next().is_some()
        });
        self.len = self.scopes.values().map(|names| names.all().count()).sum();
        self.sweep();
    }

    /// How many names are kept, and how many contents.
    pub(super) fn len(&self) -> (usize, usize) {
        let live = |contents: &Vec<Weak<Content>>| contents.iter().filter(|c| c.strong_count() > 0).count();
        (self.len, self.contents.values().map(live).sum())
    }

    /// What is too large to travel.
    pub(super) fn too_large(&self) -> impl Iterator<Item = (ResourceType, &Arc<str>, &Scope, &Arc<str>)> {
        let of = |(scope, names): (_, _)| {
            let names: &Names = names;
            names.all().filter_map(move |(kind, name, entry)| {
                Some((kind, name, scope, entry.content.too_large.as_ref()?))
            })
        };
        self.scopes.iter().flat_map(of)
    }
}
