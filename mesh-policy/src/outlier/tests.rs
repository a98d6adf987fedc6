use super::*;
use http::{Request, Response, StatusCode};
use mesh_core::cluster::{
    Cluster, ClusterKey, ClusterSettings, Dispatch, Endpoint, EndpointSpec, Expect, Outcome, OutlierSettings,
    Registry, ServiceName, TryDeadline,
};
use mesh_core::facts::Facts;
use mesh_core::failure::{Failure, FailureCode};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, advance};
use tower::{Layer, Service, ServiceExt, service_fn};

const S: fn(u64) -> Duration = Duration::from_secs;
const E500: Outcome = Outcome::Status(StatusCode::INTERNAL_SERVER_ERROR);
const E503: Outcome = Outcome::Status(StatusCode::SERVICE_UNAVAILABLE);
const OK: Outcome = Outcome::Status(StatusCode::OK);

fn settings() -> OutlierSettings {
    OutlierSettings { consecutive_5xx: 3, ..OutlierSettings::default() }
}

fn cluster_of(specs: Vec<EndpointSpec>, outlier: OutlierSettings) -> Arc<Cluster> {
    let service = ServiceName::new("a.default.svc.cluster.local", "a", "default");
    let settings = ClusterSettings { outlier: Some(outlier), ..ClusterSettings::default() };
    Registry::new().cluster(&ClusterKey::new(&service.host, 80, ""), &service, settings, specs)
}

fn cluster(endpoints: u16, outlier: OutlierSettings) -> Arc<Cluster> {
    let spec = |n| EndpointSpec::plaintext(format!("10.0.0.1:{}", 1000 + n).parse().unwrap());
    cluster_of((0..endpoints).map(spec).collect(), outlier)
}

fn endpoint(cluster: &Cluster, index: usize) -> Arc<Endpoint> {
    Arc::clone(&cluster.load_endpoints().members()[index])
}

fn fail(cluster: &Cluster, index: usize, outcome: Outcome, times: u32) {
    for _ in 0..times {
        observe(cluster, &endpoint(cluster, index), outcome, Instant::now());
    }
}

fn ejected(cluster: &Cluster, index: usize) -> bool {
    endpoint(cluster, index).state().is_ejected(Instant::now())
}

#[test]
fn verdicts() {
    let plain = OutlierSettings::default();
    let split = OutlierSettings { split_local: true, ..plain.clone() };
    let custom = OutlierSettings { error_codes: vec![404, 429, 503], ..plain.clone() };
    let status = |n| Outcome::Status(StatusCode::from_u16(n).unwrap());
    let table = [
        (&plain, status(200), Verdict::Success),
        (&plain, status(404), Verdict::Success),
        (&plain, status(429), Verdict::Neutral),
        (&plain, status(500), Verdict::Error),
        (&plain, status(502), Verdict::Gateway),
        (&plain, status(504), Verdict::Gateway),
        (&plain, Outcome::Failed(FailureCode::ConnectFailed), Verdict::Gateway),
        (&plain, Outcome::Failed(FailureCode::Timeout), Verdict::Gateway),
        (&plain, Outcome::Failed(FailureCode::Overflow), Verdict::Neutral),
        (&plain, Outcome::Failed(FailureCode::DownstreamClosed), Verdict::Neutral),
        (&plain, Outcome::Failed(FailureCode::Denied), Verdict::Neutral),
        (&split, status(503), Verdict::Gateway),
        (&split, Outcome::Failed(FailureCode::TlsFailed), Verdict::Local),
        (&split, Outcome::Failed(FailureCode::Overflow), Verdict::Neutral),
        (&custom, status(404), Verdict::Error),
        (&custom, status(429), Verdict::Error),
        (&custom, status(500), Verdict::Success),
        (&custom, status(502), Verdict::GatewayOnly),
        (&custom, status(503), Verdict::Gateway),
    ];
    for (settings, outcome, want) in table {
        assert_eq!(classify(outcome, settings), want, "{outcome:?}");
    }
}

#[test]
fn decisions() {
    let s = OutlierSettings { consecutive_5xx: 5, ..OutlierSettings::default() };
    let at = |errors, endpoints, gone, ejections, healthy| Counts {
        consecutive_5xx: errors,
        endpoints,
        ejected: gone,
        ejections,
        healthy_for: S(healthy),
        ..Counts::default()
    };
    // counts, how long
    let table = [
        (at(4, 10, 0, 0, 0), None),
        (at(5, 10, 0, 0, 0), Some(30)),
        (at(5, 1, 0, 0, 0), Some(30)),
        // 10% of 10 is one, of 19 is one, of 20 is two.
        (at(5, 10, 1, 0, 0), None),
        (at(5, 19, 1, 0, 0), None),
        (at(5, 20, 1, 0, 0), Some(30)),
        // Third in a row, with no interval between; then healed step by step.
        (at(5, 10, 0, 2, 9), Some(90)),
        (at(5, 10, 0, 2, 10), Some(60)),
        (at(5, 10, 0, 2, 29), Some(30)),
        (at(5, 10, 0, 99, 0), Some(300)),
        (at(5, 10, 0, u32::MAX, 0), Some(300)),
    ];
    for (counts, want) in table {
        assert_eq!(decide(&counts, &s).map(|e| e.duration), want.map(S), "{counts:?}");
    }
    let long = OutlierSettings { base_ejection: S(1000), ..s.clone() };
    assert_eq!(decide(&at(5, 1, 0, 3, 0), &long).unwrap().duration, S(1000));
    let none = OutlierSettings { max_ejection_percent: 0, ..s.clone() };
    assert!(decide(&at(5, 9, 0, 0, 0), &none).is_some(), "one may always go");
    let all = OutlierSettings { max_ejection_percent: 100, ..s };
    assert!(decide(&at(5, 3, 2, 0, 0), &all).is_some());
    assert!(decide(&at(5, 3, 3, 0, 0), &all).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_row_of_errors_ejects_and_time_brings_back() {
    let c = cluster(3, settings());
    fail(&c, 0, E500, 2);
    observe(&c, &endpoint(&c, 0), OK, Instant::now());
    fail(&c, 0, E500, 2);
    assert!(!ejected(&c, 0), "a success resets");
    fail(&c, 0, E500, 1);
    assert!(ejected(&c, 0) && !ejected(&c, 1));
    assert_eq!(c.ejections(), 1);
    advance(S(29)).await;
    assert!(ejected(&c, 0));
    advance(S(2)).await;
    assert!(!ejected(&c, 0));
}

#[tokio::test(start_paused = true)]
async fn what_comes_late_does_not_count_after_the_return() {
    let c = cluster(1, settings());
    fail(&c, 0, E500, 3);
    fail(&c, 0, E500, 2);
    advance(S(31)).await;
    fail(&c, 0, E500, 2);
    assert!(!ejected(&c, 0), "the row begins anew");
    fail(&c, 0, E500, 1);
    assert!(ejected(&c, 0));
}

#[tokio::test(start_paused = true)]
async fn each_ejection_in_a_row_is_longer_and_health_takes_it_back() {
    let c = cluster(1, settings());
    let until = |c: &Cluster| {
        endpoint(c, 0).state().ejected_until().unwrap().saturating_duration_since(Instant::now()).as_millis()
    };
    // Times are kept in whole milliseconds.
    let near = |got: u128, seconds: u128| got.abs_diff(seconds * 1000) <= 1;
    for want in [30, 60, 90] {
        fail(&c, 0, E500, 3);
        assert!(near(until(&c), want), "{want}");
        advance(S(want as u64) + Duration::from_millis(1)).await;
    }
    advance(S(20)).await;
    fail(&c, 0, E500, 3);
    assert!(near(until(&c), 60), "two healthy intervals took two steps back");
}

#[tokio::test(start_paused = true)]
async fn no_more_than_the_share_but_always_one() {
    let c = cluster(3, settings());
    for index in 0..3 {
        fail(&c, index, E500, 3);
    }
    assert_eq!(c.load_endpoints().ejected(Instant::now()), 1);
    let half = cluster(4, OutlierSettings { max_ejection_percent: 50, ..settings() });
    for index in 0..4 {
        fail(&half, index, E500, 3);
    }
    assert_eq!(half.load_endpoints().ejected(Instant::now()), 2);
}

#[tokio::test(start_paused = true)]
async fn gateway_and_local_rows() {
    let gateway = OutlierSettings { consecutive_5xx: 0, consecutive_gateway: 2, ..settings() };
    let c = cluster(1, gateway);
    fail(&c, 0, E500, 9);
    fail(&c, 0, E503, 1);
    fail(&c, 0, E500, 1);
    fail(&c, 0, E503, 1);
    assert!(!ejected(&c, 0), "a 500 breaks the row of gateway errors");
    fail(&c, 0, Outcome::Failed(FailureCode::ConnectFailed), 1);
    assert!(ejected(&c, 0));

    let split = OutlierSettings { split_local: true, consecutive_local: 2, ..settings() };
    let c = cluster(1, split);
    fail(&c, 0, Outcome::Failed(FailureCode::ConnectFailed), 1);
    fail(&c, 0, E500, 1);
    fail(&c, 0, Outcome::Failed(FailureCode::Timeout), 1);
    assert!(!ejected(&c, 0), "an answer shows that the way is open");
    fail(&c, 0, Outcome::Failed(FailureCode::Timeout), 1);
    assert!(ejected(&c, 0));
}

#[tokio::test(start_paused = true)]
async fn without_settings_nothing_is_ejected() {
    let service = ServiceName::new("a", "a", "default");
    let specs = vec![EndpointSpec::plaintext("10.0.0.1:1".parse().unwrap())];
    let c =
        Registry::new().cluster(&ClusterKey::new("a", 80, ""), &service, ClusterSettings::default(), specs);
    fail(&c, 0, E500, 100);
    assert!(!ejected(&c, 0));
}

fn dispatch(cluster: &Arc<Cluster>) -> Dispatch<()> {
    let mut request = Request::new(());
    Facts::default().insert(&mut request);
    Dispatch { cluster: Arc::clone(cluster), endpoint: endpoint(cluster, 0), request }
}

async fn answer(cluster: &Arc<Cluster>, build: &dyn Fn() -> Result<Response<()>, Failure>) {
    let service = OutlierLayer::new().layer(service_fn(|_: Dispatch<()>| std::future::ready(build())));
    for _ in 0..3 {
        let _ = service.clone().oneshot(dispatch(cluster)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_layer_reads_answers_and_errors() {
    let with = |status: u16, headers: &'static [(&'static str, &'static str)]| {
        move || {
            let mut r = Response::builder().status(status);
            for (name, value) in headers {
                r = r.header(*name, *value);
            }
            Ok(r.body(()).unwrap())
        }
    };
    const GRPC: (&str, &str) = ("content-type", "application/grpc");
    let plain = || cluster(1, settings());
    let mutual = || {
        let spec =
            EndpointSpec::plaintext("10.0.0.1:1".parse().unwrap()).mutual("x", Expect::AnyInTrustDomain);
        cluster_of(vec![spec], settings())
    };
    let run = async |c: Arc<Cluster>, f: &dyn Fn() -> Result<Response<()>, Failure>| {
        answer(&c, f).await;
        ejected(&c, 0)
    };
    assert!(run(plain(), &with(503, &[])).await);
    assert!(!run(plain(), &with(200, &[])).await);
    assert!(!run(plain(), &with(429, &[])).await);
    assert!(run(plain(), &|| Err(FailureCode::ConnectFailed.into())).await);
    assert!(!run(plain(), &|| Err(FailureCode::Overflow.into())).await);
    // The endpoint's own sidecar: a refusal is none of the application's doing, a dead application is.
    assert!(!run(mutual(), &with(403, &[("x-mesh-reason", "denied")])).await);
    assert!(!run(mutual(), &with(503, &[("x-mesh-reason", "overflow")])).await);
    assert!(run(mutual(), &with(503, &[("x-mesh-reason", "connect_failed")])).await);
    assert!(run(mutual(), &with(503, &[("x-mesh-reason", "draining")])).await);
    // Without a verified sidecar nobody can excuse itself.
    assert!(run(plain(), &with(503, &[("x-mesh-reason", "overflow")])).await);
    assert!(run(plain(), &with(200, &[GRPC, ("grpc-status", "14")])).await);
    assert!(!run(plain(), &with(200, &[GRPC, ("grpc-status", "8")])).await);
    assert!(!run(plain(), &with(200, &[GRPC, ("grpc-status", "5")])).await);
    assert!(!run(plain(), &with(200, &[("grpc-status", "14")])).await);
}

#[tokio::test(start_paused = true)]
async fn a_route_that_times_out_counts_and_a_caller_that_leaves_does_not() {
    for (code, counted) in
        [(Some(FailureCode::Timeout), true), (Some(FailureCode::DownstreamClosed), false), (None, false)]
    {
        let c = cluster(1, settings());
        let hanging = service_fn(|_: Dispatch<()>| std::future::pending::<Result<Response<()>, Failure>>());
        let mut service = OutlierLayer::new().layer(hanging);
        for _ in 0..3 {
            let dispatch = dispatch(&c);
            let facts = Facts::of(&dispatch.request).unwrap().clone();
            let call = service.call(dispatch);
            if let Some(code) = code {
                facts.set_failure(code.into());
            }
            drop(call);
        }
        assert_eq!(ejected(&c, 0), counted, "{code:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_try_that_is_abandoned_at_its_deadline_counts() {
    for (waited, counted) in [(S(1), false), (S(2), true)] {
        let c = cluster(1, OutlierSettings { consecutive_5xx: 1, ..settings() });
        let hanging = service_fn(|_: Dispatch<()>| std::future::pending::<Result<Response<()>, Failure>>());
        let mut dispatch = dispatch(&c);
        dispatch.request.extensions_mut().insert(TryDeadline(Instant::now() + S(2)));
        let call = OutlierLayer::new().layer(hanging).call(dispatch);
        advance(waited).await;
        drop(call);
        assert_eq!(ejected(&c, 0), counted, "after {waited:?}");
    }
}

#[tokio::test]
async fn readiness_passes_through() {
    let (mock, mut handle) = tower_test::mock::pair::<Dispatch<()>, Response<()>>();
    let mut service = tower_test::mock::Spawn::new(OutlierLayer::new().layer(mock));
    handle.allow(0);
    assert!(service.poll_ready().is_pending());
    handle.allow(1);
    assert!(service.poll_ready().is_ready());
    handle.send_error("broken");
    let std::task::Poll::Ready(Err(failure)) = service.poll_ready() else { panic!() };
    assert_eq!(failure.code(), FailureCode::Internal);
}
