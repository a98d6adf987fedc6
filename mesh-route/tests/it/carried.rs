//! HTTP/1.1 carried over HTTP/2: what the pool does where the other end can, and where it cannot.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use http::{Request, Response, Version};
use mesh_core::body::Body;
use mesh_core::cluster::{
    Cluster, ClusterSettings, Dispatch, EndpointSpec, Expect, Gauge, Limits, UpstreamTls,
};
use mesh_core::failure::{Failure, FailureCode};
use tokio::sync::Notify;
use tower::{ServiceExt, service_fn};
use tower_mesh_route::pool::carried::{MAX_STREAMS, restore};
use tower_mesh_route::pool::{ConnectTo, Connected, HttpVersion, Pool, TcpConnect};
use tower_service::Service;

use crate::support::{Server, cluster, endpoint, full, get, text, until};

/// The other end of a connection, as far as a test needs it.
#[derive(Clone, Default)]
struct Peer {
    carries: Arc<AtomicBool>,
    offered: Arc<Mutex<Vec<HttpVersion>>>,
}

impl Peer {
    fn new(carries: bool) -> Self {
        Self { carries: Arc::new(AtomicBool::new(carries)), ..Self::default() }
    }

    /// Connects as if TLS had been spoken and the peer had chosen.
    fn connect(
        &self,
    ) -> impl Service<ConnectTo, Response = Connected<tokio::net::TcpStream>, Error = Failure, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static {
        let this = self.clone();
        service_fn(move |mut to: ConnectTo| {
            this.offered.lock().unwrap().push(to.http);
            let carried = to.http == HttpVersion::Carried && this.carries.load(Ordering::SeqCst);
            to.tls = UpstreamTls::Plaintext;
            async move {
                let connected = TcpConnect::new().oneshot(to).await?;
                let protocol = if carried { HttpVersion::Carried } else { HttpVersion::Http1 };
                Ok(Connected { protocol: Some(protocol), ..connected })
            }
        })
    }

    fn offered(&self) -> Vec<HttpVersion> {
        self.offered.lock().unwrap().clone()
    }
}

/// A server that gives carried requests the form of HTTP/1.1, says what it sees, and waits for `go` on `/wait`.
async fn server(go: &Arc<Notify>) -> Server {
    let go = Arc::clone(go);
    Server::start(move |mut request| {
        let go = Arc::clone(&go);
        async move {
            let wire = request.version();
            if wire == Version::HTTP_2 {
                restore(&mut request).unwrap();
            }
            if request.uri().path() == "/wait" {
                go.notified().await;
            }
            let host = request.headers()["host"].to_str().unwrap();
            Response::new(full(&format!("{wire:?} {:?} {} {host}", request.version(), request.uri())))
        }
    })
    .await
}

fn behind_tls(server: &Server, settings: ClusterSettings) -> Arc<Cluster> {
    let cluster = cluster(&[], settings);
    let spec = EndpointSpec::plaintext(server.address).mutual("a", Expect::AnyInTrustDomain);
    cluster.publish_endpoints(vec![spec]);
    cluster
}

async fn call<C>(pool: &Pool<C>, cluster: &Arc<Cluster>, request: Request<Body>) -> Result<String, Failure>
where
    Pool<C>: Service<Dispatch<Body>, Response = Response<Body>> + Clone,
    <Pool<C> as Service<Dispatch<Body>>>::Error: Into<Failure>,
{
    let dispatch = Dispatch { cluster: Arc::clone(cluster), endpoint: endpoint(cluster, 0), request };
    let response = pool.clone().oneshot(dispatch).await.map_err(Into::into)?;
    assert_eq!(response.version(), Version::HTTP_11);
    Ok(text(response).await)
}

#[tokio::test]
async fn requests_share_connections_up_to_their_streams() {
    let (go, peer) = (Arc::new(Notify::new()), Peer::new(true));
    let server = server(&go).await;
    let (pool, cluster) = (Pool::new(peer.connect()), behind_tls(&server, ClusterSettings::default()));
    assert_eq!(call(&pool, &cluster, get("/a?b")).await.unwrap(), "HTTP/2.0 HTTP/1.1 /a?b a");

    let many = MAX_STREAMS as usize + 1;
    let all: Vec<_> = (0..many)
        .map(|_| {
            let (pool, cluster) = (pool.clone(), Arc::clone(&cluster));
            tokio::spawn(async move { call(&pool, &cluster, get("/wait")).await })
        })
        .collect();
    until(|| server.requests() == many + 1).await;
    assert_eq!((server.connections(), pool.connections()), (2, 2));
    until(|| {
        go.notify_waiters();
        all.iter().all(tokio::task::JoinHandle::is_finished)
    })
    .await;
    for one in join_all(all).await {
        assert_eq!(one.unwrap().unwrap(), "HTTP/2.0 HTTP/1.1 /wait a");
    }
    assert_eq!(cluster.in_use(Gauge::Carried), 0);
    assert_eq!(peer.offered(), [HttpVersion::Carried; 2]);
}

#[tokio::test]
async fn what_cannot_or_must_not_be_carried_is_not() {
    let (go, peer) = (Arc::new(Notify::new()), Peer::new(true));
    let server = server(&go).await;
    let one_each = Limits { requests_per_connection: 1, ..Limits::default() };
    let off = ClusterSettings { carry: false, ..ClusterSettings::default() };
    let twice = Request::get("/").header("host", "a").header("host", "a").body(Body::empty()).unwrap();
    let upgrade = Request::get("/")
        .header("host", "a")
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .body(Body::empty())
        .unwrap();
    for (settings, request) in [
        (off, get("/")),
        (ClusterSettings { limits: one_each, ..ClusterSettings::default() }, get("/")),
        (ClusterSettings::default(), twice),
        (ClusterSettings::default(), upgrade),
    ] {
        let (pool, cluster) = (Pool::new(peer.connect()), behind_tls(&server, settings));
        assert_eq!(call(&pool, &cluster, request).await.unwrap(), "HTTP/1.1 HTTP/1.1 / a");
    }
    assert_eq!(peer.offered(), [HttpVersion::Http1; 4]);

    // Without TLS nothing is agreed on.
    let cluster = cluster(&[server.address], ClusterSettings::default());
    assert_eq!(call(&Pool::new(peer.connect()), &cluster, get("/")).await.unwrap(), "HTTP/1.1 HTTP/1.1 / a");
    assert_eq!(peer.offered().last(), Some(&HttpVersion::Http1));
}

/// A burst to a peer that does not know how is not queued behind one connection; and each new connection asks
/// again, so that a peer that has learned it is noticed.
#[tokio::test]
async fn a_peer_that_carries_nothing_gets_a_connection_for_each() {
    let (go, peer) = (Arc::new(Notify::new()), Peer::new(false));
    let server = server(&go).await;
    let (pool, cluster) = (Pool::new(peer.connect()), behind_tls(&server, ClusterSettings::default()));
    let all: Vec<_> = (0..4)
        .map(|_| {
            let (pool, cluster) = (pool.clone(), Arc::clone(&cluster));
            tokio::spawn(async move { call(&pool, &cluster, get("/wait")).await })
        })
        .collect();
    until(|| server.requests() == 4).await;
    assert_eq!(server.connections(), 4);
    until(|| {
        go.notify_waiters();
        all.iter().all(tokio::task::JoinHandle::is_finished)
    })
    .await;
    for one in join_all(all).await {
        assert_eq!(one.unwrap().unwrap(), "HTTP/1.1 HTTP/1.1 /wait a");
    }
    assert_eq!(call(&pool, &cluster, get("/")).await.unwrap(), "HTTP/1.1 HTTP/1.1 / a");
    assert_eq!(server.connections(), 4, "one that was there");

    peer.carries.store(true, Ordering::SeqCst);
    pool.sweep(tokio::time::Instant::now() + Duration::from_secs(2 * 3600));
    assert_eq!(call(&pool, &cluster, get("/")).await.unwrap(), "HTTP/2.0 HTTP/1.1 / a");
    assert_eq!(call(&pool, &cluster, get("/")).await.unwrap(), "HTTP/2.0 HTTP/1.1 / a");
    assert_eq!((server.connections(), peer.offered()), (5, vec![HttpVersion::Carried; 5]));
}

/// As many at once as there may be connections; the next waits, and the one after is refused.
#[tokio::test]
async fn limits_count_requests_as_connections() {
    let (go, peer) = (Arc::new(Notify::new()), Peer::new(true));
    let server = server(&go).await;
    let limits = Limits { connections: 2, pending: 1, ..Limits::default() };
    let settings =
        ClusterSettings { limits, connect_timeout: Duration::from_millis(300), ..ClusterSettings::default() };
    let (pool, cluster) = (Pool::new(peer.connect()), behind_tls(&server, settings));
    assert!(call(&pool, &cluster, get("/")).await.is_ok());
    let spawn = || {
        let (pool, cluster) = (pool.clone(), Arc::clone(&cluster));
        tokio::spawn(async move { call(&pool, &cluster, get("/wait")).await })
    };
    let (first, second) = (spawn(), spawn());
    until(|| server.requests() == 3).await;
    assert_eq!((cluster.in_use(Gauge::Carried), server.connections()), (2, 1));
    let third = spawn();
    until(|| cluster.in_use(Gauge::Pending) == 1).await;
    let fourth = spawn().await.unwrap().unwrap_err();
    assert_eq!(fourth.code(), FailureCode::Overflow);
    assert!(fourth.to_string().contains("http1MaxPendingRequests"), "{fourth}");

    // One ends, and whoever waited is next.
    go.notify_one();
    until(|| server.requests() == 4).await;
    assert_eq!((cluster.in_use(Gauge::Carried), cluster.in_use(Gauge::Pending)), (2, 0));
    let late = spawn().await.unwrap().unwrap_err();
    assert!(late.to_string().contains("tcp.maxConnections"), "{late}");
    // One that left while it waited wakes nobody in vain.
    let gone = spawn();
    until(|| cluster.in_use(Gauge::Pending) == 1).await;
    gone.abort();
    until(|| cluster.in_use(Gauge::Pending) == 0).await;
    until(|| {
        go.notify_waiters();
        [&first, &second, &third].iter().all(|t| t.is_finished())
    })
    .await;
    for one in [first, second, third] {
        one.await.unwrap().unwrap();
    }
    assert_eq!(cluster.in_use(Gauge::Carried), 0);
}

/// `maxRequestsPerConnection` counts streams.
#[tokio::test]
async fn a_connection_serves_as_many_as_it_may() {
    let (go, peer) = (Arc::new(Notify::new()), Peer::new(true));
    let server = server(&go).await;
    let limits = Limits { requests_per_connection: 3, ..Limits::default() };
    let settings = ClusterSettings { limits, ..ClusterSettings::default() };
    let (pool, cluster) = (Pool::new(peer.connect()), behind_tls(&server, settings));
    for _ in 0..7 {
        assert_eq!(call(&pool, &cluster, get("/")).await.unwrap(), "HTTP/2.0 HTTP/1.1 / a");
    }
    assert_eq!(server.connections(), 3);
    pool.drain();
    until(|| pool.connections() == 0).await;
}

/// An unread answer holds up nobody: the windows of all streams fit into that of the connection.
#[tokio::test]
async fn an_answer_that_nobody_reads_holds_up_nobody() {
    let peer = Peer::new(true);
    let server = Server::start(|mut request| async move {
        restore(&mut request).unwrap();
        let size = if request.uri().path() == "/large" { 4 << 20 } else { 1000 };
        Response::new(full(&"x".repeat(size)))
    })
    .await;
    let (pool, cluster) = (Pool::new(peer.connect()), behind_tls(&server, ClusterSettings::default()));
    let mut unread = Vec::new();
    for _ in 1..MAX_STREAMS {
        let dispatch = Dispatch {
            cluster: Arc::clone(&cluster),
            endpoint: endpoint(&cluster, 0),
            request: get("/large"),
        };
        unread.push(pool.clone().oneshot(dispatch).await.unwrap());
    }
    for _ in 0..20 {
        let small = tokio::time::timeout(Duration::from_secs(20), call(&pool, &cluster, get("/small")));
        assert_eq!(small.await.unwrap().unwrap().len(), 1000);
    }
    assert_eq!(server.connections(), 1);
    for response in unread {
        assert_eq!(text(response).await.len(), 4 << 20);
    }
}
