//! The numbers behind one set of labels, and where sets are found again without hashing a label.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use mesh_core::cluster::Cluster;
use mesh_core::facts::{Direction, Facts, PeerIdentity, WorkloadLabels};

use super::labels::{Labels, Outcome, OwnWorkload};

/// Upper bounds of the histograms: milliseconds or bytes. Istio uses one list for both.
pub const BUCKETS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// How many overflown sets keep the answer's own labels (code, gRPC status, flags); past that these
/// overflow, too.
pub const MAX_OVERFLOW_SETS: usize = 256;

/// Places in the cache of request series: twice as many as there are label sets by default. A key that finds its
/// places taken by others costs a look into the table of label sets, nothing else.
pub(super) const REQUEST_SLOTS: usize = 4096;
/// The same for connection series, which are looked for once a connection.
pub(super) const CONNECTION_SLOTS: usize = 256;
/// In how many places a key is looked for, one after the other.
const PROBES: usize = 4;

/// A histogram of atomics: an observation takes no lock.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    counts: [AtomicU64; BUCKETS.len() + 1],
    /// In the unit of the raw value, whole numbers, so that it can be an atomic.
    sum: AtomicU64,
}

/// What an encoder needs of a [`Histogram`].
#[derive(Debug)]
pub(super) struct HistogramSnapshot {
    pub(super) raw_sum: u64,
    pub(super) count: u64,
    pub(super) buckets: Vec<(f64, u64)>,
}

impl Histogram {
    fn observe(&self, value: f64, raw: u64) {
        let place = BUCKETS.iter().position(|bound| value <= *bound).unwrap_or(BUCKETS.len());
        if let Some(count) = self.counts.get(place) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(raw, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self) -> HistogramSnapshot {
        let bounds = BUCKETS.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<_> =
            bounds.zip(self.counts.iter().map(|count| count.load(Ordering::Relaxed))).collect();
        HistogramSnapshot {
            raw_sum: self.sum.load(Ordering::Relaxed),
            count: buckets.iter().map(|(_, n)| n).sum(),
            buckets,
        }
    }
}

/// The numbers of requests with one set of labels.
#[derive(Debug)]
pub(super) struct HttpSeries {
    pub(super) labels: Arc<Labels>,
    pub(super) requests: AtomicU64,
    /// Raw values are microseconds, bounds milliseconds.
    pub(super) duration: Histogram,
    pub(super) request_bytes: Histogram,
    pub(super) response_bytes: Histogram,
}

/// The numbers of connections with one set of labels.
#[derive(Debug)]
pub(super) struct TcpSeries {
    pub(super) labels: Arc<Labels>,
    pub(super) opened: AtomicU64,
    pub(super) closed: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
}

impl HttpSeries {
    pub(super) fn record(&self, duration: Duration, request_bytes: u64, response_bytes: u64) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.duration.observe(duration.as_secs_f64() * 1e3, micros);
        self.request_bytes.observe(request_bytes as f64, request_bytes);
        self.response_bytes.observe(response_bytes as f64, response_bytes);
    }
}

impl From<Arc<Labels>> for HttpSeries {
    fn from(labels: Arc<Labels>) -> Self {
        Self {
            labels,
            requests: AtomicU64::new(0),
            duration: Histogram::default(),
            request_bytes: Histogram::default(),
            response_bytes: Histogram::default(),
        }
    }
}

impl From<Arc<Labels>> for TcpSeries {
    fn from(labels: Arc<Labels>) -> Self {
        let zero = || AtomicU64::new(0);
        Self { labels, opened: zero(), closed: zero(), sent: zero(), received: zero() }
    }
}

/// Everything that determines a set of labels, but for the peer: as addresses of shared values and one number.
///
/// An address stands for its value only while nobody else can get it: the entry that keeps a key keeps
/// weak references to the values, and an allocation is not given back before its last weak reference.
///
/// The peer is told by its identity, which its connections do not share: there may be thousands of one identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    direction: Direction,
    own: usize,
    peer: u64,
    labels: usize,
    cluster: usize,
    outcome: u64,
}

#[derive(Debug)]
struct Slot<S> {
    key: Key,
    peer: Option<Arc<PeerIdentity>>,
    series: Arc<S>,
    /// Whether records through here count as overflown.
    overflown: bool,
    pins: (Weak<OwnWorkload>, Option<Weak<WorkloadLabels>>, Option<Weak<Cluster>>),
}

struct Table<S> {
    sets: HashMap<Arc<Labels>, Arc<S>>,
    /// In the order of their making, so that two scrapes look alike.
    all: Vec<Arc<S>>,
    overflow_sets: usize,
}

/// The series of one family (or of families that share their label sets).
pub(super) struct Interned<S> {
    budget: usize,
    cache: Box<[ArcSwapOption<Slot<S>>]>,
    table: Mutex<Table<S>>,
}

/// The parties of `facts`, as far as their labels depend on shared values.
struct Parties<'a> {
    peer: Option<&'a Arc<PeerIdentity>>,
    labels: Option<&'a Arc<WorkloadLabels>>,
    cluster: Option<&'a Arc<Cluster>>,
    port: usize,
}

impl<'a> Parties<'a> {
    fn of(facts: &'a Facts) -> Self {
        let connection = facts.connection();
        match connection.direction() {
            Direction::Inbound => Self {
                peer: connection.peer(),
                labels: connection.peer_labels(),
                cluster: None,
                port: connection.workload_port().map_or(0, usize::from),
            },
            Direction::Outbound => {
                let upstream = facts.upstream();
                Self {
                    peer: upstream.and_then(|u| u.peer.as_ref()),
                    labels: upstream.map(|u| u.endpoint.labels()),
                    cluster: facts.route().and_then(|r| r.cluster.as_ref()),
                    port: 0,
                }
            }
        }
    }
}

fn address<T>(value: Option<&Arc<T>>) -> usize {
    value.map_or(0, |v| Arc::as_ptr(v).addr())
}

fn is_gone<T>(value: &Weak<T>) -> bool {
    value.strong_count() == 0
}

impl Key {
    /// Spreads keys over the cache: a multiplicative hash of a few words.
    fn mixed(&self) -> usize {
        let mix = |mixed: u64, word: u64| (mixed.rotate_left(23) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut mixed = mix(self.outcome, self.peer);
        for address in [self.own, self.labels, self.cluster] {
            // Addresses are aligned: their low bits say nothing.
            mixed = mix(mixed, address as u64 >> 4);
        }
        (mixed >> 40) as usize
    }
}

impl<S> Slot<S> {
    fn is_of(&self, key: &Key, peer: Option<&Arc<PeerIdentity>>) -> bool {
        self.key == *key
            && match (&self.peer, peer) {
                (None, None) => true,
                (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a.id() == b.id(),
                _ => false,
            }
    }

    /// Whether it can never be found again: something that its key names is gone.
    fn is_dead(&self) -> bool {
        let (own, labels, cluster) = &self.pins;
        is_gone(own) || labels.as_ref().is_some_and(is_gone) || cluster.as_ref().is_some_and(is_gone)
    }
}

impl<S: From<Arc<Labels>>> Interned<S> {
    pub(super) fn new(budget: usize, slots: usize) -> Self {
        Self {
            budget,
            cache: (0..slots.next_power_of_two()).map(|_| ArcSwapOption::empty()).collect(),
            table: Mutex::new(Table { sets: HashMap::new(), all: Vec::new(), overflow_sets: 0 }),
        }
    }

    /// Hands the series of a record to `with`, and says whether it is an overflown one.
    pub(super) fn find<R>(
        &self,
        own: &Arc<OwnWorkload>,
        facts: &Facts,
        outcome: Outcome,
        with: impl FnOnce(&Arc<S>) -> R,
    ) -> (R, bool) {
        let parties = Parties::of(facts);
        let key = Key {
            direction: facts.connection().direction(),
            own: address(Some(own)),
            peer: parties.peer.map_or(0, |peer| peer.digest()),
            labels: address(parties.labels),
            // What is inbound has no cluster, and a port that decides which service it is for.
            cluster: address(parties.cluster) | parties.port,
            outcome: outcome.packed(),
        };
        for place in self.places(&key) {
            let slot = place.load();
            let Some(slot) = &*slot else { break };
            if slot.is_of(&key, parties.peer) {
                return (with(&slot.series), slot.overflown);
            }
        }
        let (series, overflown) = self.intern(Labels::of(own, facts, outcome));
        let result = with(&series);
        let free = self.places(&key).find(|place| place.load().as_ref().is_none_or(|slot| slot.is_dead()));
        if let Some(place) = free.or_else(|| self.places(&key).next()) {
            let pins = (
                Arc::downgrade(own),
                parties.labels.map(Arc::downgrade),
                parties.cluster.map(Arc::downgrade),
            );
            let peer = parties.peer.cloned();
            place.store(Some(Arc::new(Slot { key, peer, series, overflown, pins })));
        }
        (result, overflown)
    }

    /// Where `key` may be, in the order in which it is looked for.
    fn places(&self, key: &Key) -> impl Iterator<Item = &ArcSwapOption<Slot<S>>> {
        let first = key.mixed();
        // There is a power of two of them.
        let last = self.cache.len().wrapping_sub(1);
        (first..first.saturating_add(PROBES)).filter_map(move |place| self.cache.get(place & last))
    }

    fn intern(&self, labels: Labels) -> (Arc<S>, bool) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = table.sets.get(&labels) {
            return (Arc::clone(series), false);
        }
        if table.sets.len() - table.overflow_sets < self.budget {
            return (table.make(labels), false);
        }
        let some = labels.clone().overflow(false);
        let labels = if table.sets.contains_key(&some) || table.overflow_sets < MAX_OVERFLOW_SETS {
            some
        } else {
            labels.overflow(true)
        };
        let before = table.sets.len();
        let series = table.make(labels);
        table.overflow_sets += table.sets.len() - before;
        (series, true)
    }

    /// Every series there is, oldest first.
    pub(super) fn all(&self) -> Vec<Arc<S>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).all.clone()
    }
}

impl<S: From<Arc<Labels>>> Table<S> {
    fn make(&mut self, labels: Labels) -> Arc<S> {
        let labels = Arc::new(labels);
        match self.sets.entry(Arc::clone(&labels)) {
            Entry::Occupied(found) => Arc::clone(found.get()),
            Entry::Vacant(place) => {
                let series = Arc::new(S::from(labels));
                self.all.push(Arc::clone(&series));
                Arc::clone(place.insert(series))
            }
        }
    }
}

impl<S> fmt::Debug for Interned<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interned").field("budget", &self.budget).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_core::facts::Connection;
    use mesh_core::identity::SpiffeId;

    /// A request of `account`, on a connection of its own.
    fn call(account: usize) -> Facts {
        let id: SpiffeId = format!("spiffe://cluster.local/ns/default/sa/{account}").parse().unwrap();
        Facts::new(Connection::builder().peer(PeerIdentity::new(id)).build())
    }

    fn entries(all: &Interned<HttpSeries>) -> Vec<Arc<Slot<HttpSeries>>> {
        all.cache.iter().filter_map(ArcSwapOption::load_full).collect()
    }

    /// However many connections an identity has, the table is asked once for each of its series.
    #[test]
    fn connections_of_one_identity_share_what_was_found() {
        let all = Interned::<HttpSeries>::new(10, REQUEST_SLOTS);
        let own = Arc::new(OwnWorkload::default());
        for n in 0..3 {
            all.find(&own, &call(n), Outcome::http(200), |_| ());
        }
        let first = entries(&all);
        assert_eq!(first.len(), 3);
        for n in 0..5_000 {
            let (peer, _) =
                all.find(&own, &call(n % 3), Outcome::http(200), |s| s.labels.get("source_principal"));
            assert_eq!(peer, Some(format!("spiffe://cluster.local/ns/default/sa/{}", n % 3)));
        }
        let last = entries(&all);
        assert!(first.len() == last.len() && first.iter().zip(&last).all(|(a, b)| Arc::ptr_eq(a, b)));
    }

    /// More identities than there are places: each still gets its own series.
    #[test]
    fn a_full_cache_loses_nothing() {
        let all = Interned::<HttpSeries>::new(100, 8);
        let own = Arc::new(OwnWorkload::default());
        for round in 1..=2 {
            for n in 0..100 {
                let (count, overflown) = all.find(&own, &call(n), Outcome::http(200), |series| {
                    series.requests.fetch_add(1, Ordering::Relaxed) + 1
                });
                assert_eq!((count, overflown), (round, false), "{n}");
            }
        }
        assert_eq!(all.all().len(), 100);
        assert!(entries(&all).len() <= 8);
    }

    /// What a new configuration has made useless gives way.
    #[test]
    fn places_of_what_is_gone_are_used_again() {
        let all = Interned::<HttpSeries>::new(100, PROBES);
        for _ in 0..3 {
            let own = Arc::new(OwnWorkload::default());
            for n in 0..PROBES {
                all.find(&own, &call(n), Outcome::http(200), |_| ());
            }
            assert_eq!(entries(&all).iter().filter(|slot| !slot.is_dead()).count(), PROBES);
        }
    }

    /// A hash may be the same for two identities, and then they are told apart by their names.
    #[test]
    fn an_identity_is_compared_by_its_text() {
        let (a, b) = (call(1), call(2));
        let key = Key { direction: Direction::Inbound, own: 0, peer: 7, labels: 0, cluster: 0, outcome: 0 };
        let series =
            Arc::new(HttpSeries::from(Arc::new(Labels::of(&OwnWorkload::default(), &a, Outcome::http(200)))));
        let pins = (Weak::new(), None, None);
        let slot = Slot { key, peer: a.connection().peer().cloned(), series, overflown: false, pins };
        assert!(slot.is_of(&key, a.connection().peer()) && slot.is_of(&key, call(1).connection().peer()));
        assert!(!slot.is_of(&key, b.connection().peer()) && !slot.is_of(&key, None));
    }
}
