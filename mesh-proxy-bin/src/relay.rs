//! Carrying bytes both ways, and counting them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use mesh::telemetry::ConnectionRecord;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How much is copied at once, in bytes and per direction: a full TLS record.
pub(crate) const RELAY_BUFFER: usize = 16 * 1024;

/// Counts what is read from and written to the caller's side.
#[derive(Debug)]
pub(crate) struct Counted<I> {
    inner: I,
    record: Arc<ConnectionRecord>,
}

impl<I> Counted<I> {
    pub(crate) fn new(inner: I, record: Arc<ConnectionRecord>) -> Self {
        Self { inner, record }
    }
}

/// Carries bytes until both sides have ended, or one fails.
pub(crate) async fn relay<A, B>(caller: &mut A, app: &mut B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    tokio::io::copy_bidirectional_with_sizes(caller, app, RELAY_BUFFER, RELAY_BUFFER).await.map(|_| ())
}

impl<I: AsyncRead + Unpin> AsyncRead for Counted<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        let read = buf.filled().len().saturating_sub(before) as u64;
        if read > 0 {
            self.record.received(read);
        }
        polled
    }
}

impl<I: AsyncWrite + Unpin> Counted<I> {
    fn count(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(written)) = &polled {
            self.record.sent(*written as u64);
        }
        polled
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Counted<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.count(polled)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.count(polled)
    }
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn both_ways_are_counted() {
        use mesh::core::facts::Facts;
        use mesh::telemetry::metrics::{Exposition, OwnWorkload};
        use mesh::telemetry::{AccessLog, Metrics};

        let metrics = Metrics::new(OwnWorkload::default());
        let record = Arc::new(ConnectionRecord::new(&metrics, AccessLog::off(), &Facts::default()));
        let (mut caller, near) = tokio::io::duplex(64);
        let (mut far, mut app) = tokio::io::duplex(64);
        let mut near = Counted::new(near, record);
        let relayed = tokio::spawn(async move { relay(&mut near, &mut far).await });
        caller.write_all(b"hello").await.unwrap();
        caller.shutdown().await.unwrap();
        let mut got = String::new();
        app.read_to_string(&mut got).await.unwrap();
        app.write_all(b"hi").await.unwrap();
        drop(app);
        relayed.await.unwrap().unwrap();
        assert_eq!(got, "hello");
        let text = metrics.encode(Exposition::Classic);
        let value = |name: &str| {
            let line = text.lines().find(|l| l.starts_with(name)).unwrap();
            line.rsplit(' ').next().unwrap().to_owned()
        };
        assert_eq!(value("istio_tcp_received_bytes_total{"), "5");
        assert_eq!(value("istio_tcp_sent_bytes_total{"), "2");
    }
}
