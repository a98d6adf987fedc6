//! The server name that Istio's sidecars send: `outbound_.PORT_.SUBSET_.HOST`.
//!
//! ```
//! use tower_mesh_tls::sni::{OutboundSni, outbound_sni};
//!
//! let name = outbound_sni(9080, "", "reviews.default.svc.cluster.local").unwrap();
//! assert_eq!(name, "outbound_.9080_._.reviews.default.svc.cluster.local");
//! let parsed = OutboundSni::parse(&name).unwrap();
//! assert_eq!((parsed.port, parsed.subset, parsed.host), (9080, "", "reviews.default.svc.cluster.local"));
//! ```

/// The longest server name that TLS carries, in bytes (RFC 1035, section 2.3.4, without the root's dot).
pub const MAX_SNI: usize = 253;

const PREFIX: &str = "outbound_.";

/// Why no server name could be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSni {
    /// The name is longer than TLS carries.
    #[error(
        "the server name for {host} would have {length} bytes, more than {MAX_SNI}: shorten host or subset"
    )]
    TooLong {
        /// The host called.
        host: String,
        /// How long the name would be.
        length: usize,
    },
    /// Host or subset is no DNS name.
    #[error("{name:?} is no valid server name: host and subset must be DNS labels")]
    Malformed {
        /// The name as it would be.
        name: String,
    },
}

/// The parts of a mesh server name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboundSni<'a> {
    /// The service's port.
    pub port: u16,
    /// The subset; empty for none.
    pub subset: &'a str,
    /// The host.
    pub host: &'a str,
}

/// The server name for a call to `host`; `subset` is empty for none.
///
/// # Errors
/// When the result is longer than [`MAX_SNI`] or is no DNS name.
pub fn outbound_sni(port: u16, subset: &str, host: &str) -> Result<String, InvalidSni> {
    let name = format!("{PREFIX}{port}_.{subset}_.{host}");
    if name.len() > MAX_SNI {
        return Err(InvalidSni::TooLong { host: host.chars().take(MAX_SNI).collect(), length: name.len() });
    }
    // A subset with a dot would be read back as another subset and host.
    let read_back = OutboundSni::parse(&name) == Some(OutboundSni { port, subset, host });
    if !read_back || rustls::pki_types::DnsName::try_from(name.as_str()).is_err() {
        return Err(InvalidSni::Malformed { name });
    }
    Ok(name)
}

impl<'a> OutboundSni<'a> {
    /// Reads a server name; `None` when it is not of this form. Takes what a peer sent.
    pub fn parse(name: &'a str) -> Option<Self> {
        if name.len() > MAX_SNI {
            return None;
        }
        let (port, rest) = name.strip_prefix(PREFIX)?.split_once("_.")?;
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && !port.starts_with('0');
        let port = if digits { port.parse().ok()? } else { return None };
        let (subset, host) = rest.split_once("_.")?;
        let plain = |s: &str| s.bytes().all(|b| b.is_ascii_graphic());
        if host.is_empty() || subset.contains('.') || !plain(subset) || !plain(host) {
            return None;
        }
        Some(Self { port, subset, host })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_istios_names_and_nothing_else() {
        let table = [
            ("outbound_.9080_.v1_.reviews.default.svc.cluster.local", true),
            ("outbound_.9080_._.reviews.default.svc.cluster.local", true),
            ("outbound_.80_.a_b_.x", true),
            ("outbound_.0_._.x", false),
            ("outbound_.080_._.x", false),
            ("outbound_.65536_._.x", false),
            ("outbound_.+80_._.x", false),
            ("outbound_._._.x", false),
            ("outbound_.80_._.", false),
            ("outbound_.80_.v1.x", false),
            ("inbound_.80_._.x", false),
            ("reviews.default.svc.cluster.local", false),
            ("", false),
        ];
        for (name, good) in table {
            assert_eq!(OutboundSni::parse(name).is_some(), good, "{name}");
        }
    }

    #[test]
    fn what_tls_cannot_carry_is_refused() {
        let long = format!("{}.local", "a".repeat(63) + &format!(".{}", "b".repeat(63)).repeat(3));
        assert!(matches!(outbound_sni(80, "", &long), Err(InvalidSni::TooLong { .. })));
        assert!(matches!(outbound_sni(80, "v.1", "reviews"), Err(InvalidSni::Malformed { .. })));
        assert!(matches!(outbound_sni(80, "", ""), Err(InvalidSni::Malformed { .. })));
        assert!(matches!(outbound_sni(80, "", "a b"), Err(InvalidSni::Malformed { .. })));
        assert!(matches!(outbound_sni(0, "", "a"), Err(InvalidSni::Malformed { .. })));
    }

    proptest! {
        #[test]
        fn what_is_built_is_read_back(port in 1..=u16::MAX, subset in "([a-z][a-z0-9-]{0,10}[a-z0-9])?", host in "[a-z][a-z0-9]{0,20}(\\.[a-z][a-z0-9]{0,20}){0,4}") {
            let name = outbound_sni(port, &subset, &host).unwrap();
            let parsed = OutboundSni::parse(&name).unwrap();
            prop_assert_eq!((parsed.port, parsed.subset, parsed.host), (port, subset.as_str(), host.as_str()));
        }

        #[test]
        fn any_text_is_read_without_panic(name in "(outbound_\\.)?[ -~_.]{0,60}") {
            if let Some(sni) = OutboundSni::parse(&name) {
                prop_assert_eq!(format!("outbound_.{}_.{}_.{}", sni.port, sni.subset, sni.host), name);
            }
        }
    }
}
