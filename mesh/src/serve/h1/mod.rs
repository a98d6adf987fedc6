//! The HTTP/1.1 server that callers speak to.
//!
//! A connection is one future, which reads a head, calls the service, writes the answer, and begins again. There is no
//! task and no channel of a request, and hardly a buffer of a connection: what is read at once and what is written at
//! once belong to the thread, and what is kept is a head (see [`Inbox`]). The body of a request reads from the
//! connection itself, whoever has it.
//!
//! - Heads are judged by [`parse_request`], which takes nothing that two readers could understand differently. What it
//!   refuses is answered with 400 `bad_request`, or 431 `too_large`, and the connection ends.
//! - The head of a request has to be there [`Settings::head_timeout`] after the connection became idle. A connection has
//!   one timer, which is looked at when it fires: a request that comes in time sets none.
//! - Requests that come before their turn wait; no more of them is read than once while another is answered.
//! - A request is called for when its head has come, and what follows of it (it is sent on, as a rule) is done a turn of
//!   the scheduler later, behind all others that are there.
//! - 100 is sent when a body is asked for that its caller holds back, and never once the answer has begun.
//! - A caller who leaves, in one direction or both, takes its request with it.
//! - A body that nobody reads is read to its end behind the answer, up to [`MAX_DRAINED`] bytes in [`DRAIN_TIME`]; else
//!   the connection ends, in a way that lets the caller read the answer first.
//! - Once `stop` returns each answer is the last one of its connection; [`Settings::linger`] later connections end that
//!   are idle.
//! - A request that asks for another protocol, and CONNECT, is not answered here: [`serve`] gives the connection back as
//!   it was before that request.

mod answer;
mod date;
mod spare;
mod stop;
#[cfg(test)]
mod tests;
mod wire;

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use hyper::ext::ReasonPhrase;
use mesh_core::body::{Body, BoxError};
use mesh_core::clock::now;
use mesh_core::failure::FailureCode;
#[cfg(doc)]
use mesh_core::http1::Inbox;
use mesh_core::http1::{
    Framing, Malformed, Outbox, ParsedRequest, RequestHead, SendError, parse_request, to_write,
};
use mesh_tls::io::Rewind;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use answer::{Asked, Plan, Size, Unwritable};
use stop::{Phase, Stop};
use wire::{Line, Reading, RequestBody, Wire, Writer};

/// How much of a body that nobody reads is read all the same, in bytes, so that its connection can go on, or the answer
/// is not lost with it.
pub const MAX_DRAINED: usize = 256 * 1024;
/// How long that may take.
pub const DRAIN_TIME: Duration = Duration::from_secs(1);

/// What can be chosen of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The largest head of a request, in bytes.
    pub max_head: usize,
    /// How long a connection may take until it has sent the head of a request, from its beginning or its last answer.
    pub head_timeout: Duration,
    /// How long idle connections are kept once the server stops.
    pub linger: Duration,
    /// Whether answers without a `Date` get one.
    pub dated: bool,
}

/// How a connection ended.
#[derive(Debug)]
pub enum Ended<I> {
    /// All that was begun on it was answered.
    Done,
    /// A request asks for another protocol, and has been read by nobody yet.
    Upgrade(Rewind<I>),
}

/// Why a connection ended early.
#[derive(Debug)]
pub enum Error {
    /// It broke, or the caller left amid a request or its answer.
    Io(io::Error),
    /// What came is no request; that was answered, as far as possible.
    Malformed(Malformed),
    /// No head came in time.
    Late,
    /// The service failed, or the body of its answer did.
    Service(BoxError),
    /// The answer cannot be written.
    Answer(&'static str),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Malformed(why) => why.fmt(f),
            Self::Late => f.write_str("no request came in time"),
            Self::Service(error) => error.fmt(f),
            Self::Answer(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn left() -> Error {
    Error::Io(io::Error::new(io::ErrorKind::UnexpectedEof, "the caller left before its answer"))
}

/// Serves HTTP/1.1 on `io` until the caller leaves or `stop` has returned: calls `service` for each request, one after
/// the other. See the [module](self).
///
/// Large, because it has room for the service's future: box it.
///
/// # Errors
/// The connection ended early; see [`Error`].
pub async fn serve<I, S, F, R, E>(
    io: I,
    settings: &Settings,
    mut service: S,
    stop: impl Future<Output = ()>,
) -> Result<Ended<I>, Error>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: FnMut(Request<Body>) -> F,
    F: Future<Output = Result<Response<R>, E>>,
    E: Into<BoxError>,
    R: http_body::Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    let mut line = Line::new(io);
    let stop = pin!(stop);
    let mut stop = Stop::new(stop, settings.linger);
    let mut idle = Idle { timer: None, known: None };
    loop {
        let mut head = None;
        match idle.next(&mut line, settings, &mut stop, &mut head).await {
            Ok(Next::Request) => {}
            Ok(Next::Upgrade(all)) => {
                let io = line.with(|wire| wire.io.take());
                return Ok(io.map_or(Ended::Done, |io| Ended::Upgrade(Rewind::new(io, all))));
            }
            Ok(Next::Nothing) => {
                farewell(&mut line, false).await;
                return Ok(Ended::Done);
            }
            Err(error) => {
                if let Error::Malformed(why) = error {
                    refuse(&mut line, settings, why).await?;
                }
                return Err(error);
            }
        }
        let Some(head) = head else { continue };
        let asked = Asked::of(&head);
        let answered = {
            let mut answering = pin!(service(request(head, &mut line)));
            let mut gathered = false;
            poll_fn(|cx| {
                if !gathered {
                    // What came in the same turn of the event loop is called for first, and then all of it is sent:
                    // whoever gets it is woken once for many, and not once more for each.
                    gathered = true;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                if let Poll::Ready(answer) = answering.as_mut().poll(cx) {
                    return Poll::Ready(answer.map_err(|error| Error::Service(error.into())));
                }
                if line.with(|wire| wire.poll_left(cx)) { Poll::Ready(Err(left())) } else { Poll::Pending }
            })
            .await?
        };
        line.take_back();
        let (unsure, phase) = poll_fn(|cx| {
            let unsure = line.with(|wire| wire.poll_answer(cx))?;
            // What is asked for later is not for this answer.
            unsure.map(|unsure| Ok::<_, Error>((unsure, stop.poll(cx))))
        })
        .await?;
        let closing = unsure || phase != Phase::Serving;
        let (last, headers) = respond(&mut line, settings, asked, answered, closing).await?;
        spare::give(headers);
        if last || !read_out(&mut line).await {
            let whole = line.with(|wire| wire.body) == Reading::Ended;
            farewell(&mut line, !whole).await;
            return Ok(Ended::Done);
        }
        line.take_back();
    }
}

/// What came on an idle connection.
enum Next {
    /// A request, whose head is where it was wanted.
    Request,
    /// All bytes from a request on that asks for another protocol.
    Upgrade(Bytes),
    Nothing,
}

/// The timer of a connection.
struct Idle {
    timer: Option<Pin<Box<Sleep>>>,
    /// Whom it wakes.
    known: Option<Waker>,
}

impl Idle {
    /// Waits for the head of a request, which goes to `head`: written there once, since it is large.
    async fn next<I, F>(
        &mut self,
        line: &mut Line<I>,
        settings: &Settings,
        stop: &mut Stop<'_, F>,
        head: &mut Option<RequestHead>,
    ) -> Result<Next, Error>
    where
        I: AsyncRead + AsyncWrite + Unpin,
        F: Future<Output = ()>,
    {
        let mut until = None;
        let mut wait = |wire: &mut Wire<I>, cx: &mut Context<'_>| {
            loop {
                if let Some(next) = look(wire, settings, head)? {
                    return Poll::Ready(Ok(next));
                }
                match wire.poll_more(cx)? {
                    Poll::Ready(0) if wire.inbox.is_empty() => return Poll::Ready(Ok(Next::Nothing)),
                    Poll::Ready(0) => {
                        // Perhaps it never was one: who sends that gets the same answer however it comes.
                        let rest = wire.inbox.take();
                        let parsed = parse_request(&rest, settings.max_head, &mut HeaderMap::new());
                        return Poll::Ready(Err(parsed.map_or_else(Error::Malformed, |_| left())));
                    }
                    Poll::Ready(_) => {}
                    Poll::Pending => break,
                }
            }
            let phase = stop.poll(cx);
            if wire.inbox.is_empty() {
                wire.inbox.settle();
                if phase == Phase::Over {
                    return Poll::Ready(Ok(Next::Nothing));
                }
            }
            let until = *until.get_or_insert_with(|| now() + settings.head_timeout);
            if self.poll_late(cx, until).is_ready() {
                return Poll::Ready(Err(Error::Late));
            }
            Poll::Pending
        };
        poll_fn(|cx| line.with(|wire| wait(wire, cx))).await
    }

    /// Ready at `until`. The timer may be an older one, which has fired too early when it does.
    fn poll_late(&mut self, cx: &mut Context<'_>, until: Instant) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        let known = self.known.as_ref().is_some_and(|known| known.will_wake(cx.waker()));
        if known && !timer.is_elapsed() {
            return Poll::Pending;
        }
        while timer.as_mut().poll(cx).is_ready() {
            if timer.deadline() >= until {
                return Poll::Ready(());
            }
            timer.as_mut().reset(until);
        }
        if !known {
            self.known = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

/// Whether a head has come to its end.
fn look<I>(
    wire: &mut Wire<I>,
    settings: &Settings,
    head: &mut Option<RequestHead>,
) -> Result<Option<Next>, Error>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let found = wire.inbox.head(|bytes| {
        Ok::<_, Malformed>(match parse_request(bytes, settings.max_head, &mut spare::take())? {
            ParsedRequest::Partial => None,
            ParsedRequest::Head(parsed, taken) => {
                let upgrade = parsed.upgrade;
                *head = Some(parsed);
                let all = upgrade.then(|| bytes.clone());
                // Another reader begins with it.
                let taken = if upgrade { bytes.len() } else { taken };
                Some((all.map_or(Next::Request, Next::Upgrade), taken))
            }
        })
    });
    match found {
        Ok(Some(next)) => {
            if let (Next::Request, Some(head)) = (&next, head) {
                wire.begin(head.framing, head.expects);
            }
            Ok(Some(next))
        }
        Ok(None) if wire.inbox.head_len() > settings.max_head => {
            Err(Error::Malformed(Malformed::HEAD_TOO_LARGE))
        }
        Ok(None) => Ok(None),
        Err(why) => Err(Error::Malformed(why)),
    }
}

fn request<I>(head: RequestHead, line: &mut Line<I>) -> Request<Body>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let body = RequestBody::new(line, head.framing).map_or_else(Body::empty, Body::new);
    let mut request = Request::new(body);
    *request.method_mut() = head.method;
    *request.uri_mut() = head.uri;
    *request.version_mut() = head.version;
    *request.headers_mut() = head.headers;
    request
}

/// Writes an answer; says whether it is the last one of its connection, and gives its headers back.
async fn respond<I, R>(
    line: &mut Line<I>,
    settings: &Settings,
    asked: Asked,
    response: Response<R>,
    closing: bool,
) -> Result<(bool, HeaderMap), Error>
where
    I: AsyncRead + AsyncWrite + Unpin,
    R: http_body::Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    let (parts, body) = response.into_parts();
    let mut body = pin!(body);
    let mut out = to_write();
    let reason = parts.extensions.get::<ReasonPhrase>().map(ReasonPhrase::as_bytes);
    let size = Size::of(&*body);
    let flags = (closing, settings.dated);
    let plan = answer::write(&mut out, asked, parts.status, reason, &parts.headers, size, flags);
    let Plan { framing, last, trailers } = match plan {
        Ok(plan) => plan,
        Err(Unwritable(why)) => {
            out.clear();
            answer::refusal(&mut out, FailureCode::Internal, settings.dated);
            write(line, out).await?;
            return Err(Error::Answer(why));
        }
    };
    let mut outbox = Outbox::new(out, framing, trailers, 0);
    poll_fn(|cx| {
        if let Poll::Ready(sent) = outbox.poll(cx, &mut Writer(line), body.as_mut()) {
            return Poll::Ready(sent.map_err(|error| match error {
                SendError::Io(error) => Error::Io(error),
                SendError::Body(error) => Error::Service(error),
                SendError::Length(why) => Error::Answer(why),
            }));
        }
        if line.with(|wire| wire.poll_left(cx)) { Poll::Ready(Err(left())) } else { Poll::Pending }
    })
    .await?;
    Ok((last, parts.headers))
}

/// Writes these bytes alone.
async fn write<I: AsyncRead + AsyncWrite + Unpin>(line: &mut Line<I>, bytes: Vec<u8>) -> Result<(), Error> {
    let mut outbox = Outbox::new(bytes, Framing::None, Vec::new(), 0);
    let mut body = Body::empty();
    let sent = poll_fn(|cx| outbox.poll(cx, &mut Writer(line), Pin::new(&mut body))).await;
    sent.map_err(|error| match error {
        SendError::Io(error) => Error::Io(error),
        SendError::Body(error) => Error::Service(error),
        SendError::Length(why) => Error::Answer(why),
    })
}

/// Answers what is no request.
async fn refuse<I>(line: &mut Line<I>, settings: &Settings, why: Malformed) -> Result<(), Error>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let code = if why.is_too_large() { FailureCode::HeadersTooLarge } else { FailureCode::BadRequest };
    let mut out = to_write();
    answer::refusal(&mut out, code, settings.dated);
    write(line, out).await?;
    farewell(line, true).await;
    Ok(())
}

/// Waits until the request's body has ended; says whether another request may follow.
async fn read_out<I: AsyncRead + AsyncWrite + Unpin>(line: &mut Line<I>) -> bool {
    if line.with(|wire| wire.body) == Reading::Ended {
        return true;
    }
    let mut most = MAX_DRAINED;
    let mut late = None;
    poll_fn(|cx| {
        let (whole, held) = line.with(|wire| (wire.poll_read_out(cx, &mut most), wire.body == Reading::Held));
        if let Poll::Ready(whole) = whole {
            return Poll::Ready(whole);
        }
        if held {
            // Whoever has it knows how long it may take.
            return Poll::Pending;
        }
        let late = late.get_or_insert_with(|| Box::pin(sleep(DRAIN_TIME)));
        late.as_mut().poll(cx).map(|()| false)
    })
    .await
}

/// Ends a connection. Where the caller may still be sending (`unread`), it gets the time to read the answer: bytes that
/// nobody takes would end the connection before that.
async fn farewell<I: AsyncRead + AsyncWrite + Unpin>(line: &mut Line<I>, unread: bool) {
    let ending = async {
        let shut = poll_fn(|cx| Pin::new(&mut Writer(line)).poll_shutdown(cx)).await;
        if shut.is_ok() && unread {
            let mut most = MAX_DRAINED;
            poll_fn(|cx| line.with(|wire| wire.poll_discard(cx, &mut most))).await;
        }
    };
    // Without a timer where it is done at once.
    let mut ending = pin!(ending);
    let mut late = None;
    poll_fn(|cx| {
        if ending.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        late.get_or_insert_with(|| Box::pin(sleep(DRAIN_TIME))).as_mut().poll(cx)
    })
    .await;
}
