//! What a rule may look at, borrowed from the request.

use std::borrow::Cow;
use std::cell::OnceCell;

use http::request::Parts;
use http::{HeaderMap, Method, Request, Uri, header};
use mesh_core::facts::{Connection, Facts};
use mesh_core::normal::normal_path;

/// A request as rules see it: the connection it came on, and its method, host, path and headers.
///
/// Costs no allocation for a path that is in its normal form already.
#[derive(Debug)]
pub struct RequestView<'a> {
    pub(super) connection: Option<&'a Connection>,
    pub(super) http: Option<Http<'a>>,
}

/// A connection as rules see it, where no HTTP is spoken on it.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionView<'a>(pub(super) &'a Connection);

/// The part of a request that a TCP connection does not have.
#[derive(Debug)]
pub(super) struct Http<'a> {
    pub(super) method: &'a Method,
    pub(super) uri: &'a Uri,
    pub(super) headers: &'a HeaderMap,
    pub(super) path: Path<'a>,
}

/// The path in the forms in which an application may read it.
#[derive(Debug)]
pub(super) enum Path<'a> {
    /// There is none: `CONNECT`.
    Absent,
    /// It has no normal form.
    Unreadable,
    /// The normal form, and what it unfolds to, made when first asked for.
    Normal { text: Cow<'a, str>, unfolded: OnceCell<Option<Unfolded>> },
}

/// What a path says after its escapes are decoded and repeated slashes are merged.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unfolded {
    pub(super) text: String,
    /// Decoding made a `.` or `..` segment appear that the normal form could not see.
    pub(super) climbs: bool,
}

impl<'a> RequestView<'a> {
    /// The view of `request`; the connection is what its [`Facts`] tell, unknown where there are none.
    pub fn of<B>(request: &'a Request<B>) -> Self {
        let connection = Facts::of(request).map(|facts| &**facts.connection());
        Self::new(connection, request.method(), request.uri(), request.headers())
    }

    /// The view of a request's head on its own.
    pub fn of_parts(parts: &'a Parts) -> Self {
        let connection = parts.extensions.get().map(|facts: &Facts| &**facts.connection());
        Self::new(connection, &parts.method, &parts.uri, &parts.headers)
    }

    /// The view of plain values.
    pub fn new(
        connection: Option<&'a Connection>,
        method: &'a Method,
        uri: &'a Uri,
        headers: &'a HeaderMap,
    ) -> Self {
        let path = Path::of(method, uri);
        Self { connection, http: Some(Http { method, uri, headers, path }) }
    }
}

impl<'a> ConnectionView<'a> {
    /// The view of `connection`.
    pub fn of(connection: &'a Connection) -> Self {
        Self(connection)
    }

    pub(super) fn view(self) -> RequestView<'a> {
        RequestView { connection: Some(self.0), http: None }
    }
}

impl Http<'_> {
    /// Every place in which the request names its host. They agree, unless somebody wants that policy and
    /// application read different ones.
    pub(super) fn hosts(&self) -> impl Iterator<Item = Option<&str>> {
        let authority = self.uri.authority().map(|a| readable_host(a.as_str().as_bytes()));
        let headers = self.headers.get_all(header::HOST).iter().map(|v| readable_host(v.as_bytes()));
        authority.into_iter().chain(headers)
    }
}

/// A host with user information names another host to a careless reader.
fn readable_host(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|text| !text.contains('@'))
}

impl<'a> Path<'a> {
    fn of(method: &Method, uri: &'a Uri) -> Self {
        let path = uri.path();
        if path.is_empty() && *method == Method::CONNECT {
            return Self::Absent;
        }
        match normal_path(path) {
            Ok(text) => Self::Normal { text, unfolded: OnceCell::new() },
            Err(_) => Self::Unreadable,
        }
    }
}

/// Decodes and merges; `None` where that changes nothing.
pub(super) fn unfold(path: &str) -> Option<Unfolded> {
    if !path.contains('%') && !path.contains("//") {
        return None;
    }
    let bytes: Vec<u8> = decode(path.as_bytes());
    // What is no UTF-8 becomes a character that no rule holds; the rest is still compared.
    let decoded = String::from_utf8_lossy(&bytes).replace('\\', "/");
    let mut climbs = false;
    let mut segments: Vec<&str> = Vec::new();
    let mut ends_open = false;
    for segment in decoded.split('/').skip(1) {
        ends_open = matches!(segment, "" | "." | "..");
        climbs |= matches!(segment, "." | "..");
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            other => segments.push(other),
        }
    }
    let mut text = String::with_capacity(decoded.len());
    for segment in &segments {
        text.push('/');
        text.push_str(segment);
    }
    if ends_open || segments.is_empty() {
        text.push('/');
    }
    Some(Unfolded { text, climbs })
}

fn decode(bytes: &[u8]) -> Vec<u8> {
    let hex = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, tail)) = rest.split_first() {
        match (*first, hex(tail.first()), hex(tail.get(1))) {
            (b'%', Some(high), Some(low)) => {
                out.push(high * 16 + low);
                rest = tail.get(2..).unwrap_or_default();
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfolding_shows_what_an_application_may_read() {
        let table = [
            ("/a", None),
            ("/%61dmin", Some(("/admin", false))),
            ("//admin", Some(("/admin", false))),
            ("/admin//", Some(("/admin/", false))),
            ("/a%2Fb", Some(("/a/b", false))),
            ("/a%5cb", Some(("/a/b", false))),
            ("/public/..%2fadmin", Some(("/admin", true))),
            ("/..%2f..%2f", Some(("/", true))),
            ("/a%", Some(("/a%", false))),
            ("/a%zz%4", Some(("/a%zz%4", false))),
            ("/a%ff", Some(("/a\u{fffd}", false))),
            ("//", Some(("/", false))),
        ];
        for (path, want) in table {
            let got = unfold(path);
            let got = got.as_ref().map(|u| (u.text.as_str(), u.climbs));
            assert_eq!(got, want, "{path}");
        }
    }

    #[test]
    fn a_host_with_user_information_is_not_read() {
        assert_eq!(readable_host(b"a:80"), Some("a:80"));
        assert_eq!(readable_host(b"x@a"), None);
        assert_eq!(readable_host(b"\xff"), None);
    }
}
