//! How configuration travels in a mesh, and certificates.
//!
//! A proxy asks its control plane for what it uses, name by name, and is told what has changed: the delta form
//! of xDS discovery, with four types of our own. What travels are the resources as their users wrote them,
//! and endpoints in a compact form. [`server`] answers, [`client`] asks, [`ca`] is the certificate service.
//!
//! | type | name | content |
//! |---|---|---|
//! | [`Workload`] | `NAMESPACE/NAME` | everything that applies to a workload |
//! | [`Host`] | a full host name | everything that applies to calls to it, as the asker's namespace sees it |
//! | [`Endpoints`] | a full host name | its endpoints |
//! | [`Address`] | an IP address | the hosts behind it |
//!
//! A resource is an atomic unit: it is taken as a whole or refused as a whole, with the reason, and then the
//! last good one stays. Its [`Version`] is a hash of its content, so a proxy that comes back, or goes to
//! another replica, is sent only what is different. What does not exist is said to be removed.
//!
//! Bytes of a peer are read strictly and within limits; an identity comes from the connection alone.
//!
//! ```
//! use tower_mesh_xds::{Address, Payload, ResourceType};
//!
//! let address = Address { hosts: vec!["reviews.default.svc.cluster.local".into()], endpoint: false };
//! let encoded = Payload::from(address.clone()).encode().unwrap();
//! assert_eq!(Payload::decode(ResourceType::Address, encoded.body()), Ok(Payload::Address(address)));
//! assert_eq!(encoded.version().to_string().len(), 30);
//! ```

pub mod ca;
pub mod client;
mod kind;
mod payload;
pub mod proto;
pub mod server;
mod version;

pub use kind::{InvalidName, MAX_NAME_BYTES, ResourceType};
pub use payload::{
    Address, DecodeError, Encoded, Endpoint, EndpointGroup, Endpoints, Host, MAX_ADDRESS_HOSTS,
    MAX_ENDPOINT_ITEMS, MAX_ENDPOINTS, MAX_OBJECTS, MAX_RESOURCE_BYTES, MAX_TEXT_BYTES, Payload, TooLarge,
    Workload,
};
pub use version::{InvalidVersion, Version};
