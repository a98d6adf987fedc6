//! What a server does not bear.

use std::net::SocketAddr;

use futures_util::stream;
use tonic::{Code, Status};
use tower_mesh_xds::ResourceType::{Endpoints, Host};
use tower_mesh_xds::proto::discovery::DeltaDiscoveryRequest;
use tower_mesh_xds::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tower_mesh_xds::server::ServerLimits;

use tower_mesh_xds::MAX_RESOURCE_BYTES;
use tower_mesh_xds::client::{Client, ClientLimits};

use crate::world::{PATIENCE, Proxy, World, dial, host, peer, quick, until};

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
    // A message that is too large is not even read.
    let status = end_of(address, subscribe(vec!["a".repeat(5000)])).await;
    assert_eq!(status.code(), Code::OutOfRange, "{status}");

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
    let client = Client::new("n", quick());
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

#[tokio::test]
async fn a_connection_has_so_many_requests_at_a_time() {
    let world = World::new(ServerLimits { connection_requests: 1, ..ServerLimits::default() });
    let channel = dial(world.listen(Some(peer())).await).await.unwrap();
    let silent = || stream::pending::<DeltaDiscoveryRequest>();
    let (requests, mut outgoing) = tokio::sync::mpsc::channel(1);
    let outgoing = stream::poll_fn(move |cx| outgoing.poll_recv(cx));
    let mut client = AggregatedDiscoveryServiceClient::new(channel.clone());
    let first = client.delta_aggregated_resources(outgoing).await.unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let second = tokio::spawn(async move { client.delta_aggregated_resources(silent()).await.is_ok() });
    // A stranger's connection is another's.
    let other = Proxy::run(world.listen(Some(peer())).await);
    assert!(!other.exists(Host, "a").await);
    assert!(!second.is_finished());
    assert_eq!(world.discovery.counters().read().opened, 2);
    // Both directions end, and with them the request.
    drop::<tokio::sync::mpsc::Sender<DeltaDiscoveryRequest>>(requests);
    drop(first);
    assert!(tokio::time::timeout(PATIENCE, second).await.unwrap().unwrap());
}

#[tokio::test]
async fn a_response_that_is_too_large_is_not_taken() {
    let world = World::new(ServerLimits::default());
    world.set(Host, "a", host("a", 5000));
    let client = Client::new("n", ClientLimits { response_bytes: 4000, ..quick() });
    let proxy = Proxy::run_client(client.clone(), world.listen(Some(peer())).await);
    let call = tokio::spawn(async move { client.subscribe(Host, "a").await });
    until("another try", || proxy.client.counters().read().connected >= 2).await;
    assert_eq!(proxy.client.counters().read().resources, 0);
    assert!(proxy.told.all().is_empty());
    // It is smaller now.
    world.set(Host, "a", host("a", 1));
    assert!(call.await.unwrap().unwrap().exists());
}

/// Whatever a server may send, a client takes.
#[test]
fn the_limits_of_both_sides_fit() {
    let (server, client) = (ServerLimits::default(), ClientLimits::default());
    let names = server.response_items * (tower_mesh_xds::MAX_NAME_BYTES + 8);
    assert!(MAX_RESOURCE_BYTES + server.response_bytes + names < client.response_bytes);
    assert!(client.subscriptions <= server.subscriptions);
}
