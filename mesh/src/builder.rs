//! Building a mesh.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_core::cluster::{Cluster, ClusterKey, ClusterSettings, EndpointSpec, ServiceName};
use mesh_core::diagnostic::Diagnostic;
use mesh_core::identity::TrustDomain;
use mesh_core::live::{Live, Publisher};
use mesh_core::resource::Object;
use mesh_core::source::{Directory, DirectoryError, Loaded};
use mesh_core::store::StoreOptions;
use mesh_route::pool::Pool;
use mesh_telemetry::access_log::Sink;
use mesh_telemetry::{AccessLog, AccessLogWriter, Metrics};
use mesh_tls::accept::DETECT_TIMEOUT;
use mesh_tls::{Clock, Credentials, TlsAccept, TlsConnect};

pub use mesh_telemetry::access_log::Format as LogFormat;

use crate::apps::AppClusters;
use crate::connect::MeshConnect;
use crate::driver::{Driver, Files, Follow};
use crate::identity::{IdentitySource, Source};
use crate::learn::Learner;
use crate::mesh::{Inner, Mesh};
use crate::outgoing::UnknownDestinations;
use crate::stats::OwnMetrics;
use crate::status::Readiness;
use crate::validate::validate;
use crate::world::{Wanted, World};

/// Where the access log goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum AccessLogTo {
    /// Nowhere.
    #[default]
    Off,
    /// To standard output.
    Stdout,
    /// To the end of a file; opened again after log rotation.
    File(PathBuf),
}

/// Builds a [`Mesh`]. The default has no configuration, no identity, and logs nothing.
#[derive(Debug, Clone)]
pub struct MeshBuilder {
    directory: Option<PathBuf>,
    objects: Vec<Object>,
    workload: Wanted,
    options: StoreOptions,
    identity: IdentitySource,
    inbound_port: Option<u16>,
    app: Option<SocketAddr>,
    redirected: Option<UnknownDestinations>,
    access_log: (AccessLogTo, LogFormat),
    detect_timeout: Duration,
    shards: usize,
    #[cfg(feature = "control-plane")]
    control: Option<crate::control::ControlPlane>,
}

/// Why a mesh cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The directory cannot be read at all.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The access log cannot be opened.
    #[error("the access log cannot be opened: {0}")]
    AccessLog(std::io::Error),
    /// A control plane tells what applies to a workload by its name.
    #[error(
        "with a control plane the workload has to be named: namespace and name of its Pod or WorkloadEntry"
    )]
    NoWorkload,
}

impl Default for MeshBuilder {
    fn default() -> Self {
        Self {
            directory: None,
            objects: Vec::new(),
            workload: Wanted::Account { namespace: "default".into(), account: "default".into() },
            options: StoreOptions::default(),
            identity: IdentitySource::None,
            inbound_port: None,
            app: None,
            redirected: None,
            access_log: (AccessLogTo::Off, LogFormat::Json),
            detect_timeout: DETECT_TIMEOUT,
            shards: 1,
            #[cfg(feature = "control-plane")]
            control: None,
        }
    }
}

impl MeshBuilder {
    /// Reads Istio and Kubernetes resources from a directory, and follows its changes.
    #[must_use]
    pub fn directory(mut self, dir: impl AsRef<Path>) -> Self {
        self.directory = Some(dir.as_ref().to_owned());
        self
    }

    /// Adds resources that were built in code (or [parsed](mesh_core::yaml::parse_objects)). With a
    /// directory as well, the directory's alone count.
    #[must_use]
    pub fn objects(mut self, objects: impl IntoIterator<Item = Object>) -> Self {
        self.objects.extend(objects);
        self
    }

    /// The workload that this program is: a WorkloadEntry or Pod of the configuration. Its labels and
    /// service account decide which policies apply and who it is.
    #[must_use]
    pub fn workload(mut self, namespace: &str, name: &str) -> Self {
        self.workload = Wanted::Named { namespace: namespace.into(), name: name.into() };
        self
    }

    /// A workload that no resource describes, by its service account: for programs that only call others.
    /// Default: account `default` of namespace `default`.
    #[must_use]
    pub fn account(mut self, namespace: &str, service_account: &str) -> Self {
        self.workload = Wanted::Account { namespace: namespace.into(), account: service_account.into() };
        self
    }

    /// The mesh's trust domain. Default: `cluster.local`.
    #[must_use]
    pub fn trust_domain(mut self, trust_domain: TrustDomain) -> Self {
        self.options.trust_domain = trust_domain;
        self
    }

    /// The namespace whose policies are everybody's. Default: `istio-system`.
    #[must_use]
    pub fn root_namespace(mut self, namespace: &str) -> Self {
        self.options.root_namespace = namespace.into();
        self
    }

    /// Takes the configuration from a control plane, and the certificate too, unless an
    /// [identity](Self::identity) is given. Directory and objects do not count then. Needs
    /// [`workload`](Self::workload).
    #[cfg(feature = "control-plane")]
    #[must_use]
    pub fn control_plane(mut self, control: crate::control::ControlPlane) -> Self {
        self.control = Some(control);
        self
    }

    /// Where the certificate comes from. Default: from nowhere.
    #[must_use]
    pub fn identity(mut self, source: IdentitySource) -> Self {
        self.identity = source;
        self
    }

    /// The workload's port at which calls arrive: what tells its service, and how the application is
    /// spoken to.
    #[must_use]
    pub fn inbound_port(mut self, port: u16) -> Self {
        self.inbound_port = Some(port);
        self
    }

    /// Where the application listens, for [`Mesh::app_service`].
    #[must_use]
    pub fn app(mut self, app: SocketAddr) -> Self {
        self.app = Some(app);
        self
    }

    /// The workload's connections are redirected here: calls to it are handed over at the address and port that
    /// they were going to ([`Mesh::apps`]), its own go where they were going ([`Mesh::outgoing`]), and `unknown`
    /// says what becomes of those to what the mesh does not know, unless a Sidecar does.
    #[must_use]
    pub fn redirected(mut self, unknown: UnknownDestinations) -> Self {
        self.redirected = Some(unknown);
        self
    }

    /// Where the access log goes, and its form. Default: nowhere.
    #[must_use]
    pub fn access_log(mut self, to: AccessLogTo, format: LogFormat) -> Self {
        self.access_log = (to, format);
        self
    }

    /// How long a silent connection to a PERMISSIVE port is waited for before it counts as plaintext.
    /// Default: 1 s.
    #[must_use]
    pub fn detect_timeout(mut self, timeout: Duration) -> Self {
        self.detect_timeout = timeout;
        self
    }

    /// Among how many runtimes the connection pools are divided. Default: 1.
    #[must_use]
    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = shards;
        self
    }

    /// Loads the first configuration and certificate, and makes the handle. Run the [`Driver`] beside it.
    ///
    /// Files are read here and block. A workload that is missing and a certificate that cannot be had are
    /// no errors: the mesh is not [ready](Mesh::readiness) until they are there.
    ///
    /// # Errors
    /// When the directory or the access log cannot be opened.
    pub fn build(self) -> Result<(Mesh, Driver), BuildError> {
        let (access_log, writer) = open_log(self.access_log).map_err(BuildError::AccessLog)?;
        let app = self.app.map(|app| {
            let key = ClusterKey::new("app", app.port(), "inbound");
            let name = ServiceName::new("app", "app", "");
            Cluster::detached(key, name, ClusterSettings::default(), vec![EndpointSpec::plaintext(app)])
        });
        let apps = self.redirected.map(|_| Arc::new(AppClusters::default()));
        let world = World::new(
            self.options.clone(),
            self.workload.clone(),
            self.inbound_port,
            app.clone(),
            apps.clone(),
        );
        let (cells, registry) = (world.out.cells(), Arc::clone(world.registry()));
        let clock = Clock::default();

        #[cfg(feature = "control-plane")]
        let begun = match &self.control {
            Some(control) => {
                crate::control::start(control, &self.options, &self.workload, world, clock.clone())?
            }
            None => files(self.directory, self.objects, &self.options, world)?,
        };
        #[cfg(not(feature = "control-plane"))]
        let begun = files(self.directory, self.objects, &self.options, world)?;

        let given = self.identity != IdentitySource::None;
        let (source, credentials) = match begun.issued {
            Some(issued) if !given => (issued.0, issued.1),
            _ => Source::start(&self.identity, cells.identity, clock),
        };
        let needs_identity = !matches!(source, Source::None(_));
        let metrics = Metrics::builder(cells.own).build_info("mesh-proxy", env!("CARGO_PKG_VERSION")).build();
        let readiness = Readiness::new(cells.status, credentials.clone(), needs_identity);
        let own_metrics = OwnMetrics::default();
        let modes = cells.modes;
        let mesh = Mesh(Arc::new(Inner {
            registry,
            routes: cells.routes,
            rules: cells.rules,
            view: cells.view,
            readiness,
            own_metrics: own_metrics.clone(),
            accept: TlsAccept::new(credentials.clone(), modes.clone()).detect_timeout(self.detect_timeout),
            pool: Pool::new(MeshConnect::new(credentials.clone())).shards(self.shards),
            apps_pool: Pool::new(MeshConnect::new(credentials.clone()).handing_over()).shards(self.shards),
            connect: TlsConnect::new(credentials.clone()),
            modes,
            credentials,
            metrics,
            access_log,
            app,
            apps: apps.unwrap_or_default(),
            unknown_destinations: self.redirected.unwrap_or_default(),
            inbound_port: self.inbound_port,
            learner: begun.learner,
            #[cfg(feature = "control-plane")]
            control: begun.control,
        }));
        mesh.register_metrics();
        let driver = Driver { mesh: mesh.clone(), follow: begun.follow, source, writer };
        Ok((mesh, driver))
    }
}

/// What a source of configuration begins with.
pub(crate) struct Begun {
    pub(crate) follow: Follow,
    pub(crate) learner: Learner,
    /// The source of the certificate that comes along.
    pub(crate) issued: Option<(Source, Live<Credentials>)>,
    #[cfg(feature = "control-plane")]
    pub(crate) control: Option<crate::control::Handle>,
}

/// Loads the first configuration from a directory or from objects. Blocks on files.
fn files(
    directory: Option<PathBuf>,
    objects: Vec<Object>,
    options: &StoreOptions,
    mut world: World,
) -> Result<Begun, BuildError> {
    let root = Arc::clone(&options.root_namespace);
    let mut directory =
        directory.map(|dir| Directory::new(dir).validate(move |object| validate(object, &root)));
    let loaded = match &mut directory {
        Some(directory) => directory.load()?,
        None => Loaded { objects, diagnostics: Vec::new(), generation: 1 },
    };
    world.apply(&loaded);
    Ok(Begun {
        follow: Follow::Files(Box::new(Files { world, directory, updates: Publisher::new(loaded) })),
        learner: None,
        issued: None,
        #[cfg(feature = "control-plane")]
        control: None,
    })
}

fn open_log((to, format): (AccessLogTo, LogFormat)) -> std::io::Result<(AccessLog, Option<AccessLogWriter>)> {
    let sink = match to {
        AccessLogTo::Off => return Ok((AccessLog::off(), None)),
        AccessLogTo::Stdout => Sink::Stdout,
        AccessLogTo::File(path) => Sink::File(path),
    };
    let (log, writer) = AccessLog::new(sink, format)?;
    Ok((log, Some(writer)))
}

/// Logs what is newly wrong with a configuration, and what has been mended.
pub(crate) fn tell(now: &[Diagnostic], before: &[Diagnostic]) {
    use mesh_core::diagnostic::Effect;
    for diagnostic in now.iter().filter(|d| !before.contains(d)) {
        match diagnostic.effect {
            Effect::Skipped => tracing::debug!("{diagnostic}"),
            Effect::NoEffect => tracing::warn!("{diagnostic}"),
            _ => tracing::error!("{diagnostic}"),
        }
    }
    for diagnostic in before.iter().filter(|d| d.is_error() && !now.contains(d)) {
        tracing::info!("no longer wrong: {diagnostic}");
    }
}
