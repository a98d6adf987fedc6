//! Bytes that wait a moment before they are written, so that more come along.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How often a connection lets other tasks run before it writes. Twice, because that is what it takes from the
/// head of an answer to its body: the body is asked for, and then handed over.
pub const MAX_YIELDS: u8 = 2;

/// How much is gathered before it is written in any case, in bytes: as much as one frame of HTTP/2.
pub const MAX_GATHERED: usize = 16 * 1024;

pin_project! {
    /// A connection of HTTP/2 whose writer lets the tasks that are ready run before it writes what it has.
    ///
    /// HTTP/2 collects frames until they are written. Whoever wakes the connection has often only begun: a head
    /// comes first, and its body takes another round of the tasks; and the requests of one round of the event
    /// loop come one after the other. Each write costs a TLS record and a call of the kernel at both ends, so
    /// what is ready in the same moment shares one. No time passes but that of tasks that are ready anyway.
    ///
    /// ```
    /// use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// use tower_mesh_route::pool::Gather;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let (a, mut b) = tokio::io::duplex(64);
    /// let mut a = Gather::new(a);
    /// a.write_all(b"hello").await.unwrap();
    /// let mut read = [0; 5];
    /// b.read_exact(&mut read).await.unwrap();
    /// assert_eq!(&read, b"hello");
    /// # }
    /// ```
    #[derive(Debug)]
    pub struct Gather<IO> {
        #[pin]
        io: IO,
        gathered: BytesMut,
        yielded: u8,
    }
}

impl<IO> Gather<IO> {
    /// Writes to `io`.
    pub fn new(io: IO) -> Self {
        Self { io, gathered: BytesMut::new(), yielded: 0 }
    }
}

impl<IO: AsyncRead> AsyncRead for Gather<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite> Gather<IO> {
    /// Writes what was gathered.
    fn poll_write_out(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.project();
        if this.gathered.is_empty() {
            return Poll::Ready(Ok(()));
        }
        if *this.yielded < MAX_YIELDS {
            *this.yielded += 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        while !this.gathered.is_empty() {
            let n = ready!(this.io.as_mut().poll_write(cx, this.gathered))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            this.gathered.advance(n);
        }
        *this.yielded = 0;
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite> AsyncWrite for Gather<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.gathered.len() >= MAX_GATHERED {
            ready!(self.as_mut().poll_write_out(cx))?;
        }
        self.project().gathered.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    // That pieces are not taken has frames of up to 1 KiB joined by whoever writes them.
    fn is_write_vectored(&self) -> bool {
        false
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_write_out(cx))?;
        self.project().io.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_write_out(cx))?;
        self.project().io.poll_shutdown(cx)
    }
}
