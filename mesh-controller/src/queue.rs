//! What is to be done, each thing once, and later where it failed.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// The first wait after something failed; it doubles.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// How often it doubles: up to about a minute.
const MAX_DOUBLINGS: u32 = 6;

/// Things to do. Holds each once, so that it is as large as the set of them.
#[derive(Debug)]
pub(crate) struct Queue<K> {
    due: HashMap<K, Due>,
}

#[derive(Debug, Clone, Copy)]
struct Due {
    at: Instant,
    failures: u32,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self { due: HashMap::new() }
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// To be done now, whatever failed before.
    pub(crate) fn add(&mut self, what: K, now: Instant) {
        let due = self.due.entry(what).or_insert(Due { at: now, failures: 0 });
        due.at = due.at.min(now);
    }

    /// Failed for the `failures`th time: to be done later, unless it is to be done sooner anyway.
    pub(crate) fn again(&mut self, what: K, failures: u32, now: Instant) {
        let wait = FIRST_WAIT * 2_u32.pow(failures.saturating_sub(1).min(MAX_DOUBLINGS));
        self.due.entry(what).or_insert(Due { at: now + wait, failures });
    }

    /// Not to be done any more.
    pub(crate) fn remove(&mut self, what: &K) {
        self.due.remove(what);
    }

    /// What is to be done at `now` and how often it has failed; else when there is something to do.
    pub(crate) fn take(&mut self, now: Instant) -> Result<(K, u32), Option<Instant>> {
        let Some((what, due)) = self.due.iter().min_by_key(|(_, due)| due.at) else { return Err(None) };
        if due.at > now {
            return Err(Some(due.at));
        }
        let (what, failures) = (what.clone(), due.failures);
        self.due.remove(&what);
        Ok((what, failures))
    }
}
