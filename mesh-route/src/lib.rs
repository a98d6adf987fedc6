//! Where a request goes.
//!
//! VirtualService routing for tower services, each concern a layer that works alone:
//!
//! - [`retry`] tries again where that is safe and helps,
//! - [`policy`] holds what a route decided, for the layers behind the router.

pub mod policy;
pub mod retry;
