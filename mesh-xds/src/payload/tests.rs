use std::net::IpAddr;

use mesh_core::resource::{Invalid, Kind, Resource, Service, VirtualService};
use mesh_core::store::{Backend, BackendPort, WorkloadAddress};
use proptest::prelude::*;

use super::*;

fn service(name: &str) -> Object {
    Resource::new("default", name, Service::default()).into()
}

fn said(kind: ResourceType, body: &[u8]) -> String {
    Payload::decode(kind, body).unwrap_err().to_string()
}

#[test]
fn a_workload_comes_back_with_what_the_mesh_has_in_common() {
    let options = StoreOptions { root_namespace: "mesh-system".into(), ..StoreOptions::default() };
    let workload = Workload { options, resources: vec![service("a"), service("b")] };
    let encoded = Payload::from(workload.clone()).encode().unwrap();
    assert_eq!(Payload::decode(encoded.kind(), encoded.body()), Ok(workload.into()));
    assert!(said(ResourceType::Workload, b"").starts_with("Workload.trust_domain: "));
}

#[test]
fn a_closed_reading_travels_as_one() {
    let mut rule = Resource::new("default", "a", mesh_core::resource::PeerAuthentication::default());
    for reason in ["", "spec.mtls.mode: unknown", &"é".repeat(5000)] {
        rule.invalid = Some(Invalid { reason: reason.to_owned() });
        let encoded = Payload::from(Host { resources: vec![rule.clone().into()] }).encode().unwrap();
        let Ok(Payload::Host(host)) = Payload::decode(ResourceType::Host, encoded.body()) else { panic!() };
        let read = host.resources[0].invalid().unwrap();
        assert!(!read.reason.is_empty() && read.reason.len() <= 4096);
    }
}

#[test]
fn a_resource_that_is_wrong_is_named() {
    let of = |object: wire::Object| {
        said(ResourceType::Host, &wire::Host { resources: vec![object] }.encode_to_vec())
    };
    let good = || object::to_wire(&[service("a")]).remove(0);
    let says = of(wire::Object { json: "{}".into(), ..good() });
    assert_eq!(says, "Host.resources[0]: Service default/a: apiVersion: missing, or no text");
    let says = of(wire::Object { name: "b".into(), ..good() });
    assert_eq!(says, "Host.resources[0]: Service default/b: the content is of Service default/a");
    let says = of(wire::Object { kind: "Pod".into(), ..good() });
    assert!(says.contains("the content is of Service"), "{says}");
    let says = of(wire::Object { invalid: "x".repeat(5000), ..good() });
    assert!(says.contains("too long"), "{says}");
    // The schema's own rules hold for what a peer sends, too.
    let empty = Resource::new("default", "a", VirtualService::default());
    let says = of(object::to_wire(&[empty.into()]).remove(0));
    assert!(says.contains(VirtualService::KIND) && says.contains("spec"), "{says}");
}

#[test]
fn every_limit_is_kept() {
    let large = vec![0; MAX_RESOURCE_BYTES + 1];
    assert!(said(ResourceType::Host, &large).contains("more than 2097152"));
    assert!(Encoded::new(ResourceType::Host, large.into()).is_err());

    // Two bytes each: an empty object, an empty group, an empty endpoint in one group.
    let objects = [10, 0].repeat(MAX_OBJECTS + 1);
    assert!(said(ResourceType::Host, &objects).contains("more than 8192"));
    let objects = [34, 0].repeat(MAX_OBJECTS + 1);
    assert!(said(ResourceType::Workload, &objects).contains("more than 8192"));
    let groups = [10, 0].repeat(MAX_ENDPOINTS + 1);
    assert!(said(ResourceType::Endpoints, &groups).contains("more than 65536"));
    let group = wire::EndpointGroup {
        endpoints: vec![wire::Endpoint::default(); MAX_ENDPOINTS + 1],
        ..Default::default()
    };
    let endpoints = wire::Endpoints { groups: vec![group] }.encode_to_vec();
    assert!(said(ResourceType::Endpoints, &endpoints).contains("more than 65536"));
    let hosts = wire::Address { hosts: vec!["a".into(); MAX_ADDRESS_HOSTS + 1], endpoint: false };
    assert!(said(ResourceType::Address, &hosts.encode_to_vec()).contains("more than 256"));

    let group = |change: &dyn Fn(&mut wire::EndpointGroup)| {
        let mut group = wire::EndpointGroup::default();
        change(&mut group);
        said(ResourceType::Endpoints, &wire::Endpoints { groups: vec![group] }.encode_to_vec())
    };
    let long = || "x".repeat(MAX_TEXT_BYTES + 1);
    assert!(group(&|g| g.namespace = long()).contains("groups[0].namespace: longer"));
    assert!(group(&|g| g.locality = long()).contains("locality"));
    assert!(group(&|g| drop(g.labels.insert(long(), String::new()))).contains("labels"));
    let many = || (0..=MAX_ENDPOINT_ITEMS).map(|i| (i.to_string(), String::new())).collect();
    assert!(group(&|g| g.labels = many()).contains("more than 256"));
    assert!(group(&|g| g.ports = vec![Default::default(); 257]).contains("more than 256"));
    assert!(group(&|g| g.ports = vec![Default::default()]).contains("1 to 65535"));
    assert!(group(&|g| g.identity = "spiffe://".into()).contains("identity"));
    assert!(group(&|g| g.endpoints = vec![Default::default()]).contains("endpoints[0].address: missing"));
    let at = |address| wire::Endpoint { address: Some(address), ..Default::default() };
    let ip = wire::endpoint::Address::Ip(vec![1, 2, 3].into());
    assert!(group(&|g| g.endpoints = vec![at(ip.clone())]).contains("4 or 16 bytes"));
    let dns = wire::endpoint::Address::Dns("10.0.0.1".into());
    assert!(group(&|g| g.endpoints = vec![at(dns.clone())]).contains("no host name"));
}

#[test]
fn an_address_has_a_host() {
    assert!(said(ResourceType::Address, b"").contains("without hosts"));
    let wrong = wire::Address { hosts: vec!["*".into()], endpoint: true };
    assert!(said(ResourceType::Address, &wrong.encode_to_vec()).contains("hosts[0]"));
}

/// A host of 10,000 endpoints is what the compact form is for.
#[test]
fn ten_thousand_endpoints_take_little() {
    let options = StoreOptions::default();
    let labels: mesh_core::resource::Labels =
        (0..8).map(|i| (format!("label-{i}"), "v".repeat(20))).collect();
    let labels = Arc::new(labels);
    let pods = (1..=10_000_u32).map(|i| {
        let name = format!("reviews-v1-5d4f7c9b6d-{i:05}");
        let workload =
            mesh_core::store::Workload::detached(&options, "default", &name, "reviews", Arc::clone(&labels));
        Backend {
            workload: Arc::new(workload),
            address: WorkloadAddress::Ip(IpAddr::from((0x0a00_0000 + i).to_be_bytes())),
            hostname: Some(name.into()),
            ports: [BackendPort { service: 80, target: 8080, tls_disabled: false }].into(),
        }
    });
    let pods: Vec<_> = pods.collect();
    let endpoints = Endpoints::collect(&pods);
    assert_eq!((endpoints.len(), endpoints.groups.len()), (10_000, 1));
    let encoded = Payload::from(endpoints).encode().unwrap();
    assert!(encoded.body().len() < 10_000 * 45, "{}", encoded.body().len());
}

fn text() -> impl Strategy<Value = String> {
    "[a-z0-9./-]{0,12}"
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let ip = any::<IpAddr>().prop_map(|ip| WorkloadAddress::Ip(ip.to_canonical()));
    let name = "[a-z]{1,8}\\.[a-z]{1,8}".prop_map(|name| WorkloadAddress::Name(name.into()));
    let host = proptest::option::of("[a-z]{1,8}");
    (prop_oneof![ip, name], text(), host).prop_map(|(address, name, hostname)| Endpoint {
        address,
        name,
        hostname,
    })
}

fn group() -> impl Strategy<Value = EndpointGroup> {
    let port = (1..=u16::MAX, 1..=u16::MAX, any::<bool>())
        .prop_map(|(service, target, tls_disabled)| BackendPort { service, target, tls_disabled });
    let names = (text(), text(), text(), text());
    let identity = proptest::option::of("[a-z]{1,8}/ns/[a-z]{1,8}/sa/[a-z]{1,8}");
    let labels = proptest::collection::btree_map(text(), text(), 0..4);
    let ports = proptest::collection::vec(port, 0..4);
    let endpoints = proptest::collection::vec(endpoint(), 0..6);
    (names, identity, labels, ports, (1..9_u32, any::<bool>()), endpoints).prop_map(
        |(
            (namespace, service_account, locality, cluster),
            identity,
            labels,
            ports,
            (weight, tls),
            endpoints,
        )| {
            let identity = identity.map(|id| format!("spiffe://{id}").parse().unwrap());
            EndpointGroup {
                namespace,
                service_account,
                identity,
                labels: labels.into(),
                ports: ports.into(),
                locality,
                weight,
                tls,
                cluster,
                endpoints,
            }
        },
    )
}

proptest! {
    #[test]
    fn endpoints_come_back_as_they_were(groups in proptest::collection::vec(group(), 0..5)) {
        let payload = Payload::from(Endpoints { groups });
        let encoded = payload.encode().unwrap();
        prop_assert_eq!(Payload::decode(ResourceType::Endpoints, encoded.body()), Ok(payload.clone()));
        prop_assert_eq!(payload.encode().unwrap().version(), encoded.version());
    }

    #[test]
    fn any_bytes_are_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        for kind in ResourceType::ALL {
            if let Ok(payload) = Payload::decode(kind, &body) {
                // What was read is written in one form, and that is read alike.
                let encoded = payload.encode().unwrap();
                prop_assert_eq!(Payload::decode(kind, encoded.body()), Ok(payload));
            }
        }
    }

    #[test]
    fn the_order_of_finding_makes_no_difference(seed in proptest::collection::vec(0..4_u8, 1..20)) {
        let options = StoreOptions::default();
        let pods: Vec<_> = (0_u8..).zip(&seed).map(|(i, account)| {
            let (name, account) = (format!("p{i}"), format!("a{account}"));
            let none = mesh_core::resource::Labels::new();
            Backend {
                workload: Arc::new(mesh_core::store::Workload::detached(&options, "d", &name, &account, none)),
                address: WorkloadAddress::Ip(IpAddr::from([10, 0, 0, i])),
                hostname: None,
                ports: Arc::default(),
            }
        }).collect();
        let there = Endpoints::collect(&pods);
        let back = Endpoints::collect(pods.iter().rev());
        prop_assert_eq!(&there, &back);
        prop_assert_eq!(there.len(), seed.len());
    }
}
