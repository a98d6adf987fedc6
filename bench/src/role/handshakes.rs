//! Full mTLS handshakes, each with one request: nothing is resumed, no connection is used twice.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_test::ca::{Leaf, TestCa};
use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::open_loop::read_answer;
use crate::load::Found;

const SNI: &str = "outbound_.9080_._.reviews.default.svc.cluster.local";
const REQUEST: &[u8] = b"GET /reviews/7 HTTP/1.1\r\nhost: reviews:9080\r\n\r\n";

pub(super) async fn run(to: SocketAddr, ca: &Path, concurrency: usize, seconds: u32) -> Result<Found> {
    let ca = TestCa::load(ca);
    let leaf = ca.leaf_for("default", "web");
    let config = client_config(&leaf)?;
    let begun = Instant::now();
    let end = begun + Duration::from_secs(seconds.into());
    let times = Rc::new(RefCell::new(Vec::new()));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..concurrency {
        let (config, times) = (config.clone(), Rc::clone(&times));
        tasks.spawn_local(async move {
            let mut buffer = Vec::new();
            let mut count = 0;
            loop {
                let start = Instant::now();
                if start >= end {
                    return anyhow::Ok(count);
                }
                let mut stream =
                    mesh_test::tls::connect(to, config.clone(), SNI).await.context("a handshake")?;
                let (_, session) = stream.get_ref();
                ensure!(
                    session.handshake_kind() == Some(rustls::HandshakeKind::Full),
                    "the handshake was {:?}",
                    session.handshake_kind()
                );
                stream.write_all(REQUEST).await.context("to send")?;
                read_answer(&mut stream, &mut buffer).await?;
                count += 1;
                times.borrow_mut().push(u64::try_from(start.elapsed().as_nanos())?);
            }
        });
    }
    let mut count = 0;
    while let Some(done) = tasks.join_next().await {
        count += done??;
    }
    let seconds = begun.elapsed().as_secs_f64();
    Ok(Found::new(count, seconds, std::mem::take(&mut *times.borrow_mut())))
}

/// A client of the mesh that offers what every server takes at once: TLS 1.3, X25519. (With another group first,
/// some would ask for a second try, and the handshake would not be the same for all.)
fn client_config(leaf: &Leaf) -> Result<Arc<ClientConfig>> {
    let provider =
        CryptoProvider { kx_groups: vec![aws_lc_rs::kx_group::X25519], ..aws_lc_rs::default_provider() };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        // Who it talks to is of its own making: to check would make the load slower and measure nothing.
        .with_custom_certificate_verifier(mesh_test::tls::any_server())
        .with_client_auth_cert(leaf.chain.clone(), leaf.key.clone_key())?;
    config.alpn_protocols =
        ["istio-http/1.1", "istio", "http/1.1"].map(|name| name.as_bytes().to_vec()).to_vec();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}
