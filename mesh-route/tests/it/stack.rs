//! Retry over balance over pool, while servers come and go.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, Request, Response, Version};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::body::Body;
use mesh_core::cluster::{Cluster, ClusterSettings, Gauge, Limits, RetryBudget};
use mesh_core::facts::Facts;
use mesh_core::failure::{Failure, FailureCode};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tower::{ServiceBuilder, ServiceExt};
use tower_mesh_route::balance::BalanceLayer;
use tower_mesh_route::pool::{Pool, TcpConnect};
use tower_mesh_route::retry::{RetryLayer, RetryPolicy};
use tower_mesh_route::timeout::TimeoutLayer;

use crate::support::{Server, cluster, full, text, until};

/// A budget that tests of other things do not run into.
fn generous() -> ClusterSettings {
    let retry_budget = RetryBudget { percent: 100.0, min_concurrent: 1000 };
    ClusterSettings { retry_budget, ..ClusterSettings::default() }
}

#[derive(Clone)]
struct Client {
    pool: Pool<TcpConnect>,
    cluster: Arc<Cluster>,
    retry: RetryLayer,
}

impl Client {
    fn new(addresses: &[SocketAddr], settings: ClusterSettings) -> Self {
        let cluster = cluster(addresses, settings);
        let retry = RetryLayer::new(RetryPolicy::default()).within(Arc::clone(&cluster));
        Self { pool: Pool::new(TcpConnect::new()), cluster, retry }
    }

    async fn send(&self, request: Request<Body>) -> Result<String, Failure> {
        let stack = ServiceBuilder::new()
            .layer(TimeoutLayer::new(Some(Duration::from_secs(4))))
            .layer(self.retry.clone())
            .layer(BalanceLayer::to(Arc::clone(&self.cluster)))
            .service(self.pool.clone());
        let response = stack.oneshot(request).await.map_err(Failure::of)?;
        Ok(text(response).await)
    }
}

fn request(method: Method, version: Version) -> Request<Body> {
    let body = if method == Method::POST { full("order") } else { Body::empty() };
    let mut request = Request::builder().method(method).uri("http://a/x").body(body).unwrap();
    *request.version_mut() = version;
    request
}

/// Takes each request, and dies of it.
async fn accepts_and_resets() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&taken);
    tokio::spawn(async move {
        loop {
            let (mut io, _) = listener.accept().await.unwrap();
            let _ = io.read(&mut [0; 1024]).await;
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    (address, taken)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_is_killed_mid_load_and_no_get_fails() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let slow = |_| async {
            tokio::time::sleep(Duration::from_millis(2)).await;
            Response::new(full("ok"))
        };
        let servers = [Server::start(slow).await, Server::start(slow).await, Server::start(slow).await];
        let client = Client::new(&servers.each_ref().map(|s| s.address), generous());
        let load: Vec<_> = (0..16)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move {
                    for _ in 0..100 {
                        assert_eq!(client.send(request(Method::GET, version)).await.unwrap(), "ok");
                    }
                })
            })
            .collect();
        until(|| servers[1].requests() > 100).await;
        servers[1].kill();
        for task in load {
            task.await.unwrap();
        }
        assert!(servers[0].requests() + servers[2].requests() > 1000);
        assert_eq!(client.cluster.in_use(Gauge::Retries), 0);
    }
}

#[tokio::test]
async fn a_get_that_broke_is_repeated_and_a_post_is_not() {
    let (bad, taken) = accepts_and_resets().await;
    let good = Server::echo().await;
    let client = Client::new(&[bad, good.address], generous());
    for _ in 0..20 {
        client.send(request(Method::GET, Version::HTTP_11)).await.unwrap();
    }
    assert!(taken.load(Ordering::SeqCst) > 0);
    let (mut failed, before) = (0, taken.load(Ordering::SeqCst));
    for _ in 0..40 {
        match client.send(request(Method::POST, Version::HTTP_11)).await {
            Ok(answer) => assert_eq!(answer, "order"),
            Err(failure) => {
                assert_eq!(failure.code(), FailureCode::UpstreamReset);
                failed += 1;
            }
        }
    }
    // Each order arrived once, here or there.
    assert_eq!(taken.load(Ordering::SeqCst) - before, failed);
    assert_eq!(good.requests(), 20 + 40 - failed);
}

#[tokio::test]
async fn a_post_moves_on_from_an_endpoint_that_is_not_there() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let good = Server::echo().await;
    let client = Client::new(&[free, good.address], generous());
    for _ in 0..30 {
        let mut order = request(Method::POST, Version::HTTP_11);
        let facts = Facts::of_or_insert(&mut order);
        assert_eq!(client.send(order).await.unwrap(), "order");
        assert_eq!(facts.upstream().unwrap().address.unwrap().0, good.address);
    }
}

/// An HTTP/2 server made by hand, which takes every other stream only.
async fn refuses_every_other_stream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (io, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(io).await.unwrap();
                let mut refuse = true;
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    if refuse {
                        respond.send_reset(h2::Reason::REFUSED_STREAM);
                    } else {
                        let mut body = respond.send_response(Response::new(()), false).unwrap();
                        body.send_data(Bytes::from_static(b"ok"), true).unwrap();
                    }
                    refuse = !refuse;
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_refused_stream_is_repeated_for_post() {
    let address = refuses_every_other_stream().await;
    let client = Client::new(&[address], generous());
    for _ in 0..10 {
        let mut order = request(Method::POST, Version::HTTP_2);
        let facts = Facts::of_or_insert(&mut order);
        assert_eq!(client.send(order).await.unwrap(), "ok");
        assert_eq!(facts.attempts(), 2);
    }
    assert_eq!(client.pool.connections(), 1);
}

/// An HTTP/2 server that says goodbye gracefully after a few requests, on every connection.
async fn goes_away_after(requests: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let served = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&served);
    tokio::spawn(async move {
        loop {
            let (io, _) = listener.accept().await.unwrap();
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                let taken = Arc::new(AtomicUsize::new(0));
                let (notify, count) = (Arc::new(tokio::sync::Notify::new()), Arc::clone(&taken));
                let bell = Arc::clone(&notify);
                let service = service_fn(move |_| {
                    counted.fetch_add(1, Ordering::SeqCst);
                    if count.fetch_add(1, Ordering::SeqCst) + 1 == requests {
                        bell.notify_one();
                    }
                    async {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                        Ok::<_, Infallible>(Response::new(full("ok")))
                    }
                });
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(io), service));
                tokio::select! {
                    _ = connection.as_mut() => return,
                    () = notify.notified() => {}
                }
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            });
        }
    });
    (address, served)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn goaway_mid_load_fails_nothing_and_repeats_nothing() {
    let (address, served) = goes_away_after(20).await;
    let client = Client::new(&[address], generous());
    let load = (0..8).map(|_| {
        let client = client.clone();
        tokio::spawn(async move {
            for _ in 0..100 {
                assert_eq!(client.send(request(Method::POST, Version::HTTP_2)).await.unwrap(), "ok");
            }
        })
    });
    for task in join_all(load).await {
        task.unwrap();
    }
    // No order was served twice.
    assert_eq!(served.load(Ordering::SeqCst), 800);
}

/// Says that it processed nothing, and leaves.
async fn processes_nothing() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut io, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                use tokio::io::AsyncWriteExt;
                // Settings, then GOAWAY: last stream 0, no error.
                io.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
                let mut buf = [0; 1024];
                let mut seen = Vec::new();
                // The preface, settings and the request's headers.
                while !seen.windows(5).any(|w| matches!(w, [1, 4 | 5 | 0x24 | 0x25, 0, 0, 0])) {
                    let n = io.read(&mut buf).await.unwrap();
                    if n == 0 {
                        return;
                    }
                    seen.extend_from_slice(&buf[..n]);
                }
                io.write_all(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).await.unwrap();
                let _ = io.read(&mut buf).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn what_goaway_leaves_out_is_repeated_for_post() {
    let leaving = processes_nothing().await;
    let good = Server::echo().await;
    let client = Client::new(&[leaving, good.address], generous());
    for _ in 0..20 {
        assert_eq!(client.send(request(Method::POST, Version::HTTP_2)).await.unwrap(), "order");
    }
}

#[tokio::test]
async fn a_spent_budget_ends_retries() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let settings = ClusterSettings {
        retry_budget: RetryBudget { percent: 0.0, min_concurrent: 0 },
        ..ClusterSettings::default()
    };
    let client = Client::new(&[free], settings);
    let failure = client.send(request(Method::GET, Version::HTTP_11)).await.unwrap_err();
    assert_eq!(failure.code(), FailureCode::ConnectFailed);
    assert_eq!(client.cluster.retry_overflows(), 1);
}

#[tokio::test]
async fn an_overflow_is_not_tried_again() {
    let server = Server::echo().await;
    let settings = ClusterSettings { limits: Limits { pending: 0, ..Limits::default() }, ..generous() };
    let client = Client::new(&[server.address], settings);
    let mut get = request(Method::GET, Version::HTTP_11);
    let facts = Facts::of_or_insert(&mut get);
    assert_eq!(client.send(get).await.unwrap_err().code(), FailureCode::Overflow);
    assert_eq!(facts.attempts(), 1);
}

#[tokio::test]
async fn a_servers_idle_timeout_fails_no_get() {
    // The server closes idle connections on its own; requests come at about that time.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (io, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let service = service_fn(|_| async { Ok::<_, Infallible>(Response::new(full("ok"))) });
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), service);
                let mut connection = std::pin::pin!(connection);
                tokio::select! {
                    _ = connection.as_mut() => return,
                    () = tokio::time::sleep(Duration::from_millis(20)) => {}
                }
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            });
        }
    });
    let client = Client::new(&[address], generous());
    for _ in 0..200 {
        assert_eq!(client.send(request(Method::GET, Version::HTTP_11)).await.unwrap(), "ok");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}
