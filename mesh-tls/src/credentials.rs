//! The identity in force and how its renewal goes, in one cell.

use std::time::SystemTime;

use mesh_core::diagnostic::Diagnostic;
use mesh_core::identity::SpiffeId;
use mesh_core::live::Publisher;

use crate::error::MaterialError;
use crate::material::TlsMaterial;
use crate::svid::CertificateInfo;

/// A workload's identity in force, as a `Live<Credentials>` that its source publishes.
///
/// Certificate and status change together, so that nobody sees one without the other.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    material: Option<TlsMaterial>,
    status: IdentityStatus,
}

/// How it goes with an identity: for metrics and the admin page.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdentityStatus {
    /// When the certificate in force was taken up.
    pub loaded_at: Option<SystemTime>,
    /// How many certificates have been put in force after the first.
    pub renewals: u64,
    /// How many tries to load or renew have failed since the program started.
    pub failures: u64,
    /// What is wrong since the last try; `None` while all is well.
    pub last_error: Option<Diagnostic>,
}

impl Credentials {
    /// No identity yet: plaintext can be spoken, TLS cannot.
    pub fn none() -> Self {
        Self::default()
    }

    /// An identity that was made elsewhere.
    pub fn of(material: TlsMaterial) -> Self {
        Self { material: Some(material), status: IdentityStatus::default() }
    }

    /// What TLS uses; `None` while no certificate is there.
    pub fn material(&self) -> Option<&TlsMaterial> {
        self.material.as_ref()
    }

    /// Who the workload is.
    pub fn id(&self) -> Option<&SpiffeId> {
        self.material.as_ref().map(|m| m.svid().id())
    }

    /// How renewal goes.
    pub fn status(&self) -> &IdentityStatus {
        &self.status
    }

    /// What an admin page tells of the certificate in force.
    pub fn certificate(&self) -> Option<&CertificateInfo> {
        self.material.as_ref().map(|m| m.svid().info())
    }

    /// Until when the certificate in force is valid.
    pub fn not_after(&self) -> Option<SystemTime> {
        self.certificate().map(|c| c.not_after)
    }

    /// Whether the certificate in force has expired at `now`. It stays in force: peers refuse it, and
    /// nothing better is there.
    pub fn expired(&self, now: SystemTime) -> bool {
        self.not_after().is_some_and(|t| now > t)
    }

    pub(crate) fn renewed(&self, material: TlsMaterial, now: SystemTime) -> Self {
        let before = &self.status;
        let status = IdentityStatus {
            loaded_at: Some(now),
            renewals: before.renewals + u64::from(self.material.is_some()),
            failures: before.failures,
            last_error: None,
        };
        Self { material: Some(material), status }
    }

    pub(crate) fn failed(&self, error: Diagnostic) -> Self {
        let mut next = self.clone();
        next.status.failures += 1;
        next.status.last_error = Some(error);
        next
    }
}

/// Takes up what a source made, or keeps the last good identity and says what is wrong.
pub(crate) fn publish(
    publisher: &Publisher<Credentials>,
    made: Result<TlsMaterial, MaterialError>,
    now: SystemTime,
) {
    use mesh_core::diagnostic::Effect;

    let current = publisher.load();
    let next = match made {
        Ok(material) => {
            let svid = material.svid();
            let until = crate::clock::utc(svid.not_after());
            tracing::info!(id = %svid.id(), serial = &*svid.info().serial, until, "a certificate is in force");
            current.renewed(material, now)
        }
        Err(error) => {
            let effect = if current.material().is_some() { Effect::LastGoodKept } else { Effect::NotApplied };
            let diagnostic = Diagnostic::new(effect, error.to_string());
            if current.status().last_error.as_ref() != Some(&diagnostic) {
                tracing::error!("identity: {diagnostic}");
            }
            current.failed(diagnostic)
        }
    };
    publisher.publish(next);
}
