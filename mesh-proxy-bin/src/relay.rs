//! Carrying bytes both ways, and counting them.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BufMut;
use hyper_util::rt::TokioIo;
use mesh::tcp::Dialed;
use mesh::telemetry::ConnectionRecord;
use mesh::tls::MaybeTls;
use mesh::tls::io::Rewind;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::socket::{poll_send, try_recv};
use crate::splice::Pipe;

/// How much is read at once in one direction, in bytes: at first, and of a connection that sends little.
pub(crate) const LEAST_AT_ONCE: usize = 16 * 1024;
/// The same of a connection that has filled less each time: fewer calls of the kernel for the same bytes.
pub(crate) const MOST_AT_ONCE: usize = 256 * 1024;

thread_local! {
    /// The buffer of the worker, of [`MOST_AT_ONCE`] bytes at most. Who reads borrows it, and keeps it only as long as not
    /// all of it can be written: small messages are all carried in the same few lines of the processor's cache.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// What bytes are carried from and to.
pub(crate) trait Side: AsyncRead + AsyncWrite + Unpin {
    /// The socket, where what is read and written here are just its bytes, and none of them are kept above it: then they
    /// may go past [`AsyncRead`] and [`AsyncWrite`].
    fn socket(&self) -> Option<&TcpStream> {
        None
    }

    /// So many bytes were read from the socket.
    fn note_read(&self, _bytes: u64) {}

    /// So many bytes were written to the socket.
    fn note_written(&self, _bytes: u64) {}
}

impl Side for TcpStream {
    fn socket(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

impl Side for MaybeTls<TcpStream> {
    fn socket(&self) -> Option<&TcpStream> {
        self.bare()
    }
}

impl Side for Dialed {
    fn socket(&self) -> Option<&TcpStream> {
        self.io.bare()
    }
}

impl<I: Side> Side for Rewind<I> {
    fn socket(&self) -> Option<&TcpStream> {
        self.bare().and_then(I::socket)
    }

    fn note_read(&self, bytes: u64) {
        if let Some(io) = self.bare() {
            io.note_read(bytes);
        }
    }

    fn note_written(&self, bytes: u64) {
        if let Some(io) = self.bare() {
            io.note_written(bytes);
        }
    }
}

/// A tunnel within HTTP.
impl Side for TokioIo<hyper::upgrade::Upgraded> {}

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
    A: Side,
    B: Side,
{
    let (mut there, mut back) = (OneWay::new(), OneWay::new());
    poll_fn(|cx| {
        let there = there.poll(cx, caller, app)?;
        let back = back.poll(cx, app, caller)?;
        if there.is_ready() && back.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// One direction of a relay. It has a buffer, or a pipe, only while there are bytes in it, so that a connection over
/// which nothing passes costs neither.
#[derive(Debug)]
struct OneWay {
    buffer: Vec<u8>,
    /// How much of the buffer has been written.
    written: usize,
    /// What goes past the buffer is in here.
    pipe: Option<Box<Pipe>>,
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
            pipe: None,
            at_once: LEAST_AT_ONCE,
            unflushed: false,
            stage: Stage::Carrying,
        }
    }

    fn poll<R: Side, W: Side>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.write(cx, to))?;
            match self.stage {
                Stage::Carrying => match self.take(cx, from, to)? {
                    Poll::Ready(0) => self.stage = Stage::Ending,
                    Poll::Ready(taken) => self.adapt(taken),
                    Poll::Pending => {
                        self.give_back();
                        if self.unflushed {
                            ready!(Pin::new(&mut *to).poll_flush(cx))?;
                            self.unflushed = false;
                        }
                        return Poll::Pending;
                    }
                },
                Stage::Ending => {
                    self.give_back();
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.stage = Stage::Ended;
                }
                Stage::Ended => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Writes what there is.
    fn write<W: Side>(&mut self, cx: &mut Context<'_>, to: &mut W) -> Poll<io::Result<()>> {
        while let Some(rest @ [_, ..]) = self.buffer.get(self.written..) {
            let written = match to.socket() {
                Some(socket) => {
                    let written = ready!(poll_send(cx, socket, rest))?;
                    to.note_written(written as u64);
                    written
                }
                None => {
                    self.unflushed = true;
                    ready!(Pin::new(&mut *to).poll_write(cx, rest))?
                }
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
        }
        while let Some(pipe) = self.pipe.as_mut().filter(|pipe| pipe.held() > 0)
            && let Some(socket) = to.socket()
        {
            match ready!(pipe.poll_drain(cx, socket))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => to.note_written(written as u64),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes what there is; zero at the end.
    fn take<R: Side, W: Side>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &W,
    ) -> io::Result<Poll<usize>> {
        // Who fills the largest buffer is spared it where both are sockets.
        if self.at_once == MOST_AT_ONCE
            && let (Some(socket), Some(_)) = (from.socket(), to.socket())
            && let Some(mut pipe) = self.pipe.take().or_else(Pipe::take)
        {
            let filled = pipe.poll_fill(cx, socket)?;
            self.pipe = Some(pipe);
            match filled {
                Poll::Ready(Some(taken)) => {
                    from.note_read(taken as u64);
                    return Ok(Poll::Ready(taken));
                }
                Poll::Ready(None) => {}
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
        if let Some(pipe) = self.pipe.take() {
            pipe.give_back();
        }
        self.read(cx, from)
    }

    fn read<R: Side>(&mut self, cx: &mut Context<'_>, from: &mut R) -> io::Result<Poll<usize>> {
        while let Some(socket) = from.socket() {
            // Waited for without a buffer.
            if socket.poll_read_ready(cx)?.is_pending() {
                return Ok(Poll::Pending);
            }
            if let Some(read) = try_recv(socket, self.emptied())? {
                from.note_read(read as u64);
                return Ok(Poll::Ready(read));
            }
        }
        let at_once = self.at_once;
        // Keeps nothing between polls, so that a new one each time is the same one.
        let mut place = self.emptied().limit(at_once);
        match pin!(from.read_buf(&mut place)).poll(cx) {
            Poll::Ready(read) => read.map(Poll::Ready),
            Poll::Pending => Ok(Poll::Pending),
        }
    }

    /// The buffer, with room and nothing in it.
    fn emptied(&mut self) -> &mut Vec<u8> {
        self.buffer.clear();
        self.written = 0;
        if self.buffer.capacity() == 0 {
            self.buffer = SPARE.take();
            self.buffer.clear();
        }
        if self.buffer.capacity() < self.at_once {
            self.buffer = Vec::with_capacity(self.at_once);
        }
        &mut self.buffer
    }

    /// Takes more at once of who fills it, and less of who does not.
    fn adapt(&mut self, taken: usize) {
        if taken >= self.at_once {
            self.at_once = (self.at_once * 2).min(MOST_AT_ONCE);
        } else if taken < self.at_once / 4 {
            self.at_once = (self.at_once / 2).max(LEAST_AT_ONCE);
        }
    }

    /// Lets go of buffer and pipe, in which nothing is. The larger one of this buffer and the worker's is the worker's
    /// from now on.
    fn give_back(&mut self) {
        if self.buffer.capacity() > 0 {
            let mine = std::mem::take(&mut self.buffer);
            self.written = 0;
            let spare = SPARE.take();
            SPARE.set(if mine.capacity() > spare.capacity() { mine } else { spare });
        }
        if let Some(pipe) = self.pipe.take() {
            pipe.give_back();
        }
    }
}

impl<I: Side> Side for Counted<I> {
    fn socket(&self) -> Option<&TcpStream> {
        self.inner.socket()
    }

    fn note_read(&self, bytes: u64) {
        self.record.received(bytes);
    }

    fn note_written(&self, bytes: u64) {
        self.record.sent(bytes);
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Counted<I> {
    #[inline]
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
    #[inline]
    fn count(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(written)) = &polled {
            self.record.sent(*written as u64);
        }
        polled
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Counted<I> {
    #[inline]
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
    #[inline]
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
    use mesh::core::facts::Facts;
    use mesh::telemetry::metrics::{Exposition, OwnWorkload};
    use mesh::telemetry::{AccessLog, Metrics};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    impl Side for DuplexStream {}

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
        let (metrics, record) = recorded();
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
        assert_eq!(counted(&metrics), [5, 2]);
    }

    /// A connection's record, and where it counts.
    fn recorded() -> (Metrics, Arc<ConnectionRecord>) {
        let metrics = Metrics::new(OwnWorkload::default());
        let record = ConnectionRecord::new(&metrics, AccessLog::off(), &Facts::default());
        (metrics, Arc::new(record))
    }

    /// How many bytes were received from and sent to the caller.
    fn counted(metrics: &Metrics) -> [usize; 2] {
        let text = metrics.encode(Exposition::Classic);
        ["istio_tcp_received_bytes_total{", "istio_tcp_sent_bytes_total{"].map(|name| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.rsplit(' ').next().unwrap().parse().unwrap()
        })
    }

    /// Two ends of a connection over the loopback.
    async fn connected() -> (TcpStream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    /// Bytes that cannot be mistaken for others at another place.
    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|n| (n % 251) as u8).collect()
    }

    #[tokio::test]
    async fn much_between_sockets_goes_through_a_pipe_and_is_counted_and_whole() {
        let (metrics, record) = recorded();
        let ((mut client, near), (mut far, mut app)) = (connected().await, connected().await);
        let mut caller =
            Counted::new(Rewind::new(MaybeTls::plain(near), bytes::Bytes::new()), Arc::clone(&record));
        let sent = pattern(24 * MOST_AT_ONCE + 17);
        let sending = async {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
        };
        let receiving = async {
            let mut got = Vec::new();
            app.read_to_end(&mut got).await.unwrap();
            got
        };
        let mut way = OneWay { at_once: MOST_AT_ONCE, ..OneWay::new() };
        let carrying = poll_fn(|cx| {
            let polled = way.poll(cx, &mut caller, &mut far);
            assert!(way.pipe.as_ref().is_none_or(|pipe| pipe.held() <= MOST_AT_ONCE));
            polled
        });
        let ((), got, carried) = tokio::join!(sending, receiving, carrying);
        carried.unwrap();
        assert!(got == sent);
        assert!(way.pipe.is_none() && Pipe::is_spare(), "there was one, and it was given back");
        assert_eq!(counted(&metrics), [got.len(), 0]);
    }

    #[tokio::test]
    async fn small_messages_between_sockets_are_counted_both_ways_and_so_is_their_end() {
        let (metrics, record) = recorded();
        let ((mut client, near), (mut far, mut app)) = (connected().await, connected().await);
        let mut caller = Counted::new(MaybeTls::plain(near), record);
        assert!(caller.socket().is_some() && far.socket().is_some());
        let talking = async {
            for round in 1..=5_usize {
                client.write_all(&vec![b'q'; round]).await.unwrap();
                app.read_exact(&mut vec![0; round]).await.unwrap();
                app.write_all(&vec![b'a'; 2 * round]).await.unwrap();
                client.read_exact(&mut vec![0; 2 * round]).await.unwrap();
            }
            client.shutdown().await.unwrap();
            assert_eq!(app.read(&mut [0]).await.unwrap(), 0);
            drop(app);
        };
        let (carried, ()) = tokio::join!(relay(&mut caller, &mut far), talking);
        carried.unwrap();
        assert_eq!(counted(&metrics), [15, 30]);
    }

    #[tokio::test]
    async fn who_sends_little_after_much_is_copied_again() {
        let ((mut client, mut near), (mut far, mut app)) = (connected().await, connected().await);
        let mut way = OneWay { at_once: MOST_AT_ONCE, ..OneWay::new() };
        for n in 0..6_u8 {
            client.write_all(&[n]).await.unwrap();
            let mut got = [0];
            tokio::select! {
                read = app.read_exact(&mut got) => assert_eq!(read.unwrap(), 1),
                ended = poll_fn(|cx| way.poll(cx, &mut near, &mut far)) => panic!("{ended:?}"),
            }
            assert_eq!(got, [n]);
            assert!(way.pipe.is_none(), "nothing is in it, so there is none");
        }
        assert_eq!(way.at_once, LEAST_AT_ONCE);
    }

    #[tokio::test]
    async fn a_socket_that_is_reset_is_told_of_also_when_it_is_piped() {
        let ((client, mut near), (mut far, _app)) = (connected().await, connected().await);
        let mut way = OneWay { at_once: MOST_AT_ONCE, ..OneWay::new() };
        socket2::SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(client);
        let error = poll_fn(|cx| way.poll(cx, &mut near, &mut far)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_socket_whose_reader_is_gone_ends_what_is_piped_to_it() {
        let ((mut client, mut near), (mut far, app)) = (connected().await, connected().await);
        let mut way = OneWay { at_once: MOST_AT_ONCE, ..OneWay::new() };
        drop(app);
        let sending = async { while client.write_all(&pattern(MOST_AT_ONCE)).await.is_ok() {} };
        let error = tokio::select! {
            ended = poll_fn(|cx| way.poll(cx, &mut near, &mut far)) => ended.unwrap_err(),
            () = sending => unreachable!("the client's end is open"),
        };
        assert!(
            matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe),
            "{error}"
        );
    }
}
