//! One body for requests and responses that cross the mesh.
//!
//! [`Body`] is a small enum, so that the two common kinds (what hyper received, and nothing) travel without
//! a box; anything else is boxed once, at the named seams: the bottom of the client stack and the top that
//! is handed to hyper.
//!
//! ```
//! use http_body::Body as _;
//! use tower_mesh_core::body::Body;
//!
//! assert!(Body::default().is_end_stream());
//! assert_eq!(Body::from("hello").size_hint().exact(), Some(5));
//! ```

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::cluster::Permit;
use crate::failure::Failure;

/// Any error, boxed.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// A request's or response's body.
#[derive(Default)]
pub struct Body {
    kind: Kind,
    limit: Option<Limit>,
    /// Given up when the body ends, fails or is dropped.
    permit: Option<Permit>,
}

/// Until when a body must have ended.
struct Limit {
    deadline: Instant,
    /// What the error tells.
    limit: Duration,
    /// Made when the body has to be waited for; most are there with their head.
    sleep: Option<Pin<Box<Sleep>>>,
}

#[derive(Default)]
enum Kind {
    #[default]
    Empty,
    Full(Full<Bytes>),
    Incoming(Incoming),
    Boxed(UnsyncBoxBody<Bytes, BoxError>),
}

impl Body {
    /// No bytes.
    pub const fn empty() -> Self {
        Self::of(Kind::Empty)
    }

    const fn of(kind: Kind) -> Self {
        Self { kind, limit: None, permit: None }
    }

    /// The same body, which holds this permit until it ends, fails or is dropped.
    #[must_use]
    pub fn holding(self, permit: Permit) -> Self {
        if http_body::Body::is_end_stream(&self) {
            return self;
        }
        let mut held = if self.permit.is_some() { Self::of(Kind::Boxed(self.boxed_unsync())) } else { self };
        held.permit = Some(permit);
        held
    }

    /// The same body, which fails with `timeout` when it has not ended by `deadline`, and lets go of what it was
    /// read from. `limit` is how long that was, for the error. Of several deadlines the first one counts.
    ///
    /// Needs tokio's timer where it has to wait.
    #[must_use]
    pub fn until(mut self, deadline: Instant, limit: Duration) -> Self {
        let sooner = self.limit.as_ref().is_none_or(|now| deadline < now.deadline);
        if sooner && !http_body::Body::is_end_stream(&self) {
            self.limit = Some(Limit { deadline, limit, sleep: None });
        }
        self
    }

    /// Takes any body. A `Body` is taken as it is, an ended body becomes [`Body::empty`], everything else
    /// is boxed.
    pub fn new<B>(body: B) -> Self
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let mut slot = Some(body);
        let any: &mut dyn Any = &mut slot;
        if let Some(same) = any.downcast_mut::<Option<Self>>() {
            return same.take().unwrap_or_default();
        }
        match slot {
            Some(body) if !body.is_end_stream() => {
                Self::of(Kind::Boxed(body.map_err(Into::into).boxed_unsync()))
            }
            _ => Self::empty(),
        }
    }
}

impl From<Incoming> for Body {
    fn from(body: Incoming) -> Self {
        // Asked once: of an HTTP/2 stream each time is a lock.
        if http_body::Body::is_end_stream(&body) { Self::empty() } else { Self::of(Kind::Incoming(body)) }
    }
}
impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::empty() } else { Self::of(Kind::Full(Full::new(bytes))) }
    }
}
impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}
impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    #[inline]
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = match &mut self.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Kind::Incoming(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Kind::Boxed(body) => Pin::new(body).poll_frame(cx),
        };
        match (&frame, &mut self.limit) {
            (Poll::Ready(Some(Ok(_))), _) | (Poll::Pending, None) => frame,
            (Poll::Ready(_), _) => {
                self.permit = None;
                frame
            }
            (Poll::Pending, Some(limit)) => {
                let late = ready!(limit.poll(cx));
                *self = Self::empty();
                Poll::Ready(Some(Err(late)))
            }
        }
    }

    #[inline]
    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(body) => body.is_end_stream(),
            Kind::Incoming(body) => body.is_end_stream(),
            Kind::Boxed(body) => body.is_end_stream(),
        }
    }

    #[inline]
    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(body) => body.size_hint(),
            Kind::Incoming(body) => body.size_hint(),
            Kind::Boxed(body) => body.size_hint(),
        }
    }
}

impl Limit {
    #[inline]
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<BoxError> {
        let deadline = self.deadline;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(Failure::too_late(self.limit).into())
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.kind {
            Kind::Empty => "empty",
            Kind::Full(_) => "full",
            Kind::Incoming(_) => "incoming",
            Kind::Boxed(_) => "boxed",
        };
        write!(f, "Body({kind})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream::pending;
    use http_body::Body as _;
    use http_body_util::StreamBody;

    #[test]
    fn a_body_is_not_boxed_twice() {
        let body = Body::new(Body::new(Body::from("x")));
        assert_eq!(format!("{body:?}"), "Body(full)");
        let boxed = Body::new(Full::new(Bytes::from_static(b"x")));
        assert_eq!(format!("{:?}", Body::new(boxed)), "Body(boxed)");
        assert_eq!(format!("{:?}", Body::new(Full::new(Bytes::new()))), "Body(empty)");
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_of_two_deadlines_ends_a_body_that_is_late() {
        let started = Instant::now();
        let second = Duration::from_secs(1);
        let endless = || Body::new(StreamBody::new(pending::<Result<Frame<Bytes>, BoxError>>()));
        for deadlines in [[1, 5], [5, 1]] {
            let now = Instant::now();
            let mut body = endless();
            for seconds in deadlines {
                body = body.until(now + second * seconds, second * seconds);
            }
            let error = body.frame().await.unwrap().unwrap_err();
            assert!(error.to_string().contains("took longer than 1s"), "{error}");
            assert!(body.is_end_stream() && body.frame().await.is_none());
        }
        assert_eq!(started.elapsed(), second * 2);
        // What is there needs no time, and what has ended has no deadline.
        let there = Body::from("x").until(started, second).collect().await.unwrap();
        assert_eq!(there.to_bytes(), "x");
        assert!(Body::empty().until(started, second).limit.is_none());
    }

    #[tokio::test]
    async fn a_permit_is_held_until_the_body_ends() {
        use crate::cluster::{Cluster, ClusterKey, ClusterSettings, Gauge, ServiceName};
        let name = ServiceName::new("a", "a", "");
        let cluster =
            Cluster::detached(ClusterKey::new("a", 1, ""), name, ClusterSettings::default(), Vec::new());
        let permit = || cluster.try_acquire(Gauge::Requests, 9).unwrap();
        let used = || cluster.in_use(Gauge::Requests);
        drop(Body::from("x").holding(permit()));
        assert_eq!(used(), 0);
        let ended = Body::empty().holding(permit());
        assert_eq!(used(), 0);
        drop(ended);
        // Two of them, each until the end.
        let mut body = Body::from("x").holding(permit()).holding(permit());
        assert_eq!(used(), 2);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "x");
        assert!(body.frame().await.is_none());
        assert_eq!(used(), 0);
        let error = BoxError::from("broken");
        let failing = StreamBody::new(futures_util::stream::iter([Err::<Frame<Bytes>, _>(error)]));
        let mut body = Body::new(failing).holding(permit());
        assert!(body.frame().await.unwrap().is_err());
        assert_eq!(used(), 0);
    }

    #[tokio::test]
    async fn bytes_come_out_as_they_went_in() {
        let bytes = Body::new(Full::new(Bytes::from_static(b"abc"))).collect().await.unwrap().to_bytes();
        assert_eq!(bytes, "abc");
    }
}
