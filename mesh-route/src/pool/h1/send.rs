//! A request on its way: its head, its body, its trailers.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::{HeaderMap, Request};
use mesh_core::body::Body;
use mesh_core::failure::{Failure, FailureCode};
use mesh_core::http1::{Outbox, SendError, to_write};
use tokio::io::AsyncWrite;

use super::{Error, Framing, head};

/// How often the head waits for a body that is on its way: other tasks run, no time passes. Twice, because that is
/// what it takes from the head of a request to its body: the body is asked for, and then handed over.
const MAX_YIELDS: u8 = 2;

/// What is left to send of a request.
#[derive(Debug)]
pub(super) struct Sending {
    body: Body,
    out: Outbox,
}

impl Sending {
    /// Of a request that says the truth about its body's length; takes that body, and the headers, whose room it gives.
    pub(super) fn new(request: &mut Request<Body>, framing: Framing) -> (Self, HeaderMap) {
        let headers = std::mem::take(request.headers_mut());
        let mut written = to_write();
        head::write(&mut written, request.method(), request.uri(), &headers, framing);
        // A request has no end but its own.
        let framing = if framing == Framing::Close { Framing::None } else { framing };
        let trailers = if framing == Framing::Chunked { Outbox::announced(&headers) } else { Vec::new() };
        let out = Outbox::new(written, framing, trailers, MAX_YIELDS);
        let body = if out.needs_body() { std::mem::take(request.body_mut()) } else { Body::empty() };
        (Self { body, out }, headers)
    }

    /// Whether all of it was sent.
    pub(super) const fn is_done(&self) -> bool {
        self.out.is_done()
    }

    /// Sends what can be sent; ready when that is all.
    ///
    /// # Errors
    /// `Io`, or `Body`, after which the request can have no end.
    pub(super) fn poll<IO: AsyncWrite + Unpin + ?Sized>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut IO,
    ) -> Poll<Result<(), Error>> {
        self.out.poll(cx, io, Pin::new(&mut self.body)).map_err(|error| match error {
            SendError::Io(error) => Error::Io(error),
            SendError::Body(error) => Error::Body(error),
            SendError::Length(why) => {
                Error::Body(Failure::new(FailureCode::DownstreamClosed).detail(why).into())
            }
        })
    }
}
