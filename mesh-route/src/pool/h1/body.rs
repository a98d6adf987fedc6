//! A response's body, which reads from the connection itself and gives it back when it ends.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use mesh_core::body::BoxError;
use mesh_core::cluster::InFlight;
use mesh_core::http1::Decoder;

use super::super::endpoint::Home;
use super::super::error::of_http1;
use super::super::shared::lock;
use super::exchange::{Answered, Held};
use super::{Conn, Error};

/// A response's body with all that its request holds. Dropped early, it takes the connection with it.
#[derive(Debug)]
pub(in super::super) struct Leased {
    decoder: Decoder,
    /// `None` when the body has ended, well or not.
    held: Option<Held>,
    last: bool,
    home: Home,
    in_flight: Option<InFlight>,
}

impl Leased {
    pub(in super::super) fn new(answered: Answered, home: Home, in_flight: InFlight) -> Self {
        let Answered { decoder, held, last, .. } = answered;
        let mut this = Self { decoder, held: Some(held), last, home, in_flight: Some(in_flight) };
        if this.decoder.is_ended() {
            this.end();
        }
        this
    }

    /// The response has ended as it should.
    fn end(&mut self) {
        self.in_flight = None;
        let conn = match self.held.take() {
            Some(Held::Whole(conn)) => Some(conn),
            Some(Held::Shared(both, _)) => {
                let mut both = lock(&both);
                // Else the task goes on, and the connection ends with it.
                if both.sent { both.conn.take() } else { None }
            }
            None => None,
        };
        if let Some(mut conn) = conn
            && conn.settle()
            && !self.last
        {
            self.home.take_back(conn);
        }
    }

    fn fail(&mut self, error: Error) -> BoxError {
        self.in_flight = None;
        self.abandon();
        of_http1(error, &self.home.target.key().address).into()
    }

    /// The response ends before its end, and with it the request.
    fn abandon(&mut self) {
        if let Some(Held::Shared(both, task)) = self.held.take() {
            lock(&both).conn = None;
            task.abort();
        }
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        self.abandon();
    }
}

/// What comes next, with the connection at hand.
fn poll_next(
    conn: &mut Conn,
    decoder: &mut Decoder,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<Frame<Bytes>>, Error>> {
    conn.inbox.poll_frame(cx, &mut *conn.io, decoder).map_err(Error::from)
}

impl HttpBody for Leased {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let next = match &mut this.held {
            None => return Poll::Ready(None),
            Some(Held::Whole(conn)) => poll_next(conn, &mut this.decoder, cx),
            Some(Held::Shared(both, _)) => {
                let mut both = lock(both);
                let both = &mut *both;
                match &mut both.conn {
                    Some(conn) => {
                        let next = poll_next(conn, &mut this.decoder, cx);
                        if next.is_pending() {
                            both.reader = Some(cx.waker().clone());
                        }
                        next
                    }
                    None => Poll::Ready(Err(both.failed.take().unwrap_or(Error::Ended))),
                }
            }
        };
        Poll::Ready(match ready!(next) {
            Ok(Some(frame)) => {
                if frame.is_trailers() || this.decoder.is_ended() {
                    this.end();
                }
                Some(Ok(frame))
            }
            Ok(None) => {
                this.end();
                None
            }
            Err(error) => Some(Err(this.fail(error))),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.decoder.remaining() {
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
        }
    }
}
