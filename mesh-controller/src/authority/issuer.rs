//! The certificate service's answers: a token and a request go in, a certificate comes out.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_core::identity::SpiffeId;
use mesh_tls::Clock;
use mesh_tls::clock::utc;
use mesh_xds::ca::{IssueError, IssueRequest, Issuer};
use tokio::sync::watch;

use super::ca::{Ca, Issued};
use super::csr;
use super::token::{Reason, Tokens};
use crate::metrics::Metrics;

/// Issues certificates to whom tokens name. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Authority {
    ca: watch::Receiver<Option<Arc<Ca>>>,
    tokens: Arc<Tokens>,
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl Authority {
    /// An authority that signs with what `ca` holds now, and believes `tokens`.
    pub fn new(
        ca: watch::Receiver<Option<Arc<Ca>>>,
        tokens: Arc<Tokens>,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { ca, tokens, clock, metrics }
    }

    /// Certifies the key of a request to whom the token names, and to nobody else; a connection that has
    /// `shown` a certificate must be the same. Each answer is a line of the log and a count.
    ///
    /// # Errors
    /// When the token or the request is not good, or Kubernetes cannot be asked.
    pub async fn certify(
        &self,
        token: &str,
        csr_pem: &str,
        life: Duration,
        shown: Option<&SpiffeId>,
    ) -> Result<Issued, IssueError> {
        let holder = self.tokens.who(token, shown).await.map_err(|refused| {
            let reason = refused.reason.as_str();
            self.refused(reason, None, &refused.message);
            match refused.reason {
                Reason::Unavailable => IssueError::Unavailable(refused.message),
                Reason::NoPod | Reason::NotAnAccount | Reason::AnotherIdentity => {
                    IssueError::Denied(refused.message)
                }
                _ => IssueError::Unauthenticated(refused.message),
            }
        })?;
        let who = holder.id.as_str();
        let key = csr::public_key(csr_pem).map_err(|error| {
            self.refused("bad_request", Some(who), &error.to_string());
            IssueError::Request(error.to_string())
        })?;
        let Some(ca) = self.ca.borrow().clone() else {
            self.refused("no_authority", Some(who), "there is no CA yet");
            return Err(IssueError::Unavailable("the controller has no CA yet".to_owned()));
        };
        let issued = ca.issue(&key, &holder, life, self.clock.now()).map_err(|error| {
            self.refused("failed", Some(who), &error.to_string());
            IssueError::Internal("the CA cannot sign; its log says why".to_owned())
        })?;
        self.metrics.issued();
        tracing::info!(
            target: "audit",
            id = who,
            pod = holder.pod.as_deref().unwrap_or_default(),
            serial = issued.serial,
            not_after = utc(issued.not_after),
            "certificate issued"
        );
        Ok(issued)
    }

    fn refused(&self, reason: &'static str, id: Option<&str>, why: &str) {
        self.metrics.refused(reason);
        tracing::warn!(target: "audit", reason, id, why, "certificate refused");
    }
}

impl Issuer for Authority {
    async fn issue(&self, request: IssueRequest) -> Result<Vec<String>, IssueError> {
        let shown = request.peer.as_ref().map(|peer| &peer.identity);
        let token = request.token.as_str();
        let issued = self.certify(token, &request.csr_pem, request.lifetime, shown).await?;
        Ok(issued.chain)
    }
}

/// How much of an authority's life has to be left, so that nobody is warned of its end.
const WARN_BEFORE: Duration = Duration::from_secs(30 * 86_400);

/// What is to be said of an authority's end, if it is near. Pure.
pub(super) fn warning(ca: &Ca, now: SystemTime) -> Option<String> {
    let near = |end: SystemTime| end < now + WARN_BEFORE;
    if near(ca.root_not_after()) {
        let end = utc(ca.root_not_after());
        return Some(format!(
            "{}: the last root expires at {end}; put a new one beside it in time",
            ca.place()
        ));
    }
    if near(ca.not_after()) {
        let end = utc(ca.not_after());
        return Some(format!("{}: the CA's certificate expires at {end}; replace it in time", ca.place()));
    }
    None
}
