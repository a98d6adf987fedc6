//! A message on its way: its head, its body, its trailers.

use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::header::TRAILER;
use http::{HeaderMap, HeaderName};
use http_body::{Body, Frame};
use tokio::io::AsyncWrite;

use super::line;
use super::{Framing, MAX_JOINED, spare};
use crate::body::BoxError;

/// What is left to send of a message. The body stands beside it, and is given to each [`Outbox::poll`].
#[derive(Debug)]
pub struct Outbox {
    left: Left,
    /// The trailers that may be sent.
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
    /// Everything that comes, as it is.
    Close,
    Nothing,
}

/// Why a message could not be sent to its end.
#[derive(Debug)]
pub enum SendError {
    /// The connection broke.
    Io(io::Error),
    /// The body failed.
    Body(BoxError),
    /// The body is not as long as the head says.
    Length(&'static str),
}

impl From<io::Error> for SendError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Outbox {
    /// Sends `head`, then a body that ends as `framing` says; where that is with chunks, then those trailers that
    /// `trailers` names. The head waits for a body that is on its way up to `yields` turns of the scheduler, so that
    /// both go out in one write.
    #[inline]
    pub fn new(head: Vec<u8>, framing: Framing, trailers: Vec<HeaderName>, yields: u8) -> Self {
        let left = match framing {
            Framing::Length(0) | Framing::None => Left::Nothing,
            Framing::Length(length) => Left::Length(length),
            Framing::Chunked => Left::Chunks,
            Framing::Close => Left::Close,
        };
        Self { left, trailers, joined: head, at: 0, piece: Bytes::new(), yields, flushed: false }
    }

    /// Whether all of it was sent.
    pub const fn is_done(&self) -> bool {
        self.flushed
    }

    /// Whether the body is still asked for something.
    pub const fn needs_body(&self) -> bool {
        !matches!(self.left, Left::Nothing)
    }

    /// Sends what can be sent; ready when that is all.
    ///
    /// # Errors
    /// See [`SendError`]. The message can have no end then.
    pub fn poll<B, IO>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut IO,
        mut body: Pin<&mut B>,
    ) -> Poll<Result<(), SendError>>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>>,
        IO: AsyncWrite + Unpin + ?Sized,
    {
        if self.flushed {
            return Poll::Ready(Ok(()));
        }
        loop {
            let waiting = self.collect(cx, body.as_mut())?;
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
    fn collect<B>(&mut self, cx: &mut Context<'_>, mut body: Pin<&mut B>) -> Result<bool, SendError>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>>,
    {
        while self.piece.is_empty() && self.joined.len() - self.at < MAX_JOINED {
            self.end_chunk();
            let frame = match self.left {
                Left::Nothing => return Ok(false),
                _ => match body.as_mut().poll_frame(cx) {
                    Poll::Pending => return Ok(true),
                    Poll::Ready(frame) => frame.transpose().map_err(|e| SendError::Body(e.into()))?,
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

    #[inline]
    fn data(&mut self, data: Bytes) -> Result<(), SendError> {
        if data.is_empty() {
            return Ok(());
        }
        match self.left {
            Left::Length(left) => {
                let left = left.checked_sub(data.len() as u64);
                let left = left.ok_or(SendError::Length("the body is longer than its content-length"))?;
                self.left = if left == 0 { Left::Nothing } else { Left::Length(left) };
            }
            Left::Close => {}
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
    #[inline]
    fn end_chunk(&mut self) {
        if self.left == Left::ChunkEnd && self.piece.is_empty() {
            self.joined.extend_from_slice(b"\r\n");
            self.left = Left::Chunks;
        }
    }

    fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), SendError> {
        match self.left {
            Left::Length(_) => {
                return Err(SendError::Length("the body is shorter than its content-length"));
            }
            Left::Close | Left::Nothing => {}
            Left::Chunks | Left::ChunkEnd => {
                self.joined.extend_from_slice(b"0\r\n");
                for (name, value) in trailers.iter().flatten() {
                    if self.trailers.contains(name) && line::may_trail(name) {
                        line::write(&mut self.joined, name.as_str().as_bytes(), value.as_bytes());
                    }
                }
                self.joined.extend_from_slice(b"\r\n");
            }
        }
        self.left = Left::Nothing;
        Ok(())
    }

    #[inline]
    fn is_written(&self) -> bool {
        self.at == self.joined.len() && self.piece.is_empty()
    }

    fn poll_write<IO>(&mut self, cx: &mut Context<'_>, io: &mut IO) -> Poll<io::Result<()>>
    where
        IO: AsyncWrite + Unpin + ?Sized,
    {
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

    #[inline]
    fn give_back(&mut self) {
        if self.joined.capacity() > 0 {
            spare::written(std::mem::take(&mut self.joined));
        }
    }

    /// Which trailers a head announces.
    pub fn announced(headers: &HeaderMap) -> Vec<HeaderName> {
        let values = headers.get_all(TRAILER).iter().filter_map(|value| value.to_str().ok());
        values
            .flat_map(|v| v.split(','))
            .filter_map(|n| HeaderName::from_bytes(n.trim().as_bytes()).ok())
            .collect()
    }
}
