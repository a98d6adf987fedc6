//! The whole cluster as one store, and what each proxy is answered of it.
//!
//! [`World`] takes what happens to the cluster's objects and keeps the [`Store`] of all of them. [`Answers`] says
//! what is behind a name for a proxy: what that proxy may see, and nothing else. When something happens, those
//! names are told to the [`Notifier`] whose answers may be others, after the new answers can be had.
//!
//! - A *Workload* is told to itself alone.
//! - A *Host* is what decides calls to it from the asker's namespace, under the asker's Sidecar. The name may be
//!   any that is called there: `reviews`, `reviews.default`, a name below a wildcard.
//! - *Endpoints* are those of the service that the name leads to.
//! - An *Address* leads to hosts: of services with that virtual address or a block around it, else of those with
//!   an endpoint there.
//!
//! Bytes are made when somebody asks, and kept for all who ask for the same; what nobody subscribes to any more
//! is let go of. What is too large to travel keeps its last good form, and a log line names it.
//!
//! ```
//! use mesh_controller::event::Event;
//! use mesh_controller::world::World;
//! use mesh_core::resource::{Resource, Service};
//! use mesh_core::store::StoreOptions;
//! use mesh_xds::ResourceType;
//! use mesh_xds::server::{Answer, Discovery, Peer, ServerLimits, Source};
//!
//! let mut world = World::new(StoreOptions::default());
//! let discovery = Discovery::new(world.source(), ServerLimits::default());
//! let service = Resource::new("default", "reviews", Service::default());
//! world.apply([Event::Put(service.into())], &discovery.notifier());
//!
//! let web = Peer { identity: "spiffe://cluster.local/ns/default/sa/web".parse().unwrap(), workload: None };
//! let host = world.source().answer(&web, ResourceType::Host, "reviews");
//! assert!(matches!(host, Answer::Found(_)));
//! assert_eq!(world.source().answer(&web, ResourceType::Host, "ratings"), Answer::Absent);
//! ```

mod answers;
mod cache;
mod coalesce;
mod content;
#[cfg(test)]
mod figures;
#[cfg(test)]
mod tests;

use mesh_core::live::{Live, Publisher};
use mesh_core::store::{Differences, Keeper, Store, StoreOptions};
use mesh_xds::ResourceType;
use mesh_xds::server::Notifier;

pub use answers::{Answers, Refused};
pub use cache::MAX_CACHED;
pub use coalesce::{Coalesce, CoalesceLimits};

use crate::event::Event;

/// How often, counted in changes, it is looked for answers that nobody subscribes to.
const TIDY_EVERY: u64 = 64;

/// The cluster: its only writer.
#[derive(Debug)]
pub struct World {
    keeper: Keeper,
    store: Publisher<Store>,
    answers: Answers,
    /// How many events made a difference that no store shows yet.
    taken: usize,
}

/// What came of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// Events that made a difference.
    pub changed: usize,
    /// Names that were told to those who subscribe to them.
    pub names: usize,
}

impl World {
    /// A cluster in which nothing is yet.
    pub fn new(options: StoreOptions) -> Self {
        Self::with_cache(options, MAX_CACHED)
    }

    fn with_cache(options: StoreOptions, most: usize) -> Self {
        let mut keeper = Keeper::new(options);
        let store = Publisher::new(keeper.store());
        let answers = Answers::new(store.live(), most);
        Self { keeper, store, answers, taken: 0 }
    }

    /// What proxies are answered.
    pub fn source(&self) -> Answers {
        self.answers.clone()
    }

    /// The store of the whole cluster.
    pub fn store(&self) -> Live<Store> {
        self.store.live()
    }

    /// Takes what has happened; it is in force with the next [`apply`](Self::apply). What is read at the start is
    /// taken as it comes: of most objects much less is kept than comes.
    pub fn take(&mut self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            self.taken += usize::from(match event {
                Event::Put(object) => self.keeper.put(object),
                Event::Gone(reference) => self.keeper.remove(&reference),
            });
        }
    }

    /// Takes what has happened, all at once, and tells those whom it concerns.
    ///
    /// Costs some milliseconds with ten thousand Pods; [`Coalesce`] gathers what happens at nearly the same time.
    pub fn apply(&mut self, events: impl IntoIterator<Item = Event>, notifier: &Notifier) -> Applied {
        self.take(events);
        let changed = std::mem::take(&mut self.taken);
        if changed == 0 {
            return Applied::default();
        }
        let before = self.store.load();
        let store = self.keeper.store();
        let differences = store.differences(&before);
        drop(before);
        let generation = store.generation();
        self.store.publish(store);
        let names = tell(&differences, notifier);
        if generation.is_multiple_of(TIDY_EVERY) {
            self.tidy(notifier);
        }
        Applied { changed, names }
    }

    /// Lets go of answers that nobody subscribes to. [`apply`](Self::apply) does so now and then; whoever has a
    /// clock does it when nothing happens for long.
    pub fn tidy(&self, notifier: &Notifier) {
        self.answers.tidy(notifier);
    }
}

/// Tells every name that is subscribed to and may be answered differently.
fn tell(differences: &Differences, notifier: &Notifier) -> usize {
    if differences.is_empty() {
        return 0;
    }
    let mut told = 0;
    for kind in ResourceType::ALL {
        for name in notifier.names(kind) {
            if concerns(differences, kind, &name) {
                notifier.changed(kind, &name);
                told += 1;
            }
        }
    }
    told
}

/// Whether what is behind a name may be something else than it was.
fn concerns(differences: &Differences, kind: ResourceType, name: &str) -> bool {
    match kind {
        ResourceType::Workload => {
            name.split_once('/').is_some_and(|(namespace, name)| differences.workload(namespace, name))
        }
        ResourceType::Host => differences.host(name),
        ResourceType::Endpoints => differences.endpoints(name),
        ResourceType::Address => name.parse().is_ok_and(|ip| differences.address(ip)),
    }
}
