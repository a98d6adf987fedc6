//! One matcher for strings and headers, used by routes and policies alike.
//!
//! A name never becomes a regex: exact, prefix and suffix compare bytes. A [`StringMatcher::Regex`] comes
//! only from a field that its user wrote as one; it matches the whole text and is bounded in length.
//!
//! ```
//! use tower_mesh_core::matcher::StringMatcher;
//!
//! // The pattern form of policies: exact, `prefix*`, `*suffix`, `*` for "present and not empty".
//! let accounts = StringMatcher::pattern("cluster.local/ns/default/*");
//! assert!(accounts.matches("cluster.local/ns/default/sa/web"));
//! assert!(!accounts.matches("cluster.local/ns/other/sa/web"));
//! assert!(StringMatcher::pattern("a.b").matches("a.b") && !StringMatcher::pattern("a.b").matches("aXb"));
//! assert!(!StringMatcher::pattern("*").matches(""));
//! ```

use std::fmt;

use http::{HeaderMap, HeaderName};

/// The longest regex that is accepted, in characters: Istio's limit.
pub const MAX_REGEX: usize = 1024;
/// How much memory one compiled regex may take, in bytes.
pub const MAX_REGEX_SIZE: usize = 256 * 1024;

/// Decides about one string.
#[derive(Clone)]
pub enum StringMatcher {
    /// The same text.
    Exact(Box<str>),
    /// Starts with the text.
    Prefix(Box<str>),
    /// Ends with the text.
    Suffix(Box<str>),
    /// The same text; ASCII case does not matter.
    ExactIgnoreCase(Box<str>),
    /// Starts with the text; ASCII case does not matter.
    PrefixIgnoreCase(Box<str>),
    /// Ends with the text; ASCII case does not matter.
    SuffixIgnoreCase(Box<str>),
    /// Not empty.
    NotEmpty,
    /// The expression matches the whole text.
    Regex(Regex),
}

/// An expression in RE2's syntax that matches whole texts.
#[derive(Clone)]
pub struct Regex(Box<Expression>);

// Boxed, because most matchers are none, and a large configuration has many of them.
#[derive(Clone)]
struct Expression {
    source: Box<str>,
    compiled: regex::Regex,
}

/// Why a text is no usable regex.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidRegex(String);

/// How a rule about a header reads several values of it.
///
/// A peer may send a header twice, or join values with commas, and the application may read either. The
/// reading is chosen so that neither form gets past a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reading {
    /// Every value must match: for what lets a request in.
    Every,
    /// One value is enough, or one part of a value between commas: for what keeps a request out.
    Any,
    /// The values joined with commas, as routes read them.
    Joined,
}

impl Regex {
    /// Compiles `source`, so that it matches whole texts only.
    ///
    /// # Errors
    /// When it is no expression, longer than [`MAX_REGEX`], or compiles to more than [`MAX_REGEX_SIZE`].
    pub fn new(source: &str) -> Result<Self, InvalidRegex> {
        if source.chars().count() > MAX_REGEX {
            return Err(InvalidRegex(format!("the regex is longer than {MAX_REGEX} characters")));
        }
        // Compiled alone first, so that `a)(b` is not made whole by our parentheses.
        regex_syntax_ok(source)?;
        let compiled = regex::RegexBuilder::new(&format!("^(?:{source})$"))
            .size_limit(MAX_REGEX_SIZE)
            .build()
            .map_err(|e| InvalidRegex(short(&e)))?;
        Ok(Self(Box::new(Expression { source: source.into(), compiled })))
    }

    /// The expression as its user wrote it.
    pub fn as_str(&self) -> &str {
        &self.0.source
    }

    /// Whether it matches all of `text`.
    #[inline]
    pub fn is_match(&self, text: &str) -> bool {
        self.0.compiled.is_match(text)
    }
}

fn regex_syntax_ok(source: &str) -> Result<(), InvalidRegex> {
    regex::RegexBuilder::new(source)
        .size_limit(MAX_REGEX_SIZE)
        .build()
        .map(|_| ())
        .map_err(|e| InvalidRegex(short(&e)))
}

/// The reason alone: the library draws the expression over several lines first.
fn short(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(limit) => format!("the regex compiles to more than {limit} bytes"),
        other => {
            let text = other.to_string();
            let reason = text.lines().last().unwrap_or_default().trim();
            format!("not a regex: {}", reason.strip_prefix("error: ").unwrap_or(reason))
        }
    }
}

impl StringMatcher {
    /// The pattern form of policies: `abc`, `abc*`, `*abc`, and `*` for "present and not empty". A `*` in
    /// the middle is an ordinary character.
    pub fn pattern(text: &str) -> Self {
        if text == "*" {
            return Self::NotEmpty;
        }
        if let Some(prefix) = text.strip_suffix('*') {
            return Self::Prefix(prefix.into());
        }
        match text.strip_prefix('*') {
            Some(suffix) => Self::Suffix(suffix.into()),
            None => Self::Exact(text.into()),
        }
    }

    /// The same matcher without regard to ASCII case; a regex stays as it is.
    #[must_use]
    pub fn ignore_case(self) -> Self {
        match self {
            Self::Exact(t) => Self::ExactIgnoreCase(t),
            Self::Prefix(t) => Self::PrefixIgnoreCase(t),
            Self::Suffix(t) => Self::SuffixIgnoreCase(t),
            other => other,
        }
    }

    /// Whether `text` matches.
    #[inline]
    pub fn matches(&self, text: &str) -> bool {
        let bytes = text.as_bytes();
        match self {
            Self::Exact(t) => **t == *text,
            Self::Prefix(t) => text.starts_with(&**t),
            Self::Suffix(t) => text.ends_with(&**t),
            Self::ExactIgnoreCase(t) => t.eq_ignore_ascii_case(text),
            Self::PrefixIgnoreCase(t) => {
                bytes.get(..t.len()).is_some_and(|head| head.eq_ignore_ascii_case(t.as_bytes()))
            }
            Self::SuffixIgnoreCase(t) => {
                let start = bytes.len().checked_sub(t.len());
                start.and_then(|s| bytes.get(s..)).is_some_and(|tail| tail.eq_ignore_ascii_case(t.as_bytes()))
            }
            Self::NotEmpty => !text.is_empty(),
            Self::Regex(regex) => regex.is_match(text),
        }
    }

    /// How many bytes of `text` a prefix matcher covers, for rewriting what was matched.
    #[inline]
    pub fn matched_prefix(&self, text: &str) -> Option<usize> {
        match self {
            Self::Prefix(t) | Self::PrefixIgnoreCase(t) if self.matches(text) => Some(t.len()),
            _ => None,
        }
    }

    /// Whether the header `name` matches under a reading of its values. A header that is absent never
    /// matches. A value that is no UTF-8 cannot be compared: it fails [`Reading::Every`] and
    /// [`Reading::Joined`]; under [`Reading::Any`] it counts as a match, since what cannot be read must
    /// not get past a rule that keeps requests out.
    #[inline]
    pub fn matches_header(&self, headers: &HeaderMap, name: &HeaderName, reading: Reading) -> bool {
        let mut values = headers.get_all(name).iter().map(|v| std::str::from_utf8(v.as_bytes()));
        match reading {
            Reading::Every => {
                let mut some = false;
                values.all(|v| {
                    some = true;
                    v.is_ok_and(|v| self.matches(v))
                }) && some
            }
            Reading::Any => {
                let one = values.any(|v| match v {
                    Ok(v) => {
                        self.matches(v)
                            || (v.contains(',') && v.split(',').any(|part| self.matches(part.trim())))
                    }
                    Err(_) => true,
                });
                one || self.matches_joined(headers, name)
            }
            Reading::Joined => self.matches_joined(headers, name),
        }
    }

    #[inline]
    fn matches_joined(&self, headers: &HeaderMap, name: &HeaderName) -> bool {
        joined(headers, name).is_some_and(|v| self.matches(&v))
    }
}

/// The values of a header joined with commas; borrowed where there is one. `None` when it is absent or not
/// UTF-8.
#[inline]
pub fn joined<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<std::borrow::Cow<'h, str>> {
    let mut values = headers.get_all(name).iter();
    let first = std::str::from_utf8(values.next()?.as_bytes()).ok()?;
    let Some(second) = values.next() else {
        return Some(first.into());
    };
    let mut all = String::from(first);
    for value in std::iter::once(second).chain(values) {
        all.push(',');
        all.push_str(std::str::from_utf8(value.as_bytes()).ok()?);
    }
    Some(all.into())
}

impl PartialEq for StringMatcher {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b))
            | (Self::Prefix(a), Self::Prefix(b))
            | (Self::Suffix(a), Self::Suffix(b))
            | (Self::ExactIgnoreCase(a), Self::ExactIgnoreCase(b))
            | (Self::PrefixIgnoreCase(a), Self::PrefixIgnoreCase(b))
            | (Self::SuffixIgnoreCase(a), Self::SuffixIgnoreCase(b)) => a == b,
            (Self::NotEmpty, Self::NotEmpty) => true,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

impl fmt::Debug for StringMatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(t) => write!(f, "exact {t:?}"),
            Self::Prefix(t) => write!(f, "prefix {t:?}"),
            Self::Suffix(t) => write!(f, "suffix {t:?}"),
            Self::ExactIgnoreCase(t) => write!(f, "exact (any case) {t:?}"),
            Self::PrefixIgnoreCase(t) => write!(f, "prefix (any case) {t:?}"),
            Self::SuffixIgnoreCase(t) => write!(f, "suffix (any case) {t:?}"),
            Self::NotEmpty => f.write_str("present"),
            Self::Regex(r) => write!(f, "regex {:?}", r.as_str()),
        }
    }
}

impl fmt::Debug for Regex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Regex({:?})", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    #[test]
    fn forms_and_texts() {
        let regex = |s| StringMatcher::Regex(Regex::new(s).unwrap());
        let table = [
            (StringMatcher::pattern("abc"), "abc", true),
            (StringMatcher::pattern("abc"), "abcd", false),
            (StringMatcher::pattern("a*c"), "abc", false),
            (StringMatcher::pattern("a*c"), "a*c", true),
            (StringMatcher::pattern("abc*"), "abcd", true),
            (StringMatcher::pattern("*abc"), "xabc", true),
            (StringMatcher::pattern("*abc"), "abcx", false),
            (StringMatcher::pattern("*"), "x", true),
            (StringMatcher::pattern(""), "", true),
            (StringMatcher::pattern("Abc").ignore_case(), "aBC", true),
            (StringMatcher::pattern("Ab*").ignore_case(), "aBC", true),
            (StringMatcher::pattern("*bC").ignore_case(), "aBc", true),
            (StringMatcher::pattern("é*").ignore_case(), "e", false),
            (regex("a|b"), "b", true),
            (regex("a|b"), "xb", false),
            (regex("a|b"), "ab", false),
            (regex("/x/[0-9]+"), "/x/12", true),
            (regex("/x/[0-9]+"), "/x/12/y", false),
        ];
        for (matcher, text, want) in table {
            assert_eq!(matcher.matches(text), want, "{matcher:?} on {text:?}");
        }
    }

    #[test]
    fn a_regex_is_bounded_and_whole() {
        assert!(Regex::new(&"a".repeat(MAX_REGEX)).is_ok());
        assert!(Regex::new(&"a".repeat(MAX_REGEX + 1)).unwrap_err().to_string().contains("1024"));
        assert!(Regex::new("(a{1000}){1000}").is_err());
        assert!(Regex::new("a)(b").is_err());
        assert!(Regex::new("(").unwrap_err().to_string().starts_with("not a regex: "));
    }

    /// Every way a peer can send a header, under every reading.
    #[test]
    fn headers_absent_one_many_joined_empty_and_not_utf8() {
        let name = HeaderName::from_static("x-role");
        let admin = StringMatcher::pattern("admin");
        let cases: [(&[&[u8]], [bool; 3]); 9] = [
            (&[], [false, false, false]),
            (&[b"admin"], [true, true, true]),
            (&[b"user"], [false, false, false]),
            (&[b"user", b"admin"], [false, true, false]),
            (&[b"admin", b"admin"], [true, true, false]),
            (&[b"user,admin"], [false, true, false]),
            (&[b"user, admin"], [false, true, false]),
            (&[b""], [false, false, false]),
            (&[b"\xff"], [false, true, false]),
        ];
        for (values, want) in cases {
            let mut headers = HeaderMap::new();
            for v in values {
                headers.append(&name, HeaderValue::from_bytes(v).unwrap());
            }
            for (reading, want) in [Reading::Every, Reading::Any, Reading::Joined].into_iter().zip(want) {
                assert_eq!(admin.matches_header(&headers, &name, reading), want, "{values:?} {reading:?}");
            }
        }
        let mut headers = HeaderMap::new();
        headers.append(&name, HeaderValue::from_static("a"));
        headers.append(&name, HeaderValue::from_static("b"));
        assert!(StringMatcher::pattern("a,b").matches_header(&headers, &name, Reading::Any));
        assert!(StringMatcher::pattern("a,b").matches_header(&headers, &name, Reading::Joined));
    }

    proptest! {
        #[test]
        fn an_exact_name_admits_only_itself(name in "[a-z.*+?-]{1,12}", other in "[a-z.*+?-]{0,12}") {
            let matcher = StringMatcher::Exact(name.clone().into());
            prop_assert_eq!(matcher.matches(&other), name == other);
        }

        #[test]
        fn ignoring_case_never_panics_and_widens(pattern in ".{0,8}", text in ".{0,12}") {
            let plain = StringMatcher::pattern(&pattern);
            let wide = plain.clone().ignore_case();
            prop_assert!(!plain.matches(&text) || wide.matches(&text));
        }
    }
}
