//! Whether a request meets the conditions of a rule.
//!
//! A [`RequestView`] is what rules look at, borrowed from a request whose path is normal and whose authority
//! was parsed once; a [`Condition`] is one compiled `match` of a VirtualService: everything in it must hold.
//!
//! ```
//! use http::{HeaderMap, Method, Uri};
//! use mesh_core::matcher::StringMatcher;
//! use mesh_core::normal::Authority;
//! use tower_mesh_route::matching::{Condition, RequestView};
//!
//! let condition = Condition { uri: Some(StringMatcher::Prefix("/api/".into())), ..Condition::default() };
//! let (uri, headers) = (Uri::from_static("/api/books?page=2"), HeaderMap::new());
//! let authority = Authority::parse("reviews:9080").unwrap();
//! let request = RequestView::new(&Method::GET, &uri, &headers, &authority);
//! assert!(condition.matches(&request));
//! assert_eq!(condition.to_string(), r#"uri prefix "/api/""#);
//! ```

use std::fmt;

use http::{HeaderMap, HeaderName, Method, Request, Uri, header, uri::Scheme};
use mesh_core::matcher::{Reading, StringMatcher, joined};
use mesh_core::normal::Authority;

/// What rules look at in a request. Borrowed; cheap to make.
#[derive(Debug, Clone, Copy)]
pub struct RequestView<'a> {
    /// The method.
    pub method: &'a Method,
    /// The normal path, without the query.
    pub path: &'a str,
    /// The query, without `?`, as it came (nothing in it is decoded).
    pub query: Option<&'a str>,
    /// The scheme; `http` where the request names none.
    pub scheme: &'a str,
    /// The host that is called.
    pub authority: &'a Authority,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The service port that is called: the authority's, unless the connection knows better.
    pub port: Option<u16>,
}

/// One compiled `match`: everything that is set must hold. The default holds always.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Condition {
    /// The path without the query.
    pub uri: Option<StringMatcher>,
    /// The scheme.
    pub scheme: Option<StringMatcher>,
    /// The method.
    pub method: Option<StringMatcher>,
    /// The authority as it came, with its port.
    pub authority: Option<StringMatcher>,
    /// Headers that must match; several values count as one, joined with commas.
    pub headers: Box<[(HeaderName, ValueMatcher)]>,
    /// Headers that must not match; a missing one counts as the empty text.
    pub without_headers: Box<[(HeaderName, ValueMatcher)]>,
    /// Query parameters that must match; the first of a name counts.
    pub query_params: Box<[(Box<str>, ValueMatcher)]>,
}

/// Decides about a header or query parameter that may be absent.
#[derive(Debug, Clone, PartialEq)]
pub enum ValueMatcher {
    /// It is there, whatever its value.
    Present,
    /// It is there and its value matches.
    Value(StringMatcher),
}

impl<'a> RequestView<'a> {
    /// Looks at the parts of a request. The path is taken as it is: give it its normal form first
    /// ([`mesh_core::normal::normal_path`]), as [`Route`](crate::layer::Route) does.
    pub fn new(method: &'a Method, uri: &'a Uri, headers: &'a HeaderMap, authority: &'a Authority) -> Self {
        // `CONNECT` names an authority and no path.
        let path = if uri.path().is_empty() { "/" } else { uri.path() };
        Self {
            method,
            path,
            query: uri.query(),
            scheme: uri.scheme().unwrap_or(&Scheme::HTTP).as_str(),
            authority,
            headers,
            port: authority.port(),
        }
    }

    /// As [`new`](Self::new), from a whole request.
    pub fn of<B>(request: &'a Request<B>, authority: &'a Authority) -> Self {
        Self::new(request.method(), request.uri(), request.headers(), authority)
    }

    /// Takes the service port from elsewhere: an intercepted connection's original destination.
    #[must_use]
    pub fn with_port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// The first query parameter called `name`; one without `=` is empty. Nothing is decoded.
    pub fn query_param(&self, name: &str) -> Option<&'a str> {
        self.query?.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then_some(value)
        })
    }
}

impl Condition {
    /// Whether `request` meets it. Pure.
    pub fn matches(&self, request: &RequestView<'_>) -> bool {
        let text = |matcher: &Option<StringMatcher>, text: &str| {
            matcher.as_ref().is_none_or(|matcher| matcher.matches(text))
        };
        text(&self.uri, request.path)
            && text(&self.method, request.method.as_str())
            && text(&self.scheme, request.scheme)
            && text(&self.authority, request.authority.original())
            && self.headers.iter().all(|(name, value)| value.header(request, name))
            && self.without_headers.iter().all(|(name, value)| !value.header_or_empty(request, name))
            && self.query_params.iter().all(|(name, value)| value.matches(request.query_param(name)))
    }

    /// Whether it holds for every request: nothing is asked, or only that the path starts with `/`.
    pub fn is_always(&self) -> bool {
        let any_path = match &self.uri {
            None => true,
            Some(StringMatcher::Prefix(prefix) | StringMatcher::PrefixIgnoreCase(prefix)) => {
                matches!(&**prefix, "" | "/")
            }
            Some(StringMatcher::Regex(regex)) => matches!(regex.as_str(), ".*" | "/.*"),
            Some(_) => false,
        };
        any_path && Self { uri: None, ..self.clone() } == Self::default()
    }
}

impl ValueMatcher {
    /// Whether a value, or its absence, matches.
    pub fn matches(&self, value: Option<&str>) -> bool {
        match (self, value) {
            (Self::Present, value) => value.is_some(),
            (Self::Value(matcher), Some(value)) => matcher.matches(value),
            (Self::Value(_), None) => false,
        }
    }

    fn header(&self, request: &RequestView<'_>, name: &HeaderName) -> bool {
        // The host stands in the authority, whatever the protocol's version.
        if *name == header::HOST {
            return self.matches(Some(request.authority.original()));
        }
        match self {
            Self::Present => request.headers.contains_key(name),
            Self::Value(matcher) => matcher.matches_header(request.headers, name, Reading::Joined),
        }
    }

    /// For headers that must not match: absent is empty, unreadable is no match.
    fn header_or_empty(&self, request: &RequestView<'_>, name: &HeaderName) -> bool {
        match self {
            Self::Value(matcher) if *name != header::HOST && !request.headers.contains_key(name) => {
                matcher.matches("")
            }
            Self::Value(matcher) if *name != header::HOST => {
                joined(request.headers, name).is_some_and(|value| matcher.matches(&value))
            }
            _ => self.header(request, name),
        }
    }
}

impl fmt::Display for ValueMatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present => f.write_str("present"),
            Self::Value(matcher) => write!(f, "{matcher:?}"),
        }
    }
}

/// Tells the condition as a person would: `uri prefix "/api", header x-user exact "jason"`.
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts = [
            ("uri", &self.uri),
            ("scheme", &self.scheme),
            ("method", &self.method),
            ("authority", &self.authority),
        ];
        let mut separator = "";
        for (name, matcher) in texts {
            if let Some(matcher) = matcher {
                write!(f, "{separator}{name} {matcher:?}")?;
                separator = ", ";
            }
        }
        for (what, list) in [("header", &self.headers), ("without header", &self.without_headers)] {
            for (name, matcher) in list {
                write!(f, "{separator}{what} {name} {matcher}")?;
                separator = ", ";
            }
        }
        for (name, matcher) in &self.query_params {
            write!(f, "{separator}query parameter {name} {matcher}")?;
            separator = ", ";
        }
        if separator.is_empty() { f.write_str("always") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
