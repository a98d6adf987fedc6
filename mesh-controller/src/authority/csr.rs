//! The public key of a certificate request, and nothing else of it.

use rcgen::SubjectPublicKeyInfo;
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{
    OID_PKCS1_SHA256WITHRSA, OID_PKCS1_SHA384WITHRSA, OID_PKCS1_SHA512WITHRSA, OID_SIG_ECDSA_WITH_SHA256,
    OID_SIG_ECDSA_WITH_SHA384,
};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

/// The sizes of RSA keys that are certified, in bits.
pub const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// Why a request cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CsrError {
    /// It cannot be read.
    #[error("the certificate request is no PKCS #10 in PEM (BEGIN CERTIFICATE REQUEST)")]
    Malformed,
    /// It is not signed by the key that it holds.
    #[error("the certificate request is not signed by its own key")]
    NotProved,
    /// It is signed in a way that proves too little.
    #[error("the certificate request is signed with an algorithm that is not accepted; use SHA-256")]
    Algorithm,
    /// Its key is of another sort or size.
    #[error("the key is neither ECDSA P-256 or P-384 nor RSA of 2048 to 4096 bits")]
    Key,
}

/// The public key of a request in PEM whose sender has proved to have the private one. Names, usages and
/// whatever else it asks for are not looked at.
///
/// ```
/// use mesh_controller::authority::csr::{CsrError, public_key};
///
/// let key = rcgen::KeyPair::generate().unwrap();
/// let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
/// assert!(public_key(&request).is_ok());
/// assert_eq!(public_key("nonsense").unwrap_err(), CsrError::Malformed);
/// ```
///
/// # Errors
/// See [`CsrError`].
pub fn public_key(pem: &str) -> Result<SubjectPublicKeyInfo, CsrError> {
    let der =
        CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|_| CsrError::Malformed)?;
    let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| CsrError::Malformed)?;
    if !rest.is_empty() {
        return Err(CsrError::Malformed);
    }
    let info = &request.certification_request_info.subject_pki;
    let accepted = match info.parsed().map_err(|_| CsrError::Key)? {
        PublicKey::RSA(key) => RSA_BITS.contains(&key.key_size()),
        // Which curve it is, the signing library says below: it knows these two and one that we leave out.
        PublicKey::EC(key) => matches!(key.key_size(), 256 | 384),
        _ => false,
    };
    if !accepted {
        return Err(CsrError::Key);
    }
    let algorithms = [
        OID_SIG_ECDSA_WITH_SHA256,
        OID_SIG_ECDSA_WITH_SHA384,
        OID_PKCS1_SHA256WITHRSA,
        OID_PKCS1_SHA384WITHRSA,
        OID_PKCS1_SHA512WITHRSA,
    ];
    if !algorithms.contains(&request.signature_algorithm.algorithm) {
        return Err(CsrError::Algorithm);
    }
    request.verify_signature().map_err(|_| CsrError::NotProved)?;
    SubjectPublicKeyInfo::from_der(info.raw).map_err(|_| CsrError::Key)
}
