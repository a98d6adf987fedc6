//! Who speaks: trust domains and SPIFFE IDs.
//!
//! The mesh names workloads as Istio does, `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`, and
//! checks the character rules of the [SPIFFE ID specification](https://spiffe.io/docs/latest/spiffe-specs/spiffe-id/).
//!
//! ```
//! use tower_mesh_core::identity::{SpiffeId, TrustDomain};
//!
//! let td = TrustDomain::new("cluster.local").unwrap();
//! let id = SpiffeId::for_account(&td, "default", "reviews").unwrap();
//! assert_eq!(id.as_str(), "spiffe://cluster.local/ns/default/sa/reviews");
//! assert_eq!(id.principal(), "cluster.local/ns/default/sa/reviews");
//! assert_eq!((id.namespace(), id.service_account()), (Some("default"), Some("reviews")));
//! assert!("spiffe://cluster.local/ns/../sa/x".parse::<SpiffeId>().is_err());
//! ```

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

const SCHEME: &str = "spiffe://";
/// The longest SPIFFE ID that the specification makes everybody accept, in bytes.
pub const MAX_SPIFFE_ID: usize = 2048;
/// The longest trust domain name, in bytes.
pub const MAX_TRUST_DOMAIN: usize = 255;

/// The authority part of a SPIFFE ID: lower-case letters, digits, `.`, `-` and `_`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

/// A workload's identity. Cheap to clone; ordered and hashed by its text.
#[derive(Clone)]
pub struct SpiffeId {
    text: Arc<str>,
    /// Where the path starts, in bytes; the trust domain lies between the scheme and here.
    path: usize,
}

/// Why a text is no SPIFFE ID or trust domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}: {reason}")]
pub struct InvalidIdentity {
    what: &'static str,
    text: String,
    reason: &'static str,
}

impl InvalidIdentity {
    fn new(what: &'static str, text: &str, reason: &'static str) -> Self {
        // What a peer sent is quoted in logs: keep it short.
        Self { what, text: text.chars().take(128).collect(), reason }
    }
}

fn check_trust_domain(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("the trust domain is empty");
    }
    if name.len() > MAX_TRUST_DOMAIN {
        return Err("the trust domain is longer than 255 bytes");
    }
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    if !name.bytes().all(ok) {
        return Err("a trust domain has only a-z, 0-9, '.', '-' and '_'");
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), &'static str> {
    if path.is_empty() {
        return Ok(());
    }
    let Some(rest) = path.strip_prefix('/') else {
        return Err("the path does not start with '/'");
    };
    for segment in rest.split('/') {
        if segment.is_empty() {
            return Err("the path has an empty segment");
        }
        if segment == "." || segment == ".." {
            return Err("the path has a relative segment");
        }
        let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if !segment.bytes().all(ok) {
            return Err("a path segment has only letters, digits, '.', '-' and '_'");
        }
    }
    Ok(())
}

impl TrustDomain {
    /// Checks `name`.
    ///
    /// # Errors
    /// When it is empty, longer than 255 bytes, or has a character that SPIFFE does not allow there.
    pub fn new(name: &str) -> Result<Self, InvalidIdentity> {
        check_trust_domain(name).map_err(|r| InvalidIdentity::new("trust domain", name, r))?;
        Ok(Self(Arc::from(name)))
    }

    /// The name, without scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TrustDomain {
    /// Istio's default, `cluster.local`.
    fn default() -> Self {
        Self(Arc::from("cluster.local"))
    }
}

impl SpiffeId {
    /// The identity of a service account, in Istio's form.
    ///
    /// # Errors
    /// When namespace or account holds a character that has no place in a SPIFFE path.
    pub fn for_account(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, InvalidIdentity> {
        let text = format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}");
        let id: Self = text.parse()?;
        // A name with a slash in it would say something else than its two parts.
        if id.namespace() != Some(namespace) || id.service_account() != Some(service_account) {
            return Err(InvalidIdentity::new("SPIFFE ID", &text, "a name holds a '/'"));
        }
        Ok(id)
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The form in which Istio's policies write it: the URI without `spiffe://`.
    pub fn principal(&self) -> &str {
        self.text.strip_prefix(SCHEME).unwrap_or(&self.text)
    }

    /// The trust domain's name.
    pub fn trust_domain(&self) -> &str {
        self.text.get(SCHEME.len()..self.path).unwrap_or_default()
    }

    /// The path, with its leading slash; empty for the identity of a whole trust domain.
    pub fn path(&self) -> &str {
        self.text.get(self.path..).unwrap_or_default()
    }

    /// The namespace, when the path has the form `/ns/NAMESPACE/sa/ACCOUNT`.
    pub fn namespace(&self) -> Option<&str> {
        self.account_parts().map(|(ns, _)| ns)
    }

    /// The service account, when the path has the form `/ns/NAMESPACE/sa/ACCOUNT`.
    pub fn service_account(&self) -> Option<&str> {
        self.account_parts().map(|(_, sa)| sa)
    }

    fn account_parts(&self) -> Option<(&str, &str)> {
        let mut parts = self.path().strip_prefix("/ns/")?.split('/');
        let (ns, word, sa) = (parts.next()?, parts.next()?, parts.next()?);
        (word == "sa" && parts.next().is_none()).then_some((ns, sa))
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = |reason| InvalidIdentity::new("SPIFFE ID", text, reason);
        if text.len() > MAX_SPIFFE_ID {
            return Err(fail("longer than 2048 bytes"));
        }
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| fail("it does not start with spiffe://"))?;
        let (domain, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        check_trust_domain(domain).map_err(fail)?;
        check_path(path).map_err(fail)?;
        Ok(Self { text: Arc::from(text), path: SCHEME.len() + domain.len() })
    }
}

impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}
impl Eq for SpiffeId {}
impl std::hash::Hash for SpiffeId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}
impl PartialOrd for SpiffeId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for SpiffeId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpiffeId({})", self.text)
    }
}
impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustDomain({})", self.0)
    }
}
impl FromStr for TrustDomain {
    type Err = InvalidIdentity;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::new(s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn accepts_and_refuses() {
        let table = [
            ("spiffe://td/ns/a/sa/b", true),
            ("spiffe://td", true),
            ("spiffe://td.example-1_x/a.b/c_d", true),
            ("spiffe://TD/ns/a/sa/b", false),
            ("spiffe:///ns/a/sa/b", false),
            ("spiffe://td/", false),
            ("spiffe://td//a", false),
            ("spiffe://td/a/", false),
            ("spiffe://td/a/./b", false),
            ("spiffe://td/a/../b", false),
            ("spiffe://td/a%20b", false),
            ("spiffe://td/a\0b", false),
            ("spiffe://td:443/a", false),
            ("spiffe://u@td/a", false),
            ("spiffe://td/a?q", false),
            ("spiffe://td/a#f", false),
            ("SPIFFE://td/a", false),
            ("https://td/a", false),
            ("", false),
        ];
        for (text, good) in table {
            assert_eq!(text.parse::<SpiffeId>().is_ok(), good, "{text}");
        }
    }

    #[test]
    fn only_istios_form_has_an_account() {
        for text in ["spiffe://td/ns/a", "spiffe://td/ns/a/sa/b/c", "spiffe://td/x/a/sa/b", "spiffe://td"] {
            let id: SpiffeId = text.parse().unwrap();
            assert_eq!((id.namespace(), id.service_account()), (None, None), "{text}");
        }
    }

    #[test]
    fn an_account_with_a_slash_is_refused() {
        let td = TrustDomain::default();
        assert!(SpiffeId::for_account(&td, "a/sa/b", "c").is_err());
        assert!(SpiffeId::for_account(&td, "a", "b/c").is_err());
        assert!(SpiffeId::for_account(&td, "", "c").is_err());
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_keeps_the_text(text in ".{0,80}") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.as_str(), text.as_str());
                prop_assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text);
            }
        }
    }
}
