//! Fills the API server, and measures case by case.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use mesh_bench::stats::percentile;
use mesh_tls::named::NamedServer;
use mesh_tls::{Clock, Pem};
use mesh_xds::ResourceType;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::api::Api;
use crate::args::{Args, Case};
use crate::board::{Board, Mark};
use crate::controller::{Controller, definitions};
use crate::herd;
use crate::proxy::{Fleet, Plan};
use crate::world::{self, SYSTEM, World};

/// How long a change may take until everybody has it.
pub(crate) const CHANGE_PATIENCE: Duration = Duration::from_secs(60);
/// How long the controller is left alone before and after a load.
pub(crate) const REST: Duration = Duration::from_secs(2);
/// Between two changes: so that each is measured alone.
const PAUSE: Duration = Duration::from_millis(100);

/// Measures everything, and prints it.
///
/// # Errors
/// When something cannot be measured.
pub async fn run(args: Args) -> Result<()> {
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: most.maximum, ..most };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised)
        .context("the limit of open files")?;

    let api = Api::open(&args.kubeconfig).await?;
    let cluster = World { services: args.services, endpoints: args.endpoints };
    let started = Instant::now();
    fill(&api, &args, cluster).await?;
    println!(
        "{} services, {} pods: in the API server in {:.1} s",
        args.services,
        args.services * args.endpoints,
        started.elapsed().as_secs_f64()
    );
    for case in &args.cases {
        match case {
            Case::Few | Case::All => measure(&api, &args, cluster, *case).await?,
            Case::Herd => herd::measure(&api, &args, cluster).await?,
        }
    }
    Ok(())
}

async fn fill(api: &Api, args: &Args, cluster: World) -> Result<()> {
    let (last, at) = (args.services.saturating_sub(1), args.endpoints.saturating_sub(1));
    let last = format!("/api/v1/namespaces/{}/pods/{}", world::namespace(last), world::pod(last, at));
    // An earlier run has filled it.
    if api.get(&last).await?.is_some() {
        return Ok(());
    }
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let writes = definitions(&args.controller).await?.into_iter();
    let writes = writes.map(|object| world::Write { path: crds.into(), object, status: None });
    api.fill(writes.collect()).await?;
    api.fill(cluster.first()).await?;
    api.fill(cluster.accounts()).await?;
    // Definitions are served some moments after they are there.
    let kind = "/apis/networking.istio.io/v1/virtualservices?limit=1";
    while api.get(kind).await?.is_none() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    api.fill(cluster.rest()).await
}

/// Who the proxies of a case are.
pub(crate) async fn plans(api: &Api, args: &Args, case: Case) -> Result<Vec<Plan>> {
    let proxies = match case {
        Case::Few => args.few_proxies,
        Case::All => args.all_proxies,
        Case::Herd => args.herd_proxies,
    };
    ensure!(proxies <= args.services * args.endpoints, "every proxy is a pod: there are too few pods");
    let all: Arc<[String]> = (0..args.services).map(world::host).collect();
    let plan = |number| {
        let all = Arc::clone(&all);
        async move {
            let (service, at) = (number % args.services, number / args.services);
            let (namespace, pod) = (world::namespace(service), world::pod(service, at));
            let token = api.token(&namespace, &world::name(service), &pod).await?;
            let hosts = match case {
                Case::All => all,
                Case::Few | Case::Herd => uses(number, args).into_iter().map(world::host).collect(),
            };
            anyhow::Ok(Plan { number, workload: format!("{namespace}/{pod}"), token, hosts })
        }
    };
    let mut plans: Vec<_> = stream::iter(0..proxies).map(plan).buffer_unordered(32).try_collect().await?;
    plans.sort_by_key(|plan| plan.number);
    Ok(plans)
}

/// The services that a proxy of the cases `few` and `herd` uses: each is used by as many.
fn uses(proxy: usize, args: &Args) -> BTreeSet<usize> {
    (0..args.few_services).map(|i| (proxy * args.few_services + i) % args.services).collect()
}

async fn measure(api: &Api, args: &Args, cluster: World, case: Case) -> Result<()> {
    let plans = plans(api, args, case).await?;
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("controller.log");
    let (controller, until_ready) = Controller::start(&args.controller, &args.kubeconfig, &log).await?;
    tokio::time::sleep(REST).await;
    let (idle, cpu_idle) = (controller.memory()?, controller.cpu()?);
    println!("\n## {case:?}: {} proxies", plans.len());
    println!("ready after {:.2} s, {cpu_idle:.2} CPU s, {:.1} MiB", until_ready.as_secs_f64(), idle.now);

    let fleet = fleet(api, &controller).await?;
    let started = Instant::now();
    let mut proxies = JoinSet::new();
    for plan in &plans {
        proxies.spawn(Arc::clone(&fleet).proxy(plan.clone()));
    }
    let warm = async {
        while fleet.warm.load(Ordering::Acquire) < plans.len() {
            tokio::select! {
                () = fleet.told.notified() => {}
                Some(ended) = proxies.join_next() => return Err(failed(ended)),
            }
        }
        Ok(())
    };
    match timeout(Duration::from_secs(args.patience), warm).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(error.context(controller.tail())),
        Err(_) => bail!(
            "{} of {} proxies are warm after {} s\n{}",
            fleet.warm.load(Ordering::Acquire),
            plans.len(),
            args.patience,
            controller.tail()
        ),
    }
    let took = started.elapsed();
    let (memory, cpu) = (controller.memory()?, controller.cpu()? - cpu_idle);
    let mib = mib(fleet.bytes.load(Ordering::Relaxed));
    println!(
        "all warm after {:.2} s, {cpu:.2} CPU s, {:.1} MiB (most {:.1}); {mib:.1} MiB of resources sent, {} tries put off",
        took.as_secs_f64(),
        memory.now,
        memory.most,
        fleet.retries.load(Ordering::Relaxed),
    );
    tokio::time::sleep(REST).await;
    println!("at rest {:.1} MiB", controller.memory()?.now);

    for sort in [Sort::Endpoint, Sort::Routes] {
        let changes = changes(api, args, cluster, &fleet, &plans, sort);
        let figures = tokio::select! {
            figures = changes => figures,
            Some(ended) = proxies.join_next() => Err(failed(ended)),
        };
        let figures = figures.with_context(|| controller.tail())?;
        println!("{}: {figures}", sort.told());
    }
    let memory = controller.memory()?;
    println!("in the end {:.1} MiB (most {:.1}), {:.2} CPU s", memory.now, memory.most, controller.cpu()?);
    drop(proxies);
    controller.stop().await
}

/// What proxies of this controller share.
pub(crate) async fn fleet(api: &Api, controller: &Controller) -> Result<Arc<Fleet>> {
    let root = root_certificate(api).await?;
    let server =
        NamedServer::new("localhost", Pem::new("the controller's root", root.as_bytes()), &Clock::system())?;
    Ok(Arc::new(Fleet {
        address: controller.proxies,
        server,
        board: Board::default(),
        warm: 0.into(),
        told: tokio::sync::Notify::new(),
        bytes: 0.into(),
        retries: 0.into(),
    }))
}

fn failed(ended: Result<Result<()>, tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok(Ok(())) => anyhow!("a proxy has ended"),
        Ok(Err(error)) => error.context("a proxy has failed"),
        Err(error) => error.into(),
    }
}

async fn root_certificate(api: &Api) -> Result<String> {
    let secret = api.get(&format!("/api/v1/namespaces/{SYSTEM}/secrets/mesh-ca")).await?;
    let secret = secret.context("the controller has made no CA")?;
    decoded(secret.pointer("/data/root-cert.pem").and_then(Value::as_str).context("the CA has no root")?)
}

fn decoded(text: &str) -> Result<String> {
    use base64::Engine as _;
    Ok(String::from_utf8(base64::prelude::BASE64_STANDARD.decode(text)?)?)
}

/// What changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Endpoint,
    Routes,
}

impl Sort {
    const fn told(self) -> &'static str {
        match self {
            Self::Endpoint => "an endpoint comes",
            Self::Routes => "a VirtualService changes",
        }
    }
}

/// How long changes took, from before the write to the last ACK.
struct Figures {
    /// In microseconds, sorted.
    took: Vec<u64>,
    bytes: u64,
    proxies: usize,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = |share| Duration::from_micros(percentile(&self.took, share).unwrap_or_default());
        let each = mib(self.bytes) / f64::from(u32::try_from(self.took.len()).unwrap_or(1).max(1));
        write!(
            f,
            "{} changes, up to {} proxies each: p50 {:.1?}, p99 {:.1?}, longest {:.1?}; {each:.2} MiB sent for each",
            self.took.len(),
            self.proxies,
            at(0.5),
            at(0.99),
            at(1.0),
        )
    }
}

async fn changes(
    api: &Api,
    args: &Args,
    cluster: World,
    fleet: &Fleet,
    plans: &[Plan],
    sort: Sort,
) -> Result<Figures> {
    let before = fleet.bytes.load(Ordering::Relaxed);
    let mut figures = Figures { took: Vec::new(), bytes: 0, proxies: 0 };
    // What an earlier run has left there is no change.
    let first = fastrand::usize(..world::PASSING - usize::from(args.changes));
    for number in 0..usize::from(args.changes) {
        let service = number * 37 % args.services;
        let host = world::host(service);
        let subscribed = plans.iter().filter(|plan| plan.hosts.contains(&host)).count();
        ensure!(subscribed > 0, "nobody uses {host}");
        let (kind, mark, path, change) = match sort {
            Sort::Endpoint => {
                let ip = world::passing_ip(first + number);
                let change = json!({"endpoints": cluster.endpoints_of(service, Some(ip))});
                (ResourceType::Endpoints, Mark::Endpoint(ip), world::slice_path(service), change)
            }
            Sort::Routes => {
                let mark = format!("mark-{}-changed", first + number);
                let change = json!({"spec": {"http": world::http_routes(service, &mark)}});
                (ResourceType::Host, Mark::Text(mark), world::routes_path(service), change)
            }
        };
        let awaited = fleet.board.put(kind, host.clone(), mark, plans.len(), subscribed);
        let started = Instant::now();
        api.merge(&path, &change).await?;
        let Ok(last) = timeout(CHANGE_PATIENCE, awaited.finished()).await else {
            bail!("{} of {subscribed} proxies have no change {number} of {host}", awaited.left());
        };
        figures.took.push(u64::try_from(last.duration_since(started).as_micros())?);
        figures.proxies = figures.proxies.max(subscribed);
        tokio::time::sleep(PAUSE).await;
    }
    figures.took.sort_unstable();
    figures.bytes = fleet.bytes.load(Ordering::Relaxed) - before;
    Ok(figures)
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[test]
    fn every_service_is_used_by_as_many() {
        let args =
            ["x", "--controller", "a", "--kubeconfig", "b", "--services", "50", "--few-services", "10"];
        let args = Args::parse_from(args);
        let mut used = vec![0; 50];
        for proxy in 0..100 {
            let uses = uses(proxy, &args);
            assert_eq!(uses.len(), 10);
            uses.into_iter().for_each(|service| used[service] += 1);
        }
        assert_eq!(used, vec![20; 50]);
    }

    #[test]
    fn figures_are_told() {
        let figures = Figures { took: (1..=100).map(|ms| ms * 1000).collect(), bytes: 100 << 20, proxies: 7 };
        assert_eq!(
            figures.to_string(),
            "100 changes, up to 7 proxies each: p50 50.0ms, p99 99.0ms, longest 100.0ms; 1.00 MiB sent for each"
        );
    }
}
