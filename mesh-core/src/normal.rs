//! One normal form of paths and hosts, made once on entry.
//!
//! Router, policy, logs and upstream see the same bytes. Paths are normalized as Istio's `BASE` does (RFC
//! 3986 dot segments, `\` read as `/`), which is its default.
//!
//! ```
//! use tower_mesh_core::normal::{Authority, normal_path};
//!
//! assert_eq!(normal_path("/a/./b/../c"), Ok("/a/c".into()));
//! let host = Authority::parse("Reviews.default:9080").unwrap();
//! assert_eq!((host.name(), host.port(), host.original()), ("reviews.default", Some(9080), "Reviews.default:9080"));
//! ```

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// The longest host name, in bytes (RFC 1035).
pub const MAX_HOST: usize = 253;

/// The host that a request names, parsed once.
///
/// Each matcher says which part it uses: routes the name without port, AuthorizationPolicy hosts the
/// original with port, and the upstream gets the original.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Authority {
    original: Box<str>,
    name: Name,
    port: Option<u16>,
    ip: Option<IpAddr>,
}

/// A host in lower case, without port, brackets or trailing dot.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Name {
    /// That many bytes of the original, as of most.
    Original(usize),
    Other(Box<str>),
}

/// Why a text is no authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidAuthority(&'static str);

/// Why a path has no normal form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidPath(&'static str);

impl Authority {
    /// Parses `HOST`, `HOST:PORT`, `[IPV6]` or `[IPV6]:PORT`.
    ///
    /// # Errors
    /// When the host is empty, too long, or holds a character that no host has (user information included).
    #[inline]
    pub fn parse(text: &str) -> Result<Self, InvalidAuthority> {
        let (host, port) = split_port(text)?;
        let port = match port {
            None => None,
            Some(p) if !p.is_empty() && p.len() <= 5 && p.bytes().all(|b| b.is_ascii_digit()) => {
                let number = p.parse::<u16>().ok().filter(|n| *n > 0);
                Some(number.ok_or(InvalidAuthority("the port is not between 1 and 65535"))?)
            }
            Some(_) => return Err(InvalidAuthority("the port is no number")),
        };
        if let Some(v6) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            let ip: Ipv6Addr =
                v6.parse().map_err(|_| InvalidAuthority("what stands in brackets is no IPv6 address"))?;
            let ip = IpAddr::V6(ip).to_canonical();
            return Ok(Self {
                original: text.into(),
                name: Name::Other(ip.to_string().into()),
                port,
                ip: Some(ip),
            });
        }
        let name = host.strip_suffix('.').unwrap_or(host);
        if name.is_empty() {
            return Err(InvalidAuthority("the host is empty"));
        }
        if name.len() > MAX_HOST {
            return Err(InvalidAuthority("the host is longer than 253 bytes"));
        }
        let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        let labels = || !name.starts_with('.') && !name.ends_with('.') && !name.contains("..");
        if !name.bytes().all(ok) || (name.as_bytes().contains(&b'.') && !labels()) {
            return Err(InvalidAuthority("the host holds what no host name has"));
        }
        // An IPv4 address begins with a digit, and an IPv6 address stands in brackets.
        let ip = name.starts_with(|c: char| c.is_ascii_digit()).then(|| name.parse().ok()).flatten();
        let name = if name.bytes().any(|b| b.is_ascii_uppercase()) {
            Name::Other(name.to_ascii_lowercase().into())
        } else {
            // The name is where the text begins.
            Name::Original(name.len())
        };
        Ok(Self { original: text.into(), name, port, ip })
    }

    /// The host in lower case, without port, brackets or trailing dot.
    pub fn name(&self) -> &str {
        match &self.name {
            Name::Original(len) => self.original.get(..*len).unwrap_or_default(),
            Name::Other(name) => name,
        }
    }

    /// The port, where one was given.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// As it came.
    pub fn original(&self) -> &str {
        &self.original
    }

    /// The address, where the host is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.ip
    }
}

#[inline]
fn split_port(text: &str) -> Result<(&str, Option<&str>), InvalidAuthority> {
    if text.starts_with('[') {
        let end = text.find(']').ok_or(InvalidAuthority("a bracket is not closed"))?;
        let (host, rest) = text.split_at(end + 1);
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(InvalidAuthority("something follows the bracket")),
        };
    }
    match text.split_once(':') {
        None => Ok((text, None)),
        Some((_, port)) if port.contains(':') => Err(InvalidAuthority("an IPv6 address needs brackets")),
        Some((host, port)) => Ok((host, Some(port))),
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.original)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({})", self.original)
    }
}

/// The normal form of a path (without its query): `\` becomes `/`, the dot segments of RFC 3986 section
/// 5.2.4 go, also where they are written `%2e`. Repeated and escaped slashes stay, as in Istio's `BASE`.
///
/// Borrows when there is nothing to do, which is nearly always.
///
/// # Errors
/// When the path does not start with `/`, climbs above the root, or holds a control character or `#`
/// (a fragment never travels: it would hide the rest of the path from a prefix rule).
#[inline]
pub fn normal_path(path: &str) -> Result<Cow<'_, str>, InvalidPath> {
    if path == "*" {
        return Ok(Cow::Borrowed(path));
    }
    if !matches!(path.as_bytes().first(), Some(b'/' | b'\\')) {
        return Err(InvalidPath("the path does not start with '/'"));
    }
    let mut suspect = false;
    let mut before = 0;
    for b in path.bytes() {
        if b <= b' ' || b == 0x7f || b == b'#' {
            return Err(InvalidPath("the path holds a control character, a space or '#'"));
        }
        // Every segment of dots begins with one of these.
        suspect |= b == b'\\' || (before == b'/' && matches!(b, b'.' | b'%'));
        before = b;
    }
    let dots = |segment: &str| is_dot(segment) || is_dot_dot(segment);
    if !suspect || (!path.contains('\\') && !path.split('/').any(dots)) {
        return Ok(Cow::Borrowed(path));
    }
    let slashed = path.replace('\\', "/");
    let mut out: Vec<&str> = Vec::new();
    let mut segments = slashed.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        if is_dot_dot(segment) {
            out.pop().ok_or(InvalidPath("the path climbs above the root"))?;
        } else if !is_dot(segment) {
            out.push(segment);
            continue;
        }
        // `/a/.` and `/a/b/..` name a folder: the slash at the end stays.
        if last {
            out.push("");
        }
    }
    Ok(Cow::Owned(format!("/{}", out.join("/"))))
}

fn is_dot(segment: &str) -> bool {
    segment == "." || segment.eq_ignore_ascii_case("%2e")
}

fn is_dot_dot(segment: &str) -> bool {
    matches!(segment, "..")
        || ["%2e%2e", ".%2e", "%2e."].iter().any(|form| segment.eq_ignore_ascii_case(form))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths() {
        let table = [
            ("/", Some("/")),
            ("*", Some("*")),
            ("/a/b", Some("/a/b")),
            ("/a//b", Some("/a//b")),
            ("/a%2fb", Some("/a%2fb")),
            ("/a/./b", Some("/a/b")),
            ("/a/.", Some("/a/")),
            ("/a/..", Some("/")),
            ("/a/../b", Some("/b")),
            ("/a/%2e%2E/b", Some("/b")),
            ("/a/.%2e/b", Some("/b")),
            ("/a\\b", Some("/a/b")),
            ("/a\\..\\b", Some("/b")),
            ("/a/.../b", Some("/a/.../b")),
            ("/a/.b", Some("/a/.b")),
            ("/..", None),
            ("/a/../../b", None),
            ("a", None),
            ("", None),
            ("/a#b", None),
            ("/a\tb", None),
        ];
        for (path, want) in table {
            assert_eq!(normal_path(path).ok().as_deref(), want, "{path}");
        }
    }

    #[test]
    fn authorities() {
        let table = [
            ("reviews", Some(("reviews", None))),
            ("reviews:9080", Some(("reviews", Some(9080)))),
            ("REVIEWS.default.", Some(("reviews.default", None))),
            ("10.0.0.1:80", Some(("10.0.0.1", Some(80)))),
            ("[::1]:80", Some(("::1", Some(80)))),
            ("[::1]", Some(("::1", None))),
            ("[::ffff:10.0.0.1]", Some(("10.0.0.1", None))),
            ("::1", None),
            ("", None),
            (":80", None),
            ("a:", None),
            ("a:0", None),
            ("a:65536", None),
            ("a:+80", None),
            ("a:80:80", None),
            ("user@a", None),
            ("a b", None),
            ("a..b", None),
            (".a", None),
            ("a/b", None),
            ("[::1]x", None),
            ("[::1", None),
            ("a\0", None),
        ];
        for (text, want) in table {
            let found = Authority::parse(text).ok();
            assert_eq!(found.as_ref().map(|a| (a.name(), a.port())), want, "{text}");
        }
        assert!(Authority::parse(&"a".repeat(MAX_HOST + 1)).is_err());
    }

    proptest! {
        #[test]
        fn a_normal_path_is_normal_and_has_no_dots(path in "/[a./%2e\\\\]{0,20}") {
            if let Ok(once) = normal_path(&path) {
                prop_assert_eq!(normal_path(&once).unwrap(), once.clone());
                prop_assert!(!once.split('/').any(|s| is_dot(s) || is_dot_dot(s)));
                prop_assert!(!once.contains('\\'));
            }
        }

        #[test]
        fn parsing_an_authority_never_panics(text in ".{0,40}") {
            if let Ok(a) = Authority::parse(&text) {
                prop_assert_eq!(a.original(), text.as_str());
                prop_assert!(!a.name().is_empty());
            }
        }
    }
}
