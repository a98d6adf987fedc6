use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::attempt::Attempt;
use crate::policy::RoutePolicy;
use crate::pool::TryError;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use mesh_core::body::{Body, BoxError};
use mesh_core::cluster::{
    Cluster, ClusterKey, ClusterSettings, Endpoint, EndpointSpec, Gauge, MAX_REPLAY_BYTES, Registry,
    ServiceName,
};
use mesh_core::facts::{Facts, MatchedRoute, PeerIdentity, Upstream};
use mesh_core::failure::{Failure, FailureCode};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tower::{Layer, ServiceExt};
use tower_test::mock::{self, Handle};

type Mock = Handle<Request<Body>, Response<Body>>;
type Answer = JoinHandle<Result<Response<Body>, BoxError>>;

fn start(layer: &RetryLayer, request: Request<Body>) -> (Answer, Mock) {
    let (inner, handle) = mock::pair();
    (tokio::spawn(layer.layer(inner).oneshot(request)), handle)
}

fn request(method: Method, body: &str) -> Request<Body> {
    Request::builder().method(method).uri("/").body(Body::from(body.to_owned())).unwrap()
}

fn reset() -> Failure {
    Failure::new(FailureCode::UpstreamReset)
}

fn cluster() -> Arc<Cluster> {
    let key = ClusterKey::new("a", 80, "");
    let name = ServiceName::new("a", "a", "default");
    Registry::new().cluster(&key, &name, ClusterSettings::default(), vec![])
}

fn went_to(request: &Request<Body>, port: u16, peer: bool) {
    let spec = EndpointSpec::plaintext(std::net::SocketAddr::from(([127, 0, 0, 1], port)));
    let id = || Arc::new(PeerIdentity::new("spiffe://td/ns/default/sa/a".parse().unwrap()));
    request.extensions().get::<Attempt>().unwrap().set_upstream(Upstream {
        endpoint: Arc::new(Endpoint::new(spec)),
        address: None,
        peer: peer.then(id),
    });
}

#[tokio::test(start_paused = true)]
async fn a_try_that_never_arrived_is_repeated_with_its_body() {
    let mut request = request(Method::POST, "order");
    let facts = Facts::of_or_insert(&mut request);
    let (answer, mut handle) = start(&RetryLayer::default(), request);
    for n in 1..=2 {
        let (request, send) = handle.next_request().await.unwrap();
        assert_eq!(request.headers()[ATTEMPT_COUNT], n.to_string());
        assert_eq!(request.extensions().get::<Attempt>().unwrap().tried().len(), n - 1);
        went_to(&request, n as u16, false);
        assert_eq!(request.into_body().collect().await.unwrap().to_bytes(), "order");
        send.send_error(TryError::unsent(reset()));
    }
    let (request, send) = handle.next_request().await.unwrap();
    went_to(&request, 3, false);
    assert_eq!(request.into_body().collect().await.unwrap().to_bytes(), "order");
    send.send_response(Response::new(Body::from("ok")));
    assert_eq!(answer.await.unwrap().unwrap().into_body().collect().await.unwrap().to_bytes(), "ok");
    assert_eq!(facts.attempts(), 3);
    assert_eq!(facts.upstream().unwrap().endpoint.key().address.to_string(), "127.0.0.1:3");
}

#[tokio::test(start_paused = true)]
async fn attempts_end_and_the_last_error_is_told() {
    let (answer, mut handle) = start(&RetryLayer::default(), request(Method::GET, ""));
    for code in [FailureCode::ConnectFailed, FailureCode::ConnectFailed, FailureCode::UpstreamReset] {
        handle.next_request().await.unwrap().1.send_error(Failure::new(code));
    }
    assert_eq!(Failure::of(answer.await.unwrap().unwrap_err()).code(), FailureCode::UpstreamReset);
}

#[tokio::test(start_paused = true)]
async fn who_reached_nobody_tries_longer_unless_a_number_is_written() {
    let written = RetryPolicy { counted: true, ..RetryPolicy::default() };
    for (policy, tries) in [(RetryPolicy::default(), 1 + UNSENT_ATTEMPTS), (written, 3)] {
        let (answer, mut handle) = start(&RetryLayer::new(policy), request(Method::POST, ""));
        for _ in 0..tries {
            handle.next_request().await.unwrap().1.send_error(Failure::new(FailureCode::ConnectFailed));
        }
        assert_eq!(Failure::of(answer.await.unwrap().unwrap_err()).code(), FailureCode::ConnectFailed);
    }
}

/// A dead endpoint among good ones: everybody who meets it moves on at once, however many they are.
#[tokio::test(start_paused = true)]
async fn what_may_have_arrived_is_not_repeated_for_post() {
    let (answer, mut handle) = start(&RetryLayer::default(), request(Method::POST, ""));
    handle.next_request().await.unwrap().1.send_error(reset());
    assert_eq!(Failure::of(answer.await.unwrap().unwrap_err()).code(), FailureCode::UpstreamReset);
}

#[tokio::test(start_paused = true)]
async fn no_attempts_is_no_retry() {
    let (answer, mut handle) = start(&RetryLayer::new(RetryPolicy::off()), request(Method::GET, "x"));
    let (request, send) = handle.next_request().await.unwrap();
    assert_eq!(request.headers()[ATTEMPT_COUNT], "1");
    send.send_error(TryError::unsent(reset()));
    assert!(answer.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn the_route_decides_before_the_layer() {
    let retry = RetryPolicy {
        retry_on: RetryOn::parse("503").unwrap(),
        explicit: true,
        attempts: 1,
        ..RetryPolicy::default()
    };
    let mut request = request(Method::POST, "");
    Facts::of_or_insert(&mut request).set_route(MatchedRoute {
        resource: None,
        name: "r".into(),
        cluster: None,
        policy: Arc::new(RoutePolicy { retry, ..RoutePolicy::default() }),
    });
    let (answer, mut handle) = start(&RetryLayer::new(RetryPolicy::off()), request);
    for _ in 0..2 {
        let answer = Response::builder().status(503).body(Body::empty()).unwrap();
        handle.next_request().await.unwrap().1.send_response(answer);
    }
    assert_eq!(answer.await.unwrap().unwrap().status(), 503);
}

#[tokio::test(start_paused = true)]
async fn only_a_verified_sidecar_can_say_that_nothing_arrived() {
    for verified in [true, false] {
        let (answer, mut handle) = start(&RetryLayer::default(), request(Method::POST, ""));
        let (request, send) = handle.next_request().await.unwrap();
        went_to(&request, 1, verified);
        send.send_response(Failure::new(FailureCode::Draining).response(false));
        if verified {
            handle.next_request().await.unwrap().1.send_response(Response::new(Body::empty()));
        }
        let status = answer.await.unwrap().unwrap().status();
        assert_eq!(status, if verified { 200 } else { 503 });
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_beyond_the_limit_is_sent_once_and_counted() {
    for (size, again) in [(MAX_REPLAY_BYTES, true), (MAX_REPLAY_BYTES + 1, false)] {
        let layer = RetryLayer::default();
        let (answer, mut handle) = start(&layer, request(Method::PUT, &"x".repeat(size)));
        let (request, send) = handle.next_request().await.unwrap();
        assert_eq!(request.into_body().collect().await.unwrap().to_bytes().len(), size);
        send.send_error(reset());
        if again {
            let (request, send) = handle.next_request().await.unwrap();
            assert_eq!(request.into_body().collect().await.unwrap().to_bytes().len(), size);
            send.send_response(Response::new(Body::empty()));
        }
        assert_eq!(answer.await.unwrap().is_ok(), again);
        assert_eq!(layer.bodies_too_large(), u64::from(!again));
    }
}

#[tokio::test(start_paused = true)]
async fn the_budget_bounds_retries_and_is_held_until_the_body_ends() {
    let cluster = cluster();
    let layer = RetryLayer::default().within(Arc::clone(&cluster));
    let mut bodies = Vec::new();
    for n in 0..4 {
        let (answer, mut handle) = start(&layer, request(Method::GET, ""));
        handle.next_request().await.unwrap().1.send_error(reset());
        if n < 3 {
            handle.next_request().await.unwrap().1.send_response(Response::new(Body::from("x")));
            bodies.push(answer.await.unwrap().unwrap());
            assert_eq!(cluster.in_use(Gauge::Retries), n + 1);
        } else {
            assert!(answer.await.unwrap().is_err());
        }
    }
    assert_eq!(cluster.retry_overflows(), 1);
    drop(bodies);
    assert_eq!(cluster.in_use(Gauge::Retries), 0);
}

#[tokio::test(start_paused = true)]
async fn when_many_fail_at_once_each_waits_for_its_turn() {
    let cluster = cluster();
    let layer = RetryLayer::default().within(Arc::clone(&cluster));
    let mut bodies = Vec::new();
    for _ in 0..3 {
        let (answer, mut handle) = start(&layer, request(Method::GET, ""));
        handle.next_request().await.unwrap().1.send_error(reset());
        handle.next_request().await.unwrap().1.send_response(Response::new(Body::from("x")));
        bodies.push(answer.await.unwrap().unwrap());
    }
    let (answer, mut handle) = start(&layer, request(Method::GET, ""));
    handle.next_request().await.unwrap().1.send_error(reset());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(cluster.in_use(Gauge::Retries), 3);
    drop(bodies.pop());
    handle.next_request().await.unwrap().1.send_response(Response::new(Body::empty()));
    assert!(answer.await.unwrap().is_ok());
    assert_eq!(cluster.retry_overflows(), 0);
}

#[tokio::test(start_paused = true)]
async fn without_a_cluster_the_layer_has_a_budget_of_its_own() {
    let layer = RetryLayer::default();
    let mut bodies = Vec::new();
    for n in 0..4 {
        let (answer, mut handle) = start(&layer, request(Method::GET, ""));
        handle.next_request().await.unwrap().1.send_error(reset());
        if n < 3 {
            handle.next_request().await.unwrap().1.send_response(Response::new(Body::from("x")));
        }
        bodies.push(answer.await.unwrap());
    }
    assert_eq!(bodies.iter().filter(|b| b.is_err()).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn one_try_has_its_own_time_and_pauses_grow() {
    let policy = RetryPolicy { per_try_timeout: Some(Duration::from_secs(1)), ..RetryPolicy::default() };
    let (answer, mut handle) = start(&RetryLayer::new(policy), request(Method::GET, ""));
    let started = Instant::now();
    let mut held = Vec::new();
    for n in 0..3u32 {
        held.push(handle.next_request().await.unwrap());
        let (at, least) = (started.elapsed(), Duration::from_secs(n.into()));
        // Full jitter: at most 25 ms and 75 ms, and the timer's own millisecond each.
        assert!(at >= least && at <= least + Duration::from_millis(104), "{at:?}");
    }
    assert_eq!(Failure::of(answer.await.unwrap().unwrap_err()).code(), FailureCode::Timeout);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_retry_waits_until_the_inner_service_is_ready() {
    let (inner, mut handle) = mock::pair::<Request<Body>, Response<Body>>();
    handle.allow(1);
    let answer = tokio::spawn(RetryLayer::default().layer(inner).oneshot(request(Method::GET, "")));
    handle.next_request().await.unwrap().1.send_error(reset());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!answer.is_finished());
    handle.allow(1);
    handle.next_request().await.unwrap().1.send_response(Response::new(Body::empty()));
    assert!(answer.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_answer_goes_through_untouched() {
    let (answer, mut handle) = start(&RetryLayer::default(), request(Method::GET, ""));
    let response = Response::builder().status(500).body(Body::from("theirs")).unwrap();
    handle.next_request().await.unwrap().1.send_response(response);
    let response = answer.await.unwrap().unwrap();
    assert_eq!(response.status(), 500);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "theirs");
}
