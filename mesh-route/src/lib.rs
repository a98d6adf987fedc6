//! Where a request goes.
//!
//! VirtualService routing for tower services, each concern a layer that works alone:
//!
//! - [`table`] compiles VirtualServices and decides, [`layer`] acts on it,
//! - [`matching`], [`headers`], [`rewrite`] and [`redirect`] are the parts of a rule,
//! - [`fault`] puts in delays and errors on purpose,
//! - [`balance`] chooses an endpoint,
//! - [`pool`] keeps the connections to endpoints,
//! - [`retry`] tries again where that is safe and helps,
//! - [`timeout`] ends what takes too long,
//! - [`policy`] holds what a route decided, for the layers behind the router.

pub mod attempt;
pub mod balance;
pub mod fault;
pub mod headers;
pub mod layer;
pub mod matching;
pub mod policy;
pub mod pool;
pub mod redirect;
pub mod retry;
pub mod rewrite;
pub mod table;
pub mod timeout;

#[cfg(test)]
mod testing;
