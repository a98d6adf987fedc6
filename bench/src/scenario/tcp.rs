//! Bytes: `tcp`.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Prepared;
use crate::args::TcpWork;
use crate::measure::{self, BUSY, P50, P99, RSS, Running, WARM_UP};
use crate::peer::Peer;
use crate::proc::Proc;
use crate::report::{Metric, Sample};
use crate::stage::{Ours, Stage};
use crate::template::Values;

/// Bytes that arrived, in 10^6 per second.
const MB_S: Metric = Metric::new("megabytes_per_second", "MB/s", 0);
/// CPU time of the proxies for 10^6 bytes.
const CPU_MB: Metric = Metric::new("cpu_us_per_megabyte", "CPU us/MB", 1);
/// Messages there and back in a second.
const TRIPS: Metric = Metric::new("round_trips_per_second", "trips/s", 0);
/// CPU time of the proxies for a message there and back.
const CPU_TRIP: Metric = Metric::new("cpu_us_per_round_trip", "CPU us/trip", 2);
/// What is measured of a stream.
pub const BULK: &[Metric] = &[MB_S, CPU_MB, RSS, BUSY];
/// What is measured of messages.
pub const PINGPONG: &[Metric] = &[TRIPS, CPU_TRIP, P50, P99, RSS, BUSY];

/// What the client asks its sidecar for.
const TUNNEL: &str = "db:9000";

/// Starts the backend.
///
/// # Errors
/// When it does not listen.
pub async fn prepare(stage: &Stage) -> Result<Prepared> {
    let listen = mesh_test::ports::free_addr();
    let args = ["tcp-backend".into(), "--listen".into(), listen.to_string()];
    let proc = stage.role(&args, false, listen).await?;
    Ok(Prepared { backends: vec![listen], procs: vec![proc], ..Prepared::default() })
}

/// Starts one hop in plaintext.
async fn plain(stage: &Stage, app: SocketAddr, peer: Peer) -> Result<Running> {
    let listen = mesh_test::ports::free_addr();
    let values =
        Values::new().with("APP", app.port()).with("INBOUND", listen.port()).with("PORT", listen.port());
    let proc = match peer {
        Peer::Ours | Peer::OursB => {
            let db = Ours {
                config: "tcp",
                workload: "default/db-1",
                inbound: Some((listen, app)),
                ..Ours::default()
            };
            stage.ours(peer, &db, &values).await?
        }
        Peer::Envoy => stage.envoy("envoy-tcp.yaml", &values).await?,
        Peer::Nginx => stage.nginx("nginx-stream.conf", &values, listen).await?,
        Peer::Haproxy => stage.haproxy("haproxy-tcp.cfg", &values, listen).await?,
        Peer::Relay => {
            let mut args = ["tcp-relay", "--listen"].map(str::to_owned).to_vec();
            args.extend([listen.to_string(), "--to".into(), app.to_string()]);
            stage.role(&args, true, listen).await?
        }
        _ => bail!("no part of this scenario"),
    };
    Ok(Running::one(proc, listen))
}

/// Starts the sidecar of the client, in the name of `account`.
async fn client_side(
    stage: &Stage,
    peer: Peer,
    values: &Values,
    account: &str,
) -> Result<(Proc, SocketAddr)> {
    let listen = mesh_test::ports::free_addr();
    let workload = format!("default/{account}");
    let proc = if peer.is_ours() {
        let web = Ours { config: "tcp-mtls", workload: &workload, outbound: Some(listen), ..Ours::default() };
        stage.ours(peer, &web, values).await?
    } else {
        let identity = stage.identity(account)?;
        let values = values.clone().with("PORT", listen.port()).with("IDENTITY", identity.display());
        stage.envoy("envoy-tcp-mtls-client.yaml", &values).await?
    };
    Ok((proc, listen))
}

/// Starts two sidecars with mTLS between them, and looks in the first round whether they protect.
async fn mtls(stage: &Stage, app: SocketAddr, peer: Peer, first: bool) -> Result<Running> {
    let inbound = mesh_test::ports::free_addr();
    let values = Values::new().with("APP", app.port()).with("INBOUND", inbound.port());
    let server = if peer.is_ours() {
        let db = Ours {
            config: "tcp-mtls",
            workload: "default/db-1",
            inbound: Some((inbound, app)),
            ..Ours::default()
        };
        stage.ours(peer, &db, &values).await?
    } else {
        let identity = stage.identity("db")?;
        let values = values.clone().with("PORT", inbound.port()).with("IDENTITY", identity.display());
        stage.envoy("envoy-tcp-mtls-server.yaml", &values).await?
    };
    let (client, listen) = client_side(stage, peer, &values, "web").await?;
    if first {
        ensure!(echo(inbound, None).await.is_err(), "plaintext at the server's sidecar is answered");
        let (_other, at) = client_side(stage, peer, &values, "other").await?;
        ensure!(echo(at, tunnel(peer)).await.is_err(), "another identity is let through");
    }
    Ok(Running { procs: vec![client, server], target: listen })
}

fn tunnel(peer: Peer) -> Option<&'static str> {
    peer.is_ours().then_some(TUNNEL)
}

/// A word there and back.
async fn echo(at: SocketAddr, tunnel: Option<&str>) -> Result<()> {
    let talk = async {
        let mut back = [0; 5];
        if let Some(target) = tunnel {
            let mut stream = mesh_test::client::connect_tunnel(at, target).await?;
            stream.write_all(b"hello").await?;
            stream.read_exact(&mut back).await?;
        } else {
            let mut stream = TcpStream::connect(at).await?;
            stream.write_all(b"hello").await?;
            stream.read_exact(&mut back).await?;
        }
        ensure!(&back == b"hello", "something else came back");
        Ok(())
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), talk).await.context("no answer in time")?
}

/// Starts a peer, looks whether it works, and measures it.
///
/// # Errors
/// When it does not work, or did not all the time.
pub async fn measure(
    stage: &Stage,
    prepared: &Prepared,
    peer: Peer,
    (work, with_mtls): (TcpWork, bool),
    first: bool,
) -> Result<Sample> {
    let app = prepared.backend(0)?;
    let mut running =
        if with_mtls { mtls(stage, app, peer, first).await? } else { plain(stage, app, peer).await? };
    let tunnel = tunnel(peer).filter(|_| with_mtls);
    echo(running.target, tunnel).await.context("a word there and back")?;
    let connections = if work == TcpWork::Bulk { 1 } else { 32 };
    let load = |seconds: u32| {
        let mut args = ["tcp-load", "--to"].map(str::to_owned).to_vec();
        args.extend([running.target.to_string(), "--work".into(), work.name().into()]);
        args.extend([
            "--connections".into(),
            connections.to_string(),
            "--seconds".into(),
            seconds.to_string(),
        ]);
        args.extend(tunnel.into_iter().flat_map(|target| ["--tunnel".to_owned(), target.to_owned()]));
        args
    };
    let (warm_up, measured) = (load(WARM_UP), load(stage.options.seconds));
    let pids = running.pids();
    stage.load_role(&warm_up).await?;
    let (found, cost) = measure::costing(&pids, stage.load_role(&measured)).await?;
    running.check()?;
    let mut sample = Sample::from([(RSS.id, cost.rss), (BUSY.id, cost.cpu / cost.wall * 100.0)]);
    match work {
        TcpWork::Bulk => {
            let megabytes = found.count / 1e6;
            sample.extend([(MB_S.id, megabytes / found.seconds), (CPU_MB.id, cost.cpu * 1e6 / megabytes)]);
        }
        TcpWork::Pingpong => sample.extend([
            (TRIPS.id, found.count / found.seconds),
            (CPU_TRIP.id, cost.cpu * 1e6 / found.count),
            (P50.id, found.p50_us / 1e3),
            (P99.id, found.p99_us / 1e3),
        ]),
    }
    Ok(sample)
}
