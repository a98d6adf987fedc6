//! What a route decided about a request, as plain values for the layers behind the router.
//!
//! The router compiles each rule of a VirtualService once and hands the compiled form on as
//! [`MatchedRoute::policy`](mesh_core::facts::MatchedRoute::policy); the layers of this crate read it with
//! [`RoutePolicy::of`]. Where no route is known they use what they were made with.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//! use mesh_core::facts::{Facts, MatchedRoute};
//! use tower_mesh_route::policy::RoutePolicy;
//!
//! let policy = RoutePolicy { timeout: Some(Duration::from_secs(1)), ..RoutePolicy::default() };
//! let facts = Facts::default();
//! facts.set_route(MatchedRoute {
//!     resource: None,
//!     name: "default".into(),
//!     cluster: None,
//!     policy: Arc::new(policy),
//! });
//! assert_eq!(RoutePolicy::of(&facts).unwrap().timeout, Some(Duration::from_secs(1)));
//! ```

use std::time::Duration;

use mesh_core::facts::Facts;

use crate::fault::FaultPolicy;
use crate::retry::RetryPolicy;

/// What a route decided. The default is a route without a VirtualService.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RoutePolicy {
    /// How long the request may take, retries and the answer's body included. Default: no limit, as in Istio.
    pub timeout: Option<Duration>,
    /// When and how often it is tried again.
    pub retry: RetryPolicy,
    /// The faults put in on purpose. Default: none.
    pub fault: FaultPolicy,
}

impl RoutePolicy {
    /// The policy of the route that the request took; `None` where no route is known, or another router
    /// than this crate's decided.
    pub fn of(facts: &Facts) -> Option<&Self> {
        facts.route()?.policy.downcast_ref()
    }
}
