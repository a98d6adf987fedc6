//! One connection: bytes that have come and are not read yet, and where more come from.

use std::fmt;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::task::coop::unconstrained;

use super::super::endpoint::Remote;
use super::head::{Asked, Head, Parsed, parse};
use super::{Error, MAX_HEAD_BYTES, MAX_INFORMATIONAL, Malformed, spare};

/// What a body is read into at once, where more comes than [`spare::READ`].
const READ_MUCH: usize = 64 * 1024;

/// What bytes go over.
pub(in super::super) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A connection, in one request's hands or idle.
pub(in super::super) struct Conn {
    pub(super) io: Box<dyn Io>,
    /// What has come and is not read. Empty while the connection is idle.
    pub(super) unread: Bytes,
    /// The last read filled all the room it had.
    much: bool,
    /// No request is on it.
    clean: bool,
    pub(in super::super) remote: Remote,
    pub(in super::super) served: u32,
}

impl Conn {
    pub(in super::super) fn new(io: impl Io + 'static, remote: Remote) -> Self {
        Self { io: Box::new(io), unread: Bytes::new(), much: false, clean: true, remote, served: 0 }
    }

    /// Whether it can take a request: the server has neither closed it nor said what nobody asked for. What of that
    /// the runtime does not know yet is not known here.
    pub(in super::super) fn poll_is_open(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.unread.is_empty() {
            return false;
        }
        // As often as there are connections, whoever asks.
        let looking = unconstrained(std::future::poll_fn(|cx| {
            let mut byte = [0];
            Pin::new(&mut self.io).poll_read(cx, &mut ReadBuf::new(&mut byte))
        }));
        pin!(looking).poll(cx).is_pending()
    }

    /// The same, for nobody who waits.
    pub(in super::super) fn is_open(&mut self) -> bool {
        self.poll_is_open(&mut Context::from_waker(Waker::noop()))
    }

    /// A request begins: from now on its end alone makes the connection one that can be used.
    pub(super) fn begin(&mut self) {
        self.clean = false;
    }

    /// The response has ended, and so has the request; nothing of another one has come.
    pub(super) fn settle(&mut self) -> bool {
        self.clean = self.unread.is_empty();
        self.much = false;
        self.unread = Bytes::new();
        self.clean
    }

    /// Reads the head of the response.
    pub(super) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        reading: &mut Reading,
    ) -> Poll<Result<Head, Error>> {
        loop {
            // At once, to hear early of what is none; then when it may have come to its end.
            let looked = reading.looked;
            let look = if looked == 0 { !self.unread.is_empty() } else { may_end(&self.unread, looked) };
            reading.looked = self.unread.len();
            if look {
                match parse(&self.unread, reading.asked, &mut reading.headers)? {
                    Parsed::Head(head, taken) => {
                        let _ = self.unread.split_to(taken);
                        return Poll::Ready(Ok(head));
                    }
                    Parsed::Informational(taken) => {
                        reading.informational += 1;
                        reading.skipped = reading.skipped.saturating_add(taken);
                        if reading.informational > MAX_INFORMATIONAL {
                            return Poll::Ready(Err(Malformed::TOO_MANY_INFORMATIONAL.into()));
                        }
                        let _ = self.unread.split_to(taken);
                        reading.looked = 0;
                        if !self.unread.is_empty() {
                            continue;
                        }
                    }
                    Parsed::Partial => {}
                }
            }
            if self.unread.len().saturating_add(reading.skipped) > MAX_HEAD_BYTES as usize {
                return Poll::Ready(Err(Malformed::HEAD_TOO_LARGE.into()));
            }
            if ready!(self.poll_more(cx))? == 0 {
                return Poll::Ready(Err(Error::Ended));
            }
        }
    }

    /// Reads once, to `unread`; says how much it was, 0 at the end.
    pub(super) fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let unread = &mut self.unread;
        let read = ready!(spare::poll_read(Pin::new(&mut self.io), cx, |bytes| {
            if unread.is_empty() {
                *unread = Bytes::copy_from_slice(bytes);
            } else if !bytes.is_empty() {
                let mut joined = BytesMut::from(std::mem::take(unread));
                joined.extend_from_slice(bytes);
                *unread = joined.freeze();
            }
            bytes.len()
        }));
        self.much = matches!(read, Ok(spare::READ));
        Poll::Ready(read)
    }

    /// The same for data alone, of which no more than `most` bytes are to come; large pieces are not copied.
    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>, most: u64) -> Poll<io::Result<usize>> {
        if !self.much || !self.unread.is_empty() || most < spare::READ as u64 {
            return self.poll_more(cx);
        }
        let room = usize::try_from(most).map_or(READ_MUCH, |most| most.min(READ_MUCH));
        let mut bytes = BytesMut::with_capacity(room);
        let read = {
            // Keeps nothing between two polls.
            let reading = (&mut *self.io).take(room as u64);
            let mut reading = pin!(reading);
            pin!(reading.read_buf(&mut bytes)).poll(cx)
        };
        let read = ready!(read)?;
        self.much = read >= spare::READ;
        // What is held should not be much more than what came.
        self.unread = if self.much { bytes.freeze() } else { Bytes::copy_from_slice(&bytes) };
        Poll::Ready(Ok(read))
    }

    /// Its bytes, for another protocol: first what has come already.
    pub(super) fn into_parts(mut self) -> (Bytes, Box<dyn Io>) {
        self.clean = false;
        let io = std::mem::replace(&mut self.io, Box::new(tokio::io::empty()));
        (std::mem::take(&mut self.unread), io)
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        if self.clean {
            // So that TLS says goodbye, where that needs no waiting. Amid a message it must look cut off.
            let _ = Pin::new(&mut self.io).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn")
            .field("remote", &self.remote)
            .field("served", &self.served)
            .finish_non_exhaustive()
    }
}

/// The head that is being read.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) asked: Asked,
    /// Room for the headers.
    pub(super) headers: HeaderMap,
    informational: usize,
    /// Bytes of informational heads.
    skipped: usize,
    /// So much of it was looked at.
    looked: usize,
}

impl Reading {
    pub(super) fn new(asked: Asked, headers: HeaderMap) -> Self {
        Self { asked, headers, informational: 0, skipped: 0, looked: 0 }
    }
}

/// Whether an empty line ends among what has come since `looked`: only then is it worth the while to read a head
/// from its beginning.
fn may_end(bytes: &[u8], looked: usize) -> bool {
    bytes.iter().enumerate().skip(looked).any(|(at, byte)| {
        let before = bytes.get(..at).unwrap_or_default();
        *byte == b'\n' && (before.ends_with(b"\n") || before.ends_with(b"\n\r"))
    })
}
