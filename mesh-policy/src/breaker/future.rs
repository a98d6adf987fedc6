//! The future of a circuit breaker.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Response;
use mesh_core::body::BoxError;
use mesh_core::cluster::Permit;
use mesh_core::failure::Failure;
use pin_project_lite::pin_project;

use super::CountedBody;

pin_project! {
    /// What a [`CircuitBreaker`](super::CircuitBreaker) returns.
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        kind: Kind<F>,
    }
}

pin_project! {
    #[project = KindProj]
    #[derive(Debug)]
    enum Kind<F> {
        Forward { #[pin] inner: F, permit: Option<Permit> },
        Refuse { failure: Failure },
    }
}

impl<F> ResponseFuture<F> {
    pub(super) fn forward(inner: F, permit: Option<Permit>) -> Self {
        Self { kind: Kind::Forward { inner, permit } }
    }

    pub(super) fn refuse(failure: Failure) -> Self {
        Self { kind: Kind::Refuse { failure } }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Response<CountedBody<B>>, Failure>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().kind.project() {
            KindProj::Forward { inner, permit } => {
                let result = ready!(inner.poll(cx));
                let permit = permit.take();
                Poll::Ready(match result {
                    Ok(response) => Ok(response.map(|body| CountedBody::new(body, permit))),
                    Err(error) => Err(Failure::of(error.into())),
                })
            }
            KindProj::Refuse { failure } => Poll::Ready(Err(failure.clone())),
        }
    }
}
