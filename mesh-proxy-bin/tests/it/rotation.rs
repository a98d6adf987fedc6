//! Certificates that are replaced on disk while requests pass.

use std::time::Duration;

use mesh_test::ca::Leaf;
use mesh_test::load::LoadGen;
use mesh_test::sidecar::{Sidecar, SidecarSpec};
use mesh_test::wait::until_secs;
use mesh_test::yaml::{Workload, replace_file};
use mesh_test::{backend::Backend, ports, tls};

use crate::stage::{BIN, HOST, Stage};

/// The serial of the certificate in force, as bytes.
async fn serial(sidecar: &Sidecar) -> Vec<u8> {
    let page = sidecar.admin_get("/certs").await.unwrap().text();
    let page: serde_json::Value = serde_json::from_str(&page).unwrap();
    let text = page["certificate"]["serial"].as_str().unwrap_or_default().replace(':', "");
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

fn has_serial(leaf: &Leaf, serial: &[u8]) -> bool {
    !serial.is_empty() && leaf.chain[0].windows(serial.len()).any(|w| w == serial)
}

/// Whether a new handshake shows that leaf.
async fn shows(stage: &Stage, sidecar: &Sidecar, leaf: &Leaf) -> bool {
    let mine = stage.ca.leaf_for("default", "web");
    let config = tls::client_config(Some(&mine), Some(&stage.ca), &["istio"]);
    let stream = tls::connect(sidecar.inbound(), config, "reviews").await.unwrap();
    tls::server_leaf(&stream).as_ref() == leaf.chain.first()
}

/// New connections use the new certificates, on both sides, and no request fails; a replacement that is
/// broken leaves the last good one in force and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_replaced_under_load() {
    let stage = Stage::new();
    let app = Backend::start("a").await;
    let inbound = ports::free_addr();
    let workload = Workload::new("a", "default", "reviews", inbound).account("reviews").sidecar();
    stage.dir.write("a.yaml", workload.to_string());
    let (of_web, of_reviews) = (stage.beside("id-web"), stage.beside("id-reviews"));
    let first = (stage.ca.leaf_for("default", "web"), stage.ca.leaf_for("default", "reviews"));
    first.0.write_to(&of_web);
    first.1.write_to(&of_reviews);
    let spec = |name| SidecarSpec::new(BIN, stage.dir.path(), name);
    let reviews = spec("default/a").identity_dir(&of_reviews).inbound(inbound, app.addr()).start().await;
    let web = spec("default/web").identity_dir(&of_web).outbound().start().await;
    assert!(has_serial(&first.0, &serial(&web).await) && has_serial(&first.1, &serial(&reviews).await));
    assert!(shows(&stage, &reviews, &first.1).await);

    let load = LoadGen::to(web.outbound()).host(HOST).connections(4).start();
    until_secs(30, "load", async || load.snapshot().total > 50).await;
    let mut last = first;
    for _ in 0..2 {
        let next = (stage.ca.leaf_for("default", "web"), stage.ca.leaf_for("default", "reviews"));
        let replaced = std::time::SystemTime::now();
        next.0.write_to(&of_web);
        next.1.write_to(&of_reviews);
        until_secs(20, "the new certificates", async || {
            has_serial(&next.0, &serial(&web).await) && has_serial(&next.1, &serial(&reviews).await)
        })
        .await;
        let took = replaced.elapsed().unwrap_or_default();
        println!("in force after {took:?}");
        assert!(took < Duration::from_secs(10), "{took:?}");
        assert!(shows(&stage, &reviews, &next.1).await);
        last = next;
        let total = load.snapshot().total;
        until_secs(30, "load", async || load.snapshot().total > total + 50).await;
    }

    let failures = async || reviews.metric("mesh_certificate_failures_total", &[]).await;
    let before = failures().await;
    replace_file(
        &of_reviews.join("tls.crt"),
        "-----BEGIN CERTIFICATE-----\nbroken\n-----END CERTIFICATE-----\n",
    );
    until_secs(20, "the failure in the metrics", async || failures().await > before).await;
    until_secs(20, "the failure in the log", async || {
        reviews.proc.lines().iter().any(|l| l.contains("ERROR") && l.contains("tls.crt"))
    })
    .await;
    assert!(shows(&stage, &reviews, &last.1).await, "the last good one stays in force");
    assert!(has_serial(&last.1, &serial(&reviews).await));
    assert!(reviews.is_ready().await);

    let next = stage.ca.leaf_for("default", "reviews");
    next.write_to(&of_reviews);
    until_secs(20, "the mended certificate", async || has_serial(&next, &serial(&reviews).await)).await;
    assert!(shows(&stage, &reviews, &next).await);
    assert!(reviews.metric("mesh_certificate_renewals_total", &[]).await >= 3.0);
    load.stop().await.assert_clean();
}

/// A certificate for somebody else than the configuration says wins, and is an error in log and metric.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_for_another_account_is_told() {
    let stage = Stage::new();
    let dir = stage.beside("id");
    stage.ca.leaf_for("default", "somebody").write_to(&dir);
    let web =
        SidecarSpec::new(BIN, stage.dir.path(), "default/web").identity_dir(&dir).outbound().start().await;
    until_secs(20, "the metric", async || web.metric("mesh_identity_mismatch", &[]).await == 1.0).await;
    web.proc.wait_for_line("the certificate names somebody else", Duration::from_secs(20)).await;
    stage.ca.leaf_for("default", "web").write_to(&dir);
    until_secs(20, "it is mended", async || web.metric("mesh_identity_mismatch", &[]).await == 0.0).await;
}
