//! A body that holds a permit until it ends.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http_body::{Body, Frame, SizeHint};
use mesh_core::cluster::Permit;
use pin_project_lite::pin_project;

pin_project! {
    /// A response's body that counts as a request in flight until it ends, fails or is dropped.
    #[derive(Debug, Default)]
    pub struct CountedBody<B> {
        #[pin]
        inner: B,
        permit: Option<Permit>,
    }
}

impl<B> CountedBody<B> {
    pub(super) fn new(inner: B, permit: Option<Permit>) -> Self {
        Self { inner, permit }
    }

    /// The body within, and what is held for it, for a body that holds it itself.
    pub fn into_parts(self) -> (B, Option<Permit>) {
        (self.inner, self.permit)
    }

    /// The body within.
    pub fn get_ref(&self) -> &B {
        &self.inner
    }
}

impl<B: Body> Body for CountedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let frame = ready!(this.inner.poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            *this.permit = None;
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
