use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::time::Instant;

use super::*;
use crate::Version;
use crate::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Status};
use ResourceType::{Endpoints, Host, Workload};

#[derive(Default)]
struct Told(BTreeSet<(ResourceType, String)>);

impl Names for Told {
    fn subscribed(&mut self, kind: ResourceType, name: &str) -> Arc<str> {
        assert!(self.0.insert((kind, name.to_owned())), "{name} is told twice");
        name.into()
    }

    fn unsubscribed(&mut self, kind: ResourceType, name: &str) {
        assert!(self.0.remove(&(kind, name.to_owned())), "{name} was never told");
    }
}

struct World {
    session: Session,
    told: Told,
    content: RefCell<BTreeMap<(ResourceType, String), Encoded>>,
    now: Instant,
}

fn content(kind: ResourceType, text: &str) -> Encoded {
    Encoded::new(kind, text.to_owned().into()).unwrap()
}

impl World {
    fn new() -> Self {
        Self::with(ServerLimits::default())
    }

    fn with(limits: ServerLimits) -> Self {
        Self {
            session: Session::new(limits),
            told: Told::default(),
            content: RefCell::default(),
            now: Instant::now(),
        }
    }

    fn set(&mut self, kind: ResourceType, name: &str, text: &str) {
        self.content.borrow_mut().insert((kind, name.to_owned()), content(kind, text));
        self.session.changed(kind, name);
    }

    fn unset(&mut self, kind: ResourceType, name: &str) {
        self.content.borrow_mut().remove(&(kind, name.to_owned()));
        self.session.changed(kind, name);
    }

    fn receive(&mut self, request: DeltaDiscoveryRequest) -> Result<Received, Violation> {
        self.session.receive(request, &mut self.told, self.now)
    }

    fn subscribe(&mut self, kind: ResourceType, names: &[&str]) {
        assert_eq!(self.receive(subscribe(kind, names)), Ok(Received::Subscriptions));
    }

    fn respond(&mut self) -> Option<DeltaDiscoveryResponse> {
        let answers = |kind, name: &str| {
            let content = self.content.borrow().get(&(kind, name.to_owned())).cloned();
            content.map_or(Answer::Absent, Answer::Found)
        };
        self.session.respond(&answers, self.now)
    }

    /// The names of the next response, removed ones with a `-`; the proxy takes it.
    fn taken(&mut self) -> Vec<String> {
        let Some(response) = self.respond() else { return Vec::new() };
        let request = ack(&response);
        assert_eq!(self.receive(request), Ok(Received::Ack));
        said(&response)
    }
}

fn said(response: &DeltaDiscoveryResponse) -> Vec<String> {
    let sent = response.resources.iter().map(|r| r.name.clone());
    sent.chain(response.removed_resources.iter().map(|name| format!("-{name}"))).collect()
}

fn subscribe(kind: ResourceType, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.url().into(),
        resource_names_subscribe: names.iter().map(|&name| name.into()).collect(),
        ..Default::default()
    }
}

fn unsubscribe(kind: ResourceType, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.url().into(),
        resource_names_unsubscribe: names.iter().map(|&name| name.into()).collect(),
        ..Default::default()
    }
}

fn ack(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        ..Default::default()
    }
}

fn nack(response: &DeltaDiscoveryResponse, why: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { error_detail: Some(Status { code: 3, message: why.into() }), ..ack(response) }
}

#[test]
fn what_exists_is_sent_and_what_does_not_is_removed() {
    let mut world = World::new();
    world.set(Host, "a", "1");
    world.subscribe(Host, &["a", "b"]);
    assert_eq!(world.taken(), ["a", "-b"]);
    assert_eq!(world.respond(), None);

    // It comes to exist, changes, and goes.
    world.set(Host, "b", "1");
    assert_eq!(world.taken(), ["b"]);
    world.set(Host, "b", "2");
    assert_eq!(world.taken(), ["b"]);
    world.unset(Host, "b");
    assert_eq!(world.taken(), ["-b"]);
    world.session.changed(Host, "b");
    assert_eq!(world.respond(), None, "that it does not exist is said once");
}

#[test]
fn the_same_content_is_not_sent_again() {
    let mut world = World::new();
    world.set(Host, "a", "1");
    world.subscribe(Host, &["a"]);
    assert_eq!(world.taken(), ["a"]);
    world.set(Host, "a", "1");
    world.session.all_changed(Host);
    assert_eq!(world.respond(), None);
}

#[test]
fn who_asks_again_is_told_again() {
    let mut world = World::new();
    world.set(Host, "a", "1");
    world.subscribe(Host, &["a", "b"]);
    assert_eq!(world.taken(), ["a", "-b"]);
    world.subscribe(Host, &["a", "b"]);
    assert_eq!(world.taken(), ["a", "-b"]);
}

#[test]
fn what_is_not_subscribed_to_is_not_sent() {
    let mut world = World::new();
    world.set(Host, "a", "1");
    assert_eq!(world.respond(), None);
    world.subscribe(Host, &["a"]);
    world.receive(unsubscribe(Host, &["a", "never"])).unwrap();
    assert!(world.told.0.is_empty());
    assert_eq!(world.respond(), None);
    world.set(Host, "a", "2");
    assert_eq!(world.respond(), None);
    // The same name of another type is another subscription.
    world.subscribe(Endpoints, &["a"]);
    assert_eq!(world.taken(), ["-a"]);
}

#[test]
fn there_is_no_wildcard() {
    for request in [
        subscribe(Host, &["*"]),
        subscribe(Host, &["a", "*"]),
        // How older clients say it.
        subscribe(Host, &[]),
    ] {
        assert_eq!(World::new().receive(request), Err(Violation::Wildcard(Host)));
    }
    let mut world = World::new();
    world.subscribe(Host, &["a"]);
    assert_eq!(world.receive(subscribe(Host, &[])), Ok(Received::Subscriptions), "not the first");
    world.subscribe(Host, &["*.example.com"]);
}

#[test]
fn foreign_types_and_impossible_names_are_refused() {
    let mut world = World::new();
    let mut request = subscribe(Host, &["a"]);
    request.type_url = "type.googleapis.com/envoy.config.cluster.v3.Cluster".into();
    assert!(matches!(world.receive(request.clone()), Err(Violation::UnknownType(_))));
    request.type_url = "x".repeat(100_000);
    let said = world.receive(request).unwrap_err().to_string();
    assert!(said.len() < 1024);
    assert!(matches!(world.receive(subscribe(Host, &["A b"])), Err(Violation::Name(_))));
    assert!(matches!(world.receive(subscribe(Workload, &["a"])), Err(Violation::Name(_))));
}

#[test]
fn a_refusal_is_kept_with_its_reason_and_nothing_is_sent_until_a_change() {
    let mut world = World::new();
    world.set(Host, "a", "good");
    world.subscribe(Host, &["a"]);
    assert_eq!(world.taken(), ["a"]);
    assert!(world.session.status()[0].is_synced());

    world.set(Host, "a", "bad");
    let response = world.respond().unwrap();
    assert!(!world.session.status()[0].is_synced());
    let why = "Host default/a: spec.http: ".to_owned() + &"x".repeat(MAX_QUOTED);
    let Ok(Received::Nack(reason)) = world.receive(nack(&response, &why)) else { panic!() };
    assert!(reason.starts_with("Host default/a") && reason.len() == MAX_QUOTED);
    let status = &world.session.status()[0];
    assert!(!status.is_synced());
    assert_eq!(status.last_ack.unwrap().nonce, 1);
    assert_eq!(
        (status.last_nack.as_ref().unwrap().nonce, &status.last_nack.as_ref().unwrap().reason),
        (2, &reason)
    );

    world.set(Host, "a", "bad");
    assert_eq!(world.respond(), None, "the same again would be refused again");
    // The old content is a change for whoever was sent the new one.
    world.set(Host, "a", "good");
    assert_eq!(world.taken(), ["a"]);
    assert!(world.session.status()[0].is_synced());
}

#[test]
fn a_stale_verdict_says_nothing_but_its_subscriptions_count() {
    let mut world = World::new();
    world.set(Host, "a", "1");
    world.subscribe(Host, &["a"]);
    let first = world.respond().unwrap();
    world.receive(ack(&first)).unwrap();
    world.set(Host, "a", "2");
    let second = world.respond().unwrap();

    let mut late = nack(&first, "late");
    late.resource_names_subscribe = vec!["b".into()];
    assert_eq!(world.receive(late), Ok(Received::Stale));
    assert!(world.session.status()[0].last_nack.is_none());
    assert!(world.told.0.contains(&(Host, "b".into())));
    assert_eq!(world.respond(), None, "the second still waits for its verdict");
    for nonce in ["", "x", "7", "-1", "18446744073709551616"] {
        let request = DeltaDiscoveryRequest { response_nonce: nonce.into(), ..ack(&second) };
        assert_ne!(world.receive(request), Ok(Received::Ack), "{nonce}");
    }
    assert_eq!(world.receive(ack(&second)), Ok(Received::Ack));
    assert_eq!(world.receive(ack(&second)), Ok(Received::Stale), "once");
    assert_eq!(world.taken(), ["-b"]);
}

#[test]
fn a_verdict_of_one_type_is_none_of_another() {
    let mut world = World::new();
    world.subscribe(Host, &["a"]);
    world.subscribe(Endpoints, &["a"]);
    let host = world.respond().unwrap();
    let endpoints = world.respond().unwrap();
    assert_eq!((&*host.type_url, &*endpoints.type_url), (Host.url(), Endpoints.url()));
    let crossed = DeltaDiscoveryRequest { type_url: Host.url().into(), ..ack(&endpoints) };
    assert_eq!(world.receive(crossed), Ok(Received::Stale));
    assert_eq!(world.receive(ack(&endpoints)), Ok(Received::Ack));
    assert_eq!(world.receive(ack(&host)), Ok(Received::Ack));
}

#[test]
fn who_comes_back_is_sent_what_is_different() {
    let mut world = World::new();
    for (name, text) in [("same", "1"), ("changed", "2"), ("new", "1"), ("garbled", "1")] {
        world.set(Host, name, text);
    }
    let version = |text| Version::of(Host, str::as_bytes(text)).to_string();
    let mut request = subscribe(Host, &["same", "changed", "gone", "new", "garbled"]);
    request.initial_resource_versions = [
        ("same".into(), version("1")),
        ("changed".into(), version("1")),
        ("gone".into(), version("1")),
        ("garbled".into(), "somebody else's".into()),
        ("not-subscribed".into(), version("1")),
    ]
    .into();
    world.receive(request).unwrap();
    assert_eq!(world.taken(), ["changed", "new", "garbled", "-gone"]);
    assert_eq!(world.respond(), None);
    assert_eq!(world.told.0.len(), 5);
    // What it brought along is under watch as everything else.
    world.set(Host, "same", "2");
    assert_eq!(world.taken(), ["same"]);
}

/// However often things change while a proxy does not answer, it is sent the last state once.
#[test]
fn changes_are_coalesced_while_a_response_waits_for_its_verdict() {
    let mut world = World::new();
    world.set(Host, "a", "0");
    world.subscribe(Host, &["a", "b"]);
    let first = world.respond().unwrap();
    for i in 1..1000 {
        world.set(Host, "a", &i.to_string());
        world.set(Host, "b", &i.to_string());
        world.unset(Host, "b");
        assert_eq!(world.respond(), None, "at most one response is on its way");
    }
    let status = world.session.status();
    assert_eq!(status[0].waiting, 2, "names wait, and each once");
    // Another type is not held up.
    world.subscribe(Endpoints, &["a"]);
    assert_eq!(world.taken(), ["-a"]);

    world.receive(ack(&first)).unwrap();
    let last = world.respond().unwrap();
    assert_eq!(said(&last), ["a"], "b is gone as it was");
    assert_eq!(&*last.resources[0].resource.as_ref().unwrap().value, b"999");
}

#[test]
fn a_long_list_travels_in_parts() {
    let limits = ServerLimits { response_items: 3, response_bytes: 1000, ..ServerLimits::default() };
    let mut world = World::with(limits);
    let names = ["a", "b", "c", "d", "e"];
    world.subscribe(Host, &names);
    assert_eq!(world.taken(), ["-a", "-b", "-c"]);
    assert_eq!(world.taken(), ["-d", "-e"]);

    // By bytes; one that is larger than the limit travels alone.
    for (name, size) in [("a", 300), ("b", 300), ("c", 5000), ("d", 300), ("e", 300)] {
        world.set(Host, name, &"x".repeat(size));
    }
    assert_eq!(world.taken(), ["a", "b"]);
    assert_eq!(world.taken(), ["c"]);
    assert_eq!(world.taken(), ["d", "e"]);
    assert_eq!(world.respond(), None);
}

/// One that changes all the time does not keep the others from their turn.
#[test]
fn the_longest_waiting_comes_first() {
    let mut world = World::with(ServerLimits { response_items: 1, ..ServerLimits::default() });
    world.subscribe(Host, &["a", "b"]);
    assert_eq!(world.taken(), ["-a"]);
    world.set(Host, "a", "1");
    assert_eq!(world.taken(), ["-b"]);
    assert_eq!(world.taken(), ["a"]);
}

#[test]
fn subscriptions_are_limited_all_types_together() {
    let mut world = World::with(ServerLimits { subscriptions: 3, ..ServerLimits::default() });
    world.subscribe(Host, &["a", "b"]);
    world.subscribe(Endpoints, &["a"]);
    world.subscribe(Endpoints, &["a"]);
    assert_eq!(world.receive(subscribe(Endpoints, &["b"])), Err(Violation::Subscriptions(3)));
    assert_eq!(world.told.0.len(), 3, "what is not subscribed to is not told");
    // One goes, another may come.
    let mut swap = subscribe(Host, &["c"]);
    swap.resource_names_unsubscribe = vec!["a".into()];
    assert_eq!(world.receive(swap), Ok(Received::Subscriptions));
    assert_eq!(world.session.subscriptions().count(), 3);
}

#[test]
fn what_waits_is_bounded_by_what_is_subscribed_to() {
    let mut world = World::new();
    world.subscribe(Host, &["stays"]);
    let _in_flight = world.respond();
    for i in 0..1000 {
        let name = format!("n{i}");
        world.subscribe(Host, &[&name]);
        world.receive(unsubscribe(Host, &[&name])).unwrap();
    }
    assert_eq!(world.session.status()[0].waiting, 0);
}

#[test]
fn what_a_proxy_says_of_itself_is_kept_short() {
    let mut world = World::new();
    let node = crate::proto::discovery::Node { id: "x".repeat(10_000), ..Default::default() };
    let request = DeltaDiscoveryRequest { node: Some(node), ..subscribe(Host, &["a"]) };
    world.receive(request).unwrap();
    assert_eq!(world.session.node().unwrap().len(), MAX_QUOTED);
}

#[test]
fn who_was_told_something_keeps_it_while_nothing_can_be_said() {
    let mut world = World::new();
    world.subscribe(Host, &["a", "b"]);
    world.set(Host, "a", "1");
    assert_eq!(world.taken(), ["a", "-b"]);
    world.session.changed(Host, "a");
    assert!(world.session.respond(&|_, _| Answer::Unchanged, world.now).is_none());
    // Once something can be said again, it is.
    world.set(Host, "a", "2");
    assert_eq!(world.taken(), ["a"]);
}
