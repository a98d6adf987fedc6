//! The controller's own certificate: from its own authority, renewed by itself, in force at once.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_core::identity::SpiffeId;
use mesh_core::identity::TrustDomain;
use mesh_tls::Clock;
use mesh_xds::ca::renewal::renew_after;
use rcgen::KeyPair;
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio::sync::watch;

use super::clients::{Clients, Lenient};
use crate::authority::ca::Ca;
use crate::metrics::Metrics;

/// How long the controller's certificate lives.
pub const LIFE: Duration = Duration::from_secs(86_400);
/// How often it is looked whether it is to be renewed.
pub const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How long is waited after a failure.
pub const RETRY_AFTER: Duration = Duration::from_secs(5);

/// What the ports show, and whom they believe.
#[derive(Clone)]
pub struct ServerTls {
    /// For proxies: HTTP/2, a certificate of the client's is welcome.
    pub proxies: Arc<ServerConfig>,
    /// For the API server: HTTP/1.1.
    pub webhooks: Arc<ServerConfig>,
    /// Who shows a certificate.
    pub clients: Arc<Clients>,
    /// The roots to which the certificate leads, in PEM.
    pub roots: Arc<str>,
    renew_at: SystemTime,
}

/// Who the controller is.
#[derive(Debug, Clone)]
pub struct Names {
    /// Its identity in the mesh.
    pub id: SpiffeId,
    /// Its DNS names.
    pub dns: Vec<String>,
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
}

/// Why the controller has no certificate.
#[derive(Debug, thiserror::Error)]
#[error("the controller's own certificate cannot be made: {0}")]
pub struct IdentityError(String);

impl ServerTls {
    /// A certificate of `ca` with a key of its own.
    ///
    /// # Errors
    /// When the authority cannot sign.
    pub fn issue(ca: &Ca, names: &Names, clock: &Clock) -> Result<(Self, SystemTime), IdentityError> {
        let bad = |error: &dyn fmt::Display| IdentityError(error.to_string());
        let now = clock.now();
        let key = KeyPair::generate().map_err(|e| bad(&e))?;
        let issued = ca.issue_server(&key, &names.id, &names.dns, LIFE, now).map_err(|e| bad(&e))?;
        let shown = issued.chain.iter().take(issued.chain.len().saturating_sub(1));
        let chain: Result<Vec<_>, _> =
            shown.map(|pem| CertificateDer::from_pem_slice(pem.as_bytes())).collect();
        let chain = chain.map_err(|e| bad(&e))?;
        let key = || PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| bad(&e));

        let provider = Arc::new(aws_lc_rs::default_provider());
        let clients = Clients::new(ca.roots(), names.trust_domain.clone(), Arc::clone(&provider));
        let clients = Arc::new(clients.map_err(|e| bad(&e))?);
        let config = |verifier, alpn: &[u8], key| {
            let builder = ServerConfig::builder_with_provider(Arc::<CryptoProvider>::clone(&provider))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .map_err(|e| bad(&e))?
                .with_client_cert_verifier(verifier);
            let mut config = builder.with_single_cert(chain.clone(), key).map_err(|e| bad(&e))?;
            config.alpn_protocols = vec![alpn.to_vec()];
            // A resumed session would not be looked at again.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            Ok::<_, IdentityError>(Arc::new(config))
        };
        let life = issued.not_after.duration_since(now).unwrap_or_default();
        let tls = Self {
            proxies: config(Arc::new(Lenient(Arc::clone(&clients))), b"h2", key()?)?,
            webhooks: config(WebPkiClientVerifier::no_client_auth(), b"http/1.1", key()?)?,
            clients,
            roots: Arc::clone(ca.roots()),
            renew_at: now + renew_after(life, fastrand::f64()),
        };
        Ok((tls, issued.not_after))
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").field("renew_at", &self.renew_at).finish_non_exhaustive()
    }
}

/// Keeps the controller's certificate, for ever: a new one when half of the old one's time is over, and at
/// once when the authority is another. The caller spawns it.
pub async fn keep(
    mut ca: watch::Receiver<Option<Arc<Ca>>>,
    names: Names,
    clock: Clock,
    metrics: Arc<Metrics>,
    sender: watch::Sender<Option<ServerTls>>,
) {
    loop {
        let current = ca.borrow_and_update().clone();
        let fresh = current.map(|ca| ServerTls::issue(&ca, &names, &clock));
        let mut after = LOOK_EVERY;
        match fresh {
            Some(Ok((tls, not_after))) => {
                metrics.server_certificate(not_after);
                sender.send_replace(Some(tls));
            }
            Some(Err(error)) => {
                tracing::error!("{error}");
                after = RETRY_AFTER;
            }
            None => {}
        }
        loop {
            tokio::select! {
                changed = ca.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    break;
                }
                () = tokio::time::sleep(after) => {
                    let due = sender.borrow().as_ref().is_none_or(|tls| clock.now() >= tls.renew_at);
                    if due && ca.borrow().is_some() {
                        break;
                    }
                }
            }
        }
    }
}
