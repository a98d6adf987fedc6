//! Against programs that are none of ours.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mesh_core::facts::{LocalAddr, PeerAddr};
use mesh_core::failure::FailureCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt;
use tower_mesh_tls::alpn::MeshAlpn;
use tower_mesh_tls::modes::Mode;
use tower_mesh_tls::{AcceptedStream, ConnectTo};

use crate::support::{Ca, SNI, id, mutual};

/// `openssl s_client` with a certificate of the mesh's CA is served and sees whom it talks to; with one of
/// another CA it fails in the handshake.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs openssl"]
async fn openssl_is_served_with_the_meshs_certificate_only() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    for (ca, good) in [(&ours, true), (&theirs, false)] {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = ca.ca.issue_pem(&id("web")).unwrap();
        fs::write(dir.path().join("crt"), certificate).unwrap();
        fs::write(dir.path().join("key"), key).unwrap();
        fs::write(dir.path().join("ca"), ours.ca.certificate_pem()).unwrap();

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut child = Command::new("openssl")
            .current_dir(dir.path())
            .args(["s_client", "-connect", &address.to_string(), "-cert", "crt", "-key", "key"])
            .args(["-CAfile", "ca", "-showcerts", "-ign_eof"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
        let (io, peer) = listener.accept().await.unwrap();
        let stream = AcceptedStream::new(io, PeerAddr(peer), LocalAddr(address));
        let accepted = ours.accept("reviews", Mode::Strict).oneshot(stream).await;
        assert_eq!(accepted.is_ok(), good);
        if let Ok(mut accepted) = accepted {
            assert_eq!(accepted.connection.peer().unwrap().id(), &id("web"));
            accepted.io.write_all(b"served by the mesh\n").await.unwrap();
            accepted.io.shutdown().await.unwrap();
        }
        let output = tokio::task::spawn_blocking(|| child.wait_with_output()).await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(text.contains("served by the mesh"), good, "{text}");
        if good {
            assert!(text.contains("Verify return code: 0 (ok)"), "{text}");
            let leaf = dir.path().join("leaf");
            let start = text.find("-----BEGIN CERTIFICATE").unwrap();
            fs::write(&leaf, &text[start..]).unwrap();
            let shown = Command::new("openssl")
                .args(["x509", "-noout", "-ext", "subjectAltName", "-in"])
                .arg(&leaf)
                .output()
                .unwrap();
            let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
            assert!(shown.contains(&format!("URI:{}", id("reviews"))), "{shown}");
        } else {
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(errors.contains("alert"), "{errors}");
        }
    }
}

/// An Envoy that ends with its owner.
struct Envoy(Child);

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// Listens on `plain` for plaintext that it sends on with mTLS to `ours`, and on `tls` for mTLS that it
/// sends on as plaintext to `application`; TLS as Istio sets it.
fn envoy_config(
    dir: &Path,
    plain: u16,
    tls: u16,
    ours: u16,
    application: u16,
    expects: &str,
    alpn: &str,
) -> String {
    let file = |name: &str| format!("{{filename: {}}}", dir.join(name).display());
    let common =
        format!("tls_certificates: [{{certificate_chain: {}, private_key: {}}}]", file("crt"), file("key"));
    let trusted = file("ca");
    format!(
        r#"
static_resources:
  listeners:
  - name: outbound
    address: {{socket_address: {{address: 127.0.0.1, port_value: {plain}}}}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: a, cluster: ours}}
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
            alpn_protocols: [istio-peer-exchange, h2, http/1.1]
            tls_params: {{tls_minimum_protocol_version: TLSv1_2, tls_maximum_protocol_version: TLSv1_3}}
            {common}
            validation_context:
              trusted_ca: {trusted}
              match_typed_subject_alt_names: [{{san_type: URI, matcher: {{prefix: "spiffe://cluster.local/"}}}}]
      filters:
      - name: tcp
        typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: b, cluster: application}}
  clusters:
  - name: ours
    type: STATIC
    connect_timeout: 5s
    load_assignment: {{cluster_name: ours, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {ours}}}}}}}}}]}}]}}
    transport_socket:
      name: tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: {SNI}
        common_tls_context:
          alpn_protocols: [{alpn}]
          tls_params: {{tls_minimum_protocol_version: TLSv1_2, tls_maximum_protocol_version: TLSv1_3}}
          {common}
          validation_context:
            trusted_ca: {trusted}
            match_typed_subject_alt_names: [{{san_type: URI, matcher: {{exact: "{expects}"}}}}]
  - name: application
    type: STATIC
    connect_timeout: 5s
    load_assignment: {{cluster_name: application, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {application}}}}}}}}}]}}]}}
"#
    )
}

async fn envoy(dir: &Path, config: &str, plain: u16) -> Envoy {
    fs::write(dir.join("envoy.yaml"), config).unwrap();
    let program = std::env::var("ENVOY").unwrap_or_else(|_| "envoy".to_owned());
    let child = Command::new(program)
        .current_dir(dir)
        .args(["-c", "envoy.yaml", "--use-dynamic-base-id", "--concurrency", "1", "-l", "warn"])
        .spawn()
        .expect("Envoy is needed: put it on the PATH, or its path into ENVOY");
    let envoy = Envoy(child);
    for _ in 0..200 {
        if TcpStream::connect(("127.0.0.1", plain)).await.is_ok() {
            return envoy;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("Envoy does not listen");
}

/// Takes connections until one says something, as Envoy's readiness was found out by connecting.
async fn serve(ca: &Ca, listener: &TcpListener) -> Option<tower_mesh_tls::Accepted<TcpStream>> {
    loop {
        let (io, peer) = listener.accept().await.unwrap();
        let local = io.local_addr().unwrap();
        let stream = AcceptedStream::new(io, PeerAddr(peer), LocalAddr(local));
        match ca.accept("reviews", Mode::Permissive).oneshot(stream).await {
            Ok(mut accepted) => {
                let mut first = [0; 5];
                if accepted.io.read_exact(&mut first).await.is_ok() && &first == b"hello" {
                    return Some(accepted);
                }
            }
            Err(e) => eprintln!("{e}"),
        }
    }
}

/// An Envoy with Istio's TLS settings calls us and is called by us, under one root; each checks the other.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Envoy"]
async fn envoy_calls_us_and_we_call_envoy() {
    let ca = Ca::new();
    for (offers, agreed) in [
        ("istio-peer-exchange, istio", &b"istio"[..]),
        ("istio-http/1.1, istio, http/1.1", b"http/1.1"),
        ("istio-h2, istio, h2", b"h2"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = ca.ca.issue_pem(&id("envoy")).unwrap();
        fs::write(dir.path().join("crt"), certificate).unwrap();
        fs::write(dir.path().join("key"), key).unwrap();
        fs::write(dir.path().join("ca"), ca.ca.certificate_pem()).unwrap();
        let ours = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let application = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (plain, tls) = (free_port().await, free_port().await);
        let port = |l: &TcpListener| l.local_addr().unwrap().port();
        let config = envoy_config(
            dir.path(),
            plain,
            tls,
            port(&ours),
            port(&application),
            id("reviews").as_str(),
            offers,
        );
        let _envoy = envoy(dir.path(), &config, plain).await;

        // Envoy calls us.
        let mut client = TcpStream::connect(("127.0.0.1", plain)).await.unwrap();
        client.write_all(b"hello").await.unwrap();
        let mut accepted = serve(&ca, &ours).await.unwrap();
        assert_eq!(accepted.connection.peer().unwrap().id(), &id("envoy"));
        assert_eq!(accepted.connection.sni(), Some(SNI));
        let mesh_core::facts::Transport::Tls { alpn, .. } = accepted.connection.transport() else { panic!() };
        assert_eq!(alpn.as_deref(), Some(agreed));
        accepted.io.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"answer");

        // We call Envoy.
        let to: SocketAddr = ([127, 0, 0, 1], tls).into();
        for alpn in MeshAlpn::ALL {
            let call = ConnectTo::socket(to.into()).tls(mutual(&["envoy"])).alpn(alpn);
            let mut connected = ca.connect("web").oneshot(call).await.unwrap();
            assert_eq!(connected.peer.as_ref().unwrap().id(), &id("envoy"));
            connected.io.write_all(b"hello").await.unwrap();
            let (mut behind, _) = application.accept().await.unwrap();
            let mut heard = [0; 5];
            behind.read_exact(&mut heard).await.unwrap();
            behind.write_all(b"answer").await.unwrap();
            let mut answer = [0; 6];
            connected.io.read_exact(&mut answer).await.unwrap();
            assert_eq!((&heard, &answer), (b"hello", b"answer"));
        }
        let wrong = ConnectTo::socket(to.into()).tls(mutual(&["reviews"]));
        let refused = ca.connect("web").oneshot(wrong).await.unwrap_err();
        assert_eq!(refused.code(), FailureCode::IdentityMismatch);
    }

    // An Envoy that expects somebody else hangs up on us.
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = ca.ca.issue_pem(&id("envoy")).unwrap();
    fs::write(dir.path().join("crt"), certificate).unwrap();
    fs::write(dir.path().join("key"), key).unwrap();
    fs::write(dir.path().join("ca"), ca.ca.certificate_pem()).unwrap();
    let ours = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (plain, tls, port) = (free_port().await, free_port().await, ours.local_addr().unwrap().port());
    let config = envoy_config(dir.path(), plain, tls, port, port, id("ratings").as_str(), "istio");
    let _envoy = envoy(dir.path(), &config, plain).await;
    let mut client = TcpStream::connect(("127.0.0.1", plain)).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    let mut heard = Vec::new();
    tokio::select! {
        _ = client.read_to_end(&mut heard) => assert!(heard.is_empty()),
        _ = serve(&ca, &ours) => panic!("Envoy took somebody else for ratings"),
    }
}
