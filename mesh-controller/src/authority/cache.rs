//! What was learnt of tokens, by their hash. Bounded, and pure: the times are arguments.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::token::{Refused, Reviewed};

/// How long what was learnt counts, and of how many tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheLimits {
    /// Tokens. Default: 16,384. When there are more, the quarter that was learnt first is forgotten.
    pub entries: usize,
    /// How long a good token is not asked about again. Default: 60 s: as long a deleted pod's token counts.
    pub fresh: Duration,
    /// How long a refused token is not asked about again. Default: 5 s.
    pub refused: Duration,
    /// How long a good token counts when Kubernetes cannot be asked; never longer than it is valid.
    /// Default: 12 hours.
    pub stale: Duration,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self {
            entries: 16_384,
            fresh: Duration::from_secs(60),
            refused: Duration::from_secs(5),
            stale: Duration::from_secs(12 * 3600),
        }
    }
}

/// A token, without the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Hash([u8; 32]);

impl Hash {
    pub(super) fn of(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }
}

#[derive(Debug, Clone)]
struct Entry {
    learnt: Instant,
    said: Result<Reviewed, Refused>,
}

#[derive(Debug)]
pub(super) struct Cache {
    limits: CacheLimits,
    entries: HashMap<Hash, Entry>,
}

impl Cache {
    pub(super) fn new(limits: CacheLimits) -> Self {
        Self { limits, entries: HashMap::new() }
    }

    /// What was said lately: it need not be asked again.
    pub(super) fn fresh(
        &self,
        token: Hash,
        now: Instant,
        time: SystemTime,
    ) -> Option<Result<Reviewed, Refused>> {
        let entry = self.entries.get(&token)?;
        let age = now.saturating_duration_since(entry.learnt);
        match &entry.said {
            Ok(reviewed) => {
                (age < self.limits.fresh && time < reviewed.expires).then(|| Ok(reviewed.clone()))
            }
            Err(refused) => (age < self.limits.refused).then(|| Err(refused.clone())),
        }
    }

    /// What counts when nobody can be asked: a token that was good and has not expired.
    pub(super) fn stale(&self, token: Hash, now: Instant, time: SystemTime) -> Option<Reviewed> {
        let entry = self.entries.get(&token)?;
        let reviewed = entry.said.as_ref().ok()?;
        let counts =
            now.saturating_duration_since(entry.learnt) < self.limits.stale && time < reviewed.expires;
        counts.then(|| reviewed.clone())
    }

    pub(super) fn learn(
        &mut self,
        token: Hash,
        said: Result<Reviewed, Refused>,
        now: Instant,
        time: SystemTime,
    ) {
        if self.entries.len() >= self.limits.entries && !self.entries.contains_key(&token) {
            self.make_room(now, time);
        }
        self.entries.insert(token, Entry { learnt: now, said });
    }

    fn make_room(&mut self, now: Instant, time: SystemTime) {
        let CacheLimits { refused, stale, entries, .. } = self.limits;
        self.entries.retain(|_, entry| {
            let age = now.saturating_duration_since(entry.learnt);
            entry.said.as_ref().map_or(age < refused, |good| age < stale && time < good.expires)
        });
        if self.entries.len() >= entries {
            let mut ages: Vec<Instant> = self.entries.values().map(|entry| entry.learnt).collect();
            ages.sort_unstable();
            let oldest = ages.get(ages.len() / 4).copied();
            self.entries.retain(|_, entry| oldest.is_none_or(|oldest| entry.learnt > oldest));
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::ca::Holder;
    use crate::authority::token::Reason;

    fn good(expires: SystemTime) -> Reviewed {
        let id = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
        Reviewed { holder: Holder { id, pod: None }, expires }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_learnt_counts_for_its_time() {
        let limits = CacheLimits::default();
        let mut cache = Cache::new(limits.clone());
        let (now, time) = (Instant::now(), SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000));
        let (a, b) = (Hash::of("a"), Hash::of("b"));
        let second = Duration::from_secs(1);
        let expires = time + Duration::from_secs(3600);
        cache.learn(a, Ok(good(expires)), now, time);
        cache.learn(b, Err(Refused::new(Reason::Expired, "")), now, time);

        assert!(cache.fresh(a, now + limits.fresh - second, time).is_some());
        assert!(cache.fresh(a, now + limits.fresh, time).is_none());
        assert!(cache.fresh(a, now, expires).is_none(), "it has expired");
        assert!(cache.fresh(b, now + limits.refused - second, time).is_some());
        assert!(cache.fresh(b, now + limits.refused, time).is_none());

        assert!(cache.stale(a, now + limits.fresh, expires - second).is_some());
        assert!(cache.stale(a, now + limits.fresh, expires).is_none(), "no longer than it is valid");
        cache.learn(a, Ok(good(time + limits.stale * 2)), now, time);
        assert!(cache.stale(a, now + limits.stale - second, time).is_some());
        assert!(cache.stale(a, now + limits.stale, time).is_none(), "no longer than the limit");
        assert!(cache.stale(b, now, time).is_none(), "a refused token was never good");
        assert!(cache.stale(Hash::of("c"), now, time).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_bounded_and_forgets_the_oldest() {
        let mut cache = Cache::new(CacheLimits { entries: 100, ..CacheLimits::default() });
        let (start, time) = (Instant::now(), SystemTime::UNIX_EPOCH);
        let at = |n: u64| start + Duration::from_millis(n);
        for n in 0..1000_u64 {
            let token = Hash::of(&n.to_string());
            cache.learn(token, Ok(good(time + Duration::from_secs(60))), at(n), time);
            assert!(cache.len() <= 100);
            assert!(cache.stale(token, at(n), time).is_some());
        }
        assert!(cache.len() > 50);
        assert!(cache.stale(Hash::of("990"), at(1000), time).is_some());
        assert!(cache.stale(Hash::of("0"), at(1000), time).is_none());
    }
}
