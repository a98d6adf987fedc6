//! The mesh's root certificates, in every namespace.
//!
//! The leader keeps a ConfigMap [`NAME`] in each namespace, from which pods take the roots that they trust before they
//! have anything else. It is made with the namespace, put right when somebody edits or deletes it, and changed when the
//! roots change. A namespace that is ending is left alone. Of all ConfigMaps only these are watched.

mod world;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::core::ApiResource;
use kube::{Api, Client};
use mesh_core::resource::{Namespace, ObjectMeta};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::leader::while_leading;
use crate::metrics::Writes;
use crate::watch::follow::{Change, Sink, Trouble, follow, with_causes};
use crate::watch::seen::{Form, Seen, Thin, resource_of};
use world::{MapState, World};

/// The ConfigMap's name.
pub const NAME: &str = "mesh-root-cert";
/// Under which key the roots stand in it, as PEM.
pub const KEY: &str = "root-cert.pem";
/// How much time lies between two writes.
pub const WRITE_INTERVAL: Duration = Duration::from_millis(20);
/// How long the API server may take for one.
const ANSWER: Duration = Duration::from_secs(10);
/// As whom they are written.
const MANAGER: &str = "mesh-controller";

/// Keeps the ConfigMaps at what `roots` holds (PEM; nothing is done while it is empty) while `leader` is true; for ever,
/// or until nobody says any more who leads.
pub async fn run(
    client: Client,
    roots: watch::Receiver<String>,
    leader: watch::Receiver<bool>,
    metrics: Writes,
) {
    while_leading(leader, || keep(&client, roots.clone(), &metrics)).await;
}

async fn keep(client: &Client, roots: watch::Receiver<String>, metrics: &Writes) {
    let shared = Shared::default();
    let namespaces = Api::<Seen<Thin<Namespace>>>::all_with(client.clone(), &resource_of::<Namespace>());
    let maps = Api::<Seen<Map>>::all_with(client.clone(), &ApiResource::erase::<ConfigMap>(&()));
    let fields = format!("metadata.name={NAME}");
    let (mut of_namespaces, mut of_maps) = (NamespaceSink(shared.clone()), MapSink(shared.clone()));
    tokio::join!(
        follow(&namespaces, None, &mut of_namespaces),
        follow(&maps, Some(&fields), &mut of_maps),
        follow_roots(&shared, roots),
        write_all(client, &shared, metrics),
    );
}

async fn follow_roots(shared: &Shared, mut roots: watch::Receiver<String>) {
    loop {
        let now = roots.borrow_and_update().clone();
        shared.change(|world, at| world.roots(now, at));
        if roots.changed().await.is_err() {
            // The last ones stay.
            std::future::pending::<()>().await;
        }
    }
}

async fn write_all(client: &Client, shared: &Shared, metrics: &Writes) {
    let mut pace = interval(WRITE_INTERVAL);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        let (namespace, roots, failures) = shared.next().await;
        match write(client, &namespace, &roots).await {
            Ok(()) => metrics.written(),
            Err(None) => {}
            Err(Some(error)) => {
                metrics.failed();
                if failures == 0 {
                    tracing::warn!(namespace, %error, "ConfigMap {NAME} could not be written; it is tried again");
                }
                shared.change(|world, at| world.failed(namespace, failures + 1, at));
            }
        }
    }
}

/// Writes it. An error without a text says that the namespace is gone.
async fn write(client: &Client, namespace: &str, roots: &str) -> Result<(), Option<String>> {
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": NAME, "labels": {"app.kubernetes.io/managed-by": MANAGER}},
        "data": {KEY: roots},
    });
    let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    let params = PatchParams::apply(MANAGER).force();
    match timeout(ANSWER, api.patch(NAME, &params, &Patch::Apply(&map))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(None),
        Ok(Err(error)) => Err(Some(with_causes(&error))),
        Err(_) => Err(Some(format!("no answer in {} s", ANSWER.as_secs()))),
    }
}

/// What all parts see.
#[derive(Clone, Default)]
struct Shared {
    world: Arc<Mutex<World>>,
    changed: Arc<Notify>,
}

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut World, Instant)) {
        change(&mut self.world(), Instant::now());
        self.changed.notify_one();
    }

    /// The next namespace that is to be written, with what.
    async fn next(&self) -> (String, String, u32) {
        loop {
            let changed = self.changed.notified();
            let next = self.world().take(Instant::now());
            match next {
                Ok(next) => return next,
                Err(Some(at)) => tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                Err(None) => changed.await,
            }
        }
    }
}

/// A ConfigMap with root certificates.
#[derive(Debug, Clone)]
struct Map {
    meta: ObjectMeta,
    roots: Option<String>,
}

#[derive(Deserialize)]
struct RawMap {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    #[serde(default, rename = "root-cert.pem")]
    roots: Option<String>,
}

impl Form for Map {
    fn take_apart(json: &str) -> Self {
        let map =
            serde_json::from_str(json).unwrap_or(RawMap { metadata: ObjectMeta::default(), data: None });
        Self { meta: map.metadata, roots: map.data.and_then(|data| data.roots) }
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }
}

struct NamespaceSink(Shared);

impl Sink<Thin<Namespace>> for NamespaceSink {
    fn take(&mut self, change: Change<Thin<Namespace>>) {
        self.0.change(|world, at| match change {
            Change::Begin => world.namespaces.begin(),
            Change::Put(thin) => {
                world.namespace(&thin.meta.name, thin.meta.deletion_timestamp.is_empty(), at)
            }
            Change::Gone(thin) => world.namespace_gone(&thin.meta.name),
            Change::End => world.namespaces_whole(at),
        });
    }

    async fn flush(&mut self) -> bool {
        true
    }

    fn connected(&mut self, state: Result<(), &Trouble>) {
        say("Namespace", state);
    }
}

struct MapSink(Shared);

impl Sink<Map> for MapSink {
    fn take(&mut self, change: Change<Map>) {
        self.0.change(|world, at| match change {
            Change::Begin => world.maps.begin(),
            Change::Put(map) => world.map(&map.meta.namespace, MapState::Is(map.roots.as_deref()), at),
            Change::Gone(map) => world.map(&map.meta.namespace, MapState::Gone, at),
            Change::End => world.maps_whole(at),
        });
    }

    async fn flush(&mut self) -> bool {
        true
    }

    fn connected(&mut self, state: Result<(), &Trouble>) {
        say("ConfigMap", state);
    }
}

fn say(kind: &str, state: Result<(), &Trouble>) {
    if let Err(trouble) = state {
        tracing::debug!(kind, %trouble, "no watch for the root certificates");
    }
}
