//! A response's body that holds what its request holds, and gives it back when it ends.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use mesh_core::body::BoxError;
use mesh_core::cluster::InFlight;

use super::endpoint::{Home, Http1, Stream};
use super::error::of_body;

/// What a request holds of its connection until its response has ended.
#[derive(Debug)]
pub(super) enum Lease {
    /// The whole connection; goes back home afterwards.
    Http1(Http1, Home),
    /// One stream.
    Http2(Stream),
    /// A connection that ends with this response.
    Last(Home),
}

/// A response's body with its lease. Dropped early, it takes an HTTP/1.1 connection with it.
#[derive(Debug)]
pub(super) struct Leased {
    inner: Incoming,
    lease: Option<Lease>,
    in_flight: Option<InFlight>,
}

impl Lease {
    /// The response ended as it should.
    pub(super) fn end(self) {
        if let Self::Http1(conn, home) = self {
            home.take_back(conn);
        }
    }

    fn home(&self) -> &Home {
        match self {
            Self::Http1(_, home) | Self::Last(home) => home,
            Self::Http2(stream) => stream.home(),
        }
    }
}

impl Leased {
    pub(super) fn new(inner: Incoming, lease: Lease, in_flight: InFlight) -> Self {
        Self { inner, lease: Some(lease), in_flight: Some(in_flight) }
    }

    fn end(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.end();
        }
        self.in_flight = None;
    }
}

impl HttpBody for Leased {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                if self.inner.is_end_stream() {
                    self.end();
                }
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                self.in_flight = None;
                Some(Err(match self.lease.take() {
                    Some(lease) => of_body(error, &lease.home().target.key().address).into(),
                    None => error.into(),
                }))
            }
            None => {
                self.end();
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
