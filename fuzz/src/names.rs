//! Hosts, paths, patterns and identities.

use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_core::identity::{MAX_SPIFFE_ID, SpiffeId, TrustDomain};
use mesh_core::matcher::{Reading, Regex, StringMatcher};
use mesh_core::normal::{Authority, MAX_HOST, normal_path};

/// A host is named one way, whatever its case, and its parts say again what the whole said.
pub fn authority(data: &[u8]) {
    let Some(text) = crate::text(data) else { return };
    let shouted = Authority::parse(&text.to_ascii_uppercase());
    let Ok(host) = Authority::parse(text) else {
        assert!(shouted.is_err(), "valid in upper case only");
        return;
    };
    assert_eq!(host.original(), text);
    let name = host.name();
    assert!(!name.is_empty() && name.len() <= MAX_HOST);
    assert!(!name.ends_with('.') && !name.contains(['[', ']', '/', '@', '\\']));
    assert!(!name.bytes().any(|b| b.is_ascii_uppercase() || b <= b' ' || b >= 0x7f));
    assert_ne!(host.port(), Some(0));
    assert_eq!(host.ip().map(|ip| ip.to_string()), host.ip().map(|_| name.to_owned()));

    let shouted = shouted.expect("valid in its own case only");
    assert_eq!((shouted.name(), shouted.port(), shouted.ip()), (name, host.port(), host.ip()));
    let mut again = if name.contains(':') { format!("[{name}]") } else { name.to_owned() };
    if let Some(port) = host.port() {
        again += &format!(":{port}");
    }
    let again = Authority::parse(&again).expect("its parts are no authority");
    assert_eq!((again.name(), again.port(), again.ip()), (name, host.port(), host.ip()));
}

/// A normal path is normal, and is what RFC 3986 makes of it.
pub fn path(data: &[u8]) {
    let Some(text) = crate::text(data) else { return };
    let Ok(normal) = normal_path(text) else { return };
    assert!(normal.starts_with('/') || normal == "*");
    assert!(!normal.contains(['\\', '#', ' ']) && !normal.bytes().any(|b| b.is_ascii_control()));
    assert!(!normal.split('/').any(|s| matches!(plain_dots(s), "." | "..")));
    assert_eq!(normal_path(&normal).as_deref(), Ok(&*normal), "not normal the second time");
    if text != "*" {
        assert_eq!(normal, remove_dot_segments(text));
    }
}

/// A dot segment that is written with escapes, in plain letters.
fn plain_dots(segment: &str) -> &str {
    match segment.to_ascii_lowercase().as_str() {
        "." | "%2e" => ".",
        ".." | "%2e." | ".%2e" | "%2e%2e" => "..",
        _ => segment,
    }
}

/// The algorithm of RFC 3986, section 5.2.4, step by step.
fn remove_dot_segments(path: &str) -> String {
    let path = path.replace('\\', "/");
    let mut input = path.split('/').map(plain_dots).collect::<Vec<_>>().join("/");
    let mut output = String::new();
    while !input.is_empty() {
        if input.starts_with("/./") {
            input.drain(..2);
        } else if input == "/." {
            input.pop();
        } else if input.starts_with("/../") || input == "/.." {
            input.replace_range(..3, if input == "/.." { "/" } else { "" });
            output.truncate(output.rfind('/').unwrap_or(0));
        } else {
            let end = input.get(1..).and_then(|rest| rest.find('/')).map_or(input.len(), |at| at + 1);
            output.extend(input.drain(..end));
        }
    }
    output
}

/// Patterns mean what they say, no regex matches a part of a text, and the readings of a header are
/// ordered: what lets in also keeps out.
///
/// Line 1 is the pattern, line 2 the text, the others are values of a header.
pub fn matcher(data: &[u8]) {
    let Some(text) = crate::text(data) else { return };
    let mut lines = text.split('\n');
    let (pattern, text) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let name = HeaderName::from_static("x-fuzz");
    let mut headers = HeaderMap::new();
    for line in lines.take(16) {
        // A byte that stands for one that is no UTF-8.
        let bytes: Vec<u8> = line.bytes().map(|b| if b == 0x01 { 0xff } else { b }).collect();
        if let Ok(value) = HeaderValue::from_bytes(&bytes) {
            headers.append(&name, value);
        }
    }

    let simple = StringMatcher::pattern(pattern);
    assert_eq!(simple.matches(text), naive(pattern, text), "pattern {pattern:?} on {text:?}");
    let any_case = simple.clone().ignore_case();
    assert!(!simple.matches(text) || any_case.matches(text));
    assert_eq!(any_case.matches(text), naive(&pattern.to_ascii_lowercase(), &text.to_ascii_lowercase()));
    if let Some(length) = any_case.matched_prefix(text) {
        assert!(text.is_char_boundary(length), "a prefix ends within a character");
    }

    let mut matchers = vec![simple, any_case];
    match Regex::new(pattern) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(regex) => {
            if let Ok(part) = Regex::new(&format!("(?s:.*)(?:{pattern})(?s:.*)")) {
                assert!(!regex.is_match(text) || part.is_match(text), "the whole matches, no part does");
            }
            matchers.push(StringMatcher::Regex(regex));
        }
    }
    if let Ok(quoted) = Regex::new(&quote(pattern)) {
        assert_eq!(quoted.is_match(text), pattern == text, "a quoted text matches another one");
    }

    for matcher in &matchers {
        let reads = |reading| matcher.matches_header(&headers, &name, reading);
        let (every, any, joined) = (reads(Reading::Every), reads(Reading::Any), reads(Reading::Joined));
        assert!(!every || any, "{matcher:?}: every value matches, none does");
        assert!(!joined || any, "{matcher:?}: the joined value matches, no reading does");
        assert!(!headers.is_empty() || !any, "{matcher:?}: an absent header matches");
    }
}

fn naive(pattern: &str, text: &str) -> bool {
    if pattern == "*" {
        !text.is_empty()
    } else if let Some(prefix) = pattern.strip_suffix('*') {
        text.starts_with(prefix)
    } else if let Some(suffix) = pattern.strip_prefix('*') {
        text.ends_with(suffix)
    } else {
        pattern == text
    }
}

fn quote(text: &str) -> String {
    let mut quoted = String::new();
    for c in text.chars() {
        if c.is_ascii_punctuation() {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted
}

/// An identity says the same as a whole and in its parts.
pub fn spiffe(data: &[u8]) {
    let Some(text) = crate::text(data) else { return };
    match text.parse::<SpiffeId>() {
        Err(error) => assert!(error.to_string().len() < 4096, "a peer's text is quoted without bound"),
        Ok(id) => {
            assert!(text.len() <= MAX_SPIFFE_ID);
            assert_eq!((id.as_str(), id.to_string().as_str()), (text, text));
            assert_eq!(format!("spiffe://{}", id.principal()), text);
            assert_eq!(format!("{}{}", id.trust_domain(), id.path()), id.principal());
            assert!(text.bytes().all(|b| b.is_ascii_graphic() && !b"%?#@\\*,".contains(&b)));
            let domain = TrustDomain::new(id.trust_domain()).expect("its trust domain is none");
            match (id.namespace(), id.service_account()) {
                (Some(namespace), Some(account)) => {
                    assert_eq!(SpiffeId::for_account(&domain, namespace, account), Ok(id.clone()));
                }
                (None, None) => {}
                parts => panic!("half an account: {parts:?}"),
            }
        }
    }
    // The parts of an account, a line each.
    let mut lines = text.splitn(3, '\n');
    let mut next = || lines.next().unwrap_or_default();
    let (domain, namespace, account) = (next(), next(), next());
    if let Ok(domain) = TrustDomain::new(domain)
        && let Ok(id) = SpiffeId::for_account(&domain, namespace, account)
    {
        let parts = (id.trust_domain(), id.namespace(), id.service_account());
        assert_eq!(parts, (domain.as_str(), Some(namespace), Some(account)));
    }
}
