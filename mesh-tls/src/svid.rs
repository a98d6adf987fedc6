//! A workload's certificate: leaf, chain and key, and the one identity in it.
//!
//! ```
//! use tower_mesh_tls::{Pem, Svid, TrustBundle};
//! use tower_mesh_tls::dev_ca::DevCa;
//! # let dir = tempfile::tempdir().unwrap();
//!
//! let ca = DevCa::open(dir.path()).unwrap();
//! let svid = ca.issue(&"spiffe://cluster.local/ns/default/sa/web".parse().unwrap()).unwrap();
//! assert_eq!(svid.id().service_account(), Some("web"));
//! assert!(svid.not_before() < svid.not_after());
//!
//! let err = Svid::from_pem(Pem::new("tls.crt", b""), Pem::new("tls.key", b"")).unwrap_err();
//! assert_eq!(err.to_string(), "tls.crt: it holds no certificate (BEGIN CERTIFICATE)");
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use mesh_core::facts::PeerIdentity;
use mesh_core::identity::SpiffeId;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::clock::from_timestamp;
use crate::error::{LeafError, MaterialError};
use crate::material::provider;
use crate::pem::Pem;

/// The largest certificate that is looked at, in bytes.
pub const MAX_CERTIFICATE: usize = 16 * 1024;
/// The most certificates in a chain, the leaf counted.
pub const MAX_CHAIN: usize = 8;

/// A workload's own certificate and key. Cheap to clone; never tells its key.
#[derive(Clone)]
pub struct Svid {
    id: SpiffeId,
    certified: Arc<CertifiedKey>,
    leaf: CertificateInfo,
    /// What complaints about it name.
    pub(crate) file: Arc<str>,
}

/// What an admin page tells of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// The subject, as OpenSSL writes it; empty for workloads.
    pub subject: Arc<str>,
    /// The SPIFFE ID, where there is one.
    pub id: Option<SpiffeId>,
    /// The serial number, in hexadecimal.
    pub serial: Arc<str>,
    /// From when on it is valid.
    pub not_before: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
}

impl CertificateInfo {
    /// Reads a certificate that is trusted already (a root, or one's own).
    pub(crate) fn of(der: &[u8]) -> Result<Self, LeafError> {
        let cert = parse(der)?;
        Ok(Self {
            subject: cert.subject().to_string().into(),
            id: only_spiffe_id(&cert).ok(),
            serial: cert.raw_serial().iter().map(|b| format!("{b:02x}")).collect::<String>().into(),
            not_before: from_timestamp(cert.validity().not_before.timestamp()),
            not_after: from_timestamp(cert.validity().not_after.timestamp()),
        })
    }
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, LeafError> {
    if der.len() > MAX_CERTIFICATE {
        return Err(LeafError::TooLarge(der.len()));
    }
    let (rest, cert) = X509Certificate::from_der(der).map_err(|e| LeafError::Malformed(e.to_string()))?;
    if !rest.is_empty() {
        return Err(LeafError::Malformed("bytes follow it".to_owned()));
    }
    Ok(cert)
}

fn only_spiffe_id(cert: &X509Certificate<'_>) -> Result<SpiffeId, LeafError> {
    let names = cert
        .subject_alternative_name()
        .map_err(|e| LeafError::Malformed(format!("its subject alternative names: {e}")))?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    match uris.as_slice() {
        [] => Err(LeafError::NoUri),
        [uri] => Ok(uri.parse()?),
        several => Err(LeafError::SeveralUris(several.len())),
    }
}

/// As the [X.509-SVID specification](https://spiffe.io/docs/latest/spiffe-specs/x509-svid/) wants a leaf:
/// one SPIFFE ID, with a path, and a key that signs no certificates. That it is no CA is checked with the
/// chain.
fn workload_id(cert: &X509Certificate<'_>) -> Result<SpiffeId, LeafError> {
    let id = only_spiffe_id(cert)?;
    if id.path().is_empty() {
        return Err(LeafError::NoWorkload);
    }
    let usage = cert.key_usage().map_err(|e| LeafError::Malformed(format!("its key usage: {e}")))?;
    if usage.is_some_and(|usage| usage.value.key_cert_sign() || usage.value.crl_sign()) {
        return Err(LeafError::Signing);
    }
    Ok(id)
}

/// The SPIFFE ID of a workload's certificate (DER): its only URI SAN.
///
/// Does not verify any signature. Takes what a peer sent: bounded, and free of panics.
///
/// # Errors
/// When the bytes are no certificate, there is not exactly one URI, it is no SPIFFE ID of a workload, or
/// the key may sign certificates.
pub fn spiffe_id_of(der: &[u8]) -> Result<SpiffeId, LeafError> {
    workload_id(&parse(der)?)
}

/// Identity, expiry and fingerprint of a peer's leaf, which the handshake has verified.
pub(crate) fn peer_identity(leaf: &CertificateDer<'_>) -> Result<PeerIdentity, LeafError> {
    let cert = parse(leaf)?;
    let id = workload_id(&cert)?;
    let not_after = from_timestamp(cert.validity().not_after.timestamp());
    Ok(PeerIdentity::new(id).with_certificate(not_after, crate::material::sha256(leaf)))
}

impl Svid {
    /// Reads a certificate with its chain (leaf first) and its key, and checks that they belong together.
    ///
    /// # Errors
    /// Names the file that is unreadable, holds no workload's certificate, or does not match the other.
    pub fn from_pem(certificate: Pem<'_>, key: Pem<'_>) -> Result<Self, MaterialError> {
        let chain = certificate.certificates()?;
        let file = certificate.name();
        let leaf_error = |error| MaterialError::Leaf { file: file.to_owned(), error };
        if chain.len() > MAX_CHAIN {
            return Err(leaf_error(LeafError::ChainTooLong(chain.len())));
        }
        let Some(first) = chain.first() else { return Err(leaf_error(LeafError::NoUri)) };
        let id = spiffe_id_of(first).map_err(leaf_error)?;
        let leaf = CertificateInfo::of(first).map_err(leaf_error)?;
        let certified = CertifiedKey::from_der(chain, key.key()?, &provider()).map_err(|e| match e {
            rustls::Error::InconsistentKeys(_) => {
                MaterialError::KeyMismatch { key_file: key.name().to_owned(), cert_file: file.to_owned() }
            }
            other => MaterialError::Malformed {
                file: key.name().to_owned(),
                reason: format!("the private key cannot be used: {other}"),
            },
        })?;
        Ok(Self { id, certified: Arc::new(certified), leaf, file: Arc::from(file) })
    }

    /// Whom it names.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// From when on it is valid.
    pub fn not_before(&self) -> SystemTime {
        self.leaf.not_before
    }

    /// Until when it is valid.
    pub fn not_after(&self) -> SystemTime {
        self.leaf.not_after
    }

    /// What an admin page tells of it.
    pub fn info(&self) -> &CertificateInfo {
        &self.leaf
    }

    pub(crate) fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid").field("leaf", &self.leaf).finish_non_exhaustive()
    }
}
