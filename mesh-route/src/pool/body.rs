//! A response's body over HTTP/2, which holds what its request holds until it ends.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use mesh_core::body::BoxError;
use mesh_core::cluster::InFlight;

use super::endpoint::Stream;
use super::error::of_body;

/// A response's body with its stream.
#[derive(Debug)]
pub(super) struct Leased {
    inner: Incoming,
    stream: Option<Stream>,
    in_flight: Option<InFlight>,
}

impl Leased {
    pub(super) fn new(inner: Incoming, stream: Stream, in_flight: InFlight) -> Self {
        Self { inner, stream: Some(stream), in_flight: Some(in_flight) }
    }

    fn end(&mut self) {
        self.stream = None;
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
                Some(Err(match self.stream.take() {
                    Some(stream) => of_body(error, &stream.home().target.key().address).into(),
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
