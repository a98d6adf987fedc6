//! The forms in which a policy writes names, addresses and paths.

use std::net::IpAddr;

use ipnet::IpNet;
use mesh_core::matcher::StringMatcher;

/// Texts and patterns, of which one is enough. Plain texts are looked up, patterns are tried in turn.
#[derive(Debug, Clone, Default)]
pub(super) struct Patterns {
    /// Sorted.
    exact: Box<[Box<str>]>,
    others: Box<[StringMatcher]>,
}

/// A text with `*` for any characters, anywhere: how namespaces are written. Never a regex.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Glob(Box<[Box<str>]>);

/// A path with `{*}` for one segment and `{**}` for one or more (the last may be empty).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    head: Box<[Segment]>,
    /// What follows `{**}`; `None` without one.
    tail: Option<Box<[Segment]>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Text(Box<str>),
    One,
}

const ONE: &str = "{*}";
const MANY: &str = "{**}";

impl Patterns {
    pub(super) fn new(matchers: impl IntoIterator<Item = StringMatcher>) -> Self {
        let (mut exact, mut others) = (Vec::new(), Vec::new());
        for matcher in matchers {
            match matcher {
                StringMatcher::Exact(text) => exact.push(text),
                other => others.push(other),
            }
        }
        exact.sort_unstable();
        exact.dedup();
        Self { exact: exact.into(), others: others.into() }
    }

    pub(super) fn matches(&self, text: &str) -> bool {
        self.exact.binary_search_by(|e| (**e).cmp(text)).is_ok()
            || self.others.iter().any(|m| m.matches(text))
    }
}

impl Glob {
    pub(super) fn new(text: &str) -> Self {
        Self(text.split('*').map(Box::from).collect())
    }

    pub(super) fn matches(&self, text: &str) -> bool {
        let Some((first, rest)) = self.0.split_first() else { return false };
        let Some((last, middle)) = rest.split_last() else { return **first == *text };
        if text.is_empty() {
            return false;
        }
        let Some(text) = text.strip_prefix(&**first) else { return false };
        let Some(mut text) = text.strip_suffix(&**last) else { return false };
        // Taking each part at its first place leaves the most for those that follow.
        middle.iter().all(|part| match text.split_once(&**part) {
            Some((_, after)) => {
                text = after;
                true
            }
            None => false,
        })
    }
}

impl Template {
    /// Whether `text` is meant as a template at all.
    pub(super) fn is_template(text: &str) -> bool {
        text.contains('{') || text.contains('}')
    }

    /// # Errors
    /// When an operator is no whole segment, `{**}` is not the last operator, or something else uses
    /// braces or `*`.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let rest = text.strip_prefix('/').ok_or("a path template starts with '/'")?;
        let (mut head, mut tail): (Vec<Segment>, Option<Vec<Segment>>) = (Vec::new(), None);
        for segment in rest.split('/') {
            if segment == MANY || segment == ONE {
                if tail.is_some() {
                    return Err("'{**}' must be the last operator of a path template");
                }
                if segment == MANY {
                    tail = Some(Vec::new())
                } else {
                    head.push(Segment::One)
                }
                continue;
            }
            if segment.contains(['{', '}', '*']) {
                return Err(
                    "a path template has only '{*}' and '{**}', each a whole segment, and no other '*'",
                );
            }
            tail.as_mut().unwrap_or(&mut head).push(Segment::Text(segment.into()));
        }
        Ok(Self { head: head.into(), tail: tail.map(Into::into) })
    }

    pub(super) fn matches(&self, path: &str) -> bool {
        let Some(rest) = path.strip_prefix('/') else { return false };
        let mut segments = rest.split('/');
        if !self.head.iter().all(|want| segments.next().is_some_and(|s| want.matches(s))) {
            return false;
        }
        match &self.tail {
            None => segments.next().is_none(),
            Some(tail) => {
                tail.iter().rev().all(|want| segments.next_back().is_some_and(|s| want.matches(s)))
                    // `{**}` stands between two slashes: at least an empty segment is there.
                    && segments.next().is_some()
            }
        }
    }
}

impl Segment {
    fn matches(&self, segment: &str) -> bool {
        match self {
            Self::Text(text) => **text == *segment,
            Self::One => !segment.is_empty(),
        }
    }
}

/// Reads `10.0.0.0/8` or a single address. IPv4 addresses written as mapped IPv6 mean IPv4.
pub(super) fn parse_block(text: &str) -> Option<IpNet> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(IpNet::from(ip.to_canonical()));
    }
    let net: IpNet = text.parse().ok()?;
    Some(match (net.addr().to_canonical(), net.prefix_len()) {
        (IpAddr::V4(v4), bits) if net.addr().is_ipv6() && bits >= 96 => {
            IpNet::new(IpAddr::V4(v4), bits - 96).unwrap_or(net)
        }
        _ => net,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn globs() {
        let table = [
            ("default", "default", true),
            ("default", "default2", false),
            ("*", "a", true),
            ("*", "", false),
            ("prod-*", "prod-eu", true),
            ("prod-*", "prod-", true),
            ("*-prod", "eu-prod", true),
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("a*c", "abcd", false),
            ("a*b*c", "axbxbc", true),
            ("a*b*c", "acb", false),
            ("ab*ba", "aba", false),
            ("a.c", "abc", false),
            ("*b*", "abc", true),
            ("a*b*b", "ab", false),
        ];
        for (glob, text, want) in table {
            assert_eq!(Glob::new(glob).matches(text), want, "{glob} on {text}");
        }
    }

    #[test]
    fn templates() {
        let table = [
            ("/a/{*}", "/a/b", true),
            ("/a/{*}", "/a/", false),
            ("/a/{*}", "/a/b/c", false),
            ("/a/{*}/c", "/a/b/c", true),
            ("/a/{**}", "/a/", true),
            ("/a/{**}", "/a/b/c", true),
            ("/a/{**}", "/a", false),
            ("/{**}", "/", true),
            ("/a/{**}/z", "/a/b/c/z", true),
            ("/a/{**}/z", "/a//z", true),
            ("/a/{**}/z", "/a/z", false),
            ("/{*}/x/{**}", "/a/x/y", true),
            ("/{*}/x/{**}", "/a/b/x/y", false),
            ("/a/{**}", "xa/b", false),
        ];
        for (template, path, want) in table {
            assert_eq!(Template::parse(template).unwrap().matches(path), want, "{template} on {path}");
        }
        for bad in ["a/{*}", "/{**}/{*}", "/{**}/{**}", "/a{*}", "/{x}", "/{*}/b*", "/{*", "/*/{*}"] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn blocks() {
        let table = [
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.4", false),
            ("::ffff:10.0.0.0/104", "10.1.2.3", true),
            ("::ffff:10.1.2.3", "10.1.2.3", true),
            ("fd00::/8", "fd12::1", true),
            ("0.0.0.0/0", "::1", false),
        ];
        for (block, ip, want) in table {
            assert_eq!(
                parse_block(block).unwrap().contains(&ip.parse::<IpAddr>().unwrap()),
                want,
                "{block} {ip}"
            );
        }
        for bad in ["", "10.0.0", "10.0.0.0/33", "x", "10.0.0.1/", "1.2.3.4:80"] {
            assert!(parse_block(bad).is_none(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_glob_is_what_a_naive_matcher_says(glob in "[ab*]{1,6}", text in "[ab]{1,8}") {
            fn naive(glob: &[u8], text: &[u8]) -> bool {
                match glob.split_first() {
                    None => text.is_empty(),
                    Some((b'*', rest)) => (0..=text.len()).any(|n| naive(rest, &text[n..])),
                    Some((c, rest)) => text.first() == Some(c) && naive(rest, &text[1..]),
                }
            }
            prop_assert_eq!(Glob::new(&glob).matches(&text), naive(glob.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn no_template_or_path_panics(template in "[/{}*a]{0,12}", path in "[/a]{0,12}") {
            if let Ok(template) = Template::parse(&template) {
                let _ = template.matches(&path);
            }
        }
    }
}
