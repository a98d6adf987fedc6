//! A request on its way: its head, its body, its trailers.

use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::header::TRAILER;
use http::{HeaderMap, HeaderName, Request};
use http_body::{Body as _, Frame};
use mesh_core::body::Body;
use mesh_core::failure::{Failure, FailureCode};
use tokio::io::AsyncWrite;

use super::{Error, Framing, MAX_JOINED, head, spare};

/// How often the head waits for a body that is on its way: other tasks run, no time passes. Twice, because that is
/// what it takes from the head of a request to its body: the body is asked for, and then handed over.
const MAX_YIELDS: u8 = 2;

/// What is left to send of a request.
#[derive(Debug)]
pub(super) struct Sending {
    body: Body,
    left: Left,
    /// What `Trailer` named.
    trailers: Vec<HeaderName>,
    /// Written first, from `at` on.
    joined: Vec<u8>,
    at: usize,
    /// Written then.
    piece: Bytes,
    yields: u8,
    flushed: bool,
}

/// What is still to come of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Length(u64),
    Chunks,
    /// A chunk has begun, whose end is not written.
    ChunkEnd,
    Nothing,
}

impl Sending {
    /// Of a request that says the truth about its body's length; gives the room of its headers back.
    pub(super) fn new(request: Request<Body>, framing: Framing) -> (Self, HeaderMap) {
        let (parts, body) = request.into_parts();
        let mut joined = spare::to_write();
        head::write(&mut joined, &parts.method, &parts.uri, &parts.headers, framing);
        let left = match framing {
            Framing::Length(0) | Framing::None | Framing::Close => Left::Nothing,
            Framing::Length(length) => Left::Length(length),
            Framing::Chunked => Left::Chunks,
        };
        let trailers = if left == Left::Chunks { named(&parts.headers) } else { Vec::new() };
        let body = if left == Left::Nothing { Body::empty() } else { body };
        let this = Self {
            body,
            left,
            trailers,
            joined,
            at: 0,
            piece: Bytes::new(),
            yields: MAX_YIELDS,
            flushed: false,
        };
        (this, parts.headers)
    }

    /// Whether all of it was sent.
    pub(super) const fn is_done(&self) -> bool {
        self.flushed
    }

    /// Sends what can be sent; ready when that is all.
    ///
    /// # Errors
    /// `Io`, or `Body`, after which the request can have no end.
    pub(super) fn poll<IO: AsyncWrite + Unpin + ?Sized>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut IO,
    ) -> Poll<Result<(), Error>> {
        if self.flushed {
            return Poll::Ready(Ok(()));
        }
        loop {
            let waiting = self.collect(cx)?;
            if self.is_written() {
                break;
            }
            if waiting && self.yields > 0 && !matches!(self.left, Left::Nothing) {
                // Somebody hands the body over in this very moment, as a rule.
                self.yields -= 1;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.yields = 0;
            if self.poll_write(cx, io)?.is_pending() {
                return Poll::Pending;
            }
        }
        self.give_back();
        let flushed = Pin::new(&mut *io).poll_flush(cx)?;
        if !matches!(self.left, Left::Nothing) {
            return Poll::Pending;
        }
        self.flushed = flushed.is_ready();
        flushed.map(Ok)
    }

    /// Takes from the body what is there, as long as there is room; says whether it waits for more.
    fn collect(&mut self, cx: &mut Context<'_>) -> Result<bool, Error> {
        while self.piece.is_empty() && self.joined.len() - self.at < MAX_JOINED {
            self.end_chunk();
            let frame = match self.left {
                Left::Nothing => return Ok(false),
                _ => match Pin::new(&mut self.body).poll_frame(cx) {
                    Poll::Pending => return Ok(true),
                    Poll::Ready(frame) => frame.transpose().map_err(Error::Body)?,
                },
            };
            match frame.map(Frame::into_data) {
                Some(Ok(data)) => self.data(data)?,
                Some(Err(frame)) => self.end(frame.into_trailers().ok())?,
                None => self.end(None)?,
            }
        }
        Ok(false)
    }

    fn data(&mut self, data: Bytes) -> Result<(), Error> {
        if data.is_empty() {
            return Ok(());
        }
        match self.left {
            Left::Length(left) => {
                let left = left.checked_sub(data.len() as u64);
                let left =
                    left.ok_or_else(|| broken("the request's body is longer than its content-length"))?;
                self.left = if left == 0 { Left::Nothing } else { Left::Length(left) };
            }
            _ => {
                // Writing to a vector fails never.
                let _ = write!(self.joined, "{:X}\r\n", data.len());
                self.left = Left::ChunkEnd;
            }
        }
        if self.joined.len() - self.at + data.len() <= MAX_JOINED {
            self.joined.extend_from_slice(&data);
            self.end_chunk();
        } else {
            self.piece = data;
        }
        Ok(())
    }

    /// The end of a chunk comes when all of it was taken.
    fn end_chunk(&mut self) {
        if self.left == Left::ChunkEnd && self.piece.is_empty() {
            self.joined.extend_from_slice(b"\r\n");
            self.left = Left::Chunks;
        }
    }

    fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Error> {
        if let Left::Length(_) = self.left {
            return Err(broken("the request's body is shorter than its content-length"));
        }
        self.joined.extend_from_slice(b"0\r\n");
        for (name, value) in trailers.iter().flatten() {
            if self.trailers.contains(name) && head::may_trail(name) {
                head::line(&mut self.joined, name.as_str().as_bytes(), value.as_bytes());
            }
        }
        self.joined.extend_from_slice(b"\r\n");
        self.left = Left::Nothing;
        Ok(())
    }

    fn is_written(&self) -> bool {
        self.at == self.joined.len() && self.piece.is_empty()
    }

    fn poll_write<IO: AsyncWrite + Unpin + ?Sized>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut IO,
    ) -> Poll<io::Result<()>> {
        let io = Pin::new(io);
        let first = self.joined.get(self.at..).unwrap_or_default();
        let joined = first.len();
        let written = match (first.is_empty(), self.piece.is_empty()) {
            (false, false) if io.is_write_vectored() => {
                io.poll_write_vectored(cx, &[IoSlice::new(first), IoSlice::new(&self.piece)])
            }
            (false, _) => io.poll_write(cx, first),
            (true, _) => io.poll_write(cx, &self.piece),
        };
        written.map(|written| match written? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            written => {
                let joined = written.min(joined);
                self.at += joined;
                self.piece.advance(written.saturating_sub(joined).min(self.piece.len()));
                if self.at == self.joined.len() {
                    self.joined.clear();
                    self.at = 0;
                }
                Ok(())
            }
        })
    }

    fn give_back(&mut self) {
        if self.joined.capacity() > 0 {
            spare::written(std::mem::take(&mut self.joined));
        }
    }
}

fn broken(why: &'static str) -> Error {
    Error::Body(Failure::new(FailureCode::DownstreamClosed).detail(why).into())
}

/// Which trailers are announced.
fn named(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(TRAILER).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|v| v.split(','))
        .filter_map(|n| HeaderName::from_bytes(n.trim().as_bytes()).ok())
        .collect()
}
