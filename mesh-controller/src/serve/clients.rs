//! Who shows a certificate of the mesh's own authority.
//!
//! A certificate is optional: who asks for the first one has none. One that is not good, because it has
//! expired, say, counts as none rather than closing the connection: its owner may come for the next one.

use std::sync::Arc;

use mesh_core::identity::TrustDomain;
use mesh_xds::server::Peer;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

/// `userId`, in which the authority tells a pod's name.
const USER_ID: &str = "0.9.2342.19200300.100.1.1";

/// Knows the certificates of one authority.
#[derive(Debug)]
pub struct Clients {
    strict: Arc<dyn ClientCertVerifier>,
    domain: TrustDomain,
}

impl Clients {
    /// Believes certificates that lead to `roots` (PEM) and name somebody of `domain`.
    ///
    /// # Errors
    /// When the roots cannot be used.
    pub fn new(roots: &str, domain: TrustDomain, provider: Arc<CryptoProvider>) -> Result<Self, Error> {
        let mut store = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(roots.as_bytes()).flatten() {
            store.add(root)?;
        }
        let strict = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider)
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(Self { strict, domain })
    }

    /// Who a peer is whose handshake has shown `chain`, if that is good at `now`.
    pub fn peer(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Option<Peer> {
        let (leaf, rest) = chain.split_first()?;
        self.strict.verify_client_cert(leaf, rest, now).ok()?;
        let identity = mesh_tls::spiffe_id_of(leaf).ok()?;
        if identity.trust_domain() != self.domain.as_str() {
            return None;
        }
        let pod = pod(leaf);
        let workload =
            identity.namespace().zip(pod).map(|(namespace, pod)| format!("{namespace}/{pod}").into());
        Some(Peer { identity, workload })
    }
}

/// The pod that a certificate of the authority names.
fn pod(leaf: &[u8]) -> Option<String> {
    let (_, cert) = X509Certificate::from_der(leaf).ok()?;
    let mut names = cert
        .subject()
        .iter_attributes()
        .filter(|attribute| attribute.attr_type().to_id_string() == USER_ID)
        .filter_map(|attribute| attribute.as_str().ok());
    match (names.next(), names.next()) {
        (Some(name), None) if !name.is_empty() && !name.contains('/') => Some(name.to_owned()),
        _ => None,
    }
}

/// Takes any certificate whose key the peer has; what it is worth is decided by [`Clients::peer`].
#[derive(Debug)]
pub(super) struct Lenient(pub(super) Arc<Clients>);

impl ClientCertVerifier for Lenient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.strict.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.strict.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.strict.supported_verify_schemes()
    }
}
