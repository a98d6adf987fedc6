//! The program: a control plane, and whoever tells it of the cluster.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use mesh_tls::Clock;
use mesh_xds::ResourceType;
use mesh_xds::server::{Answer, Discovery, Peer, ServerLimits};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::args::RunArgs;
use crate::logging;
use crate::plane::{Cluster, Plane};

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
    runtime.block_on(serve(args))?;
    // Nothing that is left is waited for.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

async fn serve(args: RunArgs) -> anyhow::Result<()> {
    let mut config = kube::Config::infer()
        .await
        .context("the API server cannot be found: run in a pod, or set KUBECONFIG")?;
    // Each room knows how long its question may take, and asks again by itself.
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    let client = kube::Client::try_from(config).context("the API server cannot be spoken to")?;
    // Nobody watches the cluster yet: the controller is never ready, and serves its admin pages alone.
    let nothing = |_: &Peer, _: ResourceType, _: &str| Answer::Absent;
    let discovery = Discovery::new(nothing, ServerLimits::default());
    let (_synced, synced) = watch::channel(false);
    let (_leader, leader) = watch::channel(false);
    let cluster = Cluster { synced, leader, labels: Arc::new(|_| None) };
    let plane = Plane::new(args, client, discovery, Clock::system());
    Box::pin(plane.serve(cluster, stopped()?)).await
}

/// Is ready when the process is told to end.
fn stopped() -> anyhow::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate()).context("SIGTERM cannot be waited for")?;
    let mut int = signal(SignalKind::interrupt()).context("SIGINT cannot be waited for")?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}
