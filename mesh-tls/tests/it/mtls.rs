//! Two workloads, one root: who gets through, and what each learns of the other.

use std::sync::Arc;
use std::time::Duration;

use mesh_core::cluster::{Expect, UpstreamTls};
use mesh_core::facts::{Transport, UpstreamAddr};
use mesh_core::failure::{Failure, FailureCode};
use mesh_core::live::Live;
use rustls::HandshakeKind;
use rustls::client::{ClientSessionMemoryCache, Resumption};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tower::ServiceExt;
use tower_mesh_tls::alpn::{MeshAlpn, Negotiated};
use tower_mesh_tls::modes::Mode;
use tower_mesh_tls::{AcceptError, ConnectError, ConnectTo, Credentials, TlsConnect};

use crate::support::{Ca, SNI, arrived, id, mutual, nowhere, over_tcp, parts, stranger};

#[tokio::test]
async fn both_ends_know_each_other_and_the_protocol() {
    let ca = Ca::new();
    let (accept, connect) = (ca.accept("reviews", Mode::Strict), ca.connect("web"));
    for (alpn, agreed) in [
        (MeshAlpn::Http1, Negotiated::Http1),
        (MeshAlpn::Carried, Negotiated::Carried),
        (MeshAlpn::Http2, Negotiated::Http2),
        (MeshAlpn::Tcp, Negotiated::Mesh),
    ] {
        let to = nowhere().tls(mutual(&["ratings", "reviews"])).alpn(alpn);
        let (accepted, connected) = over_tcp(&accept, &connect, to).await;
        let (mut accepted, mut connected) = (accepted.unwrap(), connected.unwrap());
        assert_eq!((accepted.negotiated(), connected.alpn), (Some(agreed), Some(agreed)));
        let facts = &accepted.connection;
        assert_eq!(facts.peer().unwrap().id(), &id("web"));
        assert_eq!(facts.sni(), Some(SNI));
        assert!(facts.is_mutual_tls() && matches!(facts.transport(), Transport::Tls { .. }));
        assert_eq!(facts.workload_port(), connected.address.map(UpstreamAddr::port));
        let peer = connected.peer.unwrap();
        assert_eq!(peer.id(), &id("reviews"));
        assert!(peer.not_after().is_some() && peer.fingerprint().is_some_and(|f| f != &[0; 32]));
        assert!(connected.io.get_ref().nodelay().unwrap());
        assert!(accepted.io.is_write_vectored() && connected.io.is_write_vectored());

        connected.io.write_all(b"ping").await.unwrap();
        let mut said = [0; 4];
        accepted.io.read_exact(&mut said).await.unwrap();
        accepted.io.write_all(b"pong").await.unwrap();
        accepted.io.shutdown().await.unwrap();
        let mut answer = Vec::new();
        connected.io.read_to_end(&mut answer).await.unwrap();
        assert_eq!((&said, answer.as_slice()), (b"ping", b"pong".as_slice()));
    }
}

#[tokio::test]
async fn somebody_else_is_refused_each_time() {
    let ca = Ca::new();
    let (accept, connect) = (ca.accept("ratings", Mode::Strict), ca.connect("web"));
    for _ in 0..2 {
        let (_, connected) = over_tcp(&accept, &connect, nowhere().tls(mutual(&["reviews"]))).await;
        let error = connected.unwrap_err();
        assert!(matches!(error, ConnectError::IdentityMismatch { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(id("ratings").as_str()) && text.contains(id("reviews").as_str()), "{text}");
        assert_eq!(Failure::from(error).code(), FailureCode::IdentityMismatch);
    }
    let (_, nobody) = over_tcp(&accept, &connect, nowhere().tls(mutual(&[]))).await;
    assert!(nobody.unwrap_err().to_string().ends_with("but nobody was expected"));

    let any = UpstreamTls::Mutual { sni: SNI.into(), expect: Expect::AnyInTrustDomain };
    let (accepted, connected) = over_tcp(&accept, &connect, nowhere().tls(any)).await;
    assert!(accepted.is_ok() && connected.is_ok());
}

#[tokio::test]
async fn a_certificate_of_another_ca_fails_in_the_handshake() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    let to = || nowhere().tls(mutual(&["reviews"]));

    let (_, connected) = over_tcp(&theirs.accept("reviews", Mode::Strict), &ours.connect("web"), to()).await;
    let error = connected.unwrap_err();
    assert!(matches!(error, ConnectError::Tls { .. }), "{error}");
    assert_eq!(error.code(), FailureCode::TlsFailed);

    // The client trusts the server's CA, but shows a certificate of its own.
    let shown = theirs.ca.issue_pem(&id("web")).unwrap();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let client = async {
        let connector = TlsConnector::from(Arc::new(stranger(&[b"istio"], Some(&shown))));
        let mut tls = connector.connect(ServerName::try_from(SNI).unwrap(), near).await.unwrap();
        // In TLS 1.3 the client learns of it when it reads.
        tls.read_u8().await.unwrap_err()
    };
    let server = ours.accept("reviews", Mode::Strict).oneshot(arrived(far));
    let (refused, error) = tokio::join!(server, client);
    let refused = refused.unwrap_err();
    assert!(matches!(refused, AcceptError::Handshake { .. }), "{refused}");
    assert_eq!(refused.reason(), "handshake_failed");
    assert!(error.to_string().contains("alert"), "{error}");
}

#[tokio::test]
async fn strict_asks_for_a_certificate_and_for_no_protocol_name() {
    let ca = Ca::new();
    let shown = ca.ca.issue_pem(&id("web")).unwrap();
    for (shows, alpn, good) in [
        (None, &[b"istio".as_slice()][..], false),
        (Some(&shown), &[], true),
        (Some(&shown), &[b"h2"], true),
        (Some(&shown), &[b"istio-peer-exchange", b"istio"], true),
        (Some(&shown), &[b"something-else"], false),
    ] {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let connector = TlsConnector::from(Arc::new(stranger(alpn, shows)));
        let client = connector.connect(ServerName::try_from(SNI).unwrap(), near);
        let server = ca.accept("reviews", Mode::Strict).oneshot(arrived(far));
        let (accepted, _client) = tokio::join!(server, client);
        assert_eq!(accepted.is_ok(), good, "{alpn:?} {accepted:?}");
        if let Ok(accepted) = accepted {
            assert_ne!(accepted.negotiated().is_none(), !alpn.is_empty());
        }
    }
}

#[tokio::test]
async fn no_session_is_resumed_by_our_server() {
    let ca = Ca::new();
    let shown = ca.ca.issue_pem(&id("web")).unwrap();
    let mut config = stranger(&[b"istio"], Some(&shown));
    config.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(16)));
    let connector = TlsConnector::from(Arc::new(config));
    let accept = ca.accept("reviews", Mode::Strict);
    for _ in 0..3 {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let client = connector.connect(ServerName::try_from(SNI).unwrap(), near);
        let (accepted, tls) = tokio::join!(accept.clone().oneshot(arrived(far)), client);
        let (mut accepted, mut tls) = (accepted.unwrap(), tls.unwrap());
        // Tickets, if there were any, would arrive before the first byte.
        accepted.io.write_all(b"x").await.unwrap();
        tls.read_u8().await.unwrap();
        let session = tls.get_ref().1;
        assert_eq!(session.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(session.tls13_tickets_received(), 0);
    }
}

#[tokio::test]
async fn no_session_is_resumed_by_our_client() {
    let ca = Ca::new();
    let (chain, key) = parts(&ca.ca.issue_pem(&id("reviews")).unwrap());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    // A server that would: tickets and a session cache, as rustls has them by default.
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.send_tls13_tickets = 4;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let connect = ca.connect("web");
    for _ in 0..3 {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let to = nowhere().tls(mutual(&["reviews"]));
        let (server, client) = tokio::join!(acceptor.accept(far), connect.secure(near, &to));
        let (mut server, mut client) = (server.unwrap(), client.unwrap());
        server.write_all(b"x").await.unwrap();
        client.io.read_u8().await.unwrap();
        assert_eq!(server.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[tokio::test]
async fn what_cannot_be_reached_says_why() {
    let ca = Ca::new();
    let connect = ca.connect("web");
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let refused = connect.clone().oneshot(ConnectTo::socket(closed.into())).await.unwrap_err();
    assert_eq!(refused.code(), FailureCode::ConnectFailed);
    assert!(refused.to_string().starts_with(&format!("{closed} cannot be reached")), "{refused}");

    // Accepts and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = ConnectTo::socket(silent.local_addr().unwrap().into())
        .tls(mutual(&["reviews"]))
        .timeout(Duration::from_millis(50));
    let late = connect.clone().oneshot(to).await.unwrap_err();
    assert!(matches!(late, ConnectError::TlsTimeout { .. }), "{late}");

    let to = ConnectTo::new(mesh_core::cluster::EndpointAddress::Name(
        "localhost".into(),
        silent.local_addr().unwrap().port(),
    ));
    let named = connect.clone().oneshot(to).await.unwrap();
    assert!(!named.io.is_tls() && named.peer.is_none());

    let bad = UpstreamTls::Mutual { sni: "not a name".into(), expect: Expect::AnyInTrustDomain };
    let (near, _far) = tokio::io::duplex(64);
    let error = connect.secure(near, &nowhere().tls(bad)).await.unwrap_err();
    assert!(matches!(error, ConnectError::InvalidSni { .. }), "{error}");

    let (near, _far) = tokio::io::duplex(64);
    let nobody = TlsConnect::new(Live::fixed(Credentials::none()));
    let error = nobody.secure(near, &nowhere().tls(mutual(&["reviews"]))).await.unwrap_err();
    assert!(matches!(error, ConnectError::NoIdentity { .. }), "{error}");
    assert_eq!(error.code(), FailureCode::TlsFailed);
}
