//! The bodies that count.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::record::Record;

pin_project! {
    /// A request's body, its bytes counted as they are read.
    #[derive(Debug)]
    pub struct Measured<B> {
        #[pin]
        inner: B,
        // None where there is nothing to count.
        bytes: Option<Arc<AtomicU64>>,
    }
}

pin_project! {
    /// An answer's body. When it has ended, or is dropped, the request is recorded.
    #[derive(Debug)]
    pub struct Recorded<B> {
        #[pin]
        inner: B,
        // Taken with the record written.
        record: Option<Record>,
        // How many bytes there will be, where that is known.
        exact: Option<u64>,
    }
}

fn length(frame: &Frame<impl Buf>) -> u64 {
    frame.data_ref().map_or(0, |data| data.remaining() as u64)
}

impl<B: Body> Measured<B> {
    pub(super) fn new(inner: B, record: &mut Record) -> Self {
        let bytes = (!inner.is_end_stream()).then(|| record.count_request());
        Self { inner, bytes }
    }
}

impl<B> Measured<B> {
    /// The body, uncounted from now on.
    pub fn into_inner(self) -> B {
        self.inner
    }
}

impl<B> Recorded<B> {
    /// A body whose request is recorded elsewhere, or not at all.
    pub const fn elsewhere(inner: B) -> Self {
        Self { inner, record: None, exact: None }
    }
}

impl<B: Body> Recorded<B> {
    pub(super) fn new(inner: B, mut record: Option<Record>) -> Self {
        if inner.is_end_stream()
            && let Some(mut record) = record.take()
        {
            record.finish();
        }
        let exact = inner.size_hint().exact();
        Self { inner, record, exact }
    }
}

impl<B: Body> Body for Measured<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let frame = ready!(this.inner.poll_frame(cx));
        if let (Some(Ok(frame)), Some(bytes)) = (&frame, this.bytes) {
            bytes.fetch_add(length(frame), Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B> Body for Recorded<B>
where
    B: Body,
    B::Error: 'static,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.inner.as_mut().poll_frame(cx));
        let Some(record) = this.record else {
            return Poll::Ready(frame);
        };
        let ended = match &frame {
            Some(Ok(frame)) => {
                record.count_response(length(frame));
                if let Some(trailers) = frame.trailers_ref() {
                    record.trailers(trailers);
                }
                // A server need not ask for the end of a body whose last byte it has.
                if this.exact.is_some_and(|exact| record.response_bytes() >= exact) {
                    record.mark_complete();
                }
                frame.is_trailers() || this.inner.is_end_stream()
            }
            Some(Err(error)) => {
                record.fail(error);
                true
            }
            None => true,
        };
        if ended && let Some(mut record) = this.record.take() {
            record.finish();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
