use super::*;

use std::sync::Arc;

use tower::{ServiceExt, service_fn};

use crate::cluster::{Endpoint, EndpointSpec};
use crate::facts::{Connection, PeerIdentity, Upstream};

/// A body that tests can compare.
#[derive(Debug, Clone, Default, PartialEq)]
struct Text(String);

impl From<Bytes> for Text {
    fn from(bytes: Bytes) -> Self {
        Self(String::from_utf8(bytes.into()).unwrap())
    }
}

fn peer() -> PeerIdentity {
    PeerIdentity::new("spiffe://td/ns/a/sa/b".parse().unwrap())
}

fn upstream(peer: Option<PeerIdentity>) -> Upstream {
    let endpoint = Arc::new(Endpoint::new(EndpointSpec::plaintext("127.0.0.1:1".parse().unwrap())));
    Upstream { endpoint, address: None, peer: peer.map(Arc::new) }
}

fn facts(direction: Direction, caller: Option<PeerIdentity>) -> Facts {
    let connection = Connection::builder().direction(direction);
    Facts::new(match caller {
        Some(p) => connection.peer(p).build(),
        None => connection.build(),
    })
}

async fn answer(facts: &Facts, inner: Result<Response<Text>, Failure>, grpc: bool) -> Response<Text> {
    let mut request = Request::new(());
    facts.clone().insert(&mut request);
    if grpc {
        request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    }
    let inner = service_fn(move |_: Request<()>| std::future::ready(inner.clone()));
    RespondLayer::with_text().layer(inner).oneshot(request).await.unwrap()
}

fn forged() -> Response<Text> {
    Response::builder()
        .status(403)
        .header("x-mesh-reason", "denied")
        .header("x-mesh-detail", "secret")
        .body(Text("app".into()))
        .unwrap()
}

#[tokio::test]
async fn an_application_cannot_forge_a_reason() {
    for caller in [None, Some(peer())] {
        let facts = facts(Direction::Inbound, caller);
        let response = answer(&facts, Ok(forged()), false).await;
        assert_eq!((response.status().as_u16(), response.body().0.as_str()), (403, "app"));
        assert!(response.headers().is_empty(), "{:?}", response.headers());
        assert!(facts.failure().is_none());
    }
}

#[tokio::test]
async fn only_a_verified_sidecar_is_believed_and_its_detail_goes_no_further() {
    for (from, believed) in [(None, false), (Some(peer()), true)] {
        let facts = facts(Direction::Outbound, None);
        facts.set_upstream(upstream(from));
        let response = answer(&facts, Ok(forged()), false).await;
        assert_eq!(response.headers().contains_key("x-mesh-reason"), believed);
        assert!(!response.headers().contains_key("x-mesh-detail"));
        assert_eq!(facts.remote_failure().is_some_and(|f| f.explanation() == "secret"), believed);
    }
}

#[tokio::test]
async fn a_made_up_code_is_removed_even_from_a_sidecar() {
    let facts = facts(Direction::Outbound, None);
    facts.set_upstream(upstream(Some(peer())));
    let mut response = forged();
    response.headers_mut().insert("x-mesh-reason", "nonsense".parse().unwrap());
    assert!(answer(&facts, Ok(response), false).await.headers().is_empty());
}

#[tokio::test]
async fn the_detail_is_for_verified_sidecars() {
    let failure = Failure::new(FailureCode::Denied).detail("DENY default/x rule 0");
    for (caller, told) in [(None, false), (Some(peer()), true)] {
        let facts = facts(Direction::Inbound, caller);
        let response = answer(&facts, Err(failure.clone()), false).await;
        assert_eq!(response.headers().contains_key("x-mesh-detail"), told);
        assert_eq!(response.headers()["x-mesh-reason"], "denied");
        assert_eq!(response.body().0, "RBAC: access denied");
        assert_eq!(facts.failure().unwrap().code(), FailureCode::Denied);
    }
}

#[tokio::test]
async fn a_layers_own_refusal_and_an_error_are_told_alike() {
    let failure = Failure::new(FailureCode::Denied);
    let refused = answer(&facts(Direction::Inbound, None), Ok(failure.response(false)), false).await;
    let failed = answer(&facts(Direction::Inbound, None), Err(failure), false).await;
    assert_eq!(refused.body(), failed.body());
    assert_eq!(refused.headers(), failed.headers());
}

#[tokio::test]
async fn a_grpc_caller_gets_a_grpc_status_and_no_body() {
    let facts = facts(Direction::Inbound, None);
    let response = answer(&facts, Err(Failure::new(FailureCode::Denied)), true).await;
    assert_eq!((response.status().as_u16(), response.body().0.as_str()), (200, ""));
    assert_eq!(response.headers()["grpc-status"], "7");
}

#[tokio::test]
async fn a_direct_response_keeps_its_body_and_status() {
    let mut direct = Failure::new(FailureCode::DirectResponse).response::<Text>(false);
    direct.headers_mut().remove("x-mesh-reason");
    *direct.body_mut() = Text("hello".into());
    let response = answer(&facts(Direction::Outbound, None), Ok(direct), false).await;
    assert_eq!(response.body().0, "hello");
}

#[tokio::test]
async fn a_request_cannot_carry_a_reason() {
    let mut request = Request::new(());
    request.headers_mut().insert("x-mesh-reason", "denied".parse().unwrap());
    request.headers_mut().insert("x-mesh-detail", "x".parse().unwrap());
    let inner = service_fn(|r: Request<()>| async move {
        assert!(r.headers().is_empty());
        Ok::<_, Failure>(Response::new(Text::default()))
    });
    RespondLayer::<Text>::new().layer(inner).oneshot(request).await.unwrap();
}

#[tokio::test]
async fn headers_beyond_the_limit_are_refused() {
    let inner = service_fn(|_: Request<()>| async { Ok::<_, Failure>(Response::new(Text::default())) });
    for (bytes, status) in [(MAX_HEADER_BYTES - 100, 200), (MAX_HEADER_BYTES, 431)] {
        let service = RespondLayer::<Text>::with_text().layer(inner);
        let request = Request::get("/").header("x-large", "a".repeat(bytes)).body(()).unwrap();
        let response = service.oneshot(request).await.unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(response.headers().contains_key("x-mesh-reason"), status == 431);
    }
    let service = RespondLayer::<Text>::with_text().max_header_bytes(5).layer(inner);
    let request = Request::get("/123456").body(()).unwrap();
    assert_eq!(service.oneshot(request).await.unwrap().headers()["x-mesh-reason"], "too_large");
}
