//! Makes an authority: a root that lives long and signs one thing, and an intermediate that signs the rest.

use std::fmt;
use std::time::{Duration, SystemTime};

use mesh_core::identity::TrustDomain;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SerialNumber,
};

use super::ca::{BACKDATE, Files, serial};

/// How long a root lives: Istio's 10 years.
pub const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How long an intermediate lives. Longer than any certificate that it signs, see
/// [`RENEW_AFTER`].
pub const INTERMEDIATE_LIFE: Duration = Duration::from_secs(365 * 86_400);
/// When an intermediate is renewed: at this share of its life, in hundredths.
pub const RENEW_AFTER: u32 = 50;

/// An authority that was made, with the key of its root.
#[derive(Clone, PartialEq, Eq)]
pub struct Made {
    /// The root, in PEM.
    pub root: String,
    /// Its key, in PEM.
    pub root_key: String,
    /// The intermediate, in PEM.
    pub certificate: String,
    /// Its key, in PEM.
    pub key: String,
}

impl Made {
    /// As an authority's files.
    pub fn files(&self) -> Files<'_> {
        Files {
            certificate: self.certificate.as_bytes(),
            key: self.key.as_bytes(),
            chain: self.certificate.as_bytes(),
            roots: self.root.as_bytes(),
        }
    }
}

impl fmt::Debug for Made {
    /// Without the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Made").field("root", &self.root).finish_non_exhaustive()
    }
}

/// Makes a root and an intermediate, with ECDSA P-256 keys.
///
/// # Errors
/// When the crypto library fails.
pub fn authority(domain: &TrustDomain, now: SystemTime) -> Result<Made, rcgen::Error> {
    let key = KeyPair::generate()?;
    let params = params(domain, "root CA", 1, now, ROOT_LIFE)?;
    let root = params.self_signed(&key)?.pem();
    let root_key = key.serialize_pem();
    let (certificate, key) = intermediate(domain, &root, &root_key, now)?;
    Ok(Made { root, root_key, certificate, key })
}

/// Makes an intermediate below a root: certificate and key in PEM.
///
/// # Errors
/// When the root or its key cannot be read, or the crypto library fails.
pub fn intermediate(
    domain: &TrustDomain,
    root: &str,
    root_key: &str,
    now: SystemTime,
) -> Result<(String, String), rcgen::Error> {
    let issuer = Issuer::from_ca_cert_pem(root, KeyPair::from_pem(root_key)?)?;
    let key = KeyPair::generate()?;
    let params = params(domain, "intermediate CA", 0, now, INTERMEDIATE_LIFE)?;
    Ok((params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
}

fn params(
    domain: &TrustDomain,
    name: &str,
    below: u8,
    now: SystemTime,
    life: Duration,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, domain.as_str());
    params.distinguished_name.push(DnType::CommonName, format!("tower-mesh {name}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now.checked_sub(BACKDATE).unwrap_or(now).into();
    params.not_after = (now + life).into();
    params.use_authority_key_identifier_extension = true;
    let serial = serial().map_err(|_| rcgen::Error::RingUnspecified)?;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

/// Whether an intermediate is to be renewed.
pub fn is_due(not_before: SystemTime, not_after: SystemTime, now: SystemTime) -> bool {
    let life = not_after.duration_since(not_before).unwrap_or_default();
    let due = not_before.checked_add(life / 100 * RENEW_AFTER);
    due.is_none_or(|due| now >= due)
}
