//! Requests that become another protocol: WebSocket and its like.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::{Extensions, Request, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use mesh_core::cluster::InFlight;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::h1::Io;
use super::shared::lock;
use super::wire;

/// The upstream's half of an upgraded request, and the count of it being in flight.
pub struct Upgrade {
    io: Upstream,
    in_flight: InFlight,
}

/// Holds an upgraded request until somebody takes it; an extension of the 101 response, which must be `Clone`.
#[derive(Clone)]
struct Untaken(Arc<Mutex<Option<Upgrade>>>);

/// An upgraded connection: what came behind the head of the 101, and then what comes.
struct Upstream {
    first: Bytes,
    io: Box<dyn Io>,
}

impl Upgrade {
    pub(super) fn new(first: Bytes, io: Box<dyn Io>, in_flight: InFlight) -> Self {
        Self { io: Upstream { first, io }, in_flight }
    }

    pub(super) fn put(self, extensions: &mut Extensions) {
        extensions.insert(Untaken(Arc::new(Mutex::new(Some(self)))));
    }

    /// Takes the upstream's half from a 101 response that the pool gave; `None` for any other response.
    pub fn take<B>(response: &mut Response<B>) -> Option<Self> {
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return None;
        }
        let untaken = response.extensions_mut().remove::<Untaken>()?;
        lock(&untaken.0).take()
    }
}

/// Takes the caller's half from a request that asks for an upgrade; `None` for any other request. Do it
/// before the request goes into the stack: what goes in does not come back.
pub fn caller_half<B>(request: &mut Request<B>) -> Option<OnUpgrade> {
    let asks = wire::is_upgrade(request.headers());
    asks.then(|| request.extensions_mut().remove::<OnUpgrade>()).flatten()
}

/// Joins both halves until both sides have ended: returns the bytes from caller to upstream and back.
///
/// Give the 101 response to the caller first and run this beside it (`tokio::spawn`); it waits for the caller's
/// connection to switch.
///
/// # Errors
/// The caller's connection did not switch, or either one broke.
pub async fn join_upgrade(caller: OnUpgrade, upstream: Upgrade) -> io::Result<(u64, u64)> {
    let Upgrade { mut io, in_flight } = upstream;
    // Settled by now or soon, by its connection's task.
    let mut caller = TokioIo::new(caller.await.map_err(io::Error::other)?);
    let copied = tokio::io::copy_bidirectional(&mut caller, &mut io).await;
    drop(in_flight);
    copied
}

impl AsyncRead for Upstream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let taken = self.first.len().min(buf.remaining());
        buf.put_slice(self.first.get(..taken).unwrap_or_default());
        self.first.advance(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Upstream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl fmt::Debug for Upgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upgrade").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}
