//! The pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use mesh_core::body::{Body, BoxError};
use mesh_core::cluster::{ClusterSettings, Dispatch, Endpoint, EndpointSpec, Expect, Gauge, Limits};
use mesh_core::facts::Facts;
use mesh_core::failure::{Failure, FailureCode};
use mesh_core::protocol::Protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::Instant;
use tower::{ServiceExt, service_fn};
use tower_mesh_route::pool::{ConnectTo, Connected, HttpVersion, MAX_HEAD_BYTES, Pool, TcpConnect};

use crate::support::{Server, cluster, endpoint, full, get, get2, send, text, until};

fn http2() -> ClusterSettings {
    ClusterSettings { protocol: Protocol::Http2, ..ClusterSettings::default() }
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let server = Server::echo().await;
    let (pool, cluster) =
        (Pool::new(TcpConnect::new()), cluster(&[server.address], ClusterSettings::default()));
    for i in 0..50 {
        let request = Request::post("/").body(full(&i.to_string())).unwrap();
        let response = send(&pool, &cluster, request).await.unwrap();
        assert_eq!(response.version(), Version::HTTP_11);
        assert_eq!(text(response).await, i.to_string());
    }
    assert_eq!((server.connections(), server.requests()), (1, 50));
    assert_eq!((pool.connections(), cluster.in_use(Gauge::Connections)), (1, 1));
    assert_eq!(endpoint(&cluster, 0).state().connections().load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn what_cannot_be_sent_leaves_a_kept_connection_as_it_was() {
    let server = Server::echo().await;
    let (pool, cluster) =
        (Pool::new(TcpConnect::new()), cluster(&[server.address], ClusterSettings::default()));
    assert_eq!(text(send(&pool, &cluster, get("/")).await.unwrap()).await, "");
    let lies = || Request::post("/").header("content-length", "5").body(full("xy")).unwrap();
    for _ in 0..2 {
        let error = send(&pool, &cluster, lies()).await.unwrap_err();
        assert_eq!(error.failure().code(), FailureCode::BadRequest);
        assert!(error.is_unsent());
    }
    let old = Request::get("/").version(Version::HTTP_10).body(Body::empty()).unwrap();
    assert_eq!(send(&pool, &cluster, old).await.unwrap().version(), Version::HTTP_10);
    assert_eq!((server.connections(), server.requests(), pool.connections()), (1, 2, 1));
    assert_eq!(endpoint(&cluster, 0).state().active(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_used_again_by_many_threads() {
    let server = Server::echo().await;
    let (pool, cluster) =
        (Pool::new(TcpConnect::new()), cluster(&[server.address], ClusterSettings::default()));
    let load = (0..8).map(|_| {
        let (pool, cluster) = (pool.clone(), Arc::clone(&cluster));
        tokio::spawn(async move {
            for _ in 0..100 {
                assert_eq!(text(send(&pool, &cluster, get("/")).await.unwrap()).await, "");
                let echoed = Request::post("/").body(full("x")).unwrap();
                assert_eq!(text(send(&pool, &cluster, echoed).await.unwrap()).await, "x");
            }
        })
    });
    for task in join_all(load).await {
        task.unwrap();
    }
    assert!(server.connections() <= 24, "{}", server.connections());
}

#[tokio::test]
async fn in_flight_ends_with_the_body_and_a_dropped_body_ends_the_connection() {
    let server = Server::start(|_| async { Response::new(full("x")) }).await;
    let (pool, cluster) =
        (Pool::new(TcpConnect::new()), cluster(&[server.address], ClusterSettings::default()));
    let response = send(&pool, &cluster, get("/")).await.unwrap();
    let state = Arc::clone(endpoint(&cluster, 0).state());
    assert_eq!(state.active(), 1);
    drop(response);
    assert_eq!(state.active(), 0);
    until(|| pool.connections() == 0).await;
    assert_eq!(text(send(&pool, &cluster, get("/")).await.unwrap()).await, "x");
    assert_eq!((state.active(), server.connections()), (0, 2));
}

/// Answers one request a connection, and closes it some time after the answer, unannounced.
async fn closes_after_each() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut io, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut buf = [0; 1024];
                let _ = io.read(&mut buf).await;
                let _ = io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            });
        }
    });
    address
}

#[tokio::test]
async fn a_connection_that_the_server_closed_between_requests_fails_nothing() {
    let address = closes_after_each().await;
    let (pool, cluster) = (Pool::new(TcpConnect::new()), cluster(&[address], ClusterSettings::default()));
    for _ in 0..30 {
        let request = Request::post("/").body(Body::empty()).unwrap();
        assert_eq!(text(send(&pool, &cluster, request).await.unwrap()).await, "ok");
        // The server closes; our end learns it before the next request.
        until(|| {
            pool.sweep(Instant::now());
            pool.connections() == 0
        })
        .await;
    }
}

#[tokio::test]
async fn connection_close_and_the_limit_of_requests_end_a_connection() {
    let server = Server::start(|_| async {
        Response::builder().header("connection", "close").body(full("x")).unwrap()
    })
    .await;
    let pool = Pool::new(TcpConnect::new());
    let closing = cluster(&[server.address], ClusterSettings::default());
    for _ in 0..3 {
        let response = send(&pool, &closing, get("/")).await.unwrap();
        assert!(!response.headers().contains_key("connection"));
        text(response).await;
    }
    assert_eq!(server.connections(), 3);

    for protocol in [Protocol::Http1, Protocol::Http2] {
        let server = Server::echo().await;
        let limits = Limits { requests_per_connection: 2, ..Limits::default() };
        let cluster =
            cluster(&[server.address], ClusterSettings { protocol, limits, ..ClusterSettings::default() });
        for _ in 0..6 {
            text(send(&pool, &cluster, get("/")).await.unwrap()).await;
        }
        assert_eq!(server.connections(), 3, "{protocol:?}");
    }
}

#[tokio::test]
async fn an_idle_connection_expires() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let server = Server::echo().await;
        let idle_timeout = Some(Duration::from_secs(60));
        let settings = ClusterSettings { idle_timeout, protocol, ..ClusterSettings::default() };
        let (pool, cluster) = (Pool::new(TcpConnect::new()), cluster(&[server.address], settings));
        text(send(&pool, &cluster, get("/")).await.unwrap()).await;
        assert_eq!(pool.sweep(Instant::now()), 0);
        assert_eq!(pool.sweep(Instant::now() + Duration::from_secs(61)), 1);
        until(|| pool.connections() == 0).await;
    }
}

#[tokio::test]
async fn a_pool_that_drains_keeps_nothing() {
    let server = Server::echo().await;
    let (pool, cluster) =
        (Pool::new(TcpConnect::new()), cluster(&[server.address], ClusterSettings::default()));
    text(send(&pool, &cluster, get("/")).await.unwrap()).await;
    text(send(&pool, &cluster, get2("/")).await.unwrap()).await;
    assert_eq!(pool.connections(), 2);
    let running = send(&pool, &cluster, Request::post("/").body(full("x")).unwrap()).await.unwrap();
    pool.drain();
    assert_eq!(text(running).await, "x");
    assert_eq!(text(send(&pool, &cluster, get("/")).await.unwrap()).await, "");
    assert_eq!(text(send(&pool, &cluster, get2("/")).await.unwrap()).await, "");
    until(|| pool.connections() == 0).await;
}

#[tokio::test]
async fn a_removed_endpoint_lets_its_connections_go() {
    let server = Server::echo().await;
    let (pool, cluster) =
        (Pool::new(TcpConnect::new()), cluster(&[server.address], ClusterSettings::default()));
    text(send(&pool, &cluster, get("/")).await.unwrap()).await;
    text(send(&pool, &cluster, get2("/")).await.unwrap()).await;
    cluster.publish_endpoints(vec![]);
    until(|| pool.connections() == 0).await;
}

#[tokio::test]
async fn http2_shares_one_connection() {
    let server = Server::echo().await;
    let (pool, cluster) = (Pool::new(TcpConnect::new()), cluster(&[server.address], http2()));
    let answers = join_all((0..50).map(|i| {
        let request = Request::post("/x").header("host", "a").body(full(&format!("{i}"))).unwrap();
        let (pool, cluster) = (pool.clone(), Arc::clone(&cluster));
        async move { text(send(&pool, &cluster, request).await.unwrap()).await }
    }))
    .await;
    assert_eq!(answers[49], "49");
    assert_eq!((server.connections(), server.requests()), (1, 50));
    assert_eq!(endpoint(&cluster, 0).state().active(), 0);
}

#[tokio::test]
async fn an_undeclared_port_is_spoken_to_as_the_caller_speaks() {
    let server = Server::start(|r| async move {
        Response::new(full(&format!("{:?} {} {:?}", r.version(), r.uri(), r.headers().get("host"))))
    })
    .await;
    let (pool, cluster) =
        (Pool::new(TcpConnect::new()), cluster(&[server.address], ClusterSettings::default()));
    assert_eq!(text(send(&pool, &cluster, get("/x")).await.unwrap()).await, "HTTP/1.1 /x Some(\"a\")");
    let response = send(&pool, &cluster, get2("/x")).await.unwrap();
    assert_eq!(response.version(), Version::HTTP_2);
    assert_eq!(text(response).await, "HTTP/2.0 http://a/x None");
}

#[tokio::test]
async fn a_second_connection_is_made_when_streams_are_in_use() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (accepted, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (counted, wait) = (Arc::clone(&accepted), Arc::clone(&go));
    tokio::spawn(async move {
        loop {
            let (io, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            let wait = Arc::clone(&wait);
            let service = hyper::service::service_fn(move |_| {
                let wait = Arc::clone(&wait);
                async move {
                    wait.notified().await;
                    Ok::<_, std::convert::Infallible>(Response::new(full("x")))
                }
            });
            let builder = {
                let mut b = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
                b.max_concurrent_streams(2);
                b
            };
            tokio::spawn(builder.serve_connection(hyper_util::rt::TokioIo::new(io), service));
        }
    });
    let (pool, cluster) = (Pool::new(TcpConnect::new()), cluster(&[address], http2()));
    // The first answer tells how many streams there are.
    go.notify_one();
    text(send(&pool, &cluster, get("/")).await.unwrap()).await;
    let all: Vec<_> = (0..6)
        .map(|_| {
            let (pool, cluster) = (pool.clone(), Arc::clone(&cluster));
            tokio::spawn(async move { text(send(&pool, &cluster, get("/")).await.unwrap()).await })
        })
        .collect();
    until(|| endpoint(&cluster, 0).state().active() == 6 && pool.connections() == 3).await;
    for task in all {
        go.notify_waiters();
        go.notify_one();
        until(|| {
            go.notify_one();
            task.is_finished()
        })
        .await;
    }
    assert_eq!(accepted.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_failed_http2_connection_fails_those_who_wait_for_it() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let connects = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connects);
    let connector = service_fn(move |to: ConnectTo| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            tokio::task::yield_now().await;
            TcpConnect::new().oneshot(to).await
        }
    });
    let (pool, cluster) = (Pool::new(connector), cluster(&[free], http2()));
    let answers = join_all((0..20).map(|_| {
        let dispatch =
            Dispatch { cluster: Arc::clone(&cluster), endpoint: endpoint(&cluster, 0), request: get("/") };
        pool.clone().oneshot(dispatch)
    }))
    .await;
    for answer in answers {
        let error = answer.unwrap_err();
        assert_eq!((error.failure().code(), error.is_unsent()), (FailureCode::ConnectFailed, true));
    }
    assert_eq!(connects.load(Ordering::SeqCst), 1);
    assert_eq!((pool.connections(), cluster.in_use(Gauge::Pending)), (0, 0));
}

#[tokio::test]
async fn tls_and_identity_are_never_shared() {
    let server = Server::echo().await;
    let cluster = cluster(&[], ClusterSettings::default());
    let expect = |sa: &str| {
        let id = format!("spiffe://td/ns/default/sa/{sa}").parse().unwrap();
        Expect::AnyOf(Arc::from([id]))
    };
    let plain = EndpointSpec::plaintext(server.address);
    cluster.publish_endpoints(vec![
        plain.clone(),
        plain.clone().mutual("a", expect("a")),
        plain.clone().mutual("a", expect("b")),
        plain.mutual("a", Expect::AnyInTrustDomain),
    ]);
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let connector = service_fn(move |mut to: ConnectTo| {
        seen.lock().unwrap().push(to.tls.clone());
        // As if TLS had been spoken.
        to.tls = mesh_core::cluster::UpstreamTls::Plaintext;
        TcpConnect::new().oneshot(to)
    });
    let pool = Pool::new(connector);
    let members: Vec<Arc<Endpoint>> = cluster.load_endpoints().members().to_vec();
    for _ in 0..2 {
        for endpoint in &members {
            let dispatch =
                Dispatch { cluster: Arc::clone(&cluster), endpoint: Arc::clone(endpoint), request: get("/") };
            text(pool.clone().oneshot(dispatch).await.unwrap()).await;
        }
    }
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 4);
    for (asked, endpoint) in asked.iter().zip(&members) {
        assert_eq!(*asked, endpoint.key().tls);
    }
}

#[tokio::test]
async fn an_endpoint_that_needs_tls_is_not_spoken_to_without() {
    let server = Server::echo().await;
    let cluster = cluster(&[], ClusterSettings::default());
    cluster.publish_endpoints(vec![
        EndpointSpec::plaintext(server.address).mutual("a", Expect::AnyInTrustDomain),
    ]);
    let error = send(&Pool::new(TcpConnect::new()), &cluster, get("/")).await.unwrap_err();
    assert_eq!((error.failure().code(), server.connections()), (FailureCode::TlsFailed, 0));
}

#[tokio::test]
async fn what_the_connector_says_is_what_failed() {
    let connector = service_fn(|_: ConnectTo| async {
        Err::<Connected<TcpStream>, _>(Failure::new(FailureCode::IdentityMismatch))
    });
    let cluster = cluster(&["127.0.0.1:1".parse().unwrap()], ClusterSettings::default());
    let mut request = get("/");
    let facts = Facts::of_or_insert(&mut request);
    let dispatch = Dispatch { cluster: Arc::clone(&cluster), endpoint: endpoint(&cluster, 0), request };
    let error = Pool::new(connector).oneshot(dispatch).await.unwrap_err();
    assert_eq!((error.failure().code(), error.is_unsent()), (FailureCode::IdentityMismatch, true));
    assert_eq!(facts.upstream().unwrap().address.unwrap().port(), 1);
}

#[tokio::test]
async fn a_negotiated_version_wins() {
    let server = Server::start(|r| async move { Response::new(full(&format!("{:?}", r.version()))) }).await;
    for (protocol, got, seen) in
        [(Protocol::Http2, HttpVersion::Http1, "HTTP/1.1"), (Protocol::Http1, HttpVersion::Http2, "HTTP/2.0")]
    {
        let connector = service_fn(move |to: ConnectTo| async move {
            let connected = TcpConnect::new().oneshot(to).await?;
            Ok::<_, Failure>(Connected { protocol: Some(got), ..connected })
        });
        let cluster = cluster(&[server.address], ClusterSettings { protocol, ..ClusterSettings::default() });
        let (pool, before) = (Pool::new(connector), server.connections());
        for _ in 0..3 {
            let dispatch = Dispatch {
                cluster: Arc::clone(&cluster),
                endpoint: endpoint(&cluster, 0),
                request: get("/"),
            };
            assert_eq!(text(pool.clone().oneshot(dispatch).await.unwrap()).await, seen);
        }
        assert_eq!(server.connections() - before, 1);
    }
}

async fn raw(answer: &'static [u8]) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut io, _) = listener.accept().await.unwrap();
            let mut buf = [0; 4096];
            let _ = io.read(&mut buf).await;
            let _ = io.write_all(answer).await;
        }
    });
    address
}

#[tokio::test]
async fn what_is_no_http_and_what_breaks_off_is_told_apart() {
    let table: [(&'static [u8], FailureCode); 3] = [
        (b"SSH-2.0-OpenSSH\r\n\r\n", FailureCode::UpstreamProtocol),
        (b"HTTP/1.1 200 OK\r\ncontent", FailureCode::UpstreamReset),
        (b"", FailureCode::UpstreamReset),
    ];
    for (answer, code) in table {
        let address = raw(answer).await;
        let pool = Pool::new(TcpConnect::new());
        let error =
            send(&pool, &cluster(&[address], ClusterSettings::default()), get("/")).await.unwrap_err();
        assert_eq!((error.failure().code(), error.is_unsent()), (code, false), "{error}");
    }
    let address = raw(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc").await;
    let pool = Pool::new(TcpConnect::new());
    let cut = send(&pool, &cluster(&[address], ClusterSettings::default()), get("/")).await.unwrap();
    let error = cut.into_body().collect().await.unwrap_err();
    assert_eq!(Failure::of(error).code(), FailureCode::UpstreamReset);
}

#[tokio::test]
async fn a_head_that_is_too_large_fails() {
    for request in [get("/"), get2("/")] {
        let server = Server::start(|_| async {
            let big = "x".repeat(MAX_HEAD_BYTES as usize / 8);
            let mut response = Response::new(full("x"));
            for _ in 0..9 {
                response.headers_mut().append("x-big", big.parse().unwrap());
            }
            response
        })
        .await;
        let pool = Pool::new(TcpConnect::new());
        assert!(send(&pool, &cluster(&[server.address], ClusterSettings::default()), request).await.is_err());
    }
}

#[tokio::test]
async fn head_informational_answers_and_trailers_pass() {
    let pool = Pool::new(TcpConnect::new());
    let informed = raw(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    )
    .await;
    let one = cluster(&[informed], ClusterSettings::default());
    assert_eq!(send(&pool, &one, get("/")).await.unwrap().status(), StatusCode::NO_CONTENT);

    let server = Server::start(|request| async move {
        if request.method() == Method::HEAD {
            return Response::builder().header("content-length", "5").body(Body::empty()).unwrap();
        }
        let trailers = request.into_body().collect().await.unwrap().trailers().cloned().unwrap_or_default();
        let frames =
            [Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"x"))), Ok(Frame::trailers(trailers))];
        Response::new(Body::new(StreamBody::new(futures_util::stream::iter(frames))))
    })
    .await;
    let two = cluster(&[server.address], ClusterSettings::default());
    for _ in 0..2 {
        let head = Request::head("/").body(Body::empty()).unwrap();
        let response = send(&pool, &two, head).await.unwrap();
        assert_eq!(response.headers()["content-length"], "5");
        assert_eq!(text(response).await, "");
    }
    assert_eq!(server.connections(), 1);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let frames = [Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"y"))), Ok(Frame::trailers(trailers))];
    let (mut parts, ()) = Request::post("http://a/").body(()).unwrap().into_parts();
    parts.version = Version::HTTP_2;
    let request = Request::from_parts(parts, Body::new(StreamBody::new(futures_util::stream::iter(frames))));
    let collected = send(&pool, &two, request).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
}
