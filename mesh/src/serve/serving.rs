//! Serving HTTP on one connection, until it ends or the program stops.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::future::Either;
use http::header::{CONNECTION, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_core::body::{Body, BoxError};
use mesh_core::facts::{Connection, Facts};
use mesh_core::failure::Failure;
use mesh_route::pool::{Gather, HttpVersion, Upgrade, caller_half, carried, join_upgrade};
use tokio::io::{AsyncRead, AsyncWrite};
use tower::ServiceExt;
use tower_service::Service;

use super::{MAX_ERROR_RESETS, MAX_PENDING_RESETS, MAX_STREAMS, h1};

/// What can be chosen of serving a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serving {
    /// Of HTTP/1.1; the limits count for HTTP/2 as well, and who has connected within the time that idle connections are
    /// kept is not told to go before that.
    pub h1: h1::Settings,
    /// How much of an HTTP/2 stream's body, and of those of a whole connection, may be on the way unread, in bytes.
    /// `None` is hyper's choice.
    pub windows: Option<(u32, u32)>,
    /// Whether an upgraded connection is joined here with the one to the upstream, as a proxy does. Else the service
    /// finds hyper's `OnUpgrade` in the request.
    pub join_upgrades: bool,
}

/// Serves `service` on `io`, until the peer leaves or `stop` returns; then what was begun is finished. Each
/// request gets [`Facts`] of `connection`.
///
/// HTTP/1.1 is served by [`h1`], but for a request that asks for another protocol: that one, and HTTP/2, are
/// hyper's.
///
/// Large by nature (it has room for a request's future): box it, or spawn it; do not nest it.
pub async fn http<I, S, R>(
    io: I,
    version: HttpVersion,
    connection: Arc<Connection>,
    service: S,
    stop: impl Future<Output = ()>,
    serving: &Serving,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Body>, Response = Response<R>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    let peer = connection.peer_addr();
    // Pinned here, because each future around it would have room for it twice.
    let stop = pin!(stop);
    let done = if version == HttpVersion::Http1 {
        http1(io, connection, service, stop, serving).await
    } else {
        // Boxed, because most connections are none of these.
        Box::pin(http2(io, version, connection, service, stop, serving)).await
    };
    if let Err(error) = done {
        // Peers leave in the middle all the time: worth a word only to who is looking.
        tracing::debug!(peer = peer.map(tracing::field::display), %error, "a connection ended early");
    }
}

/// Calls a service, which as a rule is ready and needs no room for a request that waits.
fn call<S: Service<Request<Body>> + Clone>(
    service: &mut S,
    connection: &Arc<Connection>,
    mut request: Request<Body>,
) -> Either<S::Future, tower::util::Oneshot<S, Request<Body>>> {
    Facts::new(Arc::clone(connection)).insert(&mut request);
    match service.poll_ready(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(())) => Either::Left(service.call(request)),
        _ => Either::Right(service.clone().oneshot(request)),
    }
}

async fn http1<I, S, R>(
    io: I,
    connection: Arc<Connection>,
    mut service: S,
    stop: impl Future<Output = ()> + Unpin,
    serving: &Serving,
) -> Result<(), BoxError>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Body>, Response = Response<R>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    let mut stop = stop;
    let stopped = AtomicBool::new(false);
    let ended = {
        let stop = async {
            (&mut stop).await;
            stopped.store(true, Ordering::Relaxed);
        };
        h1::serve(io, &serving.h1, |request| call(&mut service, &connection, request), stop).await?
    };
    let h1::Ended::Upgrade(io) = ended else { return Ok(()) };
    let stop = async {
        if !stopped.load(Ordering::Relaxed) {
            stop.await;
        }
    };
    // Boxed: it holds hyper's buffers, and is rare.
    Ok(Box::pin(upgrade(io, connection, service, stop, serving)).await?)
}

/// Serves the one request that asks for another protocol: hyper hands the connection over as programs expect it. Unless
/// it is handed over, it ends with the answer.
async fn upgrade<I, S, R>(
    io: I,
    connection: Arc<Connection>,
    service: S,
    stop: impl Future<Output = ()>,
    serving: &Serving,
) -> hyper::Result<()>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Body>, Response = Response<R>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    let join = serving.join_upgrades;
    let handler = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::from);
        let connect = *request.method() == Method::CONNECT;
        let caller = if join { caller_half(&mut request) } else { None };
        let answer = call(&mut service.clone(), &connection, request);
        async move {
            let Ok(mut response) = answer.await;
            if let (Some(caller), Some(upstream)) = (caller, Upgrade::take(&mut response)) {
                tokio::spawn(async move {
                    if let Err(error) = join_upgrade(caller, upstream).await {
                        tracing::debug!(%error, "an upgraded connection ended early");
                    }
                });
            }
            let handed_over = response.status() == StatusCode::SWITCHING_PROTOCOLS
                || (connect && response.status().is_success());
            if !handed_over {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .auto_date_header(serving.h1.dated)
        .header_read_timeout(serving.h1.head_timeout)
        .max_buf_size(serving.h1.max_head);
    let mut connection = pin!(server.serve_connection(TokioIo::new(io), handler).with_upgrades());
    tokio::select! {
        done = connection.as_mut() => done,
        () = stop => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}

async fn http2<I, S, R>(
    io: I,
    version: HttpVersion,
    connection: Arc<Connection>,
    service: S,
    stop: impl Future<Output = ()>,
    serving: &Serving,
) -> Result<(), BoxError>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Body>, Response = Response<R>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    let join = serving.join_upgrades;
    let handler = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::from);
        let well = if version == HttpVersion::Carried { carried::restore(&mut request) } else { Ok(()) };
        if join {
            // None of HTTP/2 is joined with an upstream's.
            let _ = caller_half(&mut request);
        }
        let answer = well.map(|()| call(&mut service.clone(), &connection, request));
        // Boxed, because hyper moves a request's future about before it runs, and it is large.
        Box::pin(async move {
            let Ok(response) = answer?.await;
            Ok::<_, Failure>(response)
        })
    });
    let mut server = http2::Builder::new(TokioExecutor::new());
    server
        .timer(TokioTimer::new())
        .auto_date_header(serving.h1.dated)
        .max_header_list_size(u32::try_from(serving.h1.max_head).unwrap_or(u32::MAX))
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_ERROR_RESETS);
    if let Some((stream, connection)) = serving.windows {
        server.initial_stream_window_size(stream).initial_connection_window_size(connection);
    }
    if version == HttpVersion::Carried {
        carried::serve(&mut server);
    }
    let mut connection = pin!(server.serve_connection(TokioIo::new(Gather::new(io)), handler));
    // Who has only just connected did so for a request, and is not sent away without it.
    let young = tokio::time::Instant::now() + serving.h1.linger;
    let stop = async move {
        stop.await;
        tokio::time::sleep_until(young).await;
    };
    let done = tokio::select! {
        done = connection.as_mut() => done,
        // GOAWAY loses nothing: what was sent before the peer saw it is still answered.
        () = stop => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    done.map_err(|error| -> Box<dyn StdError + Send + Sync> { error.into() })
}
