//! The layer: forwards, refuses, gives back what it reserved, follows changes.

use super::*;
use http::Response;
use mesh_core::failure::FailureCode;
use mesh_core::live;
use tower::limit::ConcurrencyLimitLayer;
use tower::{Layer, ServiceExt, service_fn};
use tower_test::mock;

fn refuse_all() -> Rules {
    compile(&[policy("nothing", "{}")])
}

#[tokio::test]
async fn forwards_refuses_and_passes_errors_on() {
    let (publisher, rules) = live::channel(Rules::default());
    let app = service_fn(|r: Request<()>| async move {
        if r.uri() == "/err" { Err("broken") } else { Ok(Response::new(String::from("app"))) }
    });
    let service = AuthorizationLayer::new(rules).layer(app);
    assert_eq!(service.clone().oneshot(get(&web(), "/")).await.unwrap().body(), "app");
    assert_eq!(service.clone().oneshot(get(&web(), "/err")).await.unwrap_err(), "broken");

    publisher.publish(refuse_all());
    let request = get(&web(), "/err");
    let facts = Facts::of(&request).unwrap().clone();
    let response = service.clone().oneshot(request).await.unwrap();
    assert_eq!((response.status(), response.body().as_str()), (http::StatusCode::FORBIDDEN, ""));
    assert_eq!(response.headers()["x-mesh-reason"], "denied");
    assert_eq!(facts.failure().unwrap().code(), FailureCode::Denied);

    let mut call = get(&web(), "/");
    call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let response = service.oneshot(call).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["grpc-status"]),
        (200, &"7".parse().unwrap())
    );
}

#[tokio::test(start_paused = true)]
async fn a_refusal_gives_the_permit_back() {
    let (mock, mut upstream) = mock::pair::<Request<()>, Response<String>>();
    upstream.allow(10);
    let limited = ConcurrencyLimitLayer::new(1).layer(mock);
    let layer = AuthorizationLayer::new(mesh_core::live::Live::fixed(refuse_all()));
    let mut a = mock::Spawn::new(layer.layer(limited));
    let mut b = a.clone();
    assert!(a.poll_ready().is_ready());
    assert!(b.poll_ready().is_pending());
    assert_eq!(a.call(get(&web(), "/")).await.unwrap().status(), 403);
    assert!(b.poll_ready().is_ready());
}

#[tokio::test]
async fn dry_run_is_counted() {
    let mut resource = (*policy("dry", "{}")).clone();
    resource.meta.annotations.insert(DRY_RUN.into(), "true".into());
    let layer = AuthorizationLayer::new(mesh_core::live::Live::fixed(compile(&[Arc::new(resource)])));
    let app = service_fn(|_: Request<()>| async { Ok::<_, ()>(Response::new(String::new())) });
    assert_eq!(layer.layer(app).oneshot(get(&web(), "/")).await.unwrap().status(), 200);
    assert_eq!(layer.dry_run_refusals(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_refused_at_once_or_when_policy_changes() {
    let (publisher, rules) = live::channel(refuse_all());
    assert_eq!(until_refused(rules.clone(), web()).await.code(), FailureCode::Denied);

    publisher.publish(Rules::default());
    let waiting = tokio::spawn(until_refused(rules, web()));
    tokio::task::yield_now().await;
    publisher.publish(one("DENY", r#"{"from": [{"source": {"namespaces": ["other"]}}]}"#));
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    publisher.publish(one("DENY", r#"{"from": [{"source": {"namespaces": ["default"]}}]}"#));
    assert_eq!(waiting.await.unwrap().explanation(), "DENY default/p rule[0] matches");
}
