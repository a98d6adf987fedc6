//! The demo's applications: what a user would run, knowing nothing of a mesh.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// The header by which an answer tells which version gave it.
pub(super) const VERSION: &str = "x-version";

/// Starts one version of `reviews` on a loopback port; it runs as long as the demo.
pub(super) async fn start(version: &'static str) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            let service = service_fn(move |_: Request<Incoming>| async move {
                let body = Full::new(Bytes::from_static(b"{\"stars\":5}\n"));
                let response = Response::builder().header(VERSION, version).body(body);
                Ok::<_, Infallible>(response.unwrap_or_default())
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    Ok(addr)
}
