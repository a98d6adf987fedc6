//! What travels, as the mesh's own types: encoded once, decoded strictly.
//!
//! Resources travel as their users wrote them, endpoints in a compact form. Encoding is canonical: the same
//! content gives the same bytes and so the same [`Version`], whoever encodes it.
//!
//! ```
//! use mesh_core::resource::{Resource, Service};
//! use tower_mesh_xds::{Host, Payload, ResourceType};
//!
//! let service = Resource::new("default", "reviews", Service::default());
//! let host = Host { resources: vec![service.into()] };
//! let encoded = Payload::from(host.clone()).encode().unwrap();
//!
//! let read = Payload::decode(ResourceType::Host, encoded.body()).unwrap();
//! assert_eq!(read, Payload::Host(host));
//! assert!(Payload::decode(ResourceType::Address, encoded.body()).is_err());
//! ```

mod count;
mod endpoints;
mod object;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use mesh_core::identity::TrustDomain;
use mesh_core::resource::Object;
use mesh_core::store::StoreOptions;
use prost::Message;

pub use endpoints::{Endpoint, EndpointGroup, Endpoints};

use crate::proto::mesh as wire;
use crate::{ResourceType, Version};

/// The largest resource, in bytes: some 60,000 endpoints, or some thousand policies.
pub const MAX_RESOURCE_BYTES: usize = 2 * 1024 * 1024;
/// The most objects of a Workload or Host.
pub const MAX_OBJECTS: usize = 8192;
/// The most endpoints of a host.
pub const MAX_ENDPOINTS: usize = 65_536;
/// The most ports of an endpoint, and the most labels.
pub const MAX_ENDPOINT_ITEMS: usize = 256;
/// The most hosts behind an address.
pub const MAX_ADDRESS_HOSTS: usize = 256;
/// The longest text of an endpoint: a name, a label, a locality. In bytes.
pub const MAX_TEXT_BYTES: usize = 512;

/// The content of any resource.
#[derive(Debug, Clone, PartialEq)]
pub enum Payload {
    /// Of a [`ResourceType::Workload`].
    Workload(Workload),
    /// Of a [`ResourceType::Host`].
    Host(Host),
    /// Of [`ResourceType::Endpoints`].
    Endpoints(Endpoints),
    /// Of a [`ResourceType::Address`].
    Address(Address),
}

/// Everything that applies to a workload.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Workload {
    /// What the whole mesh has in common.
    pub options: StoreOptions,
    /// The workload itself, its services, and the policies that select it.
    pub resources: Vec<Object>,
}

/// Everything that applies to calls to a host, but for its endpoints.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Host {
    /// The service, its VirtualService, its DestinationRules.
    pub resources: Vec<Object>,
}

/// What stands behind an IP address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Address {
    /// The hosts in full, the one that decides first. At least one.
    pub hosts: Vec<String>,
    /// Whether it is the address of an endpoint rather than that of the whole service.
    pub endpoint: bool,
}

/// Bytes that are made once and sent to all who ask. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    kind: ResourceType,
    version: Version,
    body: Bytes,
}

/// A resource is larger than what may travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a {kind} of {bytes} bytes is larger than {MAX_RESOURCE_BYTES}; divide it, or narrow who sees what with exportTo"
)]
pub struct TooLarge {
    kind: ResourceType,
    bytes: usize,
}

/// Why bytes are not what they should be: the field, and what is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct DecodeError {
    field: String,
    message: String,
}

impl DecodeError {
    fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }

    fn below(mut self, field: &str) -> Self {
        self.field = format!("{field}.{}", self.field);
        self
    }
}

impl Encoded {
    /// Encoded content of a type.
    ///
    /// # Errors
    /// When it is larger than [`MAX_RESOURCE_BYTES`].
    pub fn new(kind: ResourceType, body: Bytes) -> Result<Self, TooLarge> {
        if body.len() > MAX_RESOURCE_BYTES {
            return Err(TooLarge { kind, bytes: body.len() });
        }
        Ok(Self { kind, version: Version::of(kind, &body), body })
    }

    /// The type.
    pub fn kind(&self) -> ResourceType {
        self.kind
    }

    /// The content's version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The content.
    pub fn body(&self) -> &Bytes {
        &self.body
    }
}

impl Payload {
    /// The type.
    pub fn kind(&self) -> ResourceType {
        match self {
            Self::Workload(_) => ResourceType::Workload,
            Self::Host(_) => ResourceType::Host,
            Self::Endpoints(_) => ResourceType::Endpoints,
            Self::Address(_) => ResourceType::Address,
        }
    }

    /// The content's bytes.
    ///
    /// # Errors
    /// When they are more than [`MAX_RESOURCE_BYTES`].
    pub fn encode(&self) -> Result<Encoded, TooLarge> {
        let body = match self {
            Self::Workload(workload) => workload.to_wire().encode_to_vec(),
            Self::Host(host) => wire::Host { resources: object::to_wire(&host.resources) }.encode_to_vec(),
            Self::Endpoints(endpoints) => endpoints.to_wire().encode_to_vec(),
            Self::Address(address) => {
                wire::Address { hosts: address.hosts.clone(), endpoint: address.endpoint }.encode_to_vec()
            }
        };
        Encoded::new(self.kind(), body.into())
    }

    /// Reads a peer's bytes.
    ///
    /// # Errors
    /// What is wrong, with the field and the resource: nothing is taken in part.
    pub fn decode(kind: ResourceType, body: &[u8]) -> Result<Self, DecodeError> {
        if body.len() > MAX_RESOURCE_BYTES {
            let message = format!("{} bytes are more than {MAX_RESOURCE_BYTES}", body.len());
            return Err(DecodeError::new(kind.as_str(), message));
        }
        Self::decode_bounded(kind, body).map_err(|error| error.below(kind.as_str()))
    }

    fn decode_bounded(kind: ResourceType, body: &[u8]) -> Result<Self, DecodeError> {
        Ok(match kind {
            ResourceType::Workload => {
                // Counted first: what takes two bytes on the wire takes a hundred in memory.
                count::limit(body, 4, MAX_OBJECTS, "resources")?;
                Self::Workload(Workload::of_wire(message(body)?)?)
            }
            ResourceType::Host => {
                count::limit(body, 1, MAX_OBJECTS, "resources")?;
                let host: wire::Host = message(body)?;
                Self::Host(Host { resources: object::of_wire(&host.resources)? })
            }
            ResourceType::Endpoints => {
                count::limit(body, 1, MAX_ENDPOINTS, "groups")?;
                count::limit_below(body, 1, 10, MAX_ENDPOINTS, "endpoints")?;
                Self::Endpoints(Endpoints::of_wire(message(body)?)?)
            }
            ResourceType::Address => {
                count::limit(body, 1, MAX_ADDRESS_HOSTS, "hosts")?;
                Self::Address(Address::of_wire(message(body)?)?)
            }
        })
    }
}

fn message<M: Message + Default>(body: &[u8]) -> Result<M, DecodeError> {
    M::decode(body).map_err(|error| DecodeError::new("message", error.to_string()))
}

impl Workload {
    fn to_wire(&self) -> wire::Workload {
        wire::Workload {
            trust_domain: self.options.trust_domain.as_str().to_owned(),
            root_namespace: self.options.root_namespace.to_string(),
            cluster_domain: self.options.cluster_domain.to_string(),
            resources: object::to_wire(&self.resources),
        }
    }

    fn of_wire(wire: wire::Workload) -> Result<Self, DecodeError> {
        let trust_domain = TrustDomain::new(&wire.trust_domain)
            .map_err(|error| DecodeError::new("trust_domain", error.to_string()))?;
        let name = |field: &str, text: String| -> Result<Arc<str>, DecodeError> {
            ResourceType::Host
                .check_name(&text)
                .map_err(|error| DecodeError::new(field, error.to_string()))?;
            Ok(text.into())
        };
        let options = StoreOptions {
            trust_domain,
            root_namespace: name("root_namespace", wire.root_namespace)?,
            cluster_domain: name("cluster_domain", wire.cluster_domain)?,
        };
        Ok(Self { options, resources: object::of_wire(&wire.resources)? })
    }
}

impl Address {
    fn of_wire(wire: wire::Address) -> Result<Self, DecodeError> {
        if wire.hosts.is_empty() {
            return Err(DecodeError::new("hosts", "an address without hosts does not exist"));
        }
        for (i, host) in wire.hosts.iter().enumerate() {
            ResourceType::Host
                .check_name(host)
                .map_err(|error| DecodeError::new(format!("hosts[{i}]"), error.to_string()))?;
        }
        Ok(Self { hosts: wire.hosts, endpoint: wire.endpoint })
    }
}

macro_rules! payloads {
    ($($kind:ident),*) => {$(
        impl From<$kind> for Payload {
            fn from(content: $kind) -> Self {
                Self::$kind(content)
            }
        }
    )*};
}

payloads!(Workload, Host, Endpoints, Address);
