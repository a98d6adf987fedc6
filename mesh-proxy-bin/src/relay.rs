//! Carrying bytes both ways, and counting them.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use mesh::telemetry::ConnectionRecord;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// How much is read at once in one direction, in bytes: at first, and of a connection that sends little.
pub(crate) const LEAST_AT_ONCE: usize = 16 * 1024;
/// The same of a connection that has filled less each time: fewer calls of the kernel for the same bytes.
pub(crate) const MOST_AT_ONCE: usize = 256 * 1024;

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

/// Carries bytes until both sides have ended, or one fails. The end of one direction is passed on while the
/// other goes on.
pub(crate) async fn relay<A, B>(caller: &mut A, app: &mut B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut there, mut back) = (OneWay::new(), OneWay::new());
    poll_fn(|cx| {
        let there = there.poll(cx, caller, app)?;
        let back = back.poll(cx, app, caller)?;
        if there.is_ready() && back.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// One direction of a relay. It has a buffer only while there are bytes in it, so that a connection over which
/// nothing passes costs no buffer.
#[derive(Debug)]
struct OneWay {
    buffer: Vec<u8>,
    /// How much of the buffer has been written.
    written: usize,
    at_once: usize,
    unflushed: bool,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Carrying,
    /// The source has ended; the destination has yet to learn of it.
    Ending,
    Ended,
}

impl OneWay {
    fn new() -> Self {
        Self {
            buffer: Vec::new(),
            written: 0,
            at_once: LEAST_AT_ONCE,
            unflushed: false,
            stage: Stage::Carrying,
        }
    }

    fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            while let Some(rest @ [_, ..]) = self.buffer.get(self.written..) {
                match ready!(Pin::new(&mut *to).poll_write(cx, rest))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    written => self.written += written,
                }
                self.unflushed = true;
            }
            match self.stage {
                Stage::Carrying => match self.read(cx, from)? {
                    Poll::Ready(0) => self.stage = Stage::Ending,
                    Poll::Ready(_) => {}
                    Poll::Pending => {
                        self.buffer = Vec::new();
                        if self.unflushed {
                            ready!(Pin::new(&mut *to).poll_flush(cx))?;
                            self.unflushed = false;
                        }
                        return Poll::Pending;
                    }
                },
                Stage::Ending => {
                    self.buffer = Vec::new();
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.stage = Stage::Ended;
                }
                Stage::Ended => return Poll::Ready(Ok(())),
            }
        }
    }

    fn read<R: AsyncRead + Unpin>(&mut self, cx: &mut Context<'_>, from: &mut R) -> io::Result<Poll<usize>> {
        self.buffer.clear();
        self.written = 0;
        if self.buffer.capacity() < self.at_once {
            self.buffer = Vec::with_capacity(self.at_once);
        }
        // Keeps nothing between polls, so that a new one each time is the same one.
        let Poll::Ready(read) = pin!(from.read_buf(&mut self.buffer)).poll(cx)? else {
            return Ok(Poll::Pending);
        };
        if read >= self.at_once {
            self.at_once = (self.at_once * 2).min(MOST_AT_ONCE);
        } else if read < self.at_once / 4 {
            self.at_once = (self.at_once / 2).max(LEAST_AT_ONCE);
        }
        Ok(Poll::Ready(read))
    }
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    async fn carry(way: &mut OneWay, from: &mut DuplexStream, to: &mut DuplexStream) -> Poll<io::Result<()>> {
        poll_fn(|cx| Poll::Ready(way.poll(cx, from, to))).await
    }

    #[tokio::test]
    async fn who_sends_much_gets_a_larger_buffer_and_who_sends_nothing_has_none() {
        let (mut near, mut from) = tokio::io::duplex(4 * MOST_AT_ONCE);
        let (mut to, mut far) = tokio::io::duplex(16 * MOST_AT_ONCE);
        let mut way = OneWay::new();
        let mut carried = 0;
        // The sizes that it takes at once: doubled each time, up to the most.
        for at_once in [LEAST_AT_ONCE * 2, LEAST_AT_ONCE * 4, LEAST_AT_ONCE * 8, MOST_AT_ONCE, MOST_AT_ONCE] {
            near.write_all(&vec![b'x'; way.at_once]).await.unwrap();
            carried += way.at_once;
            assert!(carry(&mut way, &mut from, &mut to).await.is_pending());
            assert_eq!((way.at_once, way.buffer.capacity()), (at_once, 0));
        }
        // More than is taken at once is taken in several turns, and none of them is larger.
        near.write_all(&vec![b'y'; 4 * MOST_AT_ONCE]).await.unwrap();
        carried += 4 * MOST_AT_ONCE;
        assert!(carry(&mut way, &mut from, &mut to).await.is_pending());
        assert_eq!(way.at_once, MOST_AT_ONCE);
        for _ in 0..8 {
            near.write_all(b"z").await.unwrap();
            carried += 1;
            assert!(carry(&mut way, &mut from, &mut to).await.is_pending());
        }
        assert_eq!((way.at_once, way.buffer.capacity()), (LEAST_AT_ONCE, 0));
        drop(near);
        assert!(carry(&mut way, &mut from, &mut to).await.is_ready());
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert_eq!(got.len(), carried);
    }

    #[tokio::test]
    async fn a_slow_receiver_holds_the_sender_up_and_loses_nothing() {
        let (mut near, mut from) = tokio::io::duplex(8 * MOST_AT_ONCE);
        let (mut to, mut far) = tokio::io::duplex(7);
        let sent: Vec<u8> = (0..4 * MOST_AT_ONCE).map(|n| (n % 251) as u8).collect();
        near.write_all(&sent).await.unwrap();
        near.shutdown().await.unwrap();
        let relayed = tokio::spawn(async move {
            let mut way = OneWay::new();
            poll_fn(|cx| {
                let polled = way.poll(cx, &mut from, &mut to);
                assert!(way.buffer.capacity() <= MOST_AT_ONCE);
                polled
            })
            .await
        });
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        relayed.await.unwrap().unwrap();
        assert!(got == sent);
    }

    #[tokio::test]
    async fn one_direction_ends_before_the_other() {
        let (mut caller, mut near) = tokio::io::duplex(64);
        let (mut far, mut app) = tokio::io::duplex(64);
        let relayed = tokio::spawn(async move { relay(&mut near, &mut far).await });
        app.write_all(b"first").await.unwrap();
        app.shutdown().await.unwrap();
        let mut got = String::new();
        caller.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "first");
        caller.write_all(b"still here").await.unwrap();
        drop(caller);
        got.clear();
        app.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "still here");
        relayed.await.unwrap().unwrap();
    }

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
