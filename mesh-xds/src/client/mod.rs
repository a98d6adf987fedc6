//! The client: subscribes to what is used, and keeps what it was sent.
//!
//! A [`Client`] is a handle that asks; [`Client::run`] is the future that connects, again and again, and hands
//! what it is sent to a [`Sink`]. A name is subscribed to the first time that it is asked for, and stays so
//! while it is used. With the server gone everything that is held stays in force.
//!
//! Asking waits for the first answer, bounded in time and in number; a name behind which there is nothing is
//! remembered as such, bounded likewise.
//!
//! ```
//! use tower_mesh_xds::client::{Change, Client, ClientLimits, Refusal, Unavailable};
//! use tower_mesh_xds::ResourceType;
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(async {
//! let client = Client::new("default/web-1", ClientLimits::default());
//! // Nobody runs it, so nobody answers: the first call waits so long and no longer.
//! let answer = client.subscribe(ResourceType::Host, "reviews.default.svc.cluster.local").await;
//! assert_eq!(answer.unwrap_err(), Unavailable::TimedOut);
//! // What names nothing is not even asked for.
//! assert!(matches!(client.subscribe(ResourceType::Host, "*").await, Err(Unavailable::Name(_))));
//!
//! // A sink takes changes, and says which of them it cannot take.
//! let sink = |changes: &[Change]| -> Vec<Refusal> {
//!     changes.iter().for_each(|change| println!("{} {}", change.kind, change.name));
//!     Vec::new()
//! };
//! let nowhere = || async { Err::<tonic::transport::Channel, _>("no network".into()) };
//! let run = client.run(nowhere, sink);
//! # drop(run);
//! # });
//! ```

mod backoff;
mod bearer;
mod counters;
mod run;
mod snapshot;
mod state;
#[cfg(test)]
mod state_tests;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

pub use backoff::Backoff;
pub use bearer::{Bearer, InvalidToken};
pub use counters::{ClientCounters, ClientCounts};
pub use run::{BoxError, connect};
pub use snapshot::{InvalidSnapshot, MAX_SNAPSHOT_BYTES};
pub use tonic::transport::Channel;

use crate::proto::discovery::Node;
use crate::{InvalidName, Payload, ResourceType};
use state::{Held, State};

/// The most names of one request; longer lists are divided.
pub const REQUEST_NAMES: usize = 1024;

/// What a client allows itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientLimits {
    /// Subscriptions, all types together. Default: 12,288, within what a server bears. Further names are
    /// [`Unavailable::Full`].
    pub subscriptions: usize,
    /// First calls that wait at the same time. Default: 1,024. Further ones are [`Unavailable::Busy`].
    pub waiting: usize,
    /// How long a first call waits. Default: 5 s.
    pub wait: Duration,
    /// How long something may be unused before it is unsubscribed from. Default: 10 minutes.
    pub idle: Duration,
    /// Names behind which there is nothing, of each type. Default: 1,024. Those that were not asked for for the longest
    /// time are forgotten.
    pub misses: usize,
    /// How long such a name may be unused before it is forgotten. It stays subscribed to, so that the server says when
    /// it comes to exist. Default: 10 minutes: as long as anything else, so that who is nobody's business today is
    /// still known as that when the server is gone.
    pub miss_time: Duration,
    /// How often is looked for what to forget. Default: 5 s.
    pub sweep: Duration,
    /// How long connecting, and opening the stream, may take, each. Default: 10 s.
    pub connect: Duration,
    /// Bytes of one response. Default: 4 MiB: a resource that is as large as may be, and some.
    pub response_bytes: usize,
    /// How long to wait before connecting again.
    pub backoff: Backoff,
    /// How often a silent connection is asked whether it lives. Default: 30 s.
    pub keep_alive: Duration,
    /// How long the answer may take. Default: 10 s.
    pub keep_alive_timeout: Duration,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            subscriptions: 12_288,
            waiting: 1024,
            wait: Duration::from_secs(5),
            idle: Duration::from_secs(600),
            misses: 1024,
            miss_time: Duration::from_secs(600),
            sweep: Duration::from_secs(5),
            connect: Duration::from_secs(10),
            response_bytes: 4 * 1024 * 1024,
            backoff: Backoff::default(),
            keep_alive: Duration::from_secs(30),
            keep_alive_timeout: Duration::from_secs(10),
        }
    }
}

/// Something that is different from now on.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The type.
    pub kind: ResourceType,
    /// The name.
    pub name: Arc<str>,
    /// What is behind it now.
    pub now: Now,
}

/// What is behind a name.
#[derive(Debug, Clone, PartialEq)]
pub enum Now {
    /// This.
    Content(Box<Payload>),
    /// Nothing: it does not exist, or may not be seen.
    Absent,
    /// It is not used any more, and not kept up to date: let go of it.
    Forgotten,
}

/// A change that cannot be taken: what was in force before stays, and the server learns why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The name of the change.
    pub name: Arc<str>,
    /// Why: the resource, the field, what is wrong.
    pub reason: String,
}

/// Takes what changes.
pub trait Sink: Send {
    /// Takes changes that came together, of one type each time, but for what it gives back. It is not asked
    /// whether it takes [`Now::Forgotten`].
    fn apply(&mut self, changes: &[Change]) -> Vec<Refusal>;
}

impl<F> Sink for F
where
    F: FnMut(&[Change]) -> Vec<Refusal> + Send,
{
    fn apply(&mut self, changes: &[Change]) -> Vec<Refusal> {
        self(changes)
    }
}

/// Why it is not known what is behind a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// It names nothing that could be.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// There are as many subscriptions as may be.
    #[error("there are as many subscriptions as there may be")]
    Full,
    /// As many calls wait as may wait.
    #[error("as many first calls wait as may wait")]
    Busy,
    /// There was no answer in time.
    #[error("the control plane has not answered in time")]
    TimedOut,
    /// What was sent cannot be used, and there is nothing older.
    #[error("what the control plane sent cannot be used: {0}")]
    Refused(Arc<str>),
}

/// A name that is subscribed to. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Subscription {
    exists: bool,
    used: Arc<AtomicBool>,
}

/// A client. Cheap to clone; clones are one client.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    limits: ClientLimits,
    state: Mutex<State>,
    /// There is something to say.
    wake: Notify,
    waiting: AtomicUsize,
    changes: watch::Sender<u64>,
    connected: watch::Sender<bool>,
    /// Why the last stream ended, or could not be opened.
    ended: Mutex<Option<Arc<str>>>,
    counters: Arc<ClientCounters>,
}

/// A name that a client is subscribed to, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscriptionStatus {
    /// The type.
    pub kind: ResourceType,
    /// The name.
    pub name: Arc<str>,
    /// The version in force, where there is content.
    pub version: Option<Arc<str>>,
    /// Why there is none, where it was refused.
    pub refused: Option<Arc<str>>,
}

/// What a client said of the responses of a type.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerdictStatus {
    /// The type.
    pub kind: ResourceType,
    /// When the last response was taken.
    pub last_ack: Option<Instant>,
    /// When the last one of which something was refused came, and why.
    pub last_nack: Option<(Instant, Arc<str>)>,
}

/// Counts a waiting call until dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Subscription {
    /// Whether there is something behind the name. When not, it is told when there is, for a while.
    pub fn exists(&self) -> bool {
        self.exists
    }

    /// Says that it is used, so that it stays subscribed to. Cheap enough for each request.
    pub fn touch(&self) {
        // Reading first keeps the line shared among cores.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }
}

impl Client {
    /// A client that subscribes to nothing yet. `node` is what it says of itself, for people.
    pub fn new(node: &str, limits: ClientLimits) -> Self {
        let node = Node {
            id: node.to_owned(),
            user_agent_name: "tower-mesh".to_owned(),
            user_agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Node::default()
        };
        let state = Mutex::new(State::new(limits.clone(), node));
        Self {
            shared: Arc::new(Shared {
                limits,
                state,
                wake: Notify::new(),
                waiting: AtomicUsize::new(0),
                changes: watch::Sender::new(0),
                connected: watch::Sender::new(false),
                ended: Mutex::default(),
                counters: Arc::default(),
            }),
        }
    }

    /// Subscribes to a name, and waits until it is known what is behind it and the sink has it.
    ///
    /// # Errors
    /// See [`Unavailable`].
    pub async fn subscribe(&self, kind: ResourceType, name: &str) -> Result<Subscription, Unavailable> {
        self.ask(kind, name, false).await
    }

    /// As [`subscribe`](Self::subscribe), for what is kept however seldom it is used.
    ///
    /// # Errors
    /// See [`Unavailable`]. It stays subscribed to all the same, unless there is no room.
    pub async fn keep(&self, kind: ResourceType, name: &str) -> Result<Subscription, Unavailable> {
        self.ask(kind, name, true).await
    }

    /// As [`subscribe`](Self::subscribe), without waiting for the answer: the sink is told. What is subscribed
    /// to already counts as used.
    ///
    /// # Errors
    /// [`Unavailable::Name`] and [`Unavailable::Full`].
    pub fn want(&self, kind: ResourceType, name: &str) -> Result<(), Unavailable> {
        self.state().want(kind, name, false, Instant::now())?;
        self.shared.wake.notify_one();
        Ok(())
    }

    /// Whether there is something behind a name; `None` where that is not known, or it is not subscribed to.
    pub fn exists(&self, kind: ResourceType, name: &str) -> Option<bool> {
        match self.state().entry(kind, name)?.held {
            Held::Content { .. } => Some(true),
            Held::Absent(_) => Some(false),
            Held::Asked | Held::Refused(_) => None,
        }
    }

    /// Says that a name is used, if it is subscribed to.
    pub fn touch(&self, kind: ResourceType, name: &str) {
        if let Some(entry) = self.state().entry(kind, name) {
            entry.used.store(true, Ordering::Relaxed);
        }
    }

    async fn ask(&self, kind: ResourceType, name: &str, pinned: bool) -> Result<Subscription, Unavailable> {
        let shared = &*self.shared;
        let answered = {
            let mut state = self.state();
            let entry = state.want(kind, name, pinned, Instant::now())?;
            if let Some(known) = entry.known() {
                return known;
            }
            Arc::clone(&entry.answered).notified_owned()
        };
        shared.wake.notify_one();
        let _waiting = Waiting::one_of(&shared.waiting, shared.limits.waiting).ok_or(Unavailable::Busy)?;
        let answer = tokio::time::timeout(shared.limits.wait, answered).await;
        if answer.is_err() {
            counters::add(&shared.counters.timed_out, 1);
        }
        // Forgotten meanwhile is as good as no answer.
        self.state().entry(kind, name).and_then(state::Entry::known).unwrap_or(Err(Unavailable::TimedOut))
    }

    /// Whether a stream is open now.
    pub fn is_connected(&self) -> bool {
        *self.shared.connected.borrow()
    }

    /// Why the last stream ended or could not be opened; `None` while one is open, and before the first try.
    pub fn last_error(&self) -> Option<Arc<str>> {
        self.shared.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was said of the last response of each type that had one.
    pub fn verdicts(&self) -> Vec<VerdictStatus> {
        self.state().verdicts()
    }

    /// Changes whenever the stream opens or ends.
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.shared.connected.subscribe()
    }

    /// Changes whenever what is held does: the time to take a [`snapshot`](Self::snapshot).
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// What it counts.
    pub fn counters(&self) -> Arc<ClientCounters> {
        Arc::clone(&self.shared.counters)
    }

    /// Everything that it subscribes to, in order.
    pub fn subscriptions(&self) -> Vec<SubscriptionStatus> {
        let status = |(kind, name, entry): (ResourceType, &Arc<str>, &state::Entry)| SubscriptionStatus {
            kind,
            name: Arc::clone(name),
            version: match &entry.held {
                Held::Content { version, .. } => Some(Arc::clone(version)),
                _ => None,
            },
            refused: match &entry.held {
                Held::Refused(why) => Some(Arc::clone(why)),
                _ => None,
            },
        };
        let mut all: Vec<_> = self.state().entries().map(status).collect();
        all.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        all
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl state::Entry {
    /// What is known, if anything is.
    fn known(&self) -> Option<Result<Subscription, Unavailable>> {
        let subscription = |exists| Subscription { exists, used: Arc::clone(&self.used) };
        match &self.held {
            Held::Asked => None,
            Held::Absent(_) => Some(Ok(subscription(false))),
            Held::Content { .. } => Some(Ok(subscription(true))),
            Held::Refused(why) => Some(Err(Unavailable::Refused(Arc::clone(why)))),
        }
    }
}

impl<'a> Waiting<'a> {
    fn one_of(count: &'a AtomicUsize, most: usize) -> Option<Self> {
        let one_more = |n: usize| (n < most).then_some(n + 1);
        count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok().map(|_| Self(count))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subscriptions = self.state().len();
        f.debug_struct("Client").field("subscriptions", &subscriptions).finish_non_exhaustive()
    }
}
