//! What a proxy adds to a request's time when it is not under pressure: `latency`.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};

use super::{Prepared, Wire, plain};
use crate::load::Load;
use crate::measure::{BUSY, Running, WARM_UP, costing};
use crate::peer::Peer;
use crate::report::{Metric, Row, Sample};
use crate::stage::Stage;

const P50: Metric = Metric::plain("p50_us", "p50 us", 0);
const P99: Metric = Metric::plain("p99_us", "p99 us", 0);
const P999: Metric = Metric::plain("p999_us", "p99.9 us", 0);
const ADDED_P50: Metric = Metric::new("added_p50_us", "added p50", 0);
const ADDED_P99: Metric = Metric::new("added_p99_us", "added p99", 0);
const ADDED_P999: Metric = Metric::new("added_p999_us", "added p99.9", 0);
/// What is measured.
pub const METRICS: &[Metric] = &[ADDED_P50, ADDED_P99, ADDED_P999, P50, P99, P999, BUSY];

/// The rate, as a share of what the slowest peer can do.
const SHARE: f64 = 0.3;

/// Connections of the load: at these rates there is always one free, unless a proxy stalls.
const CONNECTIONS: u32 = 64;

/// Seconds for finding out what a peer can do.
const CAPACITY_SECONDS: u32 = 2;

/// Finds the rate: the same for all.
///
/// # Errors
/// When a peer does not work.
pub async fn find_rate(stage: &Stage, prepared: &mut Prepared, peers: &[Peer]) -> Result<()> {
    let mut lowest: Option<(f64, Peer)> = None;
    for peer in peers.iter().copied().filter(|peer| *peer != Peer::Direct) {
        let running = start(stage, prepared, peer).await?;
        let url = format!("http://{}/reviews/7", running.target);
        let load = Load::Wrk { url, host: plain::HOST.into(), connections: CONNECTIONS, script: None };
        load.run(WARM_UP, stage.scratch()).await?;
        let outcome = load.run(CAPACITY_SECONDS, stage.scratch()).await?;
        // A peer that fails is reported by its own row; it must not set the pace.
        if outcome.trouble.is_none() {
            let capacity = outcome.requests / outcome.seconds;
            if lowest.is_none_or(|(least, _)| capacity < least) {
                lowest = Some((capacity, peer));
            }
        }
    }
    let (capacity, peer) = lowest.context("no peer works")?;
    // In steps, so that two runs on one machine are often at the same rate.
    let rate = (capacity * SHARE / 500.0).floor() * 500.0;
    ensure!(rate > 0.0, "{} does {capacity:.0} requests/s, too few for this", peer.name());
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive, modest number")]
    {
        prepared.rate = rate as u32;
    }
    prepared.notes.push(format!(
        "{rate:.0} requests/s for all: {:.0}% of the {capacity:.0} that the slowest, {}, can do",
        SHARE * 100.0,
        peer.name()
    ));
    Ok(())
}

async fn start(stage: &Stage, prepared: &Prepared, peer: Peer) -> Result<Running> {
    plain::start(stage, prepared, peer, Wire::H1, CONNECTIONS).await
}

/// The command line of the load.
fn load(target: SocketAddr, rate: u32, seconds: u32) -> Vec<String> {
    let count = u64::from(rate) * u64::from(seconds);
    let mut args = ["open-loop", "--to"].map(str::to_owned).to_vec();
    args.extend([target.to_string(), "--host".into(), plain::HOST.into()]);
    args.extend(["--rate".into(), rate.to_string(), "--count".into(), count.to_string()]);
    args.extend(["--connections".into(), CONNECTIONS.to_string()]);
    args
}

/// Measures a peer, or the way to the backend without one.
///
/// # Errors
/// When it does not work, or did not all the time.
pub async fn measure(stage: &Stage, prepared: &Prepared, peer: Peer) -> Result<Sample> {
    let mut running = match peer {
        Peer::Direct => Running { procs: Vec::new(), target: prepared.backend(0)? },
        _ => start(stage, prepared, peer).await?,
    };
    let args = |seconds| load(running.target, prepared.rate, seconds);
    let (warm_up, measured) = (args(WARM_UP), args(stage.options.seconds));
    let pids = running.pids();
    stage.load_role(&warm_up).await?;
    let (found, cost) = costing(&pids, stage.load_role(&measured)).await?;
    running.check()?;
    Ok(Sample::from([
        (P50.id, found.p50_us),
        (P99.id, found.p99_us),
        (P999.id, found.p999_us),
        (BUSY.id, cost.cpu / cost.wall * 100.0),
    ]))
}

/// Takes the time without a proxy off, round by round.
pub fn finish(rows: &mut [Row]) {
    let direct = rows.iter().find(|row| row.peer == Peer::Direct).map(|row| row.rounds.clone());
    let direct = direct.unwrap_or_default();
    for row in rows.iter_mut().filter(|row| row.peer != Peer::Direct) {
        for (sample, without) in row.rounds.iter_mut().zip(&direct) {
            for (added, whole) in [(ADDED_P50, P50), (ADDED_P99, P99), (ADDED_P999, P999)] {
                if let (Some(with), Some(without)) = (sample.get(whole.id), without.get(whole.id)) {
                    let difference = with - without;
                    sample.insert(added.id, difference);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_is_the_difference_in_the_same_round() {
        let row = |peer, values: &[f64]| Row {
            peer,
            rounds: values.iter().map(|value| Sample::from([(P50.id, *value)])).collect(),
            error: None,
        };
        let mut rows = [row(Peer::Ours, &[150.0, 260.0]), row(Peer::Direct, &[100.0, 200.0])];
        finish(&mut rows);
        let added: Vec<f64> = rows[0].rounds.iter().map(|sample| sample[ADDED_P50.id]).collect();
        assert_eq!(added, [50.0, 60.0]);
        assert!(!rows[1].rounds[0].contains_key(ADDED_P50.id));
    }
}
