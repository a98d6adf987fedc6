//! HTTP/1.1 on the wire, for both ends of it: what the server that callers speak to and the client that speaks to
//! upstreams have in common.
//!
//! What comes is read by pure functions that know nothing of sockets, and what two readers could understand differently
//! is none (RFC 9112, sections 6.3 and 11.2): [`parse_request`] for the head of a request, [`Decoder`] for any body.
//! The head of a response is the client's alone (`mesh_route::pool::h1`). httparse, which hyper uses too, reads the
//! lines. Around them [`Inbox`] reads from a socket, and [`Outbox`] writes a head and a body to one.
//!
//! ```
//! use bytes::Bytes;
//! use http::HeaderMap;
//! use tower_mesh_core::http1::{Framing, ParsedRequest, parse_request};
//!
//! let read = |head: &'static str| parse_request(&Bytes::from_static(head.as_bytes()), 1024, &mut HeaderMap::new());
//! let text = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok";
//! let ParsedRequest::Head(head, 47) = read(text).unwrap() else { panic!() };
//! assert_eq!((head.framing, head.keep_alive), (Framing::Length(2), true));
//!
//! // Is it five bytes, or what the chunks say?
//! let both = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n";
//! assert!(read(both).is_err());
//! ```

mod decode;
mod inbox;
pub mod line;
mod outbox;
mod request;
mod spare;
#[cfg(test)]
mod tests;

use std::error::Error as StdError;
use std::fmt;

pub use decode::{Decoder, Step, What};
pub use inbox::{BodyError, Inbox, MAX_KEPT, READ_MUCH};
pub use outbox::{Outbox, SendError};
pub use request::{ParsedRequest, RequestHead, headers_of, parse_request};
pub use spare::{READ, to_write};

/// The most headers, and the most trailers, of a message.
pub const MAX_HEADERS: usize = 100;
/// The most bytes of extensions, and white space in their place, in all chunks of a message together.
pub const MAX_EXTENSION_BYTES: usize = 16 * 1024;
/// The most bytes of trailers of a message.
pub const MAX_TRAILER_BYTES: usize = 16 * 1024;
/// How much is joined before it is written, in bytes; a larger piece of a body is written from where it is.
pub const MAX_JOINED: usize = 8 * 1024;

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// After so many bytes.
    Length(u64),
    /// With its last chunk.
    Chunked,
    /// With the connection.
    Close,
}

/// Why something is no message of HTTP/1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(&'static str);

impl Malformed {
    /// There is no head where one has to be.
    pub const NO_HEAD: Self = Self("no head of an HTTP/1.1 message");
    /// The head is larger than its reader allows.
    pub const HEAD_TOO_LARGE: Self = Self("the head is too large");
    /// More than [`MAX_HEADERS`].
    pub const TOO_MANY_HEADERS: Self = Self("more than 100 headers");
    /// More heads of informational responses than their reader allows.
    pub const TOO_MANY_INFORMATIONAL: Self = Self("more than 16 informational responses");
    /// A `Content-Length` that is none, or several that differ.
    pub const LENGTH: Self = Self("content-length is not one number");
    /// A `Transfer-Encoding` that cannot be read.
    pub const ENCODING: Self = Self("a transfer-encoding that is not chunked alone, or not of HTTP/1.1");
    /// Two ends for one body.
    pub const BOTH: Self = Self("content-length and transfer-encoding together");
    /// A response switches protocols where nobody asked.
    pub const UPGRADE: Self = Self("101, and no upgrade was asked for");
    /// A request names no host where it must, or more than one.
    pub const HOST: Self = Self("not exactly one host");
    /// What stands between the chunks of a body is not what has to.
    pub const CHUNK: Self = Self("no valid chunk");
    /// More than [`MAX_EXTENSION_BYTES`].
    pub const EXTENSIONS: Self = Self("more than 16 KiB of chunk extensions");
    /// Trailers that are none, or more than [`MAX_TRAILER_BYTES`] or [`MAX_HEADERS`] of them.
    pub const TRAILERS: Self = Self("no valid trailers, or more than 16 KiB of them");

    /// Whether it may be a message, but one beyond a limit of its head.
    pub fn is_too_large(self) -> bool {
        [Self::HEAD_TOO_LARGE, Self::TOO_MANY_HEADERS].contains(&self)
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl StdError for Malformed {}
