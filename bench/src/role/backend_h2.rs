//! The HTTP/2 backend: text, or gRPC when the request is gRPC.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::{Local, listen_on};

/// A message of 32 bytes in gRPC's framing.
const MESSAGE: &[u8] = b"\x00\x00\x00\x00\x20xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";
const TEXT: &[u8] =
    b"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n";

pub(super) async fn run(listen: &[SocketAddr]) -> Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for (n, addr) in listen.iter().enumerate() {
        let listener = listen_on(*addr)?;
        let version = HeaderValue::try_from(format!("v{}", n + 1))?;
        tasks.spawn_local(serve(listener, version));
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

async fn serve(listener: TcpListener, version: HeaderValue) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let version = version.clone();
        let service = service_fn(move |request| answer(request, version.clone()));
        tokio::task::spawn_local(async move {
            let mut builder = http2::Builder::new(Local);
            builder.max_concurrent_streams(1000);
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(request: Request<Incoming>, version: HeaderValue) -> Result<Response<Fixed>, Infallible> {
    let grpc = request
        .headers()
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    // A unary call is answered when it is there as a whole.
    let mut body = request.into_body();
    while let Some(Ok(_)) = body.frame().await {}
    let (kind, data) = if grpc { ("application/grpc", MESSAGE) } else { ("text/plain", TEXT) };
    let mut response = Response::new(Fixed { data: Some(Bytes::from_static(data)), trailers: grpc });
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(HeaderName::from_static("x-version"), version);
    Ok(response)
}

/// A body of one frame, and gRPC's trailers behind it where they belong.
struct Fixed {
    data: Option<Bytes>,
    trailers: bool,
}

impl Body for Fixed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(data) = self.data.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if std::mem::take(&mut self.trailers) {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && !self.trailers
    }
}
