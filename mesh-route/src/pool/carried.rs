//! HTTP/1.1 carried over HTTP/2 between two proxies: several requests share one connection, and with it TLS
//! records and writes.
//!
//! Each stream is one HTTP/1.1 request and its answer. Only the wire differs: [`restore`] gives a request that
//! has arrived the form of HTTP/1.1 before anything else looks at it, and the pool gives the answer the
//! version that the caller speaks. What cannot be said so (an upgrade, CONNECT, a `Host` that is no authority,
//! several of them, a POST that says nothing of a body) goes over a connection that carries one request at a time.
//!
//! A stream that nobody reads must not hold up its neighbours. So the window of a connection is the sum of the
//! windows of its streams, and their number is small: what is unread of one never takes room from another.
//!
//! ```
//! use http::{Request, Version};
//! use tower_mesh_route::pool::carried::restore;
//!
//! let mut request = Request::get("http://reviews:9080/a?b=1")
//!     .version(Version::HTTP_2)
//!     .header("cookie", "a=1")
//!     .header("cookie", "b=2")
//!     .body(())
//!     .unwrap();
//! restore(&mut request).unwrap();
//! assert_eq!((request.version(), request.uri().to_string()), (Version::HTTP_11, "/a?b=1".into()));
//! assert_eq!((&request.headers()["host"], &request.headers()["cookie"]), (
//!     &"reviews:9080".parse().unwrap(),
//!     &"a=1; b=2".parse().unwrap(),
//! ));
//!
//! // Two names for one host: whoever looks at the other one would be deceived.
//! let mut request = Request::get("http://reviews/").header("host", "ratings").body(()).unwrap();
//! assert!(restore(&mut request).is_err());
//! ```

use std::fmt::Display;

use bytes::BytesMut;
use http::header::{CONTENT_LENGTH, COOKIE, HOST};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version};
use hyper::server::conn::http2;
use mesh_core::failure::{Failure, FailureCode};

use super::wire::is_upgrade;

/// Requests at once on one connection; for more another is opened.
pub const MAX_STREAMS: u32 = 64;
/// Connections that carry requests from one shard to one endpoint. Where the streams of all are in use, further
/// requests wait on the least busy one.
pub const MAX_CONNECTIONS: usize = 512;
/// How much of one stream's body may be on its way unread, in bytes; also how much of it is kept to be sent.
pub const STREAM_WINDOW: u32 = 128 * 1024;
/// The same for a connection: as much as all of its streams.
pub const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MAX_STREAMS;

/// Whether a request can be carried whose body has ended already, or not. See the [module](self).
pub(super) fn can_carry<B>(request: &Request<B>, ended: bool) -> bool {
    let (method, headers) = (request.method(), request.headers());
    if *method == Method::CONNECT || is_upgrade(headers) {
        return false;
    }
    // hyper would say of it that its body has length 0.
    let bare = matches!(*method, Method::GET | Method::HEAD | Method::DELETE);
    if ended && !bare && !headers.contains_key(CONTENT_LENGTH) {
        return false;
    }
    match request.uri().authority() {
        Some(authority) => is_plain(authority),
        None => {
            let mut hosts = headers.get_all(HOST).iter();
            let first = hosts.next();
            let parsed = first.map(|host| Authority::try_from(host.as_bytes()));
            hosts.next().is_none() && parsed.is_none_or(|a| a.is_ok_and(|a| is_plain(&a)))
        }
    }
}

/// Without user info, which HTTP/2 forbids (RFC 9113, section 8.3.1).
fn is_plain(authority: &Authority) -> bool {
    !authority.as_str().contains('@')
}

/// Gives a carried request the form of HTTP/1.1: version, origin-form, `Host`, one `Cookie`.
///
/// The peer is a proxy of the mesh, or says so. What a well-behaved one does not send is not repaired but
/// refused, so that no two readers can take the request for different things.
///
/// # Errors
/// `bad_request`, with a cause that makes hyper reset the stream (`PROTOCOL_ERROR`): CONNECT, no `:authority`
/// or one with user info, a `Host` that says something else, a path that is none, two `Content-Length`.
pub fn restore<B>(request: &mut Request<B>) -> Result<(), Failure> {
    if *request.method() == Method::CONNECT {
        return Err(refused("CONNECT cannot be carried"));
    }
    let headers = request.headers();
    if headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some() {
        return Err(refused("more than one content-length"));
    }
    let authority = request.uri().authority().filter(|authority| is_plain(authority));
    let authority = authority.ok_or_else(|| refused("no valid :authority"))?.as_str();
    if headers.get_all(HOST).iter().any(|host| host.as_bytes() != authority.as_bytes()) {
        return Err(refused("host is not :authority"));
    }
    let host = HeaderValue::from_str(authority).map_err(|e| refused(&e))?;
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let all = path.as_str() == "*" && *request.method() == Method::OPTIONS;
    if !(path.as_str().starts_with('/') || all) {
        return Err(refused("no valid :path"));
    }

    *request.version_mut() = Version::HTTP_11;
    *request.uri_mut() = Uri::from(path);
    request.headers_mut().insert(HOST, host);
    join_cookies(request.headers_mut())
}

/// HTTP/2 may send a cookie in pieces; HTTP/1.1 knows one field (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) -> Result<(), Failure> {
    let mut pieces = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (pieces.next(), pieces.next()) else { return Ok(()) };
    let mut joined = BytesMut::from(first.as_bytes());
    for piece in std::iter::once(second).chain(pieces) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(piece.as_bytes());
    }
    let joined = HeaderValue::from_maybe_shared(joined.freeze()).map_err(|e| refused(&e))?;
    headers.insert(COOKIE, joined);
    Ok(())
}

fn refused(why: &(impl Display + ?Sized)) -> Failure {
    Failure::new(FailureCode::BadRequest)
        .detail(format!("a carried request was refused: {why}"))
        .source(h2::Error::from(h2::Reason::PROTOCOL_ERROR))
}

/// Sets what a server of carried requests needs, beside what a server of HTTP/2 does.
pub fn serve<E>(server: &mut http2::Builder<E>) {
    server
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(STREAM_WINDOW as usize);
}

#[cfg(test)]
mod tests;
