//! Plain TLS peers: what a program outside the mesh, or one that breaks its rules, would do.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    ServerConfig, SignatureScheme,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::ca::{Leaf, TestCa};
use crate::client::CallError;

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn roots(ca: &TestCa) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.root().clone()).expect("the root of a test CA");
    Arc::new(roots)
}

fn names(alpn: &[&str]) -> Vec<Vec<u8>> {
    alpn.iter().map(|name| name.as_bytes().to_vec()).collect()
}

/// A server that shows `leaf` and negotiates `alpn`. With `clients`, a client must show a certificate of that
/// authority (any: identities are not looked at).
pub fn server_config(leaf: &Leaf, clients: Option<&TestCa>, alpn: &[&str]) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("TLS versions");
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots(ca), provider()).build();
            builder.with_client_cert_verifier(verifier.expect("a client verifier"))
        }
    };
    let mut config =
        builder.with_single_cert(leaf.chain.clone(), leaf.key.clone_key()).expect("a leaf with its key");
    config.alpn_protocols = names(alpn);
    Arc::new(config)
}

/// A client that shows `leaf` (none: no certificate) and offers `alpn`. With `servers`, the server must chain
/// to that authority; its names are not looked at. Without, any server is taken.
pub fn client_config(leaf: Option<&Leaf>, servers: Option<&TestCa>, alpn: &[&str]) -> Arc<ClientConfig> {
    let chain = servers.map(|ca| {
        WebPkiServerVerifier::builder_with_provider(roots(ca), provider()).build().expect("a server verifier")
    });
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("TLS versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ChainOnly { chain, provider: provider() }));
    let mut config = match leaf {
        None => builder.with_no_client_auth(),
        Some(leaf) => builder
            .with_client_auth_cert(leaf.chain.clone(), leaf.key.clone_key())
            .expect("a leaf with its key"),
    };
    config.alpn_protocols = names(alpn);
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

/// Connects with TLS and that SNI.
///
/// With TLS 1.3 a server refuses a client's certificate after this has succeeded: read from the stream to
/// learn of it.
///
/// # Errors
/// When the connection or the handshake fails.
pub async fn connect(
    addr: SocketAddr,
    config: Arc<ClientConfig>,
    sni: &str,
) -> Result<TlsStream<TcpStream>, TlsError> {
    let stream = crate::client::connect(addr).await.map_err(TlsError::Connect)?;
    let name = ServerName::try_from(sni.to_owned()).unwrap_or_else(|e| panic!("SNI {sni:?}: {e}"));
    let handshake = TlsConnector::from(config).connect(name, stream);
    match tokio::time::timeout(crate::client::PATIENCE, handshake).await {
        Ok(done) => done.map_err(TlsError::Handshake),
        Err(late) => Err(TlsError::Handshake(late.into())),
    }
}

/// Why there is no TLS connection.
#[derive(Debug)]
pub enum TlsError {
    /// There was no connection.
    Connect(CallError),
    /// The handshake failed.
    Handshake(std::io::Error),
}

impl std::fmt::Display for TlsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect(error) => error.fmt(f),
            Self::Handshake(error) => write!(f, "TLS handshake: {error}"),
        }
    }
}

impl std::error::Error for TlsError {}

/// The leaf that the server showed.
pub fn server_leaf(stream: &TlsStream<TcpStream>) -> Option<CertificateDer<'static>> {
    let (_, connection) = stream.get_ref();
    connection.peer_certificates()?.first().map(|leaf| leaf.clone().into_owned())
}

/// The ALPN name that was negotiated.
pub fn alpn(stream: &TlsStream<TcpStream>) -> Option<String> {
    let (_, connection) = stream.get_ref();
    connection.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned())
}

/// Checks the chain, or nothing, and never a name: SVIDs have no DNS names.
#[derive(Debug)]
struct ChainOnly {
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ChainOnly {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        match chain.verify_server_cert(leaf, intermediates, name, ocsp, now) {
            // The chain is checked before the name.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}

/// Takes any server and checks nothing, not even that it has the key of what it shows: for clients that look at
/// something else, or that are a load.
pub fn any_server() -> Arc<dyn ServerCertVerifier> {
    Arc::new(AnyServer(provider().signature_verification_algorithms.supported_schemes()))
}

#[derive(Debug)]
struct AnyServer(Vec<SignatureScheme>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;
    use crate::ca::{KeyKind, LeafSpec, spiffe};
    use crate::client::{Call, Conn, Protocol};

    async fn call(backend: &Backend, config: Arc<ClientConfig>) -> Result<u16, String> {
        let stream = connect(backend.addr(), config, "reviews").await.map_err(|e| e.to_string())?;
        let protocol = if alpn(&stream).as_deref() == Some("h2") { Protocol::H2 } else { Protocol::H1 };
        let mut conn = Conn::over(stream, protocol).await.map_err(|e| e.to_string())?;
        conn.send(&Call::get("reviews", "/")).await.map(|reply| reply.status).map_err(|e| e.to_string())
    }

    #[tokio::test]
    async fn mutual_tls_takes_its_own_and_nobody_else() {
        let (ca, other) = (TestCa::new(), TestCa::new());
        let server = ca.leaf_for("default", "reviews");
        let backend = Backend::start_tls("b", server_config(&server, Some(&ca), &["h2", "http/1.1"])).await;
        let web = spiffe("default", "web");
        for issuer in [ca.clone(), ca.intermediate(KeyKind::P384), ca.intermediate(KeyKind::Rsa)] {
            let leaf = issuer.leaf(&web);
            assert_eq!(call(&backend, client_config(Some(&leaf), Some(&ca), &["h2"])).await, Ok(200));
            assert_eq!(call(&backend, client_config(Some(&leaf), None, &[])).await, Ok(200));
        }
        let good = ca.leaf(&web);
        call(&backend, client_config(Some(&good), Some(&other), &[])).await.unwrap_err();
        for bad in [other.leaf(&web), ca.issue(&LeafSpec::spiffe(&web).expired())] {
            call(&backend, client_config(Some(&bad), Some(&ca), &[])).await.unwrap_err();
        }
        call(&backend, client_config(None, Some(&ca), &[])).await.unwrap_err();
        let stream = connect(backend.addr(), client_config(Some(&good), None, &[]), "x").await.unwrap();
        assert_eq!(server_leaf(&stream).as_ref(), server.chain.first());
    }
}
