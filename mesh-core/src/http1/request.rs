//! The head of a request, from its bytes to what it says.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version};

use super::line::{asks_for_another, lists, number};
use super::{Framing, MAX_HEADERS, Malformed};

/// Headers for which there is room beside those that come: what the mesh adds to a request.
const ROOM: usize = 4;

/// The head of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestHead {
    /// Its method.
    pub method: Method,
    /// Its target, in the form in which it came.
    pub uri: Uri,
    /// 1.0 or 1.1.
    pub version: Version,
    /// As they came; several `Content-Length` that say the same are one.
    pub headers: HeaderMap,
    /// How the body ends: never with the connection.
    pub framing: Framing,
    /// Whether the caller would go on with the connection.
    pub keep_alive: bool,
    /// The caller waits to hear that it should send the body (`Expect: 100-continue`), and there is one.
    pub expects: bool,
    /// The caller asks for another protocol on this connection: by CONNECT, or an `Upgrade` to any but HTTP/2.
    pub upgrade: bool,
    /// The caller takes trailers (`TE: trailers`).
    pub trailers: bool,
}

/// What the bytes of a head are so far.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "a box would be an allocation for each request")]
pub enum ParsedRequest {
    /// More has to come.
    Partial,
    /// A head, which took so many bytes.
    Head(RequestHead, usize),
}

/// Reads the head of a request, of at most `most` bytes. `spare` gives its room to the headers. Empty lines before a
/// head are skipped.
///
/// # Errors
/// It is none (RFC 9112, sections 3 and 5), is larger than `most` or has more than [`MAX_HEADERS`] headers, does not name
/// one host (section 3.2; HTTP/1.0 need not), or says how its body ends in a way that two readers may understand
/// differently (section 6.3).
#[inline]
pub fn parse_request(bytes: &Bytes, most: usize, spare: &mut HeaderMap) -> Result<ParsedRequest, Malformed> {
    let mut room = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut []);
    let taken = match parsed.parse_with_uninit_headers(bytes, &mut room) {
        Ok(httparse::Status::Complete(taken)) => taken,
        Ok(httparse::Status::Partial) if bytes.len() < most => return Ok(ParsedRequest::Partial),
        Ok(httparse::Status::Partial) => return Err(Malformed::HEAD_TOO_LARGE),
        Err(httparse::Error::TooManyHeaders) => return Err(Malformed::TOO_MANY_HEADERS),
        Err(_) => return Err(Malformed::NO_HEAD),
    };
    if taken > most {
        return Err(Malformed::HEAD_TOO_LARGE);
    }
    let method = parsed.method.and_then(|method| Method::from_bytes(method.as_bytes()).ok());
    let method = method.ok_or(Malformed::NO_HEAD)?;
    let path = parsed.path.ok_or(Malformed::NO_HEAD)?.as_bytes();
    if path.len() >= usize::from(u16::MAX) {
        // What a `Uri` can hold.
        return Err(Malformed::HEAD_TOO_LARGE);
    }
    let uri = Uri::from_maybe_shared(bytes.slice_ref(path)).map_err(|_| Malformed::NO_HEAD)?;
    let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };

    let mut seen = Seen::default();
    let mut headers = headers_of(bytes, parsed.headers, spare, ROOM, |name, value| seen.note(name, value))?;
    if let (Some(length), true) = (seen.length, seen.lengths > 1) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    let framing = seen.framing(version)?;
    if seen.hosts > 1 || (seen.hosts == 0 && version == Version::HTTP_11) {
        return Err(Malformed::HOST);
    }
    let new = version == Version::HTTP_11;
    let head = RequestHead {
        framing,
        keep_alive: !seen.close && (new || seen.keep_alive),
        expects: new && seen.expects && framing != Framing::None,
        upgrade: method == Method::CONNECT || (new && seen.upgrade && seen.upgrades),
        trailers: seen.trailers,
        method,
        uri,
        version,
        headers,
    };
    Ok(ParsedRequest::Head(head, taken))
}

/// The headers of a head that httparse has found in `bytes`. `spare` gives its room to them, and they have room for so
/// many `more`; `note` is told of each, and may refuse it.
///
/// # Errors
/// One of them is none, or is refused.
pub fn headers_of(
    bytes: &Bytes,
    parsed: &[httparse::Header<'_>],
    spare: &mut HeaderMap,
    more: usize,
    mut note: impl FnMut(&HeaderName, &HeaderValue) -> Result<(), Malformed>,
) -> Result<HeaderMap, Malformed> {
    let mut headers = std::mem::take(spare);
    headers.clear();
    headers.reserve(parsed.len().saturating_add(more));
    for header in parsed {
        let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| Malformed::NO_HEAD)?;
        let value = HeaderValue::from_maybe_shared(bytes.slice_ref(header.value));
        let value = value.map_err(|_| Malformed::NO_HEAD)?;
        note(&name, &value)?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// What a request's headers say of itself and its connection.
#[derive(Debug, Default)]
struct Seen {
    length: Option<u64>,
    lengths: u32,
    chunked: u32,
    hosts: u32,
    close: bool,
    keep_alive: bool,
    expects: bool,
    /// There is an `Upgrade` to another protocol than HTTP.
    upgrade: bool,
    /// `Connection` says that it is meant.
    upgrades: bool,
    trailers: bool,
}

impl Seen {
    #[inline]
    fn note(&mut self, name: &HeaderName, value: &HeaderValue) -> Result<(), Malformed> {
        match *name {
            HOST => self.hosts = self.hosts.saturating_add(1),
            CONTENT_LENGTH => {
                self.lengths = self.lengths.saturating_add(1);
                let length = number(value.as_bytes()).ok_or(Malformed::LENGTH)?;
                if self.length.is_some_and(|other| other != length) {
                    return Err(Malformed::LENGTH);
                }
                self.length = Some(length);
            }
            TRANSFER_ENCODING => {
                // Whoever gets the body is not told of any other encoding.
                if !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                    return Err(Malformed::ENCODING);
                }
                self.chunked = self.chunked.saturating_add(1);
            }
            CONNECTION => {
                self.close |= lists(value, "close");
                self.keep_alive |= lists(value, "keep-alive");
                self.upgrades |= lists(value, "upgrade");
            }
            EXPECT => self.expects = value.as_bytes().eq_ignore_ascii_case(b"100-continue"),
            UPGRADE => self.upgrade |= asks_for_another(value),
            TE => {
                let mut codings = value.as_bytes().split(|b| *b == b',');
                self.trailers |= codings.any(|coding| {
                    let name = coding.split(|b| *b == b';').next().unwrap_or_default();
                    name.trim_ascii().eq_ignore_ascii_case(b"trailers")
                });
            }
            _ => {}
        }
        Ok(())
    }

    #[inline]
    fn framing(&self, version: Version) -> Result<Framing, Malformed> {
        if self.chunked > 0 && self.length.is_some() {
            return Err(Malformed::BOTH);
        }
        if self.chunked > 1 || (self.chunked > 0 && version == Version::HTTP_10) {
            return Err(Malformed::ENCODING);
        }
        Ok(match self.length {
            _ if self.chunked > 0 => Framing::Chunked,
            None | Some(0) => Framing::None,
            Some(length) => Framing::Length(length),
        })
    }
}
