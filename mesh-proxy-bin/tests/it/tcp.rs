//! Protocols that are none of HTTP: bytes through two sidecars with mTLS, policy by account, metrics.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_test::backend::Backend;
use mesh_test::client::connect_tunnel;
use mesh_test::ports;
use mesh_test::sidecar::Sidecar;
use mesh_test::tcp::{EchoServer, round_trip};
use mesh_test::wait::until_secs;
use mesh_test::yaml::{self, Workload};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::stage::Stage;

const DB: &str = "db:9000";
const LONG: Duration = Duration::from_secs(20);

/// A sidecar in front of `app`, on a port declared TCP, for the account `db`, with STRICT mTLS.
async fn database(stage: &Stage, app: &EchoServer) -> Sidecar {
    let inbound = ports::free_addr();
    stage.dir.write("db.yaml", yaml::service_with_ports("db", "default", &[("tcp-db", 9000)]));
    let workload = Workload::new("db-1", "default", "db", inbound).ports(&[("tcp-db", inbound.port())]);
    stage.dir.write("db-1.yaml", workload.account("db").sidecar().to_string());
    stage.dir.write("strict.yaml", yaml::peer_authentication("strict", "default", "", "STRICT"));
    stage.spec("db-1").inbound(inbound, app.addr()).start().await
}

fn allow(stage: &Stage, accounts: &str) {
    let rule = format!("- from: [{{source: {{principals: [{accounts}]}}}}]\n");
    stage.dir.write("allow.yaml", yaml::authorization_policy("allow", "default", "db", "ALLOW", &rule));
}

/// One MiB there and back at the same time.
async fn a_mebibyte<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
    let sent: Vec<u8> = (0..1 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let (mut read, mut write) = tokio::io::split(stream);
    let mut came = vec![0; sent.len()];
    let (wrote, got) = tokio::join!(
        async {
            write.write_all(&sent).await?;
            write.flush().await
        },
        read.read_exact(&mut came)
    );
    wrote.unwrap();
    got.unwrap();
    assert!(came == sent, "the bytes came back changed");
}

/// Bytes pass both ways, also where the server speaks first, with mTLS between the sidecars.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_pass_intact_and_are_counted_with_identities() {
    for banner in ["", "220 hello\r\n"] {
        let stage = Stage::new();
        let app = EchoServer::with_banner(ports::free_addr(), banner).await;
        let db = database(&stage, &app).await;
        let web = stage.web().await;

        let mut stream = connect_tunnel(web.outbound(), DB).await.unwrap();
        let mut greeting = vec![0; banner.len()];
        stream.read_exact(&mut greeting).await.unwrap();
        assert_eq!(greeting, banner.as_bytes());
        a_mebibyte(&mut stream).await;
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0, "the end passes, too");

        let principals = [
            "source_principal=\"spiffe://cluster.local/ns/default/sa/web\"",
            "destination_principal=\"spiffe://cluster.local/ns/default/sa/db\"",
            "destination_service=\"db.default.svc.cluster.local\"",
            "request_protocol=\"tcp\"",
        ];
        let source = [&principals[..], &["reporter=\"source\""]].concat();
        let destination =
            [&principals[..], &["reporter=\"destination\"", "connection_security_policy=\"mutual_tls\""]]
                .concat();
        for (sidecar, labels) in [(&web, &source), (&db, &destination)] {
            until_secs(20, "the end in the metrics", async || {
                sidecar.metric("istio_tcp_connections_closed_total", labels).await >= 1.0
            })
            .await;
            let page = sidecar.metrics().await;
            let sum = |name: &str| mesh_test::sidecar::metric_sum(&page, name, labels);
            assert_eq!(sum("istio_tcp_connections_opened_total"), 1.0, "{page}");
            assert_eq!(sum("istio_tcp_received_bytes_total"), f64::from(1 << 20), "{page}");
            assert_eq!(sum("istio_tcp_sent_bytes_total"), ((1 << 20) + banner.len()) as f64, "{page}");
        }
    }
}

/// A policy of accounts refuses another account, and closes its open connection when it comes into force.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_refuses_another_account_and_closes_what_is_open() {
    let stage = Stage::new();
    stage.caller("other");
    let app = EchoServer::start().await;
    let db = database(&stage, &app).await;
    let (web, other) = (stage.web().await, stage.spec("other").outbound().start().await);

    let mut of_web = connect_tunnel(web.outbound(), DB).await.unwrap();
    let mut of_other = connect_tunnel(other.outbound(), DB).await.unwrap();
    for stream in [&mut of_web, &mut of_other] {
        assert_eq!(round_trip(stream, b"ping").await.unwrap(), b"ping");
    }
    allow(&stage, "cluster.local/ns/default/sa/web");
    let closed = tokio::time::timeout(std::time::Duration::from_secs(20), of_other.read(&mut [0; 8])).await;
    assert_eq!(closed.expect("closed when the policy is in force").unwrap_or(0), 0);
    assert_eq!(round_trip(&mut of_web, b"pong").await.unwrap(), b"pong", "the admitted one stays");

    let reached = app.accepted();
    let mut again = connect_tunnel(other.outbound(), DB).await.unwrap();
    let _ = again.write_all(b"ping").await;
    assert_eq!(again.read(&mut [0; 8]).await.unwrap_or(0), 0, "refused");
    assert_eq!(app.accepted(), reached, "the application saw nothing of it");
    until_secs(10, "the refusal in the log", async || {
        db.access_log().iter().any(|l| {
            l.contains("\"reason\":\"denied\"") && l.contains("default/allow") && l.contains("/sa/other")
        })
    })
    .await;
}

/// Sidecars of an application on a port that says nothing about its protocol, which wait that long for a first byte.
async fn undeclared(stage: &Stage, app: SocketAddr, detect: &str) -> (Sidecar, Sidecar, SocketAddr) {
    let inbound = ports::free_addr();
    let service = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: db, namespace: default}}\n\
         spec: {{selector: {{app: db}}, ports: [{{port: 9000, targetPort: {}}}]}}\n",
        inbound.port()
    );
    stage.dir.write("db.yaml", service);
    let workload = Workload::new("db-1", "default", "db", inbound).ports(&[]).account("db").sidecar();
    stage.dir.write("db-1.yaml", workload.to_string());
    let flag = "--detect-timeout";
    let db = stage.spec("db-1").inbound(inbound, app).flag(flag, detect).start().await;
    let web = stage.spec("web").outbound().flag(flag, detect).start().await;
    (db, web, inbound)
}

/// Longer than any test takes.
const NEVER: &str = "3600s";

/// Between sidecars the client does not wait for the time of detection to be over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_speaks_first_is_heard_at_once() {
    let stage = Stage::new();
    let app = EchoServer::banner("220 hello\r\n").await;
    let (db, web, _) = undeclared(&stage, app.addr(), NEVER).await;
    for _ in 0..3 {
        let mut stream = connect_tunnel(web.outbound(), DB).await.unwrap();
        let mut greeting = [0; 11];
        let heard = tokio::time::timeout(LONG, stream.read_exact(&mut greeting)).await;
        heard.expect("heard at once").unwrap();
        assert_eq!(&greeting, b"220 hello\r\n");
        assert_eq!(round_trip(&mut stream, b"ping").await.unwrap(), b"ping");
    }
    // One connection each, counted once.
    assert_eq!(app.accepted(), 3);
    let mutual = ["reporter=\"destination\"", "connection_security_policy=\"mutual_tls\""];
    for (sidecar, labels) in [(&web, &["reporter=\"source\""][..]), (&db, &mutual[..])] {
        assert_eq!(sidecar.metric("istio_tcp_connections_opened_total", labels).await, 3.0);
    }
}

/// Who hesitates and then speaks HTTP is understood: what was opened meanwhile in case that the server speaks first
/// is no connection of theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_hesitates_speaks_http_all_the_same() {
    let stage = Stage::new();
    let app = Backend::bind("db", ports::free_addr()).await;
    let (db, web, _) = undeclared(&stage, app.addr(), NEVER).await;
    let mut stream = connect_tunnel(web.outbound(), DB).await.unwrap();
    until_secs(20, "a connection on which the server could speak", async || app.accepted_connections() == 1)
        .await;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: db:9000\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(LONG, stream.read_to_string(&mut answer)).await.expect("answered").unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    for (sidecar, reporter) in [(&web, "reporter=\"source\""), (&db, "reporter=\"destination\"")] {
        assert_eq!(sidecar.metric("istio_requests_total", &[reporter]).await, 1.0);
    }
    assert_eq!(web.metric("istio_tcp_connections_opened_total", &[]).await, 0.0);
}

/// A client without a sidecar, in plaintext, hears a server that speaks first after the time for detection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_speaks_first_is_detected() {
    let stage = Stage::new();
    let app = EchoServer::banner("220 hello\r\n").await;
    let (_db, web, inbound) = undeclared(&stage, app.addr(), "300ms").await;

    let mut stream = connect_tunnel(web.outbound(), DB).await.unwrap();
    let mut greeting = [0; 11];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 hello\r\n");
    assert_eq!(round_trip(&mut stream, b"ping").await.unwrap(), b"ping");

    let mut plain = mesh_test::client::connect(inbound).await.unwrap();
    plain.read_exact(&mut greeting).await.unwrap();
    assert_eq!(round_trip(&mut plain, b"ping").await.unwrap(), b"ping");
}
