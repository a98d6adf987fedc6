//! The certificate: asked for with the workload's token, renewed early, and tried for as long as it takes.

use std::time::{Duration, SystemTime};

use mesh_core::live::Live;
use mesh_tls::issued::{Issued, IssuedIdentity, KeyAndRequest};
use mesh_tls::{Clock, Credentials};
use mesh_xds::ca::renewal::{renew_after, retry_after};
use mesh_xds::ca::{CertificateRequest, request_certificate};
use mesh_xds::client::BoxError;
use tokio::time::{sleep, timeout};

use super::dial::Dialer;
use super::state::State;
use super::{ControlPlane, chain};

/// How long is slept at most before the time of day is looked at again: it is what decides, and it may be set.
const LOOK: Duration = Duration::from_secs(30);
/// Below which share of a certificate's life a failure to renew it is an error.
const ALARM: u32 = 5;

/// Asks for certificates and puts them in force.
#[derive(Debug)]
pub(crate) struct ControlIdentity {
    identity: IssuedIdentity,
    dialer: Dialer,
    clock: Clock,
    lifetime: Duration,
    patience: Duration,
    state: Option<State>,
}

impl ControlIdentity {
    pub(super) fn new(
        identity: IssuedIdentity,
        dialer: Dialer,
        control: &ControlPlane,
        state: Option<State>,
    ) -> Self {
        Self {
            identity,
            dialer,
            clock: Clock::default(),
            lifetime: control.lifetime,
            patience: control.certificate_timeout,
            state,
        }
    }

    pub(crate) fn live(&self) -> Live<Credentials> {
        self.identity.live()
    }

    /// Renews for ever.
    pub(crate) async fn run(mut self) {
        let mut failures = 0_u32;
        // Drawn once a certificate: else each look would find it due at another time.
        let mut draw = fastrand::f64();
        loop {
            let due = due(self.identity.validity(), self.clock.now(), draw);
            if !due.is_zero() {
                sleep(due.min(LOOK)).await;
                continue;
            }
            match self.renew().await {
                Ok(()) => {
                    failures = 0;
                    draw = fastrand::f64();
                    sleep(settled(self.identity.left())).await;
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    self.tell(&chain(&*error), failures);
                    sleep(retry_after(failures, self.identity.left(), fastrand::f64())).await;
                }
            }
        }
    }

    async fn renew(&mut self) -> Result<(), BoxError> {
        let issued = timeout(self.patience, self.ask()).await;
        let issued = issued.map_err(|_| format!("no certificate within {:?}", self.patience))??;
        self.identity.take_up(&issued)?;
        if let Some(state) = self.state.clone() {
            let kept = tokio::task::spawn_blocking(move || state.keep_identity(&issued)).await;
            if let Ok(Err(error)) = kept {
                tracing::error!("state: {error}; a restart will need the control plane");
            }
        }
        Ok(())
    }

    async fn ask(&self) -> Result<Issued, BoxError> {
        let asked = KeyAndRequest::generate()?;
        let token = self.dialer.token().await?;
        let request = CertificateRequest {
            csr_pem: asked.request_pem().to_owned(),
            token,
            lifetime: self.lifetime,
            timeout: self.patience,
        };
        let chain = request_certificate(self.dialer.channel().await?, request).await?;
        let roots = String::from_utf8(self.dialer.roots().await?).ok();
        Ok(Issued::new(&chain, asked.into_key_pem(), roots.as_deref())?)
    }

    /// Says that there is no new certificate, and how pressing it is.
    fn tell(&mut self, error: &str, failures: u32) {
        self.identity.fail(error);
        let left = self.identity.left();
        let left = Duration::from_secs(left.as_secs());
        match self.identity.validity() {
            None => tracing::error!(failures, "no certificate yet: {error}"),
            Some(_) if left.is_zero() => {
                tracing::error!(failures, "the certificate HAS EXPIRED and cannot be renewed: {error}");
            }
            Some((from, until)) => {
                let life = until.duration_since(from).unwrap_or_default();
                if left < life / ALARM {
                    tracing::error!(
                        failures,
                        ?left,
                        "the certificate EXPIRES SOON and cannot be renewed: {error}"
                    );
                } else {
                    tracing::warn!(failures, ?left, "the certificate cannot be renewed yet: {error}");
                }
            }
        }
    }
}

/// How long a certificate that has `left` to live is left alone when it has just come. One that was issued with a first
/// moment in the past, against clocks that differ, may be due already if its life is short.
fn settled(left: Duration) -> Duration {
    (left / 4).min(LOOK)
}

/// How long until a certificate of this validity is to be renewed; nothing where there is none, or its time has
/// come.
fn due(validity: Option<(SystemTime, SystemTime)>, now: SystemTime, draw: f64) -> Duration {
    let Some((from, until)) = validity else { return Duration::ZERO };
    let life = until.duration_since(from).unwrap_or_default();
    let at = from.checked_add(renew_after(life, draw)).unwrap_or(from);
    at.duration_since(now).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_it_is_due() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let life = Some((at(1000), at(1120)));
        for (now, draw, wait) in [
            (1000, 0.0, 60),
            (1000, 1.0, 70),
            (1059, 0.0, 1),
            (1060, 0.0, 0),
            (2000, 0.5, 0),
            (900, 0.0, 160),
        ] {
            assert_eq!(due(life, at(now), draw), Duration::from_secs(wait), "{now} {draw}");
        }
        // A minute, which begins a minute early, is not asked for all the time.
        assert_eq!(due(Some((at(940), at(1060))), at(1000), 0.0), Duration::ZERO);
        for (left, wait) in [(60, 15), (120, 30), (86_400, 30), (0, 0)] {
            assert_eq!(settled(Duration::from_secs(left)), Duration::from_secs(wait), "{left}");
        }
        assert_eq!(due(None, at(0), 0.5), Duration::ZERO);
        assert_eq!(due(Some((at(10), at(5))), at(20), 0.5), Duration::ZERO);
    }
}
