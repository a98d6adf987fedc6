//! What a client wants, holds and has yet to say: no I/O, no clock.

use std::collections::{BTreeSet, HashMap};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{ClientLimits, REQUEST_NAMES, Refusal, Unavailable, VerdictStatus};
use crate::ResourceType;
use crate::proto::discovery::{DeltaDiscoveryRequest, Node, Status};

/// `INVALID_ARGUMENT` of google.rpc.Code: what a refused configuration is.
const INVALID_ARGUMENT: i32 = 3;
/// The longest reason that is sent, in characters.
const MAX_REASON: usize = 512;

/// What is behind a name, as far as the client knows.
#[derive(Debug, Clone, Default)]
pub(super) enum Held {
    /// Asked for; whoever waits is woken by the answer.
    #[default]
    Asked,
    /// There is nothing; known since then.
    Absent(Instant),
    /// What was sent first could not be used, and why; there is nothing older to go by.
    Refused(Arc<str>),
    /// This content, in force.
    Content { version: Arc<str>, body: Bytes },
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) held: Held,
    pub(super) pinned: bool,
    /// Set whenever it is used, taken back by the sweep: using it costs no clock and no lock.
    pub(super) used: Arc<AtomicBool>,
    pub(super) last_used: Instant,
    pub(super) answered: Arc<Notify>,
}

/// A verdict on a response, to be sent.
#[derive(Debug)]
struct Verdict {
    nonce: String,
    refused: Option<String>,
}

#[derive(Debug, Default)]
struct Type {
    entries: HashMap<Arc<str>, Entry>,
    subscribe: BTreeSet<Arc<str>>,
    unsubscribe: BTreeSet<Arc<str>>,
    verdict: Option<Verdict>,
    /// For people: when the last response was taken, and when and why one was refused.
    acked: Option<Instant>,
    nacked: Option<(Instant, Arc<str>)>,
}

#[derive(Debug)]
pub(super) struct State {
    limits: ClientLimits,
    types: [Type; ResourceType::ALL.len()],
    node: Node,
    introduced: bool,
}

/// What a response told of a name that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    Content { version: Arc<str>, body: Bytes },
    Absent,
}

impl State {
    pub(super) fn new(limits: ClientLimits, node: Node) -> Self {
        Self { limits, types: Default::default(), node, introduced: false }
    }

    /// Makes sure that a name is subscribed to.
    pub(super) fn want(
        &mut self,
        kind: ResourceType,
        name: &str,
        pinned: bool,
        now: Instant,
    ) -> Result<&Entry, Unavailable> {
        kind.check_name(name)?;
        let full = self.len() >= self.limits.subscriptions;
        let of = self.of(kind);
        if !of.entries.contains_key(name) {
            if full {
                return Err(Unavailable::Full);
            }
            let name: Arc<str> = name.into();
            of.unsubscribe.remove(&name);
            of.subscribe.insert(Arc::clone(&name));
            of.entries.insert(name, Entry::new(pinned, now));
        }
        match of.entries.get_mut(name) {
            Some(entry) => {
                entry.used.store(true, Ordering::Relaxed);
                entry.pinned |= pinned;
                Ok(entry)
            }
            None => Err(Unavailable::Full),
        }
    }

    /// Takes something in that was held in an earlier life.
    pub(super) fn restore(
        &mut self,
        kind: ResourceType,
        name: &str,
        pinned: bool,
        held: Held,
        now: Instant,
    ) -> Result<(), Unavailable> {
        self.want(kind, name, pinned, now)?;
        if let Some(entry) = self.of(kind).entries.get_mut(name) {
            entry.used.store(false, Ordering::Relaxed);
            entry.held = held;
            entry.answered.notify_waiters();
        }
        Ok(())
    }

    pub(super) fn entry(&self, kind: ResourceType, name: &str) -> Option<&Entry> {
        self.types.get(kind.index())?.entries.get(name)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (ResourceType, &Arc<str>, &Entry)> {
        let types = ResourceType::ALL.into_iter().zip(&self.types);
        types.flat_map(|(kind, of)| of.entries.iter().map(move |(name, entry)| (kind, name, entry)))
    }

    pub(super) fn len(&self) -> usize {
        self.types.iter().map(|of| of.entries.len()).sum()
    }

    pub(super) fn verdicts(&self) -> Vec<VerdictStatus> {
        let types = ResourceType::ALL.into_iter().zip(&self.types);
        let told = types.filter(|(_, of)| of.acked.is_some() || of.nacked.is_some());
        told.map(|(kind, of)| VerdictStatus { kind, last_ack: of.acked, last_nack: of.nacked.clone() })
            .collect()
    }

    /// A new stream: the server knows nothing of what is wanted and held.
    pub(super) fn connected(&mut self) {
        self.introduced = false;
        for of in &mut self.types {
            of.subscribe = of.entries.keys().map(Arc::clone).collect();
            of.unsubscribe.clear();
            of.verdict = None;
        }
    }

    /// Whether there is something to say.
    pub(super) fn has_request(&self) -> bool {
        self.types.iter().any(Type::has_request)
    }

    /// The next thing to say.
    pub(super) fn request(&mut self) -> Option<DeltaDiscoveryRequest> {
        let types = || ResourceType::ALL.into_iter().zip(&self.types);
        // Verdicts first: the server waits for them.
        let (kind, _) = types()
            .find(|(_, of)| of.verdict.is_some())
            .or_else(|| types().find(|(_, of)| of.has_request()))?;
        let introduced = mem::replace(&mut self.introduced, true);
        let node = (!introduced).then(|| self.node.clone());
        let mut request = self.of(kind).request();
        request.type_url = kind.url().to_owned();
        request.node = node;
        Some(request)
    }

    /// Which of a response's names are wanted.
    pub(super) fn is_wanted(&self, kind: ResourceType, name: &str) -> bool {
        self.entry(kind, name).is_some()
    }

    /// Takes what a response told, but for what was refused, and prepares the verdict.
    pub(super) fn commit(
        &mut self,
        kind: ResourceType,
        nonce: String,
        news: Vec<(Arc<str>, News)>,
        refused: &[Refusal],
        now: Instant,
    ) {
        let reasons: HashMap<&str, &str> = refused.iter().map(|r| (&*r.name, &*r.reason)).collect();
        let misses = self.limits.misses;
        let of = self.of(kind);
        for (name, news) in news {
            let Some(entry) = of.entries.get_mut(&name) else { continue };
            match (news, reasons.get(&*name)) {
                (News::Content { version, body }, None) => entry.held = Held::Content { version, body },
                (News::Absent, None) => entry.held = Held::Absent(now),
                // The last good one stays, where there is one.
                (_, Some(reason)) => {
                    if !matches!(entry.held, Held::Content { .. }) {
                        entry.held = Held::Refused(shortened(reason).into());
                    }
                }
            }
            entry.answered.notify_waiters();
        }
        of.forget_misses(misses);
        if !nonce.is_empty() {
            let told = || refused.iter().map(|r| format!("{kind} {}: {}", r.name, r.reason));
            let refused = (!refused.is_empty()).then(|| shortened(&told().collect::<Vec<_>>().join("; ")));
            match &refused {
                None => of.acked = Some(now),
                Some(why) => of.nacked = Some((now, why.as_str().into())),
            }
            of.verdict = Some(Verdict { nonce, refused });
        }
    }

    /// Lets go of what has not been used for a while; gives back what that is.
    pub(super) fn sweep(&mut self, now: Instant) -> Vec<(ResourceType, Arc<str>)> {
        let (idle, miss) = (self.limits.idle, self.limits.miss_time);
        let mut dropped = Vec::new();
        for (kind, of) in ResourceType::ALL.into_iter().zip(&mut self.types) {
            let mut cold = Vec::new();
            for (name, entry) in &mut of.entries {
                if entry.used.swap(false, Ordering::Relaxed) {
                    entry.last_used = now;
                }
                let most = if matches!(entry.held, Held::Absent(_)) { miss } else { idle };
                if !entry.pinned && now.saturating_duration_since(entry.last_used) >= most {
                    cold.push(Arc::clone(name));
                }
            }
            for name in cold {
                of.forget(&name);
                dropped.push((kind, name));
            }
        }
        dropped
    }

    fn of(&mut self, kind: ResourceType) -> &mut Type {
        let [workload, host, endpoints, address] = &mut self.types;
        match kind {
            ResourceType::Workload => workload,
            ResourceType::Host => host,
            ResourceType::Endpoints => endpoints,
            ResourceType::Address => address,
        }
    }
}

impl Type {
    fn has_request(&self) -> bool {
        self.verdict.is_some() || !self.subscribe.is_empty() || !self.unsubscribe.is_empty()
    }

    fn request(&mut self) -> DeltaDiscoveryRequest {
        let mut request = DeltaDiscoveryRequest::default();
        if let Some(Verdict { nonce, refused }) = self.verdict.take() {
            request.response_nonce = nonce;
            request.error_detail = refused.map(|message| Status { code: INVALID_ARGUMENT, message });
        }
        for _ in 0..REQUEST_NAMES {
            let Some(name) = self.subscribe.pop_first() else { break };
            if let Some(Entry { held: Held::Content { version, .. }, .. }) = self.entries.get(&name) {
                request.initial_resource_versions.insert(name.to_string(), version.to_string());
            }
            request.resource_names_subscribe.push(name.to_string());
        }
        for _ in 0..REQUEST_NAMES {
            let Some(name) = self.unsubscribe.pop_first() else { break };
            request.resource_names_unsubscribe.push(name.to_string());
        }
        request
    }

    fn forget(&mut self, name: &Arc<str>) {
        self.entries.remove(name);
        // What the server was never told of, it need not be told to forget.
        if !self.subscribe.remove(name) {
            self.unsubscribe.insert(Arc::clone(name));
        }
    }

    /// Lets go of the misses that were not used for the longest time, where there are too many.
    fn forget_misses(&mut self, most: usize) {
        let since = |entry: &Entry| match entry.held {
            Held::Absent(since) if !entry.pinned => {
                Some((entry.used.load(Ordering::Relaxed), entry.last_used, since))
            }
            _ => None,
        };
        let mut misses: Vec<_> =
            self.entries.iter().filter_map(|(name, e)| Some((since(e)?, Arc::clone(name)))).collect();
        let Some(excess @ 1..) = misses.len().checked_sub(most) else { return };
        misses.sort_unstable();
        misses.iter().take(excess).for_each(|(_, name)| self.forget(name));
    }
}

impl Entry {
    fn new(pinned: bool, now: Instant) -> Self {
        Self { held: Held::Asked, pinned, used: Arc::default(), last_used: now, answered: Arc::default() }
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_REASON).collect()
}
