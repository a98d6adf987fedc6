//! Answers that a route gives by itself: redirects and fixed responses.
//!
//! ```
//! use http::{HeaderMap, Method, Uri};
//! use mesh_core::normal::Authority;
//! use tower_mesh_route::matching::RequestView;
//! use tower_mesh_route::redirect::Redirect;
//!
//! let redirect = Redirect { scheme: Some("https".into()), ..Redirect::default() };
//! let (uri, headers) = (Uri::from_static("/login?next=1"), HeaderMap::new());
//! let authority = Authority::parse("shop.example:80").unwrap();
//! let request = RequestView::new(&Method::GET, &uri, &headers, &authority);
//! assert_eq!(redirect.location(&request, None), "https://shop.example/login?next=1");
//! ```

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use mesh_core::failure::{Failure, FailureCode};

use crate::matching::RequestView;

/// A compiled redirect. What is not set stays as the request has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308. Default: 301.
    pub status: StatusCode,
    /// The new scheme.
    pub scheme: Option<Box<str>>,
    /// The new authority.
    pub authority: Option<Box<str>>,
    /// The new port; the default port of the scheme is not printed.
    pub port: Option<u16>,
    /// The new path.
    pub path: Option<RedirectPath>,
}

/// The path of a redirect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedirectPath {
    /// The whole path; the request's query is kept unless this has one of its own.
    Full(Box<str>),
    /// In place of the prefix that matched.
    Prefix(Box<str>),
}

/// A compiled fixed answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectResponse {
    /// The status.
    pub status: StatusCode,
    /// The body; empty when there is none.
    pub body: Bytes,
}

impl Default for Redirect {
    fn default() -> Self {
        Self { status: StatusCode::MOVED_PERMANENTLY, scheme: None, authority: None, port: None, path: None }
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

impl Redirect {
    /// The `location` of the answer. `prefix` says how many bytes of the path a prefix matched.
    ///
    /// The port follows Envoy: a port that is set replaces the request's; otherwise the request's stays,
    /// but for a well-known one of the old scheme when the scheme changes.
    pub fn location(&self, request: &RequestView<'_>, prefix: Option<usize>) -> String {
        let scheme = self.scheme.as_deref().unwrap_or(request.scheme);
        let mut out = format!("{scheme}://");
        match &self.authority {
            Some(authority) => out.push_str(authority),
            None => {
                let original = request.authority.original();
                let keep = request.authority.port().filter(|_| self.port.is_none());
                let stale = scheme != request.scheme && keep == default_port(request.scheme);
                match original.rsplit_once(':') {
                    Some((host, _)) if request.authority.port().is_some() && (keep.is_none() || stale) => {
                        out.push_str(host);
                    }
                    _ => out.push_str(original),
                }
            }
        }
        if let Some(port) = self.port.filter(|port| default_port(scheme) != Some(*port)) {
            out.push(':');
            out.push_str(&port.to_string());
        }
        let mut query = request.query;
        match &self.path {
            None => out.push_str(request.path),
            Some(RedirectPath::Prefix(text)) => {
                out.push_str(text);
                out.push_str(prefix.and_then(|n| request.path.get(n..)).unwrap_or_default());
            }
            Some(RedirectPath::Full(text)) => {
                out.push_str(text);
                query = query.filter(|_| !text.contains('?'));
            }
        }
        if let Some(query) = query {
            out.push('?');
            out.push_str(query);
        }
        out
    }

    /// The answer, with an empty body.
    pub fn response<B: Default>(&self, request: &RequestView<'_>, prefix: Option<usize>) -> Response<B> {
        let failure = Failure::new(FailureCode::DirectResponse).status(self.status);
        let mut response = failure.response(false);
        // The parts come from a request that was parsed and from a resource that was checked.
        if let Ok(location) = HeaderValue::try_from(self.location(request, prefix)) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }
}

impl DirectResponse {
    /// The answer; a body is `text/plain` unless the route's header operations say otherwise.
    pub fn response<B: Default + From<Bytes>>(&self) -> Response<B> {
        let failure = Failure::new(FailureCode::DirectResponse).status(self.status);
        let mut response: Response<B> = failure.response(false);
        if !self.body.is_empty() {
            let text = HeaderValue::from_static("text/plain");
            response.headers_mut().insert(header::CONTENT_TYPE, text);
            *response.body_mut() = self.body.clone().into();
        }
        response
    }
}

#[cfg(test)]
mod tests;
