//! What proxies are answered, and who is told when it changes.

mod alike;
mod changes;
mod limits;
mod streams;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use mesh_core::diagnostic::ResourceRef;
use mesh_core::resource::{Labels, Object};
use mesh_core::store::{Store, StoreOptions, Workload};
use mesh_core::yaml::parse_objects;
use mesh_xds::server::{Answer, Discovery, Notifier, Peer, ServerLimits, Source};
use mesh_xds::{Payload, ResourceType};

use super::*;

/// Two namespaces and a root namespace, with everything that hides or narrows.
const WORLD: &str = include_str!("world.yaml");

/// Names under which its services are called, or not.
const NAMES: &[&str] = &[
    "reviews",
    "reviews.shop",
    "reviews.shop.svc.cluster.local",
    "one.reviews.shop.svc.cluster.local",
    "ratings",
    "ratings.books",
    "secret.books",
    "legacy",
    "api.example.com",
    "other.example.com",
    "only.claimed.io",
    "10.96.0.1",
];

const IPS: &[&str] =
    &["10.96.0.1", "10.96.0.2", "10.96.0.9", "10.0.0.1", "10.0.0.2", "10.0.1.1", "240.0.0.7"];

/// The world's objects by name, each in all the forms that it takes.
fn forms() -> Vec<Object> {
    parse_each(WORLD)
}

/// Parses document by document, so that one object may come in several forms.
fn parse_each(text: &str) -> Vec<Object> {
    let documents = text.split("\n---\n").flat_map(|document| parse_objects("world.yaml", document).unwrap());
    documents.map(|object| from_nowhere(&object)).collect()
}

/// The object as the cluster gives it: of no file.
fn from_nowhere(object: &Object) -> Object {
    Object::from_json(&object.to_json(), object.invalid().cloned()).unwrap()
}

/// Of several objects of one name the one that comes last.
fn last(objects: impl IntoIterator<Item = Object>) -> BTreeMap<ResourceRef, Object> {
    objects.into_iter().map(|object| (object.reference(), object)).collect()
}

fn store_of(objects: impl IntoIterator<Item = Object>) -> Store {
    Store::new(StoreOptions::default(), objects.into_iter().collect())
}

fn notifier() -> Notifier {
    Discovery::new(|_: &Peer, _: ResourceType, _: &str| Answer::Absent, ServerLimits::default()).notifier()
}

fn world_of(objects: impl IntoIterator<Item = Object>) -> World {
    let mut world = World::new(StoreOptions::default());
    world.apply(objects.into_iter().map(Event::Put), &notifier());
    world
}

/// The peer that stands beside a workload.
fn beside(workload: &Workload) -> Peer {
    let identity = workload.identity.clone().unwrap();
    Peer { identity, workload: Some(format!("{}/{}", workload.namespace, workload.name).into()) }
}

/// A peer of which nobody says which workload it is.
fn somebody(namespace: &str) -> Peer {
    let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/somebody").parse().unwrap();
    Peer { identity, workload: None }
}

fn decoded(answer: &Answer) -> Option<Payload> {
    match answer {
        Answer::Found(found) => Some(Payload::decode(found.kind(), found.body()).unwrap()),
        Answer::Absent => None,
        Answer::Unchanged => panic!("nothing is said"),
    }
}
