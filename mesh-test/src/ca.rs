//! A certificate authority that issues good and bad certificates.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, RsaKeySize, SanType, SignatureAlgorithm,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use time::OffsetDateTime;

use crate::yaml::replace_file;

/// The kind of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyKind {
    /// ECDSA P-256, as the mesh makes them.
    #[default]
    P256,
    /// ECDSA P-384.
    P384,
    /// RSA with 2048 bits.
    Rsa,
}

impl KeyKind {
    fn generate(self) -> KeyPair {
        let algorithm: &'static SignatureAlgorithm = match self {
            Self::P256 => &PKCS_ECDSA_P256_SHA256,
            Self::P384 => &PKCS_ECDSA_P384_SHA384,
            Self::Rsa => {
                return KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).expect("an RSA key");
            }
        };
        KeyPair::generate_for(algorithm).expect("a key")
    }
}

/// A certificate authority: a root, and maybe an intermediate that signs in its place.
#[derive(Debug, Clone)]
pub struct TestCa {
    issuer: Arc<Issuer<'static, KeyPair>>,
    /// What a leaf's chain holds after the leaf: nothing for a root.
    chain: Vec<CertificateDer<'static>>,
    chain_pem: String,
    root: CertificateDer<'static>,
    root_pem: String,
    root_key_pem: String,
}

impl Default for TestCa {
    fn default() -> Self {
        Self::new()
    }
}

impl TestCa {
    /// A new authority with an ECDSA P-256 root. Two of them never trust one another.
    pub fn new() -> Self {
        Self::with_key(KeyKind::P256)
    }

    /// A new authority whose root has a key of that kind.
    pub fn with_key(kind: KeyKind) -> Self {
        let key = kind.generate();
        let root_key_pem = key.serialize_pem();
        let root = CertifiedIssuer::self_signed(ca_params("mesh-test root"), key).expect("a root");
        Self {
            root: root.der().clone(),
            root_pem: root.pem(),
            chain: Vec::new(),
            chain_pem: String::new(),
            issuer: Arc::new(issuer_of("mesh-test root", &root_key_pem)),
            root_key_pem,
        }
    }

    /// Reads a development CA (`ca.crt`, `ca.key`), to issue certificates in the name of a running mesh.
    ///
    /// # Panics
    /// When the files are missing or hold something else.
    pub fn load(dir: impl AsRef<Path>) -> Self {
        let dir = dir.as_ref();
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        };
        let (root_pem, root_key_pem) = (read("ca.crt"), read("ca.key"));
        let key = KeyPair::from_pem(&root_key_pem).expect("ca.key is a key");
        let issuer = Issuer::from_ca_cert_pem(&root_pem, key).expect("ca.crt is a certificate");
        Self {
            issuer: Arc::new(issuer),
            chain: Vec::new(),
            chain_pem: String::new(),
            root: CertificateDer::from_pem_slice(root_pem.as_bytes()).expect("ca.crt is a certificate"),
            root_pem,
            root_key_pem,
        }
    }

    /// Writes the root as a development CA (`ca.crt`, `ca.key`) into a directory.
    pub fn write_dev_ca(&self, dir: impl AsRef<Path>) {
        let dir = dir.as_ref();
        std::fs::create_dir_all(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        replace_file(&dir.join("ca.key"), &self.root_key_pem);
        replace_file(&dir.join("ca.crt"), &self.root_pem);
    }

    /// An intermediate of this authority: leaves carry its certificate in their chain, the root stays.
    #[must_use]
    pub fn intermediate(&self, kind: KeyKind) -> Self {
        let key = kind.generate();
        let key_pem = key.serialize_pem();
        let name = "mesh-test intermediate";
        let certificate = ca_params(name).signed_by(&key, &self.issuer).expect("an intermediate");
        let mut chain = vec![certificate.der().clone()];
        chain.extend(self.chain.iter().cloned());
        Self {
            issuer: Arc::new(issuer_of(name, &key_pem)),
            chain,
            chain_pem: format!("{}{}", certificate.pem(), self.chain_pem),
            ..self.clone()
        }
    }

    /// The root as PEM: what `ca.crt` of an identity directory holds.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// The root as DER.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// A good leaf: one SPIFFE URI, P-256, valid for an hour.
    pub fn leaf(&self, spiffe_id: &str) -> Leaf {
        self.issue(&LeafSpec::spiffe(spiffe_id))
    }

    /// A good leaf for a service account of the trust domain `cluster.local`.
    pub fn leaf_for(&self, namespace: &str, account: &str) -> Leaf {
        self.leaf(&spiffe(namespace, account))
    }

    /// Answers a certificate request (PKCS #10 in PEM) with a leaf for `spiffe_id` that lives that long, whatever
    /// the request asks for: leaf, intermediates and root, one PEM each.
    ///
    /// # Errors
    /// When the request is none.
    pub fn sign(&self, csr_pem: &str, spiffe_id: &str, lifetime: Duration) -> Result<Vec<String>, String> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(|e| e.to_string())?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names =
            vec![SanType::URI(spiffe_id.try_into().map_err(|e: rcgen::Error| e.to_string())?)];
        let now = OffsetDateTime::now_utc();
        params.not_before = shifted(now, -1);
        params.not_after = shifted(now, i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX / 4));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&request.public_key, &self.issuer).map_err(|e| e.to_string())?;
        let between = self.chain_pem.clone();
        let chain = [leaf.pem(), between, self.root_pem.clone()];
        Ok(chain.into_iter().filter(|pem| !pem.is_empty()).collect())
    }

    /// A leaf as described, bad ones too.
    pub fn issue(&self, spec: &LeafSpec) -> Leaf {
        let key = spec.key.generate();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for uri in &spec.uris {
            let uri = uri.as_str().try_into().unwrap_or_else(|e| panic!("URI {uri:?}: {e}"));
            params.subject_alt_names.push(SanType::URI(uri));
        }
        for name in &spec.dns {
            let dns = name.as_str().try_into().unwrap_or_else(|e| panic!("DNS name {name:?}: {e}"));
            params.subject_alt_names.push(SanType::DnsName(dns));
        }
        let now = OffsetDateTime::now_utc();
        params.not_before = shifted(now, spec.begins);
        params.not_after = shifted(now, spec.ends);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        if spec.is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages.push(KeyUsagePurpose::KeyCertSign);
        }
        let certificate = params.signed_by(&key, &self.issuer).expect("a leaf");
        let mut chain = vec![certificate.der().clone()];
        chain.extend(self.chain.iter().cloned());
        Leaf {
            cert_pem: format!("{}{}", certificate.pem(), self.chain_pem),
            key_pem: key.serialize_pem(),
            chain,
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            root_pem: self.root_pem.clone(),
        }
    }
}

/// `spiffe://cluster.local/ns/NAMESPACE/sa/ACCOUNT`.
pub fn spiffe(namespace: &str, account: &str) -> String {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = OffsetDateTime::now_utc();
    params.not_before = shifted(now, -3600);
    params.not_after = shifted(now, 10 * 365 * 24 * 3600);
    params
}

/// An issuer owns its key and keys are not `Clone`: it is read again.
fn issuer_of(name: &str, key_pem: &str) -> Issuer<'static, KeyPair> {
    Issuer::new(ca_params(name), KeyPair::from_pem(key_pem).expect("a key that was just written"))
}

fn shifted(now: OffsetDateTime, seconds: i64) -> OffsetDateTime {
    now + time::Duration::seconds(seconds)
}

/// What a leaf says. The methods make it bad in one way each.
#[derive(Debug, Clone)]
pub struct LeafSpec {
    uris: Vec<String>,
    dns: Vec<String>,
    key: KeyKind,
    begins: i64,
    ends: i64,
    is_ca: bool,
}

impl LeafSpec {
    /// One URI SAN, P-256, valid from an hour ago for another hour.
    pub fn spiffe(id: &str) -> Self {
        Self { uris: vec![id.to_owned()], ..Self::nameless() }
    }

    /// No SAN at all.
    pub fn nameless() -> Self {
        Self {
            uris: Vec::new(),
            dns: Vec::new(),
            key: KeyKind::P256,
            begins: -3600,
            ends: 3600,
            is_ca: false,
        }
    }

    /// One more URI SAN.
    #[must_use]
    pub fn uri(mut self, uri: &str) -> Self {
        self.uris.push(uri.to_owned());
        self
    }

    /// One more DNS SAN.
    #[must_use]
    pub fn dns(mut self, name: &str) -> Self {
        self.dns.push(name.to_owned());
        self
    }

    /// A key of that kind.
    #[must_use]
    pub fn key(mut self, kind: KeyKind) -> Self {
        self.key = kind;
        self
    }

    /// Valid from now for that long.
    #[must_use]
    pub fn lives(mut self, lifetime: Duration) -> Self {
        self.begins = -1;
        self.ends = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX / 4);
        self
    }

    /// Expired a minute ago.
    #[must_use]
    pub fn expired(mut self) -> Self {
        self.ends = -60;
        self
    }

    /// Valid from an hour from now.
    #[must_use]
    pub fn not_yet_valid(mut self) -> Self {
        self.begins = 3600;
        self.ends = 7200;
        self
    }

    /// Marked as a CA, which no SVID may be.
    #[must_use]
    pub fn ca(mut self) -> Self {
        self.is_ca = true;
        self
    }
}

/// A leaf with its key and its chain.
#[derive(Debug)]
pub struct Leaf {
    /// The leaf and its intermediates: what `tls.crt` holds.
    pub cert_pem: String,
    /// The key as PKCS#8: what `tls.key` holds.
    pub key_pem: String,
    /// The leaf and its intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key.
    pub key: PrivateKeyDer<'static>,
    /// The root of the authority that issued it: what `ca.crt` holds.
    pub root_pem: String,
}

impl Leaf {
    /// Writes `tls.crt`, `tls.key` and `ca.crt`, each replaced in one step, the key last.
    pub fn write_to(&self, dir: impl AsRef<Path>) {
        self.write_with_roots(dir, &self.root_pem);
    }

    /// As [`Leaf::write_to`], with other roots in `ca.crt` (several may stand one after the other).
    pub fn write_with_roots(&self, dir: impl AsRef<Path>, roots_pem: &str) {
        let dir = dir.as_ref();
        std::fs::create_dir_all(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        replace_file(&dir.join("ca.crt"), roots_pem);
        replace_file(&dir.join("tls.crt"), &self.cert_pem);
        replace_file(&dir.join("tls.key"), &self.key_pem);
    }
}

impl Clone for Leaf {
    fn clone(&self) -> Self {
        Self {
            cert_pem: self.cert_pem.clone(),
            key_pem: self.key_pem.clone(),
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            root_pem: self.root_pem.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_development_ca_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let ca = TestCa::new();
        ca.write_dev_ca(dir.path());
        let again = TestCa::load(dir.path());
        assert_eq!(again.root(), ca.root());
        again.leaf_for("default", "web").write_to(dir.path().join("web"));
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            let text = std::fs::read_to_string(dir.path().join("web").join(name)).unwrap();
            assert!(text.starts_with("-----BEGIN "), "{name}");
        }
    }
}
