//! A mesh that takes its configuration and its certificate from a control plane.
//!
//! What applies to the workload itself is kept; what applies to calls to a host is asked for the first time
//! that it is called, and let go of when it has not been used for a while. The certificate is issued for the
//! workload's token and renewed early. With the control plane gone all that is known stays in force, and a
//! program that starts then comes up from its state directory.
//!
//! ```no_run
//! use tower_mesh::{ControlPlane, Mesh};
//!
//! let control = ControlPlane {
//!     state: Some("/var/lib/mesh".into()),
//!     service_account: Some("web".into()),
//!     ..ControlPlane::new(
//!         "https://mesh-controller.mesh-system.svc:15012",
//!         "/var/run/secrets/tokens/token",
//!         "/var/run/secrets/mesh/root-cert.pem",
//!     )
//!     .unwrap()
//! };
//! let (mesh, driver) = Mesh::builder().workload("default", "web-5d4f-abcde").control_plane(control).build().unwrap();
//! # tokio::spawn(driver.run());
//! # async { mesh.readiness().ready().await };
//! ```

mod dial;
mod handle;
mod identity;
mod learn;
mod sink;
mod slots;
mod state;
mod stats;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::store::StoreOptions;
use mesh_tls::Clock;
use mesh_tls::issued::{Expected, IssuedIdentity};
use mesh_xds::client::Client;

pub use dial::{Address, InvalidAddress};
pub use mesh_xds::client::{Backoff, ClientLimits};
pub use state::{MAX_IDENTITY_BYTES, StateError};

pub(crate) use handle::{Follow, Handle};
pub(crate) use identity::ControlIdentity;
pub(crate) use slots::Each;

use crate::builder::{Begun, BuildError};
use crate::driver;
use crate::identity::Source;
use crate::world::{Wanted, World};
use dial::Dialer;
use learn::OnDemand;
use sink::{Configuration, ConfigurationSink};
use state::State;

/// Where configuration and certificate come from, and within which limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlPlane {
    /// Where it is.
    pub address: Address,
    /// The file with the workload's token; read for each use, since it is replaced before it expires.
    pub token: PathBuf,
    /// The file with the roots by which the control plane is known; read for each connection.
    pub ca_root: PathBuf,
    /// The directory for what a restart needs: configuration, certificate, key. Default: none is kept.
    pub state: Option<PathBuf>,
    /// The workload's service account. A certificate for another is refused. Default: any of its namespace.
    pub service_account: Option<String>,
    /// The lifetime to ask for. Default: 24 hours; the issuer may give less.
    pub lifetime: Duration,
    /// How long an answer to a request for a certificate may take. Default: 10 s.
    pub certificate_timeout: Duration,
    /// First calls that wait at the same time until their host is known. Default: 1,024; further ones are
    /// refused with `overflow`.
    pub first_calls: usize,
    /// How long a first call waits. Default: 5 s; then it is refused with `config_unavailable`.
    pub first_call_timeout: Duration,
    /// How long changes are gathered before the state is written. Default: 500 ms.
    pub state_delay: Duration,
    /// What asking for configuration is allowed: subscriptions, memory of unknown hosts, idle time.
    pub client: ClientLimits,
}

impl ControlPlane {
    /// A control plane with the default limits. `address` is `https://HOST` or `https://HOST:PORT`.
    ///
    /// # Errors
    /// When the address is another.
    pub fn new(
        address: &str,
        token: impl Into<PathBuf>,
        ca_root: impl Into<PathBuf>,
    ) -> Result<Self, InvalidAddress> {
        Ok(Self {
            address: address.parse()?,
            token: token.into(),
            ca_root: ca_root.into(),
            state: None,
            service_account: None,
            lifetime: Duration::from_secs(86_400),
            certificate_timeout: Duration::from_secs(10),
            first_calls: 1024,
            first_call_timeout: Duration::from_secs(5),
            state_delay: Duration::from_millis(500),
            client: ClientLimits::default(),
        })
    }

    /// The client's limits, wide enough for the first calls that wait: each asks for two names under two types.
    fn client_limits(&self) -> ClientLimits {
        let waiting = self.client.waiting.max(self.first_calls.saturating_mul(4));
        // It is the first call that gives up, and is counted.
        ClientLimits { waiting, wait: self.first_call_timeout.saturating_mul(2), ..self.client.clone() }
    }
}

/// Takes up what is kept of an earlier life, and prepares what runs. Blocks on files.
pub(crate) fn start(
    control: &ControlPlane,
    options: &StoreOptions,
    wanted: &Wanted,
    world: World,
    clock: Clock,
) -> Result<Begun, BuildError> {
    let Wanted::Named { namespace, name } = wanted else {
        return Err(BuildError::NoWorkload);
    };
    let workload: Arc<str> = format!("{namespace}/{name}").into();
    let expected =
        Expected::account(options.trust_domain.clone(), namespace, control.service_account.as_deref());
    let state = control.state.as_deref().and_then(|dir| {
        // A directory that cannot be used costs what it is for, not the service.
        let owner = format!("{workload} {expected}");
        State::open(dir, &owner)
            .inspect_err(|error| tracing::error!("state: {error}; nothing will be kept for a restart"))
            .ok()
    });
    let dialer = Dialer::new(control, clock.clone());

    let mut identity = IssuedIdentity::new(expected, clock);
    if let Some(issued) = state.as_ref().and_then(State::identity) {
        match identity.take_up(&issued) {
            Ok(()) => tracing::info!("the certificate of an earlier life is in force"),
            Err(error) => tracing::warn!("state: {error}; a new certificate is asked for"),
        }
    }
    let client = Client::new(&workload, control.client_limits());
    let configuration =
        Configuration::new(world, client.clone(), Arc::clone(&workload), options.root_namespace.clone());
    if let Some(snapshot) = state.as_ref().and_then(State::configuration) {
        configuration.restore(&snapshot);
    }
    let view = configuration.view();
    let handle = Handle::new(control, client.clone(), view.clone());
    let counters = handle.counters();
    let learner = Arc::new(OnDemand::new(control, client.clone(), view, Arc::clone(&counters)));
    let follow = Follow {
        client,
        sink: ConfigurationSink::new(Arc::clone(&configuration)),
        configuration,
        dialer: dialer.clone(),
        workload,
        state: state.clone(),
        delay: control.state_delay,
        counters,
    };
    let identity = ControlIdentity::new(identity, dialer, control, state);
    let credentials = identity.live();
    Ok(Begun {
        follow: driver::Follow::ControlPlane(Box::new(follow)),
        learner: Some(learner),
        issued: Some((Source::Issued(Box::new(identity)), credentials)),
        control: Some(handle),
    })
}

/// An error with what is behind it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}
