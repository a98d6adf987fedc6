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
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;

/// Any error, boxed.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// A request's or response's body.
#[derive(Default)]
pub struct Body(Kind);

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
        Self(Kind::Empty)
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
            Some(body) if !body.is_end_stream() => Self(Kind::Boxed(body.map_err(Into::into).boxed_unsync())),
            _ => Self::empty(),
        }
    }
}

impl From<Incoming> for Body {
    fn from(body: Incoming) -> Self {
        Self(Kind::Incoming(body))
    }
}
impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::empty() } else { Self(Kind::Full(Full::new(bytes))) }
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

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.0 {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Kind::Incoming(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Kind::Boxed(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Full(body) => body.is_end_stream(),
            Kind::Incoming(body) => body.is_end_stream(),
            Kind::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(body) => body.size_hint(),
            Kind::Incoming(body) => body.size_hint(),
            Kind::Boxed(body) => body.size_hint(),
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.0 {
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

    #[test]
    fn a_body_is_not_boxed_twice() {
        let body = Body::new(Body::new(Body::from("x")));
        assert_eq!(format!("{body:?}"), "Body(full)");
        let boxed = Body::new(Full::new(Bytes::from_static(b"x")));
        assert_eq!(format!("{:?}", Body::new(boxed)), "Body(boxed)");
        assert_eq!(format!("{:?}", Body::new(Full::new(Bytes::new()))), "Body(empty)");
    }

    #[tokio::test]
    async fn bytes_come_out_as_they_went_in() {
        let bytes = Body::new(Full::new(Bytes::from_static(b"abc"))).collect().await.unwrap().to_bytes();
        assert_eq!(bytes, "abc");
    }
}
