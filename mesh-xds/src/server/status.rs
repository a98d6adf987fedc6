//! How the streams stand, for the page that shows it.

use std::sync::Arc;

use mesh_core::identity::SpiffeId;
use tokio::time::Instant;

use crate::ResourceType;

/// A proxy's stream, as it is now.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ProxyStatus {
    /// Who the proxy is, from its connection.
    pub identity: SpiffeId,
    /// The workload that it stands beside, from its connection, as `NAMESPACE/NAME`.
    pub workload: Option<Arc<str>>,
    /// What it says of itself.
    pub node: Option<String>,
    /// When the stream was opened.
    pub opened: Instant,
    /// The types that it asked for.
    pub types: Vec<TypeStatus>,
}

/// A type of a stream, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TypeStatus {
    /// The type.
    pub kind: ResourceType,
    /// What it subscribes to, in order.
    pub names: Vec<Arc<str>>,
    /// How many names wait to be looked at, and sent where they have changed.
    pub waiting: usize,
    /// Since when a response waits for its verdict.
    pub in_flight: Option<Instant>,
    /// The last response that it took.
    pub last_ack: Option<Acknowledged>,
    /// The last response that it refused.
    pub last_nack: Option<Refused>,
}

/// A response that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledged {
    /// The response's number on its stream.
    pub nonce: u64,
    /// When.
    pub at: Instant,
}

/// A response that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The response's number on its stream.
    pub nonce: u64,
    /// When.
    pub at: Instant,
    /// Why, in the proxy's words.
    pub reason: String,
}

impl TypeStatus {
    /// Whether the proxy has all that there is for it and took it: nothing waits, nothing is on its way, and
    /// its last word was no refusal.
    pub fn is_synced(&self) -> bool {
        let refused = self.last_nack.as_ref().map_or(0, |nack| nack.nonce);
        let taken = self.last_ack.map_or(0, |ack| ack.nonce);
        self.waiting == 0 && self.in_flight.is_none() && refused <= taken
    }
}
