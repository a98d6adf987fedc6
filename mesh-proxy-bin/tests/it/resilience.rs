//! A bad endpoint is ejected and comes back; a sidecar that dies fails nobody; limits refuse what is too much;
//! retries have a budget.

use std::time::Duration;

use mesh_test::client::{Call, Protocol};
use mesh_test::load::LoadGen;
use mesh_test::wait::until_secs;
use mesh_test::yaml;

use crate::stage::{HOST, Stage};

/// Of three endpoints one answers 500: it is ejected, errors stop, it returns after the ejection time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_answers_500_is_ejected_and_returns() {
    let stage = Stage::new();
    let (a, b, c) = (stage.replica("a").await, stage.replica("b").await, stage.replica("c").await);
    stage.traffic_policy(
        "outlierDetection: {consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 6s, maxEjectionPercent: 100}",
    );
    let web = stage.web().await;
    b.app.fail_with(500);

    let load = LoadGen::to(web.outbound()).host(HOST).connections(2).start();
    until_secs(30, "the ejection", async || {
        web.metric("mesh_cluster_ejections_total", &["reviews"]).await >= 1.0
    })
    .await;
    // What was on its way when the third error came may still fail.
    until_secs(30, "the end of what was on its way", async || b.app.in_flight() == 0).await;
    load.lap();
    let failed_before = load.stop().await;
    let seen = b.app.requests();
    let clean = LoadGen::to(web.outbound()).host(HOST).connections(2).run_calls(60).await;
    assert_eq!(
        web.metric("mesh_cluster_ejected_endpoints", &["reviews"]).await,
        1.0,
        "ejected all the while"
    );
    clean.assert_clean();
    assert_eq!((clean.of("b"), b.app.requests()), (0, seen), "{failed_before}");
    assert!(clean.of("a") > 0 && clean.of("c") > 0, "{clean}");
    let clusters = web.admin_get("/clusters").await.unwrap().text();
    assert!(clusters.contains("\"ejected\": true"), "{clusters}");

    b.app.recover();
    let load = LoadGen::to(web.outbound()).host(HOST).connections(1).start();
    until_secs(30, "its return", async || b.app.requests() > seen + 5).await;
    let report = load.stop().await;
    report.assert_clean();
    assert_eq!(web.metric("mesh_cluster_ejected_endpoints", &["reviews"]).await, 0.0);
    drop((a, c));
}

/// Of three sidecars one is killed mid-load: no failed request, under the default retry budget (20% of what is
/// active, at least 3). All that was in flight there breaks at once; what is more than the budget waits for its
/// turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_is_killed_fails_no_request() {
    for (protocol, connections) in [(Protocol::H1, 6), (Protocol::H2, 6), (Protocol::H1, 24)] {
        let stage = Stage::new();
        let (a, b, c) = (stage.replica("a").await, stage.replica("b").await, stage.replica("c").await);
        let web = stage.web().await;
        let load = LoadGen::to(web.outbound()).host(HOST).protocol(protocol).connections(connections);
        let load = load.start();
        until_secs(30, "load on all", async || [&a, &b, &c].iter().all(|r| r.app.requests() > 20)).await;
        b.sidecar.proc.kill();
        let before = load.snapshot().total;
        until_secs(30, "load after the kill", async || load.snapshot().total > before + 400).await;
        let report = load.stop().await;
        report.assert_clean();
        assert!(report.of("a") > 0 && report.of("c") > 0, "{report}");
    }
}

/// Requests beyond the limit of the connection pool are refused at once: 503 `overflow`, flag UO, counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_of_requests_refuses_the_next() {
    let stage = Stage::new();
    let only = stage.replica("a").await;
    stage.traffic_policy("connectionPool: {http: {http2MaxRequests: 1}}");
    let web = stage.web().await;

    let mut first = web.connect(Protocol::H1).await.unwrap();
    let slow = tokio::spawn(async move { first.send(&Call::get(HOST, "/delay/4000")).await });
    until_secs(20, "the first at work", async || only.app.in_flight() == 1).await;
    let refused = web.get(HOST, "/").await.unwrap();
    assert_eq!((refused.status, refused.reason()), (503, Some("overflow")));
    assert_eq!(slow.await.unwrap().unwrap().status, 200);
    assert_eq!(web.get(HOST, "/").await.unwrap().status, 200);

    assert_eq!(web.metric("mesh_cluster_overflows_total", &["reviews"]).await, 1.0);
    let labels = ["response_code=\"503\"", "response_flags=\"UO\"", "reporter=\"source\""];
    assert_eq!(web.metric("istio_requests_total", &labels).await, 1.0);
    until_secs(10, "the line in the log", async || {
        web.access_log()
            .iter()
            .any(|l| l.contains("\"response_flags\":\"UO\"") && l.contains("\"reason\":\"overflow\""))
    })
    .await;
}

/// Connections beyond `maxConnections` of a TCP service are closed and counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_of_connections_refuses_the_next() {
    use mesh_test::{client, tcp};
    use tokio::io::AsyncReadExt;

    let stage = Stage::new();
    let echo = tcp::EchoServer::start().await;
    stage.dir.write("db.yaml", yaml::service_with_ports("db", "default", &[("tcp-db", 9000)]));
    let workload = yaml::Workload::new("db", "default", "db", echo.addr());
    stage.dir.write("db-1.yaml", workload.ports(&[("tcp-db", echo.addr().port())]).to_string());
    let rule = "connectionPool: {tcp: {maxConnections: 1}}";
    stage.dir.write("rule.yaml", yaml::destination_rule_with("db", "default", "db", &[], rule));
    let web = stage.web().await;

    let mut first = client::connect_tunnel(web.outbound(), "db:9000").await.unwrap();
    assert_eq!(tcp::round_trip(&mut first, b"one").await.unwrap(), b"one");
    let mut second = client::connect_tunnel(web.outbound(), "db:9000").await.unwrap();
    assert_eq!(second.read(&mut [0; 8]).await.unwrap_or(0), 0, "the second is closed");
    assert_eq!(tcp::round_trip(&mut first, b"two").await.unwrap(), b"two");
    assert_eq!(web.metric("mesh_cluster_overflows_total", &["db"]).await, 1.0);
    drop(first);
    until_secs(20, "room again", async || {
        let Ok(mut again) = client::connect_tunnel(web.outbound(), "db:9000").await else { return false };
        tcp::round_trip(&mut again, b"three").await.is_ok()
    })
    .await;
}

/// Retries that a VirtualService asks for are made, and never more at once than the budget allows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_have_a_budget() {
    let stage = Stage::new();
    let bad = stage.replica("a").await;
    let route = "- route: [{destination: {host: reviews}}]\n  retries: {attempts: 3, retryOn: 5xx}\n";
    stage.dir.write("route.yaml", yaml::virtual_service("reviews", "default", "reviews", route));
    let web = stage.web().await;
    bad.app.fail_with(500);

    assert_eq!(web.get(HOST, "/").await.unwrap().status, 500);
    assert_eq!(bad.app.requests(), 4, "one call alone has all of its retries");

    let load = LoadGen::to(web.outbound()).host(HOST).connections(40).start();
    until_secs(30, "retries refused", async || {
        web.metric("mesh_cluster_retry_overflows_total", &["reviews"]).await > 20.0
    })
    .await;
    let report = load.stop().await;
    let tries = bad.app.requests() - 4;
    assert!(tries < report.total * 3, "{tries} tries for {report}");
    tokio::time::timeout(Duration::from_secs(20), async {
        bad.app.recover();
        assert_eq!(web.get(HOST, "/").await.unwrap().status, 200);
    })
    .await
    .unwrap();
}
