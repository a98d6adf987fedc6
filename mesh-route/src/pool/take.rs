//! The way of one request: a connection is found or made, and the request sent.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::{Either, select};
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use mesh_core::body::{Body, BoxError};
use mesh_core::clock::now;
use mesh_core::cluster::{
    Cluster, ClusterSettings, Dispatch, Endpoint, EndpointKey, Gauge, InFlight, Limits, Permit, UpstreamTls,
};
use mesh_core::facts::Upstream;
use mesh_core::failure::{Failure, FailureCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout_at};
use tower_service::Service;

use super::body::Leased;
use super::carried::can_carry;
use super::connect::{ConnectTo, Connected, HttpVersion};
use super::endpoint::{EndpointPool, Home, Remote, Shard, Slot, Stream};
use super::error::{TryError, of_http1};
use super::h1;
use super::handshake::{Made, handshake};
use super::io::Open;
use super::shared::{Place, Shared};
use super::upgrade::Upgrade;
use super::wire;
use crate::attempt::{Report, unconnected};

/// How many kept connections a request that is handed back unsent is given before it gets a fresh one.
pub const MAX_STALE: u32 = 3;
/// How long a connection without a timeout of its own may take; the default of a cluster.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// How long a connection may take that is being made to an endpoint when the cluster loses it. Who has ended may not even
/// refuse it, and then a request would wait for the whole of `connectTimeout`.
pub const WITHDRAWN_PATIENCE: Duration = Duration::from_secs(1);

/// A connection that a request may use.
enum Conn {
    Http1(h1::Conn),
    Http2(Stream),
}

/// Room for one more connection, or a connection that came free.
enum Room {
    Open(Open),
    Free(h1::Conn),
}

/// There is no room for one more carried request.
struct Full;

/// What a request waits for; tells what went wrong when the time is over.
#[derive(Clone, Copy)]
enum Stage {
    Room,
    Connection,
}

/// One request's view of the pool.
struct Taker<C> {
    connector: C,
    cluster: Arc<Cluster>,
    home: Home,
    limits: Limits,
    connect_timeout: Duration,
    /// What a new connection offers.
    want: HttpVersion,
}

// No `async fn`: its future would have room for the request twice, as an argument and taken apart.
pub(super) fn send<C, IO>(
    connector: C,
    shared: Arc<Shared>,
    shard: usize,
    dispatch: Dispatch<Body>,
    in_flight: InFlight,
) -> impl Future<Output = Result<Response<Body>, TryError>>
where
    C: Service<ConnectTo, Response = Connected<IO>>,
    C::Error: Into<BoxError>,
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Dispatch { cluster, endpoint, mut request } = dispatch;
    let report = Report::of(request.extensions());
    let version = request.version();
    let settings = cluster.load_settings();
    let upgrade = wire::is_upgrade(request.headers());
    let want = wanted(&request, &settings, endpoint.key(), upgrade);
    let mut taker = Taker::new(connector, cluster, endpoint, shared, shard, &settings, want);
    async move {
        let target = Arc::clone(&taker.home.target);
        let address = &target.key().address;
        let pool = EndpointPool::of(target.state(), &taker.home.shared).ok_or_else(|| {
            Failure::new(FailureCode::Internal).detail("something else than a pool hangs on the endpoint")
        })?;

        let mut stale = 0;
        loop {
            let taken = taker.take(pool, stale >= MAX_STALE).await;
            let (conn, reused) = taken.inspect_err(|_| report.tell(|| unconnected(Arc::clone(&target))))?;
            let (remote, to) = match &conn {
                Conn::Http1(c) => (&c.remote, HttpVersion::Http1),
                Conn::Http2(s) => (&s.conn.remote, s.conn.version),
            };
            let upstream = || Upstream {
                endpoint: Arc::clone(&target),
                address: remote.address,
                peer: remote.peer.clone(),
            };
            report.tell(upstream);
            wire::prepare(&mut request, to, taker.cluster.key()).map_err(TryError::unsent)?;
            match exchange(conn, request, &taker.home, reused).await {
                Ok(answered) => return Ok(finish(answered, taker.home, in_flight, version)),
                Err(Failed::Sent(error)) => return Err(TryError::of_exchange(error, address)),
                Err(Failed::Broken(error)) => return Err(TryError::sent(of_http1(error, address))),
                Err(Failed::Refused(failure)) => return Err(TryError::unsent(failure)),
                Err(Failed::Back(unsent, _)) if reused && stale < MAX_STALE => {
                    stale += 1;
                    request = *unsent;
                }
                Err(Failed::Back(_, error)) => return Err(TryError::handed_back(error, address)),
            }
        }
    }
}

/// Returns some time after the cluster has lost the endpoint; never where it is not one of the cluster's now.
async fn withdrawn(cluster: &Cluster, endpoint: &Endpoint) {
    let endpoints = cluster.endpoints();
    let mut changes = endpoints.changes();
    let known =
        || endpoints.load().members().iter().any(|member| Arc::ptr_eq(member.state(), endpoint.state()));
    if !known() {
        return std::future::pending().await;
    }
    while known() {
        changes.changed().await;
    }
    tokio::time::sleep(WITHDRAWN_PATIENCE).await;
}

/// What to speak, as far as the endpoint can. Only a proxy carries, and it is reached with the mesh's TLS; where
/// a connection serves one request there is nothing to share.
pub(super) fn wanted(
    request: &Request<Body>,
    settings: &ClusterSettings,
    endpoint: &EndpointKey,
    upgrade: bool,
) -> HttpVersion {
    let want = wire::wanted(settings.protocol, request.version(), upgrade);
    let carry = want == HttpVersion::Http1
        && settings.carry
        && settings.limits.requests_per_connection != 1
        && matches!(endpoint.tls, UpstreamTls::Mutual { .. })
        && can_carry(request, http_body::Body::is_end_stream(request.body()));
    if carry { HttpVersion::Carried } else { want }
}

/// An exchange that brought no answer.
enum Failed {
    /// The request may have been sent.
    Sent(hyper::Error),
    /// The same, over HTTP/1.1.
    Broken(h1::Error),
    /// It was not, and is here again.
    Back(Box<Request<Body>>, Option<hyper::Error>),
    /// It cannot be sent.
    Refused(Failure),
}

/// An answer, and what it holds of its connection.
pub(super) enum Answered {
    Http1(h1::Answered),
    Http2(Response<Incoming>, Stream),
}

impl From<TrySendError<Request<Body>>> for Failed {
    fn from(mut error: TrySendError<Request<Body>>) -> Self {
        match error.take_message() {
            Some(request) => Self::Back(Box::new(request), Some(error.into_error())),
            None => Self::Sent(error.into_error()),
        }
    }
}

async fn exchange(conn: Conn, request: Request<Body>, home: &Home, reused: bool) -> Result<Answered, Failed> {
    match conn {
        Conn::Http1(conn) => match h1::exchange(conn, request, !reused).await {
            Ok(answered) => Ok(Answered::Http1(answered)),
            Err(h1::Failed::Sent(error)) => Err(Failed::Broken(error)),
            Err(h1::Failed::Back(request)) => Err(Failed::Back(request, None)),
            Err(h1::Failed::Refused(failure, conn)) => {
                home.take_back(conn);
                Err(Failed::Refused(failure))
            }
        },
        Conn::Http2(stream) => {
            // No handle is kept while the answer is waited for.
            let sent = match stream.conn.handle() {
                Some(mut handle) => handle.try_send_request(request),
                None => return Err(Failed::Back(Box::new(request), None)),
            };
            match sent.await {
                Ok(response) => {
                    stream.conn.room.peer_has_spoken();
                    Ok(Answered::Http2(response, stream))
                }
                Err(error) => {
                    let failed = Failed::from(error);
                    if matches!(failed, Failed::Back(..))
                        && let Some(shard) = home.find()
                    {
                        // It takes no more streams; those that it has go on.
                        shard.remove(&stream.conn);
                    }
                    Err(failed)
                }
            }
        }
    }
}

pub(super) fn finish(
    answered: Answered,
    home: Home,
    in_flight: InFlight,
    version: Version,
) -> Response<Body> {
    match answered {
        Answered::Http2(response, stream) => {
            let (mut parts, incoming) = response.into_parts();
            parts.version = version;
            wire::strip(&mut parts.headers, false);
            let ended = http_body::Body::is_end_stream(&incoming);
            let body =
                if ended { Body::empty() } else { Body::new(Leased::new(incoming, stream, in_flight)) };
            Response::from_parts(parts, body)
        }
        Answered::Http1(mut answered) => {
            let (mut parts, ()) = std::mem::take(&mut answered.head).into_parts();
            parts.version = version;
            let switching = parts.status == StatusCode::SWITCHING_PROTOCOLS;
            let upgrade = switching.then(|| parts.headers.get(http::header::UPGRADE).cloned()).flatten();
            wire::strip(&mut parts.headers, false);
            if !switching {
                return Response::from_parts(parts, Body::new(h1::Leased::new(answered, home, in_flight)));
            }
            if let Some(upgrade) = upgrade {
                let connection = http::HeaderValue::from_static("upgrade");
                parts.headers.insert(http::header::CONNECTION, connection);
                parts.headers.insert(http::header::UPGRADE, upgrade);
            }
            if let Some((first, io)) = answered.into_io() {
                Upgrade::new(first, io, in_flight).put(&mut parts.extensions);
            }
            Response::from_parts(parts, Body::empty())
        }
    }
}

impl<C> Taker<C> {
    fn new(
        connector: C,
        cluster: Arc<Cluster>,
        target: Arc<Endpoint>,
        shared: Arc<Shared>,
        shard: usize,
        settings: &ClusterSettings,
        want: HttpVersion,
    ) -> Self {
        let place = Place::new(&cluster, target.state());
        let home = Home {
            target,
            shared,
            place,
            shard,
            idle_timeout: settings.idle_timeout,
            max_requests: settings.limits.requests_per_connection,
        };
        let (limits, connect_timeout) = (settings.limits, settings.connect_timeout);
        Self { connector, cluster, home, limits, connect_timeout, want }
    }
}

impl<C, IO> Taker<C>
where
    C: Service<ConnectTo, Response = Connected<IO>>,
    C::Error: Into<BoxError>,
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// A connection, and whether it was there before. `fresh` uses none that was.
    async fn take(&mut self, pool: &EndpointPool, fresh: bool) -> Result<(Conn, bool), TryError> {
        let want = pool.version(self.want);
        let shard = pool.shard(self.home.shard).ok_or_else(|| Failure::new(FailureCode::Internal))?;
        if !fresh && let Some(conn) = self.kept(shard, want).await {
            return Ok((conn, true));
        }
        let _pending = self.pending()?;
        let started = Instant::now();
        let deadline = started.checked_add(self.connect_timeout).unwrap_or_else(|| started + NEVER);
        let mut stage = Stage::Room;
        // Boxed, because it is large (a whole handshake may run in it) and few requests need it: they would all
        // carry room for it.
        let (cluster, target) = (Arc::clone(&self.cluster), Arc::clone(&self.home.target));
        let obtaining = async {
            let taken = pin!(self.obtain(pool, shard, want, fresh, &mut stage));
            match select(taken, pin!(withdrawn(&cluster, &target))).await {
                Either::Left((taken, _)) => Some(taken),
                Either::Right(_) => None,
            }
        };
        match timeout_at(deadline, Box::pin(obtaining)).await {
            Ok(Some(taken)) => taken,
            Ok(None) => Err(TryError::unsent(Failure::new(FailureCode::ConnectFailed).detail(format!(
                "{}: {} was withdrawn, and a connection to it is not made {WITHDRAWN_PATIENCE:?} later",
                cluster.key(),
                target.key().address
            )))),
            Err(_) => Err(TryError::unsent(self.too_late(stage))),
        }
    }

    /// One that is there already.
    async fn kept(&self, shard: &Shard, want: HttpVersion) -> Option<Conn> {
        let now = now();
        match want {
            HttpVersion::Http2 | HttpVersion::Carried => {
                let stream = shard.take_stream(want, now, &self.home, false)?;
                let slot = self.slot(want).ok()?;
                Some(Conn::Http2(stream.with_slot(slot)))
            }
            HttpVersion::Http1 => poll_fn(|cx| Poll::Ready(shard.take_http1(now, cx))).await.map(Conn::Http1),
        }
    }

    async fn obtain(
        &mut self,
        pool: &EndpointPool,
        shard: &Shard,
        want: HttpVersion,
        fresh: bool,
        stage: &mut Stage,
    ) -> Result<(Conn, bool), TryError> {
        if want == HttpVersion::Http1 {
            return self.open(pool, shard, want, fresh, stage).await;
        }
        let slot = self.wait_for_slot(want).await;
        let started = Instant::now();
        let gate = shard.gate(want).lock().await;
        // What somebody else made, failed to make, or learned while this one waited.
        let now = Instant::now();
        if !fresh && let Some(stream) = shard.take_stream(want, now, &self.home, self.full()) {
            return Ok((Conn::Http2(stream.with_slot(slot)), true));
        }
        if let Some(failure) = shard.failed_since(want, started) {
            return Err(TryError::unsent(failure));
        }
        if want == HttpVersion::Carried && pool.version(want) == HttpVersion::Http1 {
            drop((gate, slot));
            return match self.kept(shard, HttpVersion::Http1).await {
                Some(conn) if !fresh => Ok((conn, true)),
                _ => self.open(pool, shard, HttpVersion::Http1, fresh, stage).await,
            };
        }
        let opened = self.open(pool, shard, want, fresh, stage).await;
        match opened {
            Ok((Conn::Http2(stream), reused)) => Ok((Conn::Http2(stream.with_slot(slot)), reused)),
            Ok(other) => Ok(other),
            Err(error) => {
                shard.fail(want, Instant::now(), error.failure().clone());
                Err(error)
            }
        }
    }

    /// Room for one more carried request, where connections are limited: there as many of them as there may be
    /// connections, because each would have one to itself otherwise.
    fn slot(&self, want: HttpVersion) -> Result<Option<Slot>, Full> {
        let limit = self.limits.connections;
        if want != HttpVersion::Carried || limit == u32::MAX {
            return Ok(None);
        }
        // Asked for first, because waiting is no overflow.
        if self.cluster.in_use(Gauge::Carried) >= limit {
            return Err(Full);
        }
        let permit = self.cluster.try_acquire(Gauge::Carried, limit).ok_or(Full)?;
        Ok(Some(Slot::new(permit, &self.home)))
    }

    async fn wait_for_slot(&self, want: HttpVersion) -> Option<Slot> {
        loop {
            if let Ok(slot) = self.slot(want) {
                return slot;
            }
            let mut ticket = self.home.shared.queue(self.home.place);
            if let Ok(slot) = self.slot(want) {
                return slot;
            }
            ticket.woken().await;
        }
    }

    async fn open(
        &mut self,
        pool: &EndpointPool,
        shard: &Shard,
        want: HttpVersion,
        fresh: bool,
        stage: &mut Stage,
    ) -> Result<(Conn, bool), TryError> {
        let open = match self.room(shard, want, fresh).await {
            Room::Free(conn) => return Ok((Conn::Http1(conn), true)),
            Room::Open(open) => open,
        };
        *stage = Stage::Connection;
        let offer = if self.want == HttpVersion::Carried { self.want } else { want };
        let (made, agreed) = self.connect(open, offer).await.map_err(TryError::unsent)?;
        pool.agreed(offer, agreed);
        let conn = match made {
            Made::Http1(conn) => Conn::Http1(conn),
            Made::Http2(conn) => Conn::Http2(shard.add(conn, &self.home)),
        };
        Ok((conn, false))
    }

    /// Waits for room under the cluster's limit of connections.
    async fn room(&self, shard: &Shard, want: HttpVersion, fresh: bool) -> Room {
        if let Some(open) = self.try_open() {
            return Room::Open(open);
        }
        loop {
            let mut ticket = self.home.shared.queue(self.home.place);
            if want == HttpVersion::Http1
                && !fresh
                && let Some(Conn::Http1(conn)) = self.kept(shard, want).await
            {
                return Room::Free(conn);
            }
            if let Some(open) = self.try_open() {
                return Room::Open(open);
            }
            self.evict();
            ticket.woken().await;
            drop(ticket);
            if want == HttpVersion::Http1
                && !fresh
                && let Some(Conn::Http1(conn)) = self.kept(shard, want).await
            {
                return Room::Free(conn);
            }
            if let Some(open) = self.try_open() {
                return Room::Open(open);
            }
        }
    }

    fn full(&self) -> bool {
        self.cluster.in_use(Gauge::Connections) >= self.limits.connections
    }

    fn try_open(&self) -> Option<Open> {
        // Asked for first, because waiting is no overflow.
        if self.full() {
            return None;
        }
        let permit = self.cluster.try_acquire(Gauge::Connections, self.limits.connections)?;
        Some(Open::new(permit, self.home.target.state(), &self.home.shared, self.home.place))
    }

    /// Lets go of a connection of the cluster that nobody uses. Its room comes free when it has closed.
    fn evict(&self) {
        for endpoint in self.cluster.load_endpoints().members() {
            if EndpointPool::of(endpoint.state(), &self.home.shared).is_some_and(EndpointPool::evict) {
                return;
            }
        }
    }

    fn pending(&self) -> Result<Permit, TryError> {
        let limit = self.limits.pending;
        self.cluster.try_acquire(Gauge::Pending, limit).ok_or_else(|| {
            TryError::unsent(Failure::new(FailureCode::Overflow).detail(format!(
                "{}: {limit} requests wait for a connection already (connectionPool.http.http1MaxPendingRequests)",
                self.cluster.key()
            )))
        })
    }

    fn too_late(&self, stage: Stage) -> Failure {
        let (cluster, time) = (self.cluster.key(), self.connect_timeout);
        match stage {
            Stage::Connection => Failure::new(FailureCode::ConnectFailed).detail(format!(
                "{cluster}: no connection to {} within {time:?} (connectionPool.tcp.connectTimeout)",
                self.home.target.key().address
            )),
            Stage::Room => {
                let limit = self.limits.connections;
                // Counts it as an overflow; a permit that came free just now is given back.
                let _ = self.cluster.try_acquire(Gauge::Connections, limit);
                Failure::new(FailureCode::Overflow).detail(format!(
                    "{cluster}: none of {limit} connections came free within {time:?} (connectionPool.tcp.maxConnections)"
                ))
            }
        }
    }

    async fn connect(&mut self, open: Open, offer: HttpVersion) -> Result<(Made, HttpVersion), Failure> {
        let key = self.home.target.key();
        let to = ConnectTo {
            address: key.address.clone(),
            tls: key.tls.clone(),
            http: offer,
            timeout: self.connect_timeout,
        };
        let failed = |error: BoxError| {
            let failure = Failure::of(error);
            match failure.code() {
                FailureCode::Internal => Failure::new(FailureCode::ConnectFailed)
                    .detail(format!("no connection to {}", key.address))
                    .source(failure),
                _ => failure,
            }
        };
        poll_fn(|cx| self.connector.poll_ready(cx)).await.map_err(|e| failed(e.into()))?;
        let connected = self.connector.call(to).await.map_err(|e| failed(e.into()))?;
        let version = connected.protocol.unwrap_or(match offer {
            HttpVersion::Carried => HttpVersion::Http1,
            other => other,
        });
        let remote = Remote { address: connected.address, peer: connected.peer };
        let made = handshake(open.io(connected.io), version, remote).await;
        Ok((made.map_err(|e| failed(e.into()))?, version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::TcpConnect;
    use mesh_core::cluster::{ClusterKey, EndpointSpec, ServiceName};

    /// Each request is such a future on the heap, which is also copied there.
    #[tokio::test]
    async fn a_request_on_its_way_is_small() {
        const MOST: usize = 2560;
        let endpoints = vec![EndpointSpec::plaintext("127.0.0.1:1".parse().unwrap())];
        let name = ServiceName::new("a", "a", "");
        let cluster =
            Cluster::detached(ClusterKey::new("a", 1, ""), name, ClusterSettings::default(), endpoints);
        let endpoint = Arc::clone(&cluster.load_endpoints().members()[0]);
        let in_flight = endpoint.state().begin();
        let dispatch = Dispatch { cluster, endpoint, request: Request::new(Body::empty()) };
        let future = send(TcpConnect::new(), Arc::new(Shared::new(1)), 0, dispatch, in_flight);
        let size = size_of_val(&future);
        assert!(size <= MOST, "{size} bytes");
    }
}
