//! `mesh-proxy run`: puts the parts together, and takes them apart again on SIGTERM.

use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use mesh::core::identity::TrustDomain;
use mesh::{AccessLogTo, Driver, IdentitySource, LogFormat, Mesh};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::admin::Admin;
use crate::args::{self, RunArgs};
use crate::drain::Drain;
use crate::inbound::Inbound;
use crate::outbound::Outbound;
use crate::pod::Redirections;
use crate::{bind, cpu, logging, splice};

/// After the last connection is done, and at a deadline: how long runtimes may take to end.
const RUNTIME_END: Duration = Duration::from_millis(200);
/// How often a worker's runtime wakes though nothing happens; shorter than the timeouts that requests have.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The sockets of one worker.
struct Sockets {
    inbound: Option<TcpListener>,
    outbound: Option<TcpListener>,
    redirected: Option<Redirections>,
}

/// Runs until SIGTERM or SIGINT. The process has been running since `begun`.
pub(crate) fn run(args: RunArgs, begun: Instant) -> anyhow::Result<ExitCode> {
    let log = logging::start(&args.log)?;
    ensure!(
        args.inbound.is_some() || args.outbound.is_some() || args.pod.transparent,
        "there is nothing to do: give --inbound and --app, or --outbound, or both, or --transparent"
    );
    let workers = args.workers.map_or_else(cpu::workers, usize::from);
    let admin = bind::listeners("admin", args.admin, 1)?.pop().context("no socket for --admin")?;
    let (pod, redirected) = args.pod.listen(workers)?;
    let sockets = sockets(&args, workers, redirected)?;

    let main = runtime()?;
    let drain = Drain::new();
    let (mesh, driver) = {
        let _entered = main.enter();
        start(&args, workers)?
    };
    splice::register(mesh.metrics());
    let admin_page = Admin::new(mesh.clone(), log);
    let threads: Vec<_> = sockets
        .into_iter()
        .enumerate()
        .map(|(i, sockets)| worker(i, sockets, &args, &mesh, &drain))
        .collect::<anyhow::Result<_>>()?;
    tracing::info!(
        workload = %args.workload,
        inbound = args.inbound.map(tracing::field::display),
        outbound = args.outbound.map(tracing::field::display),
        transparent = args.pod.transparent,
        admin = %args.admin,
        workers,
        "mesh-proxy {} started",
        env!("CARGO_PKG_VERSION"),
    );
    main.block_on(async {
        let driver = tokio::spawn(driver.run());
        tokio::spawn(admin_page.serve(tokio::net::TcpListener::from_std(admin)?));
        let mesh_ready = mesh.clone();
        tokio::spawn(async move {
            mesh_ready.readiness().ready().await;
            let took = begun.elapsed();
            mesh_ready.note_startup(took);
            tracing::info!(?took, "ready");
        });
        let quit = Arc::new(Notify::new());
        if let Some(pod) = pod {
            pod.serve(&mesh, &drain, &quit)?;
        }
        tokio::select! {
            stopped = stopped() => stopped?,
            () = quit.notified() => {}
        }
        tracing::info!(within = ?args.drain, "draining");
        let whole = drain.drain(args.drain).await;
        if !whole {
            tracing::warn!("the time to drain is over; what is still in flight is cut");
        }
        mesh.close_access_log();
        // The driver writes what the log still holds, and ends with it.
        let _ = tokio::time::timeout(RUNTIME_END, driver).await;
        anyhow::Ok(())
    })?;
    main.shutdown_timeout(RUNTIME_END);
    for thread in threads {
        let _ = thread.join();
    }
    tracing::info!("ended");
    Ok(ExitCode::SUCCESS)
}

fn sockets(
    args: &RunArgs,
    workers: usize,
    redirected: Vec<Option<Redirections>>,
) -> anyhow::Result<Vec<Sockets>> {
    let listeners = |flag, addr: Option<std::net::SocketAddr>| -> anyhow::Result<Vec<Option<TcpListener>>> {
        match addr {
            Some(addr) => Ok(bind::listeners(flag, addr, workers)?.into_iter().map(Some).collect()),
            None => Ok((0..workers).map(|_| None).collect()),
        }
    };
    let inbound = listeners("inbound", args.inbound)?;
    let outbound = listeners("outbound", args.outbound)?;
    let each = inbound.into_iter().zip(outbound).zip(redirected);
    Ok(each.map(|((inbound, outbound), redirected)| Sockets { inbound, outbound, redirected }).collect())
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

fn start(args: &RunArgs, workers: usize) -> anyhow::Result<(Mesh, Driver)> {
    let identity = match (&args.identity_dir, &args.dev_ca) {
        (Some(dir), _) => IdentitySource::Directory(dir.clone()),
        (None, Some(dir)) => IdentitySource::DevCa(dir.clone()),
        (None, None) => IdentitySource::None,
    };
    let access_log = match args.access_log.as_str() {
        "off" => AccessLogTo::Off,
        "-" => AccessLogTo::Stdout,
        file => AccessLogTo::File(file.into()),
    };
    let format = match args.access_log_format {
        args::LogFormat::Json => LogFormat::Json,
        args::LogFormat::Text => LogFormat::Text,
    };
    let trust_domain: TrustDomain = args.trust_domain.clone();
    let mut builder = Mesh::builder()
        .workload(&args.workload.namespace, &args.workload.name)
        .trust_domain(trust_domain)
        .root_namespace(&args.root_namespace)
        .identity(identity)
        .access_log(access_log, format)
        .detect_timeout(args.detect_timeout)
        .shards(workers);
    if let Some(dir) = &args.config {
        builder = builder.directory(dir);
    }
    if let Some(plane) = args.control.plane()? {
        builder = builder.control_plane(plane);
    }
    if let Some(inbound) = args.inbound {
        builder = builder.inbound_port(inbound.port());
    }
    if let Some(app) = args.app {
        builder = builder.app(app);
    }
    if let Some(unknown) = args.pod.redirected() {
        builder = builder.redirected(unknown);
    }
    Ok(builder.build()?)
}

/// A thread with a runtime of its own: workers share nothing but counts.
fn worker(
    index: usize,
    sockets: Sockets,
    args: &RunArgs,
    mesh: &Mesh,
    drain: &Drain,
) -> anyhow::Result<std::thread::JoinHandle<()>> {
    let runtime = runtime()?;
    let (mesh, draining, watch, entrance) = (mesh.clone(), drain.handle(), drain.watch(), drain.entrance());
    let detect = args.detect_timeout;
    let thread = std::thread::Builder::new().name(format!("worker-{index}"));
    let run = move || {
        runtime.block_on(async {
            if let Some((listener, addr)) = sockets.inbound.and_then(listening)
                && let Some(inbound) = Inbound::new(mesh.clone(), addr.port(), index, detect)
            {
                tokio::spawn(inbound.serve(listener, draining.clone()));
            }
            if let Some((listener, _)) = sockets.outbound.and_then(listening) {
                let outbound = Outbound::new(mesh.clone(), index, detect, draining.clone());
                tokio::spawn(outbound.serve(listener));
            }
            drop(draining);
            if let Some(redirected) = sockets.redirected
                && let Err(error) = redirected.serve(&mesh, index, detect, &entrance)
            {
                tracing::error!(%error, "the sockets for redirected connections cannot be watched");
            }
            tokio::spawn(heartbeat());
            watch.over().await;
        });
        runtime.shutdown_timeout(RUNTIME_END);
    };
    thread.spawn(run).context("no thread for a worker")
}

/// Keeps a timer that ends before those of connections do. tokio wakes its driver, with a write to the kernel,
/// for each new timer that would be the first to end; every request begins one (`HEADER_TIMEOUT`).
async fn heartbeat() {
    loop {
        tokio::time::sleep(HEARTBEAT).await;
    }
}

fn listening(listener: TcpListener) -> Option<(tokio::net::TcpListener, std::net::SocketAddr)> {
    let addr = listener.local_addr().ok()?;
    match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => Some((listener, addr)),
        Err(error) => {
            tracing::error!(%error, %addr, "the socket cannot be watched");
            None
        }
    }
}

/// Returns at the first SIGTERM or SIGINT.
async fn stopped() -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}
