//! One proxy's stream as a state machine: no I/O, no clock.

use std::sync::Arc;

use tokio::time::Instant;

use super::known::{Known, Sent};
use super::queue::Queue;
use super::status::{Acknowledged, Refused, TypeStatus};
use super::table::Table;
use super::{Answer, ServerLimits};
use crate::proto::discovery::{
    Any, ControlPlane, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource, Status,
};
use crate::{InvalidName, ResourceType};

/// The longest text of a proxy's that is kept: a reason, a name that it gives itself. In characters.
pub const MAX_QUOTED: usize = 512;
/// What a resource costs in a response besides its content and its name, in bytes, generously.
const RESOURCE_OVERHEAD: usize = 128;

/// Who is told which names a stream subscribes to, before their content is looked at: so no change is missed.
pub trait Names {
    /// The stream subscribes to a name. Gives back the text to keep, so that streams can share it.
    fn subscribed(&mut self, kind: ResourceType, name: &str) -> Arc<str>;
    /// The stream unsubscribes from a name.
    fn unsubscribed(&mut self, kind: ResourceType, name: &str);
}

/// What a request was, besides a change of subscriptions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// A change of subscriptions only.
    Subscriptions,
    /// The response was taken.
    Ack,
    /// The response was refused, and why.
    Nack(String),
    /// It speaks of a response that is not the last one: its subscriptions count, its verdict does not.
    Stale,
}

/// Why a stream is closed: the peer does not keep to the protocol or to a limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// A type that is not served.
    #[error("type {0:?} is not served here; there are Workload, Host, Endpoints and Address of mesh.xds.v1")]
    UnknownType(String),
    /// It asks for everything.
    #[error("there is no wildcard for {0}: subscribe to the names that are used")]
    Wildcard(ResourceType),
    /// It asks for something that cannot be.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// It asks for too much.
    #[error("more than {0} subscriptions; narrow what the workload calls, or raise the limit")]
    Subscriptions(usize),
}

/// One proxy's stream: what it subscribes to, what it was sent, what it said to that.
///
/// For each type at most one response waits for its verdict; what changes meanwhile waits by name, and is
/// looked up when it can be sent. So a proxy that is slow, or silent, costs a list of names.
///
/// ```
/// use std::sync::Arc;
/// use tokio::time::Instant;
/// use tower_mesh_xds::proto::discovery::DeltaDiscoveryRequest;
/// use tower_mesh_xds::server::{Answer, Names, ServerLimits, Session};
/// use tower_mesh_xds::ResourceType;
///
/// struct Nobody;
/// impl Names for Nobody {
///     fn subscribed(&mut self, _: ResourceType, name: &str) -> Arc<str> { name.into() }
///     fn unsubscribed(&mut self, _: ResourceType, _: &str) {}
/// }
///
/// let mut session = Session::new(ServerLimits::default());
/// let request = DeltaDiscoveryRequest {
///     type_url: ResourceType::Host.url().into(),
///     resource_names_subscribe: vec!["nowhere.example".into()],
///     ..Default::default()
/// };
/// session.receive(request, &mut Nobody, Instant::now()).unwrap();
/// let response = session.respond(&|_, _| Answer::Absent, Instant::now()).unwrap();
/// assert_eq!(response.removed_resources, ["nowhere.example"]);
/// // What was said is said once.
/// assert!(session.respond(&|_, _| Answer::Absent, Instant::now()).is_none());
/// ```
#[derive(Debug)]
pub struct Session {
    limits: ServerLimits,
    types: [Type; ResourceType::ALL.len()],
    nonce: u64,
    node: Option<String>,
}

#[derive(Debug, Default)]
struct Type {
    names: Table<Known>,
    waiting: Queue,
    in_flight: Option<(u64, Instant)>,
    asked: bool,
    last_ack: Option<Acknowledged>,
    last_nack: Option<Refused>,
}

impl Session {
    /// A stream that has just been opened.
    pub fn new(limits: ServerLimits) -> Self {
        Self { limits, types: Default::default(), nonce: 0, node: None }
    }

    /// Takes a request.
    ///
    /// # Errors
    /// When the stream is to be closed.
    pub fn receive(
        &mut self,
        request: DeltaDiscoveryRequest,
        names: &mut dyn Names,
        now: Instant,
    ) -> Result<Received, Violation> {
        if let (None, Some(node)) = (&self.node, &request.node) {
            let version = [&node.user_agent_name, &node.user_agent_version];
            let told = version.into_iter().chain([&node.id]).filter(|text| !text.is_empty());
            self.node = Some(quoted(&told.map(String::as_str).collect::<Vec<_>>().join(" ")));
        }
        let kind = ResourceType::of_url(&request.type_url)
            .ok_or_else(|| Violation::UnknownType(quoted(&request.type_url)))?;
        let others: usize = self.of_others(kind);
        let most = self.limits.subscriptions;
        let Some(of) = self.types.get_mut(kind.index()) else { return Ok(Received::Stale) };

        let received = of.verdict(&request.response_nonce, request.error_detail.as_ref(), now);
        let first = !std::mem::replace(&mut of.asked, true);
        let nothing = request.resource_names_subscribe.is_empty()
            && request.resource_names_unsubscribe.is_empty()
            && received == Received::Subscriptions;
        // Older clients ask for everything by naming nothing.
        if first && nothing {
            return Err(Violation::Wildcard(kind));
        }
        let mut waited = Vec::new();
        for name in &request.resource_names_unsubscribe {
            if let Some((text, known)) = of.names.remove(name) {
                waited.extend(known.waits().then_some(text));
                names.unsubscribed(kind, name);
            }
        }
        of.waiting.remove(waited);
        for name in &request.resource_names_subscribe {
            if name == "*" {
                return Err(Violation::Wildcard(kind));
            }
            kind.check_name(name)?;
            // What it brings along from an earlier stream. The protocol has it in the first request for a
            // type; here it counts for each new name, so that a long list can be divided.
            let held = request.initial_resource_versions.get(name);
            let sent = held.and_then(|v| v.parse().ok()).map_or(Sent::Nothing, Sent::Content);
            if let Some((name, known)) = of.names.get_mut(name) {
                // Asking again means that it wants to be told again.
                known.set(Sent::Nothing);
                of.waiting.push(name, known);
                continue;
            }
            if others + of.names.len() >= most {
                return Err(Violation::Subscriptions(most));
            }
            let name = names.subscribed(kind, name);
            let mut known = Known::new(sent);
            of.waiting.push(&name, &mut known);
            of.names.insert(name, known);
        }
        of.names.shrink();
        Ok(received)
    }

    /// The content behind a name may have changed.
    pub fn changed(&mut self, kind: ResourceType, name: &str) {
        if let Some(of) = self.types.get_mut(kind.index())
            && let Some((name, known)) = of.names.get_mut(name)
        {
            of.waiting.push(name, known);
        }
    }

    /// The content behind every name of a type may have changed.
    pub fn all_changed(&mut self, kind: ResourceType) {
        if let Some(of) = self.types.get_mut(kind.index()) {
            of.names.iter_mut().for_each(|(name, known)| of.waiting.push(name, known));
        }
    }

    /// The next response, if there is something to tell and the proxy has taken or refused what it was told
    /// last of that type. `answers` says what is behind a name now.
    pub fn respond(
        &mut self,
        answers: &dyn Fn(ResourceType, &str) -> Answer,
        now: Instant,
    ) -> Option<DeltaDiscoveryResponse> {
        for (kind, of) in ResourceType::ALL.into_iter().zip(&mut self.types) {
            if of.in_flight.is_some() {
                continue;
            }
            let mut response = of.collect(kind, &self.limits, answers);
            if response.resources.is_empty() && response.removed_resources.is_empty() {
                continue;
            }
            self.nonce += 1;
            of.in_flight = Some((self.nonce, now));
            response.nonce = self.nonce.to_string();
            return Some(response);
        }
        None
    }

    /// Every name that the stream subscribes to.
    pub fn subscriptions(&self) -> impl Iterator<Item = (ResourceType, &Arc<str>)> {
        let types = ResourceType::ALL.into_iter().zip(&self.types);
        types.flat_map(|(kind, of)| of.names.names().map(move |name| (kind, name)))
    }

    /// What the proxy says of itself: its program, version and name. For people, never for decisions.
    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// How things stand, type by type; the types that the proxy asked for.
    pub fn status(&self) -> Vec<TypeStatus> {
        let types = ResourceType::ALL.into_iter().zip(&self.types).filter(|(_, of)| of.asked);
        let status = |(kind, of): (ResourceType, &Type)| TypeStatus {
            kind,
            names: of.names.names().map(Arc::clone).collect(),
            waiting: of.waiting.len(),
            in_flight: of.in_flight.map(|(_, since)| since),
            last_ack: of.last_ack,
            last_nack: of.last_nack.clone(),
        };
        types.map(status).collect()
    }

    fn of_others(&self, kind: ResourceType) -> usize {
        let types = ResourceType::ALL.into_iter().zip(&self.types);
        types.filter(|(other, _)| *other != kind).map(|(_, of)| of.names.len()).sum()
    }
}

impl Type {
    fn verdict(&mut self, nonce: &str, error: Option<&Status>, now: Instant) -> Received {
        if nonce.is_empty() {
            return Received::Subscriptions;
        }
        let Some((number, _)) = self.in_flight.take_if(|(number, _)| number.to_string() == nonce) else {
            return Received::Stale;
        };
        match error {
            None => {
                self.last_ack = Some(Acknowledged { nonce: number, at: now });
                Received::Ack
            }
            Some(error) => {
                // It keeps what it had. It is not told the same again: only a change helps.
                let reason = quoted(&error.message);
                self.last_nack = Some(Refused { nonce: number, at: now, reason: reason.clone() });
                Received::Nack(reason)
            }
        }
    }

    /// Takes from what waits as much as one response holds.
    fn collect(
        &mut self,
        kind: ResourceType,
        limits: &ServerLimits,
        answers: &dyn Fn(ResourceType, &str) -> Answer,
    ) -> DeltaDiscoveryResponse {
        let mut response = DeltaDiscoveryResponse {
            type_url: kind.url().to_owned(),
            control_plane: Some(ControlPlane { identifier: "tower-mesh".to_owned() }),
            ..Default::default()
        };
        let mut bytes = 0_usize;
        while let Some(name) = self.waiting.first().map(Arc::clone) {
            let items = response.resources.len() + response.removed_resources.len();
            if items >= limits.response_items {
                break;
            }
            if let Some((_, known)) = self.names.get_mut(&name) {
                match answers(kind, &name) {
                    Answer::Found(content) if known.sent() == Sent::Content(content.version()) => {}
                    Answer::Found(content) => {
                        let size = content.body().len() + name.len() + RESOURCE_OVERHEAD;
                        if items > 0 && bytes + size > limits.response_bytes {
                            break;
                        }
                        bytes += size;
                        known.set(Sent::Content(content.version()));
                        response.resources.push(Resource {
                            version: content.version().to_string(),
                            name: name.to_string(),
                            resource: Some(Any {
                                type_url: kind.url().to_owned(),
                                value: content.body().clone(),
                            }),
                        });
                    }
                    Answer::Unchanged => {}
                    Answer::Absent if known.sent() == Sent::Absent => {}
                    Answer::Absent => {
                        known.set(Sent::Absent);
                        response.removed_resources.push(name.to_string());
                    }
                }
                known.looked_at();
            }
            self.waiting.pop();
        }
        response
    }
}

/// As much of a peer's text as is kept.
fn quoted(text: &str) -> String {
    text.chars().take(MAX_QUOTED).collect()
}
