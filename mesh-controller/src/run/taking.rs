//! Takes what happens in the cluster into the world.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use mesh_core::resource::Object;
use mesh_xds::server::Notifier;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

use crate::event::Event;
use crate::serve::webhooks::KnownLabels;
use crate::world::{Coalesce, CoalesceLimits, World};

/// How often it is looked for answers that nobody subscribes to any more.
const TIDY: Duration = Duration::from_secs(60);

/// The labels of the namespaces that are known. Cheap to clone; clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Labels(Arc<RwLock<HashMap<String, mesh_core::resource::Labels>>>);

impl Labels {
    fn see(&self, event: &Event) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Put(Object::Namespace(namespace)) => {
                known.insert(namespace.meta.name.clone(), namespace.meta.labels.clone());
            }
            Event::Gone(reference) if reference.kind() == "Namespace" => {
                known.remove(reference.name());
            }
            _ => {}
        }
    }

    /// As the webhooks ask for them.
    pub(super) fn known(&self) -> KnownLabels {
        let this = self.clone();
        Arc::new(move |namespace| {
            this.0.read().unwrap_or_else(PoisonError::into_inner).get(namespace).cloned()
        })
    }
}

/// The world, and who is told of its changes.
#[derive(Debug)]
pub(super) struct Taking {
    world: World,
    notifier: Notifier,
    labels: Labels,
}

impl Taking {
    pub(super) fn new(world: World, notifier: Notifier, labels: Labels) -> Self {
        Self { world, notifier, labels }
    }

    fn take(&mut self, events: Vec<Event>) {
        events.iter().for_each(|event| self.labels.see(event));
        tokio::task::block_in_place(|| self.world.take(events));
    }

    fn apply(&mut self, events: Vec<Event>) {
        events.iter().for_each(|event| self.labels.see(event));
        // Some milliseconds, and more at first: others go on meanwhile.
        let applied = tokio::task::block_in_place(|| self.world.apply(events, &self.notifier));
        tracing::debug!(changed = applied.changed, names = applied.names, "the world has changed");
    }

    /// Takes events until no more come. `synced` turns true when the world holds all that was there when
    /// `read` turned true.
    pub(super) async fn run(
        mut self,
        mut events: mpsc::Receiver<Vec<Event>>,
        mut read: watch::Receiver<bool>,
        synced: watch::Sender<bool>,
    ) {
        // One store of all that is there, rather than one for each part of it.
        loop {
            tokio::select! {
                biased;
                batch = events.recv() => match batch {
                    Some(batch) => self.take(batch),
                    None => return,
                },
                read = read.wait_for(|read| *read) => match read {
                    Ok(_) => break,
                    Err(_) => return,
                },
            }
        }
        // What came at the same moment.
        while let Ok(batch) = events.try_recv() {
            self.take(batch);
        }
        self.apply(Vec::new());
        synced.send_replace(true);

        let mut waiting = Coalesce::new(CoalesceLimits::default());
        let mut tidy = interval(TIDY);
        tidy.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                batch = waiting.next(&mut events) => match batch {
                    Some(batch) => self.apply(batch),
                    None => return,
                },
                _ = tidy.tick() => self.world.tidy(&self.notifier),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::resource::{Namespace, Resource, Service};
    use mesh_core::store::StoreOptions;
    use mesh_xds::server::{Discovery, ServerLimits};

    use super::*;

    fn service(name: &str) -> Event {
        Event::Put(Resource::new("shop", name, Service::default()).into())
    }

    fn namespace(label: &str) -> Resource<Namespace> {
        let mut namespace = Resource::new("", "shop", Namespace::default());
        namespace.meta.labels.insert("istio-injection".into(), label.into());
        namespace
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn the_world_is_whole_before_anybody_is_answered() {
        let world = World::new(StoreOptions::default());
        let store = world.store();
        let discovery = Discovery::new(world.source(), ServerLimits::default());
        let labels = Labels::default();
        let known = labels.known();
        let (send, events) = mpsc::channel(4);
        let (read, all_read) = watch::channel(false);
        let (synced, mut whole) = watch::channel(false);
        let taking = Taking::new(world, discovery.notifier(), labels);
        let task = tokio::spawn(taking.run(events, all_read, synced));

        send.send(vec![service("a"), Event::Put(namespace("enabled").into())]).await.unwrap();
        send.send(vec![service("b")]).await.unwrap();
        read.send_replace(true);
        whole.wait_for(|whole| *whole).await.unwrap();
        let options = StoreOptions::default();
        let labels = mesh_core::resource::Labels::new();
        let caller = mesh_core::store::Workload::detached(&options, "shop", "web", "web", labels);
        assert!(store.load().outbound(&caller, "a").is_some());
        assert_eq!(known("shop").unwrap()["istio-injection"], "enabled");
        assert!(known("other").is_none());

        send.send(vec![Event::Gone(namespace("").reference())]).await.unwrap();
        drop(send);
        task.await.unwrap();
        assert!(known("shop").is_none());
    }
}
