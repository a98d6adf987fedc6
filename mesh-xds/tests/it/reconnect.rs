//! What happens when a stream ends.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::io::{DuplexStream, duplex};
use tokio::time::Instant;
use tonic::transport::Channel;
use tower_mesh_xds::ResourceType::Host;
use tower_mesh_xds::client::{BoxError, Change, Client, ClientLimits, connect};
use tower_mesh_xds::server::ServerLimits;

use crate::world::{Proxy, Told, World, host, peer, quick, until};

#[tokio::test]
async fn who_comes_back_is_sent_only_what_is_different() {
    let world = World::new(ServerLimits::default());
    let address = world.listen(Some(peer())).await;
    for name in ["same", "changed", "gone"] {
        world.set(Host, name, host(name, 1));
    }
    let first = Proxy::run(address);
    for name in ["same", "changed", "gone"] {
        assert!(first.exists(Host, name).await);
    }
    let kept = first.client.snapshot();

    // Another life, another server with the same content, but for what has changed since.
    let world = World::new(ServerLimits::default());
    let address = world.listen(Some(peer())).await;
    world.set(Host, "same", host("same", 1));
    world.set(Host, "changed", host("changed", 2));
    let client = Client::new("default/web-1", quick());
    let restored = Told::new();
    assert_eq!(client.restore(&kept, &mut |changes: &[Change]| restored.apply(changes)), Ok(3));
    assert_eq!(restored.all(), ["changed", "gone", "same"], "in force before there is a server");
    assert!(client.subscribe(Host, "same").await.unwrap().exists());

    let again = Proxy::run_client(client, address);
    assert_eq!(again.told.wait(2).await, ["changed", "-gone"]);
    // The next thing that is told is the next that changes: nothing came between.
    world.set(Host, "same", host("same", 2));
    assert_eq!(again.told.wait(3).await[2], "same");
    let counts = world.discovery.counters().read();
    assert_eq!((counts.resources, counts.removals), (2, 1));
}

#[tokio::test]
async fn a_server_that_ends_its_streams_is_come_back_to() {
    let limits = ServerLimits { stream_age: Duration::from_millis(20), ..ServerLimits::default() };
    let world = World::new(limits);
    world.set(Host, "a", host("a", 1));
    let proxy = Proxy::run(world.listen(Some(peer())).await);
    assert!(proxy.exists(Host, "a").await);
    until("some streams", || world.discovery.counters().read().opened >= 4).await;
    assert!(proxy.exists(Host, "a").await);
    let counts = world.discovery.counters().read();
    assert_eq!(counts.resources, 1, "sent once, whatever became of the streams");
}

#[tokio::test]
async fn a_server_that_closes_refuses_and_what_is_held_stays() {
    let world = World::new(ServerLimits::default());
    world.set(Host, "a", host("a", 1));
    let proxy = Proxy::run(world.listen(Some(peer())).await);
    assert!(proxy.exists(Host, "a").await);
    let mut connected = proxy.client.connected();
    world.discovery.close();
    connected.wait_for(|connected| !connected).await.unwrap();
    assert!(proxy.exists(Host, "a").await);
    until("tries", || proxy.client.counters().read().connect_failures >= 2).await;
    assert!(world.discovery.proxies().is_empty());
}

#[tokio::test(start_paused = true)]
async fn tries_become_rarer_and_never_stop() {
    let client = Client::new("n", ClientLimits::default());
    let tries = Arc::new(Mutex::new(Vec::new()));
    let (runner, record) = (client.clone(), Arc::clone(&tries));
    let start = Instant::now();
    tokio::spawn(async move {
        let nowhere = || {
            record.lock().unwrap().push(start.elapsed());
            async { Err::<Channel, BoxError>("no network".into()) }
        };
        runner.run_with(nowhere, |_: &[Change]| Vec::new(), || 1.0).await;
    });
    tokio::time::sleep(Duration::from_secs(100)).await;
    let tries = tries.lock().unwrap().clone();
    let waits: Vec<u128> = tries.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
    assert_eq!(client.counters().read().connect_failures, 9);
}

/// Who comes back and has everything already is not answered at all: such a stream is no failure when it ends.
#[tokio::test(start_paused = true)]
async fn streams_on_which_nothing_was_to_be_said_make_no_wait_longer() {
    let limits = ServerLimits { stream_age: Duration::from_secs(120), ..ServerLimits::default() };
    let world = World::new(limits);
    world.set(Host, "a", host("a", 1));
    let client = Client::new("n", ClientLimits { idle: Duration::MAX, ..ClientLimits::default() });
    let dials = Arc::new(Mutex::new(Vec::new()));
    let (runner, record, server) = (client.clone(), Arc::clone(&dials), world.clone());
    tokio::spawn(async move {
        let dial = || {
            record.lock().unwrap().push(Instant::now());
            let server = server.clone();
            let connector = tower::service_fn(move |_: Uri| {
                let (near, far) = duplex(64 * 1024);
                tokio::spawn(server.clone().serve(TokioIo::new(far), Some(peer())));
                async move { Ok::<_, std::io::Error>(TokioIo::new(near)) }
            });
            async move {
                connect(Uri::from_static("http://controller"), connector, &ClientLimits::default()).await
            }
        };
        runner.run_with(dial, |_: &[Change]| Vec::new(), || 1.0).await;
    });
    assert!(client.subscribe(Host, "a").await.unwrap().exists());
    let mut connected = client.connected();
    for stream in 1..=6 {
        connected.wait_for(|connected| *connected).await.unwrap();
        connected.wait_for(|connected| !connected).await.unwrap();
        let ended = Instant::now();
        connected.wait_for(|connected| *connected).await.unwrap();
        let waited = *dials.lock().unwrap().last().unwrap() - ended;
        assert!(waited <= Duration::from_millis(501), "after stream {stream}: {waited:?}");
    }
    assert_eq!(world.discovery.counters().read().resources, 1, "nothing was said but once");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_does_not_come_is_given_up() {
    let client = Client::new("n", ClientLimits::default());
    let tries = Arc::new(AtomicUsize::new(0));
    let (runner, record) = (client.clone(), Arc::clone(&tries));
    tokio::spawn(async move {
        let never = || {
            record.fetch_add(1, Ordering::Relaxed);
            std::future::pending::<Result<Channel, BoxError>>()
        };
        runner.run_with(never, |_: &[Change]| Vec::new(), || 1.0).await;
    });
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(tries.load(Ordering::Relaxed), 2);
}

/// A pipe that can be made to swallow everything, with both ends open.
struct Line {
    silence: tokio::sync::watch::Sender<bool>,
}

impl Line {
    fn between(a: DuplexStream, b: DuplexStream) -> Self {
        let silence = tokio::sync::watch::Sender::new(false);
        let mut silent = silence.subscribe();
        tokio::spawn(async move {
            let (mut a, mut b) = (a, b);
            let silent = async move { silent.wait_for(|silent| *silent).await.is_ok() };
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut a, &mut b) => return,
                _ = silent => {}
            }
            std::future::pending::<()>().await;
        });
        Self { silence }
    }
}

/// Neither side waits for ever for one that has gone without a word.
#[tokio::test(start_paused = true)]
async fn silence_is_noticed_on_both_sides() {
    let world = World::new(ServerLimits::default());
    world.set(Host, "a", host("a", 1));
    let lines = Arc::new(Mutex::new(Vec::new()));
    let client = Client::new("n", ClientLimits::default());
    let (runner, record, server) = (client.clone(), Arc::clone(&lines), world.clone());
    tokio::spawn(async move {
        let dial = || {
            let (record, server) = (Arc::clone(&record), server.clone());
            let connector = tower::service_fn(move |_: Uri| {
                let (near, a) = duplex(64 * 1024);
                let (far, b) = duplex(64 * 1024);
                tokio::spawn(server.clone().serve(TokioIo::new(far), Some(peer())));
                record.lock().unwrap().push(Line::between(a, b));
                async move { Ok::<_, std::io::Error>(TokioIo::new(near)) }
            });
            async move {
                connect(Uri::from_static("http://controller"), connector, &ClientLimits::default()).await
            }
        };
        runner.run_with(dial, |_: &[Change]| Vec::new(), || 1.0).await;
    });
    assert!(client.subscribe(Host, "a").await.unwrap().exists());
    lines.lock().unwrap()[0].silence.send_replace(true);
    world.set(Host, "a", host("a", 2));
    until("another stream", || client.counters().read().connected >= 2).await;
    until("the end of the first", || world.discovery.proxies().len() == 1).await;
    assert!(client.subscribe(Host, "a").await.unwrap().exists());
    until("what has changed meanwhile", || client.counters().read().resources >= 2).await;
}
