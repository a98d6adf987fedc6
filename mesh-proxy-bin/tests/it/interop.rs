//! Against programs that are none of ours: openssl, Redis, promtool, Envoy. Ignored here, run by
//! `just interop`, which installs them.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use mesh_test::backend::Backend;
use mesh_test::ca::{Leaf, TestCa};
use mesh_test::client::{Call, Conn, Protocol, connect_tunnel};
use mesh_test::ports;
use mesh_test::process::Proc;
use mesh_test::wait::{until_ok, until_secs};
use mesh_test::yaml::{self, Dir, Workload};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::stage::{HOST, Stage};

/// Longer than any program here needs.
const LONG: Duration = Duration::from_secs(20);

/// Runs a program to its end; it must not outlive the patience of this test.
async fn run(program: &str, args: &[&str], input: Vec<u8>) -> Output {
    let mut child = Command::new("timeout")
        .args(["--kill-after=1", "30", program])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    let mut stdin = child.stdin.take().unwrap();
    let work = move || {
        // A program that ended early says why on its own.
        let _ = stdin.write_all(&input);
        drop(stdin);
        child.wait_with_output().unwrap()
    };
    tokio::task::spawn_blocking(work).await.unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned()
}

/// `openssl s_client` at a STRICT inbound: with a certificate of another CA, or none, it fails in the
/// handshake; with one of the mesh's CA it is served, and the server's leaf carries the SPIFFE URI.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs openssl"]
async fn interop_openssl_is_served_with_the_meshs_certificate_only() {
    let stage = Stage::new();
    stage.dir.write("strict.yaml", yaml::peer_authentication("strict", "default", "", "STRICT"));
    let reviews = stage.replica("a").await;
    let dir = Dir::new();
    let ca = dir.file("root");
    dir.write("root", stage.ca.root_pem());
    let address = reviews.sidecar.inbound().to_string();
    let request = b"GET /hello HTTP/1.1\r\nHost: reviews:9080\r\nConnection: close\r\n\r\n".to_vec();
    for (name, leaf) in [
        ("ours", Some(stage.ca.leaf_for("default", "web"))),
        ("theirs", Some(TestCa::new().leaf_for("default", "web"))),
        ("none", None),
    ] {
        let folder = dir.file(name);
        let mut args = vec!["s_client", "-connect", &address, "-CAfile", ca.to_str().unwrap()];
        let (crt, key) = (folder.join("tls.crt"), folder.join("tls.key"));
        if let Some(leaf) = &leaf {
            leaf.write_to(&folder);
            args.extend(["-cert", crt.to_str().unwrap(), "-key", key.to_str().unwrap()]);
        }
        // Istio's name for its own TLS; anything else is none of the mesh's.
        args.extend(["-alpn", "istio-http/1.1,istio,http/1.1", "-showcerts", "-ign_eof"]);
        let output = run("openssl", &args, request.clone()).await;
        let text = said(&output);
        if name == "ours" {
            assert!(text.contains("HTTP/1.1 200") && text.contains("x-served-by: a"), "{text}");
            assert!(text.contains("Verify return code: 0 (ok)"), "{text}");
            let pem = &text.as_bytes()[text.find("-----BEGIN CERTIFICATE").unwrap()..];
            let shown = run("openssl", &["x509", "-noout", "-ext", "subjectAltName"], pem.to_vec()).await;
            assert!(
                said(&shown).contains("URI:spiffe://cluster.local/ns/default/sa/reviews"),
                "{}",
                said(&shown)
            );
        } else {
            assert!(text.contains("alert") && !text.contains("HTTP/1.1 200"), "{name}: {text}");
        }
    }
    assert_eq!(reviews.app.requests(), 1);
}

async fn command<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, words: &str, answer: &str) {
    stream.write_all(format!("{words}\r\n").as_bytes()).await.unwrap();
    let mut got = vec![0; answer.len()];
    tokio::time::timeout(LONG, stream.read_exact(&mut got)).await.expect("an answer in time").unwrap();
    assert_eq!(String::from_utf8_lossy(&got), answer);
}

/// A real Redis behind two sidecars with mTLS; a policy refuses another account, and closes its open
/// connection when it comes into force.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server"]
async fn interop_redis_works_through_two_sidecars() {
    let stage = Stage::new();
    stage.caller("other");
    let (app, inbound) = (ports::free_addr(), ports::free_addr());
    let port = app.port().to_string();
    let redis = ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
    let _redis = Proc::spawn("redis-server", redis);
    until_ok(LONG, "Redis", || mesh_test::client::connect(app)).await;
    stage.dir.write("redis.yaml", yaml::service_with_ports("redis", "default", &[("tcp-redis", 6379)]));
    let workload =
        Workload::new("redis-1", "default", "redis", inbound).ports(&[("tcp-redis", inbound.port())]);
    stage.dir.write("redis-1.yaml", workload.account("redis").sidecar().to_string());
    stage.dir.write("strict.yaml", yaml::peer_authentication("strict", "default", "", "STRICT"));
    let beside = stage.spec("redis-1").inbound(inbound, app).start().await;
    let (web, other) = (stage.web().await, stage.spec("other").outbound().start().await);

    let mut of_web = connect_tunnel(web.outbound(), "redis:6379").await.unwrap();
    let mut of_other = connect_tunnel(other.outbound(), "redis:6379").await.unwrap();
    command(&mut of_web, "PING", "+PONG\r\n").await;
    command(&mut of_web, "SET greeting hello", "+OK\r\n").await;
    command(&mut of_other, "GET greeting", "$5\r\nhello\r\n").await;
    // A large value, in both directions.
    let value = "v".repeat(1 << 20);
    of_web
        .write_all(format!("*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n${}\r\n{value}\r\n", value.len()).as_bytes())
        .await
        .unwrap();
    let mut ok = [0; 5];
    of_web.read_exact(&mut ok).await.unwrap();
    assert_eq!(&ok, b"+OK\r\n");
    command(&mut of_other, "GET big", &format!("${}\r\n{value}\r\n", value.len())).await;

    let rule = "- from: [{source: {principals: [cluster.local/ns/default/sa/web]}}]\n";
    stage.dir.write("allow.yaml", yaml::authorization_policy("allow", "default", "redis", "ALLOW", rule));
    let closed = tokio::time::timeout(LONG, of_other.read(&mut [0; 8])).await;
    assert_eq!(closed.expect("closed when the policy is in force").unwrap_or(0), 0);
    command(&mut of_web, "GET greeting", "$5\r\nhello\r\n").await;
    let mut again = connect_tunnel(other.outbound(), "redis:6379").await.unwrap();
    let _ = again.write_all(b"PING\r\n").await;
    assert_eq!(again.read(&mut [0; 8]).await.unwrap_or(0), 0, "refused");
    let denied =
        || beside.access_log().iter().any(|l| l.contains("default/allow") && l.contains("\"denied\""));
    until_secs(10, "the refusal in the log", async || denied()).await;
    let labels =
        ["source_principal=\"spiffe://cluster.local/ns/default/sa/web\"", "reporter=\"destination\""];
    assert_eq!(beside.metric("istio_tcp_connections_opened_total", &labels).await, 1.0);
}

/// `promtool check metrics` remarks on nothing but the base unit in Istio's own names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs promtool"]
async fn interop_promtool_remarks_on_nothing_but_istios_own_unit() {
    const ALLOWED: [&str; 1] =
        ["istio_request_duration_milliseconds use base unit \"seconds\" instead of \"milliseconds\""];
    let stage = Stage::new();
    let reviews = stage.replica("a").await;
    stage.traffic_policy("outlierDetection: {consecutive5xxErrors: 100}");
    let echo = mesh_test::tcp::EchoServer::start().await;
    stage.dir.write("db.yaml", yaml::service_with_ports("db", "default", &[("tcp-db", 9000)]));
    let workload = Workload::new("db", "default", "db", echo.addr()).ports(&[("tcp-db", echo.addr().port())]);
    stage.dir.write("db-1.yaml", workload.to_string());
    let web = stage.web().await;
    for path in ["/", "/status/500", "/status/404"] {
        web.get(HOST, path).await.unwrap();
    }
    assert_eq!(web.get("nobody:80", "/").await.unwrap().status, 502);
    let mut tunnel = connect_tunnel(web.outbound(), "db:9000").await.unwrap();
    mesh_test::tcp::round_trip(&mut tunnel, b"ping").await.unwrap();
    for sidecar in [&web, &reviews.sidecar] {
        let page = sidecar.metrics().await;
        let output = run("promtool", &["check", "metrics"], page.clone().into_bytes()).await;
        let text = said(&output);
        let remarks: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
        assert_eq!(remarks, ALLOWED, "{page}");
    }
}

/// A folder with what an Envoy needs to be a workload of the mesh.
fn identity(leaf: &Leaf) -> Dir {
    let dir = Dir::new();
    leaf.write_to(dir.path());
    dir
}

/// An Envoy as Istio sets a sidecar up: `plain` takes plaintext HTTP and sends it on with mTLS to `ours`,
/// where it expects the account `expects`; `tls` takes the mesh's mTLS and sends it on to `app`.
fn envoy_config(dir: &Dir, plain: u16, tls: u16, ours: SocketAddr, app: SocketAddr, expects: &str) -> String {
    let file = |name: &str| format!("{{filename: {}}}", dir.file(name).display());
    let manager = |prefix: &str, cluster: &str, more: &str| {
        format!(
            r#"name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: {prefix}
          codec_type: AUTO
          {more}
          http_filters:
          - name: router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
          route_config: {{virtual_hosts: [{{name: all, domains: ["*"], routes: [{{match: {{prefix: "/"}}, route: {{cluster: {cluster}}}}}]}}]}}"#
        )
    };
    let cluster = |name: &str, at: SocketAddr, more: &str| {
        let (ip, port) = (at.ip(), at.port());
        format!(
            "  - name: {name}\n    type: STATIC\n    connect_timeout: 5s\n    load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {ip}, port_value: {port}}}}}}}}}]}}]}}\n{more}"
        )
    };
    let own = format!(
        "tls_params: {{tls_minimum_protocol_version: TLSv1_2, tls_maximum_protocol_version: TLSv1_3}}\n            tls_certificates: [{{certificate_chain: {}, private_key: {}}}]",
        file("tls.crt"),
        file("tls.key")
    );
    let trusted = file("ca.crt");
    let outbound = manager("outbound", "ours", "");
    let inbound = manager(
        "inbound",
        "app",
        "forward_client_cert_details: APPEND_FORWARD\n          set_current_client_cert_details: {subject: true, uri: true}",
    );
    let upstream_tls = format!(
        r#"    transport_socket:
      name: tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: outbound_.9080_._.reviews.default.svc.cluster.local
        common_tls_context:
            alpn_protocols: [istio-http/1.1, istio, http/1.1]
            {own}
            validation_context:
              trusted_ca: {trusted}
              match_typed_subject_alt_names: [{{san_type: URI, matcher: {{exact: "spiffe://cluster.local/ns/default/sa/{expects}"}}}}]
"#
    );
    format!(
        r#"static_resources:
  listeners:
  - name: outbound
    address: {{socket_address: {{address: 127.0.0.1, port_value: {plain}}}}}
    filter_chains:
    - filters:
      - {outbound}
  - name: inbound
    address: {{socket_address: {{address: 127.0.0.1, port_value: {tls}}}}}
    listener_filters:
    - name: tls_inspector
      typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}
    filter_chains:
    - filter_chain_match:
        transport_protocol: tls
        application_protocols: [istio, istio-peer-exchange, istio-http/1.0, istio-http/1.1, istio-h2]
      transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            alpn_protocols: [h2, http/1.1]
            {own}
            validation_context:
              trusted_ca: {trusted}
              match_typed_subject_alt_names: [{{san_type: URI, matcher: {{prefix: "spiffe://cluster.local/"}}}}]
      filters:
      - {inbound}
  clusters:
{}{}"#,
        cluster("ours", ours, &upstream_tls),
        cluster("app", app, "")
    )
}

async fn envoy(dir: &Dir, config: &str, plain: u16) -> Proc {
    dir.write("envoy.yaml", config);
    let program = std::env::var("ENVOY").unwrap_or_else(|_| "envoy".to_owned());
    let config = dir.file("envoy.yaml");
    let args = ["-c", config.to_str().unwrap(), "--use-dynamic-base-id", "--concurrency", "1", "-l", "warn"];
    let mut envoy = Proc::spawn(program, args);
    until_secs(60, "Envoy listens", async || {
        assert!(envoy.is_running(), "{}", envoy.tail());
        mesh_test::client::connect(ports::loopback(plain)).await.is_ok()
    })
    .await;
    envoy
}

/// An Envoy with Istio's TLS settings calls our sidecar, and ours calls it, under one root, over HTTP, with
/// identities checked on both sides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy"]
async fn interop_envoy_and_our_sidecar_call_one_another() {
    let stage = Stage::new();
    stage.dir.write("strict.yaml", yaml::peer_authentication("strict", "default", "", "STRICT"));
    stage.caller("other");
    let reviews = stage.replica("a").await;
    let behind = Backend::start("behind-envoy").await;
    let (plain, tls) = (ports::free(), ports::free());
    stage.dir.write("ratings.yaml", yaml::service("ratings", "default", 9080));
    let workload = Workload::new("ratings-1", "default", "ratings", ports::loopback(tls));
    stage.dir.write("ratings-1.yaml", workload.clone().account("ratings").sidecar().to_string());
    let rule = "- from: [{source: {principals: [cluster.local/ns/default/sa/ratings]}}]\n  to: [{operation: {methods: [GET]}}]\n";
    stage.dir.write("allow.yaml", yaml::authorization_policy("allow", "default", "reviews", "ALLOW", rule));
    let web = stage.web().await;
    until_secs(20, "the policy", async || {
        web.get(HOST, "/").await.is_ok_and(|r| (r.status, r.reason()) == (403, Some("denied")))
    })
    .await;

    let dir = identity(&stage.ca.leaf_for("default", "ratings"));
    let config = envoy_config(&dir, plain, tls, reviews.sidecar.inbound(), behind.addr(), "reviews");
    let _envoy = envoy(&dir, &config, plain).await;

    // Envoy calls us: it checks who we are, we check who it is, the policy admits it to what it may do.
    for protocol in [Protocol::H1, Protocol::H2] {
        let mut conn = Conn::open(ports::loopback(plain), protocol).await.unwrap();
        let reply = conn.send(&Call::get(HOST, "/echo")).await.unwrap();
        assert_eq!((reply.status, reply.served_by()), (200, Some("a")), "{}", reviews.sidecar.proc.tail());
        let refused = conn.send(&Call::post(HOST, "/echo", "x")).await.unwrap();
        assert_eq!((refused.status, refused.reason()), (403, Some("denied")), "{refused:?}");
    }
    let labels = [
        "reporter=\"destination\"",
        "source_principal=\"spiffe://cluster.local/ns/default/sa/ratings\"",
        "connection_security_policy=\"mutual_tls\"",
        "response_code=\"200\"",
    ];
    until_secs(10, "its identity in our metrics", async || {
        reviews.sidecar.metric("istio_requests_total", &labels).await == 2.0
    })
    .await;

    // We call Envoy: it says whom it saw, our metrics say whom we saw.
    for protocol in [Protocol::H1, Protocol::H2] {
        let mut conn = web.connect(protocol).await.unwrap();
        let reply = conn.send(&Call::get("ratings:9080", "/echo")).await.unwrap();
        assert_eq!((reply.status, reply.served_by()), (200, Some("behind-envoy")), "{}", web.proc.tail());
        let seen = reply.echo();
        let certificate = seen.header("x-forwarded-client-cert").expect("Envoy tells whom it saw");
        assert!(certificate.contains("URI=spiffe://cluster.local/ns/default/sa/web"), "{certificate}");
    }
    let labels = [
        "reporter=\"source\"",
        "destination_principal=\"spiffe://cluster.local/ns/default/sa/ratings\"",
        "response_code=\"200\"",
    ];
    until_secs(10, "its identity in our metrics", async || {
        web.metric("istio_requests_total", &labels).await == 2.0
    })
    .await;

    // We expect somebody else behind that address: refused, every time.
    stage.dir.write("ratings-1.yaml", workload.account("details").sidecar().to_string());
    until_secs(20, "the refusal", async || {
        web.get("ratings:9080", "/").await.is_ok_and(|r| r.reason() == Some("identity_mismatch"))
    })
    .await;
    assert_eq!(web.get("ratings:9080", "/").await.unwrap().reason(), Some("identity_mismatch"));

    // An Envoy that expects somebody else does not talk to us.
    let (plain, tls) = (ports::free(), ports::free());
    let dir = identity(&stage.ca.leaf_for("default", "ratings"));
    let config = envoy_config(&dir, plain, tls, reviews.sidecar.inbound(), behind.addr(), "details");
    let _other = envoy(&dir, &config, plain).await;
    let seen = reviews.app.requests();
    let mut conn = Conn::open(ports::loopback(plain), Protocol::H1).await.unwrap();
    assert_eq!(conn.send(&Call::get(HOST, "/")).await.unwrap().status, 503);
    assert_eq!(reviews.app.requests(), seen);

    // An Envoy with a certificate of another CA gets nowhere.
    let (plain, tls) = (ports::free(), ports::free());
    let mut leaf = TestCa::new().leaf_for("default", "ratings");
    leaf.root_pem = stage.ca.root_pem().to_owned();
    let dir = identity(&leaf);
    let config = envoy_config(&dir, plain, tls, reviews.sidecar.inbound(), behind.addr(), "reviews");
    let _stranger = envoy(&dir, &config, plain).await;
    let mut conn = Conn::open(ports::loopback(plain), Protocol::H1).await.unwrap();
    assert_eq!(conn.send(&Call::get(HOST, "/")).await.unwrap().status, 503);
    assert_eq!(reviews.app.requests(), seen);
}
