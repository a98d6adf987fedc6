//! A resource with its metadata, and any resource.

use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::ser::{Error as _, SerializeMap};
use serde::{Serialize, Serializer};

use super::authorization_policy::AuthorizationPolicy;
use super::destination_rule::DestinationRule;
use super::kubernetes::{EndpointSlice, Namespace, Pod, Service};
use super::meta::ObjectMeta;
use super::peer_authentication::PeerAuthentication;
use super::service_entry::ServiceEntry;
use super::sidecar::Sidecar;
use super::telemetry::Telemetry;
use super::virtual_service::VirtualService;
use super::workload_entry::WorkloadEntry;
use crate::diagnostic::{Origin, ResourceRef};

/// What the schema itself finds wrong with a value that could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The field, as a path such as `spec.http[0].route`.
    pub field: String,
    /// What is wrong and the way out.
    pub message: String,
}

impl Problem {
    /// Something wrong with `field`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// A kind of resource: its spec's type knows its names in the API.
pub trait Kind:
    Clone + fmt::Debug + PartialEq + Default + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// The kind, such as `VirtualService`.
    const KIND: &'static str;
    /// The API group; empty for Kubernetes' core.
    const GROUP: &'static str;
    /// The versions that are read alike, the preferred one first.
    const VERSIONS: &'static [&'static str];
    /// The plural in URLs.
    const PLURAL: &'static str;
    /// Whether it lives in a namespace.
    const NAMESPACED: bool = true;
    /// Whether its fields stand beside `metadata` rather than under `spec`.
    const FLAT: bool = false;
    /// Whether unknown fields are errors.
    const STRICT: bool = true;

    /// What the schema itself finds wrong. Whether the mesh can do what is asked is for the crates that
    /// would do it.
    fn validate(&self, meta: &ObjectMeta) -> Vec<Problem> {
        let _ = meta;
        Vec::new()
    }
}

/// Why a security resource is in force in its closed reading only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// What is wrong with what the user wrote: the text of the diagnostic.
    pub reason: String,
}

/// A resource: its metadata and its spec.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource<T> {
    /// Its metadata.
    pub meta: ObjectMeta,
    /// Its spec.
    pub spec: T,
    /// Where it was read from; `None` for one that was built in code.
    pub origin: Option<Origin>,
    /// Set when what the user wrote could not be used and this is its closed reading: it refuses what it
    /// selects, and answers for that carry `policy_invalid`.
    pub invalid: Option<Invalid>,
}

impl<T: Kind> Resource<T> {
    /// A resource built in code.
    pub fn new(namespace: &str, name: &str, spec: T) -> Self {
        Self { meta: ObjectMeta::new(namespace, name), spec, origin: None, invalid: None }
    }

    /// Its name in messages.
    pub fn reference(&self) -> ResourceRef {
        ResourceRef::new(T::KIND, &self.meta.namespace, &self.meta.name)
    }
}

/// `apiVersion` of a group and a version.
pub(crate) fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// Written as Kubernetes writes it: `apiVersion`, `kind`, `metadata`, and `spec` (or the kind's own fields).
impl<T: Kind> Serialize for Resource<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let version = T::VERSIONS.first().copied().unwrap_or_default();
        map.serialize_entry("apiVersion", &api_version(T::GROUP, version))?;
        map.serialize_entry("kind", T::KIND)?;
        map.serialize_entry("metadata", &self.meta)?;
        if T::FLAT {
            match serde_json::to_value(&self.spec).map_err(S::Error::custom)? {
                serde_json::Value::Object(fields) => {
                    for (key, value) in &fields {
                        map.serialize_entry(key, value)?;
                    }
                }
                other => map.serialize_entry("spec", &other)?,
            }
        } else {
            map.serialize_entry("spec", &self.spec)?;
        }
        map.end()
    }
}

macro_rules! objects {
    ($( $kind:ident { group: $group:literal, versions: $versions:expr, plural: $plural:literal $(, $const:ident: $value:expr)* } )*) => {
        $(
            impl Kind for $kind {
                const KIND: &'static str = stringify!($kind);
                const GROUP: &'static str = $group;
                const VERSIONS: &'static [&'static str] = $versions;
                const PLURAL: &'static str = $plural;
                $( const $const: bool = $value; )*

                fn validate(&self, meta: &ObjectMeta) -> Vec<Problem> {
                    super::validate::Validate::problems(self, meta)
                }
            }

            impl From<Resource<$kind>> for Object {
                fn from(resource: Resource<$kind>) -> Self {
                    Self::$kind(Arc::new(resource))
                }
            }

            impl From<Arc<Resource<$kind>>> for Object {
                fn from(resource: Arc<Resource<$kind>>) -> Self {
                    Self::$kind(resource)
                }
            }
        )*

        /// Any resource that the mesh understands. Cheap to clone.
        #[derive(Debug, Clone, PartialEq)]
        #[non_exhaustive]
        pub enum Object {
            $(
                #[doc = concat!("A `", stringify!($kind), "`.")]
                $kind(Arc<Resource<$kind>>),
            )*
        }

        impl Object {
            /// The kind, such as `VirtualService`.
            pub fn kind(&self) -> &'static str {
                match self { $( Self::$kind(_) => $kind::KIND, )* }
            }

            /// The API group.
            pub fn group(&self) -> &'static str {
                match self { $( Self::$kind(_) => $kind::GROUP, )* }
            }

            /// The metadata.
            pub fn meta(&self) -> &ObjectMeta {
                match self { $( Self::$kind(r) => &r.meta, )* }
            }

            /// Its name in messages.
            pub fn reference(&self) -> ResourceRef {
                match self { $( Self::$kind(r) => r.reference(), )* }
            }

            /// Where it was read from.
            pub fn origin(&self) -> Option<&Origin> {
                match self { $( Self::$kind(r) => r.origin.as_ref(), )* }
            }

            /// The same, read from nowhere: what travels, or came from where there are no files.
            #[must_use]
            pub fn without_origin(self) -> Self {
                match self {
                    $( Self::$kind(r) if r.origin.is_some() => {
                        Self::$kind(Arc::new(Resource { origin: None, ..Arc::unwrap_or_clone(r) }))
                    } )*
                    placeless => placeless,
                }
            }

            /// Set when it is a closed reading.
            pub fn invalid(&self) -> Option<&Invalid> {
                match self { $( Self::$kind(r) => r.invalid.as_ref(), )* }
            }

            /// Whether both are the very same object in memory, which is quicker to tell than whether they
            /// are equal.
            pub fn ptr_eq(&self, other: &Self) -> bool {
                match (self, other) {
                    $( (Self::$kind(a), Self::$kind(b)) => Arc::ptr_eq(a, b), )*
                    _ => false,
                }
            }

            /// Where it lies in memory: as long as it is kept, no other object lies there.
            pub fn address(&self) -> usize {
                match self { $( Self::$kind(r) => Arc::as_ptr(r).addr(), )* }
            }

            /// What the schema itself finds wrong.
            pub fn validate(&self) -> Vec<Problem> {
                match self { $( Self::$kind(r) => r.spec.validate(&r.meta), )* }
            }
        }

        impl Serialize for Object {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self { $( Self::$kind(r) => r.serialize(serializer), )* }
            }
        }

        /// Calls `$visitor.visit::<K>()` for the kind that a document names.
        pub(crate) fn with_kind<V: KindVisitor>(group: &str, kind: &str, visitor: V) -> Result<V::Output, V> {
            match (group, kind) {
                $( ($group, stringify!($kind)) => Ok(visitor.visit::<$kind>()), )*
                _ => Err(visitor),
            }
        }
    };
}

/// Something to do with a kind that is known only at run time.
pub(crate) trait KindVisitor: Sized {
    /// What comes of it.
    type Output;
    /// Does it for `K`.
    fn visit<K: Kind>(self) -> Self::Output
    where
        Object: From<Resource<K>>;
}

const NETWORKING: &[&str] = &["v1", "v1beta1", "v1alpha3"];
const SECURITY: &[&str] = &["v1", "v1beta1"];
const TELEMETRY: &[&str] = &["v1", "v1alpha1"];
const CORE: &[&str] = &["v1"];

objects! {
    VirtualService { group: "networking.istio.io", versions: NETWORKING, plural: "virtualservices" }
    DestinationRule { group: "networking.istio.io", versions: NETWORKING, plural: "destinationrules" }
    ServiceEntry { group: "networking.istio.io", versions: NETWORKING, plural: "serviceentries" }
    WorkloadEntry { group: "networking.istio.io", versions: NETWORKING, plural: "workloadentries" }
    Sidecar { group: "networking.istio.io", versions: NETWORKING, plural: "sidecars" }
    PeerAuthentication { group: "security.istio.io", versions: SECURITY, plural: "peerauthentications" }
    AuthorizationPolicy { group: "security.istio.io", versions: SECURITY, plural: "authorizationpolicies" }
    Telemetry { group: "telemetry.istio.io", versions: TELEMETRY, plural: "telemetries" }
    Service { group: "", versions: CORE, plural: "services", STRICT: false }
    EndpointSlice { group: "discovery.k8s.io", versions: CORE, plural: "endpointslices", FLAT: true, STRICT: false }
    Pod { group: "", versions: CORE, plural: "pods", FLAT: true, STRICT: false }
    Namespace { group: "", versions: CORE, plural: "namespaces", FLAT: true, STRICT: false, NAMESPACED: false }
}

/// The API groups of which every kind is ours: one that we do not support is an error, not a foreigner.
pub(crate) const OUR_GROUPS: &[&str] = &[
    "networking.istio.io",
    "security.istio.io",
    "telemetry.istio.io",
    "extensions.istio.io",
    "gateway.networking.k8s.io",
];

/// The kinds of our groups that are known and not supported yet.
const UNSUPPORTED: &[&str] = &[
    "Gateway",
    "WorkloadGroup",
    "EnvoyFilter",
    "ProxyConfig",
    "RequestAuthentication",
    "WasmPlugin",
    "TrafficExtension",
    "GatewayClass",
    "HTTPRoute",
    "GRPCRoute",
    "TCPRoute",
    "TLSRoute",
    "UDPRoute",
    "ReferenceGrant",
    "BackendTLSPolicy",
    "ListenerSet",
];

/// The static name of a kind that is known and not supported yet.
pub(crate) fn unsupported_kind(kind: &str) -> Option<&'static str> {
    UNSUPPORTED.iter().copied().find(|known| *known == kind)
}

/// Every supported kind with its group, for suggestions.
pub(crate) const SUPPORTED: &[(&str, &str)] = &[
    (VirtualService::GROUP, VirtualService::KIND),
    (DestinationRule::GROUP, DestinationRule::KIND),
    (ServiceEntry::GROUP, ServiceEntry::KIND),
    (WorkloadEntry::GROUP, WorkloadEntry::KIND),
    (Sidecar::GROUP, Sidecar::KIND),
    (PeerAuthentication::GROUP, PeerAuthentication::KIND),
    (AuthorizationPolicy::GROUP, AuthorizationPolicy::KIND),
    (Telemetry::GROUP, Telemetry::KIND),
];
