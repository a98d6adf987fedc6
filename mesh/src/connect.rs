//! Joins the pool, which asks for connections, to the mesh's TLS, which makes them.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use mesh_core::failure::Failure;
use mesh_core::live::Live;
use mesh_route::pool::{ConnectTo, Connected, HttpVersion};
use mesh_tls::alpn::{MeshAlpn, Negotiated};
use mesh_tls::{Credentials, MaybeTls, TlsConnect};
use tokio::net::TcpStream;
use tower_service::Service;

/// A connector of the pool that speaks the mesh's TLS to endpoints that carry it.
///
/// Readiness: always ready. Errors: a [`Failure`] of code `connect_failed`, `tls_failed` or
/// `identity_mismatch`.
#[derive(Debug, Clone)]
pub struct MeshConnect {
    tls: TlsConnect,
    handover: bool,
}

type Outcome = Result<Connected<MaybeTls<TcpStream>>, Failure>;

/// The connection of a [`MeshConnect`]. Boxed: one allocation beside a handshake.
#[must_use = "futures do nothing unless polled"]
pub struct ConnectFuture(Pin<Box<dyn Future<Output = Outcome> + Send>>);

impl MeshConnect {
    /// Connects under the identity in force.
    pub const fn new(credentials: Live<Credentials>) -> Self {
        Self { tls: TlsConnect::new(credentials), handover: false }
    }

    /// The same for connections to the applications of a pod whose connections are redirected.
    #[must_use]
    pub const fn handing_over(mut self) -> Self {
        self.handover = true;
        self
    }
}

impl Service<ConnectTo> for MeshConnect {
    type Response = Connected<MaybeTls<TcpStream>>;
    type Error = Failure;
    type Future = ConnectFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: ConnectTo) -> ConnectFuture {
        let alpn = match to.http {
            HttpVersion::Http1 => MeshAlpn::Http1,
            HttpVersion::Carried => MeshAlpn::Carried,
            HttpVersion::Http2 => MeshAlpn::Http2,
        };
        let timeout = to.timeout;
        let to = mesh_tls::ConnectTo::new(to.address).tls(to.tls).alpn(alpn);
        let to = to.timeout(timeout).handover(self.handover);
        let connecting = self.tls.call(to);
        ConnectFuture(Box::pin(async move {
            let connected = connecting.await?;
            Ok(Connected {
                io: connected.io,
                protocol: match connected.alpn {
                    Some(Negotiated::Http1) => Some(HttpVersion::Http1),
                    Some(Negotiated::Carried) => Some(HttpVersion::Carried),
                    Some(Negotiated::Http2) => Some(HttpVersion::Http2),
                    _ => None,
                },
                address: connected.address,
                peer: connected.peer,
            })
        }))
    }
}

impl Future for ConnectFuture {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for ConnectFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConnectFuture")
    }
}
