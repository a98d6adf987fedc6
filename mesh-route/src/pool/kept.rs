//! The usual way of a request: over HTTP/1.1, and over a connection that was kept.
//!
//! Such a connection is found at once, and once it was looked at nothing can hand the request back: so its head is
//! written where it is, and neither the request nor room for anything else has to wait with it. Whatever is not so
//! simple goes the [general way](super::take).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use http::{Method, Response, Version};
use mesh_core::body::Body;
use mesh_core::clock::now;
use mesh_core::cluster::{Dispatch, InFlight};
use mesh_core::facts::Upstream;

use super::connect::HttpVersion;
use super::endpoint::{EndpointPool, Home};
use super::error::{TryError, of_http1};
use super::h1;
use super::shared::{Place, Shared};
use super::take::{Answered, finish, wanted};
use super::wire;
use crate::attempt;

/// A request on a connection that was kept, until the head of its response has come.
pub(super) struct Kept {
    exchange: h1::Exchange,
    /// `None` when the head has come.
    held: Option<(Home, InFlight)>,
    /// The caller's.
    version: Version,
}

/// Begins to send a request over a connection that is kept, and takes out of it what is to be sent. Where that cannot be
/// done, the request is as it was but for what concerned only the connection that it came on.
pub(super) fn begin(
    shared: &Arc<Shared>,
    shard: usize,
    dispatch: &mut Dispatch<Body>,
    in_flight: &mut Option<InFlight>,
) -> Option<Kept> {
    let Dispatch { cluster, endpoint, request } = dispatch;
    if *request.method() == Method::CONNECT || wire::is_upgrade(request.headers()) {
        return None;
    }
    let settings = cluster.load_settings();
    let pool = EndpointPool::of(endpoint.state(), shared)?;
    if pool.version(wanted(request, &settings, endpoint.key(), false)) != HttpVersion::Http1 {
        return None;
    }
    // Whoever waits for the response asks for himself.
    let conn = pool.shard(shard)?.take_http1(now(), &mut Context::from_waker(Waker::noop()))?;
    let home = Home {
        target: Arc::clone(endpoint),
        shared: Arc::clone(shared),
        place: Place::new(cluster, endpoint.state()),
        shard,
        idle_timeout: settings.idle_timeout,
        max_requests: settings.limits.requests_per_connection,
    };
    let version = request.version();
    let prepared = wire::prepare_plain(request, HttpVersion::Http1, cluster.key());
    let (Ok(()), Ok(framing)) = (prepared, h1::framing_of(request)) else {
        *request.version_mut() = version;
        home.take_back(conn);
        return None;
    };
    attempt::tell(request.extensions(), || Upstream {
        endpoint: Arc::clone(endpoint),
        address: conn.remote.address,
        peer: conn.remote.peer.clone(),
    });
    let exchange = h1::Exchange::new(conn, request, framing, false);
    let held = in_flight.take().map(|in_flight| (home, in_flight));
    Some(Kept { exchange, held, version })
}

impl Future for Kept {
    type Output = Result<Response<Body>, TryError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let done = ready!(this.exchange.poll(cx));
        let Some((home, in_flight)) = this.held.take() else { return Poll::Pending };
        Poll::Ready(match done {
            Ok(answered) => Ok(finish(Answered::Http1(answered), home, in_flight, this.version)),
            Err(error) => Err(TryError::sent(of_http1(error, &home.target.key().address))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each request is one, on the heap.
    #[test]
    fn a_request_on_its_way_is_small() {
        const MOST: usize = 768;
        let size = size_of::<Kept>();
        assert!(size <= MOST, "{size} bytes");
    }
}
