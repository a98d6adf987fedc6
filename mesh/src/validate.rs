//! What the mesh can do of what is asked: every concern's check of its own resources, in one place.
//!
//! The directory source asks before it puts a resource in force, and `mesh-proxy check` prints the answers.

use mesh_core::diagnostic::Diagnostic;
use mesh_core::resource::Object;

/// What the crates that would do it find wrong with `object`; `root` is the mesh's root namespace. An empty
/// list says that all of it is done.
pub fn validate(object: &Object, root: &str) -> Vec<Diagnostic> {
    let found = match object {
        Object::VirtualService(vs) => mesh_route::table::validate(vs),
        Object::AuthorizationPolicy(policy) => mesh_policy::authorization::validate(policy),
        Object::PeerAuthentication(policy) => mesh_tls::modes::validate(policy, root),
        Object::DestinationRule(rule) => crate::destination::validate(rule),
        Object::Telemetry(_) | Object::Sidecar(_) => crate::unsupported::validate(object),
        _ => Vec::new(),
    };
    found
        .into_iter()
        .map(|mut d| {
            d.resource.get_or_insert_with(|| object.reference());
            if d.origin.is_none() {
                d.origin = object.origin().cloned();
            }
            d
        })
        .collect()
}
