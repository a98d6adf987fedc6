//! Keeps the authority in a Secret that all replicas share.
//!
//! The Secret `cacerts`, in Istio's form, goes before the one that is made here. What cannot be used is said
//! and leaves in force what was; a controller that has nothing in force serves nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, PostParams};
use mesh_core::identity::TrustDomain;
use mesh_tls::Clock;
use tokio::sync::watch;

use super::ca::{CA_CERT, CA_KEY, CERT_CHAIN, Ca, CaError, Files, ROOT_CERT, ROOT_KEY};
use super::{issuer, make};
use crate::kubernetes::told;
use crate::metrics::Metrics;

/// How often the Secrets are looked at, when all is well.
pub const LOOK_EVERY: Duration = Duration::from_secs(30);
/// How long is waited after something went wrong.
pub const RETRY_AFTER: Duration = Duration::from_secs(2);
/// How long a look may take.
pub const LOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a write is tried that others get before.
const TRIES: usize = 5;

/// Where the authority is kept.
#[derive(Debug, Clone)]
pub struct KeeperSettings {
    /// The controller's namespace.
    pub namespace: String,
    /// The Secret with an authority that was made here.
    pub made: String,
    /// The Secret with an authority of the user's.
    pub plugged: String,
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
}

/// Why there is no authority, or not the one that should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeeperError {
    /// The API server does not answer, or does not allow it.
    #[error("Secret {name}: {}", told(.error))]
    Kubernetes {
        /// The Secret, as `NAMESPACE/NAME`.
        name: String,
        /// What it says.
        error: Box<kube::Error>,
    },
    /// What the Secret holds is no authority.
    #[error(transparent)]
    Bad(#[from] CaError),
    /// Nothing could be made.
    #[error("no CA can be made: {0}")]
    Making(#[from] rcgen::Error),
    /// Others wrote at the same time, each time.
    #[error("Secret {0}: others change it all the time")]
    Contended(String),
    /// It took too long.
    #[error("the API server has not answered in {LOOK_TIMEOUT:?}")]
    TimedOut,
}

/// Keeps the authority.
#[derive(Debug)]
pub struct Keeper {
    api: Api<Secret>,
    settings: KeeperSettings,
    clock: Clock,
    metrics: Arc<Metrics>,
    sender: watch::Sender<Option<Arc<Ca>>>,
    /// What the made Secret held last: it is put back when somebody deletes it.
    last: Option<Data>,
}

type Data = BTreeMap<String, ByteString>;

impl Keeper {
    /// A keeper that has not looked yet. It needs the rights to get both Secrets, and to create and update
    /// the one that it makes.
    pub fn new(client: kube::Client, settings: KeeperSettings, clock: Clock, metrics: Arc<Metrics>) -> Self {
        let api = Api::namespaced(client, &settings.namespace);
        Self { api, settings, clock, metrics, sender: watch::Sender::new(None), last: None }
    }

    /// The authority in force; none until the first look went well.
    pub fn authority(&self) -> watch::Receiver<Option<Arc<Ca>>> {
        self.sender.subscribe()
    }

    /// Looks for ever. The caller spawns it.
    pub async fn run(mut self) {
        loop {
            let looked = tokio::time::timeout(LOOK_TIMEOUT, self.look()).await;
            let after = match looked.unwrap_or(Err(KeeperError::TimedOut)) {
                Ok(()) => LOOK_EVERY,
                Err(error) => {
                    let kept = if self.sender.borrow().is_some() {
                        "the one in force stays"
                    } else {
                        "there is none"
                    };
                    tracing::error!("the CA cannot be taken up, {kept}: {error}");
                    RETRY_AFTER
                }
            };
            if let Some(warning) =
                self.sender.borrow().as_ref().and_then(|ca| issuer::warning(ca, self.clock.now()))
            {
                tracing::warn!("{warning}");
            }
            tokio::time::sleep(after.mul_f64(0.9 + 0.2 * fastrand::f64())).await;
        }
    }

    /// Looks once: takes up what the Secrets hold, makes what is missing, renews what is to be renewed.
    ///
    /// # Errors
    /// See [`KeeperError`]. What is in force stays.
    pub async fn look(&mut self) -> Result<(), KeeperError> {
        let plugged = self.settings.plugged.clone();
        let ca = match self.get(&plugged).await? {
            Some(secret) => self.open(&plugged, &secret.data.unwrap_or_default())?,
            None => self.made().await?,
        };
        self.metrics.authority(&ca);
        let ca = Arc::new(ca);
        self.sender.send_if_modified(|current| {
            if current.as_ref().is_some_and(|current| current.is_same(&ca)) {
                return false;
            }
            if let Some(old) = current.as_ref().filter(|old| old.roots() != ca.roots()) {
                tracing::warn!(from = old.place(), to = ca.place(), "the roots are others now; certificates of the old ones are not believed by those who know the new ones only");
            }
            tracing::info!(place = ca.place(), until = mesh_tls::clock::utc(ca.not_after()), "a CA is in force");
            *current = Some(Arc::clone(&ca));
            true
        });
        Ok(())
    }

    async fn made(&mut self) -> Result<Ca, KeeperError> {
        let name = self.settings.made.clone();
        for _ in 0..TRIES {
            let now = self.clock.now();
            let Some(mut secret) = self.get(&name).await? else {
                let data = match self.last.clone() {
                    Some(data) => data,
                    None => made_data(&make::authority(&self.settings.trust_domain, now)?),
                };
                // Whoever comes second takes what the first has made.
                self.create(&name, data).await?;
                continue;
            };
            let data = secret.data.get_or_insert_default();
            let ca = self.open(&name, data);
            let renewed = renewed(data, ca.as_ref().ok(), &self.settings.trust_domain, now)?;
            let Some(renewed) = renewed else {
                let ca = ca?;
                self.last = secret.data;
                return Ok(ca);
            };
            *data = renewed;
            // The resource version in it makes this fail where another was first.
            self.replace(&name, &secret).await?;
        }
        Err(KeeperError::Contended(self.full(&name)))
    }

    fn open(&self, name: &str, data: &Data) -> Result<Ca, CaError> {
        let place = format!("Secret {}", self.full(name));
        let file = |file: &'static str| {
            let missing =
                || CaError { place: place.clone(), file, reason: "the Secret does not have it".to_owned() };
            data.get(file).map(|bytes| bytes.0.as_slice()).ok_or_else(missing)
        };
        let files = Files {
            certificate: file(CA_CERT)?,
            key: file(CA_KEY)?,
            chain: file(CERT_CHAIN).unwrap_or_default(),
            roots: file(ROOT_CERT)?,
        };
        Ca::open(&place, &files, &self.settings.trust_domain, &self.clock)
    }

    async fn get(&self, name: &str) -> Result<Option<Secret>, KeeperError> {
        self.api.get_opt(name).await.map_err(|error| self.failed(name, error))
    }

    async fn create(&self, name: &str, data: Data) -> Result<(), KeeperError> {
        let labels =
            BTreeMap::from([("app.kubernetes.io/managed-by".to_owned(), "mesh-controller".to_owned())]);
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: Some(labels),
                ..ObjectMeta::default()
            },
            data: Some(data),
            ..Secret::default()
        };
        match self.api.create(&PostParams::default(), &secret).await {
            Ok(_) => {
                tracing::info!(secret = self.full(name), "a CA was made");
                Ok(())
            }
            Err(error) if is_conflict(&error) => Ok(()),
            Err(error) => Err(self.failed(name, error)),
        }
    }

    async fn replace(&self, name: &str, secret: &Secret) -> Result<(), KeeperError> {
        match self.api.replace(name, &PostParams::default(), secret).await {
            Ok(_) => {
                tracing::info!(secret = self.full(name), "the intermediate CA was renewed");
                Ok(())
            }
            Err(error) if is_conflict(&error) => Ok(()),
            Err(error) => Err(self.failed(name, error)),
        }
    }

    fn full(&self, name: &str) -> String {
        format!("{}/{name}", self.settings.namespace)
    }

    fn failed(&self, name: &str, error: kube::Error) -> KeeperError {
        KeeperError::Kubernetes { name: self.full(name), error: Box::new(error) }
    }
}

/// Whether another was first: it exists already, or is another version by now.
fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

fn made_data(made: &make::Made) -> Data {
    let files = [
        (ROOT_CERT, &made.root),
        (ROOT_KEY, &made.root_key),
        (CA_CERT, &made.certificate),
        (CERT_CHAIN, &made.certificate),
        (CA_KEY, &made.key),
    ];
    files.map(|(name, text)| (name.to_owned(), ByteString(text.clone().into_bytes()))).into()
}

/// The data with a new intermediate, where the one in it is to be renewed and the root's key is there. What
/// cannot be used is not renewed but for one that has just expired: a person has to look at it.
fn renewed(
    data: &Data,
    ca: Option<&Ca>,
    domain: &TrustDomain,
    now: SystemTime,
) -> Result<Option<Data>, rcgen::Error> {
    let text = |file: &str| data.get(file).and_then(|bytes| std::str::from_utf8(&bytes.0).ok());
    let (Some(root), Some(root_key)) = (text(ROOT_CERT), text(ROOT_KEY)) else { return Ok(None) };
    let due = match ca {
        Some(ca) => make::is_due(ca.not_before(), ca.not_after(), now),
        None => text(CA_CERT).is_some_and(|certificate| has_expired(certificate, now)),
    };
    if !due {
        return Ok(None);
    }
    let (certificate, key) = make::intermediate(domain, root, root_key, now)?;
    let mut data = data.clone();
    for (file, text) in [(CA_CERT, &certificate), (CERT_CHAIN, &certificate), (CA_KEY, &key)] {
        data.insert(file.to_owned(), ByteString(text.clone().into_bytes()));
    }
    Ok(Some(data))
}

fn has_expired(pem: &str, now: SystemTime) -> bool {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    use x509_parser::prelude::{FromDer, X509Certificate};
    let Ok(der) = CertificateDer::from_pem_slice(pem.as_bytes()) else { return false };
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    X509Certificate::from_der(&der)
        .is_ok_and(|(_, cert)| u64::try_from(cert.validity().not_after.timestamp()).unwrap_or_default() < now)
}
