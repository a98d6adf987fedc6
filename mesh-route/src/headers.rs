//! Header operations: `set`, `add` and `remove` of a VirtualService, compiled.
//!
//! Values may hold a few of Envoy's operators: `%REQ(name)%` (also `:method`, `:path`, `:authority`) in
//! requests, `%RESP(name)%` in responses, `%DOWNSTREAM_REMOTE_ADDRESS%`,
//! `%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%` and `%PROTOCOL%` in both, and `%%` for one percent sign. A
//! header whose value comes out empty is not written.
//!
//! ```
//! use http::{HeaderMap, Request};
//! use mesh_core::resource::virtual_service::HeaderOperations;
//! use tower_mesh_route::headers::HeaderOps;
//!
//! let written = HeaderOperations {
//!     set: [("x-from".to_owned(), "%REQ(x-user)%".to_owned())].into(),
//!     remove: vec!["x-user".to_owned()],
//!     ..HeaderOperations::default()
//! };
//! let ops = HeaderOps::request(&written).unwrap();
//! let mut request = Request::builder().header("x-user", "jason").body(()).unwrap();
//! ops.apply_to_request(&mut request, None);
//! assert_eq!(request.headers()["x-from"], "jason");
//! assert!(!request.headers().contains_key("x-user"));
//! ```

use std::collections::BTreeMap;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, header};
use mesh_core::facts::{Facts, PeerAddr};
use mesh_core::failure::{DETAIL_HEADER, REASON_HEADER};
use mesh_core::normal::Authority;
use mesh_core::resource::virtual_service::HeaderOperations;

/// Compiled header operations. Empty ones cost nothing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HeaderOps(Option<Box<Ops>>);

#[derive(Debug, Clone, PartialEq)]
struct Ops {
    remove: Box<[HeaderName]>,
    set: Box<[(HeaderName, Value)]>,
    add: Box<[(HeaderName, Value)]>,
    authority: Option<Box<str>>,
}

/// Why an operation cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidOperation {
    /// Where in the operations, such as `set[x-user]`.
    pub field: String,
    /// What is wrong and the way out.
    pub message: String,
}

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Fixed(HeaderValue),
    Pieces(Box<[Piece]>),
}

#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Text(Box<str>),
    Header(HeaderName),
    Method,
    Path,
    Authority,
    RemoteAddress { port: bool },
    Protocol,
}

/// What operators look at.
struct Source<'a> {
    headers: &'a HeaderMap,
    request: Option<(&'a Method, &'a Uri)>,
    version: Version,
    peer: Option<PeerAddr>,
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Request,
    Response,
}

/// What framing and the mesh itself own; changing it would break a message or forge the mesh's answers.
const PROTECTED: [HeaderName; 10] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::HOST,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    REASON_HEADER,
    DETAIL_HEADER,
];

impl HeaderOps {
    /// Compiles operations on requests.
    ///
    /// # Errors
    /// The first operation that names a header nobody may change, or has a value that cannot be made.
    pub fn request(written: &HeaderOperations) -> Result<Self, InvalidOperation> {
        Self::compile(written, Side::Request)
    }

    /// Compiles operations on responses.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub fn response(written: &HeaderOperations) -> Result<Self, InvalidOperation> {
        Self::compile(written, Side::Response)
    }

    fn compile(written: &HeaderOperations, side: Side) -> Result<Self, InvalidOperation> {
        let (set, by_set) = values("set", &written.set, side)?;
        let (add, by_add) = values("add", &written.add, side)?;
        let remove = written.remove.iter().map(|name| {
            changeable(name).map_err(|message| InvalidOperation { field: format!("remove[{name}]"), message })
        });
        let remove: Box<[HeaderName]> = remove.collect::<Result<_, _>>()?;
        // Setting beats adding: there is one authority only.
        let authority = by_set.or(by_add);
        let none = remove.is_empty() && set.is_empty() && add.is_empty() && authority.is_none();
        Ok(Self((!none).then(|| Box::new(Ops { remove, set, add, authority }))))
    }

    /// Whether there is nothing to do to headers. The [authority](Self::authority) is the router's to apply.
    pub fn is_empty(&self) -> bool {
        self.changes().is_none()
    }

    /// What there is to do to headers.
    fn changes(&self) -> Option<&Ops> {
        self.0.as_deref().filter(|o| !(o.remove.is_empty() && o.set.is_empty() && o.add.is_empty()))
    }

    /// The authority that `:authority`, `host` or `authority` sets.
    pub fn authority(&self) -> Option<&str> {
        self.0.as_deref()?.authority.as_deref()
    }

    /// Removes, then sets, then adds.
    pub fn apply_to_request<B>(&self, request: &mut Request<B>, facts: Option<&Facts>) {
        let Some(ops) = self.changes() else { return };
        let made = ops.render(&Source {
            headers: request.headers(),
            request: Some((request.method(), request.uri())),
            version: request.version(),
            peer: facts.and_then(|f| f.connection().peer_addr()),
        });
        ops.write(request.headers_mut(), made);
    }

    /// Removes, then sets, then adds.
    pub fn apply_to_response(&self, headers: &mut HeaderMap, version: Version, facts: Option<&Facts>) {
        let Some(ops) = self.changes() else { return };
        let peer = facts.and_then(|f| f.connection().peer_addr());
        let made = ops.render(&Source { headers, request: None, version, peer });
        ops.write(headers, made);
    }
}

impl Ops {
    /// The values that have operators in them, all before anything changes: so that a header can be renamed.
    fn render(&self, source: &Source<'_>) -> Vec<Option<HeaderValue>> {
        let values = self.set.iter().chain(&self.add).map(|(_, value)| value);
        let with_operators = values.filter_map(|value| match value {
            Value::Fixed(_) => None,
            Value::Pieces(pieces) => Some(render(pieces, source)),
        });
        with_operators.collect()
    }

    fn write(&self, headers: &mut HeaderMap, made: Vec<Option<HeaderValue>>) {
        let mut made = made.into_iter();
        let mut next = |value: &Value| match value {
            Value::Fixed(value) => Some(value.clone()),
            Value::Pieces(_) => made.next().flatten(),
        };
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            if let Some(value) = next(value) {
                headers.insert(name, value);
            }
        }
        for (name, value) in &self.add {
            if let Some(value) = next(value) {
                headers.append(name, value);
            }
        }
    }
}

fn render(pieces: &[Piece], source: &Source<'_>) -> Option<HeaderValue> {
    let mut out = Vec::new();
    for piece in pieces {
        piece.render(source, &mut out);
    }
    if out.is_empty() {
        return None;
    }
    HeaderValue::from_maybe_shared(Bytes::from(out)).ok()
}

type Values = (Box<[(HeaderName, Value)]>, Option<Box<str>>);

fn values(which: &str, map: &BTreeMap<String, String>, side: Side) -> Result<Values, InvalidOperation> {
    let (mut list, mut authority) = (Vec::with_capacity(map.len()), None);
    for (name, value) in map {
        let invalid = |message: String| InvalidOperation { field: format!("{which}[{name}]"), message };
        let lower = name.to_ascii_lowercase();
        if side == Side::Request && matches!(lower.as_str(), ":authority" | "host" | "authority") {
            authority = Some(checked_authority(value).map_err(invalid)?);
            continue;
        }
        list.push((changeable(name).map_err(invalid)?, Value::parse(value, side).map_err(invalid)?));
    }
    Ok((list.into(), authority))
}

/// An authority as a rule writes it, checked as one that came from a peer.
pub(crate) fn checked_authority(text: &str) -> Result<Box<str>, String> {
    match Authority::parse(text) {
        Ok(_) => Ok(text.into()),
        Err(reason) => Err(format!("{text:?} is no authority: {reason}; write HOST or HOST:PORT")),
    }
}

fn changeable(name: &str) -> Result<HeaderName, String> {
    let header = HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| "not the name of a header that can be changed".to_owned())?;
    if PROTECTED.contains(&header) {
        return Err(format!("{header} belongs to the protocol or to the mesh and cannot be changed"));
    }
    Ok(header)
}

impl Value {
    fn parse(text: &str, side: Side) -> Result<Self, String> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            literal.push_str(before);
            let Some((operator, after)) = after.split_once('%') else {
                return Err(
                    "a single % starts an operator that does not end; write %% for a percent sign".to_owned()
                );
            };
            if operator.is_empty() {
                literal.push('%');
            } else {
                if !literal.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut literal).into()));
                }
                pieces.push(Piece::parse(operator, side)?);
            }
            rest = after;
        }
        literal.push_str(rest);
        if pieces.is_empty() {
            let value = HeaderValue::from_str(&literal);
            return value
                .map(Self::Fixed)
                .map_err(|_| "the value has characters that a header cannot carry".to_owned());
        }
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal.into()));
        }
        Ok(Self::Pieces(pieces.into()))
    }
}

impl Piece {
    fn parse(operator: &str, side: Side) -> Result<Self, String> {
        let (function, argument) = match operator.split_once('(') {
            Some((name, rest)) => (name, rest.strip_suffix(')')),
            None => (operator, None),
        };
        Ok(match (function, argument, side) {
            ("REQ", Some(":method"), Side::Request) => Self::Method,
            ("REQ", Some(":path"), Side::Request) => Self::Path,
            ("REQ", Some(":authority"), Side::Request) => Self::Authority,
            ("REQ", Some(name), Side::Request) | ("RESP", Some(name), Side::Response) => {
                let header = HeaderName::from_bytes(name.as_bytes());
                Self::Header(
                    header.map_err(|_| format!("{name:?} in %{operator}% is not the name of a header"))?,
                )
            }
            ("DOWNSTREAM_REMOTE_ADDRESS", None, _) => Self::RemoteAddress { port: true },
            ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", None, _) => Self::RemoteAddress { port: false },
            ("PROTOCOL", None, _) => Self::Protocol,
            _ => {
                let here = if side == Side::Request { "REQ(name)" } else { "RESP(name)" };
                return Err(format!(
                    "the operator %{operator}% is not supported yet; here stand %{here}%, \
                     %DOWNSTREAM_REMOTE_ADDRESS%, %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%, %PROTOCOL%, \
                     and %% for a percent sign"
                ));
            }
        })
    }

    fn render(&self, source: &Source<'_>, out: &mut Vec<u8>) {
        match (self, source.request) {
            (Self::Text(text), _) => out.extend_from_slice(text.as_bytes()),
            (Self::Header(name), _) => {
                for (i, value) in source.headers.get_all(name).iter().enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    out.extend_from_slice(value.as_bytes());
                }
            }
            (Self::Method, Some((method, _))) => out.extend_from_slice(method.as_str().as_bytes()),
            (Self::Path, Some((_, uri))) => {
                let path = uri.path_and_query().map(PathAndQuery::as_str).unwrap_or_default();
                out.extend_from_slice(path.as_bytes());
            }
            (Self::Authority, Some((_, uri))) => match uri.authority() {
                Some(authority) => out.extend_from_slice(authority.as_str().as_bytes()),
                None => {
                    let host = source.headers.get(header::HOST);
                    out.extend_from_slice(host.map(HeaderValue::as_bytes).unwrap_or_default());
                }
            },
            (Self::Method | Self::Path | Self::Authority, None) => {}
            (Self::RemoteAddress { port }, _) => {
                if let Some(peer) = source.peer {
                    let text = if *port { peer.to_string() } else { peer.ip().to_string() };
                    out.extend_from_slice(text.as_bytes());
                }
            }
            (Self::Protocol, _) => out.extend_from_slice(protocol(source.version).as_bytes()),
        }
    }
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}

#[cfg(test)]
mod tests;
