//! The resources: the only configuration language.
//!
//! The types here are the specs of Istio's resources with their whole upstream schema, and of those
//! objects of Kubernetes that the mesh needs, cut down to the fields that it uses. A [`Resource`] is a
//! spec with its metadata; an [`Object`] is any of them. They are what a directory of YAML holds, what a
//! program builds in code, and what messages name.
//!
//! A mesh resource is read strictly: an unknown field is an error that names the nearest known one. What
//! the schema itself forbids is found by [`Kind::validate`]; whether the mesh can do what is asked is for
//! the crate that would do it.
//!
//! ```
//! use tower_mesh_core::resource::{Object, VirtualService};
//!
//! let objects = tower_mesh_core::yaml::parse_objects("routes.yaml", "
//! apiVersion: networking.istio.io/v1
//! kind: VirtualService
//! metadata: {name: reviews}
//! spec:
//!   hosts: [reviews]
//!   http: [{route: [{destination: {host: reviews, subset: v1}}]}]
//! ").unwrap();
//! let Object::VirtualService(vs) = &objects[0] else { unreachable!() };
//! assert_eq!(vs.reference().to_string(), "VirtualService default/reviews");
//! assert_eq!(vs.spec.hosts, ["reviews"]);
//!
//! let wrong = tower_mesh_core::yaml::parse_objects("routes.yaml", "
//! apiVersion: networking.istio.io/v1
//! kind: VirtualService
//! metadata: {name: reviews}
//! spec: {hosts: [reviews], htpp: []}
//! ").unwrap_err();
//! assert_eq!(
//!     wrong[0].to_string(),
//!     "routes.yaml:5: VirtualService default/reviews: spec.htpp: unknown field; did you mean \"http\"?; \
//!      the resource is not applied"
//! );
//! ```

#[macro_use]
mod macros;

pub mod authorization_policy;
mod common;
pub mod destination_rule;
mod json;
#[cfg(feature = "kube")]
pub mod kube;
pub mod kubernetes;
mod meta;
mod object;
pub mod peer_authentication;
pub mod service_entry;
pub mod sidecar;
pub mod telemetry;
mod validate;
pub mod virtual_service;
pub mod workload_entry;

pub use authorization_policy::AuthorizationPolicy;
pub use common::{
    Duration, IntOrString, InvalidDuration, Labels, Percent, PortSelector, Selector, SidecarPort,
    StringMatch, TargetRef, WorkloadSelector, selects,
};
pub use destination_rule::DestinationRule;
pub use json::InvalidJson;
pub use kubernetes::{EndpointSlice, Namespace, Pod, Service};
pub use meta::{DEFAULT_NAMESPACE, ObjectMeta};
pub use object::{Invalid, Kind, Object, Problem, Resource};
pub(crate) use object::{KindVisitor, OUR_GROUPS, SUPPORTED, api_version, unsupported_kind, with_kind};
pub use peer_authentication::PeerAuthentication;
pub use service_entry::ServiceEntry;
pub use sidecar::Sidecar;
pub use telemetry::Telemetry;
pub use validate::MAX_REGEX;
pub(crate) use validate::metadata as metadata_problems;
pub use virtual_service::VirtualService;
pub use workload_entry::WorkloadEntry;
