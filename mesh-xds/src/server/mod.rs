//! The server: answers each proxy with what it subscribes to.
//!
//! A [`Source`] says what is behind a name for a peer, and a [`Notifier`] is told what may have changed.
//! Everything between is here: a [`Session`] for each stream, which is a pure state machine, and
//! [`Discovery`], the gRPC service around it. Content is encoded once by the source and shared by all
//! streams; a stream that is slow keeps names and what is on its way, and no other notices it. A stream that has
//! nothing to say holds no buffer of its own.
//!
//! Who a peer is comes from its connection (a [`Peer`] in the request's extensions), never from what it says.
//!
//! ```
//! use tower_mesh_xds::server::{Answer, Discovery, Peer, ServerLimits};
//! use tower_mesh_xds::{Address, Payload, ResourceType};
//!
//! let address = Payload::from(Address { hosts: vec!["reviews.default.svc.cluster.local".into()], endpoint: false });
//! let address = address.encode().unwrap();
//! let source = move |_: &Peer, kind: ResourceType, name: &str| match (kind, name) {
//!     (ResourceType::Address, "10.96.0.10") => Answer::Found(address.clone()),
//!     _ => Answer::Absent,
//! };
//! let discovery = Discovery::new(source, ServerLimits::default());
//! assert!(discovery.proxies().is_empty());
//! let _grpc = discovery.into_service();
//! ```

mod connection;
mod counters;
mod grpc;
mod index;
mod known;
mod limits;
mod queue;
mod service;
mod session;
#[cfg(test)]
mod session_tests;
mod status;
mod table;

use std::sync::Arc;

use mesh_core::identity::SpiffeId;

pub use connection::{Routes, serve_connection};
pub use counters::{ServerCounters, ServerCounts};
pub use index::Notifier;
pub use limits::ServerLimits;
pub use service::{Discovery, DiscoveryService};
pub use session::{MAX_QUOTED, Names, Received, Session, Violation};
pub use status::{Acknowledged, ProxyStatus, Refused, TypeStatus};

use crate::{Encoded, ResourceType};

/// Who is on the other end of a connection, as the connection proved it. An extension of each request;
/// a stream without one is refused with `UNAUTHENTICATED`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The identity of its certificate, or of its token.
    pub identity: SpiffeId,
    /// The workload that it stands beside, as `NAMESPACE/NAME`, where whoever vouched for the identity says
    /// so.
    pub workload: Option<Arc<str>>,
}

/// What is behind a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// This content.
    Found(Encoded),
    /// Nothing, or nothing that the peer may see.
    Absent,
    /// Nothing can be said now, for it cannot travel: who was told something keeps it.
    Unchanged,
}

/// Says what is behind names. Asked on the way to each response, so it answers from memory; what it
/// encodes, it keeps and shares.
///
/// A change is told to the [`Notifier`] after this gives the new content, else it would be missed.
pub trait Source: Send + Sync + 'static {
    /// What is behind `name` for `peer`: its identity decides what it may see.
    fn answer(&self, peer: &Peer, kind: ResourceType, name: &str) -> Answer;
}

impl<F> Source for F
where
    F: Fn(&Peer, ResourceType, &str) -> Answer + Send + Sync + 'static,
{
    fn answer(&self, peer: &Peer, kind: ResourceType, name: &str) -> Answer {
        self(peer, kind, name)
    }
}
