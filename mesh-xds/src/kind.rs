//! The four types that travel, and what their names look like.
//!
//! ```
//! use tower_mesh_xds::ResourceType;
//!
//! let host = ResourceType::of_url("type.googleapis.com/mesh.xds.v1.Host").unwrap();
//! assert_eq!(host, ResourceType::Host);
//! assert!(host.check_name("reviews.default.svc.cluster.local").is_ok());
//! assert!(host.check_name("*").is_err());
//! assert!(ResourceType::Address.check_name("10.0.0.1").is_ok());
//! ```

use std::fmt;
use std::net::IpAddr;

/// The longest name of a resource, in bytes. A DNS name has 253 at most, a workload's namespace and name 317.
pub const MAX_NAME_BYTES: usize = 320;

/// A type of resource that proxies subscribe to. Each resource is an atomic unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// Everything that applies to a workload, by `NAMESPACE/NAME`.
    Workload,
    /// Everything that applies to calls to a host, by its full name, as seen from the asker's namespace.
    Host,
    /// The endpoints of a host, by its full name.
    Endpoints,
    /// The host behind an IP address, by the address in its canonical form.
    Address,
}

/// Why a text is no name of a resource.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} names no {kind}: {reason}")]
pub struct InvalidName {
    kind: ResourceType,
    name: String,
    reason: &'static str,
}

impl ResourceType {
    /// All of them, in the order in which they are sent.
    pub const ALL: [Self; 4] = [Self::Workload, Self::Host, Self::Endpoints, Self::Address];

    /// The URL that names the type on the wire.
    pub const fn url(self) -> &'static str {
        match self {
            Self::Workload => "type.googleapis.com/mesh.xds.v1.Workload",
            Self::Host => "type.googleapis.com/mesh.xds.v1.Host",
            Self::Endpoints => "type.googleapis.com/mesh.xds.v1.Endpoints",
            Self::Address => "type.googleapis.com/mesh.xds.v1.Address",
        }
    }

    /// The type with that URL.
    pub fn of_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }

    /// The type's name, as people read it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Workload => "Workload",
            Self::Host => "Host",
            Self::Endpoints => "Endpoints",
            Self::Address => "Address",
        }
    }

    /// Its place in [`ALL`](Self::ALL).
    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Workload => 0,
            Self::Host => 1,
            Self::Endpoints => 2,
            Self::Address => 3,
        }
    }

    /// Whether `name` can be the name of a resource of this type. There is no wildcard that stands for all.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_name(self, name: &str) -> Result<(), InvalidName> {
        let invalid = |reason| {
            // Somebody else's text goes into logs: keep it short.
            Err(InvalidName { kind: self, name: name.chars().take(64).collect(), reason })
        };
        if name.is_empty() {
            return invalid("it is empty");
        }
        if name.len() > MAX_NAME_BYTES {
            return invalid("it is longer than 320 bytes");
        }
        let label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'_');
        match self {
            Self::Workload => match name.split_once('/') {
                Some((ns, name)) if !ns.is_empty() && !name.is_empty() => {
                    if ns.bytes().chain(name.bytes()).all(label) {
                        Ok(())
                    } else {
                        invalid("a name has a-z, 0-9, '-', '.' and '_' only")
                    }
                }
                _ => invalid("a workload is NAMESPACE/NAME"),
            },
            Self::Host | Self::Endpoints => {
                let plain = name.strip_prefix("*.").unwrap_or(name);
                if plain.is_empty() || !plain.bytes().all(label) {
                    return invalid("a host has a-z, 0-9, '-', '.' and '_' only, and '*.' in front at most");
                }
                Ok(())
            }
            Self::Address => match name.parse::<IpAddr>() {
                Ok(ip) if ip.to_canonical().to_string() == name => Ok(()),
                Ok(_) => invalid("the address is not in its canonical form"),
                Err(_) => invalid("it is no IP address"),
            },
        }
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_tell_the_types_apart() {
        for kind in ResourceType::ALL {
            assert_eq!(ResourceType::of_url(kind.url()), Some(kind));
            assert!(kind.url().ends_with(&format!(".{kind}")));
        }
        assert_eq!(ResourceType::of_url("type.googleapis.com/envoy.config.cluster.v3.Cluster"), None);
    }

    #[test]
    fn names_are_checked() {
        use ResourceType::{Address, Endpoints, Host, Workload};
        let long = "a".repeat(MAX_NAME_BYTES + 1);
        for (kind, name, ok) in [
            (Workload, "default/reviews-v1-5d4f-abcde", true),
            (Workload, "reviews", false),
            (Workload, "/reviews", false),
            (Workload, "default/", false),
            (Workload, "default/a/b", false),
            (Host, "reviews.default.svc.cluster.local", true),
            (Host, "*.example.com", true),
            (Host, "*", false),
            (Host, "*.", false),
            (Host, "a.*.b", false),
            (Host, "Reviews", false),
            (Host, "", false),
            (Host, "a b", false),
            (Host, &long, false),
            (Host, &"a".repeat(MAX_NAME_BYTES), true),
            (Endpoints, "a/b", false),
            (Address, "10.0.0.1", true),
            (Address, "::1", true),
            (Address, "0:0::1", false),
            (Address, "::ffff:10.0.0.1", false),
            (Address, "reviews", false),
        ] {
            assert_eq!(kind.check_name(name).is_ok(), ok, "{kind} {name}");
        }
        let error = Host.check_name(&long).unwrap_err().to_string();
        assert!(error.len() < 128, "{error}");
    }
}
