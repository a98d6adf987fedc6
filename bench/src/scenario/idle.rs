//! A sidecar that has nothing to do: its memory, and how long it takes from its start until it is ready.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::time::Instant;

use super::{Prepared, Wire, mtls};
use crate::peer::Peer;
use crate::proc::{Proc, Spawn, rss_mib};
use crate::report::{Metric, Sample};
use crate::stage::Stage;
use crate::stats::median;

/// From the start of the process to the first 200 at `/ready`.
pub const READY: Metric = Metric::new("ready_ms", "ready ms", 1);
/// What is measured.
pub const METRICS: &[Metric] = &[READY, crate::measure::RSS];

/// Starts in all rounds together, about.
const STARTS: u32 = 15;

/// Between two questions whether it is ready.
const POLL: Duration = Duration::from_micros(500);

/// How long a sidecar may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long it is left alone before its memory is looked at.
pub const SETTLE: Duration = Duration::from_secs(1);

/// Starts the sidecar of the server some times.
///
/// # Errors
/// When it does not become ready.
pub async fn measure(stage: &Stage, prepared: &Prepared, peer: Peer) -> Result<Sample> {
    let mut times = Vec::new();
    let mut rss = 0.0;
    let starts = STARTS.div_ceil(stage.options.rounds);
    for n in 0..starts {
        let inbound = mesh_test::ports::free_addr();
        let values = mtls::values(prepared, Wire::H1, inbound)?;
        let (spawn, admin) = mtls::server_spawn(stage, prepared, peer, &values, inbound)?;
        let (time, proc) = time_to_ready(spawn, admin).await?;
        times.push(time);
        if n + 1 == starts {
            tokio::time::sleep(SETTLE).await;
            rss = rss_mib(&proc.pids())?;
        }
    }
    let ready = median(&times).context("no start")?;
    Ok(Sample::from([(READY.id, ready), (crate::measure::RSS.id, rss)]))
}

/// Starts it and asks until it is ready; in milliseconds.
///
/// # Errors
/// When it does not become ready.
pub async fn time_to_ready(spawn: Spawn, admin: SocketAddr) -> Result<(f64, Proc)> {
    let begun = Instant::now();
    let mut proc = spawn.timed().start()?;
    while !is_ready(admin) {
        proc.check()?;
        if begun.elapsed() > PATIENCE {
            bail!("not ready after {PATIENCE:?}\n{}", proc.tail());
        }
        // The timers of the runtime are too coarse; but it must get to see an interruption.
        std::thread::sleep(POLL);
        tokio::task::yield_now().await;
    }
    Ok((begun.elapsed().as_secs_f64() * 1e3, proc))
}

fn is_ready(admin: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(admin)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut start = [0; 12];
        stream.read_exact(&mut start)?;
        Ok(&start == b"HTTP/1.1 200")
    };
    ask().unwrap_or(false)
}
