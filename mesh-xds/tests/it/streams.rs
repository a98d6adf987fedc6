//! What travels over a stream.

use std::time::Duration;

use tower_mesh_xds::ResourceType::{Endpoints, Host};
use tower_mesh_xds::client::Unavailable;
use tower_mesh_xds::proto::discovery::DeltaDiscoveryRequest;
use tower_mesh_xds::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tower_mesh_xds::server::ServerLimits;

use crate::world::{Proxy, World, dial, host, peer, until};

#[tokio::test]
async fn a_first_call_asks_and_changes_follow() {
    let world = World::new(ServerLimits::default());
    world.set(Host, "a", host("a", 1));
    let proxy = Proxy::run(world.listen(Some(peer())).await);
    assert!(proxy.exists(Host, "a").await);
    assert!(!proxy.exists(Host, "nobody").await);
    assert!(!proxy.exists(Endpoints, "a").await);
    assert_eq!(proxy.told.wait(3).await, ["a", "-nobody", "-a"]);

    world.set(Host, "nobody", host("nobody", 1));
    proxy.told.wait(4).await;
    assert!(proxy.exists(Host, "nobody").await);
    world.set(Host, "a", host("a", 2));
    proxy.told.wait(5).await;
    world.unset(Host, "a");
    assert_eq!(proxy.told.wait(6).await[3..], ["nobody", "a", "-a"]);

    // What nobody asks for goes to nobody.
    world.set(Host, "b", host("b", 1));
    world.set(Host, "a", host("a", 3));
    assert_eq!(proxy.told.wait(7).await[6..], ["a"]);

    let synced = || world.discovery.proxies()[0].types.iter().all(|of| of.is_synced());
    until("the last acknowledgement", synced).await;
    let status = world.discovery.proxies().remove(0);
    assert_eq!(status.identity, peer().identity);
    assert_eq!(status.workload, peer().workload);
    assert!(status.node.unwrap().ends_with("default/web-1"));
    let names: Vec<_> = status.types.iter().map(|of| (of.kind, of.names.len())).collect();
    assert_eq!(names, [(Host, 2), (Endpoints, 1)]);
    let counts = world.discovery.counters().read();
    assert_eq!((counts.streams, counts.resources, counts.removals), (1, 4, 3));
    assert_eq!((counts.acks, counts.nacks, counts.stale), (counts.responses, 0, 0));
}

#[tokio::test]
async fn what_is_wanted_is_told_without_anybody_waiting() {
    let world = World::new(ServerLimits::default());
    world.set(Host, "a", host("a", 1));
    world.set(Host, "b", host("bad", 1));
    let proxy = Proxy::run(world.listen(Some(peer())).await);
    let client = &proxy.client;
    assert_eq!((client.exists(Host, "a"), client.last_error()), (None, None));
    assert!(matches!(client.want(Host, "*"), Err(Unavailable::Name(_))));
    client.touch(Host, "a"); // no subscription: nothing happens
    for name in ["a", "b", "nobody"] {
        client.want(Host, name).unwrap();
    }
    until("the answers", || client.exists(Host, "nobody").is_some() && client.exists(Host, "a").is_some())
        .await;
    assert_eq!((client.exists(Host, "a"), client.exists(Host, "nobody")), (Some(true), Some(false)));
    until("the refusal", || client.verdicts().iter().any(|of| of.last_nack.is_some())).await;
    assert_eq!(client.exists(Host, "b"), None, "what was refused is not known");
    let verdict = client.verdicts().remove(0);
    assert!(verdict.kind == Host && verdict.last_nack.unwrap().1.contains("Host b: it is bad"));

    world.discovery.close();
    until("the end", || client.last_error().is_some()).await;
    assert!(client.last_error().unwrap().contains("another replica"), "{:?}", client.last_error());
}

#[tokio::test]
async fn a_refusal_reaches_the_server_with_its_reason() {
    let world = World::new(ServerLimits::default());
    world.set(Host, "a", host("a", 1));
    world.set(Host, "b", host("bad", 1));
    let proxy = Proxy::run(world.listen(Some(peer())).await);
    assert!(proxy.exists(Host, "a").await);
    let good = proxy.client.subscriptions();
    world.set(Host, "a", host("bad", 1));
    let nack = || world.discovery.proxies()[0].types[0].last_nack.clone();
    until("the refusal", || nack().is_some()).await;
    assert_eq!(nack().unwrap().reason, "Host a: it is bad");
    assert_eq!(proxy.client.subscriptions(), good, "the last good one stays");
    assert!(proxy.exists(Host, "a").await);

    // Without a good one the first call learns it, and so does the next.
    for _ in 0..2 {
        let refused = proxy.client.subscribe(Host, "b").await.unwrap_err();
        assert_eq!(refused, Unavailable::Refused("it is bad".into()));
    }
    world.set(Host, "b", host("good", 1));
    until("the good one", || proxy.client.subscriptions()[1].version.is_some()).await;
    assert!(proxy.exists(Host, "b").await);
}

/// One that asks and never reads costs the server some names, and nobody else anything.
#[tokio::test]
async fn a_slow_reader_holds_nobody_up() {
    const CHANGES: usize = 50;
    const SIZE: usize = 200_000;
    let world = World::new(ServerLimits::default());
    let address = world.listen(Some(peer())).await;
    let names: Vec<String> = (0..20).map(|i| format!("n{i}")).collect();
    for name in &names {
        world.set(Host, name, host(name, SIZE));
    }

    let (requests, mut outgoing) = tokio::sync::mpsc::channel(8);
    let outgoing = futures_util::stream::poll_fn(move |cx| outgoing.poll_recv(cx));
    let mut slow = AggregatedDiscoveryServiceClient::new(dial(address).await.unwrap());
    let subscribe = DeltaDiscoveryRequest {
        type_url: Host.url().into(),
        resource_names_subscribe: names.clone(),
        ..Default::default()
    };
    requests.send(subscribe).await.unwrap();
    let mut unread = slow.delta_aggregated_resources(outgoing).await.unwrap().into_inner();
    until("the slow one's subscriptions", || {
        world.discovery.proxies().iter().any(|proxy| proxy.types.iter().any(|of| of.names.len() == 20))
    })
    .await;

    let quick = Proxy::run(address);
    for name in &names {
        assert!(quick.exists(Host, name).await);
    }
    let before = world.discovery.counters().read().bytes;
    for i in 0..CHANGES {
        world.set(Host, "n0", host(&format!("v{i}"), SIZE));
        quick.told.wait(names.len() + 1 + i).await;
    }
    // Each change was made for the quick one, none for the slow one.
    let sent = world.discovery.counters().read().bytes - before;
    assert!(sent < ((CHANGES + 3) * (SIZE + 1000)) as u64, "{sent}");
    let status = world.discovery.proxies();
    let behind = &status.iter().find(|proxy| proxy.node.is_none()).unwrap().types[0];
    assert!(behind.waiting <= 20 && behind.in_flight.is_some(), "names wait, each once");

    // It wakes up, and is brought to the last state.
    let mut last = Vec::new();
    while !last.iter().any(|body: &bytes::Bytes| contains(body, &format!("v{}", CHANGES - 1))) {
        let response = tokio::time::timeout(Duration::from_secs(30), unread.message()).await;
        let response = response.unwrap().unwrap().unwrap();
        last.extend(response.resources.into_iter().map(|r| r.resource.unwrap().value));
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            ..Default::default()
        };
        requests.send(ack).await.unwrap();
    }
    assert!(last.len() <= 22, "{} are more than the last state and what was on its way", last.len());
}

fn contains(body: &[u8], text: &str) -> bool {
    let quoted = format!("\"{text}\"");
    body.windows(quoted.len()).any(|window| window == quoted.as_bytes())
}
