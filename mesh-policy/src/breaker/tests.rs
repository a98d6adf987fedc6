use super::*;
use http_body_util::{BodyExt, Full};
use mesh_core::cluster::{ClusterKey, ClusterSettings, Limits, Registry, ServiceName};
use mesh_core::facts::MatchedRoute;
use tower::ServiceExt;
use tower::limit::ConcurrencyLimitLayer;
use tower::service_fn;
use tower_test::mock;

type Answer = Full<bytes::Bytes>;

fn settings(requests: u32) -> ClusterSettings {
    ClusterSettings { limits: Limits { requests, ..Limits::default() }, ..ClusterSettings::default() }
}

fn cluster(registry: &Registry, requests: u32) -> Arc<Cluster> {
    let service = ServiceName::new("a.default.svc.cluster.local", "a", "default");
    registry.cluster(&ClusterKey::new(&service.host, 80, ""), &service, settings(requests), vec![])
}

fn routed(cluster: Option<Arc<Cluster>>) -> Request<()> {
    let mut request = Request::new(());
    let facts = Facts::of_or_insert(&mut request);
    facts.set_route(MatchedRoute { resource: None, name: "default".into(), cluster, policy: Arc::new(()) });
    request
}

fn app() -> impl Service<
    Request<()>,
    Response = Response<Answer>,
    Error = Failure,
    Future: Future<Output = Result<Response<Answer>, Failure>>,
> + Clone {
    service_fn(|_| async { Ok(Response::new(Full::from("hello"))) })
}

#[tokio::test]
async fn the_permit_lives_as_long_as_the_body() {
    let registry = Registry::new();
    let c = cluster(&registry, 5);
    let service = CircuitBreakerLayer::new().layer(app());

    let response = service.clone().oneshot(routed(Some(c.clone()))).await.unwrap();
    assert_eq!(c.in_use(Gauge::Requests), 1);
    let mut body = response.into_body();
    while body.frame().await.is_some() {
        assert_eq!(c.in_use(Gauge::Requests), 1, "not over before the end is seen");
    }
    assert_eq!(c.in_use(Gauge::Requests), 0, "over with the end, though the body still stands");
    drop(body);

    let response = service.oneshot(routed(Some(c.clone()))).await.unwrap();
    assert_eq!(c.in_use(Gauge::Requests), 1);
    drop(response);
    assert_eq!(c.in_use(Gauge::Requests), 0);
}

#[tokio::test]
async fn overflow_names_the_limit_and_counts() {
    let registry = Registry::new();
    let c = cluster(&registry, 1);
    let service = CircuitBreakerLayer::for_cluster(c.clone()).layer(app());
    let held = service.clone().oneshot(Request::new(())).await.unwrap();
    assert_eq!(State::of(&c), State::Open);
    let failure = service.clone().oneshot(Request::new(())).await.unwrap_err();
    assert_eq!(failure.code(), FailureCode::Overflow);
    assert!(failure.explanation().contains("http2MaxRequests"), "{failure}");
    assert_eq!(c.overflows(), 1);

    // A new limit is in force with the next request, and knows those in flight.
    cluster(&registry, 2);
    let second = service.clone().oneshot(Request::new(())).await.unwrap();
    assert!(service.oneshot(Request::new(())).await.is_err());
    drop((held, second));
    assert_eq!((State::of(&c), c.in_use(Gauge::Requests)), (State::Closed, 0));
}

#[tokio::test]
async fn errors_and_abandoned_calls_give_the_permit_back() {
    let c = cluster(&Registry::new(), 1);
    let layer = CircuitBreakerLayer::for_cluster(c.clone());
    let failing = service_fn(|_: Request<()>| async {
        Err::<Response<Answer>, _>(Failure::new(FailureCode::ConnectFailed))
    });
    let failure = layer.layer(failing).oneshot(Request::new(())).await.unwrap_err();
    assert_eq!((failure.code(), c.in_use(Gauge::Requests)), (FailureCode::ConnectFailed, 0));

    let hanging = service_fn(|_: Request<()>| std::future::pending::<Result<Response<Answer>, Failure>>());
    let call = layer.layer(hanging).call(Request::new(()));
    assert_eq!(c.in_use(Gauge::Requests), 1);
    drop(call);
    assert_eq!(c.in_use(Gauge::Requests), 0);
}

#[tokio::test]
async fn without_a_cluster_there_is_no_limit() {
    let service = CircuitBreakerLayer::new().layer(app());
    assert!(service.clone().oneshot(Request::new(())).await.is_ok());
    assert!(service.oneshot(routed(None)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_gives_the_reservation_back() {
    let c = cluster(&Registry::new(), 0);
    let (mock, mut upstream) = mock::pair::<Request<()>, Response<Answer>>();
    upstream.allow(10);
    let limited = ConcurrencyLimitLayer::new(1).layer(mock);
    let mut a = mock::Spawn::new(CircuitBreakerLayer::for_cluster(c).layer(limited));
    let mut b = a.clone();
    assert!(a.poll_ready().is_ready());
    assert!(b.poll_ready().is_pending());
    assert_eq!(a.call(Request::new(())).await.unwrap_err().code(), FailureCode::Overflow);
    assert!(b.poll_ready().is_ready());
}
