//! What is counted of the watches, by kind.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: &'static str,
}

/// What is counted of the watches, each by kind. Cheap to clone; all clones count together.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    connected: Family<OfKind, Gauge>,
    objects: Family<OfKind, Gauge>,
    events: Family<OfKind, Counter<u64, AtomicU64>>,
    lists: Family<OfKind, Counter<u64, AtomicU64>>,
    failures: Family<OfKind, Counter<u64, AtomicU64>>,
}

impl Metrics {
    /// Puts them into a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("watch_connected", "Whether the watch of the kind stands", self.connected.clone());
        registry.register("objects", "Objects of the kind that are in force", self.objects.clone());
        registry.register("events", "Changes of the kind that counted", self.events.clone());
        registry.register("lists", "Lists of the kind that were begun", self.lists.clone());
        registry.register(
            "watch_failures",
            "Times that a list or a watch of the kind failed",
            self.failures.clone(),
        );
    }

    /// Whether the watch of a kind, such as `Pod`, stands at the moment.
    pub fn is_connected(&self, kind: &'static str) -> bool {
        self.connected.get_or_create(&OfKind { kind }).get() == 1
    }

    pub(super) fn connected(&self, kind: &'static str, connected: bool) {
        self.connected.get_or_create(&OfKind { kind }).set(i64::from(connected));
    }

    pub(super) fn sent(&self, kind: &'static str, events: usize, objects: usize) {
        let kind = OfKind { kind };
        self.events.get_or_create(&kind).inc_by(u64::try_from(events).unwrap_or(u64::MAX));
        self.objects.get_or_create(&kind).set(i64::try_from(objects).unwrap_or(i64::MAX));
    }

    pub(super) fn listed(&self, kind: &'static str) {
        self.lists.get_or_create(&OfKind { kind }).inc();
    }

    pub(super) fn troubled(&self, kind: &'static str) {
        self.failures.get_or_create(&OfKind { kind }).inc();
    }
}
