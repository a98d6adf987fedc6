use super::*;
use mesh_core::facts::PeerIdentity;
use std::time::Duration;
use tokio::time::advance;
use tower::limit::ConcurrencyLimitLayer;
use tower::{ServiceExt, service_fn};
use tower_test::mock;

fn per_minute(n: u32) -> Rate {
    Rate::new(n, Duration::from_secs(60)).unwrap()
}

async fn status(layer: &RateLimitLayer, request: Request<()>) -> u16 {
    let app = service_fn(|_: Request<()>| async { Ok::<_, &str>(Response::new(String::new())) });
    layer.layer(app).oneshot(request).await.unwrap().status().as_u16()
}

fn from(ip: &str) -> Request<()> {
    let mut request = Request::new(());
    let addr = std::net::SocketAddr::new(ip.parse().unwrap(), 1);
    Facts::new(Connection::builder().peer_addr(addr).build()).insert(&mut request);
    request
}

fn by(account: &str) -> Request<()> {
    let mut request = Request::new(());
    let id = format!("spiffe://td/ns/a/sa/{account}").parse().unwrap();
    Facts::new(Connection::builder().peer(PeerIdentity::new(id)).build()).insert(&mut request);
    request
}

fn with(values: &[&'static str]) -> Request<()> {
    let mut request = Request::new(());
    for value in values {
        request.headers_mut().append("x-tenant", HeaderValue::from_static(value));
    }
    request
}

#[tokio::test(start_paused = true)]
async fn burst_then_evenly_spaced() {
    let layer = RateLimitLayer::new(per_minute(6).burst(2).unwrap(), Key::Everybody);
    let next = || status(&layer, Request::new(()));
    assert_eq!([next().await, next().await, next().await], [200, 200, 429]);
    advance(Duration::from_secs(9)).await;
    assert_eq!(next().await, 429);
    advance(Duration::from_secs(1)).await;
    assert_eq!([next().await, next().await], [200, 429]);
    assert_eq!(layer.refusals(), 3);
}

#[tokio::test(start_paused = true)]
async fn each_key_has_its_own_limit() {
    let ip = RateLimitLayer::new(per_minute(1), Key::PeerIp);
    let table = [
        ("10.0.0.1", 200),
        ("10.0.0.2", 200),
        ("10.0.0.1", 429),
        ("::ffff:10.0.0.1", 429),
        ("fd00::1", 200),
        ("fd00::2", 429),
        ("fd00:0:0:1::1", 200),
    ];
    for (addr, want) in table {
        assert_eq!(status(&ip, from(addr)).await, want, "{addr}");
    }
    let mut forwarded = from("10.0.0.1");
    forwarded.headers_mut().insert("x-forwarded-for", HeaderValue::from_static("9.9.9.9"));
    assert_eq!(status(&ip, forwarded).await, 429);

    let peer = RateLimitLayer::new(per_minute(1), Key::Peer);
    for (request, want) in [(by("x"), 200), (by("y"), 200), (by("x"), 429)] {
        assert_eq!(status(&peer, request).await, want);
    }

    let header = RateLimitLayer::new(per_minute(1), Key::Header("x-tenant".parse().unwrap()));
    for (values, want) in [
        (&["a"] as &[_], 200),
        (&["b"], 200),
        (&["a"], 429),
        (&["a", "b"], 200),
        (&["a,b"], 200),
        (&[""], 200),
        (&[""], 429),
    ] {
        assert_eq!(status(&header, with(values)).await, want, "{values:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_unknown_share_one_limit() {
    for key in [Key::Peer, Key::PeerIp, Key::Header("x-tenant".parse().unwrap())] {
        let layer = RateLimitLayer::new(per_minute(1), key);
        assert_eq!(status(&layer, Request::new(())).await, 200);
        assert_eq!(status(&layer, Request::new(())).await, 429);
    }
}

#[tokio::test(start_paused = true)]
async fn keys_are_bounded_and_idle_ones_make_room() {
    let layer = RateLimitLayer::new(per_minute(2), Key::PeerIp).max_keys(2);
    for addr in ["10.0.0.1", "10.0.0.2"] {
        assert_eq!(status(&layer, from(addr)).await, 200);
    }
    // Everybody else shares one limit; those who came first keep theirs.
    let mut shared = Vec::new();
    for n in 3..9 {
        shared.push(status(&layer, from(&format!("10.0.0.{n}"))).await);
    }
    assert_eq!(shared, [200, 200, 429, 429, 429, 429]);
    assert_eq!((layer.keys(), layer.overflows()), (2, 6));
    assert_eq!(status(&layer, from("10.0.0.1")).await, 200);

    advance(Duration::from_secs(61)).await;
    assert_eq!(status(&layer, from("10.0.0.9")).await, 200);
    assert_eq!((layer.keys(), layer.overflows()), (1, 6), "the idle ones are forgotten");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_explains_itself() {
    let layer = RateLimitLayer::new(per_minute(1), Key::Peer);
    assert_eq!(status(&layer, by("x")).await, 200);
    let app = service_fn(|_: Request<()>| async { Ok::<_, &str>(Response::new(String::new())) });
    let request = by("x");
    let facts = Facts::of(&request).unwrap().clone();
    let response = layer.layer(app).oneshot(request).await.unwrap();
    assert_eq!(response.headers()["x-mesh-reason"], "rate_limited");
    assert_eq!(response.headers()["retry-after"], "60");
    assert_eq!(
        facts.failure().unwrap().explanation(),
        "the limit of 1 requests in 60s for spiffe://td/ns/a/sa/x is used up"
    );

    let mut call = by("x");
    call.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let response = layer.layer(app).oneshot(call).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "8");
}

#[test]
fn rates_that_are_none() {
    assert!(Rate::new(0, Duration::from_secs(1)).is_err());
    assert!(Rate::new(2, Duration::from_nanos(1)).is_err());
    assert!(Rate::new(1, Duration::ZERO).is_err());
    assert!(per_minute(1).burst(0).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_gives_the_reservation_back() {
    let layer = RateLimitLayer::new(per_minute(1), Key::Everybody);
    assert_eq!(status(&layer, Request::new(())).await, 200);
    let (mock, mut upstream) = mock::pair::<Request<()>, Response<String>>();
    upstream.allow(10);
    let mut a = mock::Spawn::new(layer.layer(ConcurrencyLimitLayer::new(1).layer(mock)));
    let mut b = a.clone();
    assert!(a.poll_ready().is_ready());
    assert!(b.poll_ready().is_pending());
    assert_eq!(a.call(Request::new(())).await.unwrap().status(), 429);
    assert!(b.poll_ready().is_ready());
}
