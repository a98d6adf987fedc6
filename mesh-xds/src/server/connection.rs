//! One connection of one peer, after its handshake.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tonic::body::Body;
use tonic::server::NamedService;
use tower_service::Service;

use super::{Peer, ServerLimits};

/// Two gRPC services on one port; both may be [`Routes`] themselves.
///
/// ```
/// use tower_mesh_xds::ca::{CertificateLimits, Certificates, IssueError, IssueRequest};
/// use tower_mesh_xds::server::{Answer, Discovery, Peer, Routes, ServerLimits};
/// use tower_mesh_xds::ResourceType;
///
/// let nothing = |_: &Peer, _: ResourceType, _: &str| Answer::Absent;
/// let discovery = Discovery::new(nothing, ServerLimits::default());
/// let issuer = |_: IssueRequest| async { Err::<Vec<String>, _>(IssueError::Unavailable("not yet".into())) };
/// let certificates = Certificates::new(issuer, CertificateLimits::default());
/// let both = Routes::new(discovery.into_service(), certificates.into_service());
/// # let _ = both;
/// ```
#[derive(Debug, Clone)]
pub struct Routes<A, B> {
    a: A,
    b: B,
}

impl<A, B> Routes<A, B> {
    /// Both services; what is for neither is answered with `UNIMPLEMENTED` by the second.
    pub const fn new(a: A, b: B) -> Self {
        Self { a, b }
    }
}

impl<A, B, Q> Service<Request<Q>> for Routes<A, B>
where
    A: Service<Request<Q>> + NamedService,
    B: Service<Request<Q>, Response = A::Response, Error = A::Error, Future = A::Future>,
{
    type Response = A::Response;
    type Error = A::Error;
    type Future = A::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), A::Error>> {
        // Services of gRPC are always ready; both are asked all the same.
        match (self.a.poll_ready(cx), self.b.poll_ready(cx)) {
            (Poll::Ready(Ok(())), other) | (other, _) => other,
        }
    }

    fn call(&mut self, request: Request<Q>) -> A::Future {
        let of = request.uri().path().strip_prefix('/').and_then(|path| path.split('/').next());
        if of == Some(A::NAME) { self.a.call(request) } else { self.b.call(request) }
    }
}

/// Serves one connection: HTTP/2 with keep-alive and the limits of [`ServerLimits`]. `peer` is who the
/// handshake proved; without one only services that ask for a token answer. When `ended` is ready, the
/// connection takes no new requests and ends with its last one.
///
/// # Errors
/// When the connection breaks, or the peer does not keep to HTTP/2.
pub async fn serve_connection<IO, S>(
    io: IO,
    peer: Option<Peer>,
    service: S,
    limits: &ServerLimits,
    ended: impl Future<Output = ()>,
) -> Result<(), hyper::Error>
where
    IO: Read + Write + Unpin + 'static,
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let mut service = service.clone();
        let mut request = request.map(Body::new);
        if let Some(peer) = &peer {
            request.extensions_mut().insert(peer.clone());
        }
        async move {
            std::future::poll_fn(|cx| service.poll_ready(cx)).await?;
            service.call(request).await
        }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.keep_alive)
        .keep_alive_timeout(limits.keep_alive_timeout)
        .max_concurrent_streams(limits.connection_requests)
        .max_header_list_size(limits.header_bytes)
        // Requests are small; what waits to be sent is what a stream made when there was room.
        .initial_stream_window_size(64 * 1024)
        .initial_connection_window_size(256 * 1024)
        .max_send_buf_size(64 * 1024)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let mut ended = pin!(ended);
    tokio::select! {
        done = connection.as_mut() => return done,
        () = ended.as_mut() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}
