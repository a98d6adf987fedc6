//! One measurement: a load for a while, and what it cost the proxies.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

use crate::load::{Load, Outcome};
use crate::proc::{Proc, cpu_seconds, rss_mib};
use crate::report::{Metric, Sample};
use crate::stage::Stage;

/// Seconds of load before each measurement: connections are made, caches filled, pools grown.
pub const WARM_UP: u32 = 1;

/// How long the access logs are given to get to their files.
const FLUSH: Duration = Duration::from_millis(1200);

/// How often memory is looked at during a measurement; the highest value counts.
const LOOK: Duration = Duration::from_millis(250);

/// Requests per second.
pub const RPS: Metric = Metric::new("requests_per_second", "requests/s", 0);
/// The median latency.
pub const P50: Metric = Metric::plain("p50_ms", "p50 ms", 2);
/// The 99th percentile.
pub const P99: Metric = Metric::plain("p99_ms", "p99 ms", 2);
/// CPU time of the proxies per request.
pub const CPU: Metric = Metric::new("cpu_us_per_request", "CPU us/req", 1);
/// Memory of the proxies.
pub const RSS: Metric = Metric::new("rss_mib", "RSS MiB", 1);
/// By how much their memory grew under the load.
pub const GROWN: Metric = Metric::plain("grown_mib", "grown MiB", 1);
/// Share of their core that the proxies used.
pub const BUSY: Metric = Metric::plain("busy_percent", "busy %", 0);

/// Share of the requests that are in the access log: a peer must not win by leaving that out unseen.
pub const LOGGED: Metric = Metric::plain("logged_percent", "logged %", 0);

/// What is measured of HTTP.
pub const HTTP: &[Metric] = &[RPS, CPU, P50, P99, RSS, BUSY, LOGGED];

/// A proxy, or a chain of them, that runs.
#[derive(Debug)]
pub struct Running {
    /// The processes that are measured together.
    pub procs: Vec<Proc>,
    /// Where the load goes.
    pub target: SocketAddr,
}

impl Running {
    /// One process.
    pub fn one(proc: Proc, target: SocketAddr) -> Self {
        Self { procs: vec![proc], target }
    }

    /// All processes, the workers of a master too.
    pub fn pids(&self) -> Vec<u32> {
        self.procs.iter().flat_map(Proc::pids).collect()
    }

    /// The lines of the access logs so far, of the process that wrote the fewest; none when nobody writes one.
    fn logged(&self) -> Result<Option<u64>> {
        let counts: Result<Vec<Option<u64>>> = self.procs.iter().map(Proc::logged).collect();
        Ok(counts?.into_iter().flatten().min())
    }

    /// An error when one of them has ended.
    ///
    /// # Errors
    /// With the last lines of its output.
    pub fn check(&mut self) -> Result<()> {
        self.procs.iter_mut().try_for_each(Proc::check)
    }
}

/// What some work cost.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// CPU time, in seconds.
    pub cpu: f64,
    /// Wall time, in seconds.
    pub wall: f64,
    /// The highest resident memory seen, in MiB.
    pub rss: f64,
}

/// Does some work, and tells what it cost these processes.
///
/// # Errors
/// When the work fails or a process is gone.
pub async fn costing<T>(pids: &[u32], work: impl Future<Output = Result<T>>) -> Result<(T, Cost)> {
    let begun = Instant::now();
    let before = cpu_seconds(pids)?;
    let mut rss: f64 = 0.0;
    let mut look = tokio::time::interval(LOOK);
    let mut work = std::pin::pin!(work);
    let done = loop {
        tokio::select! {
            done = work.as_mut() => break done?,
            _ = look.tick() => rss = rss.max(rss_mib(pids)?),
        }
    };
    let cpu = cpu_seconds(pids)? - before;
    let wall = begun.elapsed().as_secs_f64();
    Ok((done, Cost { cpu, wall, rss: rss.max(rss_mib(pids)?) }))
}

/// Warms up, then measures an HTTP load.
///
/// # Errors
/// When anything but good answers came, also during the warm-up.
pub async fn http(stage: &Stage, running: &mut Running, load: &Load) -> Result<Sample> {
    let good = |outcome: Outcome| match outcome.trouble {
        None => Ok(outcome),
        Some(trouble) => bail!("{trouble}"),
    };
    let pids = running.pids();
    let rss_before = rss_mib(&pids)?;
    good(load.run(WARM_UP, stage.scratch()).await?)?;
    tokio::time::sleep(FLUSH).await;
    let logged_before = running.logged()?;
    let (outcome, cost) = costing(&pids, load.run(stage.options.seconds, stage.scratch())).await?;
    let outcome = good(outcome)?;
    running.check()?;
    let mut sample = Sample::from([
        (RPS.id, outcome.requests / outcome.seconds),
        (CPU.id, cost.cpu * 1e6 / outcome.requests),
        (P50.id, outcome.p50_ms),
        (P99.id, outcome.p99_ms),
        (RSS.id, cost.rss),
        (GROWN.id, cost.rss - rss_before),
        (BUSY.id, cost.cpu / cost.wall * 100.0),
    ]);
    tokio::time::sleep(FLUSH).await;
    if let (Some(before), Some(after)) = (logged_before, running.logged()?) {
        #[expect(clippy::cast_precision_loss, reason = "lines of a short run")]
        let lines = after.saturating_sub(before) as f64;
        // Requests that were cut off at the end of the load are logged too.
        sample.insert(LOGGED.id, (lines / outcome.requests * 100.0).min(100.0));
    }
    Ok(sample)
}
