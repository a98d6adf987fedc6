//! Connections as bytes: plain, with a prefix to be read again, or inside TLS.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{client, server};

/// A connection whose first bytes were taken to look at, and are read again from here.
///
/// ```
/// use tower_mesh_tls::io::Rewind;
/// use tokio::io::AsyncReadExt;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let mut io = Rewind::new(b"lo".as_slice(), "hel".into());
/// let mut text = String::new();
/// io.read_to_string(&mut text).await.unwrap();
/// assert_eq!(text, "hello");
/// # }
/// ```
pub struct Rewind<IO> {
    prefix: Bytes,
    io: IO,
}

impl<IO> Rewind<IO> {
    /// `prefix` is read before anything of `io`.
    pub const fn new(io: IO, prefix: Bytes) -> Self {
        Self { prefix, io }
    }

    /// What is still to be read again, and the connection below.
    pub fn into_parts(self) -> (Bytes, IO) {
        (self.prefix, self.io)
    }
}

impl<IO> fmt::Debug for Rewind<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rewind").field("prefix", &self.prefix.len()).finish_non_exhaustive()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Rewind<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let n = self.prefix.len().min(buf.remaining());
            buf.put_slice(self.prefix.get(..n).unwrap_or_default());
            self.prefix.advance(n);
            if self.prefix.is_empty() {
                // Lets the buffer go: the connection may live for days.
                self.prefix = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Rewind<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A connection that may be inside TLS; made by [`TlsAccept`](crate::TlsAccept) and
/// [`TlsConnect`](crate::TlsConnect). No box, and no TLS library in its interface.
pub struct MaybeTls<IO>(Inner<IO>);

// Not boxed: one per connection, and a box would cost a hop on every read.
enum Inner<IO> {
    Plain(Rewind<IO>),
    Server(server::TlsStream<Rewind<IO>>),
    Client(client::TlsStream<IO>),
}

impl<IO> MaybeTls<IO> {
    /// A connection without TLS.
    pub const fn plain(io: IO) -> Self {
        Self(Inner::Plain(Rewind::new(io, Bytes::new())))
    }

    pub(crate) const fn rewound(io: Rewind<IO>) -> Self {
        Self(Inner::Plain(io))
    }

    pub(crate) const fn server(io: server::TlsStream<Rewind<IO>>) -> Self {
        Self(Inner::Server(io))
    }

    pub(crate) const fn client(io: client::TlsStream<IO>) -> Self {
        Self(Inner::Client(io))
    }

    /// The connection below, for its addresses and socket options.
    pub fn get_ref(&self) -> &IO {
        match &self.0 {
            Inner::Plain(io) => &io.io,
            Inner::Server(io) => &io.get_ref().0.io,
            Inner::Client(io) => io.get_ref().0,
        }
    }

    /// Whether the mesh's TLS is around the bytes.
    pub const fn is_tls(&self) -> bool {
        !matches!(self.0, Inner::Plain(_))
    }

    /// The connection below and what is to be read before anything of it.
    ///
    /// # Errors
    /// Gives the connection back when it is inside TLS.
    #[expect(clippy::result_large_err, reason = "the connection itself, given back")]
    pub fn into_plain(self) -> Result<(Bytes, IO), Self> {
        match self.0 {
            Inner::Plain(io) => Ok(io.into_parts()),
            tls => Err(Self(tls)),
        }
    }
}

impl<IO> fmt::Debug for MaybeTls<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Inner::Plain(_) => "MaybeTls(plain)",
            Inner::Server(_) => "MaybeTls(server)",
            Inner::Client(_) => "MaybeTls(client)",
        })
    }
}

macro_rules! each {
    ($self:expr, $io:ident => $call:expr) => {
        match &mut $self.get_mut().0 {
            Inner::Plain($io) => $call,
            Inner::Server($io) => $call,
            Inner::Client($io) => $call,
        }
    };
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for MaybeTls<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for MaybeTls<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write(cx, buf))
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }
    fn is_write_vectored(&self) -> bool {
        match &self.0 {
            Inner::Plain(io) => io.is_write_vectored(),
            Inner::Server(io) => io.is_write_vectored(),
            Inner::Client(io) => io.is_write_vectored(),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}
