//! HTTP/1.1, the client's side: a connection that nobody but its request drives.
//!
//! There is no task and no channel: whoever waits for the response writes the request and reads the response's
//! head, and whoever reads the body reads the socket. Only where a response comes before its request's body
//! has been sent, the rest of that body is sent by a task. An unused connection holds no buffer.
//!
//! What a server sends is read strictly, and a response that two readers could understand differently is none
//! (RFC 9112, sections 6.3 and 11.2): [`parse`] and [`Decoder`] decide that, and know nothing of sockets. They are
//! public so that they can be tested by everyone.
//!
//! - A request goes out as it is told by `wire`: its head and what is there of its body in one write, up to
//!   [`MAX_JOINED`] bytes; larger pieces are not copied. A body of unknown length is chunked. Trailers are
//!   sent where `Trailer` names them.
//! - A connection is looked at before it is used. One that the server has closed, or on which something came that
//!   nobody asked for, takes no request, and the request is handed back as it is.
//! - Informational responses are skipped, no more than [`MAX_INFORMATIONAL`] of them.
//! - Of a server that answers early and closes, the answer counts, not that the body could not be sent.
//! - A response that is dropped before its end takes the connection with it.
//!
//! ```
//! use bytes::Bytes;
//! use http::HeaderMap;
//! use tower_mesh_route::pool::h1::{Asked, Framing, Parsed, parse};
//!
//! let read = |head: &'static str| {
//!     parse(&Bytes::from_static(head.as_bytes()), Asked::default(), &mut HeaderMap::new())
//! };
//! let Parsed::Head(head, 38) = read("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap() else { panic!() };
//! assert_eq!((head.framing, head.keep_alive), (Framing::Length(2), true));
//!
//! // Is it five bytes, or what the chunks say?
//! let both = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n";
//! assert!(read(both).is_err());
//! ```

mod body;
mod conn;
mod exchange;
mod head;
mod send;
#[cfg(test)]
mod tests;

use std::error::Error as StdError;
use std::fmt;
use std::io;

use mesh_core::body::BoxError;
use mesh_core::http1::BodyError;
#[cfg(doc)]
use mesh_core::http1::{Decoder, MAX_JOINED};
pub use mesh_core::http1::{Framing, MAX_HEADERS, Malformed};

pub(super) use body::Leased;
pub(super) use conn::{Conn, Connection, Io};
pub(super) use exchange::{Answered, Exchange, Failed, exchange};
pub(super) use head::framing_of;
pub use head::{Asked, Head, Parsed, parse};

/// The largest head of a response, in bytes; also all informational ones before it together.
pub const MAX_HEAD_BYTES: u32 = 64 * 1024;
/// The most informational responses before a response.
pub const MAX_INFORMATIONAL: usize = 16;
/// What ended an exchange that had begun.
#[derive(Debug)]
pub(super) enum Error {
    /// The connection ended where it must not.
    Ended,
    /// The connection broke.
    Io(io::Error),
    /// What came is no response.
    Malformed(Malformed),
    /// The request's body failed, or was not what its head said.
    Body(BoxError),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ended => "the server closed the connection before the response's end",
            Self::Io(_) => "the connection broke",
            Self::Malformed(_) => "the response is not valid",
            Self::Body(_) => "the request's body failed",
        })
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Ended => None,
            Self::Io(error) => Some(error),
            Self::Malformed(malformed) => Some(malformed),
            Self::Body(error) => Some(&**error),
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<BodyError> for Error {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Ended => Self::Ended,
            BodyError::Io(error) => Self::Io(error),
            BodyError::Malformed(malformed) => Self::Malformed(malformed),
        }
    }
}

impl From<Malformed> for Error {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}
