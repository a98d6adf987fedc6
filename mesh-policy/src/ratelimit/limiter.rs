//! The counts, one per key.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use governor::clock::{Clock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::time::Instant;

/// How many keys have a limit of their own, unless the layer is told another number.
pub const MAX_KEYS: usize = 10_000;

/// So many requests in a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    requests: NonZeroU32,
    per: Duration,
    burst: NonZeroU32,
}

/// Why a rate is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidRate(&'static str);

/// Tells keys apart: two independent hashes with seeds of this process, so that nobody can aim for a
/// collision and a key has the same size whatever it is made of.
pub(super) type Id = (u64, u64);

type Bucket = RateLimiter<NotKeyed, InMemoryState, TokioClock, NoOpMiddleware<Nanos>>;

pub(super) struct Limiter {
    rate: Rate,
    quota: Quota,
    clock: TokioClock,
    seeds: (RandomState, RandomState),
    /// For requests without a key of their own.
    common: Bucket,
    /// For keys that found no place.
    overflow: Bucket,
    buckets: RwLock<Buckets>,
    max_keys: usize,
    refusals: AtomicU64,
    overflows: AtomicU64,
}

#[derive(Default)]
struct Buckets {
    map: HashMap<Id, Arc<Entry>>,
    /// When idle keys were last looked for.
    swept: Nanos,
}

struct Entry {
    bucket: Bucket,
    /// When it was last asked.
    last: AtomicU64,
}

/// Tokio's clock, which tests can hold.
#[derive(Debug, Clone, Copy)]
struct TokioClock(Instant);

impl Clock for TokioClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.0.elapsed().into()
    }
}

impl Rate {
    /// `requests` in each `per`, all of which may come at once.
    ///
    /// # Errors
    /// When there are none, or more than one in a nanosecond.
    pub fn new(requests: u32, per: Duration) -> Result<Self, InvalidRate> {
        let requests =
            NonZeroU32::new(requests).ok_or(InvalidRate("a rate of no requests is no limit; deny them"))?;
        if (per / requests.get()).is_zero() {
            return Err(InvalidRate("the period is too short for so many requests"));
        }
        Ok(Self { requests, per, burst: requests })
    }

    /// How many may come at once. Default: as many as in a whole period.
    ///
    /// # Errors
    /// When none may.
    pub fn burst(mut self, burst: u32) -> Result<Self, InvalidRate> {
        self.burst = NonZeroU32::new(burst).ok_or(InvalidRate("a burst of no requests would refuse all"))?;
        Ok(self)
    }

    fn quota(self) -> Quota {
        // `new` has refused a period that rounds down to nothing; the other arm is never taken.
        Quota::with_period(self.per / self.requests.get())
            .unwrap_or(Quota::per_second(self.requests))
            .allow_burst(self.burst)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} requests in {:?}", self.requests, self.per)
    }
}

impl Limiter {
    pub(super) fn new(rate: Rate, max_keys: usize) -> Self {
        let (quota, clock) = (rate.quota(), TokioClock(Instant::now()));
        Self {
            rate,
            quota,
            clock,
            seeds: (RandomState::new(), RandomState::new()),
            common: Bucket::direct_with_clock(quota, clock),
            overflow: Bucket::direct_with_clock(quota, clock),
            buckets: RwLock::default(),
            max_keys,
            refusals: AtomicU64::new(0),
            overflows: AtomicU64::new(0),
        }
    }

    pub(super) fn rate(&self) -> Rate {
        self.rate
    }

    pub(super) fn refusals(&self) -> u64 {
        self.refusals.load(Relaxed)
    }

    pub(super) fn overflows(&self) -> u64 {
        self.overflows.load(Relaxed)
    }

    pub(super) fn keys(&self) -> usize {
        self.buckets.read().unwrap_or_else(PoisonError::into_inner).map.len()
    }

    pub(super) fn id<'a>(&self, parts: impl IntoIterator<Item = &'a [u8]>) -> Id {
        let (mut a, mut b) = (self.seeds.0.build_hasher(), self.seeds.1.build_hasher());
        for part in parts {
            for hasher in [&mut a, &mut b] {
                // With its length, so that "ab" and "a", "b" are told apart.
                hasher.write_usize(part.len());
                hasher.write(part);
            }
        }
        (a.finish(), b.finish())
    }

    /// # Errors
    /// How long to wait for the next request to pass.
    pub(super) fn check(&self, id: Option<Id>) -> Result<(), Duration> {
        let now = self.clock.now();
        let ask = |bucket: &Bucket| bucket.check().map_err(|not_until| not_until.wait_time_from(now));
        let result = match id {
            None => ask(&self.common),
            Some(id) => match self.entry(id, now) {
                Some(entry) => {
                    entry.last.store(now.as_u64(), Relaxed);
                    ask(&entry.bucket)
                }
                None => {
                    if self.overflows.fetch_add(1, Relaxed) == 0 {
                        tracing::warn!(
                            max_keys = self.max_keys,
                            "more callers than the rate limit can tell apart; further ones share one limit"
                        );
                    }
                    ask(&self.overflow)
                }
            },
        };
        if result.is_err() {
            self.refusals.fetch_add(1, Relaxed);
        }
        result
    }

    /// The bucket of `id`, made where there is room. Known keys take a shared lock only.
    fn entry(&self, id: Id, now: Nanos) -> Option<Arc<Entry>> {
        {
            let buckets = self.buckets.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(entry) = buckets.map.get(&id) {
                return Some(Arc::clone(entry));
            }
            if buckets.map.len() >= self.max_keys && !self.may_sweep(&buckets, now) {
                return None;
            }
        }
        let mut buckets = self.buckets.write().unwrap_or_else(PoisonError::into_inner);
        if buckets.map.len() >= self.max_keys && self.may_sweep(&buckets, now) {
            buckets.swept = now;
            let idle = Nanos::from(self.quota.burst_size_replenished_in());
            // A bucket that is full again is the same as a new one.
            buckets.map.retain(|_, e| now.duration_since(Nanos::from(e.last.load(Relaxed))) < idle);
        }
        if !buckets.map.contains_key(&id) && buckets.map.len() >= self.max_keys {
            return None;
        }
        let fresh = || {
            let bucket = Bucket::direct_with_clock(self.quota, self.clock);
            Arc::new(Entry { bucket, last: AtomicU64::new(now.as_u64()) })
        };
        Some(Arc::clone(buckets.map.entry(id).or_insert_with(fresh)))
    }

    /// Looking for idle keys costs a walk over all: at most once in the time in which one becomes idle.
    fn may_sweep(&self, buckets: &Buckets, now: Nanos) -> bool {
        now.duration_since(buckets.swept) >= Nanos::from(self.quota.burst_size_replenished_in())
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter")
            .field("rate", &self.rate)
            .field("keys", &self.keys())
            .field("max_keys", &self.max_keys)
            .finish_non_exhaustive()
    }
}
