//! Connections as bytes: plain, with a prefix to be read again, or inside TLS.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{client, server};

/// How many bytes of several pieces are joined into one before they are written.
const JOINED: usize = 1024;

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

    /// The connection below, when nothing is left to be read again: its bytes are then this one's.
    pub fn bare(&self) -> Option<&IO> {
        self.prefix.is_empty().then_some(&self.io)
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
    #[inline]
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
    #[inline]
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let io = Pin::new(&mut self.io);
        // One piece is sent as one, and a few small ones (the head and body of most answers) are joined: the
        // kernel needs longer to walk a list of pieces than it takes to copy them here.
        if let [only] = bufs {
            return io.poll_write(cx, only);
        }
        let mut joined = [0; JOINED];
        let mut length = 0_usize;
        for buf in bufs {
            let Some(place) = joined.get_mut(length..length.saturating_add(buf.len())) else {
                return io.poll_write_vectored(cx, bufs);
            };
            place.copy_from_slice(buf);
            length += buf.len();
        }
        io.poll_write(cx, joined.get(..length).unwrap_or_default())
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
    #[inline]
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A connection that may be inside TLS; made by [`TlsAccept`](crate::TlsAccept) and
/// [`TlsConnect`](crate::TlsConnect). No TLS library in its interface.
pub struct MaybeTls<IO>(Inner<IO>);

// TLS is boxed: it is more than a kilobyte, which a connection without it would have room for, too.
enum Inner<IO> {
    Plain(Rewind<IO>),
    Server(Box<server::TlsStream<Rewind<IO>>>),
    Client(Box<client::TlsStream<Rewind<IO>>>),
}

impl<IO> MaybeTls<IO> {
    /// A connection without TLS.
    pub const fn plain(io: IO) -> Self {
        Self(Inner::Plain(Rewind::new(io, Bytes::new())))
    }

    pub(crate) const fn rewound(io: Rewind<IO>) -> Self {
        Self(Inner::Plain(io))
    }

    pub(crate) fn server(io: server::TlsStream<Rewind<IO>>) -> Self {
        Self(Inner::Server(Box::new(io)))
    }

    pub(crate) fn client(io: client::TlsStream<Rewind<IO>>) -> Self {
        Self(Inner::Client(Box::new(io)))
    }

    /// The connection below, for its addresses and socket options.
    pub fn get_ref(&self) -> &IO {
        match &self.0 {
            Inner::Plain(io) => &io.io,
            Inner::Server(io) => &io.get_ref().0.io,
            Inner::Client(io) => &io.get_ref().0.io,
        }
    }

    /// Whether the mesh's TLS is around the bytes.
    pub const fn is_tls(&self) -> bool {
        !matches!(self.0, Inner::Plain(_))
    }

    /// The connection below, when its bytes are this one's: not inside TLS, and nothing is to be read before them.
    pub fn bare(&self) -> Option<&IO> {
        match &self.0 {
            Inner::Plain(io) => io.bare(),
            Inner::Server(_) | Inner::Client(_) => None,
        }
    }

    /// The connection below and what is to be read before anything of it.
    ///
    /// # Errors
    /// Gives the connection back when it is inside TLS.
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
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for MaybeTls<IO> {
    #[inline]
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
    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    /// Keeps each write, and whether it came in pieces.
    #[derive(Default)]
    struct Wire(Vec<(Vec<u8>, bool)>);

    impl AsyncWrite for Wire {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.0.push((buf.to_vec(), false));
            Poll::Ready(Ok(buf.len()))
        }
        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = bufs.iter().flat_map(|b| b.iter().copied()).collect();
            let length = all.len();
            self.0.push((all, true));
            Poll::Ready(Ok(length))
        }
        fn is_write_vectored(&self) -> bool {
            true
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn small_pieces_are_written_as_one_and_large_ones_as_they_are() {
        let large = [b'x'; JOINED];
        let table: [(&[&[u8]], bool); 6] = [
            (&[b"head", b"body"], false),
            (&[b"only"], false),
            (&[&large], false),
            (&[&large, b""], false),
            (&[&large, b"y"], true),
            (&[], false),
        ];
        for (pieces, in_pieces) in table {
            let mut io = Rewind::new(Wire::default(), Bytes::new());
            let slices: Vec<_> = pieces.iter().map(|p| IoSlice::new(p)).collect();
            let written = io.write_vectored(&slices).await.unwrap();
            let (_, wire) = io.into_parts();
            assert_eq!(wire.0, [(pieces.concat(), in_pieces)]);
            assert_eq!(written, pieces.concat().len());
        }
    }
}
