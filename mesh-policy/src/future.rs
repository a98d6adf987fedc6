//! The future that the layers which answer by themselves share.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::Response;
use pin_project_lite::pin_project;

pin_project! {
    /// What a layer that may refuse returns: the inner service's answer, or the layer's own.
    #[derive(Debug)]
    pub struct ResponseFuture<F, B> {
        #[pin]
        kind: Kind<F, B>,
    }
}

pin_project! {
    #[project = KindProj]
    #[derive(Debug)]
    enum Kind<F, B> {
        Forward { #[pin] inner: F },
        Refuse { response: Option<Response<B>> },
    }
}

impl<F, B> ResponseFuture<F, B> {
    pub(crate) fn forward(inner: F) -> Self {
        Self { kind: Kind::Forward { inner } }
    }

    pub(crate) fn refuse(response: Response<B>) -> Self {
        Self { kind: Kind::Refuse { response: Some(response) } }
    }
}

impl<F, B, E> Future for ResponseFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        match self.project().kind.project() {
            KindProj::Forward { inner } => inner.poll(cx),
            // Polled again after it was ready: nothing is left to say.
            KindProj::Refuse { response } => response.take().map_or(Poll::Pending, |r| Poll::Ready(Ok(r))),
        }
    }
}
