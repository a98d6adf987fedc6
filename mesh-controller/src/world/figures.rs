//! What a large cluster costs, printed for people; nothing is asserted of times.
//!
//! `cargo test --release -p mesh-controller -- --ignored --nocapture a_large_cluster`

use std::time::Duration;

use mesh_core::resource::kubernetes::{
    Container, ContainerPort, Endpoint, EndpointConditions, EndpointPort, ObjectReference, PodCondition,
    PodSpec, PodStatus, ServicePort,
};
use mesh_core::resource::virtual_service::{Destination, HttpRoute, HttpRouteDestination};
use mesh_core::resource::{EndpointSlice, IntOrString, Labels, Pod, Resource, Service, VirtualService};
use mesh_core::store::StoreOptions;
use mesh_xds::ResourceType;
use mesh_xds::server::{Answer, Discovery, Peer, ServerLimits, Source};
use tokio::time::Instant;

use super::*;

const SERVICES: usize = 1000;
const NAMESPACES: usize = 20;
const PODS_EACH: usize = 10;

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or_default()
}

fn namespace(service: usize) -> String {
    format!("team-{}", service % NAMESPACES)
}

fn labels<const N: usize>(all: [(&str, &str); N]) -> Labels {
    all.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

fn service(i: usize) -> Event {
    let name = format!("service-{i}");
    let port = ServicePort {
        name: "http".into(),
        port: 80,
        target_port: Some(IntOrString::Int(8080)),
        ..Default::default()
    };
    let spec = Service {
        selector: labels([("app", &name)]),
        cluster_ip: format!("10.96.{}.{}", i / 250, i % 250 + 1),
        ports: vec![port],
        ..Default::default()
    };
    Event::Put(Resource::new(&namespace(i), &name, spec).into())
}

fn pod_name(service: usize, pod: usize) -> String {
    format!("service-{service}-5d4f7c9b6d-abc{pod:02}")
}

fn ip(service: usize, pod: usize) -> String {
    let i = service * PODS_EACH + pod;
    format!("10.{}.{}.{}", 100 + i / 50_000, (i / 200) % 250, i % 200 + 1)
}

fn pod(i: usize, at: usize) -> Event {
    let name = format!("service-{i}");
    let port = ContainerPort { name: "http".into(), container_port: 8080, protocol: "TCP".into() };
    let spec = PodSpec {
        service_account_name: name.clone(),
        containers: vec![Container { name: "app".into(), ports: vec![port] }],
        ..Default::default()
    };
    let status = PodStatus {
        phase: "Running".into(),
        pod_ip: ip(i, at),
        conditions: vec![PodCondition { condition_type: "Ready".into(), status: "True".into() }],
        ..Default::default()
    };
    let mut pod = Resource::new(&namespace(i), &pod_name(i, at), Pod { spec, status });
    pod.meta.creation_timestamp = "2024-01-01T00:00:00Z".into();
    pod.meta.labels = labels([
        ("app", &name),
        ("version", "v1"),
        ("pod-template-hash", "5d4f7c9b6d"),
        ("security.istio.io/tlsMode", "istio"),
    ]);
    Event::Put(pod.into())
}

fn slice(i: usize, pods: usize) -> Event {
    let endpoint = |at| Endpoint {
        addresses: vec![ip(i, at)],
        conditions: EndpointConditions { ready: Some(true), serving: Some(true), terminating: Some(false) },
        target_ref: Some(ObjectReference {
            kind: "Pod".into(),
            namespace: namespace(i),
            name: pod_name(i, at),
            uid: "c8f5d9a0-0f5e-4d0e-9b5a-3d3b7c6f1e2d".into(),
        }),
        node_name: Some("node-1".into()),
        ..Default::default()
    };
    let port = EndpointPort { name: Some("http".into()), port: Some(8080), ..Default::default() };
    let spec = EndpointSlice {
        address_type: "IPv4".into(),
        endpoints: (0..pods).map(endpoint).collect(),
        ports: vec![port],
    };
    let mut slice = Resource::new(&namespace(i), &format!("service-{i}-x7k2p"), spec);
    slice.meta.labels = labels([("kubernetes.io/service-name", &format!("service-{i}"))]);
    Event::Put(slice.into())
}

fn routes(i: usize, weight: u32) -> Event {
    let host = format!("service-{i}");
    let route = HttpRouteDestination {
        destination: Some(Destination { host: host.clone(), ..Default::default() }),
        weight,
        ..Default::default()
    };
    let http = vec![HttpRoute { route: vec![route], ..Default::default() }];
    let spec = VirtualService { hosts: vec![host.clone()], http, ..Default::default() };
    Event::Put(Resource::new(&namespace(i), &host, spec).into())
}

fn peer(i: usize) -> Peer {
    let service = i % SERVICES;
    let identity = format!("spiffe://cluster.local/ns/{}/sa/service-{service}", namespace(service));
    let workload = format!("{}/{}", namespace(service), pod_name(service, i / SERVICES % PODS_EACH));
    Peer { identity: identity.parse().unwrap(), workload: Some(workload.into()) }
}

fn host(i: usize) -> String {
    format!("service-{i}.{}.svc.cluster.local", namespace(i))
}

/// Asks as so many proxies for so many hosts each; says how many bytes were told.
fn ask(answers: &Answers, proxies: usize, hosts: usize) -> usize {
    let mut bytes = 0;
    for proxy in 0..proxies {
        let peer = peer(proxy);
        for i in 0..hosts {
            let host = host((proxy * 7 + i) % SERVICES);
            for kind in [ResourceType::Host, ResourceType::Endpoints] {
                let Answer::Found(found) = answers.answer(&peer, kind, &host) else { panic!("{host}") };
                bytes += found.body().len();
            }
        }
    }
    bytes
}

fn timed<T>(what: &str, act: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = act();
    let took: Duration = start.elapsed();
    println!("{what}: {:.2} ms, {} KiB resident", took.as_secs_f64() * 1e3, resident_kib());
    done
}

#[test]
#[ignore = "prints figures"]
fn a_large_cluster() {
    println!("at the start: {} KiB resident", resident_kib());
    let mut world = World::new(StoreOptions::default());
    let discovery = Discovery::new(world.source(), ServerLimits::default());
    let (notifier, answers) = (discovery.notifier(), world.source());
    // As a watch lists: objects come and are let go of one by one.
    timed("1,000 services, 1,000 slices and 10,000 Pods, first store included", || {
        let of_service = |i| {
            let pods = (0..PODS_EACH).map(move |at| pod(i, at));
            [service(i), slice(i, PODS_EACH)].into_iter().chain(pods)
        };
        world.apply((0..SERVICES).flat_map(of_service), &notifier)
    });
    timed("1,000 VirtualServices", || world.apply((0..SERVICES).map(|i| routes(i, 1)), &notifier));
    for round in 0..3 {
        timed("one endpoint less", || world.apply([slice(7, PODS_EACH - 1 - round)], &notifier));
        timed("one Pod moves", || {
            let Event::Put(moved) = pod(7, 3) else { return Applied::default() };
            let gone = Event::Gone(moved.reference());
            world.apply(if round % 2 == 0 { [gone] } else { [Event::Put(moved)] }, &notifier)
        });
        timed("one VirtualService", || {
            world.apply([routes(7, 2 + u32::try_from(round).unwrap())], &notifier)
        });
    }
    timed("(a) 2,000 proxies that use 10 services each, first answers", || ask(&answers, 2000, 10));
    timed("(a) again", || ask(&answers, 2000, 10));
    println!("names and contents that are kept: {:?}", answers.kept());
    timed("(b) 1,000 proxies that use all 1,000, first answers", || ask(&answers, 1000, SERVICES));
    timed("(b) again", || ask(&answers, 1000, SERVICES));
    println!("names and contents that are kept: {:?}", answers.kept());
    timed("2,000 workloads, each told to itself", || {
        let own = |i: usize| {
            let peer = peer(i);
            let name = peer.workload.clone().unwrap();
            matches!(answers.answer(&peer, ResourceType::Workload, &name), Answer::Found(_))
        };
        assert!((0..2000).all(own));
    });
    timed("one endpoint, and who uses it asks (1,000 proxies)", || {
        world.apply([slice(7, 5)], &notifier);
        for i in 0..1000 {
            let Answer::Found(_) = answers.answer(&peer(i), ResourceType::Endpoints, &host(7)) else {
                panic!()
            };
        }
    });
    timed("one VirtualService, and who uses it asks (1,000 proxies)", || {
        world.apply([routes(7, 9)], &notifier);
        for i in 0..1000 {
            let Answer::Found(_) = answers.answer(&peer(i), ResourceType::Host, &host(7)) else { panic!() };
        }
    });
    timed("nobody subscribes, and what is kept is let go of", || world.tidy(&notifier));
    println!("names and contents that are kept: {:?}", answers.kept());
}
