//! Who leads: decided from what is read of the Lease and the local clock, nothing else.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::LeaseSpec;
use tokio::time::Instant;

/// The longest lease that is respected: a record that says more would keep everybody from leading.
pub const MAX_LEASE: Duration = Duration::from_secs(60);

/// How long things take. A leader that is killed is followed after `lease` and one look at most, so that with the
/// defaults another writes within 15 seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long others wait before they take a Lease that does not change. Whole seconds.
    pub lease: Duration,
    /// How long a leader that cannot renew still counts itself leader; less than `lease`.
    pub renew: Duration,
    /// How often the Lease is renewed, or looked at.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { lease: Duration::from_secs(10), renew: Duration::from_secs(7), retry: Duration::from_secs(2) }
    }
}

/// What is read of a Lease. Its times are others' clocks: they tell one record from another, and nothing else.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// Who holds it; empty for nobody.
    pub holder: String,
    /// How long it lasts without a change, in seconds.
    pub seconds: i32,
    /// When it was last renewed, as its holder wrote it.
    pub renewed: String,
    /// How often it has changed hands.
    pub transitions: i32,
}

impl From<&LeaseSpec> for Record {
    fn from(spec: &LeaseSpec) -> Self {
        Self {
            holder: spec.holder_identity.clone().unwrap_or_default(),
            seconds: spec.lease_duration_seconds.unwrap_or_default(),
            renewed: spec.renew_time.as_ref().map(|t| t.0.to_string()).unwrap_or_default(),
            transitions: spec.lease_transitions.unwrap_or_default(),
        }
    }
}

impl Record {
    fn lasts(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.seconds).unwrap_or(0)).min(MAX_LEASE)
    }
}

/// What to do about a Lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Write it.
    Write(Claim),
    /// Look again after this time.
    Wait(Duration),
}

/// What to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// How long it lasts, in seconds.
    pub seconds: i32,
    /// How often it has changed hands.
    pub transitions: i32,
    /// Whether it changes hands now.
    pub new: bool,
}

/// One candidate's view.
#[derive(Debug, Clone)]
pub struct Election {
    me: String,
    timing: Timing,
    /// The record that was last seen, and when it was first seen so.
    seen: Option<(Record, Instant)>,
    /// When the last renewal that succeeded began.
    renewed: Option<Instant>,
}

impl Election {
    /// A candidate that has seen nothing yet.
    pub fn new(identity: &str, timing: Timing) -> Self {
        Self { me: identity.to_owned(), timing, seen: None, renewed: None }
    }

    /// What follows from the Lease as it is; `None` where there is none.
    pub fn look(&mut self, record: Option<&Record>, now: Instant) -> Step {
        let seconds = i32::try_from(self.timing.lease.as_secs()).unwrap_or(i32::MAX);
        let Some(record) = record else {
            self.renewed = None;
            return Step::Write(Claim { seconds, transitions: 0, new: true });
        };
        if self.seen.as_ref().is_none_or(|(seen, _)| seen != record) {
            self.seen = Some((record.clone(), now));
        }
        if record.holder == self.me {
            return Step::Write(Claim { seconds, transitions: record.transitions, new: false });
        }
        self.renewed = None;
        let free = self.seen.as_ref().map_or(now, |(record, since)| *since + record.lasts());
        if record.holder.is_empty() || free <= now {
            return Step::Write(Claim {
                seconds,
                transitions: record.transitions.saturating_add(1),
                new: true,
            });
        }
        Step::Wait(self.timing.retry.min(free - now))
    }

    /// The Lease was written, and is `record` now. The writing began at `begun`: others may have seen it since then.
    pub fn wrote(&mut self, record: Record, begun: Instant) {
        self.renewed = (record.holder == self.me).then_some(begun);
        self.seen = Some((record, begun));
    }

    /// Until when this candidate leads, if it does.
    pub fn leads_until(&self) -> Option<Instant> {
        self.renewed.map(|renewed| renewed + self.timing.renew)
    }

    /// Whether this candidate leads at `now`.
    pub fn leads(&self, now: Instant) -> bool {
        self.leads_until().is_some_and(|until| now < until)
    }
}
