use std::time::Duration;

use http::{Method, Version};

use super::{Backend, Failing};
use crate::client::{self, Call, Conn, Protocol};
use crate::{ports, tcp, wait};

#[tokio::test]
async fn says_who_it_is_in_both_protocols() {
    let backend = Backend::start("reviews-v1").await;
    let h1 = client::get(backend.addr(), "reviews:9080", "/").await.unwrap();
    let h2 = client::get_h2(backend.addr(), "reviews:9080", "/").await.unwrap();
    assert_eq!((h1.status, h1.version, h1.text().as_str()), (200, Version::HTTP_11, "reviews-v1\n"));
    assert_eq!((h2.status, h2.version, h2.served_by()), (200, Version::HTTP_2, Some("reviews-v1")));
    assert_eq!(backend.count("/"), 2);
    assert_eq!(backend.count_method(&Method::POST, "/"), 0);
    assert_eq!(backend.seen()[1].authority.as_deref(), Some("reviews:9080"));
}

#[tokio::test]
async fn echoes_the_request() {
    let backend = Backend::start("b").await;
    let call =
        Call::post("reviews:9080", "/echo?a=1", "hello\n\nworld").header("x-a", "1").header("x-a", "2");
    for protocol in [Protocol::H1, Protocol::H2] {
        let mut conn = Conn::open(backend.addr(), protocol).await.unwrap();
        let echo = conn.send(&call).await.unwrap().echo();
        assert_eq!((echo.method.as_str(), echo.path.as_str()), ("POST", "/echo?a=1"));
        assert_eq!(echo.authority.as_deref(), Some("reviews:9080"));
        assert_eq!(echo.headers["x-a"], ["1", "2"]);
        assert_eq!(echo.body, b"hello\n\nworld");
    }
    let absolute = client::send(backend.addr(), &call.absolute()).await.unwrap().echo();
    assert_eq!(absolute.authority.as_deref(), Some("reviews:9080"));
}

#[tokio::test]
async fn answers_as_the_path_says() {
    let backend = Backend::start("b").await;
    let get = async |path: &str| client::get(backend.addr(), "x", path).await.unwrap();
    assert_eq!(get("/status/418").await.status, 418);
    assert_eq!(get("/delay/1").await.status, 200);
    let forged = get("/forge").await;
    assert_eq!((forged.status, forged.reason()), (403, Some("denied")));
    assert!(forged.header("x-mesh-detail").is_some());
    assert_eq!(get("/bytes/100000").await.body.len(), 100_000);
    assert_eq!(get("/upgrade").await.status, 426);
    let reply = client::get_h2(backend.addr(), "x", "/trailers").await.unwrap();
    assert_eq!(reply.trailers["grpc-status"], "0");
    assert_eq!(reply.trailers["x-trailer"], "b");
}

#[tokio::test]
async fn upgrades_and_echoes_bytes() {
    let backend = Backend::start("b").await;
    let (reply, mut stream) = client::upgrade(backend.addr(), "x", "/upgrade", "websocket").await.unwrap();
    assert_eq!((reply.status, reply.header("upgrade")), (101, Some("websocket")));
    assert_eq!(tcp::round_trip(&mut stream, b"ping").await.unwrap(), b"ping");
    backend.stop_abrupt().await;
    assert!(tcp::round_trip(&mut stream, b"ping").await.is_err());
}

#[tokio::test]
async fn fails_on_demand_and_recovers() {
    let backend = Backend::start("b").await;
    let get = async || client::get(backend.addr(), "x", "/echo").await;
    backend.fail_with(500);
    assert_eq!(get().await.unwrap().status, 500);
    backend.fail(Failing::Reset);
    let error = get().await.unwrap_err();
    assert!(!error.is_unsent(), "{error}");
    backend.fail(Failing::Hang);
    let mut conn = Conn::open(backend.addr(), Protocol::H1).await.unwrap();
    let hanging = tokio::spawn(async move { conn.start(&Call::get("x", "/")).await.map(drop) });
    wait::until_secs(5, "the request's arrival", async || backend.in_flight() == 1).await;
    hanging.abort();
    backend.recover();
    assert_eq!(get().await.unwrap().status, 200);
    wait::until_secs(5, "no connection left", async || backend.active_connections() == 0).await;
}

#[tokio::test]
async fn stops_gracefully_after_what_is_in_flight() {
    for protocol in [Protocol::H1, Protocol::H2] {
        let backend = Backend::start("b").await;
        let addr = backend.addr();
        let mut idle = Conn::open(addr, protocol).await.unwrap();
        idle.send(&Call::get("x", "/")).await.unwrap();
        let mut conn = Conn::open(addr, protocol).await.unwrap();
        let slow = tokio::spawn(async move { conn.send(&Call::get("x", "/delay/50")).await });
        wait::until_secs(5, "the request's arrival", async || backend.in_flight() == 1).await;
        backend.stop_graceful().await;
        assert_eq!(slow.await.unwrap().unwrap().status, 200);
        let error = idle.send(&Call::get("x", "/")).await.unwrap_err();
        assert!(error.is_unsent(), "{error}");
        assert!(client::get(addr, "x", "/").await.is_err());
    }
}

#[tokio::test]
async fn stops_abruptly_with_a_reset() {
    let addr = ports::free_addr();
    let backend = Backend::bind("b", addr).await;
    let mut conn = Conn::open(addr, Protocol::H1).await.unwrap();
    let slow = tokio::spawn(async move { conn.send(&Call::get("x", "/delay/60000")).await });
    wait::until_secs(5, "the request's arrival", async || backend.in_flight() == 1).await;
    backend.stop_abrupt().await;
    let error = slow.await.unwrap().unwrap_err();
    assert!(!error.is_unsent() && error.to_string().contains("reset"), "{error}");
    let again = Backend::bind("b", addr).await;
    wait::until(Duration::from_secs(5), "it came back", async || client::get(addr, "x", "/").await.is_ok())
        .await;
    assert_eq!(again.requests(), 1);
}

/// A proxy in its smallest form: answers one CONNECT and relays.
async fn connect_proxy(to: std::net::SocketAddr, answer: &'static str) -> std::net::SocketAddr {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let addr = ports::free_addr();
    let listener = ports::listen(addr).await;
    tokio::spawn(async move {
        while let Ok((mut inside, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(inside.read_u8().await.unwrap());
            }
            assert!(head.starts_with(b"CONNECT reviews:9080 HTTP/1.1\r\n"));
            inside.write_all(answer.as_bytes()).await.unwrap();
            let mut outside = tokio::net::TcpStream::connect(to).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut inside, &mut outside).await;
        }
    });
    addr
}

#[tokio::test]
async fn speaks_through_a_tunnel() {
    let backend = Backend::start("b").await;
    let proxy = connect_proxy(backend.addr(), "HTTP/1.1 200 OK\r\n\r\n").await;
    for protocol in [Protocol::H1, Protocol::H2] {
        let reply = client::get_over_connect(proxy, "reviews:9080", "/", protocol).await.unwrap();
        assert_eq!(reply.served_by(), Some("b"));
    }
    let refused = "HTTP/1.1 502 Bad Gateway\r\nx-mesh-reason: unknown_host\r\ncontent-length: 0\r\n\r\n";
    let proxy = connect_proxy(backend.addr(), refused).await;
    let error = client::connect_tunnel(proxy, "reviews:9080").await.unwrap_err();
    assert!(error.to_string().contains("502 (x-mesh-reason: unknown_host)"), "{error}");
}
