//! An identity from files, as a Kubernetes TLS secret lays them out: `tls.crt` (leaf first), `tls.key`,
//! `ca.crt`.
//!
//! The files are read every [`POLL`]. What differs is put in force once it fits together, so that it does
//! not matter in which order files are replaced or symlinks flipped. Files that cannot be used leave the
//! last good identity in force, and the status names the file and what is wrong with it.
//!
//! ```
//! use tower_mesh_tls::{Clock, dev_ca::DevCa, file_identity::FileIdentity};
//!
//! let ca_dir = tempfile::tempdir().unwrap();
//! let ca = DevCa::open(ca_dir.path()).unwrap();
//! let (certificate, key) = ca.issue_pem(&"spiffe://cluster.local/ns/default/sa/web".parse().unwrap()).unwrap();
//!
//! let dir = tempfile::tempdir().unwrap();
//! std::fs::write(dir.path().join("tls.crt"), certificate).unwrap();
//! std::fs::write(dir.path().join("tls.key"), key).unwrap();
//! std::fs::write(dir.path().join("ca.crt"), ca.certificate_pem()).unwrap();
//!
//! let source = FileIdentity::new(dir.path(), Clock::system());
//! let credentials = source.live();
//! assert_eq!(credentials.load().id().unwrap().service_account(), Some("web"));
//! // tokio::spawn(source.run()) keeps it up to date.
//! ```

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_core::identity::TrustDomain;
use mesh_core::live::{Live, Publisher};

use crate::bundle::TrustBundle;
use crate::clock::{Clock, utc};
use crate::credentials::{Credentials, publish};
use crate::error::MaterialError;
use crate::material::{TlsMaterial, sha256};
use crate::pem::{MAX_PEM, Pem};
use crate::svid::Svid;

/// How often files are looked at.
pub const POLL: Duration = Duration::from_millis(500);

/// The certificate and its chain, leaf first.
pub const CERTIFICATE: &str = "tls.crt";
/// The private key.
pub const KEY: &str = "tls.key";
/// The roots that are believed.
pub const BUNDLE: &str = "ca.crt";

/// Reads an identity from a directory and follows its changes.
#[derive(Debug)]
pub struct FileIdentity {
    dir: PathBuf,
    clock: Clock,
    publisher: Publisher<Credentials>,
    /// The files that were last taken up or complained about.
    settled: Fingerprint,
    /// The files that did not fit together when they were last looked at.
    pending: Option<Fingerprint>,
    /// Whether the settled files may become good by waiting.
    early: bool,
    told_expired: bool,
}

/// Hashes of the files, or why they cannot be read.
type Fingerprint = [Result<[u8; 32], String>; 3];

/// The files' texts.
struct Files([Result<Vec<u8>, MaterialError>; 3]);

impl Files {
    fn read(dir: &Path) -> Self {
        Self([CERTIFICATE, KEY, BUNDLE].map(|name| read_bounded(&dir.join(name))))
    }

    fn fingerprint(&self) -> Fingerprint {
        self.0.each_ref().map(|file| match file {
            Ok(bytes) => Ok(sha256(bytes)),
            Err(e) => Err(e.to_string()),
        })
    }

    fn build(self, dir: &Path, clock: &Clock) -> Result<TlsMaterial, MaterialError> {
        let [certificate, key, bundle] = self.0;
        let (certificate, key, bundle) = (certificate?, key?, bundle?);
        let path = |name| dir.join(name).display().to_string();
        let (cert_path, key_path, bundle_path) = (path(CERTIFICATE), path(KEY), path(BUNDLE));
        let svid = Svid::from_pem(Pem::new(&cert_path, &certificate), Pem::new(&key_path, &key))?;
        let domain = TrustDomain::new(svid.id().trust_domain())
            .map_err(|e| MaterialError::Malformed { file: cert_path, reason: e.to_string() })?;
        let roots = TrustBundle::new().with_domain(domain, Pem::new(&bundle_path, &bundle), clock.now())?;
        TlsMaterial::new(svid, roots, clock)
    }
}

/// Reads a file of at most [`MAX_PEM`] bytes.
pub(crate) fn read_bounded(path: &Path) -> Result<Vec<u8>, MaterialError> {
    let unreadable = |e: std::io::Error| MaterialError::Unreadable {
        file: path.display().to_string(),
        reason: e.to_string(),
    };
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_PEM).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path).and_then(|f| f.take(limit).read_to_end(&mut bytes)).map_err(unreadable)?;
    Ok(bytes)
}

impl FileIdentity {
    /// Reads `dir` once, blocking. What goes wrong is told in the status of [`live`](Self::live), and tried
    /// again by [`run`](Self::run).
    pub fn new(dir: impl Into<PathBuf>, clock: Clock) -> Self {
        let dir = dir.into();
        let files = Files::read(&dir);
        let settled = files.fingerprint();
        let made = files.build(&dir, &clock);
        let early = is_early(&made);
        let publisher = Publisher::new(Credentials::none());
        publish(&publisher, made, clock.now());
        Self { dir, clock, publisher, settled, pending: None, early, told_expired: false }
    }

    /// The identity in force.
    pub fn live(&self) -> Live<Credentials> {
        self.publisher.live()
    }

    /// Follows the files for ever. The caller spawns it.
    pub async fn run(mut self) {
        loop {
            tokio::time::sleep(POLL).await;
            let dir = self.dir.clone();
            // Directories may be on a network.
            if let Ok(files) = tokio::task::spawn_blocking(move || Files::read(&dir)).await {
                self.look(files);
            }
            self.tell_expiry();
        }
    }

    fn look(&mut self, files: Files) {
        let seen = files.fingerprint();
        let unchanged = seen == self.settled;
        if unchanged {
            self.pending = None;
            if !self.early {
                return;
            }
        }
        let made = files.build(&self.dir, &self.clock);
        if made.is_err() {
            if unchanged {
                return;
            }
            // Half replaced, perhaps: complained about only when it is still so the next time.
            if self.pending.as_ref() != Some(&seen) {
                self.pending = Some(seen);
                return;
            }
        }
        self.early = is_early(&made);
        self.settled = seen;
        self.pending = None;
        self.told_expired = false;
        publish(&self.publisher, made, self.clock.now());
    }

    fn tell_expiry(&mut self) {
        let credentials = self.publisher.load();
        if let (false, Some(not_after)) = (self.told_expired, credentials.not_after())
            && credentials.expired(self.clock.now())
        {
            self.told_expired = true;
            let dir = self.dir.display();
            tracing::warn!(
                "identity: the certificate in {dir} expired at {}; peers refuse it",
                utc(not_after)
            );
        }
    }
}

fn is_early(made: &Result<TlsMaterial, MaterialError>) -> bool {
    matches!(made, Err(MaterialError::NotYetValid { .. }))
}
