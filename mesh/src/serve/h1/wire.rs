//! A caller's connection, which its server and the body of the request that is on it share.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use mesh_core::body::BoxError;
use mesh_core::failure::{Failure, FailureCode};
use mesh_core::http1::{BodyError, Decoder, Framing, Inbox};
use tokio::io::{AsyncRead, AsyncWrite};

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A caller's connection. Where it is shared it is locked for single reads and writes only.
#[derive(Debug)]
pub(super) struct Wire<I> {
    /// `None` when the connection has ended.
    pub(super) io: Option<I>,
    pub(super) inbox: Inbox,
    pub(super) decoder: Decoder,
    pub(super) body: Reading,
    /// What is left to write of the word to go on.
    go_on: &'static [u8],
    /// It is written, and may not be sent.
    unflushed: bool,
    /// The server, where it waits for the body's reader.
    server: Option<Waker>,
}

/// Who reads the body of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// It has ended.
    Ended,
    /// Whoever has it.
    Held,
    /// Nobody any more.
    Dropped,
    /// It has no end.
    Broken,
}

type Shared<I> = Arc<Mutex<Box<Wire<I>>>>;

/// A caller's connection as its server has it: its own, without a lock, as long as no request has a body that comes from
/// it.
#[derive(Debug)]
pub(super) struct Line<I> {
    /// Over while it is shared.
    own: Box<Wire<I>>,
    /// Made for the first request with a body.
    shared: Option<Shared<I>>,
    is_shared: bool,
}

impl<I> Line<I> {
    pub(super) fn new(io: I) -> Self {
        Self { own: Box::new(Wire::new(Some(io))), shared: None, is_shared: false }
    }

    /// Does something with the connection: never for long, and nothing that polls a body or a service.
    pub(super) fn with<T>(&mut self, act: impl FnOnce(&mut Wire<I>) -> T) -> T {
        match &self.shared {
            Some(shared) if self.is_shared => act(&mut lock(shared)),
            _ => act(&mut self.own),
        }
    }

    /// Shares it with the body of a request.
    fn share(&mut self) -> Shared<I> {
        let shared = self.shared.get_or_insert_with(|| Arc::new(Mutex::new(Box::new(Wire::new(None)))));
        if !self.is_shared {
            std::mem::swap(&mut self.own, &mut *lock(shared));
            self.is_shared = true;
        }
        Arc::clone(shared)
    }

    /// Takes it back from a body that has ended, which does nothing with it any more.
    pub(super) fn take_back(&mut self) {
        if let Some(shared) = &self.shared
            && self.is_shared
        {
            let mut wire = lock(shared);
            if wire.body == Reading::Ended {
                std::mem::swap(&mut self.own, &mut *wire);
                self.is_shared = false;
            }
        }
    }
}

impl<I: AsyncWrite> Line<I> {
    fn is_write_vectored(&self) -> bool {
        let is = |wire: &Wire<I>| wire.io.as_ref().is_some_and(AsyncWrite::is_write_vectored);
        match &self.shared {
            Some(shared) if self.is_shared => is(&lock(shared)),
            _ => is(&self.own),
        }
    }
}

/// The socket ends with its server, whoever has a body that reads from it.
impl<I> Drop for Line<I> {
    fn drop(&mut self) {
        self.with(|wire| wire.io = None);
    }
}

fn lock<I>(wire: &Mutex<Box<Wire<I>>>) -> MutexGuard<'_, Box<Wire<I>>> {
    wire.lock().unwrap_or_else(PoisonError::into_inner)
}

fn closed() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl<I> Wire<I> {
    fn new(io: Option<I>) -> Self {
        Self {
            io,
            inbox: Inbox::new(),
            decoder: Decoder::new(Framing::None),
            body: Reading::Ended,
            go_on: &[],
            unflushed: false,
            server: None,
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Wire<I> {
    /// A request has begun, whose body ends so.
    pub(super) fn begin(&mut self, framing: Framing, expects: bool) {
        self.decoder = Decoder::new(framing);
        self.body = if self.decoder.is_ended() { Reading::Ended } else { Reading::Held };
        self.go_on = if expects { CONTINUE } else { &[] };
    }

    /// Reads once; says how much it was, 0 at the end.
    pub(super) fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Some(io) => self.inbox.poll_more(cx, io),
            None => Poll::Ready(Err(closed())),
        }
    }

    /// Whether the caller has left while it is owed an answer. What it sends meanwhile is kept, up to one read.
    pub(super) fn poll_left(&mut self, cx: &mut Context<'_>) -> bool {
        if self.body != Reading::Ended || !self.inbox.is_empty() {
            return false;
        }
        match self.poll_more(cx) {
            Poll::Ready(Ok(0) | Err(_)) => true,
            Poll::Ready(Ok(_)) | Poll::Pending => false,
        }
    }

    /// An answer begins: who has not been told by now to go on with the body is not told any more. Says whether the
    /// caller may still be waiting for it, so that nobody knows what it sends next.
    pub(super) fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.go_on.len() == CONTINUE.len() {
            self.go_on = &[];
            return Poll::Ready(Ok(self.body != Reading::Ended));
        }
        ready!(self.poll_go_on(cx))?;
        Poll::Ready(Ok(false))
    }

    fn poll_go_on(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.go_on.is_empty() && !self.unflushed {
            return Poll::Ready(Ok(()));
        }
        let io = self.io.as_mut().ok_or_else(closed)?;
        while !self.go_on.is_empty() {
            match ready!(Pin::new(&mut *io).poll_write(cx, self.go_on))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.go_on = self.go_on.get(written..).unwrap_or_default(),
            }
            self.unflushed = true;
        }
        ready!(Pin::new(io).poll_flush(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    /// What comes next of the body.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, BodyError>> {
        ready!(self.poll_go_on(cx)).map_err(BodyError::Io)?;
        match &mut self.io {
            Some(io) => self.inbox.poll_frame(cx, io, &mut self.decoder),
            None => Poll::Ready(Err(BodyError::Ended)),
        }
    }

    /// Ready when the body has ended; says whether it did as it should. What nobody reads is thrown away, up to `most`
    /// bytes.
    pub(super) fn poll_read_out(&mut self, cx: &mut Context<'_>, most: &mut usize) -> Poll<bool> {
        loop {
            match self.body {
                Reading::Ended => return Poll::Ready(true),
                Reading::Broken => return Poll::Ready(false),
                Reading::Held => {
                    self.server = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Reading::Dropped => {}
            }
            let length = match ready!(self.poll_frame(cx)) {
                Ok(Some(frame)) => frame.data_ref().map_or(0, Bytes::len),
                Ok(None) => 0,
                Err(_) => return Poll::Ready(false),
            };
            match most.checked_sub(length) {
                Some(left) => *most = left,
                None => return Poll::Ready(false),
            }
            if self.decoder.is_ended() {
                self.body = Reading::Ended;
            }
        }
    }

    /// Throws away what comes until the caller ends the connection, or `most` bytes came.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>, most: &mut usize) -> Poll<()> {
        loop {
            let _ = self.inbox.take();
            match ready!(self.poll_more(cx)) {
                Ok(read @ 1..) if read <= *most => *most -= read,
                _ => return Poll::Ready(()),
            }
        }
    }
}

/// Writes to a connection.
#[derive(Debug)]
pub(super) struct Writer<'a, I>(pub(super) &'a mut Line<I>);

impl<I: AsyncWrite + Unpin> Writer<'_, I> {
    fn with<T>(&mut self, write: impl FnOnce(Pin<&mut I>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.0.with(|wire| match &mut wire.io {
            Some(io) => write(Pin::new(io)),
            None => Poll::Ready(Err(closed())),
        })
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Writer<'_, I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.with(|io| io.poll_write(cx, buf))
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.with(|io| io.poll_write_vectored(cx, bufs))
    }
    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|io| io.poll_flush(cx))
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|io| io.poll_shutdown(cx))
    }
}

/// The body of a request, which reads from the connection itself.
#[derive(Debug)]
pub(super) struct RequestBody<I> {
    wire: Shared<I>,
    /// Bytes that are to come, where that is known.
    left: Option<u64>,
    ended: bool,
}

impl<I> RequestBody<I> {
    /// Of the request that has just begun; `None` where it has none.
    pub(super) fn new(line: &mut Line<I>, framing: Framing) -> Option<Self> {
        if line.with(|wire| wire.body) == Reading::Ended {
            return None;
        }
        let left = match framing {
            Framing::Length(length) => Some(length),
            _ => None,
        };
        Some(Self { wire: line.share(), left, ended: false })
    }
}

impl<I> Wire<I> {
    fn give_back(&mut self, body: Reading) {
        self.body = body;
        if let Some(server) = self.server.take() {
            server.wake();
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> HttpBody for RequestBody<I> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let mut wire = lock(&this.wire);
        let next = ready!(wire.poll_frame(cx));
        let state = match &next {
            Ok(Some(frame)) => {
                if let (Some(left), Some(data)) = (&mut this.left, frame.data_ref()) {
                    *left = left.saturating_sub(data.len() as u64);
                }
                if frame.is_trailers() || wire.decoder.is_ended() { Reading::Ended } else { Reading::Held }
            }
            Ok(None) => Reading::Ended,
            Err(_) => Reading::Broken,
        };
        if state != Reading::Held {
            this.ended = true;
            wire.give_back(state);
        }
        Poll::Ready(next.map_err(failed).transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        match self.left {
            _ if self.ended => SizeHint::with_exact(0),
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
        }
    }
}

impl<I> Drop for RequestBody<I> {
    fn drop(&mut self) {
        if !self.ended {
            lock(&self.wire).give_back(Reading::Dropped);
        }
    }
}

fn failed(error: BodyError) -> BoxError {
    let failure = match error {
        BodyError::Ended => Failure::new(FailureCode::DownstreamClosed)
            .detail("the caller closed the connection amid the body"),
        BodyError::Io(error) => {
            Failure::new(FailureCode::DownstreamClosed).detail("the caller's connection broke").source(error)
        }
        BodyError::Malformed(error) => {
            Failure::new(FailureCode::BadRequest).detail("the request's body is not valid").source(error)
        }
    };
    failure.into()
}
