//! Where a request goes.
//!
//! VirtualService routing for tower services, each concern a layer that works alone:
//!
//! - [`balance`] chooses an endpoint,
//! - [`pool`] keeps the connections to endpoints,
//! - [`retry`] tries again where that is safe and helps,
//! - [`policy`] holds what a route decided, for the layers behind the router.

pub mod attempt;
pub mod balance;
pub mod policy;
pub mod pool;
pub mod retry;
