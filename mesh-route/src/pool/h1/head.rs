//! Heads: a request's is written, a response's is read and judged.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version};
use mesh_core::failure::{Failure, FailureCode};
use mesh_core::http1::headers_of;
use mesh_core::http1::line::{self, lists, number};

use super::super::wire;
use super::{Framing, MAX_HEAD_BYTES, MAX_HEADERS, Malformed};

/// What of a request decides how its response is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Asked {
    /// The request was HEAD: the response has no body, whatever its head says.
    pub head: bool,
    /// The request was CONNECT.
    pub connect: bool,
    /// The request asked for another protocol, so that 101 is an answer.
    pub upgrade: bool,
}

/// The head of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Never informational, but for 101 where an upgrade was asked for.
    pub status: StatusCode,
    /// The reason, where it is not the usual one.
    pub reason: Option<Bytes>,
    /// As they came; several `Content-Length` that say the same are one.
    pub headers: HeaderMap,
    /// How the body ends.
    pub framing: Framing,
    /// Whether the connection may be used again when the body has ended.
    pub keep_alive: bool,
}

/// What the bytes of a head are so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// More has to come.
    Partial,
    /// An informational head (100, 102 to 199), which is not the answer. It took so many bytes.
    Informational(usize),
    /// The answer's. It took so many bytes.
    Head(Head, usize),
}

impl Asked {
    /// Of this request.
    pub fn of<B>(request: &Request<B>) -> Self {
        Self {
            head: *request.method() == Method::HEAD,
            connect: *request.method() == Method::CONNECT,
            upgrade: wire::is_upgrade(request.headers()),
        }
    }
}

/// Reads the head of a response to a request of which `asked` is known. `spare` gives its room to the headers.
///
/// # Errors
/// It is none (RFC 9112, sections 4 and 5), is larger than [`MAX_HEAD_BYTES`] or has more than [`MAX_HEADERS`]
/// headers, or says how its body ends in a way that two readers may understand differently (section 6.3).
pub fn parse(bytes: &Bytes, asked: Asked, spare: &mut HeaderMap) -> Result<Parsed, Malformed> {
    let mut room = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let taken = match config.parse_response_with_uninit_headers(&mut parsed, bytes, &mut room) {
        Ok(httparse::Status::Complete(taken)) => taken,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD_BYTES as usize => return Ok(Parsed::Partial),
        Ok(httparse::Status::Partial) => return Err(Malformed::HEAD_TOO_LARGE),
        Err(httparse::Error::TooManyHeaders) => return Err(Malformed::TOO_MANY_HEADERS),
        Err(_) => return Err(Malformed::NO_HEAD),
    };
    if taken > MAX_HEAD_BYTES as usize {
        return Err(Malformed::HEAD_TOO_LARGE);
    }
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Malformed::NO_HEAD)?;
    if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Parsed::Informational(taken));
    }
    let reason = parsed.reason.filter(|reason| Some(*reason) != status.canonical_reason());
    let reason = reason.map(|reason| Bytes::copy_from_slice(reason.as_bytes()));
    let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };

    let mut seen = Seen::default();
    let mut headers = headers_of(bytes, parsed.headers, spare, 0, |name, value| seen.note(name, value))?;
    if let (Some(length), true) = (seen.length, seen.lengths > 1) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    let framing = seen.framing(status, version, asked)?;
    let keep_alive = seen.keep_alive(status, version, asked, framing);
    Ok(Parsed::Head(Head { status, reason, headers, framing, keep_alive }, taken))
}

/// What a response's headers say of where it ends.
#[derive(Debug, Default)]
struct Seen {
    length: Option<u64>,
    lengths: u32,
    chunked: u32,
    close: bool,
    keep_alive: bool,
}

impl Seen {
    fn note(&mut self, name: &HeaderName, value: &HeaderValue) -> Result<(), Malformed> {
        match *name {
            CONTENT_LENGTH => {
                self.lengths =
                    self.lengths.saturating_add(value.as_bytes().split(|b| *b == b',').count() as u32);
                let length = length_of(value).ok_or(Malformed::LENGTH)?;
                if self.length.is_some_and(|other| other != length) {
                    return Err(Malformed::LENGTH);
                }
                self.length = Some(length);
            }
            TRANSFER_ENCODING => {
                // Nothing else is asked for (`TE` goes out with `trailers` alone), and whoever gets the answer is
                // not told of the encoding.
                if !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                    return Err(Malformed::ENCODING);
                }
                self.chunked = self.chunked.saturating_add(1);
            }
            CONNECTION => {
                self.close |= lists(value, "close");
                self.keep_alive |= lists(value, "keep-alive");
            }
            _ => {}
        }
        Ok(())
    }

    fn framing(&self, status: StatusCode, version: Version, asked: Asked) -> Result<Framing, Malformed> {
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return if asked.upgrade { Ok(Framing::None) } else { Err(Malformed::UPGRADE) };
        }
        if self.chunked > 0 && self.length.is_some() {
            return Err(Malformed::BOTH);
        }
        if self.chunked > 1 || (self.chunked > 0 && version == Version::HTTP_10) {
            return Err(Malformed::ENCODING);
        }
        let none = asked.head
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
            || (asked.connect && status.is_success());
        Ok(match self.length {
            _ if none => Framing::None,
            _ if self.chunked > 0 => Framing::Chunked,
            Some(length) => Framing::Length(length),
            None => Framing::Close,
        })
    }

    fn keep_alive(&self, status: StatusCode, version: Version, asked: Asked, framing: Framing) -> bool {
        let persistent = !self.close && (version == Version::HTTP_11 || self.keep_alive);
        // Some servers send what must not be there; nobody may read it as the next response.
        let body_where_none_is =
            status == StatusCode::NO_CONTENT && (self.chunked > 0 || self.length.is_some_and(|n| n > 0));
        persistent
            && !body_where_none_is
            && framing != Framing::Close
            && status != StatusCode::SWITCHING_PROTOCOLS
            && !(asked.connect && status.is_success())
    }
}

/// A `Content-Length`: digits, or several times the same ones in a list.
fn length_of(value: &HeaderValue) -> Option<u64> {
    let mut found = None;
    for part in value.as_bytes().split(|b| *b == b',') {
        let length = number(part.trim_ascii())?;
        if found.is_some_and(|other| other != length) {
            return None;
        }
        found = Some(length);
    }
    found
}

/// How a request's body is to be sent: what its head says, or is given to say. A body of a length that is not
/// known is chunked, whatever the method.
///
/// # Errors
/// `bad_request`: the head says another length than the body has, or says none that is one.
pub(in super::super) fn framing_of<B: http_body::Body>(request: &Request<B>) -> Result<Framing, Failure> {
    let (headers, ended) = (request.headers(), request.body().is_end_stream());
    let exact = request.body().size_hint().exact();
    let mut said = None;
    // Most requests have no body, and to look at each name is less than to look one up.
    let says = headers.keys().any(|name| *name == CONTENT_LENGTH);
    for value in says.then(|| headers.get_all(CONTENT_LENGTH)).into_iter().flatten() {
        let length = length_of(value).ok_or_else(|| refused("content-length is not one number"))?;
        if said.is_some_and(|other| other != length) {
            return Err(refused("there are several content-length"));
        }
        said = Some(length);
    }
    let real = if ended { Some(0) } else { exact };
    match (said, real) {
        (Some(said), Some(real)) if said != real => Err(refused("content-length is not the body's")),
        (_, _) if ended => Ok(Framing::None),
        (Some(length), _) | (None, Some(length)) => Ok(Framing::Length(length)),
        (None, None) => Ok(Framing::Chunked),
    }
}

fn refused(why: &str) -> Failure {
    Failure::new(FailureCode::BadRequest).detail(format!("a request cannot be sent over HTTP/1.1: {why}"))
}

/// Writes a request's head.
pub(super) fn write(out: &mut Vec<u8>, method: &Method, uri: &Uri, headers: &HeaderMap, framing: Framing) {
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    match (uri.authority(), uri.path_and_query()) {
        (Some(authority), _) if *method == Method::CONNECT => {
            out.extend_from_slice(authority.as_str().as_bytes());
        }
        (_, Some(path)) => {
            let path = path.as_str();
            if !(path.starts_with('/') || path == "*") {
                out.push(b'/');
            }
            out.extend_from_slice(path.as_bytes());
        }
        (_, None) => out.push(b'/'),
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let mut says_length = false;
    for (name, value) in headers {
        match *name {
            // `wire::prepare` has removed it; it is never two of us who say where a body ends.
            TRANSFER_ENCODING => continue,
            CONTENT_LENGTH => {
                if says_length {
                    continue;
                }
                says_length = true;
            }
            _ => {}
        }
        line::write(out, name.as_str().as_bytes(), value.as_bytes());
    }
    match framing {
        Framing::Length(length) if !says_length => {
            line::write(out, b"content-length", itoa::Buffer::new().format(length).as_bytes());
        }
        Framing::Chunked => line::write(out, b"transfer-encoding", b"chunked"),
        _ => {}
    }
    out.extend_from_slice(b"\r\n");
}
