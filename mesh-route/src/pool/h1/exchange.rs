//! One request and the head of its response.

use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use hyper::ext::ReasonPhrase;
use mesh_core::body::Body;
use mesh_core::failure::Failure;
use mesh_core::http1::Decoder;
use tokio::task::AbortHandle;

use super::super::shared::lock;
use super::super::wire::is_upgrade;
use super::conn::Reading;
use super::head::{Asked, Head, framing_of};
use super::send::Sending;
use super::{Conn, Error, Framing};

/// What came of an exchange.
#[derive(Debug)]
pub(in super::super) struct Answered {
    pub(in super::super) head: Response<()>,
    pub(super) decoder: Decoder,
    pub(super) held: Held,
    /// The connection ends with this response.
    pub(super) last: bool,
}

/// An exchange that brought no answer.
#[derive(Debug)]
pub(in super::super) enum Failed {
    /// Nothing was sent, because the connection was none any more; here is the request again.
    Back(Box<Request<Body>>),
    /// Nothing was sent, because the request cannot be; and here is the connection.
    Refused(Failure, Conn),
    /// The request may have been received.
    Sent(Error),
}

/// A connection from the head of a response to its end.
#[derive(Debug)]
pub(super) enum Held {
    Whole(Conn),
    /// A task sends the rest of the request.
    Shared(Arc<Mutex<Both>>, AbortHandle),
}

/// A connection while its request is being sent and its response read.
#[derive(Debug)]
pub(super) struct Both {
    /// `None` when the request cannot be sent to its end, so that neither can be trusted to have one.
    pub(super) conn: Option<Conn>,
    pub(super) failed: Option<Error>,
    pub(super) sent: bool,
    /// Who waits for the response.
    pub(super) reader: Option<Waker>,
}

/// A request on its way, and its response until its head has come.
///
/// Dropped, it takes the connection with it.
#[derive(Debug)]
pub(in super::super) struct Exchange {
    /// `None` when the head has come.
    on: Option<Conn>,
    sending: Option<Sending>,
    reading: Reading,
    /// Why the request could not be sent to its end.
    broken: Option<Error>,
}

/// Sends `request` and reads the head of its response. `fresh` is a connection that was not looked at before.
///
/// Dropped, it takes the connection with it.
pub(in super::super) async fn exchange(
    mut conn: Conn,
    mut request: Request<Body>,
    fresh: bool,
) -> Result<Answered, Failed> {
    if fresh && !poll_fn(|cx| Poll::Ready(conn.poll_is_open(cx))).await {
        return Err(Failed::Back(Box::new(request)));
    }
    let framing = match framing_of(&request) {
        Ok(framing) => framing,
        Err(failure) => return Err(Failed::Refused(failure, conn)),
    };
    let upgrade = is_upgrade(request.headers());
    let mut exchange = Exchange::new(conn, &mut request, framing, upgrade);
    drop(request);
    poll_fn(|cx| exchange.poll(cx)).await.map_err(Failed::Sent)
}

impl Exchange {
    /// Of a request whose body ends as [`framing_of`] says; what is to be sent of it is taken out of it.
    pub(in super::super) fn new(
        mut conn: Conn,
        request: &mut Request<Body>,
        framing: Framing,
        upgrade: bool,
    ) -> Self {
        let asked = Asked {
            head: *request.method() == Method::HEAD,
            connect: *request.method() == Method::CONNECT,
            upgrade,
        };
        conn.begin();
        let (sending, headers) = Sending::new(request, framing);
        let reading = Reading::new(asked, headers);
        Self { on: Some(conn), sending: Some(sending), reading, broken: None }
    }

    /// Sends and reads what can be; ready, once, when the head of the response has come.
    ///
    /// # Errors
    /// The request may have been received.
    pub(in super::super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answered, Error>> {
        let (Some(conn), Some(sending)) = (&mut self.on, &mut self.sending) else { return Poll::Pending };
        if self.broken.is_none()
            && let Poll::Ready(Err(error)) = sending.poll(cx, &mut *conn.io)
        {
            if let Error::Body(_) = error {
                return Poll::Ready(Err(error));
            }
            // It may have answered before it closed.
            self.broken = Some(error);
        }
        let head = match ready!(conn.poll_head(cx, &mut self.reading)) {
            Err(Error::Ended | Error::Io(_)) if self.broken.is_some() => {
                return Poll::Ready(Err(self.broken.take().unwrap_or(Error::Ended)));
            }
            head => head?,
        };
        conn.served = conn.served.saturating_add(1);
        let broken = self.broken.is_some();
        let (Some(conn), Some(sending)) = (self.on.take(), self.sending.take()) else { return Poll::Pending };
        let switching = head.status == StatusCode::SWITCHING_PROTOCOLS;
        let (last, decoder) = (!head.keep_alive || broken, Decoder::new(head.framing));
        let head = response(head);
        let held =
            if sending.is_done() || broken || switching { Held::Whole(conn) } else { go_on(conn, sending) };
        Poll::Ready(Ok(Answered { head, decoder, held, last }))
    }
}

fn response(head: Head) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    if let Some(reason) = head.reason.and_then(|reason| ReasonPhrase::try_from(reason).ok()) {
        response.extensions_mut().insert(reason);
    }
    response
}

/// Sends the rest of a request whose response has begun.
fn go_on(conn: Conn, mut sending: Sending) -> Held {
    let both = Arc::new(Mutex::new(Both { conn: Some(conn), failed: None, sent: false, reader: None }));
    let shared = Arc::clone(&both);
    let task = tokio::spawn(poll_fn(move |cx| {
        let mut both = lock(&shared);
        let both = &mut *both;
        let Some(conn) = &mut both.conn else { return Poll::Ready(()) };
        let sent = match sending.poll(cx, &mut *conn.io) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(sent) => sent,
        };
        match sent {
            Ok(()) => both.sent = true,
            // Its answer counts all the same.
            Err(Error::Io(_)) => {}
            Err(error) => {
                both.conn = None;
                both.failed = Some(error);
                if let Some(reader) = both.reader.take() {
                    reader.wake();
                }
            }
        }
        Poll::Ready(())
    }));
    Held::Shared(both, task.abort_handle())
}

impl Answered {
    /// The connection of a 101, and what has come on it behind the head.
    pub(in super::super) fn into_io(self) -> Option<(Bytes, Box<dyn super::conn::Io>)> {
        match self.held {
            Held::Whole(conn) => Some(conn.into_parts()),
            Held::Shared(..) => None,
        }
    }
}
