//! The program: who watches the cluster, who keeps what is known of it, who leads, and the control plane.

mod taking;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use mesh_core::store::StoreOptions;
use mesh_tls::Clock;
use mesh_xds::server::{Discovery, ServerLimits};
use prometheus_client::registry::Registry;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::args::RunArgs;
use crate::authority::ca::Ca;
use crate::metrics::Writes;
use crate::plane::{Cluster, Plane};
use crate::status::Reports;
use crate::world::World;
use crate::{leader, logging, shared, status, watch as watching};
use taking::{Labels, Taking};

/// How long a connection to the API server may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    logging::start(&args.log)?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(workers) = args.workers {
        runtime.worker_threads(usize::from(workers));
    }
    let runtime = runtime.enable_all().build().context("the runtime cannot be started")?;
    let served = runtime.block_on(serve(args));
    // Nothing that is left is waited for.
    runtime.shutdown_background();
    served.map(|()| ExitCode::SUCCESS)
}

async fn serve(args: RunArgs) -> anyhow::Result<()> {
    let mut config = kube::Config::infer()
        .await
        .context("the API server cannot be found: run in a pod, or set KUBECONFIG")?;
    // Each room knows how long its question may take, and asks again by itself.
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    let client = kube::Client::try_from(config).context("the API server cannot be spoken to")?;
    let stopping = stopping()?;
    let (synced, for_plane) = watch::channel(false);
    let (leads, leader) = watch::channel(false);
    // Who writes while this replica leads is there until the end: it does not end with the election.
    let _leads = leads.clone();
    let (events, taken) = mpsc::channel(watching::CHANNEL);
    let (read, all_read) = watch::channel(false);
    let (reports, labels, counted) = (Reports::default(), Labels::default(), Counted::default());

    let world = World::new(StoreOptions {
        trust_domain: args.trust_domain.clone(),
        root_namespace: args.root_namespace.as_str().into(),
        cluster_domain: args.cluster_domain.as_str().into(),
    });
    let discovery = Discovery::new(world.source(), ServerLimits::default());
    let notifier = discovery.notifier();
    let cluster = Cluster { synced: for_plane, leader: leader.clone(), labels: labels.known() };
    let settings = watching::Settings { root_namespace: args.root_namespace.clone() };
    let election = leader::Settings::new(&args.namespace, &args.pod_name);
    let plane = Plane::new(args, client.clone(), discovery, Clock::system());
    plane.metrics().register(|registry| counted.register(registry));

    let mut tasks = JoinSet::new();
    let (roots, of_roots) = watch::channel(String::new());
    tasks.spawn(follow_roots(plane.authority(), roots));
    let outputs = watching::Outputs {
        events,
        synced: read,
        reports: reports.clone(),
        metrics: counted.watches.clone(),
    };
    tasks.spawn(watching::run(client.clone(), settings, outputs));
    tasks.spawn(Taking::new(world, notifier, labels).run(taken, all_read, synced));
    tasks.spawn(status::run(client.clone(), reports, leader.clone(), counted.statuses.clone()));
    tasks.spawn(shared::run(client.clone(), of_roots, leader, counted.roots.clone()));
    // The election ends before the streams do; who asks whether this replica leads does not end with it.
    let _told_to_the_end = leads.clone();
    let elected = tokio::spawn(leader::run(client, election, leads, until(stopping.clone())));

    let served = tokio::select! {
        served = Box::pin(plane.serve(cluster, until(stopping))) => served,
        ended = tasks.join_next() => Err(match ended {
            Some(Err(error)) => anyhow::Error::from(error).context("a part of the controller has failed"),
            _ => anyhow::anyhow!("a part of the controller has ended; it is to be started again"),
        }),
    };
    if served.is_ok() {
        // It was told at the same time, and gives back what it holds.
        elected.await.context("the election has failed")?;
    }
    served
}

/// What the parts around the control plane count.
#[derive(Debug, Default)]
struct Counted {
    watches: watching::Metrics,
    statuses: Writes,
    roots: Writes,
}

impl Counted {
    fn register(&self, registry: &mut Registry) {
        self.watches.register(registry);
        self.statuses.register(registry, "status", "Statuses of resources");
        self.roots.register(registry, "root_cert", "ConfigMaps with the root certificates");
    }
}

/// The roots of the authority in force, for pods.
async fn follow_roots(mut authority: watch::Receiver<Option<Arc<Ca>>>, roots: watch::Sender<String>) {
    loop {
        if let Some(ca) = &*authority.borrow_and_update() {
            roots.send_if_modified(|now| {
                let new = **now != **ca.roots();
                if new {
                    ca.roots().as_ref().clone_into(now);
                }
                new
            });
        }
        if authority.changed().await.is_err() {
            return;
        }
    }
}

/// Turns true when the process is told to end.
fn stopping() -> anyhow::Result<watch::Receiver<bool>> {
    let mut term = signal(SignalKind::terminate()).context("SIGTERM cannot be waited for")?;
    let mut int = signal(SignalKind::interrupt()).context("SIGINT cannot be waited for")?;
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        stop.send_replace(true);
        // The sender stays, so that nobody takes its end for a signal.
        std::future::pending::<()>().await;
    });
    Ok(stopping)
}

async fn until(mut stopping: watch::Receiver<bool>) {
    if stopping.wait_for(|stopping| *stopping).await.is_err() {
        std::future::pending::<()>().await;
    }
}
