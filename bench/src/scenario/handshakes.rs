//! New connections: `handshakes`.

use anyhow::{Result, ensure};

use super::{Prepared, Wire, mtls};
use crate::measure::{self, BUSY, P50, P99, RSS, Running, WARM_UP};
use crate::peer::Peer;
use crate::report::{Metric, Sample};
use crate::stage::Stage;

/// Handshakes in a second of the proxy's CPU time: the client is slower than the proxy.
const PER_CPU: Metric = Metric::new("handshakes_per_cpu_second", "per CPU s", 0);
const CPU: Metric = Metric::new("cpu_us_per_handshake", "CPU us each", 1);
const RATE: Metric = Metric::plain("handshakes_per_second", "per s", 0);
/// What is measured.
pub const METRICS: &[Metric] = &[PER_CPU, CPU, RATE, P50, P99, RSS, BUSY];

/// Connections at once.
const CONCURRENCY: u32 = 8;

/// Starts the server's sidecar, and measures it.
///
/// # Errors
/// When a handshake or a request fails.
pub async fn measure(stage: &Stage, prepared: &Prepared, peer: Peer) -> Result<Sample> {
    let inbound = mesh_test::ports::free_addr();
    let values = mtls::values(prepared, Wire::H1, inbound)?;
    let (spawn, admin) = mtls::server_spawn(stage, prepared, peer, &values, inbound)?;
    let mut running = Running::one(stage.start_ready(spawn, admin).await?, inbound);
    let load = |seconds: u32| {
        let mut args = ["handshakes", "--to"].map(str::to_owned).to_vec();
        args.extend([inbound.to_string(), "--ca".into(), stage.ca_dir().display().to_string()]);
        args.extend(["--concurrency".into(), CONCURRENCY.to_string()]);
        args.extend(["--seconds".into(), seconds.to_string()]);
        args
    };
    let (warm_up, measured) = (load(WARM_UP), load(stage.options.seconds));
    let pids = running.pids();
    stage.load_role(&warm_up).await?;
    let (found, cost) = measure::costing(&pids, stage.load_role(&measured)).await?;
    running.check()?;
    ensure!(found.count > 0.0 && cost.cpu > 0.0, "nothing was done");
    Ok(Sample::from([
        (PER_CPU.id, found.count / cost.cpu),
        (CPU.id, cost.cpu * 1e6 / found.count),
        (RATE.id, found.count / found.seconds),
        (P50.id, found.p50_us / 1e3),
        (P99.id, found.p99_us / 1e3),
        (RSS.id, cost.rss),
        (BUSY.id, cost.cpu / cost.wall * 100.0),
    ]))
}
