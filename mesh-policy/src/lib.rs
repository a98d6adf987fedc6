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

use mesh_core::diagnostic::Diagnostic;
use mesh_core::resource::Object;

/// What this crate finds wrong with a resource that the schema has nothing against: what it cannot
/// enforce, and what has no effect. For whoever loads resources; made to be handed to a
/// [`Directory`](mesh_core::source::Directory) or to [`mesh_core::yaml::read_file`].
///
/// ```
/// let policy = "
/// apiVersion: security.istio.io/v1
/// kind: AuthorizationPolicy
/// metadata: {name: p}
/// spec: {action: CUSTOM, provider: {name: x}, rules: [{}]}
/// ";
/// let object = &mesh_core::yaml::parse_objects("p.yaml", policy).unwrap()[0];
/// let found = tower_mesh_policy::validate(object);
/// assert!(found[0].is_error() && found[0].field == "spec.action");
/// ```
pub fn validate(object: &Object) -> Vec<Diagnostic> {
    match object {
        Object::AuthorizationPolicy(policy) => authorization::validate(policy),
        Object::DestinationRule(rule) => outlier::validate(rule),
        _ => Vec::new(),
    }
}
