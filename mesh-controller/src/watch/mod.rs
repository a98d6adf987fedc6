//! The Kubernetes API, watched: what happens to the objects that the mesh understands, as [`Event`]s.
//!
//! Each kind has a list and a watch of its own, in all namespaces. Of Kubernetes' own objects as little as possible is
//! kept. Resources of the mesh are read as strictly as files are: one that cannot be used keeps its last good form;
//! where it has none it takes its closed reading when it is about security, and is left out when it is not. What is
//! wrong goes to the [`Reports`]. A kind that the API server does not have is looked for again and again, and holds
//! nobody up. When the API server is gone, what is known stays.
//!
//! ```no_run
//! # async fn example(client: kube::Client) {
//! use mesh_controller::{status::Reports, watch};
//! use tokio::sync::mpsc;
//!
//! let (out, mut events) = mpsc::channel(watch::CHANNEL);
//! let synced = tokio::sync::watch::Sender::new(false);
//! let settings = watch::Settings { root_namespace: "istio-system".into() };
//! let watching = watch::run(client, settings, watch::Outputs {
//!     events: out, synced, reports: Reports::default(), metrics: watch::Metrics::default(),
//! });
//! let taking = async {
//!     while let Some(batch) = events.recv().await {
//!         for event in batch {
//!             println!("{}", event.reference());
//!         }
//!     }
//! };
//! tokio::join!(watching, taking);
//! # }
//! ```

pub(crate) mod follow;
mod known;
mod metrics;
pub(crate) mod seen;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use kube::{Api, Client};
use mesh_core::diagnostic::{Diagnostic, ResourceRef};
use mesh_core::resource::{
    AuthorizationPolicy, DestinationRule, EndpointSlice, Kind, Namespace, Object, PeerAuthentication, Pod,
    Resource, Service, ServiceEntry, Sidecar, Telemetry, VirtualService, WorkloadEntry,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::event::Event;
use crate::status::{Report, Reports};
use follow::{Change, Sink, Trouble, follow};
use known::{Known, Reading, read_thin, read_whole};
pub use metrics::Metrics;
use seen::{Form, Seen, Slim, Thin, Whole, resource_of};

/// How many batches of events may wait to be taken. Who watches waits when there are more.
pub const CHANNEL: usize = 64;

/// How resources are read.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The namespace whose policies apply to the whole mesh.
    pub root_namespace: String,
}

/// Where everything goes.
#[derive(Debug)]
pub struct Outputs {
    /// What happens, in the order in which it happens for each object. A batch is never empty.
    pub events: mpsc::Sender<Vec<Event>>,
    /// Turns true when everything that was there has been sent, of every kind that the API server has.
    pub synced: watch::Sender<bool>,
    /// What is wrong with resources.
    pub reports: Reports,
    /// What is counted.
    pub metrics: Metrics,
}

/// Watches until nobody takes the events any more. Ends the watches when it is dropped.
///
/// To be polled within a runtime of tokio, since each kind is a task of its own.
pub async fn run(client: Client, settings: Settings, outputs: Outputs) {
    let Outputs { events, synced, reports, metrics } = outputs;
    let shared = Shared {
        client,
        root_namespace: settings.root_namespace.into(),
        events,
        missing: Arc::default(),
        synced: Arc::new(synced),
        reports,
        metrics,
    };
    let mut tasks = JoinSet::new();
    shared.thin::<Namespace>(&mut tasks);
    shared.thin::<Service>(&mut tasks);
    shared.thin::<EndpointSlice>(&mut tasks);
    shared.thin::<Pod>(&mut tasks);
    shared.whole::<ServiceEntry>(&mut tasks);
    shared.whole::<WorkloadEntry>(&mut tasks);
    shared.whole::<VirtualService>(&mut tasks);
    shared.whole::<DestinationRule>(&mut tasks);
    shared.whole::<Sidecar>(&mut tasks);
    shared.whole::<PeerAuthentication>(&mut tasks);
    shared.whole::<AuthorizationPolicy>(&mut tasks);
    shared.whole::<Telemetry>(&mut tasks);
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            // Half a world is worse than none: who runs us starts again.
            tracing::error!(%error, "a watch ended by itself");
            return;
        }
    }
}

/// What the watches of all kinds have in common.
#[derive(Clone)]
struct Shared {
    client: Client,
    root_namespace: Arc<str>,
    events: mpsc::Sender<Vec<Event>>,
    /// The kinds of which not everything that was there has been sent.
    missing: Arc<Mutex<BTreeSet<&'static str>>>,
    synced: Arc<watch::Sender<bool>>,
    reports: Reports,
    metrics: Metrics,
}

impl Shared {
    /// Watches a kind of Kubernetes' own.
    fn thin<K: Slim>(&self, tasks: &mut JoinSet<()>)
    where
        Object: From<Resource<K>>,
    {
        self.spawn::<K, Thin<K>>(tasks, |thin, _| (read_thin(thin), None));
    }

    /// Watches a kind of the mesh's.
    fn whole<K: Kind>(&self, tasks: &mut JoinSet<()>)
    where
        Object: From<Resource<K>>,
    {
        self.spawn::<K, Whole>(tasks, |mut whole, root| {
            let report = Report::of::<K>(&whole.meta, std::mem::take(&mut whole.status));
            (read_whole::<K>(whole, &|object| mesh::validate(object, root)), Some(report))
        });
    }

    fn spawn<K: Kind, F: Form>(
        &self,
        tasks: &mut JoinSet<()>,
        read: fn(F, &str) -> (Reading, Option<Report>),
    ) {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).insert(K::KIND);
        let shared = self.clone();
        tasks.spawn(async move {
            let api = Api::<Seen<F>>::all_with(shared.client.clone(), &resource_of::<K>());
            let mut sink = EventSink::<F> {
                kind: K::KIND,
                shared,
                read,
                known: Known::default(),
                batch: Vec::new(),
                whole: false,
                connection: None,
            };
            follow(&api, None, &mut sink).await;
        });
    }
}

/// What makes events of one kind.
struct EventSink<F> {
    kind: &'static str,
    shared: Shared,
    read: fn(F, &str) -> (Reading, Option<Report>),
    known: Known,
    batch: Vec<Event>,
    /// Whether everything that was there is in the batch, or has been sent.
    whole: bool,
    /// What was last said of the connection; nothing before the first word.
    connection: Option<Connection>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Connection {
    Stands,
    Absent,
    Broken,
}

impl<F: Form> EventSink<F> {
    fn put(&mut self, form: F) {
        if form.meta().name.is_empty() {
            tracing::warn!(kind = self.kind, "the API server sent an object without a name; it is left out");
            return;
        }
        let (reading, report) = (self.read)(form, &self.shared.root_namespace);
        let reference = reading.reference.clone();
        let (event, diagnostics) = self.known.put(reading);
        let news = event.is_some();
        self.batch.extend(event);
        match report {
            Some(report) => {
                let reports = &self.shared.reports;
                if reports.put(reference, Report { diagnostics: diagnostics.clone(), ..report }) || news {
                    log(&diagnostics);
                }
            }
            None => log(&diagnostics),
        }
    }

    fn gone(&mut self, reference: ResourceRef, given: bool) {
        self.shared.reports.gone(&reference);
        if given {
            self.batch.push(Event::Gone(reference));
        }
    }
}

fn log(diagnostics: &[Diagnostic]) {
    for diagnostic in diagnostics {
        if diagnostic.is_error() {
            tracing::warn!("{diagnostic}");
        } else {
            tracing::info!("{diagnostic}");
        }
    }
}

impl<F: Form> Sink<F> for EventSink<F> {
    fn take(&mut self, change: Change<F>) {
        match change {
            Change::Begin => {
                self.known.begin();
                self.shared.metrics.listed(self.kind);
            }
            Change::Put(form) => self.put(form),
            Change::End => {
                for gone in self.known.end() {
                    self.gone(gone.reference, gone.given);
                }
                self.whole = true;
            }
            Change::Gone(form) => {
                let meta = form.meta();
                let reference = ResourceRef::new(self.kind, &meta.namespace, &meta.name);
                let given = self.known.gone(&reference);
                self.gone(reference, given);
            }
        }
    }

    async fn flush(&mut self) -> bool {
        if !self.batch.is_empty() {
            self.shared.metrics.sent(self.kind, self.batch.len(), self.known.in_force());
            if self.shared.events.send(std::mem::take(&mut self.batch)).await.is_err() {
                return false;
            }
        }
        if self.whole {
            let mut missing = self.shared.missing.lock().unwrap_or_else(PoisonError::into_inner);
            if missing.remove(self.kind) && missing.is_empty() {
                self.shared.synced.send_replace(true);
            }
        }
        !self.shared.events.is_closed()
    }

    fn connected(&mut self, state: Result<(), &Trouble>) {
        let kind = self.kind;
        let now = match state {
            Ok(()) => Connection::Stands,
            Err(Trouble::Absent) => Connection::Absent,
            Err(Trouble::Expired) => return,
            Err(_) => Connection::Broken,
        };
        self.shared.metrics.connected(kind, now == Connection::Stands);
        if let Err(trouble) = state
            && now == Connection::Broken
        {
            self.shared.metrics.troubled(kind);
            tracing::debug!(kind, %trouble, "no watch");
        }
        if self.connection == Some(now) {
            return;
        }
        match (now, state) {
            (Connection::Stands, _) if self.connection.is_some() => tracing::info!(kind, "the watch stands"),
            (Connection::Stands, _) => tracing::debug!(kind, "the watch stands"),
            (Connection::Absent, _) => {
                tracing::info!(kind, "the cluster does not have the kind; it is watched as soon as it has");
                // There is nothing of it to wait for.
                self.whole = true;
            }
            (Connection::Broken, Err(trouble)) => {
                tracing::warn!(kind, %trouble, "the watch is broken; what is known stays, and it is tried again");
            }
            (Connection::Broken, Ok(())) => {}
        }
        self.connection = Some(now);
    }
}

#[cfg(test)]
mod tests;
