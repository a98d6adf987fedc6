//! Whether a mesh is ready, and why not.

use std::sync::Arc;

use mesh_core::identity::SpiffeId;
use mesh_core::live::Live;
use mesh_tls::Credentials;

/// Whether the first configuration and certificate are in force. Once they are a mesh stays ready: what
/// goes wrong later leaves the last good form in force.
#[derive(Debug, Clone)]
pub struct Readiness {
    configuration: Live<ConfigurationStatus>,
    credentials: Live<Credentials>,
    needs_identity: bool,
}

/// How it goes with the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigurationStatus {
    /// Set once a configuration with this workload in it is in force.
    pub workload: Option<Arc<str>>,
    /// Who the workload is, by its service account.
    pub identity: Option<SpiffeId>,
    /// Why no configuration is in force, or is not the newest.
    pub problem: Option<String>,
    /// Whether the workload is to end: its callers are being told to go elsewhere, or have been.
    pub ending: bool,
    /// How many configurations have been put in force.
    pub generation: u64,
}

impl Readiness {
    pub(crate) const fn new(
        configuration: Live<ConfigurationStatus>,
        credentials: Live<Credentials>,
        needs_identity: bool,
    ) -> Self {
        Self { configuration, credentials, needs_identity }
    }

    /// How it goes with the configuration.
    pub fn configuration(&self) -> Live<ConfigurationStatus> {
        self.configuration.clone()
    }

    /// What is still missing; empty when ready.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        let configuration = self.configuration.load();
        if configuration.workload.is_none() {
            let problem = configuration.problem.as_deref().unwrap_or("no configuration is in force yet");
            missing.push(problem.to_owned());
        }
        let credentials = self.credentials.load();
        if self.needs_identity && credentials.material().is_none() {
            missing.push(match &credentials.status().last_error {
                Some(error) => format!("no certificate is in force: {error}"),
                None => "no certificate is in force yet".to_owned(),
            });
        }
        missing
    }

    /// Whether nothing is missing.
    pub fn is_ready(&self) -> bool {
        self.missing().is_empty()
    }

    /// Returns once nothing is missing.
    pub async fn ready(&self) {
        let mut configuration = self.configuration.changes();
        let mut credentials = self.credentials.changes();
        while !self.is_ready() {
            tokio::select! {
                () = configuration.changed() => {}
                () = credentials.changed() => {}
            }
        }
    }
}
