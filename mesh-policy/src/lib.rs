//! Whether a request may pass: authorization, circuit breaking, outlier ejection and rate limits.
//!
//! Each module is one concern, as a pure decision and the `tower` layer that runs it:
//!
//! - [`authorization`]: Istio's `AuthorizationPolicy`, DENY before ALLOW, per request or per connection;
//! - [`breaker`]: the limit on requests in flight that a `DestinationRule`'s `connectionPool` sets;
//! - [`outlier`]: endpoints that keep failing are ejected for a while, as `outlierDetection` says;
//! - [`ratelimit`]: so many requests in a period, for everybody or for each peer.

pub mod authorization;
pub mod breaker;
pub mod outlier;
pub mod ratelimit;

mod future;
