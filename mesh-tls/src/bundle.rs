//! Whom to believe: the roots of each trust domain.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use mesh_core::identity::TrustDomain;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;

use crate::clock::utc;
use crate::error::MaterialError;
use crate::material::provider;
use crate::pem::Pem;
use crate::svid::CertificateInfo;

/// The most roots of one trust domain.
pub const MAX_ROOTS: usize = 256;

/// The roots of one or more trust domains. A peer must chain to a root of the domain that it names.
#[derive(Clone, Default)]
pub struct TrustBundle {
    domains: BTreeMap<TrustDomain, Roots>,
}

#[derive(Clone)]
pub(crate) struct Roots {
    pub(crate) store: Arc<RootCertStore>,
    pub(crate) clients: Arc<dyn ClientCertVerifier>,
    pub(crate) file: Arc<str>,
    infos: Arc<[CertificateInfo]>,
}

impl TrustBundle {
    /// A bundle that believes nobody.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the roots of `domain` (replacing those that it had). Roots whose time is over at `now` are
    /// left out, so that a rotation can leave them in the file.
    ///
    /// # Errors
    /// Names the file when it holds no certificate, one that is no certificate, too many, or none whose
    /// time is now.
    pub fn with_domain(
        mut self,
        domain: TrustDomain,
        roots: Pem<'_>,
        now: SystemTime,
    ) -> Result<Self, MaterialError> {
        let file = roots.name();
        let bad = |reason| MaterialError::Malformed { file: file.to_owned(), reason };
        let certificates = roots.certificates()?;
        if certificates.len() > MAX_ROOTS {
            return Err(bad(format!("it holds {} roots, more than {MAX_ROOTS}", certificates.len())));
        }
        let mut store = RootCertStore::empty();
        let mut infos = Vec::new();
        let mut expired = None;
        for (n, certificate) in certificates.into_iter().enumerate() {
            let info = CertificateInfo::of(&certificate)
                .map_err(|e| bad(format!("certificate {} of it: {e}", n + 1)))?;
            if info.not_after < now {
                expired = expired.max(Some(info.not_after));
                continue;
            }
            store.add(certificate).map_err(|e| bad(format!("root {} of it cannot be used: {e}", n + 1)))?;
            infos.push(info);
        }
        if let (true, Some(not_after)) = (infos.is_empty(), expired) {
            let when =
                format!("all its roots have expired, the last at {}; it is {}", utc(not_after), utc(now));
            return Err(bad(when));
        }
        let store = Arc::new(store);
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&store), provider())
            .build()
            .map_err(|e| bad(e.to_string()))?;
        let roots = Roots { store, clients, file: Arc::from(file), infos: infos.into() };
        self.domains.insert(domain, roots);
        Ok(self)
    }

    /// The trust domains that have roots.
    pub fn domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.domains.keys()
    }

    /// What an admin page tells of each root.
    pub fn roots(&self) -> impl Iterator<Item = (&TrustDomain, &CertificateInfo)> {
        self.domains.iter().flat_map(|(domain, roots)| roots.infos.iter().map(move |info| (domain, info)))
    }

    pub(crate) fn of(&self, domain: &str) -> Option<&Roots> {
        // A handful of domains at most: comparing text is cheaper than making a key.
        self.domains.iter().find(|(d, _)| d.as_str() == domain).map(|(_, roots)| roots)
    }
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.domains.iter().map(|(d, r)| (d, r.infos.len()))).finish()
    }
}
