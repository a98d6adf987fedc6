//! One connection: bytes that have come and are not read yet, and where more come from.

use std::fmt;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::HeaderMap;
use mesh_core::http1::Inbox;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop::unconstrained;

use super::super::endpoint::Remote;
use super::head::{Asked, Head, Parsed, parse};
use super::{Error, MAX_HEAD_BYTES, MAX_INFORMATIONAL, Malformed};

/// What bytes go over.
pub(in super::super) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A connection, in one request's hands or idle; handed about as what it is.
pub(in super::super) type Conn = Box<Connection>;

/// What a connection consists of.
pub(in super::super) struct Connection {
    pub(super) io: Box<dyn Io>,
    /// What has come and is not read. Empty while the connection is idle.
    pub(super) inbox: Inbox,
    /// No request is on it.
    clean: bool,
    pub(in super::super) remote: Remote,
    pub(in super::super) served: u32,
}

impl Connection {
    pub(in super::super) fn open(io: impl Io + 'static, remote: Remote) -> Conn {
        Box::new(Self { io: Box::new(io), inbox: Inbox::new(), clean: true, remote, served: 0 })
    }

    /// Whether it can take a request: the server has neither closed it nor said what nobody asked for. What of that
    /// the runtime does not know yet is not known here.
    pub(in super::super) fn poll_is_open(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.inbox.is_empty() {
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
        self.clean = self.inbox.is_empty();
        self.inbox.settle();
        self.clean
    }

    /// Reads the head of the response.
    pub(super) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        reading: &mut Reading,
    ) -> Poll<Result<Head, Error>> {
        loop {
            let (asked, headers) = (reading.asked, &mut reading.headers);
            let found = self.inbox.head(|bytes| {
                Ok::<_, Malformed>(match parse(bytes, asked, headers)? {
                    Parsed::Head(head, taken) => Some(((Some(head), taken), taken)),
                    Parsed::Informational(taken) => Some(((None, taken), taken)),
                    Parsed::Partial => None,
                })
            })?;
            match found {
                Some((Some(head), _)) => return Poll::Ready(Ok(head)),
                Some((None, taken)) => {
                    reading.informational += 1;
                    reading.skipped = reading.skipped.saturating_add(taken);
                    if reading.informational > MAX_INFORMATIONAL {
                        return Poll::Ready(Err(Malformed::TOO_MANY_INFORMATIONAL.into()));
                    }
                    continue;
                }
                None => {}
            }
            if self.inbox.head_len().saturating_add(reading.skipped) > MAX_HEAD_BYTES as usize {
                return Poll::Ready(Err(Malformed::HEAD_TOO_LARGE.into()));
            }
            if ready!(self.inbox.poll_more(cx, &mut *self.io))? == 0 {
                return Poll::Ready(Err(Error::Ended));
            }
        }
    }

    /// Its bytes, for another protocol: first what has come already.
    pub(super) fn into_parts(mut self) -> (Bytes, Box<dyn Io>) {
        self.clean = false;
        let io = std::mem::replace(&mut self.io, Box::new(tokio::io::empty()));
        (self.inbox.take(), io)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.clean {
            // So that TLS says goodbye, where that needs no waiting. Amid a message it must look cut off.
            let _ = Pin::new(&mut self.io).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
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
}

impl Reading {
    pub(super) fn new(asked: Asked, headers: HeaderMap) -> Self {
        Self { asked, headers, informational: 0, skipped: 0 }
    }
}
