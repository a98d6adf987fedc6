//! What each mode does with each kind of first bytes.

use std::sync::Arc;
use std::time::Duration;

use mesh_core::facts::{OriginalDst, Transport};
use mesh_core::live::{self, Live};
use mesh_core::resource::peer_authentication::{MutualTls, MutualTlsMode, PeerAuthentication};
use mesh_core::resource::{Labels, Resource, Selector};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tower::ServiceExt;
use tower_mesh_tls::hello::MAX_CLIENT_HELLO;
use tower_mesh_tls::modes::{Mode, TlsModes};
use tower_mesh_tls::{AcceptError, Accepted, AcceptedStream, Credentials, TlsAccept};

use crate::support::{Ca, SNI, arrived, id, mutual, nowhere, parts, stranger};

const PIPE: usize = 64 * 1024;

async fn take(accept: &TlsAccept, io: DuplexStream) -> Result<Accepted<DuplexStream>, AcceptError> {
    accept.clone().oneshot(arrived(io)).await
}

/// What the server reads after the client has said `said` and closed.
async fn hears(accept: &TlsAccept, said: &[u8]) -> (Transport, Vec<u8>) {
    let (mut near, far) = duplex(PIPE);
    near.write_all(said).await.unwrap();
    let mut accepted = take(accept, far).await.unwrap();
    near.shutdown().await.unwrap();
    let mut heard = Vec::new();
    accepted.io.read_to_end(&mut heard).await.unwrap();
    (accepted.connection.transport().clone(), heard)
}

#[tokio::test(start_paused = true)]
async fn plaintext_passes_whole_where_it_may() {
    let ca = Ca::new();
    for mode in [Mode::Permissive, Mode::Disable] {
        let accept = ca.accept("reviews", mode);
        for said in
            [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16", b"\x16\x03", b"\x16\x03\x01\x00\x00rubbish", b"x"]
        {
            let (near_said, heard) = hears_after_close(&accept, said).await;
            assert_eq!((near_said, heard.as_slice()), (Transport::Plaintext, said), "{mode}");
        }
        assert_eq!(hears(&accept, b"GET / HTTP/1.1\r\n\r\n").await.0, Transport::Plaintext);
    }
}

/// As [`hears`], with the client gone before the server looks.
async fn hears_after_close(accept: &TlsAccept, said: &[u8]) -> (Transport, Vec<u8>) {
    let (mut near, far) = duplex(PIPE);
    near.write_all(said).await.unwrap();
    near.shutdown().await.unwrap();
    let mut accepted = take(accept, far).await.unwrap();
    let mut heard = Vec::new();
    accepted.io.read_to_end(&mut heard).await.unwrap();
    (accepted.connection.transport().clone(), heard)
}

#[tokio::test]
async fn permissive_terminates_the_meshs_tls() {
    let ca = Ca::new();
    let (near, far) = duplex(PIPE);
    let accept = ca.accept("reviews", Mode::Permissive);
    let to = nowhere().tls(mutual(&["reviews"]));
    let connect = ca.connect("web");
    let (accepted, connected) = tokio::join!(take(&accept, far), connect.secure(near, &to));
    let (mut accepted, mut connected) = (accepted.unwrap(), connected.unwrap());
    assert_eq!(accepted.connection.peer().unwrap().id(), &id("web"));
    assert!(accepted.io.is_tls());
    connected.io.write_all(b"x").await.unwrap();
    assert_eq!(accepted.io.read_u8().await.unwrap(), b'x');
}

/// An application's own TLS goes through to the application, which finishes the handshake itself.
#[tokio::test]
async fn an_applications_tls_is_passed_on_as_bytes() {
    let ca = Ca::new();
    let (chain, key) = parts(&ca.ca.issue_pem(&id("application")).unwrap());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let application = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let application = TlsAcceptor::from(Arc::new(application));
    for (mode, alpn) in [
        (Mode::Permissive, &[b"h2".as_slice(), b"http/1.1"][..]),
        (Mode::Permissive, &[]),
        (Mode::Disable, &[b"istio"]),
    ] {
        let (near, far) = duplex(PIPE);
        let accept = ca.accept("reviews", mode);
        let server = async {
            let accepted = take(&accept, far).await.unwrap();
            let sni = accepted.connection.sni().map(str::to_owned);
            assert!(accepted.connection.peer().is_none() && !accepted.io.is_tls());
            let mut tls = application.accept(accepted.io).await.unwrap();
            tls.write_all(b"hello").await.unwrap();
            tls.shutdown().await.unwrap();
            (sni, accepted.connection)
        };
        let client = async {
            let connector = TlsConnector::from(Arc::new(stranger(alpn, None)));
            let mut tls = connector.connect(ServerName::try_from(SNI).unwrap(), near).await.unwrap();
            let mut heard = Vec::new();
            tls.read_to_end(&mut heard).await.unwrap();
            heard
        };
        let ((sni, connection), heard) = tokio::join!(server, client);
        assert_eq!(heard, b"hello");
        if mode == Mode::Permissive {
            assert_eq!(sni.as_deref(), Some(SNI));
            assert!(matches!(connection.transport(), Transport::Passthrough { .. }));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_a_server_that_speaks_first_where_plaintext_may_pass() {
    let ca = Ca::new();
    let accept = ca.accept("reviews", Mode::Permissive);
    let (mut near, far) = duplex(PIPE);
    let before = tokio::time::Instant::now();
    let mut accepted = take(&accept, far).await.unwrap();
    assert_eq!(before.elapsed(), Duration::from_secs(1));
    accepted.io.write_all(b"220 ready").await.unwrap();
    near.write_all(b"HELO").await.unwrap();
    let mut heard = [0; 4];
    accepted.io.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"HELO");

    let (_near, far) = duplex(PIPE);
    let quick = accept.detect_timeout(Duration::from_millis(5));
    let before = tokio::time::Instant::now();
    take(&quick, far).await.unwrap();
    assert_eq!(before.elapsed(), Duration::from_millis(5));

    let (_near, far) = duplex(PIPE);
    let refused = take(&ca.accept("reviews", Mode::Strict), far).await.unwrap_err();
    assert_eq!(refused.reason(), "handshake_timeout");
}

#[tokio::test(start_paused = true)]
async fn a_handshake_has_an_end() {
    let ca = Ca::new();
    for (mode, said) in
        [(Mode::Permissive, &b"\x16\x03\x01"[..]), (Mode::Strict, b"\x16\x03\x01\x01\x00\x01\x00\x00\xfc")]
    {
        let (mut near, far) = duplex(PIPE);
        near.write_all(said).await.unwrap();
        let accept = ca.accept("reviews", mode).handshake_timeout(Duration::from_secs(3));
        let before = tokio::time::Instant::now();
        let refused = take(&accept, far).await.unwrap_err();
        assert!(matches!(refused, AcceptError::HandshakeTimeout { .. }), "{refused}");
        assert_eq!(before.elapsed(), Duration::from_secs(3));
    }
}

/// Passes bytes on one by one, both ways.
async fn dribble(client: DuplexStream, server: DuplexStream) {
    let (client_reads, client_writes) = tokio::io::split(client);
    let (server_reads, server_writes) = tokio::io::split(server);
    let pass = async |mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>| {
        while let Ok(byte) = from.read_u8().await {
            to.write_u8(byte).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(pass(client_reads, server_writes), pass(server_reads, client_writes));
}

/// Every byte on its own, in both modes that look.
#[tokio::test]
async fn a_dribbled_hello_is_understood() {
    let ca = Ca::new();
    for mode in [Mode::Permissive, Mode::Strict] {
        let (near, middle) = duplex(PIPE);
        let (thin, far) = duplex(PIPE);
        tokio::spawn(dribble(middle, thin));
        let accept = ca.accept("reviews", mode);
        let connect = ca.connect("web");
        let to = nowhere().tls(mutual(&["reviews"]));
        let (accepted, connected) = tokio::join!(take(&accept, far), connect.secure(near, &to));
        assert_eq!(accepted.unwrap().connection.peer().unwrap().id(), &id("web"));
        assert!(connected.is_ok());
    }
}

#[tokio::test]
async fn an_oversize_hello_is_refused() {
    let ca = Ca::new();
    let mut hello = vec![0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc];
    hello.resize(MAX_CLIENT_HELLO + 1, 0);
    for mode in [Mode::Permissive, Mode::Strict] {
        let (mut near, far) = duplex(PIPE);
        near.write_all(&hello).await.unwrap();
        let refused = take(&ca.accept("reviews", mode), far).await.unwrap_err();
        assert!(matches!(refused, AcceptError::ClientHelloTooLarge { .. }), "{refused}");
    }
}

fn strict() -> PeerAuthentication {
    PeerAuthentication { mtls: Some(MutualTls { mode: MutualTlsMode::Strict }), ..Default::default() }
}

#[tokio::test]
async fn strict_closes_plaintext_without_a_byte() {
    let ca = Ca::new();
    let policy = Resource::new("default", "strict", strict());
    let modes = TlsModes::compile([&policy], "istio-system", "default", &Labels::new());
    let accept = TlsAccept::new(ca.credentials("reviews"), Live::fixed(modes));
    for said in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01\x00\x05\x02junk", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.write_all(said).await.unwrap();
        let (io, peer) = listener.accept().await.unwrap();
        let local = io.local_addr().unwrap();
        let stream = AcceptedStream::new(io, peer.into(), local.into())
            .original_dst(OriginalDst("10.0.0.1:9080".parse().unwrap()));
        let refused = accept.clone().oneshot(stream).await.unwrap_err();
        assert_eq!(refused.reason(), "plaintext_refused");
        assert_eq!(
            refused.to_string(),
            format!(
                "plaintext from {peer} to port 9080 was refused: mTLS is STRICT by PeerAuthentication default/strict"
            )
        );
        let mut answer = Vec::new();
        // Closed or reset: either way nothing was said.
        let _ = client.read_to_end(&mut answer).await;
        assert!(answer.is_empty());
    }
}

#[tokio::test]
async fn a_mode_counts_from_the_next_connection_on_and_per_port() {
    let ca = Ca::new();
    let (publisher, modes) = live::channel(TlsModes::fixed(Mode::Permissive));
    let accept = TlsAccept::new(ca.credentials("reviews"), modes);
    assert_eq!(hears(&accept, b"x").await.0, Transport::Plaintext);
    let open = MutualTls { mode: MutualTlsMode::Disable };
    let selector = Some(Selector::new([("app", "web")]));
    let spec = PeerAuthentication { selector, port_level_mtls: [(15, open)].into(), ..strict() };
    let web = Labels::from([("app".to_owned(), "web".to_owned())]);
    publisher.publish(TlsModes::compile(
        [&Resource::new("default", "w", spec)],
        "istio-system",
        "default",
        &web,
    ));
    let (mut near, far) = duplex(PIPE);
    near.write_all(b"x").await.unwrap();
    assert_eq!(take(&accept, far).await.unwrap_err().reason(), "plaintext_refused");
    let (_near, far) = duplex(PIPE);
    let opened = accept.clone().oneshot(arrived(far).workload_port(15)).await.unwrap();
    assert_eq!(opened.connection.workload_port(), Some(15));
}

#[tokio::test]
async fn who_leaves_at_once_and_who_comes_too_early_are_told_apart() {
    let ca = Ca::new();
    let (near, far) = duplex(PIPE);
    drop(near);
    assert_eq!(take(&ca.accept("reviews", Mode::Strict), far).await.unwrap_err().reason(), "closed");

    let accept = TlsAccept::new(Live::fixed(Credentials::none()), Live::fixed(TlsModes::default()));
    let (near, far) = duplex(PIPE);
    let to = nowhere().tls(mutual(&["reviews"]));
    let connect = ca.connect("web");
    let (refused, _client) = tokio::join!(take(&accept, far), connect.secure(near, &to));
    assert_eq!(refused.unwrap_err().reason(), "no_identity");
}
