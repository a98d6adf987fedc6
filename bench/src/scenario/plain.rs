//! One hop: `plain`, `h2`, `grpc`, `conns`.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail, ensure};
use http::Method;
use mesh_test::client::{Call, Conn, Protocol};

use super::{Prepared, Wire};
use crate::load::Load;
use crate::measure::{self, Running};
use crate::peer::Peer;
use crate::report::Sample;
use crate::stage::{Ours, Stage};
use crate::template::Values;

/// The host that is called, in the words of the mesh.
pub const HOST: &str = "reviews:9080";

/// The limit on connections and on requests, of every peer: far above what is used, but looked at each time.
pub const LIMIT: u32 = 20_000;

/// Calls with which the split is looked at before the measurement.
const CALLS: u32 = 300;

/// A message of 32 bytes in gRPC's framing.
pub const MESSAGE: &[u8] = b"\x00\x00\x00\x00\x20xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";

/// The values of the configurations.
///
/// # Errors
/// When there are no backends.
pub fn values(prepared: &Prepared, wire: Wire, connections: u32) -> Result<Values> {
    let (port_name, upstream, proto) = match wire {
        Wire::H1 => ("http", "http_protocol_options", ""),
        Wire::H2 => ("http2", "http2_protocol_options", "proto h2"),
        Wire::Grpc => ("grpc", "http2_protocol_options", "proto h2"),
    };
    Ok(Values::new()
        .with("BACKEND_V1", prepared.backend(0)?.port())
        .with("BACKEND_V2", prepared.backend(1)?.port())
        .with("PORT_NAME", port_name)
        .with("UPSTREAM_PROTOCOL", upstream)
        .with("PROTO", proto)
        .with("KEEPALIVE", connections.max(256))
        .with("MAXCONN", connections + 1000)
        .with("CONNECTIONS", (2 * connections + 500).max(2048))
        .with("LIMIT", LIMIT))
}

/// Starts a peer.
///
/// # Errors
/// When it is not ready in time.
pub async fn start(
    stage: &Stage,
    prepared: &Prepared,
    peer: Peer,
    wire: Wire,
    connections: u32,
) -> Result<Running> {
    let listen = mesh_test::ports::free_addr();
    let values = values(prepared, wire, connections)?.with("PORT", listen.port());
    let proc = match peer {
        Peer::Ours | Peer::OursB => {
            let web =
                Ours { config: "plain", workload: "default/web", outbound: Some(listen), ..Ours::default() };
            stage.ours(peer, &web, &values).await?
        }
        Peer::Envoy => stage.envoy("envoy-plain.yaml", &values).await?,
        Peer::Nginx => stage.nginx("nginx.conf", &values, listen).await?,
        Peer::Haproxy => stage.haproxy("haproxy.cfg", &values, listen).await?,
        Peer::Relay => {
            let mut args = ["relay", "--listen"].map(str::to_owned).to_vec();
            args.extend([listen.to_string(), "--to".into(), prepared.backend(0)?.to_string()]);
            if wire != Wire::H1 {
                args.push("--h2".into());
            }
            stage.role(&args, true, listen).await?
        }
        _ => bail!("no part of this scenario"),
    };
    Ok(Running::one(proc, listen))
}

/// The load on a listener.
///
/// # Errors
/// When the body cannot be written.
pub fn load(stage: &Stage, target: SocketAddr, wire: Wire, connections: u32) -> Result<Load> {
    let (url, host) = (format!("http://{target}/reviews/7"), HOST.to_owned());
    let h2 = |headers, body| Load::H2load {
        url: url.clone(),
        host: host.clone(),
        connections: 4,
        streams: 25,
        headers,
        body,
    };
    Ok(match wire {
        Wire::H1 => Load::Wrk { url, host, connections, script: None },
        Wire::H2 => h2(Vec::new(), None),
        Wire::Grpc => {
            let body = stage.scratch().join("grpc-message");
            std::fs::write(&body, MESSAGE).context("the message")?;
            h2(vec!["content-type: application/grpc".into(), "te: trailers".into()], Some(body))
        }
    })
}

/// Starts a peer, looks whether it works, and measures it.
///
/// # Errors
/// When it does not work, or did not all the time.
pub async fn measure(
    stage: &Stage,
    prepared: &Prepared,
    peer: Peer,
    (wire, connections): (Wire, u32),
    first: bool,
) -> Result<Sample> {
    let mut running = start(stage, prepared, peer, wire, connections).await?;
    if first {
        verify(running.target, wire, peer != Peer::Relay).await?;
    }
    let load = load(stage, running.target, wire, connections)?;
    measure::http(stage, &mut running, &load).await
}

/// One good answer; where `split`, from both versions at about 90 to 10.
///
/// # Errors
/// When it is otherwise.
pub async fn verify(target: SocketAddr, wire: Wire, split: bool) -> Result<()> {
    let protocol = if wire == Wire::H1 { Protocol::H1 } else { Protocol::H2 };
    let mut conn = Conn::open(target, protocol).await.context("to connect")?;
    let call = match wire {
        Wire::Grpc => Call::new(Method::POST, HOST, "/reviews/7")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(MESSAGE),
        _ => Call::get(HOST, "/reviews/7"),
    };
    let mut of_two = 0;
    for _ in 0..CALLS {
        let reply = conn.send(&call).await.context("a call")?;
        ensure!(reply.status == 200, "answers {} instead of 200: {}", reply.status, reply.text());
        match reply.header("x-version") {
            Some("v1") => {}
            Some("v2") => of_two += 1,
            other => bail!("not the backend's answer: version {other:?}"),
        }
        if wire == Wire::Grpc {
            let status = reply.trailers.get("grpc-status").map(|value| value.as_bytes());
            ensure!(status == Some(b"0"), "no grpc-status 0 in the trailers");
        }
    }
    // Ten standard deviations around the mean.
    if split && !(5..=90).contains(&of_two) {
        bail!("{of_two} of {CALLS} calls went to version 2, at a weight of 10");
    }
    Ok(())
}
