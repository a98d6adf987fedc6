use std::convert::Infallible;

use mesh_core::facts::MatchedRoute;
use proptest::prelude::*;
use tokio::time::Instant;
use tower::limit::ConcurrencyLimitLayer;
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_test::mock::Spawn;

use super::*;

fn whole() -> Percentage {
    Percentage::new(100.0).unwrap()
}

fn delay(ms: u64) -> Option<Delay> {
    Some(Delay { percentage: whole(), duration: Duration::from_millis(ms) })
}

fn abort(status: AbortStatus) -> Option<Abort> {
    Some(Abort { percentage: whole(), status })
}

fn ok() -> impl Service<Request<()>, Response = Response<String>, Error = Infallible, Future: Send> + Clone {
    service_fn(|_: Request<()>| async { Ok(Response::new(String::from("fine"))) })
}

fn routed(fault: FaultPolicy) -> Request<()> {
    let mut request = Request::new(());
    let facts = Facts::default();
    facts.set_route(MatchedRoute {
        resource: None,
        name: "default".into(),
        cluster: None,
        policy: Arc::new(RoutePolicy { fault, ..RoutePolicy::default() }),
    });
    facts.insert(&mut request);
    request
}

#[test]
fn shares() {
    let share = |p: f64| Percentage::new(p).map(|p| (0..1_000_000).filter(|draw| p.holds(*draw)).count());
    for (percent, want) in [
        (0.0, Some(0)),
        (0.0001, Some(1)),
        (0.1, Some(1000)),
        (50.0, Some(500_000)),
        (100.0, Some(1_000_000)),
    ] {
        assert_eq!(share(percent), want, "{percent}");
    }
    assert_eq!((share(-1.0), share(100.1), share(f64::NAN)), (None, None, None));
}

#[test]
fn delay_and_abort_are_drawn_independently() {
    let half = Percentage::new(50.0).unwrap();
    let policy = FaultPolicy {
        delay: Some(Delay { percentage: half, duration: Duration::from_secs(1) }),
        abort: Some(Abort { percentage: half, status: AbortStatus::Http(StatusCode::BAD_GATEWAY) }),
    };
    for (draws, want) in [
        ((0, 0), (true, true)),
        ((0, 999_999), (true, false)),
        ((999_999, 0), (false, true)),
        ((999_999, 999_999), (false, false)),
    ] {
        let decision = policy.decide(draws.0, draws.1);
        assert_eq!((decision.delay.is_some(), decision.abort.is_some()), want);
    }
}

#[tokio::test]
async fn the_rule_decides_and_without_one_nothing_happens() {
    let layered = || FaultLayer::new().layer(ok());
    let status = AbortStatus::Http(StatusCode::IM_A_TEAPOT);
    let request = routed(FaultPolicy { delay: None, abort: abort(status) });
    let facts = Facts::of(&request).unwrap().clone();
    assert_eq!(layered().oneshot(request).await.unwrap().status(), 418);
    let failure = facts.failure().unwrap();
    assert_eq!((failure.code(), failure.explanation().as_ref()), (FailureCode::FaultInjected, "abort (FI)"));

    assert_eq!(layered().oneshot(Request::new(())).await.unwrap().body(), "fine");
    assert_eq!(layered().oneshot(routed(FaultPolicy::default())).await.unwrap().body(), "fine");
}

#[tokio::test]
async fn statuses_for_http_and_grpc() {
    let http = |code| AbortStatus::Http(StatusCode::from_u16(code).unwrap());
    let grpc = |name| AbortStatus::Grpc(grpc_code(name).unwrap());
    for (status, want_http, want_grpc) in [
        (http(404), 404, "12"),
        (http(503), 503, "14"),
        (http(418), 418, "2"),
        (grpc("UNAVAILABLE"), 503, "14"),
        (grpc("DATA_LOSS"), 500, "15"),
        (grpc("CANCELLED"), 499, "1"),
    ] {
        let layer = FaultLayer::fixed(FaultPolicy { delay: None, abort: abort(status) });
        let response = layer.layer(ok()).oneshot(Request::new(())).await.unwrap();
        assert_eq!(response.status(), want_http, "{status:?}");
        let call = Request::builder().header("content-type", "application/grpc").body(()).unwrap();
        let response = layer.layer(ok()).oneshot(call).await.unwrap();
        assert_eq!(
            (response.status(), response.headers()["grpc-status"].to_str().unwrap()),
            (StatusCode::OK, want_grpc)
        );
    }
    assert_eq!(grpc_code("unavailable"), None);
}

#[tokio::test(start_paused = true)]
async fn a_delay_comes_before_what_follows() {
    let start = Instant::now();
    let layer = FaultLayer::fixed(FaultPolicy { delay: delay(500), abort: None });
    assert_eq!(layer.layer(ok()).oneshot(Request::new(())).await.unwrap().body(), "fine");
    assert_eq!(start.elapsed(), Duration::from_millis(500));

    let request = Request::new(());
    let status = AbortStatus::Http(StatusCode::BAD_GATEWAY);
    let layer = FaultLayer::fixed(FaultPolicy { delay: delay(500), abort: abort(status) });
    let response = layer.layer(ok()).oneshot(request).await.unwrap();
    assert_eq!(response.status(), 502);
    assert_eq!(start.elapsed(), Duration::from_secs(1));
    let failure = response.extensions().get::<Failure>().unwrap();
    assert_eq!(failure.explanation(), "abort after a delay of 500ms (DI,FI)");
}

#[tokio::test]
async fn the_draws_decide() {
    let half = Percentage::new(50.0).unwrap();
    let policy = FaultPolicy {
        delay: None,
        abort: Some(Abort { percentage: half, status: AbortStatus::Http(StatusCode::BAD_GATEWAY) }),
    };
    for (draw, want) in [((|| 0) as fn() -> u64, 502), (|| 500_000, 200)] {
        let service = FaultLayer::fixed(policy.clone()).draw(draw).layer(ok());
        assert_eq!(service.oneshot(Request::new(())).await.unwrap().status(), want);
    }
}

#[tokio::test(start_paused = true)]
async fn an_abort_gives_the_permit_back() {
    let (mock, mut upstream) = tower_test::mock::pair::<Request<()>, Response<String>>();
    upstream.allow(10);
    let status = AbortStatus::Http(StatusCode::BAD_GATEWAY);
    let service = ServiceBuilder::new()
        .layer(FaultLayer::fixed(FaultPolicy { delay: None, abort: abort(status) }))
        .layer(ConcurrencyLimitLayer::new(1))
        .service(mock);
    let mut a = Spawn::new(service);
    let mut b = a.clone();
    assert!(a.poll_ready().is_ready());
    assert!(b.poll_ready().is_pending());
    assert_eq!(a.call(Request::new(())).await.unwrap().status(), 502);
    assert!(b.poll_ready().is_ready());
}

proptest! {
    #[test]
    fn a_larger_share_holds_whatever_a_smaller_one_does(a in 0.0..=100.0_f64, b in 0.0..=100.0_f64, draw: u64) {
        let (small, large) = (Percentage::new(a.min(b)).unwrap(), Percentage::new(a.max(b)).unwrap());
        prop_assert!(!small.holds(draw) || large.holds(draw));
    }
}
