//! What a connection is made of: the contract between the pool and whoever makes connections.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use mesh_core::cluster::{EndpointAddress, UpstreamTls};
use mesh_core::facts::{PeerIdentity, UpstreamAddr};
use mesh_core::failure::{Failure, FailureCode};
use tokio::net::TcpStream;
use tower_service::Service;

/// How HTTP is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HttpVersion {
    /// HTTP/1.1, one request at a time.
    Http1,
    /// HTTP/1.1, several requests at once as streams of HTTP/2: see [`carried`](super::carried). Only where
    /// both ends agreed on it.
    Carried,
    /// HTTP/2.
    Http2,
}

/// A connection that the pool asks for: the request of a connector.
///
/// A connector is a `tower::Service<ConnectTo, Response = Connected<IO>>` whose error is a [`Failure`], or
/// has one among its causes; any other error is `connect_failed`.
#[derive(Debug, Clone)]
pub struct ConnectTo {
    /// Where to.
    pub address: EndpointAddress,
    /// How it is secured, and who must answer.
    pub tls: UpstreamTls,
    /// What to offer by ALPN. [`Carried`](HttpVersion::Carried) is offered with HTTP/1.1 beside it.
    pub http: HttpVersion,
    /// How long all of it may take. The pool keeps to it, too, whatever the connector does.
    pub timeout: Duration,
}

/// A connection: the answer of a connector.
#[derive(Debug)]
pub struct Connected<IO> {
    /// The bytes.
    pub io: IO,
    /// What was agreed on; `None` where nothing was, and the version asked for is spoken (HTTP/1.1, where
    /// [`Carried`](HttpVersion::Carried) was asked for).
    pub protocol: Option<HttpVersion>,
    /// Where it was reached.
    pub address: Option<UpstreamAddr>,
    /// Who the endpoint has proved to be.
    pub peer: Option<Arc<PeerIdentity>>,
}

/// Connects over TCP without TLS. An endpoint that must be spoken to with TLS fails (`tls_failed`).
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpConnect(());

/// The connection of a [`TcpConnect`].
#[must_use = "futures do nothing unless polled"]
pub struct TcpFuture(Pin<Box<dyn Future<Output = Result<Connected<TcpStream>, Failure>> + Send>>);

impl<IO> Connected<IO> {
    /// A connection of which nothing else is known.
    pub fn new(io: IO) -> Self {
        Self { io, protocol: None, address: None, peer: None }
    }
}

impl TcpConnect {
    /// A connector.
    pub const fn new() -> Self {
        Self(())
    }
}

impl Service<ConnectTo> for TcpConnect {
    type Response = Connected<TcpStream>;
    type Error = Failure;
    type Future = TcpFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: ConnectTo) -> TcpFuture {
        TcpFuture(Box::pin(async move {
            if to.tls != UpstreamTls::Plaintext {
                return Err(Failure::new(FailureCode::TlsFailed)
                    .detail(format!("{} takes TLS only, and this connector speaks none", to.address)));
            }
            let opened = match &to.address {
                EndpointAddress::Socket(addr) => TcpStream::connect(addr.0).await,
                EndpointAddress::Name(name, port) => TcpStream::connect((&**name, *port)).await,
            };
            let io = opened.map_err(|e| {
                Failure::new(FailureCode::ConnectFailed)
                    .detail(format!("no connection to {}", to.address))
                    .source(e)
            })?;
            // Small requests must not wait for an acknowledgement; a socket that cannot is still a socket.
            let _ = io.set_nodelay(true);
            let address = io.peer_addr().ok().map(UpstreamAddr);
            Ok(Connected { address, ..Connected::new(io) })
        }))
    }
}

impl Future for TcpFuture {
    type Output = Result<Connected<TcpStream>, Failure>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for TcpFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TcpFuture")
    }
}
