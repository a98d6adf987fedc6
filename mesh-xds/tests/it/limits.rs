//! What a server does not bear.

use std::net::SocketAddr;

use futures_util::stream;
use tonic::{Code, Status};
use tower_mesh_xds::ResourceType::{Endpoints, Host};
use tower_mesh_xds::proto::discovery::DeltaDiscoveryRequest;
use tower_mesh_xds::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tower_mesh_xds::server::ServerLimits;

use crate::world::{Proxy, World, dial, peer, until};

fn subscribe(names: Vec<String>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: Host.url().into(),
        resource_names_subscribe: names,
        ..Default::default()
    }
}

/// Sends one request and waits for the end of the stream.
async fn end_of(address: SocketAddr, request: DeltaDiscoveryRequest) -> Status {
    let mut client = AggregatedDiscoveryServiceClient::new(dial(address).await.unwrap());
    // The stream stays open on this side.
    let requests = stream::unfold(Some(request), |next| async move {
        match next {
            Some(request) => Some((request, None)),
            None => std::future::pending().await,
        }
    });
    let mut responses = match client.delta_aggregated_resources(requests).await {
        Ok(responses) => responses.into_inner(),
        Err(status) => return status,
    };
    loop {
        match responses.message().await {
            Ok(Some(_)) => {}
            Ok(None) => return Status::ok(""),
            Err(status) => return status,
        }
    }
}

#[tokio::test]
async fn nobody_without_an_identity() {
    let world = World::new(ServerLimits::default());
    let status = end_of(world.listen(None).await, subscribe(vec!["a".into()])).await;
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(world.discovery.counters().read().unauthenticated, 1);
}

#[tokio::test]
async fn a_violation_closes_its_stream_and_no_other() {
    let limits = ServerLimits { subscriptions: 3, request_bytes: 4096, ..ServerLimits::default() };
    let world = World::new(limits);
    let address = world.listen(Some(peer())).await;
    let proxy = Proxy::run(address);
    assert!(!proxy.exists(Host, "a").await);

    let foreign = DeltaDiscoveryRequest { type_url: "x".into(), ..Default::default() };
    let many = (0..4).map(|i| format!("n{i}")).collect();
    for (request, code, said) in [
        (subscribe(vec!["*".into()]), Code::InvalidArgument, "no wildcard"),
        (subscribe(Vec::new()), Code::InvalidArgument, "no wildcard"),
        (foreign, Code::InvalidArgument, "not served"),
        (subscribe(vec!["A".into()]), Code::InvalidArgument, "names no Host"),
        (subscribe(vec!["a".repeat(321)]), Code::InvalidArgument, "longer than 320"),
        (subscribe(many), Code::InvalidArgument, "more than 3 subscriptions"),
    ] {
        let status = end_of(address, request).await;
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(said), "{status}");
    }
    assert_eq!(world.discovery.counters().read().violations, 6);
    // A message that is too large is not even read; gRPC ends the stream.
    let _ = end_of(address, subscribe(vec!["a".repeat(5000)])).await;

    until("the streams' end", || world.discovery.proxies().len() == 1).await;
    assert!(!proxy.exists(Endpoints, "a").await);
    assert_eq!(world.discovery.counters().read().streams, 1);
}

#[tokio::test]
async fn streams_are_limited() {
    let world = World::new(ServerLimits { streams: 1, ..ServerLimits::default() });
    let address = world.listen(Some(peer())).await;
    let proxy = Proxy::run(address);
    assert!(!proxy.exists(Host, "a").await);
    let status = end_of(address, subscribe(vec!["a".into()])).await;
    assert_eq!(
        (status.code(), world.discovery.counters().read().refused_streams),
        (Code::ResourceExhausted, 1)
    );
}

#[tokio::test]
async fn a_stream_that_is_gone_leaves_nothing_behind() {
    let world = World::new(ServerLimits::default());
    let address = world.listen(Some(peer())).await;
    let client = tower_mesh_xds::client::Client::new("n", crate::world::quick());
    let runner = client.clone();
    let run = tokio::spawn(async move {
        runner.run(|| dial(address), |_: &[_]| Vec::new()).await;
    });
    assert!(!client.subscribe(Host, "a").await.unwrap().exists());
    let notifier = world.discovery.notifier();
    assert!(notifier.is_subscribed(Host, "a"));
    run.abort();
    until("the end", || world.discovery.proxies().is_empty()).await;
    assert!(!notifier.is_subscribed(Host, "a"));
}
