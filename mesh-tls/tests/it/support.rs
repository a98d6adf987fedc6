//! Identities, peers and clocks for the tests beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use mesh_core::cluster::{Expect, UpstreamTls};
use mesh_core::facts::{LocalAddr, PeerAddr, UpstreamAddr};
use mesh_core::identity::SpiffeId;
use mesh_core::live::Live;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpListener;
use tower::ServiceExt;
use tower_mesh_tls::dev_ca::DevCa;
use tower_mesh_tls::modes::{Mode, TlsModes};
use tower_mesh_tls::{
    AcceptError, Accepted, AcceptedStream, Clock, ConnectError, ConnectTo, Connected, Credentials, Pem, Svid,
    TlsAccept, TlsConnect, TlsMaterial, TrustBundle,
};

pub(crate) const SNI: &str = "outbound_.9080_._.reviews.default.svc.cluster.local";

pub(crate) fn id(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/default/sa/{account}").parse().unwrap()
}

/// A development CA whose directory lives as long as it does.
pub(crate) struct Ca {
    pub(crate) ca: DevCa,
    _dir: tempfile::TempDir,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { ca: DevCa::open(dir.path()).unwrap(), _dir: dir }
    }

    pub(crate) fn credentials(&self, account: &str) -> Live<Credentials> {
        Live::fixed(Credentials::of(self.ca.material(&id(account)).unwrap()))
    }

    pub(crate) fn accept(&self, account: &str, mode: Mode) -> TlsAccept {
        TlsAccept::new(self.credentials(account), Live::fixed(TlsModes::fixed(mode)))
    }

    pub(crate) fn connect(&self, account: &str) -> TlsConnect {
        TlsConnect::new(self.credentials(account))
    }
}

pub(crate) fn mutual(expect: &[&str]) -> UpstreamTls {
    let ids: Vec<_> = expect.iter().map(|a| id(a)).collect();
    UpstreamTls::Mutual { sni: SNI.into(), expect: Expect::AnyOf(ids.into()) }
}

pub(crate) fn nowhere() -> ConnectTo {
    ConnectTo::socket(UpstreamAddr("127.0.0.1:1".parse().unwrap()))
}

/// An accepted connection on port 9080.
pub(crate) fn arrived<IO>(io: IO) -> AcceptedStream<IO> {
    let peer = PeerAddr("127.0.0.1:40000".parse().unwrap());
    AcceptedStream::new(io, peer, LocalAddr("127.0.0.1:9080".parse().unwrap()))
}

pub(crate) type Taken = Result<Accepted<tokio::net::TcpStream>, AcceptError>;

/// Both ends over a real socket.
pub(crate) async fn over_tcp(
    accept: &TlsAccept,
    connect: &TlsConnect,
    to: ConnectTo,
) -> (Taken, Result<Connected, ConnectError>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let local = listener.local_addr().unwrap();
    let to = ConnectTo { address: ConnectTo::socket(UpstreamAddr(local)).address, ..to };
    let server = async {
        let (io, peer) = listener.accept().await.unwrap();
        accept.clone().oneshot(AcceptedStream::new(io, PeerAddr(peer), LocalAddr(local))).await
    };
    tokio::join!(server, connect.clone().oneshot(to))
}

/// A clock that moves when it is told to.
#[derive(Clone)]
pub(crate) struct Moved(Arc<AtomicU64>);

impl Moved {
    pub(crate) fn new() -> (Self, Clock) {
        let moved = Self(Arc::new(AtomicU64::new(0)));
        let (start, seen) = (SystemTime::now(), moved.clone());
        let clock = Clock::from_fn(move || start + Duration::from_secs(seen.0.load(Ordering::SeqCst)));
        (moved, clock)
    }

    pub(crate) fn by(&self, by: Duration) {
        self.0.fetch_add(by.as_secs(), Ordering::SeqCst);
    }
}

/// A CA of any key type, for certificates that no CA should issue.
pub(crate) struct AnyCa {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// What a certificate of [`AnyCa`] says.
pub(crate) struct Leaf {
    pub(crate) sans: Vec<SanType>,
    pub(crate) key: KeyPair,
    pub(crate) usages: Vec<ExtendedKeyUsagePurpose>,
    pub(crate) from: SystemTime,
    pub(crate) until: SystemTime,
    pub(crate) comment: Vec<u8>,
    pub(crate) signs: bool,
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

impl Leaf {
    pub(crate) fn of(account: &str) -> Self {
        Self {
            sans: vec![uri(id(account).as_str())],
            key: KeyPair::generate().unwrap(),
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            from: SystemTime::now() - Duration::from_secs(60),
            until: SystemTime::now() + Duration::from_secs(600),
            comment: Vec::new(),
            signs: false,
        }
    }
}

impl AnyCa {
    pub(crate) fn new(key: KeyPair) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "any CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub(crate) fn p256() -> Self {
        Self::new(KeyPair::generate().unwrap())
    }

    /// Certificate and key, as PEM.
    pub(crate) fn issue(&self, leaf: &Leaf) -> (String, String) {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "leaf");
        params.subject_alt_names = leaf.sans.clone();
        params.extended_key_usages = leaf.usages.clone();
        (params.not_before, params.not_after) = (leaf.from.into(), leaf.until.into());
        if leaf.signs {
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
        }
        if !leaf.comment.is_empty() {
            let oid = [1, 3, 6, 1, 4, 1, 99999, 1];
            params.custom_extensions =
                vec![rcgen::CustomExtension::from_oid_content(&oid, leaf.comment.clone())];
        }
        let certificate = params.signed_by(&leaf.key, &self.issuer).unwrap();
        (certificate.pem(), leaf.key.serialize_pem())
    }

    pub(crate) fn bundle(&self) -> TrustBundle {
        let pem = Pem::new("ca.crt", self.pem.as_bytes());
        TrustBundle::new().with_domain("cluster.local".parse().unwrap(), pem, SystemTime::now()).unwrap()
    }

    pub(crate) fn material(&self, leaf: &Leaf) -> TlsMaterial {
        let (certificate, key) = self.issue(leaf);
        let certificate = Pem::new("tls.crt", certificate.as_bytes());
        let svid = Svid::from_pem(certificate, Pem::new("tls.key", key.as_bytes())).unwrap();
        TlsMaterial::new(svid, self.bundle(), &Clock::system()).unwrap()
    }
}

/// Chain and key as rustls takes them.
pub(crate) fn parts(
    (certificates, key): &(String, String),
) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    use rustls::pki_types::pem::PemObject;
    let chain = CertificateDer::pem_slice_iter(certificates.as_bytes()).collect::<Result<_, _>>().unwrap();
    let key = PrivatePkcs8KeyDer::from_pem_slice(key.as_bytes()).unwrap();
    (chain, key.into())
}

/// A client that is none of ours: believes every server, shows what it is given.
pub(crate) fn stranger(alpn: &[&[u8]], shows: Option<&(String, String)>) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(BelievesAll));
    let mut config = match shows {
        Some(pem) => {
            let (chain, key) = parts(pem);
            builder.with_client_auth_cert(chain, key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|n| n.to_vec()).collect();
    config
}

#[derive(Debug)]
struct BelievesAll;

impl ServerCertVerifier for BelievesAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
