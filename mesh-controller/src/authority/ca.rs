//! An authority in memory.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_core::identity::{SpiffeId, TrustDomain};
use mesh_tls::clock::utc;
use mesh_tls::{Clock, Pem, Svid, TlsMaterial, TrustBundle};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

/// How far a certificate's start is set back, for peers whose clock is behind.
pub const BACKDATE: Duration = Duration::from_secs(60);
/// The most certificates between a leaf and a root, the signing one included.
pub const MAX_INTERMEDIATES: usize = 6;
/// The largest of an authority's files, in bytes: Kubernetes' own limit of a Secret.
pub const MAX_FILE: usize = 1024 * 1024;

/// The certificate that signs.
pub const CA_CERT: &str = "ca-cert.pem";
/// Its key.
pub const CA_KEY: &str = "ca-key.pem";
/// What is between it and a root; may hold itself and roots too.
pub const CERT_CHAIN: &str = "cert-chain.pem";
/// The roots that everybody is to believe.
pub const ROOT_CERT: &str = "root-cert.pem";
/// The root's key, where the controller made the root.
pub const ROOT_KEY: &str = "root-key.pem";

/// `userId` of RFC 4519: the part of a subject that holds the name of a pod.
const USER_ID: &[u64] = &[0, 9, 2342, 19_200_300, 100, 1, 1];

/// The files of an authority, under the names that Istio gave them.
#[derive(Clone, Copy)]
pub struct Files<'a> {
    /// `ca-cert.pem`
    pub certificate: &'a [u8],
    /// `ca-key.pem`
    pub key: &'a [u8],
    /// `cert-chain.pem`; empty where a root signs itself.
    pub chain: &'a [u8],
    /// `root-cert.pem`
    pub roots: &'a [u8],
}

/// Why an authority cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}, {file}: {reason}")]
pub struct CaError {
    /// Where the files are, such as `Secret mesh-system/cacerts`.
    pub place: String,
    /// The file.
    pub file: &'static str,
    /// What is wrong with it and the way out.
    pub reason: String,
}

/// Whom a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The identity: the only URI of the certificate.
    pub id: SpiffeId,
    /// The pod, in the identity's namespace; told in the certificate's subject as `UID`.
    pub pod: Option<Arc<str>>,
}

/// A certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// In PEM: the leaf, what is between, and the roots as the last.
    pub chain: Vec<String>,
    /// The serial number, in hexadecimal.
    pub serial: String,
    /// Until when it is valid.
    pub not_after: SystemTime,
}

/// An authority. Never tells its key.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    /// The signing certificate and what is between it and a root; empty where a root signs.
    intermediates: Vec<String>,
    roots: Arc<str>,
    not_before: SystemTime,
    not_after: SystemTime,
    root_not_after: SystemTime,
    place: String,
}

/// A certificate of the authority, read as far as it matters.
struct Link {
    der: CertificateDer<'static>,
    subject: Vec<u8>,
    issuer: Vec<u8>,
    not_before: SystemTime,
    not_after: SystemTime,
    /// How many authorities may stand below it.
    below: Option<u32>,
}

impl Ca {
    /// Checks the files as strictly as a peer would check what comes of them. `place` says where they are.
    ///
    /// # Errors
    /// A file that cannot be read, a certificate that is no CA or whose time is not now, a key that is
    /// another's, a chain that does not lead to one of the roots.
    pub fn open(
        place: &str,
        files: &Files<'_>,
        domain: &TrustDomain,
        clock: &Clock,
    ) -> Result<Self, CaError> {
        let now = clock.now();
        let bad = |file, reason: String| CaError { place: place.to_owned(), file, reason };
        let certificates = links(files.certificate).map_err(|reason| bad(CA_CERT, reason))?;
        let [certificate] = certificates.as_slice() else {
            let many = certificates.len();
            return Err(bad(
                CA_CERT,
                format!("it holds {many} certificates, not one; others belong into {CERT_CHAIN}"),
            ));
        };
        certificate.in_time(now).map_err(|reason| bad(CA_CERT, reason))?;
        let key = key(files.key).map_err(|reason| bad(CA_KEY, reason))?;
        if !certifies(&certificate.der, &key) {
            let reason =
                format!("the private key does not match the certificate in {CA_CERT}: replace both together");
            return Err(bad(CA_KEY, reason));
        }
        let roots = links(files.roots).map_err(|reason| bad(ROOT_CERT, reason))?;
        let Some(root_not_after) = roots.iter().map(|root| root.not_after).max() else {
            return Err(bad(ROOT_CERT, "it holds no certificate".to_owned()));
        };
        if root_not_after < now {
            return Err(bad(
                ROOT_CERT,
                format!("the last root expired at {}, and it is {}", utc(root_not_after), utc(now)),
            ));
        }
        let others = if files.chain.iter().all(u8::is_ascii_whitespace) {
            Vec::new()
        } else {
            links(files.chain).map_err(|reason| bad(CERT_CHAIN, reason))?
        };
        let intermediates =
            between(certificate, &others, &roots).map_err(|reason| bad(CERT_CHAIN, reason))?;
        for link in &intermediates {
            link.in_time(now).map_err(|reason| bad(CERT_CHAIN, reason))?;
        }
        let not_after = intermediates.iter().map(|link| link.not_after).min();
        let not_after = not_after.unwrap_or(certificate.not_after);
        let issuer = Issuer::from_ca_cert_der(&certificate.der, key)
            .map_err(|e| bad(CA_CERT, format!("it cannot sign: {e}")))?;
        let ca = Self {
            issuer,
            intermediates: intermediates.iter().map(|link| pem(&link.der)).collect(),
            roots: roots.iter().map(|root| pem(&root.der)).collect::<String>().into(),
            not_before: certificate.not_before,
            not_after,
            root_not_after,
            place: place.to_owned(),
        };
        ca.prove(domain, clock)?;
        Ok(ca)
    }

    /// Issues a certificate to nobody and verifies it as a peer would: what no single check finds.
    fn prove(&self, domain: &TrustDomain, clock: &Clock) -> Result<(), CaError> {
        let bad = |reason: String| CaError { place: self.place.clone(), file: CERT_CHAIN, reason };
        let key = KeyPair::generate().map_err(|e| bad(e.to_string()))?;
        let id = SpiffeId::for_account(domain, "mesh", "proof").map_err(|e| bad(e.to_string()))?;
        let issued = self.issue(&key, &Holder { id, pod: None }, BACKDATE, clock.now())?;
        let shown: String = issued.chain.iter().take(issued.chain.len().saturating_sub(1)).cloned().collect();
        let name = "the chain";
        let proof = || {
            let key = key.serialize_pem();
            let svid = Svid::from_pem(Pem::new(name, shown.as_bytes()), Pem::new(name, key.as_bytes()))?;
            let roots = Pem::new(ROOT_CERT, self.roots.as_bytes());
            let bundle = TrustBundle::new().with_domain(domain.clone(), roots, clock.now())?;
            TlsMaterial::new(svid, bundle, clock).map(drop)
        };
        proof().map_err(|error| bad(format!("what it signs would not be believed: {error}")))
    }

    /// Issues a certificate about `key` to `holder`, as a server and as a client. It lives as long as is
    /// asked, or as long as the authority does.
    ///
    /// # Errors
    /// When the crypto library fails, or the authority has expired.
    pub fn issue(
        &self,
        key: &impl PublicKeyData,
        holder: &Holder,
        life: Duration,
        now: SystemTime,
    ) -> Result<Issued, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(pod) = &holder.pod {
            params.distinguished_name.push(DnType::CustomDnType(USER_ID.to_vec()), &**pod);
        }
        let uri = holder.id.as_str().try_into().map_err(|e| self.failed(&e))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params, key, life, now)
    }

    /// Issues the controller's own certificate: a server that goes by DNS `names`, and an identity of the
    /// mesh for those who look for that.
    ///
    /// # Errors
    /// As [`issue`](Self::issue), and when a name is no DNS name.
    pub fn issue_server(
        &self,
        key: &impl PublicKeyData,
        id: &SpiffeId,
        names: &[String],
        life: Duration,
        now: SystemTime,
    ) -> Result<Issued, CaError> {
        let mut params = CertificateParams::new(names.to_vec()).map_err(|e| self.failed(&e))?;
        params.distinguished_name = DistinguishedName::new();
        let uri = id.as_str().try_into().map_err(|e| self.failed(&e))?;
        params.subject_alt_names.push(SanType::URI(uri));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params, key, life, now)
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
        life: Duration,
        now: SystemTime,
    ) -> Result<Issued, CaError> {
        if self.not_after <= now {
            let reason = format!("it expired at {}, and it is {}", utc(self.not_after), utc(now));
            return Err(CaError { place: self.place.clone(), file: CA_CERT, reason });
        }
        let not_after = now.checked_add(life).map_or(self.not_after, |end| end.min(self.not_after));
        let serial = serial().map_err(|reason| self.failed(&reason))?;
        params.not_before = now.checked_sub(BACKDATE).unwrap_or(now).into();
        params.not_after = not_after.into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let leaf = params.signed_by(key, &self.issuer).map_err(|e| self.failed(&e))?;
        let mut chain = vec![leaf.pem()];
        chain.extend(self.intermediates.iter().cloned());
        chain.push(self.roots.to_string());
        Ok(Issued { chain, serial: hex(&serial), not_after })
    }

    fn failed(&self, error: &dyn fmt::Display) -> CaError {
        CaError { place: self.place.clone(), file: CA_CERT, reason: format!("signing failed: {error}") }
    }

    /// The roots that everybody is to believe, in PEM.
    pub fn roots(&self) -> &Arc<str> {
        &self.roots
    }

    /// From when on the signing certificate is valid.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// Until when the signing certificate, and what is between it and a root, is valid.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Until when the last of the roots is valid.
    pub fn root_not_after(&self) -> SystemTime {
        self.root_not_after
    }

    /// Where the authority is kept.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Whether both sign alike: the same chain and the same roots.
    pub fn is_same(&self, other: &Self) -> bool {
        let key = |ca: &Self| ca.issuer.key().public_key_raw().to_vec();
        self.intermediates == other.intermediates
            && self.roots == other.roots
            && self.place == other.place
            && key(self) == key(other)
    }
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ca").field("place", &self.place).finish_non_exhaustive()
    }
}

impl fmt::Debug for Files<'_> {
    /// Nothing of them: one is a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files").finish_non_exhaustive()
    }
}

impl Link {
    fn in_time(&self, now: SystemTime) -> Result<(), String> {
        if self.not_after < now {
            return Err(format!(
                "the certificate expired at {}, and it is {}",
                utc(self.not_after),
                utc(now)
            ));
        }
        if self.not_before > now {
            let from = utc(self.not_before);
            return Err(format!(
                "the certificate is valid from {from} on, and it is {}: compare the clocks",
                utc(now)
            ));
        }
        Ok(())
    }
}

/// The certificates of a file, each of them a CA's.
fn links(file: &[u8]) -> Result<Vec<Link>, String> {
    if file.len() > MAX_FILE {
        return Err(format!("it is larger than {MAX_FILE} bytes"));
    }
    let ders: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(file).collect();
    let ders = ders.map_err(|e| format!("it is no PEM: {e}"))?;
    if ders.is_empty() {
        return Err("it holds no certificate (BEGIN CERTIFICATE)".to_owned());
    }
    ders.into_iter()
        .enumerate()
        .map(|(n, der)| link(der).map_err(|e| format!("certificate {}: {e}", n + 1)))
        .collect()
}

fn link(der: CertificateDer<'static>) -> Result<Link, String> {
    let (subject, issuer, not_before, not_after, below) = {
        let (rest, cert) =
            X509Certificate::from_der(&der).map_err(|e| format!("it is no certificate: {e}"))?;
        if !rest.is_empty() {
            return Err("bytes follow it".to_owned());
        }
        if !cert.is_ca() {
            return Err("it is no CA: basic constraints do not say CA:TRUE".to_owned());
        }
        let usage = cert.key_usage().map_err(|e| format!("its key usage cannot be read: {e}"))?;
        if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
            return Err("its key may not sign certificates: key usage lacks keyCertSign".to_owned());
        }
        let time = |t: x509_parser::time::ASN1Time| {
            let since = Duration::from_secs(u64::try_from(t.timestamp()).unwrap_or_default());
            SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH)
        };
        let validity = cert.validity();
        let names = (cert.subject().as_raw().to_vec(), cert.issuer().as_raw().to_vec());
        let constraints = cert.basic_constraints().ok().flatten();
        let below = constraints.and_then(|constraints| constraints.value.path_len_constraint);
        (names.0, names.1, time(validity.not_before), time(validity.not_after), below)
    };
    Ok(Link { der, subject, issuer, not_before, not_after, below })
}

fn key(file: &[u8]) -> Result<KeyPair, String> {
    if file.len() > MAX_FILE {
        return Err(format!("it is larger than {MAX_FILE} bytes"));
    }
    // The text is a key: nothing of it is told.
    let der = PrivateKeyDer::from_pem_slice(file)
        .map_err(|_| "it is no PEM of a private key (PKCS #8, PKCS #1 or SEC 1)".to_owned())?;
    KeyPair::try_from(&der).map_err(|_| {
        "the private key cannot be used: RSA of 2048 bits or more, P-256 and P-384 can".to_owned()
    })
}

/// What is to be shown between a leaf and a root, in order: `first` is what signs.
fn between<'a>(first: &'a Link, others: &'a [Link], roots: &[Link]) -> Result<Vec<&'a Link>, String> {
    let is_root = |link: &Link| roots.iter().any(|root| root.der == link.der);
    let mut chain: Vec<&Link> = Vec::new();
    let mut at = first;
    while !is_root(at) {
        if chain.len() >= MAX_INTERMEDIATES {
            return Err(format!("more than {MAX_INTERMEDIATES} certificates are between it and a root"));
        }
        chain.push(at);
        if roots.iter().any(|root| root.subject == at.issuer) {
            break;
        }
        let known = |link: &Link| chain.iter().any(|one| one.der == link.der);
        let Some(next) = others.iter().find(|link| link.subject == at.issuer && !known(link)) else {
            return Err(format!(
                "the chain does not lead to a root in {ROOT_CERT}: the issuer of one of its certificates is missing"
            ));
        };
        at = next;
    }
    // Not every library looks at a root's own constraint, so a proof by one of them does not show it.
    let allows = |link: &Link, n: usize| {
        link.below.is_none_or(|most| usize::try_from(most).is_ok_and(|most| n <= most))
    };
    let last = chain.last().map_or(first, |last| last);
    let root_allows = roots.iter().any(|root| root.subject == last.issuer && allows(root, chain.len()));
    if !root_allows || chain.iter().enumerate().any(|(n, link)| !allows(link, n)) {
        return Err(
            "one of its certificates, or the root, allows fewer authorities below it (pathlen)".to_owned()
        );
    }
    Ok(chain)
}

/// Whether the certificate is about this key.
fn certifies(certificate: &[u8], key: &KeyPair) -> bool {
    X509Certificate::from_der(certificate)
        .is_ok_and(|(_, c)| c.public_key().subject_public_key.data.as_ref() == key.public_key_raw())
}

fn pem(der: &CertificateDer<'_>) -> String {
    use base64::Engine;
    let text = base64::prelude::BASE64_STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, next) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = next;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// 126 random bits. The first byte is neither zero nor negative, so that the number has always 16 bytes.
pub(super) fn serial() -> Result<[u8; 16], &'static str> {
    let mut serial = [0; 16];
    let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    random.fill(&mut serial).map_err(|_| "there is no randomness")?;
    if let Some(first) = serial.first_mut() {
        *first = (*first & 0x3f) | 0x40;
    }
    Ok(serial)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
