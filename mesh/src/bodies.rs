//! Brings bodies to the one type that crosses the mesh.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response};
use mesh_core::body::{Body, BoxError};
use mesh_policy::breaker::CountedBody;
use pin_project_lite::pin_project;
use tower_service::Service;

/// Takes requests with any body; the service behind it sees [`Body`]. An ended body costs nothing, any other
/// one box.
#[derive(Debug, Clone)]
pub struct AnyRequest<S>(pub(crate) S);

/// Gives responses with [`Body`], which hold what a circuit breaker's hold: of a [`Body`] that is no box more.
#[derive(Debug, Clone)]
pub struct OneResponse<S>(pub(crate) S);

pin_project! {
    /// The answer of a [`OneResponse`] service.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct OneResponseFuture<F> {
        #[pin]
        inner: F,
    }
}

impl<S, B> Service<Request<B>> for AnyRequest<S>
where
    S: Service<Request<Body>>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> S::Future {
        self.0.call(request.map(Body::new))
    }
}

impl<S, A, B> Service<Request<A>> for OneResponse<S>
where
    S: Service<Request<A>, Response = Response<CountedBody<B>>>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = OneResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        OneResponseFuture { inner: self.0.call(request) }
    }
}

impl<F, B, E> Future for OneResponseFuture<F>
where
    F: Future<Output = Result<Response<CountedBody<B>>, E>>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = ready!(self.project().inner.poll(cx))?;
        Poll::Ready(Ok(response.map(|body| {
            let (body, permit) = body.into_parts();
            let body = Body::new(body);
            match permit {
                Some(permit) => body.holding(permit),
                None => body,
            }
        })))
    }
}
