//! `mesh-proxy demo`: a small mesh at work on this machine, and whether it keeps its promises.
//!
//! Two versions of a service and one caller, each with a sidecar process of its own; load from the caller;
//! half way the VirtualService changes from 90/10 to 50/50; one call is tried that a policy forbids. Real
//! processes, real certificates, the files that a user would write.

mod load;
mod services;
mod sidecars;
mod table;
mod yaml;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::time::Instant;

use crate::args::DemoArgs;
use load::{Load, Window};
use sidecars::Sidecar;
use table::{Row, Table};

/// The shortest demo in which each half sees enough requests to judge a split.
const SHORTEST: Duration = Duration::from_secs(4);
/// With fewer requests than these a split says nothing.
const FEWEST: u32 = 30;
/// How often the table is brought up to date.
const TICK: Duration = Duration::from_millis(500);
/// How long an edit may take to come into force.
const EDIT_WITHIN: Duration = Duration::from_secs(1);

/// The weights before and after the edit, for v1.
const BEFORE: u32 = 90;
const AFTER: u32 = 50;

/// Runs the demo; success only if all that it shows held.
pub(crate) async fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    ensure!(args.duration >= SHORTEST, "--duration is too short; give it at least 4s");
    let dir = tempfile::Builder::new().prefix("mesh-demo-").tempdir().context("no temporary directory")?;
    let outcome = tokio::select! {
        outcome = show(args.duration, dir.path()) => outcome,
        _ = tokio::signal::ctrl_c() => {
            println!("\nstopped");
            return Ok(ExitCode::from(130));
        }
    };
    let code = match &outcome {
        Ok(broken) if broken.is_empty() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    };
    if args.keep || code != ExitCode::SUCCESS {
        println!("the demo's files are kept in {}", dir.keep().display());
    }
    let broken = outcome?;
    if broken.is_empty() {
        println!("everything held");
    }
    for promise in &broken {
        println!("NOT HELD: {promise}");
    }
    Ok(code)
}

/// What the demo has to know of a running mesh.
struct Running {
    config: PathBuf,
    outbound: SocketAddr,
    web: Sidecar,
    reviews: [Sidecar; 2],
    ports: yaml::Ports,
}

async fn start(dir: &Path) -> anyhow::Result<Running> {
    let config = dir.join("config");
    std::fs::create_dir_all(&config)?;
    let apps = [services::start("v1").await?, services::start("v2").await?];
    let ports = yaml::Ports { v1: free_port()?, v2: free_port()? };
    yaml::write(&config, &ports, BEFORE)?;
    println!("the mesh's configuration, as its user writes it: {}", config.display());

    let outbound = loopback(free_port()?);
    let web = Sidecar::start(dir, "web", None, Some(outbound)).await?;
    let v1 = Sidecar::start(dir, "reviews-v1", Some((loopback(ports.v1), apps[0])), None).await?;
    let v2 = Sidecar::start(dir, "reviews-v2", Some((loopback(ports.v2), apps[1])), None).await?;
    for sidecar in [&web, &v1, &v2] {
        println!("  sidecar {:<10} pid {:<7} ready after {} ms", sidecar.name, sidecar.pid, sidecar.ready_ms);
    }
    Ok(Running { config, outbound, web, reviews: [v1, v2], ports })
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

async fn show(duration: Duration, dir: &Path) -> anyhow::Result<Vec<String>> {
    let mut broken = Vec::new();
    let mesh = start(dir).await?;
    let load = Load::start(mesh.outbound, "reviews:9080");
    let mut table = Table::new(std::io::stdout().is_terminal());
    let started = Instant::now();
    let half = duration / 2;

    let first = phase(&load, &mut table, started, started + half, BEFORE).await;
    yaml::write(&mesh.config, &mesh.ports, AFTER)?;
    table.note("the VirtualService is edited: 90/10 becomes 50/50");
    let edited = Instant::now();
    // What the edit takes is not judged as a split, but its failures count like any other's.
    tokio::time::sleep_until(edited + EDIT_WITHIN).await;
    let between = load.take();
    let second = phase(&load, &mut table, started, started + duration, AFTER).await;
    let failures = load.stop().await;
    table.end();

    judge_split(&mut broken, "before the edit", &first, BEFORE);
    judge_split(&mut broken, "from 1 s after the edit on", &second, AFTER);
    let total = first.requests() + between.requests() + second.requests();
    println!("{total} requests, {} failed", failures.count);
    if let Some(error) = &failures.first {
        broken.push(format!("no failed request: {} failed, the first with: {error}", failures.count));
    }
    refusal(&mut broken, &mesh).await;
    identities(&mut broken, &mesh).await;
    let [v1, v2] = mesh.reviews;
    for sidecar in [mesh.web, v1, v2] {
        if let Err(error) = sidecar.stop().await {
            broken.push(format!("each sidecar drains and ends with 0: {error:#}"));
        }
    }
    Ok(broken)
}

/// Watches the load until `end`; returns what it saw.
async fn phase(load: &Load, table: &mut Table, started: Instant, end: Instant, weight: u32) -> Window {
    let mut all = Window::default();
    while Instant::now() < end {
        let from = Instant::now();
        tokio::time::sleep_until((from + TICK).min(end)).await;
        let window = load.take();
        table.row(&Row { at: started.elapsed(), weight, window: &window, over: from.elapsed() });
        all.add(window);
    }
    all
}

/// Whether the share of v1 is the weight, within what chance allows (four standard deviations).
fn judge_split(broken: &mut Vec<String>, when: &str, seen: &Window, weight: u32) {
    let n = f64::from(seen.requests());
    let want = f64::from(weight) / 100.0;
    let share = seen.share_v1();
    let slack = 4.0 * (want * (1.0 - want) / n.max(1.0)).sqrt();
    println!("{when}: {:.1}% to v1, {weight}% wanted ({} requests)", share * 100.0, seen.requests());
    if seen.requests() < FEWEST {
        broken.push(format!("enough requests to judge the split {when}: there were {}", seen.requests()));
    } else if (share - want).abs() > slack {
        broken.push(format!("the split {when}: {:.1}% to v1 instead of {weight}%", share * 100.0));
    }
}

/// Tries what a policy forbids: to write.
async fn refusal(broken: &mut Vec<String>, mesh: &Running) {
    println!("trying what AuthorizationPolicy default/reviews-readers forbids: POST /reviews/1");
    let reply = match load::once(mesh.outbound, "reviews:9080", "POST", "/reviews/1").await {
        Ok(reply) => reply,
        Err(error) => return broken.push(format!("the forbidden call is answered: {error:#}")),
    };
    println!("  {} x-mesh-reason: {} ({:?})", reply.status, reply.reason, reply.body.trim_end());
    if (reply.status, reply.reason.as_str()) != (403, "denied") {
        broken.push(format!("the forbidden call gets 403 denied: it got {} {}", reply.status, reply.reason));
    }
    for sidecar in &mesh.reviews {
        if let Some(line) = sidecar.log_line("\"reason\":\"denied\"").await {
            println!("  the sidecar of {} logged: {line}", sidecar.name);
            if !line.contains("default/reviews-readers") {
                broken.push("the log line of the refusal names the policy".into());
            }
            return;
        }
    }
    broken.push("the refusal stands in a sidecar's access log".into());
}

/// Whether both ends say of each other who they are.
async fn identities(broken: &mut Vec<String>, mesh: &Running) {
    const WEB: &str = "spiffe://cluster.local/ns/default/sa/web";
    const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/reviews";
    let caller = mesh.web.series("istio_requests_total", &[("destination_principal", REVIEWS)]).await;
    println!("on the wire: web sees {REVIEWS} in {caller} requests");
    let mut called = 0;
    for sidecar in &mesh.reviews {
        let labels = [("source_principal", WEB), ("connection_security_policy", "mutual_tls")];
        called += sidecar.series("istio_requests_total", &labels).await;
    }
    println!("on the wire: reviews sees {WEB} in {called} requests, all over mutual TLS");
    if caller == 0 || called == 0 {
        broken.push("both ends prove their identities to one another".into());
    }
}
