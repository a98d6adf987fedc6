//! One try of a request, as the layers of the client stack see it.
//!
//! [`Retry`](crate::retry) inserts an [`Attempt`] into each request that it sends: the balancer reads which
//! endpoints were tried, and whoever learns where the request went writes it there, because only `Retry`
//! knows which try was the last one. Without `Retry` there is one try, and what is learned goes straight
//! into [`Facts`].

use std::sync::{Arc, OnceLock};

use http::Extensions;
use mesh_core::cluster::{Endpoint, EndpointAddress};
use mesh_core::facts::{Facts, Upstream};

/// One try of a request. A request extension; clones share the upstream.
#[derive(Debug, Clone, Default)]
pub struct Attempt {
    tried: Vec<Arc<Endpoint>>,
    upstream: Arc<OnceLock<Upstream>>,
}

/// Where it is told which endpoint a request went to.
#[derive(Debug, Clone)]
pub(crate) enum Report {
    /// One try of several: `Retry` decides which one counts.
    Attempt(Attempt),
    /// The only try.
    Facts(Facts),
    /// Nobody asks.
    Nowhere,
}

impl Attempt {
    /// A try that should go to none of these endpoints.
    pub fn after(tried: Vec<Arc<Endpoint>>) -> Self {
        Self { tried, upstream: Arc::default() }
    }

    /// Endpoints that were tried before.
    pub fn tried(&self) -> &[Arc<Endpoint>] {
        &self.tried
    }

    /// Where this try went.
    pub fn upstream(&self) -> Option<&Upstream> {
        self.upstream.get()
    }

    /// Remembers where this try went; the first one wins.
    pub fn set_upstream(&self, upstream: Upstream) {
        let _ = self.upstream.set(upstream);
    }
}

impl Report {
    pub(crate) fn of(extensions: &Extensions) -> Self {
        if let Some(attempt) = extensions.get::<Attempt>() {
            // Only the cell is needed, and an empty list is no allocation.
            return Self::Attempt(Attempt { tried: Vec::new(), upstream: Arc::clone(&attempt.upstream) });
        }
        extensions.get::<Facts>().map_or(Self::Nowhere, |facts| Self::Facts(facts.clone()))
    }

    /// Tells where the request went; the first one wins.
    pub(crate) fn tell(&self, upstream: impl FnOnce() -> Upstream) {
        match self {
            Self::Attempt(attempt) if attempt.upstream().is_none() => attempt.set_upstream(upstream()),
            Self::Facts(facts) if facts.upstream().is_none() => facts.set_upstream(upstream()),
            _ => {}
        }
    }
}

/// Tells where a request with these extensions went; the first one wins.
pub(crate) fn tell(extensions: &Extensions, upstream: impl FnOnce() -> Upstream) {
    if let Some(attempt) = extensions.get::<Attempt>() {
        if attempt.upstream().is_none() {
            attempt.set_upstream(upstream());
        }
    } else if let Some(facts) = extensions.get::<Facts>()
        && facts.upstream().is_none()
    {
        facts.set_upstream(upstream());
    }
}

/// What is known of where a request goes before a connection is made.
pub(crate) fn unconnected(endpoint: Arc<Endpoint>) -> Upstream {
    let address = match &endpoint.key().address {
        EndpointAddress::Socket(addr) => Some(*addr),
        EndpointAddress::Name(..) => None,
    };
    Upstream { endpoint, address, peer: None }
}
