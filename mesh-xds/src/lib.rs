//! How configuration travels in a mesh.

pub mod ca;
pub mod client;
mod kind;
mod payload;
pub mod proto;
pub mod server;
mod version;

pub use kind::{InvalidName, MAX_NAME_BYTES, ResourceType};
pub use payload::{
    Address, DecodeError, Encoded, Endpoint, EndpointGroup, EndpointPort, Endpoints, FoundEndpoint, Host,
    MAX_ADDRESS_HOSTS, MAX_ENDPOINT_ITEMS, MAX_ENDPOINTS, MAX_OBJECTS, MAX_RESOURCE_BYTES, MAX_TEXT_BYTES,
    Payload, TooLarge, Workload,
};
pub use version::{InvalidVersion, Version};
