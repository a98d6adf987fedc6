//! Two sidecars with mTLS between them: `mtls`, `h2mtls`.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail, ensure};
use mesh_test::client::{self, Call, Conn, Protocol};

use super::{Prepared, Wire, plain};
use crate::measure::{self, Running};
use crate::peer::Peer;
use crate::proc::{Proc, Spawn};
use crate::report::Sample;
use crate::stage::{Ours, Stage};
use crate::template::Values;

/// The values of the configurations; `inbound` is where the server's sidecar takes calls.
///
/// # Errors
/// When there is no backend.
pub fn values(prepared: &Prepared, wire: Wire, inbound: SocketAddr) -> Result<Values> {
    let alpn = if wire == Wire::H1 { "istio-http/1.1, istio, http/1.1" } else { "istio-h2, istio, h2" };
    Ok(plain::values(prepared, wire, 64)?.with("INBOUND", inbound.port()).with("ALPN", alpn))
}

/// Starts the sidecar of the client, in the name of `account`.
async fn client_side(
    stage: &Stage,
    peer: Peer,
    account: &str,
    values: &Values,
    listen: SocketAddr,
) -> Result<Proc> {
    if peer.is_ours() {
        let workload = format!("default/{account}");
        let ours = Ours { config: "mtls", workload: &workload, outbound: Some(listen), ..Ours::default() };
        return stage.ours(peer, &ours, values).await;
    }
    let identity = stage.identity(account)?;
    let values = values.clone().with("PORT", listen.port()).with("IDENTITY", identity.display());
    stage.envoy("envoy-mtls-client.yaml", &values).await
}

/// The command line of the server's sidecar, and its admin port.
///
/// # Errors
/// When its configuration cannot be written.
pub fn server_spawn(
    stage: &Stage,
    prepared: &Prepared,
    peer: Peer,
    values: &Values,
    inbound: SocketAddr,
) -> Result<(Spawn, SocketAddr)> {
    let app = prepared.backend(0)?;
    if peer.is_ours() {
        let ours = Ours {
            config: "mtls",
            workload: "default/reviews-1",
            inbound: Some((inbound, app)),
            ..Ours::default()
        };
        return stage.ours_spawn(peer, &ours, values);
    }
    let identity = stage.identity("reviews")?;
    let values = values
        .clone()
        .with("PORT", inbound.port())
        .with("IDENTITY", identity.display())
        .with("APP", app.port());
    stage.envoy_spawn("envoy-mtls-server.yaml", &values)
}

/// Starts both sidecars, looks whether they protect, and measures them.
///
/// # Errors
/// When something does not work, or did not all the time.
pub async fn measure(
    stage: &Stage,
    prepared: &Prepared,
    peer: Peer,
    wire: Wire,
    first: bool,
) -> Result<Sample> {
    let (inbound, listen) = (mesh_test::ports::free_addr(), mesh_test::ports::free_addr());
    let values = values(prepared, wire, inbound)?;
    let (spawn, admin) = server_spawn(stage, prepared, peer, &values, inbound)?;
    let server = stage.start_ready(spawn, admin).await?;
    let client = client_side(stage, peer, "web", &values, listen).await?;
    let mut running = Running { procs: vec![client, server], target: listen };
    if first {
        plain::verify(listen, wire, false).await.context("a call of the admitted identity")?;
        refuses_plaintext(inbound, wire).await?;
        let at = mesh_test::ports::free_addr();
        let _other = client_side(stage, peer, "other", &values, at).await?;
        denies(at, wire).await?;
    }
    let load = plain::load(stage, listen, wire, 64)?;
    measure::http(stage, &mut running, &load).await
}

fn protocol(wire: Wire) -> Protocol {
    if wire == Wire::H1 { Protocol::H1 } else { Protocol::H2 }
}

/// Plaintext at the server's sidecar gets no answer of the application's.
async fn refuses_plaintext(inbound: SocketAddr, wire: Wire) -> Result<()> {
    let answer = match protocol(wire) {
        Protocol::H1 => client::get(inbound, plain::HOST, "/reviews/7").await,
        Protocol::H2 => client::get_h2(inbound, plain::HOST, "/reviews/7").await,
    };
    match answer {
        Ok(reply) => bail!("plaintext at the server's sidecar is answered with {}", reply.status),
        Err(_) => Ok(()),
    }
}

/// Another identity is let in by TLS and kept out by policy.
async fn denies(at: SocketAddr, wire: Wire) -> Result<()> {
    let mut conn = Conn::open(at, protocol(wire)).await.context("to connect")?;
    let reply = conn.send(&Call::get(plain::HOST, "/reviews/7")).await.context("a call")?;
    ensure!(reply.status == 403, "another identity gets {} instead of 403", reply.status);
    Ok(())
}
