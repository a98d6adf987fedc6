//! What tells a resource's content from another's.
//!
//! ```
//! use tower_mesh_xds::{ResourceType, Version};
//!
//! let version = Version::of(ResourceType::Host, b"content");
//! assert_eq!(version, Version::of(ResourceType::Host, b"content"));
//! assert_ne!(version, Version::of(ResourceType::Endpoints, b"content"));
//! assert_eq!(version.to_string().parse(), Ok(version));
//! ```

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::ResourceType;

/// How many bytes of the hash are kept: 120 bits are beyond any chance of two contents with one version, and
/// what was sent of a resource then fits 16 bytes. A server keeps one for each subscription of each proxy.
const BYTES: usize = 15;

/// A hash of a resource's content: the same in every replica and after every restart, so that a proxy that
/// changes its server or comes back is sent only what is different.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version([u8; BYTES]);

/// A text is no version of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a version has 30 hexadecimal digits")]
pub struct InvalidVersion;

impl Version {
    /// The version of this content.
    pub fn of(kind: ResourceType, body: &[u8]) -> Self {
        let hash = Sha256::new().chain_update(kind.url()).chain_update([0]).chain_update(body).finalize();
        let mut kept = [0; BYTES];
        for (to, from) in kept.iter_mut().zip(hash) {
            *to = from;
        }
        Self(kept)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Version {
    type Err = InvalidVersion;

    fn from_str(text: &str) -> Result<Self, InvalidVersion> {
        let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let mut bytes = [0; BYTES];
        if text.len() != 2 * BYTES || text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(InvalidVersion);
        }
        for (to, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            *to = match pair {
                [high, low] => {
                    digit(*high).zip(digit(*low)).map(|(high, low)| high << 4 | low).ok_or(InvalidVersion)?
                }
                _ => return Err(InvalidVersion),
            };
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_written_is_read() {
        let version = Version::of(ResourceType::Host, b"x");
        let text = version.to_string();
        assert_eq!(text.len(), 30);
        assert_eq!(text.parse(), Ok(version));
        for wrong in [
            "",
            "1",
            &text.repeat(2),
            &format!("{text}0"),
            &text.to_uppercase(),
            &"g".repeat(30),
            &"é".repeat(15),
        ] {
            assert_eq!(wrong.parse::<Version>(), Err(InvalidVersion), "{wrong}");
        }
    }

    #[test]
    fn an_absent_one_costs_one_byte() {
        assert_eq!(size_of::<Option<Version>>(), 16);
    }

    /// Changing it makes every proxy fetch everything anew once; nothing worse.
    #[test]
    fn it_is_the_same_everywhere() {
        assert_eq!(Version::of(ResourceType::Host, b"").to_string(), "225d42924cd8d014efadaa73e415a2");
    }
}
