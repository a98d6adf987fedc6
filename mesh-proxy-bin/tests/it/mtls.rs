//! Mutual TLS between sidecars: what each mode takes and refuses, who may speak, whom a caller believes, and
//! that an application cannot speak in the mesh's name.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_test::backend::Backend;
use mesh_test::ca::{Leaf, TestCa, spiffe};
use mesh_test::client::{self, Call, Conn, Protocol};
use mesh_test::sidecar::Sidecar;
use mesh_test::wait::until;
use mesh_test::yaml::{self, Workload};
use mesh_test::{ports, tls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::stage::{HOST, Replica, Stage};

const LONG: Duration = Duration::from_secs(30);
/// What a sidecar offers to another for HTTP/1.1.
const MESH: &[&str] = &["istio-http/1.1", "istio", "http/1.1"];

fn mode(mode: &str) -> String {
    yaml::peer_authentication("mode", "default", "", mode)
}

/// Puts a mode in force and waits until it is.
async fn set_mode(stage: &Stage, sidecar: &Sidecar, wanted: &str) {
    stage.dir.write("mode.yaml", mode(wanted));
    until(LONG, wanted, async || {
        let page = sidecar.admin_get("/config_dump").await.unwrap().text();
        let page: serde_json::Value = serde_json::from_str(&page).unwrap();
        page["mtls"]["default"] == wanted
    })
    .await;
}

/// Sends a request in plaintext and gives every byte that comes back before the connection ends.
async fn plaintext(addr: SocketAddr) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nhost: reviews:9080\r\nconnection: close\r\n\r\n";
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    // A close with bytes unread may arrive as a reset: an end as well.
    let _ = tokio::time::timeout(LONG, stream.read_to_end(&mut answer)).await.expect("the connection ends");
    answer
}

/// A call over TLS as this client; the error is where it failed.
async fn call_as(addr: SocketAddr, ca: &TestCa, leaf: Option<&Leaf>, alpn: &[&str]) -> Result<u16, String> {
    let stream = tls::connect(addr, tls::client_config(leaf, Some(ca), alpn), "reviews").await;
    let stream = stream.map_err(|e| e.to_string())?;
    let mut conn = Conn::over(stream, Protocol::H1).await.map_err(|e| e.to_string())?;
    conn.send(&Call::get(HOST, "/")).await.map(|r| r.status).map_err(|e| e.to_string())
}

/// Waits until exactly that many connections were refused for that reason: a peer may see the end of its
/// connection a moment before it is counted.
async fn until_refused(sidecar: &Sidecar, reason: &str, count: f64) {
    let label = format!("reason=\"{reason}\"");
    until(LONG, &format!("{count} connections refused with {reason}"), async || {
        let found = sidecar.metric("mesh_connections_refused_total", &[&label]).await;
        (found - count).abs() < 0.1
    })
    .await;
}

/// Whether the server at `addr` shows a certificate with that SPIFFE URI.
async fn shows(addr: SocketAddr, ca: &TestCa, id: &str) -> bool {
    let client = ca.leaf_for("default", "web");
    let stream =
        tls::connect(addr, tls::client_config(Some(&client), Some(ca), MESH), "reviews").await.unwrap();
    let leaf = tls::server_leaf(&stream).unwrap();
    // A URI SAN has the tag 0x86 and its length before its text.
    let san = [&[0x86, u8::try_from(id.len()).unwrap()], id.as_bytes()].concat();
    leaf.windows(san.len()).any(|bytes| bytes == san)
}

/// STRICT: plaintext is closed without a byte of an answer, counted, and logged with the policy.
#[tokio::test]
async fn strict_closes_plaintext_without_an_answer() {
    let stage = Stage::new();
    stage.dir.write("mode.yaml", mode("STRICT"));
    let v1 = stage.replica("v1").await;
    assert_eq!(plaintext(v1.sidecar.inbound()).await, b"");
    until_refused(&v1.sidecar, "plaintext_refused", 1.0).await;
    let line = v1.sidecar.proc.wait_for_line("mTLS is STRICT", LONG).await;
    assert!(line.contains("PeerAuthentication default/mode"), "{line}");
    assert_eq!((v1.app.requests(), v1.app.accepted_connections()), (0, 0));
    // A caller with a sidecar does not notice.
    let web = stage.web().await;
    assert_eq!(web.get(HOST, "/").await.unwrap().served_by(), Some("v1"));
}

/// STRICT: a client with a certificate of another CA, or with none, fails in the handshake; one with a
/// certificate of the mesh's CA is served, and the server's leaf carries the SPIFFE URI of its account.
#[tokio::test]
async fn strict_serves_certificates_of_the_mesh_only() {
    let stage = Stage::new();
    stage.dir.write("mode.yaml", mode("STRICT"));
    let v1 = stage.replica("v1").await;
    let (addr, ca) = (v1.sidecar.inbound(), &stage.ca);
    let foreign = TestCa::new().leaf_for("default", "web");
    for bad in [Some(&foreign), None] {
        for alpn in [MESH, &["http/1.1"], &[]] {
            let error = call_as(addr, ca, bad, alpn).await.unwrap_err();
            println!("refused: {error}");
        }
    }
    until_refused(&v1.sidecar, "handshake_failed", 6.0).await;
    assert_eq!((v1.app.requests(), v1.app.accepted_connections()), (0, 0));

    let web = ca.leaf_for("default", "web");
    for alpn in [MESH, &["http/1.1"], &[]] {
        assert_eq!(call_as(addr, ca, Some(&web), alpn).await, Ok(200));
    }
    assert!(shows(addr, ca, &spiffe("default", "reviews")).await);
    assert!(!shows(addr, ca, &spiffe("default", "web")).await);
}

/// A server that is somebody else than the endpoint's account says is refused before a request reaches it, and
/// so on each further connection; the right one is served.
#[tokio::test]
async fn a_server_with_another_identity_is_refused_each_time() {
    let stage = Stage::new();
    let server = async |name: &str, account: &str| {
        let leaf = stage.ca.leaf_for("default", account);
        let app = Backend::start_tls(name, tls::server_config(&leaf, Some(&stage.ca), MESH)).await;
        let workload = Workload::new(name, "default", "reviews", app.addr()).account("reviews").sidecar();
        stage.dir.write("server.yaml", workload.to_string());
        app
    };
    let mallory = server("mallory", "mallory").await;
    let web = stage.web().await;
    for round in 1..=3 {
        let reply = web.get(HOST, "/").await.unwrap();
        assert_eq!((reply.status, reply.reason()), (503, Some("identity_mismatch")), "{reply:?}");
        assert_eq!(reply.header("x-mesh-detail"), None);
        assert!(mallory.accepted_connections() >= round, "refused without a look");
    }
    assert_eq!(mallory.requests(), 0);
    // Both names are in the log of the caller, for whoever looks for the reason.
    until(LONG, "both names in the access log", async || {
        let log = web.access_log();
        log.iter()
            .any(|l| l.contains(&spiffe("default", "mallory")) && l.contains(&spiffe("default", "reviews")))
    })
    .await;

    let honest = server("honest", "reviews").await;
    until(LONG, "an answer of the honest one", async || {
        web.get(HOST, "/").await.unwrap().served_by() == Some("honest")
    })
    .await;
    assert_eq!((honest.requests(), mallory.requests()), (1, 0));
}

/// PERMISSIVE, which is the default, takes both plaintext and the mesh's TLS; TLS that is not the mesh's is the
/// application's own affair.
#[tokio::test]
async fn permissive_takes_both() {
    let stage = Stage::new();
    let v1 = stage.replica("v1").await;
    let addr = v1.sidecar.inbound();
    let web = stage.ca.leaf_for("default", "web");
    assert_eq!(client::get(addr, HOST, "/").await.unwrap().served_by(), Some("v1"));
    assert_eq!(client::get_h2(addr, HOST, "/").await.unwrap().served_by(), Some("v1"));
    assert_eq!(call_as(addr, &stage.ca, Some(&web), MESH).await, Ok(200));
    // One of another CA offers what is the mesh's: it is not taken for plaintext.
    let foreign = TestCa::new().leaf_for("default", "web");
    call_as(addr, &stage.ca, Some(&foreign), MESH).await.unwrap_err();

    // An application with TLS of its own, of a CA that the mesh has never heard of.
    let own = TestCa::new();
    let leaf = own.leaf_for("somewhere", "else");
    let app = Backend::start_tls("own-tls", tls::server_config(&leaf, None, &["http/1.1"])).await;
    let inbound = ports::free_addr();
    let workload = Workload::new("own-tls", "default", "own-tls", inbound).account("own-tls");
    stage.dir.write("own-tls.yaml", workload.to_string());
    let sidecar = stage.spec("own-tls").inbound(inbound, app.addr()).start().await;
    let stream =
        tls::connect(inbound, tls::client_config(None, Some(&own), &["http/1.1"]), "x").await.unwrap();
    assert_eq!(tls::server_leaf(&stream).as_ref(), leaf.chain.first());
    let mut conn = Conn::over(stream, Protocol::H1).await.unwrap();
    assert_eq!(conn.send(&Call::get("x", "/")).await.unwrap().served_by(), Some("own-tls"));
    // STRICT ends it: the mesh has not seen who is there.
    set_mode(&stage, &sidecar, "STRICT").await;
    until(LONG, "the end of foreign TLS", async || conn.is_closed()).await;
}

/// Turning STRICT drains plaintext connections: what is in flight is answered, the connection ends after it;
/// connections with mTLS stay.
#[tokio::test]
async fn turning_strict_drains_plaintext() {
    let stage = Stage::new();
    stage.dir.write("mode.yaml", mode("PERMISSIVE"));
    let v1 = stage.replica("v1").await;
    let addr = v1.sidecar.inbound();
    let mut idle = Conn::open(addr, Protocol::H1).await.unwrap();
    let mut idle_h2 = Conn::open(addr, Protocol::H2).await.unwrap();
    let leaf = stage.ca.leaf_for("default", "web");
    let stream = tls::connect(addr, tls::client_config(Some(&leaf), None, MESH), "reviews").await.unwrap();
    let mut mutual = Conn::over(stream, Protocol::H1).await.unwrap();
    for conn in [&mut idle, &mut idle_h2, &mut mutual] {
        assert_eq!(conn.send(&Call::get(HOST, "/")).await.unwrap().status, 200);
    }
    let mut busy = Conn::open(addr, Protocol::H1).await.unwrap();
    let busy = tokio::spawn(async move {
        let reply = busy.send(&Call::get(HOST, "/delay/3000")).await;
        (reply, busy)
    });
    until(LONG, "the request in flight", async || v1.app.in_flight() == 1).await;

    set_mode(&stage, &v1.sidecar, "STRICT").await;
    until(LONG, "the end of idle plaintext", async || idle.is_closed() && idle_h2.is_closed()).await;
    let (reply, busy) = busy.await.unwrap();
    assert_eq!(reply.unwrap().status, 200);
    until(LONG, "the end of busy plaintext", async || busy.is_closed()).await;
    assert_eq!(mutual.send(&Call::get(HOST, "/")).await.unwrap().status, 200);
    assert_eq!(plaintext(addr).await, b"");
}

/// DISABLE: plaintext is served and nobody terminates TLS.
#[tokio::test]
async fn disable_terminates_nothing() {
    let stage = Stage::new();
    stage.dir.write("mode.yaml", mode("DISABLE"));
    let v1 = stage.replica("v1").await;
    let addr = v1.sidecar.inbound();
    assert_eq!(client::get(addr, HOST, "/").await.unwrap().served_by(), Some("v1"));
    let leaf = stage.ca.leaf_for("default", "web");
    let config = tls::client_config(Some(&leaf), None, MESH);
    assert!(tls::connect(addr, config, "reviews").await.is_err());
    // A caller is told by a DestinationRule.
    stage.traffic_policy("tls: {mode: DISABLE}\n");
    let web = stage.web().await;
    assert_eq!(web.get(HOST, "/").await.unwrap().served_by(), Some("v1"));
}

/// `portLevelMtls` means the port at which calls arrive, not the application's own.
#[tokio::test]
async fn port_level_modes_mean_the_port_where_calls_arrive() {
    let stage = Stage::new();
    let v1 = stage.replica("v1").await;
    let addr = v1.sidecar.inbound();
    let levels = |port: u16| {
        let policy = yaml::peer_authentication("mode", "default", "reviews", "STRICT");
        format!("{policy}  portLevelMtls:\n    {port}: {{mode: DISABLE}}\n")
    };
    stage.dir.write("mode.yaml", levels(v1.app.addr().port()));
    until(LONG, "STRICT", async || plaintext(addr).await.is_empty()).await;
    stage.dir.write("mode.yaml", levels(addr.port()));
    until(LONG, "the port's own mode", async || plaintext(addr).await.starts_with(b"HTTP/1.1 200")).await;
}

/// An application that writes the mesh's headers is not believed: its answer arrives without them, with a sidecar
/// in front of it and without.
#[tokio::test]
async fn an_application_cannot_forge_a_reason() {
    let stage = Stage::new();
    let v1 = stage.replica("v1").await;
    let web = stage.web().await;
    let bare = Backend::start("bare").await;
    stage.dir.write("bare-service.yaml", yaml::service("bare", "default", 80));
    stage.dir.write("bare.yaml", Workload::new("bare", "default", "bare", bare.addr()).to_string());
    until(LONG, "bare", async || web.get("bare", "/").await.unwrap().served_by() == Some("bare")).await;
    for (host, who) in [(HOST, "v1"), ("bare", "bare")] {
        let reply = web.get(host, "/forge").await.unwrap();
        assert_eq!((reply.status, reply.served_by()), (403, Some(who)), "{reply:?}");
        assert_eq!((reply.reason(), reply.header("x-mesh-detail")), (None, None), "{reply:?}");
    }
    let direct = client::get(v1.sidecar.inbound(), HOST, "/forge").await.unwrap();
    assert_eq!((direct.status, direct.reason(), direct.header("x-mesh-detail")), (403, None, None));
}

/// An identity from files: served with it; where it names another account than the configuration does, the
/// certificate wins, and log and metric say so until it is mended.
#[tokio::test]
async fn an_identity_from_files_wins_and_a_mismatch_is_told() {
    let stage = Stage::new();
    let files = stage.beside("identity");
    stage.ca.leaf_for("default", "ratings").write_to(&files);
    let app = Backend::start("v1").await;
    let inbound = ports::free_addr();
    let workload = Workload::new("v1", "default", "reviews", inbound).account("reviews").sidecar();
    stage.dir.write("v1.yaml", workload.to_string());
    let spec = stage.spec("v1").identity_dir(&files).inbound(inbound, app.addr());
    let v1 = Replica { sidecar: spec.start().await, app };

    let line = v1.sidecar.proc.wait_for_line("names somebody else", LONG).await;
    assert!(
        line.contains(&spiffe("default", "ratings")) && line.contains(&spiffe("default", "reviews")),
        "{line}"
    );
    assert!(line.contains("ERROR"), "{line}");
    until(LONG, "the metric", async || v1.sidecar.metric("mesh_identity_mismatch", &[]).await > 0.5).await;
    assert!(shows(inbound, &stage.ca, &spiffe("default", "ratings")).await);
    let web = stage.web().await;
    let reply = web.get(HOST, "/").await.unwrap();
    assert_eq!((reply.status, reply.reason()), (503, Some("identity_mismatch")));

    stage.ca.leaf_for("default", "reviews").write_to(&files);
    until(LONG, "the end of the mismatch", async || {
        v1.sidecar.metric("mesh_identity_mismatch", &[]).await < 0.5
    })
    .await;
    assert!(shows(inbound, &stage.ca, &spiffe("default", "reviews")).await);
    assert_eq!(web.get(HOST, "/").await.unwrap().served_by(), Some(v1.app.name()));
}
