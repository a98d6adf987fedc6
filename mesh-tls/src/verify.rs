//! Verifies a peer's chain against the roots of the trust domain that its certificate names.
//!
//! No DNS name is compared: a workload is who its SPIFFE ID says. Whether that is who the caller expects
//! is decided after the handshake, where the expectation is known.

use std::sync::Arc;

use mesh_core::identity::SpiffeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};

use crate::bundle::{Roots, TrustBundle};
use crate::error::LeafError;
use crate::svid::{MAX_CERTIFICATE, MAX_CHAIN, spiffe_id_of};

/// Both directions of the check, over one bundle.
#[derive(Debug)]
pub(crate) struct PeerVerifier {
    bundle: TrustBundle,
    own: SpiffeId,
    algorithms: WebPkiSupportedAlgorithms,
}

fn leaf_error(error: LeafError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// Finds the reason that [`PeerVerifier`] gave in what rustls reports.
pub(crate) fn leaf_error_in(error: &Error) -> Option<&LeafError> {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => inner.downcast_ref(),
        _ => None,
    }
}

/// What is wrong with a certificate, in words.
pub(crate) fn told(error: &Error) -> String {
    match (leaf_error_in(error), error) {
        (Some(leaf), _) => leaf.to_string(),
        (None, Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "its issuer is unknown".to_owned()
        }
        (None, Error::InvalidCertificate(other)) => other.to_string(),
        (None, other) => other.to_string(),
    }
}

impl PeerVerifier {
    pub(crate) fn new(bundle: TrustBundle, own: SpiffeId, algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self { bundle, own, algorithms }
    }

    /// The roots to verify against, and what is wrong with the leaf's identity, to be told only once the
    /// chain is known to be good: a stranger's certificate is first of all a stranger's.
    fn roots(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
    ) -> Result<(&Roots, Option<Error>), Error> {
        let count = rest.len() + 1;
        if count > MAX_CHAIN {
            return Err(leaf_error(LeafError::ChainTooLong(count)));
        }
        if let Some(big) = std::iter::once(leaf).chain(rest).find(|c| c.len() > MAX_CERTIFICATE) {
            return Err(leaf_error(LeafError::TooLarge(big.len())));
        }
        let (domain, wrong) = match spiffe_id_of(leaf) {
            Ok(id) => (id, None),
            Err(e) => (self.own.clone(), Some(leaf_error(e))),
        };
        let unknown = || leaf_error(LeafError::UnknownTrustDomain(domain.trust_domain().to_owned()));
        Ok((self.bundle.of(domain.trust_domain()).ok_or_else(unknown)?, wrong))
    }

    pub(crate) fn check_server(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let (roots, wrong) = self.roots(leaf, rest)?;
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots.store, rest, now, self.algorithms.all)?;
        wrong.map_or(Ok(()), Err)
    }

    pub(crate) fn check_client(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let (roots, wrong) = self.roots(leaf, rest)?;
        roots.clients.verify_client_cert(leaf, rest, now)?;
        wrong.map_or(Ok(()), Err)
    }
}

fn no_tls12() -> Error {
    Error::General("the mesh speaks TLS 1.3 only".to_owned())
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check_server(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hints: a client has one identity, and some would send none rather than one that is not named.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check_client(end_entity, intermediates, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
