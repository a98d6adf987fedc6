//! Serving HTTP on one connection, until it ends or the proxy drains.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::future::Either;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh::core::body::{Body, BoxError};
use mesh::core::facts::{Connection, Facts};
use mesh::core::failure::Failure;
use mesh::route::pool::{Gather, Upgrade, caller_half, carried, join_upgrade};
use mesh::serve::{HEADER_TIMEOUT, MAX_ERROR_RESETS, MAX_PENDING_RESETS, MAX_STREAMS};
use tokio::io::{AsyncRead, AsyncWrite};
use tower::ServiceExt;
use tower_service::Service;

use crate::detect::Spoken;

/// How much of a request's head is read at all, in bytes. More than the layers admit, so that they can say
/// why they do not; beyond it the answer is a bare 431.
pub(crate) const MAX_HEAD_READ: usize = 128 * 1024;
/// How much of a stream's body may be on the way unread, in bytes.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same for a whole connection.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// After stopping began an idle connection is kept so long: a request that is on its way already is still
/// answered, and told that the connection closes.
const DRAIN_LINGER: Duration = Duration::from_millis(500);

/// Serves `service` on `io`, until the peer leaves or `stop` returns; then what was begun is finished. Each
/// request gets [`Facts`] of `connection`.
///
/// Large by nature (it holds the connection's buffers): spawn it, do not nest it.
pub(crate) async fn http<I, S, R>(
    io: I,
    version: Spoken,
    connection: Arc<Connection>,
    service: S,
    stop: impl Future<Output = ()>,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Body>, Response = Response<R>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    R: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    let peer = connection.peer_addr();
    let stopping = Arc::new(AtomicBool::new(false));
    let closing = Arc::clone(&stopping);
    // Pinned here, because each future around it would have room for it twice.
    let stop = pin!(stop);
    let stop = async move {
        stop.await;
        stopping.store(true, Ordering::Relaxed);
    };
    let handler = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::from);
        let well = if version == Spoken::Carried { carried::restore(&mut request) } else { Ok(()) };
        let caller = caller_half(&mut request);
        let answer = well.map(|()| {
            Facts::new(Arc::clone(&connection)).insert(&mut request);
            let mut service = service.clone();
            // Ours always are, and need no room for a request that waits.
            match service.poll_ready(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(())) => Either::Left(service.call(request)),
                _ => Either::Right(service.oneshot(request)),
            }
        });
        let closing = Arc::clone(&closing);
        async move {
            let Ok(mut response) = answer?.await;
            if let (Some(caller), Some(upstream)) = (caller, Upgrade::take(&mut response)) {
                tokio::spawn(async move {
                    if let Err(error) = join_upgrade(caller, upstream).await {
                        tracing::debug!(%error, "an upgraded connection ended early");
                    }
                });
            }
            if version.is_one_at_a_time()
                && closing.load(Ordering::Relaxed)
                && response.status() != http::StatusCode::SWITCHING_PROTOCOLS
            {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Failure>(response)
        }
    });

    let done = match version {
        Spoken::Http2 | Spoken::Carried => {
            let mut server = http2::Builder::new(TokioExecutor::new());
            server
                .timer(TokioTimer::new())
                .auto_date_header(false)
                .max_header_list_size(MAX_HEAD_READ as u32)
                .max_concurrent_streams(MAX_STREAMS)
                .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
                .max_local_error_reset_streams(MAX_ERROR_RESETS)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW);
            if version == Spoken::Carried {
                carried::serve(&mut server);
            }
            // Boxed, because hyper moves a request's future about before it runs, and it is large.
            let handler = service_fn(move |request| Box::pin(handler.call(request)));
            let mut connection = Box::pin(server.serve_connection(TokioIo::new(Gather::new(io)), handler));
            // Who has only just connected did so for a request, and is not sent away without it.
            let young = tokio::time::Instant::now() + DRAIN_LINGER;
            let stop = async move {
                stop.await;
                tokio::time::sleep_until(young).await;
            };
            tokio::select! {
                done = connection.as_mut() => done,
                // GOAWAY loses nothing: what was sent before the peer saw it is still answered.
                () = stop => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
        Spoken::Http1 | Spoken::Opaque => {
            let mut server = http1::Builder::new();
            server
                .timer(TokioTimer::new())
                .auto_date_header(false)
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(MAX_HEAD_READ);
            let mut connection = Box::pin(server.serve_connection(TokioIo::new(io), handler).with_upgrades());
            let lingered = async {
                stop.await;
                tokio::time::sleep(DRAIN_LINGER).await;
            };
            tokio::select! {
                done = connection.as_mut() => done,
                () = lingered => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
    };
    if let Err(error) = done {
        // Peers leave in the middle all the time: worth a word only to who is looking.
        tracing::debug!(peer = peer.map(tracing::field::display), %error, "connection ended early");
    }
}
