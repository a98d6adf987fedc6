//! The herd: proxies that lose the controller at the same moment, and come back.
//!
//! Each is a [`Client`], the very one of the sidecar: it waits between tries by the sidecar's back-off, and says what it
//! holds already, so that only what is different is sent.
//!
//! Connections that are spread evenly come within the time for which the controller was gone, or within the longest wait
//! of the back-off where that is shorter. That there is no herd means that no tenth of that time sees more than
//! [`PEAK`] times its share.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_bench::stats::percentile;
use mesh_core::store::WorkloadAddress;
use mesh_xds::client::{Bearer, BoxError, Change, Client, ClientLimits, Now, Refusal};
use mesh_xds::{Payload, ResourceType};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::api::Api;
use crate::args::{Args, Case};
use crate::controller::Controller;
use crate::proxy::{Fleet, Plan};
use crate::run::{self, CHANGE_PATIENCE, REST};
use crate::world::{self, World};

/// How many times its even share of the connections a tenth of the time may see.
pub const PEAK: f64 = 3.0;
/// Into how many parts that time is divided.
const PARTS: u32 = 10;
/// How often it is looked whether all are back.
const LOOK: Duration = Duration::from_millis(20);

/// What proxies tell.
#[derive(Debug, Default)]
struct Herd {
    /// When connections were made, TLS included.
    made: Mutex<Vec<Instant>>,
    /// Tries to connect.
    tries: AtomicUsize,
    /// What is waited for: the endpoint of a host.
    awaited: Mutex<Option<(String, Ipv4Addr)>>,
    /// How many have it.
    have: AtomicUsize,
}

impl Herd {
    fn connected(&self) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
    }

    /// The connections since they were asked for last, in their order.
    fn take(&self) -> Vec<Instant> {
        let mut made = std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner));
        made.sort_unstable();
        made
    }

    fn look_at(&self, changes: &[Change]) {
        let awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((host, ip)) = &*awaited else { return };
        let found = changes.iter().any(|change| match &change.now {
            Now::Content(payload) if *change.name == **host => match &**payload {
                Payload::Endpoints(endpoints) => {
                    let is_it = |address: &WorkloadAddress| *address == WorkloadAddress::Ip((*ip).into());
                    endpoints.groups.iter().flat_map(|g| &g.endpoints).any(|e| is_it(&e.address))
                }
                _ => false,
            },
            _ => false,
        });
        if found {
            self.have.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// Lives as the part of a sidecar does that follows its configuration.
async fn follow(client: Client, fleet: Arc<Fleet>, herd: Arc<Herd>, token: String) {
    let connect = || async {
        herd.tries.fetch_add(1, Ordering::Relaxed);
        let channel = fleet.channel().await.map_err(|error| BoxError::from(format!("{error:#}")))?;
        herd.connected();
        Ok(Bearer::new(channel, &token)?)
    };
    let sink = |changes: &[Change]| -> Vec<Refusal> {
        herd.look_at(changes);
        Vec::new()
    };
    client.run(connect, sink).await;
}

/// Asks for all that a proxy uses, and waits until it has it.
async fn warm(client: Client, plan: Plan) -> Result<()> {
    client.keep(ResourceType::Workload, &plan.workload).await?;
    for host in plan.hosts.iter() {
        for kind in [ResourceType::Host, ResourceType::Endpoints] {
            let told = client.subscribe(kind, host).await.with_context(|| format!("{kind} {host}"))?;
            ensure!(told.exists(), "{host} is said not to exist");
        }
    }
    Ok(())
}

/// Measures how proxies come back, after each of the times for which the controller is gone.
pub(crate) async fn measure(api: &Api, args: &Args, cluster: World) -> Result<()> {
    let plans = run::plans(api, args, Case::Herd).await?;
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("controller.log");
    let (mut controller, _) = Controller::start(&args.controller, &args.kubeconfig, &log).await?;
    println!("\n## Herd: {} proxies", plans.len());
    let (fleet, herd) = (run::fleet(api, &controller).await?, Arc::new(Herd::default()));
    // The first calls of all wait in one queue.
    let patience = Duration::from_secs(args.patience);
    let limits = ClientLimits { wait: patience, ..ClientLimits::default() };
    let mut following = JoinSet::new();
    let mut warming = JoinSet::new();
    let mut clients = Vec::new();
    for plan in &plans {
        let client = Client::new(&plan.workload, limits.clone());
        let (fleet, herd, token) = (Arc::clone(&fleet), Arc::clone(&herd), plan.token.clone());
        following.spawn(follow(client.clone(), fleet, herd, token));
        warming.spawn(warm(client.clone(), plan.clone()));
        clients.push(client);
    }
    while let Some(done) = warming.join_next().await {
        done?.with_context(|| controller.tail())?;
    }
    let before = controller.count("pushed_bytes_total").await?;
    println!("all warm; {:.1} MiB of resources sent", run::mib(before));
    for (number, away) in args.herd_away.iter().enumerate() {
        tokio::time::sleep(REST).await;
        herd.take();
        let resources = resources(&clients);
        let away = Duration::from_secs(*away);
        let killed = Instant::now();
        let until_ready;
        (controller, until_ready) = controller.killed_for(away, &args.controller, &args.kubeconfig).await?;
        let within = killed.elapsed().min(limits.backoff.longest);
        let (ready, tries) = (Instant::now(), herd.tries.load(Ordering::Relaxed));
        let back = timeout(patience, async {
            while clients.iter().any(|client| !client.is_connected()) {
                tokio::time::sleep(LOOK).await;
            }
        });
        back.await.with_context(|| format!("not all are back after {patience:?}\n{}", controller.tail()))?;
        let made = herd.take();
        let report = Report {
            proxies: plans.len(),
            // Connections may be made before it is known that it is ready.
            after: made.iter().map(|at| at.saturating_duration_since(ready)).collect(),
            spread: Spread::of(&made, within),
            tries: herd.tries.load(Ordering::Relaxed) - tries,
            cpu: controller.cpu()?,
            resources: self::resources(&clients) - resources,
            bytes: controller.count("pushed_bytes_total").await?,
        };
        println!("gone for {away:?}, and {:.1} s until it is ready: {report}", until_ready.as_secs_f64());
        ensure!(
            report.spread.over_even() <= PEAK,
            "a herd: more than {PEAK} times the share of an even spread"
        );
        let took = change(api, args, cluster, &herd, &plans, number).await;
        let took = took.with_context(|| controller.tail())?;
        println!("  a change is with all that use it after {:.0} ms", took.as_secs_f64() * 1000.0);
    }
    drop(following);
    controller.stop().await
}

/// How many resources they were sent so far.
fn resources(clients: &[Client]) -> u64 {
    clients.iter().map(|client| client.counters().read().resources).sum()
}

/// Lets an endpoint come, and waits until all that use it have it: who is back is served.
async fn change(
    api: &Api,
    args: &Args,
    cluster: World,
    herd: &Herd,
    plans: &[Plan],
    number: usize,
) -> Result<Duration> {
    let service = number % args.services;
    let (host, ip) = (world::host(service), world::passing_ip(fastrand::usize(..world::PASSING)));
    let users = plans.iter().filter(|plan| plan.hosts.contains(&host)).count();
    ensure!(users > 0, "nobody uses {host}");
    herd.have.store(0, Ordering::Release);
    *herd.awaited.lock().unwrap_or_else(PoisonError::into_inner) = Some((host.clone(), ip));
    let started = Instant::now();
    let change = json!({"endpoints": cluster.endpoints_of(service, Some(ip))});
    api.merge(&world::slice_path(service), &change).await?;
    timeout(CHANGE_PATIENCE, async {
        while herd.have.load(Ordering::Acquire) < users {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .with_context(|| format!("of {users} that use {host} not all have the change"))?;
    Ok(started.elapsed())
}

/// How connections are spread over time.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Spread {
    connections: usize,
    /// From the first to the last.
    over: Duration,
    /// The most in any one second.
    in_a_second: usize,
    /// The most in a part of the time within which an even spread would bring all.
    in_a_part: usize,
}

impl Spread {
    /// Of sorted times, where an even spread would have taken `within`.
    fn of(made: &[Instant], within: Duration) -> Self {
        let over = made.first().zip(made.last()).map_or(Duration::ZERO, |(first, last)| *last - *first);
        let most = |window: Duration| {
            let from = |(at, first): (usize, &Instant)| {
                made.iter().skip(at).take_while(|time| **time < *first + window).count()
            };
            made.iter().enumerate().map(from).max().unwrap_or(0)
        };
        let (in_a_second, in_a_part) = (most(Duration::from_secs(1)), most(within / PARTS));
        Self { connections: made.len(), over, in_a_second, in_a_part }
    }

    /// How many times its share the busiest part has.
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    fn over_even(self) -> f64 {
        let share = self.connections as f64 / f64::from(PARTS);
        if self.connections == 0 { 0.0 } else { self.in_a_part as f64 / share }
    }
}

/// How they came back.
struct Report {
    proxies: usize,
    /// How long after the controller was ready each connection was made, sorted.
    after: Vec<Duration>,
    spread: Spread,
    /// Tries to connect since then.
    tries: usize,
    cpu: f64,
    resources: u64,
    bytes: u64,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let micros: Vec<u64> =
            self.after.iter().map(|d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX)).collect();
        let at = |share| Duration::from_micros(percentile(&micros, share).unwrap_or_default()).as_secs_f64();
        let Spread { connections, over, in_a_second, .. } = self.spread;
        write!(
            f,
            "all {} proxies are back after {:.1} s (p50 {:.1}, p99 {:.1}); {connections} connections over {:.1} s, at \
             most {in_a_second} in a second, the busiest tenth {:.1} times its share; {} tries since it is ready; {} resources with {} \
             bytes sent; {:.2} CPU s of the controller since its start",
            self.proxies,
            at(1.0),
            at(0.5),
            at(0.99),
            over.as_secs_f64(),
            self.spread.over_even(),
            self.tries,
            self.resources,
            self.bytes,
            self.cpu,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_herd_is_told_from_a_spread() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let within = Duration::from_secs(10);
        let even: Vec<_> = (0..100).map(|i| at(i * 100)).collect();
        let spread = Spread::of(&even, within);
        assert_eq!((spread.connections, spread.in_a_second, spread.in_a_part), (100, 10, 10));
        assert_eq!(spread.over, Duration::from_millis(9900));
        assert_eq!(spread.over_even(), 1.0);
        // Half of them at once; and all, however short that is.
        let half: Vec<_> = (0..50).map(|_| at(0)).chain((0..50).map(|i| at(i * 200))).collect();
        let half = Spread::of(&half, within);
        assert!(half.over_even() > PEAK && half.in_a_second == 55, "{half:?}");
        let all = Spread::of(&[at(0); 100], Duration::from_secs(1));
        assert_eq!(all.over_even(), 10.0);
        assert_eq!(Spread::of(&[], within).over_even(), 0.0);
    }
}
