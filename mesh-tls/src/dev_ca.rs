//! A certificate authority in a directory, for development: made on first use, shared by every process
//! that is pointed at the same directory.
//!
//! `ca.crt` and `ca.key` (mode 0600) are made under a lock, so that several processes may start at once.
//! Whoever can read the key can be anybody: this is for one machine and its owner.
//!
//! ```
//! use tower_mesh_tls::dev_ca::DevCa;
//!
//! let dir = tempfile::tempdir().unwrap();
//! let ca = DevCa::open(dir.path()).unwrap();
//! let id = "spiffe://cluster.local/ns/default/sa/web".parse().unwrap();
//! let material = ca.material(&id).unwrap();
//! assert_eq!(material.svid().id(), &id);
//! // The same authority, found again.
//! assert_eq!(DevCa::open(dir.path()).unwrap().certificate_pem(), ca.certificate_pem());
//! ```

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_core::identity::{SpiffeId, TrustDomain};
use mesh_core::live::{Live, Publisher};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};

use crate::bundle::TrustBundle;
use crate::clock::{Clock, utc};
use crate::credentials::{Credentials, publish};
use crate::error::MaterialError;
use crate::file_identity::{POLL, read_bounded};
use crate::material::TlsMaterial;
use crate::pem::Pem;
use crate::svid::{CertificateInfo, Svid};

/// How long the authority's own certificate is valid.
pub const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long a leaf is valid.
pub const LEAF_LIFETIME: Duration = Duration::from_secs(3600);
/// How far a leaf's start is set back, for peers whose clock is behind.
pub const BACKDATE: Duration = Duration::from_secs(60);
/// The share of its lifetime around which a leaf is renewed.
pub const RENEW_AT: f64 = 0.5;
/// How far the renewal may move to either side, as a share of the lifetime, so that the workloads of a
/// mesh that started together do not renew together.
pub const RENEW_JITTER: f64 = 0.05;
/// How long is waited after a renewal that failed.
pub const RETRY_AFTER: Duration = Duration::from_secs(5);

const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";
const LOCK: &str = "ca.lock";

/// The authority. Cheap to clone.
#[derive(Clone)]
pub struct DevCa {
    issuer: Arc<Issuer<'static, KeyPair>>,
    certificate: Arc<str>,
    file: Arc<str>,
    not_after: SystemTime,
    clock: Clock,
}

impl DevCa {
    /// Opens the authority in `dir`; makes directory and authority where there is none. Blocks on files,
    /// and while another process makes it.
    ///
    /// # Errors
    /// Names the file that cannot be read or written, does not hold what it should, or has expired.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, MaterialError> {
        Self::open_with(dir, Clock::system())
    }

    /// As [`open`](Self::open), by a given clock.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(dir: impl AsRef<Path>, clock: Clock) -> Result<Self, MaterialError> {
        let dir = dir.as_ref();
        let certificate = dir.join(CERTIFICATE);
        if !certificate.exists() {
            fs::create_dir_all(dir).map_err(|e| unwritable(dir, &e))?;
            let lock_path = dir.join(LOCK);
            let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
            let lock = lock.map_err(|e| unwritable(&lock_path, &e))?;
            lock.lock().map_err(|e| unwritable(&lock_path, &e))?;
            // Another process may have made it while this one waited.
            if !certificate.exists() {
                create(dir, clock.now())?;
            }
        }
        Self::load(dir, clock)
    }

    fn load(dir: &Path, clock: Clock) -> Result<Self, MaterialError> {
        let (cert_path, key_path) = (dir.join(CERTIFICATE), dir.join(KEY));
        let file = cert_path.display().to_string();
        let bad = |path: &Path, reason: String| MaterialError::Malformed {
            file: path.display().to_string(),
            reason,
        };
        let text = |path: &Path| {
            String::from_utf8(read_bounded(path)?).map_err(|_| bad(path, "it is no PEM".to_owned()))
        };
        let (certificate, key_pem) = (text(&cert_path)?, text(&key_path)?);
        let ders = Pem::new(&file, certificate.as_bytes()).certificates()?;
        let [der] = ders.as_slice() else {
            return Err(bad(&cert_path, format!("it holds {} certificates, not one", ders.len())));
        };
        let info = CertificateInfo::of(der).map_err(|e| bad(&cert_path, e.to_string()))?;
        let now = clock.now();
        if info.not_after < now {
            let reason = format!(
                "the authority expired at {}, and it is {}: remove {CERTIFICATE} and {KEY}, and a new one is made",
                utc(info.not_after),
                utc(now)
            );
            return Err(bad(&cert_path, reason));
        }
        let key = KeyPair::from_pem(&key_pem)
            .map_err(|_| bad(&key_path, "it holds no usable private key (PKCS#8)".to_owned()))?;
        if !certifies(der, &key) {
            return Err(MaterialError::KeyMismatch {
                key_file: key_path.display().to_string(),
                cert_file: file,
            });
        }
        let issuer =
            Issuer::from_ca_cert_der(der, key).map_err(|e| bad(&cert_path, format!("it is no CA: {e}")))?;
        Ok(Self {
            issuer: Arc::new(issuer),
            certificate: certificate.into(),
            file: file.into(),
            not_after: info.not_after,
            clock,
        })
    }

    /// The authority's certificate, which is the trust bundle of whoever uses it.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate
    }

    /// A certificate for `id`, valid for [`LEAF_LIFETIME`], with a key of its own.
    ///
    /// # Errors
    /// When the crypto library fails.
    pub fn issue(&self, id: &SpiffeId) -> Result<Svid, MaterialError> {
        let (certificate, key) = self.issue_pem(id)?;
        let name = format!("{} (leaf for {id})", self.file);
        Svid::from_pem(Pem::new(&name, certificate.as_bytes()), Pem::new(&name, key.as_bytes()))
    }

    /// As [`issue`](Self::issue), as PEM: certificate and key, for programs that read files.
    ///
    /// # Errors
    /// As [`issue`](Self::issue).
    pub fn issue_pem(&self, id: &SpiffeId) -> Result<(String, String), MaterialError> {
        let failed =
            |e: rcgen::Error| MaterialError::Tls { file: self.file.to_string(), reason: e.to_string() };
        let now = self.clock.now();
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().map_err(failed)?)];
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + LEAF_LIFETIME).min(self.not_after).into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &*self.issuer).map_err(failed)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// Whom a workload of `trust_domain` believes: those whom this authority has certified.
    ///
    /// # Errors
    /// When the authority has expired.
    pub fn bundle(&self, trust_domain: TrustDomain) -> Result<TrustBundle, MaterialError> {
        let pem = Pem::new(&self.file, self.certificate.as_bytes());
        TrustBundle::new().with_domain(trust_domain, pem, self.clock.now())
    }

    /// All that TLS needs to be `id`.
    ///
    /// # Errors
    /// As [`issue`](Self::issue) and [`bundle`](Self::bundle).
    pub fn material(&self, id: &SpiffeId) -> Result<TlsMaterial, MaterialError> {
        let svid = self.issue(id)?;
        let domain = TrustDomain::new(id.trust_domain())
            .map_err(|e| MaterialError::Tls { file: self.file.to_string(), reason: e.to_string() })?;
        TlsMaterial::new(svid, self.bundle(domain)?, &self.clock)
    }
}

impl fmt::Debug for DevCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DevCa").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Whether the certificate is about this key.
fn certifies(certificate: &[u8], key: &KeyPair) -> bool {
    use x509_parser::prelude::{FromDer, X509Certificate};
    X509Certificate::from_der(certificate)
        .is_ok_and(|(_, c)| c.public_key().subject_public_key.data.as_ref() == key.public_key_raw())
}

fn unwritable(path: &Path, error: &io::Error) -> MaterialError {
    MaterialError::Unwritable { file: path.display().to_string(), reason: error.to_string() }
}

/// Makes key and certificate. The certificate comes last: whoever sees it finds the key beside it.
fn create(dir: &Path, now: SystemTime) -> Result<(), MaterialError> {
    let cert_path = dir.join(CERTIFICATE);
    let failed =
        |e: rcgen::Error| MaterialError::Tls { file: cert_path.display().to_string(), reason: e.to_string() };
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "tower-mesh");
    params.distinguished_name.push(DnType::CommonName, "development CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + CA_LIFETIME).into();
    let certificate = params.self_signed(&key).map_err(failed)?;
    write(&dir.join(KEY), key.serialize_pem().as_bytes(), 0o600)?;
    write(&cert_path, certificate.pem().as_bytes(), 0o644)
}

/// Puts a whole file in place at once, with its mode from the first byte on.
fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), MaterialError> {
    let made = path.with_extension("new");
    let put = || -> io::Result<()> {
        // What a process that died has left; only one holds the lock.
        match fs::remove_file(&made) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = private(&made, mode)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&made, path)
    };
    put().map_err(|e| unwritable(path, &e))
}

#[cfg(unix)]
fn private(path: &Path, mode: u32) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path)
}

#[cfg(not(unix))]
fn private(path: &Path, _mode: u32) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}

/// When a certificate that was taken up at `from` and is valid until `not_after` is renewed: at half of
/// its time, moved by up to [`RENEW_JITTER`] to either side; `draw` is in 0..1.
pub fn renew_at(from: SystemTime, not_after: SystemTime, draw: f64) -> SystemTime {
    let lifetime = not_after.duration_since(from).unwrap_or_default();
    let share = RENEW_AT + RENEW_JITTER * (draw.clamp(0.0, 1.0) * 2.0 - 1.0);
    from + lifetime.mul_f64(share)
}

/// An identity that a [`DevCa`] issues and renews, for the workload whose SPIFFE ID a `Live` holds.
#[derive(Debug)]
pub struct DevIdentity {
    dir: PathBuf,
    workload: Live<Option<SpiffeId>>,
    clock: Clock,
    publisher: Publisher<Credentials>,
    /// The authority's certificate when the leaf was issued.
    authority: Option<Vec<u8>>,
    /// Whom the last try was for, well or not.
    tried: Option<SpiffeId>,
    due: SystemTime,
}

impl DevIdentity {
    /// Opens (or makes) the authority in `dir` and issues a certificate for `workload`, if it is known.
    /// Blocks on files. What goes wrong is told in the status of [`live`](Self::live), and tried again by
    /// [`run`](Self::run).
    pub fn new(dir: impl Into<PathBuf>, workload: Live<Option<SpiffeId>>, clock: Clock) -> Self {
        let due = clock.now();
        let publisher = Publisher::new(Credentials::none());
        let mut this =
            Self { dir: dir.into(), workload, clock, publisher, authority: None, tried: None, due };
        let id = (**this.workload.load()).clone();
        if let Some(id) = id {
            let made = make(&this.dir, &this.clock, &id);
            this.take_up(id, made, fastrand::f64());
        }
        this
    }

    /// The identity in force.
    pub fn live(&self) -> Live<Credentials> {
        self.publisher.live()
    }

    fn take_up(&mut self, id: SpiffeId, made: Made, draw: f64) {
        self.tried = Some(id);
        let now = self.clock.now();
        self.due = match &made {
            Ok((material, _)) => renew_at(now, material.svid().not_after(), draw),
            Err(_) => now + RETRY_AFTER,
        };
        let material = made.map(|(material, authority)| {
            self.authority = Some(authority);
            material
        });
        publish(&self.publisher, material, now);
    }

    /// Renews for ever: at half of a leaf's time (with jitter), and at once when the workload's account or
    /// the authority changes. The caller spawns it.
    pub async fn run(mut self) {
        let mut changes = self.workload.changes();
        loop {
            let Some(id) = (**self.workload.load()).clone() else {
                changes.changed().await;
                continue;
            };
            if self.wanted(&id).await {
                let (dir, clock, who) = (self.dir.clone(), self.clock.clone(), id.clone());
                // A lock may be waited for.
                let made = tokio::task::spawn_blocking(move || make(&dir, &clock, &who)).await;
                if let Ok(made) = made {
                    self.take_up(id, made, fastrand::f64());
                }
            }
            let _ = tokio::time::timeout(POLL, changes.changed()).await;
        }
    }

    async fn wanted(&self, id: &SpiffeId) -> bool {
        if self.tried.as_ref() != Some(id) || self.clock.now() >= self.due {
            return true;
        }
        if self.publisher.load().status().last_error.is_some() {
            return false; // tried again when it is due
        }
        let there = tokio::fs::read(self.dir.join(CERTIFICATE)).await.ok();
        // While the file is gone the leaf is good as long as it lasts.
        there.is_some() && there != self.authority
    }
}

type Made = Result<(TlsMaterial, Vec<u8>), MaterialError>;

fn make(dir: &Path, clock: &Clock, id: &SpiffeId) -> Made {
    let ca = DevCa::open_with(dir, clock.clone())?;
    Ok((ca.material(id)?, ca.certificate_pem().as_bytes().to_vec()))
}
