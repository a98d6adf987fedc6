//! Who subscribes to what, so that a change wakes those alone whom it concerns.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::session::Names;
use crate::ResourceType;

/// What happened to a stream's subscriptions since it last looked: names, never content, each once.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    news: Mutex<News>,
    wake: Notify,
}

#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) all: HashSet<ResourceType>,
    /// Bounded by the stream's subscriptions: others are not told of.
    pub(super) names: HashSet<(ResourceType, Arc<str>)>,
}

/// Tells streams what has changed; made by [`Discovery::notifier`](super::Discovery::notifier). Cheap to
/// clone.
///
/// ```
/// use tower_mesh_xds::ResourceType;
/// use tower_mesh_xds::server::{Answer, Discovery, Peer, ServerLimits};
///
/// let nothing = |_: &Peer, _: ResourceType, _: &str| Answer::Absent;
/// let notifier = Discovery::new(nothing, ServerLimits::default()).notifier();
/// // Nobody asks for it, so nobody is told and nothing need be encoded.
/// assert!(!notifier.is_subscribed(ResourceType::Host, "reviews.default.svc.cluster.local"));
/// assert_eq!(notifier.changed(ResourceType::Host, "reviews.default.svc.cluster.local"), 0);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Notifier {
    index: Arc<Index>,
}

/// The numbers of the streams that subscribe to a name, in order. Streams are numbered as they come, so a new
/// one is put at the end.
type Subscribers = HashMap<Arc<str>, Vec<u64>>;

#[derive(Debug, Default)]
struct Index {
    workload: Mutex<Subscribers>,
    host: Mutex<Subscribers>,
    endpoints: Mutex<Subscribers>,
    address: Mutex<Subscribers>,
    /// Locked after one of the others, never before.
    mailboxes: Mutex<HashMap<u64, Arc<Mailbox>>>,
}

/// A stream's entries in the index.
#[derive(Debug)]
pub(super) struct Entries {
    stream: u64,
    notifier: Notifier,
    pub(super) mailbox: Arc<Mailbox>,
}

impl Mailbox {
    /// Returns when there is news; at once when there was news since [`take`](Self::take).
    pub(super) async fn news(&self) {
        self.wake.notified().await;
    }

    pub(super) fn take(&self) -> News {
        mem::take(&mut *lock(&self.news))
    }

    fn put(&self, kind: ResourceType, name: &Arc<str>) {
        lock(&self.news).names.insert((kind, Arc::clone(name)));
        self.wake.notify_one();
    }
}

impl Notifier {
    /// The content behind a name may have changed, for some who ask or for all. Says how many are told.
    pub fn changed(&self, kind: ResourceType, name: &str) -> usize {
        let subscribers = lock(self.index.of(kind));
        let Some((name, told)) = subscribers.get_key_value(name) else { return 0 };
        let mailboxes = lock(&self.index.mailboxes);
        told.iter().filter_map(|stream| mailboxes.get(stream)).for_each(|mailbox| mailbox.put(kind, name));
        told.len()
    }

    /// Every content of a type may have changed.
    pub fn all_changed(&self, kind: ResourceType) {
        let subscribers = lock(self.index.of(kind));
        let told: HashSet<&u64> = subscribers.values().flatten().collect();
        let mailboxes = lock(&self.index.mailboxes);
        for mailbox in told.into_iter().filter_map(|stream| mailboxes.get(stream)) {
            lock(&mailbox.news).all.insert(kind);
            mailbox.wake.notify_one();
        }
    }

    /// Whether anybody subscribes to a name.
    pub fn is_subscribed(&self, kind: ResourceType, name: &str) -> bool {
        lock(self.index.of(kind)).contains_key(name)
    }

    /// Every name of a type that somebody subscribes to.
    pub fn names(&self, kind: ResourceType) -> Vec<Arc<str>> {
        lock(self.index.of(kind)).keys().map(Arc::clone).collect()
    }

    fn remove(&self, kind: ResourceType, name: &str, stream: u64) {
        let mut subscribers = lock(self.index.of(kind));
        if let Some(of) = subscribers.get_mut(name) {
            if let Ok(place) = of.binary_search(&stream) {
                of.remove(place);
            }
            if of.is_empty() {
                subscribers.remove(name);
            }
        }
    }
}

impl Index {
    fn of(&self, kind: ResourceType) -> &Mutex<Subscribers> {
        match kind {
            ResourceType::Workload => &self.workload,
            ResourceType::Host => &self.host,
            ResourceType::Endpoints => &self.endpoints,
            ResourceType::Address => &self.address,
        }
    }
}

impl Names for Entries {
    fn subscribed(&mut self, kind: ResourceType, name: &str) -> Arc<str> {
        let mut subscribers = lock(self.notifier.index.of(kind));
        let name: Arc<str> =
            subscribers.get_key_value(name).map_or_else(|| name.into(), |(shared, _)| Arc::clone(shared));
        let of = subscribers.entry(Arc::clone(&name)).or_default();
        if let Err(place) = of.binary_search(&self.stream) {
            of.insert(place, self.stream);
        }
        name
    }

    fn unsubscribed(&mut self, kind: ResourceType, name: &str) {
        self.notifier.remove(kind, name, self.stream);
    }
}

impl Entries {
    /// A new stream, by its number.
    pub(super) fn new(stream: u64, notifier: Notifier) -> Self {
        let mailbox = Arc::<Mailbox>::default();
        lock(&notifier.index.mailboxes).insert(stream, Arc::clone(&mailbox));
        Self { stream, notifier, mailbox }
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        lock(&self.notifier.index.mailboxes).remove(&self.stream);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ResourceType::{Endpoints, Host};

    #[tokio::test]
    async fn those_alone_are_told_whom_it_concerns_and_each_name_once() {
        let notifier = Notifier::default();
        let entries = |stream| Entries::new(stream, notifier.clone());
        let (mut a, mut b) = (entries(1), entries(2));
        let shared = a.subscribed(Host, "x");
        assert!(Arc::ptr_eq(&shared, &b.subscribed(Host, "x")), "the text is kept once");
        a.subscribed(Endpoints, "x");

        for _ in 0..1000 {
            assert_eq!(notifier.changed(Endpoints, "x"), 1);
        }
        a.mailbox.news().await;
        assert_eq!(a.mailbox.take().names.len(), 1);
        assert!(b.mailbox.take().names.is_empty());

        notifier.all_changed(Host);
        assert!(a.mailbox.take().all.contains(&Host) && b.mailbox.take().all.contains(&Host));

        a.unsubscribed(Host, "x");
        assert_eq!(notifier.changed(Host, "x"), 1);
        b.unsubscribed(Host, "x");
        assert!(!notifier.is_subscribed(Host, "x"));
        assert_eq!(notifier.names(Host).len() + notifier.names(Endpoints).len(), 1);
    }
}
