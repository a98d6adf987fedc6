//! What embedding costs: an axum service alone, with our server stack, and with tower-http's tracing.

use anyhow::{Context as _, Result, ensure};

use crate::args::Variant;
use crate::load::Load;
use crate::measure::{self, Running};
use crate::peer::Peer;
use crate::report::Sample;
use crate::stage::Stage;

/// Starts a variant of the service, and measures it.
///
/// # Errors
/// When it does not work, or did not all the time.
pub async fn measure(stage: &Stage, peer: Peer) -> Result<Sample> {
    let variant = match peer {
        Peer::Layers => Variant::Layers,
        Peer::LayersLimit => Variant::LayersLimit,
        Peer::LayersLog => Variant::LayersLog,
        Peer::TraceLayer => Variant::TraceLayer,
        _ => Variant::Alone,
    };
    let listen = mesh_test::ports::free_addr();
    let log = stage.folder("layers")?.join("access.log");
    let args = [
        "layers".to_owned(),
        "--listen".into(),
        listen.to_string(),
        "--variant".into(),
        variant.name().into(),
        "--log".into(),
        log.display().to_string(),
    ];
    let mut proc = stage.role(&args, true, listen).await?;
    if matches!(variant, Variant::LayersLog | Variant::TraceLayer) {
        proc.logs_to(log);
    }
    let mut running = Running::one(proc, listen);
    let reply = mesh_test::client::get(listen, "reviews", "/reviews/7").await.context("a call")?;
    ensure!(reply.status == 200, "answers {} instead of 200", reply.status);
    let with_policy = matches!(variant, Variant::Layers | Variant::LayersLimit | Variant::LayersLog);
    let reply = mesh_test::client::get(listen, "reviews", "/secret").await.context("a call")?;
    let expected = if with_policy { 403 } else { 404 };
    ensure!(reply.status == expected, "/secret answers {} instead of {expected}", reply.status);
    let url = format!("http://{listen}/reviews/7");
    let load = Load::Wrk { url, host: "reviews".into(), connections: 64, script: None };
    measure::http(stage, &mut running, &load).await
}
