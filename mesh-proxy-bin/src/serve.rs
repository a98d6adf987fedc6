//! Serving HTTP on one connection, until it ends or the proxy drains.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use mesh::core::body::{Body, BoxError};
use mesh::core::clock::AtOnce;
use mesh::core::facts::Connection;
use mesh::route::pool::HttpVersion;
use mesh::serve::{HEADER_TIMEOUT, Serving, h1};
use tokio::io::{AsyncRead, AsyncWrite};
use tower::ServiceExt;
use tower_service::Service;

use crate::detect::Spoken;

/// How much of a request's head is read at all, in bytes. More than the layers admit, so that they can say
/// why they do not, and log it; beyond it nobody but the caller is told.
pub(crate) const MAX_HEAD_READ: usize = 128 * 1024;
/// How much of a stream's body may be on the way unread, in bytes.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same for a whole connection.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// After stopping began an idle connection is kept so long: a request that is on its way already is still
/// answered, and told that the connection closes.
const DRAIN_LINGER: Duration = Duration::from_millis(500);

const SERVING: Serving = Serving {
    h1: h1::Settings {
        max_head: MAX_HEAD_READ,
        head_timeout: HEADER_TIMEOUT,
        linger: DRAIN_LINGER,
        dated: false,
    },
    windows: Some((STREAM_WINDOW, CONNECTION_WINDOW)),
    join_upgrades: true,
};

/// Serves `service` on `io`, as [`mesh::serve::http`] does.
pub(crate) async fn http<I, S, R>(
    io: I,
    spoken: Spoken,
    connection: Arc<Connection>,
    service: S,
    stop: impl Future<Output = ()>,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Body>, Response = Response<R>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    R: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    let version = match spoken {
        Spoken::Http2 => HttpVersion::Http2,
        Spoken::Carried => HttpVersion::Carried,
        // What is none gets HTTP's answer.
        Spoken::Http1 | Spoken::Opaque => HttpVersion::Http1,
    };
    // Those that are not polled with their connection, as streams of HTTP/2, have the same.
    let service = service.map_future(AtOnce::new);
    AtOnce::new(mesh::serve::http(io, version, connection, service, stop, &SERVING)).await;
}
