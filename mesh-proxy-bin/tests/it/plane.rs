//! A control plane in the test's own process: discovery and certificates over TLS, made of YAML.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Request;
use hyper_util::rt::TokioIo;
use mesh_core::resource::Object;
use mesh_core::store::{Store, StoreOptions};
use mesh_test::ca::{LeafSpec, TestCa, spiffe};
use mesh_test::sidecar::SidecarSpec;
use mesh_test::yaml::Dir;
use mesh_xds::ca::{CertificateLimits, Certificates, IssueError, IssueRequest};
use mesh_xds::server::{Answer, Discovery, Notifier, Peer, Routes, ServerLimits, serve_connection};
use mesh_xds::{Address, Endpoints, Host, Payload, ResourceType, Workload};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tower_service::Service;

use crate::stage::BIN;

/// The account of every workload: what a token proves.
const ACCOUNT: &str = "web";

/// What can be changed while it runs.
pub(crate) struct Settings {
    /// The token that is taken.
    pub(crate) token: String,
    /// Who a certificate is issued for.
    pub(crate) identity: String,
    /// How long it lives.
    pub(crate) lifetime: Duration,
    /// Whether certificates are issued at all.
    pub(crate) issues: bool,
}

/// The control plane.
pub(crate) struct Plane {
    pub(crate) ca: TestCa,
    files: Dir,
    addr: SocketAddr,
    shared: Arc<Shared>,
    discovery: Discovery<Told>,
    notifier: Notifier,
    server: Option<JoinHandle<()>>,
}

struct Shared {
    store: Mutex<(Store, Vec<Object>)>,
    settings: Mutex<Settings>,
    issued: AtomicUsize,
    asked: AtomicUsize,
}

/// What proxies are told.
struct Told(Arc<Shared>);

impl Plane {
    /// A control plane with these resources; the sidecar's workload is `default/web-1`.
    pub(crate) async fn start(yaml: &str) -> Self {
        let ca = TestCa::new();
        let settings = Settings {
            token: "the-token".into(),
            identity: spiffe("default", ACCOUNT),
            lifetime: Duration::from_secs(3600),
            issues: true,
        };
        let shared = Arc::new(Shared {
            store: Mutex::new(read(yaml)),
            settings: Mutex::new(settings),
            issued: AtomicUsize::new(0),
            asked: AtomicUsize::new(0),
        });
        let discovery = Discovery::new(Told(Arc::clone(&shared)), ServerLimits::default());
        let notifier = discovery.notifier();
        let files = Dir::new();
        files.write("token", "the-token\n");
        files.write("roots.pem", ca.root_pem());
        let addr = mesh_test::ports::free_addr();
        let mut plane = Self { ca, files, addr, shared, discovery, notifier, server: None };
        plane.resume().await;
        plane
    }

    /// A sidecar of `default/web-1` that knows nothing but this control plane.
    pub(crate) fn sidecar(&self) -> SidecarSpec {
        SidecarSpec::controlled(BIN, "default/web-1")
            .flag("--controller", &format!("https://localhost:{}", self.addr.port()))
            .flag("--token", &self.file("token").display().to_string())
            .flag("--ca-root", &self.file("roots.pem").display().to_string())
            .flag("--state", &self.file("state").display().to_string())
            .flag("--service-account", ACCOUNT)
    }

    /// As [`sidecar`](Self::sidecar), for a program that embeds the mesh; without state.
    pub(crate) fn control(&self) -> mesh::ControlPlane {
        let address = format!("https://localhost:{}", self.addr.port());
        let (token, roots) = (self.file("token"), self.file("roots.pem"));
        mesh::ControlPlane {
            service_account: Some(ACCOUNT.into()),
            ..mesh::ControlPlane::new(&address, token, roots).unwrap()
        }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.files.file(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        self.files.write(name, text);
    }

    pub(crate) fn set(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.shared.settings.lock().unwrap());
    }

    /// How many certificates were issued, and asked for.
    pub(crate) fn issued(&self) -> usize {
        self.shared.issued.load(Ordering::Relaxed)
    }

    pub(crate) fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::Relaxed)
    }

    /// Other resources from now on.
    pub(crate) fn apply(&self, yaml: &str) {
        *self.shared.store.lock().unwrap() = read(yaml);
        ResourceType::ALL.into_iter().for_each(|kind| self.notifier.all_changed(kind));
    }

    /// Whether some proxy is subscribed to a name.
    pub(crate) fn is_subscribed(&self, kind: ResourceType, name: &str) -> bool {
        self.notifier.is_subscribed(kind, name)
    }

    /// How many names proxies are subscribed to, of a type.
    pub(crate) fn names(&self, kind: ResourceType) -> Vec<Arc<str>> {
        self.notifier.names(kind)
    }

    /// How many resources, and removals, were sent.
    pub(crate) fn discovery_counts(&self) -> (u64, u64) {
        let counts = self.discovery.counters().read();
        (counts.resources, counts.removals)
    }

    /// Why proxies refused what they were sent last.
    pub(crate) fn nacks(&self) -> Vec<String> {
        let proxies = self.discovery.proxies();
        let types = proxies.iter().flat_map(|proxy| &proxy.types);
        types.filter_map(|of| of.last_nack.as_ref().map(|nack| nack.reason.to_string())).collect()
    }

    /// Gone, with every connection.
    pub(crate) async fn pause(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            let _ = server.await;
        }
    }

    /// Back, where it was.
    pub(crate) async fn resume(&mut self) {
        let leaf = self.ca.issue(&LeafSpec::nameless().dns("localhost"));
        let tls = TlsAcceptor::from(mesh_test::tls::server_config(&leaf, None, &["h2"]));
        let shared = Arc::clone(&self.shared);
        let ca = self.ca.clone();
        let issuer = move |request: IssueRequest| issue(Arc::clone(&shared), ca.clone(), request);
        let certificates = Certificates::new(issuer, CertificateLimits::default());
        let routes = Routes::new(self.discovery.clone().into_service(), certificates.into_service());
        let service = ByToken { inner: routes, shared: Arc::clone(&self.shared) };
        let listener = TcpListener::bind(self.addr).await.unwrap();
        self.server = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let (tls, service) = (tls.clone(), service.clone());
                connections.spawn(async move {
                    let Ok(io) = tls.accept(socket).await else { return };
                    let limits = ServerLimits::default();
                    let forever = std::future::pending();
                    let _ = serve_connection(TokioIo::new(io), None, service, &limits, forever).await;
                });
            }
        }));
    }
}

fn read(yaml: &str) -> (Store, Vec<Object>) {
    let objects = mesh_core::yaml::parse_objects("plane.yaml", yaml).unwrap();
    (Store::new(StoreOptions::default(), objects.clone()), objects)
}

async fn issue(shared: Arc<Shared>, ca: TestCa, request: IssueRequest) -> Result<Vec<String>, IssueError> {
    shared.asked.fetch_add(1, Ordering::Relaxed);
    let settings = shared.settings.lock().unwrap();
    if !settings.issues {
        return Err(IssueError::Unavailable("not now".into()));
    }
    if request.token.as_str() != settings.token {
        return Err(IssueError::Unauthenticated("the token is not good".into()));
    }
    let chain = ca.sign(&request.csr_pem, &settings.identity, settings.lifetime);
    shared.issued.fetch_add(1, Ordering::Relaxed);
    chain.map_err(IssueError::Request)
}

/// Knows a proxy by its token, as a TokenReview would.
#[derive(Clone)]
struct ByToken<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S, B> Service<Request<B>> for ByToken<S>
where
    S: Service<Request<B>, Error = Infallible>,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        let good = format!("Bearer {}", self.shared.settings.lock().unwrap().token);
        if request.headers().get("authorization").is_some_and(|value| value.as_bytes() == good.as_bytes()) {
            let identity = spiffe("default", ACCOUNT).parse().unwrap();
            request.extensions_mut().insert(Peer { identity, workload: Some("default/web-1".into()) });
        }
        self.inner.call(request)
    }
}

impl mesh_xds::server::Source for Told {
    fn answer(&self, peer: &Peer, kind: ResourceType, name: &str) -> Answer {
        let store = self.0.store.lock().unwrap();
        let payload = self.payload(&store, peer, kind, name);
        payload.map_or(Answer::Absent, |payload| Answer::Found(payload.encode().unwrap()))
    }
}

impl Told {
    fn payload(
        &self,
        (store, objects): &(Store, Vec<Object>),
        peer: &Peer,
        kind: ResourceType,
        name: &str,
    ) -> Option<Payload> {
        let own = peer.workload.as_deref()?;
        let (namespace, own_name) = own.split_once('/')?;
        let workload = store.workload(namespace, own_name)?;
        match kind {
            ResourceType::Workload => {
                let mine = |object: &&Object| match object {
                    Object::WorkloadEntry(entry) => entry.meta.name == own_name,
                    Object::VirtualService(_) => false,
                    _ => true,
                };
                let resources = objects.iter().filter(mine).cloned().collect();
                let content = Workload { options: store.options().clone(), resources };
                (name == own).then(|| content.into())
            }
            ResourceType::Host => {
                let outbound = store.outbound(&workload, name).filter(|o| o.host() == name)?;
                let service = outbound.service();
                let routes = outbound.virtual_service().map(|vs| vs.reference());
                let rules: Vec<_> = outbound.policy().rules().iter().map(|rule| rule.reference()).collect();
                let belongs = |object: &&Object| match object {
                    Object::Service(s) => service.is_some_and(|info| *info.name == *s.meta.name),
                    Object::VirtualService(_) => routes == Some(object.reference()),
                    Object::DestinationRule(_) => rules.contains(&object.reference()),
                    _ => false,
                };
                Some(Host { resources: objects.iter().filter(belongs).cloned().collect() }.into())
            }
            ResourceType::Endpoints => {
                let outbound = store.outbound(&workload, name).filter(|o| o.host() == name)?;
                outbound.service()?;
                Some(Endpoints::collect(outbound.backends()).into())
            }
            ResourceType::Address => {
                let hosts = store.hosts(&workload);
                let found = hosts.filter(|entry| entry.domains.iter().any(|domain| **domain == *name));
                let hosts: Vec<String> = found.map(|entry| entry.host.to_string()).collect();
                (!hosts.is_empty()).then(|| Address { hosts, endpoint: false }.into())
            }
        }
    }
}
