//! From the resources in force to what the layers run.
//!
//! One [`World`] per process. [`World::apply`] builds a new store, compiles what applies to the workload,
//! and publishes each concern's compiled form once; it keeps every cluster and every host that did not
//! change. Nothing here is on a request's way.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use mesh_core::cluster::{Cluster, ClusterKey, ClusterSettings, Registry};
use mesh_core::diagnostic::Diagnostic;
use mesh_core::facts::WorkloadLabels;
use mesh_core::failure::{Failure, FailureCode};
use mesh_core::identity::SpiffeId;
use mesh_core::live::{Live, Publisher};
use mesh_core::protocol::Protocol;
use mesh_core::resource::{Labels, Object};
use mesh_core::source::Loaded;
use mesh_core::store::{
    Fingerprint, Inbound, InboundPort, Outbound, PeerAuthentications, Store, StoreOptions, Workload,
};
use mesh_policy::authorization::{Context, Rules};
use mesh_route::table::{
    CompileContext, DEFAULT_PORT, DestinationRef, HostRoutes, Resolved, RouteTable, Routes, TcpRoutes,
    compile_http, compile_tcp,
};
use mesh_telemetry::OwnWorkload;
use mesh_tls::modes::TlsModes;

use crate::apps::AppClusters;
use crate::builder::tell;
use crate::hosts::Hosts;
use crate::outgoing::{self, Addresses};
use crate::status::ConfigurationStatus;
use crate::{destination, peers};

/// The workload that a mesh stands beside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A WorkloadEntry or Pod of the configuration.
    Named { namespace: String, name: String },
    /// One that no resource describes: namespace and service account.
    Account { namespace: String, account: String },
}

/// Routes of connections by host, then port.
pub(crate) type TcpTable = HashMap<Arc<str>, Vec<(u16, TcpRoutes)>>;

/// What is in force, for whoever asks rarely: connections, admin pages.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    pub(crate) hosts: Hosts,
    pub(crate) workload: Option<Arc<Workload>>,
    pub(crate) inbound: Option<Inbound>,
    pub(crate) objects: Arc<[Object]>,
    pub(crate) diagnostics: Arc<[Diagnostic]>,
    /// Where connections go whose bytes are not looked into: by host, then port. Ports that are declared
    /// HTTP are not among them.
    pub(crate) tcp: Arc<TcpTable>,
    /// What telemetry says of the workloads of each account.
    pub(crate) peers: Arc<OnceLock<HashMap<SpiffeId, Arc<WorkloadLabels>>>>,
    /// What stands behind addresses, once somebody has asked; found out here only where everything is known.
    pub(crate) addresses: Arc<OnceLock<Addresses>>,
}

impl View {
    /// What telemetry says of who has that identity. Found out for all when it is asked first.
    pub(crate) fn peer(&self, id: &SpiffeId) -> Option<&Arc<WorkloadLabels>> {
        self.peers.get_or_init(|| peers::labels(self.hosts.workloads())).get(id)
    }

    /// What stands behind addresses: looked for when it is first asked, since few proxies do. Nothing where
    /// addresses are learnt one by one.
    pub(crate) fn addresses(&self) -> &Addresses {
        self.addresses.get_or_init(|| match (&self.workload, &self.hosts) {
            (Some(workload), Hosts::Whole(store)) => outgoing::addresses(store, workload),
            _ => Addresses::new(),
        })
    }
}

/// Everything that a configuration puts in force.
#[derive(Debug)]
pub(crate) struct World {
    options: StoreOptions,
    wanted: Wanted,
    inbound_port: Option<u16>,
    registry: Arc<Registry>,
    app: Option<Arc<Cluster>>,
    apps: Option<Arc<AppClusters>>,
    hosts: HashMap<Arc<str>, KnownHost>,
    pub(crate) out: Published,
}

/// One cell a concern.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) routes: Publisher<RouteTable>,
    pub(crate) rules: Publisher<Rules>,
    pub(crate) modes: Publisher<TlsModes>,
    pub(crate) identity: Publisher<Option<SpiffeId>>,
    pub(crate) own: Publisher<OwnWorkload>,
    pub(crate) view: Publisher<View>,
    pub(crate) status: Publisher<ConfigurationStatus>,
}

/// The readers of what is published.
pub(crate) struct Cells {
    pub(crate) routes: Live<RouteTable>,
    pub(crate) rules: Live<Rules>,
    pub(crate) modes: Live<TlsModes>,
    pub(crate) identity: Live<Option<SpiffeId>>,
    pub(crate) own: Live<OwnWorkload>,
    pub(crate) view: Live<View>,
    pub(crate) status: Live<ConfigurationStatus>,
}

impl Published {
    pub(crate) fn cells(&self) -> Cells {
        Cells {
            routes: self.routes.live(),
            rules: self.rules.live(),
            modes: self.modes.live(),
            identity: self.identity.live(),
            own: self.own.live(),
            view: self.view.live(),
            status: self.status.live(),
        }
    }
}

/// A host as it was compiled last.
#[derive(Debug)]
struct KnownHost {
    fingerprint: Fingerprint,
    /// The names by which it is called.
    domains: Vec<Arc<str>>,
    /// Its place among all: of two with one name the first has it.
    rank: usize,
    routes: Arc<HostRoutes>,
    tcp: Vec<(u16, TcpRoutes)>,
    /// The hosts that its routes lead to; when one of them changes, so do the routes' clusters.
    clusters: HashMap<ClusterKey, Arc<str>>,
    diagnostics: Vec<Diagnostic>,
}

impl World {
    pub(crate) fn new(
        options: StoreOptions,
        wanted: Wanted,
        inbound_port: Option<u16>,
        app: Option<Arc<Cluster>>,
        apps: Option<Arc<AppClusters>>,
    ) -> Self {
        Self {
            options,
            wanted,
            inbound_port,
            registry: Arc::new(Registry::new()),
            app,
            apps,
            hosts: HashMap::new(),
            out: Published {
                routes: Publisher::new(RouteTable::default()),
                rules: Publisher::new(Rules::default()),
                modes: Publisher::new(TlsModes::default()),
                identity: Publisher::new(None),
                own: Publisher::new(OwnWorkload::default()),
                view: Publisher::new(View::default()),
                status: Publisher::new(ConfigurationStatus::default()),
            },
        }
    }

    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Puts a configuration in force.
    ///
    /// Where the workload is missing nothing changes but the status: the last good configuration, or none,
    /// stays in force.
    pub(crate) fn apply(&mut self, loaded: &Loaded) {
        let store = Store::new(self.options.clone(), loaded.objects.clone());
        let mut diagnostics = loaded.diagnostics.clone();
        diagnostics.extend(store.diagnostics());
        let Some(workload) = self.find(&store) else {
            let problem = self.missing();
            tracing::warn!("{problem}");
            let before = (**self.out.status.load()).clone();
            self.out.status.publish(ConfigurationStatus { problem: Some(problem), ..before });
            tell(&diagnostics, &self.out.view.load().diagnostics);
            let view = View {
                objects: loaded.objects.clone().into(),
                diagnostics: diagnostics.into(),
                ..(**self.out.view.load()).clone()
            };
            self.out.view.publish(view);
            return;
        };

        let routes = self.routes(&store, &workload, &mut diagnostics);
        let inbound = self.inbound(&store, &workload, &mut diagnostics);
        self.out.routes.publish(routes);
        tell(&diagnostics, &self.out.view.load().diagnostics);
        let view = View {
            tcp: self.tcp(),
            peers: Arc::default(),
            addresses: Arc::default(),
            hosts: Hosts::Whole(store),
            inbound: Some(inbound),
            objects: loaded.objects.clone().into(),
            diagnostics: diagnostics.into(),
            workload: Some(Arc::clone(&workload)),
        };
        self.in_force(&workload, view);
    }

    /// Puts what applies to calls to the workload in force. What keeps out comes into force before what lets
    /// through.
    pub(crate) fn inbound(
        &self,
        store: &Store,
        workload: &Arc<Workload>,
        diagnostics: &mut Vec<Diagnostic>,
    ) -> Inbound {
        let inbound = store.inbound(workload);
        let context = Context::new(store.options().trust_domain.clone());
        let (rules, found) = Rules::compile(&inbound.authorization, &context);
        add(diagnostics, found);
        self.out.rules.publish(rules);
        self.out.modes.publish_if_changed(modes(&inbound.peer_authentication));
        self.out.own.publish_if_changed(self.own(workload, &inbound));
        if let (Some(app), Some(port)) = (&self.app, self.own_port(&inbound)) {
            app.publish_settings(app_settings(port));
        }
        if let Some(apps) = &self.apps {
            apps.declare(&inbound);
        }
        self.out.identity.publish_if_changed(workload.identity.clone());
        inbound
    }

    /// Publishes what is in force for whoever asks rarely, last of all.
    pub(crate) fn in_force(&self, workload: &Workload, view: View) {
        self.out.view.publish(view);
        self.out.status.publish(ConfigurationStatus {
            workload: Some(format!("{}/{}", workload.namespace, workload.name).into()),
            identity: workload.identity.clone(),
            problem: None,
            ending: workload.ending,
            generation: self.out.status.load().generation + 1,
        });
    }

    /// Where connections go, by host.
    pub(crate) fn tcp(&self) -> Arc<TcpTable> {
        let of_host = |(host, known): (&Arc<str>, &KnownHost)| (Arc::clone(host), known.tcp.clone());
        Arc::new(self.hosts.iter().map(of_host).collect())
    }

    fn find(&self, store: &Store) -> Option<Arc<Workload>> {
        match &self.wanted {
            Wanted::Named { namespace, name } => store.workload(namespace, name),
            Wanted::Account { namespace, account } => {
                let labels = Labels::new();
                Some(Arc::new(Workload::detached(&self.options, namespace, account, account, labels)))
            }
        }
    }

    fn missing(&self) -> String {
        match &self.wanted {
            Wanted::Named { namespace, name } => format!(
                "the workload {namespace}/{name} is not in the configuration; add a WorkloadEntry or Pod of \
                 that name"
            ),
            Wanted::Account { .. } => String::new(),
        }
    }

    fn own(&self, workload: &Workload, inbound: &Inbound) -> OwnWorkload {
        let labels = (*workload.telemetry).clone();
        if self.apps.is_some() {
            let ports = inbound.ports.iter().map(|p| (p.workload_port, p.service.service_name()));
            return OwnWorkload { labels, service: None, ports: ports.collect() };
        }
        let service = self.own_port(inbound).map(|p| p.service.service_name());
        OwnWorkload { labels, service, ports: Vec::new() }
    }

    /// The port at which calls arrive; without one the first service's first.
    fn own_port<'a>(&self, inbound: &'a Inbound) -> Option<&'a InboundPort> {
        self.inbound_port.and_then(|port| inbound.port(port)).or(inbound.ports.first())
    }

    /// Compiles every host that the workload sees, anew where it changed.
    fn routes(&mut self, store: &Store, workload: &Arc<Workload>, all: &mut Vec<Diagnostic>) -> RouteTable {
        let find = |host: &str| store.outbound(workload, host);
        let served = store.hosts(workload).filter_map(|entry| {
            let outbound = Arc::new(store.outbound(workload, &entry.host)?);
            Some(Served { host: entry.host, outbound, alone: false, fresh: true })
        });
        let registry = &self.registry;
        let options = store.options();
        let mut clusters = Clusters { find: &find, options, workload, registry, used: HashSet::new() };
        compile_all(&mut self.hosts, &mut clusters, served, all);
        table(&self.hosts)
    }

    /// Compiles the hosts that are served; the table, where it has become another one.
    #[cfg(feature = "control-plane")]
    pub(crate) fn serve(
        &mut self,
        options: &StoreOptions,
        workload: &Arc<Workload>,
        find: &dyn Fn(&str) -> Option<Outbound>,
        served: Vec<Served>,
        all: &mut Vec<Diagnostic>,
    ) -> Option<RouteTable> {
        let registry = &self.registry;
        let mut clusters = Clusters { find, options, workload, registry, used: HashSet::new() };
        compile_all(&mut self.hosts, &mut clusters, served, all).then(|| table(&self.hosts))
    }

    /// The hosts that are compiled, each with the hosts that its clusters belong to.
    #[cfg(feature = "control-plane")]
    pub(crate) fn compiled(&self) -> impl Iterator<Item = (&Arc<str>, impl Iterator<Item = &ClusterKey>)> {
        self.hosts.iter().map(|(host, known)| (host, known.clusters.keys()))
    }
}

/// A host that calls can go to.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) host: Arc<str>,
    pub(crate) outbound: Arc<Outbound>,
    /// Whether it is known by `host` and no other name.
    pub(crate) alone: bool,
    /// Whether something that it is made from may have changed.
    pub(crate) fresh: bool,
}

/// Compiles hosts, anew where they changed, and keeps the clusters that they use. Says whether the table is
/// another one than before.
fn compile_all(
    hosts: &mut HashMap<Arc<str>, KnownHost>,
    clusters: &mut Clusters<'_>,
    served: impl IntoIterator<Item = Served>,
    all: &mut Vec<Diagnostic>,
) -> bool {
    let mut before = std::mem::take(hosts);
    let mut changed = false;
    for (rank, Served { host, outbound, alone, fresh }) in served.into_iter().enumerate() {
        let known = before.remove(&host).filter(|known| {
            if !fresh {
                clusters.used.extend(known.clusters.keys().cloned());
                return true;
            }
            known.fingerprint == outbound.fingerprint() && clusters.refresh(&known.clusters)
        });
        let mut known = known.unwrap_or_else(|| {
            changed = true;
            let domains = if alone { vec![Arc::clone(&host)] } else { outbound.domains().to_vec() };
            clusters.compile(&outbound, domains)
        });
        known.rank = rank;
        add(all, known.diagnostics.iter().cloned());
        hosts.insert(host, known);
    }
    changed |= !before.is_empty();
    let used = &clusters.used;
    clusters.registry.retain(|key| used.contains(key));
    changed
}

/// The table of all hosts. A short form is another host's full name sometimes: full names come first, then the
/// other names in the order of the hosts.
fn table(hosts: &HashMap<Arc<str>, KnownHost>) -> RouteTable {
    let mut all: Vec<(&Arc<str>, &KnownHost)> = hosts.iter().collect();
    all.sort_unstable_by_key(|(_, known)| known.rank);
    let builder =
        all.iter().fold(RouteTable::builder(), |builder, (host, known)| builder.host([host], &known.routes));
    let builder =
        all.iter().fold(builder, |builder, (_, known)| builder.host(known.domains.iter(), &known.routes));
    builder.build()
}

fn modes(found: &PeerAuthentications) -> TlsModes {
    let PeerAuthentications { mesh, namespace, workload, .. } = found;
    TlsModes::of_levels(mesh.as_deref(), namespace.as_deref(), workload.as_deref())
}

/// How the application is spoken to: a service's own DestinationRule limits its workloads, too. What it says
/// of TLS, and of leaving endpoints out, is for callers.
pub(crate) fn app_settings(port: &InboundPort) -> ClusterSettings {
    let mut policy = port.policy.effective(port.service_port.number, "");
    policy.outlier_detection = None;
    policy.refuse = None;
    destination::settings(&policy, port.service_port.protocol)
}

fn add(all: &mut Vec<Diagnostic>, more: impl IntoIterator<Item = Diagnostic>) {
    for diagnostic in more {
        let told = |d: &Diagnostic| {
            d.resource == diagnostic.resource
                && d.field == diagnostic.field
                && d.message == diagnostic.message
        };
        if !all.iter().any(told) {
            all.push(diagnostic);
        }
    }
}

/// Makes and refreshes clusters.
struct Clusters<'a> {
    /// What applies to calls to a host.
    find: &'a dyn Fn(&str) -> Option<Outbound>,
    options: &'a StoreOptions,
    workload: &'a Arc<Workload>,
    registry: &'a Registry,
    used: HashSet<ClusterKey>,
}

impl Clusters<'_> {
    /// Puts the newest settings and endpoints of clusters in force whose routes stay; says whether all of
    /// them still are what the routes took them for.
    fn refresh(&mut self, clusters: &HashMap<ClusterKey, Arc<str>>) -> bool {
        clusters.iter().all(|(key, called)| {
            let before = self.registry.get(key);
            match (self.cluster(called, Some(key.port), key.port, &key.subset), before) {
                (Ok(now), Some(before)) => Arc::ptr_eq(&now, &before),
                _ => false,
            }
        })
    }

    fn compile(&mut self, outbound: &Outbound, domains: Vec<Arc<str>>) -> KnownHost {
        let ports: Vec<(u16, Protocol)> = match outbound.service() {
            Some(service) => service.ports.iter().map(|p| (p.number, p.protocol)).collect(),
            // As in Istio: a host that no service stands behind is served on port 80.
            None => vec![(DEFAULT_PORT, Protocol::Http1)],
        };
        let (options, workload) = (self.options, self.workload);
        let mut clusters = HashMap::new();
        let mut diagnostics = Vec::new();
        let mut compiled: Vec<(u16, Routes)> = Vec::new();
        let mut tcp = Vec::new();
        for (port, protocol) in ports {
            let this = std::cell::RefCell::new((&mut *self, &mut clusters));
            let resolve = |to: &DestinationRef<'_>| {
                let (this, clusters) = &mut *this.borrow_mut();
                match this.cluster(to.host, to.port, to.default_port, to.subset) {
                    Ok(cluster) => {
                        // Most rules of a host lead to few clusters.
                        if !clusters.contains_key(cluster.key()) {
                            clusters.insert(cluster.key().clone(), Arc::from(to.host));
                        }
                        Resolved::Cluster(cluster)
                    }
                    Err(failure) => Resolved::Missing(failure),
                }
            };
            let context = CompileContext {
                namespace: &workload.namespace,
                labels: &workload.labels,
                cluster_domain: &options.cluster_domain,
                host: outbound.host(),
                port,
                resolve: &resolve,
            };
            let vs = outbound.virtual_service().map(|vs| &**vs);
            let http = compile_http(vs, &context);
            add(&mut diagnostics, http.diagnostics);
            compiled.push((port, http.routes));
            if !protocol.is_http() {
                let connections = compile_tcp(vs, &context);
                add(&mut diagnostics, connections.diagnostics);
                tcp.push((port, connections.routes));
            }
        }
        let routes = Arc::new(HostRoutes::new(outbound.host(), compiled));
        let fingerprint = outbound.fingerprint();
        KnownHost { fingerprint, domains, rank: 0, routes, tcp, clusters, diagnostics }
    }

    /// The cluster of a destination, with its newest settings and endpoints in force.
    fn cluster(
        &mut self,
        host: &str,
        port: Option<u16>,
        default_port: u16,
        subset: &str,
    ) -> Result<Arc<Cluster>, Failure> {
        let unknown = |why: String| Failure::new(FailureCode::UnknownSubset).detail(why);
        let outbound = (self.find)(host).ok_or_else(|| unknown(format!("no service is called {host}")))?;
        let service = outbound.service().ok_or_else(|| unknown(format!("no service is called {host}")))?;
        let port = match (port, &*service.ports) {
            (Some(port), _) => service.port(port),
            (None, [only]) => Some(only),
            (None, _) => service.port(default_port),
        }
        .ok_or_else(|| unknown(format!("{host} has no port {}", port.unwrap_or(default_port))))?;
        let key = outbound.cluster_key(port.number, subset);
        let policy = outbound.effective_policy(port.number, subset);
        if let Some(failure) = &policy.refuse
            && failure.code() == FailureCode::UnknownSubset
        {
            return Err(failure.clone());
        }
        let settings = destination::settings(&policy, port.protocol);
        let endpoints = outbound.endpoints(port.number, subset);
        let cluster = self.registry.cluster(&key, &outbound.service_name(), settings, endpoints);
        self.used.insert(key);
        Ok(cluster)
    }
}
