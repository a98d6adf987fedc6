//! A socket that is counted while it is open.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use mesh_core::cluster::{EndpointState, Permit};
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::shared::{Place, Shared};

/// One open connection (or one about to open); counted until dropped.
pub(super) struct Open {
    permit: Option<Permit>,
    /// Weak, because the endpoint owns the handle that keeps the connection open.
    endpoint: Weak<EndpointState>,
    shared: Arc<Shared>,
    place: Place,
}

pin_project! {
    /// Bytes, and the count of them being open. An upgraded connection keeps it, too.
    pub(super) struct Counted<IO> {
        #[pin]
        io: IO,
        open: Open,
    }
}

impl Open {
    pub(super) fn new(
        permit: Permit,
        endpoint: &Arc<EndpointState>,
        shared: &Arc<Shared>,
        place: Place,
    ) -> Self {
        endpoint.connections().fetch_add(1, Ordering::Relaxed);
        shared.open.fetch_add(1, Ordering::Relaxed);
        Self { permit: Some(permit), endpoint: Arc::downgrade(endpoint), shared: Arc::clone(shared), place }
    }

    pub(super) fn io<IO>(self, io: IO) -> Counted<IO> {
        Counted { io, open: self }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // Before the wake, so that whoever wakes finds the room.
        self.permit = None;
        self.shared.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(endpoint) = self.endpoint.upgrade() {
            endpoint.connections().fetch_sub(1, Ordering::Relaxed);
        }
        self.shared.wake_one(self.place);
    }
}

impl<IO: AsyncRead> AsyncRead for Counted<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite> AsyncWrite for Counted<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.project().io.poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.project().io.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
