//! The content behind a name: what it is made from, and its bytes.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use mesh_core::resource::Object;
use mesh_core::store::{AddressHosts, Backend, Store, View};
use mesh_xds::{Address, Encoded, Endpoints, Host, MAX_ADDRESS_HOSTS, Payload, ResourceType};

/// What content is made from. Two that are the same give the same bytes.
#[derive(Debug, Clone)]
pub(super) enum Inputs {
    Host(Vec<Object>),
    Endpoints(Arc<[Backend]>),
    Address(AddressHosts),
}

/// Content that is kept.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) inputs: Inputs,
    /// `None` where it is too large and there is no earlier form of it.
    pub(super) encoded: Option<Encoded>,
    /// Why `encoded` is an earlier form.
    pub(super) too_large: Option<Arc<str>>,
}

impl Inputs {
    /// What decides the content behind a name now; `None` where there is nothing.
    pub(super) fn find(store: &Store, view: &View, kind: ResourceType, name: &str) -> Option<Self> {
        match kind {
            // It is told to itself alone, and so is never shared.
            ResourceType::Workload => None,
            ResourceType::Host => store.host_resources(view, name).map(Self::Host),
            ResourceType::Endpoints => store.host_backends(view, name).map(Self::Endpoints),
            ResourceType::Address => {
                let mut found = store.address_hosts(view, name.parse().ok()?)?;
                // `*` alone names no host that can be asked for.
                found.hosts.retain(|host| ResourceType::Host.check_name(host).is_ok());
                found.hosts.truncate(MAX_ADDRESS_HOSTS);
                (!found.hosts.is_empty()).then_some(Self::Address(found))
            }
        }
    }

    /// Whether both are the very same things; quick, and never true of what differs.
    pub(super) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Host(a), Self::Host(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.ptr_eq(b)),
            (Self::Endpoints(a), Self::Endpoints(b)) => Arc::ptr_eq(a, b),
            (Self::Address(a), Self::Address(b)) => a == b,
            _ => false,
        }
    }

    /// The same for inputs that are the same.
    pub(super) fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        match self {
            Self::Host(objects) => objects.iter().for_each(|object| object.address().hash(&mut hasher)),
            Self::Endpoints(backends) => backends.as_ptr().addr().hash(&mut hasher),
            Self::Address(address) => address.hosts.hash(&mut hasher),
        }
        hasher.finish()
    }

    fn payload(&self) -> Payload {
        match self {
            Self::Host(resources) => Host { resources: resources.clone() }.into(),
            Self::Endpoints(backends) => Endpoints::collect(&**backends).into(),
            Self::Address(AddressHosts { hosts, endpoint }) => {
                let hosts = hosts.iter().map(ToString::to_string).collect();
                Address { hosts, endpoint: *endpoint }.into()
            }
        }
    }

    /// Makes the content. Where it is too large, what was there `before` stays.
    pub(super) fn encode(self, before: Option<&Content>) -> Content {
        match self.payload().encode() {
            Ok(encoded) => Content { inputs: self, encoded: Some(encoded), too_large: None },
            Err(error) => {
                let problem = match &self {
                    Self::Host(objects) => format!("{error}{}", largest(objects)),
                    _ => error.to_string(),
                };
                let encoded = before.and_then(|content| content.encoded.clone());
                Content { inputs: self, encoded, too_large: Some(problem.into()) }
            }
        }
    }
}

/// Names the largest of objects that are too large together.
pub(super) fn largest(objects: &[Object]) -> String {
    let sizes = objects.iter().map(|object| (object.to_json().len(), object));
    let largest = sizes.max_by_key(|(size, _)| *size);
    largest.map_or_else(String::new, |(size, object)| {
        format!("; the largest part of it, with {size} bytes, is {}", object.reference())
    })
}
