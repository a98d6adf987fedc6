//! What has come on a connection and is not used yet.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http_body::Frame;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::spare;
use super::{Decoder, Malformed, What};

/// What a body is read into at once, in bytes, where more comes than [`READ`](super::READ).
pub const READ_MUCH: usize = 64 * 1024;
/// The room for what comes that a connection keeps while nothing does, in bytes.
pub const MAX_KEPT: usize = 2 * 1024;

/// What has come on a connection and is not used yet.
///
/// Bytes come into a buffer of the thread and are copied from there, so that a connection has room only for what really
/// came; large pieces of a body are read where they stay. The room for a head is used again for the next one, when
/// nobody holds anything of the first any more.
#[derive(Debug, Default)]
pub struct Inbox {
    /// What has come and is not used.
    pub unread: Bytes,
    /// Its room, beyond what is in `unread`; and a head that has not come to its end.
    room: BytesMut,
    /// As large as the room was seen.
    held: usize,
    /// So much of the head was looked at.
    looked: usize,
    /// Bytes of empty lines before it.
    skipped: usize,
    /// The last read filled all the room it had.
    much: bool,
}

impl Inbox {
    /// Nothing has come.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing waits to be used.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.unread.is_empty() && self.room.is_empty()
    }

    /// How many bytes of a head have come, with the empty lines before it.
    pub fn head_len(&self) -> usize {
        self.unread.len().saturating_add(self.room.len()).saturating_add(self.skipped)
    }

    /// Lets go of room beyond [`MAX_KEPT`].
    #[inline]
    pub fn settle(&mut self) {
        self.much = false;
        if self.unread.is_empty() {
            self.unread = Bytes::new();
            if self.room.is_empty() && self.held > MAX_KEPT {
                self.room = BytesMut::new();
                self.held = 0;
            }
        }
    }

    /// Reads once; says how much it was, 0 at the end.
    ///
    /// # Errors
    /// The connection broke.
    pub fn poll_more<IO>(&mut self, cx: &mut Context<'_>, io: &mut IO) -> Poll<io::Result<usize>>
    where
        IO: AsyncRead + Unpin + ?Sized,
    {
        let read = ready!(spare::poll_read(Pin::new(io), cx, |bytes| {
            if !self.unread.is_empty() {
                let unread = std::mem::take(&mut self.unread);
                let behind = std::mem::take(&mut self.room);
                self.room = BytesMut::from(unread);
                self.room.extend_from_slice(&behind);
            }
            self.room.extend_from_slice(bytes);
            self.held = self.held.max(self.room.capacity());
            bytes.len()
        }));
        self.much = matches!(read, Ok(spare::READ));
        Poll::Ready(read)
    }

    /// Looks for a head in what has come: `parse` says `None` where more has to come, else what it is and how many bytes
    /// it took. It is asked at once, to hear early of what is none, and then when a head may have come to its end; empty
    /// lines before a head are left out.
    ///
    /// # Errors
    /// Those of `parse`.
    pub fn head<T, E>(
        &mut self,
        parse: impl FnOnce(&Bytes) -> Result<Option<(T, usize)>, E>,
    ) -> Result<Option<T>, E> {
        if self.unread.is_empty() {
            let empty = empty_lines(&self.room);
            if empty > 0 {
                self.room.advance(empty);
                self.looked = self.looked.saturating_sub(empty);
                self.skipped = self.skipped.saturating_add(empty);
            }
            if self.room.is_empty() || (self.looked > 0 && !may_end(&self.room, self.looked)) {
                self.looked = self.room.len();
                return Ok(None);
            }
            self.unread = self.room.split().freeze();
        }
        match parse(&self.unread)? {
            Some((head, taken)) => {
                let _ = self.unread.split_to(taken.min(self.unread.len()));
                (self.looked, self.skipped) = (0, 0);
                Ok(Some(head))
            }
            None => {
                // No copy, since nobody else has it then.
                self.room = BytesMut::new();
                self.room = BytesMut::from(std::mem::take(&mut self.unread));
                self.looked = self.room.len();
                Ok(None)
            }
        }
    }

    /// What comes next of a body: data or trailers, `None` at its end.
    ///
    /// # Errors
    /// See [`BodyError`].
    pub fn poll_frame<IO>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut IO,
        decoder: &mut Decoder,
    ) -> Poll<Result<Option<Frame<Bytes>>, BodyError>>
    where
        IO: AsyncRead + Unpin + ?Sized,
    {
        loop {
            if let Some(what) = self.decode(decoder).map_err(BodyError::Malformed)? {
                return Poll::Ready(Ok(what));
            }
            let most = decoder.remaining().unwrap_or(u64::MAX);
            if ready!(self.poll_data(cx, io, most)).map_err(BodyError::Io)? == 0 {
                return Poll::Ready(if decoder.ends_with_connection() {
                    Ok(None)
                } else {
                    Err(BodyError::Ended)
                });
            }
        }
    }

    /// What has come of a body already; `None` where it is nothing yet, and then nothing is left unused.
    ///
    /// # Errors
    /// The body is not what its framing says.
    #[inline]
    pub fn decode(&mut self, decoder: &mut Decoder) -> Result<Option<Option<Frame<Bytes>>>, Malformed> {
        if self.unread.is_empty() && !self.room.is_empty() {
            self.unread = self.room.split().freeze();
        }
        let step = decoder.decode(&self.unread)?;
        let mut used = self.unread.split_to(step.used.min(self.unread.len()));
        Ok(match step.what {
            What::Data(length) => {
                let data = used.split_off(used.len().saturating_sub(length));
                // Often it is all there, and nobody has to ask again for the end.
                let ended = decoder.ends_with(&self.unread);
                let _ = self.unread.split_to(ended);
                Some(Some(Frame::data(data)))
            }
            What::Trailers(trailers) => Some(Some(Frame::trailers(trailers))),
            What::End => Some(None),
            What::More => None,
        })
    }

    /// Reads once, where nothing is unread, data of which no more than `most` bytes are to come; large pieces are not
    /// copied.
    fn poll_data<IO>(&mut self, cx: &mut Context<'_>, io: &mut IO, most: u64) -> Poll<io::Result<usize>>
    where
        IO: AsyncRead + Unpin + ?Sized,
    {
        if !self.much || !self.is_empty() || most < spare::READ as u64 {
            return self.poll_more(cx, io);
        }
        let room = usize::try_from(most).map_or(READ_MUCH, |most| most.min(READ_MUCH));
        let mut bytes = BytesMut::with_capacity(room);
        let read = {
            // Keeps nothing between two polls.
            let reading = io.take(room as u64);
            let mut reading = pin!(reading);
            pin!(reading.read_buf(&mut bytes)).poll(cx)
        };
        let read = ready!(read)?;
        self.much = read >= spare::READ;
        // What is held should not be much more than what came.
        self.unread = if self.much { bytes.freeze() } else { Bytes::copy_from_slice(&bytes) };
        Poll::Ready(Ok(read))
    }

    /// All that has come, for another reader.
    pub fn take(&mut self) -> Bytes {
        if self.room.is_empty() {
            return std::mem::take(&mut self.unread);
        }
        let mut all = BytesMut::from(std::mem::take(&mut self.unread));
        all.extend_from_slice(&std::mem::take(&mut self.room));
        all.freeze()
    }
}

/// Why a body did not come to its end.
#[derive(Debug)]
pub enum BodyError {
    /// The connection ended before.
    Ended,
    /// The connection broke.
    Io(io::Error),
    /// What came is not what its framing says.
    Malformed(Malformed),
}

/// So many bytes are empty lines, before anything else.
#[inline]
fn empty_lines(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while let [b'\r', b'\n', behind @ ..] | [b'\n', behind @ ..] = rest {
        rest = behind;
    }
    bytes.len() - rest.len()
}

/// Whether an empty line ends among what has come since `looked`: only then is it worth the while to read a head
/// from its beginning.
fn may_end(bytes: &[u8], looked: usize) -> bool {
    bytes.iter().enumerate().skip(looked).any(|(at, byte)| {
        let before = bytes.get(..at).unwrap_or_default();
        *byte == b'\n' && (before.ends_with(b"\n") || before.ends_with(b"\n\r"))
    })
}
