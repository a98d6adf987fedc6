//! Proxies on real streams are told what concerns them.

use std::collections::BTreeSet;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use mesh_core::resource::{Resource, Service};
use mesh_xds::client::{Change, Client, ClientLimits, connect};
use mesh_xds::server::serve_connection;
use tokio::sync::mpsc;

use super::*;

/// A proxy beside `shop/one`, and what it is told: names, in the order of telling.
struct Proxy {
    client: Client,
    told: mpsc::UnboundedReceiver<String>,
}

impl Proxy {
    fn new(discovery: &Discovery<Answers>, peer: &Peer) -> Self {
        let client =
            Client::new("test", ClientLimits { wait: Duration::from_secs(60), ..Default::default() });
        let (sender, told) = mpsc::unbounded_channel();
        let (runner, discovery, peer) = (client.clone(), discovery.clone(), peer.clone());
        tokio::spawn(async move {
            let dial = || {
                let (discovery, peer) = (discovery.clone(), peer.clone());
                let connector = tower::service_fn(move |_: http::Uri| {
                    let (near, far) = tokio::io::duplex(64 * 1024);
                    let (service, peer) = (discovery.clone().into_service(), peer.clone());
                    tokio::spawn(async move {
                        let limits = ServerLimits::default();
                        let never = std::future::pending();
                        let _ =
                            serve_connection(TokioIo::new(far), Some(peer), service, &limits, never).await;
                    });
                    async move { Ok::<_, std::io::Error>(TokioIo::new(near)) }
                });
                async move {
                    let uri = http::Uri::from_static("http://controller");
                    connect(uri, connector, &ClientLimits::default()).await
                }
            };
            let record = |changes: &[Change]| {
                for change in changes {
                    let _ = sender.send(format!("{} {}", change.kind, change.name));
                }
                Vec::new()
            };
            runner.run(dial, record).await;
        });
        Self { client, told }
    }

    async fn next(&mut self, n: usize) -> BTreeSet<String> {
        let mut told = BTreeSet::new();
        while told.len() < n {
            let next = tokio::time::timeout(Duration::from_secs(60), self.told.recv()).await;
            told.insert(next.expect("it was not told in time").unwrap());
        }
        told
    }
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(ToOwned::to_owned).into()
}

#[tokio::test]
async fn a_proxy_is_told_what_concerns_it() {
    let mut world = world_of(forms());
    let discovery = Discovery::new(world.source(), ServerLimits::default());
    let notifier = discovery.notifier();
    let peer = beside(&world.store().load().workload("shop", "one").unwrap());
    let mut proxy = Proxy::new(&discovery, &peer);
    let names = [
        (ResourceType::Workload, "shop/one"),
        (ResourceType::Host, "reviews.shop.svc.cluster.local"),
        (ResourceType::Endpoints, "reviews.shop.svc.cluster.local"),
        (ResourceType::Host, "ratings.books.svc.cluster.local"),
        (ResourceType::Address, "10.0.0.1"),
    ];
    for (kind, name) in names {
        proxy.client.subscribe(kind, name).await.unwrap();
    }
    proxy.next(names.len()).await;

    let put = |at: &str, nth: usize| {
        let of_name = forms().into_iter().filter(|form| form.reference().to_string() == at);
        Event::Put(of_name.collect::<Vec<_>>()[nth].clone())
    };
    let gone = |at: &str| Event::Gone(put(at, 0).reference());
    // One endpoint comes back: the endpoints, and the address at which something is now.
    world.apply([put("EndpointSlice shop/reviews-1", 0)], &notifier);
    assert_eq!(proxy.next(2).await, set(["Endpoints reviews.shop.svc.cluster.local", "Address 10.0.0.1"]));
    world.apply([put("VirtualService shop/reviews", 0)], &notifier);
    assert_eq!(proxy.next(1).await, set(["Host reviews.shop.svc.cluster.local"]));
    world.apply([gone("AuthorizationPolicy istio-system/everywhere")], &notifier);
    assert_eq!(proxy.next(1).await, set(["Workload shop/one"]));
    // What does not concern it is not told: the next word is of the change after.
    let other = Resource::new("nowhere", "other", Service::default());
    let none = world.apply([Event::Put(other.into())], &notifier);
    assert_eq!((none.changed, none.names), (1, 0));
    world.apply([gone("DestinationRule istio-system/all")], &notifier);
    // `reviews` has a rule of its own, `alone` and `ratings` have not.
    let both = set(["Workload shop/one", "Host ratings.books.svc.cluster.local"]);
    assert_eq!(proxy.next(2).await, both);
}
