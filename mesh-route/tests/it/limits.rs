//! How many connections a pool has, and how long one may take.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::{Request, Response};
use mesh_core::cluster::{ClusterSettings, Dispatch, EndpointSpec, Gauge, Limits};
use mesh_core::failure::{Failure, FailureCode};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;
use tower::{ServiceExt, service_fn};
use tower_mesh_route::pool::{ConnectTo, Connected, Pool, TcpConnect, WITHDRAWN_PATIENCE};

use crate::support::{Server, cluster, endpoint, full, get, get2, send, text, until};

fn limited(limits: Limits) -> ClusterSettings {
    ClusterSettings { limits, connect_timeout: Duration::from_millis(200), ..ClusterSettings::default() }
}

#[tokio::test]
async fn connections_in_use_make_others_wait_and_then_overflow() {
    let go = Arc::new(Notify::new());
    let wait = Arc::clone(&go);
    let server = Server::start(move |_| {
        let wait = Arc::clone(&wait);
        async move {
            wait.notified().await;
            Response::new(full("x"))
        }
    })
    .await;
    let limits = Limits { connections: 1, pending: 1, ..Limits::default() };
    let (pool, cluster) = (Pool::new(TcpConnect::new()), cluster(&[server.address], limited(limits)));
    let spawn = || {
        let (pool, cluster) = (pool.clone(), Arc::clone(&cluster));
        tokio::spawn(async move {
            match send(&pool, &cluster, get("/")).await {
                Ok(response) => Ok(text(response).await),
                Err(error) => Err(Failure::from(error)),
            }
        })
    };
    let first = spawn();
    until(|| server.requests() == 1).await;
    let second = spawn();
    until(|| cluster.in_use(Gauge::Pending) == 1).await;
    let third = spawn().await.unwrap().unwrap_err();
    assert_eq!(third.code(), FailureCode::Overflow);
    assert!(third.to_string().contains("http1MaxPendingRequests"), "{third}");
    assert_eq!(cluster.overflows(), 1);

    // The connection comes free, and whoever waited has it.
    go.notify_one();
    assert_eq!(first.await.unwrap().unwrap(), "x");
    until(|| server.requests() == 2).await;
    go.notify_one();
    assert_eq!(second.await.unwrap().unwrap(), "x");
    assert_eq!(server.connections(), 1);

    // Nobody gives it back in time.
    let holder = spawn();
    until(|| server.requests() == 3).await;
    let late = spawn().await.unwrap().unwrap_err();
    assert_eq!(late.code(), FailureCode::Overflow);
    assert!(late.to_string().contains("tcp.maxConnections"), "{late}");
    go.notify_one();
    holder.await.unwrap().unwrap();
    assert_eq!(cluster.in_use(Gauge::Pending), 0);
}

#[tokio::test]
async fn an_idle_connection_to_another_endpoint_makes_room() {
    let (one, other) = (Server::echo().await, Server::echo().await);
    let limits = Limits { connections: 1, ..Limits::default() };
    let cluster = cluster(&[one.address, other.address], limited(limits));
    let pool = Pool::new(TcpConnect::new());
    for i in 0..6 {
        let dispatch = Dispatch {
            cluster: Arc::clone(&cluster),
            endpoint: endpoint(&cluster, i % 2),
            request: if i < 3 { get("/") } else { get2("/") },
        };
        text(pool.clone().oneshot(dispatch).await.unwrap()).await;
    }
    assert_eq!((one.requests(), other.requests()), (3, 3));
    assert_eq!(cluster.in_use(Gauge::Connections), 1);
}

#[tokio::test]
async fn a_limit_under_load_fails_nothing() {
    let server = Server::echo().await;
    let limits = Limits { connections: 3, ..Limits::default() };
    let settings = ClusterSettings { limits, ..ClusterSettings::default() };
    let (pool, cluster) = (Pool::new(TcpConnect::new()), cluster(&[server.address], settings));
    let answers = join_all((0..200).map(|_| async {
        text(send(&pool, &cluster, Request::post("/").body(full("x")).unwrap()).await.unwrap()).await
    }))
    .await;
    assert!(answers.iter().all(|a| a == "x"));
    assert_eq!(server.connections(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_connection_must_be_made_in_time() {
    let never = service_fn(|_: ConnectTo| std::future::pending::<Result<Connected<TcpStream>, Failure>>());
    let cluster = cluster(&["127.0.0.1:1".parse().unwrap()], ClusterSettings::default());
    for protocol in [get("/"), get2("/")] {
        let dispatch =
            Dispatch { cluster: Arc::clone(&cluster), endpoint: endpoint(&cluster, 0), request: protocol };
        let started = Instant::now();
        let error = Pool::new(never).oneshot(dispatch).await.unwrap_err();
        assert_eq!((error.failure().code(), error.is_unsent()), (FailureCode::ConnectFailed, true));
        assert_eq!(started.elapsed(), Duration::from_secs(10));
    }
    assert_eq!(cluster.in_use(Gauge::Connections), 0);
}

#[tokio::test(start_paused = true)]
async fn a_connection_to_an_endpoint_that_is_withdrawn_meanwhile_is_given_up() {
    let never = service_fn(|_: ConnectTo| std::future::pending::<Result<Connected<TcpStream>, Failure>>());
    let [gone, stays] = ["127.0.0.1:1", "127.0.0.1:2"].map(|addr| addr.parse().unwrap());
    let cluster = cluster(&[gone, stays], ClusterSettings::default());
    let begun = Instant::now();
    let to = |i| {
        let dispatch =
            Dispatch { cluster: Arc::clone(&cluster), endpoint: endpoint(&cluster, i), request: get("/") };
        async { (Pool::new(never).oneshot(dispatch).await.unwrap_err(), begun.elapsed()) }
    };
    let withdraw = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        cluster.publish_endpoints(vec![EndpointSpec::plaintext(stays)]);
    };
    let ((lost, at), (late, end), ()) = tokio::join!(to(0), to(1), withdraw);
    assert_eq!((lost.failure().code(), lost.is_unsent()), (FailureCode::ConnectFailed, true));
    assert!(lost.failure().to_string().contains("127.0.0.1:1 was withdrawn"), "{lost}");
    assert_eq!(at, Duration::from_secs(2) + WITHDRAWN_PATIENCE);
    assert!(late.failure().to_string().contains("connectTimeout"), "{late}");
    assert_eq!(end, ClusterSettings::default().connect_timeout);
}
