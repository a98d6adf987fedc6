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

/// How much is gathered before it is written in any case, in bytes: as much as one frame of HTTP/2. Less than
/// that may come on top of it once.
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
    /// a.write_all(b"hel").await.unwrap();
    /// a.write_all(b"lo").await.unwrap();
    /// a.flush().await.unwrap();
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
        let gathered = self.project().gathered;
        // One call brings no more than a frame; were it more, the rest comes again.
        let taken = buf.get(..MAX_GATHERED).unwrap_or(buf);
        gathered.extend_from_slice(taken);
        Poll::Ready(Ok(taken.len()))
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    /// Keeps each write; takes at most so many bytes at once.
    struct Wire(Vec<Vec<u8>>, usize);

    impl AsyncWrite for Wire {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let taken = buf.get(..self.1).unwrap_or(buf);
            self.0.push(taken.to_vec());
            Poll::Ready(Ok(taken.len()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_comes_before_the_flush_is_one_write() {
        let mut io = Gather::new(Wire(Vec::new(), usize::MAX));
        for piece in ["head", "body", ""] {
            io.write_all(piece.as_bytes()).await.unwrap();
        }
        assert!(io.io.0.is_empty());
        io.flush().await.unwrap();
        io.flush().await.unwrap();
        io.write_all(b"more").await.unwrap();
        io.shutdown().await.unwrap();
        assert_eq!(io.io.0, [b"headbody".to_vec(), b"more".to_vec()]);
    }

    #[tokio::test]
    async fn other_tasks_run_before_the_flush_a_few_times() {
        let mut io = Gather::new(Wire(Vec::new(), usize::MAX));
        io.write_all(b"x").await.unwrap();
        let mut polls = 0;
        let mut flush = Box::pin(io.flush());
        std::future::poll_fn(|cx| {
            polls += 1;
            flush.as_mut().poll(cx)
        })
        .await
        .unwrap();
        assert_eq!(polls, MAX_YIELDS + 1);
    }

    #[tokio::test]
    async fn no_more_than_the_limit_is_gathered() {
        let mut io = Gather::new(Wire(Vec::new(), 10_000));
        let large = vec![b'x'; MAX_GATHERED];
        io.write_all(&large).await.unwrap();
        assert!(io.io.0.is_empty());
        io.write_all(b"y").await.unwrap();
        assert_eq!((io.io.0.concat(), io.gathered.len()), (large, 1), "written first, in pieces");

        let mut full = Gather::new(Wire(Vec::new(), 0));
        full.write_all(b"x").await.unwrap();
        assert_eq!(full.flush().await.unwrap_err().kind(), io::ErrorKind::WriteZero);
    }
}
